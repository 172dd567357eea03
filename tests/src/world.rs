//! What is beyond a house, on the host's loopback: a real name server as the world's DNS (nsd), and a real certificate
//! authority (pebble, with its refused nonces and late looks), which may have a real resolver (unbound) that follows the
//! delegation of names to the house.

use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest until a program of others listens, under emulation, and between two looks whether it does: none tells.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Where the name server, the authority and its management are. The house has the ports of HTTP and HTTPS.
const DNS: u16 = 5353;
const RESOLVER: u16 = 5354;
const AUTHORITY: u16 = 14_000;
const MANAGEMENT: u16 = 15_000;
/// Where the house answers for the names that are delegated to it. The port is DNS's own: no delegation names another.
const DELEGATED: &str = "127.0.0.2:53";
/// Orders in three hours, at most: certificates that live for minutes are ordered often.
const ORDERS: u32 = 5000;

/// What is beyond the house. Dropping it ends it.
#[derive(Debug)]
pub struct World {
    folder: tempfile::TempDir,
    children: Vec<Child>,
    dns: u32,
}

impl World {
    /// Starts both, with settings for a house that knows them. Certificates live `life`, or as long as the authority likes.
    ///
    /// # Errors
    /// When a program is missing or does not listen in time.
    pub fn start(life: Option<Duration>) -> Result<Self> {
        Self::begin(life, false)
    }

    /// The same, with a resolver for the authority, and a house that answers at 127.0.0.2 for what is delegated to it.
    ///
    /// # Errors
    /// See [`World::start`].
    pub fn start_with_delegation() -> Result<Self> {
        Self::begin(None, true)
    }

    fn begin(life: Option<Duration>, delegation: bool) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        std::fs::write(
            at("world.zone"),
            "$ORIGIN .\n. 1 IN SOA a.root. nobody.root. 1 3600 600 86400 1\n. 1 IN NS a.root.\na.root. 1 IN A 127.0.0.1\n",
        )?;
        std::fs::write(at("nsd.conf"), nsd_settings(&folder))?;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        std::fs::write(at("own.pem"), made.cert.pem())?;
        std::fs::write(at("own.key.pem"), made.signing_key.serialize_pem())?;
        let mut pebble = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{AUTHORITY}"),
            "managementListenAddress": format!("127.0.0.1:{MANAGEMENT}"),
            "certificate": at("own.pem"),
            "privateKey": at("own.key.pem"),
            "httpPort": 80,
            "tlsPort": 443,
            "ocspResponderURL": "",
        }});
        if let Some(life) = life {
            pebble["pebble"]["certificateValidityPeriod"] = life.as_secs().into();
        }
        std::fs::write(at("pebble.json"), pebble.to_string())?;
        std::fs::write(at("house.toml"), house_settings(&folder, delegation))?;
        let mut children = vec![started(Command::new("nsd").args(["-d", "-c"]).arg(at("nsd.conf")), DNS)?];
        let dns = children[0].id();
        if delegation {
            std::fs::write(at("unbound.conf"), resolver_settings(&folder))?;
            let mut resolver = Command::new("unbound");
            children.push(started(resolver.args(["-d", "-c"]).arg(at("unbound.conf")), RESOLVER)?);
        }
        let asked = if delegation { RESOLVER } else { DNS };
        children.push(started(
            Command::new("pebble")
                .arg("-config")
                .arg(at("pebble.json"))
                .args(["-dnsserver", &format!("127.0.0.1:{asked}")])
                .env("PEBBLE_WFE_NONCEREJECT", "15")
                .env("PEBBLE_VA_SLEEPTIME", "1"),
            AUTHORITY,
        )?);
        listens(MANAGEMENT)?;
        let url = format!("https://localhost:{MANAGEMENT}/roots/0");
        let root = Command::new("curl").args(["-sSf", "--cacert"]).arg(at("own.pem")).arg(url).output()?;
        ensure!(root.status.success(), "the authority's root: {root:?}");
        std::fs::write(at("root.pem"), root.stdout)?;
        Ok(Self { folder, children, dns })
    }

    /// The settings of the house, for `gatehouse up --config`.
    #[must_use]
    pub fn settings(&self) -> PathBuf {
        self.file("house.toml")
    }

    /// What the authority certifies by.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.file("root.pem")
    }

    /// What `e2e/sdk/world.mjs` wants to know: environment variables.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        vec![
            ("WORLD_ZONE", text(self.file("world.zone"))),
            ("WORLD_DNS", format!("127.0.0.1:{DNS}")),
            ("WORLD_DNS_PID", self.dns.to_string()),
            ("WORLD_ROOT", text(self.root())),
        ]
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn started(command: &mut Command, port: u16) -> Result<Child> {
    let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("{command:?}"))?;
    listens(port)?;
    Ok(child)
}

fn listens(port: u16) -> Result<()> {
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(begun.elapsed() < PATIENCE, "nothing listens at port {port}");
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// One zone, the root, in which everything stands: a file that the test writes anew.
fn nsd_settings(folder: &tempfile::TempDir) -> String {
    let at = folder.path().display();
    format!(
        "server:\n ip-address: 127.0.0.1@{DNS}\n username: \"\"\n zonesdir: \"{at}\"\n pidfile: \"{at}/nsd.pid\"\n \
         xfrdfile: \"{at}/xfrd.state\"\n zonelistfile: \"{at}/zone.list\"\n database: \"\"\n do-ip6: no\n \
         server-count: 1\nremote-control:\n control-enable: no\nzone:\n name: \".\"\n zonefile: \"world.zone\"\n"
    )
}

/// It asks the name server from the root down and goes where that sends it, and remembers nothing: what it is asked about
/// changes from one question to the next.
fn resolver_settings(folder: &tempfile::TempDir) -> String {
    let at = folder.path().display();
    format!(
        "server:\n interface: 127.0.0.1\n port: {RESOLVER}\n do-daemonize: no\n use-syslog: no\n username: \"\"\n \
         chroot: \"\"\n directory: \"{at}\"\n pidfile: \"{at}/unbound.pid\"\n do-ip6: no\n \
         do-not-query-localhost: no\n module-config: \"iterator\"\n cache-max-ttl: 0\n \
         cache-max-negative-ttl: 0\n infra-host-ttl: 0\nremote-control:\n control-enable: no\nstub-zone:\n \
         name: \".\"\n stub-addr: 127.0.0.1@{DNS}\n"
    )
}

fn house_settings(folder: &tempfile::TempDir, delegation: bool) -> String {
    let delegated = if delegation { format!("dns-listen = \"{DELEGATED}\"\n") } else { String::new() };
    let mut text = String::new();
    // Writing to a String does not fail.
    write!(
        text,
        "[acme]\ndirectory = \"https://localhost:{AUTHORITY}/dir\"\nemail = [\"owner@example.com\"]\nagree-terms = true\norders = {ORDERS}\n\
         ca-file = \"{}\"\n{delegated}[domains]\nroots = [\"127.0.0.1\"]\ndns-port = {DNS}\nany-address = true\n",
        folder.path().join("own.pem").display()
    )
    .ok();
    text
}
