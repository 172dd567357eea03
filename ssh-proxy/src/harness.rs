//! What an attacker sends, for fuzz targets and tests.
//!
//! The input of [`bridge`] begins with a byte. Where it is even, two ends that keep to the protocol follow the orders
//! behind it, four bytes each (the model says what they mean); else both send what stands there:
//!
//! ```text
//!   even:  side, what, which channel, length         side: 1 is the client, 0 the VM
//!   odd:   side, bytes of the packet, the packet     odd 3: the VM is there from the beginning
//! ```

use crate::pure::bridge::model;
use crate::pure::name::{NamedToken, UserName};

/// What [`model::orders`] knows.
const ORDERS: u8 = 21;
/// Orders of one input: as many as the longest of the tests' own.
const MAX_ORDERS: usize = 600;

/// A client and a VM at the bridge.
///
/// # Panics
/// When something hangs, leaks or is lost.
pub fn bridge(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    if kind % 2 == 0 {
        let (orders, _) = rest.as_chunks::<4>();
        model::orders(orders.iter().take(MAX_ORDERS).map(|[side, what, which, length]| {
            (side % 2 == 1, what % ORDERS, usize::from(*which), u32::from(*length))
        }));
    } else {
        model::noise(kind & 2 != 0, packets(rest));
    }
}

fn packets(mut rest: &[u8]) -> Vec<(bool, Vec<u8>)> {
    let mut packets = Vec::new();
    while let [side, length, more @ ..] = rest {
        let (packet, after) = more.split_at(usize::from(*length).min(more.len()));
        packets.push((side % 2 == 1, packet.to_vec()));
        rest = after;
    }
    packets
}

/// A user name, as a client sends it. Whether it is one.
///
/// # Panics
/// When it does not mean what it says, or its token shows.
pub fn name(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let Ok(name) = text.parse::<UserName>() else { return false };
    let mut again = format!("{}+{}", name.vm, name.user);
    match &name.token {
        Some(NamedToken::Token(token)) => {
            assert!(!format!("{name:?}").contains(token.expose()), "a token shows");
            again = format!("{again}:{}", token.expose());
        }
        Some(NamedToken::Malformed) => again.push(','),
        None => {}
    }
    assert_eq!(again.parse().as_ref(), Ok(&name), "written in full it is the same");
    assert!(text.starts_with(name.vm.as_str()), "another VM");
    assert!(name.user.as_str() == "root" || text.contains(name.user.as_str()), "another user");
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn nothing_breaks_the_bridge(input in prop::collection::vec(any::<u8>(), 0..2000)) { bridge(&input); }

        #[test]
        fn nothing_breaks_the_name(input in prop::collection::vec(any::<u8>(), 0..60)) { name(&input); }
    }

    /// Runs each input of a target's corpus: those that it starts from, and those that it once failed on.
    fn corpus(target: &str, mut run: impl FnMut(&str, &[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(corpus).expect("corpus") {
            let path = entry.expect("entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            run(&name, &std::fs::read(&path).expect("read"));
            count += 1;
        }
        assert!(count >= 3, "{target}: {count}");
    }

    #[test]
    fn the_corpora_of_the_fuzz_targets_pass() {
        corpus("ssh_bridge", |_, input| bridge(input));
        // The names among them are names, and the others none.
        corpus("ssh_name", |file, input| assert_eq!(name(input), !file.starts_with("seed-no-"), "{file}"));
    }
}
