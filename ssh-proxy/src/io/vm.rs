//! The leg to a VM's own sshd: dialled through vpc, with a key made for this login alone.

use crate::io::door::Front;
use crate::io::known::{OWN_NAME, REKEY_BYTES, vm_algorithms};
use crate::io::leg::Leg;
use crate::io::login::line;
use model::id::{SshSessionId, VmId, VmInstanceId};
use model::login::{Login, NoLogin};
use model::ssh::SshVmState;
use rand::RngCore;
use russh::client::{self, AuthResult};
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{Certificate, PrivateKey, PublicKeyOrCertificate, ssh_key};
use russh::{Relay, RelayEnd, SshId};
use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};
use vmm::client::VmmClient;
use vpc::client::{Refusal, VpcError};

/// Longest that a login waits for a stopped VM to start: a boot of a large image, and its sshd's.
const START_WAIT: Duration = Duration::from_secs(180);
/// Longest that it waits for sshd to listen, where the VM was up: less than a login would take patience.
const LISTEN_WAIT: Duration = Duration::from_secs(60);
/// Between tries to reach an sshd that does not listen yet: the guest tells of no event.
const DIAL_AGAIN: Duration = Duration::from_millis(200);
/// Longest that its host keys are asked for again: the supervisor of the VMs is back within a second or two.
const KEYS_WAIT: Duration = Duration::from_secs(10);
/// Longest that the exchange with sshd may take: as long as sshd itself gives a login (sshd_config(5), LoginGraceTime), so
/// that a guest under load is not given up while its sshd still works on the answer.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(120);
/// How long a certificate holds. sshd looks at it only at the login; a day covers any clock of a guest.
const VALID: Duration = Duration::from_secs(86_400);
/// The same before the login.
const VALID_BEFORE: Duration = Duration::from_secs(86_400);
/// Packets that wait between the leg and the bridge, of 32 KiB at most.
pub const QUEUE: usize = 16;
/// Bytes of a nonce (PROTOCOL.certkeys).
const NONCE_BYTES: usize = 32;
/// What a certificate allows: all that the front bridges. X11 is not among it.
const EXTENSIONS: [&str; 4] =
    ["permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"];

/// What asks a VM's agent for the host keys of its sshd.
pub trait HostKeys: Send + Sync + std::fmt::Debug {
    /// The keys, each as type and base64.
    fn host_keys<'a>(
        &'a self,
        vm: &'a VmId,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, HostKeysError>> + Send + 'a>>;
}

/// Why they are not known.
#[derive(Debug, Error)]
#[error("the VM's host keys cannot be asked for: {0}")]
pub struct HostKeysError(pub String);

