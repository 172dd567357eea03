//! A full host: who sleeps, who is given up, and who is told that there is no room.

use super::world::Manner;
use super::{Bench, Reply, call, eventually, id, nothing};
use serde_json::{Value, json};
use vmm::client::Refusal;

/// A VM of so many GiB that sleeps when it is idle, or never.
fn sized(gib: f64, sleeps: bool) -> Value {
    json!({"template": {"memSizeGb": gib}, "idleTimeoutSeconds": sleeps.then_some(300)})
}

fn kept(kind: &str) -> Value {
    json!({"persistence": {"type": kind}, "idleTimeoutSeconds": null})
}

async fn state(bench: &Bench, vm: &str) -> Value {
    bench.info(vm).await["state"].clone()
}

async fn status(bench: &Bench) -> Value {
    bench.admin("GET", "/admin/v1/status", nothing()).await.good()
}

/// Asks for a VM without waiting for the answer.
fn asked(bench: &Bench, body: Value) -> tokio::task::JoinHandle<Reply> {
    let socket = bench.config.places.admin_socket();
    tokio::spawn(async move { call(&socket, "POST", "/v1/vms", &[], Some(&body.to_string())).await })
}

/// The fields of a refusal for want of a place on the disk.
fn short(refused: &Reply) -> (u16, &str, [u64; 3]) {
    let field = |name: &str| refused.body[name].as_u64().unwrap_or_else(|| panic!("{name}: {refused:?}"));
    (refused.status.as_u16(), refused.code(), [field("limit"), field("current"), field("requested")])
}

#[tokio::test]
async fn creations_forks_and_sizes_make_the_idlest_sleep() {
    let bench = Bench::new().await;
    let old = bench.create(sized(1.0, true)).await;
    let young = bench.create(sized(1.0, true)).await;
    let third = bench.create(sized(1.0, false)).await;
    assert_eq!(
        (state(&bench, &old).await, state(&bench, &young).await),
        (json!("suspended"), json!("running"))
    );
    bench.admin("DELETE", &format!("/v1/vms/{third}"), nothing()).await.good();
    bench.post(&old, "start", nothing()).await.good();

    let forked = bench.post(&young, "fork", nothing()).await.good();
    let child = forked["forks"][0]["id"].as_str().expect("id").to_owned();
    assert_eq!(state(&bench, &young).await, "running", "the idlest, but a child is made of it");
    assert_eq!(
        (state(&bench, &old).await, state(&bench, &child).await),
        (json!("suspended"), json!("running"))
    );
    bench.post(&young, "resize", json!({"memSizeGb": 2})).await.good();
    assert_eq!(
        (state(&bench, &young).await, state(&bench, &child).await),
        (json!("running"), json!("suspended"))
    );

    let copy = bench.post(&old, "snapshot", nothing()).await.good()["snapshotId"].clone();
    let restored = bench.create(json!({"snapshotId": copy, "idleTimeoutSeconds": null})).await;
    assert_eq!(
        (state(&bench, &young).await, state(&bench, &restored).await),
        (json!("suspended"), json!("running"))
    );
    let numbers = status(&bench).await;
    assert_eq!((&numbers["promisedMemoryMib"], &numbers["memoryLimitMib"]), (&json!(1024), &json!(2048)));
    assert_eq!((&numbers["sleepingMemoryMib"], &numbers["memoryStorageMib"]), (&json!(4096), &Value::Null));
    assert_eq!((&numbers["promisedDiskMib"], &numbers["rootfsStorageMib"]), (&json!(4096), &Value::Null));
}

#[tokio::test]
async fn a_full_host_says_what_is_asked_and_what_there_is_and_nobody_sleeps_in_vain() {
    let bench = Bench::new().await;
    let fixed = bench.create(sized(1.0, false)).await;
    let sleeper = bench.create(sized(0.5, true)).await;
    let parent = bench.create(sized(0.25, false)).await;
    let stopped = bench.create(sized(0.25, false)).await;
    bench.post(&stopped, "stop", nothing()).await.good();
    bench.post(&stopped, "resize", json!({"memSizeGb": 1})).await.good();
    let launched = bench.world.state().launched.len();
    for (refused, asked, has) in [
        (bench.admin("POST", "/v1/vms", sized(1.0, true)).await, 1024, 1792),
        (bench.post(&stopped, "start", nothing()).await, 1024, 1792),
        (bench.post(&stopped, "exec-await", json!({"command": "true"})).await, 1024, 1792),
        (bench.post(&parent, "fork", json!({"count": 4})).await, 1024, 1792),
        (bench.post(&parent, "resize", json!({"memSizeGb": 2})).await, 1792, 1792),
    ] {
        assert_eq!((refused.status.as_u16(), refused.code()), (503, "NO_LOCAL_STORAGE_CAPACITY"));
        let message = refused.body["message"].as_str().expect("text");
        for part in [format!("{asked} MiB are asked"), format!("have {has} MiB"), "of 2048 MiB".to_owned()] {
            assert!(message.contains(&part), "{part}: {message}");
        }
        assert!(message.contains("stop or suspend one"), "the next step: {message}");
    }
    for vm in [&fixed, &sleeper, &parent] {
        assert_eq!(state(&bench, vm).await, "running");
    }
    assert_eq!(state(&bench, &stopped).await, "stopped");
    assert_eq!(bench.world.state().launched.len(), launched, "nothing was tried");
    assert_eq!(bench.admin("GET", "/v1/vms", nothing()).await.good()["totalCount"], 4);
}

