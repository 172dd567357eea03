//! Listening sockets, as the service manager hands them over (sd_listen_fds(3)): names in `LISTEN_FDNAMES`.

use rustix::fd::OwnedFd;
use std::io;
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpListener, UdpSocket};

/// Most descriptors that are taken over: both kinds on some addresses.
const MAX_DESCRIPTORS: usize = 64;
/// A silent client connection is probed after this time, then every [`PROBE_INTERVAL`], and dropped after [`PROBES`].
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// See [`PROBE_AFTER`].
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
/// See [`PROBE_AFTER`].
const PROBES: u32 = 4;

/// Why there is nothing to listen on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The descriptors are meant for another process, or are not announced.
    #[error("no listeners were handed over: LISTEN_FDS and LISTEN_FDNAMES must be set for this process")]
    None,
    /// `LISTEN_FDS` and `LISTEN_FDNAMES` do not fit each other.
    #[error("LISTEN_FDS={count} does not fit LISTEN_FDNAMES={names:?}")]
    Names {
        /// As announced.
        count: String,
        /// As announced.
        names: String,
    },
    /// `READY_FD` is not the descriptor behind the listeners.
    #[error("READY_FD={got} must be the descriptor behind the listeners, {wanted}")]
    Waiter {
        /// As announced.
        got: String,
        /// As it must be.
        wanted: usize,
    },
    /// A name that is none of `https`, `http`, `dns` and `metrics`.
    #[error("a listener is called {0:?}; it must be 'https', 'http', 'dns' or 'metrics'")]
    UnknownName(String),
    /// No listener is called `https`.
    #[error("none of the listeners is called 'https'")]
    NoHttps,
    /// A descriptor is not open, or is no listening TCP socket (for `dns`, nor a UDP socket).
    #[error("listener {place} ({name}) cannot be used: {source}")]
    Unusable {
        /// Its place, from 0.
        place: usize,
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// What is announced in the environment.
#[derive(Clone, Debug, Default)]
pub struct Announced {
    /// `LISTEN_PID`.
    pub pid: Option<String>,
    /// `LISTEN_FDS`.
    pub count: Option<String>,
    /// `LISTEN_FDNAMES`.
    pub names: Option<String>,
}

impl Announced {
    /// The names, one per descriptor; `own_pid` is this process.
    ///
    /// # Errors
    /// When nothing is announced for this process, or the announcement contradicts itself.
    pub fn names(&self, own_pid: u32) -> Result<Vec<String>, ListenError> {
        let (Some(count), Some(names)) = (&self.count, &self.names) else { return Err(ListenError::None) };
        if self.pid.as_ref().is_some_and(|pid| *pid != own_pid.to_string()) {
            return Err(ListenError::None);
        }
        let list: Vec<String> = names.split(':').map(str::to_owned).collect();
        if count.parse() != Ok(list.len()) || list.len() > MAX_DESCRIPTORS {
            return Err(ListenError::Names { count: count.clone(), names: names.clone() });
        }
        if let Some(other) =
            list.iter().find(|name| !matches!(name.as_str(), "https" | "http" | "dns" | "metrics"))
        {
            return Err(ListenError::UnknownName(other.clone()));
        }
        if !list.iter().any(|name| name == "https") {
            return Err(ListenError::NoHttps);
        }
        Ok(list)
    }
}

/// What edge-proxy listens on.
#[derive(Debug, Default)]
pub struct Listeners {
    /// TLS.
    pub https: Vec<TcpListener>,
    /// Redirects.
    pub http: Vec<TcpListener>,
    /// Questions of name servers.
    pub dns: Vec<UdpSocket>,
    /// The same, where an answer did not fit a datagram, or the asker wants to see that it is not forged.
    pub dns_tcp: Vec<TcpListener>,
    /// Questions of Prometheus servers.
    pub metrics: Vec<TcpListener>,
}

/// Takes the announced descriptors over. Must be called inside a tokio runtime, once.
///
/// # Errors
/// See [`ListenError`].
pub fn adopt(names: &[String], descriptors: Vec<OwnedFd>) -> Result<Listeners, ListenError> {
    if names.len() != descriptors.len() {
        let (count, names) = (descriptors.len().to_string(), names.join(":"));
        return Err(ListenError::Names { count, names });
    }
    let mut listeners = Listeners::default();
    for (place, (name, descriptor)) in names.iter().zip(descriptors).enumerate() {
        let unusable = |source| ListenError::Unusable { place, name: name.clone(), source };
        if name == "dns" && is_datagram(&descriptor).map_err(unusable)? {
            let socket = std::net::UdpSocket::from(descriptor);
            socket.set_nonblocking(true).map_err(unusable)?;
            listeners.dns.push(UdpSocket::from_std(socket).map_err(unusable)?);
            continue;
        }
        let listener = prepare(descriptor).map_err(unusable)?;
        match name.as_str() {
            "https" => listeners.https.push(listener),
            "http" => listeners.http.push(listener),
            "metrics" => listeners.metrics.push(listener),
            _ => listeners.dns_tcp.push(listener),
        }
    }
    Ok(listeners)
}

fn is_datagram(descriptor: &OwnedFd) -> io::Result<bool> {
    Ok(rustix::net::sockopt::socket_type(descriptor)? == rustix::net::SocketType::DGRAM)
}

/// The first descriptor that is handed over (sd_listen_fds(3)).
const FIRST_DESCRIPTOR: usize = 3;

/// Whether somebody waits on a descriptor to hear that this process serves; it is the one behind the `listeners`.
///
/// # Errors
/// When another one is named.
pub fn waiter(named: Option<&str>, listeners: usize) -> Result<bool, ListenError> {
    let wanted = FIRST_DESCRIPTOR + listeners;
    match named {
        None => Ok(false),
        Some(named) if named.parse() == Ok(wanted) => Ok(true),
        Some(named) => Err(ListenError::Waiter { got: named.to_owned(), wanted }),
    }
}

/// The inherited descriptors of this process, before anything else is opened.
#[must_use]
pub fn inherited(count: usize) -> Vec<OwnedFd> {
    feed::sys::inherited(count)
}

/// What is set on a listening socket holds for the connections that it accepts (tcp(7), on Linux).
fn prepare(descriptor: OwnedFd) -> io::Result<TcpListener> {
    use rustix::net::sockopt;
    if !sockopt::socket_acceptconn(&descriptor)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a listening socket"));
    }
    sockopt::set_tcp_nodelay(&descriptor, true)?;
    sockopt::set_socket_keepalive(&descriptor, true)?;
    sockopt::set_tcp_keepidle(&descriptor, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(&descriptor, PROBE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&descriptor, PROBES)?;
    let listener = std::net::TcpListener::from(descriptor);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(pid: Option<&str>, count: &str, names: &str) -> Announced {
        Announced { pid: pid.map(str::to_owned), count: Some(count.into()), names: Some(names.into()) }
    }

    #[test]
    fn several_of_each_and_only_for_this_process() {
        let names = announced(Some("7"), "3", "https:http:https").names(7).expect("good");
        assert_eq!(names, ["https", "http", "https"]);
        assert!(announced(None, "1", "https").names(7).is_ok());
        assert!(matches!(announced(Some("8"), "1", "https").names(7), Err(ListenError::None)));
        assert!(matches!(Announced::default().names(7), Err(ListenError::None)));
        assert!(matches!(announced(None, "2", "https").names(7), Err(ListenError::Names { .. })));
        assert!(matches!(announced(None, "1", "ssh").names(7), Err(ListenError::UnknownName(_))));
        assert!(matches!(announced(None, "1", "http").names(7), Err(ListenError::NoHttps)));
    }

    #[test]
    fn who_waits_stands_behind_the_listeners() {
        assert_eq!((waiter(None, 2).ok(), waiter(Some("5"), 2).ok()), (Some(false), Some(true)));
        for wrong in ["4", "6", "", "x"] {
            assert!(matches!(waiter(Some(wrong), 2), Err(ListenError::Waiter { wanted: 5, .. })), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_does_not_listen_is_refused() {
        let good = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let other = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let names_of = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let both = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let dns = ["dns".to_owned(), "dns".to_owned()];
        let found = adopt(&dns, vec![names_of.into(), both.into()]).expect("both kinds");
        assert_eq!((found.dns.len(), found.dns_tcp.len()), (1, 1));
        let names = ["https".to_owned(), "http".to_owned()];
        let error = adopt(&names, vec![good.into(), other.into()]).expect_err("udp");
        assert!(matches!(error, ListenError::Unusable { place: 1, .. }), "{error}");
    }
}
