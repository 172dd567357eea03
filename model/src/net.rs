//! Addresses that every network of the house agrees on, and what a guest is told of its own.

use crate::id::VpcId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use thiserror::Error;

/// The guest's IPv4 gateway and name server: link-local, and the same in every network, so that a VM which
/// is restored elsewhere finds it where it was.
pub const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6 between the members of a private network.
pub const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Under it are the names of a private network's members. `internal` is reserved for such use (ICANN resolution
/// 2024.07.29.06) and no name of the public tree ends in it.
pub const VPC_DOMAIN: &str = "vpc.internal";
/// Ranges of which a VPC's may be a part: private use (RFC 1918) and shared address space (RFC 6598). Anything else is
/// somebody's on the Internet, and its members could not reach those.
pub const PRIVATE_RANGES: [Ipv4Cidr; 4] = [
    Ipv4Cidr::constant(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Cidr::constant(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Cidr::constant(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Cidr::constant(Ipv4Addr::new(100, 64, 0, 0), 10),
];
/// The addresses of VPN clients, the same for each VPC, so that no VPC may have them.
pub const VPN_CLIENTS: Ipv4Cidr = Ipv4Cidr::constant(Ipv4Addr::new(100, 96, 0, 0), 16);
/// VPCs of one house: each with members is a namespace with two threads and some 300 KiB, rules and a name server, and
/// all of them are in one view.
pub const MAX_VPCS: usize = 1024;
/// The shortest prefix of a VPC's range: 65,534 members are more than one host has VMs.
pub const MIN_VPC_PREFIX: u8 = 16;
/// The longest prefix of a VPC's range: with fewer than 14 members it is full before it is of use, and it cannot grow.
pub const MAX_VPC_PREFIX: u8 = 28;
/// The one Ethernet address behind which every gateway stands (locally administered, RFC 5342 section 2.1).
pub const GATEWAY_MAC: MacAddress = MacAddress([0x02, 0x67, 0x61, 0x74, 0x65, 0x01]);
/// Where a VM asks for its metadata. Answered by the VM's own process.
pub const METADATA_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// IP packets of the guests' NICs, in bytes.
pub const GUEST_MTU: u16 = 1500;

/// Why a text is not an Ethernet address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("an Ethernet address is six pairs of hexadecimal digits joined by ':'")]
pub struct MacError;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address of the NIC that has this IPv4 address: locally administered, unicast, unique in a network.
    #[must_use]
    pub fn of_ipv4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x67, a, b, c, d])
    }

    /// The link-local address that a NIC makes of it (RFC 4291 appendix A).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0u8; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or(MacError)?;
            if pair.len() != 2 || !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacError);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| MacError)?;
        }
        if pairs.next().is_some() { Err(MacError) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;
    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

/// Why a text is not an IPv4 network.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CidrError {
    /// Not `a.b.c.d/n`.
    #[error("a network is written as address/prefix length, for example 10.201.0.0/16")]
    Syntax,
    /// Prefix length above 32.
    #[error("the prefix length is more than 32")]
    PrefixLength,
    /// The address has bits outside the prefix.
    #[error("the address has bits set outside the prefix; did you mean {0}?")]
    HostBits(Ipv4Cidr),
}

/// An IPv4 network (RFC 4632), host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Cidr {
    /// A network that is known when this is compiled.
    ///
    /// # Panics
    /// When the address has bits outside the prefix; for a constant that ends the build.
    #[must_use]
    pub const fn constant(network: Ipv4Addr, prefix: u8) -> Self {
        assert!(prefix <= 32 && network.to_bits() & !mask(prefix) == 0, "no bits outside the prefix");
        Self { network, prefix }
    }

    /// The first address.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Number of leading bits that all members share, 0..=32.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The last address.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask(self.prefix))
    }

    /// Whether the address is a member.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    /// Whether any address is a member of both.
    #[must_use]
    pub fn overlaps(&self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// Whether each address of the other is a member.
    #[must_use]
    pub fn encloses(&self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.network)
    }

    /// Number of [`Self::hosts`].
    #[must_use]
    pub fn host_count(&self) -> u64 {
        let all = 1u64 << (32 - u32::from(self.prefix));
        if self.prefix < 31 { all - 2 } else { all }
    }

    /// Addresses that a host may have: all but the first and the last of a network of more than two.
    pub fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let edge = u64::from(self.prefix < 31);
        let first = u64::from(self.network.to_bits()) + edge;
        let last = u64::from(self.broadcast().to_bits()) - edge;
        (first..=last).filter_map(|bits| u32::try_from(bits).ok().map(Ipv4Addr::from_bits))
    }
}

