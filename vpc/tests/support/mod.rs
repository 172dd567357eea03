//! A world for tests: a "host" and an "Internet", each a network namespace, and guests, each a kernel of its own in a
//! namespace, whose NIC is joined to vpc's TAP as a VM's process would join it. Needs root.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod client;
pub mod guest;
pub mod servers;

use feed::publish::Publisher;
use model::config::{Places, VpcConfig};
use model::id::{Generation, VmId, VpcId};
use model::net::{Ipv4Cidr, MacAddress};
use model::view::{NetworkEntry, PortEntry, VIEW_VERSION, View, VpcView};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vpc::client::{VpcClient, VpcError, VpcStatus};
use vpc::pure::names::TABLE;

/// The host's public address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The Internet's router, on the host's uplink.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A server somewhere in the Internet.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// A name server there.
pub const DNS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
/// A machine with a private address that the host can reach.
pub const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// A cloud's metadata service that the host can reach.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The user of vpn.
pub const VPN_USER: u32 = 64_502;
pub const SSH_USER: u32 = 64_503;

/// Longest that anything in a test is waited for; the machine may be busy, or emulated.
pub const PATIENCE: Duration = Duration::from_secs(120);

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// vpc's view, as a newer control may write it.
struct RawView(serde_json::Value, Generation);

impl serde::Serialize for RawView {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for RawView {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(serde_json::Value::deserialize(deserializer)?, Generation::default()))
    }
}

impl View for RawView {
    const NAME: &'static str = VpcView::NAME;
    fn version(&self) -> u32 {
        VIEW_VERSION
    }
    fn generation(&self) -> Generation {
        self.1
    }
    fn rejected(&self) -> usize {
        0
    }
}

pub struct World {
    pub prefix: String,
    pub folder: TempDir,
    pub publisher: Publisher,
    announcing: tokio::task::JoinHandle<()>,
    pub process: Option<Child>,
    pub generation: u64,
    /// Private networks, from the next view on.
    pub networks: Vec<NetworkEntry>,
    /// Whether flows are logged, from the next start on.
    pub flow_log: bool,
}

impl World {
    /// A host and an Internet, and no vpc yet. Must be called inside a tokio runtime.
    pub fn new() -> Self {
        // Four characters that no other test of this machine has now: process and count.
        let number = std::process::id() % 1296 * 36 + WORLDS.fetch_add(1, Ordering::SeqCst) % 36;
        let digit = |value: u32| char::from_digit(value % 36, 36).expect("a digit");
        let prefix: String = ['x', digit(number / 1296), digit(number / 36), digit(number)].iter().collect();
        let folder = tempfile::Builder::new().prefix("vpc").tempdir().expect("folder");
        let places = Places { data: folder.path().join("data"), run: folder.path().join("run") };
        std::fs::create_dir_all(&places.run).expect("folder");
        let publisher = Publisher::new(&places.feed()).expect("publisher");
        let announcing = tokio::spawn({
            let (publisher, socket) = (publisher.clone(), places.feed_socket());
            async move { publisher.announce(&socket).await.expect("announces") }
        });
        let world = Self {
            prefix,
            folder,
            publisher,
            announcing,
            process: None,
            generation: 0,
            networks: vec![],
            flow_log: false,
        };
        world.build();
        world
    }

    /// From the next start on, flows are logged.
    pub fn log_flows(&mut self) {
        self.flow_log = true;
        self.configure();
    }

    /// A world with vpc running and these guests' ports.
    pub async fn with_ports(ports: Vec<PortEntry>) -> Self {
        Self::with_networks(ports, vec![]).await
    }

    /// The same, with private networks beside the default one.
    pub async fn with_networks(ports: Vec<PortEntry>, networks: Vec<NetworkEntry>) -> Self {
        let mut world = Self::new();
        world.networks = networks;
        world.publish(ports);
        world.start(&[]);
        world.settled().await;
        world
    }

