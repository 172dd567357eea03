//! Snapshots, forks, other sizes, and what is given up, as callers see it.

use super::world::{Growth, Manner};
use super::{Bench, call, id, nothing};
use serde_json::{Value, json};
use vmm::client::{Origin, Refusal};

async fn snapshot(bench: &Bench, vm: &str, body: Value) -> String {
    let made = bench.post(vm, "snapshot", body).await.good();
    assert_eq!(made["sourceVmId"], vm);
    made["snapshotId"].as_str().expect("id").to_owned()
}

async fn snapshots(bench: &Bench, query: &str) -> Value {
    bench.admin("GET", &format!("/v1/vms/snapshots{query}"), nothing()).await.good()
}

#[tokio::test]
async fn a_snapshot_outlives_its_vm_and_others_are_made_from_it() {
    let bench = Bench::new().await;
    let body = json!({"template": {"memSizeGb": 0.5, "vcpuCount": 2}});
    let vm = bench.create(body).await;
    let copy = snapshot(&bench, &vm, json!({"name": "first"})).await;
    let one = format!("/v1/vms/snapshots/{copy}");
    let info = bench.admin("GET", &one, nothing()).await.good();
    assert_eq!(
        (&info["state"], &info["name"], &info["hasMemory"]),
        (&json!("ready"), &json!("first"), &json!(true))
    );
    assert_eq!(
        (&info["memSizeMib"], &info["vcpuCount"], &info["rootfsSizeMb"]),
        (&json!(512), &json!(2), &json!(1024))
    );
    assert_eq!(info["snapshotPersistence"], json!({"type": "sticky"}));
    bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();

    let made = bench.admin("POST", "/v1/vms", json!({"template": {"snapshotId": copy}})).await.good();
    assert_eq!(made["snapshotId"], json!(copy));
    let spec = bench.world.state().launched.last().expect("launched").clone();
    assert_eq!(spec.origin, Origin::Snapshot { snapshot: copy.parse().expect("id") });
    assert_eq!((spec.vcpus, spec.memory_mib), (2, 512), "as its snapshot");
    let clone = made["id"].as_str().expect("id").to_owned();
    bench.post(&clone, "stop", nothing()).await.good();
    bench.post(&clone, "start", nothing()).await.good();
    assert_eq!(bench.world.state().launched.last().expect("launched").origin, Origin::Boot, "its own disk");
    let list = bench.admin("GET", "/v1/vms", nothing()).await.good();
    assert_eq!(list["vms"][0]["snapshotId"], json!(copy));
    let other = json!({"snapshotId": copy, "template": {"memSizeGb": 1}});
    assert_eq!(bench.admin("POST", "/v1/vms", other).await.code(), "CREATE_VM_BAD_REQUEST");

    let renamed = bench.admin("PATCH", &one, json!({"name": "second"})).await.good();
    assert_eq!(renamed, json!({"snapshot_id": copy, "name": "second"}));
    let deleted = bench.admin("DELETE", &one, nothing()).await.good();
    assert_eq!(deleted, json!({"snapshot_id": copy, "snapshotId": copy}));
    assert!(bench.world.state().copies.is_empty());
    let again = bench.admin("DELETE", &one, nothing()).await;
    assert_eq!((again.status.as_u16(), again.code()), (409, "SNAPSHOT_ALREADY_DELETED"));
    let gone = bench.admin("POST", "/v1/vms", json!({"snapshotId": copy})).await;
    assert_eq!((gone.status.as_u16(), gone.code()), (410, "SOURCE_SNAPSHOT_DELETED"));
    assert_eq!(snapshots(&bench, "").await["snapshots"], json!([]));
    let all = snapshots(&bench, "?includeDeleted=true&includeCancelled=true&includeLost=false").await;
    assert_eq!((&all["deletedCount"], &all["totalCount"]), (&json!(1), &json!(1)));
    assert_eq!(all["snapshots"][0]["deleted"], true);
}

