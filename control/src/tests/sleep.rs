//! How VMs fall asleep and what wakes them, as callers see it.

use super::world::Manner;
use super::{Bench, call, eventually, id, nothing};
use serde_json::{Value, json};
use std::time::Duration;
use vmm::client::{ExitReason, IdleWatch, Origin, Refusal};

/// Whether a packet would wake the VM.
fn asleep(bench: &Bench, vm: &str) -> bool {
    let view = bench.view("vpc");
    let ports = view["ports"].as_array().expect("list");
    ports.iter().find(|port| port["vm"] == vm).expect("a port")["asleep"] == true
}

fn run(bench: &Bench) -> u64 {
    bench.view("edge")["routes"][0]["run"].as_u64().expect("a run")
}

#[tokio::test]
async fn a_vm_sleeps_and_goes_on_as_the_same_instance() {
    let bench = Bench::new().await;
    let vm = bench.create(json!({"domains": [{"domain": "a.style.dev"}]})).await;
    let instance = bench.info(&vm).await["vmInstanceId"].clone();
    let suspended = bench.post(&vm, "suspend", Value::Null).await.good();
    assert_eq!((&suspended["id"], &suspended["vmInstanceId"]), (&json!(vm), &instance));
    assert!(suspended["snapshotLayerId"].is_string());
    assert_eq!(bench.info(&vm).await["state"], "suspended");
    assert!(asleep(&bench, &vm) && bench.world.state().asleep.contains_key(&id(&vm)));
    bench.post(&vm, "suspend", nothing()).await.good();
    let list = bench.admin("GET", "/v1/vms", nothing()).await.good();
    assert_eq!((&list["suspendedCount"], &list["runningCount"]), (&json!(1), &json!(0)));
    let before = run(&bench);
    bench.post(&vm, "start", nothing()).await.good();
    let info = bench.info(&vm).await;
    assert_eq!((&info["state"], &info["vmInstanceId"]), (&json!("running"), &instance));
    assert!(!asleep(&bench, &vm) && run(&bench) > before, "pooled connections are of no more use");
    let spec = bench.world.state().launched.last().expect("launched").clone();
    assert_eq!(spec.origin, Origin::Suspended);
    assert_eq!(spec.idle, Some(IdleWatch { seconds: 300, threshold_bytes: 1 }));
    bench.post(&vm, "suspend", nothing()).await.good();
    let done = bench.post(&vm, "exec-await", json!({"command": "true"})).await.good();
    assert_eq!(done["statusCode"], 0, "a command wakes it");
    assert_eq!(bench.info(&vm).await["vmInstanceId"], instance);
}

#[tokio::test]
async fn a_sleeper_is_stopped_killed_and_deleted_without_being_woken() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    for what in ["stop", "kill"] {
        bench.post(&vm, "suspend", nothing()).await.good();
        let launched = bench.world.state().launched.len();
        bench.post(&vm, what, nothing()).await.good();
        let info = bench.info(&vm).await;
        assert_eq!(
            (&info["state"], &info["exitStatus"]),
            (&json!("stopped"), &json!("stopped while it was suspended"))
        );
        assert!(!asleep(&bench, &vm));
        assert_eq!(bench.world.state().launched.len(), launched, "{what}");
        let refused = bench.post(&vm, "suspend", nothing()).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "VM_NOT_RUNNING"));
        bench.post(&vm, "start", nothing()).await.good();
        assert_eq!(bench.world.state().launched.last().expect("launched").origin, Origin::Boot);
        assert!(bench.world.state().asleep.is_empty(), "a boot gives the memory up");
    }
    bench.post(&vm, "suspend", nothing()).await.good();
    bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();
    let state = bench.world.state();
    assert!(state.asleep.is_empty() && state.disks.is_empty() && state.up.is_empty());
}

#[tokio::test]
async fn a_suspend_that_is_refused_leaves_the_vm_running() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    for (refusal, status, code) in [
        (Refusal::Woken, 409, "VM_REACTIVATED"),
        (Refusal::Disk, 500, "SUSPEND_FAILED_VM_RESUMED"),
        (Refusal::Internal, 500, "SUSPEND_FAILED_VM_RESUMED"),
    ] {
        bench.world.state().unwilling = Some(refusal);
        let refused = bench.post(&vm, "suspend", nothing()).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (status, code), "{refusal:?}");
        assert_eq!(bench.info(&vm).await["state"], "running");
    }
    bench.world.state().unwilling = None;
    bench.post(&vm, "suspend", nothing()).await.good();
}

