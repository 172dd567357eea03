//! A world of namespaces for tests with real clients: the Internet as a router, the host with vpn's process, clients
//! with wireguard-go and wg-quick, and one namespace for each network with a VM's address in it. Needs root.

use super::{SERVER, public};
use feed::publish::Publisher;
use model::config::{Places, VpnConfig};
use model::id::{Generation, VpcId};
use model::view::{SessionEntry, VpnView};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vpn::client::{SessionStatus, VpnClient};

/// The host's public address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const PORT: u16 = 51820;
/// Longest that anything is waited for; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

static WORLDS: AtomicU32 = AtomicU32::new(0);

pub struct World {
    pub name: String,
    pub folder: TempDir,
    publisher: Publisher,
    announcing: tokio::task::JoinHandle<()>,
    process: Option<Child>,
    generation: u64,
    networks: Vec<(VpcId, String)>,
    clients: Vec<RealClient>,
}

/// A client with wireguard-go behind a link of its own to the router.
#[derive(Clone)]
pub struct RealClient {
    pub namespace: String,
    device: String,
    config: PathBuf,
}

pub fn sh(text: &str) -> String {
    let output = Command::new("sh").arg("-ec").arg(text).output().expect("sh starts");
    assert!(
        output.status.success(),
        "{text}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// The same, and whether it succeeded.
pub fn succeeds(text: &str) -> bool {
    let status = Command::new("sh").arg("-c").arg(text).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.expect("sh starts").success()
}

pub fn base64(key: [u8; 32]) -> String {
    String::from(model::key::SecretKey::new(key))
}

/// Runs a closure on a thread inside a namespace.
pub fn inside<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).expect("namespace");
    std::thread::spawn(move || {
        let network = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), network).expect("entered");
        work()
    })
}

impl World {
    /// Must be called inside a tokio runtime.
    pub fn new() -> Self {
        let name = format!("wg{:x}{}", std::process::id(), WORLDS.fetch_add(1, Ordering::SeqCst));
        let folder = tempfile::Builder::new().prefix("vpn").tempdir().expect("folder");
        let places = Places { data: folder.path().join("data"), run: folder.path().join("run") };
        std::fs::create_dir_all(places.vpn_run()).expect("folder");
        let publisher = Publisher::new(&places.feed()).expect("publisher");
        let announcing = tokio::spawn({
            let (publisher, socket) = (publisher.clone(), places.feed_socket());
            async move { publisher.announce(&socket).await.expect("announces") }
        });
        let config = VpnConfig {
            places,
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
            mtu: 1280,
            client_to_client: false,
        };
        std::fs::write(folder.path().join("vpn.toml"), toml::to_string(&config).expect("toml"))
            .expect("config");
        let world = Self {
            name,
            folder,
            publisher,
            announcing,
            process: None,
            generation: 0,
            networks: vec![],
            clients: vec![],
        };
        let (host, router) = (world.host(), world.router());
        sh(&format!(
            "ip netns add {host}; ip netns add {router}; ip -n {host} link set lo up
             nsenter --net=/run/netns/{router} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
             ip -n {host} link add up0 type veth peer name host0 netns {router}
             ip -n {host} addr add {HOST}/24 dev up0; ip -n {router} addr add 203.0.113.254/24 dev host0
             ip -n {host} link set up0 up; ip -n {router} link set host0 up
             ip -n {host} route add default via 203.0.113.254"
        ));
        world
    }

    pub fn host(&self) -> String {
        format!("{}-host", self.name)
    }

    pub fn router(&self) -> String {
        format!("{}-net", self.name)
    }

    /// A namespace for a network, with this address in it as a VM's. Its TUN comes with vpn's process.
    pub fn network(&mut self, vpc: &VpcId, address: Ipv4Addr) -> String {
        let namespace = format!("{}-vpc{}", self.name, self.networks.len());
        sh(&format!(
            "ip netns add {namespace}; ip -n {namespace} link set lo up; ip -n {namespace} addr add {address}/32 dev lo"
        ));
        self.networks.push((vpc.clone(), namespace.clone()));
        namespace
    }

