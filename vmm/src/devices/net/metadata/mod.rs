//! What a guest is told at 169.254.169.254: who it is, the SSH keys that may log in, and its user's own text.
//!
//! The NIC takes frames to that address out of the guest's queue ([`super::frame::destination`]) and a small TCP/IP
//! stack in the device's thread answers them ([`Service`]). Nothing of it touches the network: no neighbour can ask
//! for another VM's metadata, and none can answer in our place. So whoever asks is the guest itself, and the tokens of
//! `PUT /latest/api/token` are handed out for the clients that want one (cloud-init) but are not required: they would
//! protect nothing that the guest's own users and their proxies do not reach with a `PUT` as well.
//!
//! [`http`] decides what is answered, [`Service`] keeps the connections and takes time as an argument, [`Responder`]
//! has the clock.

#[cfg(test)]
pub(in crate::devices::net) mod guest;
pub mod http;
mod responder;
mod service;

pub(super) use responder::Responder;
pub use service::{CONNECTIONS, FRAME_MAX, LIFE, REPLIES_MAX, Service};

use model::net::MacAddress;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

/// What one VM is told of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataContent {
    /// The VM's id.
    pub instance_id: String,
    /// Its host name.
    pub hostname: String,
    /// Its address in its network.
    pub ipv4: Ipv4Addr,
    /// Its NIC's address.
    pub mac: MacAddress,
    /// Public keys that may log in, one line of `authorized_keys` each.
    pub ssh_keys: Vec<String>,
    /// Text of the user's own; the caller bounds it.
    pub user_data: Option<String>,
}

/// The content of one NIC's metadata, which may be replaced at any time from any thread, as a fork does. A request is
/// answered wholly from the content that was there when its head was complete.
#[derive(Debug, Default)]
pub struct MetadataStore(Mutex<Option<Arc<MetadataContent>>>);

impl MetadataStore {
    /// A store with content.
    #[must_use]
    pub fn new(content: MetadataContent) -> Self {
        Self(Mutex::new(Some(Arc::new(content))))
    }

    /// From now on this is answered.
    pub fn replace(&self, content: MetadataContent) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(content));
    }

    /// What is answered now; nothing before the first content, when all paths are unknown.
    #[must_use]
    pub fn get(&self) -> Option<Arc<MetadataContent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
