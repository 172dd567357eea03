//! `gatehouse status` and `whoami`.

use super::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use model::api::admin::ControlStatus;
use model::api::auth::WhoAmI;

/// Shows how the house is, as control sees it.
///
/// # Errors
/// See [`ClientError`].
pub async fn status(api: &Api, json: bool) -> Result<(), ClientError> {
    let status: ControlStatus = api.get(&["admin", "v1", "status"], &[]).await?;
    if json {
        return print_json(&status);
    }
    let mut table = Table::new(&["GATEHOUSE", &status.version]);
    table.row(["domain".into(), status.domain.to_string()]);
    table.row(["VM supervisor".into(), if status.supervisor { "connected" } else { "NOT CONNECTED" }.into()]);
    table.row(["VMs".into(), format!("{}, {} run", status.vms, status.running_vms)]);
    let memory = format!("{} of {} MiB promised", status.promised_memory_mib, status.memory_limit_mib);
    table.row(["VM memory".into(), memory]);
    table.row([
        "sleeping memory".into(),
        kept(status.sleeping_memory_mib, status.memory_storage_mib, "on disk"),
    ]);
    table.row(["VM disks".into(), kept(status.promised_disk_mib, status.rootfs_storage_mib, "promised")]);
    table.row(["mappings".into(), status.mappings.to_string()]);
    table.row(["certificates".into(), status.certificates.to_string()]);
    table.row(["decision".into(), status.generation.to_string()]);
    print_line(&table.to_string())
}

/// How much there is of what may have a bound.
fn kept(mib: u64, limit: Option<u64>, what: &str) -> String {
    limit.map_or_else(|| format!("{mib} MiB {what}"), |limit| format!("{mib} of {limit} MiB {what}"))
}

/// Shows as whom the API takes the caller.
///
/// # Errors
/// See [`ClientError`].
pub async fn whoami(api: &Api, json: bool) -> Result<(), ClientError> {
    let who: WhoAmI = api.get(&["auth", "v1", "whoami"], &[]).await?;
    if json { print_json(&who) } else { print_line(who.account_id.as_str()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_shown_where_there_is_one() {
        assert_eq!(kept(512, Some(1024), "promised"), "512 of 1024 MiB promised");
        assert_eq!(kept(512, None, "on disk"), "512 MiB on disk");
    }
}