#[tokio::test]
async fn snapshots_are_made_of_what_runs_sleeps_or_is_stopped_and_a_failed_one_leaves_no_files() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    bench.post(&vm, "suspend", nothing()).await.good();
    let asleep = snapshot(&bench, &vm, nothing()).await;
    assert_eq!(bench.info(&vm).await["state"], "suspended", "it sleeps on");
    bench.post(&vm, "stop", nothing()).await.good();
    bench.post(&vm, "start", nothing()).await.good();
    bench.post(&vm, "stop", nothing()).await.good();
    let stopped = snapshot(&bench, &vm, json!({"persistence": {"type": "persistent"}})).await;
    for (copy, memory) in [(&asleep, true), (&stopped, false)] {
        let info = bench.admin("GET", &format!("/v1/vms/snapshots/{copy}"), nothing()).await.good();
        assert_eq!(info["hasMemory"], memory);
    }
    let grown = json!({"snapshotId": stopped, "template": {"memSizeGb": 0.5, "rootfsSizeGb": 2}});
    bench.admin("POST", "/v1/vms", grown).await.good();
    let spec = bench.world.state().launched.last().expect("launched").clone();
    assert_eq!((spec.memory_mib, spec.disk_mib), (512, 2048), "without memory any size may be had");

    bench.world.state().unwilling = Some(Refusal::Disk);
    assert_eq!(bench.post(&vm, "snapshot", nothing()).await.code(), "VM_NOT_FOUND_IN_FS");
    bench.world.state().unwilling = None;
    let list = snapshots(&bench, "").await;
    let count = |name: &str| list[name].as_u64().expect("a count");
    assert_eq!((count("readyCount"), count("failedCount"), count("buildingCount")), (2, 1, 0));
    let failed = &list["snapshots"][0];
    assert_eq!((&failed["failed"], &failed["failureReason"]), (&json!(true), &json!("refused: Disk")));
    let unusable = bench.admin("POST", "/v1/vms", json!({"snapshotId": failed["snapshotId"]})).await;
    assert_eq!((unusable.status.as_u16(), unusable.code()), (409, "SOURCE_SNAPSHOT_LOST"));
    assert_eq!(
        snapshots(&bench, "?includeFailed=false").await["snapshots"].as_array().expect("list").len(),
        2
    );
    assert_eq!(bench.world.state().copies.len(), 2);

    for body in [
        json!({"persistence": {"type": "ephemeral"}}),
        json!({"persistence": {"type": "sticky", "priority": 11}}),
        json!({"name": "x".repeat(300)}),
    ] {
        assert_eq!(bench.post(&vm, "snapshot", body).await.code(), "SNAPSHOT_VM_BAD_REQUEST");
    }
    snapshot(&bench, &vm, nothing()).await;
    let full = bench.post(&vm, "snapshot", nothing()).await;
    assert_eq!((full.status.as_u16(), full.code()), (403, "SNAPSHOT_LIMIT_EXCEEDED"));
    assert_eq!((&full.body["limit"], &full.body["current"]), (&json!(3), &json!(3)));
}

#[tokio::test]
async fn a_stranger_sees_no_snapshot() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    let copy = snapshot(&bench, &vm, nothing()).await;
    let other = bench.admin("POST", "/admin/v1/accounts", json!({"name": "other"})).await.good();
    let header = [("x-gatehouse-account", other["id"].as_str().expect("id"))];
    let socket = bench.config.places.admin_socket();
    let one = format!("/v1/vms/snapshots/{copy}");
    for (method, path, body) in [
        ("GET", one.as_str(), "{}".to_owned()),
        ("DELETE", &one, "{}".to_owned()),
        ("PATCH", &one, json!({"name": "mine"}).to_string()),
        ("POST", "/v1/vms", json!({"snapshotId": copy}).to_string()),
    ] {
        let reply = call(&socket, method, path, &header, Some(&body)).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (404, "SNAPSHOT_NOT_FOUND"), "{method} {path}");
    }
    let fork = call(&socket, "POST", &format!("/v1/vms/{vm}/fork"), &header, Some("{}")).await;
    assert_eq!((fork.code(), &fork.body["forkVmId"]), ("FORK_VM_NOT_FOUND", &json!(vm)));
}

