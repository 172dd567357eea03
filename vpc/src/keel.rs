//! The task that owns all changes: follows the view, brings the kernel to it network by network, and publishes the table.
//!
//! A turn looks only at the networks that the view changed, that are broken, that somebody asked to be looked at, or whose
//! audit is due (see [`crate::line`]), so a change in one costs no pass over all.

use crate::io::uplink::HostTable;
use crate::io::{network, settings};
use crate::keeper::Keeper;
use crate::line::Line;
use crate::pure::names::{DeviceName, Names, NetworkId};
use crate::pure::rules::Logged;
use crate::pure::schedule::AUDIT;
use crate::pure::wanted::{LeftOut, Wanted};
use crate::pure::ways::Peers;
use crate::switch::{LiveNetwork, LivePort, Nudges, Progress, Switch, Table, woke};
use crate::wakes::Wakes;
use arc_swap::ArcSwap;
use feed::subscribe::Feed;
use model::id::{Generation, VpcId};
use model::view::VpcView;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, warn};

/// Longest that a network that stands waits for others before it is in service: at a start, hundreds may be due.
const PUBLISH_WITHIN: Duration = Duration::from_millis(250);

/// Frames of networks that are made side by side. More gain nothing: the kernel makes network devices one at a time.
const FRAMES_AT_ONCE: usize = 8;

/// Rounds of looks in one turn: in the second, networks complete what their peers have made in the first; the third is for
/// what changed meanwhile.
const MAX_ROUNDS: usize = 3;

/// The task that owns all changes.
#[derive(Debug)]
pub struct Keel {
    logged: Logged,
    names: Arc<Names>,
    host: Arc<HostTable>,
    feed: Feed<VpcView>,
    table: Arc<ArcSwap<Table>>,
    progress: watch::Sender<Progress>,
    nudges: Arc<Nudges>,
    wakes: Wakes,
    keeper: Keeper,
    lines: BTreeMap<NetworkId, Line>,
    /// When to look for networks that no view names.
    survey: Instant,
    reported: Vec<LeftOut>,
}

/// Makes both halves. The keeper has the queues that an earlier process left with it; `logged` says whether somebody
/// listens to what the networks tell.
#[must_use]
pub fn new(names: Names, feed: Feed<VpcView>, keeper: Keeper, logged: Logged) -> (Switch, Keel) {
    let table = Arc::new(ArcSwap::from_pointee(Table::default()));
    let (progress, watching) = watch::channel(Progress::default());
    let nudges = Arc::new(Nudges::default());
    let wakes = Wakes::default();
    let switch = Switch::new(Arc::clone(&table), watching, Arc::clone(&nudges), wakes.clone());
    let keel = Keel {
        logged,
        names: Arc::new(names),
        host: Arc::default(),
        feed,
        table,
        progress,
        nudges,
        wakes,
        keeper,
        lines: BTreeMap::new(),
        survey: Instant::now(),
        reported: Vec::new(),
    };
    (switch, keel)
}

impl Keel {
    /// Follows the view until the process ends.
    pub async fn run(mut self) {
        let mut changes = self.feed.changes();
        loop {
            // Marks the newest as seen, so that only a later one wakes us.
            changes.borrow_and_update();
            let again = self.turn().await;
            tokio::select! {
                // The feed lives as long as we do.
                changed = changes.changed() => if changed.is_err() { return },
                () = self.nudges.asked() => {}
                () = tokio::time::sleep_until(again.into()) => {}
            }
        }
    }

