//! How the authority is asked: over HTTPS, with bounds in time and size, and with an ear for `Retry-After`.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use reqwest::header::RETRY_AFTER;
use reqwest::{Certificate, Client, redirect};
use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;
use thiserror::Error;

/// Longest that an answer may take: Let's Encrypt takes a second or two when it is busy.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Largest answer: a chain of a few certificates, or an order with a hundred names.
const MAX_ANSWER: usize = 256 << 10;

tokio::task_local! {
    /// What the authority named last as the time to wait, in this task.
    static PAUSE: Cell<Option<Duration>>;
}

/// Why the authority cannot be asked at all.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The certificates to trust cannot be read.
    #[error("the authority's own certificates cannot be read from {path}: {source}")]
    File {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// They are none, or TLS cannot be set up.
    #[error("a client for the authority cannot be made: {0}")]
    Make(#[from] reqwest::Error),
}

/// Why one request failed.
#[derive(Debug, Error)]
enum RequestError {
    #[error("{}", chain(.0))]
    Failed(#[from] reqwest::Error),
    #[error("the answer has more than {MAX_ANSWER} bytes")]
    TooLarge,
}

/// Asks the authority.
#[derive(Clone, Debug)]
pub struct Asker(Client);

impl Asker {
    /// Trusts the certificates in `ca_file` alone, or the system's. Blocks on the disk.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn new(ca_file: Option<&Path>) -> Result<Self, ClientError> {
        let mut builder = Client::builder()
            .https_only(true)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .timeout(ANSWER_WAIT)
            .user_agent(concat!("gatehouse/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = ca_file {
            let pem =
                std::fs::read(path).map_err(|source| ClientError::File { path: path.to_owned(), source })?;
            builder = builder.tls_certs_only(Certificate::from_pem_bundle(&pem)?);
        }
        Ok(Self(builder.build()?))
    }

    async fn ask(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<hyper::Response<Full<Bytes>>, RequestError> {
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await;
        let asked = self
            .0
            .request(parts.method, parts.uri.to_string())
            .headers(parts.headers)
            .body(body.to_bytes())
            .send();
        let mut answer = asked.await?;
        note_pause(&answer);
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            if bytes.len() + piece.len() > MAX_ANSWER {
                return Err(RequestError::TooLarge);
            }
            bytes.extend_from_slice(&piece);
        }
        let mut response = hyper::Response::new(Full::new(bytes.into()));
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        Ok(response)
    }
}

impl HttpClient for Asker {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let asker = self.clone();
        Box::pin(async move {
            match asker.ask(request).await {
                Ok(response) => Ok(BytesResponse::from(response)),
                Err(error) => Err(Error::Other(Box::new(error))),
            }
        })
    }
}

/// Runs `work`, and gives with its outcome the wait that the authority named with its last refusal in it.
pub async fn with_pause<T>(work: impl Future<Output = T>) -> (T, Option<Duration>) {
    PAUSE
        .scope(Cell::new(None), async {
            let outcome = work.await;
            (outcome, PAUSE.with(Cell::get))
        })
        .await
}

fn note_pause(answer: &reqwest::Response) {
    if answer.status().is_success() {
        return;
    }
    let seconds =
        answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let pause = seconds.map(Duration::from_secs);
    if let Err(error) = PAUSE.try_with(|last| last.set(pause)) {
        tracing::trace!(%error, "nobody asks how long to wait");
    }
}

/// An error with all that is behind it: reqwest's own text leaves out what went wrong.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
