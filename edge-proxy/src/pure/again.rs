//! Whether a request that came to nothing is sent once more.
//!
//! A pooled connection may have been closed by the VM while the request was on its way, and then nobody can tell
//! whether it was acted upon. RFC 9110 section 9.2.2 lets a proxy repeat what is idempotent; here only what is safe
//! (section 9.2.1) is repeated: a second `DELETE` finds nothing, and its client is told so of a deletion that went well.

use crate::pure::browser::has_body;
use http::{HeaderMap, Method};

/// How an exchange with a VM ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// The connection turned out to be closed before the head of an answer was whole.
    Closed,
    /// The VM said that it has not looked at the request (RFC 9113 section 8.7).
    Unprocessed,
    /// Any other way: a wait is over, an answer is no HTTP, its body ends early.
    Other,
}

/// What is known of the request and of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Of the request.
    pub method: &'a Method,
    /// Of the request.
    pub headers: &'a HeaderMap,
    /// The connection had served another request before.
    pub pooled: bool,
    /// Something of an answer has gone to the client.
    pub answered: bool,
}

/// Whether the request may go to the VM another time. Never one that may have an effect, or has a body, or that a new
/// connection failed: what closes that one is no leftover.
#[must_use]
pub fn may_go_again(attempt: &Attempt<'_>, broken: Break) -> bool {
    let harmless = attempt.method.is_safe() && !has_body(attempt.headers) && !attempt.answered;
    harmless
        && match broken {
            Break::Closed => attempt.pooled,
            Break::Unprocessed => true,
            Break::Other => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, header};
    use proptest::prelude::*;

    fn any_break() -> impl Strategy<Value = Break> {
        prop::sample::select(vec![Break::Closed, Break::Unprocessed, Break::Other])
    }

    #[test]
    fn a_look_over_a_dead_connection_is_repeated() {
        let headers = HeaderMap::new();
        let get = Attempt { method: &Method::GET, headers: &headers, pooled: true, answered: false };
        assert!(may_go_again(&get, Break::Closed) && may_go_again(&get, Break::Unprocessed));
        assert!(!may_go_again(&get, Break::Other));
        assert!(!may_go_again(&Attempt { pooled: false, ..get }, Break::Closed));
        assert!(!may_go_again(&Attempt { answered: true, ..get }, Break::Closed));
    }

    proptest! {
        /// However it breaks, what may have an effect is never repeated, nor what has a body.
        #[test]
        fn no_effect_happens_twice(
            method in "GET|HEAD|OPTIONS|POST|PUT|PATCH|DELETE|[A-Z]{1,9}",
            length in prop::option::of(0u64..3), chunked: bool, pooled: bool, answered: bool, broken in any_break(),
        ) {
            let method: Method = method.parse().expect("method");
            let mut headers = HeaderMap::new();
            if let Some(length) = length {
                headers.insert(header::CONTENT_LENGTH, length.into());
            }
            if chunked {
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            let attempt = Attempt { method: &method, headers: &headers, pooled, answered };
            if may_go_again(&attempt, broken) {
                prop_assert!(["GET", "HEAD", "OPTIONS", "TRACE"].contains(&method.as_str()));
                prop_assert!(!chunked && length.unwrap_or(0) == 0 && !answered);
            }
        }
    }
}
