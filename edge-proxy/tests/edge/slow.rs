//! slowhttptest's attacks, each shortened: others are served meanwhile, and every connection of the attack is cut and
//! counted.

use crate::world::{World, text};
use edge_proxy::metrics::Count;
use edge_proxy::settings::Settings;
use http_body_util::BodyExt;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;

/// Connections of an attack.
const CONNECTIONS: u64 = 100;
/// What stands for each of the waits that are cut short for these tests.
const WAIT: Duration = Duration::from_secs(3);
/// More than all buffers between the server and the attacker hold.
const LARGE: usize = 8 << 20;
/// Of the sockets between them, so that these buffers are small.
const SOCKET_BUFFER: usize = 16 << 10;

async fn world(change: impl FnOnce(&mut Settings)) -> Arc<World> {
    let world = World::with(change).await;
    let large = hyper::body::Bytes::from(vec![b'x'; LARGE]);
    let answer = move |request: http::Request<hyper::body::Incoming>| {
        let large = large.clone();
        async move {
            if request.uri().path() == "/large" {
                return text(large);
            }
            // Who answers before the body has come ends the attack at once.
            match request.into_body().collect().await {
                Ok(_) | Err(_) => text("ok"),
            }
        }
    };
    world.serve("a.style.dev", 3000, answer).await;
    Arc::new(world)
}

/// Where slowhttptest reaches the gateway: it says no name in its handshake, and so would get no certificate. Its requests
/// name the address that it was given.
async fn with_a_name(world: &Arc<World>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let world = Arc::clone(world);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
                set_socket_recv_buffer_size(tls.get_ref().0, SOCKET_BUFFER).expect("set");
                set_socket_send_buffer_size(&tcp, SOCKET_BUFFER).expect("set");
                let mut head = vec![0; 4096];
                let Ok(count) = tcp.read(&mut head).await else { return };
                let head =
                    String::from_utf8_lossy(&head[..count]).replace(&address.to_string(), "a.style.dev");
                tls.write_all(head.as_bytes()).await.expect("sent");
                drop(tokio::io::copy_bidirectional(&mut tcp, &mut tls).await);
            });
        }
    });
    address
}

/// Attacks until none of the attack's connections is left; an honest client asks over and over meanwhile.
async fn attack(world: &Arc<World>, target: SocketAddr, path: &str, how: &[&str], count: Count) {
    let before = world.count(count);
    let url = format!("http://{target}{path}");
    let (connections, longest) = (CONNECTIONS.to_string(), "40");
    let mut attacker = Command::new("slowhttptest")
        .args(["-c", &connections, "-r", &connections, "-l", longest, "-p", "60", "-u", &url])
        .args(how)
        .current_dir(world.folder.path())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("slowhttptest is installed");
    let mut served = 0;
    let ended = loop {
        let asked = world.curl("https://a.style.dev/", &["--http1.1"]).await;
        assert_eq!((asked.code, asked.out.as_str()), (0, "ok"), "{how:?}: {asked:?}");
        served += 1;
        if let Some(status) = attacker.try_wait().expect("ours") {
            break status;
        }
    };
    assert!(ended.success(), "slowhttptest: {ended}");
    assert!(served > 1, "nobody asked meanwhile");
    world.counted(count, before + CONNECTIONS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_are_cut_and_others_are_served() {
    let world = world(|settings| settings.head_wait = WAIT).await;
    let target = with_a_name(&world).await;
    attack(&world, target, "/", &["-H", "-i", "1"], Count::HeadLate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_are_cut_and_others_are_served() {
    let world = world(|settings| settings.body_grace = WAIT).await;
    let target = with_a_name(&world).await;
    attack(&world, target, "/", &["-B", "-i", "1", "-x", "10", "-s", "100000"], Count::BodySlow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_are_cut_and_others_are_served() {
    let world = world(|settings| settings.write_stall = WAIT).await;
    let target = with_a_name(&world).await;
    let how = ["-X", "-n", "1", "-z", "5", "-w", "64", "-y", "128"];
    attack(&world, target, "/large", &how, Count::WriteStalled).await;
}
