//! Requests that are over, as OpenTelemetry's spans (OTLP 1.x, `opentelemetry/proto/trace/v1/trace.proto`), named by its
//! semantic conventions for HTTP (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>).
//!
//! ```text
//! GET                 the client's request, from its head to the end of the answer
//!  ├─ GET             a try of it with the VM, up to the next one or the end
//!  │   └─ connect     a connection is made for it, which wakes a VM that sleeps
//!  └─ GET             the second try, if there was one
//! ```

use super::trace::{SpanNumber, TraceNumber};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use std::net::IpAddr;

/// Methods that the conventions know; others are clients' inventions (`http.request.method`).
const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
/// Recorded (W3C Trace Context section 3.2.2.5), and it is known whether the parent is another process's.
const FLAGS_LOCAL_PARENT: u32 = 0x101;
/// The same, and it is.
const FLAGS_REMOTE_PARENT: u32 = 0x301;
/// Why a request has failed that got no answer and no reason was noted: its client went.
const NO_ANSWER: &str = "no_answer";

/// A request that is over. Times are nanoseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its trace.
    pub trace: TraceNumber,
    /// Its own span.
    pub span: SpanNumber,
    /// The client's span, unless the trace began here.
    pub parent: Option<SpanNumber>,
    /// When its head was whole.
    pub begun: u64,
    /// When it was over.
    pub ended: u64,
    /// As the client wrote it.
    pub method: String,
    /// The valid name that it asked for.
    pub host: Option<String>,
    /// Without the query, which may hold secrets.
    pub path: String,
    /// 0: no answer was begun.
    pub status: u16,
    /// Of HTTP.
    pub version: &'static str,
    /// The client's address.
    pub client: IpAddr,
    /// Why the gateway answered by itself.
    pub problem: Option<&'static str>,
    /// Where it was sent.
    pub vm: Option<(String, u16)>,
    /// What was tried with the VM, or the API.
    pub tries: Vec<Try>,
}

/// A try of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// Its own span.
    pub span: SpanNumber,
    /// The span of its connection's making.
    pub connect: SpanNumber,
    /// When it was begun.
    pub begun: u64,
    /// When it had a connection.
    pub connected: Option<u64>,
    /// Whether that connection had served another request.
    pub reused: bool,
    /// When it was over.
    pub ended: u64,
    /// Why it came to nothing.
    pub failed: Option<&'static str>,
}

/// What a collector is told of these.
#[must_use]
pub fn export(finished: &[Finished]) -> ExportTraceServiceRequest {
    let resource = [("service.namespace", "gatehouse"), ("service.name", "edge-proxy")];
    let version = text("service.version", env!("CARGO_PKG_VERSION"));
    let attributes = resource.map(|(name, value)| text(name, value)).into_iter().chain([version]).collect();
    let scope = InstrumentationScope { name: "gatehouse".to_owned(), ..InstrumentationScope::default() };
    let spans = finished.iter().flat_map(spans_of).collect();
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    }
}

fn spans_of(request: &Finished) -> Vec<Span> {
    let mut spans = vec![server(request)];
    for (number, attempt) in request.tries.iter().enumerate() {
        let last = number + 1 == request.tries.len();
        spans.push(client(request, attempt, number, last));
        if !attempt.reused {
            spans.push(connect(request, attempt));
        }
    }
    spans
}

fn server(request: &Finished) -> Span {
    let answered = (request.status != 0).then_some(request.status);
    let failed = match request.status {
        0 => Some(request.problem.unwrap_or(NO_ANSWER).to_owned()),
        // What a client did wrong is no failure of the server's span.
        1..500 => request.problem.filter(|_| request.status < 400).map(str::to_owned),
        status => Some(request.problem.map_or_else(|| status.to_string(), str::to_owned)),
    };
    let mut attributes = vec![
        text("http.request.method", known(&request.method)),
        text("url.scheme", "https"),
        text("url.path", &request.path),
        text("network.protocol.version", request.version),
        text("client.address", &request.client.to_string()),
    ];
    attributes.extend(request.host.as_deref().map(|host| text("server.address", host)));
    attributes.extend(answered.map(|status| number("http.response.status_code", status)));
    attributes.extend(request.vm.iter().map(|(vm, _)| text("gatehouse.vm.id", vm)));
    let parent = request.parent.map_or_else(Vec::new, SpanNumber::bytes);
    let flags = if parent.is_empty() { FLAGS_LOCAL_PARENT } else { FLAGS_REMOTE_PARENT };
    let times = (request.begun, request.ended);
    let span = span(request, request.span, parent, times, SpanKind::Server, attributes, failed);
    Span { name: name(&request.method), flags, ..span }
}

fn client(request: &Finished, attempt: &Try, resent: usize, last: bool) -> Span {
    let mut attributes = vec![text("http.request.method", known(&request.method))];
    attributes.extend(request.host.as_deref().map(|host| text("server.address", host)));
    if let Some((vm, port)) = &request.vm {
        attributes.extend([text("gatehouse.vm.id", vm), number("server.port", *port)]);
    }
    if resent > 0 {
        attributes.push(number("http.request.resend_count", u16::try_from(resent).unwrap_or(u16::MAX)));
    }
    // Unless the gateway answered by itself, the last try's answer is what the client got.
    let answered = last && attempt.failed.is_none() && request.problem.is_none() && request.status != 0;
    let mut failed = attempt.failed.map(str::to_owned);
    if answered {
        attributes.push(number("http.response.status_code", request.status));
        failed = failed.or_else(|| (request.status >= 400).then(|| request.status.to_string()));
    }
    let times = (attempt.begun, attempt.ended);
    let parent = request.span.bytes();
    let span = span(request, attempt.span, parent, times, SpanKind::Client, attributes, failed);
    Span { name: name(&request.method), ..span }
}

