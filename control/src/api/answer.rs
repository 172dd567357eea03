//! What every answer has: a trace id, cross-origin headers, a JSON body; and answers that take long.

use crate::fault::Fault;
use crate::figures::Ledger;
use crate::random;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use model::api::{
    BACKGROUND_AFTER_HEADER, BACKGROUND_REQUEST_HEADER, IDENTITY_TOKEN_HEADER, LINUX_USER_HEADER,
    TRACE_ID_HEADER,
};
use model::id::TraceId;
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tracing::{Instrument, info, info_span};

/// White space is sent so often while a long answer is worked at, so that no proxy or client takes us for dead.
const PAD_EVERY: Duration = Duration::from_secs(30);
/// A browser may remember what it was told about cross-origin requests for that many seconds.
const PREFLIGHT_SECONDS: &str = "86400";

/// A handler's outcome.
pub type Answer<T> = Result<Json<T>, Fault>;

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.body())).into_response()
    }
}

/// Wraps every request: gives it a trace id, logs and counts its end, answers cross-origin questions.
pub async fn envelope(State(ledger): State<Arc<Ledger>>, request: Request, next: Next) -> Response {
    let (method, route) = (request.method().clone(), request.extensions().get::<MatchedPath>().cloned());
    let trace = TraceId::from_random(random::bytes());
    let span = info_span!("request", %trace, method = %request.method(), path = request.uri().path());
    let begun = Instant::now();
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        Json(model::api::Empty {}).into_response()
    } else {
        next.run(request).instrument(span.clone()).await
    };
    let took = begun.elapsed();
    ledger.request(&method, route.as_ref().map(MatchedPath::as_str), response.status().as_u16(), took);
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    span.in_scope(|| info!(status = response.status().as_u16(), milliseconds, "answered"));
    decorate(response.headers_mut(), &trace, preflight);
    response
}

/// Waits for the work. When it takes longer than `pad_after`, the answer begins with status 200 and white space,
/// which JSON allows before its first token, so that a client which gives up on silent servers goes on waiting. An
/// error that comes later can then be told by the body alone. The work ends when the client goes away.
pub async fn slow<T: Serialize + Send + 'static>(
    pad_after: Duration,
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Response {
    let mut work: Work<T> = Box::pin(work);
    match timeout(pad_after, &mut work).await {
        Ok(done) => done.map(Json).into_response(),
        Err(_) => padded(work),
    }
}

type Work<T> = Pin<Box<dyn Future<Output = Result<T, Fault>> + Send>>;

fn padded<T: Serialize + Send + 'static>(work: Work<T>) -> Response {
    // The first space goes out at once: it carries the headers with it.
    let pieces = stream::unfold((Some(work), Duration::ZERO), |(work, wait)| async move {
        let mut work = work?;
        match timeout(wait, &mut work).await {
            Err(_) => Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), (Some(work), PAD_EVERY))),
            Ok(done) => Some((Ok(written(&done)), (None, PAD_EVERY))),
        }
    });
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (json, Body::from_stream(pieces)).into_response()
}

fn written<T: Serialize>(done: &Result<T, Fault>) -> Bytes {
    let text = match done {
        Ok(value) => serde_json::to_vec(value),
        Err(fault) => serde_json::to_vec(&fault.body()),
    };
    // Our own types have no map with keys other than texts, the only thing that cannot be written.
    text.unwrap_or_else(|_| b"{}".to_vec()).into()
}

fn decorate(headers: &mut HeaderMap, trace: &TraceId, preflight: bool) {
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(TRACE_ID_HEADER, trace.as_str());
    // Callers prove themselves by a header that no browser adds by itself, so any page may ask.
    set("access-control-allow-origin", "*");
    set("access-control-expose-headers", &format!("{TRACE_ID_HEADER}, {BACKGROUND_REQUEST_HEADER}"));
    if preflight {
        let own = [IDENTITY_TOKEN_HEADER, LINUX_USER_HEADER, BACKGROUND_AFTER_HEADER].join(", ");
        let allowed = format!(
            "authorization, content-type, user-agent, x-freestyle-sdk, x-freestyle-sdk-version, {own}"
        );
        set("access-control-allow-headers", &allowed);
        set("access-control-allow-methods", "GET, POST, PUT, PATCH, DELETE");
        set("access-control-max-age", PREFLIGHT_SECONDS);
    }
    set("cache-control", "no-store");
}
