//! What a token lets through ends with it: an answer that is being worked at or sent is cut when the token, its grant or
//! its identity is gone.

use crate::pure::identity::may_act;
use crate::store::Store;
use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use model::id::{TokenId, VmId};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::watch;

/// Tells everyone who uses a token that rights may have changed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leases(watch::Sender<u64>);

impl Default for Leases {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

/// A token's use.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    token: TokenId,
    /// In which VM, and as whom where that matters.
    place: Option<(VmId, Acting)>,
    changes: watch::Receiver<u64>,
}

/// As whom a request acts inside a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acting {
    /// It does nothing inside.
    Outside,
    /// As this Linux user; root when absent.
    As(Option<String>),
}

/// The answer was cut: its caller may do this no more.
#[derive(Debug, thiserror::Error)]
#[error("the identity's token or grant was taken back")]
pub struct Cut;

impl Leases {
    /// Rights were taken away: all look again.
    pub fn changed(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A token's use from now on. Changes that come later are seen, so the rights are looked up after this.
    pub fn lease(&self, store: &Store, token: TokenId, place: Option<(VmId, Acting)>) -> Lease {
        Lease { store: store.clone(), token, place, changes: self.0.subscribe() }
    }
}

impl Lease {
    /// Waits until the rights are gone.
    pub async fn ended(&mut self) {
        loop {
            // The sender lives as long as the API.
            if self.changes.changed().await.is_err() || !self.holds().await {
                return;
            }
        }
    }

    /// A store that does not answer counts as no.
    async fn holds(&self) -> bool {
        let Some((vm, acting)) = &self.place else { return true };
        match (self.store.rights(&self.token, vm).await, acting) {
            (Ok(Some(_)), Acting::Outside) => true,
            (Ok(Some(users)), Acting::As(user)) => may_act(users.as_deref(), user.as_deref()),
            (Ok(None) | Err(_), _) => false,
        }
    }
}

/// The same answer, whose body breaks off when the lease ends.
pub fn leased(response: Response, mut lease: Lease) -> Response {
    response.map(|body| {
        let ended = Box::pin(async move { lease.ended().await });
        Body::new(Leased { body, ended })
    })
}

struct Leased {
    body: Body,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for Leased {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Cut.into())));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::BodyExt;
    use model::token::IdentityToken;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_stream_that_is_under_way_breaks_off_when_its_token_goes() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(&folder.path().join("control.db")).await.expect("store");
        let account = store.default_account().await.expect("account").id;
        let identity = store.create_identity(&account).await.expect("store").expect("made").id;
        let token = IdentityToken::from_random(&[5; 64]).expect("usable");
        let token =
            store.create_token(&account, &identity, token.hash()).await.expect("store").expect("made");
        let leases = Leases::default();
        let vm = VmId::from_random([1; 20]);
        let lease = leases.lease(&store, token, Some((vm, Acting::Outside)));
        let pieces = stream::unfold(true, |first| async move {
            if !first {
                std::future::pending::<()>().await;
            }
            Some((Ok::<_, std::convert::Infallible>(Bytes::from_static(b" ")), false))
        });
        let mut body = leased(Response::new(Body::from_stream(pieces)), lease).into_body();
        let first = body.frame().await.expect("a frame").expect("good");
        assert_eq!(first.into_data().expect("data"), " ");
        assert!(timeout(Duration::from_millis(50), body.frame()).await.is_err(), "it goes on");
        leases.changed();
        let last = timeout(Duration::from_secs(1), body.frame()).await.expect("within a second");
        let error = last.expect("a frame").expect_err("cut");
        assert!(error.to_string().contains("taken back"), "{error}");
    }
}
