//! A packet for a VM that sleeps wakes it, and no packet is lost: whoever reads the TAP next reads the very frames that
//! were told. Nothing but traffic for the VM comes out of its TAP.

mod support;

use model::id::VmId;
use model::net::GATEWAY_IPV4;
use model::view::PortEntry;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::guest::Guest;
use support::servers::{ask_tcp, name_server, pings, resolve, whoami};
use support::{PATIENCE, SERVER, World, permit, port, within};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vpc::client::{Refusal, SERVER_WAIT, VpcError, WAKE_WAIT, Wakes};
use vpc::pure::names::DeviceName;
use vpc::pure::plan::WAITING_FRAMES;

/// A port whose VM sleeps and may be dialled at 8000.
fn asleep(last: u8, queues: u8) -> PortEntry {
    PortEntry { asleep: true, ..port(last, queues, &[8000]) }
}

fn awake(port: &PortEntry) -> PortEntry {
    PortEntry { asleep: false, ..port.clone() }
}

fn dial(world: &World, vm: &VmId) -> JoinHandle<Result<TcpStream, VpcError>> {
    let (client, permit) = (world.client(), permit(vm, 8000));
    tokio::spawn(async move { client.dial(&permit).await })
}

async fn wakes(world: &World) -> Wakes {
    world.client().wakes().await.expect("vpc listens")
}

async fn next(wakes: &mut Wakes) -> VmId {
    timeout(PATIENCE, wakes.next()).await.expect("told in time").expect("vpc is there")
}

/// Fails when anything is told within the pause.
async fn nothing_within(pause: Duration, wakes: &mut Wakes) {
    let told = timeout(pause, wakes.next()).await;
    assert!(told.is_err(), "{told:?}");
}

/// Sends datagrams to a VM from the gateway.
async fn knock(world: &World, last: u8, count: u32) {
    within(&world.network(), move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
        for _ in 0..count {
            socket.send_to(b"x", (Ipv4Addr::new(10, 201, 0, last), 9)).expect("sent");
        }
    })
    .await;
}

/// Frames for a VM that the kernel threw away because its TAP was full.
async fn lost(world: &World, vm: &VmId) -> u64 {
    let device = format!("{}:", DeviceName::of(vm));
    within(&world.network(), move || {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("readable");
        let line = text.lines().find(|line| line.trim_start().starts_with(&device)).expect("a device");
        line.split_whitespace().nth(12).and_then(|word| word.parse().ok()).expect("a number")
    })
    .await
}