#[tokio::test]
async fn two_creations_do_not_take_the_same_place_and_one_that_fails_gives_it_back() {
    let bench = Bench::new().await;
    let fixed = bench.create(sized(1.0, false)).await;
    for sleeper in [None, Some(sized(1.0, true))] {
        if let Some(body) = &sleeper {
            bench.create(body.clone()).await;
        }
        let both = [asked(&bench, sized(1.0, false)), asked(&bench, sized(1.0, false))];
        let mut made = Vec::new();
        for reply in both {
            let reply = reply.await.expect("answered");
            if reply.status.is_success() {
                made.push(reply.good()["id"].as_str().expect("id").to_owned());
            } else {
                assert_eq!((reply.status.as_u16(), reply.code()), (503, "NO_LOCAL_STORAGE_CAPACITY"));
            }
        }
        assert_eq!(made.len(), 1, "one of them, {sleeper:?}");
        assert_eq!(status(&bench).await["promisedMemoryMib"], 2048);
        bench.admin("DELETE", &format!("/v1/vms/{}", made[0]), nothing()).await.good();
        assert_eq!(status(&bench).await["promisedMemoryMib"], 1024);
    }
    bench.world.state().manner = Manner::Refuse(Refusal::Kvm);
    for _ in 0..3 {
        assert_eq!(bench.admin("POST", "/v1/vms", sized(1.0, false)).await.code(), "VM_SPAWN_PROCESS");
    }
    bench.world.state().manner = Manner::Ready;
    bench.create(sized(1.0, false)).await;
    assert_eq!(state(&bench, &fixed).await, "running");
}

#[tokio::test]
async fn room_that_comes_by_itself_is_waited_for() {
    let bench = Bench::new().await;
    bench.create(sized(1.0, false)).await;
    let going = bench.create(sized(1.0, false)).await;
    bench.world.prompt.send_replace(false);
    let (socket, path) = (bench.config.places.admin_socket(), format!("/v1/vms/{going}/suspend"));
    let suspended = tokio::spawn(async move { call(&socket, "POST", &path, &[], None).await });
    bench.until(&going, "suspending").await;
    let both = [asked(&bench, sized(0.5, false)), asked(&bench, sized(0.5, false))];
    // Asked after them and answered: they would have been refused by now, too.
    for _ in 0..3 {
        let other = bench.admin("POST", "/v1/vms", sized(2.0, false)).await;
        assert_eq!(other.code(), "NO_LOCAL_STORAGE_CAPACITY", "this one has nothing to wait for");
    }
    assert!(both.iter().all(|one| !one.is_finished()));
    bench.world.prompt.send_replace(true);
    suspended.await.expect("answered").good();
    for one in both {
        one.await.expect("answered").good();
    }
}

#[tokio::test]
async fn one_that_will_not_sleep_is_passed_over() {
    let bench = Bench::new().await;
    let busy = bench.create(sized(1.0, true)).await;
    let folder = tempfile::tempdir().expect("folder");
    let (begun, end) = (folder.path().join("begun"), folder.path().join("end"));
    let command = format!("touch {}; while [ ! -e {} ]; do sleep 0.02; done", begun.display(), end.display());
    let (socket, path) = (bench.config.places.admin_socket(), format!("/v1/vms/{busy}/exec-await"));
    let body = json!({"command": command}).to_string();
    let running = tokio::spawn(async move { call(&socket, "POST", &path, &[], Some(&body)).await });
    eventually("the command runs", async || begun.exists().then_some(())).await;
    let free = bench.create(sized(1.0, true)).await;
    let third = bench.create(sized(1.0, false)).await;
    assert_eq!(
        (state(&bench, &busy).await, state(&bench, &free).await),
        (json!("running"), json!("suspended"))
    );
    let full = bench.post(&free, "start", nothing()).await;
    assert_eq!(
        full.code(),
        "NO_LOCAL_STORAGE_CAPACITY",
        "a command is under way in one, the other never sleeps"
    );
    std::fs::write(&end, "").expect("end");
    running.await.expect("answered").good();
    bench.world.state().unwilling = Some(Refusal::Disk);
    assert_eq!(bench.post(&free, "start", nothing()).await.code(), "NO_LOCAL_STORAGE_CAPACITY");
    bench.world.state().unwilling = None;
    bench.post(&free, "start", nothing()).await.good();
    assert_eq!(
        (state(&bench, &busy).await, state(&bench, &third).await),
        (json!("suspended"), json!("running"))
    );
}

