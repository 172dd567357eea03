//! What HTTP can do besides a request and an answer passes as it is: interim answers, trailers, ranges, codings.

use crate::world::{Behind, PATIENCE, World};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A server of one connection after the other that is told by its test what to do with each.
async fn server<F, R>(world: &World, serve: F)
where
    F: Fn(TcpStream) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address: SocketAddr = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp));
        }
    });
    world.behind(3000, Behind::Server(address));
    world.map("a.style.dev", 3000).await;
}

/// Reads until the bytes are there.
pub async fn until<S: AsyncReadExt + Unpin>(stream: &mut S, wanted: &str) -> String {
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains(wanted) {
        let count = timeout(PATIENCE, stream.read_buf(&mut bytes)).await.expect("in time").expect("read");
        assert!(count > 0, "no '{wanted}' in {}", String::from_utf8_lossy(&bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_to_continue_is_told_by_the_vm() {
    let world = World::new().await;
    server(&world, |mut tcp| async move {
        let head = until(&mut tcp, "\r\n\r\n").await.to_lowercase();
        assert!(head.contains("expect: 100-continue"), "{head}");
        tcp.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.expect("write");
        until(&mut tcp, "hello").await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await.expect("write");
    })
    .await;
    let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let head = "PUT / HTTP/1.1\r\nHost: a.style.dev\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    tls.write_all(head.as_bytes()).await.expect("write");
    tls.flush().await.expect("flush");
    until(&mut tls, "HTTP/1.1 100 Continue\r\n\r\n").await;
    tls.write_all(b"hello").await.expect("write");
    tls.flush().await.expect("flush");
    let answer = until(&mut tls, "done").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_come_before_the_answer() {
    let world = World::new().await;
    server(&world, |mut tcp| async move {
        until(&mut tcp, "\r\n\r\n").await;
        tcp.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
            .await
            .expect("write");
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await.expect("write");
    })
    .await;
    for (option, version) in [("--http1.1", "http/1.1"), ("--http2", "http/2")] {
        let asked = world.curl("https://a.style.dev/", &[option, "-i"]).await;
        let told = asked.out.to_lowercase();
        let parts =
            [format!("{version} 103"), "link: </a.css>; rel=preload".into(), format!("{version} 200")];
        let places: Vec<_> = parts.iter().map(|part| told.find(part)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{asked:?}");
        assert!(told.ends_with("done"), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_pass_both_ways_with_what_ends_them() {
    let world = World::new().await;
    server(&world, |mut tcp| async move {
        let mut asked = until(&mut tcp, "\r\n\r\n").await;
        if !asked.ends_with("0\r\n\r\n") {
            asked += &until(&mut tcp, "0\r\n\r\n").await;
        }
        assert!(asked.to_lowercase().contains("transfer-encoding: chunked"), "{asked}");
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
        tcp.write_all(head.as_bytes()).await.expect("write");
        tcp.write_all(b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 42\r\n\r\n").await.expect("write");
    })
    .await;
    let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let head =
        "POST / HTTP/1.1\r\nHost: a.style.dev\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    tls.write_all(head.as_bytes()).await.expect("write");
    tls.flush().await.expect("flush");
    let answer = until(&mut tls, "\r\n0\r\nx-sum: 42\r\n\r\n").await;
    assert!(answer.to_lowercase().contains("transfer-encoding: chunked"), "{answer}");
    assert!(answer.contains("hello") && answer.contains(" world"), "{answer}");
    let tls = world.tls("a.style.dev", &["h2"]).await.expect("tls");
    let (mut sender, connection) = h2::client::handshake(tls).await.expect("handshake");
    let driving = tokio::spawn(connection);
    let request = http::Request::post("https://a.style.dev/").body(()).expect("request");
    let (answer, mut say) = sender.send_request(request, false).expect("send");
    say.send_data("abc".into(), true).expect("data");
    let mut body = timeout(PATIENCE, answer).await.expect("in time").expect("answer").into_body();
    let mut heard = Vec::new();
    while let Some(piece) = timeout(PATIENCE, body.data()).await.expect("in time") {
        heard.extend_from_slice(&piece.expect("data"));
    }
    assert_eq!(heard, b"hello world");
    let trailers = body.trailers().await.expect("a whole answer").expect("trailers");
    assert_eq!(trailers["x-sum"], "42");
    driving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_head_has_a_length_and_no_body() {
    let world = World::new().await;
    server(&world, |mut tcp| async move {
        loop {
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") {
                match tcp.read_buf(&mut bytes).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return,
                }
            }
            let body = if bytes.starts_with(b"HEAD") { "" } else { "x" };
            let length = if body.is_empty() { 123_456 } else { 1 };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
            tcp.write_all(answer.as_bytes()).await.expect("write");
        }
    })
    .await;
    for version in ["--http1.1", "--http2"] {
        let asked = world.curl("https://a.style.dev/", &[version, "-I", "https://a.style.dev/"]).await;
        assert_eq!(asked.out.to_lowercase().matches("content-length: 123456").count(), 2, "{asked:?}");
    }
    // On one connection the next answer is the next request's.
    let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let both = "HEAD / HTTP/1.1\r\nHost: a.style.dev\r\n\r\nGET / HTTP/1.1\r\nHost: a.style.dev\r\n\r\n";
    tls.write_all(both.as_bytes()).await.expect("write");
    tls.flush().await.expect("flush");
    let answers = until(&mut tls, "\r\n\r\nx").await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_codings_are_the_vms_affair() {
    let world = World::new().await;
    /// As gzip begins; it is not looked at.
    const CODED: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcbH\xcd\xc9";
    server(&world, |mut tcp| async move {
        let asked = until(&mut tcp, "\r\n\r\n").await.to_lowercase();
        assert!(
            asked.contains("range: bytes=5-17") && asked.contains("accept-encoding: br, gzip;q=0.5"),
            "{asked}"
        );
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-17/100\r\nContent-Encoding: gzip\r\n\
             Vary: Accept-Encoding\r\nETag: W/\"x\"\r\nContent-Length: {}\r\n\r\n",
            CODED.len()
        );
        tcp.write_all(head.as_bytes()).await.expect("write");
        tcp.write_all(CODED).await.expect("write");
    })
    .await;
    let file = world.folder.path().join("coded");
    let output = file.to_str().expect("a path");
    for version in ["--http1.1", "--http2"] {
        let more = [version, "-r", "5-17", "-H", "Accept-Encoding: br, gzip;q=0.5", "-D", "-", "-o", output];
        let asked = world.curl("https://a.style.dev/", &more).await;
        let told = asked.out.to_lowercase();
        for part in [" 206", "content-range: bytes 5-17/100", "content-encoding: gzip", "etag: w/\"x\""] {
            assert!(told.contains(part), "{part}: {asked:?}");
        }
        assert_eq!(std::fs::read(&file).expect("read"), CODED);
    }
}