    fn build(&self) {
        let (host, internet) = (self.host(), self.internet());
        sh(&format!(
            "ip netns add {host}; ip netns add {internet}; ip -n {host} link set lo up; ip -n {internet} link set lo up
             for n in {host} {internet}; do nsenter --net=/run/netns/$n sh -c \
                'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6'
             done
             ip -n {host} link add eth0 type veth peer name eth0 netns {internet}
             ip -n {host} addr add {HOST}/24 dev eth0; ip -n {internet} addr add {ROUTER}/24 dev eth0
             ip -n {host} addr add 192.168.50.1/32 dev lo
             ip -n {host} link set eth0 up; ip -n {internet} link set eth0 up
             ip -n {host} route add default via {ROUTER}
             for a in {SERVER} {DNS} {PRIVATE} {METADATA}; do ip -n {internet} addr add $a/32 dev lo; done"
        ));
        self.configure();
    }

    fn configure(&self) {
        let config = VpcConfig {
            places: self.places(),
            prefix: self.prefix.clone(),
            allowed_uids: vec![64_501],
            vpn_uid: Some(VPN_USER),
            ssh_uid: Some(SSH_USER),
            flow_log: self.flow_log,
            upstream_dns: vec![SocketAddr::from((DNS, 53))],
        };
        std::fs::write(self.config(), toml::to_string(&config).expect("toml")).expect("config");
    }

    pub fn places(&self) -> Places {
        Places { data: self.folder.path().join("data"), run: self.folder.path().join("run") }
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("vpc.toml")
    }

    pub fn host(&self) -> String {
        format!("{}-host", self.prefix)
    }

    pub fn internet(&self) -> String {
        format!("{}-internet", self.prefix)
    }

    pub fn network(&self) -> String {
        format!("{}-default", self.prefix)
    }

    /// The namespace of a private network.
    pub fn private(&self, vpc: &VpcId) -> String {
        format!("{}-{vpc}", self.prefix)
    }

    pub fn client(&self) -> VpcClient {
        VpcClient::new(self.places().vpc_socket())
    }

    /// Publishes a view with these ports.
    pub fn publish(&mut self, ports: Vec<PortEntry>) {
        self.generation += 1;
        self.publisher.publish(&self.view(ports), None).expect("published");
    }

    /// The next view as it stands in its file, to be changed and published.
    pub fn view_of(&mut self, ports: Vec<PortEntry>) -> serde_json::Value {
        self.generation += 1;
        serde_json::to_value(self.view(ports)).expect("a view")
    }

    /// Publishes what may have entries that this build cannot read.
    pub fn publish_raw(&self, view: serde_json::Value) {
        self.publisher.publish(&RawView(view, Generation(self.generation)), None).expect("published");
    }

    fn view(&self, ports: Vec<PortEntry>) -> VpcView {
        VpcView {
            version: VIEW_VERSION,
            generation: Generation(self.generation),
            default_network: network_range(),
            ports: ports.into(),
            networks: self.networks.clone().into(),
        }
    }

    /// Runs vpc in the host's namespace to its end.
    pub fn run(&self, arguments: &[&str]) -> std::process::ExitStatus {
        self.command(arguments).spawn().expect("starts").wait().expect("ends")
    }

