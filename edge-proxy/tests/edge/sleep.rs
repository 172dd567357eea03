//! VMs that sleep and wake under the door: requests are held while they wake, and what their earlier runs left in the
//! pool harms nobody.

use crate::basics::{ask, h1};
use crate::world::{Behind, PATIENCE, World, http_server, text};
use edge_proxy::dial::PROBE_AFTER;
use edge_proxy::metrics::Count;
use http::StatusCode;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Barrier, Semaphore};
use tokio::time::timeout;

fn semaphore() -> &'static Semaphore {
    Box::leak(Box::new(Semaphore::new(0)))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_a_sleeping_vm_are_held_until_it_wakes() {
    const REQUESTS: u32 = 8;
    let world = Arc::new(World::new().await);
    let server = http_server(|_| async { text("awake") }).await;
    let (dialled, woken) = (semaphore(), semaphore());
    world.behind(3000, Behind::Sleeps { dialled, woken, server });
    world.map("a.style.dev", 3000).await;
    let asked: Vec<_> = (0..REQUESTS)
        .map(|number| {
            let world = Arc::clone(&world);
            let version = if number % 2 == 0 { "--http1.1" } else { "--http2" };
            tokio::spawn(async move { world.curl("https://a.style.dev/", &[version, "-d", "12345"]).await })
        })
        .collect();
    timeout(PATIENCE, dialled.acquire_many(REQUESTS)).await.expect("all are dialled").expect("open").forget();
    assert!(asked.iter().all(|one| !one.is_finished()));
    // As it wakes, control says that it is another run.
    world
        .change(|view| {
            let mut routes: Vec<_> = view.routes.iter().cloned().collect();
            routes[0].run = 2;
            view.routes = routes.into();
        })
        .await;
    woken.add_permits(REQUESTS as usize);
    for one in asked {
        let one = one.await.expect("no panic");
        assert_eq!((one.code, one.out.as_str()), (0, "awake"), "{one:?}");
    }
    // Those connections began before the change, so they are the old run's and not used again.
    let saved = world.count(Count::DialsSaved);
    let (mut sender, _driving) = h1(&world, "a.style.dev").await;
    woken.add_permits(1);
    assert_eq!(ask(&mut sender, "a.style.dev").await, (StatusCode::OK, "awake".to_owned()));
    let expected = (u64::from(REQUESTS) + 1, saved);
    assert_eq!((world.count(Count::Dials), world.count(Count::DialsSaved)), expected);
}

/// As a browser asks for a page.
const LOOK: [&str; 4] = ["-H", "Accept: text/html,*/*;q=0.8", "-H", "Sec-Fetch-Mode: navigate"];

