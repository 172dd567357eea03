//! What a VM lives through, as callers see it.

use super::world::Manner;
use super::{Bench, call, eventually, id, nothing};
use model::api::BACKGROUND_AFTER_HEADER;
use serde_json::{Value, json};
use std::collections::{HashSet, VecDeque};
use vmm::client::ExitReason;

async fn state(bench: &Bench, vm: &str) -> Value {
    bench.admin("GET", &format!("/v1/vms/{vm}"), nothing()).await.body["state"].clone()
}

#[tokio::test]
async fn a_vm_is_made_used_stopped_started_and_deleted_and_nothing_is_left() {
    let bench = Bench::new().await;
    let vm = bench.create(json!({"name": "shop", "idleTimeoutSeconds": null, "unknown": 1})).await;
    let info = bench.admin("GET", &format!("/v1/vms/{vm}"), nothing()).await.good();
    assert_eq!(
        (&info["state"], &info["name"], &info["idleTimeoutSeconds"]),
        (&json!("running"), &json!("shop"), &Value::Null)
    );
    let spec = bench.world.state().launched[0].clone();
    assert!(
        spec.nic.expect("a NIC").generation.0 <= bench.view("vpc")["generation"].as_u64().expect("number")
    );
    assert_eq!(bench.view("vpc")["ports"][0]["ipv4"], "10.201.0.1");
    assert_eq!(spec.boot.network.expect("network").ipv4.to_string(), "10.201.0.1");

    let exec = format!("/v1/vms/{vm}/exec-await");
    let done = bench
        .admin(
            "POST",
            &exec,
            json!({"command": "echo out; echo err >&2; exit 3", "terminal": null, "timeoutMs": null}),
        )
        .await
        .good();
    assert_eq!(done, json!({"stdout": "out\n", "stderr": "err\n", "statusCode": 3}));

    let stopped = bench.admin("POST", &format!("/v1/vms/{vm}/stop"), Value::Null).await.good();
    assert_eq!((&stopped["vmId"], &stopped["vmInstanceId"]), (&json!(vm), &info["vmInstanceId"]));
    assert_eq!(state(&bench, &vm).await, "stopped");
    bench.admin("POST", &format!("/v1/vms/{vm}/stop"), nothing()).await.good();
    let started = bench.admin("POST", &format!("/v1/vms/{vm}/start"), nothing()).await.good();
    assert_eq!(started, json!({"id": vm, "domains": [], "console_url": null}));
    let again = bench.admin("GET", &format!("/v1/vms/{vm}"), nothing()).await.good();
    assert_ne!(again["vmInstanceId"], info["vmInstanceId"], "a new run");

    bench.admin("POST", &format!("/v1/vms/{vm}/kill"), nothing()).await.good();
    let exited = bench.admin("POST", &format!("/v1/vms/{vm}/await"), nothing()).await.good();
    assert_eq!(exited, json!({"id": vm, "exitStatus": "killed"}));
    let woken = bench.admin("POST", &exec, json!({"command": "true"})).await.good();
    assert_eq!(woken["statusCode"], 0, "a command starts a VM that is down");

    let deleted = bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();
    assert_eq!(deleted, json!({"id": vm, "recreate": false}));
    assert!(bench.world.state().up.is_empty() && bench.world.state().disks.is_empty());
    assert_eq!(bench.view("vpc")["ports"], json!([]));
    for (method, path) in
        [("DELETE", format!("/v1/vms/{vm}")), ("GET", format!("/v1/vms/{vm}")), ("POST", exec)]
    {
        let reply = bench.admin(method, &path, json!({"command": "true"})).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (404, "VM_NOT_FOUND"), "{method} {path}");
    }
}

