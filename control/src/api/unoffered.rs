//! Routes of the contract that this version has not, and routes of nobody. Each is refused with JSON and a code that
//! callers know, never so that they ask again for ever.

use crate::fault::Fault;
use axum::extract::Request;

/// Beginnings of paths of the contract, and what stands behind them.
const FAMILIES: &[(&str, &str)] = &[
    ("/v1/vms/builds", "building"),
    ("/v1/cron", "cron"),
    ("/git/v1", "git"),
    ("/dns/v1", "keeping DNS records (a domain's records stay with its DNS provider)"),
    ("/observability/v1", "this kind of log"),
    ("/web/v1", "web deployments"),
    ("/execute", "serverless execution"),
];
/// Ends of paths below a VM.
const OF_A_VM: &[(&str, &str)] = &[
    ("build", "building"),
    ("watch-files", "watching files"),
    ("stats", "the stream of statistics"),
    ("pty", "a terminal over WebSocket"),
    ("terminals", "named terminals"),
    ("systemd", "the systemd interface"),
];

/// For every path that no route has.
pub async fn fallback(request: Request) -> Fault {
    let path = request.uri().path();
    let family = FAMILIES.iter().find(|(prefix, _)| path.starts_with(prefix));
    if let Some((_, what)) = family.or_else(|| below_a_vm(path)) {
        return Fault::not_offered(what);
    }
    Fault::new(404, "NOT_FOUND", format!("there is no {} {path}", request.method()))
}

/// `POST /v1/vms/snapshots`. It is repeated for ever with any code that the client does not know.
pub async fn ensure_snapshot() -> Fault {
    let what = "building a snapshot from a description is not offered by this version of Gatehouse; make a VM, and a \
                snapshot of it";
    Fault::new(400, "CREATE_SNAPSHOT_BAD_REQUEST", what)
}

/// For a path that other methods have.
pub async fn wrong_method(request: Request) -> Fault {
    let message = format!("{} cannot be used on {}", request.method(), request.uri().path());
    Fault::new(405, "INVALID_REQUEST", message)
}

fn below_a_vm(path: &str) -> Option<&'static (&'static str, &'static str)> {
    let (_, operation) = path.strip_prefix("/v1/vms/")?.split_once('/')?;
    let first = operation.split('/').next()?;
    OF_A_VM.iter().find(|(name, _)| *name == first)
}
