//! Bodies of hundreds of MiB through the binary itself, whose memory stays flat.

use crate::process::start;
use crate::world::{Behind, PATIENCE, World};
use model::config::{EdgeConfig, EdgeGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

/// Bytes of each body.
const SIZE: u64 = 300 << 20;
/// What the process may grow by, in KiB: a sixth of one body, and many times what its buffers take.
const GROWTH_KIB: u64 = 50 << 10;

/// Memory of a process that is in use, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("KiB")
}

/// Takes a body and gives one of the same size.
async fn mirror(listener: TcpListener) {
    while let Ok((mut tcp, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut piece = vec![0; 1 << 16];
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                let count = tcp.read(&mut piece).await.expect("read");
                assert!(count > 0, "a whole head");
                head.extend_from_slice(&piece[..count]);
            }
            let end = head.windows(4).position(|end| end == b"\r\n\r\n").expect("found") + 4;
            let mut left = SIZE - (head.len() - end) as u64;
            while left > 0 {
                left -= tcp.read(&mut piece).await.expect("read") as u64;
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            tcp.write_all(answer.as_bytes()).await.expect("write");
            for _ in 0..SIZE / piece.len() as u64 {
                tcp.write_all(&piece).await.expect("write");
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_stream_with_flat_memory() {
    let (world, listeners) = World::prepare();
    let config = EdgeConfig {
        places: world.places.clone(),
        public_https_port: 443,
        max_connections: 100,
        guard: EdgeGuard::default(),
        proxy_protocol_from: Vec::new(),
        dns_host: None,
        access_log_mib: 1,
        traces: None,
    };
    let mut child = start(&config, &listeners, world.folder.path());
    // Here the feed tells the test alone; the process has its own.
    let following = tokio::spawn(world.feed.clone().follow(world.places.feed_socket()));
    // Its log is of no interest here, and must not fill the pipe.
    let mut log = child.stderr.take().expect("piped");
    let reading = tokio::spawn(async move { tokio::io::copy(&mut log, &mut tokio::io::sink()).await });
    world.until(|| async { world.tls("a.style.dev", &[]).await.is_ok() }).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    world.behind(3000, Behind::Server(listener.local_addr().expect("address")));
    tokio::spawn(mirror(listener));
    world.map("a.style.dev", 3000).await;
    let body = world.folder.path().join("body");
    std::fs::File::create(&body).and_then(|file| file.set_len(SIZE)).expect("a sparse file");
    let pid = child.id().expect("it runs");
    let before = resident(pid);
    for version in ["--http1.1", "--http2"] {
        let upload = body.to_str().expect("a path");
        let more = [version, "-T", upload, "-o", "/dev/null", "-w", "%{size_download}", "-H", "Expect:"];
        let exchange = world.curl("https://a.style.dev/", &more);
        let mut exchange = std::pin::pin!(exchange);
        let mut most = 0;
        let done = loop {
            tokio::select! {
                done = &mut exchange => break done,
                () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(resident(pid)),
            }
        };
        assert_eq!(done.out, SIZE.to_string(), "{done:?}");
        assert!(most > 0 && most < before + GROWTH_KIB, "{version}: from {before} KiB to {most} KiB");
    }
    child.start_kill().expect("kill");
    timeout(PATIENCE, child.wait()).await.expect("in time").expect("it ends");
    reading.abort();
    following.abort();
}
