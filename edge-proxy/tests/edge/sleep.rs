//! VMs that sleep and wake under the door: requests are held while they wake, and what their earlier runs left in the
//! pool harms nobody.

use crate::basics::{ask, h1};
use crate::world::{Behind, PATIENCE, World, http_server, text};
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