impl FromStr for Ipv4Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = text.split_once('/').ok_or(CidrError::Syntax)?;
        let address: Ipv4Addr = address.parse().map_err(|_| CidrError::Syntax)?;
        let prefix: u8 = prefix.parse().map_err(|_| CidrError::Syntax)?;
        if prefix > 32 {
            return Err(CidrError::PrefixLength);
        }
        let network = Ipv4Addr::from_bits(address.to_bits() & mask(prefix));
        let cidr = Self { network, prefix };
        if network == address { Ok(cidr) } else { Err(CidrError::HostBits(cidr)) }
    }
}

impl TryFrom<String> for Ipv4Cidr {
    type Error = CidrError;
    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Ipv4Cidr> for String {
    fn from(cidr: Ipv4Cidr) -> String {
        cidr.to_string()
    }
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl fmt::Debug for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The IPv6 addresses of one VPC's members: a unique local /64 (RFC 4193), made of the VPC's id. Each member's address is
/// the prefix and, in the last 32 bits, its IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ula(u64);

impl Ula {
    /// Bits that all addresses share.
    pub const PREFIX: u8 = 64;
    /// Bits before the IPv4 address.
    const BEFORE_IPV4: u8 = 96;

    /// Of a VPC. What keeps networks apart are their namespaces, not these 56 bits: they need only differ where people or
    /// machines see two networks, so a fixed function that mixes well is enough (FNV-1a, then the finalizer of
    /// SplitMix64), whoever may find two ids of one prefix: ids are control's to choose. Both must never change.
    #[must_use]
    pub fn of(vpc: &VpcId) -> Self {
        let mixed = vpc.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(0xfd << 56 | (mixed ^ (mixed >> 31)) >> 8)
    }

    /// A member's address.
    #[must_use]
    pub fn address(self, ipv4: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(u128::from(self.0) << 64 | u128::from(ipv4.to_bits()))
    }

    /// The member whose address it would be; none when it is not one of this VPC's.
    #[must_use]
    pub fn ipv4_of(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let low = u64::try_from(address.to_bits() & u128::from(u64::MAX)).ok()?;
        let ipv4 = Ipv4Addr::from_bits(u32::try_from(low).ok()?);
        (self.address(ipv4) == address).then_some(ipv4)
    }

    /// The addresses of the members that have one of `range`, as address and prefix length joined by `/`.
    #[must_use]
    pub fn of_range(self, range: Ipv4Cidr) -> String {
        format!("{}/{}", self.address(range.network()), Self::BEFORE_IPV4 + range.prefix())
    }
}

impl fmt::Display for Ula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(Ipv4Addr::UNSPECIFIED), Self::PREFIX)
    }
}

/// What a guest must set on its NIC. The address is a /32; everything goes through the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// The NIC that is meant, by its Ethernet address.
    pub mac: MacAddress,
    /// The VM's own address.
    pub ipv4: Ipv4Addr,
    /// The next hop for everything, on the link though no prefix covers it.
    pub gateway: Ipv4Addr,
    /// Name servers, in order.
    pub dns: Vec<IpAddr>,
    /// Bytes of an IP packet.
    pub mtu: u16,
    /// Its IPv6 among the members of a private network; none elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<GuestIpv6>,
}

/// What a guest must set for IPv6. The address is a /128; its network, the first [`Ula::PREFIX`] bits, goes through the
/// gateway, and nothing else does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestIpv6 {
    /// The VM's own address.
    pub address: Ipv6Addr,
    /// The next hop.
    pub gateway: Ipv6Addr,
}