/// Frames that wait in a queue; they are read.
fn drain(queue: &OwnedFd) -> u32 {
    let (mut count, mut frame) = (0, [0; 2048]);
    while rustix::io::read(queue, &mut frame).is_ok() {
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn one_syn_wakes_a_vm_and_is_the_one_that_it_answers() {
    let port = asleep(5, 1);
    let world = World::with_ports(vec![port.clone()]).await;
    let mut guest = Guest::asleep(&world, &port).await;
    let _listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    let mut told = wakes(&world).await;
    let dialled = dial(&world, &port.vm);
    assert_eq!(next(&mut told).await, port.vm);
    // As long as a VM takes to resume. The kernel sends a SYN again after a second.
    nothing_within(Duration::from_millis(400), &mut told).await;
    guest.wake(world.tap(5).await.expect("a TAP"));
    dialled.await.expect("no panic").expect("connected");
    assert_eq!(guest.syns.load(Ordering::SeqCst), 1);
    nothing_within(Duration::from_millis(1), &mut told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_dials_at_once_wake_a_vm_once_and_all_connect() {
    const DIALS: usize = 100;
    let port = asleep(5, 4);
    let world = World::with_ports(vec![port.clone()]).await;
    let mut guest = Guest::asleep(&world, &port).await;
    let _listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    let (mut told, mut also_told) = (wakes(&world).await, wakes(&world).await);
    let dialled: Vec<_> = (0..DIALS).map(|_| dial(&world, &port.vm)).collect();
    assert_eq!(next(&mut told).await, port.vm);
    assert_eq!(next(&mut also_told).await, port.vm, "each subscriber is told");
    guest.wake(world.tap(5).await.expect("a TAP"));
    for one in dialled {
        one.await.expect("no panic").expect("connected");
    }
    assert!(guest.syns.load(Ordering::SeqCst) >= DIALS as u64);
    nothing_within(Duration::from_millis(1), &mut told).await;
    nothing_within(Duration::from_millis(1), &mut also_told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sleep_is_told_and_frames_that_wait_already_count() {
    let port = asleep(5, 2);
    let mut world = World::with_ports(vec![port.clone()]).await;
    let mut told = wakes(&world).await;
    knock(&world, 5, 1).await;
    assert_eq!(next(&mut told).await, port.vm);
    assert_eq!(next(&mut wakes(&world).await).await, port.vm, "a later subscriber is told, too");
    // Awake for a moment, in which nobody has read.
    world.publish(vec![awake(&port)]);
    world.settled().await;
    world.publish(vec![port.clone()]);
    assert_eq!(next(&mut told).await, port.vm);
    // A resumed VM takes the TAP and reads; the view that says so is never seen.
    let queues = world.tap(5).await.expect("a TAP");
    assert_eq!(queues.iter().map(drain).sum::<u32>(), 1);
    drop(queues);
    world.publish(vec![port.clone()]);
    world.settled().await;
    let mut late = wakes(&world).await;
    knock(&world, 5, 1).await;
    assert_eq!(next(&mut told).await, port.vm);
    assert_eq!(next(&mut late).await, port.vm);
    nothing_within(Duration::from_millis(1), &mut late).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_waits_while_vpc_is_killed_is_told_by_the_next_one() {
    let ports = vec![asleep(5, 1), asleep(6, 4)];
    let mut world = World::with_ports(ports.clone()).await;
    let mut told = wakes(&world).await;
    knock(&world, 5, 1).await;
    assert_eq!(next(&mut told).await, ports[0].vm);
    world.kill();
    assert!(matches!(told.next().await, Err(VpcError::Unreachable(_))), "the end is seen");
    // While there is no vpc at all.
    knock(&world, 6, 1).await;
    world.start(&[]);
    world.settled().await;
    let mut told = wakes(&world).await;
    let mut both = [next(&mut told).await, next(&mut told).await];
    both.sort();
    let mut expected = [ports[0].vm.clone(), ports[1].vm.clone()];
    expected.sort();
    assert_eq!(both, expected);
    let queues = world.tap(6).await.expect("a TAP");
    assert_eq!(queues.iter().map(drain).sum::<u32>(), 1, "the frame itself is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vpc_that_is_killed_during_a_dial_costs_it_no_more_than_time() {
    let port = asleep(5, 1);
    let mut world = World::with_ports(vec![port.clone()]).await;
    let mut guest = Guest::asleep(&world, &port).await;
    let _listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    let mut told = wakes(&world).await;
    let dialled = dial(&world, &port.vm);
    assert_eq!(next(&mut told).await, port.vm);
    world.kill();
    world.start(&[]);
    world.settled().await;
    assert_eq!(next(&mut wakes(&world).await).await, port.vm);
    guest.wake(world.tap(5).await.expect("a TAP"));
    dialled.await.expect("no panic").expect("connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_own_process_had_the_last_queue_is_watched_when_it_is_gone() {
    let port = asleep(5, 1);
    let mut world = World::with_ports(vec![awake(&port)]).await;
    let mut guest = Guest::boot(&world, &awake(&port)).await;
    let keeper = world.keeper();
    world.kill();
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).expect("killed");
    world.publish(vec![port.clone()]);
    world.start(&[]);
    world.settled().await;
    let mut told = wakes(&world).await;
    guest.stop();
    let dialled = dial(&world, &port.vm);
    assert_eq!(next(&mut told).await, port.vm);
    let _listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    guest.wake(world.tap(5).await.expect("a TAP"));
    dialled.await.expect("no panic").expect("connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dials_a_vm_that_wakes_slowly_waits_like_the_one_who_woke_it() {
    let port = asleep(5, 1);
    let mut world = World::with_ports(vec![port.clone()]).await;
    let mut guest = Guest::asleep(&world, &port).await;
    let _listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    // It is being resumed, and reads nothing yet.
    world.publish(vec![awake(&port)]);
    world.settled().await;
    let late = dial(&world, &port.vm);
    // What a VM that did not sleep is given.
    let mut told = wakes(&world).await;
    nothing_within(SERVER_WAIT + Duration::from_secs(1), &mut told).await;
    assert!(!late.is_finished(), "the dial was given up");
    guest.wake(world.tap(5).await.expect("a TAP"));
    late.await.expect("no panic").expect("connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_does_not_wake_is_given_up_in_words() {
    let mut world = World::with_ports(vec![asleep(5, 1), port(6, 1, &[8000])]).await;
    let begun = Instant::now();
    let one = dial(&world, &asleep(5, 1).vm);
    // This one falls asleep with the SYN in its queue.
    let other = dial(&world, &asleep(6, 1).vm);
    world.publish(vec![asleep(5, 1), asleep(6, 1)]);
    for dialled in [one, other] {
        match dialled.await.expect("no panic") {
            Err(VpcError::Refused { reason: Refusal::TimedOut, message }) => {
                assert!(message.contains("did not wake in time"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(begun.elapsed() >= WAKE_WAIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_its_own_traffic_comes_out_of_a_sleeping_vms_tap() {
    let (quiet, busy, last) = (asleep(5, 2), port(6, 1, &[8000]), asleep(7, 1));
    let mut world = World::with_ports(vec![quiet.clone(), busy.clone(), last.clone()]).await;
    let mut told = wakes(&world).await;
    let guest = Guest::boot(&world, &busy).await;
    whoami(&world.internet(), SocketAddr::from((SERVER, 80)));
    name_server(&world.internet());
    guest.run(|| ask_tcp(SocketAddr::from((SERVER, 80)))).await;
    assert_eq!(guest.run(|| resolve(GATEWAY_IPV4, false)).await, Some(SERVER));
    // A neighbour that asks for it, and for everybody.
    let namespace = &guest.namespace;
    support::sh(&format!("ip -n {namespace} route add 10.201.0.0/24 dev eth0"));
    assert_eq!(guest.run(|| pings(Ipv4Addr::new(10, 201, 0, 5), 1, Duration::from_millis(200))).await, 0);
    guest
        .run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
            socket.set_broadcast(true).expect("set");
            socket.send_to(b"all", "255.255.255.255:9").expect("sent");
            socket.send_to(b"all", "224.0.0.251:5353").expect("sent");
        })
        .await;
    // Ports come and go beside it.
    world.publish(vec![quiet.clone(), busy.clone(), last.clone(), port(8, 1, &[])]);
    world.settled().await;
    world.publish(vec![quiet.clone(), busy.clone(), last.clone()]);
    world.settled().await;
    // And it stays so when a new vpc has looked at everything.
    world.kill();
    world.start(&[]);
    world.settled().await;
    drop(told);
    told = wakes(&world).await;
    knock(&world, 7, 1).await;
    assert_eq!(next(&mut told).await, last.vm, "the first that is told at all");
    // Nobody has read a queue since its TAP was made, so all that ever came out is still there.
    for (last, expected) in [(5, 0), (7, 1)] {
        let queues = world.tap(last).await.expect("a TAP");
        assert_eq!(queues.iter().map(drain).sum::<u32>(), expected, "of {last}");
    }
    assert_eq!(lost(&world, &quiet.vm).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_frames_wait_as_promised_and_the_rest_are_counted() {
    let port = asleep(5, 1);
    let world = World::with_ports(vec![port.clone()]).await;
    let queues = world.tap(5).await.expect("a TAP");
    knock(&world, 5, WAITING_FRAMES + 100).await;
    assert_eq!(lost(&world, &port.vm).await, 100);
    assert_eq!(drain(&queues[0]), WAITING_FRAMES);
}
