//! Which trailer fields go further (RFC 9110 section 6.5).
//!
//! Whoever receives trailers may merge them into the header that was acted upon long before. So none goes further that
//! frames a message, routes or authenticates it, changes what is asked for, controls caches and browsers, says what the
//! content is, or is for one hop (section 6.5.1), and none that only the gateway may write.

use super::forwarded;
use super::head::MAX_FIELDS;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use thiserror::Error;

/// Most bytes of a request's trailers, as [`super::chunks`] has it for those of HTTP/1.1.
pub const MAX_REQUEST_BYTES: usize = 16 << 10;
/// Most bytes of an answer's: as much as the engine reads of HTTP/1.1, and gRPC's details of an error can be long.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Most fields of an answer's, as the engine has it for heads.
const MAX_ANSWER_FIELDS: usize = 256;
/// What HTTP/2 counts for each field besides its name and value (RFC 9113 section 6.5.2).
const FIELD_BYTES: usize = 32;

/// Names that are no trailers, besides those of [`FORBIDDEN_FAMILIES`].
const FORBIDDEN: [&str; 45] = [
    // Framing, and what is for one hop.
    "connection",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    // Routing.
    "alt-svc",
    "alt-used",
    "host",
    "max-forwards",
    "origin",
    "referer",
    "via",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-rewrite-url",
    // Who it is.
    "authentication-info",
    "authorization",
    "cookie",
    "cookie2",
    "set-cookie",
    "set-cookie2",
    "www-authenticate",
    "x-csrf-token",
    "x-xsrf-token",
    // What is asked for.
    "early-data",
    "expect",
    "pragma",
    "prefer",
    "priority",
    "range",
    // Caches and browsers.
    "age",
    "cache-control",
    "clear-site-data",
    "date",
    "expires",
    "location",
    "refresh",
    "retry-after",
    "strict-transport-security",
    "vary",
    "warning",
];

/// How names begin that are no trailers. `Content-Digest` (RFC 9530 section 2) was made to be one.
const FORBIDDEN_FAMILIES: [&str; 9] = [
    "accept",
    "access-control-",
    "content-",
    "cross-origin-",
    "if-",
    "proxy-",
    "sec-",
    "x-frame-",
    "x-original-",
];
/// Exceptions of [`FORBIDDEN_FAMILIES`].
const ALLOWED: [&str; 2] = ["content-digest", "content-md5"];
/// What the gateway says of traces.
const TRACES: [&str; 3] = ["baggage", "traceparent", "tracestate"];

/// Why a message is broken off at its trailers.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the trailers are too large")]
pub struct TrailersTooLarge;

/// Whose trailers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// A client's: what is refused in heads of requests is not let in here either.
    Request,
    /// A VM's.
    Answer,
}

/// Takes out what must not go further, and says how many fields that were. `named` are the names of [`for_one_hop`].
///
/// # Errors
/// When there are more fields or bytes than are allowed: 100 and 16 KiB of a request's, 256 and 64 KiB of an answer's.
pub fn sift(trailers: &mut HeaderMap, of: Of, named: &[HeaderName]) -> Result<usize, TrailersTooLarge> {
    let (fields, bytes) = match of {
        Of::Request => (MAX_FIELDS, MAX_REQUEST_BYTES),
        Of::Answer => (MAX_ANSWER_FIELDS, MAX_ANSWER_BYTES),
    };
    if trailers.len() > fields || size(trailers) > bytes {
        return Err(TrailersTooLarge);
    }
    let before = trailers.len();
    let out: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            let values = trailers.get_all(*name);
            !may_pass(name)
                || named.contains(name)
                || (of == Of::Request && (name.as_str().contains('_') || values.iter().any(is_padded)))
        })
        .cloned()
        .collect();
    for name in out {
        trailers.remove(name);
    }
    Ok(before - trailers.len())
}

/// The fields that `Connection` says are for one hop, besides those that are never trailers.
#[must_use]
pub fn for_one_hop(head: &HeaderMap) -> Vec<HeaderName> {
    let named = tokens(head, &header::CONNECTION).filter(|token| !token.eq_ignore_ascii_case(b"close"));
    named.filter_map(|token| HeaderName::from_bytes(token).ok()).filter(may_pass).collect()
}

/// What a VM of HTTP/1.1 is told of trailers: that the client takes them, if it says so, and which it has announced of
/// those that go further. `TE` is for one hop, and to be named in `Connection` (RFC 9110 section 10.1.4).
#[must_use]
pub fn announced(asked: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let mut told = Vec::new();
    if tokens(asked, &header::TE).any(|token| token.eq_ignore_ascii_case(b"trailers")) {
        told.push((header::CONNECTION, HeaderValue::from_static("TE")));
        told.push((header::TE, HeaderValue::from_static("trailers")));
    }
    if asked.contains_key(header::TRAILER) && !asked.contains_key(header::CONTENT_LENGTH) {
        let names = tokens(asked, &header::TRAILER).filter_map(|token| HeaderName::from_bytes(token).ok());
        let names: Vec<HeaderName> = names.filter(may_pass).collect();
        let list = names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
        if let Some(list) = HeaderValue::try_from(list).ok().filter(|list| !list.is_empty()) {
            told.push((header::TRAILER, list));
        }
    }
    told
}

