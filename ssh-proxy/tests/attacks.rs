//! Who attacks the front: one in the middle of a key exchange, and thousands who guess.

mod support;

use model::config::SshLimits;
use russh::client::{self, AuthResult};
use russh::keys::PublicKeyOrCertificate;
use ssh_proxy::io::login::line;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::{PATIENCE, Said, World, eventually, token, vm};
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

/// SSH_MSG_DISCONNECT, SSH_MSG_IGNORE, SSH_MSG_KEXINIT, SSH_MSG_NEWKEYS (RFC 4253, section 12), and
/// SSH_MSG_KEX_ECDH_INIT and SSH_MSG_KEX_ECDH_REPLY (RFC 5656, section 7.1).
const DISCONNECT: u8 = 1;
const IGNORE: u8 = 2;
const KEXINIT: u8 = 20;
const NEWKEYS: u8 = 21;
const ECDH_INIT: u8 = 30;
const ECDH_REPLY: u8 = 31;

/// A packet before keys are in use (RFC 4253, section 6).
fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 8 - (payload.len() + 5) % 8 + 8;
    let mut packet = u32::try_from(payload.len() + padding + 1).expect("short").to_be_bytes().to_vec();
    packet.push(u8::try_from(padding).expect("short"));
    packet.extend(payload);
    packet.resize(packet.len() + padding, 0);
    packet
}

/// The payload of the next packet before keys are in use; none at the end of the connection.
fn receive(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut rest = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut rest).ok()?;
    let padding = usize::from(*rest.first()?);
    Some(rest.get(1..rest.len().checked_sub(padding)?)?.to_vec())
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn kexinit(strict: bool) -> Vec<u8> {
    let kex = if strict { "curve25519-sha256,kex-strict-c-v00@openssh.com" } else { "curve25519-sha256" };
    let (cipher, mac) = ("chacha20-poly1305@openssh.com", "hmac-sha2-256");
    let mut payload = vec![KEXINIT];
    payload.extend([5; 16]);
    for list in [kex, "ssh-ed25519", cipher, cipher, mac, mac, "none", "none", "", ""] {
        payload.extend(string(list));
    }
    payload.extend([0; 5]);
    payload
}

/// Where a packet of an attacker is put.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    Kexinit,
    EcdhInit,
    Newkeys,
}

/// A key exchange up to NEWKEYS: the numbers of what the front sends, up to its NEWKEYS where `heard` would be next, or
/// the end of the connection. And the names of the key exchanges that it offers.
fn exchange(front: SocketAddr, strict: bool, before: Before) -> (Vec<u8>, String) {
    let mut stream = TcpStream::connect(front).expect("accepted");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut reader = BufReader::new(stream.try_clone().expect("same"));
    let mut banner = String::new();
    reader.read_line(&mut banner).expect("a banner");
    assert!(banner.starts_with("SSH-2.0-"), "{banner}");
    let mut all = b"SSH-2.0-attacker\r\n".to_vec();
    let ecdh_init = [&[ECDH_INIT, 0, 0, 0, 32][..], &[9; 32]].concat();
    for (place, payload) in [(Before::Kexinit, kexinit(strict)), (Before::EcdhInit, ecdh_init)] {
        if place == before {
            all.extend(packet(&[IGNORE, 0, 0, 0, 0]));
        }
        all.extend(packet(&payload));
    }
    // It may have gone away before all is written.
    stream.write_all(&all).ok();
    let (mut heard, mut offered) = (Vec::new(), String::new());
    while let Some(payload) = receive(&mut reader) {
        heard.push(payload[0]);
        if payload[0] == KEXINIT {
            offered = String::from_utf8_lossy(payload.get(21..).expect("names")).into_owned();
        }
        if payload[0] == NEWKEYS && before != Before::Newkeys {
            break;
        }
        if payload[0] == NEWKEYS {
            stream.write_all(&packet(&[IGNORE, 0, 0, 0, 0])).expect("written");
        }
    }
    (heard, offered)
}

/// Terrapin (CVE-2023-48795): who can put packets before NEWKEYS can take as many away after it. With strict key exchange
/// (PROTOCOL of OpenSSH, 1.9) the first such packet ends the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_packet_put_into_the_key_exchange_ends_it() {
    let world = World::new();
    tokio::task::block_in_place(|| {
        let (heard, offered) = exchange(world.front, true, Before::Nothing);
        assert_eq!(heard, [KEXINIT, ECDH_REPLY, NEWKEYS]);
        assert!(offered.contains("kex-strict-s-v00@openssh.com"), "{offered}");
        for before in [Before::Kexinit, Before::EcdhInit] {
            let (heard, _) = exchange(world.front, true, before);
            assert!(!heard.contains(&ECDH_REPLY), "{before:?}: {heard:?}");
        }
        // The end comes, and nothing but a DISCONNECT before it.
        let (heard, _) = exchange(world.front, true, Before::Newkeys);
        assert!([&[][..], &[DISCONNECT]].contains(&&heard[3..]), "{heard:?}");
        // The packet is as good as any for who does not ask for strictness: nothing else ended the others.
        for before in [Before::Kexinit, Before::EcdhInit] {
            let (heard, _) = exchange(world.front, false, before);
            assert_eq!(heard, [KEXINIT, ECDH_REPLY, NEWKEYS], "{before:?}");
        }
    });
}

