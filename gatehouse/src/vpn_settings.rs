//! The VPN's part of the settings: flags `--vpn-…`, and the table `[vpn]` of the file.

use crate::settings::{SettingsError, value};
use clap::Args;
use model::config::{VPN_PORT, VpnDoor};
use model::net::{Ipv4Cidr, PRIVATE_RANGES};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;

/// What an IPv4 host must take (RFC 791), and the largest that jumbo frames carry.
const MTUS: std::ops::RangeInclusive<u16> = 576..=9000;
/// Sizes of the clients' pool: room for a team, and no more than a VPC has.
const POOL_PREFIXES: std::ops::RangeInclusive<u8> = 16..=24;
/// A session that ends sooner than a client handshakes again (120 s) would end under it.
const LEAST_IDLE: NonZeroU32 = NonZeroU32::new(180).expect("not zero");

/// What the command line says of the VPN.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct VpnWishes {
    /// Where WireGuard's datagrams come in, UDP [default: 0.0.0.0:51820]
    #[arg(long = "vpn-listen", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where VPN clients reach this host [default: vpn. of the domain]
    #[arg(long = "vpn-host", value_name = "NAME")]
    pub host: Option<String>,
    /// The UDP port that VPN clients see, if it is another one than the listener's
    #[arg(long = "vpn-port", value_name = "PORT")]
    pub port: Option<u16>,
    /// Largest IP packet in a tunnel, in bytes [default: 1280]
    #[arg(long = "vpn-mtu", value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// Where the addresses of VPN clients come from [default: 100.96.0.0/16]
    #[arg(long = "vpn-pool", value_name = "CIDR")]
    pub pool: Option<Ipv4Cidr>,
    /// VMs see VPN clients under their VPC's first address, for guests that drop what comes from 100.64.0.0/10
    #[arg(long = "vpn-hide-clients", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub hide_clients: Option<bool>,
    /// VPN clients of one VPC reach each other
    #[arg(long = "vpn-client-to-client", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub client_to_client: Option<bool>,
    /// A VPN session ends after so many seconds without a word of its client [default: 3600]
    #[arg(long = "vpn-idle-seconds", value_name = "N")]
    pub idle_seconds: Option<NonZeroU32>,
    /// A VPN session ends after so many seconds in any case [default: 86400]
    #[arg(long = "vpn-longest-seconds", value_name = "N")]
    pub longest_seconds: Option<NonZeroU32>,
}

/// What is true of the VPN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VpnSettings {
    /// UDP listener.
    pub listen: SocketAddr,
    /// What clients are told.
    pub door: VpnDoor,
    /// Whether clients of one VPC reach each other.
    pub client_to_client: bool,
}

impl VpnWishes {
    /// Joins two sources: what `self` says wins.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            listen: self.listen.or(below.listen),
            host: self.host.or(below.host),
            port: self.port.or(below.port),
            mtu: self.mtu.or(below.mtu),
            pool: self.pool.or(below.pool),
            hide_clients: self.hide_clients.or(below.hide_clients),
            client_to_client: self.client_to_client.or(below.client_to_client),
            idle_seconds: self.idle_seconds.or(below.idle_seconds),
            longest_seconds: self.longest_seconds.or(below.longest_seconds),
        }
    }

    /// Fills in what nobody said, and checks all of it.
    ///
    /// # Errors
    /// [`SettingsError::Value`] for the first value that cannot be.
    pub fn settle(self, default_network: Ipv4Cidr) -> Result<VpnSettings, SettingsError> {
        let defaults = VpnDoor::default();
        let listen = self.listen.unwrap_or((Ipv4Addr::UNSPECIFIED, VPN_PORT).into());
        let door = VpnDoor {
            host: self.host.map(host).transpose()?,
            port: self.port.unwrap_or(listen.port()),
            mtu: self.mtu.unwrap_or(defaults.mtu),
            pool: pool(self.pool.unwrap_or(defaults.pool), default_network)?,
            hide_clients: self.hide_clients.unwrap_or(defaults.hide_clients),
            idle_seconds: self.idle_seconds.unwrap_or(defaults.idle_seconds),
            longest_seconds: self.longest_seconds.unwrap_or(defaults.longest_seconds),
        };
        if !MTUS.contains(&door.mtu) {
            let why = format!("it must be within {} and {}", MTUS.start(), MTUS.end());
            return Err(value("vpn-mtu", door.mtu, why));
        }
        if door.idle_seconds < LEAST_IDLE {
            let why = format!("a client may be silent for two minutes; at least {LEAST_IDLE}");
            return Err(value("vpn-idle-seconds", door.idle_seconds, why));
        }
        if door.longest_seconds < door.idle_seconds {
            let why = format!("it must be at least vpn-idle-seconds, {}", door.idle_seconds);
            return Err(value("vpn-longest-seconds", door.longest_seconds, why));
        }
        Ok(VpnSettings { listen, door, client_to_client: self.client_to_client.unwrap_or(false) })
    }
}