    pub fn publish(&mut self, sessions: Vec<SessionEntry>) {
        self.generation += 1;
        let view = VpnView { generation: Generation(self.generation), ..super::view(sessions) };
        self.publisher.publish(&view, None).expect("published");
    }

    /// What the process tells of its sessions.
    pub async fn sessions(&self, vpc: Option<&VpcId>) -> Vec<SessionStatus> {
        let client = VpnClient::new(self.folder.path().join("run/vpn/vpn.sock"));
        client.sessions(vpc).await.expect("answers")
    }

    /// What the process tells who gathers figures.
    pub async fn figures(&self) -> String {
        let path = self.folder.path().join("run/vpn/figures.sock");
        feed::figures::ask(&path, "gatehouse_vpn_").await.expect("answers").text()
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("vpn.log")
    }

    /// Starts vpn's process and waits until each network's TUN is there and up.
    pub fn start(&mut self) {
        self.launch();
        for (_, namespace) in self.networks.clone() {
            self.bring_up(&namespace);
        }
    }

    /// Starts it, and waits for nothing.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "one at a time");
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("log");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.host())).arg(env!("CARGO_BIN_EXE_vpn"));
        command.arg("--config").arg(self.folder.path().join("vpn.toml"));
        for (vpc, namespace) in &self.networks {
            command.arg("--tunnel").arg(format!("{vpc}={namespace}"));
        }
        command.env("RUST_LOG", "debug,boringtun=off").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().expect("starts"));
    }

    /// How many descriptors vpn's process has.
    pub fn descriptors(&self) -> usize {
        let id = self.process.as_ref().expect("runs").id();
        std::fs::read_dir(format!("/proc/{id}/fd")).expect("it runs").count()
    }

    /// What vpc would do with a TUN: up, and the clients' addresses behind it.
    pub fn bring_up(&self, namespace: &str) {
        let set = format!(
            "ip -n {namespace} link set gtun0 mtu 1280 up && ip -n {namespace} route replace 100.96.0.0/16 dev gtun0"
        );
        self.eventually("the TUN is there", || succeeds(&set));
    }

    pub fn eventually(&self, what: &str, mut check: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !check() {
            assert!(
                begun.elapsed() < PATIENCE,
                "{what}: {}",
                std::fs::read_to_string(self.log()).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, and what was counted.
    pub fn stop(&mut self) -> String {
        let mut process = self.process.take().expect("runs");
        let id = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("told");
        assert!(process.wait().expect("ended").success());
        let log = std::fs::read_to_string(self.log()).expect("log");
        log.lines().rfind(|line| line.contains("ended")).expect("it says so").to_owned()
    }

    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("runs");
        process.kill().expect("killed");
        process.wait().expect("ended");
    }

    /// A client with the file that the product hands out, connected or not yet.
    pub fn client(&mut self, number: u16, vpc_range: &str) -> RealClient {
        let place = self.clients.len() + 1;
        let (namespace, router) = (format!("{}-c{place}", self.name), self.router());
        let device = format!("{}c{place}", self.name);
        sh(&format!(
            "ip netns add {namespace}; ip -n {namespace} link set lo up
             ip -n {namespace} link add eth0 type veth peer name c{place} netns {router}
             ip -n {namespace} addr add 198.51.{place}.2/24 dev eth0; ip -n {router} addr add 198.51.{place}.1/24 dev c{place}
             ip -n {namespace} link set eth0 up; ip -n {router} link set c{place} up
             ip -n {namespace} route add default via 198.51.{place}.1"
        ));
        let config = self.folder.path().join(format!("{device}.conf"));
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = {}/32\nMTU = 1280\n\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = {vpc_range}\nEndpoint = {HOST}:{PORT}\nPersistentKeepalive = 25\n",
            base64(super::private(number)),
            super::address(number),
            public(SERVER),
        );
        std::fs::write(&config, text).expect("written");
        std::fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("private");
        let client = RealClient { namespace, device, config };
        self.clients.push(client.clone());
        client
    }

    /// Adds a preshared key to a client's file.
    pub fn preshare(&self, client: &RealClient, key: [u8; 32]) {
        let text = std::fs::read_to_string(&client.config).expect("read");
        std::fs::write(
            &client.config,
            text.replace("AllowedIPs", &format!("PresharedKey = {}\nAllowedIPs", base64(key))),
        )
        .expect("written");
    }
}

