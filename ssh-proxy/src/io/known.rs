//! What the newest view says, in the form in which logins need it.

use feed::subscribe::Feed;
use model::config::SshLimits;
use model::login::SshTable;
use model::ssh::SshView;
use russh::keys::{Algorithm, Certificate, EcdsaCurve, PrivateKey};
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac, server};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// Keys that a client may offer besides its other tries: an agent's are all offered before the token is asked for.
const KEYS_OFFERED: usize = 24;
/// What every refusal takes at least, so that its time does not tell how far a look-up came.
const REFUSAL_TIME: Duration = Duration::from_millis(20);
/// Half of what a peer may send between our wish for new keys and its own, which is how russh bounds it: more than the
/// windows of a few busy channels.
pub const REKEY_BYTES: u32 = 16 << 20;
/// How both legs name this program.
pub const OWN_NAME: &str = "SSH-2.0-Gatehouse";

/// Of one view.
#[derive(Debug)]
pub struct Known {
    /// Who may log in where.
    pub table: SshTable,
    /// russh's settings, with the host keys; none when there is no good key.
    pub server: Option<Arc<server::Config>>,
    /// What certifies logins to VMs.
    pub authority: Option<Arc<PrivateKey>>,
}

impl Known {
    fn of(view: &SshView, limits: &SshLimits) -> Self {
        let table = SshTable::of(view);
        let (mut keys, mut certificates) = (Vec::new(), Vec::new());
        for entry in &view.host_keys {
            match PrivateKey::from_openssh(&entry.key.0) {
                Ok(key) => keys.push(key),
                Err(error) => warn!(%error, "a host key cannot be read"),
            }
            match entry.certificate.as_deref().map(Certificate::from_openssh) {
                Some(Ok(certificate)) => certificates.push(certificate),
                Some(Err(error)) => warn!(%error, "a host certificate cannot be read"),
                None => {}
            }
        }
        let authority = PrivateKey::from_openssh(&view.login_authority.0)
            .inspect_err(|error| warn!(%error, "the key that certifies logins cannot be read"))
            .ok()
            .map(Arc::new);
        let server = (!keys.is_empty())
            .then(|| Arc::new(settings(keys, certificates, methods(table.has_keys()), limits)));
        Self { table, server, authority }
    }
}

/// What clients may try. Keys are not asked for where nobody has registered one: each costs a client a round.
fn methods(with_keys: bool) -> MethodSet {
    let all = [MethodKind::PublicKey, MethodKind::KeyboardInteractive, MethodKind::Password];
    MethodSet::from(if with_keys { &all[..] } else { &all[1..] })
}

fn settings(
    keys: Vec<PrivateKey>,
    certificates: Vec<Certificate>,
    methods: MethodSet,
    limits: &SshLimits,
) -> server::Config {
    server::Config {
        server_id: SshId::Standard(Cow::Borrowed(OWN_NAME)),
        methods,
        auth_rejection_time: REFUSAL_TIME,
        auth_rejection_time_initial: None,
        keys,
        certificates,
        window_size: REKEY_BYTES,
        preferred: front_algorithms(),
        max_auth_attempts: usize::try_from(limits.login_attempts)
            .unwrap_or(usize::MAX)
            .saturating_add(KEYS_OFFERED),
        // The bridge asks for signs of life itself, and the door bounds the time to a login.
        inactivity_timeout: None,
        keepalive_interval: None,
        nodelay: true,
        ..server::Config::default()
    }
}

/// The exchange over NIST's curve is for clients that know neither Curve25519 nor large groups, as JSch of 2016, which
/// lives on in many programs.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
const CIPHERS: &[cipher::Name] = &[
    cipher::CHACHA20_POLY1305,
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::AES_128_CTR,
    cipher::AES_192_CTR,
    cipher::AES_256_CTR,
];
/// To VMs the fastest first: nobody else chooses.
const VM_CIPHERS: &[cipher::Name] =
    &[cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305, cipher::AES_128_CTR];
/// The last two for clients of before 2012, which know no other.
const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512];

fn front_algorithms() -> Preferred {
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Borrowed(&[Algorithm::Ed25519, Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }]),
        cipher: Cow::Borrowed(CIPHERS),
        mac: Cow::Borrowed(MACS),
        // Compressing costs more time than most networks do, and what is compressed can be guessed at.
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}

/// What is offered to VMs.
#[must_use]
pub fn vm_algorithms() -> Preferred {
    Preferred { cipher: Cow::Borrowed(VM_CIPHERS), ..front_algorithms() }
}

/// Follows the feed for ever, and tells of each view.
pub async fn follow(feed: Feed<SshView>, limits: SshLimits, known: watch::Sender<Arc<Known>>) {
    let mut changes = feed.changes();
    loop {
        changes.borrow_and_update();
        if let Some(view) = feed.current() {
            let of = Known::of(&view, &limits);
            known.send_replace(Arc::new(of));
            info!(generation = ?view.generation, "a view is in force");
        }
        // The feed holds the sender.
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Before the first view nobody may log in.
#[must_use]
pub fn nothing() -> watch::Sender<Arc<Known>> {
    watch::Sender::new(Arc::new(Known { table: SshTable::default(), server: None, authority: None }))
}
