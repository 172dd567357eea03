//! `gatehouse vm list` and `vm get`.

use crate::client::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use clap::Args;
use model::api::vm::{DeleteEvent, Persistence, Sizing, VmInfo, VmList, VmRow, VmState};
use model::id::VmId;

/// VMs of one answer; the list is asked for in pieces of this size.
const PAGE: usize = 200;
/// What the API takes when no priority was said.
const DEFAULT_PRIORITY: u8 = 5;

/// Which VMs to list.
#[derive(Args, Clone, Debug, Default)]
pub struct ListArgs {
    /// Only those in this state: building, starting, running, suspending, suspended, stopped, lost
    #[arg(long, value_parser = state)]
    state: Option<VmState>,
    /// Only those with this text in their id or name
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ListArgs {
    pub(super) async fn run(self, api: &Api) -> Result<(), ClientError> {
        let list = all(api, &self).await?;
        if self.json {
            return print_json(&list);
        }
        if list.vms.is_empty() {
            let next = if list.total_count == 0 { "gatehouse vm create" } else { "gatehouse vm list" };
            eprintln!("No VMs. Next: {next}");
            return Ok(());
        }
        print_line(&table(list.vms).to_string())
    }
}

/// The account's VMs.
pub(super) async fn all(api: &Api, which: &ListArgs) -> Result<VmList, ClientError> {
    let mut rows: Vec<VmRow> = Vec::new();
    loop {
        let mut query = vec![("limit", PAGE.to_string()), ("offset", rows.len().to_string())];
        query.extend(which.state.map(|state| ("vmState", state.to_string())));
        query.extend(which.search.clone().map(|text| ("search", text)));
        let mut page: VmList = api.get(&["v1", "vms"], &query).await?;
        let last = page.vms.len() < PAGE;
        rows.append(&mut page.vms);
        if last {
            return Ok(VmList { vms: rows, ..page });
        }
    }
}

/// Shows one VM.
pub(super) async fn get(api: &Api, vm: &VmId, json: bool) -> Result<(), ClientError> {
    let info: VmInfo = api.get(&["v1", "vms", vm.as_str()], &[]).await?;
    if json { print_json(&info) } else { print_line(&card(info).to_string()) }
}

fn table(vms: Vec<VmRow>) -> Table {
    let mut table = Table::new(&["ID", "NAME", "STATE", "SIZE", "CREATED"]);
    for vm in vms {
        table.row([
            vm.id.to_string(),
            vm.name.unwrap_or_default(),
            vm.state.to_string(),
            sizing(vm.sizing),
            vm.created_at.unwrap_or_default(),
        ]);
    }
    table
}

fn card(info: VmInfo) -> Table {
    let mut table = Table::new(&["ID", info.id.as_str()]);
    let mut row = |word: &str, text: String| table.row([word.to_owned(), text]);
    row("NAME", info.name.unwrap_or_default());
    row("STATE", info.state.to_string());
    row("INSTANCE", info.vm_instance_id.map(|id| id.to_string()).unwrap_or_default());
    if let Some(sizing) = info.sizing {
        row("CPUS", sizing.vcpu_count.to_string());
        row("MEMORY", size(sizing.mem_size_mib));
        row("DISK", size(sizing.rootfs_size_mb));
    }
    row("CREATED", info.created_at.unwrap_or_default());
    row(
        "SUSPENDED",
        info.idle_timeout_seconds.map_or("never".into(), |seconds| format!("after {seconds} s idle")),
    );
    if let Some(persistence) = &info.persistence {
        row("KEPT", kept(persistence));
    }
    row("NETWORK", info.vpc.map_or_else(|| "default".into(), |vpc| vpc.to_string()));
    row("ADDRESS", info.ipv4.map(|ipv4| ipv4.to_string()).unwrap_or_default());
    for domain in &info.domains {
        row("NAME OUTSIDE", format!("https://{domain}"));
    }
    if let Some(status) = info.exit_status {
        row("LAST END", status);
    }
    table
}

/// A size in a line.
pub(in crate::client) fn sizing(sizing: Sizing) -> String {
    let (memory, disk) = (size(sizing.mem_size_mib), size(sizing.rootfs_size_mb));
    format!("{} CPU, {memory}, {disk} disk", sizing.vcpu_count)
}

/// What becomes of something that nobody uses, in a few words.
pub(in crate::client) fn kept(persistence: &Persistence) -> String {
    match persistence {
        Persistence::Sticky { priority } => {
            format!("sticky, priority {}", priority.unwrap_or(DEFAULT_PRIORITY))
        }
        Persistence::Persistent => "persistent".into(),
        Persistence::Ephemeral { delete_event: None } => "ephemeral, until it stops or sleeps".into(),
        Persistence::Ephemeral { delete_event: Some(DeleteEvent::OnStop) } => {
            "ephemeral, until it stops".into()
        }
        Persistence::Ephemeral { delete_event: Some(DeleteEvent::OnSuspend) } => {
            "ephemeral, until it sleeps".into()
        }
    }
}

fn size(mib: u32) -> String {
    if mib.is_multiple_of(1024) { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
}

fn state(text: &str) -> Result<VmState, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| "one of building, starting, running, suspending, suspended, stopped, lost".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZING: Sizing = Sizing { vcpu_count: 2, mem_size_mib: 512, rootfs_size_mb: 4096 };

    fn info() -> VmInfo {
        VmInfo {
            id: VmId::from_random([1; 20]),
            name: Some("web".into()),
            recreate: false,
            vm_instance_id: None,
            state: VmState::Suspended,
            created_at: Some("2026-01-01T00:00:00Z".into()),
            idle_timeout_seconds: Some(60),
            persistence: Some(Persistence::default()),
            sizing: Some(SIZING),
            vpc: None,
            ipv4: Some(std::net::Ipv4Addr::new(10, 201, 0, 7)),
            domains: vec!["web.style.dev".parse().expect("name")],
            exit_status: None,
        }
    }

    #[test]
    fn a_vm_is_a_line_of_the_list() {
        let info = info();
        let row = VmRow {
            id: info.id.clone(),
            name: info.name,
            state: info.state,
            created_at: info.created_at,
            persistence: info.persistence,
            snapshot_id: None,
            deleted: false,
            sizing: SIZING,
        };
        let text = table(vec![row]).to_string();
        let line = text.lines().nth(1).expect("a line");
        let cells: Vec<_> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let size = "2 CPU, 512 MiB, 4 GiB disk";
        assert_eq!(cells, [info.id.as_str(), "web", "suspended", size, "2026-01-01T00:00:00Z"]);
    }

    #[test]
    fn one_vm_tells_when_it_sleeps_and_what_becomes_of_it() {
        let text = card(info()).to_string();
        for part in
            ["after 60 s idle", "sticky, priority 5", "https://web.style.dev", "suspended", "10.201.0.7"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("LAST END"), "{text}");
        let awake = VmInfo { idle_timeout_seconds: None, exit_status: Some("killed".into()), ..info() };
        let text = card(awake).to_string();
        assert!(text.contains("never") && text.contains("killed"), "{text}");
    }

    #[test]
    fn each_way_of_keeping_has_its_words() {
        let all = [
            Persistence::default(),
            Persistence::Persistent,
            Persistence::Ephemeral { delete_event: None },
            Persistence::Ephemeral { delete_event: Some(DeleteEvent::OnStop) },
            Persistence::Ephemeral { delete_event: Some(DeleteEvent::OnSuspend) },
        ];
        let words: std::collections::BTreeSet<_> = all.iter().map(kept).collect();
        assert_eq!(words.len(), all.len());
    }
}