#[tokio::test]
async fn forks_are_like_their_parent_and_the_frozen_copy_goes() {
    let bench = Bench::new().await;
    let body = json!({"name": "p", "idleTimeoutSeconds": 44, "domains": [{"domain": "a.style.dev"}],
        "persistence": {"type": "persistent"}});
    let vm = bench.create(body).await;
    bench.post(&vm, "suspend", nothing()).await.good();
    let forked = bench.post(&vm, "fork", json!({"count": 3})).await.good();
    assert_eq!(forked["vmId"], vm);
    assert_eq!(bench.info(&vm).await["state"], "running", "it was woken for that");
    let forks = forked["forks"].as_array().expect("list").clone();
    assert_eq!(forks.len(), 3);
    for fork in &forks {
        let info = bench.info(fork["id"].as_str().expect("id")).await;
        assert_eq!((&info["state"], &info["idleTimeoutSeconds"]), (&json!("running"), &json!(44)));
        assert_eq!((&info["persistence"], &info["domains"]), (&json!({"type": "persistent"}), &json!([])));
        assert_eq!(fork["domains"], json!([]));
    }
    assert!(bench.world.state().copies.is_empty());
    assert_eq!(snapshots(&bench, "?includeDeleted=true").await["totalCount"], 0);
    let hosts: Vec<String> =
        bench.world.state().launched[2..].iter().map(|spec| spec.boot.hostname.clone()).collect();
    assert!(forks.iter().all(|fork| hosts.iter().any(|host| fork["id"] == **host)), "their own names");
    let child = forks[0]["id"].as_str().expect("id").to_owned();
    let again = bench.post(&child, "fork", json!({"persistence": {"type": "ephemeral"}})).await.good();
    let grandchild = again["forks"][0]["id"].as_str().expect("id").to_owned();
    assert_eq!(bench.info(&grandchild).await["persistence"], json!({"type": "ephemeral"}));
    let rows = bench.admin("GET", "/v1/vms", nothing()).await.good();
    assert!(rows["vms"].as_array().expect("list").iter().all(|row| row["snapshotId"].is_null()));
}

#[tokio::test]
async fn a_fork_that_fails_leaves_no_child() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    for count in [json!(0), json!(101), json!(-1), json!("two")] {
        assert_eq!(bench.post(&vm, "fork", json!({"count": count})).await.code(), "INVALID_REQUEST");
    }
    let left = async |what: &str| {
        let list = bench.admin("GET", "/v1/vms", nothing()).await.good();
        assert_eq!((&list["totalCount"], &list["runningCount"]), (&json!(1), &json!(1)), "{what}");
        let state = bench.world.state();
        assert!(
            state.up.len() == 1 && state.disks.len() == 1 && state.copies.is_empty(),
            "{what}: {state:?}"
        );
    };
    let quota = bench.post(&vm, "fork", json!({"count": 8})).await;
    assert_eq!((quota.status.as_u16(), quota.code()), (403, "TOTAL_VM_LIMIT_EXCEEDED"));
    left("the quota").await;
    bench.world.state().unwilling = Some(Refusal::Internal);
    assert_eq!(bench.post(&vm, "fork", nothing()).await.code(), "INTERNAL_ERROR");
    bench.world.state().unwilling = None;
    left("no copy").await;
    bench.world.state().places = 2;
    let third = bench.post(&vm, "fork", json!({"count": 3})).await;
    assert_eq!((third.status.as_u16(), third.code()), (500, "INTERNAL_ERROR"));
    assert!(third.body["message"].as_str().expect("text").contains("refused: Kvm"), "{third:?}");
    bench.world.state().places = usize::MAX;
    left("the third child").await;
    bench.world.state().manner = Manner::DieAtOnce;
    bench.post(&vm, "fork", json!({"count": 2})).await.code();
    bench.world.state().manner = Manner::Ready;
    left("children that panic").await;
    bench.post(&vm, "stop", nothing()).await.good();
    let stopped = bench.post(&vm, "fork", nothing()).await;
    assert_eq!((stopped.status.as_u16(), stopped.code()), (400, "VM_NOT_RUNNING"));
}

