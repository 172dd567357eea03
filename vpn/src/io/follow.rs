//! Follows the view: tells the loop of each, and gets the TUNs of its networks.

use super::desk::Question;
use super::server::{Order, Orders};
use super::tunnels::{TunnelError, Tunnels};
use crate::sys::tun;
use feed::subscribe::Feed;
use model::id::VpcId;
use model::view::VpnView;
use rustix::fd::OwnedFd;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{debug, info, warn};

/// Between tries to get a TUN that could not be had, and to give an order that found no room. vpc may be starting.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Between two lines with the counters, when they have changed.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// Follows until the loop has ended.
#[derive(Debug)]
pub struct Follower {
    feed: Feed<VpnView>,
    tunnels: Arc<dyn Tunnels>,
    orders: Orders,
    lost: mpsc::Receiver<VpcId>,
    questions: mpsc::Receiver<Question>,
    /// The view that the loop has.
    told: Option<Arc<VpnView>>,
    /// The networks in it.
    wanted: HashSet<VpcId>,
    /// Networks whose TUN the loop has.
    joined: HashSet<VpcId>,
    /// Networks whose TUN was asked for; one answer at a time, as nobody opens a TUN twice.
    asked: HashSet<VpcId>,
    opening: JoinSet<(VpcId, Result<OwnedFd, TunnelError>)>,
    /// Networks of which a failure was told.
    complained: HashSet<VpcId>,
    counted: BTreeMap<&'static str, u64>,
}

impl Follower {
    /// Takes the ends of a loop's channels.
    #[must_use]
    pub fn new(
        feed: Feed<VpnView>,
        tunnels: Arc<dyn Tunnels>,
        orders: Orders,
        lost: mpsc::Receiver<VpcId>,
        questions: mpsc::Receiver<Question>,
    ) -> Self {
        Self {
            feed,
            tunnels,
            orders,
            lost,
            questions,
            told: None,
            wanted: HashSet::new(),
            joined: HashSet::new(),
            asked: HashSet::new(),
            opening: JoinSet::new(),
            complained: HashSet::new(),
            counted: BTreeMap::new(),
        }
    }

    /// Follows. Ends when the loop does. Nothing is lost when the call is given up.
    pub async fn run(&mut self) {
        let mut changes = self.feed.changes();
        let mut again = interval_at(Instant::now(), ASK_AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report = interval_at(Instant::now() + REPORT_EVERY, REPORT_EVERY);
        loop {
            tokio::select! {
                changed = changes.changed() => {
                    // The sender lives in our own feed.
                    debug_assert!(changed.is_ok());
                    self.tell();
                }
                lost = self.lost.recv() => match lost {
                    Some(vpc) => {
                        self.joined.remove(&vpc);
                    }
                    None => return,
                },
                Some(question) = self.questions.recv() => {
                    let order = match question {
                        Question::Sessions(vpc, to) => Order::Sessions(vpc, to),
                        Question::Counters(to) => Order::Report(to),
                    };
                    // Whoever asks is told when the loop is too busy: nobody answers.
                    if !self.orders.give(order) {
                        debug!("the loop takes no question");
                    }
                }
                Some(opened) = self.opening.join_next() => match opened {
                    Ok((vpc, opened)) => self.join(vpc, opened),
                    Err(error) => warn!(%error, "the thread that asked for a TUN died"),
                },
                _ = again.tick() => self.tell(),
                _ = report.tick() => self.report().await,
            }
        }
    }

    /// Gives the loop the view in force, and asks for what TUNs are missing.
    fn tell(&mut self) {
        let Some(view) = self.feed.current() else { return };
        let news = self.told.as_ref().is_none_or(|told| !Arc::ptr_eq(told, &view));
        if news {
            if !self.orders.give(Order::View(Arc::clone(&view))) {
                return;
            }
            let sessions = view.sessions.iter().count();
            info!(generation = %view.generation, sessions, "view taken over");
            self.wanted = view.sessions.iter().map(|entry| entry.vpc.clone()).collect();
            // The loop has closed the TUNs of networks that left.
            self.joined.retain(|vpc| self.wanted.contains(vpc));
            self.told = Some(view);
        }
        for vpc in &self.wanted {
            if !self.joined.contains(vpc) && self.asked.insert(vpc.clone()) {
                let (vpc, tunnels) = (vpc.clone(), Arc::clone(&self.tunnels));
                self.opening.spawn_blocking(move || {
                    let opened = tunnels.open(&vpc).and_then(|queue| prepared(&vpc, queue));
                    (vpc, opened)
                });
            }
        }
    }

    fn join(&mut self, vpc: VpcId, opened: Result<OwnedFd, TunnelError>) {
        self.asked.remove(&vpc);
        match opened {
            Ok(queue) => {
                self.complained.remove(&vpc);
                // Without room for the order the TUN is closed, and asked for again. The loop does not keep one whose
                // network left the view.
                if self.wanted.contains(&vpc) && self.orders.give(Order::Tunnel(vpc.clone(), queue)) {
                    self.joined.insert(vpc);
                }
            }
            Err(error) => {
                if self.complained.insert(vpc.clone()) {
                    warn!(%vpc, %error, "no way into the network; asking again");
                }
            }
        }
    }

    /// What the loop has counted; nothing when it does not answer.
    pub async fn counters(&self) -> BTreeMap<&'static str, u64> {
        let (to, answer) = oneshot::channel();
        if !self.orders.give(Order::Report(to)) {
            return BTreeMap::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Writes the counters to the log when they have changed.
    async fn report(&mut self) {
        let counters = self.counters().await;
        if counters != self.counted {
            info!(?counters, "so far");
            self.counted = counters;
        }
    }
}

fn prepared(vpc: &VpcId, queue: OwnedFd) -> Result<OwnedFd, TunnelError> {
    tun::prepare(&queue).map_err(|source| TunnelError::SetUp { vpc: vpc.clone(), source })?;
    Ok(queue)
}