#[tokio::test]
async fn a_state_that_cannot_be_used_is_told_and_the_vm_boots() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    for unfit in [Refusal::StateUnfit, Refusal::NoState] {
        let instance = bench.info(&vm).await["vmInstanceId"].clone();
        bench.post(&vm, "suspend", nothing()).await.good();
        bench.world.state().unfit = Some(unfit);
        bench.post(&vm, "start", nothing()).await.good();
        bench.world.state().unfit = None;
        let info = bench.info(&vm).await;
        assert_eq!(info["state"], "running");
        assert_ne!(info["vmInstanceId"], instance, "another run");
        let told = info["exitStatus"].as_str().expect("told");
        assert!(told.starts_with("its suspended memory was lost"), "{told}");
    }
}

#[tokio::test]
async fn a_vm_that_cannot_be_woken_keeps_its_memory_and_says_so() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    bench.post(&vm, "suspend", nothing()).await.good();
    bench.world.state().manner = Manner::Refuse(Refusal::Kvm);
    for (what, body) in [("start", nothing()), ("exec-await", json!({"command": "true"}))] {
        assert_eq!(bench.post(&vm, what, body).await.code(), "VM_SPAWN_PROCESS", "{what}");
        assert_eq!(bench.info(&vm).await["state"], "suspended");
        assert!(asleep(&bench, &vm));
    }
    bench.world.packets(&id(&vm));
    eventually("a packet's try", async || (bench.world.state().launched.len() >= 4).then_some(())).await;
    bench.world.state().manner = Manner::Ready;
    bench.until(&vm, "running").await;
}

#[tokio::test]
async fn packets_wake_sleepers_once_and_nobody_else() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    let stopped = bench.create(nothing()).await;
    bench.post(&stopped, "stop", nothing()).await.good();
    bench.post(&vm, "suspend", nothing()).await.good();
    let launched = bench.world.state().launched.len();
    for _ in 0..20 {
        bench.world.packets(&id(&stopped));
        bench.world.packets(&id(&vm));
    }
    let socket = bench.config.places.admin_socket();
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let (socket, path) = (socket.clone(), format!("/v1/vms/{vm}/exec-await"));
            tokio::spawn(async move {
                call(&socket, "POST", &path, &[], Some(r#"{"command":"true"}"#)).await.good()
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.expect("answered")["statusCode"], 0);
    }
    bench.until(&vm, "running").await;
    assert_eq!(bench.world.state().launched.len(), launched + 1, "many wakes make one start");
    assert_eq!(bench.info(&stopped).await["state"], "stopped");
}

#[tokio::test]
async fn an_idle_vm_sleeps_and_what_is_set_for_that_reaches_its_machine() {
    let bench = Bench::new().await;
    let vm = bench.create(json!({"idleTimeoutSeconds": 7, "activityThresholdBytes": 9})).await;
    let idle = |bench: &Bench| bench.world.state().launched.last().expect("launched").idle;
    assert_eq!(idle(&bench), Some(IdleWatch { seconds: 7, threshold_bytes: 9 }));
    bench.world.idle(&id(&vm));
    bench.until(&vm, "suspended").await;
    bench.post(&vm, "start", json!({"idleTimeoutSeconds": 8})).await.good();
    assert_eq!(idle(&bench), Some(IdleWatch { seconds: 8, threshold_bytes: 9 }), "from this start on");
    bench.post(&vm, "start", json!({"idleTimeoutSeconds": null})).await.good();
    assert_eq!(bench.world.state().watched, [(id(&vm), None)], "a running one is told");
    bench.world.idle(&id(&vm));
    let other = bench.create(nothing()).await;
    bench.world.idle(&id(&other));
    bench.until(&other, "suspended").await;
    assert_eq!(bench.info(&vm).await["state"], "running", "never");
    let never = bench.create(json!({"idleTimeoutSeconds": null})).await;
    assert_eq!(idle(&bench), None, "{never}");
}

#[tokio::test]
async fn an_ephemeral_vm_goes_when_it_would_sleep() {
    let bench = Bench::new().await;
    for event in [json!("OnSuspend"), json!("onIdleTimeout"), Value::Null] {
        let vm = bench.create(json!({"persistence": {"type": "ephemeral", "deleteEvent": event}})).await;
        bench.world.idle(&id(&vm));
        eventually("it is gone", async || bench.info(&vm).await["state"].is_null().then_some(())).await;
        assert!(bench.world.state().disks.is_empty() && bench.world.state().asleep.is_empty());
    }
    let vm = bench.create(json!({"persistence": {"type": "ephemeral", "deleteEvent": "OnStop"}})).await;
    bench.post(&vm, "suspend", nothing()).await.good();
    assert_eq!(bench.info(&vm).await["state"], "suspended");
    bench.post(&vm, "stop", nothing()).await.good();
    assert_eq!(bench.info(&vm).await["code"], "VM_NOT_FOUND");
}

#[tokio::test]
async fn a_command_is_not_cut_off_and_sleep_comes_when_it_ends() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    let (socket, path) = (bench.config.places.admin_socket(), format!("/v1/vms/{vm}/exec-await"));
    let folder = tempfile::tempdir().expect("folder");
    let (begun, end) = (folder.path().join("begun"), folder.path().join("end"));
    let command = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.02; done; echo whole",
        begun.display(),
        end.display()
    );
    let body = json!({"command": command}).to_string();
    let running = tokio::spawn(async move { call(&socket, "POST", &path, &[], Some(&body)).await });
    eventually("the command runs", async || begun.exists().then_some(())).await;
    bench.world.idle(&id(&vm));
    // Another VM's turn comes after this one's.
    let other = bench.create(nothing()).await;
    bench.world.idle(&id(&other));
    bench.until(&other, "suspended").await;
    assert_eq!(bench.info(&vm).await["state"], "running");
    std::fs::write(&end, "").expect("end");
    assert_eq!(running.await.expect("answered").good()["stdout"], "whole\n");
    bench.until(&vm, "suspended").await;
}