#[tokio::test]
async fn a_vm_gets_another_size_in_every_state() {
    let bench = Bench::new().await;
    let vm = bench.create(json!({"persistence": {"type": "ephemeral", "deleteEvent": "OnStop"}})).await;
    let resized = bench.post(&vm, "resize", json!({"memSizeGb": 0.5})).await.good();
    assert_eq!((resized, bench.info(&vm).await["state"].clone()), (nothing(), json!("running")));
    let last = || bench.world.state().launched.last().expect("launched").clone();
    assert_eq!((last().memory_mib, last().origin), (512, Origin::Boot));
    bench.post(&vm, "suspend", nothing()).await.good();
    bench.post(&vm, "resize", json!({"vcpuCount": 2, "rootfsSizeGb": 2})).await.good();
    let launched = bench.world.state().launched.clone();
    let origins: Vec<_> = launched[2..].iter().map(|spec| spec.origin.clone()).collect();
    assert_eq!(origins, [Origin::Suspended, Origin::Boot], "woken to be shut down in order");
    assert_eq!((last().vcpus, last().memory_mib, last().disk_mib), (2, 512, 2048));
    let sizing = bench.info(&vm).await["sizing"].clone();
    assert_eq!(sizing, json!({"vcpuCount": 2, "memSizeMib": 512, "rootfsSizeMb": 2048}));
    let shrunk = bench.post(&vm, "resize", json!({"rootfsSizeGb": 1})).await;
    assert_eq!(shrunk.code(), "RESIZE_VM_ROOTFS_SHRINK_NOT_SUPPORTED");
    assert_eq!((&shrunk.body["currentMb"], &shrunk.body["requestedMb"]), (&json!(2048), &json!(1024)));
    for (body, code) in [
        (nothing(), "RESIZE_VM_EMPTY_REQUEST"),
        (json!({"vcpuCount": 3}), "RESIZE_VM_VCPU_NOT_POWER_OF_TWO"),
        (json!({"memSizeGb": 4}), "RESIZE_VM_MEM_OUT_OF_RANGE"),
    ] {
        assert_eq!(bench.post(&vm, "resize", body).await.code(), code);
    }
    let other = bench.create(json!({"template": {"memSizeGb": 1}, "idleTimeoutSeconds": null})).await;
    let launched = bench.world.state().launched.len();
    let full = bench.post(&vm, "resize", json!({"memSizeGb": 2})).await;
    assert_eq!(full.code(), "NO_LOCAL_STORAGE_CAPACITY");
    let info = bench.info(&vm).await;
    assert_eq!((&info["state"], &info["sizing"]["memSizeMib"]), (&json!("running"), &json!(512)));
    assert_eq!(bench.world.state().launched.len(), launched, "it was not stopped for that");
    bench.post(&other, "stop", nothing()).await.good();
    bench.post(&other, "resize", json!({"memSizeGb": 0.25})).await.good();
    assert_eq!(bench.info(&other).await["state"], "stopped");
    let optimized = bench.post(&vm, "optimize", nothing()).await.good();
    assert!(optimized["id"] == vm && optimized["message"].is_string());
    assert_eq!(bench.world.state().released, [id(&vm)]);
    bench.world.state().growth = Growth::RefusedByAgent;
    bench.post(&vm, "optimize", nothing()).await.good();
    bench.post(&vm, "suspend", nothing()).await.good();
    bench.post(&vm, "optimize", nothing()).await.good();
    assert_eq!(bench.world.state().released, [id(&vm), id(&vm)], "who sleeps is not woken for that");
}

