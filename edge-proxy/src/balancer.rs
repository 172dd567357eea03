//! A load balancer in front: it tells the client's address in a PROXY header, and only trusted ones may.
//!
//! From a trusted address the header must come, since a client behind it would otherwise pass for the balancer; from
//! any other it is not looked for, and the handshake fails on it.

use crate::metrics::{Count, Metrics};
use crate::pure::proxy_header::{self, Step};
use crate::settings::Settings;
use std::io;
use std::net::SocketAddr;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

/// The address of the client whose connection this is; nothing when it must be closed, which is counted.
pub async fn client(
    settings: &Settings,
    metrics: &Metrics,
    tcp: &mut TcpStream,
    peer: SocketAddr,
) -> Option<SocketAddr> {
    if !settings.proxy_protocol_from.iter().any(|range| range.contains(peer.ip())) {
        return Some(peer);
    }
    let read = timeout(settings.proxy_header_wait, read(tcp)).await;
    let (reason, client) = match read {
        Ok(Ok(Some(client))) => (Count::Proxied, Some(client)),
        Ok(Ok(None)) => (Count::ProxyLocal, Some(peer)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            debug!(%error, %peer, "a load balancer's header is wrong");
            (Count::BadProxyHeader, None)
        }
        Ok(Err(error)) => {
            debug!(%error, %peer, "a load balancer's connection ended in its header");
            (Count::ProxyHeaderCut, None)
        }
        Err(_) => (Count::ProxyHeaderLate, None),
    };
    metrics.count(reason);
    client
}

async fn read(tcp: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut bytes = Vec::new();
    loop {
        match proxy_header::step(&bytes).map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))? {
            Step::Done(client) => return Ok(client),
            Step::Read(more) => {
                let have = bytes.len();
                bytes.resize(have + more, 0);
                tcp.read_exact(&mut bytes[have..]).await?;
            }
        }
    }
}
