//! From a mapped name to a certificate of a real authority, by each proof; and what is told when it cannot be had.

use super::pebble::{Pebble, Wish, free_port, listens};
use super::{Bench, PATIENCE};

use control::store::{BeginProof, NewMapping, Right, Store, StoreError, Took};
use edge_proxy::listeners::Listeners;
use edge_proxy::metrics::Metrics;
use edge_proxy::settings::Settings;
use feed::subscribe::Feed;
use model::config::{AcmeConfig, ChallengeKind, ExternalAccount, Places};
use model::host::MappedName;
use model::id::VmId;
use rustix::process::getuid;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UdpSocket};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Between two looks at a list that changes by itself.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Names that are certified when `NAMES` does not say how many.
const FEW: usize = 12;
/// Names that are certified one after another then.
const ALONE: usize = 5;
/// How often control dies in the test of that.
const DEATHS: usize = 4;
/// Longer than any test.
const LONG_LIFE: u32 = 90 * 24 * 3600;

/// The doors, as far as this test needs them before there is a house.
struct Doors {
    https: SocketAddr,
    http: SocketAddr,
    dns: SocketAddr,
    listeners: Listeners,
}

impl Doors {
    async fn bind() -> Self {
        let mut listeners = Listeners::default();
        let https = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let http = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let dns = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let address = dns.local_addr().expect("address");
        let dns_tcp = TcpListener::bind(address).await.expect("the same port by stream");
        let (https_at, http_at) = (https.local_addr().expect("address"), http.local_addr().expect("address"));
        listeners.https.push(https);
        listeners.http.push(http);
        listeners.dns.push(dns);
        listeners.dns_tcp.push(dns_tcp);
        Self { https: https_at, http: http_at, dns: address, listeners }
    }
}

/// A house with doors, an authority, and names of the world.
struct Town {
    bench: Bench,
    pebble: Pebble,
    https: SocketAddr,
    vm: String,
    _names: Option<Child>,
}

/// How a town is to be.
struct Plan {
    challenges: Vec<ChallengeKind>,
    life_seconds: u32,
    external: Option<(String, String)>,
    preview: bool,
    /// The authority looks for TLS where nobody is.
    tls_astray: bool,
    /// It refuses no nonces, and looks at once.
    quick: bool,
    /// It says when to renew, and may refuse orders for a while.
    talkative: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            challenges: vec![ChallengeKind::TlsAlpn],
            life_seconds: LONG_LIFE,
            external: None,
            preview: false,
            tls_astray: false,
            quick: false,
            talkative: false,
        }
    }
}

impl Town {
    async fn new(plan: Plan) -> Self {
        let doors = Doors::bind().await;
        let by_dns = plan.challenges.contains(&ChallengeKind::Dns);
        // Proof by DNS is asked for at our own name server; for the others, all names of the world lead here.
        let (names, dns) = if by_dns { (None, doors.dns) } else { world_names().await };
        let https = if plan.tls_astray { ([127, 0, 0, 1], free_port()).into() } else { doors.https };
        let ca = tempfile::tempdir().expect("folder").keep();
        let wish = Wish {
            https,
            http: doors.http,
            dns,
            life_seconds: plan.life_seconds,
            external: plan.external.clone(),
            quick: plan.quick,
            talkative: plan.talkative,
        };
        let pebble = Pebble::start(&ca, wish).await;
        let external_account = plan.external.map(|(key_id, key)| {
            let key_file = ca.join("external.key");
            std::fs::write(&key_file, format!("{key}\n")).expect("written");
            ExternalAccount { key_id, key_file }
        });
        let acme = AcmeConfig {
            directory: pebble.directory(),
            contact: vec!["mailto:owner@example.com".to_owned()],
            external_account,
            ca_file: Some(pebble.ca_file()),
            challenges: plan.challenges,
            preview: plan.preview,
            orders: 2000,
        };
        let bench = Bench::with(|config| config.acme = Some(acme)).await;
        let places = Places { data: bench.folder.path().join("data"), run: bench.folder.path().join("run") };
        let https = doors.https;
        tokio::spawn(serve(places, doors));
        let vm = bench.good(&["vm", "create"]).await;
        let town = Self { bench, pebble, https, vm, _names: names };
        town.prove("example.com").await;
        town
    }

