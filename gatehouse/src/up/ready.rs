//! Whether a program answers: its sockets are connected to, and the door is asked for a page.

use super::children::places;
use crate::pure::roster::Role;
use crate::settings::Settings;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Between two tries. A socket that begins to listen tells nobody, so it must be asked; this often costs nothing.
const TRY_EVERY: Duration = Duration::from_millis(25);
/// Longest that a program may take until it answers: control repairs what a crash left, vpc makes namespaces, both
/// on an emulated host in the worst case. After it the program is taken for stuck and started anew.
pub const READY_WAIT: Duration = Duration::from_secs(60);
/// Longest that the door may take for one answer.
const PAGE_WAIT: Duration = Duration::from_secs(5);

/// Waits until the program answers.
///
/// # Errors
/// The last refusal, when [`READY_WAIT`] is over.
pub async fn wait(role: Role, settings: &Settings) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotConnected);
    let asking = async {
        let mut ticks = tokio::time::interval(TRY_EVERY);
        loop {
            ticks.tick().await;
            match ask(role, settings).await {
                Ok(()) => return,
                Err(error) => last = error,
            }
        }
    };
    match tokio::time::timeout(READY_WAIT, asking).await {
        Ok(()) => Ok(()),
        Err(_) => Err(last),
    }
}

async fn ask(role: Role, settings: &Settings) -> io::Result<()> {
    let places = places(settings);
    match role {
        Role::Vpc => packet_socket(&places.vpc_socket()),
        Role::Vmm => packet_socket(&places.vmm_socket()),
        Role::Control => {
            packet_socket(&places.feed_socket())?;
            UnixStream::connect(places.api_socket()).await?;
            UnixStream::connect(places.admin_socket()).await.map(|_| ())
        }
        Role::Vpn => packet_socket(&places.vpn_socket()),
        Role::Ssh => packet_socket(&places.ssh_socket()),
        Role::Edge => door(settings.http).await,
    }
}

fn packet_socket(path: &Path) -> io::Result<()> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok(rustix::net::connect(&socket, &address)?)
}

/// The listener is open even while nobody serves it, so only an answer counts.
async fn door(listener: SocketAddr) -> io::Result<()> {
    let asked = async {
        let mut stream = TcpStream::connect(local(listener)).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        match stream.read(&mut [0; 16]).await? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            _ => Ok(()),
        }
    };
    tokio::time::timeout(PAGE_WAIT, asked).await?
}

/// Where this host reaches its own listener.
fn local(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_listener_that_nobody_serves_is_not_ready() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let asking = tokio::spawn(door(address));
        let (mut stream, _) = listener.accept().await.expect("asked");
        drop(listener);
        assert!(!asking.is_finished());
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("answer");
        asking.await.expect("task").expect("ready");
        assert!(door(address).await.is_err());
    }

    #[test]
    fn a_packet_socket_must_be_listened_on() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("socket");
        assert!(packet_socket(&path).is_err());
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).expect("path")).expect("bind");
        assert!(packet_socket(&path).is_err());
        rustix::net::listen(&socket, 1).expect("listen");
        packet_socket(&path).expect("now it is there");
    }
}