#[tokio::test(flavor = "multi_thread")]
async fn a_person_gets_a_page_that_looks_again_while_the_vm_wakes_and_all_else_is_held() {
    let world = Arc::new(World::with(|settings| settings.page_after = Duration::from_millis(200)).await);
    let server = http_server(|_| async { text("awake") }).await;
    let (dialled, woken) = (semaphore(), semaphore());
    world.behind(3000, Behind::Sleeps { dialled, woken, server });
    world.map("a.style.dev", 3000).await;
    // Whoever is no browser, or no page of one, is held.
    let held: Vec<_> = [
        vec!["-H", "Accept: text/html", "-d", "12345"],
        vec!["-H", "Accept: text/html", "-H", "Sec-Fetch-Mode: cors"],
        vec!["-H", "Accept: application/json"],
    ]
    .into_iter()
    .map(|more| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.curl("https://a.style.dev/", &more).await })
    })
    .collect();
    timeout(PATIENCE, dialled.acquire_many(3)).await.expect("dialled").expect("open").forget();
    for version in ["--http1.1", "--http2"] {
        let look = world.curl("https://a.style.dev/x?y", &[&LOOK[..], &["-i", version]].concat()).await;
        assert!(look.code == 0 && look.out.contains(" 503"), "{look:?}");
        assert!(
            look.out.contains("retry-after: 2") && look.out.contains("http-equiv=\"refresh\""),
            "{look:?}"
        );
        let head = world.curl("https://a.style.dev/", &[&LOOK[..], &["-I", version]].concat()).await;
        assert!(head.code == 0 && head.out.contains(" 503") && !head.out.contains("<h1>"), "{head:?}");
    }
    // Four looks, one dial, and the VM goes on waking.
    assert_eq!((world.count(Count::Dials), held.iter().any(|one| one.is_finished())), (4, false));
    woken.add_permits(4);
    for one in held {
        let one = one.await.expect("no panic");
        assert_eq!((one.code, one.out.as_str()), (0, "awake"), "{one:?}");
    }
    woken.add_permits(8);
    let again = world.curl("https://a.style.dev/", &LOOK).await;
    assert_eq!((again.code, again.out.as_str()), (0, "awake"), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_told_in_the_end_when_the_vm_does_not_wake() {
    let world = World::with(|settings| settings.page_after = Duration::from_millis(50)).await;
    let (dialled, woken) = (semaphore(), semaphore());
    // Nobody listens there any more, so the dial fails as soon as it is let through.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    world.behind(3000, Behind::Sleeps { dialled, woken, server: nowhere });
    world.map("a.style.dev", 3000).await;
    let look = world.curl("https://a.style.dev/", &[&LOOK[..], &["-i"]].concat()).await;
    assert!(look.out.contains(" 503") && look.out.contains("refresh"), "{look:?}");
    woken.add_permits(64);
    // How soon the dial has failed is the scheduler's affair.
    world
        .until(|| async {
            let look = world.curl("https://a.style.dev/", &[&LOOK[..], &["-i"]].concat()).await;
            look.out.contains(" 502")
                && look.out.contains("nothing in it listens")
                && !look.out.contains("refresh")
        })
        .await;
}

/// Answers the first request of each connection when `together` of them are there, and closes over the second.
async fn once_each(together: usize) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let barrier = Arc::new(Barrier::new(together));
    tokio::spawn(async move {
        let mut connections = 0;
        while let Ok((mut tcp, _)) = listener.accept().await {
            connections += 1;
            let barrier = (connections <= together).then(|| Arc::clone(&barrier));
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                let _head = tcp.read(&mut bytes).await.expect("read");
                if let Some(barrier) = barrier {
                    barrier.wait().await;
                }
                tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write");
                let _second = tcp.read(&mut bytes).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_pooled_connection_costs_one_more_try_on_a_fresh_one_and_only_what_may_be_repeated() {
    const POOLED: usize = 5;
    let world = World::new().await;
    world.behind(3000, Behind::Server(once_each(POOLED).await));
    world.map("a.style.dev", 3000).await;
    let asked = (0..POOLED).map(|_| async {
        let (mut sender, driving) = h1(&world, "a.style.dev").await;
        assert_eq!(ask(&mut sender, "a.style.dev").await.0, StatusCode::OK);
        driving.abort();
    });
    futures_util::future::join_all(asked).await;
    assert_eq!(world.count(Count::Dials), POOLED as u64);
    // All of the pooled ones close over their next request. The first is met, and then none of the others.
    let again = world.curl("https://a.style.dev/", &[]).await;
    assert_eq!((again.code, again.out.as_str()), (0, "ok"), "{again:?}");
    assert_eq!((world.count(Count::Retries), world.count(Count::Dials)), (1, POOLED as u64 + 1));
    let posted = world.curl("https://a.style.dev/", &["--http1.1", "-i", "-d", "12345"]).await;
    assert!(posted.out.contains(" 502 ") && posted.out.contains("VM_ANSWER_BROKEN"), "{posted:?}");
    assert_eq!((world.count(Count::Retries), world.count(Count::Dials)), (1, POOLED as u64 + 1));
}

/// What the kernel waits with on the connections to a port of this host, and hundredths of a second until then (the timer
/// of a line in /proc/net/tcp; 2 is that of probes).
fn timers(port: u16) -> Vec<(u8, u64)> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("table");
    let peer = format!(":{port:04X}");
    let lines = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let open = lines.filter(|fields| fields[2].ends_with(&peer) && fields[3] == "01");
    open.map(|fields| {
        let (timer, left) = fields[5].split_once(':').expect("timer");
        (timer.parse().expect("number"), u64::from_str_radix(left, 16).expect("number"))
    })
    .collect()
}

/// A VM that gets a request on each connection and says no more than this.
async fn silent_after(answer: &'static [u8], heard: &'static Semaphore) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _head = tcp.read(&mut [0; 4096]).await.expect("read");
                tcp.write_all(answer).await.expect("write");
                heard.add_permits(1);
                let _rest = tcp.read(&mut [0; 4096]).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_answer_is_waited_for_is_probed_and_one_that_may_be_silent_is_let_sleep() {
    let world = World::new().await;
    let heard = semaphore();
    let events = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let socket = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut asked = Vec::new();
    // A pooled connection is probed, and events do not take it.
    let pooled = http_server(|_| async { text("quick") }).await;
    world.behind(3000, Behind::Server(pooled));
    world.map("a.style.dev", 3000).await;
    let (mut sender, _driving) = h1(&world, "a.style.dev").await;
    assert_eq!(ask(&mut sender, "a.style.dev").await.0, StatusCode::OK);
    for (fields, answer, probed) in [
        ("", &b""[..], true),
        ("Accept: text/event-stream\r\n", &events[..], false),
        (upgrade, &socket[..], false),
        (
            "Accept: text/html\r\n",
            &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n"[..],
            true,
        ),
    ] {
        let server = silent_after(answer, heard).await;
        world.behind(3000, Behind::Server(server));
        if probed {
            // A run of its own, so that nothing is pooled.
            let run = 2 + asked.len() as u64;
            world
                .change(|view| {
                    let mut routes: Vec<_> = view.routes.iter().cloned().collect();
                    routes[0].run = run;
                    view.routes = routes.into();
                })
                .await;
        }
        let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
        let request = format!("GET / HTTP/1.1\r\nHost: a.style.dev\r\n{fields}\r\n");
        tls.write_all(request.as_bytes()).await.expect("write");
        timeout(PATIENCE, heard.acquire()).await.expect("it came to the VM").expect("open").forget();
        if !answer.is_empty() {
            let read = timeout(PATIENCE, tls.read(&mut [0; 4096])).await;
            assert!(matches!(read, Ok(Ok(1..))), "{fields:?}: {read:?}");
        }
        // Until what was sent is acknowledged the kernel waits for that.
        let settled =
            async || Some(timers(server.port())).filter(|timers| timers.iter().all(|(timer, _)| *timer != 1));
        let timers = world.until_some(settled).await;
        match (timers.as_slice(), probed) {
            ([(2, left)], true) => assert!(*left <= PROBE_AFTER.as_secs() * 100, "{fields:?}: {left}"),
            ([(0, _)], false) => {}
            other => panic!("{fields:?}: {other:?}"),
        }
        asked.push(tls);
    }
}
