//! Ranges of addresses of either family, as an operator writes them: whom to trust.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use thiserror::Error;

/// Why a text is no range.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RangeError {
    /// Not `ADDRESS` or `ADDRESS/PREFIX`.
    #[error("'{0}' is not ADDRESS or ADDRESS/PREFIX")]
    Syntax(String),
    /// The prefix is longer than an address.
    #[error("the prefix of '{0}' is longer than its address")]
    PrefixLength(String),
    /// The address has bits outside the prefix.
    #[error("'{0}' has bits outside its prefix; {1} was perhaps meant")]
    HostBits(String, IpRange),
}

/// A range of IPv4 (RFC 4632) or IPv6 (RFC 4291, section 2.3) addresses, host bits zero. One address is a range too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpRange {
    network: IpAddr,
    prefix: u8,
}

impl IpRange {
    /// Whether the address is a member. An IPv4 address that stands in an IPv6 one (`::ffff:a.b.c.d`, as a listener of
    /// both families sees it) is taken for what it is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address.to_canonical(), self.prefix) == Some(self.network)
            && address.to_canonical().is_ipv4() == self.network.is_ipv4()
    }
}

/// The address with its bits after the prefix zero; none when the prefix is too long.
fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let host = 32u32.checked_sub(u32::from(prefix))?;
            let mask = u32::MAX.checked_shl(host).unwrap_or(0);
            Some(IpAddr::V4((address.to_bits() & mask).into()))
        }
        IpAddr::V6(address) => {
            let host = 128u32.checked_sub(u32::from(prefix))?;
            let mask = u128::MAX.checked_shl(host).unwrap_or(0);
            Some(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask)))
        }
    }
}

impl FromStr for IpRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let syntax = || RangeError::Syntax(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse().map_err(|_| syntax())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let prefix = prefix.unwrap_or(if address.is_ipv4() { 32 } else { 128 });
        let network = masked(address, prefix).ok_or_else(|| RangeError::PrefixLength(text.to_owned()))?;
        let range = Self { network, prefix };
        if network == address { Ok(range) } else { Err(RangeError::HostBits(text.to_owned(), range)) }
    }
}

impl TryFrom<String> for IpRange {
    type Error = RangeError;
    fn try_from(text: String) -> Result<Self, RangeError> {
        text.parse()
    }
}

impl From<IpRange> for String {
    fn from(range: IpRange) -> String {
        range.to_string()
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl fmt::Debug for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(text: &str) -> IpRange {
        text.parse().expect("a range")
    }

    #[test]
    fn members_are_members_in_either_form() {
        let has = |range_: &str, address: &str| range(range_).contains(address.parse().expect("address"));
        assert!(has("10.0.0.0/8", "10.255.0.1") && !has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("10.0.0.0/8", "::ffff:10.1.2.3") && has("192.0.2.1", "192.0.2.1"));
        assert!(has("2001:db8::/32", "2001:db8:ffff::1") && !has("2001:db8::/32", "2001:db9::1"));
        assert!(has("0.0.0.0/0", "1.2.3.4") && !has("0.0.0.0/0", "::1") && !has("::/0", "1.2.3.4"));
        assert!(has("::/0", "::1"));
    }

    #[test]
    fn what_is_no_range_is_named() {
        let error = |text: &str| text.parse::<IpRange>().expect_err(text);
        assert_eq!(error("10.0.0.1/8"), RangeError::HostBits("10.0.0.1/8".into(), range("10.0.0.0/8")));
        assert_eq!(error("10.0.0.0/33"), RangeError::PrefixLength("10.0.0.0/33".into()));
        assert_eq!(error("::/129"), RangeError::PrefixLength("::/129".into()));
        for text in ["", "a", "10.0.0.0/", "10.0.0/8", "10.0.0.0/-1", "10.0.0.0/8/8"] {
            assert_eq!(error(text), RangeError::Syntax(text.into()));
        }
    }

    proptest! {
        #[test]
        fn a_range_is_read_as_it_is_written(address: IpAddr, prefix in 0u8..=128) {
            let Some(network) = masked(address, prefix) else { return Ok(()) };
            let made = range(&format!("{network}/{prefix}"));
            prop_assert_eq!(range(&made.to_string()), made);
            if address.to_canonical() == address {
                prop_assert!(made.contains(address));
            }
        }
    }
}
