//! Spans that a collector is told of: decoded with OpenTelemetry's own types, and by its own library for Python.

use crate::world::{PATIENCE, World};
use bytes::Bytes;
use edge_proxy::Order;
use edge_proxy::metrics::Count;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use model::config::TraceExport;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENTS_SPAN: &str = "00f067aa0ba902b7";
/// Reads what a collector is sent with OpenTelemetry's own library for Python, and prints it as JSON. What that library
/// does not know is an error.
const PARSE: &str = "import sys, json\n\
    from google.protobuf.json_format import MessageToDict\n\
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest as Request\n\
    request = Request.FromString(sys.stdin.buffer.read())\n\
    for spans in request.resource_spans:\n\
    \x20for scope in spans.scope_spans:\n\
    \x20\x20for span in scope.spans: print(json.dumps(MessageToDict(span)))";

/// A collector, and all bodies that it got.
#[derive(Clone)]
struct Collector {
    at: SocketAddr,
    bodies: Arc<Mutex<Vec<Bytes>>>,
}

impl Collector {
    /// One that answers each batch with the next of these statuses, and 200 for ever after; each answer refuses so many
    /// spans.
    async fn start(statuses: &[u16], refused: i64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let collector = Self { at: listener.local_addr().expect("bound"), bodies: Arc::default() };
        let (bodies, statuses) = (Arc::clone(&collector.bodies), Arc::new(Mutex::new(statuses.to_vec())));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (bodies, statuses) = (Arc::clone(&bodies), Arc::clone(&statuses));
                let answer = service_fn(move |request: Request<Incoming>| {
                    let (bodies, statuses) = (Arc::clone(&bodies), Arc::clone(&statuses));
                    async move { Ok::<_, Infallible>(take(request, &bodies, &statuses, refused).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), answer),
                );
            }
        });
        collector
    }

    fn spans(&self) -> Vec<Span> {
        let bodies = self.bodies.lock().expect("lock").clone();
        let requests = bodies.into_iter().map(|body| ExportTraceServiceRequest::decode(body).expect("OTLP"));
        let scopes = requests.flat_map(|request| request.resource_spans).flat_map(|spans| spans.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }
}

async fn take(
    request: Request<Incoming>,
    bodies: &Mutex<Vec<Bytes>>,
    statuses: &Mutex<Vec<u16>>,
    refused: i64,
) -> Response<Full<Bytes>> {
    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    bodies.lock().expect("lock").push(body);
    let mut statuses = statuses.lock().expect("lock");
    let status = if statuses.is_empty() { 200 } else { statuses.remove(0) };
    let partial = ExportTracePartialSuccess { rejected_spans: refused, error_message: String::new() };
    let told = ExportTraceServiceResponse { partial_success: (refused > 0).then_some(partial) };
    let answer = Response::builder().status(status).header("content-type", "application/x-protobuf");
    answer.body(Full::new(Bytes::from(told.encode_to_vec()))).expect("an answer")
}

/// A world whose front tells a collector, and records this part of the traces that begin there.
async fn world(collector: SocketAddr, ratio: &str) -> World {
    let traces = TraceExport { endpoint: collector, ratio: ratio.parse().expect("a ratio") };
    World::with(|settings| settings.traces = Some(traces)).await
}

/// A VM that answers with the trace that it was told of.
async fn echo(world: &World, host: &str) {
    let answer = |request: Request<Incoming>| async move {
        let told = request.headers().get("traceparent").map_or("", |value| value.to_str().expect("text"));
        Response::new(Full::new(Bytes::from(told.to_owned())))
    };
    world.serve(host, 3000, answer).await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn said(span: &Span, name: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == name)?.value.as_ref()?;
    Some(match value.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{name} is {other:?}"),
    })
}

