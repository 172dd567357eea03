//! The TLS handshake: a certificate by the name that the client asks for, or a clear refusal.

use crate::certificates::Certificate;
use crate::challenges;
use crate::metrics::{Count, Metrics};
use crate::socket::Socket;
use crate::table::Tables;
use model::host::HostName;
use rustls::crypto::aws_lc_rs;
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, ServerConfig};
use std::io;
use std::sync::Arc;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

/// Sessions that TLS 1.2 clients without tickets can take up again: some hundred bytes each.
const SESSION_CACHE: usize = 8192;

/// The alert `unrecognized_name` (RFC 6066 section 3, RFC 8446 section 6.2) as a record, before any key is agreed on.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Why the process cannot speak TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The crypto library refuses the protocol versions.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    /// The crypto library gives no keys for session tickets.
    #[error("session tickets cannot be set up")]
    Tickets(#[source] rustls::Error),
}

/// What the handshakes of a process share.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    tables: Tables,
    metrics: Arc<Metrics>,
}

impl Tls {
    /// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, certificates from the table in force.
    ///
    /// # Errors
    /// When the crypto library cannot be set up.
    pub fn new(tables: Tables, metrics: Arc<Metrics>) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver { tables: tables.clone() }));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::Tickets)?;
        config.session_storage = ServerSessionMemoryCache::new(SESSION_CACHE);
        Ok(Self { config: Arc::new(config), tables, metrics })
    }

    /// Shakes hands; nothing when that fails, which is counted.
    pub async fn accept(&self, tcp: TcpStream) -> Option<(TlsStream<Socket>, Arc<Certificate>)> {
        match self.shake(tcp).await {
            Ok(done) => {
                self.metrics.count(Count::Handshakes);
                if done.0.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
                    self.metrics.count(Count::Resumed);
                }
                Some(done)
            }
            Err(Failure::NoCertificate) => {
                self.metrics.count(Count::NoCertificate);
                None
            }
            Err(Failure::Authority) => {
                self.metrics.count(Count::TlsChallenges);
                None
            }
            Err(Failure::Io(error)) => {
                self.metrics.count(Count::HandshakeFailed);
                tracing::debug!(%error, "handshake failed");
                None
            }
        }
    }

    async fn shake(&self, tcp: TcpStream) -> Result<(TlsStream<Socket>, Arc<Certificate>), Failure> {
        let mut start = LazyConfigAcceptor::new(Acceptor::default(), Socket::new(tcp)).await?;
        if challenges::is_authority(&start.client_hello()) {
            return Err(self.prove(start).await?);
        }
        let certificate = self.tables.now().find(start.client_hello().server_name());
        // Read here, so that rustls finds it ready.
        let Some(certificate) = certificate.filter(|certificate| self.is_ready(certificate)) else {
            start.io.write_all(&UNRECOGNIZED_NAME).await?;
            start.io.shutdown().await?;
            return Err(Failure::NoCertificate);
        };
        Ok((start.into_stream(Arc::clone(&self.config)).await?, certificate))
    }

    fn is_ready(&self, certificate: &Certificate) -> bool {
        let read = certificate.key();
        if let Err(fault) = &read {
            self.metrics.count(Count::BadCertificates);
            tracing::debug!(%fault, "a certificate cannot be shown");
        }
        read.is_ok()
    }

    /// Shows a certificate authority what it asked to see (RFC 8737 section 3). Nothing comes after it.
    async fn prove(&self, mut start: StartHandshake<Socket>) -> io::Result<Failure> {
        let name = start.client_hello().server_name().and_then(|name| name.parse::<HostName>().ok());
        let Some(config) = name.and_then(|name| self.tables.now().challenges.tls(&name)) else {
            start.io.write_all(&UNRECOGNIZED_NAME).await?;
            start.io.shutdown().await?;
            return Ok(Failure::NoCertificate);
        };
        start.into_stream(config).await?.shutdown().await?;
        Ok(Failure::Authority)
    }
}

/// Why a handshake leads to no requests.
enum Failure {
    NoCertificate,
    /// It was a certificate authority's, and has seen what it came for.
    Authority,
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl crate::table::Table {
    fn find(&self, server_name: Option<&str>) -> Option<Arc<Certificate>> {
        let name: HostName = server_name?.parse().ok()?;
        self.certificates.find(&name).cloned()
    }
}

#[derive(Debug)]
struct Resolver {
    tables: Tables,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.tables.now().find(hello.server_name()).and_then(|certificate| certificate.key().ok())
    }
}
