//! What one version of HTTP has and another one has not: answers of 1xx, trailers, chunks, crumbs of cookies.

use crate::metrics::{Count, Metrics};
use crate::pure::trailers::{self, Of};
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

/// Most answers of 1xx before one that is none. Who says 102 each 20 s has half an hour.
const MAX_INTERIM: u32 = 100;
/// Most bytes of their fields together: over HTTP/2 they wait for a slow client in memory.
const MAX_INTERIM_BYTES: usize = 64 << 10;

/// What has come of answers of 1xx to one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interim {
    count: u32,
    bytes: usize,
}

impl Interim {
    /// Takes note of one.
    ///
    /// # Errors
    /// When the VM goes on and on with them, which is counted.
    pub fn check(&mut self, answer: &ResponseHeader, metrics: &Metrics) -> Result<()> {
        self.count += 1;
        let fields = answer.headers.iter();
        self.bytes += fields.map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
        if self.count > MAX_INTERIM || self.bytes > MAX_INTERIM_BYTES {
            metrics.count(Count::InterimTooMany);
            let many = Error::explain(ErrorType::InvalidHTTPHeader, "the VM does not come to its answer");
            return Err(many.into_up());
        }
        Ok(())
    }
}

/// Takes out of trailers what must not go further, and counts it.
///
/// # Errors
/// When they are too large, which is counted too.
pub fn sift(fields: &mut HeaderMap, of: Of, for_one_hop: &[HeaderName], metrics: &Metrics) -> Result<()> {
    match trailers::sift(fields, of, for_one_hop) {
        Ok(removed) => {
            metrics.add(Count::TrailersRemoved, removed as u64);
            Ok(())
        }
        Err(fault) => {
            metrics.count(Count::TrailersTooLarge);
            Err(Error::because(ErrorType::InvalidHTTPHeader, "at the end of a body", fault))
        }
    }
}

/// Tells a VM of HTTP/1.1 what the client says of trailers.
///
/// # Errors
/// When the engine does not take the fields.
pub fn announce_trailers(asked: &RequestHeader, request: &mut RequestHeader) -> Result<()> {
    if asked.version != Version::HTTP_10 {
        for (name, value) in trailers::announced(&asked.headers) {
            request.insert_header(name, value)?;
        }
    }
    Ok(())
}

/// HTTP/1.0 knows nothing of 1xx, nor of the wait for one (RFC 9110 sections 10.1.1 and 15.2).
pub fn expect_no_interim(session: &mut Session) {
    if session.req_header().version == Version::HTTP_10 {
        session.req_header_mut().remove_header(&header::EXPECT);
        if let ServerSession::H1(h1) = session.as_downstream_mut() {
            h1.set_ignore_info_resp(true);
        }
    }
}

/// HTTP/1.0 has no chunks, and so no trailers: the connection's end is the answer's (RFC 9112 section 6.1).
pub fn unchunk_for_http_1_0(session: &mut Session, answer: &mut ResponseHeader) {
    let old = session.req_header().version == Version::HTTP_10;
    if old && answer.headers.contains_key(header::TRANSFER_ENCODING) {
        answer.remove_header(&header::TRANSFER_ENCODING);
        answer.remove_header(&header::TRAILER);
        session.set_keepalive(None);
    }
}

/// HTTP/2 may bring a cookie in crumbs; HTTP/1.1 has one field for it (RFC 9113 section 8.2.3).
///
/// # Errors
/// When the engine does not take the field.
pub fn join_cookies(request: &mut RequestHeader) -> Result<()> {
    let crumbs: Vec<&[u8]> =
        request.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1 {
        let whole = crumbs.join(&b"; "[..]);
        request.insert_header(header::COOKIE, whole)?;
    }
    Ok(())
}
