//! The HTTP API of a house, through its door, as far as the long tests use it.

use crate::house::House;
use crate::load;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::Duration;
use thiserror::Error;
use ureq::Agent;
use ureq::http::Request;

/// Longest that one request may take: a boot under emulation beside a guest that computes.
const PATIENCE: Duration = Duration::from_secs(300);
/// Longest that one command in a guest may take.
const COMMAND_MS: u64 = 240_000;

/// Why a request was not answered with what was asked for.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The house said no.
    #[error("{method} {path}: {status} {code}: {message}")]
    Refused {
        /// Of the request.
        method: &'static str,
        /// Of the request.
        path: String,
        /// HTTP's; 200 when the answer had begun before it was clear.
        status: u16,
        /// The API's.
        code: String,
        /// For people.
        message: String,
    },
    /// There was no whole answer.
    #[error("{method} {path}: {message}")]
    Broken {
        /// Of the request.
        method: &'static str,
        /// Of the request.
        path: String,
        /// What happened.
        message: String,
    },
}

impl ApiError {
    /// The API's code, if it was the API that said no.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::Broken { .. } => None,
        }
    }
}

/// A caller with a key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    agent: Agent,
    key: String,
}

impl Api {
    /// Calls this house as its default account.
    ///
    /// # Errors
    /// When its certificate authority cannot be read.
    pub fn of(house: &House) -> Result<Self> {
        let agent = load::client(&house.ca(), house.https(), PATIENCE)?;
        Ok(Self { agent, key: house.key().to_owned() })
    }

    /// One request; `body` is sent as JSON.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn ask(&self, method: &'static str, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        let broken = |message: String| ApiError::Broken { method, path: path.to_owned(), message };
        let request = Request::builder()
            .method(method)
            .uri(format!("https://api.style.dev{path}"))
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .body(body.map(Value::to_string).unwrap_or_default())
            .map_err(|error| broken(error.to_string()))?;
        let mut answer = self.agent.run(request).map_err(|error| broken(error.to_string()))?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().map_err(|error| broken(error.to_string()))?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| broken(format!("status {status}, {error}: {text:.200}")))?;
        // After white space was sent, an error has status 200.
        if status == 200 && value.get("code").is_none() {
            return Ok(value);
        }
        let word = |name| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Err(ApiError::Refused {
            method,
            path: path.to_owned(),
            status,
            code: word("code"),
            message: word("message"),
        })
    }

    /// Makes a VM of this body, that never sleeps by itself; returns its id.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn create(&self, mut body: Value) -> Result<String, ApiError> {
        body["idleTimeoutSeconds"] = Value::Null;
        let made = self.ask("POST", "/v1/vms", Some(&body))?;
        Ok(text(&made, "id"))
    }

    /// `POST /v1/vms/{vm}/{what}` without a body of interest: start, suspend, stop, kill.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn tell(&self, vm: &str, what: &str) -> Result<Value, ApiError> {
        self.ask("POST", &format!("/v1/vms/{vm}/{what}"), Some(&json!({})))
    }

    /// What the VM is doing.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn state(&self, vm: &str) -> Result<String, ApiError> {
        Ok(text(&self.ask("GET", &format!("/v1/vms/{vm}"), None)?, "state"))
    }

    /// Deletes a VM.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn delete(&self, vm: &str) -> Result<Value, ApiError> {
        self.ask("DELETE", &format!("/v1/vms/{vm}"), None)
    }

    /// Forks a VM; returns the children's ids.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn fork(&self, vm: &str, count: usize) -> Result<Vec<String>, ApiError> {
        let made = self.ask("POST", &format!("/v1/vms/{vm}/fork"), Some(&json!({ "count": count })))?;
        let forks = made["forks"].as_array().cloned().unwrap_or_default();
        Ok(forks.iter().map(|fork| text(fork, "id")).collect())
    }

    /// Takes a snapshot; returns its id.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn snapshot(&self, vm: &str) -> Result<String, ApiError> {
        Ok(text(&self.tell(vm, "snapshot")?, "snapshotId"))
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn delete_snapshot(&self, snapshot: &str) -> Result<Value, ApiError> {
        self.ask("DELETE", &format!("/v1/vms/snapshots/{snapshot}"), None)
    }

    /// All VMs: their ids and states.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn vms(&self) -> Result<Vec<(String, String)>, ApiError> {
        let list = self.ask("GET", "/v1/vms", None)?;
        let rows = list["vms"].as_array().cloned().unwrap_or_default();
        Ok(rows.iter().map(|row| (text(row, "id"), text(row, "state"))).collect())
    }

    /// All snapshots that are not deleted: their ids and states.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn snapshots(&self) -> Result<Vec<(String, String)>, ApiError> {
        let list = self.ask("GET", "/v1/vms/snapshots", None)?;
        let rows = list["snapshots"].as_array().cloned().unwrap_or_default();
        Ok(rows.iter().map(|row| (text(row, "snapshotId"), text(row, "state"))).collect())
    }

    /// Runs a command of the guest's shell; returns what it printed.
    ///
    /// # Errors
    /// When it cannot be run, or ends with a failure.
    pub fn exec(&self, vm: &str, command: &str) -> Result<String> {
        let body = json!({ "command": command, "timeoutMs": COMMAND_MS });
        let done = self.ask("POST", &format!("/v1/vms/{vm}/exec-await"), Some(&body))?;
        anyhow::ensure!(done["statusCode"] == 0, "{vm}: {command:.200}: {done:#}");
        Ok(text(&done, "stdout"))
    }

    /// Writes a text file.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn write_text(&self, vm: &str, path: &str, content: &str) -> Result<Value, ApiError> {
        self.ask("PUT", &format!("/v1/vms/{vm}/files{path}"), Some(&json!({ "content": content })))
    }

    /// Writes a file of any bytes, given in base64.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub fn write_base64(&self, vm: &str, path: &str, content: &str) -> Result<Value, ApiError> {
        let body = json!({ "content": content, "encoding": "base64" });
        self.ask("PUT", &format!("/v1/vms/{vm}/files{path}"), Some(&body))
    }

    /// The guest's address in the network of its house.
    ///
    /// # Errors
    /// When the guest does not tell.
    pub fn address(&self, vm: &str) -> Result<Ipv4Addr> {
        let said = self.exec(vm, "ip -4 -o address show scope global")?;
        let address = said.split_whitespace().nth(3).and_then(|word| word.split('/').next());
        address.and_then(|word| word.parse().ok()).with_context(|| format!("{vm} has no address: {said}"))
    }
}

fn text(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}
