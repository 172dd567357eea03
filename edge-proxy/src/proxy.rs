//! The life of a proxied request, as the engine calls it: route, connect, rewrite, answer, log.
//!
//! Every request is looked up by itself, so a change of routes is seen by the next request of a connection that stays
//! open. WebSockets do not come here: see [`crate::tunnel`].

use crate::access::{Log, Outcome, Record};
use crate::dial::{self, Destination, DialError, Dialer, Wish};
use crate::guard::Guard;
use crate::metrics::{Count, Metrics};
use crate::pure::again::{Attempt, Break, may_go_again};
use crate::pure::chunks::ChunkFault;
use crate::pure::head::{HeadFault, MAX_FIELDS};
use crate::pure::pace::Pace;
use crate::pure::page::{self, About, Page, Problem};
use crate::pure::trailers::{self, Of};
use crate::pure::{authority, browser, forwarded};
use crate::settings::Settings;
use crate::stream::Client;
use crate::table::Tables;
use crate::times::Protocol;
use crate::versions::{self, Interim};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use model::route::Route;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::ServerSession;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::{Error, ErrorSource, ErrorType, Result, RetryType};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tracing::debug;

/// Requests at once over one connection to a VM that speaks HTTP/2.
const UPSTREAM_STREAMS: usize = 100;
/// What a VM may send ahead in one stream of HTTP/2. Bounds the memory of a slow client's answer.
const UPSTREAM_STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of a connection.
const UPSTREAM_CONNECTION_WINDOW: u32 = 4 << 20;
/// For what is left of a request's body after the answer.
const DRAIN: Duration = Duration::from_secs(5);

/// What all requests share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Edge {
    /// Where names lead.
    pub tables: Tables,
    /// To VMs and to the API.
    pub dialer: Dialer,
    /// Bounds.
    pub settings: Arc<Settings>,
    /// Who takes how much.
    pub guard: Guard,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Who is told of requests that are over.
    pub log: Log,
}

/// What one request carries through the phases.
#[derive(Debug)]
pub struct Context {
    record: Record,
    kind: Kind,
    tries: u32,
    body: Option<Body>,
    interim: Interim,
    /// Fields of the answer that its `Connection` says are for one hop.
    for_one_hop: Vec<HeaderName>,
}

/// What has come of a request's body.
#[derive(Clone, Copy, Debug)]
struct Body {
    since: Instant,
    bytes: u64,
}

/// What is to be expected of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A request and an answer.
    Plain,
    /// Server-sent events: long pauses.
    Events,
    /// gRPC: HTTP/2 to the VM, trailers, long pauses.
    Grpc,
}

impl Edge {
    /// Checks a request and finds where it goes.
    pub(crate) fn route(
        &self,
        client: &Client,
        request: &RequestHeader,
        record: &mut Record,
    ) -> Result<Destination, Problem> {
        if let Some(traces) = &self.settings.traces {
            record.trace(&request.headers, Some(traces.ratio));
        }
        let ticket = self.guard.request(client.address.ip()).map_err(Problem::Limited)?;
        let ticket = record.ticket.insert(ticket);
        let host = authority::of_request(&request.uri, &request.headers).map_err(Problem::Authority)?;
        let host = record.host.insert(host);
        if !client.certificate.covers(host) {
            return Err(Problem::Misdirected);
        }
        let destination = match self.tables.now().route(host) {
            None => return Err(Problem::UnknownHost),
            Some(Route::Gone) => return Err(Problem::VmDeleted),
            Some(Route::Api) => Destination::Api,
            Some(Route::Vm(permit)) => Destination::Vm(permit),
        };
        ticket.to_host(host).map_err(Problem::Limited)?;
        Ok(record.destination.insert(destination).clone())
    }

    /// Takes out what only the gateway may say, and says it.
    pub(crate) fn tell_client(&self, client: &Client, request: &mut RequestHeader, host: &str) -> Result<()> {
        let spoofed = forwarded::spoofed(&request.headers);
        for name in &spoofed {
            request.remove_header(name);
        }
        self.metrics.add(Count::Spoofed, spoofed.len() as u64);
        let told =
            forwarded::Client { address: client.address.ip(), host, port: self.settings.public_https_port };
        for (name, value) in forwarded::values(&told) {
            request.insert_header(name, value)?;
        }
        Ok(())
    }

    /// Tells the VM of the trace that the request belongs to, and of the span there, if one is recorded.
    pub(crate) fn tell_trace(&self, record: &mut Record, request: &mut RequestHeader) -> Result<()> {
        let (roots, span) = (self.settings.traces.as_ref().map(|traces| traces.ratio), record.try_span());
        let told = record.trace(&request.headers, roots);
        let (orphan, replacement) = (told.orphan(), told.replacement(span));
        if let Some(name) = orphan {
            request.remove_header(&name);
        }
        if let Some((name, value)) = replacement {
            request.insert_header(name, value)?;
        }
        Ok(())
    }