fn may_pass(name: &HeaderName) -> bool {
    let text = name.as_str();
    let family = FORBIDDEN_FAMILIES.iter().any(|start| text.starts_with(start)) && !ALLOWED.contains(&text);
    !(family || FORBIDDEN.contains(&text) || TRACES.contains(&text) || forwarded::is_reserved(name))
}

fn size(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum()
}

/// White space around a value, which HTTP/2 can carry and must not (RFC 9113 section 8.2.1).
fn is_padded(value: &HeaderValue) -> bool {
    value.as_bytes().trim_ascii().len() != value.len()
}

/// The items of a list, without their parameters.
fn tokens<'a>(fields: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let items =
        fields.get_all(name).into_iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    items.map(|item| item.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(name.parse::<HeaderName>().expect("name"), value.parse().expect("value"));
        }
        map
    }

    fn left(list: &[(&str, &str)], of: Of) -> Vec<String> {
        let mut trailers = fields(list);
        sift(&mut trailers, of, &[]).expect("small");
        let mut names: Vec<String> = trailers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_made_for_trailers_passes() {
        let good = ["content-digest", "etag", "grpc-message", "grpc-status", "server-timing", "x-sum"];
        let list: Vec<_> = good.iter().map(|name| (*name, "1")).collect();
        assert_eq!(left(&list, Of::Request), good);
        assert_eq!(left(&list, Of::Answer), good);
    }

    #[test]
    fn what_could_change_the_message_does_not() {
        let more = [
            "accept-encoding",
            "access-control-allow-origin",
            "content-length",
            "content-type",
            "content-security-policy",
            "forwarded",
            "if-match",
            "proxy",
            "proxy-authorization",
            "sec-fetch-site",
            "x-forwarded-for",
            "x-real-ip",
            "x-original-url",
        ];
        for name in FORBIDDEN.iter().chain(&TRACES).chain(&more) {
            for of in [Of::Request, Of::Answer] {
                assert_eq!(left(&[(name, "1"), ("x-sum", "1")], of), ["x-sum"], "{name}");
            }
        }
    }

    #[test]
    fn requests_are_held_to_the_rules_of_their_heads() {
        assert_eq!(left(&[("a_b", "1")], Of::Answer), ["a_b"]);
        assert_eq!(left(&[("a_b", "1"), ("x", "1")], Of::Request), ["x"]);
        assert_eq!(left(&[("y", "1"), ("y", "1 "), ("x", "")], Of::Request), ["x"]);
    }

    #[test]
    fn what_connection_names_is_for_one_hop() {
        let head = fields(&[("connection", "close, X-Hop"), ("connection", "keep-alive,x-too")]);
        let named = for_one_hop(&head);
        assert_eq!(named, ["x-hop", "x-too"]);
        let mut trailers = fields(&[("x-hop", "1"), ("x-hop", "2"), ("x-sum", "1")]);
        assert_eq!(sift(&mut trailers, Of::Answer, &named), Ok(2));
        assert_eq!(trailers, fields(&[("x-sum", "1")]));
    }

    #[test]
    fn too_much_is_an_error() {
        let many = |count: usize| fields(&vec![("x", ""); count]);
        assert_eq!(sift(&mut many(100), Of::Request, &[]), Ok(0));
        assert_eq!(sift(&mut many(101), Of::Request, &[]), Err(TrailersTooLarge));
        assert_eq!(sift(&mut many(256), Of::Answer, &[]), Ok(0));
        assert_eq!(sift(&mut many(257), Of::Answer, &[]), Err(TrailersTooLarge));
        let long = |bytes: usize| fields(&[("x", &"y".repeat(bytes))]);
        assert_eq!(sift(&mut long(16 << 10), Of::Request, &[]), Err(TrailersTooLarge));
        assert_eq!(sift(&mut long(16 << 10), Of::Answer, &[]), Ok(0));
        assert_eq!(sift(&mut long(64 << 10), Of::Answer, &[]), Err(TrailersTooLarge));
    }

    #[test]
    fn the_vm_is_told_what_the_client_says() {
        let told = |list: &[(&str, &str)]| -> Vec<String> {
            let told = announced(&fields(list));
            told.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect()
        };
        assert_eq!(told(&[("te", "deflate;q=0.5, Trailers")]), ["connection: TE", "te: trailers"]);
        assert!(told(&[("te", "trailersx"), ("trailer", "Host, Content-Length")]).is_empty());
        assert_eq!(told(&[("trailer", "X-Sum, Host"), ("trailer", "a b, ETag")]), ["trailer: x-sum, etag"]);
        assert!(told(&[("trailer", "X-Sum"), ("content-length", "3")]).is_empty());
    }
}
