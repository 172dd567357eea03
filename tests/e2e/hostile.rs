//! A guest that lies: for ten seconds it sends spoofed, malformed and flooding frames. Its neighbour, another network, and
//! the host see none of them; what was dropped is counted by reason, and stands in the flow log; the switch goes on.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{ScopedJoinHandle, scope};
use tests::house::{House, repository};
use tests::traces::Traces;

/// How long it lies, and a little longer how long others look.
const LIES_SECONDS: u32 = 10;
/// See [`LIES_SECONDS`]. The programs start one after another, slowly in an emulated machine.
const LOOK_SECONDS: u32 = 40;
const LIAR: &str = "10.66.0.66";
const NEIGHBOUR: &str = "10.66.0.10";
const FRIEND: &str = "10.66.0.11";
const STRANGER: &str = "10.99.0.5";
const GATEWAY: &str = "169.254.1.1";
const GATEWAY_MAC: &str = "02:67:61:74:65:01";
/// An address of the host, of which no packet of a guest may come.
const HOST: &str = "192.0.2.9";

/// Counters that must have grown by its lies. A wrong Ethernet source is not among them: the machine's own NIC drops it.
const REASONS: [&str; 11] = [
    "spoofed_address",
    "spoofed_arp",
    "spoofed_ipv6",
    "spoofed_nd",
    "spoofed_dhcpv6",
    "ipv6_multicast",
    "ipv6_extension",
    "ipv6_elsewhere",
    "unknown_frame",
    "to_private_range",
    "invalid",
];

#[test]
fn what_a_hostile_guest_sends_reaches_nobody() -> Result<()> {
    let house = House::start()?;
    let before = Traces::take(&house.data())?;
    sh(&format!("ip addr add {HOST}/32 dev lo"))?;
    let outcome = hostile(&house);
    sh(&format!("ip addr del {HOST}/32 dev lo"))?;
    outcome?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}

fn hostile(house: &House) -> Result<()> {
    let (vpc, other) = (network(house, "10.66.0.0/24")?, network(house, "10.99.0.0/24")?);
    let liar = member(house, &vpc, LIAR)?;
    let neighbour = member(house, &vpc, NEIGHBOUR)?;
    let friend = member(house, &vpc, FRIEND)?;
    let stranger = member(house, &other, STRANGER)?;
    let host = UdpSocket::bind((HOST, 53))?;
    host.set_nonblocking(true)?;
    let counted = counters(&vpc)?;
    lie_and_look(house, &Guests { liar: liar.clone(), neighbour, friend, stranger })?;
    let mut byte = [0; 1];
    ensure!(host.recv(&mut byte).is_err(), "the host got a datagram");
    let now = counters(&vpc)?;
    for reason in REASONS {
        let grown = now.get(reason).unwrap_or(&0) - counted.get(reason).unwrap_or(&0);
        println!("{reason}: {grown}");
        ensure!(grown > 0, "nothing was dropped as {reason}: {now:?}");
    }
    logged(house, &liar)?;
    for vm in house.json(&["vm", "list"])?["vms"].as_array().context("a list")? {
        house.gatehouse(&["vm", "delete", vm["id"].as_str().context("an id")?])?;
    }
    for vpc in [vpc, other] {
        house.gatehouse(&["vpc", "delete", &vpc])?;
    }
    Ok(())
}

/// VM ids.
struct Guests {
    liar: String,
    neighbour: String,
    friend: String,
    stranger: String,
}