    /// The page for a problem; counts it.
    pub(crate) fn page(&self, problem: Problem, record: &mut Record, accept: &[u8]) -> Page {
        self.metrics.problem(problem);
        record.problem = Some(problem.code());
        let trace = record.answer_id().clone();
        let about = About {
            host: record.host.as_ref().map_or("this site", |host| host.as_str()),
            port: record.destination.as_ref().map_or(0, Destination::port),
            api: record.destination == Some(Destination::Api),
            accept,
            trace: &trace,
        };
        page::render(problem, &about)
    }

    /// A client that sends its body more slowly than is asked is cut. Streams of gRPC have their pauses.
    fn check_pace(&self, ctx: &mut Context, bytes: usize, end: bool) -> Result<()> {
        if end || ctx.kind != Kind::Plain {
            return Ok(());
        }
        let now = Instant::now();
        let body = ctx.body.get_or_insert(Body { since: now, bytes: 0 });
        body.bytes += bytes as u64;
        let settings = &self.settings;
        let pace =
            Pace { grace: settings.body_grace, bytes_per_second: settings.guard.body_bytes_per_second };
        if pace.is_too_slow(now.duration_since(body.since), body.bytes) {
            self.metrics.count(Count::BodySlow);
            let slow = Error::explain(ErrorType::ReadTimedout, "the client sends its body too slowly");
            return Err(slow.into_down());
        }
        Ok(())
    }

    async fn answer(&self, session: &mut Session, problem: Problem, record: &mut Record) -> Result<()> {
        let accept = session.req_header().headers.get(header::ACCEPT).cloned();
        let page = self.page(problem, record, accept.as_ref().map_or(b"", |value| value.as_bytes()));
        let mut answer = ResponseHeader::build(page.status, Some(page.fields.len() + 1))?;
        for (name, value) in page.fields {
            answer.insert_header(name, value)?;
        }
        answer.insert_header(header::CONTENT_LENGTH, page.body.len())?;
        let headless = session.req_header().method == Method::HEAD;
        session.write_response_header(Box::new(answer), headless).await?;
        if !headless {
            session.write_response_body(Some(page.body), true).await?;
        } else if let ServerSession::H2(h2) = session.as_downstream_mut() {
            // Else the client takes the answer for one that was broken off.
            h2.finish()?;
        }
        record.finished = Some(Instant::now());
        Ok(())
    }

