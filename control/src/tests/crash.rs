//! Control dies at every place of every operation, and its next start repairs what it finds.

use super::world::World;
use super::{PATIENCE, ask, config};
use crate::Control;
use crate::vms::FailPoints;
use model::config::ControlConfig;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::timeout;

/// More places than there are: the walk ends at the first that is not reached.
const MAX_PLACES: i64 = 200;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime")
}

/// What callers do while control dies under them.
async fn script(config: ControlConfig) {
    let call = async |method: &str, path: &str, body: &str| -> Value {
        ask(config.places.admin_socket(), method, path, &[], Some(body)).await.body
    };
    let body = r#"{"domains":[{"domain":"a.style.dev"}],"spec":{"additionalFiles":{"/a":{"content":"a"}}}}"#;
    let kept = call("POST", "/v1/vms", body).await["id"].as_str().expect("id").to_owned();
    call("POST", &format!("/v1/vms/{kept}/stop"), "{}").await;
    call("POST", &format!("/v1/vms/{kept}/start"), "{}").await;
    call("POST", &format!("/v1/vms/{kept}/kill"), "{}").await;
    call("POST", &format!("/v1/vms/{kept}/exec-await"), r#"{"command":"true"}"#).await;
    let gone = call("POST", "/v1/vms", "{}").await["id"].as_str().expect("id").to_owned();
    call("DELETE", &format!("/v1/vms/{gone}"), "{}").await;
}

/// Starts a control in a runtime of its own and serves.
fn start(config: &ControlConfig, failpoints: FailPoints) -> Runtime {
    let runtime = runtime();
    let control = runtime.block_on(Control::start(config.clone(), failpoints)).expect("start");
    let (stop, stopping) = watch::channel(false);
    runtime.spawn(async move {
        control.serve(stopping).await;
        drop(stop);
    });
    runtime
}

/// What does not agree between what control says and what there is; none when all is well and at rest.
async fn disagreement(config: &ControlConfig, world: &World) -> Option<String> {
    let list = ask(config.places.admin_socket(), "GET", "/v1/vms", &[], None).await.body;
    let rows = list["vms"].as_array().expect("list").clone();
    let (up, disks) = {
        let state = world.state();
        (state.up.clone(), state.disks.clone())
    };
    let view = std::fs::read(config.places.feed().join("vpc.json")).expect("view");
    let view: Value = serde_json::from_slice(&view).expect("json");
    for row in &rows {
        let id = row["id"].as_str().expect("id").parse().expect("id");
        let running = match row["state"].as_str().expect("state") {
            "running" => true,
            "stopped" => false,
            other => return Some(format!("{id} is {other}")),
        };
        if running != up.contains_key(&id) || !disks.contains(&id) {
            return Some(format!("{id} runs: {running}; the world has {up:?} and {disks:?}"));
        }
        if running {
            let path = format!("/v1/vms/{id}");
            let info = ask(config.places.admin_socket(), "GET", &path, &[], None).await.body;
            if info["vmInstanceId"] != up[&id].0.as_str() {
                return Some(format!("{id} runs as another instance"));
            }
        }
    }
    let ports = view["ports"].as_array().expect("list").len();
    if up.len() > rows.len() || disks.len() > rows.len() || ports != rows.len() {
        return Some(format!("{} VMs, but {up:?}, {disks:?}, {ports} ports", rows.len()));
    }
    None
}

/// Lets control die at a place, and tells the place's name; none when it is not reached.
fn die_at(place: i64) -> Option<String> {
    let folder = tempfile::tempdir().expect("folder");
    let config = config(folder.path());
    let outside = runtime();
    let world = outside.block_on(async { World::start(&config.places.vmm_socket()) });
    let reached = watch::Sender::new(None);
    let mut dead = reached.subscribe();
    let countdown = crate::vms::Countdown { left: AtomicI64::new(place), reached };
    let inside = start(&config, FailPoints { stop_at: Some(Arc::new(countdown)) });
    let mut calling = outside.spawn(script(config.clone()));
    let name = outside.block_on(async {
        tokio::select! {
            name = dead.wait_for(Option::is_some) => name.expect("the sender lives").clone(),
            done = &mut calling => { done.expect("the script"); None }
            () = tokio::time::sleep(PATIENCE) => panic!("stuck before place {place}"),
        }
    });
    calling.abort();
    inside.shutdown_timeout(PATIENCE);
    let name = name?;
    let second = start(&config, FailPoints::default());
    outside.block_on(async {
        let mut last = None;
        let settled = timeout(PATIENCE, async {
            loop {
                last = disagreement(&config, &world).await;
                if last.is_none() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let settled = settled.await;
        assert!(settled.is_ok(), "after death at {name}: {last:?}");
        let list = ask(config.places.admin_socket(), "GET", "/v1/vms", &[], None).await.body;
        for row in list["vms"].as_array().expect("list") {
            let path = format!("/v1/vms/{}", row["id"].as_str().expect("id"));
            ask(config.places.admin_socket(), "DELETE", &path, &[], None).await.good();
        }
        let state = world.state();
        assert!(state.up.is_empty() && state.disks.is_empty(), "after death at {name}: {state:?}");
    });
    second.shutdown_timeout(PATIENCE);
    Some(name)
}

#[test]
fn control_may_die_anywhere() {
    let mut places = Vec::new();
    for place in 0..MAX_PLACES {
        match die_at(place) {
            Some(name) => places.push(name),
            None => break,
        }
    }
    println!("died at {} places: {places:?}", places.len());
    assert!(places.len() > 20 && (places.len() as i64) < MAX_PLACES, "{places:?}");
    for needed in
        ["inserted", "published", "done Launch", "done AwaitAgent", "done Stop", "done Kill", "done Remove"]
    {
        assert!(places.iter().any(|place| place == needed), "{needed} is not among {places:?}");
    }
}
