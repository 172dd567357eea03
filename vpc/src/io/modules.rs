//! Kernel modules that the rules need, asked for in one go before the first of them.
//!
//! The kernel would load each by itself at its first use. But then it takes back the whole transaction for every
//! module that is missing and begins again when it is there, one after another: that made the first start in a slow
//! machine last 37 s, most of it in ten calls of modprobe(8).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;
use tracing::{info, warn};

/// Where distributions put the program.
const PROGRAMS: [&str; 2] = ["/usr/sbin/modprobe", "/sbin/modprobe"];
/// Longest that loading may take; after it the kernel loads what is missing by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the rules, devices and messages of this process use and Debian's kernels have as modules.
const MODULES: [&str; 14] = [
    "tun",
    "veth",
    "nf_tables",
    "nft_ct",
    "nft_objref",
    "nft_limit",
    "nft_reject_inet",
    "nft_fib_inet",
    "nft_masq",
    "nft_chain_nat",
    "nf_conntrack_netlink",
    "nft_connlimit",
    "nft_log",
    "nfnetlink_log",
];

/// Loads what is not there. Nothing depends on it but time: a module may be built in, or may not be ours to load.
pub async fn load() {
    let Some(program) = PROGRAMS.into_iter().find(|program| Path::new(program).exists()) else {
        info!("no modprobe here; the kernel loads its modules by itself");
        return;
    };
    let loading = Command::new(program)
        .args(["-q", "-a"])
        .args(MODULES)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    match timeout(PATIENCE, loading).await {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => info!(%status, "not every module was loaded; the kernel loads them by itself"),
        Ok(Err(error)) => info!(%error, "modprobe cannot be run; the kernel loads its modules by itself"),
        Err(_) => warn!("modprobe did not end within {PATIENCE:?}"),
    }
}
