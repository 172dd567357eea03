//! Answers guests that ask for their address by DHCP (see [`crate::pure::dhcp`]), in every network.
//!
//! The port's chain lets a frame without an address pass only with the port's own Ethernet address, in the frame and in the
//! message, and only a few a second (see [`crate::pure::rules`]). So the message says which port asks.

use crate::io::namespace::Inside;
use crate::pure::dhcp::{CLIENT_PORT, MAX_BYTES, Question, SERVER_PORT, To, Unanswered, read};
use crate::pure::names::{DeviceName, NetworkId};
use crate::pure::wanted::Port;
use crate::switch::Switch;
use crate::tasks::each_network;
use model::id::VmId;
use model::net::{GATEWAY_IPV4, MacAddress};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tracing::{debug, info, warn};

/// Pause after a socket failed.
const RETRY: Duration = Duration::from_secs(1);

/// Serves all networks.
#[derive(Debug)]
pub struct Dhcp {
    switch: Switch,
}

/// What one network's task has in hand.
struct Service {
    switch: Switch,
    network: NetworkId,
    /// The ports by Ethernet address, and the list of VMs of which that was made.
    macs: HashMap<MacAddress, VmId>,
    made_of: Option<Arc<HashMap<Ipv4Addr, VmId>>>,
    /// Messages without an answer, by reason.
    unanswered: BTreeMap<Unanswered, u64>,
}

/// Whom to answer, and what.
struct Answer {
    bytes: Vec<u8>,
    to: To,
    device: DeviceName,
    ipv4: Ipv4Addr,
}

impl Dhcp {
    /// Serves the guests of this switch.
    #[must_use]
    pub fn new(switch: Switch) -> Self {
        Self { switch }
    }

    /// Serves for ever.
    pub async fn run(self) {
        each_network(&self.switch, |network, sockets| self.begin(network, sockets)).await;
    }

    fn begin(&self, network: &NetworkId, sockets: Inside) -> impl Future<Output = ()> + Send + use<> {
        let service = Service {
            switch: self.switch.clone(),
            network: network.clone(),
            macs: HashMap::new(),
            made_of: None,
            unanswered: BTreeMap::new(),
        };
        service.run(sockets)
    }
}

impl Service {
    async fn run(mut self, sockets: Inside) {
        loop {
            if let Err(error) = self.serve(&sockets).await {
                warn!(network = %self.network, %error, "guests cannot be told their addresses; trying again");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn serve(&mut self, sockets: &Inside) -> io::Result<()> {
        let socket = sockets.run(listening).await.map_err(io::Error::other)??;
        let socket = UdpSocket::from_std(socket.into())?;
        info!(network = %self.network, "telling guests their addresses");
        let mut bytes = [0; MAX_BYTES];
        loop {
            let (length, from) = match socket.recv_from(&mut bytes).await {
                Ok(received) => received,
                // An ICMP error about an earlier answer.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
            };
            let IpAddr::V4(from) = from.ip() else { continue };
            let message = bytes.get(..length).unwrap_or_default();
            let answer = match read(message).and_then(|question| self.answer(from, &question)) {
                Ok(answer) => answer,
                Err(why) => {
                    let count = self.unanswered.entry(why).or_default();
                    *count += 1;
                    debug!(network = %self.network, %from, %why, count = *count, "a message of DHCP has no answer");
                    continue;
                }
            };
            let sent = match answer.to {
                To::Port => socket.send_to(&answer.bytes, (answer.ipv4, CLIENT_PORT)).await.map(drop),
                To::Link => {
                    let said = sockets.run(move || broadcast(&answer.device, &answer.bytes)).await;
                    said.map_err(io::Error::other).flatten()
                }
            };
            if let Err(error) = sent {
                debug!(network = %self.network, %error, "an answer of DHCP cannot be sent");
            }
        }
    }

    fn answer(&mut self, from: Ipv4Addr, question: &Question) -> Result<Answer, Unanswered> {
        let port = self.port(from, question.mac).ok_or(Unanswered::Foreign)?;
        let (bytes, to) = question.answer(port.ipv4, matches!(self.network, NetworkId::Private(_)))?;
        Ok(Answer { bytes, to, device: port.device, ipv4: port.ipv4 })
    }

    /// The port that has both addresses; the one alone as long as the guest does not know the other.
    fn port(&mut self, from: Ipv4Addr, mac: MacAddress) -> Option<Port> {
        let table = self.switch.table();
        let network = table.networks.get(&self.network)?;
        if !self.made_of.as_ref().is_some_and(|vms| Arc::ptr_eq(vms, &network.vms)) {
            let ports = network.vms.values().filter_map(|vm| table.ports.get(vm));
            self.macs = ports.map(|live| (live.port.mac, live.port.vm.clone())).collect();
            // Ports that are not in service yet are looked for again.
            let whole = self.macs.len() == network.vms.len();
            self.made_of = whole.then(|| Arc::clone(&network.vms));
        }
        let live = table.ports.get(self.macs.get(&mac)?)?;
        let known = live.network == self.network && (from.is_unspecified() || from == live.port.ipv4);
        known.then(|| live.port.clone())
    }
}

/// For what is sent to the gateway or to everyone, in the calling thread's namespace.
fn listening() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT)).into())?;
    Ok(socket)
}

/// Says it to all on a port's link, in the calling thread's namespace.
fn broadcast(device: &DeviceName, bytes: &[u8]) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(device.as_str().as_bytes()))?;
    socket.bind(&SocketAddr::from((GATEWAY_IPV4, SERVER_PORT)).into())?;
    socket.send_to(bytes, &SocketAddr::from((Ipv4Addr::BROADCAST, CLIENT_PORT)).into()).map(drop)
}