    /// Starts vpc in the host's namespace.
    pub fn start(&mut self, arguments: &[&str]) {
        assert!(self.process.is_none(), "one at a time");
        self.process = Some(self.command(arguments).spawn().expect("starts"));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let log = File::options().create(true).append(true).open(self.log()).expect("log");
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.host()))
            .arg(env!("CARGO_BIN_EXE_vpc"))
            .arg("--config")
            .arg(self.config())
            .args(arguments)
            .env("RUST_LOG", "debug,rtnetlink=info,netlink_proto=info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("vpc.log")
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("runs");
        process.kill().expect("killed");
        process.wait().expect("ended");
    }

    /// The keeper of this world, by its command line.
    pub fn keeper(&self) -> rustix::process::Pid {
        let config = self.config();
        let (config, mut found) = (config.to_str().expect("text").as_bytes().to_vec(), Vec::new());
        for entry in std::fs::read_dir("/proc").expect("mounted") {
            let path = entry.expect("readable").path();
            // Processes come and go while we look.
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            if words.contains(&&config[..]) && words.contains(&&b"--keeper"[..]) {
                found.push(path.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number"));
            }
        }
        assert_eq!(found.len(), 1, "one keeper");
        rustix::process::Pid::from_raw(found[0]).expect("a process")
    }

    /// The TAP of the VM whose address ends in `last`, as its process would ask for it.
    pub async fn tap(&self, last: u8) -> Result<Vec<OwnedFd>, VpcError> {
        self.tap_of(&port(last, 1, &[]).vm).await
    }

    /// The TAP of a VM.
    pub async fn tap_of(&self, vm: &VmId) -> Result<Vec<OwnedFd>, VpcError> {
        let (socket, vm) = (self.places().vpc_socket(), vm.clone());
        let generation = Generation(self.generation);
        tokio::task::spawn_blocking(move || vpc::client::tap(&socket, &vm, generation)).await.expect("asked")
    }

    /// Waits until the newest view is in force.
    pub async fn settled(&self) -> VpcStatus {
        let begun = Instant::now();
        loop {
            match self.client().status().await {
                Ok(status) if status.generation == Generation(self.generation) => return status,
                last => assert!(begun.elapsed() < PATIENCE, "not settled: {last:?}\n{}", self.tail()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A counter of the rules; `family` and table say which.
    pub fn counter(&self, namespace: &str, family: &str, table: &str, name: &str) -> u64 {
        let text =
            sh(&format!("nsenter --net=/run/netns/{namespace} nft list counter {family} {table} {name}"));
        let after = text.split("packets ").nth(1).unwrap_or_else(|| panic!("no counter in {text}"));
        after.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
    }

    pub fn port_counter(&self, name: &str) -> u64 {
        self.counter(&self.network(), "netdev", TABLE, name)
    }

    pub fn network_counter(&self, name: &str) -> u64 {
        self.counter(&self.network(), "inet", TABLE, name)
    }

    pub fn host_counter(&self, name: &str) -> u64 {
        self.counter(&self.host(), "inet", &format!("{}_host", self.prefix), name)
    }

    /// All that vpc made in the kernel, as text without numbers that differ from one making to the next.
    pub fn kernel_state(&self) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let text = self.kernel_text();
            // The kernel notes a moment after both ends of a link are up that it has a carrier.
            let waits = |line: &str| line.contains(" veth ") && line.contains("NO-CARRIER");
            if !text.lines().any(waits) || begun.elapsed() > PATIENCE {
                // Whose flows are counted, and who was heard to speak IPv6, is the traffic's doing and not vpc's.
                let by_traffic = |line: &&str| {
                    let line = line.trim_start().trim_start_matches("elements = { ");
                    !line.starts_with("0x") && !line.starts_with("fd")
                };
                let mut lines: Vec<String> = text.lines().filter(by_traffic).map(settle).collect();
                lines.sort();
                return lines;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kernel_text(&self) -> String {
        let prefix = &self.prefix;
        sh(&format!(
            "all=$(ip netns | sed 's/ .*//' | grep ^{prefix}- | grep -v -e ^{prefix}-g -e -internet); echo $all | tr ' ' '\\n'
             for n in $all; do echo \"namespace $n\"
             ip -n $n -d -o link; ip -n $n -o addr; ip -n $n route show table all; ip -n $n neigh show nud permanent
             nsenter --net=/run/netns/$n nft -s list ruleset
             nsenter --net=/run/netns/$n sh -c 'cd /proc/sys/net/ipv4 && grep -H . ip_forward conf/*/rp_filter \
                conf/*/proxy_arp conf/*/accept_redirects neigh/*/proxy_delay'
             done; ls /run/netns | grep ^{prefix}-vpc || true"
        ))
    }

    /// The end of vpc's log.
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of vpc's log\n{}", self.tail());
        }
        if let Some(mut process) = self.process.take() {
            process.kill().expect("killed");
            process.wait().expect("ended");
        }
        self.run(&["--teardown"]);
        self.announcing.abort();
        for namespace in [self.host(), self.internet()] {
            clean(&format!("ip netns del {namespace}"));
        }
    }
}

/// Cleans up; a failure is told and not thrown, since the test may be failing already.
pub fn clean(text: &str) {
    match Command::new("sh").arg("-ec").arg(text).status() {
        Ok(status) if status.success() => {}
        other => eprintln!("{text}: {other:?}"),
    }
}

/// Compares two states of the kernel and shows only what differs.
pub fn assert_same(now: &[String], expected: &[String], when: &str) {
    let more = |left: &[String], right: &[String]| {
        let mut right = right.to_vec();
        let only: Vec<String> = left
            .iter()
            .filter(|line| match right.iter().position(|other| other == *line) {
                Some(at) => {
                    right.swap_remove(at);
                    false
                }
                None => true,
            })
            .cloned()
            .collect();
        only
    };
    assert!(
        now == expected,
        "{when}:\ntoo much: {:#?}\nmissing: {:#?}",
        more(now, expected),
        more(expected, now)
    );
}

/// Strips what differs from one making to the next: device numbers, veth's random addresses, and times.
fn settle(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    if words.first().is_some_and(|word| word.trim_end_matches(':').parse::<u32>().is_ok()) {
        words.remove(0);
    }
    let veth = line.contains(" veth ");
    if let Some(at) = words.iter().position(|word| *word == "link/ether").filter(|_| veth) {
        words.remove(at + 1);
    }
    // A TAP that was without a holder for a moment says UP from then on, and one that never was, UNKNOWN.
    let text = words.join(" ").replace("state UNKNOWN", "state UP");
    let cut = text.split("@if").collect::<Vec<_>>();
    match cut.as_slice() {
        [one] => (*one).to_owned(),
        [before, after] => {
            format!("{before}@ {}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        _ => text,
    }
}

pub fn network_range() -> Ipv4Cidr {
    "10.201.0.0/24".parse().expect("range")
}

/// A port of a VM whose address ends in `last`.
pub fn port(last: u8, queues: u8, dialable: &[u16]) -> PortEntry {
    let ipv4 = Ipv4Addr::new(10, 201, 0, last);
    PortEntry {
        vm: VmId::from_random([last; 20]),
        mac: MacAddress::of_ipv4(ipv4),
        ipv4,
        queues,
        dialable: dialable.to_vec(),
        asleep: false,
        names: Vec::new(),
    }
}

/// A private network with these members.
pub fn private(number: u8, range: &str, ports: &[PortEntry]) -> NetworkEntry {
    let (vpc, range) = (VpcId::from_random([number; 20]), range.parse().expect("range"));
    NetworkEntry::of_vms(vpc, range, ports.to_vec())
}

/// A port of a private network, whose VM is in no other one.
pub fn member(network: u8, ipv4: [u8; 4], names: &[&str]) -> PortEntry {
    let ipv4 = Ipv4Addr::from(ipv4);
    let [.., last] = ipv4.octets();
    PortEntry {
        vm: VmId::from_random(std::array::from_fn(|at| if at % 2 == 0 { 20 + network } else { last })),
        mac: MacAddress::of_ipv4(ipv4),
        ipv4,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..port(last, 1, &[8000])
    }
}

/// A permit as edge-proxy gets one: from a route table.
pub fn permit(vm: &VmId, port: u16) -> model::route::Permit {
    use model::route::{Route, RouteTable};
    use model::view::{EdgeView, RouteEntry};
    let host: model::host::HostName = "a.style.dev".parse().expect("host");
    let view = EdgeView {
        version: VIEW_VERSION,
        generation: Generation(1),
        api_hosts: vec![],
        routes: vec![RouteEntry { host: host.clone().into(), vm: vm.clone(), port, run: 1 }].into(),
        gone: Vec::new().into(),
        certificates: Vec::new().into(),
        challenges: Vec::new().into(),
        names: None,
    };
    let Some(Route::Vm(permit)) = RouteTable::of(&view, Vec::new()).host(&host) else { panic!("a route") };
    permit
}

/// Runs a shell text and gives its output; a failure of its last command fails the test.
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

/// Runs a closure on a thread inside a namespace.
pub fn inside<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let file = File::open(format!("/run/netns/{namespace}")).expect("namespace");
    std::thread::spawn(move || {
        vpc::sys::namespace::enter(&file).expect("entered");
        work()
    })
}

/// The same, and waits for its result.
pub async fn within<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = inside(namespace, work);
    tokio::task::spawn_blocking(move || thread.join()).await.expect("joined").expect("the closure holds")
}
