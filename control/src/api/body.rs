//! Reading what callers send: bodies, ids in paths, headers. Every refusal is JSON with a code that callers know.

use crate::fault::Fault;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use model::api::LINUX_USER_HEADER;
use model::id::VmId;
use serde::de::DeserializeOwned;

/// Largest body of a request that carries no file.
pub const SMALL_BODY: usize = 2 << 20;

/// The named parts of the path, decoded.
#[derive(Clone, Debug)]
pub struct Named<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let path: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        path.map(|Path(named)| Self(named)).map_err(|error| invalid(error.body_text()))
    }
}

/// The VM in a path that names nothing else.
#[derive(Clone, Debug)]
pub struct VmPath(pub VmId);

impl<S: Send + Sync> FromRequestParts<S> for VmPath {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let Named(text) = Named::<String>::from_request_parts(parts, state).await?;
        vm_id(&text).map(Self)
    }
}

/// What stands behind `?`.
#[derive(Clone, Debug)]
pub struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Asked<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|error| invalid(error.body_text()))
    }
}

/// A VM's id. One that cannot be an id is told apart from one that is nobody's.
pub fn vm_id(text: &str) -> Result<VmId, Fault> {
    text.parse().map_err(|error: model::id::IdError| {
        Fault::new(400, "INVALID_VM_ID", error.to_string())
            .with("vmId", text.chars().take(64).collect::<String>())
            .with("details", error.to_string())
    })
}

/// Reads a JSON body of at most `limit` bytes; no body is `{}`. What is wrong with it is told with `code`.
pub async fn json<T: DeserializeOwned>(body: Body, limit: usize, code: &'static str) -> Result<T, Fault> {
    let bytes = to_bytes(body, limit).await.map_err(|error| {
        let message = format!("the body cannot be read: {error}; at most {limit} bytes are taken");
        Fault::new(413, code, message)
    })?;
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    // A list would be taken for the fields in their order.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(Fault::new(400, code, "the body is not a JSON object"));
    }
    serde_json::from_slice(text)
        .map_err(|error| Fault::new(400, code, format!("the body is not what is expected: {error}")))
}

/// As which Linux user to act.
pub fn linux_user(headers: &HeaderMap) -> Result<Option<String>, Fault> {
    let Some(value) = headers.get(LINUX_USER_HEADER) else { return Ok(None) };
    let name = value.to_str().map_err(|_| invalid(format!("{LINUX_USER_HEADER} is no user name")))?;
    Ok(Some(name.to_owned()).filter(|name| !name.is_empty()))
}

/// Something generic is wrong with the request.
pub fn invalid(message: impl Into<String>) -> Fault {
    Fault::new(400, "INVALID_REQUEST", message)
}