#[tokio::test]
async fn a_disk_grows_under_its_running_vm() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    let instance = bench.info(&vm).await["vmInstanceId"].clone();
    bench.post(&vm, "resize", json!({"rootfsSizeGb": 2, "memSizeGb": 0.25, "vcpuCount": 1})).await.good();
    assert_eq!(
        bench.world.state().grown,
        [(id(&vm), Some(2048)), (id(&vm), None)],
        "the disk, then the guest"
    );
    let size = |info: Value| info["sizing"]["rootfsSizeMb"].clone();
    let info = bench.info(&vm).await;
    assert_eq!((&info["state"], &info["vmInstanceId"]), (&json!("running"), &instance));
    assert_eq!((size(info), bench.world.state().launched.len()), (json!(2048), 1), "not started again");

    for growth in [Growth::RefusedByDisk, Growth::RefusedByAgent] {
        bench.world.state().growth = growth;
        let refused = bench.post(&vm, "resize", json!({"rootfsSizeGb": 3})).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (500, "RESIZE_FAILED"));
        assert_eq!(bench.info(&vm).await["state"], "running");
    }
    bench.world.state().growth = Growth::Done;
    bench.world.state().grown.clear();
    bench.post(&vm, "resize", json!({"rootfsSizeGb": 3})).await.good();
    assert_eq!(
        bench.world.state().grown,
        [(id(&vm), Some(3072)), (id(&vm), None)],
        "asked again, done at last"
    );

    bench.post(&vm, "suspend", nothing()).await.good();
    bench.post(&vm, "start", nothing()).await.good();
    let spec = bench.world.state().launched.last().expect("launched").clone();
    assert_eq!((spec.origin, spec.disk_mib), (Origin::Suspended, 3072));
    let fork = bench.post(&vm, "fork", nothing()).await.good()["forks"][0]["id"].clone();
    assert_eq!(size(bench.info(fork.as_str().expect("id")).await), 3072);
    let snapshot = bench.post(&vm, "snapshot", nothing()).await.good();
    let copy = bench.create(json!({"snapshotId": snapshot["snapshotId"]})).await;
    assert_eq!(size(bench.info(&copy).await), 3072);
    bench.world.state().grown.clear();
    bench.admin("DELETE", &format!("/v1/vms/{copy}"), nothing()).await.good();
    let larger = json!({"snapshotId": snapshot["snapshotId"], "template": {"rootfsSizeGb": 4}});
    let larger = id(&bench.create(larger).await);
    let grown = bench.world.state().grown.clone();
    assert_eq!(
        grown,
        [(larger.clone(), Some(4096)), (larger, None)],
        "it goes on from where its disk was smaller"
    );
}

#[tokio::test]
async fn sticky_vms_that_do_not_run_are_given_up_when_too_many_are_kept() {
    let bench = Bench::new().await;
    let mut kept = Vec::new();
    for priority in [5, 2, 7, 2, 9] {
        let vm = bench.create(json!({"persistence": {"type": "sticky", "priority": priority}})).await;
        bench.post(&vm, "suspend", nothing()).await.good();
        kept.push(vm);
    }
    let running = bench.create(nothing()).await;
    assert_eq!(bench.info(&kept[1]).await["code"], "VM_NOT_FOUND", "of the lowest, the oldest");
    for vm in [&kept[0], &kept[2], &kept[3], &kept[4]] {
        assert_eq!(bench.info(vm).await["state"], "suspended");
        bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();
    }
    bench.admin("DELETE", &format!("/v1/vms/{running}"), nothing()).await.good();
    for _ in 0..5 {
        let vm = bench.create(json!({"persistence": {"type": "persistent"}})).await;
        bench.post(&vm, "stop", nothing()).await.good();
    }
    let full = bench.admin("POST", "/v1/vms", nothing()).await;
    assert_eq!((full.status.as_u16(), full.code()), (403, "TOTAL_VM_LIMIT_EXCEEDED"));
    assert_eq!((&full.body["limit"], &full.body["current"]), (&json!(4), &json!(5)));
    assert_eq!(bench.world.state().disks.len(), 5, "nothing is given up in vain");
}
