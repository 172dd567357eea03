//! `gatehouse certs`: what the certificate authority certifies. On the operator's socket alone.

use super::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use clap::Subcommand;
use model::api::Empty;
use model::api::admin::{CertificateList, CertificateRow, CertificateState};

/// What can be done with certificates.
#[derive(Clone, Debug, Subcommand)]
pub enum CertsCommand {
    /// List the names that are to be certified, how far each is, and what went wrong
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Order a certificate at once, also for a name that has one or that waits after a failure
    #[command(after_help = "Example:\n  gatehouse certs retry shop.example.com")]
    Retry {
        /// A host, or *. before one
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl CertsCommand {
    /// Does it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api) -> Result<(), ClientError> {
        match self {
            Self::List { json } => {
                let list: CertificateList = api.get(&["admin", "v1", "certificates"], &[]).await?;
                if json { print_json(&list) } else { print(list) }
            }
            Self::Retry { name, json } => {
                let path = ["admin", "v1", "certificates", &name, "retry"];
                let row: CertificateRow = api.post(&path, &Empty {}).await?;
                if json {
                    return print_json(&row);
                }
                print_line(&format!("{name} is being ordered; watch it with: gatehouse certs list"))
            }
        }
    }
}

fn print(list: CertificateList) -> Result<(), ClientError> {
    let Some(authority) = list.authority else {
        eprintln!(
            "Nobody certifies names here. Next: gatehouse up --acme-directory letsencrypt --acme-agree-terms"
        );
        return Ok(());
    };
    if list.certificates.is_empty() {
        eprintln!(
            "{authority} has nothing to certify: no domain is mapped that another certificate does not cover."
        );
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "STATE", "ENDS", "RENEWAL", "NEXT TRY", "LAST ERROR"]);
    for row in list.certificates {
        table.row([
            row.name,
            word(row.state).to_owned(),
            row.not_after.unwrap_or_default(),
            row.renew_at.unwrap_or_default(),
            row.next_try_at.unwrap_or_default(),
            row.last_error.unwrap_or_default(),
        ]);
    }
    print_line(&table.to_string())
}

fn word(state: CertificateState) -> &'static str {
    match state {
        CertificateState::Pending => "pending",
        CertificateState::Failed => "failed",
        CertificateState::Issued => "issued",
        CertificateState::RenewalFailed => "renewal failed",
    }
}
