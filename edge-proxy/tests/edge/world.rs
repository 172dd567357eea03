//! What every test here needs: a running edge-proxy, a vpc at its border, servers behind, clients in front.

use edge_proxy::Order;
use edge_proxy::listeners::{self, Listeners};
use edge_proxy::metrics::{Count, Metrics};
use edge_proxy::settings::Settings;
use feed::blobs::Blobs;
use feed::publish::Publisher;
use feed::subscribe::Feed;
use feed::wire::{Wire, WireListener};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::config::Places;
use model::id::{Generation, VmId};
use model::view::{CertificateEntry, EdgeView, RouteEntry, VIEW_VERSION};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use vpc::client::{Refusal, VpcReply, VpcRequest};

/// Longest that any step of a test may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A day.
const DAY: Duration = Duration::from_secs(86_400);

/// What the double at vpc's socket does when a port is dialled.
#[derive(Clone, Copy)]
pub enum Behind {
    /// Connects to a server of the test.
    Server(SocketAddr),
    /// Says no.
    Refuses(Refusal),
    /// Is asleep, and connects to a server of the test when it is woken.
    Sleeps {
        /// A permit for each dial that came.
        dialled: &'static Semaphore,
        /// A permit lets one dial through.
        woken: &'static Semaphore,
        /// The server.
        server: SocketAddr,
    },
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub places: Places,
    pub https: SocketAddr,
    pub http: SocketAddr,
    /// Where Prometheus asks an edge-proxy of [`World::with`].
    pub figures: SocketAddr,
    pub metrics: Arc<Metrics>,
    pub feed: Feed<EdgeView>,
    publisher: Publisher,
    ports: Arc<Mutex<HashMap<u16, Behind>>>,
    authority: Authority,
    view: Mutex<EdgeView>,
    orders: Mutex<Option<mpsc::Sender<Order>>>,
    pub running: Mutex<Option<JoinHandle<()>>>,
}

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
    blobs: Blobs,
}

