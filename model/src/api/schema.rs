//! JSON schemas of the ids and names, which are texts of a known form.

use crate::host::{HostName, MappedName};
use crate::id::{
    AccountId, ApiKeyId, DomainId, Generation, IdentityId, MappingId, PeeringId, RequestId, RuleId,
    ServiceId, SnapshotId, SshKeyId, SshSessionId, TokenId, VerificationId, VmId, VmInstanceId,
    VmPermissionId, VpcId, WireGuardSessionId,
};
use crate::key::PublicKey;
use crate::net::Ipv4Cidr;
use crate::ssh::LinuxUser;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

macro_rules! text {
    ($($name:ident, $pattern:literal;)*) => {$(
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
            fn inline_schema() -> bool {
                true
            }
        }
    )*};
}

text! {
    VmId, "^[a-z0-9]{20}$";
    VmInstanceId, "^in-[a-z0-9]{20}$";
    SnapshotId, "^sc-[a-z0-9]{20}$";
    AccountId, "^ac-[a-z0-9]{20}$";
    ApiKeyId, "^ak-[a-z0-9]{20}$";
    MappingId, "^dm-[a-z0-9]{20}$";
    DomainId, "^do-[a-z0-9]{20}$";
    VerificationId, "^dv-[a-z0-9]{20}$";
    MappedName, "^(\\*\\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?$";
    VpcId, "^vpc-[a-z0-9]{20}$";
    PeeringId, "^pc-[a-z0-9]{20}$";
    RuleId, "^fw-[a-z0-9]{20}$";
    ServiceId, "^sv-[a-z0-9]{20}$";
    WireGuardSessionId, "^wg-[a-z0-9]{20}$";
    IdentityId, "^idn-[a-z0-9]{20}$";
    TokenId, "^tk-[a-z0-9]{20}$";
    SshKeyId, "^sk-[a-z0-9]{20}$";
    VmPermissionId, "^vp-[a-z0-9]{20}$";
    SshSessionId, "^ss-[a-z0-9]{20}$";
    LinuxUser, "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$";
    PublicKey, "^[A-Za-z0-9+/]{43}=$";
    Ipv4Cidr, "^([0-9]{1,3}\\.){3}[0-9]{1,3}/[0-9]{1,2}$";
    RequestId, "^ri-[a-z0-9]{20}$";
    HostName, "^[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?$";
}

impl JsonSchema for Generation {
    fn schema_name() -> Cow<'static, str> {
        "Generation".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        u64::json_schema(generator)
    }
    fn inline_schema() -> bool {
        true
    }
}