/// Why there is no leg. What it says goes to the client, who has logged in.
#[derive(Debug, Error)]
pub enum VmError {
    /// The login is gone.
    #[error("access to the VM was withdrawn ({0})")]
    Lost(#[from] NoLogin),
    /// It did not start.
    #[error("the VM did not start within {START_WAIT:?}; look at it, then connect again")]
    NotStarted,
    /// Nothing listens.
    #[error("the VM does not accept SSH connections: {0}")]
    Dial(#[from] VpcError),
    /// The agent does not say.
    #[error(transparent)]
    HostKeys(#[from] HostKeysError),
    /// It has another key than its agent says.
    #[error("the VM's SSH host key is not the one that its agent told; nothing was sent to it")]
    OtherKey,
    /// The exchange failed.
    #[error("the VM's sshd cannot be talked to: {0}")]
    Handshake(#[source] russh::Error),
    /// It took too long.
    #[error("the VM's sshd did not answer within {HANDSHAKE_WAIT:?}")]
    Silent,
    /// The user is not there, or sshd does not take the house's certificates.
    #[error("the VM's sshd refuses the user {0}: does that account exist, with a login shell?")]
    Refused(model::ssh::LinuxUser),
    /// There is no key to certify logins with.
    #[error("this front has no key to certify logins with yet; try again")]
    NoAuthority,
    /// The certificate cannot be made.
    #[error("a login cannot be certified: {0}")]
    Certificate(#[source] ssh_key::Error),
}

/// A leg that is logged in.
pub struct VmLeg {
    end: Option<RelayEnd>,
    /// To cut it.
    pub leg: Leg,
    /// The boot of the VM that it leads to.
    pub instance: VmInstanceId,
    /// Its session ends when this goes.
    _handle: client::Handle<Guest>,
}

impl VmLeg {
    /// Its packets, once.
    pub fn take_end(&mut self) -> Option<RelayEnd> {
        self.end.take()
    }
}

impl Drop for VmLeg {
    fn drop(&mut self) {
        self.leg.cut();
    }
}

/// What russh asks of a client's program.
struct Guest {
    keys: Vec<String>,
    other_key: Arc<std::sync::atomic::AtomicBool>,
    relay: Option<Relay>,
}

impl client::Handler for Guest {
    type Error = russh::Error;

    fn relay(&mut self) -> Option<Relay> {
        self.relay.take()
    }

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let good = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                line(key).is_some_and(|key| self.keys.contains(&key))
            }
            // None are asked for.
            PublicKeyOrCertificate::Certificate(_) => false,
        };
        if !good {
            self.other_key.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(good)
    }
}

/// Waits until the VM is there, and logs in.
///
/// # Errors
/// See [`VmError`].
pub async fn reach(front: Arc<Front>, login: Login, session: SshSessionId) -> Result<VmLeg, VmError> {
    let (begun, state) = (Instant::now(), login.state());
    let reached = reach_now(&front, login, session).await;
    front.reached.note(state, reached.is_ok(), begun.elapsed());
    reached
}

async fn reach_now(front: &Arc<Front>, login: Login, session: SshSessionId) -> Result<VmLeg, VmError> {
    let begun = Instant::now();
    let (login, boots) = started(front, login, begun + START_WAIT).await?;
    // Up is not booted: a VM that starts for this login has all of the time that a start has.
    let until = if boots { begun + START_WAIT } else { Instant::now() + LISTEN_WAIT };
    let leg = dial(front, &login, until).await?;
    let guard = Cut(Some(leg.clone()));
    let keys = host_keys(front, login.vm()).await?;
    let until = Instant::now() + HANDSHAKE_WAIT;
    let reached = timeout_at(until, handshake(front, &login, &session, leg, keys)).await;
    let reached = reached.map_err(|_| VmError::Silent)??;
    guard.keep();
    Ok(reached)
}

/// Cuts a leg whose making is given up, so that its task ends.
struct Cut(Option<Leg>);

impl Cut {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Some(leg) = &self.0 {
            leg.cut();
        }
    }
}

/// The login as it is once the VM is up, and whether that was waited for.
async fn started(front: &Front, login: Login, until: Instant) -> Result<(Login, bool), VmError> {
    let mut changes = front.changes();
    let mut wish = None;
    loop {
        let now = changes.borrow_and_update().table.again(&login)?;
        if now.state() != SshVmState::Down {
            return Ok((now, wish.is_some()));
        }
        wish.get_or_insert_with(|| front.sessions.wish(now.vm()));
        if timeout_at(until, changes.changed()).await.is_err() {
            return Err(VmError::NotStarted);
        }
    }
}

async fn dial(front: &Front, login: &Login, until: Instant) -> Result<Leg, VmError> {
    loop {
        match front.vpc.dial(login.permit()).await {
            Ok(stream) => return Ok(Leg::new(stream)),
            Err(error) if comes_yet(&error) && Instant::now() < until => {
                tokio::time::sleep(DIAL_AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether this is what a VM that boots is like, or a process of the house that is started anew.
fn comes_yet(error: &VpcError) -> bool {
    use Refusal::{Busy, ConnectionRefused, TimedOut, UnknownVm};
    match error {
        VpcError::Refused { reason, .. } => {
            matches!(reason, ConnectionRefused | UnknownVm | TimedOut | Busy)
        }
        VpcError::Unreachable(_) | VpcError::NoAnswer => true,
        VpcError::Unexpected | VpcError::Socket(_) => false,
    }
}

/// Asks again while the supervisor of the VMs may be starting anew.
async fn host_keys(front: &Front, vm: &VmId) -> Result<Vec<String>, HostKeysError> {
    let until = Instant::now() + KEYS_WAIT;
    loop {
        match front.host_keys.host_keys(vm).await {
            Err(_) if Instant::now() < until => tokio::time::sleep(DIAL_AGAIN).await,
            told => return told,
        }
    }
}

async fn handshake(
    front: &Front,
    login: &Login,
    session: &SshSessionId,
    leg: Leg,
    keys: Vec<String>,
) -> Result<VmLeg, VmError> {
    let (relay, end) = russh::relay(QUEUE);
    let other_key = Arc::<std::sync::atomic::AtomicBool>::default();
    let guest = Guest { keys, other_key: Arc::clone(&other_key), relay: Some(relay) };
    let connected = client::connect_stream(Arc::clone(&front.vm_settings), leg.clone(), guest).await;
    let mut handle = connected.map_err(|error| {
        if other_key.load(std::sync::atomic::Ordering::Relaxed) {
            VmError::OtherKey
        } else {
            VmError::Handshake(error)
        }
    })?;
    let (key, certificate) = certified(front, login, session)?;
    let answer = handle.authenticate_openssh_cert(login.user().as_str(), Arc::new(key), certificate).await;
    match answer.map_err(VmError::Handshake)? {
        AuthResult::Success => {
            Ok(VmLeg { end: Some(end), leg, instance: login.instance().clone(), _handle: handle })
        }
        AuthResult::Failure { .. } => Err(VmError::Refused(login.user().clone())),
    }
}

/// A key for this login alone, and the house's word that it may log in as this user.
fn certified(
    front: &Front,
    login: &Login,
    session: &SshSessionId,
) -> Result<(PrivateKey, Certificate), VmError> {
    let authority = front.known().authority.clone().ok_or(VmError::NoAuthority)?;
    let (mut seed, mut nonce) = (zeroize::Zeroizing::new([0; 32]), [0; NONCE_BYTES]);
    rand::rng().fill_bytes(seed.as_mut());
    rand::rng().fill_bytes(&mut nonce);
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let certificate = certify(&authority, &key, login, session, nonce, now).map_err(VmError::Certificate)?;
    Ok((key, certificate))
}

fn certify(
    authority: &PrivateKey,
    key: &PrivateKey,
    login: &Login,
    session: &SshSessionId,
    nonce: [u8; NONCE_BYTES],
    now: Duration,
) -> Result<Certificate, ssh_key::Error> {
    let (from, until) = (now.saturating_sub(VALID_BEFORE), now + VALID);
    let mut builder =
        Builder::new(nonce, key.public_key().key_data().clone(), from.as_secs(), until.as_secs())?;
    builder.cert_type(CertType::User)?;
    builder.key_id(session.as_str())?;
    builder.valid_principal(login.user().as_str())?;
    for extension in EXTENSIONS {
        builder.extension(extension, "")?;
    }
    builder.sign(authority)
}

/// russh's settings of all legs to VMs. No signs of life are asked for: they would keep the VM awake.
#[must_use]
pub fn settings() -> client::Config {
    client::Config {
        client_id: SshId::Standard(Cow::Borrowed(OWN_NAME)),
        preferred: vm_algorithms(),
        window_size: REKEY_BYTES,
        inactivity_timeout: None,
        keepalive_interval: None,
        ..client::Config::default()
    }
}

/// The supervisor of the VMs asks their agents.
impl HostKeys for VmmClient {
    fn host_keys<'a>(
        &'a self,
        vm: &'a VmId,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, HostKeysError>> + Send + 'a>> {
        Box::pin(async { Self::host_keys(self, vm).await.map_err(|error| HostKeysError(error.to_string())) })
    }
}

/// The same host keys for all VMs, of a file.
#[cfg(feature = "test-parts")]
#[derive(Debug)]
pub struct FromFile(pub std::path::PathBuf);

#[cfg(feature = "test-parts")]
impl HostKeys for FromFile {
    fn host_keys<'a>(
        &'a self,
        _: &'a VmId,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, HostKeysError>> + Send + 'a>> {
        Box::pin(async {
            let text =
                tokio::fs::read_to_string(&self.0).await.map_err(|error| HostKeysError(error.to_string()))?;
            Ok(text.lines().map(str::to_owned).collect())
        })
    }
}
