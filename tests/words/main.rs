//! The command line as a program against control as it is. The supervisor and the guests' agents are played, as in
//! control's own tests.

#[path = "../../control/src/tests/world.rs"]
#[allow(dead_code, reason = "control's tests ask more of it")]
mod world;

mod certificates;
mod identity;
mod pebble;
mod private;

use control::Control;
use control::vms::FailPoints;
use model::config::{ControlConfig, Places, SshDoor, VmLimits, VmSize, VpnDoor};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::timeout;
use vmm::client::{IdleWatch, Origin, Refusal};
use world::World;

/// No command takes longer unless something is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a connection that would lead elsewhere.
const FOREIGN: [&str; 4] = ["GATEHOUSE_URL", "GATEHOUSE_API_KEY", "GATEHOUSE_CA", "GATEHOUSE_RUN_DIR"];

/// What a command left.
#[derive(Debug)]
struct Done {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Control with its world, and words for it.
struct Bench {
    world: World,
    folder: tempfile::TempDir,
    config: ControlConfig,
    /// Control's own, so that it can die alone.
    control: Option<Runtime>,
}

impl Bench {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With other settings.
    async fn with(change: impl FnOnce(&mut ControlConfig)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let mut config = config(folder.path());
        change(&mut config);
        let world = World::start(&config.places.vmm_socket());
        let control = Some(started(&config).await);
        Self { world, folder, config, control }
    }

    /// Control dies wherever it is, and starts again.
    async fn restart(&mut self) {
        let control = self.control.take().expect("control runs");
        tokio::task::spawn_blocking(move || control.shutdown_timeout(PATIENCE)).await.expect("it is dead");
        self.control = Some(started(&self.config).await);
    }

