//! Plain HTTP: one request per connection, answered with the same address over HTTPS, or with what a certificate
//! authority asks to see.

use crate::metrics::{Count, Metrics};
use crate::pure::head::{self, HeadFault};
use crate::pure::page::{self, About, Page, Problem};
use crate::pure::{authority, redirect};
use crate::raw;
use crate::settings::Settings;
use crate::table::Tables;
use bytes::Bytes;
use model::host::HostName;
use model::id::TraceId;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

/// Read at once.
const STEP: usize = 4 << 10;

/// What all connections share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Plain {
    /// Bounds and ports.
    pub settings: Arc<Settings>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where challenges stand.
    pub tables: Tables,
}

/// Serves a connection until it ends.
pub async fn serve(plain: Plain, mut tcp: TcpStream) {
    let metrics = &plain.metrics;
    metrics.count(Count::Plain);
    match timeout(plain.settings.head_wait, exchange(&plain, &mut tcp)).await {
        Err(_) => metrics.count(Count::HeadLate),
        Ok(Err(error)) => debug!(%error, "a plain connection broke"),
        Ok(Ok(())) => {}
    }
}

async fn exchange(plain: &Plain, tcp: &mut TcpStream) -> io::Result<()> {
    let Plain { settings, metrics, .. } = plain;
    let mut bytes = Vec::with_capacity(STEP);
    let page = loop {
        match head::find_end(&bytes, 0) {
            Err(fault) => break refused(Problem::Head(fault), metrics, &bytes),
            Ok(Some(length)) => break answer(plain, &bytes[..length]),
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

fn answer(plain: &Plain, bytes: &[u8]) -> Page {
    let Plain { settings, metrics, tables } = plain;
    let (host, path) = match target(bytes) {
        Err(problem) => return refused(problem, metrics, bytes),
        Ok(target) => target,
    };
    let Some(token) = path.strip_prefix(redirect::ACME_PATH) else {
        let location = redirect::location(&host, settings.public_https_port, path);
        return Page { status: 308, fields: vec![("location", location)], body: Bytes::new() };
    };
    match tables.now().challenges.http(&host, token) {
        None => refused(Problem::UnknownHost, metrics, bytes),
        Some(answer) => {
            metrics.count(Count::HttpChallenges);
            let body = Bytes::copy_from_slice(answer.as_bytes());
            Page { status: 200, fields: vec![("content-type", "application/octet-stream".into())], body }
        }
    }
}

/// The host and the target that a request names.
fn target(bytes: &[u8]) -> Result<(HostName, &str), Problem> {
    head::judge(bytes).map_err(Problem::Head)?;
    let mut fields = [httparse::EMPTY_HEADER; head::MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(bytes).map_err(|_| Problem::Head(HeadFault::Field))?;
    let host = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("host"));
    let host = host.and_then(|field| std::str::from_utf8(field.value).ok()).unwrap_or_default();
    Ok((authority::parse(host).map_err(Problem::Authority)?, request.path.unwrap_or("/")))
}

fn refused(problem: Problem, metrics: &Metrics, head: &[u8]) -> Page {
    metrics.problem(problem);
    let trace = TraceId::from_random(rand::random());
    page::render(problem, &About { host: "this site", port: 0, api: false, accept: head, trace: &trace })
}
