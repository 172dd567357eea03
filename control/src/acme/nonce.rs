//! Nonces that the authority refuses (RFC 8555 section 6.5): such a request did nothing, and goes out again with the one
//! that came with the refusal.

use instant_acme::Error;

/// Rounds of a request; in each the library itself tries three nonces. Authorities refuse nonces when they were started
/// anew or are spread over machines, and then all that are at hand at once.
const MAX_ROUNDS: u32 = 6;
/// What such a refusal is called (RFC 8555 section 6.7).
const REFUSED: &str = "urn:ietf:params:acme:error:badNonce";

/// Runs a request, an expression that gives its future, until its nonce is taken or [`MAX_ROUNDS`] are over; gives its
/// outcome. A macro, since a function that took a closure would have futures of which the compiler cannot tell that they
/// may change threads.
macro_rules! with_nonce {
    ($request:expr) => {{
        let mut rounds = crate::acme::nonce::Rounds::default();
        loop {
            let outcome = $request.await;
            if !rounds.another(&outcome) {
                break outcome;
            }
        }
    }};
}
pub(super) use with_nonce;

/// How often a request went out.
#[derive(Debug, Default)]
pub struct Rounds(u32);

impl Rounds {
    /// Whether it may go out once more.
    pub fn another<T>(&mut self, outcome: &Result<T, Error>) -> bool {
        self.0 += 1;
        let Err(Error::Api(problem)) = outcome else { return false };
        problem.r#type.as_deref() == Some(REFUSED) && self.0 < MAX_ROUNDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instant_acme::Problem;
    use std::future::ready;

    fn refusal(kind: &str) -> Result<u32, Error> {
        let problem: Problem =
            serde_json::from_value(serde_json::json!({ "type": kind })).expect("a problem");
        Err(Error::Api(problem))
    }

    #[tokio::test]
    async fn only_refused_nonces_are_tried_again_and_not_for_ever() {
        let mut rounds = 0;
        let mut next = |good: u32, kind| {
            rounds += 1;
            ready(if rounds == good { Ok(rounds) } else { refusal(kind) })
        };
        assert_eq!(with_nonce!(next(MAX_ROUNDS, REFUSED)).expect("the last round is one"), MAX_ROUNDS);
        let mut rounds = 0;
        let mut refused = |kind| {
            rounds += 1;
            ready(refusal(kind))
        };
        assert!(with_nonce!(refused(REFUSED)).is_err());
        assert_eq!(rounds, MAX_ROUNDS);
        let mut rounds = 0;
        let mut failed = |kind| {
            rounds += 1;
            ready(refusal(kind))
        };
        assert!(with_nonce!(failed("urn:ietf:params:acme:error:rateLimited")).is_err());
        assert_eq!(rounds, 1);
    }
}
