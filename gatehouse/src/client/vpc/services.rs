//! `gatehouse vpc join`, `leave` and `services`: services of this host in VPCs.

use super::address;
use crate::client::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use clap::Args;
use model::api::Empty;
use model::api::service::{CreateService, ServiceCreated, ServiceList, ServiceRow};
use model::id::VpcId;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use thiserror::Error;
use vpc::client::VpcError;

/// Where `ip netns` keeps its namespaces.
const NAMED_NAMESPACES: &str = "/run/netns";
/// The namespace in which this command runs.
const OWN_NAMESPACE: &str = "/proc/self/ns/net";

/// Why a service did not join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The namespace cannot be opened.
    #[error(
        "the network namespace {path} cannot be opened: {source}\nSee which there are: ip netns list, lsns -t net"
    )]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The network process cannot or will not.
    #[error(
        "the service has its address, but did not join: {0}\nJoining is for root on the host of Gatehouse. Try \
             again, or take the address back: gatehouse vpc leave VPC NAME"
    )]
    Join(#[source] VpcError),
}

/// Who joins, and where.
#[derive(Args, Clone, Debug)]
pub struct JoinArgs {
    /// The VPC
    vpc: VpcId,
    /// What members call it: NAME.vpc.internal
    #[arg(long)]
    name: String,
    /// Its address [default: the one that it has, or the next free one]
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where a service lives.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct Place {
    /// A network namespace, by its name (ip netns) or its file
    #[arg(long, value_name = "NAME|PATH")]
    netns: Option<PathBuf>,
    /// The network namespace of a process, for example of a container
    #[arg(long)]
    pid: Option<u32>,
    /// This host itself
    #[arg(long)]
    host: bool,
}

impl Place {
    /// The namespace's file.
    fn path(&self) -> PathBuf {
        match (&self.netns, self.pid) {
            (Some(name), _) if name.components().count() == 1 => Path::new(NAMED_NAMESPACES).join(name),
            (Some(path), _) => path.clone(),
            (None, Some(pid)) => format!("/proc/{pid}/ns/net").into(),
            (None, None) => OWN_NAMESPACE.into(),
        }
    }
}

impl JoinArgs {
    /// Makes the service, or finds it by its name, and has it join.
    pub(super) async fn run(self, api: &Api, socket: &Path) -> Result<(), ClientError> {
        let path = self.place.path();
        // Before anything is made: a wrong word is the usual mistake.
        let namespace = File::open(&path).map_err(|source| JoinError::Namespace { path, source })?;
        let body = CreateService { name: self.name, ipv4: address(self.ip) };
        let made: ServiceCreated = api.post(&["v1", "vpcs", self.vpc.as_str(), "services"], &body).await?;
        vpc::client::join(socket, &made.service_id, made.generation, namespace.as_fd())
            .map_err(JoinError::Join)?;
        if self.json {
            return print_json(&made);
        }
        print_line(&made.ipv4.to_string())?;
        eprintln!("Members reach it as {}.vpc.internal, and it them by their addresses.", made.name);
        Ok(())
    }
}

/// Removes a service.
pub(super) async fn leave(api: &Api, vpc: &VpcId, name: &str, json: bool) -> Result<(), ClientError> {
    let list = all(api, vpc).await?;
    let found = list.services.into_iter().find(|service| service.name.eq_ignore_ascii_case(name));
    let service = found
        .ok_or(ClientError::Usage("the VPC has no service of that name; see: gatehouse vpc services VPC"))?
        .service_id;
    let gone: Empty = api.delete(&["v1", "vpcs", vpc.as_str(), "services", service.as_str()]).await?;
    if json { print_json(&gone) } else { print_line(service.as_str()) }
}

/// Shows the services.
pub(super) async fn list(api: &Api, vpc: &VpcId, json: bool) -> Result<(), ClientError> {
    let list = all(api, vpc).await?;
    if json {
        return print_json(&list);
    }
    if list.services.is_empty() {
        eprintln!("No services. Next, as root: gatehouse vpc join {vpc} --name NAME --netns NAMESPACE");
        return Ok(());
    }
    print_line(&table(list.services).to_string())
}

/// The services as a table.
pub(super) fn table(services: Vec<ServiceRow>) -> Table {
    let mut table = Table::new(&["SERVICE", "NAME", "ADDRESS", "CREATED"]);
    for service in services {
        table.row([
            service.service_id.to_string(),
            service.name,
            service.ipv4.to_string(),
            service.created_at,
        ]);
    }
    table
}

async fn all(api: &Api, vpc: &VpcId) -> Result<ServiceList, ClientError> {
    api.get(&["v1", "vpcs", vpc.as_str(), "services"], &[]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_named_in_three_ways() {
        let place = |netns: Option<&str>, pid| Place { netns: netns.map(PathBuf::from), pid, host: false };
        for (place, path) in [
            (place(Some("db"), None), "/run/netns/db"),
            (place(Some("/proc/7/ns/net"), None), "/proc/7/ns/net"),
            (place(Some("./db"), None), "./db"),
            (place(None, Some(7)), "/proc/7/ns/net"),
            (place(None, None), "/proc/self/ns/net"),
        ] {
            assert_eq!(place.path(), Path::new(path));
        }
    }
}