    /// Brings the kernel to the view in force. When to look again.
    async fn turn(&mut self) -> Instant {
        let Some(view) = self.feed.current() else { return Instant::now() + AUDIT };
        let wanted = Wanted::of(&view);
        let wanted = if settings::has_ipv6() { wanted } else { wanted.without_ipv6() };
        self.report(&wanted);
        let looked = self.follow(&wanted);
        // What is no longer wanted is no longer handed out, from now on.
        self.publish(wanted.generation, self.table.load().generation);
        self.look_for_strays().await;
        self.let_go_of_the_unwanted(&wanted).await;
        self.keeper.tend().await;
        self.look(wanted.generation).await;
        self.join().await;
        // Without the default network nothing works, and a decision is not in force. A private one that cannot be made is
        // its members' matter, and they are told why.
        let default = self.lines.get(&NetworkId::Default);
        let in_force = default.filter(|line| line.failure().is_none()).map(|_| wanted.generation);
        self.publish(wanted.generation, in_force.unwrap_or(self.table.load().generation));
        self.progress.send_modify(|progress| {
            progress.looked = looked;
            progress.in_force = in_force.or(progress.in_force);
        });
        self.lines.values().map(Line::due).min().map_or(self.survey, |due| due.min(self.survey))
    }

    /// What must be looked at is due from now on. The number of the last look that somebody asked for.
    fn follow(&mut self, wanted: &Wanted) -> u64 {
        let now = Instant::now();
        for id in wanted.networks.keys() {
            self.lines.entry(id.clone()).or_insert_with(|| Line::unwanted(self.logged, now));
        }
        for (id, line) in &mut self.lines {
            line.follow(id, wanted.networks.get(id), now);
        }
        let (asked, last) = self.nudges.take();
        for id in asked {
            if let Some(line) = self.lines.get_mut(&id) {
                line.hurry(now);
            }
        }
        last
    }

    /// Networks that an earlier process made and no view names now get a line, at whose end they are gone.
    async fn look_for_strays(&mut self) {
        let now = Instant::now();
        if now < self.survey {
            return;
        }
        self.survey = now + AUDIT;
        let outcome = async {
            let (found, orphans) = network::survey(&self.names).await?;
            for id in found {
                self.lines.entry(id).or_insert_with(|| Line::unwanted(self.logged, now));
            }
            network::remove_orphans((&self.names, &self.host), &orphans).await
        };
        if let Err(error) = outcome.await {
            warn!(%error, again_in = ?AUDIT, "what is left of old networks cannot be found or removed");
        }
    }

    /// Queues of ports that no network has any more. Those of ports that stand elsewhere by now are made anew there.
    async fn let_go_of_the_unwanted(&mut self, wanted: &Wanted) {
        let wanted: HashSet<&DeviceName> = wanted.devices().collect();
        let unwanted = self.keeper.devices().filter(|device| !wanted.contains(device));
        let unwanted: Vec<_> = unwanted.cloned().collect();
        for device in unwanted {
            self.keeper.forget(&device).await;
        }
    }

    async fn look(&mut self, view: Generation) {
        let mut published = Instant::now();
        let mut lacking = BTreeSet::new();
        for _ in 0..MAX_ROUNDS {
            let now = Instant::now();
            let due = self.lines.iter().filter(|(_, line)| line.due() <= now);
            let due: Vec<NetworkId> = due.map(|(id, _)| id.clone()).collect();
            if due.is_empty() {
                return;
            }
            for some in due.chunks(FRAMES_AT_ONCE) {
                self.raise(some).await;
                for id in some {
                    if published.elapsed() >= PUBLISH_WITHIN {
                        self.publish(view, self.table.load().generation);
                        self.progress.send_modify(|_| {});
                        published = Instant::now();
                    }
                    self.look_at(id, &mut lacking).await;
                }
            }
        }
    }

    /// Makes the frames of these networks that have none, side by side.
    async fn raise(&mut self, ids: &[NetworkId]) {
        let mut raising = JoinSet::new();
        for id in ids {
            let Some(mut line) = self.lines.remove(id) else { continue };
            let (names, host, id) = (Arc::clone(&self.names), Arc::clone(&self.host), id.clone());
            raising.spawn(async move {
                line.raise((&names, &host), &id).await;
                (id, line)
            });
        }
        while let Some(raised) = raising.join_next().await {
            // One that panicked has no line any more, and gets a new one with the next view or survey.
            match raised {
                Ok((id, line)) => drop(self.lines.insert(id, line)),
                Err(error) => error!(%error, "a network's frame was not made"),
            }
        }
    }