#[tokio::test]
async fn memory_is_promised_to_those_that_run_and_the_idlest_makes_room() {
    let bench = Bench::new().await;
    let sized = |body: Value| json!({"template": {"memSizeGb": 1}, "idleTimeoutSeconds": body});
    let (old, young) = (bench.create(sized(json!(300))).await, bench.create(sized(json!(300))).await);
    bench.post(&old, "suspend", nothing()).await.good();
    let third = bench.create(sized(Value::Null)).await;
    bench.post(&old, "start", nothing()).await.good();
    assert_eq!(bench.info(&old).await["state"], "running");
    assert_eq!(bench.info(&young).await["state"], "suspended", "it made room");
    assert_eq!(bench.info(&third).await["state"], "running", "it may not sleep");
    bench.post(&old, "start", json!({"idleTimeoutSeconds": null})).await.good();
    let full = bench.post(&young, "start", nothing()).await;
    assert_eq!((full.status.as_u16(), full.code()), (503, "NO_LOCAL_STORAGE_CAPACITY"));
    assert_eq!(bench.info(&young).await["state"], "suspended");
    bench.post(&third, "stop", nothing()).await.good();
    bench.post(&young, "start", nothing()).await.good();
}

#[tokio::test]
async fn a_vm_that_crashes_is_started_again_and_one_that_was_stopped_is_not() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    let instance = bench.info(&vm).await["vmInstanceId"].clone();
    bench.world.exit(&id(&vm), ExitReason::Panicked { message: "oops".to_owned() });
    eventually("a new run", async || {
        let info = bench.info(&vm).await;
        (info["state"] == "running" && info["vmInstanceId"] != instance).then_some(())
    })
    .await;
    assert_eq!(bench.info(&vm).await["exitStatus"], "kernel panic: oops");
    bench.world.exit(&id(&vm), ExitReason::PoweredOff);
    bench.until(&vm, "stopped").await;
    bench.post(&vm, "start", nothing()).await.good();
    let instance = bench.info(&vm).await["vmInstanceId"].clone();
    bench.world.exit(&id(&vm), ExitReason::Kvm { message: "lost".to_owned() });
    eventually("its end is known", async || {
        let info = bench.info(&vm).await;
        // On a busy host it may have been started again before anybody looks; then it is stopped like any other.
        (info["state"] == "stopped" || info["vmInstanceId"] != instance).then_some(())
    })
    .await;
    bench.post(&vm, "stop", nothing()).await.good();
    let launched = bench.world.state().launched.len();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(bench.world.state().launched.len(), launched, "somebody stopped it meanwhile");
}