/// One in the middle, at the returned port: puts a packet before the client's NEWKEYS, if it shall. How often it did.
fn in_the_middle(front: SocketAddr, puts: bool) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    let count = Arc::<AtomicUsize>::default();
    let counts = Arc::clone(&count);
    std::thread::spawn(move || {
        let (client, _) = listener.accept().expect("a client");
        let mut server = TcpStream::connect(front).expect("the front");
        let (mut back, mut to) = (server.try_clone().expect("same"), client.try_clone().expect("same"));
        std::thread::spawn(move || {
            std::io::copy(&mut back, &mut to).ok();
            to.shutdown(Shutdown::Both).ok();
        });
        let mut client = BufReader::new(client);
        let mut banner = Vec::new();
        client.read_until(b'\n', &mut banner).expect("a banner");
        server.write_all(&banner).expect("written");
        while let Some(payload) = receive(&mut client) {
            let last = payload[0] == NEWKEYS;
            if last && puts {
                server.write_all(&packet(&[IGNORE, 0, 0, 0, 0])).expect("written");
                counts.fetch_add(1, Ordering::SeqCst);
            }
            server.write_all(&packet(&payload)).expect("written");
            if last {
                break;
            }
        }
        std::io::copy(&mut client, &mut server).ok();
        server.shutdown(Shutdown::Write).ok();
    });
    (port, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn openssh_gets_no_session_by_one_who_puts_packets_in() {
    let world = World::new();
    for (puts, expected) in [(false, (Some(0), "in\n")), (true, (Some(255), ""))] {
        let (port, count) = in_the_middle(world.front, puts);
        let mut ssh = world.ssh();
        // Before all other options, so that it is the port that counts.
        let words: Vec<_> = ssh.get_args().map(ToOwned::to_owned).collect();
        let mut through = std::process::Command::new("ssh");
        through.arg("-p").arg(port.to_string());
        through.arg("-o").arg(format!("HostKeyAlias=[127.0.0.1]:{}", world.front.port()));
        through.args(words).arg("echo in").stdin(std::process::Stdio::null());
        let (code, out, error) = through.all();
        assert_eq!((code, out.as_str()), expected, "{error}");
        assert_eq!(count.load(Ordering::SeqCst), usize::from(puts));
        // The front itself is as it was.
        assert_eq!(ssh.arg("echo in").out(), "in\n");
    }
}

/// Knows the front by its key.
struct Knows(String);

impl client::Handler for Knows {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(
            matches!(key, PublicKeyOrCertificate::PublicKey { key, .. } if line(key).as_ref() == Some(&self.0)),
        )
    }
}

/// Guesses that are under way at once: fewer than the front hears without a login, since it is slowness that is looked
/// for and not refusal.
const AT_ONCE: usize = 64;
/// Guesses, if nothing else is said.
const GUESSES: u32 = 300;
/// Good logins whose time is taken before the guesses.
const ALONE: usize = 10;

/// A connection from an address of this host.
async fn connect(front: SocketAddr, from: Ipv4Addr) -> std::io::Result<tokio::net::TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(front).await
}

/// Guessing, and somebody who knows.
struct Guesses {
    front: SocketAddr,
    key: String,
    settings: Arc<client::Config>,
}

impl Guesses {
    fn new(world: &World) -> Self {
        let public = std::fs::read_to_string(world.at("front_ed.pub")).expect("there");
        let key = public.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        Self { front: world.front, key, settings: Arc::default() }
    }

    /// A login from an address of this host.
    async fn login(&self, from: Ipv4Addr, password: String) -> Result<AuthResult, russh::Error> {
        let stream = connect(self.front, from).await?;
        let handler = Knows(self.key.clone());
        let mut session = client::connect_stream(Arc::clone(&self.settings), stream, handler).await?;
        session.authenticate_password(vm(1).as_str(), password).await
    }

    /// The time of a login that succeeds.
    async fn good(&self) -> Duration {
        let begun = Instant::now();
        let said = self.login(Ipv4Addr::LOCALHOST, token(1).expose().to_owned()).await;
        assert!(said.as_ref().is_ok_and(AuthResult::success), "{said:?}");
        begun.elapsed()
    }
}