    fn tune(&self, peer: &mut HttpPeer, kind: Kind, destination: &Destination) {
        let settings = &self.settings;
        // The API bounds its own calls, and some of them wait for a machine to boot.
        let patient = kind != Kind::Plain || *destination == Destination::Api;
        let wait = if patient { settings.stream_wait } else { settings.answer_wait };
        let options = &mut peer.options;
        options.read_timeout = Some(wait);
        options.write_timeout = Some(wait);
        options.idle_timeout = Some(settings.upstream_idle);
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        if kind == Kind::Grpc {
            options.set_http_version(2, 2);
            options.max_h2_streams = UPSTREAM_STREAMS;
            options.h2_stream_window_size = Some(UPSTREAM_STREAM_WINDOW);
            options.h2_connection_window_size = Some(UPSTREAM_CONNECTION_WINDOW);
        }
    }
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context {
            record: Record::begin(),
            kind: Kind::Plain,
            tries: 0,
            body: None,
            interim: Interim::default(),
            for_one_hop: Vec::new(),
        }
    }

    /// No compression and no other module: what a VM answers is passed on as it is.
    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {}

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        session.set_read_timeout(Some(self.settings.body_wait));
        session.set_write_timeout(Some(self.settings.write_stall));
        session.set_total_drain_timeout(Some(DRAIN));
        let client = client_of(session)?;
        client.requests.fetch_add(1, Ordering::Relaxed);
        let checked = check_http2(session);
        let routed = checked.and_then(|()| self.route(&client, session.req_header(), &mut ctx.record));
        if let Err(problem) = routed {
            if matches!(problem, Problem::Head(_) | Problem::Authority(_)) {
                // As the gate does: what follows such a request on its connection is not read.
                session.set_keepalive(None);
            }
            self.answer(session, problem, &mut ctx.record).await?;
            return Ok(true);
        }
        ctx.kind = kind_of(&session.req_header().headers);
        versions::expect_no_interim(session);
        to_origin_form(session.req_header_mut())?;
        Ok(false)
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Context) -> Result<Box<HttpPeer>> {
        ctx.record.tried();
        let destination = ctx.record.destination.as_ref().ok_or_else(|| {
            Error::explain(ErrorType::InternalError, "a request without a destination was let through")
        })?;
        ctx.tries += 1;
        let again = ctx.tries > 1;
        if again {
            self.metrics.count(Count::Retries);
        }
        let request = session.req_header();
        let patience = browser::looks_at_a_page(&request.method, &request.headers);
        let wish = Wish {
            // Events have a connection of their own, since that of another request is probed.
            fresh: again || ctx.kind == Kind::Events,
            silent: ctx.kind != Kind::Plain,
            patience: patience.then_some(self.settings.page_after),
        };
        let mut peer = self.dialer.peer(destination, wish).await.map_err(dial::refused)?;
        self.tune(&mut peer, ctx.kind, destination);
        Ok(peer)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::fd::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Context,
    ) -> Result<()> {
        ctx.record.connected(reused);
        if reused {
            self.metrics.count(Count::DialsSaved);
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        let client = client_of(session)?;
        self.tell_trace(&mut ctx.record, request)?;
        let asked = session.req_header();
        if ctx.kind != Kind::Grpc {
            versions::join_cookies(request)?;
            versions::announce_trailers(asked, request)?;
        }
        let host = match asked.headers.get(header::HOST) {
            Some(host) => host.to_str().unwrap_or_default(),
            None => asked.uri.authority().map_or("", |authority| authority.as_str()),
        };
        self.tell_client(&client, request, host)
    }

    /// An empty last frame of HTTP/2 would become a second end of the chunked body (pingora issue 935).
    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        self.check_pace(ctx, body.as_ref().map_or(0, Bytes::len), end)?;
        if body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        Ok(())
    }

    async fn request_trailer_filter(
        &self,
        session: &mut Session,
        fields: &mut HeaderMap,
        _ctx: &mut Context,
    ) -> Result<()> {
        let for_one_hop = trailers::for_one_hop(&session.req_header().headers);
        versions::sift(fields, Of::Request, &for_one_hop, &self.metrics).map_err(|error| error.into_down())
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        ctx.record.answered.get_or_insert_with(Instant::now);
        if response.status.is_informational() {
            return ctx.interim.check(response, &self.metrics);
        }
        ctx.for_one_hop = trailers::for_one_hop(&response.headers);
        Ok(())
    }

    fn upstream_response_trailer_filter(
        &self,
        _session: &mut Session,
        fields: &mut HeaderMap,
        ctx: &mut Context,
    ) -> Result<()> {
        versions::sift(fields, Of::Answer, &ctx.for_one_hop, &self.metrics).map_err(|error| error.into_up())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _ctx: &mut Context,
    ) -> Result<()> {
        versions::unchunk_for_http_1_0(session, response);
        Ok(())
    }

    /// Replaces the engine's rule, which also repeats requests that have effects or bodies.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Context,
        pooled: bool,
    ) -> Box<Error> {
        ctx.record.try_failed(code_of(problem_of(&error)));
        let bodiless = session.as_mut().is_body_empty();
        let request = session.req_header();
        let answered = answer_begun(session);
        let attempt = Attempt { method: &request.method, headers: &request.headers, pooled, answered };
        let again = bodiless && may_go_again(&attempt, break_of(&error));
        error.set_retry(again);
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Context) -> FailToProxy {
        debug!(%error, "a request failed");
        let problem = problem_of(error);
        ctx.record.try_failed(code_of(problem));
        if *error.esource() == ErrorSource::Downstream && *error.root_etype() == ErrorType::WriteTimedout {
            self.metrics.count(Count::WriteStalled);
        }
        let mut status = 0;
        match problem {
            None => self.metrics.count(Count::ClientGone),
            Some(problem) if answer_begun(session) => {
                // The answer has begun: all that is left is to break it off, so that nobody takes it for whole.
                self.metrics.problem(problem);
                ctx.record.problem = Some(problem.code());
            }
            Some(problem) => {
                status = problem.status();
                session.set_keepalive(None);
                if let Err(error) = self.answer(session, problem, &mut ctx.record).await {
                    debug!(%error, "the client did not take the answer");
                } else if let ServerSession::H1(h1) = session.as_downstream_mut() {
                    h1.shutdown().await;
                }
            }
        }
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    /// What failed stands in the access log and in the counters; the engine's own lines have query strings.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Context, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Context,
        _error: &Error,
        _about: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, ctx: &mut Context) {
        self.metrics.count(Count::Requests);
        let protocol = if session.is_http2() { Protocol::Http2 } else { Protocol::Http1 };
        if session.is_http2() {
            self.metrics.count(Count::Http2);
        }
        let Ok(client) = client_of(session) else { return };
        let request = session.req_header();
        let outcome = Outcome {
            client: client.address.ip(),
            protocol,
            version: match request.version {
                Version::HTTP_2 => "2",
                Version::HTTP_10 => "1.0",
                _ => "1.1",
            },
            method: request.method.as_str(),
            target: request.uri.path(),
            status: session.response_written().map_or(0, |answer| answer.status.as_u16()),
            received: session.body_bytes_read() as u64,
            sent: session.body_bytes_sent() as u64,
        };
        self.log.note(&ctx.record, &outcome);
    }
}

