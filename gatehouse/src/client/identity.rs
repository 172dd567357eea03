//! `gatehouse identity`: who is not the account, and what they may do.

use super::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use clap::Subcommand;
use model::api::Empty;
use model::api::identity::{
    GrantVm, IdentityList, IdentityRow, TokenCreated, TokenList, VmPermission, VmPermissionList,
};
use model::id::{IdentityId, TokenId, VmId};
use model::ssh::LinuxUser;

/// What can be done with identities.
#[derive(Clone, Debug, Subcommand)]
pub enum IdentityCommand {
    /// Make an identity, which may do nothing yet, and print its id
    #[command(
        after_help = "Example:\n  id=$(gatehouse identity create)\n  gatehouse identity grant $id VM --user dev\n  \
        gatehouse identity token create $id"
    )]
    Create {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List identities
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete an identity with its tokens, keys and grants; what it does is cut
    Delete {
        /// The identity
        identity: IdentityId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// An identity's tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Let an identity act in a VM, as any Linux user or as those that are named; a second time changes that
    #[command(after_help = "Examples:\n  gatehouse identity grant IDENTITY VM\n  \
        gatehouse identity grant IDENTITY VM --user alice --user build")]
    Grant {
        /// The identity
        identity: IdentityId,
        /// The VM
        vm: VmId,
        /// As this Linux user; may be given several times [default: any]
        #[arg(long = "user", short, value_name = "USER")]
        users: Vec<LinuxUser>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a VM back from an identity; what it does there is cut
    Revoke {
        /// The identity
        identity: IdentityId,
        /// The VM
        vm: VmId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the VMs of an identity
    Grants {
        /// The identity
        identity: IdentityId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What can be done with tokens.
#[derive(Clone, Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; it is shown this once and stored as a hash
    #[command(
        after_help = "With it: ssh VM:TOKEN@vm-ssh.DOMAIN, or the header X-Freestyle-Identity-Access-Token."
    )]
    Create {
        /// The identity
        identity: IdentityId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List an identity's tokens, without their secrets
    List {
        /// The identity
        identity: IdentityId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a token worthless; what is done with it is cut
    Delete {
        /// The identity
        identity: IdentityId,
        /// The token's id, from the list
        token: TokenId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Where identities are.
const ALL: [&str; 3] = ["identity", "v1", "identities"];

impl IdentityCommand {
    /// Does it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api) -> Result<(), ClientError> {
        match self {
            Self::Create { json } => {
                let made = create(api).await?;
                if json { print_json(&made) } else { print_line(made.id.as_str()) }
            }
            Self::List { json } => list(api, json).await,
            Self::Delete { identity, json } => {
                let done = delete(api, &identity).await?;
                if json { print_json(&done) } else { print_line(&format!("{identity} is deleted")) }
            }
            Self::Token(command) => command.run(api).await,
            Self::Grant { identity, vm, users, json } => {
                let granted = grant(api, &identity, &vm, &users).await?;
                let as_whom = whom(granted.allowed_users.as_deref());
                if json {
                    print_json(&granted)
                } else {
                    print_line(&format!("{identity} may act in {vm} as {as_whom}"))
                }
            }
            Self::Revoke { identity, vm, json } => {
                let path =
                    ["identity", "v1", "identities", identity.as_str(), "permissions", "vm", vm.as_str()];
                let done: Empty = api.delete(&path).await?;
                if json {
                    print_json(&done)
                } else {
                    print_line(&format!("{identity} may act in {vm} no more"))
                }
            }
            Self::Grants { identity, json } => grants(api, &identity, json).await,
        }
    }
}

impl TokenCommand {
    async fn run(self, api: &Api) -> Result<(), ClientError> {
        match self {
            Self::Create { identity, json } => {
                let made = create_token(api, &identity).await?;
                if json {
                    return print_json(&made);
                }
                print_line(&made.token)?;
                eprintln!("Token {} of {identity}. It is not shown again.", made.id);
                Ok(())
            }
            Self::List { identity, json } => {
                let path = ["identity", "v1", "identities", identity.as_str(), "tokens"];
                let list: TokenList = api.get(&path, &[]).await?;
                if json {
                    return print_json(&list);
                }
                let mut table = Table::new(&["ID"]);
                for token in list.tokens {
                    table.row([token.id.to_string()]);
                }
                shown(&table, "No tokens. Next: gatehouse identity token create IDENTITY")
            }
            Self::Delete { identity, token, json } => {
                let path = ["identity", "v1", "identities", identity.as_str(), "tokens", token.as_str()];
                let done: Empty = api.delete(&path).await?;
                if json { print_json(&done) } else { print_line(&format!("{token} is worthless now")) }
            }
        }
    }
}

/// Makes an identity.
pub(super) async fn create(api: &Api) -> Result<IdentityRow, ClientError> {
    api.post(&ALL, &Empty {}).await
}

/// Deletes an identity.
pub(super) async fn delete(api: &Api, identity: &IdentityId) -> Result<Empty, ClientError> {
    api.delete(&["identity", "v1", "identities", identity.as_str()]).await
}

/// Makes a token.
pub(super) async fn create_token(api: &Api, identity: &IdentityId) -> Result<TokenCreated, ClientError> {
    api.post(&["identity", "v1", "identities", identity.as_str(), "tokens"], &Empty {}).await
}

/// Grants a VM, or changes the grant that is there.
pub(super) async fn grant(
    api: &Api,
    identity: &IdentityId,
    vm: &VmId,
    users: &[LinuxUser],
) -> Result<VmPermission, ClientError> {
    let path = ["identity", "v1", "identities", identity.as_str(), "permissions", "vm", vm.as_str()];
    let names = users.iter().map(LinuxUser::to_string).collect::<Vec<_>>();
    let body = GrantVm { allowed_users: Some(names).filter(|names| !names.is_empty()) };
    match api.post(&path, &body).await {
        Err(ClientError::Refused { code, .. }) if code == "PERMISSION_ALREADY_EXISTS" => {
            api.put(&path, &body).await
        }
        granted => granted,
    }
}

async fn list(api: &Api, json: bool) -> Result<(), ClientError> {
    let list: IdentityList = api.get(&ALL, &[]).await?;
    if json {
        return print_json(&list);
    }
    let mut table = Table::new(&["ID"]);
    for identity in list.identities {
        table.row([identity.id.to_string()]);
    }
    shown(&table, "No identities. Next: gatehouse identity create")
}

async fn grants(api: &Api, identity: &IdentityId, json: bool) -> Result<(), ClientError> {
    let path = ["identity", "v1", "identities", identity.as_str(), "permissions", "vm"];
    let list: VmPermissionList = api.get(&path, &[]).await?;
    if json {
        return print_json(&list);
    }
    let mut table = Table::new(&["VM", "USERS", "SINCE"]);
    for grant in list.permissions {
        table.row([grant.vm_id.to_string(), whom(grant.allowed_users.as_deref()), grant.granted_at]);
    }
    shown(&table, "No VMs. Next: gatehouse identity grant IDENTITY VM")
}

fn whom(users: Option<&[LinuxUser]>) -> String {
    let Some(users) = users else { return "any user".to_owned() };
    users.iter().map(LinuxUser::as_str).collect::<Vec<_>>().join(", ")
}

/// A table, or what to do next when it is empty.
pub(super) fn shown(table: &Table, empty: &str) -> Result<(), ClientError> {
    if table.is_empty() {
        eprintln!("{empty}");
        return Ok(());
    }
    print_line(&table.to_string())
}