fn lie_and_look(house: &House, guests: &Guests) -> Result<()> {
    scope(|scope| -> Result<()> {
        let look = LOOK_SECONDS.to_string();
        let near = python(
            scope,
            house,
            &guests.neighbour,
            "onlooker.py",
            &[&look, NEIGHBOUR, GATEWAY_MAC, FRIEND, LIAR, GATEWAY],
        );
        let far =
            python(scope, house, &guests.stranger, "onlooker.py", &[&look, STRANGER, GATEWAY_MAC, GATEWAY]);
        let between = format!("ping -i 0.5 -W 2 -c 40 -q {NEIGHBOUR}");
        let talk = scope.spawn(move || exec(house, &guests.friend, &["sh", "-c", &between]));
        let lies = LIES_SECONDS.to_string();
        let words = [
            lies.as_str(),
            LIAR,
            NEIGHBOUR,
            STRANGER,
            HOST,
            "127.0.0.1",
            "10.201.0.1",
            "169.254.64.1",
            "100.96.0.2",
        ];
        let sent = joined(python(scope, house, &guests.liar, "hostile.py", &words))?;
        println!("sent: {sent}");
        for kind in [
            "spoofed_mac",
            "spoofed_ipv4",
            "spoofed_arp",
            "router_advertisement",
            "neighbour_advertisement",
            "spoofed_ipv6",
            "extension_header",
            "dhcpv6_answer",
            "dhcp_offer",
            "offload_header",
        ] {
            ensure!(sent["sent"][kind].as_u64() > Some(0), "no {kind} was sent");
        }
        for (who, seen) in [("the neighbour", joined(near)?), ("another network's VM", joined(far)?)] {
            println!("{who} saw: {seen}");
            ensure!(seen["wrong"].as_object().is_some_and(serde_json::Map::is_empty), "{who} saw {seen}");
        }
        let talk = joined_text(talk)?;
        ensure!(talk.contains(" 0% packet loss"), "the switch did not stay up: {talk}");
        Ok(())
    })
}

/// The flow log names the liar and the reasons.
fn logged(house: &House, liar: &str) -> Result<()> {
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for entry in std::fs::read_dir(house.data().join("flows"))? {
        for line in std::fs::read_to_string(entry?.path())?.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            if line["verdict"] == "drop" && line.to_string().contains(liar) {
                *reasons.entry(line["reason"].as_str().context("a reason")?.to_owned()).or_default() += 1;
            }
        }
    }
    println!("the flow log's reasons: {reasons:?}");
    for reason in ["spoofed_address", "spoofed_ipv6", "spoofed_nd"] {
        ensure!(reasons.contains_key(reason), "the flow log has {reasons:?}");
    }
    Ok(())
}

fn network(house: &House, cidr: &str) -> Result<String> {
    let made = house.json(&["vpc", "create", "--cidr", cidr])?;
    Ok(made["vpcId"].as_str().context("an id")?.to_owned())
}

fn member(house: &House, vpc: &str, address: &str) -> Result<String> {
    let made = house.json(&["vm", "create", "--vpc", vpc, "--ip", address, "--idle-timeout", "never"])?;
    Ok(made["id"].as_str().context("an id")?.to_owned())
}

fn exec(house: &House, vm: &str, words: &[&str]) -> Result<String> {
    let output = house.gatehouse(&[&["vm", "exec", vm, "--"], words].concat())?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs one of the guest's programs, and reads the last line that it prints.
fn python<'scope, 'env>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    house: &'env House,
    vm: &'env str,
    program: &str,
    words: &[&str],
) -> ScopedJoinHandle<'scope, Result<Value>> {
    let path = repository().join("tests/e2e/guest").join(program);
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    scope.spawn(move || {
        let text = std::fs::read_to_string(path)?;
        let mut all = vec!["python3", "-c", &text];
        all.extend(words.iter().map(String::as_str));
        let said = exec(house, vm, &all)?;
        Ok(serde_json::from_str(said.lines().last().context("it says nothing")?)?)
    })
}

fn joined(handle: ScopedJoinHandle<'_, Result<Value>>) -> Result<Value> {
    handle.join().map_err(|_| anyhow::anyhow!("a thread died"))?
}

fn joined_text(handle: ScopedJoinHandle<'_, Result<String>>) -> Result<String> {
    handle.join().map_err(|_| anyhow::anyhow!("a thread died"))?
}

/// Packets by the named counters of a network's namespace.
fn counters(vpc: &str) -> Result<BTreeMap<String, u64>> {
    let namespace = format!("gh-{vpc}");
    ensure!(Path::new("/run/netns").join(&namespace).exists(), "{namespace} is not there");
    let output = Command::new("ip")
        .args(["netns", "exec", &namespace, "nft", "-j", "list", "counters"])
        .stdin(Stdio::null())
        .output()?;
    let listed: Value = serde_json::from_slice(&output.stdout)?;
    let mut all = BTreeMap::new();
    for counter in listed["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("counter"))
    {
        let name = counter["name"].as_str().context("a name")?.to_owned();
        *all.entry(name).or_default() += counter["packets"].as_u64().context("a number")?;
    }
    Ok(all)
}

fn sh(script: &str) -> Result<()> {
    let status = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "{script}: {status}");
    Ok(())
}