async fn asked(world: &World, url: &str, parent: Option<&str>, version: &str) -> String {
    let field = parent.map(|parent| format!("traceparent: {parent}"));
    let words: Vec<_> = field.iter().flat_map(|field| ["-H", field]).chain([version]).collect();
    world.curl(url, &words).await.out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_trace_is_recorded_when_it_says_so_and_the_vms_spans_belong_to_ours() {
    let collector = Collector::start(&[], 0).await;
    let world = world(collector.at, "0").await;
    echo(&world, "a.style.dev").await;
    let url = "https://a.style.dev/path?token=secret";
    let mut told = Vec::new();
    for version in ["--http2", "--http1.1"] {
        let parent = format!("00-{TRACE}-{CLIENTS_SPAN}-01");
        told.push(asked(&world, url, Some(&parent), version).await);
    }
    let begun = asked(&world, url, None, "--http2").await;
    assert!(begun.starts_with("00-") && begun.ends_with("-00"), "none of those that begin here: {begun}");
    let silent = format!("00-{TRACE}-{CLIENTS_SPAN}-00");
    assert_eq!(asked(&world, url, Some(&silent), "--http2").await, silent, "nobody records it");
    world.until(|| async { world.count(Count::TracesExported) == 2 }).await;
    let spans = collector.spans();
    for (told, version) in told.iter().zip(["2", "1.1"]) {
        let parts: Vec<_> = told.split('-').collect();
        let [_, trace, span, flags] = parts[..] else { panic!("{told}") };
        assert_eq!((trace, flags), (TRACE, "01"));
        let tried =
            spans.iter().find(|other| hex(&other.span_id) == span).expect("the VM's parent is told of");
        let server = spans.iter().find(|other| other.span_id == tried.parent_span_id).expect("and its own");
        assert_eq!((hex(&server.trace_id), hex(&server.parent_span_id)), (TRACE.into(), CLIENTS_SPAN.into()));
        for (name, value) in [
            ("http.request.method", "GET"),
            ("url.scheme", "https"),
            ("url.path", "/path"),
            ("server.address", "a.style.dev"),
            ("http.response.status_code", "200"),
            ("network.protocol.version", version),
            ("client.address", "127.0.0.1"),
        ] {
            assert_eq!(said(server, name).as_deref(), Some(value), "{name}: {server:?}");
        }
        assert_eq!((said(tried, "server.port").as_deref(), server.name.as_str()), (Some("3000"), "GET"));
        let within = server.start_time_unix_nano <= tried.start_time_unix_nano
            && tried.start_time_unix_nano <= tried.end_time_unix_nano
            && tried.end_time_unix_nano <= server.end_time_unix_nano;
        assert!(within, "{server:?} {tried:?}");
    }
    let first = told[0].split('-').nth(2).expect("a span");
    let connect =
        spans.iter().find(|span| hex(&span.parent_span_id) == first).expect("the first has to connect");
    assert_eq!(connect.name, "connect");
    assert!(!format!("{spans:?}").contains("secret"), "a query may hold secrets");
    let bodies = collector.bodies.lock().expect("lock").clone();
    let mut read = Vec::new();
    for body in &bodies {
        read.extend(parsed(body).await);
    }
    assert_eq!(read.len(), spans.len());
    let kinds = |kind: &str| read.iter().filter(|span| span["kind"] == kind).count();
    assert_eq!((kinds("SPAN_KIND_SERVER"), kinds("SPAN_KIND_CLIENT")), (2, 2), "{read:#?}");
}

/// The spans of a body, as OpenTelemetry's own library reads them.
async fn parsed(body: &[u8]) -> Vec<serde_json::Value> {
    let mut parser = Command::new("/usr/bin/python3")
        .args(["-c", PARSE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3");
    let mut stdin = parser.stdin.take().expect("piped");
    stdin.write_all(body).await.expect("written");
    drop(stdin);
    let done = timeout(PATIENCE, parser.wait_with_output()).await.expect("in time").expect("it runs");
    assert!(done.status.success(), "OpenTelemetry's library refuses it");
    let text = String::from_utf8(done.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_front_answers_by_itself_says_why_and_a_stop_tells_the_rest() {
    let collector = Collector::start(&[], 0).await;
    let world = world(collector.at, "1").await;
    world.map("shut.style.dev", 3001).await;
    asked(&world, "https://nobody.style.dev/", None, "--http2").await;
    asked(&world, "https://shut.style.dev/", None, "--http2").await;
    world.order(Order::Stop);
    let running = world.running.lock().expect("lock").take().expect("it runs");
    timeout(PATIENCE, running).await.expect("in time").expect("no panic");
    let spans = collector.spans();
    let of = |host: &str| {
        let of_host = |span: &&Span| said(span, "server.address").as_deref() == Some(host);
        spans.iter().filter(of_host).collect::<Vec<_>>()
    };
    let [unknown] = of("nobody.style.dev")[..] else { panic!("{spans:?}") };
    assert_eq!(said(unknown, "http.response.status_code").as_deref(), Some("404"));
    assert!(unknown.parent_span_id.is_empty() && unknown.status.is_none(), "{unknown:?}");
    let [server, tried] = of("shut.style.dev")[..] else { panic!("{spans:?}") };
    assert_eq!(said(server, "error.type"), said(tried, "error.type"));
    assert!(said(server, "error.type").is_some() && server.status.is_some(), "{server:?}");
    let connect = spans.iter().find(|span| span.parent_span_id == tried.span_id).expect("the connection");
    assert_eq!(said(connect, "error.type"), said(tried, "error.type"), "{connect:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_or_unwilling_costs_traces_and_no_request() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("bound");
    // Asked again after 503, and not after 400; then it takes spans, and says that it left two out.
    let unwilling = Collector::start(&[503, 200, 400], 2).await;
    let [away, unwilling_world] = [world(nobody, "1").await, world(unwilling.at, "1").await];
    for world in [&away, &unwilling_world] {
        echo(world, "a.style.dev").await;
    }
    assert!(asked(&away, "https://a.style.dev/", None, "--http2").await.ends_with("-01"));
    away.until(|| async { away.count(Count::TracesNotTaken) > 0 }).await;
    assert_eq!(away.count(Count::TracesExported), 0);
    let world = unwilling_world;
    assert!(asked(&world, "https://a.style.dev/", None, "--http2").await.ends_with("-01"));
    world.until(|| async { world.count(Count::TracesExported) > 0 }).await;
    assert_eq!((world.count(Count::TracesNotTaken), world.count(Count::SpansRefused)), (0, 2));
    {
        let bodies = unwilling.bodies.lock().expect("lock");
        assert_eq!(bodies[0], bodies[1], "the same batch again");
    }
    assert!(asked(&world, "https://a.style.dev/", None, "--http2").await.ends_with("-01"));
    world.until(|| async { world.count(Count::TracesNotTaken) > 0 }).await;
}
