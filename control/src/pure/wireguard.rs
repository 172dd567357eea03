//! Why a VPN session cannot be, and what its client is told.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::vpc::BAD_VPC;
use crate::fault::Fault;
use model::config::VpnDoor;
use model::host::HostName;
use model::id::{VmId, VpcId, WireGuardSessionId};
use model::key::{PublicKey, SecretKey};
use model::net::Ipv4Cidr;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// What a client may call its tunnel.
pub const INTERFACE: &str = "wg0";
/// Seconds between a silent client's signs of life: less than NATs remember a flow of UDP.
const KEEPALIVE_SECONDS: u16 = 25;
/// Stands where a client's own secret belongs. It is no key, so `wg-quick` says what is wrong.
const NO_KEY: &str = "YOUR-PRIVATE-KEY";

/// Why there is no session.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SessionRefusal {
    /// No such VPC, or another account's.
    #[error("there is no VPC {0}")]
    NoVpc(VpcId),
    /// The API key was revoked a moment ago.
    #[error("the API key was revoked")]
    KeyRevoked,
    /// The gateway is no member.
    #[error("no VM {vm} of yours is in {vpc}; GET /v1/vpcs/{vpc} lists those that are")]
    NotMember {
        /// Who.
        vm: VmId,
        /// Of what.
        vpc: VpcId,
    },
    /// Another session has the client's key.
    #[error(
        "another VPN session has this public key, and a key is one client's; make a new pair (wg genkey)"
    )]
    KeyTaken,
    /// The account or the VPC has as many as it may have.
    #[error("{whose} has {current} VPN sessions, and may have {limit}; close some, or wait until they end")]
    TooMany {
        /// Who has them.
        whose: &'static str,
        /// So many.
        limit: u64,
        /// There are so many.
        current: u64,
    },
    /// The network has clients' addresses itself.
    #[error(
        "{vpc} has the range {range}, and this host gives its VPN clients addresses of {pool}: they would not be told \
         apart; make a VPC with another range"
    )]
    Overlap {
        /// The network.
        vpc: VpcId,
        /// Its range.
        range: Ipv4Cidr,
        /// The clients'.
        pool: Ipv4Cidr,
    },
    /// A member has the address behind which clients are hidden.
    #[error(
        "a member of {vpc} has {ipv4}, under which members of a VPC see its VPN clients on this host; delete or detach \
         it, or take vpn-hide-clients back"
    )]
    FirstTaken {
        /// The network.
        vpc: VpcId,
        /// The address.
        ipv4: Ipv4Addr,
    },
}

impl SessionRefusal {
    /// What the caller is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let with = |status, code, vpc| Fault::of_vpc(status, code, vpc, self.to_string());
        match self {
            Self::NoVpc(vpc) => with(404, "NOT_FOUND", vpc),
            Self::KeyRevoked => Fault::new(401, "UNAUTHORIZED_ERROR", self.to_string()),
            Self::NotMember { vm, vpc } => with(400, BAD_VPC, vpc).with("gatewayVmId", vm.as_str()),
            Self::KeyTaken => Fault::new(409, BAD_VPC, self.to_string()),
            Self::TooMany { limit, current, .. } => Fault::over_limit(self.to_string(), *limit, *current),
            Self::Overlap { vpc, .. } | Self::FirstTaken { vpc, .. } => with(400, BAD_VPC, vpc),
        }
    }
}

/// Where clients reach the door.
#[must_use]
pub fn endpoint_host(door: &VpnDoor, domain: &HostName) -> String {
    door.host.clone().unwrap_or_else(|| format!("vpn.{domain}"))
}

/// The door's address in each tunnel: the first of the pool that a host may have.
#[must_use]
pub fn server_address(door: &VpnDoor) -> Ipv4Addr {
    first_host(door.pool)
}

/// The first address of a network that a host may have.
#[must_use]
pub fn first_host(network: Ipv4Cidr) -> Ipv4Addr {
    network.hosts().next().unwrap_or(network.network())
}

/// What a client's file is made of.
#[derive(Debug)]
pub struct Client<'a> {
    /// The session.
    pub session: &'a WireGuardSessionId,
    /// The network.
    pub vpc: &'a VpcId,
    /// Its range.
    pub range: Ipv4Cidr,
    /// When it ends, RFC 3339.
    pub ends: &'a str,
    /// The client's address in the tunnel.
    pub address: Ipv4Addr,
    /// Who the client is.
    pub key: PublicKey,
    /// The client's secret, if it was made here.
    pub secret: Option<&'a SecretKey>,
    /// The second secret.
    pub preshared: &'a SecretKey,
    /// Who the door is.
    pub server: PublicKey,
    /// Where clients reach it.
    pub host: &'a str,
}

/// The client's file for `wg-quick`. It says nothing about names: those of a VPC are known inside it alone.
#[must_use]
pub fn config(client: &Client<'_>, door: &VpnDoor) -> String {
    let mut text = String::new();
    let mut line =
        |content: std::fmt::Arguments<'_>| writeln!(text, "{content}").expect("a String takes all");
    line(format_args!("# Session {} into {}; ends at {}", client.session, client.vpc, client.ends));
    line(format_args!("[Interface]"));
    line(format_args!("Address = {}/32", client.address));
    match client.secret {
        Some(secret) => line(format_args!("PrivateKey = {}", String::from(secret.clone()))),
        None => {
            line(format_args!("# Put the private key of {} here", client.key));
            line(format_args!("PrivateKey = {NO_KEY}"));
        }
    }
    line(format_args!("MTU = {}", door.mtu));
    line(format_args!("\n[Peer]"));
    line(format_args!("PublicKey = {}", client.server));
    line(format_args!("PresharedKey = {}", String::from(client.preshared.clone())));
    line(format_args!("AllowedIPs = {}", client.range));
    line(format_args!("Endpoint = {}", endpoint(client.host, door.port)));
    line(format_args!("PersistentKeepalive = {KEEPALIVE_SECONDS}"));
    text
}

fn endpoint(host: &str, port: u16) -> String {
    if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_each_line_that_wg_quick_needs_and_no_other() {
        let secret = SecretKey::new([1; 32]);
        let (session, vpc) = (WireGuardSessionId::from_random([1; 20]), VpcId::from_random([2; 20]));
        let mut client = Client {
            session: &session,
            vpc: &vpc,
            range: "192.168.10.0/24".parse().expect("range"),
            ends: "2026-01-01T00:00:00Z",
            address: Ipv4Addr::new(100, 96, 0, 2),
            key: PublicKey([3; 32]),
            secret: Some(&secret),
            preshared: &secret,
            server: PublicKey([2; 32]),
            host: "fd00::1",
        };
        let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        let server = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
        let text = config(&client, &VpnDoor::default());
        let expected = format!(
            "# Session {session} into {vpc}; ends at 2026-01-01T00:00:00Z\n[Interface]\nAddress = 100.96.0.2/32\n\
             PrivateKey = {key}\nMTU = 1280\n\n[Peer]\nPublicKey = {server}\nPresharedKey = {key}\n\
             AllowedIPs = 192.168.10.0/24\nEndpoint = [fd00::1]:51820\nPersistentKeepalive = 25\n"
        );
        assert_eq!(text, expected);
        (client.secret, client.host) = (None, "vpn.style.dev");
        let text = config(&client, &VpnDoor::default());
        assert!(text.contains("\nPrivateKey = YOUR-PRIVATE-KEY\n"), "{text}");
        assert!(text.contains("\n# Put the private key of AwMD"), "{text}");
        assert!(text.contains("\nEndpoint = vpn.style.dev:51820\n"), "{text}");
    }
}
