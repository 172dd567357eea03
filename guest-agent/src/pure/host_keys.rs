//! Which SSH host keys a machine that becomes another one gets.

use model::agent::MAX_HOST_KEY_BYTES;
use std::collections::BTreeSet;

/// Kinds that `ssh-keygen` makes within milliseconds. Most clients prefer the first.
pub const FAST: [&str; 2] = ["ed25519", "ecdsa"];
/// A kind whose primes take seconds on a slow host.
pub const SLOW: &str = "rsa";

/// What is made, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Before the machine is ready.
    pub now: Vec<&'static str>,
    /// Afterwards; until then sshd offers the others.
    pub later: Vec<&'static str>,
}

/// The kind of a key file in `/etc/ssh`, private half.
#[must_use]
pub fn kind_of(file_name: &str) -> Option<&str> {
    file_name.strip_prefix("ssh_host_")?.strip_suffix("_key").filter(|kind| !kind.is_empty())
}

/// The kinds of the `HostKey` lines of an sshd configuration (sshd_config(5): keywords are case-insensitive, and an
/// `=` may stand for the space). Keys under other names than sshd's own are not ours to make.
#[must_use]
pub fn named(configuration: &str) -> BTreeSet<String> {
    let kind = |path: &str| kind_of(path.rsplit('/').next()?).map(str::to_owned);
    paths(configuration).filter_map(kind).collect()
}

/// The paths of the `HostKey` lines.
pub fn paths(configuration: &str) -> impl Iterator<Item = &str> {
    configuration.lines().filter_map(|line| {
        let (keyword, rest) = line.trim().split_once([' ', '\t', '='])?;
        let path = rest.trim().trim_start_matches('=').trim().trim_matches('"');
        keyword.eq_ignore_ascii_case("HostKey").then_some(path)
    })
}

/// The key of a public key's file: type and base64, without the comment. None when it is no such line, or longer than
/// [`MAX_HOST_KEY_BYTES`].
#[must_use]
pub fn public(text: &str) -> Option<String> {
    let mut words = text.lines().next()?.split_ascii_whitespace();
    let (kind, key) = (words.next()?, words.next()?);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-@._".contains(&byte);
    let line = format!("{kind} {key}");
    (line.len() <= MAX_HOST_KEY_BYTES && kind.bytes().chain(key.bytes()).all(plain)).then_some(line)
}

/// What to make, of the kinds that were there and those that sshd's configuration names. Without `HostKey` lines sshd
/// offers every kind that is there.
#[must_use]
pub fn wanted(there: &BTreeSet<String>, named: &BTreeSet<String>) -> Wanted {
    let used = |kind: &&str| there.contains(*kind) && (named.is_empty() || named.contains(*kind));
    let fast: Vec<&str> = FAST.into_iter().filter(used).collect();
    let slow: Vec<&str> = [SLOW].into_iter().filter(used).collect();
    // Without any key sshd ends.
    if fast.is_empty() { Wanted { now: slow, later: vec![] } } else { Wanted { now: fast, later: slow } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(kinds: &[&str]) -> BTreeSet<String> {
        kinds.iter().map(|kind| (*kind).to_owned()).collect()
    }

    #[test]
    fn a_public_key_is_its_kind_and_its_base64() {
        let line = "ssh-ed25519 AAAAC3Nz+/= root@vm";
        assert_eq!(public(&format!("{line}\nmore")).as_deref(), Some("ssh-ed25519 AAAAC3Nz+/="));
        for bad in [
            "",
            "ssh-ed25519",
            "\nssh-ed25519 AAAA",
            "ssh-ed25519 A\u{7}A",
            &format!("a {}", "A".repeat(4096)),
        ] {
            assert_eq!(public(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_slow_kind_waits_unless_it_is_the_only_one() {
        let all = set(&["rsa", "ecdsa", "ed25519", "dsa"]);
        let of = |there: &BTreeSet<String>, named: &[&str]| {
            let wanted = wanted(there, &set(named));
            (wanted.now, wanted.later)
        };
        assert_eq!(of(&all, &[]), (vec!["ed25519", "ecdsa"], vec!["rsa"]));
        assert_eq!(of(&all, &["ed25519", "ecdsa"]), (vec!["ed25519", "ecdsa"], vec![]));
        assert_eq!(of(&all, &["rsa"]), (vec!["rsa"], vec![]));
        assert_eq!(of(&set(&[]), &["ed25519"]), (vec![], vec![]));
    }

    #[test]
    fn host_key_lines_are_read() {
        let text = "# HostKey /etc/ssh/ssh_host_dsa_key\nhostkey=/etc/ssh/ssh_host_rsa_key\nPort 22\n\
                    HostKey\t\"/etc/ssh/ssh_host_ed25519_key\"\nHostKey /etc/own\nHostKeyAgent x";
        assert_eq!(named(text), set(&["rsa", "ed25519"]));
        assert_eq!(kind_of("ssh_host_rsa_key.pub"), None);
    }

    proptest! {
        #[test]
        fn any_text_can_be_read(text in "\\PC{0,60}") {
            prop_assert!(named(&text).len() <= text.lines().count());
        }

        #[test]
        fn nothing_is_made_twice_or_that_was_not_there(there: [bool; 3], named: [bool; 3]) {
            let of = |bits: [bool; 3]| -> BTreeSet<String> {
                let kinds = ["rsa", "ecdsa", "ed25519"].into_iter().zip(bits);
                kinds.filter(|(_, on)| *on).map(|(kind, _)| kind.to_owned()).collect()
            };
            let (there, named) = (of(there), of(named));
            let wanted = wanted(&there, &named);
            prop_assert!(wanted.later.is_empty() || !wanted.now.is_empty());
            let all: Vec<_> = wanted.now.iter().chain(&wanted.later).collect();
            prop_assert!(all.iter().all(|kind| there.contains(**kind)));
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        }
    }
}
