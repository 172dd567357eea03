//! Which kind of KVM the host has, found by running a guest.

use super::Finding;
use crate::sys::probe::{self, Probe};
use serde::Serialize;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The hidden subcommand that runs the guest, in a process that can be killed.
pub const PROBE_COMMAND: &str = "kvm-probe";
/// The guest needs milliseconds; a KVM that interprets it, some more; an emulated host, a few seconds.
const PROBE_WAIT: Duration = Duration::from_secs(20);
/// The probe's answer is one short line.
const MAX_ANSWER_BYTES: u64 = 4096;

/// What stands behind `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Intel's VT-x.
    Vmx,
    /// AMD's SVM.
    Svm,
    /// A pagetable virtual machine: no help from the CPU; the guest's kernel is interpreted.
    Pvm,
    /// KVM works, by means that are not known here.
    Other,
    /// No KVM that runs a guest.
    Nothing,
}

impl Kind {
    /// Whether a stock Linux kernel runs in a VM.
    #[must_use]
    pub fn runs_stock_guests(self) -> bool {
        match self {
            Self::Vmx | Self::Svm | Self::Other => true,
            Self::Pvm | Self::Nothing => false,
        }
    }
}

/// Looks at the device and runs the guest.
#[must_use]
pub fn check() -> (Kind, Finding) {
    if !Path::new("/dev/kvm").exists() {
        let found = "/dev/kvm is missing: no VM can run";
        return (Kind::Nothing, Finding::bad("KVM", found, missing_remedy()));
    }
    match ask() {
        Ok(probe) => judge(&without_untold(probe), cpu_flag(), Path::new("/sys/module/kvm_pvm").exists()),
        Err(error) => {
            let remedy = "run as root; see what holds the device with: ls -l /dev/kvm && dmesg | grep -i kvm";
            (Kind::Nothing, Finding::bad("KVM", format!("/dev/kvm runs no guest: {error}"), remedy))
        }
    }
}

/// What the probe process prints.
///
/// # Errors
/// When no guest could be made.
pub fn run_probe() -> Result<String, probe::ProbeError> {
    Ok(serde_json::to_string(&probe::probe()?).expect("a probe is plain data"))
}

fn judge(probe: &Probe, flag: Option<Kind>, pvm: bool) -> (Kind, Finding) {
    let why = probe.stopped_by.clone().unwrap_or_else(|| "no reason is known".into());
    if !probe.ran {
        let found = format!("/dev/kvm is there, but a guest does not run: {why}");
        return (Kind::Nothing, Finding::bad("KVM", found, missing_remedy()));
    }
    if !probe.exchange {
        let found = format!(
            "{}: small guests run, but not cmpxchg16b, so that no stock Linux kernel boots ({why})",
            if pvm { "PVM (a guest's kernel is interpreted)" } else { "KVM without full hardware help" }
        );
        let remedy = "use a host with VT-x or SVM (bare metal, or nested virtualisation turned on); \
                      for a trial, tests/bed emulates one";
        return (Kind::Pvm, Finding::bad("KVM", found, remedy));
    }
    let (kind, name) = match flag {
        Some(Kind::Vmx) => (Kind::Vmx, "VMX (Intel VT-x)"),
        Some(Kind::Svm) => (Kind::Svm, "SVM (AMD-V)"),
        Some(Kind::Pvm | Kind::Other | Kind::Nothing) | None if pvm => (Kind::Pvm, "PVM"),
        Some(Kind::Pvm | Kind::Other | Kind::Nothing) | None => (Kind::Other, "KVM of an unknown kind"),
    };
    if kind == Kind::Pvm {
        let found = "PVM: a guest's kernel is interpreted, some 1000 times slower than the CPU";
        return (kind, Finding::bad("KVM", found, "use a host with VT-x or SVM"));
    }
    (kind, Finding::good("KVM", format!("{name}: guests run at full speed")))
}

