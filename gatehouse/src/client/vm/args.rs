//! Words that several commands share: sizes, idleness, and what becomes of what nobody uses.

use crate::client::ClientError;
use clap::{Args, ValueEnum};
use model::api::vm::{DeleteEvent, Persistence};

/// The highest priority of what is sticky.
const MAX_PRIORITY: i64 = 10;

/// How large a VM is to be.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeArgs {
    /// Virtual CPUs, a power of two
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub vcpus: Option<u8>,
    /// Memory in MiB, a power of two; with a G behind it in GiB
    #[arg(long, value_name = "MIB", value_parser = mib)]
    pub memory: Option<u32>,
    /// Disk in MiB; with a G behind it in GiB
    #[arg(long, value_name = "MIB", value_parser = mib)]
    pub disk: Option<u32>,
}

/// When a VM counts as idle, and how long it may take to come up.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdleArgs {
    /// Suspend it after so many seconds without traffic; `never` keeps it up
    #[arg(long, value_name = "SECONDS|never", value_parser = idle)]
    idle_timeout: Option<Idle>,
    /// Fewer bytes within that time are no traffic: keep-alives and the like do not keep it up [default: 1]
    #[arg(long, value_name = "BYTES")]
    pub activity_threshold: Option<u64>,
    /// Give up when it cannot run commands after so many seconds [default: 180]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub ready_timeout: Option<u64>,
}

/// When an idle VM is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Idle {
    /// It is not.
    Never,
    /// After so many seconds.
    After(u64),
}

/// What becomes of a VM that nobody uses.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct KeptArgs {
    /// What becomes of it when nobody uses it
    #[arg(long, value_enum)]
    persistence: Option<Keeping>,
    /// Of what is sticky, the lowest is given up first: 0 to 10 [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=MAX_PRIORITY))]
    priority: Option<u8>,
    /// What deletes an ephemeral one; when absent, either does
    #[arg(long, value_enum, value_name = "EVENT", conflicts_with = "priority")]
    delete_event: Option<Ending>,
}

/// What becomes of a snapshot that nobody uses.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct KeptCopyArgs {
    /// What becomes of the snapshot when nobody uses it
    #[arg(long, value_enum)]
    persistence: Option<CopyKeeping>,
    /// Of what is sticky, the lowest is given up first: 0 to 10 [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=MAX_PRIORITY))]
    priority: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Keeping {
    /// It may be given up when the host is full
    Sticky,
    /// It is kept until somebody deletes it
    Persistent,
    /// It is deleted when it stops or goes to sleep
    Ephemeral,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CopyKeeping {
    /// It may be given up when there are too many
    Sticky,
    /// It is kept until somebody deletes it
    Persistent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ending {
    /// It stops, is stopped or killed
    #[value(alias = "OnStop")]
    Stop,
    /// It is suspended, when it is idle too
    #[value(alias = "OnSuspend")]
    Suspend,
}

impl SizeArgs {
    /// As the API counts.
    pub fn vcpu_count(self) -> Option<f64> {
        self.vcpus.map(f64::from)
    }

    /// In GiB, as the API counts.
    pub fn memory_gib(self) -> Option<f64> {
        self.memory.map(gib)
    }

    /// In GiB, as the API counts.
    pub fn disk_gib(self) -> Option<f64> {
        self.disk.map(gib)
    }
}

impl IdleArgs {
    /// As the API has it: `None` says nothing, `Some(None)` is never.
    pub fn timeout_seconds(self) -> Option<Option<u64>> {
        self.idle_timeout.map(|idle| match idle {
            Idle::Never => None,
            Idle::After(seconds) => Some(seconds),
        })
    }
}

impl KeptArgs {
    /// What is wished, if anything. A priority alone means sticky, an event alone ephemeral.
    ///
    /// # Errors
    /// [`ClientError::Usage`] when the words contradict each other.
    pub fn wish(self) -> Result<Option<Persistence>, ClientError> {
        let implied = match (self.persistence, self.priority, self.delete_event) {
            (Some(said), _, _) => said,
            (None, None, None) => return Ok(None),
            (None, Some(_), _) => Keeping::Sticky,
            (None, None, Some(_)) => Keeping::Ephemeral,
        };
        if self.priority.is_some() && implied != Keeping::Sticky {
            return Err(ClientError::Usage("--priority is for --persistence sticky alone"));
        }
        if self.delete_event.is_some() && implied != Keeping::Ephemeral {
            return Err(ClientError::Usage("--delete-event is for --persistence ephemeral alone"));
        }
        Ok(Some(match implied {
            Keeping::Sticky => Persistence::Sticky { priority: self.priority },
            Keeping::Persistent => Persistence::Persistent,
            Keeping::Ephemeral => Persistence::Ephemeral {
                delete_event: self.delete_event.map(|ending| match ending {
                    Ending::Stop => DeleteEvent::OnStop,
                    Ending::Suspend => DeleteEvent::OnSuspend,
                }),
            },
        }))
    }
}

impl KeptCopyArgs {
    /// What is wished, if anything. A priority alone means sticky.
    ///
    /// # Errors
    /// [`ClientError::Usage`] when the words contradict each other.
    pub fn wish(self) -> Result<Option<Persistence>, ClientError> {
        match (self.persistence, self.priority) {
            (None, None) => Ok(None),
            (Some(CopyKeeping::Persistent), None) => Ok(Some(Persistence::Persistent)),
            (Some(CopyKeeping::Persistent), Some(_)) => {
                Err(ClientError::Usage("--priority is for --persistence sticky alone"))
            }
            (None | Some(CopyKeeping::Sticky), priority) => Ok(Some(Persistence::Sticky { priority })),
        }
    }
}

fn gib(mib: u32) -> f64 {
    f64::from(mib) / 1024.0
}

fn mib(text: &str) -> Result<u32, String> {
    let text = text.trim_end_matches("iB");
    let (number, unit) = match text.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let wanted = number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit));
    wanted.filter(|mib| *mib > 0).ok_or_else(|| "a number of MiB such as 512, or of GiB such as 2G".into())
}

