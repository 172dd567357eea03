//! The API as the command line asks it: over the operator's Unix socket, or with a key over HTTPS.

pub mod certs;
pub mod domains;
pub mod identity;
pub mod keys;
pub mod metrics;
pub mod snapshots;
pub mod ssh;
pub mod status;
pub mod vm;
pub mod vpc;
pub mod vpn;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use model::api::error::ErrorBody;
use model::api::{ACCOUNT_HEADER, TRACE_ID_HEADER};
use model::id::AccountId;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Certificate, Client, Method, RequestBuilder, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Longest wait for a connection. The answer may take as long as the work does.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Largest answer: two outputs of 8 MiB, each byte escaped in JSON by six.
const MAX_ANSWER_BYTES: usize = 100 << 20;
/// Characters of an answer that is not ours which an error repeats.
const ECHO_CHARS: usize = 200;
/// What stays as it is in a path segment (RFC 3986 section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How the API is reached.
#[derive(Args, Clone, Debug, Default)]
pub struct Connection {
    /// The API's address, for example https://api.style.dev; without it, the operator's socket on this host
    #[arg(long, global = true, env = "GATEHOUSE_URL", value_name = "URL", help_heading = "Connection")]
    pub url: Option<Url>,
    /// The API key; needed with --url
    #[arg(
        long,
        global = true,
        env = "GATEHOUSE_API_KEY",
        hide_env_values = true,
        value_name = "KEY",
        help_heading = "Connection"
    )]
    pub api_key: Option<String>,
    /// A certificate to trust besides the system's, for example /var/lib/gatehouse/tls/ca.pem
    #[arg(long, global = true, env = "GATEHOUSE_CA", value_name = "FILE", help_heading = "Connection")]
    pub ca: Option<PathBuf>,
    /// The folder of the operator's socket [default: /run/gatehouse]
    #[arg(long, global = true, env = "GATEHOUSE_RUN_DIR", value_name = "DIR", help_heading = "Connection")]
    pub run_dir: Option<PathBuf>,
    /// On the operator's socket, the account for which to act
    #[arg(long, global = true, value_name = "ID", help_heading = "Connection")]
    pub account: Option<AccountId>,
}