#[tokio::test]
async fn files_go_in_and_come_out_in_both_spellings_of_the_path() {
    let bench = Bench::new().await;
    let files = json!({"/opt/run.sh": {"content": "aGk=", "encoding": "base64", "executable": true}});
    let vm = bench.create(json!({"spec": {"additionalFiles": files, "name": null, "aptDeps": []}})).await;
    assert_eq!(bench.world.mode(&id(&vm), "/opt/run.sh"), Some(0o755));
    let encoded = format!("/v1/vms/{vm}/files/%2Froot%2Fa%20b.txt");
    let put = bench.admin("PUT", &encoded, json!({"content": "aMOk", "encoding": "base64"})).await;
    assert_eq!(put.good(), nothing());
    for path in [
        &encoded,
        &format!("/v1/vms/{vm}/files/root/a%20b.txt"),
        &format!("/v1/vms/{vm}/files//root/a%20b.txt"),
    ] {
        let got = bench.admin("GET", path, nothing()).await.good();
        assert_eq!(got, json!({"content": "hä", "encoding": "utf8"}), "{path}");
    }
    let big = "/v+AAA==".repeat(50_000);
    let binary = format!("/v1/vms/{vm}/files/%2Froot%2Fbin");
    let joined = "/v+AAAEB".repeat(50_000);
    bench.admin("PUT", &binary, json!({"content": joined, "encoding": "base64"})).await.good();
    assert_eq!(
        bench.admin("GET", &binary, nothing()).await.good(),
        json!({"content": joined, "encoding": "base64"})
    );
    let refused = bench.admin("PUT", &binary, json!({"content": big, "encoding": "base64"})).await;
    assert_eq!(refused.code(), "FILES_BAD_REQUEST");
    let listed = bench.admin("GET", &format!("/v1/vms/{vm}/files/%2Froot"), nothing()).await.good();
    assert_eq!(
        listed,
        json!({"files": [{"name": "a b.txt", "kind": "file"}, {"name": "bin", "kind": "file"}]})
    );
    let missing = bench.admin("GET", &format!("/v1/vms/{vm}/files/%2Fnone"), nothing()).await;
    assert_eq!((missing.code(), &missing.body["path"]), ("FILE_NOT_FOUND", &json!("/none")));
}

#[tokio::test]
async fn a_mapping_is_published_before_it_is_answered_and_goes_with_the_vm() {
    let bench = Bench::new().await;
    let vm = bench.create(json!({"domains": [{"domain": "first.style.dev", "vmPort": 8080}]})).await;
    let path = "/domains/v1/mappings/Shop.style.dev";
    let made = bench.admin("POST", path, json!({"domain": "x", "vmId": vm, "vmPort": 3000})).await.good();
    assert_eq!(
        (&made["domain"], &made["vmId"], &made["vmPort"]),
        (&json!("shop.style.dev"), &json!(vm), &json!(3000))
    );
    let edge = bench.view("edge");
    assert_eq!(edge["api_hosts"], json!(["api.style.dev"]));
    assert_eq!(edge["routes"][0]["host"], "first.style.dev");
    assert_eq!(edge["routes"][1], json!({"host": "shop.style.dev", "vm": vm, "port": 3000, "run": 1}));
    assert_eq!(bench.view("vpc")["ports"][0]["dialable"], json!([22, 3000, 8080]));

    bench.world.reboot(&id(&vm));
    eventually("a new run after a reboot", async || {
        (bench.view("edge")["routes"][1]["run"] == 2).then_some(())
    })
    .await;

    let list = bench
        .admin("GET", "/domains/v1/mappings?domain=shop.style.dev&limit=10&offset=0", nothing())
        .await
        .good();
    assert_eq!(list, json!([made]));
    assert_eq!(bench.admin("DELETE", path, nothing()).await.good(), nothing());
    assert_eq!(bench.admin("DELETE", path, nothing()).await.code(), "FAILED_REMOVE_DOMAIN_MAPPING");
    assert_eq!(bench.view("edge")["routes"].as_array().expect("list").len(), 1);
    bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();
    assert_eq!(bench.view("edge")["routes"], json!([]));
    assert_eq!(bench.admin("GET", "/domains/v1/mappings", nothing()).await.good(), json!([]));
}

#[tokio::test]
async fn many_names_are_published_in_parts_and_few_in_the_view() {
    const VMS: usize = 17;
    /// So many an account may have.
    const MOST_VMS: usize = 8;
    const NAMES: usize = 64;
    let bench = Bench::new().await;
    let domain = |vm: usize, number: usize| json!({"domain": format!("n{number}-of-{vm}.style.dev")});
    let mut made = VecDeque::new();
    for vm in 0..VMS {
        // The names of a VM that is gone stay, and lead nowhere.
        if made.len() == MOST_VMS {
            let oldest: String = made.pop_front().expect("one");
            bench.admin("DELETE", &format!("/v1/vms/{oldest}"), nothing()).await.good();
        }
        let domains: Vec<_> = (0..NAMES).map(|number| domain(vm, number)).collect();
        made.push_back(bench.create(json!({"domains": domains})).await);
    }
    let edge = bench.view("edge");
    assert_eq!((&edge["routes"], &edge["gone"]), (&json!([]), &json!([])));
    let files = edge["names"]["files"].as_array().expect("files").clone();
    let reader = feed::names::NamesReader::at(bench.config.places.names());
    let (mut hosts, mut gone) = (HashSet::new(), HashSet::new());
    for file in &files {
        let part = reader.read(file.as_str().expect("digest").parse().expect("digest")).expect("a part");
        assert_eq!(part.rejected(), 0);
        hosts.extend(part.routes.iter().map(|route| route.host.to_string()));
        gone.extend(part.gone.iter().map(ToString::to_string));
    }
    assert_eq!(files.len(), model::names::PARTS);
    assert_eq!((hosts.len(), gone.len()), (MOST_VMS * NAMES, (VMS - MOST_VMS) * NAMES));
    assert!(hosts.contains("n3-of-16.style.dev") && gone.contains("n3-of-5.style.dev"));
    bench.admin("DELETE", &format!("/v1/vms/{}", made[0]), nothing()).await.good();
    let edge = bench.view("edge");
    let now = edge["names"]["files"].as_array().expect("files");
    let changed = files.iter().zip(now).filter(|(old, new)| old != new);
    assert!((1..=NAMES).contains(&changed.count()));
    for vm in made.iter().skip(1) {
        bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();
    }
}

