//! `stock --config FILE ...`: the SSH front as one writes it with russh's own channels, to be started by the front's tests
//! in its place (`tests/stock/run`). It lets everybody in: it listens on loopback, for these tests.
//!
//! For each session channel of the client one is opened at sshd, and two loops hand on what the one and the other say.

use anyhow::{Context, Result};
use russh::keys::{PublicKeyOrCertificate, load_openssh_certificate, load_secret_key};
use russh::server::{Auth, ChannelOpenHandle, Msg, Session};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client, server};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

/// What a line of the settings says.
fn setting(file: &Path, name: &str) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} is not there", file.display()))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value = value.with_context(|| format!("no {name} in {}", file.display()))?;
    Ok(value.trim_matches([' ', '=', '"']).to_owned())
}

/// The test's sshd, and how it lets us in.
struct Guest {
    address: SocketAddr,
    key: PathBuf,
}

impl Guest {
    async fn new(folder: &Path) -> Result<Self> {
        let port = setting(&folder.join("sshd_config"), "Port")?.parse()?;
        let key = folder.join("stock");
        let run = async |arguments: &[&Path]| -> Result<()> {
            let status =
                tokio::process::Command::new("ssh-keygen").arg("-q").args(arguments).status().await?;
            anyhow::ensure!(status.success(), "ssh-keygen failed");
            Ok(())
        };
        let word = Path::new;
        run(&[word("-t"), word("ed25519"), word("-N"), word(""), word("-f"), &key]).await?;
        let (authority, public) = (folder.join("authority"), folder.join("stock.pub"));
        run(&[word("-s"), &authority, word("-I"), word("stock"), word("-n"), word("root"), &public]).await?;
        Ok(Self { address: ([127, 0, 0, 1], port).into(), key })
    }

    async fn connect(&self) -> Result<client::Handle<Anyone>> {
        let mut guest = client::connect(Arc::default(), self.address, Anyone).await?;
        let key = Arc::new(load_secret_key(&self.key, None)?);
        let certificate = load_openssh_certificate(self.key.with_file_name("stock-cert.pub"))?;
        let said = guest.authenticate_openssh_cert("root", key, certificate).await?;
        anyhow::ensure!(said.success(), "sshd refuses");
        Ok(guest)
    }
}

/// Takes the test's sshd as it is.
struct Anyone;

impl client::Handler for Anyone {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// One client.
struct Visitor {
    guest: client::Handle<Anyone>,
}

impl server::Handler for Visitor {
    type Error = anyhow::Error;

    async fn auth_none(&mut self, _: &str) -> Result<Auth> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<()> {
        let (guest_reads, guest) = self.guest.channel_open_session().await?.split();
        reply.accept().await;
        let (client_reads, client) = channel.split();
        let handle = session.handle();
        tokio::spawn(up(client_reads, guest));
        tokio::spawn(down(guest_reads, client, handle));
        Ok(())
    }
}

/// Hands on what the client says.
async fn up(mut client: ChannelReadHalf, guest: ChannelWriteHalf<client::Msg>) -> Result<()> {
    while let Some(message) = client.wait().await {
        match message {
            ChannelMsg::Data { data } => guest.data_bytes(data).await?,
            ChannelMsg::ExtendedData { data, ext } => guest.extended_data_bytes(ext, data).await?,
            ChannelMsg::Eof => guest.eof().await?,
            ChannelMsg::Close => guest.close().await?,
            ChannelMsg::Exec { want_reply, command } => guest.exec(want_reply, command).await?,
            ChannelMsg::RequestShell { want_reply } => guest.request_shell(want_reply).await?,
            ChannelMsg::SetEnv { want_reply, variable_name, variable_value } => {
                guest.set_env(want_reply, variable_name, variable_value).await?;
            }
            // No part in what the tests try here.
            _ => {}
        }
    }
    Ok(())
}

/// Hands on what sshd says.
async fn down(
    mut guest: ChannelReadHalf,
    client: ChannelWriteHalf<Msg>,
    handle: server::Handle,
) -> Result<()> {
    while let Some(message) = guest.wait().await {
        match message {
            ChannelMsg::Data { data } => client.data_bytes(data).await?,
            ChannelMsg::ExtendedData { data, ext } => client.extended_data_bytes(ext, data).await?,
            ChannelMsg::Eof => client.eof().await?,
            ChannelMsg::Close => client.close().await?,
            ChannelMsg::ExitStatus { exit_status } => client.exit_status(exit_status).await?,
            ChannelMsg::Success => {
                handle.channel_success(client.id()).await.ok();
            }
            ChannelMsg::Failure => {
                handle.channel_failure(client.id()).await.ok();
            }
            _ => {}
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let file =
        std::env::args().skip_while(|word| word != "--config").nth(1).context("stock --config FILE")?;
    let file = PathBuf::from(file);
    let folder = file.parent().context("a file in a folder")?;
    let guest = Arc::new(Guest::new(folder).await?);
    let settings =
        server::Config { keys: vec![load_secret_key(folder.join("front_ed"), None)?], ..Default::default() };
    let settings = Arc::new(settings);
    let listener = TcpListener::bind(setting(&file, "listen")?).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(Arc::clone(&settings), stream, Arc::clone(&guest)));
    }
}

async fn serve(settings: Arc<server::Config>, stream: TcpStream, guest: Arc<Guest>) -> Result<()> {
    let visitor = Visitor { guest: guest.connect().await? };
    server::run_stream(settings, stream, visitor).await?.await
}
