//! A client that logs in: what russh asks, answered from the table.

use crate::io::audit::Reason;
use crate::io::door::Front;
use crate::pure::name::{NamedToken, UserName};
use crate::pure::throttle::{Source, Verdict};
use model::id::VmId;
use model::login::Login;
use model::token::IdentityToken;
use russh::keys::PublicKey;
use russh::server::{Auth, Handler, PublicKeyOffer, Response, Session, VerifiedPublicKey};
use russh::{MethodSet, Relay};
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What a refusal takes, however it came about.
const REFUSAL: Duration = Duration::from_secs(1);
/// What is asked for by keyboard-interactive. The same for every name, so that it tells nothing.
const PROMPT: &str = "Token: ";

/// One client before its login.
pub struct Visitor {
    front: Arc<Front>,
    client: IpAddr,
    relay: Option<Relay>,
    methods: MethodSet,
    failures: u32,
    tried: Arc<AtomicBool>,
    found: Option<Login>,
    logged_in: Option<oneshot::Sender<Login>>,
}

impl Visitor {
    /// A client at `client`. `tried` is set when it tries something, and `logged_in` is told of its login.
    #[must_use]
    pub fn new(
        front: Arc<Front>,
        client: IpAddr,
        relay: Relay,
        tried: Arc<AtomicBool>,
        logged_in: oneshot::Sender<Login>,
    ) -> Self {
        let methods =
            front.known().server.as_ref().map_or_else(MethodSet::empty, |server| server.methods.clone());
        Self {
            front,
            client,
            relay: Some(relay),
            methods,
            failures: 0,
            tried,
            found: None,
            logged_in: Some(logged_in),
        }
    }

    fn rejected(&self) -> Auth {
        let over = self.failures >= self.front.config.limits.login_attempts;
        let methods = if over { MethodSet::empty() } else { self.methods.clone() };
        Auth::Reject { proceed_with_methods: Some(methods), partial_success: false }
    }

    /// Judges a token, that of the name or that which was typed. All refusals are one.
    async fn judge(&mut self, user: &str, typed: Option<&str>) -> Result<Auth, russh::Error> {
        let begun = Instant::now();
        self.tried.store(true, Ordering::Relaxed);
        let (vm, outcome) = self.look_up(user, typed);
        match outcome {
            Ok(login) => {
                self.found = Some(login);
                Ok(Auth::Accept)
            }
            Err(reason) => self.refuse(begun, reason, vm.as_ref()).await,
        }
    }

    fn look_up(&self, user: &str, typed: Option<&str>) -> (Option<VmId>, Result<Login, Reason>) {
        let Ok(name) = user.parse::<UserName>() else { return (None, Err(Reason::MalformedName)) };
        let token = match (name.token, typed) {
            (Some(NamedToken::Token(token)), _) => Some(token),
            (Some(NamedToken::Malformed), _) | (None, None) => None,
            (None, Some(typed)) => typed.trim().parse::<IdentityToken>().ok(),
        };
        let login = token
            .ok_or(Reason::BadToken)
            .and_then(|token| Ok(self.front.known().table.by_token(&name.vm, &name.user, &token)?));
        (Some(name.vm), login)
    }

    async fn refuse(
        &mut self,
        begun: Instant,
        reason: Reason,
        vm: Option<&VmId>,
    ) -> Result<Auth, russh::Error> {
        self.failures = self.failures.saturating_add(1);
        self.front.audit.refused(self.client, reason, vm);
        // A client that tries all that it can think of, as OpenSSH does, pays once: so does sshd reckon.
        let pays = (self.failures == 1).then(|| Source::from(self.client));
        let verdict = self.front.throttle().failed(pays, vm, begun);
        tokio::time::sleep_until((begun + REFUSAL).into()).await;
        match verdict {
            // With the last failure no method is left; who goes on all the same is cut.
            Verdict::Answer if self.failures <= self.front.config.limits.login_attempts => {
                Ok(self.rejected())
            }
            Verdict::Answer | Verdict::Cut => Err(russh::Error::Disconnect),
        }
    }

    fn by_key(&self, user: &str, key: &PublicKey) -> Option<Login> {
        let name = user.parse::<UserName>().ok()?;
        self.front.known().table.by_key(&name.vm, &name.user, &line(key)?).ok()
    }
}

/// A key as in `authorized_keys`, without options and comment.
#[must_use]
pub fn line(key: &PublicKey) -> Option<String> {
    let text = key.to_openssh().ok()?;
    let mut words = text.split(' ');
    Some(format!("{} {}", words.next()?, words.next()?))
}

impl Handler for Visitor {
    type Error = russh::Error;

    fn relay(&mut self) -> Option<Relay> {
        self.relay.take()
    }

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        // Clients ask so what they may try. Only a token in the name makes it an attempt.
        if user.contains([':', ',']) { self.judge(user, None).await } else { Ok(self.rejected()) }
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        self.judge(user, Some(password)).await
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        let Some(response) = response else {
            let prompts = Cow::Borrowed(&[(Cow::Borrowed(PROMPT), false)][..]);
            return Ok(Auth::Partial { name: Cow::Borrowed(""), instructions: Cow::Borrowed(""), prompts });
        };
        let typed = response.take(1).next().unwrap_or_default();
        let typed = String::from_utf8_lossy(&typed).into_owned();
        self.judge(user, Some(&typed)).await
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        self.tried.store(true, Ordering::Relaxed);
        Ok(if self.by_key(user, offer.public_key).is_some() { Auth::Accept } else { self.rejected() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        self.found = self.by_key(user, key.public_key);
        Ok(if self.found.is_some() { Auth::Accept } else { self.rejected() })
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Self::Error> {
        let (Some(login), Some(logged_in)) = (self.found.take(), self.logged_in.take()) else {
            return Err(russh::Error::Inconsistent);
        };
        self.front.throttle().succeeded(Source::from(self.client));
        // Whoever waits for it gave up at the time limit; then the connection is cut.
        logged_in.send(login).map_err(|_| russh::Error::Disconnect)
    }
}
