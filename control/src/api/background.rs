//! Requests that go on after their first answer, for clients that asked for it.

use super::Api;
use super::answer::Answer;
use super::auth::Caller;
use super::body::{Asked, Named, invalid};
use crate::fault::Fault;
use crate::random;
use crate::vms::Notes;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use model::api::BACKGROUND_REQUEST_HEADER;
use model::api::auth::{BackgroundRequest, Logs};
use model::id::{AccountId, RequestId};
use serde::Deserialize;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Requests that are remembered. Results that nobody fetched are forgotten, the oldest first.
const MAX_REQUESTS: usize = 1024;

/// All of them. A restart of control forgets them: what they made is in the list of VMs.
#[derive(Debug, Default)]
pub struct Background(Mutex<VecDeque<Entry>>);

#[derive(Debug)]
struct Entry {
    id: RequestId,
    account: AccountId,
    notes: Notes,
    result: Option<Result<Value, Fault>>,
}

impl Background {
    /// Remembers a request that goes on; none when all places are taken by others that go on.
    pub fn begin(&self, account: &AccountId, notes: Notes) -> Option<RequestId> {
        let mut entries = self.lock();
        if entries.len() >= MAX_REQUESTS {
            let finished = entries.iter().position(|entry| entry.result.is_some())?;
            entries.remove(finished);
        }
        let id = RequestId::from_random(random::bytes());
        entries.push_back(Entry { id: id.clone(), account: account.clone(), notes, result: None });
        Some(id)
    }

    /// Notes the result.
    pub fn end(&self, id: &RequestId, result: Result<Value, Fault>) {
        if let Some(entry) = self.lock().iter_mut().find(|entry| entry.id == *id) {
            entry.result = Some(result);
        }
    }

    fn look<T>(&self, account: &AccountId, id: &str, look: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.lock().iter().find(|entry| entry.id.as_str() == id && entry.account == *account).map(look)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The 202 that says where to ask.
pub fn accepted(id: RequestId) -> Response {
    let header = [(BACKGROUND_REQUEST_HEADER, id.to_string())];
    let body = BackgroundRequest { request_id: id, status: "running".to_owned() };
    (StatusCode::ACCEPTED, header, Json(body)).into_response()
}

/// `GET /auth/v1/background-requests/{request_id}`.
pub async fn result(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Response {
    match api.0.background.look(&caller.account, &id, |entry| (entry.id.clone(), entry.result.clone())) {
        Some((id, None)) => accepted(id),
        Some((_, Some(result))) => result.map(Json).into_response(),
        // Without a code the caller would ask for ever.
        None => Fault::new(404, "NOT_FOUND", format!("there is no request {id:?}")).into_response(),
    }
}

/// What is looked for in the logs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogQuery {
    #[serde(default)]
    request_id: Option<String>,
}

/// `GET /observability/v1/logs`: of a request that goes on, or went on.
pub async fn logs(State(api): State<Api>, caller: Caller, Asked(query): Asked<LogQuery>) -> Answer<Logs> {
    let Some(id) = query.request_id else {
        let message =
            "only the logs of a background request are offered by this version of Gatehouse: give requestId";
        return Err(Fault::new(400, "INVALID_QUERY", message));
    };
    let lines = api.0.background.look(&caller.account, &id, |entry| entry.notes.lines());
    let logs = lines.ok_or_else(|| invalid(format!("there is no request {id:?}")))?;
    Ok(Json(Logs { logs, next_page_token: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_requests_make_room_and_strangers_see_none() {
        let background = Background::default();
        let (mine, other) = (AccountId::from_random([1; 20]), AccountId::from_random([2; 20]));
        let first = background.begin(&mine, Notes::default()).expect("room");
        for _ in 1..MAX_REQUESTS {
            background.begin(&mine, Notes::default()).expect("room");
        }
        assert_eq!(background.begin(&mine, Notes::default()), None);
        background.end(&first, Ok(Value::Null));
        assert!(background.look(&other, first.as_str(), |_| ()).is_none());
        assert!(background.look(&mine, first.as_str(), |entry| entry.result.is_some()).expect("mine"));
        assert!(background.begin(&mine, Notes::default()).is_some());
        assert!(background.look(&mine, first.as_str(), |_| ()).is_none());
    }
}