    /// Looks at one network, and has its peers looked at that have something to do. `lacking` are the links that an earlier
    /// one did not find at its side.
    async fn look_at(&mut self, id: &NetworkId, lacking: &mut BTreeSet<DeviceName>) {
        let Some(line) = self.lines.get(id) else { return };
        let stands = |vpc: &&VpcId| {
            let other = self.lines.get(&NetworkId::Private((*vpc).clone()));
            other.is_some_and(|other| other.network().is_some())
        };
        let standing = line.peers().filter(stands).cloned().collect();
        let peers = Peers { standing, lacking: lacking.clone() };
        let Some(line) = self.lines.get_mut(id) else { return };
        if !line.look((&self.names, &self.host), id, &mut self.keeper, &peers).await {
            self.lines.remove(id);
            return;
        }
        // What this one makes is made by now, or failed.
        lacking.retain(|device| !line.makes(device));
        let now = Instant::now();
        for (vpc, device) in line.take_calls() {
            match device {
                Some(device) => lacking.insert(device),
                None => false,
            };
            if let Some(line) = self.lines.get_mut(&NetworkId::Private(vpc)) {
                line.hurry(now);
            }
        }
    }

    /// Services that want to join, join.
    async fn join(&mut self) {
        for join in self.nudges.take_joins() {
            let outcome = match self.lines.get_mut(&join.network) {
                Some(line) => {
                    let place = (&*self.names, &join.network);
                    line.join(place, &mut self.keeper, &join.service, join.namespace).await
                }
                None => Err(format!("the network of service {} is not there any more", join.service)),
            };
            // Who asked may have given up.
            drop(join.answer.send(outcome));
        }
    }

    /// Swaps the table: the ports that a view wants, as far as they stand. `in_force` is the decision that is complete.
    fn publish(&self, view: Generation, in_force: Generation) {
        let mut table = Table { generation: in_force, ..Table::default() };
        let (before, now) = (self.table.load(), Instant::now());
        for (id, line) in &self.lines {
            let complaints =
                line.ports().filter_map(|port| Some((port.vm.clone(), line.complaint(port)?.to_owned())));
            table.broken.extend(complaints);
            let Some(network) = line.network() else { continue };
            let serving: Vec<_> = line.ports().filter(|port| line.serves(port)).collect();
            let services = || line.wanted().into_iter().flat_map(|wanted| wanted.services.values());
            let addresses = serving.iter().map(|port| port.ipv4);
            let live = LiveNetwork {
                sockets: network.sockets.clone(),
                addresses: addresses.chain(services().map(|service| service.seat.ipv4)).collect(),
                zone: Arc::clone(line.zone()),
                clients: line.has_clients(),
                range: network.range,
                ula: network.ula,
                vms: Arc::clone(line.vms()),
                firewall: Arc::clone(line.firewall()),
            };
            table.services.extend(services().map(|service| (service.id.clone(), id.clone())));
            table.networks.insert(id.clone(), live);
            table.ports.extend(serving.into_iter().map(|port| {
                let live = LivePort {
                    port: port.clone(),
                    network: id.clone(),
                    sockets: network.sockets.clone(),
                    queues: self.keeper.queues(&port.device).cloned(),
                    woke: woke(before.ports.get(&port.vm).map(Arc::as_ref), port, now),
                };
                (port.vm.clone(), Arc::new(live))
            }));
        }
        self.wakes.follow(view, &table.ports);
        self.table.store(Arc::new(table));
    }

    fn report(&mut self, wanted: &Wanted) {
        if self.reported == wanted.left_out {
            return;
        }
        for left_out in &wanted.left_out {
            warn!("left out: {left_out}");
        }
        self.reported.clone_from(&wanted.left_out);
    }
}
