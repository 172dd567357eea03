//! Words about what private networks have besides VMs.

use super::{Bench, FOREIGN, PATIENCE};
use feed::wire::WireListener;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::timeout;
use vpc::client::{VpcReply, VpcRequest};

/// Stands for `wg-quick`: writes down what it is asked, and with what modes.
const WG_QUICK: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$1 $(basename "$2") $(stat -c %a "$2") $(stat -c %a "$(dirname "$2")") $(grep -c '^PrivateKey = ' "$2")" >> "$here/log"
echo "$(dirname "$2")" > "$here/folder"
test ! -e "$here/refuse"
"#;

impl Bench {
    async fn vpc(&self, cidr: &str) -> String {
        self.good(&["vpc", "create", "--cidr", cidr]).await
    }

    async fn sessions(&self, vpc: &str) -> Vec<Value> {
        let list = self.json(&["vpn", "sessions", vpc]).await;
        list["sessions"].as_array().expect("list").clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_made_shown_put_and_removed() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let db = bench.good(&["vm", "create", "--vpc", &vpc, "--name", "db"]).await;
    let none = bench.run(&["vpc", "rules", &vpc]).await;
    assert!(none.stdout.is_empty() && none.stderr.contains("gatehouse vpc deny"), "{none:?}");
    let words =
        "in --peer vpn --protocol tcp --port 5432 --port 8000-8099 --priority 7 --description shop --vm";
    let words: Vec<_> =
        ["vpc", "allow", &vpc].into_iter().chain(words.split(' ')).chain([db.as_str()]).collect();
    let allow = bench.good(&words).await;
    let deny = bench.json(&["vpc", "deny", &vpc, "out", "--peer", "192.0.2.0/24"]).await;
    assert_eq!(
        (&deny["action"], &deny["direction"], &deny["peer"]),
        (&json!("deny"), &json!("out"), &json!("192.0.2.0/24"))
    );
    let list = bench.good(&["vpc", "rules", &vpc]).await;
    for part in
        [&allow, "allow in tcp 5432,8000-8099 from vpn", &db, "shop", "deny out to 192.0.2.0/24", "1000"]
    {
        assert!(list.contains(part), "{part}: {list}");
    }
    let all = bench.json(&["vpc", "rules", &vpc]).await;
    let file = bench.folder.path().join("rules.json");
    std::fs::write(&file, all.to_string()).expect("written");
    let put = bench.good(&["vpc", "rules-put", &vpc, file.to_str().expect("text")]).await;
    assert!(put.lines().count() == 2 && !put.contains(&allow), "{put}");
    let put: Vec<_> = put.lines().collect();
    assert_eq!(bench.good(&["vpc", "rule-delete", &vpc, put[0], put[1]]).await, put.join("\n"));
    assert_eq!(bench.json(&["vpc", "rules", &vpc]).await, json!({"rules": []}));
    std::fs::write(&file, "[]").expect("written");
    for (words, more) in [
        (vec!["vpc", "rule-delete", &vpc, put[0]], "gatehouse vpc rules"),
        (vec!["vpc", "allow", &vpc, "in", "--peer", "everyone"], "any, vpn"),
        (vec!["vpc", "allow", &vpc, "in", "--port", "80"], "tcp and udp alone"),
        (vec!["vpc", "rules-put", &vpc, file.to_str().expect("text")], "--json"),
        (vec!["vpc", "rules-put", &vpc, "/nonexistent"], "cannot be read"),
    ] {
        let error = bench.refused(&words).await;
        assert!(error.contains(more), "{words:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_are_peered_and_parted() {
    let bench = Bench::new().await;
    let (a, b, c) =
        (bench.vpc("10.0.0.0/24").await, bench.vpc("10.0.1.0/24").await, bench.vpc("10.0.0.0/24").await);
    let none = bench.run(&["vpc", "peerings", &a]).await;
    assert!(none.stdout.is_empty() && none.stderr.contains("gatehouse vpc peer"), "{none:?}");
    let made = bench.run(&["vpc", "peer", &a, &b]).await;
    assert!(made.status == Some(0) && made.stderr.contains("reach each other"), "{made:?}");
    let id = made.stdout.trim_end();
    let list = bench.good(&["vpc", "peerings", &b]).await;
    for part in [id, &a, "10.0.0.0/24", "active"] {
        assert!(list.contains(part), "{part}: {list}");
    }
    let clash = bench.refused(&["vpc", "peer", &c, &b]).await;
    assert!(clash.contains("VPC_RANGES_OVERLAP") && clash.contains("gatehouse vpc peerings"), "{clash}");
    assert_eq!(bench.good(&["vpc", "unpeer", &b, &a]).await, id);
    assert_eq!(bench.json(&["vpc", "peerings", &a]).await, json!({"peerings": []}));
    let again = bench.refused(&["vpc", "unpeer", &a, &b]).await;
    assert!(again.contains("gatehouse vpc peerings"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_join_and_leave() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let none = bench.run(&["vpc", "services", &vpc]).await;
    assert!(none.stdout.is_empty() && none.stderr.contains("gatehouse vpc join"), "{none:?}");
    let wrong = bench.refused(&["vpc", "join", &vpc, "--name", "db", "--netns", "nobody-has-it"]).await;
    assert!(wrong.contains("/run/netns/nobody-has-it") && wrong.contains("ip netns list"), "{wrong}");
    assert_eq!(
        bench.json(&["vpc", "services", &vpc]).await,
        json!({"services": []}),
        "nothing is made first"
    );

    let listener = WireListener::bind(&bench.folder.path().join("run/vpc.sock"), 0o600).expect("listen");
    let (told, mut asked) = mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        while let Ok(wire) = listener.accept().await {
            let (request, descriptors) = wire.receive::<VpcRequest>().await.expect("asked");
            let VpcRequest::Join { service, generation } = request else { panic!("{request:?}") };
            let inode = rustix::fs::fstat(&descriptors[0]).expect("a namespace").st_ino;
            told.send((service.to_string(), generation, inode)).expect("kept");
            wire.send(&VpcReply::Joined, &[]).await.expect("told");
        }
    });
    let mine = std::fs::File::open("/proc/self/ns/net").expect("a namespace");
    let mine = rustix::fs::fstat(&mine).expect("a namespace").st_ino;
    let joined = bench.run(&["vpc", "join", &vpc, "--name", "DB", "--ip", "10.0.0.9", "--host"]).await;
    assert_eq!((joined.status, joined.stdout.as_str()), (Some(0), "10.0.0.9\n"), "{joined:?}");
    assert!(joined.stderr.contains("db.vpc.internal"), "{joined:?}");
    let me = std::process::id().to_string();
    let again = bench.json(&["vpc", "join", &vpc, "--name", "db", "--pid", &me]).await;
    let (first, second) = (asked.recv().await.expect("joined"), asked.recv().await.expect("joined"));
    assert_eq!((&first.0, first.2), (&second.0, mine), "the same service, of this namespace");
    assert_eq!(
        (&json!(second.0), &json!(second.1), second.2),
        (&again["serviceId"], &again["generation"], mine)
    );
    let card = bench.good(&["vpc", "get", &vpc]).await;
    assert!(card.contains("10.0.0.9") && card.contains("db"), "{card}");
    assert!(bench.good(&["vpc", "services", &vpc]).await.contains(&first.0));
    let used = bench.refused(&["vpc", "delete", &vpc]).await;
    assert!(used.contains("VPC_IN_USE") && used.contains("services"), "{used}");
    let moved = bench.refused(&["vpc", "join", &vpc, "--name", "db", "--ip", "10.0.0.8", "--host"]).await;
    assert!(moved.contains("SERVICE_EXISTS") && moved.contains("10.0.0.9"), "{moved}");
    assert_eq!(bench.good(&["vpc", "leave", &vpc, "db"]).await, first.0);
    assert!(bench.refused(&["vpc", "leave", &vpc, "db"]).await.contains("gatehouse vpc services"));

    serving.abort();
    drop(serving.await);
    let nobody = bench.refused(&["vpc", "join", &vpc, "--name", "late", "--host"]).await;
    assert!(nobody.contains("did not join") && nobody.contains("gatehouse vpc leave"), "{nobody}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_made_listed_and_closed() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let none = bench.run(&["vpn", "sessions", &vpc]).await;
    assert!(none.stdout.is_empty() && none.stderr.contains("gatehouse vpn up"), "{none:?}");
    let made = bench.run(&["vpn", "config", &vpc]).await;
    assert!(made.stdout.contains("[Interface]\nAddress = 100.96.0.2/32\nPrivateKey = "), "{made:?}");
    assert!(made.stderr.contains("gatehouse vpn close"), "{made:?}");
    let other = bench.json(&["vpn", "config", &vpc]).await;
    assert!(
        other["clientConfig"].as_str().is_some_and(|text| text.contains("Address = 100.96.0.3/32")),
        "{other}"
    );
    let rows = bench.sessions(&vpc).await;
    assert_eq!(rows[1]["sessionId"], other["sessionId"]);
    let ids: Vec<_> = rows.iter().map(|row| row["sessionId"].as_str().expect("id")).collect();
    let list = bench.good(&["vpn", "sessions", &vpc]).await;
    assert!(list.contains(ids[0]) && list.contains("100.96.0.3"), "{list}");
    assert_eq!(bench.good(&["vpn", "close", &vpc, ids[0], ids[1]]).await, ids.join("\n"));
    let gone = bench.refused(&["vpn", "close", &vpc, ids[0]]).await;
    assert!(gone.contains("NOT_FOUND") && gone.contains("gatehouse vpn sessions"), "{gone}");
}

/// A folder with the programs that stand for WireGuard's.
fn tools(folder: &Path) -> PathBuf {
    let tools = folder.join("tools");
    std::fs::create_dir(&tools).expect("folder");
    for (name, text) in [("wg-quick", WG_QUICK), ("wg", "#!/bin/sh\n")] {
        std::fs::write(tools.join(name), text).expect("written");
        std::fs::set_permissions(tools.join(name), Permissions::from_mode(0o755)).expect("mode");
    }
    tools
}

fn up(bench: &Bench, vpc: &str, path: &str) -> Command {
    up_with(Command::new(env!("CARGO_BIN_EXE_gatehouse-under-test")), bench, vpc, path)
}

fn up_with(mut command: Command, bench: &Bench, vpc: &str, path: &str) -> Command {
    command.arg("--run-dir").arg(bench.folder.path().join("run")).args(["vpn", "up", vpc]);
    for name in FOREIGN {
        command.env_remove(name);
    }
    command.env("PATH", path).env("TMPDIR", bench.folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_is_kept_until_it_is_to_end() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    bench.good(&["vm", "create", "--vpc", &vpc, "--name", "db"]).await;
    let tools = tools(bench.folder.path());
    let path = format!("{}:/usr/bin:/bin", tools.display());
    for signal in [Signal::TERM, Signal::INT] {
        let mut child = up(&bench, &vpc, &path).spawn().expect("it runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut said = String::new();
        while let Some(line) = timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("read") {
            said.push_str(&line);
            if line.contains("Ctrl-C") {
                break;
            }
        }
        assert!(said.contains("10.0.0.0/24 is reached") && said.contains("ping 10.0.0.1   # db"), "{said}");
        let rows = bench.sessions(&vpc).await;
        assert_eq!(rows.len(), 1);
        let pid =
            Pid::from_raw(i32::try_from(child.id().expect("it runs")).expect("a number")).expect("a pid");
        kill_process(pid, signal).expect("told");
        let status = timeout(PATIENCE, child.wait()).await.expect("it ends").expect("waited for");
        assert_eq!(status.code(), Some(0));
        assert!(bench.sessions(&vpc).await.is_empty(), "closed");
        let log = std::fs::read_to_string(tools.join("log")).expect("called");
        let id = rows[0]["sessionId"].as_str().expect("id").trim_start_matches("wg-");
        let name = format!("gh{}.conf 600 700 1", &id[..10]);
        assert_eq!(log, format!("up {name}\ndown {name}\n"));
        let folder = std::fs::read_to_string(tools.join("folder")).expect("called");
        assert!(!Path::new(folder.trim_end()).exists(), "{folder}");
        std::fs::remove_file(tools.join("log")).expect("removed");
    }

    std::fs::write(tools.join("refuse"), "").expect("written");
    let failed =
        timeout(PATIENCE, up(&bench, &vpc, &path).output()).await.expect("it ends").expect("it runs");
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(failed.status.code() == Some(1) && error.contains("wg-quick up ended with"), "{error}");
    assert!(bench.sessions(&vpc).await.is_empty(), "closed");
    let log = std::fs::read_to_string(tools.join("log")).expect("called");
    assert_eq!(log.lines().count(), 1, "nothing is taken down that is not up: {log}");

    let lacking = up(&bench, &vpc, "/nonexistent").output().await.expect("it runs");
    let error = String::from_utf8_lossy(&lacking.stderr).into_owned();
    assert!(lacking.status.code() == Some(1) && error.contains("wireguard-tools"), "{error}");
    assert!(bench.sessions(&vpc).await.is_empty(), "none was made");
}

/// With wireguard-tools and wireguard-go as they are, in a network namespace of its own. Nobody answers there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wg_quick_takes_the_file_as_it_is() {
    let bench = Bench::with(|config| config.vpn.host = Some("192.0.2.1".to_owned())).await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut command = Command::new("unshare");
    command.args(["--net", "--", env!("CARGO_BIN_EXE_gatehouse-under-test")]);
    let mut command = up_with(command, &bench, &vpc, path);
    command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", "wireguard-go").stderr(Stdio::inherit());
    let mut child = command.spawn().expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    loop {
        let line = timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("read");
        if line.expect("a tunnel").contains("Ctrl-C") {
            break;
        }
    }
    let pid = child.id().expect("it runs").to_string();
    let inside = async |words: &[&str]| {
        let inside =
            Command::new("nsenter").args(["--net", "--target", &pid, "--"]).args(words).output().await;
        String::from_utf8(inside.expect("it runs").stdout).expect("text")
    };
    let routes = inside(&["ip", "-4", "route"]).await;
    assert!(routes.contains("10.0.0.0/24 dev gh"), "{routes}");
    let device =
        routes.split_whitespace().skip_while(|word| *word != "dev").nth(1).expect("a device").to_owned();
    let link = inside(&["ip", "-4", "address", "show", "dev", &device]).await;
    assert!(link.contains("100.96.0.2/32") && link.contains("mtu 1280"), "{link}");
    let rows = bench.sessions(&vpc).await;
    let shown = inside(&["wg", "show", &device]).await;
    assert!(shown.contains("endpoint: 192.0.2.1:51820") && shown.contains("preshared key"), "{shown}");
    let public = inside(&["wg", "show", &device, "public-key"]).await;
    assert_eq!(json!(public.trim_end()), rows[0]["clientPublicKey"], "the pair fits");

    let pid = Pid::from_raw(pid.parse().expect("a number")).expect("a pid");
    kill_process(pid, Signal::TERM).expect("told");
    let status = timeout(PATIENCE, child.wait()).await.expect("it ends").expect("waited for");
    assert_eq!(status.code(), Some(0));
    assert!(bench.sessions(&vpc).await.is_empty(), "closed");
}
