//! Names of what vpc makes in the kernel. All of them begin with the appliance's prefix or stand in its namespace.

use model::id::VmId;
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
/// First character of a TAP's name; no other device in the namespace begins with it.
const TAP_LETTER: char = 't';
/// Characters of the VM's id in the name of its TAP.
const TAP_ID_CHARS: usize = MAX_DEVICE_CHARS - 1;

/// The prefix cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the prefix must be one to four characters of a-z and 0-9 and begin with a letter, got {0:?}")]
pub struct PrefixError(String);

/// The names of one network.
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

    /// The network's namespace, as `ip netns` shows it.
    #[must_use]
    pub fn namespace(&self) -> String {
        format!("{}-default", self.prefix)
    }

    /// The host's end of the link to the namespace.
    #[must_use]
    pub fn host_uplink(&self) -> String {
        format!("{}-up", self.prefix)
    }

    /// The table in the host's namespace.
    #[must_use]
    pub fn host_table(&self) -> String {
        format!("{}_host", self.prefix)
    }

    /// The prefix itself.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

/// A TAP's name: a letter and the first fourteen characters of the VM's id, so that an operator reads the one from
/// the other. The whole id is the device's alias. Two ids that share fourteen characters do not get two ports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

impl DeviceName {
    /// The name of a VM's TAP.
    #[must_use]
    pub fn of(vm: &VmId) -> Self {
        Self(std::iter::once(TAP_LETTER).chain(vm.as_str().chars().take(TAP_ID_CHARS)).collect())
    }

    /// Reads a name back; none when it is not a TAP's.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(TAP_LETTER)?;
        let good =
            rest.len() == TAP_ID_CHARS && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        good.then(|| Self(name.to_owned()))
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
        assert!(names.host_uplink().len() <= MAX_DEVICE_CHARS);
        for bad in ["", "gh012", "1gh", "G", "a-b", "a b", "é", "../x"] {
            assert!(Names::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn device_names_fit_and_are_read_back(bytes: [u8; 20]) {
            let name = DeviceName::of(&VmId::from_random(bytes));
            prop_assert!(name.as_str().len() <= MAX_DEVICE_CHARS);
            prop_assert_eq!(DeviceName::parse(name.as_str()), Some(name));
        }

        #[test]
        fn other_devices_are_not_taken_for_taps(text in ".{0,20}") {
            prop_assert!(DeviceName::parse(&text).is_none_or(|name| name.as_str() == text));
            prop_assert!(DeviceName::parse(INNER_UPLINK).is_none());
        }
    }
}
