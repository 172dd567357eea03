//! vpn killed at random moments, under traffic and handshakes and while it starts: its clients (wireguard-go) come back
//! each time by themselves, and nothing is left of what was killed. Needs root and Debian's wireguard-go and
//! wireguard-tools.
//!
//! KILLS says how often (a few when it does not, for CI), SEED repeats a run's choices, as far as its moments repeat.

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::world::{HOST, PORT, World, inside, sh};
use support::{Client, INSIDE, address, entry, vpc};

/// Kills when `KILLS` does not say. Each that is followed by a wait for the clients takes them 20 s.
const KILLS: u64 = 6;
/// Kills while it starts, in a row, at most.
const WHILE_STARTING: u64 = 8;
/// A start takes some 30 ms; these kills come before, within and behind it.
const START: Duration = Duration::from_millis(80);
/// A client that hears nothing for 15 s asks for new keys (WireGuard, NDSS 2017, section 6.5), and again after 5; the rest
/// is for a busy machine.
const BACK: Duration = Duration::from_secs(45);

fn number(name: &str) -> Option<u64> {
    // Set but empty is not set, as `test` passes them on.
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// What goes on all the time.
struct Load {
    stop: Arc<AtomicBool>,
    /// Datagrams that came back through a tunnel.
    echoed: Arc<AtomicU64>,
    running: Vec<JoinHandle<()>>,
}

impl Load {
    /// Both clients send without a pause to the network, which sends back; strangers ask for handshakes.
    fn begin(world: &World, network: &str, clients: &[(u16, String)]) -> Self {
        let (stop, echoed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let short = Some(Duration::from_millis(20));
        let mut running = vec![inside(network, {
            let stop = Arc::clone(&stop);
            move || {
                let socket = UdpSocket::bind((INSIDE, 7)).expect("bound");
                socket.set_read_timeout(short).expect("set");
                let mut bytes = [0; 2000];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = socket.recv_from(&mut bytes) {
                        // While no TUN is there no answer finds its way.
                        drop(socket.send_to(&bytes[..length], from));
                    }
                }
            }
        })];
        for (number, namespace) in clients {
            let (stop, echoed, own) = (Arc::clone(&stop), Arc::clone(&echoed), address(*number));
            running.push(inside(namespace, move || {
                let socket = UdpSocket::bind((own, 0)).expect("bound");
                socket.set_read_timeout(short).expect("set");
                while !stop.load(Ordering::Relaxed) {
                    // 32 at a time, of which many are lost when nobody is there.
                    let sent = (0..32).filter(|_| socket.send_to(&[7; 1000], (INSIDE, 7)).is_ok()).count();
                    let back = (0..sent).take_while(|_| socket.recv(&mut [0; 2000]).is_ok()).count();
                    echoed.fetch_add(back as u64, Ordering::Relaxed);
                }
            }));
        }
        running.push(inside(&world.router(), {
            let stop = Arc::clone(&stop);
            move || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
                let messages: Vec<Vec<u8>> =
                    (1000..1032).map(|number| Client::new(number).initiation()).collect();
                for message in messages.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                    // A port that nobody has is told of by ICMP.
                    drop(socket.send_to(message, (HOST, PORT)));
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }));
        Self { stop, echoed, running }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.running {
            thread.join().expect("went well");
        }
    }
}

/// What a process that serves has, and what is there because of it.
fn holdings(world: &World, network: &str) -> Vec<String> {
    let mut all = vec![format!("descriptors {}", world.descriptors())];
    let devices = sh(&format!("ip -n {network} -br link | sed 's/ .*//'"));
    let namespaces = sh(&format!("ip netns | sed 's/ .*//' | grep '^{}-' | sort", world.name));
    let files = sh(&format!("cd {} && find . | sort", world.folder.path().join("run").display()));
    all.extend([devices, namespaces, files]);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_process_that_was_killed_and_its_clients_come_back() {
    let kills = number("KILLS").unwrap_or(KILLS);
    let seed = number("SEED").unwrap_or_else(rand::random);
    println!("KILLS={kills} SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new();
    let network = world.network(&vpc(1), INSIDE);
    world.publish(vec![entry(1, 1), entry(2, 1)]);
    world.start();
    let clients = [1, 2].map(|number| world.client(number, "10.0.0.0/24"));
    for client in &clients {
        client.up();
        world.eventually("a ping is answered", || client.pings(INSIDE));
    }
    let spaces: Vec<(u16, String)> =
        (1..).zip(clients.iter().map(|client| client.namespace.clone())).collect();
    let load = Load::begin(&world, &network, &spaces);
    let expected = holdings(&world, &network);
    let (mut done, mut slowest) = (0, Duration::ZERO);
    while done < kills {
        std::thread::sleep(Duration::from_millis(rng.random_range(0..1000)));
        world.kill();
        done += 1;
        for _ in 0..rng.random_range(0..=WHILE_STARTING).min(kills - done) {
            world.launch();
            std::thread::sleep(START.mul_f64(rng.random()));
            world.kill();
            done += 1;
        }
        let left = sh(&format!("ip -n {network} -br link | grep -c gtun || true"));
        assert_eq!(left.trim(), "0", "a TUN outlives who held it, after {done} kills");
        let udp = sh(&format!("nsenter --net=/run/netns/{} ss -Hlun", world.host()));
        assert_eq!(udp, "", "a socket outlives who held it, after {done} kills");
        world.start();
        let begun = Instant::now();
        for client in &clients {
            world.eventually("a client is back", || client.pings(INSIDE));
        }
        slowest = slowest.max(begun.elapsed());
        assert!(begun.elapsed() < BACK, "{:?} after {done} kills", begun.elapsed());
        let before = load.echoed.load(Ordering::Relaxed);
        world.eventually("the load is carried again", || load.echoed.load(Ordering::Relaxed) > before);
        assert_eq!(holdings(&world, &network), expected, "after {done} kills, SEED={seed}");
    }
    println!(
        "{done} kills; the clients were back within {slowest:?}; {} echoes",
        load.echoed.load(Ordering::Relaxed)
    );
    load.end();
    let counted = world.stop();
    assert!(counted.contains("\"handshakes\""), "{counted}");
}
