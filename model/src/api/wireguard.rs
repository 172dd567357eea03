//! WireGuard into a VPC. `ephemeral` and `peers` are the contract's; the list goes beyond it.

use crate::id::{VmId, VpcId, WireGuardSessionId};
use crate::key::PublicKey;
use crate::net::Ipv4Cidr;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Answer of `POST /v1/vpcs/{vpc_id}/wireguard/ephemeral`. It has secrets: they are shown here alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct EphemeralCreated {
    /// The VPC that it leads into.
    pub vpc_id: VpcId,
    /// The session; whoever knows it and has a key of the account can close it.
    pub session_id: WireGuardSessionId,
    /// Where clients reach the door.
    pub endpoint_host: Option<String>,
    /// Its UDP port.
    pub endpoint_port: u16,
    /// The same: the door has one port for all.
    pub listen_port: u16,
    /// What the tunnel may be called at the client.
    pub interface_name: String,
    /// The door's key.
    pub server_public_key: PublicKey,
    /// The client's key.
    pub client_public_key: PublicKey,
    /// The client's secret, base64. It is kept nowhere else.
    pub client_private_key: Option<String>,
    /// The door's address in the tunnel.
    pub server_tunnel_ip: Ipv4Addr,
    /// The client's address in the tunnel.
    pub client_tunnel_ip: Ipv4Addr,
    /// Under which address members of the VPC see the client.
    pub vpc_ip: Ipv4Addr,
    /// Where the client may send to.
    pub client_allowed_ips: Vec<Ipv4Cidr>,
    /// The VPC's range.
    pub vpc_cidr: Ipv4Cidr,
    /// A file for `wg-quick`, as it is.
    pub client_config: String,
    /// When it ends in any case, RFC 3339.
    pub expires_at: String,
}

impl std::fmt::Debug for EphemeralCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EphemeralCreated").field("session_id", &self.session_id).finish_non_exhaustive()
    }
}

/// `DELETE /v1/vpcs/{vpc_id}/wireguard/ephemeral`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CloseSession {
    /// The session.
    pub session_id: String,
}

/// `POST /v1/vpcs/{vpc_id}/wireguard/peers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreatePeer {
    /// A member of the VPC; the session ends when it leaves the VPC.
    pub gateway_vm_id: String,
    /// The client's key, base64. Its secret stays with the client.
    pub client_public_key: String,
}

/// Its answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PeerCreated {
    /// The VPC that it leads into.
    pub vpc_id: VpcId,
    /// The member with which it ends.
    pub gateway_vm_id: VmId,
    /// The session.
    pub session_id: WireGuardSessionId,
    /// Where clients reach the door.
    pub endpoint_host: Option<String>,
    /// Its UDP port.
    pub endpoint_port: u16,
    /// The same.
    pub listen_port: u16,
    /// What the tunnel may be called at the client.
    pub interface_name: String,
    /// The door's key.
    pub server_public_key: PublicKey,
    /// The door's address in the tunnel.
    pub server_tunnel_ip: Ipv4Addr,
    /// The client's address in the tunnel.
    pub client_tunnel_ip: Ipv4Addr,
    /// The VPC's range.
    pub vpc_cidr: Ipv4Cidr,
    /// A file for `wg-quick` that lacks the client's secret alone.
    pub client_config: String,
    /// When it ends in any case, RFC 3339.
    pub expires_at: String,
}

impl std::fmt::Debug for PeerCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerCreated").field("session_id", &self.session_id).finish_non_exhaustive()
    }
}

/// `GET /v1/vpcs/{vpc_id}/wireguard/sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SessionList {
    /// The oldest first.
    pub sessions: Vec<SessionRow>,
}

/// A session in the list, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SessionRow {
    /// Its id.
    pub session_id: WireGuardSessionId,
    /// The client's key.
    pub client_public_key: PublicKey,
    /// The client's address in the tunnel.
    pub client_tunnel_ip: Ipv4Addr,
    /// The member with which it ends, if there is one.
    pub gateway_vm_id: Option<VmId>,
    /// RFC 3339.
    pub created_at: String,
    /// When it ends in any case, RFC 3339.
    pub expires_at: String,
    /// What its client is doing; null when the WireGuard front does not say.
    pub state: Option<SessionActivity>,
    /// Where its client was last, while it is connected.
    pub endpoint: Option<String>,
    /// Seconds since its client was heard of.
    pub silent_seconds: Option<u64>,
    /// Bytes from its client since it came last.
    pub received_bytes: Option<u64>,
    /// Bytes to it.
    pub sent_bytes: Option<u64>,
}

/// What a session's client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SessionActivity {
    /// It was not there yet, or not for some minutes.
    Away,
    /// It has a tunnel.
    Connected,
    /// It was silent for too long: the session ends.
    Ending,
}
