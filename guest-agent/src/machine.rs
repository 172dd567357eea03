//! The machine as a whole: its name, clock, health and end.

use crate::place::Root;
use crate::sys::{entropy, signal};
use model::agent::{AgentReply, ENTROPY_BYTES};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::system::{RebootCommand, reboot, sethostname};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use thiserror::Error;

/// Longest host name of the kernel (`__NEW_UTS_LEN`).
const MAX_HOST_NAME_BYTES: usize = 64;
/// The line of `/etc/hosts` that Debian gives to a machine's own name.
const OWN_NAME_ADDRESS: &str = "127.0.1.1";
/// Mode of a file of /etc that everyone reads.
pub const FILE_MODE: u32 = 0o644;
/// Mode of the machine-id, which nobody changes.
const MACHINE_ID_MODE: u32 = 0o444;
const NANOSECONDS: u64 = 1_000_000_000;

/// Why the machine is not as asked.
#[derive(Debug, Error)]
pub enum MachineError {
    /// Not a host name.
    #[error("{0:?} is not a host name of 1 to 64 letters, digits, '-' and '.'")]
    HostName(String),
    /// The kernel refuses the name.
    #[error("cannot set the host name")]
    SetHostName(#[source] io::Error),
    /// A file of /etc cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The kernel refuses the time.
    #[error("cannot set the clock")]
    Clock(#[source] io::Error),
    /// Not [`ENTROPY_BYTES`] octets.
    #[error("{0} octets of entropy were given, {ENTROPY_BYTES} are needed")]
    EntropyLength(usize),
    /// The kernel does not take entropy.
    #[error("cannot give entropy to the kernel: {step}")]
    Entropy {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The kernel gives no random octets.
    #[error("cannot get random octets")]
    Random(#[source] io::Error),
    /// The boot's id cannot be read.
    #[error("cannot read the boot id")]
    BootId(#[source] io::Error),
    /// The kernel does not let go of memory.
    #[error("cannot write {path}")]
    Release {
        /// Which control of the kernel.
        path: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Neither systemd nor the kernel powers off.
    #[error("cannot power off")]
    PowerOff(#[source] io::Error),
}

/// Which boot this is (`random/boot_id` of sysctl).
///
/// # Errors
/// When /proc is not there.
pub fn boot_id() -> Result<String, MachineError> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(MachineError::BootId)?;
    Ok(text.trim().to_owned())
}

/// That the agent is there, and for how long the system is.
///
/// # Errors
/// See [`boot_id`].
pub fn health() -> Result<AgentReply, MachineError> {
    let up = clock_gettime(ClockId::Boottime);
    let milliseconds = up.tv_sec.saturating_mul(1000).saturating_add(up.tv_nsec / 1_000_000);
    Ok(AgentReply::Health {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id()?,
        uptime_milliseconds: u64::try_from(milliseconds).unwrap_or(0),
    })
}

/// Makes memory free that only caches files: written pages first, since only clean ones can go. Then moves what is left
/// together, since free memory is reported to the host in blocks of 2 MiB (vm.rst of the kernel's sysctl pages).
///
/// # Errors
/// When the kernel refuses.
pub fn release_memory() -> Result<(), MachineError> {
    rustix::fs::sync();
    for path in ["/proc/sys/vm/drop_caches", "/proc/sys/vm/compact_memory"] {
        fs::write(path, "1").map_err(|cause| MachineError::Release { path, cause })?;
    }
    Ok(())
}

/// Sets the host name, now and for the next boot.
///
/// # Errors
/// When it is none, or cannot be set or written.
pub fn set_host_name(root: &Root, name: &str) -> Result<(), MachineError> {
    if !is_host_name(name) {
        return Err(MachineError::HostName(name.chars().take(MAX_HOST_NAME_BYTES).collect()));
    }
    sethostname(name.as_bytes()).map_err(|errno| MachineError::SetHostName(errno.into()))?;
    let write = |path: &'static str, text: &str| {
        replace_file(&root.at(path), text, FILE_MODE).map_err(|cause| MachineError::Write { path, cause })
    };
    write("/etc/hostname", &format!("{name}\n"))?;
    let hosts = fs::read(root.at("/etc/hosts")).unwrap_or_default();
    write("/etc/hosts", &hosts_with(&String::from_utf8_lossy(&hosts), name))
}

fn is_host_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    (1..=MAX_HOST_NAME_BYTES).contains(&name.len())
        && name.bytes().all(good)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// `/etc/hosts` with the machine's own name; lines of others stay.
fn hosts_with(old: &str, name: &str) -> String {
    let own = |line: &&str| line.split_ascii_whitespace().next() == Some(OWN_NAME_ADDRESS);
    let old =
        if old.trim().is_empty() { "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n" } else { old };
    let mut text: String = old.lines().filter(|line| !own(line)).flat_map(|line| [line, "\n"]).collect();
    text.push_str(&format!("{OWN_NAME_ADDRESS}\t{name}\n"));
    text
}

/// Gives the kernel entropy that counts, and lets its generator use it now.
///
/// # Errors
/// When it is too short or too long, or the kernel refuses; then random numbers must not be trusted.
pub fn reseed(octets: &[u8]) -> Result<(), MachineError> {
    let octets: &[u8; ENTROPY_BYTES] =
        octets.try_into().map_err(|_| MachineError::EntropyLength(octets.len()))?;
    let failed = |step| move |cause: io::Error| MachineError::Entropy { step, cause };
    let random = File::options().write(true).open("/dev/random").map_err(failed("open /dev/random"))?;
    entropy::add_credited(&random, octets).map_err(io::Error::from).map_err(failed("RNDADDENTROPY"))?;
    entropy::reseed(&random).map_err(io::Error::from).map_err(failed("RNDRESEEDCRNG"))
}

/// Gives the machine a new machine-id (machine-id(5)).
///
/// # Errors
/// When there is no randomness, or a file cannot be written.
pub fn renew_machine_id(root: &Root) -> Result<(), MachineError> {
    let mut octets = [0; 16];
    // Sixteen octets come whole (getrandom(2)).
    getrandom(&mut octets, GetRandomFlags::empty()).map_err(|errno| MachineError::Random(errno.into()))?;
    let text = machine_id(octets);
    let write = |path: &'static str| {
        replace_file(&root.at(path), &text, MACHINE_ID_MODE)
            .map_err(|cause| MachineError::Write { path, cause })
    };
    write("/etc/machine-id")?;
    // Usually a link to the other, and then right already.
    let of_dbus = "/var/lib/dbus/machine-id";
    let is_plain = fs::symlink_metadata(root.at(of_dbus)).is_ok_and(|facts| facts.is_file());
    if is_plain { write(of_dbus) } else { Ok(()) }
}

/// The form of a random UUID (RFC 9562, section 5.4), as systemd makes them.
fn machine_id(mut octets: [u8; 16]) -> String {
    octets[6] = (octets[6] & 0x0f) | 0x40;
    octets[8] = (octets[8] & 0x3f) | 0x80;
    let mut text: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    text.push('\n');
    text
}

/// Replaces a small file of /etc in one step, also where it was a link.
///
/// # Errors
/// What the file system answers.
pub fn replace_file(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) && !path.is_symlink() {
        return Ok(());
    }
    let new = path.with_extension("gatehouse-new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(text.as_bytes())?;
    match fs::rename(&new, path) {
        // Something is mounted on it, as systemd does with the machine-id of a read-only root.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            fs::remove_file(new)?;
            fs::write(path, text)
        }
        other => other,
    }
}

/// Steps the wall clock.
///
/// # Errors
/// When the kernel refuses.
pub fn set_clock(unix_nanoseconds: u64) -> Result<(), MachineError> {
    let time = Timespec {
        tv_sec: i64::try_from(unix_nanoseconds / NANOSECONDS).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(unix_nanoseconds % NANOSECONDS).unwrap_or(0),
    };
    clock_settime(ClockId::Realtime, time).map_err(|errno| MachineError::Clock(errno.into()))
}

/// Shuts down: systemd stops everything and powers off; without systemd the disks are synced and the power cut.
///
/// # Errors
/// When neither works.
pub fn power_off() -> Result<(), MachineError> {
    // sd_booted(3)
    if Path::new("/run/systemd/system").is_dir() {
        match signal::ask_init_to_power_off() {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("gatehouse-agent: systemd cannot be asked to power off: {error}"),
        }
    }
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff).map_err(|errno| MachineError::PowerOff(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn own_name_is_replaced_and_other_lines_stay() {
        let old = "127.0.0.1 localhost\n127.0.1.1 old\n10.0.0.1 db # 127.0.1.1\n";
        let new = hosts_with(old, "new");
        assert_eq!(new, "127.0.0.1 localhost\n10.0.0.1 db # 127.0.1.1\n127.0.1.1\tnew\n");
        assert!(hosts_with("", "x").starts_with("127.0.0.1\tlocalhost\n"));
        assert_eq!(hosts_with(&new, "new"), new);
    }

    #[test]
    fn host_names_are_checked() {
        for (name, good) in [("vm-1.a", true), ("", false), ("-a", false), ("a\nb", false), ("a b", false)] {
            assert_eq!(is_host_name(name), good, "{name:?}");
        }
        assert!(!is_host_name(&"a".repeat(65)));
        assert!(set_host_name(&Root::system(), "a/b").is_err());
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let place = tempfile::tempdir().expect("directory");
        let (link, target) = (place.path().join("link"), place.path().join("target"));
        fs::write(&target, "old").expect("write");
        std::os::unix::fs::symlink(&target, &link).expect("link");
        replace_file(&link, "new", FILE_MODE).expect("replaced");
        assert_eq!(fs::read_to_string(&target).expect("target"), "old");
        assert_eq!(fs::read_to_string(&link).expect("link"), "new");
        assert!(!link.is_symlink());
    }

    #[test]
    fn the_kernel_takes_entropy_of_the_right_length() {
        assert!(matches!(reseed(&[0; 31]), Err(MachineError::EntropyLength(31))));
        reseed(&[7; ENTROPY_BYTES]).expect("reseeded");
    }

    #[test]
    fn a_machine_id_is_new_and_dbus_has_the_same() {
        let place = tempfile::tempdir().expect("directory");
        let root = Root::below(place.path().to_owned());
        for folder in ["/etc", "/var/lib/dbus"] {
            fs::create_dir_all(root.at(folder)).expect("folder");
        }
        let read = |path: &str| fs::read_to_string(root.at(path)).expect("id");
        fs::write(root.at("/var/lib/dbus/machine-id"), "old").expect("write");
        renew_machine_id(&root).expect("renewed");
        let first = read("/etc/machine-id");
        assert_eq!((first.len(), read("/var/lib/dbus/machine-id")), (33, first.clone()));
        fs::remove_file(root.at("/var/lib/dbus/machine-id")).expect("removed");
        std::os::unix::fs::symlink(root.at("/etc/machine-id"), root.at("/var/lib/dbus/machine-id"))
            .expect("link");
        renew_machine_id(&root).expect("renewed");
        assert_ne!(read("/etc/machine-id"), first);
        assert!(root.at("/var/lib/dbus/machine-id").is_symlink());
    }

    #[test]
    fn this_machine_is_healthy() {
        let Ok(AgentReply::Health { boot_id, uptime_milliseconds, .. }) = health() else { panic!("health") };
        assert_eq!(boot_id.len(), 36);
        assert!(uptime_milliseconds > 0);
    }

    proptest! {
        #[test]
        fn any_octets_make_an_id_of_version_four(octets: [u8; 16]) {
            let id = machine_id(octets);
            prop_assert!(id.len() == 33 && id.as_bytes()[12] == b'4' && b"89ab".contains(&id.as_bytes()[16]));
        }

        #[test]
        fn own_name_stands_once(old in "[0-9. \ta-z#\n]{0,100}") {
            let new = hosts_with(&old, "vm");
            let own = new.lines().filter(|line| line.split_ascii_whitespace().next() == Some(OWN_NAME_ADDRESS));
            prop_assert_eq!(own.count(), 1);
        }
    }
}