fn idle(text: &str) -> Result<Idle, String> {
    match text.parse() {
        _ if text == "never" => Ok(Idle::Never),
        Ok(seconds @ 1..) => Ok(Idle::After(seconds)),
        Ok(0) | Err(_) => Err("a number of seconds from 1 on, or 'never'".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use proptest::prelude::*;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        size: SizeArgs,
        #[command(flatten)]
        idle: IdleArgs,
        #[command(flatten)]
        kept: KeptArgs,
    }

    fn words(text: &str) -> Result<Words, String> {
        let words = std::iter::once("x").chain(text.split_whitespace());
        Words::try_parse_from(words).map_err(|error| error.to_string())
    }

    fn kept(text: &str) -> Result<Option<Persistence>, String> {
        words(text)?.kept.wish().map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_are_read_in_both_units() {
        let size = words("--vcpus 2 --memory 512 --disk 20GiB").expect("good").size;
        assert_eq!(size, SizeArgs { vcpus: Some(2), memory: Some(512), disk: Some(20480) });
        assert_eq!(
            (size.vcpu_count(), size.memory_gib(), size.disk_gib()),
            (Some(2.0), Some(0.5), Some(20.0))
        );
        for wrong in ["0", "-1", "x", "", "G", "1.5G", "4194304G", "2T"] {
            assert!(mib(wrong).expect_err("refused").contains("2G"), "{wrong}");
        }
        assert!(words("--vcpus 0").expect_err("refused").contains("1..=255"));
    }

    proptest! {
        #[test]
        fn no_mebibyte_is_lost_on_the_way_to_the_api(mib: u32) {
            prop_assert!((gib(mib) * 1024.0 - f64::from(mib)).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn never_and_absent_differ() {
        let timeout = |text: &str| words(text).map(|words| words.idle.timeout_seconds());
        assert_eq!(timeout(""), Ok(None));
        assert_eq!(timeout("--idle-timeout never"), Ok(Some(None)));
        assert_eq!(timeout("--idle-timeout 60"), Ok(Some(Some(60))));
        for wrong in ["0", "-5", "soon"] {
            let error = timeout(&format!("--idle-timeout={wrong}")).expect_err("refused");
            assert!(error.contains("'never'"), "{error}");
        }
    }

    #[test]
    fn what_is_kept_can_be_said_shortly_and_not_contradict_itself() {
        let ephemeral = |delete_event| Ok(Some(Persistence::Ephemeral { delete_event }));
        assert_eq!(kept(""), Ok(None));
        assert_eq!(kept("--persistence sticky"), Ok(Some(Persistence::Sticky { priority: None })));
        assert_eq!(kept("--priority 0"), Ok(Some(Persistence::Sticky { priority: Some(0) })));
        assert_eq!(kept("--persistence persistent"), Ok(Some(Persistence::Persistent)));
        assert_eq!(kept("--persistence ephemeral"), ephemeral(None));
        assert_eq!(kept("--delete-event stop"), ephemeral(Some(DeleteEvent::OnStop)));
        assert_eq!(kept("--delete-event OnSuspend"), ephemeral(Some(DeleteEvent::OnSuspend)));
        for (wrong, why) in [
            ("--priority 11", "0..=10"),
            ("--persistence persistent --priority 3", "sticky alone"),
            ("--persistence ephemeral --priority 3", "sticky alone"),
            ("--persistence sticky --delete-event stop", "ephemeral alone"),
            ("--priority 3 --delete-event stop", "cannot be used with"),
            ("--persistence forever", "persistent"),
        ] {
            let error = kept(wrong).expect_err(wrong);
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_snapshot_is_never_ephemeral() {
        let wish = |persistence, priority| KeptCopyArgs { persistence, priority }.wish();
        assert_eq!(wish(None, None).expect("good"), None);
        let sticky = Some(Persistence::Sticky { priority: Some(7) });
        assert_eq!(wish(None, Some(7)).expect("good"), sticky);
        assert!(matches!(wish(Some(CopyKeeping::Persistent), Some(7)), Err(ClientError::Usage(_))));
    }
}
