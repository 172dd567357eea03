//! Requests find their way, answers come back, and what goes wrong is said plainly.

use crate::world::{Behind, World, http_server, text};
use edge_proxy::metrics::Count;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vpc::client::Refusal;

/// Tells what arrived: the request's line, its fields sorted, its body's length.
async fn mirror(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let mut told = format!("{} {}\n", request.method(), request.uri());
    let mut fields: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().expect("text")))
        .collect();
    fields.sort();
    told.extend(fields);
    let body = request.into_body().collect().await.expect("body").to_bytes();
    told.push_str(&format!("body {}\n", body.len()));
    text(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_http_reach_the_vm_and_the_client_is_told_truly() {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, mirror).await;
    for version in ["--http1.1", "--http2"] {
        let spoofed = [
            version,
            "-H",
            "X-Forwarded-For: 6.6.6.6",
            "-H",
            "Forwarded: for=6.6.6.6",
            "-H",
            "X-Real-IP: 6.6.6.6",
            "-H",
            "X-Forwarded-Proto: gopher",
            "-d",
            "12345",
        ];
        let asked = world.curl("https://a.style.dev/p?q=1", &spoofed).await;
        assert_eq!(asked.code, 0, "{asked:?}");
        let port = world.https.port();
        for line in [
            "POST /p?q=1",
            "host: a.style.dev",
            "x-forwarded-for: 127.0.0.1",
            "x-real-ip: 127.0.0.1",
            "x-forwarded-proto: https",
            "x-forwarded-host: a.style.dev",
            &format!("x-forwarded-port: {port}"),
            "forwarded: for=127.0.0.1;host=\"a.style.dev\";proto=https",
            "body 5",
        ] {
            assert!(asked.out.lines().any(|got| got == line), "{version}: {line} in\n{}", asked.out);
        }
        assert!(!asked.out.contains("6.6.6.6"), "{}", asked.out);
    }
    assert!(world.count(Count::Spoofed) >= 8 && world.count(Count::Http2) == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_and_1_3_and_resumption() {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, mirror).await;
    for version in [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3", "--tls-max", "1.3"]] {
        let asked = world.curl("https://a.style.dev/", &version).await;
        assert_eq!(asked.code, 0, "{asked:?}");
    }
    let old = world.curl("https://a.style.dev/", &["--tls-max", "1.1"]).await;
    assert_eq!(old.code, 35, "{old:?}");
    let resumed = tokio::process::Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &world.https.to_string(),
            "-servername",
            "a.style.dev",
            "-reconnect",
            "-tls1_2",
        ])
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .expect("openssl");
    let told = String::from_utf8_lossy(&resumed.stdout).matches("Reused,").count();
    assert_eq!(told, 5, "openssl reconnects five times");
    world.counted(Count::Resumed, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said_plainly_and_nothing_of_the_inside() {
    let world = World::with(|settings| settings.answer_wait = std::time::Duration::from_millis(300)).await;
    let late = http_server(|_| async {
        std::future::pending::<()>().await;
        text("")
    })
    .await;
    let broken = raw_server(b"this is no HTTP\r\n\r\n").await;
    let cases = [
        ("refused", 3001, Behind::Refuses(Refusal::ConnectionRefused), 502, "VM_NOT_LISTENING", "port 3001"),
        ("gone", 3002, Behind::Refuses(Refusal::UnknownVm), 502, "VM_NOT_RUNNING", "not running"),
        ("silent", 3003, Behind::Refuses(Refusal::TimedOut), 504, "VM_NOT_REACHABLE", "does not answer"),
        ("busy", 3004, Behind::Refuses(Refusal::Busy), 503, "GATEWAY_BUSY", "try again"),
        ("late", 3005, Behind::Server(late), 504, "VM_DID_NOT_ANSWER", "took too long"),
        ("broken", 3006, Behind::Server(broken), 502, "VM_ANSWER_BROKEN", "broke off"),
    ];
    for (name, port, behind, ..) in cases {
        world.behind(port, behind);
        world.map(&format!("{name}.style.dev"), port).await;
    }
    let more = [("nobody", 0, Behind::Refuses(Refusal::Kernel), 404, "HOST_NOT_FOUND", "nobody.style.dev")];
    for (name, _, _, status, code, words) in cases.into_iter().chain(more) {
        for version in ["--http1.1", "--http2"] {
            let url = format!("https://{name}.style.dev/");
            let page = world.curl(&url, &[version, "-i", "-H", "Accept: text/html"]).await;
            assert!(page.out.contains(&format!(" {status} ")), "{name}: {page:?}");
            assert!(page.out.to_lowercase().contains("content-type: text/html"), "{page:?}");
            assert!(page.out.to_lowercase().contains(&words.to_lowercase()), "{words}: {page:?}");
            let json = world.curl(&url, &[version]).await;
            let value: serde_json::Value = serde_json::from_str(&json.out).expect("json");
            assert_eq!(value["error"], code);
            assert_eq!(value["traceId"].as_str().map(str::len), Some(23));
            assert!(!page.out.contains("secret") && !json.out.contains("secret"));
        }
    }
    let head = world.curl("https://nobody.style.dev/", &["-I"]).await;
    assert!(head.code == 0 && head.out.contains("404"), "{head:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooled_connection_that_the_vm_has_closed_is_not_the_clients_concern() {
    let world = World::new().await;
    let served = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&served);
    // Answers once per connection and closes it without a word, as a server at the end of its patience.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    world.behind(3000, Behind::Server(listener.local_addr().expect("address")));
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let served = Arc::clone(&counting);
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                let _read = tcp.read(&mut bytes).await.expect("read");
                served.fetch_add(1, Ordering::SeqCst);
                tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write");
            });
        }
    });
    world.map("a.style.dev", 3000).await;
    for round in 0..20 {
        let asked = world.curl("https://a.style.dev/", &[]).await;
        assert_eq!((asked.code, asked.out.as_str()), (0, "ok"), "round {round}");
    }
    assert_eq!(served.load(Ordering::SeqCst), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn pooled_connections_are_used_again_but_not_those_of_another_run() {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, mirror).await;
    let (mut sender, driving) = h1(&world, "a.style.dev").await;
    for _ in 0..10 {
        assert_eq!(ask(&mut sender, "a.style.dev").await.0, StatusCode::OK);
    }
    assert_eq!((world.count(Count::Dials), world.count(Count::DialsSaved)), (1, 9));
    world
        .change(|view| {
            let mut routes: Vec<_> = view.routes.iter().cloned().collect();
            routes[0].run = 2;
            view.routes = routes.into();
        })
        .await;
    assert_eq!(ask(&mut sender, "a.style.dev").await.0, StatusCode::OK);
    assert_eq!(world.count(Count::Dials), 2);
    drop(sender);
    driving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_routes_is_seen_by_the_next_request_of_an_open_connection() {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, |_| async { text("old") }).await;
    let (mut sender, driving) = h1(&world, "a.style.dev").await;
    assert_eq!(ask(&mut sender, "a.style.dev").await.1, "old");
    world.serve("a.style.dev", 3001, |_| async { text("new") }).await;
    assert_eq!(ask(&mut sender, "a.style.dev").await.1, "new");
    world.map("a.style.dev", 0).await;
    assert_eq!(ask(&mut sender, "a.style.dev").await.0, StatusCode::NOT_FOUND);
    world.map("a.style.dev", 3000).await;
    assert_eq!(ask(&mut sender, "a.style.dev").await.1, "old");
    assert!(!driving.is_finished(), "the connection is still the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_and_connections_of_the_old_one_go_on() {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, mirror).await;
    let shown = async |name: &str| {
        let tls = world.tls(name, &[]).await.expect("tls");
        tls.get_ref().1.peer_certificates().expect("shown")[0].to_vec()
    };
    let old = shown("a.style.dev").await;
    let (mut sender, driving) = h1(&world, "a.style.dev").await;
    let renewed = world.certify(&["*.style.dev"]);
    world
        .change(|view| {
            let mut all: Vec<_> = view.certificates.iter().cloned().collect();
            all[0] = renewed;
            view.certificates = all.into();
        })
        .await;
    assert_ne!(shown("a.style.dev").await, old);
    assert_eq!(ask(&mut sender, "a.style.dev").await.0, StatusCode::OK);
    assert!(!driving.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_without_a_certificate_and_requests_for_another_ones_name() {
    let world = World::new().await;
    world.serve("www.example.org", 3000, mirror).await;
    world.map("a.style.dev", 3000).await;
    let before = world.count(Count::NoCertificate);
    let error = world.tls("nobody.example.net", &[]).await.expect_err("no certificate");
    assert!(
        error.to_string().contains("Unrecogniz") || error.to_string().contains("UnrecognisedName"),
        "{error}"
    );
    let bare = world.curl("https://127.0.0.1/", &["-k"]).await;
    assert_ne!(bare.code, 0);
    world.counted(Count::NoCertificate, before + 2).await;
    assert_eq!(world.count(Count::NoCertificate) - before, 2);
    // The wildcard's connection may be used for another of its names, but not for www.example.org.
    let (mut sender, _driving) = h1(&world, "b.style.dev").await;
    assert_eq!(ask(&mut sender, "a.style.dev").await.0, StatusCode::OK);
    assert_eq!(ask(&mut sender, "www.example.org").await.0, StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_sent_to_https() {
    let world = World::new().await;
    let port = world.https.port();
    let ask = async |target: &str, host: &str| {
        let mut tcp = tokio::net::TcpStream::connect(world.http).await.expect("connect");
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.expect("write");
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.expect("read");
        answer
    };
    let redirect = ask("/p?q=%20", "a.style.dev:80").await;
    assert!(redirect.starts_with("HTTP/1.1 308 "), "{redirect}");
    assert!(redirect.contains(&format!("location: https://a.style.dev:{port}/p?q=%20\r\n")), "{redirect}");
    assert!(ask("/.well-known/acme-challenge/x", "a.style.dev").await.starts_with("HTTP/1.1 404 "));
    assert!(ask("/", "a b").await.starts_with("HTTP/1.1 400 "));
    assert!(ask("/", "me@a.style.dev").await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_behind_its_own_names() {
    let world = World::new().await;
    let away =
        world.curl("https://api.style.dev/v1/vms", &["-i", "-X", "POST", "-H", "Accept: text/html"]).await;
    assert!(away.out.contains(" 503 ") && away.out.contains("\"code\":\"INTERNAL_ERROR\""), "{away:?}");
    let listener = tokio::net::UnixListener::bind(world.places.api_socket()).expect("bind");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request| async {
                Ok::<_, std::convert::Infallible>(mirror(request).await)
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    for _ in 0..3 {
        let asked = world.curl("https://api.style.dev/v1/vms", &["-H", "Authorization: Bearer k"]).await;
        assert!(
            asked.out.contains("GET /v1/vms") && asked.out.contains("authorization: Bearer k"),
            "{asked:?}"
        );
    }
    assert_eq!(world.count(Count::DialsSaved), 2);
}

/// A client of HTTP/1.1 on one connection.
pub async fn h1(
    world: &World,
    name: &str,
) -> (hyper::client::conn::http1::SendRequest<Full<Bytes>>, tokio::task::JoinHandle<()>) {
    let tls = world.tls(name, &["http/1.1"]).await.expect("tls");
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.expect("handshake");
    let driving = tokio::spawn(async move { connection.await.expect("connection") });
    (sender, driving)
}

pub async fn ask(
    sender: &mut hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    host: &str,
) -> (StatusCode, String) {
    sender.ready().await.expect("ready");
    let request = Request::builder().uri("/").header("host", host).body(Full::default()).expect("request");
    let answer = sender.send_request(request).await.expect("answer");
    let status = answer.status();
    let body = answer.into_body().collect().await.expect("body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// Answers every connection with the same bytes and closes it.
async fn raw_server(answer: &'static [u8]) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            let _read = tcp.read(&mut bytes).await.expect("read");
            tcp.write_all(answer).await.expect("write");
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_serves_what_is_not_mapped_itself_and_a_deleted_vm_is_told() {
    let world = World::new().await;
    world.serve("*.style.dev", 3000, |_| async { text("any".to_owned()) }).await;
    world.serve("one.style.dev", 3001, |_| async { text("one".to_owned()) }).await;
    world.change(|view| view.gone = vec!["old.style.dev".parse().expect("name")].into()).await;
    for (host, expected) in [("a.style.dev", "any"), ("b.style.dev", "any"), ("one.style.dev", "one")] {
        let asked = world.curl(&format!("https://{host}/"), &[]).await;
        assert!(asked.out.contains(expected), "{host}: {asked:?}");
    }
    let gone = world.curl("https://old.style.dev/", &["-i"]).await;
    assert!(gone.out.contains("404") && gone.out.contains("VM_DELETED"), "{gone:?}");
    world.map("old.style.dev", 3001).await;
    let again = world.curl("https://old.style.dev/", &[]).await;
    assert!(again.out.contains("one"), "mapped again: {again:?}");
}