    /// Runs `gatehouse` with these words.
    async fn run(&self, words: &[&str]) -> Done {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatehouse-under-test"));
        command.arg("--run-dir").arg(self.folder.path().join("run")).args(words);
        for name in FOREIGN {
            command.env_remove(name);
        }
        let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = timeout(PATIENCE, running).await.expect("it ends").expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Done { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// What a command that goes well prints.
    async fn good(&self, words: &[&str]) -> String {
        let done = self.run(words).await;
        assert_eq!(done.status, Some(0), "{words:?}: {done:?}");
        done.stdout.trim_end().to_owned()
    }

    async fn json(&self, words: &[&str]) -> Value {
        let text = self.good(&[words, &["--json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
    }

    /// What a command says that comes to nothing. It prints nothing for programs.
    async fn refused(&self, words: &[&str]) -> String {
        let done = self.run(words).await;
        assert_eq!((done.status, done.stdout.as_str()), (Some(1), ""), "{words:?}: {done:?}");
        done.stderr
    }

    async fn state(&self, vm: &str) -> String {
        self.json(&["vm", "get", vm]).await["state"].as_str().expect("a state").to_owned()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            control.shutdown_background();
        }
    }
}

async fn started(config: &ControlConfig) -> Runtime {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let (config, (stop, stopping)) = (config.clone(), watch::channel(false));
    let started = runtime.spawn(async move {
        let control = Control::start(config, FailPoints::default()).await.expect("start");
        tokio::spawn(async move {
            control.serve(stopping).await;
            drop(stop);
        });
    });
    started.await.expect("control starts");
    runtime
}

fn config(folder: &Path) -> ControlConfig {
    let places = Places { data: folder.join("data"), run: folder.join("run") };
    std::fs::create_dir_all(&places.run).expect("run");
    ControlConfig {
        places,
        domain: "style.dev".parse().expect("domain"),
        default_network: "10.201.0.0/24".parse().expect("network"),
        api_listen: None,
        default_image: "debian".to_owned(),
        default_size: VmSize { vcpus: 1, memory_mib: 256, disk_mib: 1024 },
        limits: VmLimits {
            largest: VmSize { vcpus: 4, memory_mib: 2048, disk_mib: 4096 },
            vms_per_account: 8,
            memory_mib: 4096,
            memory_storage_mib: None,
            rootfs_storage_mib: None,
            kept_vms: 8,
            snapshots_per_account: 2,
        },
        edge_gid: None,
        vpn: VpnDoor::default(),
        vpn_gid: None,
        ssh: SshDoor::default(),
        ssh_gid: None,
        acme: None,
        domains: model::config::DomainProof::default(),
        metrics_listen: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_sleeps_wakes_and_ends() {
    let bench = Bench::new().await;
    let words = "vm create --name web --vcpus 2 --memory 512 --disk 2G --idle-timeout 60 --activity-threshold 2000 \
                 --persistence sticky --priority 7";
    let words: Vec<_> = words.split_whitespace().collect();
    let vm = bench.good(&words).await;
    let spec = bench.world.state().launched.last().expect("launched").clone();
    assert_eq!((spec.vm.as_str(), spec.vcpus, spec.memory_mib, spec.disk_mib), (vm.as_str(), 2, 512, 2048));
    assert_eq!(spec.idle, Some(IdleWatch { seconds: 60, threshold_bytes: 2000 }));
    let card = bench.good(&["vm", "get", &vm]).await;
    for part in ["web", "running", "512 MiB", "2 GiB", "after 60 s idle", "sticky, priority 7"] {
        assert!(card.contains(part), "{part}: {card}");
    }

    assert_eq!(bench.good(&["vm", "suspend", &vm]).await, vm);
    let list = bench.good(&["vm", "list", "--state", "suspended", "--search", "web"]).await;
    assert!(list.contains(&vm) && list.contains("2 CPU, 512 MiB, 2 GiB disk"), "{list}");
    let asleep = bench.json(&["vm", "suspend", &vm]).await;
    assert_eq!(asleep[0]["id"], json!(vm), "it sleeps already");
    assert_eq!(bench.good(&["vm", "start", &vm, "--idle-timeout", "never"]).await, vm);
    assert_eq!(bench.world.state().launched.last().expect("launched").origin, Origin::Suspended);
    let info = bench.json(&["vm", "get", &vm]).await;
    assert_eq!((&info["state"], &info["idleTimeoutSeconds"]), (&json!("running"), &Value::Null));
    assert_eq!(bench.json(&["vm", "optimize", &vm]).await[0]["id"], json!(vm));

    let late = bench.run(&["vm", "await", &vm, "--timeout", "0"]).await;
    assert_eq!((late.status, late.stdout.as_str()), (Some(124), ""), "{late:?}");
    let (words, kill) = (["vm", "await", &vm], ["vm", "kill", &vm]);
    let (end, killed) = tokio::join!(bench.good(&words), bench.good(&kill));
    assert_eq!((end.as_str(), killed.as_str()), ("killed", vm.as_str()));
    assert_eq!(bench.json(&words).await, json!({"id": vm, "exitStatus": "killed"}));
    let error = bench.refused(&["vm", "suspend", &vm]).await;
    assert!(error.contains("VM_NOT_RUNNING") && error.contains("gatehouse vm start"), "{error}");
    assert_eq!(bench.good(&["vm", "delete", &vm]).await, vm);
    let nobody = bench.run(&["vm", "list"]).await;
    assert!(nobody.stdout.is_empty() && nobody.stderr.contains("gatehouse vm create"), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_are_shown_for_people_programs_and_prometheus() {
    let bench = Bench::new().await;
    bench.good(&["vm", "create"]).await;
    let all = bench.good(&["metrics"]).await;
    assert!(all.starts_with("FIGURE") && all.contains("gatehouse_control_request_seconds"), "{all}");
    let some = bench.good(&["metrics", "gatehouse_control_vm"]).await;
    let rows: Vec<Vec<_>> = some.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.contains(&vec!["gatehouse_control_vms", "state=running", "1"]), "{some}");
    assert!(!some.contains("gatehouse_control_request"), "{some}");
    let json = bench.json(&["metrics", "gatehouse_control_vms"]).await;
    let running = &json["families"][0]["samples"]["gauge"][3];
    assert_eq!(*running, json!({"labels": {"state": "running"}, "value": 1}));
    let text = bench.good(&["metrics", "--prometheus"]).await;
    assert!(text.lines().any(|line| line == "gatehouse_control_vms{state=\"running\"} 1"), "{text}");
    assert_eq!(bench.run(&["metrics", "--prometheus", "--json"]).await.status, Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_made_shown_named_used_and_deleted() {
    let bench = Bench::new().await;
    let none = bench.run(&["snapshots", "list"]).await;
    assert!(none.stdout.is_empty() && none.stderr.contains("gatehouse vm snapshot"), "{none:?}");
    let vm = bench.good(&["vm", "create"]).await;
    let made = bench.run(&["vm", "snapshot", &vm, "--name", "ready", "--persistence", "persistent"]).await;
    assert_eq!(made.status, Some(0), "{made:?}");
    let copy = made.stdout.trim_end();
    assert!(made.stderr.contains(&format!("vm create --snapshot {copy}")), "{made:?}");
    let list = bench.good(&["snapshots", "list"]).await;
    for part in [copy, "ready", &vm, "memory, disk", "1 CPU, 256 MiB, 1 GiB disk"] {
        assert!(list.contains(part), "{part}: {list}");
    }
    let card = bench.good(&["snapshots", "get", copy]).await;
    assert!(card.contains("persistent") && card.contains(copy), "{card}");
    assert_eq!(bench.good(&["snapshots", "rename", copy, "fit"]).await, copy);
    assert_eq!(bench.json(&["snapshots", "get", copy]).await["name"], "fit");
    bench.good(&["snapshots", "rename", copy, "--no-name"]).await;
    assert_eq!(bench.json(&["snapshots", "get", copy]).await["name"], Value::Null);

    let clone = bench.json(&["vm", "create", "--snapshot", copy]).await;
    assert_eq!(clone["snapshotId"], json!(copy));
    let origin = bench.world.state().launched.last().expect("launched").origin.clone();
    assert_eq!(origin, Origin::Snapshot { snapshot: copy.parse().expect("id") });
    let other = bench.json(&["vm", "snapshot", &vm, "--priority", "2"]).await;
    let full = bench.refused(&["vm", "snapshot", &vm]).await;
    assert!(full.contains("SNAPSHOT_LIMIT_EXCEEDED") && full.contains("snapshots delete"), "{full}");
    let other = other["snapshotId"].as_str().expect("id");
    assert_eq!(bench.good(&["snapshots", "delete", copy, other]).await, format!("{copy}\n{other}"));
    assert!(bench.world.state().copies.is_empty());
    assert!(bench.good(&["snapshots", "list"]).await.is_empty());
    let list = bench.good(&["snapshots", "list", "--deleted"]).await;
    assert_eq!(list.matches("deleted").count(), 2, "{list}");
    let gone = bench.refused(&["vm", "create", "--snapshot", copy]).await;
    assert!(gone.contains("SOURCE_SNAPSHOT_DELETED") && gone.contains("gatehouse snapshots list"), "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_come_up_and_another_size_is_taken() {
    let bench = Bench::new().await;
    let vm = bench.good(&["vm", "create"]).await;
    let forks = bench.good(&["vm", "fork", &vm, "--count", "3", "--delete-event", "stop"]).await;
    let forks: Vec<_> = forks.lines().collect();
    assert_eq!(forks.len(), 3, "{forks:?}");
    for fork in &forks {
        let info = bench.json(&["vm", "get", fork]).await;
        assert_eq!(info["state"], "running");
        assert_eq!(info["persistence"], json!({"type": "ephemeral", "deleteEvent": "OnStop"}));
    }
    let one = bench.json(&["vm", "fork", &vm]).await;
    assert_eq!((&one["vmId"], one["forks"].as_array().map(Vec::len)), (&json!(vm), Some(1)));
    bench.good(&[&["vm", "stop"], &forks[..]].concat()).await;
    assert_eq!(bench.json(&["vm", "list"]).await["totalCount"], 2, "the ephemeral ones are gone");

    assert_eq!(bench.good(&["vm", "resize", &vm, "--vcpus", "2", "--memory", "1G"]).await, vm);
    let spec = bench.world.state().launched.last().expect("launched").clone();
    assert_eq!((spec.vcpus, spec.memory_mib, spec.disk_mib), (2, 1024, 1024));
    assert_eq!(bench.json(&["vm", "resize", &vm, "--disk", "2048"]).await, json!({}));
    let card = bench.good(&["vm", "get", &vm]).await;
    assert!(card.contains("2 GiB"), "{card}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vpcs_are_made_joined_left_and_deleted() {
    let bench = Bench::new().await;
    let none = bench.run(&["vpc", "list"]).await;
    assert!(none.stdout.is_empty() && none.stderr.contains("gatehouse vpc create"), "{none:?}");
    let made = bench.run(&["vpc", "create", "--cidr", "192.168.7.0/24", "--name", "shop"]).await;
    assert_eq!(made.status, Some(0), "{made:?}");
    let vpc = made.stdout.trim_end();
    assert!(made.stderr.contains(&format!("vm create --vpc {vpc}")), "{made:?}");
    let empty = bench.good(&["vpc", "get", vpc]).await;
    assert!(empty.contains("192.168.7.0/24") && empty.contains("No VMs"), "{empty}");
    let db = bench.good(&["vm", "create", "--vpc", vpc, "--ip", "192.168.7.10", "--name", "db"]).await;
    let card = bench.good(&["vm", "get", &db]).await;
    assert!(card.contains(vpc) && card.contains("192.168.7.10"), "{card}");
    let web = bench.good(&["vm", "create"]).await;
    bench.good(&["vm", "stop", &web]).await;
    assert_eq!(bench.good(&["vpc", "attach", vpc, &web]).await, "192.168.7.1");
    bench.good(&["vm", "start", &web]).await;
    let network = bench.world.state().launched.last().expect("launched").boot.network.clone();
    assert_eq!(network.expect("a network").ipv4.to_string(), "192.168.7.1");
    let list = bench.good(&["vpc", "list"]).await;
    for part in [vpc, "shop", "192.168.7.0/24", " 2 "] {
        assert!(list.contains(part), "{part}: {list}");
    }
    let card = bench.good(&["vpc", "get", vpc]).await;
    for part in [&db, "db", "192.168.7.10", &web, "192.168.7.1", "running"] {
        assert!(card.contains(part), "{part}: {card}");
    }
    let info = bench.json(&["vpc", "get", vpc]).await;
    assert_eq!(info["members"][1]["vmId"], json!(db));

    let nobodys = format!("vpc-{}", "a".repeat(20));
    for (words, code, more) in [
        (vec!["vpc", "get", &nobodys], "NOT_FOUND", "gatehouse vpc list"),
        (vec!["vpc", "delete", vpc], "VPC_IN_USE", "gatehouse vpc get"),
        (vec!["vpc", "detach", vpc, &web], "VM_NOT_STOPPED", "gatehouse vm stop"),
        (vec!["vpc", "attach", vpc, &web, "--ip", "192.168.7.9"], "VM_IN_VPC", "gatehouse vpc detach"),
        (vec!["vpc", "create", "--cidr", "10.0.0.0/8"], "BAD_REQUEST", "at most a /16"),
        (vec!["vm", "fork", &web], "VPC_FORK_UNSUPPORTED", "--vpc VPC"),
        (vec!["vm", "create", "--vpc", &nobodys], "CREATE_VM_BAD_REQUEST", "there is no VPC"),
        (vec!["vm", "create", "--vpc", vpc, "--ip", "192.168.7.10"], "CREATE_VM_BAD_REQUEST", "another VM"),
    ] {
        let error = bench.refused(&words).await;
        assert!(error.contains(code) && error.contains(more), "{words:?}: {error}");
    }
    bench.good(&["vm", "stop", &web]).await;
    let left = bench.json(&["vpc", "detach", vpc, &web]).await;
    assert_eq!(left, json!({"vmId": web, "ipv4": bench.json(&["vm", "get", &web]).await["ipv4"]}));
    bench.good(&["vm", "delete", &db]).await;
    let other = bench.json(&["vpc", "create"]).await["vpcId"].as_str().expect("id").to_owned();
    assert_eq!(bench.good(&["vpc", "delete", vpc, &other]).await, format!("{vpc}\n{other}"));
    assert_eq!(bench.json(&["vpc", "list"]).await, json!({"vpcs": []}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_wrong_use_says_its_cause_and_the_next_step() {
    let bench = Bench::new().await;
    let vm = bench.good(&["vm", "create"]).await;
    let (nobody, nothing) = ("a".repeat(20), format!("sc-{}", "a".repeat(20)));
    for (words, code, more) in [
        (vec!["vm", "suspend", &nobody], "VM_NOT_FOUND", "gatehouse vm list"),
        (vec!["vm", "fork", &nobody], "FORK_VM_NOT_FOUND", "gatehouse vm list"),
        (vec!["vm", "await", &nobody], "VM_NOT_FOUND", "gatehouse vm list"),
        (vec!["vm", "fork", &vm, "-n", "101"], "INVALID_REQUEST", "within 1 and 100"),
        (vec!["vm", "resize", &vm, "--vcpus", "3"], "RESIZE_VM_VCPU_NOT_POWER_OF_TWO", "3"),
        (vec!["vm", "resize", &vm, "--memory", "64G"], "RESIZE_VM_MEM_OUT_OF_RANGE", "2048"),
        (vec!["vm", "resize", &vm, "--disk", "512"], "RESIZE_VM_ROOTFS_SHRINK_NOT_SUPPORTED", "only grow"),
        (vec!["vm", "create", "--vcpus", "8"], "CREATE_VM_VCPU_OUT_OF_RANGE", "4"),
        (vec!["vm", "create", "--snapshot", &nothing], "SNAPSHOT_NOT_FOUND", "gatehouse snapshots list"),
        (vec!["snapshots", "get", &nothing], "SNAPSHOT_NOT_FOUND", "gatehouse snapshots list"),
        (vec!["snapshots", "rename", &nothing, "x"], "SNAPSHOT_NOT_FOUND", "gatehouse snapshots list"),
        (vec!["snapshots", "delete", &nothing], "SNAPSHOT_NOT_FOUND", "gatehouse snapshots list"),
        (vec!["vm", "create", "--persistence", "persistent", "--priority", "1"], "--priority", "sticky"),
    ] {
        let error = bench.refused(&words).await;
        assert!(error.contains(code) && error.contains(more), "{words:?}: {error}");
    }
    let words = bench.run(&["vm", "create", "--vcpus", "0"]).await;
    assert!(words.status == Some(2) && words.stderr.contains("1..=255"), "{words:?}");

    bench.world.state().unwilling = Some(Refusal::Woken);
    let woken = bench.refused(&["vm", "suspend", &vm]).await;
    assert!(woken.contains("VM_REACTIVATED") && woken.contains("woke it"), "{woken}");
    bench.world.state().unwilling = None;
    assert_eq!(bench.state(&vm).await, "running");
    let half = bench.run(&["vm", "stop", &vm, &nobody]).await;
    assert_eq!((half.status, half.stdout.trim_end()), (Some(1), vm.as_str()), "{half:?}");
    assert!(half.stderr.contains(&format!("{nobody}: ")), "{half:?}");
}
