//! `gatehouse api-key`: keys for the API. On the operator's socket alone.

use super::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use clap::Subcommand;
use model::api::Empty;
use model::api::admin::{ApiKeyCreated, ApiKeyList, CreateApiKey};
use model::id::ApiKeyId;

/// What can be done with keys.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key; it is shown this once and stored as a hash
    #[command(after_help = "Example:\n  export FREESTYLE_API_KEY=$(gatehouse api-key create --name laptop)")]
    Create {
        /// What it is for
        #[arg(long)]
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List keys, without their secrets
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a key worthless, from the next request on
    Revoke {
        /// The key's id, from the list
        key: ApiKeyId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl KeyCommand {
    /// Does it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api) -> Result<(), ClientError> {
        let path = ["admin", "v1", "api-keys"];
        match self {
            Self::Create { name, json } => {
                let body = CreateApiKey { name, account_id: None };
                let created: ApiKeyCreated = api.post(&path, &body).await?;
                if json {
                    return print_json(&created);
                }
                print_line(&created.secret)?;
                eprintln!("Key {} of account {}. It is not shown again.", created.id, created.account_id);
                Ok(())
            }
            Self::List { json } => {
                let list: ApiKeyList = api.get(&path, &[]).await?;
                if json { print_json(&list) } else { print(list) }
            }
            Self::Revoke { key, json } => {
                let done: Empty = api.delete(&["admin", "v1", "api-keys", key.as_str()]).await?;
                if json { print_json(&done) } else { print_line(&format!("{key} is worthless now")) }
            }
        }
    }
}

fn print(list: ApiKeyList) -> Result<(), ClientError> {
    let mut table = Table::new(&["ID", "NAME", "ACCOUNT", "MADE", "LAST USED"]);
    for key in list.api_keys {
        table.row([
            key.id.to_string(),
            key.name.unwrap_or_default(),
            key.account_id.to_string(),
            key.created_at,
            key.last_used_at.unwrap_or_else(|| "never".into()),
        ]);
    }
    if table.is_empty() {
        eprintln!("No keys. Next: gatehouse api-key create --name NAME");
        return Ok(());
    }
    print_line(&table.to_string())
}
