//! Control dies at every place of every operation, and its next start repairs what it finds.

use super::domains::Dns;
use super::world::World;
use super::{PATIENCE, ask, config};
use crate::Control;
use crate::vms::{DieAt, FailPoints};
use model::config::ControlConfig;
use model::id::VmId;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::timeout;

/// More places than there are: the walk ends at the first that is not reached.
const MAX_PLACES: i64 = 300;
/// An SSH key of nobody.
const SSH_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICFo/k5LU8863u66YC9eUO2170QduohPURkQnbLa/dcz";
/// A client's public key, any one.
const CLIENT_KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

pub(super) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime")
}

/// What callers were told and may rely on.
#[derive(Debug, Default)]
struct Told {
    vms: BTreeSet<String>,
    asleep: Option<String>,
    snapshots: BTreeSet<String>,
    domain: bool,
}

/// What callers do while control dies under them.
async fn script(config: ControlConfig, dns: Dns, told: Arc<Mutex<Told>>) {
    let told = || told.lock().expect("no test panics with it");
    let call = async |method: &str, path: &str, body: &str| -> Value {
        ask(config.places.admin_socket(), method, path, &[], Some(body)).await.good()
    };
    let body = r#"{"domains":[{"domain":"a.style.dev"}],"spec":{"additionalFiles":{"/a":{"content":"a"}}}}"#;
    let kept = call("POST", "/v1/vms", body).await["id"].as_str().expect("id").to_owned();
    told().vms.insert(kept.clone());
    call("POST", &format!("/v1/vms/{kept}/stop"), "{}").await;
    call("POST", &format!("/v1/vms/{kept}/start"), "{}").await;
    call("POST", &format!("/v1/vms/{kept}/kill"), "{}").await;
    call("POST", &format!("/v1/vms/{kept}/exec-await"), r#"{"command":"true"}"#).await;
    identities(&config, &kept).await;
    domains(&config, &dns, &kept, &mut || told().domain = true).await;
    let vpc = call("POST", "/v1/vpcs", "{}").await["vpcId"].as_str().expect("id").to_owned();
    let body = json!({"nics": [{"vpc": vpc, "mode": "routed"}]}).to_string();
    let gone = call("POST", "/v1/vms", &body).await["id"].as_str().expect("id").to_owned();
    private(&config, &vpc, &gone).await;
    call("POST", &format!("/v1/vms/{gone}/stop"), "{}").await;
    call("DELETE", &format!("/v1/vpcs/{vpc}/members/{gone}"), "{}").await;
    call("POST", &format!("/v1/vpcs/{vpc}/members"), &json!({"vmId": gone, "ipv4": "10.0.7.7"}).to_string())
        .await;
    call("DELETE", &format!("/v1/vms/{gone}"), "{}").await;
    call("DELETE", &format!("/v1/vpcs/{vpc}"), "{}").await;

    call("POST", &format!("/v1/vms/{kept}/suspend"), "{}").await;
    told().asleep = Some(kept.clone());
    let copy = call("POST", &format!("/v1/vms/{kept}/snapshot"), "{}").await;
    let copy = copy["snapshotId"].as_str().expect("id").to_owned();
    told().snapshots.insert(copy.clone());
    told().asleep = None;
    call("POST", &format!("/v1/vms/{kept}/start"), "{}").await;
    let made = call("POST", "/v1/vms", &json!({"snapshotId": copy}).to_string()).await;
    told().vms.insert(made["id"].as_str().expect("id").to_owned());
    told().snapshots.remove(&copy);
    call("DELETE", &format!("/v1/vms/snapshots/{copy}"), "{}").await;
    let forked = call("POST", &format!("/v1/vms/{kept}/fork"), r#"{"count":2}"#).await;
    for fork in forked["forks"].as_array().expect("list") {
        told().vms.insert(fork["id"].as_str().expect("id").to_owned());
    }
    call("POST", &format!("/v1/vms/{kept}/resize"), r#"{"memSizeGb":0.5}"#).await;
    call("POST", &format!("/v1/vms/{kept}/resize"), r#"{"rootfsSizeGb":2}"#).await;
    call("POST", &format!("/v1/vms/{kept}/suspend"), "{}").await;
    told().vms.remove(&kept);
    call("DELETE", &format!("/v1/vms/{kept}"), "{}").await;
}

/// A domain is proved and mapped, in one name for good and in another for a while.
async fn domains(config: &ControlConfig, dns: &Dns, vm: &str, proved: &mut (dyn FnMut() + Send)) {
    let call = async |method: &str, path: &str, body: &str| -> Value {
        ask(config.places.admin_socket(), method, path, &[], Some(body)).await.good()
    };
    let verifications = "/domains/v1/verifications";
    let begun = call("POST", verifications, r#"{"domain":"shop.test"}"#).await;
    dns.publish("_freestyle_custom_hostname.shop.test", begun["verificationCode"].as_str().expect("code"));
    call("PUT", verifications, r#"{"domain":"shop.test"}"#).await;
    proved();
    let to = json!({"vmId": vm}).to_string();
    call("POST", "/domains/v1/mappings/*.shop.test", &to).await;
    call("POST", "/domains/v1/mappings/www.shop.test", &to).await;
    call("DELETE", "/domains/v1/mappings/www.shop.test", "{}").await;
}

/// What of domains does not agree between what control says and what the door is told.
async fn domain_disagreement(config: &ControlConfig, told: bool) -> Option<String> {
    let get = async |path: &str| ask(config.places.admin_socket(), "GET", path, &[], None).await.body;
    let view = std::fs::read(config.places.feed().join("edge.json")).expect("view");
    let view: Value = serde_json::from_slice(&view).expect("json");
    let (mapped, led) = (ids(&get("/domains/v1/mappings").await, "domain"), ids(&view["routes"], "host"));
    if mapped != led {
        return Some(format!("{mapped:?} are mapped, and the door leads {led:?}"));
    }
    let domains = ids(&get("/domains/v1/domains").await, "domain");
    let begun = ids(&get("/domains/v1/verifications").await, "domain");
    let lost = told && !domains.contains("shop.test");
    let both = !domains.is_disjoint(&begun);
    (lost || both).then(|| format!("{domains:?} are proved and {begun:?} begun; told: {told:?}"))
}

/// Identities come, are granted a VM and go; one stays and keeps what it has until its VM goes.
async fn identities(config: &ControlConfig, vm: &str) {
    let call = async |method: &str, path: &str, body: &str| -> Value {
        ask(config.places.admin_socket(), method, path, &[], Some(body)).await.good()
    };
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    for goes in [true, false] {
        let id = text(&call("POST", "/identity/v1/identities", "{}").await["id"]);
        let at = |path: &str| format!("/identity/v1/identities/{id}{path}");
        call("POST", &at("/tokens"), "{}").await;
        call("POST", &at(&format!("/permissions/vm/{vm}")), r#"{"allowedUsers":["dev"]}"#).await;
        let key = text(&call("POST", &at("/keys"), &json!({"key": SSH_KEY}).to_string()).await["id"]);
        if goes {
            let token = text(&call("POST", &at("/tokens"), "{}").await["id"]);
            call("DELETE", &at(&format!("/tokens/{token}")), "{}").await;
            call("PUT", &at(&format!("/permissions/vm/{vm}")), "{}").await;
            call("DELETE", &at(&format!("/keys/{key}")), "{}").await;
            call("POST", &at("/permissions/git/repo"), r#"{"permission":"read"}"#).await;
            call("DELETE", &at(&format!("/permissions/vm/{vm}")), "{}").await;
            call("DELETE", &at(""), "{}").await;
        }
    }
}

/// What of identities does not agree between what control says and what the SSH front is told.
async fn identity_disagreement(config: &ControlConfig) -> Option<String> {
    let get = async |path: &str| ask(config.places.admin_socket(), "GET", path, &[], None).await.body;
    let view = std::fs::read(config.places.feed().join("ssh.json")).expect("view");
    let view: Value = serde_json::from_slice(&view).expect("json");
    let told = |id: &Value| {
        let all = view["principals"].as_array().expect("list");
        all.iter().find(|entry| entry["principal"]["identity"] == *id).cloned().unwrap_or_default()
    };
    let mut with_grants = 0;
    for identity in get("/identity/v1/identities").await["identities"].as_array().expect("list") {
        let at = format!("/identity/v1/identities/{}", identity["id"].as_str().expect("id"));
        let grants = ids(&get(&format!("{at}/permissions/vm")).await["permissions"], "vmId");
        let (tokens, keys) = (get(&format!("{at}/tokens")).await, get(&format!("{at}/keys")).await);
        let entry = told(&identity["id"]);
        let same = ids(&tokens["tokens"], "id") == ids(&entry["tokens"], "id")
            && ids(&keys["keys"], "id") == ids(&entry["keys"], "id");
        if grants != ids(&entry["grants"], "vm") || !(same || grants.is_empty()) {
            return Some(format!("{identity} has {grants:?}, {tokens}, {keys}, but {entry}"));
        }
        with_grants += usize::from(!grants.is_empty());
    }
    let told = view["principals"].as_array().expect("list").len();
    (told != with_grants).then(|| format!("{with_grants} identities have grants, and {told} are told"))
}

/// What else is done in a private network. All of it ends with the network, or before.
async fn private(config: &ControlConfig, vpc: &str, member: &str) {
    let call = async |method: &str, path: &str, body: &str| -> Value {
        ask(config.places.admin_socket(), method, path, &[], Some(body)).await.good()
    };
    let at = |path: &str| format!("/v1/vpcs/{vpc}/{path}");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let session = text(&call("POST", &at("wireguard/ephemeral"), "{}").await["sessionId"]);
    call("DELETE", &at("wireguard/ephemeral"), &json!({"sessionId": session}).to_string()).await;
    let peer = json!({"gatewayVmId": member, "clientPublicKey": CLIENT_KEY}).to_string();
    call("POST", &at("wireguard/peers"), &peer).await;
    let rule = json!({"action": "deny", "direction": "in", "vm": member}).to_string();
    let rule = text(&call("POST", &at("rules"), &rule).await["ruleId"]);
    call("DELETE", &at(&format!("rules/{rule}")), "{}").await;
    let rules = json!({"rules": [{"action": "allow", "direction": "out", "peer": "vpn"},
        {"action": "deny", "direction": "in", "peer": member}]});
    call("PUT", &at("rules"), &rules.to_string()).await;
    let service = text(&call("POST", &at("services"), r#"{"name":"db"}"#).await["serviceId"]);
    call("DELETE", &at(&format!("services/{service}")), "{}").await;
    let other = text(&call("POST", "/v1/vpcs", r#"{"cidr":"172.16.0.0/16"}"#).await["vpcId"]);
    let peering = json!({ "peerVpcId": other }).to_string();
    let peering = text(&call("POST", &at("peerings"), &peering).await["peeringId"]);
    call("DELETE", &at(&format!("peerings/{peering}")), "{}").await;
    call("DELETE", &format!("/v1/vpcs/{other}"), "{}").await;
}

/// Starts a control in a runtime of its own and serves.
pub(super) fn start(config: &ControlConfig, failpoints: FailPoints) -> Runtime {
    let runtime = runtime();
    let control = runtime.block_on(Control::start(config.clone(), failpoints)).expect("start");
    let (stop, stopping) = watch::channel(false);
    runtime.spawn(async move {
        control.serve(stopping).await;
        drop(stop);
    });
    runtime
}

/// What does not agree between what control says, what there is and what was told; none when all is well and at rest.
async fn disagreement(config: &ControlConfig, world: &World, told: &Mutex<Told>) -> Option<String> {
    let get = async |path: &str| ask(config.places.admin_socket(), "GET", path, &[], None).await.body;
    let list = get("/v1/vms").await;
    let rows = list["vms"].as_array().expect("list").clone();
    let (up, disks, asleep, copies) = {
        let state = world.state();
        (state.up.clone(), state.disks.clone(), state.asleep.clone(), state.copies.clone())
    };
    let view = std::fs::read(config.places.feed().join("vpc.json")).expect("view");
    let view: Value = serde_json::from_slice(&view).expect("json");
    let ports = ports(&view);
    for row in &rows {
        let id: VmId = row["id"].as_str().expect("id").parse().expect("id");
        let state = row["state"].as_str().expect("state");
        let running = match state {
            "running" => true,
            "stopped" | "suspended" => false,
            other => return Some(format!("{id} is {other}")),
        };
        if running != up.contains_key(&id) || !disks.contains(&id) {
            return Some(format!("{id} is {state}; the world has {up:?} and {disks:?}"));
        }
        if state == "suspended" && !asleep.contains_key(&id) {
            return Some(format!("{id} is suspended, and its memory is gone"));
        }
        let info = get(&format!("/v1/vms/{id}")).await;
        let port = ports.iter().find(|(_, port)| port["vm"] == id.as_str());
        let fits = |(vpc, port): &(Value, Value)| {
            port["asleep"] == json!(state == "suspended")
                && (vpc, &port["ipv4"]) == (&info["vpc"], &info["ipv4"])
        };
        if !port.is_some_and(fits) {
            return Some(format!("{info} has the port {port:?}"));
        }
        if running && info["vmInstanceId"] != up[&id].0.as_str() {
            return Some(format!("{id} runs as another instance"));
        }
    }
    if up.len() > rows.len() || disks.len() > rows.len() || ports.len() != rows.len() {
        return Some(format!("{} VMs, but {up:?}, {disks:?}, {} ports", rows.len(), ports.len()));
    }
    let proved = told.lock().expect("no test panics with it").domain;
    if let Some(why) = domain_disagreement(config, proved).await.or(identity_disagreement(config).await) {
        return Some(why);
    }
    if let Some(why) = private_disagreement(config, &view).await {
        return Some(why);
    }
    let snapshots = get("/v1/vms/snapshots").await;
    let ready: BTreeSet<&str> = snapshots["snapshots"]
        .as_array()
        .expect("list")
        .iter()
        .filter(|snapshot| snapshot["state"] == "ready")
        .filter_map(|snapshot| snapshot["snapshotId"].as_str())
        .collect();
    if snapshots["buildingCount"] != 0 || ready != copies.keys().map(|id| id.as_str()).collect() {
        return Some(format!("{snapshots}, but {copies:?}"));
    }
    let told = told.lock().expect("no test panics with it");
    if let Some(lost) = told.vms.iter().find(|vm| rows.iter().all(|row| row["id"] != vm.as_str())) {
        return Some(format!("{lost} is lost"));
    }
    if let Some(lost) = told.snapshots.iter().find(|id| !ready.contains(id.as_str())) {
        return Some(format!("{lost} is lost"));
    }
    let sleeps = |vm: &String| rows.iter().any(|row| row["id"] == vm.as_str() && row["state"] == "suspended");
    told.asleep.as_ref().filter(|vm| !sleeps(vm)).map(|vm| format!("{vm} does not sleep"))
}

/// What of private networks does not agree between what control says and what it has published.
async fn private_disagreement(config: &ControlConfig, view: &Value) -> Option<String> {
    let get = async |path: &str| ask(config.places.admin_socket(), "GET", path, &[], None).await.body;
    let told = std::fs::read(config.places.feed().join("vpn.json")).expect("view");
    let told: Value = serde_json::from_slice(&told).expect("json");
    let told = ids(&told["sessions"], "id");
    let mut sessions = BTreeSet::new();
    for vpc in get("/v1/vpcs").await["vpcs"].as_array().expect("list") {
        let at = format!("/v1/vpcs/{}", vpc["vpcId"].as_str().expect("id"));
        let network = view["networks"].as_array().expect("list").iter().find(|at| at["vpc"] == vpc["vpcId"]);
        let network = network.cloned().unwrap_or_default();
        let mine = ids(&get(&format!("{at}/wireguard/sessions")).await["sessions"], "sessionId");
        if network["clients"].is_null() != mine.is_empty() {
            return Some(format!("{vpc} has {mine:?}, but {network}"));
        }
        sessions.extend(mine);
        for (what, id) in [("rules", "ruleId"), ("services", "serviceId"), ("peerings", "peeringId")] {
            let said = ids(&get(&format!("{at}/{what}")).await[what], id);
            if said != ids(&network[what], "id") && !(network.is_null() && what == "rules") {
                return Some(format!("{vpc} has the {what} {said:?}, but {network}"));
            }
        }
    }
    (sessions != told).then(|| format!("the sessions are {sessions:?}, and vpn knows {told:?}"))
}

fn ids(list: &Value, name: &str) -> BTreeSet<String> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|entry| entry[name].as_str().map(str::to_owned)).collect()
}

/// The ports of a view, each with its VPC.
fn ports(view: &Value) -> Vec<(Value, Value)> {
    let of = |vpc: &Value, ports: &Value| -> Vec<(Value, Value)> {
        ports.as_array().expect("list").iter().map(|port| (vpc.clone(), port.clone())).collect()
    };
    let networks = view["networks"].as_array().expect("list");
    let private = networks.iter().flat_map(|network| of(&network["vpc"], &network["ports"]));
    of(&Value::Null, &view["ports"]).into_iter().chain(private).collect()
}

/// Lets control die at a place, and tells the place's name; none when it is not reached.
fn die_at(at: DieAt) -> Option<String> {
    let place = format!("{at:?}");
    let folder = tempfile::tempdir().expect("folder");
    let mut config = config(folder.path());
    let outside = runtime();
    let dns = outside.block_on(Dns::start());
    dns.configure(&mut config);
    let world = outside.block_on(async { World::start(&config.places.vmm_socket()) });
    let reached = watch::Sender::new(None);
    let mut dead = reached.subscribe();
    let countdown = crate::vms::Countdown { at, reached };
    let inside = start(&config, FailPoints { stop_at: Some(Arc::new(countdown)) });
    let told = Arc::new(Mutex::new(Told::default()));
    let mut calling = outside.spawn(script(config.clone(), dns, Arc::clone(&told)));
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
                last = disagreement(&config, &world, &told).await;
                if last.is_none() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let settled = settled.await;
        assert!(settled.is_ok(), "after death at place {place}, {name}: {last:?}; told: {told:?}");
        let list = ask(config.places.admin_socket(), "GET", "/v1/vms", &[], None).await.body;
        for row in list["vms"].as_array().expect("list") {
            let path = format!("/v1/vms/{}", row["id"].as_str().expect("id"));
            let deleted = ask(config.places.admin_socket(), "DELETE", &path, &[], None).await;
            // A child of a fork that is being given up may go by itself meanwhile.
            assert!(deleted.status.is_success() || deleted.code() == "VM_NOT_FOUND", "{deleted:?}");
        }
        let list = ask(config.places.admin_socket(), "GET", "/v1/vms/snapshots", &[], None).await.body;
        for row in list["snapshots"].as_array().expect("list") {
            let path = format!("/v1/vms/snapshots/{}", row["snapshotId"].as_str().expect("id"));
            ask(config.places.admin_socket(), "DELETE", &path, &[], None).await.good();
        }
        let state = world.state();
        let left = !(state.up.is_empty() && state.disks.is_empty() && state.asleep.is_empty());
        assert!(!left && state.copies.is_empty(), "after death at {name}: {state:?}");
    });
    second.shutdown_timeout(PATIENCE);
    Some(name)
}

#[test]
fn control_may_die_anywhere() {
    let mut places = Vec::new();
    for place in 0..MAX_PLACES {
        match die_at(DieAt::Number(AtomicI64::new(place))) {
            Some(name) => places.push(name),
            None => break,
        }
    }
    println!("died at {} places: {places:?}", places.len());
    assert!(places.len() > 20 && (places.len() as i64) < MAX_PLACES, "{places:?}");
    for needed in [
        "inserted",
        "published",
        "done Launch",
        "done AwaitAgent",
        "done Stop",
        "done Kill",
        "done Remove",
        "stored Phase(Suspending)",
        "done Suspend",
        "stored Phase(Suspended)",
        "done Publish",
        "stored Phase(Resuming)",
        "snapshot inserted",
        "copied",
        "snapshot ready",
        "snapshot deleted",
        "snapshot removed",
        "fork inserted",
        "frozen",
        "raised",
        "thawed",
        "resized",
        "moved",
        "session made",
        "session closed",
        "rule made",
        "rules put",
        "service made",
        "service removed",
        "peering active",
        "peering ended",
        "VPC deleted",
        "identity made",
        "token made",
        "token revoked",
        "VM granted",
        "grant changed",
        "grant revoked",
        "SSH key added",
        "SSH key removed",
        "repository granted",
        "identity deleted",
        "domain taken",
        "mapping changed",
    ] {
        // What runs at once passes in any order, and a walk by numbers may step over a place.
        if !places.iter().any(|place| place == needed) {
            assert_eq!(die_at(DieAt::Name(needed)).as_deref(), Some(needed), "not among {places:?}");
        }
    }
}
