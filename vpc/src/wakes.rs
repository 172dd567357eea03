//! Watches the TAPs of sleeping VMs, and tells who asked when packets wait in one.
//!
//! A watch only polls duplicates of the TAP's queues and never reads from them: the frames that wake a VM are the
//! first that it reads. It sees a frame at most once, and a VM's process that is just about to go may be quicker and
//! read the frame itself. So a wake may be told for a VM that has a process; a wake that is needed is never left out.
//!
//! See [`crate::pure::sleepers`] for when a watch begins and ends.

use crate::io::observe::Queues;
use crate::pure::sleepers::{Change, Sleepers};
use crate::pure::wanted::MAX_PORTS;
use crate::switch::LivePort;
use futures_util::future::select_all;
use model::id::{Generation, VmId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// Wakes that a slow subscriber may be behind: one for each port. Over it, it is cut off and must ask again, and is
/// then told for whom packets wait.
const WAKES_BEHIND: usize = MAX_PORTS;

/// The watches of all sleeping VMs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Wakes {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    sleepers: Sleepers,
    watches: HashMap<VmId, Watch>,
    told: broadcast::Sender<VmId>,
}

#[derive(Debug)]
struct Watch {
    queues: Queues,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Default for Wakes {
    fn default() -> Self {
        let inner = Inner {
            sleepers: Sleepers::default(),
            watches: HashMap::new(),
            told: broadcast::Sender::new(WAKES_BEHIND),
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }
}

impl Wakes {
    /// Watches those of the ports whose VM sleeps, and no others. Must be called inside a tokio runtime.
    pub fn follow(&self, generation: Generation, ports: &HashMap<VmId, Arc<LivePort>>) {
        // Queues that only the VM's process has end with it; the switch then opens new ones and calls again.
        let asleep = ports.iter().filter(|(_, live)| live.port.asleep);
        let asleep: BTreeMap<&VmId, &Queues> =
            asleep.filter_map(|(vm, live)| Some((vm, live.queues.as_ref()?))).collect();
        // A watch keeps its queues, so that no others ever stand at the same place.
        let numbers = asleep.iter().map(|(vm, queues)| ((*vm).clone(), Arc::as_ptr(queues).addr())).collect();
        let mut inner = self.lock();
        for change in inner.sleepers.follow(generation, &numbers) {
            match change {
                Change::End { vm } => {
                    inner.watches.remove(&vm);
                    debug!(%vm, "no longer watched");
                }
                Change::Begin { vm, watch } => {
                    let Some(queues) = asleep.get(&vm) else { continue };
                    let queues = Queues::clone(queues);
                    let task = tokio::spawn(self.clone().watch(vm.clone(), watch, Queues::clone(&queues)));
                    debug!(%vm, "watched for packets");
                    inner.watches.insert(vm, Watch { queues, task });
                }
            }
        }
    }

    /// A process of the VM took its TAP.
    pub fn taken(&self, vm: &VmId) {
        self.lock().sleepers.taken(vm);
    }

    /// The sleeping VMs for which packets wait now, and from now on each further one.
    #[must_use]
    pub fn subscribe(&self) -> (Vec<VmId>, broadcast::Receiver<VmId>) {
        let inner = self.lock();
        let waiting = inner.sleepers.told().filter(|vm| {
            // In doubt, packets wait: a wake too many does no harm.
            let look = |watch: &Watch| watch.queues.iter().any(|queue| waits(queue).unwrap_or(true));
            inner.watches.get(*vm).is_some_and(look)
        });
        (waiting.cloned().collect(), inner.told.subscribe())
    }

    async fn watch(self, vm: VmId, watch: u64, queues: Queues) {
        if let Err(error) = packets(&queues).await {
            // Out of descriptors, for example. A VM that wakes for nothing goes to sleep again.
            warn!(%vm, %error, "a sleeping VM cannot be watched, and is woken");
        }
        let mut inner = self.lock();
        if inner.sleepers.packet(&vm, watch) {
            debug!(%vm, subscribers = inner.told.receiver_count(), "packets wait for a sleeping VM");
            // Without a subscriber nobody needs to know: the next one is told first for whom packets wait.
            drop(inner.told.send(vm));
        }
    }

    /// No code under this lock can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves when a frame waits in one of the queues.
async fn packets(queues: &Queues) -> io::Result<()> {
    let duplicates = queues.iter().map(|queue| feed::sys::register(queue.try_clone()?));
    let duplicates = duplicates.collect::<io::Result<Vec<_>>>()?;
    let (first, _, _) = select_all(duplicates.iter().map(|queue| Box::pin(readable(queue)))).await;
    first
}

async fn readable(queue: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = queue.readable().await?;
        // The frame may be gone again: a process that is about to end has read it.
        if waits(queue.get_ref())? {
            return Ok(());
        }
        ready.clear_ready();
    }
}

/// Whether a frame waits in the queue.
fn waits(queue: &OwnedFd) -> io::Result<bool> {
    let mut watched = [PollFd::new(queue, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(watched[0].revents().contains(PollFlags::IN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::namespace::Inside;
    use crate::pure::names::{DeviceName, NetworkId};
    use crate::pure::wanted::Port;
    use model::net::MacAddress;
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::net::Ipv4Addr;

    fn port(number: u8, asleep: bool, queues: &Queues) -> (VmId, Arc<LivePort>) {
        let (vm, ipv4) = (VmId::from_random([number; 20]), Ipv4Addr::new(10, 201, 0, number));
        let port = Port {
            device: DeviceName::of(&vm),
            vm: vm.clone(),
            mac: MacAddress::of_ipv4(ipv4),
            ipv4,
            ipv6: None,
            queues: 1,
            dialable: BTreeSet::new(),
            asleep,
            names: Vec::new(),
        };
        let here = crate::sys::namespace::current().expect("a namespace");
        let sockets = Inside::start(here).expect("a thread");
        let (network, queues) = (NetworkId::Default, Some(Queues::clone(queues)));
        (vm, Arc::new(LivePort { port, network, sockets, queues, woke: None }))
    }

    /// A pipe plays the TAP's queue.
    fn queue() -> (Queues, std::io::PipeReader, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().expect("pipe");
        rustix::io::ioctl_fionbio(&reader, true).expect("non-blocking");
        (Arc::new(vec![reader.try_clone().expect("duplicate").into()]), reader, writer)
    }

    #[tokio::test]
    async fn a_wake_is_told_once_to_all_and_the_frame_stays() {
        let (wakes, (queues, mut reader, mut writer)) = (Wakes::default(), queue());
        let (mut one, mut two) = (wakes.subscribe(), wakes.subscribe());
        let (vm, live) = port(1, true, &queues);
        wakes.follow(Generation(1), &HashMap::from([(vm.clone(), live)]));
        writer.write_all(b"frame").expect("written");
        assert_eq!(one.1.recv().await.expect("told"), vm);
        assert_eq!(two.1.recv().await.expect("told"), vm);
        assert_eq!(wakes.subscribe().0, vec![vm.clone()], "who comes later is told, too");
        let mut frame = [0; 5];
        reader.read_exact(&mut frame).expect("it is still there");
        assert_eq!(&frame, b"frame");
        assert!(wakes.subscribe().0.is_empty(), "nothing waits any more");
        writer.write_all(b"again").expect("written");
        wakes.follow(Generation(2), &HashMap::from([port(1, false, &queues)]));
        wakes.follow(Generation(3), &HashMap::from([port(1, true, &queues)]));
        assert_eq!(one.1.recv().await.expect("frames that wait already count"), vm);
        assert!(one.1.is_empty());
    }

    #[tokio::test]
    async fn a_frame_that_a_last_process_reads_does_not_end_the_watch() {
        let (wakes, (queues, mut reader, mut writer)) = (Wakes::default(), queue());
        let (vm, live) = port(1, true, &queues);
        let (_, mut told) = wakes.subscribe();
        // On this one thread the watch sees the descriptor only after both.
        wakes.follow(Generation(1), &HashMap::from([(vm.clone(), live)]));
        tokio::task::yield_now().await;
        writer.write_all(b"x").expect("written");
        reader.read_exact(&mut [0]).expect("read by the process");
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(told.is_empty());
        writer.write_all(b"y").expect("written");
        assert_eq!(told.recv().await.expect("told"), vm);
    }
}
