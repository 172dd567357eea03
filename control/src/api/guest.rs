//! Commands and files inside a VM.

use super::Api;
use super::answer::{Answer, slow};
use super::auth::Caller;
use super::body::{Named, SMALL_BODY, VmPath, invalid, json, linux_user, vm_id};
use crate::agent::{Content, ExecOutcome};
use crate::fault::Fault;
use crate::vms::{OpError, Place};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::agent::{DirectoryEntry, FileKind, MAX_FILE_BYTES};
use model::api::Empty;
use model::api::exec::{Exec, ExecResult};
use model::api::file::{Encoding, EntryKind, FileAnswer, FileContent, FileEntry};
use model::id::VmId;
use serde_json::Value;
use std::time::Duration;

/// Node's client gives up on a server that is silent for 300 s, other clients earlier. Before this an error keeps its
/// status.
const PAD_EXEC_AFTER: Duration = Duration::from_secs(100);
/// Largest body with a file: base64 makes four characters of three bytes, and JSON may escape a few.
#[expect(clippy::cast_possible_truncation, reason = "64 MiB fit into usize everywhere this runs")]
const FILE_BODY: usize = (MAX_FILE_BYTES as usize) / 3 * 4 + (4 << 20);

/// `POST /v1/vms/{vm_id}/exec-await`.
pub async fn exec(
    State(api): State<Api>,
    caller: Caller,
    VmPath(vm): VmPath,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let work = async move {
        let user = linux_user(&headers)?;
        let request: Exec = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
        if request.terminal.is_some() {
            return Err(Fault::not_offered("a named terminal"));
        }
        let _permit = api.0.commands.acquire().await.map_err(|_| Fault::internal("shutting down"))?;
        let place = Place { account: &caller.account, vm: &vm, user: user.as_deref() };
        let outcome = api.0.machines.exec(place, &request.command, request.timeout_ms).await;
        finished(outcome.map_err(|error| command_fault(&error, &vm))?, request.timeout_ms)
    };
    slow(PAD_EXEC_AFTER, work).await
}

/// `GET /v1/vms/{vm_id}/files/{filepath}`.
pub async fn read(
    State(api): State<Api>,
    caller: Caller,
    Named((vm, path)): Named<(String, String)>,
    headers: HeaderMap,
) -> Answer<FileAnswer> {
    let (vm, path, user) = (vm_id(&vm)?, absolute(&path)?, linux_user(&headers)?);
    let _permit = api.0.files.acquire().await.map_err(|_| Fault::internal("shutting down"))?;
    let place = Place { account: &caller.account, vm: &vm, user: user.as_deref() };
    let content = api.0.machines.read_file(place, &path).await;
    Ok(Json(match content.map_err(|error| file_fault(&error, &vm, &path))? {
        Content::File(bytes) => FileAnswer::File(as_content(bytes)),
        Content::Directory(entries) => {
            FileAnswer::Directory { files: entries.into_iter().map(as_entry).collect() }
        }
    }))
}

/// `PUT /v1/vms/{vm_id}/files/{filepath}`.
pub async fn write(
    State(api): State<Api>,
    caller: Caller,
    Named((vm, path)): Named<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Empty> {
    let (vm, path, user) = (vm_id(&vm)?, absolute(&path)?, linux_user(&headers)?);
    let _permit = api.0.files.acquire().await.map_err(|_| Fault::internal("shutting down"))?;
    let file: FileContent = json(body, FILE_BODY, "FILES_BAD_REQUEST").await?;
    let bytes = match file.encoding.unwrap_or_default() {
        Encoding::Utf8 => file.content.into_bytes(),
        Encoding::Base64 => STANDARD.decode(file.content.as_bytes()).map_err(|error| {
            Fault::new(400, "FILES_BAD_REQUEST", format!("content is not base64: {error}"))
        })?,
    };
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let message = format!("the file is larger than {MAX_FILE_BYTES} bytes");
        return Err(Fault::new(413, "FILES_BAD_REQUEST", message));
    }
    let place = Place { account: &caller.account, vm: &vm, user: user.as_deref() };
    let written = api.0.machines.write_file(place, &path, &bytes).await;
    written.map_err(|error| file_fault(&error, &vm, &path))?;
    Ok(Json(Empty {}))
}

fn finished(outcome: ExecOutcome, timeout_ms: Option<u64>) -> Result<ExecResult, Fault> {
    let stdout = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&outcome.stderr).into_owned();
    if !outcome.timed_out {
        let truncated = outcome.truncated;
        return Ok(ExecResult {
            stdout: Some(stdout),
            stderr: Some(stderr),
            status_code: outcome.status,
            truncated,
        });
    }
    Err(Fault::new(408, "EXEC_TIMED_OUT", "the command did not end in time and was killed")
        .with("timeoutMs", timeout_ms.map_or(Value::Null, Value::from))
        .with("stdout", stdout)
        .with("stderr", stderr))
}

fn command_fault(error: &OpError, vm: &VmId) -> Fault {
    let mut fault = error.fault(Some(vm));
    if fault.code == "FILES_BAD_REQUEST" {
        fault.code = "INVALID_REQUEST";
    }
    fault
}

fn file_fault(error: &OpError, vm: &VmId, path: &str) -> Fault {
    error.fault(Some(vm)).with("path", path)
}

/// Clients send the path as one encoded segment with its leading slash; by hand people write it without.
fn absolute(path: &str) -> Result<String, Fault> {
    if path.contains('\0') {
        return Err(invalid("a path has no NUL"));
    }
    Ok(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
}

fn as_content(bytes: Vec<u8>) -> FileContent {
    match String::from_utf8(bytes) {
        Ok(content) => FileContent { content, encoding: Some(Encoding::Utf8) },
        Err(error) => {
            FileContent { content: STANDARD.encode(error.as_bytes()), encoding: Some(Encoding::Base64) }
        }
    }
}

fn as_entry(entry: DirectoryEntry) -> FileEntry {
    let kind = match entry.kind {
        FileKind::Directory => EntryKind::Directory,
        FileKind::File | FileKind::Symlink | FileKind::Other => EntryKind::File,
    };
    FileEntry { name: entry.name, kind }
}
