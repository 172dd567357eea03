//! Where a network's TUN comes from.

use model::id::VpcId;
use rustix::fd::OwnedFd;
use std::io;
use std::path::PathBuf;
use thiserror::Error;
use vpc::client::VpcError;

/// A TUN cannot be had now.
#[derive(Debug, Error)]
pub enum TunnelError {
    /// vpc does not hand it out.
    #[error("vpc hands out no TUN: {0}")]
    Vpc(#[from] VpcError),
    /// No namespace is named for it.
    #[cfg(feature = "test-parts")]
    #[error("no namespace is named for the network")]
    NoSource,
    /// Its namespace cannot be entered, or the device not made.
    #[error("no TUN in namespace {namespace}: {source}")]
    Namespace {
        /// Which one.
        namespace: String,
        /// Why.
        source: io::Error,
    },
    /// It is no TUN with a header in front of each frame.
    #[error("the TUN of {vpc} cannot be set up: {source}")]
    SetUp {
        /// Of the network.
        vpc: VpcId,
        /// Why.
        source: io::Error,
    },
}

/// Who hands TUNs out: vpc, or a test.
pub trait Tunnels: std::fmt::Debug + Send + Sync + 'static {
    /// A TUN in a network, opened with `IFF_VNET_HDR` and `IFF_NO_PI`, not blocking, held by nobody else. The caller
    /// gives it back by closing it. May block for some seconds.
    ///
    /// # Errors
    /// See [`TunnelError`]; the caller asks again later.
    fn open(&self, vpc: &VpcId) -> Result<OwnedFd, TunnelError>;
}

/// vpc, which is asked at its socket.
#[derive(Clone, Debug)]
pub struct FromVpc(pub PathBuf);

impl Tunnels for FromVpc {
    fn open(&self, vpc: &VpcId) -> Result<OwnedFd, TunnelError> {
        Ok(vpc::client::tun(&self.0, vpc)?)
    }
}

/// A named namespace for each network, in which a TUN of name [`DEVICE`] is made and brought to life by whoever made
/// the namespace.
#[cfg(feature = "test-parts")]
#[derive(Clone, Debug)]
pub struct NamedNamespaces(pub std::collections::HashMap<VpcId, String>);

/// Name of the device in tests' namespaces.
#[cfg(feature = "test-parts")]
pub const DEVICE: &str = "gtun0";

#[cfg(feature = "test-parts")]
impl Tunnels for NamedNamespaces {
    fn open(&self, vpc: &VpcId) -> Result<OwnedFd, TunnelError> {
        let namespace = self.0.get(vpc).ok_or(TunnelError::NoSource)?.clone();
        let inside = namespace.clone();
        let opening = std::thread::spawn(move || {
            let file = std::fs::File::open(format!("/run/netns/{inside}"))?;
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), network)?;
            crate::sys::tun::open(DEVICE)
        });
        let opened = opening.join().unwrap_or_else(|_| Err(io::Error::other("the thread died")));
        opened.map_err(|source| TunnelError::Namespace { namespace, source })
    }
}
