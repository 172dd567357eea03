//! The flow log: one line of JSON for each flow that ended and for the refused packets of ten seconds that are alike, of
//! every network.
//!
//! ```text
//!   kernel ─ ended flows, refused packets ─► a network's task: pure::flow, who was it, which rules ─► writer ─► files
//! ```
//! It follows what happens and holds up nothing: the kernel drops what is not read in time, a full queue drops lines, and
//! both are said in a line of their own. What ends while vpc is not there, or together with its network, is not told.

pub mod listen;

use crate::flowlog::listen::{Ear, ListenError};
use crate::io::namespace::Inside;
use crate::io::nft::{self, Where};
use crate::pure::bucket::{Allowance, Bucket};
use crate::pure::flow::{Ends, Flow, Line, REFUSALS_EVERY_SECONDS, Rows, What, ended, ipv4_of, refused};
use crate::pure::names::{DeviceName, NetworkId};
use crate::pure::netlink::messages;
use crate::pure::rules::{Logged, log_probe};
use crate::pure::wanted::MAX_PORTS;
use crate::switch::{LiveNetwork, Switch};
use crate::tasks::each_network;
use feed::lines::Writer;
use model::id::VmId;
use model::net::Ula;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

/// Lines of one network: in the long run some 10 MiB a minute, so that a guest that knocks everywhere does not push what
/// is told of others out of the files at once.
const ALLOWANCE: Allowance = Allowance { per_second: 500, burst: 10_000 };
/// Pause after the kernel could not be listened to.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the log.
#[derive(Debug)]
pub struct FlowLog {
    switch: Switch,
    writer: Writer,
    logged: Logged,
}

/// What one network's task has in hand.
struct Scribe {
    switch: Switch,
    writer: Writer,
    network: NetworkId,
    name: String,
    /// VMs by address, those that left too: the ends of their flows are told after they left.
    vms: HashMap<Ipv4Addr, VmId>,
    seen: Option<Arc<HashMap<Ipv4Addr, VmId>>>,
    /// What the IPv6 addresses of its members are made of.
    ula: Option<Ula>,
    rows: Rows,
    bucket: Bucket,
    lines_lost: u64,
    overflows: u64,
}

/// What can be told of, if anything is wanted. Said once here when it is not all.
pub async fn possible(wanted: bool) -> Logged {
    if !wanted {
        return Logged::No;
    }
    match nft::check(Where::Host, log_probe()).await {
        Ok(()) => Logged::All,
        Err(error) => {
            warn!(%error, "the kernel cannot tell of refused packets (module nfnetlink_log); counters have them");
            Logged::Flows
        }
    }
}

impl FlowLog {
    /// A log of all networks of the switch.
    #[must_use]
    pub fn new(switch: Switch, writer: Writer, logged: Logged) -> Self {
        Self { switch, writer, logged }
    }

    /// Keeps it for ever. Waits for ever when nothing is to be logged.
    pub async fn run(self) {
        if self.logged == Logged::No {
            return std::future::pending().await;
        }
        each_network(&self.switch, |network, sockets| self.begin(network, sockets)).await;
    }

    fn begin(&self, network: &NetworkId, sockets: Inside) -> impl Future<Output = ()> + Send + use<> {
        let scribe = Scribe {
            switch: self.switch.clone(),
            writer: self.writer.clone(),
            name: network.to_string(),
            network: network.clone(),
            vms: HashMap::new(),
            seen: None,
            ula: None,
            rows: Rows::default(),
            bucket: Bucket::full(ALLOWANCE, Instant::now()),
            lines_lost: 0,
            overflows: 0,
        };
        scribe.run(sockets, self.logged)
    }
}

impl Scribe {
    async fn run(mut self, sockets: Inside, logged: Logged) {
        loop {
            if let Err(error) = self.listen(&sockets, logged).await {
                warn!(network = %self.network, %error, "flows cannot be logged; trying again");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn listen(&mut self, sockets: &Inside, logged: Logged) -> Result<(), ListenError> {
        let mut ends = listen::to_ends(sockets).await?;
        let mut refusals = match logged {
            Logged::All => Some(listen::to_refusals(sockets).await?),
            Logged::Flows | Logged::No => None,
        };
        info!(network = %self.network, "flows are logged");
        let mut ticks = interval(Duration::from_secs(REFUSALS_EVERY_SECONDS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let heard = tokio::select! {
                heard = ends.hear() => heard?,
                heard = hear_if(refusals.as_mut()) => heard?,
                _ = ticks.tick() => {
                    self.write_refusals();
                    continue;
                }
            };
            match heard {
                Some(bytes) => self.read(bytes),
                None => self.overflows += 1,
            }
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let now_ms = now_ms();
        let table = self.switch.table();
        let Some(network) = table.networks.get(&self.network) else { return };
        self.look_who_is_there(network);
        for message in messages(bytes) {
            if let Some(mut flow) = ended(&message) {
                flow.end_ms = flow.end_ms.or(Some(now_ms));
                self.write_flow(network, flow);
            } else if let Some(refusal) = refused(&message)
                && !self.rows.add(refusal, now_ms)
            {
                self.lines_lost += 1;
            }
        }
    }

    fn look_who_is_there(&mut self, network: &LiveNetwork) {
        if self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &network.vms)) {
            return;
        }
        if self.vms.len() >= 2 * MAX_PORTS {
            self.vms.clear();
        }
        self.vms.extend(network.vms.iter().map(|(address, vm)| (*address, vm.clone())));
        self.seen = Some(Arc::clone(&network.vms));
        self.ula = network.ula;
    }

    fn write_flow(&mut self, network: &LiveNetwork, flow: Flow) {
        let connection = flow.ends.connection(network.ula);
        let rules = connection
            .map(|connection| network.firewall.allowed_by(network.range, connection))
            .unwrap_or_default();
        self.write(Some(flow.ends), None, What::Accept { flow, rules });
    }

    fn write_refusals(&mut self) {
        for refusals in self.rows.take() {
            let sender = refusals.device.as_ref();
            let sender = sender.and_then(|device| self.vms.values().find(|vm| DeviceName::of(vm) == *device));
            let sender = sender.cloned();
            self.write(Some(refusals.ends), sender, What::Drop { refusals: &refusals });
        }
        let (lines, overflows) = (self.lines_lost, self.overflows);
        if lines > 0 || overflows > 0 {
            (self.lines_lost, self.overflows) = (0, 0);
            let line = Line {
                network: &self.name,
                source_vm: None,
                destination_vm: None,
                what: What::Lost { end_ms: now_ms(), lines, overflows },
            };
            if !self.writer.write(&line) {
                (self.lines_lost, self.overflows) = (lines, overflows);
            }
        }
    }

    /// Writes a line. `sender` is whose packets these were, when their source is a lie.
    fn write(&mut self, ends: Option<Ends>, sender: Option<VmId>, what: What<'_>) {
        let vm = |address: Option<IpAddr>| self.vms.get(&ipv4_of(address?, self.ula)?);
        let line = Line {
            network: &self.name,
            source_vm: sender.as_ref().or_else(|| vm(ends.map(|ends| ends.source))),
            destination_vm: vm(ends.map(|ends| ends.destination)),
            what,
        };
        if !self.bucket.take(ALLOWANCE, Instant::now()) || !self.writer.write(&line) {
            self.lines_lost += 1;
        }
    }
}

async fn hear_if(ear: Option<&mut Ear>) -> Result<Option<&[u8]>, ListenError> {
    match ear {
        Some(ear) => ear.hear().await,
        None => std::future::pending().await,
    }
}

/// Milliseconds since 1970 UTC.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
