//! Starts edge-proxy for `tests/bench/edge.sh`: publishes a view with one host, and hands out connections to a plain
//! server in vpc's place, so that the bench measures edge-proxy and not the making of VMs.

use anyhow::{Context, Result};
use clap::Parser;
use feed::blobs::Blobs;
use feed::publish::Publisher;
use feed::wire::{Wire, WireListener};
use model::config::{EdgeConfig, EdgeGuard, Places};
use model::id::{Generation, VmId};
use model::view::{CertificateEntry, EdgeView, RouteEntry, VIEW_VERSION};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use tokio::net::TcpStream;
use tokio::process::Command;
use vpc::client::{VpcReply, VpcRequest};

/// The shell moves the listener to where edge-proxy looks for it.
const START: &str = r#"exec 3<&"$LISTENER_FD"; LISTEN_PID=$$ exec "$EDGE" --config "$CONFIG""#;

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
    host: String,
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
    let blobs = Blobs::make(places.certificates(), None).context("certificates")?;
    Publisher::new(&places.feed())?.publish(&view(&arguments, &blobs)?, None)?;
    let dials = WireListener::bind(&places.vpc_socket(), 0o600)?;
    let config = EdgeConfig {
        places,
        public_https_port: arguments.listen.port(),
        max_connections: 4096,
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
    let mut child = Command::new("bash")
        .args(["-c", START])
        .env("EDGE", &arguments.edge)
        .env("CONFIG", &file)
        .env("LISTENER_FD", listener.as_raw_fd().to_string())
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "https")
        .kill_on_drop(true)
        .spawn()
        .context("edge-proxy")?;
    println!("{}", child.id().context("edge-proxy has ended")?);
    tokio::select! {
        ended = child.wait() => { ended?; }
        served = serve(dials, arguments.upstream) => served?,
    }
    Ok(())
}

fn view(arguments: &Arguments, blobs: &Blobs) -> Result<EdgeView> {
    let mut file = std::fs::read(&arguments.key)?;
    file.extend(std::fs::read(&arguments.certificate)?);
    let certificate = CertificateEntry { names: vec![arguments.host.clone()], file: blobs.put(&file, None)? };
    let route =
        RouteEntry { host: arguments.host.parse()?, vm: VmId::from_random([1; 20]), port: 80, run: 1 };
    Ok(EdgeView {
        version: VIEW_VERSION,
        generation: Generation(1),
        api_hosts: Vec::new(),
        routes: vec![route].into(),
        gone: Vec::new().into(),
        certificates: vec![certificate].into(),
        challenges: Vec::new().into(),
    })
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
