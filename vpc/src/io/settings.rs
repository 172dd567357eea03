//! Kernel settings under /proc/sys/net, which show the namespace of the thread that reads or writes them.

use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A setting cannot be made.
#[derive(Debug, Error)]
#[error("setting {path} cannot be set to {value}: {source}")]
pub struct SettingError {
    path: PathBuf,
    value: &'static str,
    source: io::Error,
}

/// The whole namespace: it forwards IPv4, believes no redirect and no source route, checks sources strictly. No device
/// speaks IPv6 before [`SPEAK_IPV6`], so none does in the default network, and none that leads out of a private one.
pub const NETWORK: [(&str, &str); 14] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/secure_redirects", "0"),
    ("ipv4/conf/default/secure_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/default/accept_source_route", "0"),
    // Not of all: that would take the addresses of those that speak it.
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv6/conf/lo/disable_ipv6", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
];

/// A private network's namespace, besides: it forwards IPv6 among the devices that speak it.
pub const FORWARD_IPV6: [(&str, &str); 1] = [("ipv6/conf/all/forwarding", "1")];

/// Flows have counters and times, and their ends are told though nobody listened when they began. A kernel without times
/// has no such setting, and the log says when it heard of an end.
pub const FLOW_LOG: [(&str, &str); 3] = [
    ("netfilter/nf_conntrack_acct", "1"),
    ("netfilter/nf_conntrack_timestamp", "1"),
    ("netfilter/nf_conntrack_events", "1"),
];

/// A TAP: it answers address resolution for everything, at once, with the gateway's Ethernet address.
pub const TAP: [(&str, &str); 5] = [
    ("ipv4/conf/DEVICE/proxy_arp", "1"),
    ("ipv4/neigh/DEVICE/proxy_delay", "0"),
    ("ipv4/conf/DEVICE/rp_filter", "1"),
    ("ipv4/conf/DEVICE/accept_redirects", "0"),
    ("ipv4/conf/DEVICE/send_redirects", "0"),
];

/// A member's device in a private network, and a service's own end of it: no address but those that it is given, nothing
/// believed of routers, and no routing headers. Last it is turned on.
pub const SPEAK_IPV6: [(&str, &str); 6] = [
    ("ipv6/conf/DEVICE/addr_gen_mode", "1"),
    ("ipv6/conf/DEVICE/accept_ra", "0"),
    ("ipv6/conf/DEVICE/accept_redirects", "0"),
    ("ipv6/conf/DEVICE/accept_source_route", "-1"),
    ("ipv6/conf/DEVICE/proxy_ndp", "0"),
    ("ipv6/conf/DEVICE/disable_ipv6", "0"),
];

/// A way to VPN clients or to a peer: nobody is answered for anybody else.
pub const WAY: [(&str, &str); 4] = [
    ("ipv4/conf/DEVICE/rp_filter", "1"),
    ("ipv4/conf/DEVICE/accept_redirects", "0"),
    ("ipv4/conf/DEVICE/send_redirects", "0"),
    ("ipv6/conf/DEVICE/disable_ipv6", "1"),
];

/// A service's own end of its link, in a namespace that is not ours otherwise.
pub const SERVICE_END: [(&str, &str); 2] =
    [("ipv4/conf/DEVICE/accept_redirects", "0"), ("ipv6/conf/DEVICE/disable_ipv6", "1")];

/// The host's end of the link to the namespace.
pub const HOST_UPLINK: [(&str, &str); 5] = [
    ("ipv4/conf/DEVICE/rp_filter", "1"),
    ("ipv4/conf/DEVICE/accept_redirects", "0"),
    ("ipv4/conf/DEVICE/send_redirects", "0"),
    ("ipv4/conf/DEVICE/accept_source_route", "0"),
    ("ipv6/conf/DEVICE/disable_ipv6", "1"),
];

/// Makes settings in the calling thread's namespace; `device` stands for the word DEVICE. A kernel without IPv6
/// has none of its settings, and needs none; the same is true of what tracked flows may have.
///
/// # Errors
/// When one cannot be written.
pub fn apply(settings: &[(&'static str, &'static str)], device: &str) -> Result<(), SettingError> {
    for (name, value) in settings {
        let path = path(&name.replace("DEVICE", device));
        let may_lack = name.starts_with("ipv6/") || name.starts_with("netfilter/");
        match std::fs::write(&path, value) {
            Err(source) if source.kind() == io::ErrorKind::NotFound && may_lack => {}
            Err(source) => return Err(SettingError { path, value, source }),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Whether the kernel speaks IPv6 at all.
#[must_use]
pub fn has_ipv6() -> bool {
    path("ipv6/conf").exists()
}

/// Turns IPv4 forwarding on in the calling thread's namespace. True when it was off.
///
/// # Errors
/// When the setting cannot be read or written.
pub fn ensure_forwarding() -> Result<bool, SettingError> {
    let path = path("ipv4/ip_forward");
    let failed = |source| SettingError { path: path.clone(), value: "1", source };
    let on = std::fs::read_to_string(&path).map_err(failed)?.trim() == "1";
    if !on {
        std::fs::write(&path, "1").map_err(failed)?;
    }
    Ok(!on)
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}