impl World {
    /// An edge-proxy with real bounds.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// An edge-proxy with other bounds. `*.style.dev` and `www.example.org` have certificates of their own.
    pub async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let world = Self::without_edge(change).await;
        world.0.start(world.1).await;
        world.0
    }

    async fn without_edge(change: impl FnOnce(&mut Settings)) -> (Self, (Settings, Listeners)) {
        let (mut world, [https, http]) = Self::prepare();
        let (figures, figures_at) = listener();
        world.figures = figures_at;
        let names = ["https", "http", "metrics"].map(str::to_owned);
        let listeners =
            listeners::adopt(&names, vec![https.into(), http.into(), figures.into()]).expect("adopt");
        let mut settings = Settings::new(world.https.port(), 1000);
        change(&mut settings);
        (world, (settings, listeners))
    }

    /// All but the edge-proxy, and the listeners that it is to be handed: those of HTTPS and of HTTP.
    pub fn prepare() -> (Self, [std::net::TcpListener; 2]) {
        let folder = tempfile::tempdir().expect("folder");
        let places = Places { data: folder.path().join("data"), run: folder.path().join("run") };
        std::fs::create_dir_all(places.edge_run()).expect("run folder");
        let ports = Arc::default();
        tokio::spawn(answer_dials(places.vpc_socket(), Arc::clone(&ports)));
        let blobs = Blobs::make(places.certificates(), None).expect("blobs");
        let authority = Authority::new(blobs);
        std::fs::write(folder.path().join("ca.pem"), &authority.pem).expect("ca");
        let certificates = vec![authority.certify(&["*.style.dev"]), authority.certify(&["www.example.org"])];
        let view = EdgeView {
            version: VIEW_VERSION,
            generation: Generation(1),
            api_hosts: vec!["api.style.dev".parse().expect("name")],
            routes: Vec::new().into(),
            gone: Vec::new().into(),
            certificates: certificates.into(),
            challenges: Vec::new().into(),
            names: None,
        };
        let publisher = Publisher::new(&places.feed()).expect("publisher");
        publisher.publish(&view, None).expect("publish");
        let announcing = (publisher.clone(), places.feed_socket());
        tokio::spawn(async move { announcing.0.announce(&announcing.1).await });
        let (https, https_at) = listener();
        let (http, http_at) = listener();
        let me = rustix::process::getuid().as_raw();
        let world = Self {
            feed: Feed::open(&places.feed(), &[me]),
            folder,
            places,
            https: https_at,
            http: http_at,
            figures: http_at,
            metrics: Arc::new(Metrics::default()),
            publisher,
            ports,
            authority,
            view: Mutex::new(view),
            orders: Mutex::new(None),
            running: Mutex::new(None),
        };
        (world, [https, http])
    }

    async fn start(&self, (settings, listeners): (Settings, Listeners)) {
        let (orders, receiver) = mpsc::channel(edge_proxy::ORDERS);
        let (places, feed, metrics) = (self.places.clone(), self.feed.clone(), Arc::clone(&self.metrics));
        let running = tokio::spawn(async move {
            let serving = || {};
            edge_proxy::run(settings, &places, listeners, feed, metrics, serving, receiver)
                .await
                .expect("run");
        });
        *self.orders.lock().expect("lock") = Some(orders);
        *self.running.lock().expect("lock") = Some(running);
        self.until(|| async { self.tls("a.style.dev", &[]).await.is_ok() }).await;
    }

    /// Asks edge-proxy to stop, or to leave its listeners to another one.
    pub fn order(&self, order: Order) {
        let orders = self.orders.lock().expect("lock");
        orders.as_ref().expect("it was started").try_send(order).expect("it runs");
    }

    /// What happens when a VM's port is dialled.
    pub fn behind(&self, port: u16, what: Behind) {
        self.ports.lock().expect("lock").insert(port, what);
    }

    /// Maps a host to a port of the test's VM, as a new view, and waits until it is in force.
    pub async fn map(&self, host: &str, port: u16) {
        self.change(|view| {
            let mut routes: Vec<RouteEntry> =
                view.routes.iter().filter(|route| route.host.to_string() != host).cloned().collect();
            if port != 0 {
                routes.push(RouteEntry { host: host.parse().expect("name"), vm: vm(), port, run: 1 });
            }
            view.routes = routes.into();
        })
        .await;
    }

    /// Maps hosts to ports of the test's VM in a view that the next edge-proxy starts with.
    pub fn routes(&self, routes: &[(&str, u16)]) {
        let mut view = self.view.lock().expect("lock");
        let entry = |(host, port): &(&str, u16)| RouteEntry {
            host: host.parse().expect("name"),
            vm: vm(),
            port: *port,
            run: 1,
        };
        view.routes = routes.iter().map(entry).collect::<Vec<_>>().into();
        view.generation.0 += 1;
        self.publisher.publish(&*view, None).expect("publish");
    }

    /// Publishes a changed view and waits until its routes are in force.
    pub async fn change(&self, change: impl FnOnce(&mut EdgeView)) {
        let view = {
            let mut view = self.view.lock().expect("lock");
            change(&mut view);
            view.generation.0 += 1;
            view.clone()
        };
        self.publisher.publish(&view, None).expect("publish");
        tokio::time::timeout(PATIENCE, self.feed.reached(view.generation)).await.expect("announced");
        // The table is made of the view after it has arrived; it is in force when its newest certificate is shown.
        let marker = format!("g{}.marker.dev", view.generation);
        let mut marked = view.clone();
        marked.generation.0 += 1;
        let mut certificates: Vec<_> = view.certificates.iter().cloned().collect();
        certificates.push(self.authority.certify(&[&marker]));
        marked.certificates = certificates.into();
        self.publisher.publish(&marked, None).expect("publish");
        self.view.lock().expect("lock").generation = marked.generation;
        self.until(|| async { self.tls(&marker, &[]).await.is_ok() }).await;
    }

    /// A certificate of the test's authority.
    pub fn certify(&self, names: &[&str]) -> CertificateEntry {
        self.authority.certify(names)
    }

    /// A key and its certificate of the test's authority, as PEM, for a program that is not the gateway.
    pub fn issue(&self, names: &[&str]) -> String {
        self.authority.issue(names)
    }

    /// Where curl finds the test's authority.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Starts a server in the VM and maps a host to it.
    pub async fn serve<F, R>(&self, host: &str, port: u16, answer: F)
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
        R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        self.behind(port, Behind::Server(http_server(answer).await));
        self.map(host, port).await;
    }

    /// A TLS connection as a client that trusts the test's authority; `protocols` for ALPN.
    pub async fn tls(&self, name: &str, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls_over(TcpStream::connect(self.https).await?, name, protocols).await
    }

    /// The same over a connection that is there already.
    pub async fn tls_over(
        &self,
        tcp: TcpStream,
        name: &str,
        protocols: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        let pem = self.authority.pem.as_bytes();
        let ca =
            <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(pem);
        roots.add(ca.expect("ca")).expect("root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(ServerName::try_from(name.to_owned()).expect("name"), tcp).await
    }

    /// Runs curl, whatever the host in the URL, against edge-proxy.
    pub async fn curl(&self, url: &str, more: &[&str]) -> Curled {
        let done = tokio::process::Command::new("curl")
            .args(["-sS", "--max-time", "60", "--cacert"])
            .arg(self.ca())
            .args(["--connect-to", &format!("::127.0.0.1:{}", self.https.port())])
            .args(more)
            .arg(url)
            .output()
            .await
            .expect("curl is installed");
        Curled {
            code: done.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&done.stdout).into_owned(),
            err: String::from_utf8_lossy(&done.stderr).into_owned(),
        }
    }

    /// How many certificates the newest view has.
    pub fn certificates(&self) -> usize {
        self.view.lock().expect("lock").certificates.iter().count()
    }

    /// Waits until there is something.
    pub async fn until_some<T>(&self, look: impl AsyncFn() -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it comes to be there")
    }

    /// Waits until something is so.
    pub async fn until<F, R>(&self, so: F)
    where
        F: Fn() -> R,
        R: Future<Output = bool>,
    {
        let waiting = async {
            while !so().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it comes to be so");
    }

    /// Waits until at least so many were counted: a client may see the end of a thing before it is counted.
    pub async fn counted(&self, what: Count, least: u64) {
        self.until(|| async { self.count(what) >= least }).await;
    }

    /// A counter.
    pub fn count(&self, what: Count) -> u64 {
        self.metrics.get(what)
    }
}

