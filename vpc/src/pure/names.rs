//! Names of what vpc makes in the kernel. All of them begin with the appliance's prefix or stand in its namespaces.

use model::id::{PeeringId, ServiceId, VmId, VpcId};
use std::fmt;
use thiserror::Error;

/// Longest prefix: the longest device name made of it must stay within [`MAX_DEVICE_CHARS`].
pub const MAX_PREFIX_CHARS: usize = 4;
/// Longest device name (`IFNAMSIZ` less the final NUL, netdevice(7)).
pub const MAX_DEVICE_CHARS: usize = 15;
/// The namespace's end of the link to the host.
pub const INNER_UPLINK: &str = "uplink";
/// The table inside the namespace, of the families `inet` and `netdev`. Not the prefix, which could be one of nft's
/// own words.
pub const TABLE: &str = "gatehouse";
/// The namespace's TUN of VPN clients.
pub const CLIENTS: &str = "clients";
/// First characters of devices' names; no other device in the namespace begins with one of them, but for [`CLIENTS`] and
/// [`INNER_UPLINK`], which have fewer characters.
const TAP_LETTER: char = 't';
const SERVICE_LETTER: char = 's';
const PEER_LETTER: char = 'p';
/// Characters of an id in the name of its device.
const DEVICE_ID_CHARS: usize = MAX_DEVICE_CHARS - 1;

/// Behind the prefix, the default network's part of a namespace's name.
const DEFAULT: &str = "default";
/// Behind the prefix, the end of the name of the default network's link to the host.
const DEFAULT_UPLINK: &str = "up";
/// Characters of a VPC's id in the name of its link to the host: what is left of [`MAX_DEVICE_CHARS`] behind the longest
/// prefix and a hyphen.
const UPLINK_ID_CHARS: usize = MAX_DEVICE_CHARS - MAX_PREFIX_CHARS - 1;

/// Which network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkId {
    /// Of the VMs that are in no private network.
    Default,
    /// A private one.
    Private(VpcId),
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str(DEFAULT),
            Self::Private(vpc) => f.write_str(vpc.as_str()),
        }
    }
}

/// The prefix cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the prefix must be one to four characters of a-z and 0-9 and begin with a letter, got {0:?}")]
pub struct PrefixError(String);

/// The names of one appliance's networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// Checks the prefix, which ends up in rules and paths.
    ///
    /// # Errors
    /// When it is not one to four characters of a-z and 0-9, a letter first (nft's names begin with one).
    pub fn new(prefix: &str) -> Result<Self, PrefixError> {
        let good = (1..=MAX_PREFIX_CHARS).contains(&prefix.len())
            && prefix.starts_with(|c: char| c.is_ascii_lowercase())
            && prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if good {
            Ok(Self { prefix: prefix.to_owned() })
        } else {
            Err(PrefixError(prefix.chars().take(64).collect()))
        }
    }

    /// A network's namespace, as `ip netns` shows it.
    #[must_use]
    pub fn namespace(&self, network: &NetworkId) -> String {
        format!("{}-{network}", self.prefix)
    }

    /// Reads the name of a namespace back; none when it is not that of a network of ours.
    #[must_use]
    pub fn network_of_namespace(&self, name: &str) -> Option<NetworkId> {
        match self.behind_prefix(name)? {
            DEFAULT => Some(NetworkId::Default),
            rest => rest.parse().ok().map(NetworkId::Private),
        }
    }

    /// The host's end of a network's link to it. Two VPCs whose ids begin with the same ten characters would have the
    /// same one, so only one of them is served.
    #[must_use]
    pub fn host_uplink(&self, network: &NetworkId) -> String {
        let end: String = match network {
            NetworkId::Default => DEFAULT_UPLINK.to_owned(),
            NetworkId::Private(vpc) => uplink_end(vpc),
        };
        format!("{}-{end}", self.prefix)
    }

    /// Whether that is what the host's end of the link of some network of ours is called.
    #[must_use]
    pub fn is_host_uplink(&self, name: &str) -> bool {
        self.behind_prefix(name).is_some_and(|end| {
            let plain = end.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            end == DEFAULT_UPLINK || plain && end.len() == UPLINK_ID_CHARS
        })
    }

    /// The end of a service's link that is in the service's own namespace. It is no link to the host, though that may be
    /// the service's namespace, and so has no hyphen.
    #[must_use]
    pub fn service_end(&self, vpc: &VpcId) -> String {
        format!("{}_{}", self.prefix, uplink_end(vpc))
    }

    /// All links to the host, as nft writes a pattern for device names. No other prefix's match, since none has a hyphen.
    #[must_use]
    pub fn host_uplinks(&self) -> String {
        format!("{}-*", self.prefix)
    }

    /// The table in the host's namespace.
    #[must_use]
    pub fn host_table(&self) -> String {
        format!("{}_host", self.prefix)
    }

    fn behind_prefix<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(&self.prefix)?.strip_prefix('-')
    }
}

/// Of a VPC's id, what the name of its link to the host ends in.
#[must_use]
pub fn uplink_end(vpc: &VpcId) -> String {
    let random = vpc.as_str().len() - VpcId::RANDOM_CHARS;
    vpc.as_str().chars().skip(random).take(UPLINK_ID_CHARS).collect()
}

