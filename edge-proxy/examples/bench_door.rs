//! Starts edge-proxy for `tests/bench/edge.sh`: publishes a view, and hands out connections to a plain server in vpc's
//! place, so that the bench measures edge-proxy and not the making of VMs.
//!
//! Its first line is edge-proxy's process id. Then it answers each line that it reads with one of its own:
//!
//! - `look`: how long a look-up of certificate and route takes;
//! - `changes N`: how long it takes until a view with one name and one certificate more is in force, N times.

use anyhow::{Context, Result, bail};
use clap::Parser;
use edge_proxy::metrics::Metrics;
use edge_proxy::table::Tables;
use feed::blobs::Blobs;
use feed::names::{NamesReader, NamesWriter};
use feed::publish::Publisher;
use feed::wire::{Wire, WireListener};
use model::config::{EdgeConfig, EdgeGuard, Places};
use model::host::HostName;
use model::id::{Generation, VmId};
use model::view::{CertificateEntry, EdgeView, RouteEntry, VIEW_VERSION};
use std::hint::black_box;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use vpc::client::{VpcReply, VpcRequest};

/// The shell moves the listener to where edge-proxy looks for it.
const START: &str = r#"exec 3<&"$LISTENER_FD"; LISTEN_PID=$$ exec "$EDGE" --config "$CONFIG""#;
/// Look-ups that are timed, each alone.
const LOOKS: usize = 200_000;
/// A change that takes longer is an error.
const CHANGE_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
struct Arguments {
    /// A folder of its own.
    #[arg(long)]
    folder: PathBuf,
    /// The binary.
    #[arg(long)]
    edge: PathBuf,
    /// Where edge-proxy listens.
    #[arg(long)]
    listen: SocketAddr,
    /// The server behind.
    #[arg(long)]
    upstream: SocketAddr,
    /// The host that is mapped to it.
    #[arg(long)]
    host: HostName,
    /// So many more: n0.HOST, n1.HOST and so on, each with a certificate of its own.
    #[arg(long, default_value_t = 0)]
    names: usize,
    /// PEM.
    #[arg(long)]
    certificate: PathBuf,
    /// PEM.
    #[arg(long)]
    key: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let places = Places { data: arguments.folder.join("data"), run: arguments.folder.join("run") };
    std::fs::create_dir_all(&places.run).context("run folder")?;
    let world = World::new(&arguments, &places)?;
    let dials = WireListener::bind(&places.vpc_socket(), 0o600)?;
    let mut child = start(&arguments, places.clone())?;
    println!("{}", child.id().context("edge-proxy has ended")?);
    let feed = places.feed_socket();
    tokio::select! {
        ended = child.wait() => { ended?; }
        served = serve(dials, arguments.upstream) => served?,
        announced = world.publisher.clone().announce(&feed) => announced?,
        obeyed = obey(world) => obeyed?,
    }
    Ok(())
}

fn start(arguments: &Arguments, places: Places) -> Result<Child> {
    let config = EdgeConfig {
        places,
        public_https_port: arguments.listen.port(),
        max_connections: 8192,
        dns_host: None,
        guard: EdgeGuard::default(),
        proxy_protocol_from: Vec::new(),
        access_log_mib: 32,
        traces: None,
    };
    let file = arguments.folder.join("edge.toml");
    std::fs::write(&file, toml::to_string(&config)?)?;
    let listener = TcpListener::bind(arguments.listen).context("listen")?;
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty())?;
    Command::new("bash")
        .args(["-c", START])
        .env("EDGE", &arguments.edge)
        .env("CONFIG", &file)
        .env("LISTENER_FD", listener.as_raw_fd().to_string())
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "https")
        .kill_on_drop(true)
        .spawn()
        .context("edge-proxy")
}

/// What is published.
struct World {
    publisher: Publisher,
    names: Arc<Mutex<NamesWriter>>,
    reader: NamesReader,
    blobs: Blobs,
    host: HostName,
    generation: u64,
    routes: Vec<RouteEntry>,
    certificates: Vec<CertificateEntry>,
}

impl World {
    fn new(arguments: &Arguments, places: &Places) -> Result<Self> {
        let blobs = Blobs::make(places.certificates(), None).context("certificates")?;
        let publisher = Publisher::new(&places.feed())?;
        let mut world = Self {
            publisher,
            names: Arc::new(Mutex::new(NamesWriter::open(places.names(), None).context("names")?)),
            reader: NamesReader::at(places.names()),
            blobs,
            host: arguments.host.clone(),
            generation: 0,
            routes: vec![route(arguments.host.clone())],
            certificates: Vec::new(),
        };
        let file = pem(&arguments.key, &arguments.certificate)?;
        world.certificates.push(CertificateEntry {
            names: vec![arguments.host.to_string()],
            file: world.blobs.put(file.as_bytes(), None)?,
        });
        for number in 0..arguments.names {
            world.add(&format!("n{number}"))?;
        }
        let view = world.view();
        publish(&world.publisher, &world.names, view)?;
        Ok(world)
    }

