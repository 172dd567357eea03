//! A real certificate authority of one's own: Let's Encrypt's test CA, with its habit of refusing nonces and of looking
//! late.

use super::PATIENCE;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Nonces in a hundred that it refuses without a reason, as clients must expect (RFC 8555 section 6.5). So many that no test
/// passes by luck: three in a row, after which the library gives up, are one request in sixteen.
const REFUSED_NONCES: &str = "40";
/// Longest that it waits before it looks, in seconds; how long, it draws.
const LOOKS_AFTER: &str = "1";
/// Between two looks whether it listens.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What the authority is to be like.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Where it finds the doors of all names.
    pub https: SocketAddr,
    /// The same for plain HTTP.
    pub http: SocketAddr,
    /// Whom it asks about names.
    pub dns: SocketAddr,
    /// How long its certificates live.
    pub life_seconds: u32,
    /// The account that others must belong to: its name and key.
    pub external: Option<(String, String)>,
    /// It refuses no nonces, and looks at once.
    pub quick: bool,
    /// It says when to renew, and may refuse orders for a while.
    pub talkative: bool,
}

/// The authority.
pub struct Pebble {
    wish: Wish,
    folder: PathBuf,
    port: u16,
    management: u16,
    child: Child,
    front: Option<(u16, Child)>,
}

impl Pebble {
    /// Starts one that keeps its files in `folder`.
    pub async fn start(folder: &Path, wish: Wish) -> Self {
        std::fs::create_dir_all(folder).expect("folder");
        certify(folder);
        let (port, management) = (free_port(), free_port());
        let child = run(folder, &wish, port, management).await;
        let front = if wish.talkative { Some(front(folder, port).await) } else { None };
        Self { wish, folder: folder.to_owned(), port, management, child, front }
    }

    /// Its files; see `front.py` for those of a talkative one.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn directory(&self) -> String {
        let port = self.front.as_ref().map_or(self.port, |(port, _)| *port);
        format!("https://localhost:{port}/dir")
    }

    /// What its HTTPS door is certified by.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    pub async fn stop(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Starts it again. It has forgotten everything, and has a new root.
    pub async fn start_again(&mut self) {
        self.child = run(&self.folder, &self.wish, self.port, self.management).await;
    }

    /// Writes the root of what it certifies into a file.
    pub async fn root(&self) -> PathBuf {
        let url = format!("https://localhost:{}/roots/0", self.management);
        let asked = Command::new("curl").args(["-sSf", "--cacert"]).arg(self.ca_file()).arg(url).output();
        let root = timeout(PATIENCE, asked).await.expect("in time").expect("curl");
        assert!(root.status.success(), "{root:?}");
        let path = self.folder.join("root.pem");
        std::fs::write(&path, root.stdout).expect("written");
        path
    }
}

/// A port that nobody has. Another may take it before it is used; then what uses it fails, and says so.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port()
}

async fn run(folder: &Path, wish: &Wish, port: u16, management: u16) -> Child {
    let mut settings = json!({"pebble": {
        "listenAddress": format!("127.0.0.1:{port}"),
        "managementListenAddress": format!("127.0.0.1:{management}"),
        "certificate": folder.join("own.pem"),
        "privateKey": folder.join("own.key.pem"),
        "httpPort": wish.http.port(),
        "tlsPort": wish.https.port(),
        "ocspResponderURL": "",
        "externalAccountBindingRequired": wish.external.is_some(),
        "certificateValidityPeriod": wish.life_seconds,
        "domainBlocklist": ["blocked.example.com"],
    }});
    if let Some((name, key)) = &wish.external {
        settings["pebble"]["externalAccountMACKeys"] = json!({name: key}) as Value;
    }
    let path = folder.join("pebble.json");
    std::fs::write(&path, settings.to_string()).expect("written");
    let mut command = Command::new("pebble");
    if wish.quick {
        // Of SLEEPTIME it takes no zero.
        command.env("PEBBLE_VA_NOSLEEP", "1");
    }
    let mut child = command
        .arg("-config")
        .arg(path)
        .args(["-dnsserver", &wish.dns.to_string()])
        .env("PEBBLE_WFE_NONCEREJECT", if wish.quick { "0" } else { REFUSED_NONCES })
        .env("PEBBLE_VA_SLEEPTIME", LOOKS_AFTER)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .expect("pebble is installed");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            println!("{line}")
        }
    });
    for port in [port, management] {
        listens(port).await;
    }
    child
}

/// What stands before pebble.
async fn front(folder: &Path, pebble: u16) -> (u16, Child) {
    let port = free_port();
    let child = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("words/front.py"))
        .arg(folder)
        .args([port.to_string(), pebble.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("python3 is installed");
    listens(port).await;
    (port, child)
}

/// Waits until something listens.
pub async fn listens(port: u16) {
    let listens = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            // Nothing tells when a program of others listens.
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    timeout(PATIENCE, listens).await.expect("it listens");
}

/// A certificate for its own door, by an authority of this test.
fn certify(folder: &Path) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
    let pem = made.cert.pem();
    std::fs::write(folder.join("own.pem"), &pem).expect("written");
    std::fs::write(folder.join("ca.pem"), &pem).expect("written");
    std::fs::write(folder.join("own.key.pem"), made.signing_key.serialize_pem()).expect("written");
}