/// It stands in a line of the file that clients get, so it must not have two.
fn host(name: String) -> Result<String, SettingsError> {
    let good = !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':'));
    let why = "it must be a host name or an address, without a port";
    if good { Ok(name) } else { Err(value("vpn-host", name, why.to_owned())) }
}

fn pool(pool: Ipv4Cidr, default_network: Ipv4Cidr) -> Result<Ipv4Cidr, SettingsError> {
    let bad = |why: String| Err(value("vpn-pool", pool, why));
    if !POOL_PREFIXES.contains(&pool.prefix()) {
        return bad(format!("it must be a /{} to a /{}", POOL_PREFIXES.start(), POOL_PREFIXES.end()));
    }
    if !PRIVATE_RANGES.iter().any(|private| private.encloses(pool)) {
        let private = PRIVATE_RANGES.map(|range| range.to_string()).join(", ");
        return bad(format!("it must be a part of {private}"));
    }
    if pool.overlaps(default_network) {
        return bad(format!("default-network, {default_network}, has some of its addresses"));
    }
    Ok(pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(text: &str) -> Result<VpnSettings, SettingsError> {
        let wishes: VpnWishes = toml::from_str(text).expect("wishes");
        wishes.settle("10.201.0.0/16".parse().expect("network"))
    }

    #[test]
    fn the_port_that_clients_see_is_the_listeners_unless_it_is_said() {
        let settings = settle("").expect("defaults");
        assert_eq!((settings.listen.port(), &settings.door), (51820, &VpnDoor::default()));
        let settings = settle("listen = \"0.0.0.0:4500\"\nhide-clients = true").expect("good");
        assert_eq!((settings.door.port, settings.door.hide_clients), (4500, true));
        assert_eq!(settle("listen = \"0.0.0.0:4500\"\nport = 443").expect("good").door.port, 443);
        let settings = settle("pool = \"10.9.0.0/20\"\nhost = \"192.0.2.7\"").expect("good");
        assert_eq!(settings.door.host.as_deref(), Some("192.0.2.7"));
    }

    #[test]
    fn bad_values_are_named() {
        for (text, name) in [
            ("mtu = 500", "vpn-mtu"),
            ("mtu = 9001", "vpn-mtu"),
            ("pool = \"10.201.4.0/24\"", "vpn-pool"),
            ("pool = \"192.168.0.0/15\"", "vpn-pool"),
            ("pool = \"192.168.0.0/28\"", "vpn-pool"),
            ("pool = \"11.0.0.0/16\"", "vpn-pool"),
            ("host = \"a b\"", "vpn-host"),
            ("host = \"\"", "vpn-host"),
            ("host = \"x\\nPostUp = rm\"", "vpn-host"),
            ("idle-seconds = 60", "vpn-idle-seconds"),
            ("longest-seconds = 3599", "vpn-longest-seconds"),
        ] {
            let error = settle(text).expect_err(text).to_string();
            assert!(error.starts_with(name), "{text}: {error}");
        }
    }
}