    /// A name below the host, with a certificate.
    fn add(&mut self, label: &str) -> Result<()> {
        let name: HostName = format!("{label}.{}", self.host).parse()?;
        let made = rcgen::generate_simple_self_signed([name.to_string()])?;
        let file = made.signing_key.serialize_pem() + &made.cert.pem();
        let file = self.blobs.put(file.as_bytes(), None)?;
        self.certificates.push(CertificateEntry { names: vec![name.to_string()], file });
        self.routes.push(route(name));
        Ok(())
    }

    fn view(&mut self) -> EdgeView {
        self.generation += 1;
        EdgeView {
            version: VIEW_VERSION,
            generation: Generation(self.generation),
            api_hosts: Vec::new(),
            routes: self.routes.clone().into(),
            gone: Vec::new().into(),
            certificates: self.certificates.clone().into(),
            challenges: Vec::new().into(),
            names: None,
        }
    }

    /// From the decision, a view in memory, to the word that it is in force.
    async fn change(&mut self, number: u64) -> Result<Duration> {
        self.add(&format!("c{number}"))?;
        let view = self.view();
        let begun = Instant::now();
        let (publisher, names) = (self.publisher.clone(), Arc::clone(&self.names));
        let generation = view.generation;
        tokio::task::spawn_blocking(move || publish(&publisher, &names, view)).await??;
        tokio::time::timeout(CHANGE_WAIT, self.publisher.taken_over::<EdgeView>(generation))
            .await
            .context("a change is not in force")?;
        Ok(begun.elapsed())
    }

    /// As edge-proxy looks up, by its own tables.
    fn looks(&mut self) -> Result<Vec<Duration>> {
        let tables = Tables::new(self.blobs.clone(), self.reader.clone());
        let mut view = self.view();
        self.names.lock().unwrap_or_else(PoisonError::into_inner).take_out(&mut view)?;
        tables.take_over(&view, &Metrics::default());
        let hosts: Vec<HostName> = self.routes.iter().map(|route| route.host.base().clone()).collect();
        // A stride that shares no factor with their count meets each of them, none near the one before.
        let stride = [7919, 7927].into_iter().find(|prime| !hosts.len().is_multiple_of(*prime)).unwrap_or(1);
        let one = |number: usize| {
            let host = &hosts[(number * stride) % hosts.len()];
            let begun = Instant::now();
            let table = tables.now();
            black_box(table.certificates.find(black_box(host)).is_some());
            black_box(table.route(black_box(host)).is_some());
            begun.elapsed()
        };
        Ok((0..LOOKS).map(one).collect())
    }
}

/// As control does, which keeps the files of earlier parts until they are of no use.
fn publish(publisher: &Publisher, names: &Mutex<NamesWriter>, mut view: EdgeView) -> Result<()> {
    let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
    names.take_out(&mut view)?;
    publisher.publish(&view, None)?;
    names.sweep(view.generation, publisher.in_force::<EdgeView>())?;
    Ok(())
}

fn pem(key: &Path, certificate: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(key).context("key")?
        + &std::fs::read_to_string(certificate).context("certificate")?)
}

fn route(host: HostName) -> RouteEntry {
    RouteEntry { host: host.into(), vm: VmId::from_random([1; 20]), port: 80, run: 1 }
}

async fn obey(mut world: World) -> Result<()> {
    let read = || std::io::stdin().lines().next();
    while let Some(line) = tokio::task::spawn_blocking(read).await?.transpose()? {
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("look", "") => println!("{}", spread(world.looks()?)),
            ("changes", count) => {
                let mut times = Vec::new();
                for number in 0..count.parse()? {
                    times.push(world.change(number).await?);
                }
                println!("{}", spread(times));
            }
            _ => bail!("what is {line:?}?"),
        }
    }
    // Whoever started it goes on without asking more.
    std::future::pending().await
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |hundredths: usize| {
        times.get(times.len().saturating_sub(1) * hundredths / 100).copied().unwrap_or_default()
    };
    format!("p50 {:?}, p99 {:?}, most {:?}", at(50), at(99), at(100))
}

async fn serve(dials: WireListener, upstream: SocketAddr) -> Result<()> {
    loop {
        let wire = dials.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = answer(wire, upstream).await {
                eprintln!("a dial failed: {error:#}");
            }
        });
    }
}

async fn answer(wire: Wire, upstream: SocketAddr) -> Result<()> {
    let (_request, _): (VpcRequest, _) = wire.receive().await?;
    let tcp = TcpStream::connect(upstream).await?;
    wire.send(&VpcReply::Dialed, &[tcp.as_fd()]).await?;
    Ok(())
}