#[tokio::test]
async fn the_memory_of_sleepers_has_its_place_and_sticky_ones_give_way_for_it() {
    let bench = Bench::with(|limits| limits.memory_storage_mib = Some(512)).await;
    let mut persistent = Vec::new();
    for _ in 0..3 {
        persistent.push(bench.create(kept("persistent")).await);
    }
    let sticky = bench.create(kept("sticky")).await;
    bench.post(&sticky, "suspend", nothing()).await.good();
    bench.post(&persistent[0], "suspend", nothing()).await.good();
    assert_eq!(status(&bench).await["sleepingMemoryMib"], 512);
    bench.post(&persistent[1], "suspend", nothing()).await.good();
    assert_eq!(bench.info(&sticky).await["code"], "VM_NOT_FOUND", "it gave way");
    assert!(!bench.world.state().disks.contains(&id(&sticky)));

    let running = bench.create(kept("sticky")).await;
    let full = bench.post(&persistent[2], "suspend", nothing()).await;
    assert_eq!(short(&full), (403, "MEMORY_STORAGE_QUOTA_EXCEEDED", [512, 512, 256]));
    assert_eq!(full.body["vmId"], json!(persistent[2]));
    assert_eq!(state(&bench, &persistent[2]).await, "running");
    assert_eq!(state(&bench, &running).await, "running", "never while it runs");
    bench.post(&persistent[2], "start", json!({"idleTimeoutSeconds": 5})).await.good();
    bench.world.idle(&id(&persistent[2]));
    let large = bench.admin("POST", "/v1/vms", sized(2.0, false)).await;
    assert_eq!(large.code(), "NO_LOCAL_STORAGE_CAPACITY", "there is no place to put one to sleep");
    assert_eq!(state(&bench, &persistent[2]).await, "running");

    bench.post(&persistent[0], "start", nothing()).await.good();
    bench.post(&persistent[2], "suspend", nothing()).await.good();
    assert_eq!(status(&bench).await["sleepingMemoryMib"], 512, "one that woke gave its place back");
}

#[tokio::test]
async fn disks_are_promised_and_sticky_ones_that_do_not_run_give_way() {
    let bench = Bench::with(|limits| limits.rootfs_storage_mib = Some(4096)).await;
    let persistent = bench.create(kept("persistent")).await;
    let priority = |priority: u8| json!({"persistence": {"type": "sticky", "priority": priority}});
    let (low, high) = (bench.create(priority(1)).await, bench.create(priority(9)).await);
    for vm in [&persistent, &low, &high] {
        bench.post(vm, "stop", nothing()).await.good();
    }
    let runs = bench.create(kept("sticky")).await;
    let second = bench.create(kept("sticky")).await;
    assert_eq!(bench.info(&low).await["code"], "VM_NOT_FOUND", "the lowest priority gave way");
    assert_eq!(state(&bench, &high).await, "stopped");
    let large = json!({"template": {"rootfsSizeGb": 3}});
    let full = bench.admin("POST", "/v1/vms", large).await;
    assert_eq!(short(&full), (403, "ROOTFS_STORAGE_QUOTA_EXCEEDED", [4096, 4096, 3072]));
    assert_eq!(state(&bench, &high).await, "stopped", "nobody is given up in vain");

    bench.post(&runs, "resize", json!({"rootfsSizeGb": 2})).await.good();
    assert_eq!(bench.info(&high).await["code"], "VM_NOT_FOUND");
    let numbers = status(&bench).await;
    assert_eq!((&numbers["promisedDiskMib"], &numbers["rootfsStorageMib"]), (&json!(4096), &json!(4096)));
    let launched = bench.world.state().launched.len();
    let (grow, fork) = (json!({"rootfsSizeGb": 4}), json!({"count": 2}));
    assert_eq!(
        short(&bench.post(&runs, "resize", grow).await),
        (403, "ROOTFS_STORAGE_QUOTA_EXCEEDED", [4096, 4096, 2048])
    );
    assert_eq!(
        short(&bench.post(&second, "fork", fork).await),
        (403, "ROOTFS_STORAGE_QUOTA_EXCEEDED", [4096, 4096, 2048])
    );
    assert_eq!(
        short(&bench.admin("POST", "/v1/vms", nothing()).await),
        (403, "ROOTFS_STORAGE_QUOTA_EXCEEDED", [4096, 4096, 1024])
    );
    let sizing = bench.info(&runs).await["sizing"].clone();
    assert_eq!(sizing["rootfsSizeMb"], 2048);
    assert_eq!(bench.world.state().launched.len(), launched, "nobody was stopped for it");
    bench.admin("DELETE", &format!("/v1/vms/{second}"), nothing()).await.good();
    bench.create(nothing()).await;
}
