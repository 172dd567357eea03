//! FORKS copies of one Debian guest, in batches of random size, some of a parent that sleeps: all answer, and no two of
//! them, nor any and their parent, have anything in common that names a machine or ought to be secret.
//!
//! SEED repeats a run's choices.

use anyhow::{Context, Result};
use serde_json::json;
use std::collections::HashMap;
use std::time::Instant;
use tests::api::Api;
use tests::chance::{Chance, count};
use tests::guest::begin_witness;
use tests::house::{House, Wishes};
use tests::peer::Peer;
use tests::traces::Traces;

/// Copies when `FORKS` does not say.
const COPIES: u64 = 100;
/// Most copies that are there at once: each makes its keys at once, and the bed has one slow CPU.
const MAX_BATCH: u64 = 12;
/// Memory of each in MiB.
const MEMORY_MIB: u32 = 256;
/// What no two machines may share: a word and what it is on each line.
const IDENTITY: &str = r#"
echo "urandom $(head -c 32 /dev/urandom | base64 -w0)"
echo "getrandom $(python3 -c 'import os; print(os.getrandom(32).hex())')"
echo "uuid $(cat /proc/sys/kernel/random/uuid)"
command -v uuidgen >/dev/null && echo "uuidgen $(uuidgen -r)" && echo "uuidgen-time $(uuidgen -t)"
[ ! -r /sys/class/dmi/id/product_uuid ] || echo "product-uuid $(cat /sys/class/dmi/id/product_uuid)"
echo "machine-id $(cat /etc/machine-id)"
echo "dbus-machine-id $(cat /var/lib/dbus/machine-id 2>/dev/null || cat /etc/machine-id)"
echo "host-name $(hostname)"
for kind in ed25519 ecdsa; do echo "ssh-$kind $(cut -d' ' -f2 /etc/ssh/ssh_host_${kind}_key.pub)"; done
echo "address $(ip -4 -o address show scope global | tr -s ' ' | cut -d' ' -f4)"
echo "ethernet $(cat /sys/class/net/e*/address)""#;
/// Lines of the above that every guest has.
const LEAST_KINDS: usize = 10;

/// What was seen so far, and of whom.
#[derive(Default)]
struct Seen(HashMap<String, String>);

#[test]
fn forks_share_nothing_that_names_a_machine() -> Result<()> {
    let (copies, mut chance) = (count("FORKS", COPIES)?, Chance::from_environment()?);
    let house = House::start_with(Wishes { memory_mib: MEMORY_MIB, ..Wishes::default() })?;
    let before = Traces::take(&house.data())?;
    let api = Api::of(&house)?;
    let parent = api.create(json!({ "name": "parent" }))?;
    begin_witness(&api, &parent)?;
    let mut parents = Peer::connect(api.address(&parent)?)?;
    let mut seen = Seen::default();
    seen.take_in(&api, &parent)?;
    let mut made = 0;
    while made < copies {
        let begun = Instant::now();
        let batch = (MAX_BATCH / 2 + chance.below(MAX_BATCH / 2 + 1)).min(copies - made);
        let least = parents.ask()?;
        if chance.below(3) == 0 {
            api.tell(&parent, "suspend")?;
        }
        let children = api.fork(&parent, usize::try_from(batch)?)?;
        anyhow::ensure!(children.len() as u64 == batch, "{} of {batch} children", children.len());
        let forked = begun.elapsed().as_secs_f64();
        for child in &children {
            seen.take_in(&api, child)?;
            let mut peer = Peer::connect(api.address(child)?)?;
            let now = peer.ask().with_context(|| format!("child {child}"))?;
            anyhow::ensure!(now.counter >= least.counter, "child {child} is of an earlier time");
            peer.await_motion(now)?;
            peer.check_clock()?;
        }
        parents.ask().context("the parent's own connection")?;
        seen.take_in_again(&api, &parent)?;
        for child in &children {
            api.delete(child)?;
        }
        made += batch;
        println!("{made} forks: {batch} in {forked:.1} s, all in {:.1} s", begun.elapsed().as_secs_f64());
    }
    println!("{} values, no two alike", seen.0.len());
    api.delete(&parent)?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}

impl Seen {
    fn take_in(&mut self, api: &Api, vm: &str) -> Result<()> {
        let said = api.exec(vm, IDENTITY)?;
        let mut kinds = 0;
        for line in said.lines() {
            let (kind, value) = line.split_once(' ').with_context(|| format!("{vm}: {line:?}"))?;
            anyhow::ensure!(!value.is_empty(), "{vm} has no {kind}");
            kinds += 1;
            // A machine-id that two places of one machine give is one value.
            let key = format!("{} {value}", kind.trim_start_matches("dbus-"));
            if let Some(other) = self.0.insert(key, vm.to_owned()) {
                anyhow::ensure!(other == vm && kind == "dbus-machine-id", "{vm} and {other} share {line}");
            }
        }
        anyhow::ensure!(kinds >= LEAST_KINDS, "{vm} tells too little: {said}");
        Ok(())
    }

    /// What is random of a machine that was looked at before: the rest of it stays.
    fn take_in_again(&mut self, api: &Api, vm: &str) -> Result<()> {
        for line in api.exec(vm, IDENTITY)?.lines() {
            let (kind, _) = line.split_once(' ').with_context(|| format!("{vm}: {line:?}"))?;
            let random = matches!(kind, "urandom" | "getrandom" | "uuid" | "uuidgen" | "uuidgen-time");
            let other = self.0.insert(line.to_owned(), vm.to_owned());
            if random {
                anyhow::ensure!(other.is_none(), "{vm} and {other:?} share {line}");
            } else {
                let stays = kind == "dbus-machine-id" || other.as_deref() == Some(vm);
                anyhow::ensure!(stays, "{vm} had another {line}");
            }
        }
        Ok(())
    }
}