impl RealClient {
    pub fn up(&self) {
        let (namespace, config) = (&self.namespace, self.config.display());
        // Its sockets of the user's interface lie in one folder for all namespaces; devices have names of their own.
        sh(&format!(
            "nsenter --net=/run/netns/{namespace} env WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go \
             WG_ENDPOINT_RESOLUTION_RETRIES=1 wg-quick up {config} >/dev/null 2>&1 || exit 9"
        ));
    }

    pub fn down(&self) {
        let (namespace, config) = (&self.namespace, self.config.display());
        sh(&format!("nsenter --net=/run/netns/{namespace} wg-quick down {config} >/dev/null 2>&1"));
    }

    pub fn config(&self) -> &std::path::Path {
        &self.config
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    pub fn pings(&self, to: Ipv4Addr) -> bool {
        succeeds(&format!("nsenter --net=/run/netns/{} ping -c1 -W1 {to}", self.namespace))
    }

    pub fn set_address(&self, from: &str, to: &str) {
        let namespace = &self.namespace;
        sh(&format!(
            "ip -n {namespace} addr del {from}/24 dev eth0; ip -n {namespace} addr add {to}/24 dev eth0
             ip -n {namespace} route replace default via {}",
            to.rsplit_once('.').map(|(start, _)| format!("{start}.1")).expect("an address")
        ));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.log()).unwrap_or_default());
        }
        self.announcing.abort();
        if self.process.is_some() {
            self.kill();
        }
        for client in &self.clients {
            // wireguard-go ends when its socket goes.
            let socket = PathBuf::from("/var/run/wireguard").join(format!("{}.sock", client.device));
            drop(std::fs::remove_file(socket));
        }
        let mut namespaces: Vec<String> = self.networks.iter().map(|(_, name)| name.clone()).collect();
        namespaces.extend(self.clients.iter().map(|client| client.namespace.clone()));
        namespaces.extend([self.host(), self.router()]);
        for namespace in namespaces {
            succeeds(&format!("ip netns del {namespace}"));
        }
    }
}

/// Sends so many bytes of a pattern both ways over one TCP connection, and checks each.
pub fn transfer(server: (&str, Ipv4Addr), client: &str, bytes: usize) -> Duration {
    let at = SocketAddr::from((server.1, 9000));
    let listener = inside(server.0, move || TcpListener::bind(at).expect("bound")).join().expect("bound");
    let serving = inside(server.0, move || {
        let (stream, from) = listener.accept().expect("accepted");
        both_ways(stream, bytes);
        from
    });
    let begun = Instant::now();
    let calling = inside(client, move || {
        let stream = TcpStream::connect_timeout(&at, PATIENCE).expect("connected");
        both_ways(stream, bytes);
    });
    calling.join().expect("called");
    serving.join().expect("served");
    begun.elapsed()
}

fn both_ways(stream: TcpStream, bytes: usize) {
    use std::io::{Read, Write};
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut writing = stream.try_clone().expect("cloned");
    let writer = std::thread::spawn(move || {
        let block: Vec<u8> = (0..65_521u32).map(|n| (n % 251) as u8).collect();
        let mut left = bytes;
        while left > 0 {
            let now = left.min(block.len());
            writing.write_all(&block[..now]).expect("written");
            left -= now;
        }
    });
    let (mut reading, mut got) = (stream, 0);
    let mut block = vec![0; 65_536];
    while got < bytes {
        let now = reading.read(&mut block).expect("read");
        assert!(now > 0, "cut at {got}");
        for (place, byte) in block[..now].iter().enumerate() {
            assert_eq!(*byte, ((got + place) % 65_521 % 251) as u8, "at {}", got + place);
        }
        got += now;
    }
    writer.join().expect("written");
}
