//! The audit log: one line of JSON for each login, refusal, channel and end. Never a user name as it came, which may
//! hold a token, and never what a command was.

use crate::pure::bridge::channel::End;
use crate::pure::visitors::NoPlace;
use feed::lines::Writer;
use model::id::{SshKeyId, SshSessionId, TokenId, VmId};
use model::login::{Login, NoLogin, Proof};
use model::ssh::{LinuxUser, Principal};
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Why somebody did not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The name is none.
    MalformedName,
    /// There is no such VM.
    UnknownVm,
    /// What was given is no token, or nobody's.
    BadToken,
    /// Who has it may not log in to this VM.
    NoGrant,
    /// Not as this user.
    UserNotAllowed,
    /// No login within the time.
    TooSlow,
    /// Too many sessions of this VM.
    VmFull,
    /// The address failed too often.
    Throttled,
    /// Too many connections.
    Full,
    /// Too many connections of this address that have not logged in.
    AddressFull,
    /// All places of connections without a login were taken, most by this address, and another address needed one.
    Displaced,
}

impl Reason {
    /// All of them, in their order, as the log and the figures name them.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::MalformedName, "malformed_name"),
        (Self::UnknownVm, "unknown_vm"),
        (Self::BadToken, "bad_token"),
        (Self::NoGrant, "no_grant"),
        (Self::UserNotAllowed, "user_not_allowed"),
        (Self::TooSlow, "too_slow"),
        (Self::VmFull, "vm_full"),
        (Self::Throttled, "throttled"),
        (Self::Full, "full"),
        (Self::AddressFull, "address_full"),
        (Self::Displaced, "displaced"),
    ];
}

impl From<NoLogin> for Reason {
    fn from(error: NoLogin) -> Self {
        match error {
            NoLogin::UnknownVm => Self::UnknownVm,
            NoLogin::UnknownProof => Self::BadToken,
            NoLogin::NoGrant => Self::NoGrant,
            NoLogin::UserNotAllowed => Self::UserNotAllowed,
        }
    }
}

impl From<NoPlace> for Reason {
    fn from(error: NoPlace) -> Self {
        match error {
            NoPlace::Full => Self::Full,
            NoPlace::AddressFull => Self::AddressFull,
        }
    }
}

/// What showed who it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum By<'a> {
    Token(&'a TokenId),
    Key(&'a SshKeyId),
}

/// What each line of a session says of it, so that none needs another to be read.
#[derive(Debug, Serialize)]
struct Named<'a> {
    session: &'a SshSessionId,
    vm: &'a VmId,
    user: &'a LinuxUser,
    principal: &'a Principal,
    client: IpAddr,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Login {
        at_ms: u64,
        #[serde(flatten)]
        who: Named<'a>,
        by: By<'a>,
    },
    Refused {
        at_ms: u64,
        client: IpAddr,
        reason: Reason,
        #[serde(skip_serializing_if = "Option::is_none")]
        vm: Option<&'a VmId>,
    },
    Channel {
        at_ms: u64,
        #[serde(flatten)]
        who: Named<'a>,
        #[serde(rename = "type")]
        what: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        target: Option<&'a str>,
        opened_by: &'static str,
        received_bytes: u64,
        sent_bytes: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        exit_status: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        exit_signal: Option<&'a str>,
        end: &'static str,
    },
    End {
        at_ms: u64,
        #[serde(flatten)]
        who: Named<'a>,
        seconds: u64,
        received_bytes: u64,
        sent_bytes: u64,
        reason: &'a str,
    },
}

/// Writes the lines. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Audit {
    writer: Writer,
    counts: Arc<Counts>,
}

/// What came of logins, and lines that are not in the log.
#[derive(Debug, Default)]
struct Counts {
    lost: AtomicU64,
    by_token: AtomicU64,
    by_key: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
}

/// A session, as its lines name it.
#[derive(Clone, Debug)]
pub struct Who {
    /// Which one.
    pub session: SshSessionId,
    /// Its login.
    pub login: Login,
    /// From where.
    pub client: IpAddr,
}

impl Who {
    fn named(&self) -> Named<'_> {
        Named {
            session: &self.session,
            vm: self.login.vm(),
            user: self.login.user(),
            principal: self.login.principal(),
            client: self.client,
        }
    }
}

impl Audit {
    /// A log that goes to `writer`.
    #[must_use]
    pub fn new(writer: Writer) -> Self {
        Self { writer, counts: Arc::default() }
    }

    /// Lines for which there was no room, since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::Relaxed)
    }

    /// Logins since the start: what came of them, and how often. Refusals come by their reason, not all of which are of
    /// somebody who tried to log in.
    pub fn logins(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let accepted = [("token", &self.counts.by_token), ("key", &self.counts.by_key)];
        let refused = Reason::ALL.iter().map(|(_, name)| *name).zip(&self.counts.refused);
        accepted.into_iter().chain(refused).map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// Somebody did not get in.
    pub fn refused(&self, client: IpAddr, reason: Reason, vm: Option<&VmId>) {
        self.counts.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.write(&Line::Refused { at_ms: now_ms(), client, reason, vm });
    }

    /// Somebody got in.
    pub fn login(&self, who: &Who) {
        let (by, count) = match who.login.proof() {
            Proof::Token(id) => (By::Token(id), &self.counts.by_token),
            Proof::Key(id) => (By::Key(id), &self.counts.by_key),
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.write(&Line::Login { at_ms: now_ms(), who: who.named(), by });
    }

    /// A channel is over.
    pub fn channel(&self, who: &Who, end: &End) {
        self.write(&Line::Channel {
            at_ms: now_ms(),
            who: who.named(),
            what: &end.what,
            target: end.target.as_deref(),
            opened_by: if end.of_vm { "vm" } else { "client" },
            received_bytes: end.received,
            sent_bytes: end.sent,
            exit_status: end.exit,
            exit_signal: end.signal.as_deref(),
            end: match (end.refused, end.closed) {
                (true, _) => "refused",
                (false, true) => "closed",
                (false, false) => "session_ended",
            },
        });
    }

    /// A session is over.
    pub fn end(&self, who: &Who, seconds: u64, (received_bytes, sent_bytes): (u64, u64), reason: &str) {
        self.write(&Line::End {
            at_ms: now_ms(),
            who: who.named(),
            seconds,
            received_bytes,
            sent_bytes,
            reason,
        });
    }

    fn write(&self, line: &Line<'_>) {
        if !self.writer.write(line) {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_name_reasons_as_the_log_does() {
        for (place, (reason, name)) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
            assert_eq!(serde_json::to_value(reason).expect("JSON"), *name);
        }
    }
}