/// Why a request came to nothing.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The client itself cannot be made.
    #[error("no connection can be prepared: {0}")]
    Prepare(#[source] reqwest::Error),
    /// The certificate to trust cannot be used.
    #[error("{path} is no certificate that can be trusted: {why}")]
    Certificate {
        /// Of the file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A URL without a key, or one to which no path can be added.
    #[error("{0}")]
    Usage(&'static str),
    /// Nobody answers.
    #[error("{place} cannot be reached: {cause}\n{hint}")]
    Unreachable {
        /// Whom was asked.
        place: String,
        /// The innermost reason.
        cause: String,
        /// The next step.
        hint: String,
    },
    /// The answer broke off, or is none of ours.
    #[error("{place} gave an answer that makes no sense: {why}")]
    Malformed {
        /// Who was asked.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// It said no.
    #[error("{message} ({code}){}", trace.as_ref().map(|trace| format!("\nTrace: {trace}")).unwrap_or_default())]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The contract's word.
        code: String,
        /// What a person reads, with the next step where there is one.
        message: String,
        /// For the operator's log.
        trace: Option<String>,
        /// The whole answer.
        body: Box<ErrorBody>,
    },
    /// It came to nothing with one of several.
    #[error("{id}: {source}")]
    Of {
        /// With which.
        id: String,
        /// Why.
        source: Box<ClientError>,
    },
    /// A file of firewall rules cannot be taken.
    #[error(transparent)]
    RulesFile(#[from] vpc::RulesFileError),
    /// A service did not join its network.
    #[error(transparent)]
    Join(#[from] vpc::JoinError),
    /// Something about SSH came to nothing on this computer.
    #[error(transparent)]
    Ssh(#[from] ssh::SshError),
    /// There is no tunnel.
    #[error(transparent)]
    Vpn(#[from] vpn::VpnError),
    /// The terminal or pipe is gone.
    #[error("the output cannot be written: {0}")]
    Output(#[source] io::Error),
}

/// The API.
#[derive(Clone, Debug)]
pub struct Api {
    client: Client,
    base: Url,
    key: Option<String>,
    account: Option<AccountId>,
    place: String,
    hint: String,
}

impl Connection {
    /// The folder of the house's sockets on this host.
    #[must_use]
    pub fn run_folder(&self) -> &Path {
        self.run_dir.as_deref().unwrap_or(Path::new(crate::settings::RUN_DIR))
    }

    /// Prepares the connection; nothing is sent yet.
    ///
    /// # Errors
    /// When the arguments do not fit.
    pub fn api(&self) -> Result<Api, ClientError> {
        let Some(url) = &self.url else {
            let mut api = Api::operator(&self.run_folder().join("admin.sock"))?;
            api.account.clone_from(&self.account);
            return Ok(api);
        };
        if url.cannot_be_a_base() {
            return Err(ClientError::Usage("--url must be an address such as https://api.style.dev"));
        }
        if self.api_key.is_none() {
            let usage = "--url needs --api-key (or GATEHOUSE_API_KEY); make one on the host with: \
                         gatehouse api-key create --name NAME";
            return Err(ClientError::Usage(usage));
        }
        let mut builder = Client::builder().connect_timeout(CONNECT_WAIT);
        if let Some(path) = &self.ca {
            builder = builder.add_root_certificate(certificate(path)?);
        }
        Ok(Api {
            client: builder.build().map_err(ClientError::Prepare)?,
            base: url.clone(),
            key: self.api_key.clone(),
            account: None,
            place: url.to_string(),
            hint: "Is the address right, and does the host trust its certificate (--ca FILE)?".into(),
        })
    }
}

impl Api {
    /// The operator's socket.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn operator(socket: &Path) -> Result<Self, ClientError> {
        let client =
            Client::builder().unix_socket(socket).no_proxy().build().map_err(ClientError::Prepare)?;
        Ok(Self {
            client,
            base: Url::parse("http://localhost").expect("a URL"),
            key: None,
            account: None,
            place: format!("Gatehouse at {}", socket.display()),
            hint: "Is it running (gatehouse up)? Its socket is for root alone: try sudo. For another host: --url and \
                   --api-key."
                .into(),
        })
    }

    /// The same, acting for another account.
    #[must_use]
    pub fn acting_for(&self, account: AccountId) -> Self {
        Self { account: Some(account), ..self.clone() }
    }

    /// `GET`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        self.send(self.request(Method::GET, path).query(query)).await
    }

    /// `POST` with a body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T, ClientError> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// `POST` with a body and, if there is one, a header.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post_with<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
        header: Option<(&str, &str)>,
    ) -> Result<T, ClientError> {
        let request = self.request(Method::POST, path).json(body);
        self.send(header.into_iter().fold(request, |request, (name, value)| request.header(name, value)))
            .await
    }

    /// `PATCH` with a body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn patch<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T, ClientError> {
        self.send(self.request(Method::PATCH, path).json(body)).await
    }

    /// `PUT` with a body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T, ClientError> {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    /// `DELETE` with a body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_with<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T, ClientError> {
        self.send(self.request(Method::DELETE, path).json(body)).await
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ClientError> {
        self.send(self.request(Method::DELETE, path)).await
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.as_str().trim_end_matches('/').to_owned();
        for segment in path {
            url.push('/');
            url.extend(utf8_percent_encode(segment, SEGMENT));
        }
        let mut request = self.client.request(method, url);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(account) = &self.account {
            request = request.header(ACCOUNT_HEADER, account.as_str());
        }
        request
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let mut response = request.send().await.map_err(|error| ClientError::Unreachable {
            place: self.place.clone(),
            cause: innermost(&error),
            hint: self.hint.clone(),
        })?;
        let malformed = |why: String| ClientError::Malformed { place: self.place.clone(), why };
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| malformed(innermost(&error)))? {
            if body.len() + piece.len() > MAX_ANSWER_BYTES {
                return Err(malformed(format!("it is larger than {} MiB", MAX_ANSWER_BYTES >> 20)));
            }
            body.extend_from_slice(&piece);
        }
        let status = response.status();
        let trace = response.headers().get(TRACE_ID_HEADER).and_then(|trace| trace.to_str().ok());
        let trace = trace.map(str::to_owned);
        if status.is_success() {
            return match late_refusal(&body) {
                Some(refusal) => Err(refused(status, refusal, trace)),
                None => serde_json::from_slice(&body).map_err(|error| malformed(error.to_string())),
            };
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(refusal) => Err(refused(status, refusal, trace)),
            Err(_) => {
                let text: String = String::from_utf8_lossy(&body).chars().take(ECHO_CHARS).collect();
                Err(malformed(format!("{status}: {text}")))
            }
        }
    }
}

/// Work that takes long has its status before its outcome: white space comes first, and a refusal may come after it.
fn late_refusal(body: &[u8]) -> Option<ErrorBody> {
    let late = body.first().is_some_and(u8::is_ascii_whitespace);
    let refusal: ErrorBody = late.then(|| serde_json::from_slice(body).ok())??;
    (refusal.error == refusal.code).then_some(refusal)
}

fn refused(status: StatusCode, body: ErrorBody, trace: Option<String>) -> ClientError {
    let next = match body.code.as_str() {
        "NOT_FOUND" => missing(&body),
        code => next_step(code),
    };
    let message = format!("{}{next}", if body.message.is_empty() { &body.code } else { &body.message });
    ClientError::Refused { status, code: body.code.clone(), message, trace, body: Box::new(body) }
}

/// Where a person sees what there is.
fn missing(body: &ErrorBody) -> &'static str {
    let seen = [
        ("sshSessionId", "\nSee which there are: gatehouse ssh sessions"),
        ("tokenId", "\nSee which there are: gatehouse identity token list IDENTITY"),
        ("keyId", "\nSee which there are: gatehouse ssh key list"),
        ("sessionId", "\nSee which there are: gatehouse vpn sessions VPC"),
        ("ruleId", "\nSee which there are: gatehouse vpc rules VPC"),
        ("serviceId", "\nSee which there are: gatehouse vpc services VPC"),
        ("peeringId", "\nSee which there are: gatehouse vpc peerings VPC"),
        ("vpcId", "\nSee which VPCs there are: gatehouse vpc list"),
    ];
    let found = seen.iter().find(|(field, _)| body.fields.contains_key(*field));
    found.map_or_else(|| next_step("VM_NOT_FOUND"), |(_, next)| next)
}

/// What a person may do about a refusal, where the refusal does not say it itself.
fn next_step(code: &str) -> &'static str {
    match code {
        "UNAUTHORIZED_ERROR" | "UNAUTHORIZED" => {
            "\nMake a key on the host: gatehouse api-key create --name NAME"
        }
        "VM_NOT_FOUND" | "INTERNAL_VM_NOT_FOUND" | "FORK_VM_NOT_FOUND" | "INVALID_VM_ID" => {
            "\nSee which VMs there are: gatehouse vm list"
        }
        "VM_NOT_RUNNING" => "\nStart it: gatehouse vm start VM",
        "VM_IS_SUSPENDING" | "STILL_CREATING" => "\nSee how far it is, then try again: gatehouse vm get VM",
        "VM_REACTIVATED" => "\nA packet or a request woke it. Try again when it is idle",
        "VM_START_TIMEOUT" => {
            "\nGive it more time with --ready-timeout, or see its console log in the data folder: vms/VM/"
        }
        "SNAPSHOT_NOT_FOUND"
        | "INVALID_SNAPSHOT_ID"
        | "SOURCE_SNAPSHOT_DELETED"
        | "SOURCE_SNAPSHOT_LOST"
        | "SNAPSHOT_ALREADY_DELETED" => "\nSee which snapshots there are: gatehouse snapshots list",
        "SOURCE_SNAPSHOT_BUILDING" => "\nSee how far it is: gatehouse snapshots get SNAPSHOT",
        "SNAPSHOT_LIMIT_EXCEEDED" => {
            "\nMake room: gatehouse snapshots list, gatehouse snapshots delete SNAPSHOT"
        }
        "IDENTITY_NOT_FOUND" => "\nSee which there are: gatehouse identity list",
        "VM_PERMISSION_NOT_FOUND" => "\nSee which VMs it may use: gatehouse identity grants IDENTITY",
        "VM_NOT_STOPPED" => "\nStop it: gatehouse vm stop VM",
        "VPC_IN_USE" => "\nSee who is in it: gatehouse vpc get VPC",
        "VM_IN_VPC" => "\nMove it out: gatehouse vpc detach VPC VM",
        "SERVICE_EXISTS" => "\nSee where it is: gatehouse vpc services VPC",
        "VPC_RANGES_OVERLAP" => "\nSee which networks meet: gatehouse vpc peerings VPC",
        "VPC_FORK_UNSUPPORTED" => {
            "\nCopy it so: gatehouse vm snapshot VM, gatehouse vm create --snapshot SNAPSHOT --vpc VPC"
        }
        "VM_LIMIT_EXCEEDED" | "TOTAL_VM_LIMIT_EXCEEDED" | "NO_LOCAL_STORAGE_CAPACITY" => {
            "\nMake room: gatehouse vm list, gatehouse vm delete VM"
        }
        _ => "",
    }
}