/// Guesses at one VM, each from an address of its own, and good logins at it meanwhile. `GUESSES` says how many; with
/// `GUESSES=10000` it takes some three minutes, and its figures say something on a quiet machine.
#[tokio::test(flavor = "multi_thread")]
async fn guesses_shut_nobody_out() {
    let count = std::env::var("GUESSES").map_or(GUESSES, |text| text.parse().expect("GUESSES is a number"));
    let world = World::new();
    let guesses = Arc::new(Guesses::new(&world));
    let mut alone = Vec::new();
    for _ in 0..ALONE {
        alone.push(guesses.good().await);
    }
    let over = Arc::<AtomicBool>::default();
    let (beside, stop) = (Arc::clone(&guesses), Arc::clone(&over));
    let good = tokio::spawn(async move {
        let mut times = Vec::new();
        while !stop.load(Ordering::SeqCst) || times.len() < ALONE {
            times.push(beside.good().await);
        }
        times
    });
    let begun = Instant::now();
    let mut ends = BTreeMap::<&str, u32>::new();
    let mut running = JoinSet::new();
    for number in 0..count {
        if running.len() >= AT_ONCE {
            *ends.entry(running.join_next().await.expect("some run").expect("no panic")).or_default() += 1;
        }
        let guesses = Arc::clone(&guesses);
        let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 0)) + number);
        running.spawn(async move {
            match guesses.login(from, token(2).expose().to_owned()).await {
                Ok(said) if said.success() => "let in",
                Ok(_) => "refused",
                Err(_) => "cut",
            }
        });
    }
    while let Some(end) = running.join_next().await {
        *ends.entry(end.expect("no panic")).or_default() += 1;
    }
    let took = begun.elapsed();
    over.store(true, Ordering::SeqCst);
    let mut times = good.await.expect("each good login succeeds");
    assert!(!ends.contains_key("let in"), "{ends:?}");
    assert_eq!(ends.values().sum::<u32>(), count);
    // Each was heard: none was turned away for want of room, or as an address that failed before.
    for reason in ["throttled", "full", "address_full"] {
        assert!(!world.log().contains(&format!("\"{reason}\"")), "{reason}");
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (alone, among, logins) = (median(&mut alone), median(&mut times), times.len());
    println!(
        "{count} guesses in {took:?}: {ends:?}; {logins} good logins among them took {among:?} (median), alone {alone:?}: \
         {:.2} times; the front's memory at its height {} KiB",
        among.as_secs_f64() / alone.as_secs_f64(),
        world.memory("VmHWM")
    );
}

/// Silent connections of few addresses take all places of those without a login; others get in all the same.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_shuts_nobody_out() {
    /// Addresses that come one after another, and as many at once.
    const NEW: u8 = 20;
    let world = World::new();
    let limits = SshLimits::default();
    let guesses = Arc::new(Guesses::new(&world));
    let addresses = limits.unauthenticated / limits.unauthenticated_per_address;
    let silent_at = |number: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 2, 0, 1)) + number);
    let mut silent = Vec::new();
    for place in 0..limits.unauthenticated {
        let mut stream = connect(world.front, silent_at(place % addresses)).await.expect("accepted");
        // Its place is taken once it is spoken to.
        stream.read_exact(&mut [0; 4]).await.expect("a banner");
        silent.push(stream);
    }
    // One more of theirs is refused, and displaces nobody.
    let mut more = connect(world.front, silent_at(0)).await.expect("accepted");
    assert!(more.read_exact(&mut [0; 4]).await.is_err(), "no place");
    let count = |reason: &str| world.log().matches(&format!("\"{reason}\"")).count();
    eventually("it is logged", || count("address_full") == 1);
    assert_eq!(count("displaced"), 0);
    // Those who are new get in, one after another and at once.
    let login = |from: Ipv4Addr| {
        let guesses = Arc::clone(&guesses);
        async move { guesses.login(from, token(1).expose().to_owned()).await }
    };
    let mut at_once = JoinSet::new();
    for number in 1..=NEW {
        let said = login(Ipv4Addr::new(127, 3, 0, number)).await;
        assert!(said.as_ref().is_ok_and(AuthResult::success), "{number}: {said:?}");
        at_once.spawn(login(Ipv4Addr::new(127, 4, 0, number)));
    }
    while let Some(said) = at_once.join_next().await {
        let said = said.expect("no panic");
        assert!(said.as_ref().is_ok_and(AuthResult::success), "{said:?}");
    }
    // Each took one place at most; those who lost theirs get nothing but the end after what was said before.
    let is_cut = |stream: tokio::net::TcpStream| {
        // It still never blocks.
        let mut stream = stream.into_std().expect("a socket");
        loop {
            match stream.read(&mut [0; 64]) {
                Ok(1..) => {}
                Ok(0) => return true,
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    };
    let cut = silent.into_iter().map(is_cut).filter(|cut| *cut).count();
    assert!((1..=2 * usize::from(NEW)).contains(&cut), "{cut}");
    eventually("it is logged", || count("displaced") == cut);
    // The oldest was the first to go, and of those who were new none.
    let displaced: Vec<_> =
        world.log().lines().filter(|line| line.contains("displaced")).map(str::to_owned).collect();
    assert!(
        displaced[0].contains("\"127.2.0.1\"") && displaced.iter().all(|line| line.contains("\"127.2.")),
        "{displaced:?}"
    );
    assert_eq!(count("full"), 0);
}
