//! What ssh-proxy tells of itself to who gathers figures (docs/observability.md).

use crate::io::door::Front;
use feed::figures::Histogram;
use model::figures::Figures;
use model::ssh::SshVmState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long clients that had logged in waited until their VM's sshd let them in, by what the VM was at the login.
#[derive(Debug, Default)]
pub struct Reached {
    up: Histogram,
    asleep: Histogram,
    stopped: Histogram,
    failed: AtomicU64,
}

impl Reached {
    /// Counts one. Those who came to nothing waited for a bound of ours, which says nothing of VMs.
    pub fn note(&self, state: SshVmState, came: bool, took: Duration) {
        if !came {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match state {
            SshVmState::Up => self.up.note(took),
            SshVmState::Asleep => self.asleep.note(took),
            SshVmState::Down => self.stopped.note(took),
        }
    }
}

/// Tells root and `own_user`, for ever.
pub async fn serve(front: Arc<Front>, own_user: u32) {
    let started = SystemTime::now();
    let path = front.config.places.ssh_figures();
    feed::figures::serve(&path, own_user, || std::future::ready(gather(&front, started))).await;
}

fn gather(front: &Front, started: SystemTime) -> Figures {
    let mut figures = Figures::default();
    let began = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    figures.gauges(
        "gatehouse_ssh_info",
        "What runs.",
        [(vec![("version", env!("CARGO_PKG_VERSION"))], 1_u64)],
    );
    figures.gauge(
        "gatehouse_ssh_start_time_seconds",
        "When it was started, since the Unix epoch.",
        began.as_secs(),
    );
    figures.counters(
        "gatehouse_ssh_logins_total",
        "What came of clients: token or key, by which they logged in, or why they were refused.",
        front.audit.logins().map(|(outcome, count)| (vec![("outcome", outcome)], count)),
    );
    let (sessions, channels) = front.sessions.open();
    figures.gauge("gatehouse_ssh_sessions", "Clients that are logged in.", sessions);
    figures.gauge("gatehouse_ssh_channels", "Channels that are open.", channels);
    let (received, sent) = front.sessions.carried();
    figures.counters(
        "gatehouse_ssh_channel_bytes_total",
        "Bytes of channels, from clients (received) and to them (sent).",
        [("received", received), ("sent", sent)].map(|(way, bytes)| (vec![("direction", way)], bytes)),
    );
    let Reached { up, asleep, stopped, failed } = &front.reached;
    figures.histograms(
        "gatehouse_ssh_vm_wait_seconds",
        "From a login until the VM's sshd let the client in, by what the VM was at the login.",
        [("up", up), ("asleep", asleep), ("stopped", stopped)]
            .map(|(vm, took)| (vec![("vm", vm)], took.so_far())),
    );
    figures.counters(
        "gatehouse_ssh_vm_wait_failures_total",
        "Logins whose VM was not reached.",
        [(vec![], failed.load(Ordering::Relaxed))],
    );
    figures.counters(
        "gatehouse_ssh_log_lines_lost_total",
        "Lines of the log for which there was no room.",
        [(vec![], front.audit.lost())],
    );
    figures
}
