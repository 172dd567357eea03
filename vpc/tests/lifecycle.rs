//! What outlives vpc and what does not: adoption after a kill under traffic, repair after a kill at every border
//! between two changes and at random moments, and nothing left after a removal.

mod support;

use model::view::NetworkEntry;
use rand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::client::{Place, clients, peering, service};
use support::guest::Guest;
use support::{PATIENCE, SERVER, World, assert_same, inside, member, port, private, sh, within};
use tokio::time::timeout;
use vpc::client::{Refusal, VpcError};

/// Round trips of a guest's connection to the Internet, counted until told to stop.
struct Transfer {
    trips: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    running: std::thread::JoinHandle<()>,
}

impl Transfer {
    fn begin(world: &World, guest: &Guest) -> Self {
        Self::between(guest, &world.internet(), SERVER)
    }

    /// To an address that a namespace has.
    fn between(guest: &Guest, server: &str, address: Ipv4Addr) -> Self {
        let to = SocketAddr::from((address, 90));
        let (ready, waiting) = std::sync::mpsc::channel();
        inside(server, move || {
            let listener = TcpListener::bind(to).expect("bound");
            ready.send(()).expect("somebody waits");
            let (mut stream, _) = listener.accept().expect("accepted");
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut bytes) {
                stream.write_all(&bytes[..length]).expect("echoed");
            }
        });
        waiting.recv().expect("listens");
        let (trips, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let running = inside(&guest.namespace, {
            let (trips, stop) = (Arc::clone(&trips), Arc::clone(&stop));
            move || {
                let mut stream = TcpStream::connect(to).expect("connected");
                stream.set_read_timeout(Some(PATIENCE)).expect("set");
                while !stop.load(Ordering::SeqCst) {
                    let sent = trips.load(Ordering::SeqCst).to_be_bytes();
                    stream.write_all(&sent).expect("sent");
                    let mut back = [0; 8];
                    stream.read_exact(&mut back).expect("echoed");
                    assert_eq!(back, sent);
                    trips.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { trips, stop, running }
    }

    /// Waits until so many more round trips are done.
    async fn goes_on(&self, more: u64) {
        let (from, begun) = (self.trips.load(Ordering::SeqCst), Instant::now());
        while self.trips.load(Ordering::SeqCst) < from + more {
            assert!(begun.elapsed() < PATIENCE && !self.running.is_finished(), "the transfer stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.running.join().expect("no byte was lost");
        self.trips.load(Ordering::SeqCst)
    }
}

/// Waits until a frame stands in the queue.
async fn readable(queue: &OwnedFd) {
    let queue = queue.try_clone().expect("duplicate");
    let ready = tokio::task::spawn_blocking(move || {
        let patience = Timespec { tv_sec: 120, tv_nsec: 0 };
        poll(&mut [PollFd::new(&queue, PollFlags::IN)], Some(&patience)).expect("polled")
    });
    assert_eq!(ready.await.expect("waited"), 1, "no frame came");
}

fn keeper_socket(world: &World) -> std::path::PathBuf {
    world.places().run.join("vpc-keeper.sock")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_while_vpc_is_dead_and_after_it_came_back() {
    let ports = vec![port(5, 1, &[]), port(6, 2, &[])];
    let mut world = World::with_ports(ports.clone()).await;
    let mut guest = Guest::boot(&world, &ports[0]).await;
    let other = Guest::boot(&world, &ports[1]).await;
    let transfer = Transfer::begin(&world, &guest);
    transfer.goes_on(50).await;

    world.kill();
    transfer.goes_on(50).await;
    world.start(&[]);
    world.settled().await;
    transfer.goes_on(50).await;
    assert_eq!(world.tap(5).await.expect("taken over from the keeper").len(), 1);
    assert_eq!(world.tap(6).await.expect("taken over from the keeper").len(), 2);

    // Now vpc and the keeper die together: the VM's own queue is all there is.
    let keeper = world.keeper();
    world.kill();
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).expect("killed");
    transfer.goes_on(50).await;
    world.start(&[]);
    world.settled().await;
    transfer.goes_on(50).await;
    assert!(transfer.end() >= 250);
    for last in [5, 6] {
        match world.tap(last).await {
            Err(VpcError::Refused { reason: Refusal::Kernel, .. }) => {}
            other => panic!("its VM still has it: {other:?}"),
        }
    }
    guest.stop();
    drop((guest, other));
    for (last, queues) in [(5, 1), (6, 2)] {
        assert_eq!(world.tap(last).await.expect("free, and opened again").len(), queues);
    }
}

/// Private networks of the same addresses, each with these two members.
fn networks(numbers: &[u8]) -> Vec<NetworkEntry> {
    let members = |number| [[10, 0, 0, 5], [10, 0, 0, 6]].map(|ipv4| member(number, ipv4, &[]));
    numbers.iter().map(|&number| private(number, "10.0.0.0/24", &members(number))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_of_members_go_on_while_vpc_is_dead_and_after_it_came_back() {
    let mut world = World::with_networks(vec![], networks(&[1, 2])).await;
    let [five, six] = [[10, 0, 0, 5], [10, 0, 0, 6]].map(|ipv4| member(1, ipv4, &[]));
    let (guest, other) = (Guest::boot(&world, &five).await, Guest::boot(&world, &six).await);
    let (inward, outward) =
        (Transfer::between(&guest, &other.namespace, six.ipv4), Transfer::begin(&world, &other));
    inward.goes_on(50).await;
    outward.goes_on(50).await;
    let state = world.kernel_state();
    world.kill();
    inward.goes_on(50).await;
    outward.goes_on(50).await;
    world.start(&[]);
    world.settled().await;
    inward.goes_on(50).await;
    outward.goes_on(50).await;
    assert_same(&world.kernel_state(), &state, "adopted as it was");
    assert_eq!(world.host_counter("wrong_source") + world.host_counter("unasked"), 0);
    assert_eq!(world.tap_of(&five.vm).await.expect("taken over from the keeper").len(), 1);
    assert!(inward.end() >= 150 && outward.end() >= 150);
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_that_leave_the_view_leave_nothing_behind() {
    let mut world = World::with_networks(vec![port(5, 1, &[])], vec![]).await;
    let without = world.kernel_state();
    world.networks = networks(&[1, 2]);
    world.publish(vec![port(5, 1, &[])]);
    world.settled().await;
    let guest = Guest::boot(&world, &member(1, [10, 0, 0, 5], &[])).await;
    let transfer = Transfer::begin(&world, &guest);
    transfer.goes_on(5).await;
    world.networks = networks(&[2]);
    world.publish(vec![port(5, 1, &[])]);
    world.settled().await;
    let one = world.kernel_state();
    assert!(!one.iter().any(|line| line.contains("vpc-bbb")), "{one:#?}");
    match world.tap_of(&guest.port.vm).await {
        Err(VpcError::Refused { reason: Refusal::UnknownVm, .. }) => {}
        other => panic!("it has no port any more: {other:?}"),
    }
    // A network without ports is as good as none.
    world.networks = vec![private(2, "10.0.0.0/24", &[])];
    world.publish(vec![port(5, 1, &[])]);
    world.settled().await;
    assert_same(&world.kernel_state(), &without, "after the removal of both");
    // One that goes while nobody is there.
    world.networks = networks(&[1, 2]);
    world.publish(vec![port(5, 1, &[])]);
    world.settled().await;
    world.kill();
    world.networks = vec![];
    world.publish(vec![port(5, 1, &[])]);
    world.start(&[]);
    world.settled().await;
    assert_same(&world.kernel_state(), &without, "after a start with a view without them");
    drop((guest, transfer));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teardown_removes_networks_that_no_view_names_any_more() {
    let mut world = World::new();
    let untouched = without_forwarding(world.kernel_state());
    world.networks = networks(&[1, 2, 3]);
    world.publish(vec![port(5, 1, &[])]);
    world.start(&[]);
    world.settled().await;
    world.kill();
    world.networks = networks(&[4]);
    world.publish(vec![]);
    // One whose name somebody has removed: its link is still there, as long as somebody is in it.
    let lost = world.private(&networks(&[2])[0].vpc);
    let somebody = std::fs::File::open(format!("/run/netns/{lost}")).expect("namespace");
    sh(&format!("ip netns del {lost}"));
    assert!(world.run(&["--teardown"]).success());
    assert_same(&without_forwarding(world.kernel_state()), &untouched, "after teardown");
    drop(somebody);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_for_a_sleeping_vm_wait_in_its_queue_even_through_a_restart() {
    let ports = vec![port(5, 1, &[8000])];
    let mut world = World::with_ports(ports.clone()).await;
    let queues = world.tap(5).await.expect("a TAP");
    let knocking = inside(&world.network(), || {
        TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::new(10, 201, 0, 5), 8000)), PATIENCE)
    });
    readable(&queues[0]).await;
    drop(queues);
    world.kill();
    world.start(&[]);
    world.settled().await;
    let queues = world.tap(5).await.expect("the same TAP");
    readable(&queues[0]).await;
    let mut guest = Guest::asleep(&world, &ports[0]).await;
    let listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    guest.wake(queues);
    tokio::task::spawn_blocking(|| knocking.join())
        .await
        .expect("joined")
        .expect("no panic")
        .expect("connected");
    drop(listening);
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_leave_nothing_behind() {
    let mut world = World::new();
    let untouched = without_forwarding(world.kernel_state());
    world.publish(vec![port(5, 1, &[])]);
    world.start(&[]);
    world.settled().await;
    let one = world.kernel_state();
    let ports = vec![port(5, 1, &[]), port(6, 4, &[])];
    world.publish(ports.clone());
    world.settled().await;
    let guest = Guest::boot(&world, &ports[1]).await;
    Transfer::begin(&world, &guest).goes_on(5).await;
    assert!(flows(&world).await.contains("10.201.0.6"), "the flow is tracked");
    world.publish(vec![port(5, 1, &[])]);
    world.settled().await;
    assert_same(&world.kernel_state(), &one, "after the removal");
    assert!(!flows(&world).await.contains("10.201.0.6"), "its flows are forgotten");
    drop(guest);
    world.publish(vec![]);
    world.settled().await;
    let state = world.kernel_state();
    assert!(!state.iter().any(|line| line.contains("10.201.0.5") || line.contains(" tfff")), "{state:#?}");
    world.kill();
    assert!(world.run(&["--teardown"]).success());
    assert_same(&without_forwarding(world.kernel_state()), &untouched, "after teardown");
    assert!(!keeper_socket(&world).exists());
    assert!(world.run(&["--teardown"]).success(), "nothing to do is fine");
}

async fn flows(world: &World) -> String {
    within(&world.network(), || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").expect("flows"))
        .await
}

/// vpc says that it turns forwarding on, and leaves it on. The kernel itself then stops believing redirects.
fn without_forwarding(mut state: Vec<String>) -> Vec<String> {
    state.retain(|line| !line.starts_with("ip_forward") && !line.starts_with("conf/all/accept_redirects"));
    state
}

/// Starts vpc so that it dies at the n-th border. True when it did, false when it had no more than `n` and settled.
async fn dies_at(world: &mut World, n: u64) -> bool {
    world.start(&["--abort-after-step", &n.to_string()]);
    let begun = Instant::now();
    loop {
        let process = world.process.as_mut().expect("started");
        if let Some(status) = process.try_wait().expect("known") {
            assert!(!status.success());
            world.process = None;
            return true;
        }
        // A client waits for a vpc that restarts, which this one does not.
        if let Ok(Ok(status)) = timeout(Duration::from_millis(200), world.client().status()).await
            && status.generation.0 == world.generation
        {
            return false;
        }
        assert!(begun.elapsed() < PATIENCE, "neither dead nor done\n{}", world.tail());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_every_border_is_repaired() {
    let mut world = World::new();
    world.networks = networks(&[1]);
    world.publish(vec![port(5, 1, &[]), port(6, 2, &[])]);
    let untouched = without_forwarding(world.kernel_state());
    world.start(&[]);
    world.settled().await;
    let reference = world.kernel_state();
    world.kill();
    assert!(world.run(&["--teardown"]).success());
    let mut borders = 0;
    while dies_at(&mut world, borders + 1).await {
        borders += 1;
        world.start(&[]);
        world.settled().await;
        assert_same(&world.kernel_state(), &reference, &format!("after a kill at border {borders}"));
        world.kill();
        let cut = (borders % 17 + 1).to_string();
        world.run(&["--teardown", "--abort-after-step", &cut]);
        assert!(world.run(&["--teardown"]).success());
        assert_same(&without_forwarding(world.kernel_state()), &untouched, &format!("teardown cut at {cut}"));
    }
    assert!(borders > 50, "only {borders} borders");
    eprintln!("killed at each of {borders} borders of the making");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_every_border_of_a_change_is_repaired() {
    let (before, after) = (vec![port(5, 1, &[]), port(6, 1, &[])], vec![port(6, 1, &[]), port(7, 1, &[])]);
    let (networks_before, networks_after) = (networks(&[1, 2]), networks(&[2, 3]));
    let mut world = World::with_networks(before.clone(), networks_before.clone()).await;
    world.networks.clone_from(&networks_after);
    world.publish(after.clone());
    world.settled().await;
    let reference = world.kernel_state();
    let mut killed = 0;
    loop {
        world.networks.clone_from(&networks_before);
        world.publish(before.clone());
        world.settled().await;
        world.kill();
        world.networks.clone_from(&networks_after);
        world.publish(after.clone());
        if !dies_at(&mut world, killed + 1).await {
            break;
        }
        killed += 1;
        world.start(&[]);
        world.settled().await;
        assert_same(&world.kernel_state(), &reference, &format!("after a kill at border {killed}"));
    }
    assert!(killed > 50, "only {killed} borders");
    eprintln!("killed at each of {killed} borders of the change");
}

/// Networks of one member each, whose ranges differ, with clients and peers.
fn with_ways(networks: &[(u8, bool, &[u8])]) -> Vec<NetworkEntry> {
    let range = |number: u8| format!("10.{number}.0.0/24");
    let network = |(number, with_clients, peers): &(u8, bool, &[u8])| {
        let mut entry = private(*number, &range(*number), &[member(*number, [10, *number, 0, 5], &[])]);
        entry.clients = if *with_clients { clients(None) } else { None };
        // Both sides find the same number for a peering.
        let peers = peers.iter().map(|other| peering(number + other, *other, &range(*other)));
        entry.peerings = peers.collect::<Vec<_>>().into();
        entry
    };
    networks.iter().map(network).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_every_border_of_ways_is_repaired() {
    let nothing = with_ways(&[(3, false, &[])]);
    let before = with_ways(&[(1, true, &[2]), (2, false, &[1]), (3, false, &[])]);
    let after = with_ways(&[(1, false, &[3]), (2, true, &[]), (3, true, &[1])]);
    let mut world = World::with_networks(vec![], after.clone()).await;
    for (from, to) in [(nothing, before.clone()), (before, after)] {
        world.networks.clone_from(&to);
        world.publish(vec![]);
        world.settled().await;
        let reference = world.kernel_state();
        let mut killed = 0;
        loop {
            world.networks.clone_from(&from);
            world.publish(vec![]);
            world.settled().await;
            world.kill();
            world.networks.clone_from(&to);
            world.publish(vec![]);
            if !dies_at(&mut world, killed + 1).await {
                // It would still die at a later border.
                world.kill();
                world.start(&[]);
                world.settled().await;
                break;
            }
            killed += 1;
            world.start(&[]);
            world.settled().await;
            assert_same(&world.kernel_state(), &reference, &format!("after a kill at border {killed}"));
        }
        assert!(killed > 30, "only {killed} borders");
        eprintln!("killed at each of {killed} borders");
    }
}

/// Borders that a start passes when all is there already.
async fn borders_of_a_start(world: &mut World) -> u64 {
    world.start(&[]);
    world.settled().await;
    let mut process = world.process.take().expect("runs");
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told");
    process.wait().expect("ended");
    let text = std::fs::read_to_string(world.log()).expect("a log");
    let said = text.rsplit("borders=").next().expect("said at its end");
    said.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_every_border_of_a_join_leaves_all_or_nothing() {
    let mut world = World::new();
    let entry = service(1, [10, 0, 0, 9], &[]);
    let id = entry.id.clone();
    world.networks = networks(&[1]);
    world.networks[0].services = vec![entry].into();
    world.publish(vec![]);
    world.start(&[]);
    world.settled().await;
    let without = world.kernel_state();
    let place = Place::new(&world, "one");
    world.join(&id, &place.0).await.expect("joined");
    let with = world.kernel_state();
    let furnished = || {
        sh(&format!(
            "ip -n {0} -o -4 addr | sed 's/^[0-9]*: //'; ip -n {0} route | sed 's/ metric .*//'",
            place.0
        ))
    };
    let whole = furnished();
    world.kill();
    let first = borders_of_a_start(&mut world).await + 1;
    let mut killed = 0;
    loop {
        // Each time it joins anew, from the same place.
        world.start(&["--abort-after-step", &(first + killed).to_string()]);
        world.settled().await;
        let (socket, service) = (world.places().vpc_socket(), id.clone());
        let file = std::fs::File::open(format!("/run/netns/{}", place.0)).expect("namespace");
        let generation = model::id::Generation(world.generation);
        // The client's own function would ask again until vpc is back.
        let asked = tokio::task::spawn_blocking(move || {
            let wire = feed::wire::BlockingWire::connect(&socket)?;
            wire.send(&vpc::client::VpcRequest::Join { service, generation }, &[file.as_fd()])?;
            wire.receive::<vpc::client::VpcReply>()
        });
        if let Ok((reply, _)) = asked.await.expect("asked") {
            assert_eq!(reply, vpc::client::VpcReply::Joined);
            break;
        }
        killed += 1;
        let mut process = world.process.take().expect("started");
        assert!(!process.wait().expect("ended").success(), "killed");
        world.start(&[]);
        world.settled().await;
        let state = world.kernel_state();
        let joined = state.iter().any(|line| line.contains(id.as_str()));
        let expected = if joined { &with } else { &without };
        assert_same(&state, expected, &format!("after a kill at border {killed}"));
        let there = furnished();
        assert!(if joined { there == whole } else { !there.contains("10.0.0") }, "{killed}: {there}");
        world.join(&id, &place.0).await.expect("joined");
        assert_same(&world.kernel_state(), &with, &format!("joined after a kill at border {killed}"));
        world.kill();
    }
    assert!(killed > 12, "only {killed} borders");
    eprintln!("killed at each of {killed} borders of a join");
    world.kill();
    // A teardown leaves nothing at the service, either.
    assert!(world.run(&["--teardown"]).success());
    assert!(!furnished_at_all(&place.0), "nothing is left");
}

fn furnished_at_all(namespace: &str) -> bool {
    sh(&format!("ip -n {namespace} -o link")).lines().any(|line| !line.contains(" lo:"))
}

/// vpc writes only what changes of the host's table; when that does not fit any more, all of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_table_is_written_anew_when_somebody_has_removed_it() {
    let mut world = World::new();
    world.networks = networks(&[1, 2]);
    world.publish(vec![port(5, 1, &[])]);
    world.start(&[]);
    world.settled().await;
    sh(&format!("ip netns exec {} nft delete table inet {}_host", world.host(), world.prefix));
    world.networks = networks(&[2, 3]);
    world.publish(vec![port(5, 1, &[])]);
    world.settled().await;
    let repaired = world.kernel_state();
    world.kill();
    assert!(world.run(&["--teardown"]).success());
    world.start(&[]);
    world.settled().await;
    assert_same(&repaired, &world.kernel_state(), "as if it had been made at once");
}

/// Eight times, or as often as KILLS says: `KILLS=100 cargo test -p vpc --test lifecycle random`.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_are_repaired() {
    let kills = std::env::var("KILLS").map_or(8, |text| text.parse().expect("KILLS is a number"));
    let mut world = World::new();
    let last = vec![port(5, 1, &[]), port(6, 2, &[])];
    for round in 0..kills {
        let ports =
            (5..9).filter(|_| rand::rng().random()).map(|last| port(last, 1 + last % 2, &[])).collect();
        let kept: Vec<u8> = (1..4).filter(|_| rand::rng().random()).collect();
        world.networks = networks(&kept);
        world.publish(ports);
        world.start(&[]);
        // The moment is what is tried: nothing to wait for.
        let moment = Duration::from_millis(rand::rng().random_range(0..400));
        tokio::time::sleep(moment).await;
        world.kill();
        eprintln!("round {round}: killed after {moment:?}");
    }
    world.networks = networks(&[1, 4]);
    world.publish(last.clone());
    world.start(&[]);
    world.settled().await;
    let repaired = world.kernel_state();
    world.kill();
    assert!(world.run(&["--teardown"]).success());
    world.start(&[]);
    world.settled().await;
    assert_same(&repaired, &world.kernel_state(), "as if it had been made at once");
    assert!(sh("ip netns").contains(&world.network()));
}