#[tokio::test]
async fn six_at_once_are_made_and_deleted_at_once() {
    let bench = Bench::new().await;
    let socket = bench.config.places.admin_socket();
    let post = |n: usize| {
        let socket = socket.clone();
        tokio::spawn(async move {
            let body = json!({"domains": [{"domain": format!("n{n}.style.dev")}]}).to_string();
            call(&socket, "POST", "/v1/vms", &[], Some(&body)).await.good()["id"].clone()
        })
    };
    let making: Vec<_> = (0..6).map(post).collect();
    let mut made = Vec::new();
    for making in making {
        made.push(making.await.expect("made").as_str().expect("id").to_owned());
    }
    let list = bench.admin("GET", "/v1/vms", nothing()).await.good();
    assert_eq!((&list["totalCount"], &list["runningCount"]), (&json!(6), &json!(6)));
    assert_eq!(list["vms"][0]["sizing"], json!({"vcpuCount": 1, "memSizeMib": 256, "rootfsSizeMb": 1024}));
    assert_eq!(bench.view("edge")["routes"].as_array().expect("list").len(), 6);
    let narrowed =
        bench.admin("GET", &format!("/v1/vms?search={}&vmState=running", made[2]), nothing()).await;
    assert_eq!(narrowed.good()["vms"].as_array().expect("list").len(), 1);
    let delete = |vm: String| {
        let socket = socket.clone();
        tokio::spawn(async move { call(&socket, "DELETE", &format!("/v1/vms/{vm}"), &[], None).await.good() })
    };
    let deleting: Vec<_> = made.into_iter().map(delete).collect();
    for deleting in deleting {
        deleting.await.expect("deleted");
    }
    assert!(bench.world.state().up.is_empty() && bench.world.state().disks.is_empty());
    assert_eq!((&bench.view("edge")["routes"], &bench.view("vpc")["ports"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn a_creation_that_fails_leaves_nothing() {
    let bench = Bench::new().await;
    for (manner, code) in [
        (Manner::Refuse(vmm::client::Refusal::Kvm), "VM_SPAWN_PROCESS"),
        (Manner::NeverReady, "VM_START_TIMEOUT"),
        (Manner::DieAtOnce, "KERNEL_PANIC"),
    ] {
        bench.world.state().manner = manner.clone();
        let body = json!({"readySignalTimeoutSeconds": 1, "domains": [{"domain": "a.style.dev"}]});
        assert_eq!(bench.admin("POST", "/v1/vms", body).await.code(), code, "{manner:?}");
        assert!(bench.world.state().up.is_empty() && bench.world.state().disks.is_empty(), "{manner:?}");
        assert_eq!(bench.admin("GET", "/v1/vms", nothing()).await.good()["totalCount"], 0, "{manner:?}");
        assert_eq!(bench.view("edge")["routes"], json!([]), "{manner:?}");
    }
}

#[tokio::test]
async fn a_start_that_fails_leaves_the_vm_stopped_or_lost() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    bench.admin("POST", &format!("/v1/vms/{vm}/stop"), nothing()).await.good();
    let start = format!("/v1/vms/{vm}/start");
    bench.world.state().manner = Manner::NeverReady;
    let reply = bench.admin("POST", &start, json!({"readySignalTimeoutSeconds": 1})).await;
    assert_eq!((reply.code(), &reply.body["vmId"]), ("VM_START_TIMEOUT", &json!(vm)));
    assert_eq!(state(&bench, &vm).await, "stopped");
    bench.world.state().manner = Manner::Refuse(vmm::client::Refusal::Disk);
    assert_eq!(bench.admin("POST", &start, nothing()).await.code(), "VM_NOT_FOUND_IN_FS");
    assert_eq!(state(&bench, &vm).await, "lost");
    bench.world.state().manner = Manner::Ready;
    bench.admin("POST", &start, nothing()).await.good();
    assert_eq!(state(&bench, &vm).await, "running");
}

#[tokio::test]
async fn a_guest_that_goes_down_is_seen_and_an_ephemeral_one_is_deleted() {
    let bench = Bench::new().await;
    let vm = bench.create(json!({"domains": [{"domain": "kept.style.dev"}]})).await;
    let socket = bench.config.places.admin_socket();
    let path = format!("/v1/vms/{vm}/await");
    let waiting = tokio::spawn(async move { call(&socket, "POST", &path, &[], None).await });
    bench.world.exit(&id(&vm), ExitReason::PoweredOff);
    assert_eq!(waiting.await.expect("awaited").good()["exitStatus"], "powered off by the guest");
    assert_eq!(state(&bench, &vm).await, "stopped");
    assert_eq!(bench.view("edge")["routes"][0]["host"], "kept.style.dev", "mappings stay");
    let brief = bench.create(json!({"persistence": {"type": "ephemeral", "deleteEvent": "onStop"}})).await;
    bench.world.exit(&id(&brief), ExitReason::PoweredOff);
    eventually("the ephemeral one is gone", async || {
        (state(&bench, &brief).await == Value::Null).then_some(())
    })
    .await;
    assert!(!bench.world.state().disks.contains(&id(&brief)));
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_a_creation_and_a_delete_does() {
    let bench = Bench::new().await;
    bench.world.state().manner = Manner::NeverReady;
    let socket = bench.config.places.admin_socket();
    let gone = tokio::spawn(async move { call(&socket, "POST", "/v1/vms", &[], Some("{}")).await });
    let vm =
        eventually("launched", async || bench.world.state().launched.first().map(|spec| spec.vm.clone()))
            .await;
    gone.abort();
    assert_eq!(state(&bench, vm.as_str()).await, "building");
    bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();
    assert!(bench.world.state().up.is_empty(), "without waiting for the boot to time out");
}

#[tokio::test]
async fn a_creation_goes_on_behind_the_back_of_who_asks_for_it() {
    let bench = Bench::new().await;
    bench.world.state().manner = Manner::NeverReady;
    let socket = bench.config.places.admin_socket();
    let header = [(BACKGROUND_AFTER_HEADER, "0")];
    let first = call(&socket, "POST", "/v1/vms", &header, Some("{}")).await;
    assert_eq!(first.status.as_u16(), 202);
    let request = first.headers[model::api::BACKGROUND_REQUEST_HEADER].to_str().expect("text").to_owned();
    assert_eq!(first.body["requestId"], json!(request));
    let poll = format!("/auth/v1/background-requests/{request}");
    assert_eq!(bench.admin("GET", &poll, nothing()).await.status.as_u16(), 202);
    let vm =
        eventually("launched", async || bench.world.state().launched.first().map(|spec| spec.vm.clone()))
            .await;
    bench.world.reboot(&vm);
    let done = eventually("done", async || {
        Some(bench.admin("GET", &poll, nothing()).await).filter(|reply| reply.status.as_u16() == 200)
    })
    .await;
    assert_eq!(done.good(), json!({"id": vm, "domains": [], "snapshotId": null}));
    let logs =
        bench.admin("GET", &format!("/observability/v1/logs?requestId={request}"), nothing()).await.good();
    assert!(logs["logs"].as_array().expect("list").len() >= 3, "{logs}");
    let unknown = bench.admin("GET", "/auth/v1/background-requests/ri-none", nothing()).await;
    assert_eq!(unknown.code(), "NOT_FOUND");
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_told_with_what_it_said() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    let exec = format!("/v1/vms/{vm}/exec-await");
    let late = bench.admin("POST", &exec, json!({"command": "sleep 60", "timeoutMs": 50})).await;
    assert_eq!((late.status.as_u16(), late.code()), (408, "EXEC_TIMED_OUT"));
    assert_eq!((&late.body["timeoutMs"], &late.body["stdout"]), (&json!(50), &json!("partial")));
    let header = [(model::api::LINUX_USER_HEADER, "nobody-here")];
    let reply =
        call(&bench.config.places.admin_socket(), "POST", &exec, &header, Some(r#"{"command":"id"}"#)).await;
    assert_eq!(reply.code(), "USER_NOT_FOUND");
}