/// What is known of the connection, as [`crate::stream::ClientStream`] told the engine.
fn client_of(session: &Session) -> Result<Client> {
    let digest = session.digest().and_then(|digest| digest.proxy_digest.as_ref());
    let client = digest.and_then(|digest| digest.user_data.as_ref()?.downcast_ref::<Client>());
    client.cloned().ok_or_else(|| Error::explain(ErrorType::InternalError, "a connection without its client"))
}

/// What the gate sees to for HTTP/1, as far as HTTP/2 leaves it open.
fn check_http2(session: &Session) -> Result<(), Problem> {
    if !session.is_http2() {
        return Ok(());
    }
    let request = session.req_header();
    if matches!(request.method, Method::TRACE | Method::CONNECT) {
        return Err(Problem::Head(HeadFault::Method));
    }
    if request.headers.len() > MAX_FIELDS {
        return Err(Problem::Head(HeadFault::TooLarge));
    }
    if request.headers.keys().any(|name| name.as_str().contains('_')) {
        return Err(Problem::Head(HeadFault::Underscore));
    }
    // The engine takes them, and HTTP/1.1 has no words for them (RFC 9113 section 8.2.1).
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let padded = |value: &HeaderValue| blank(value.as_bytes().first()) || blank(value.as_bytes().last());
    if request.headers.values().any(padded) {
        return Err(Problem::Head(HeadFault::Field));
    }
    Ok(())
}

/// Why a try has failed, for its span.
fn code_of(problem: Option<Problem>) -> &'static str {
    problem.map_or("client_gone", Problem::code)
}

/// A VM is an origin: it gets a path, also when the client wrote an absolute target (RFC 9112 section 3.2.2).
fn to_origin_form(request: &mut RequestHeader) -> Result<()> {
    let raw = request.raw_path();
    if raw.starts_with(b"/") || raw == b"*" {
        return Ok(());
    }
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    request.set_raw_path(path.as_bytes())
}

fn kind_of(headers: &HeaderMap) -> Kind {
    // `application/grpc`, or with `+` and how its messages are written; gRPC-Web is not of its kind, and passes as HTTP/1.
    let after = |name, start: &[u8]| {
        let value = headers.get(name)?.as_bytes();
        let (head, rest) = value.split_at_checked(start.len())?;
        head.eq_ignore_ascii_case(start).then(|| rest.first().copied())
    };
    if matches!(after(header::CONTENT_TYPE, b"application/grpc"), Some(None | Some(b'+' | b';' | b' '))) {
        Kind::Grpc
    } else if after(header::ACCEPT, b"text/event-stream").is_some() {
        Kind::Events
    } else {
        Kind::Plain
    }
}

/// Whether the client has the head of an answer, hints besides.
fn answer_begun(session: &Session) -> bool {
    session.response_written().is_some_and(|answer| !answer.status.is_informational())
}

/// How an exchange broke, by the mark that the engine has put on its error.
fn break_of(error: &Error) -> Break {
    let write = *error.etype() == ErrorType::WriteError && *error.esource() == ErrorSource::Upstream;
    match error.retry {
        RetryType::ReusedOnly => Break::Closed,
        RetryType::Decided(true) => Break::Unprocessed,
        RetryType::Decided(false) if write => Break::Closed,
        RetryType::Decided(false) => Break::Other,
    }
}

/// What to tell the client; nothing when it is the client who has gone.
fn problem_of(error: &Error) -> Option<Problem> {
    if let Some(dial) = error.root_cause().downcast_ref::<DialError>() {
        return Some(dial.problem());
    }
    let late = matches!(
        error.root_etype(),
        ErrorType::ReadTimedout | ErrorType::WriteTimedout | ErrorType::ConnectTimedout
    );
    match error.esource() {
        ErrorSource::Upstream if late => Some(Problem::AnswerLate),
        ErrorSource::Upstream => Some(Problem::AnswerBroken),
        ErrorSource::Downstream => match error.root_etype() {
            ErrorType::ReadTimedout => Some(Problem::BodyLate),
            _ if is_bad_chunk(error) => Some(Problem::BodyBroken),
            ErrorType::InvalidHTTPHeader | ErrorType::H1Error | ErrorType::H2Error => {
                Some(Problem::BodyBroken)
            }
            _ => None,
        },
        ErrorSource::Internal | ErrorSource::Unset => Some(Problem::Internal),
    }
}

/// Whether the stream below the engine found the body's chunks malformed.
fn is_bad_chunk(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.and_then(io::Error::get_ref).is_some_and(|cause| cause.is::<ChunkFault>())
}