#[derive(Debug)]
pub struct Curled {
    pub code: i32,
    pub out: String,
    /// Shown when a test fails.
    #[expect(dead_code, reason = "read by Debug alone")]
    pub err: String,
}

impl Authority {
    fn new(blobs: Blobs) -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "The test's authority");
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let key = rcgen::KeyPair::generate().expect("key");
        let pem = params.self_signed(&key).expect("ca").pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem, blobs }
    }

    fn certify(&self, names: &[&str]) -> CertificateEntry {
        let file = self.blobs.put(self.issue(names).as_bytes(), None).expect("put");
        CertificateEntry { names: names.iter().map(ToString::to_string).collect(), file }
    }

    fn issue(&self, names: &[&str]) -> String {
        let key = rcgen::KeyPair::generate().expect("key");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        // As long as those of real authorities.
        let now = std::time::SystemTime::now();
        params.not_before = (now - DAY).into();
        params.not_after = (now + 90 * DAY).into();
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        let leaf = params.signed_by(&key, &self.issuer).expect("leaf");
        key.serialize_pem() + &leaf.pem()
    }
}

/// The VM of all routes.
pub fn vm() -> VmId {
    VmId::from_random([7; 20])
}

fn listener() -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

/// Answers HTTP/1 and, by prior knowledge, HTTP/2.
pub async fn http_server<F, R>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let mut first = [0; 3];
                let http2 = tcp.peek(&mut first).await.is_ok_and(|count| &first[..count] == b"PRI");
                let io = TokioIo::new(tcp);
                let _ends_when_the_gateway_closes = if http2 {
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await
                } else {
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
                };
            });
        }
    });
    address
}

/// A plain answer.
pub fn text(text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(text.into()))
}

/// The double of vpc: its protocol, and connections to servers of the test.
async fn answer_dials(socket: PathBuf, ports: Arc<Mutex<HashMap<u16, Behind>>>) {
    let listener = bind(&socket);
    while let Ok(wire) = listener.accept().await {
        let ports = Arc::clone(&ports);
        tokio::spawn(async move {
            while let Ok((request, _)) = wire.receive::<VpcRequest>().await {
                answer_dial(&wire, &request, &ports).await;
            }
        });
    }
}

fn bind(socket: &Path) -> WireListener {
    WireListener::bind(socket, 0o600).expect("vpc's socket")
}

async fn answer_dial(wire: &Wire, request: &VpcRequest, ports: &Mutex<HashMap<u16, Behind>>) {
    let VpcRequest::Dial { port, .. } = request else { panic!("edge-proxy only dials, not {request:?}") };
    let behind = ports.lock().expect("lock").get(port).copied();
    let refusal = match behind {
        Some(Behind::Server(address)) => return connect(wire, address).await,
        Some(Behind::Sleeps { dialled, woken, server }) => {
            dialled.add_permits(1);
            woken.acquire().await.expect("never closed").forget();
            return connect(wire, server).await;
        }
        Some(Behind::Refuses(refusal)) => refusal,
        None => Refusal::PortNotDialable,
    };
    refuse(wire, refusal).await;
}

async fn connect(wire: &Wire, server: SocketAddr) {
    match TcpStream::connect(server).await {
        Ok(tcp) => wire.send(&VpcReply::Dialed, &[tcp.as_fd()]).await.expect("send"),
        Err(_) => refuse(wire, Refusal::ConnectionRefused).await,
    }
}

async fn refuse(wire: &Wire, reason: Refusal) {
    let reply = VpcReply::Refused { reason, message: "secret of the inside".into() };
    wire.send(&reply, &[]).await.expect("send");
}