fn connect(request: &Finished, attempt: &Try) -> Span {
    let failed = attempt.failed.filter(|_| attempt.connected.is_none()).map(str::to_owned);
    let attributes = request.vm.iter().map(|(vm, _)| text("gatehouse.vm.id", vm)).collect();
    let times = (attempt.begun, attempt.connected.unwrap_or(attempt.ended));
    let parent = attempt.span.bytes();
    let span = span(request, attempt.connect, parent, times, SpanKind::Internal, attributes, failed);
    Span { name: "connect".to_owned(), ..span }
}

/// A span without its name; one that has failed says why (`error.type`).
fn span(
    request: &Finished,
    own: SpanNumber,
    parent: Vec<u8>,
    (begun, ended): (u64, u64),
    kind: SpanKind,
    mut attributes: Vec<KeyValue>,
    failed: Option<String>,
) -> Span {
    let status = failed.as_ref().map(|_| Status { code: StatusCode::Error.into(), ..Status::default() });
    attributes.extend(failed.map(|why| text("error.type", &why)));
    Span {
        trace_id: request.trace.bytes(),
        span_id: own.bytes(),
        parent_span_id: parent,
        flags: FLAGS_LOCAL_PARENT,
        kind: kind.into(),
        start_time_unix_nano: begun,
        end_time_unix_nano: ended.max(begun),
        attributes,
        status,
        ..Span::default()
    }
}

fn known(method: &str) -> &str {
    if METHODS.contains(&method) { method } else { "_OTHER" }
}

/// There is no route to name it by.
fn name(method: &str) -> String {
    if METHODS.contains(&method) { method.to_owned() } else { "HTTP".to_owned() }
}

fn text(name: &str, value: &str) -> KeyValue {
    attribute(name, Value::StringValue(value.to_owned()))
}

fn number(name: &str, value: u16) -> KeyValue {
    attribute(name, Value::IntValue(value.into()))
}

fn attribute(name: &str, value: Value) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(status: u16, problem: Option<&'static str>, tries: Vec<Try>) -> Finished {
        Finished {
            trace: TraceNumber::new([1; 16]),
            span: SpanNumber::new([2; 8]),
            parent: Some(SpanNumber::new([3; 8])),
            begun: 100,
            ended: 900,
            method: "GET".to_owned(),
            host: Some("a.style.dev".to_owned()),
            path: "/p".to_owned(),
            status,
            version: "2",
            client: IpAddr::from([192, 0, 2, 1]),
            problem,
            vm: Some(("vm".to_owned(), 3000)),
            tries,
        }
    }

    fn attempt(number: u8, failed: Option<&'static str>) -> Try {
        Try {
            span: SpanNumber::new([number; 8]),
            connect: SpanNumber::new([number + 1; 8]),
            begun: 200,
            connected: Some(300),
            reused: false,
            ended: 800,
            failed,
        }
    }

    fn spans(request: Finished) -> Vec<Span> {
        export(&[request]).resource_spans.remove(0).scope_spans.remove(0).spans
    }

    fn said(span: &Span, name: &str) -> Option<String> {
        let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
        Some(match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(number) => number.to_string(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_second_try_stands_beside_the_first_and_the_last_has_the_answer() {
        let request = finished(200, None, vec![attempt(10, Some("answer_broken")), attempt(20, None)]);
        let all = spans(request);
        let tree: Vec<_> =
            all.iter().map(|span| (span.span_id[0], span.parent_span_id[0], span.kind)).collect();
        let kinds = [SpanKind::Server, SpanKind::Client, SpanKind::Internal].map(i32::from);
        let [server, client, internal] = kinds;
        assert_eq!(
            tree,
            [(2, 3, server), (10, 2, client), (11, 10, internal), (20, 2, client), (21, 20, internal)]
        );
        assert_eq!(said(&all[1], "error.type").as_deref(), Some("answer_broken"));
        assert_eq!(said(&all[1], "http.response.status_code"), None);
        assert_eq!(said(&all[3], "http.request.resend_count").as_deref(), Some("1"));
        assert_eq!(said(&all[3], "http.response.status_code").as_deref(), Some("200"));
        assert!(all[0].status.is_none() && all[3].status.is_none() && all[2].status.is_none());
        assert_eq!((all[2].start_time_unix_nano, all[2].end_time_unix_nano), (200, 300));
        assert_eq!((all[0].flags, all[1].flags), (0x301, 0x101));
    }

    #[test]
    fn what_failed_says_why_and_a_clients_fault_is_no_failure_of_the_server() {
        let server = |status, problem| spans(finished(status, problem, vec![])).remove(0);
        for (status, problem, why) in [
            (200, None, None),
            (404, Some("unknown_host"), None),
            (500, None, Some("500")),
            (502, Some("answer_broken"), Some("answer_broken")),
            (200, Some("answer_broken"), Some("answer_broken")),
            (0, None, Some("no_answer")),
        ] {
            let span = server(status, problem);
            assert_eq!(said(&span, "error.type").as_deref(), why, "{status} {problem:?}");
            assert_eq!(span.status.is_some(), why.is_some(), "{status} {problem:?}");
        }
        let odd = spans(Finished { method: "BREW".to_owned(), parent: None, ..finished(200, None, vec![]) });
        assert_eq!(
            (odd[0].name.as_str(), said(&odd[0], "http.request.method").as_deref()),
            ("HTTP", Some("_OTHER"))
        );
        assert!(odd[0].parent_span_id.is_empty() && odd[0].flags == 0x101);
    }
}