    /// Proves a customer's domain, as far as the store knows.
    async fn prove(&self, domain: &str) {
        let store = self.store().await;
        let account = store.default_account().await.expect("account").id;
        let domain = domain.parse().expect("domain");
        let begun = patiently(async || store.begin_proof(&account, &domain, "code").await).await;
        let BeginProof::Begun(begun) = begun else { panic!("{begun:?}") };
        let took = patiently(async || store.take_domain(&begun).await).await;
        assert!(matches!(took, Took::Domain(_)), "{took:?}");
    }

    /// Maps a name of a proved domain.
    async fn map(&self, host: &str) {
        self.bench.good(&["domains", "map", host, "--vm", &self.vm, "--port", "3000"]).await;
    }

    async fn store(&self) -> Store {
        Store::open(&self.bench.folder.path().join("data/control.db")).await.expect("store")
    }

    /// Lets control publish.
    async fn tell(&self) {
        self.bench.good(&["domains", "map", "any.style.dev", "--vm", &self.vm, "--port", "3000"]).await;
    }

    async fn rows(&self) -> Vec<Value> {
        let list = self.bench.json(&["certs", "list"]).await;
        list["certificates"].as_array().expect("list").clone()
    }

    /// Waits until a name's row is as wanted, and gives it.
    async fn until(&self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let look = async {
            loop {
                let row = self.rows().await.into_iter().find(|row| row["name"] == name);
                if let Some(row) = row {
                    if fits(&row) {
                        return row;
                    }
                    last = row;
                }
                // The list tells nothing of itself.
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        match timeout(2 * PATIENCE, look).await {
            Ok(row) => row,
            Err(_) => panic!("{name}: {last}"),
        }
    }

    async fn issued(&self, name: &str) -> Value {
        self.until(name, |row| row["state"] == "issued").await
    }

    /// Asks the door for a name, trusting the root alone; gives whether TLS was good, and what was said.
    async fn fetch(&self, host: &str, root: &Path) -> (bool, String) {
        let port = self.https.port();
        let asked = Command::new("curl")
            .args(["-sS", "-i", "--max-time", "30", "--cacert"])
            .arg(root)
            .args(["--resolve", &format!("{host}:{port}:127.0.0.1"), &format!("https://{host}:{port}/")])
            .output();
        let told = timeout(PATIENCE, asked).await.expect("in time").expect("curl");
        let text = [told.stdout, told.stderr].concat();
        (told.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until the door shows a certificate of that root for the name; gives the page.
    async fn served(&self, host: &str, root: &Path) -> String {
        let served = async {
            loop {
                let (good, page) = self.fetch(host, root).await;
                if good {
                    return page;
                }
            }
        };
        timeout(PATIENCE, served).await.expect("it is served")
    }

    /// The serial number of what the door shows.
    async fn serial(&self, host: &str) -> String {
        let script = format!(
            "openssl s_client -connect {} -servername {host} </dev/null 2>/dev/null | openssl x509 -noout -serial",
            self.https
        );
        let asked = Command::new("sh").args(["-c", &script]).output();
        let told = timeout(PATIENCE, asked).await.expect("in time").expect("openssl");
        String::from_utf8_lossy(&told.stdout).trim().to_owned()
    }
}

/// Writes beside control, which has the database to itself otherwise: SQLite refuses at once whoever read before another
/// wrote.
async fn patiently<T>(write: impl AsyncFn() -> Result<T, StoreError>) -> T {
    let tries = async {
        loop {
            match write().await {
                Ok(done) => return done,
                Err(error) => println!("once more: {error}"),
            }
        }
    };
    timeout(PATIENCE, tries).await.expect("written")
}

/// Looks until it is so.
async fn patiently_until(so: impl AsyncFn() -> bool) {
    let looking = async {
        while !so().await {
            tokio::time::sleep(LOOK_AGAIN / 10).await;
        }
    };
    timeout(PATIENCE, looking).await.expect("it comes to be so");
}

async fn serve(places: Places, doors: Doors) {
    let mut settings = Settings::new(doors.https.port(), 1000);
    settings.dns_host = Some("dns.style.dev".parse().expect("name"));
    let feed = Feed::open(&places.feed(), &[getuid().as_raw()]);
    // Nobody gives an order as long as this lives.
    let (_orders, none) = tokio::sync::mpsc::channel(edge_proxy::ORDERS);
    edge_proxy::run(settings, &places, doors.listeners, feed, Arc::new(Metrics::default()), || {}, none)
        .await
        .expect("edge-proxy runs");
}

/// A name server by which every name is at 127.0.0.1.
async fn world_names() -> (Option<Child>, SocketAddr) {
    let (dns, management) = (free_port(), free_port());
    let child = Command::new("pebble-challtestsrv")
        .args(["-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""])
        .args(["-dns01", &format!("127.0.0.1:{dns}"), "-management", &format!("127.0.0.1:{management}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("pebble-challtestsrv is installed");
    listens(dns).await;
    (Some(child), ([127, 0, 0, 1], dns).into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_certified_by_tls_and_renewed_and_gone_when_it_is_unmapped() {
    let town = Town::new(Plan { life_seconds: 40, ..Plan::default() }).await;
    let (early, said) = town.fetch("shop.example.com", &town.pebble.ca_file()).await;
    assert!(!early && said.contains("unrecognized name"), "{said}");
    town.map("shop.example.com").await;
    let first = town.issued("shop.example.com").await;
    let root = town.pebble.root().await;
    let page = town.served("shop.example.com", &root).await;
    assert!(page.starts_with("HTTP/2 50"), "{page}");
    let serial = town.serial("shop.example.com").await;
    assert!(serial.starts_with("serial="), "{serial}");
    town.until("shop.example.com", |row| row["notAfter"] != first["notAfter"]).await;
    let renewed = async {
        while town.serial("shop.example.com").await == serial {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let shown = timeout(PATIENCE, renewed).await;
    assert!(shown.is_ok(), "the door does not show the new one: {:?}", town.rows().await);
    assert!(town.fetch("shop.example.com", &root).await.0);

    town.bench.good(&["domains", "unmap", "shop.example.com"]).await;
    let gone = async {
        while town.fetch("shop.example.com", &root).await.0 {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("it is not shown any more");
    assert!(town.rows().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_certified_by_http_after_tls_failed_and_the_reason_is_told() {
    let challenges = vec![ChallengeKind::TlsAlpn, ChallengeKind::Http];
    let town = Town::new(Plan { challenges, tls_astray: true, ..Plan::default() }).await;
    town.map("shop.example.com").await;
    let failed = town.until("shop.example.com", |row| row["state"] == "failed").await;
    let why = failed["lastError"].as_str().expect("told");
    assert!(
        why.contains("did not accept the proof by tls-alpn-01") && why.contains("Failed to connect"),
        "{why}"
    );
    assert_eq!(failed["failures"], 1);
    let list = town.bench.good(&["certs", "list"]).await;
    assert!(list.contains("tls-alpn-01") && list.contains("failed"), "{list}");
    town.bench.good(&["certs", "retry", "shop.example.com"]).await;
    let row = town.issued("shop.example.com").await;
    assert_eq!((&row["failures"], &row["lastError"]), (&json!(0), &Value::Null));
    town.served("shop.example.com", &town.pebble.root().await).await;
    let unknown = town.bench.refused(&["certs", "retry", "other.example.com"]).await;
    assert!(unknown.contains("CERTIFICATE_NOT_FOUND"), "{unknown}");
    let bad = town.bench.refused(&["certs", "retry", "not a name"]).await;
    assert!(bad.contains("the host name has a character other than"), "{bad}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preview_wildcard_is_certified_by_our_own_dns_under_an_external_account() {
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W".to_owned();
    let town = Town::new(Plan {
        challenges: vec![ChallengeKind::Dns],
        external: Some(("kid-1".to_owned(), key)),
        preview: true,
        ..Plan::default()
    })
    .await;
    town.map("shop.example.com").await;
    town.issued("*.style.dev").await;
    town.issued("shop.example.com").await;
    town.bench.good(&["domains", "certify", "example.com"]).await;
    town.issued("*.example.com").await;
    let none = town.bench.refused(&["domains", "certify", "example.org"]).await;
    assert!(none.contains("DOMAIN_OWNERSHIP_NOT_VERIFIED"), "{none}");
    let root = town.pebble.root().await;
    for host in ["any.style.dev", "other.style.dev", "shop.example.com", "else.example.com"] {
        town.served(host, &root).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_is_away_refuses_or_forgets_is_told_of_and_got_over() {
    let mut town = Town::new(Plan::default()).await;
    town.map("first.example.com").await;
    town.issued("first.example.com").await;
    let first_root = town.pebble.root().await;
    town.served("first.example.com", &first_root).await;
    let kept = town.pebble.ca_file().with_file_name("first.pem");
    std::fs::copy(&first_root, &kept).expect("copied");

    town.map("blocked.example.com").await;
    let refused = town.until("blocked.example.com", |row| row["state"] == "failed").await;
    let why = refused["lastError"].as_str().expect("told");
    assert!(why.contains("rejectedIdentifier"), "{why}");

    town.pebble.stop().await;
    town.map("second.example.com").await;
    let away = town.until("second.example.com", |row| row["state"] == "failed").await;
    let why = away["lastError"].as_str().expect("told");
    assert!(why.to_lowercase().contains("connection refused"), "{why}");
    assert!(town.fetch("first.example.com", &kept).await.0, "what serves goes on to");

    // It comes back, and knows neither us nor what it certified.
    town.pebble.start_again().await;
    town.bench.good(&["certs", "retry", "second.example.com"]).await;
    town.issued("second.example.com").await;
    town.served("second.example.com", &town.pebble.root().await).await;
    assert!(town.fetch("first.example.com", &kept).await.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_says_when_is_followed() {
    let name = "shop.example.com";
    let town = Town::new(Plan { talkative: true, ..Plan::default() }).await;
    let folder = town.pebble.folder().to_owned();
    std::fs::write(folder.join("limit"), "7200").expect("written");
    town.map(name).await;
    let limited = town.until(name, |row| row["state"] == "failed").await;
    assert!(limited["lastError"].as_str().expect("told").contains("rateLimited"), "{limited}");
    let time = |row: &Value, field: &str| row[field].as_str().expect("a time").to_owned();
    let seconds = async |from: String, to: String| {
        let script = format!("echo $(( $(date -d {to} +%s) - $(date -d {from} +%s) ))");
        let told = Command::new("sh").args(["-c", &script]).output().await.expect("date");
        String::from_utf8_lossy(&told.stdout).trim().parse::<i64>().expect("seconds")
    };
    let wait = seconds(time(&limited, "lastErrorAt"), time(&limited, "nextTryAt")).await;
    assert!(
        (7199..=7201).contains(&wait),
        "the wait that it named is kept to, and not our own minute: {wait}"
    );
    std::fs::remove_file(folder.join("limit")).expect("removed");
    town.bench.good(&["certs", "retry", name]).await;
    let first = town.issued(name).await;

    // It is asked hours later; the store lets it be now.
    std::fs::write(folder.join("window"), "2031-01-02T00:00:00Z 2031-01-03T00:00:00Z").expect("written");
    let (store, parsed) = (town.store().await, name.parse().expect("name"));
    store.plan_renewal(&parsed, None, 0).await.expect("due");
    town.tell().await;
    let planned = town.until(name, |row| row["renewAt"] != first["renewAt"]).await;
    assert!(time(&planned, "renewAt").starts_with("2031-01-02T"), "{planned}");
    assert!(!folder.join("replaced").exists(), "nothing was due yet");

    std::fs::write(folder.join("window"), "2021-01-02T00:00:00Z 2021-01-03T00:00:00Z").expect("written");
    store.plan_renewal(&parsed, None, 0).await.expect("due");
    town.tell().await;
    // Once, and not for ever: the new one is planned by its own life again.
    let of_its_own = |row: &Value| {
        let at = time(row, "renewAt");
        row["state"] == "issued" && !at.starts_with("2031") && !at.starts_with("2021")
    };
    town.until(name, of_its_own).await;
    let replaced = std::fs::read_to_string(folder.join("replaced")).expect("the order says what it replaces");
    assert_eq!(replaced.lines().count(), 1, "{replaced}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_may_die_while_names_are_certified() {
    let mut town = Town::new(Plan { quick: true, ..Plan::default() }).await;
    let names: Vec<_> = (0..FEW).map(|number| format!("n{number}.example.com")).collect();
    for name in &names {
        town.map(name).await;
    }
    // Each time at another moment: orders are counted, made, written down, proved.
    for deaths in 1..=DEATHS {
        let store = town.store().await;
        let least = deaths * FEW / (DEATHS + 1);
        patiently_until(async || store.orders().await.is_ok_and(|orders| orders.len() >= least)).await;
        drop(store);
        town.bench.restart().await;
    }
    for name in &names {
        town.issued(name).await;
    }
    let orders = town.store().await.orders().await.expect("orders").len();
    assert!((FEW..=FEW + DEATHS * FEW / 2).contains(&orders), "what was written down is taken up: {orders}");
    town.served(&names[0], &town.pebble.root().await).await;
}

/// How long many names take, and one alone, by a quick authority. `NAMES=1000 cargo test -p tests --test words many_names --
/// --nocapture` prints it for a thousand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_names_are_certified() {
    let names: usize = std::env::var("NAMES").map_or(FEW, |text| text.parse().expect("NAMES is a number"));
    let town = Town::new(Plan { quick: true, ..Plan::default() }).await;
    let store = town.store().await;
    let account = store.default_account().await.expect("account").id;
    let vm: VmId = town.vm.parse().expect("id");
    for number in 0..names {
        let host: MappedName = format!("n{number}.example.com").parse().expect("host");
        let new = NewMapping { host, port: 3000, right: Right::Proof };
        patiently(async || store.put_mapping(&account, &vm, &new).await).await;
    }
    let begin = Instant::now();
    town.tell().await;
    let mut told = 0;
    let all = async {
        loop {
            let issued = town.rows().await.iter().filter(|row| row["state"] == "issued").count();
            if issued >= told + 100 || issued == names {
                println!("{issued} of {names} after {:.1} s", begin.elapsed().as_secs_f64());
                told = issued;
            }
            if issued == names {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    timeout(20 * PATIENCE, all).await.expect("all of them");
    let mut each = Vec::new();
    for number in names..names + ALONE {
        let host: MappedName = format!("n{number}.example.com").parse().expect("host");
        let new = NewMapping { host: host.clone(), port: 3000, right: Right::Proof };
        patiently(async || store.put_mapping(&account, &vm, &new).await).await;
        let begin = Instant::now();
        town.tell().await;
        let issued =
            async || store.certificate(&host).await.is_ok_and(|it| it.is_some_and(|it| it.issued.is_some()));
        patiently_until(issued).await;
        each.push(begin.elapsed());
    }
    each.sort();
    println!("one alone: {:.2} s in the middle of {ALONE}", each[ALONE / 2].as_secs_f64());
    town.served(&format!("n{}.example.com", names - 1), &town.pebble.root().await).await;
}
