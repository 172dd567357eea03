//! A VM that breaks a pooled connection at the worst moments, and writes down every byte: what may have an effect comes
//! to it once, whatever the client is told; a plain look comes again and is answered.

use crate::recorder::Verdicts;
use crate::world::{Behind, PATIENCE, World};
use edge_proxy::metrics::Count;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// When the VM breaks the connection that has served one request already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// As soon as the answer before is out, in order.
    Idle,
    /// The same with a reset.
    IdleReset,
    /// When the next request's first byte has come.
    FirstByte,
    /// The same with a reset, which takes unread bytes with it.
    FirstByteReset,
    /// When all of the request has come.
    Whole,
    /// In the middle of the answer's head.
    HalfHead,
    /// After early hints.
    Hints,
    /// In the middle of the answer's body.
    HalfBody,
}

const MOMENTS: [Moment; 8] = [
    Moment::Idle,
    Moment::IdleReset,
    Moment::FirstByte,
    Moment::FirstByteReset,
    Moment::Whole,
    Moment::HalfHead,
    Moment::Hints,
    Moment::HalfBody,
];

/// How a request is made, and whether a second one of it can do any harm.
const REQUESTS: [(&[&str], bool); 7] = [
    (&[], true),
    (&["-X", "OPTIONS"], true),
    (&["-X", "POST"], false),
    (&["-d", "12345"], false),
    (&["-X", "PUT", "-d", "12345"], false),
    (&["-X", "DELETE"], false),
    (&["-X", "GET", "-d", "12345"], false),
];

/// What came, of all connections.
type Came = Arc<Mutex<Vec<u8>>>;

async fn start(moment: Moment) -> (SocketAddr, Came) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let came = Came::default();
    let writing = Arc::clone(&came);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp, moment, Arc::clone(&writing)));
        }
    });
    (address, came)
}

/// Answers the first request of a connection, which is the whole life of one that is not pooled, and breaks over the
/// second.
async fn serve(mut tcp: TcpStream, moment: Moment, came: Came) {
    if request(&mut tcp, &came).await.is_none() {
        return;
    }
    tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write");
    let words: &[u8] = match moment {
        Moment::Idle => return,
        Moment::IdleReset => return reset(&tcp),
        Moment::FirstByte | Moment::FirstByteReset => {
            let mut first = [0; 1];
            if let Ok(1) = tcp.read(&mut first).await {
                // What is still on its way counts as come: a server may have read it.
                let mut rest = [0; 4096];
                let more = tcp.try_read(&mut rest).unwrap_or(0);
                came.lock().expect("lock").extend([&first[..], &rest[..more]].concat());
            }
            return if moment == Moment::FirstByteReset {
                reset(&tcp)
            };
        }
        Moment::Whole => b"",
        Moment::HalfHead => b"HTTP/1.1 200 OK\r\nContent-Le",
        Moment::Hints => b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
        Moment::HalfBody => b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf",
    };
    if request(&mut tcp, &came).await.is_some() {
        tcp.write_all(words).await.expect("write");
    }
}

/// Reads one request and writes it down; nothing when the connection ends.
async fn request(tcp: &mut TcpStream, came: &Came) -> Option<()> {
    let (mut seen, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let count = tcp.read(&mut bytes).await.ok().filter(|count| *count > 0)?;
        seen.extend_from_slice(&bytes[..count]);
        came.lock().expect("lock").extend_from_slice(&bytes[..count]);
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = if head.contains("content-length: 5") { 5 } else { 0 };
            let whole =
                if head.contains("chunked") { body.ends_with("0\r\n\r\n") } else { body.len() >= length };
            if whole {
                return Some(());
            }
        }
    }
}

fn reset(tcp: &TcpStream) {
    tcp.set_zero_linger().expect("linger");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_effects_comes_once_whenever_its_connection_breaks() {
    let world = World::new().await;
    let mut verdicts = Verdicts::new();
    for (port, moment) in (3000..).zip(MOMENTS) {
        let (server, came) = start(moment).await;
        let host = format!("m{port}.style.dev");
        world.behind(port, Behind::Server(server));
        world.map(&host, port).await;
        for (number, (request, harmless)) in REQUESTS.into_iter().enumerate() {
            for version in ["--http1.1", "--http2"] {
                let what = format!("{moment:?} {request:?} {version}");
                let judging = judge(&world, &host, &came, number, (request, harmless), version, moment);
                let judging =
                    async { timeout(PATIENCE, judging).await.unwrap_or_else(|_| panic!("{what}: late")) };
                verdicts.note(judging).await;
            }
        }
    }
    verdicts.all_good();
    assert!(world.count(Count::Retries) > 0, "{:?}", world.metrics);
}

async fn judge(
    world: &World,
    host: &str,
    came: &Came,
    number: usize,
    (request, harmless): (&[&str], bool),
    version: &str,
    moment: Moment,
) {
    let what = format!("{moment:?} {request:?} {version}");
    // A connection of the VM's that has served one request waits in the pool, if it lives.
    let warm = world.curl(&format!("https://{host}/warm"), &[version]).await;
    assert_eq!((warm.code, warm.out.as_str()), (0, "ok"), "{what}: {warm:?}");
    let path = format!("/request-{number}-{}-", version.trim_start_matches('-'));
    let url = format!("https://{host}{path}");
    let asked = world.curl(&url, &[&["-w", " %{http_code}", version], request].concat()).await;
    let text = String::from_utf8_lossy(&came.lock().expect("lock")).into_owned();
    let times = text.matches(&path).count();
    if !harmless {
        assert!(times <= 1, "{what}: it came {times} times; {asked:?}");
        // Either it was answered, or its client knows that it was not.
        assert!(asked.out == "ok 200" || asked.out.ends_with(" 502") || asked.code != 0, "{what}: {asked:?}");
    } else if moment != Moment::HalfBody {
        assert!((1..=2).contains(&times), "{what}: it came {times} times");
        assert_eq!((asked.code, asked.out.as_str()), (0, "ok 200"), "{what}: {asked:?}");
    } else {
        // Its answer had begun.
        assert!(times == 1, "{what}: it came {times} times");
        assert!(asked.code != 0 || asked.out.ends_with(" 502"), "{what}: {asked:?}");
    }
}