/// A device's name in a network's namespace: a letter and the first fourteen random characters of the id of the VM, the
/// service or the peering, so that an operator reads the one from the other. The whole id is the device's alias. Two ids
/// that share fourteen characters do not get two devices.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

/// What a device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A VM's TAP.
    Tap,
    /// The network's end of a service's link.
    Service,
    /// The network's end of the link to a peer.
    Peer,
    /// The TUN of VPN clients.
    Clients,
}

impl DeviceName {
    /// The name of a VM's TAP.
    #[must_use]
    pub fn of(vm: &VmId) -> Self {
        Self::made(TAP_LETTER, vm.as_str(), VmId::RANDOM_CHARS)
    }

    /// The name of a service's device.
    #[must_use]
    pub fn of_service(service: &ServiceId) -> Self {
        Self::made(SERVICE_LETTER, service.as_str(), ServiceId::RANDOM_CHARS)
    }

    /// The name of a peering's device, in both networks.
    #[must_use]
    pub fn of_peering(peering: &PeeringId) -> Self {
        Self::made(PEER_LETTER, peering.as_str(), PeeringId::RANDOM_CHARS)
    }

    /// The name of the VPN clients' device.
    #[must_use]
    pub fn clients() -> Self {
        Self(CLIENTS.to_owned())
    }

    fn made(letter: char, id: &str, random: usize) -> Self {
        let random = id.chars().skip(id.len() - random).take(DEVICE_ID_CHARS);
        Self(std::iter::once(letter).chain(random).collect())
    }

    /// Reads a name back; none when it is not one of ours.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if name == CLIENTS {
            return Some(Self::clients());
        }
        let rest = name.strip_prefix([TAP_LETTER, SERVICE_LETTER, PEER_LETTER])?;
        let good = rest.len() == DEVICE_ID_CHARS
            && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        good.then(|| Self(name.to_owned()))
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        match self.0.chars().next() {
            Some(TAP_LETTER) => DeviceKind::Tap,
            Some(SERVICE_LETTER) => DeviceKind::Service,
            Some(PEER_LETTER) => DeviceKind::Peer,
            // No other name is made or read.
            Some(_) | None => DeviceKind::Clients,
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prefixes_are_checked() {
        let names = Names::new("gh01").expect("good");
        assert_eq!(names.host_uplink(&NetworkId::Default), "gh01-up");
        for bad in ["", "gh012", "1gh", "G", "a-b", "a b", "é", "../x"] {
            assert!(Names::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn names_of_networks_fit_and_are_read_back(bytes: [u8; 20], prefix in "[a-z][a-z0-9]{0,3}") {
            let names = Names::new(&prefix).expect("good");
            for network in [NetworkId::Default, NetworkId::Private(VpcId::from_random(bytes))] {
                let (namespace, uplink) = (names.namespace(&network), names.host_uplink(&network));
                prop_assert_eq!(names.network_of_namespace(&namespace), Some(network));
                prop_assert!(uplink.len() <= MAX_DEVICE_CHARS);
                prop_assert!(names.is_host_uplink(&uplink));
                let other = Names::new(if prefix == "gh" { "g" } else { "gh" }).expect("good");
                prop_assert_eq!(other.network_of_namespace(&namespace), None);
                prop_assert!(!other.is_host_uplink(&uplink));
            }
        }

        #[test]
        fn what_others_made_is_not_taken_for_ours(text in "(gh-)?[a-z0-9-]{0,26}") {
            let names = Names::new("gh").expect("good");
            if let Some(network) = names.network_of_namespace(&text) {
                prop_assert_eq!(names.namespace(&network), text.clone());
            }
            prop_assert!(!names.is_host_uplink(&text) || text.len() <= MAX_DEVICE_CHARS);
        }

        #[test]
        fn device_names_fit_and_are_read_back(bytes: [u8; 20]) {
            let names = [
                (DeviceName::of(&VmId::from_random(bytes)), DeviceKind::Tap),
                (DeviceName::of_service(&ServiceId::from_random(bytes)), DeviceKind::Service),
                (DeviceName::of_peering(&PeeringId::from_random(bytes)), DeviceKind::Peer),
                (DeviceName::clients(), DeviceKind::Clients),
            ];
            for (name, kind) in names {
                prop_assert!(name.as_str().len() <= MAX_DEVICE_CHARS);
                prop_assert_eq!(name.kind(), kind);
                prop_assert_eq!(DeviceName::parse(name.as_str()), Some(name));
            }
        }

        #[test]
        fn a_services_own_end_is_no_link_to_the_host(bytes: [u8; 20], prefix in "[a-z][a-z0-9]{0,3}") {
            let names = Names::new(&prefix).expect("good");
            let end = names.service_end(&VpcId::from_random(bytes));
            prop_assert!(end.len() <= MAX_DEVICE_CHARS && !names.is_host_uplink(&end));
            prop_assert!(!end.starts_with(names.host_uplinks().trim_end_matches('*')));
        }

        #[test]
        fn other_devices_are_not_taken_for_ours(text in ".{0,20}") {
            prop_assert!(DeviceName::parse(&text).is_none_or(|name| name.as_str() == text));
            prop_assert!(DeviceName::parse(INNER_UPLINK).is_none() && DeviceName::parse("lo").is_none());
        }
    }
}
