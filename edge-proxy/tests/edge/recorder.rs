//! A server that writes down every byte, and understands no more of HTTP than it must to answer.

use futures_util::FutureExt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What each connection has brought.
#[derive(Clone, Default)]
pub struct Recorder {
    connections: Arc<Mutex<Vec<Seen>>>,
}

/// One connection's, since it was last taken.
#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    answered: usize,
}

impl Recorder {
    /// Answers each head with `ok`; whatever is behind it may be a body or not.
    pub async fn start() -> (SocketAddr, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let recorder = Self::default();
        let recording = recorder.clone();
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let recorder = recording.clone();
                let place = recorder.open();
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(count @ 1..) = tcp.read(&mut bytes).await {
                        for _ in 0..recorder.add(place, &bytes[..count]) {
                            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                            if tcp.write_all(answer).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        (address, recorder)
    }

    fn open(&self) -> usize {
        let mut connections = self.connections.lock().expect("lock");
        connections.push(Seen::default());
        connections.len() - 1
    }

    /// Adds bytes; says how many heads have come whole by them.
    fn add(&self, place: usize, bytes: &[u8]) -> usize {
        let mut connections = self.connections.lock().expect("lock");
        let seen = &mut connections[place];
        seen.bytes.extend_from_slice(bytes);
        let text = String::from_utf8_lossy(&seen.bytes);
        let ends = text.matches("\r\n\r\n").count();
        let more = heads(&text).len().min(ends).saturating_sub(seen.answered);
        seen.answered += more;
        more
    }

    /// All that came, and forgets it. Connections that stay open go on from there.
    pub fn take(&self) -> Vec<String> {
        let mut connections = self.connections.lock().expect("lock");
        let all = connections.iter_mut().map(std::mem::take);
        all.map(|seen| String::from_utf8_lossy(&seen.bytes).into_owned()).collect()
    }
}

/// The request lines in what came: whatever looks like one, wherever it stands, so that nothing smuggled is missed.
pub fn heads(bytes: &str) -> Vec<String> {
    bytes.split(['\r', '\n']).filter(|line| line.contains(" HTTP/1.")).map(str::to_owned).collect()
}

/// The path of every request in a table.
pub const PATH: &str = "/v000";

/// The path that a vector has instead, of the same length: by it its head is told from that of an earlier vector, which
/// may come late when its body was broken off.
pub fn path(vector: usize) -> String {
    format!("/v{vector:03}")
}

/// The request lines that came while a vector was judged.
pub struct Came {
    /// All but the late ones.
    pub own: Vec<String>,
    /// Of other vectors' requests.
    pub late: Vec<String>,
}

impl Came {
    /// Takes them from the recorder; fails when something smuggled is among them.
    pub fn take(recorder: &Recorder, name: &str, path: &str) -> Self {
        let lines: Vec<String> = recorder.take().iter().flat_map(|bytes| heads(bytes)).collect();
        assert!(!lines.iter().any(|line| line.contains("evil")), "{name}: {lines:?}");
        let (late, own) = lines.into_iter().partition(|line| {
            let vector = line.split_once(" /v").and_then(|(_, line)| line.strip_suffix(" HTTP/1.1"));
            vector.is_some_and(|vector| vector.parse::<usize>().is_ok()) && !line.contains(path)
        });
        Self { own, late }
    }
}

/// Fails unless what came late are requests of these paths, each once.
pub fn each_once(mut late: Vec<String>, may_be_late: &[String]) {
    late.sort();
    let twice = late.windows(2).any(|two| two[0] == two[1]);
    let known = |line: &String| may_be_late.iter().any(|path| line.contains(path));
    assert!(!twice && late.iter().all(known), "{late:?}");
}

/// Judges one vector after the other; all that fail are named, and not the first alone.
pub struct Verdicts(Vec<String>);

impl Verdicts {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    pub async fn note(&mut self, judging: impl Future<Output = ()>) {
        if let Err(panic) = std::panic::AssertUnwindSafe(judging).catch_unwind().await {
            let text = panic.downcast_ref::<String>().cloned();
            self.0.push(text.unwrap_or_else(|| "a step took too long".to_owned()));
        }
    }

    pub fn all_good(self) {
        assert!(self.0.is_empty(), "{} vectors:\n{}", self.0.len(), self.0.join("\n"));
    }
}
