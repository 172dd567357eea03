//! A big file through a front that clients reach over a link which loses packets.

mod support;

use support::network::Network;
use support::{World, sh, words};

/// MiB of the file, if `MEBIBYTES` says nothing else. With 1024 it takes twenty minutes.
const MEBIBYTES: u64 = 24;
/// Of a hundred packets, those that are lost each way.
const LOST: u64 = 5;

/// Loses packets of the connections to a port, each way. They are as long as those of Ethernet: over a loopback device the
/// kernel would hand on 64 KiB as one.
fn lose(port: u16) {
    sh(&format!(
        "ip link set lo mtu 1500 gso_max_segs 1
        nft -f - <<'END'
table inet link {{
  counter came {{}}
  counter lost {{}}
  chain loses {{
    counter name came
    numgen random mod 100 < {LOST} counter name lost drop
  }}
  chain arrives {{
    type filter hook input priority 0;
    tcp dport {port} jump loses
    tcp sport {port} jump loses
  }}
}}
END"
    ));
}

/// Packets that came, and how many of them were lost.
fn counts() -> (u64, u64) {
    let packets = |name: &str| {
        let said = sh(&format!("nft -j list counter inet link {name}"));
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        said["nftables"][1]["counter"]["packets"].as_u64().expect("a count")
    };
    (packets("came"), packets("lost"))
}

/// Segments that TCP sent anew in this network.
fn sent_anew() -> u64 {
    let said = sh("nstat -asz TcpRetransSegs | awk '/Retrans/ { print $2 }'");
    said.trim().parse().expect("a count")
}

#[test]
fn a_big_file_arrives_intact_over_a_link_that_loses_packets() {
    let mebibytes =
        std::env::var("MEBIBYTES").map_or(MEBIBYTES, |text| text.parse().expect("MEBIBYTES is a number"));
    let network = Network::enter("lossy");
    let _inside = network.runtime.enter();
    let world = World::new();
    let at = |name: &str| world.at(name).display().to_string();
    let sum = |name: &str| sh(&format!("sha256sum < {}", at(name)));
    sh(&format!("head -c {mebibytes}M /dev/urandom > {}", at("blob")));
    lose(world.front.port());
    let server = format!("{} -s sftp", words(&world.ssh()));
    let mut last = (counts(), sent_anew());
    for (way, batch) in [("up", ["put", "blob", "far"]), ("down", ["get", "far", "back"])] {
        let [command, from, to] = batch;
        let begun = std::time::Instant::now();
        sh(&format!("sftp -q -b - -D \"{server}\" <<<'{command} {} {}'", at(from), at(to)));
        assert_eq!(sum(to), sum("blob"), "{way}");
        let took = begun.elapsed();
        let now = (counts(), sent_anew());
        let (came, lost) = (now.0.0 - last.0.0, now.0.1 - last.0.1);
        let anew = now.1 - last.1;
        println!(
            "{way}: {mebibytes} MiB in {took:?}; of {came} packets {lost} were lost, {anew} were sent anew"
        );
        assert!(came > mebibytes * (1 << 20) / 1500, "the file went over the link: {came} packets");
        assert!((came * (LOST - 1)..came * (LOST + 1)).contains(&(lost * 100)), "{lost} of {came} were lost");
        assert!(anew > 0, "TCP noticed");
        last = now;
    }
}