/// Runs the probe in a child process and waits for it, within bounds.
fn ask() -> Result<Probe, String> {
    let own = std::env::current_exe().map_err(|error| format!("own program not found: {error}"))?;
    let mut child = Command::new(own)
        .arg(PROBE_COMMAND)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("the probe cannot be started: {error}"))?;
    let pidfd = rustix::process::Pid::from_child(&child);
    let ended = rustix::process::pidfd_open(pidfd, rustix::process::PidfdFlags::empty())
        .and_then(|pidfd| {
            let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            let wait = rustix::time::Timespec { tv_sec: PROBE_WAIT.as_secs().cast_signed(), tv_nsec: 0 };
            rustix::event::poll(&mut polled, Some(&wait))
        })
        .map_err(|error| format!("the probe cannot be waited for: {error}"))?;
    if ended == 0 {
        child.kill().map_err(|error| format!("the probe hangs and cannot be killed: {error}"))?;
    }
    let status = child.wait().map_err(|error| format!("the probe cannot be waited for: {error}"))?;
    if ended == 0 {
        return Err(format!("the guest did not end within {} s", PROBE_WAIT.as_secs()));
    }
    let text = |from: Option<&mut dyn Read>| {
        let mut text = String::new();
        from.map_or(Ok(0), |from| from.take(MAX_ANSWER_BYTES).read_to_string(&mut text))
            .map_err(|error| format!("the probe's answer cannot be read: {error}"))
            .map(|_| text)
    };
    let answer = text(child.stdout.as_mut().map(|out| out as &mut dyn Read))?;
    if !status.success() {
        let said = text(child.stderr.as_mut().map(|err| err as &mut dyn Read))?;
        return Err(said.trim().trim_start_matches("Error: ").to_owned());
    }
    serde_json::from_str(&answer).map_err(|error| format!("the probe's answer makes no sense: {error}"))
}

/// A CPU without `cmpxchg16b` fails the exchange for a reason that does not hinder Linux, which does without it.
fn without_untold(probe: Probe) -> Probe {
    if cpu_has("cx16") { probe } else { Probe { exchange: probe.ran, ..probe } }
}

fn cpu_flag() -> Option<Kind> {
    if cpu_has("vmx") { Some(Kind::Vmx) } else { cpu_has("svm").then_some(Kind::Svm) }
}

fn cpu_has(wanted: &str) -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == wanted)
}

fn missing_remedy() -> String {
    match cpu_flag() {
        Some(Kind::Vmx) => "modprobe kvm_intel (the CPU has VT-x)".into(),
        Some(Kind::Svm) => "modprobe kvm_amd (the CPU has SVM)".into(),
        Some(Kind::Pvm | Kind::Other | Kind::Nothing) | None => {
            "turn virtualisation on in the firmware, or nested virtualisation on the hypervisor below; \
             for a trial without it, tests/bed emulates such a host"
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn probe(ran: bool, exchange: bool) -> Probe {
        Probe { ran, exchange, stopped_by: (!exchange).then(|| "an internal error".into()) }
    }

    #[test]
    fn the_verdict_follows_the_guest_and_not_the_flags() {
        let judged = |ran, exchange, flag, pvm| {
            let (kind, finding) = judge(&probe(ran, exchange), flag, pvm);
            (kind, finding.verdict)
        };
        assert_eq!(judged(true, true, Some(Kind::Vmx), false), (Kind::Vmx, Verdict::Good));
        assert_eq!(judged(true, true, Some(Kind::Svm), false), (Kind::Svm, Verdict::Good));
        assert_eq!(judged(true, false, None, true), (Kind::Pvm, Verdict::Bad));
        assert_eq!(judged(true, false, Some(Kind::Vmx), false), (Kind::Pvm, Verdict::Bad));
        assert_eq!(judged(false, false, Some(Kind::Vmx), false), (Kind::Nothing, Verdict::Bad));
        assert_eq!(judged(true, true, None, false), (Kind::Other, Verdict::Good));
        assert_eq!(judged(true, true, None, true), (Kind::Pvm, Verdict::Bad));
    }
}
