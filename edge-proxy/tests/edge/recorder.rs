//! A server that writes down every byte, and understands no more of HTTP than it must to answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What each connection has brought.
#[derive(Clone, Default)]
pub struct Recorder {
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
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
                    let mut answered = 0;
                    while let Ok(count @ 1..) = tcp.read(&mut bytes).await {
                        let heads = recorder.add(place, &bytes[..count]);
                        while answered < heads {
                            answered += 1;
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
        connections.push(Vec::new());
        connections.len() - 1
    }

    /// Adds bytes; says how many heads have begun and ended on that connection.
    fn add(&self, place: usize, bytes: &[u8]) -> usize {
        let mut connections = self.connections.lock().expect("lock");
        connections[place].extend_from_slice(bytes);
        heads(&String::from_utf8_lossy(&connections[place])).len()
    }

    /// All that came, and forgets it. Connections that stay open go on from there.
    pub fn take(&self) -> Vec<String> {
        let mut connections = self.connections.lock().expect("lock");
        let all = connections.iter_mut().map(std::mem::take);
        all.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
    }
}

/// The request lines in what came: whatever looks like one, wherever it stands, so that nothing smuggled is missed.
pub fn heads(bytes: &str) -> Vec<String> {
    bytes.split(['\r', '\n']).filter(|line| line.contains(" HTTP/1.")).map(str::to_owned).collect()
}
