//! `gatehouse domains`: public names that lead to a VM's port.

use super::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use clap::Subcommand;
use model::api::Empty;
use model::api::domain::{CreateMapping, DEFAULT_VM_PORT, Mapping};
use model::host::HostName;
use model::id::VmId;

/// Mappings of one answer; the list is asked for in pieces of this size.
const PAGE: usize = 200;

/// What can be done with names.
#[derive(Clone, Debug, Subcommand)]
pub enum DomainsCommand {
    /// Lead a name to a port of a VM; HTTPS is ended at the door, the VM gets plain HTTP
    #[command(after_help = "Example:\n  gatehouse domains map hello.style.dev --vm VM --port 8000")]
    Map {
        /// The public name
        domain: HostName,
        /// The VM that answers
        #[arg(long, value_name = "ID")]
        vm: VmId,
        /// The TCP port on which it listens, on 0.0.0.0
        #[arg(long, default_value_t = DEFAULT_VM_PORT, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Lead a name nowhere
    Unmap {
        /// The public name
        domain: HostName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List names and where they lead
    Mappings {
        /// Only this name
        #[arg(long)]
        domain: Option<HostName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl DomainsCommand {
    /// Does it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api) -> Result<(), ClientError> {
        match self {
            Self::Map { domain, vm, port, json } => {
                let body = CreateMapping {
                    vm_id: Some(vm.to_string()),
                    vm_port: Some(i64::from(port)),
                    ..CreateMapping::default()
                };
                let mapping: Mapping =
                    api.post(&["domains", "v1", "mappings", domain.as_str()], &body).await?;
                if json {
                    return print_json(&mapping);
                }
                print_line(&format!("https://{} leads to port {port} of {vm}", mapping.domain))
            }
            Self::Unmap { domain, json } => {
                let done: Empty = api.delete(&["domains", "v1", "mappings", domain.as_str()]).await?;
                if json { print_json(&done) } else { print_line(&format!("https://{domain} leads nowhere")) }
            }
            Self::Mappings { domain, json } => list(api, domain, json).await,
        }
    }
}

async fn list(api: &Api, domain: Option<HostName>, json: bool) -> Result<(), ClientError> {
    let mut mappings: Vec<Mapping> = Vec::new();
    loop {
        let mut query = vec![("limit", PAGE.to_string()), ("offset", mappings.len().to_string())];
        query.extend(domain.as_ref().map(|domain| ("domain", domain.to_string())));
        let mut page: Vec<Mapping> = api.get(&["domains", "v1", "mappings"], &query).await?;
        let last = page.len() < PAGE;
        mappings.append(&mut page);
        if last {
            break;
        }
    }
    if json {
        return print_json(&mappings);
    }
    let mut table = Table::new(&["NAME", "VM", "PORT", "SINCE"]);
    for mapping in mappings {
        table.row([
            mapping.domain.to_string(),
            mapping.vm_id.map(|vm| vm.to_string()).unwrap_or_default(),
            mapping.vm_port.map(|port| port.to_string()).unwrap_or_default(),
            mapping.created_at,
        ]);
    }
    if table.is_empty() {
        eprintln!("No names lead anywhere. Next: gatehouse domains map NAME --vm VM --port PORT");
        return Ok(());
    }
    print_line(&table.to_string())
}