const fn mask(prefix: u8) -> u32 {
    match u32::MAX.checked_shl(32 - prefix as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn networks_are_checked() {
        let cidr: Ipv4Cidr = "10.201.0.0/30".parse().expect("good");
        assert_eq!(
            cidr.hosts().collect::<Vec<_>>(),
            [Ipv4Addr::new(10, 201, 0, 1), Ipv4Addr::new(10, 201, 0, 2)]
        );
        assert_eq!(
            "10.0.0.1/24".parse::<Ipv4Cidr>(),
            Err(CidrError::HostBits("10.0.0.0/24".parse().expect("good")))
        );
        assert_eq!("10.0.0.0/33".parse::<Ipv4Cidr>(), Err(CidrError::PrefixLength));
        assert_eq!("10.0.0.0".parse::<Ipv4Cidr>(), Err(CidrError::Syntax));
        assert_eq!("0.0.0.0/0".parse::<Ipv4Cidr>().expect("all").broadcast(), Ipv4Addr::BROADCAST);
        assert_eq!("1.2.3.4/32".parse::<Ipv4Cidr>().expect("one").hosts().count(), 1);
    }

    #[test]
    fn a_vpcs_prefix_never_changes() {
        let vpc: VpcId = "vpc-abcdefghij0123456789".parse().expect("an id");
        assert_eq!(Ula::of(&vpc).to_string(), "fd54:7823:4dd0:8754::/64");
        let address = Ula::of(&vpc).address(Ipv4Addr::new(10, 0, 0, 5));
        assert!(address.to_string().ends_with("::a00:5"), "{address}");
        let mac = MacAddress::of_ipv4(Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(mac.link_local().to_string(), "fe80::67:aff:fe00:5");
        // Ids that differ by one character have prefixes that differ by half of their bits.
        let near: VpcId = "vpc-abcdefghij0123456788".parse().expect("an id");
        assert!((16..=40).contains(&(Ula::of(&vpc).0 ^ Ula::of(&near).0).count_ones()));
    }

    proptest! {
        #[test]
        fn a_network_has_its_hosts_and_no_others(bits: u32, prefix in 20u8..=32, other: u32) {
            let network = Ipv4Addr::from_bits(bits & mask(prefix));
            let cidr: Ipv4Cidr = format!("{network}/{prefix}").parse().expect("good");
            prop_assert!(cidr.hosts().all(|host| cidr.contains(host)));
            prop_assert_eq!(cidr.hosts().count() as u64, cidr.host_count());
            prop_assert_eq!(cidr.contains(Ipv4Addr::from_bits(other)), other & mask(prefix) == cidr.network().to_bits());
        }

        #[test]
        fn networks_overlap_where_one_has_an_address_of_the_other(a: u32, m in 0u8..=32, b: u32, n in 0u8..=32) {
            let cidr = |bits: u32, prefix: u8| Ipv4Cidr::constant(Ipv4Addr::from_bits(bits & mask(prefix)), prefix);
            // Half of the pairs are near each other.
            let (one, other) = (cidr(a, m), cidr(if b % 2 == 0 { a ^ (b >> 16) } else { b }, n));
            let common = one.network().max(other.network()) <= one.broadcast().min(other.broadcast());
            prop_assert_eq!((one.overlaps(other), other.overlaps(one)), (common, common));
            let within = one.contains(other.network()) && one.contains(other.broadcast());
            prop_assert_eq!(one.encloses(other), within);
        }

        #[test]
        fn members_have_addresses_of_their_vpc_alone(a: [u8; 20], b: [u8; 20], bits: u32, m in 0u8..=32, other: u32) {
            let (one, two) = (Ula::of(&VpcId::from_random(a)), Ula::of(&VpcId::from_random(b)));
            let (ipv4, other) = (Ipv4Addr::from_bits(bits), Ipv4Addr::from_bits(other));
            let address = one.address(ipv4);
            prop_assert!(address.is_unique_local() && address.octets()[0] == 0xfd);
            prop_assert_eq!(one.ipv4_of(address), Some(ipv4));
            prop_assert_eq!(two.ipv4_of(address), (one == two).then_some(ipv4));
            prop_assert_eq!(one.ipv4_of(Ipv6Addr::from_bits(address.to_bits() | 1 << 40)), None);
            // A range of members has those addresses that its IPv4 range has.
            let range = Ipv4Cidr::constant(Ipv4Addr::from_bits(bits & mask(m)), m);
            let text = one.of_range(range);
            let (network, prefix) = text.split_once('/').expect("both");
            let network: Ipv6Addr = network.parse().expect("an address");
            let shift = 128 - prefix.parse::<u32>().expect("a length");
            let within = one.address(other).to_bits() >> shift == network.to_bits() >> shift;
            prop_assert_eq!(within, range.contains(other));
        }

        #[test]
        fn ethernet_addresses_survive_text(bytes: [u8; 6]) {
            prop_assert_eq!(MacAddress(bytes).to_string().parse::<MacAddress>(), Ok(MacAddress(bytes)));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
            prop_assert!(text.parse::<MacAddress>().is_err() || text.len() == 17);
            prop_assert!(text.parse::<Ipv4Cidr>().is_err() || text.contains('/'));
        }
    }
}
