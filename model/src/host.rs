//! Host names as they come in SNI and `Host`: lower case, without a trailing dot, valid by RFC 1123 section 2.1.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Longest host name (RFC 1035 section 2.3.4: 255 octets on the wire, 253 as text).
pub const MAX_HOST_CHARS: usize = 253;
/// Longest label (RFC 1035 section 2.3.4).
pub const MAX_LABEL_CHARS: usize = 63;

/// Why a text is not a host name.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HostError {
    /// No text at all.
    #[error("the host name is empty")]
    Empty,
    /// More than [`MAX_HOST_CHARS`].
    #[error("the host name is longer than 253 characters")]
    TooLong,
    /// A label is empty or longer than [`MAX_LABEL_CHARS`], or begins or ends with a hyphen.
    #[error("a label of the host name is empty, longer than 63 characters, or begins or ends with '-'")]
    BadLabel,
    /// A character that no host name has (an internationalised name must come as A-labels, `xn--…`).
    #[error("the host name has a character other than a-z, 0-9, '-', '_' and '.'")]
    BadCharacter,
}

/// A host name: lower case, no trailing dot. Underscores are let through, since people do map such names.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this name is `parent` itself or stands below it.
    #[must_use]
    pub fn is_within(&self, parent: &HostName) -> bool {
        self.0 == parent.0 || self.0.strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.'))
    }

    /// The name without its first label; none above a top-level domain.
    #[must_use]
    pub fn parent(&self) -> Option<HostName> {
        self.0.split_once('.').map(|(_, rest)| HostName(rest.to_owned()))
    }

    /// Whether exactly one label stands before `parent`, as a wildcard certificate covers (RFC 6125 section 6.4.3).
    #[must_use]
    pub fn is_direct_child_of(&self, parent: &HostName) -> bool {
        self.0.split_once('.').is_some_and(|(_, rest)| rest == parent.0)
    }
}

impl FromStr for HostName {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if text.len() > MAX_HOST_CHARS {
            return Err(HostError::TooLong);
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
            return Err(HostError::BadCharacter);
        }
        let bad = |label: &str| {
            label.is_empty()
                || label.len() > MAX_LABEL_CHARS
                || label.starts_with('-')
                || label.ends_with('-')
        };
        if text.split('.').any(bad) {
            return Err(HostError::BadLabel);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for HostName {
    type Error = HostError;
    fn try_from(text: String) -> Result<Self, HostError> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(host: HostName) -> String {
        host.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that can be mapped: a host's, or `*.` and a name, which stands for all names below it that are not mapped
/// themselves.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MappedName {
    base: HostName,
    wildcard: bool,
}

impl MappedName {
    /// All names below this one.
    #[must_use]
    pub fn below(base: HostName) -> Self {
        Self { base, wildcard: true }
    }

    /// The name itself, or the one below which all are meant.
    #[must_use]
    pub fn base(&self) -> &HostName {
        &self.base
    }

    /// Whether all names below are meant.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// The name, when one alone is meant.
    #[must_use]
    pub fn exact(&self) -> Option<&HostName> {
        (!self.wildcard).then_some(&self.base)
    }
}

impl From<HostName> for MappedName {
    fn from(base: HostName) -> Self {
        Self { base, wildcard: false }
    }
}

impl FromStr for MappedName {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        match text.strip_prefix("*.") {
            Some(base) => base.parse().map(Self::below),
            None => text.parse::<HostName>().map(Self::from),
        }
    }
}

impl TryFrom<String> for MappedName {
    type Error = HostError;
    fn try_from(text: String) -> Result<Self, HostError> {
        text.parse()
    }
}

impl From<MappedName> for String {
    fn from(name: MappedName) -> String {
        name.to_string()
    }
}

impl fmt::Display for MappedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.wildcard { "*." } else { "" };
        write!(f, "{sign}{}", self.base)
    }
}

impl fmt::Debug for MappedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(text: &str) -> HostName {
        text.parse().expect("a good name")
    }

    #[test]
    fn names_are_folded_and_bad_ones_are_told_apart() {
        assert_eq!(host("Foo.Style.DEV.").as_str(), "foo.style.dev");
        assert_eq!("".parse::<HostName>(), Err(HostError::Empty));
        assert_eq!("a..b".parse::<HostName>(), Err(HostError::BadLabel));
        assert_eq!("-a.b".parse::<HostName>(), Err(HostError::BadLabel));
        assert_eq!("a b".parse::<HostName>(), Err(HostError::BadCharacter));
        assert_eq!("ä.b".parse::<HostName>(), Err(HostError::BadCharacter));
        assert_eq!("a.".repeat(200).parse::<HostName>(), Err(HostError::TooLong));
        assert_eq!("a".repeat(64).parse::<HostName>(), Err(HostError::BadLabel));
    }

    #[test]
    fn within_needs_a_label_border() {
        assert!(host("a.style.dev").is_within(&host("style.dev")));
        assert!(!host("astyle.dev").is_within(&host("style.dev")));
        assert!(host("a.style.dev").is_direct_child_of(&host("style.dev")));
        assert!(!host("b.a.style.dev").is_direct_child_of(&host("style.dev")));
        assert!(!host("style.dev").is_direct_child_of(&host("style.dev")));
    }

    #[test]
    fn a_wildcard_is_one_star_before_a_name() {
        let name = |text: &str| text.parse::<MappedName>();
        let wild = name("*.Example.com").expect("good");
        assert_eq!((wild.to_string().as_str(), wild.is_wildcard()), ("*.example.com", true));
        assert_eq!((wild.base(), wild.exact()), (&host("example.com"), None));
        assert_eq!(name("a.example.com").expect("good").exact(), Some(&host("a.example.com")));
        for bad in ["*", "*.", "*example.com", "a.*.example.com", "*.*.example.com"] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert_eq!(host("a.b.c").parent(), Some(host("b.c")));
        assert_eq!(host("c").parent(), None);
    }

    proptest! {
        #[test]
        fn parsing_is_stable(text in ".{0,300}") {
            if let Ok(name) = text.parse::<HostName>() {
                prop_assert_eq!(&name, &host(name.as_str()));
            }
        }
    }
}
