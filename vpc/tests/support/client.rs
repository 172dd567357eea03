//! VPN clients: network stacks of their own, whose packets are carried to and from a network's TUN, as vpn carries them
//! once they are out of their tunnels; and services, which are namespaces.

use super::guest::carry;
use super::{PATIENCE, World, clean, sh, within};
use model::id::{Generation, ServiceId, VpcId};
use model::net::MacAddress;
use model::view::{ClientsEntry, PeeringEntry, ServiceEntry};
use std::io::{ErrorKind, PipeWriter};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::Instant;
use vpc::client::VpcError;
use vpc::sys::tun;

/// Where clients' addresses come from.
pub const POOL: &str = "100.96.0.0/16";
/// A client's.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 2);

/// Opens a device that was just made. A program that another test starts meanwhile has it too until it is executed, and
/// nothing tells when that is.
fn open_free(name: &str) -> OwnedFd {
    let begin = Instant::now();
    loop {
        match tun::open_clients(name) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && begin.elapsed() < PATIENCE => {
                std::thread::yield_now();
            }
            opened => return opened.expect("free"),
        }
    }
}

pub struct Client {
    pub namespace: String,
    stop: Option<PipeWriter>,
    carrying: Option<JoinHandle<()>>,
}

impl Client {
    /// A client whose device takes packets of 1500 bytes, larger than its tunnel does.
    pub async fn connect(world: &World, tun: OwnedFd, name: &str) -> Self {
        let namespace = format!("{}-gc{name}", world.prefix);
        sh(&format!("ip netns add {namespace}"));
        let nic = within(&namespace, || {
            tun::make_clients("wg0").expect("a device");
            open_free("wg0")
        })
        .await;
        sh(&format!(
            "n=\"ip -n {namespace}\"; $n link set lo up; $n link set wg0 up
             $n addr add {CLIENT}/32 dev wg0; $n route add default dev wg0"
        ));
        let (stopped, stop) = std::io::pipe().expect("pipe");
        let carrying = std::thread::spawn(move || carry(&[tun], &nic, stopped.as_fd(), |_| {}));
        Self { namespace, stop: Some(stop), carrying: Some(carrying) }
    }

    /// Lets the TUN go.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(carrying) = self.carrying.take() {
            carrying.join().expect("carried well");
        }
    }

    /// Runs a closure at the client.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        within(&self.namespace, work).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
        clean(&format!("ip netns del {}", self.namespace));
    }
}

/// Clients of a network.
pub fn clients(hidden_behind: Option<Ipv4Addr>) -> Option<ClientsEntry> {
    Some(ClientsEntry { pool: POOL.parse().expect("pool"), mtu: 1280, hidden_behind })
}

/// A service of this number with this address.
pub fn service(number: u8, ipv4: [u8; 4], names: &[&str]) -> ServiceEntry {
    let ipv4 = Ipv4Addr::from(ipv4);
    ServiceEntry {
        id: ServiceId::from_random([number; 20]),
        mac: MacAddress::of_ipv4(ipv4),
        ipv4,
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// A peering of this number with the network of that one.
pub fn peering(number: u8, other: u8, range: &str) -> PeeringEntry {
    PeeringEntry {
        id: model::id::PeeringId::from_random([number; 20]),
        vpc: VpcId::from_random([other; 20]),
        range: range.parse().expect("range"),
    }
}

/// A namespace for a service.
pub struct Place(pub String);

impl Place {
    pub fn new(world: &World, name: &str) -> Self {
        let namespace = format!("{}-gs{name}", world.prefix);
        sh(&format!("ip netns add {namespace}; ip -n {namespace} link set lo up"));
        Self(namespace)
    }

    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        within(&self.0, work).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        clean(&format!("test ! -e /run/netns/{0} || ip netns del {0}", self.0));
    }
}

impl World {
    /// The TUN of a network.
    pub async fn tun(&self, vpc: &VpcId) -> Result<OwnedFd, VpcError> {
        let (socket, vpc) = (self.places().vpc_socket(), vpc.clone());
        tokio::task::spawn_blocking(move || vpc::client::tun(&socket, &vpc)).await.expect("asked")
    }

    /// Has a service join from a namespace.
    pub async fn join(&self, service: &ServiceId, namespace: &str) -> Result<(), VpcError> {
        let (socket, service) = (self.places().vpc_socket(), service.clone());
        let place = std::fs::File::open(format!("/run/netns/{namespace}")).expect("namespace");
        let generation = Generation(self.generation);
        let asked = tokio::task::spawn_blocking(move || {
            vpc::client::join(&socket, &service, generation, place.as_fd())
        });
        asked.await.expect("asked")?;
        self.carriers();
        Ok(())
    }

    /// Waits until each link that is up has its carrier, which the kernel notes a moment later: a packet before it is lost,
    /// and a ping is not sent again.
    pub fn carriers(&self) {
        drop(self.kernel_state());
    }

    /// A counter of a private network's rules.
    pub fn refused(&self, vpc: &VpcId, counter: &str) -> u64 {
        self.counter(&self.private(vpc), "inet", vpc::pure::names::TABLE, counter)
    }
}