fn certificate(path: &Path) -> Result<Certificate, ClientError> {
    let failed = |why: String| ClientError::Certificate { path: path.to_owned(), why };
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    Certificate::from_pem(&pem).map_err(|error| failed(error.to_string()))
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

/// Does something to one after the other, and says so; the first failure ends it.
///
/// # Errors
/// See [`ClientError`]; what was done before is told all the same.
pub async fn each<I: Display, T: Serialize>(
    ids: Vec<I>,
    verb: &str,
    json: bool,
    act: impl AsyncFn(&I) -> Result<T, ClientError>,
) -> Result<(), ClientError> {
    let (several, mut answers, mut outcome) = (ids.len() > 1, Vec::new(), Ok(()));
    for id in ids {
        let waiting = spinner(&format!("{id} {verb}"), json);
        let answer = act(&id).await;
        waiting.finish_and_clear();
        match answer {
            Ok(answer) if json => answers.push(answer),
            Ok(_) => print_line(&id.to_string())?,
            Err(source) if several => {
                outcome = Err(ClientError::Of { id: id.to_string(), source: Box::new(source) });
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if json {
        print_json(&answers)?;
    }
    outcome
}

/// Prints a value for programs.
///
/// # Errors
/// When the output is gone.
pub fn print_json<T: Serialize>(value: &T) -> Result<(), ClientError> {
    let text = serde_json::to_string_pretty(value).expect("answers are plain data");
    print_line(&text)
}

/// Prints a line; a closed pipe is an error, not a panic.
///
/// # Errors
/// When the output is gone.
pub fn print_line(text: &str) -> Result<(), ClientError> {
    use io::Write;
    writeln!(io::stdout(), "{text}").map_err(ClientError::Output)
}

/// Shows that something goes on, where a person watches.
#[must_use]
pub fn spinner(message: &str, json: bool) -> ProgressBar {
    if json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})").expect("a good template");
    let bar = ProgressBar::new_spinner().with_style(style).with_message(message.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// Answers one request at a Unix socket with these bytes, and gives the request's head.
    async fn answer(answer: &str) -> (Result<serde_json::Value, ClientError>, String) {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).expect("bind");
        let (sender, receiver) = mpsc::channel();
        let answer = answer.to_owned();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("asked");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
            sender.send(String::from_utf8(head).expect("text")).expect("kept");
            stream.write_all(answer.as_bytes()).await.expect("answered");
        });
        let api = Api::operator(&socket).expect("client");
        let got = api.get(&["v1", "vms", "a/b c", "x"], &[("limit", "5".into())]).await;
        serving.await.expect("served");
        (got, receiver.recv().expect("a head"))
    }

    #[tokio::test]
    async fn segments_are_encoded_whole() {
        let (got, head) = answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        assert_eq!(got.expect("good"), serde_json::json!({}));
        assert!(head.starts_with("GET /v1/vms/a%2Fb%20c/x?limit=5 HTTP/1.1\r\n"), "{head}");
    }

    #[tokio::test]
    async fn a_refusal_says_what_to_do_next() {
        let body = r#"{"code":"VM_NOT_FOUND","error":"VM_NOT_FOUND","message":"no such VM","vmId":"x"}"#;
        let text = format!(
            "HTTP/1.1 404 Not Found\r\nx-freestyle-trace-id: tr-1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let error = answer(&text).await.0.expect_err("refused").to_string();
        assert!(error.contains("no such VM") && error.contains("gatehouse vm list"), "{error}");
        assert!(error.contains("tr-1") && error.contains("VM_NOT_FOUND"), "{error}");
    }

    #[tokio::test]
    async fn a_refusal_that_comes_after_the_status_is_one() {
        let body =
            r#"  {"code":"VM_START_TIMEOUT","error":"VM_START_TIMEOUT","message":"not ready within 300s"}"#;
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let error = answer(&text).await.0.expect_err("refused");
        assert!(matches!(&error, ClientError::Refused { code, .. } if code == "VM_START_TIMEOUT"), "{error}");
        assert!(error.to_string().contains("--ready-timeout"), "{error}");
        let body = r#" {"code":"7","domains":[]}"#;
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        assert_eq!(answer(&text).await.0.expect("no refusal")["code"], "7");
    }

    #[tokio::test]
    async fn one_of_several_is_named_when_it_comes_to_nothing() {
        let act = async |id: &&str| match *id {
            "bad" => Err(ClientError::Usage("it would not")),
            _ => Ok(()),
        };
        let several = each(vec!["good", "bad", "other"], "is tried", false, act).await;
        assert_eq!(several.expect_err("failed").to_string(), "bad: it would not");
        let one = each(vec!["bad"], "is tried", false, act).await;
        assert_eq!(one.expect_err("failed").to_string(), "it would not");
    }

    #[tokio::test]
    async fn other_answers_are_no_surprise() {
        let (got, _) = answer("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 6\r\n\r\n<html>").await;
        assert!(got.expect_err("not ours").to_string().contains("502"));
        let (got, _) = answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{").await;
        assert!(matches!(got, Err(ClientError::Malformed { .. })));
    }

    #[tokio::test]
    async fn nobody_there_says_how_to_start_it() {
        let api = Api::operator(Path::new("/nonexistent/admin.sock")).expect("client");
        let error = api.get::<serde_json::Value>(&["x"], &[]).await.expect_err("nobody").to_string();
        assert!(error.contains("gatehouse up") && error.contains("/nonexistent/admin.sock"), "{error}");
    }

    #[test]
    fn a_url_needs_a_key() {
        let connection =
            Connection { url: Some(Url::parse("https://api.style.dev").expect("url")), ..Default::default() };
        assert!(connection.api().expect_err("no key").to_string().contains("api-key create"));
    }
}
