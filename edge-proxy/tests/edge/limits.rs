//! What one client, or one host, may take; who may say whose connection it is; bodies that come too slowly.

use crate::world::{PATIENCE, World, text};
use edge_proxy::metrics::Count;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A counter of answers, by name.
fn answered(world: &World, name: &str) -> u64 {
    world.metrics.snapshot().get(name).copied().unwrap_or_default()
}

/// A connection from one of the loopback network's addresses.
async fn from(world: &World, source: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(source)), 0)).expect("bind");
    socket.connect(world.https).await.expect("connect")
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_address_are_bounded_and_others_have_their_own() {
    let world = World::with(|settings| settings.guard.connections_per_address = 3).await;
    let mut open = Vec::new();
    while let Ok(tls) = world.tls_over(from(&world, [127, 0, 0, 5]).await, "a.style.dev", &[]).await {
        open.push(tls);
        assert!(open.len() <= 3, "the bound holds");
    }
    assert_eq!(open.len(), 3);
    world.counted(Count::OverAddress, 1).await;
    let other = world.tls_over(from(&world, [127, 0, 0, 6]).await, "a.style.dev", &[]).await;
    other.expect("another address");
    open.pop();
    world
        .until(|| async {
            world.tls_over(from(&world, [127, 0, 0, 5]).await, "a.style.dev", &[]).await.is_ok()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once_are_bounded_by_address_and_by_host() {
    for (by_address, by_host, counter) in
        [(2, 0, "answered_429_at_once_per_address"), (0, 2, "answered_429_at_once_per_host")]
    {
        let world = Arc::new(
            World::with(|settings| {
                settings.guard.requests_at_once_per_address = by_address;
                settings.guard.requests_at_once_per_host = by_host;
            })
            .await,
        );
        let (begun, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (telling, waiting) = (Arc::clone(&begun), Arc::clone(&gate));
        world
            .serve("a.style.dev", 3000, move |_| {
                let (begun, gate) = (Arc::clone(&telling), Arc::clone(&waiting));
                async move {
                    begun.add_permits(1);
                    gate.acquire().await.expect("open").forget();
                    text("ok")
                }
            })
            .await;
        let held: Vec<_> = (0..2)
            .map(|_| {
                let world = Arc::clone(&world);
                tokio::spawn(async move { world.curl("https://a.style.dev/", &[]).await })
            })
            .collect();
        begun.acquire_many(2).await.expect("both have begun").forget();
        for version in ["--http1.1", "--http2"] {
            let third = world.curl("https://a.style.dev/", &[version, "-i"]).await;
            let told = third.out.to_lowercase();
            assert!(told.contains(" 429 ") && told.contains("retry-after: 1"), "{third:?}");
            assert!(told.contains("too_many_requests"), "{third:?}");
        }
        let upgrade = ["-i", "--http1.1", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket"];
        let socket = world.curl("https://a.style.dev/", &upgrade).await;
        assert!(socket.out.starts_with("HTTP/1.1 429 "), "{socket:?}");
        assert_eq!(answered(&world, counter), 3);
        gate.add_permits(3);
        for one in held {
            assert_eq!(one.await.expect("curl").out, "ok");
        }
        // Places are given back.
        let again = world.curl("https://a.style.dev/", &[]).await;
        assert_eq!(again.out, "ok", "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_are_bounded_by_address_and_by_host() {
    for (by_address, by_host, counter) in
        [(1, 0, "answered_429_rate_per_address"), (0, 1, "answered_429_rate_per_host")]
    {
        let world = World::with(|settings| {
            settings.guard.requests_per_second_per_address = by_address;
            settings.guard.requests_per_second_per_host = by_host;
        })
        .await;
        world.serve("a.style.dev", 3000, |_| async { text("ok") }).await;
        // However slow the machine is, twenty requests of one connection take less than twenty seconds.
        let url = ["https://a.style.dev/"; 19];
        let many = world
            .curl(
                "https://a.style.dev/",
                &[&["-w", "%{http_code}\n", "-o", "/dev/null"][..], &url[..]].concat(),
            )
            .await;
        assert!(many.out.contains("200") && many.out.contains("429"), "{many:?}");
        assert!(answered(&world, counter) >= 1);
        // It comes back by itself.
        world.until(|| async { world.curl("https://a.style.dev/", &[]).await.out == "ok" }).await;
    }
}

/// The first bytes of a connection, then a request through TLS; what it says of the client.
async fn told(world: &World, source: [u8; 4], header: &[u8]) -> std::io::Result<String> {
    let mut tcp = from(world, source).await;
    tcp.write_all(header).await?;
    let mut tls = world.tls_over(tcp, "a.style.dev", &["http/1.1"]).await?;
    tls.write_all(b"GET / HTTP/1.1\r\nHost: a.style.dev\r\nConnection: close\r\n\r\n").await?;
    tls.flush().await?;
    let mut answer = Vec::new();
    timeout(PATIENCE, tls.read_to_end(&mut answer)).await.expect("in time")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_balancer_tells_the_clients_address_and_nobody_else_does() {
    let world = World::with(|settings| {
        settings.proxy_protocol_from = vec!["127.0.0.8/30".parse().expect("range")];
        settings.proxy_header_wait = Duration::from_millis(700);
    })
    .await;
    world
        .serve("a.style.dev", 3000, |request| async move {
            text(request.headers()["x-forwarded-for"].as_bytes().to_vec())
        })
        .await;
    let balancer = [127, 0, 0, 9];
    let line = b"PROXY TCP4 192.0.2.7 127.0.0.1 56324 443\r\n";
    let one = told(&world, balancer, line).await.expect("version 1");
    assert!(one.ends_with("192.0.2.7"), "{one}");
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    binary.extend("2001:db8::7".parse::<std::net::Ipv6Addr>().expect("address").octets());
    binary.extend([0; 16]);
    binary.extend([0, 1, 1, 187]);
    let two = told(&world, balancer, &binary).await.expect("version 2");
    assert!(two.ends_with("2001:db8::7"), "{two}");
    let local = told(&world, balancer, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").await.expect("a health check");
    assert!(local.ends_with("127.0.0.9"), "{local}");
    assert_eq!((world.count(Count::Proxied), world.count(Count::ProxyLocal)), (2, 1));
    // Without its header, with a wrong one, or with half of one, a balancer's connection is closed.
    told(&world, balancer, b"").await.expect_err("none");
    told(&world, balancer, b"PROXY TCP4 nobody 127.0.0.1 1 2\r\n").await.expect_err("wrong");
    world.counted(Count::BadProxyHeader, 2).await;
    let mut half = from(&world, balancer).await;
    half.write_all(b"PROXY TCP4 ").await.expect("write");
    let mut rest = Vec::new();
    let _either_way = timeout(PATIENCE, half.read_to_end(&mut rest)).await.expect("it is closed");
    world.counted(Count::ProxyHeaderLate, 1).await;
    drop(from(&world, balancer).await);
    world.counted(Count::ProxyHeaderCut, 1).await;
    // From anyone else it is no header but a handshake that fails.
    let before = world.count(Count::HandshakeFailed);
    told(&world, [127, 0, 0, 1], line).await.expect_err("a stranger");
    world.counted(Count::HandshakeFailed, before + 1).await;
    assert_eq!(world.count(Count::Proxied), 2);
}

/// Clients behind a balancer are bounded each by itself.
#[tokio::test(flavor = "multi_thread")]
async fn bounds_are_the_clients_and_not_the_balancers() {
    let world = World::with(|settings| {
        settings.proxy_protocol_from = vec!["127.0.0.9".parse().expect("range")];
        settings.guard.connections_per_address = 1;
    })
    .await;
    let as_client = async |client: &str| {
        let mut tcp = from(&world, [127, 0, 0, 9]).await;
        tcp.write_all(format!("PROXY TCP4 {client} 127.0.0.1 1 443\r\n").as_bytes()).await.expect("write");
        world.tls_over(tcp, "a.style.dev", &[]).await
    };
    let _first = as_client("192.0.2.1").await.expect("first");
    let _second = as_client("192.0.2.2").await.expect("second");
    as_client("192.0.2.1").await.expect_err("the first again");
    world.counted(Count::OverAddress, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_drips_is_cut() {
    let world = World::with(|settings| {
        settings.body_grace = Duration::from_millis(200);
        settings.guard.body_bytes_per_second = 1_000_000;
    })
    .await;
    world
        .serve("a.style.dev", 3000, |request| async move {
            match http_body_util::BodyExt::collect(request.into_body()).await {
                Ok(body) => text(format!("{}", body.to_bytes().len())),
                Err(_) => text("broken off"),
            }
        })
        .await;
    let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let head = b"POST / HTTP/1.1\r\nHost: a.style.dev\r\nContent-Length: 100000000\r\n\r\n";
    tls.write_all(head).await.expect("write");
    let (mut hear, mut say) = tokio::io::split(tls);
    let dripping = tokio::spawn(async move {
        while say.write_all(b"x").await.is_ok() && say.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut answer = Vec::new();
    let _either_way = timeout(PATIENCE, hear.read_to_end(&mut answer)).await.expect("it is cut");
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    dripping.abort();
    world.counted(Count::BodySlow, 1).await;
    let tls = world.tls("a.style.dev", &["h2"]).await.expect("tls");
    let (mut sender, connection) = h2::client::handshake(tls).await.expect("handshake");
    let driving = tokio::spawn(connection);
    let request = http::Request::post("https://a.style.dev/").body(()).expect("request");
    let (answer, mut say) = sender.send_request(request, false).expect("send");
    let dripping = tokio::spawn(async move {
        while say.send_data("x".into(), false).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let answer = timeout(PATIENCE, answer).await.expect("it is cut");
    assert!(answer.map_or(true, |answer| answer.status() == 408));
    dripping.abort();
    driving.abort();
    world.counted(Count::BodySlow, 2).await;
    // A quick one is not hurt.
    let quick = world.curl("https://a.style.dev/", &["-d", "12345"]).await;
    assert_eq!(quick.out, "5", "{quick:?}");
}
