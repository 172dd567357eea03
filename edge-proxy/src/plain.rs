//! Plain HTTP: one request per connection, answered with the same address over HTTPS.

use crate::metrics::{Count, Metrics};
use crate::pure::head::{self, HeadFault};
use crate::pure::page::{self, About, Page, Problem};
use crate::pure::{authority, redirect};
use crate::raw;
use crate::settings::Settings;
use bytes::Bytes;
use model::id::TraceId;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

/// Read at once.
const STEP: usize = 4 << 10;

/// Serves a connection until it ends.
pub async fn serve(settings: Arc<Settings>, metrics: Arc<Metrics>, mut tcp: TcpStream) {
    metrics.count(Count::Plain);
    match timeout(settings.head_wait, exchange(&settings, &metrics, &mut tcp)).await {
        Err(_) => metrics.count(Count::HeadLate),
        Ok(Err(error)) => debug!(%error, "a plain connection broke"),
        Ok(Ok(())) => {}
    }
}

async fn exchange(settings: &Settings, metrics: &Metrics, tcp: &mut TcpStream) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(STEP);
    let page = loop {
        match head::find_end(&bytes, 0) {
            Err(fault) => break refused(Problem::Head(fault), metrics, &bytes),
            Ok(Some(length)) => break answer(settings, metrics, &bytes[..length]),
            Ok(None) if bytes.len() > settings.max_head_bytes => {
                break refused(Problem::Head(HeadFault::TooLarge), metrics, &bytes);
            }
            Ok(None) => {}
        }
        bytes.reserve(STEP);
        if tcp.read_buf(&mut bytes).await? == 0 {
            metrics.count(Count::HeadCut);
            return Ok(());
        }
    };
    raw::write_page(tcp, &page).await?;
    tcp.shutdown().await?;
    // The client closes when it has read the answer; what it sent meanwhile must not reset the connection first.
    let mut thrown = [0; STEP];
    while tcp.read(&mut thrown).await? > 0 {}
    Ok(())
}

fn answer(settings: &Settings, metrics: &Metrics, bytes: &[u8]) -> Page {
    match target(settings, bytes) {
        Err(problem) => refused(problem, metrics, bytes),
        Ok(location) => Page { status: 308, fields: vec![("location", location)], body: Bytes::new() },
    }
}

fn target(settings: &Settings, bytes: &[u8]) -> Result<String, Problem> {
    head::judge(bytes).map_err(Problem::Head)?;
    let mut fields = [httparse::EMPTY_HEADER; head::MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(bytes).map_err(|_| Problem::Head(HeadFault::Field))?;
    let host = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("host"));
    let host = host.and_then(|field| std::str::from_utf8(field.value).ok()).unwrap_or_default();
    let host = authority::parse(host).map_err(Problem::Authority)?;
    let path = request.path.unwrap_or("/");
    if path.starts_with(redirect::ACME_PATH) {
        return Err(Problem::UnknownHost);
    }
    Ok(redirect::location(&host, settings.public_https_port, path))
}

fn refused(problem: Problem, metrics: &Metrics, head: &[u8]) -> Page {
    metrics.problem(problem);
    let trace = TraceId::from_random(rand::random());
    page::render(problem, &About { host: "this site", port: 0, api: false, accept: head, trace: &trace })
}
