//! VPCs, as callers see them and as vpc is told of them.

use super::crash::{runtime, start};
use super::world::{Manner, World};
use super::{Bench, Reply, call, config, id, nothing};
use crate::vms::FailPoints;
use model::net::{MacAddress, Ula};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub(super) fn nic(vpc: &str, ipv4: Value) -> Value {
    json!({"nics": [{"vpc": vpc, "mode": "routed", "ipv4": ipv4}]})
}

impl Bench {
    pub(super) async fn vpc(&self, cidr: &str) -> String {
        let made = self.admin("POST", "/v1/vpcs", json!({ "cidr": cidr })).await.good();
        made["vpcId"].as_str().expect("id").to_owned()
    }

    /// Asks for the members' list of a VPC.
    async fn members(&self, vpc: &str) -> Value {
        self.admin("GET", &format!("/v1/vpcs/{vpc}"), nothing()).await.good()["members"].clone()
    }

    async fn attach(&self, vpc: &str, vm: &str, ipv4: Value) -> Reply {
        let body = json!({"vmId": vm, "ipv4": ipv4});
        self.admin("POST", &format!("/v1/vpcs/{vpc}/members"), body).await
    }

    pub(super) async fn detach(&self, vpc: &str, vm: &str) -> Reply {
        self.admin("DELETE", &format!("/v1/vpcs/{vpc}/members/{vm}"), nothing()).await
    }

    fn spec(&self, vm: &str) -> vmm::client::MachineSpec {
        let launched = self.world.state().launched.clone();
        launched.into_iter().rfind(|spec| spec.vm == id(vm)).expect("launched")
    }

    /// Its IPv6 address, if it was told one.
    fn launched_ipv6(&self, vm: &str) -> Option<Ipv6Addr> {
        self.spec(vm).boot.network.expect("a network").ipv6.map(|ipv6| ipv6.address)
    }

    /// The address and the VPC with which a VM was launched last.
    fn launched(&self, vm: &str) -> Ipv4Addr {
        let spec = self.spec(vm);
        let network = spec.boot.network.expect("a network");
        assert_eq!(spec.nic.expect("a NIC").mac, MacAddress::of_ipv4(network.ipv4));
        assert_eq!(network.mac, MacAddress::of_ipv4(network.ipv4));
        network.ipv4
    }
}

pub(super) fn refused(reply: &Reply) -> (u16, &str) {
    (reply.status.as_u16(), reply.code())
}

#[tokio::test]
async fn a_vpc_is_made_listed_used_and_deleted() {
    let bench = Bench::new().await;
    let empty = bench.admin("POST", "/v1/vpcs", json!({"name": "back end", "unknown": 1})).await.good();
    let first = empty["vpcId"].as_str().expect("id").to_owned();
    assert_eq!(empty.as_object().map(serde_json::Map::len), Some(1), "{empty}");
    let second = bench.vpc("10.0.0.0/16").await;
    let vm = bench.create(nic(&second, json!(true))).await;
    let web = json!({"name": "Web", "nics": [{"vpc": second, "mode": "routed", "ipv4": "10.0.9.9", "default": true}]});
    let web = bench.create(web).await;
    let plain = bench.create(nothing()).await;
    let list = bench.admin("GET", "/v1/vpcs", nothing()).await.good();
    let counts = list["vpcs"].as_array().expect("list").iter();
    let counts: Vec<_> = counts.map(|vpc| (vpc["vpcId"].clone(), vpc["memberCount"].clone())).collect();
    assert!(
        counts.contains(&(json!(first), json!(0))) && counts.contains(&(json!(second), json!(2))),
        "{list}"
    );
    let info = bench.admin("GET", &format!("/v1/vpcs/{first}"), nothing()).await.good();
    assert_eq!((&info["cidr"], &info["name"]), (&json!("10.0.0.0/16"), &json!("back end")));
    assert!(info["createdAt"].as_str().is_some_and(|time| time.ends_with('Z')), "{info}");
    assert_eq!(
        bench.members(&second).await,
        json!([
            {"vmId": vm, "name": null, "ipv4": "10.0.0.1", "default": false, "state": "running"},
            {"vmId": web, "name": "Web", "ipv4": "10.0.9.9", "default": true, "state": "running"},
        ])
    );
    let told = bench.info(&web).await;
    assert_eq!((&told["vpc"], &told["ipv4"]), (&json!(second), &json!("10.0.9.9")));
    let told = bench.info(&plain).await;
    assert_eq!((&told["vpc"], &told["ipv4"]), (&Value::Null, &json!("10.201.0.1")));
    assert_eq!(bench.launched(&web), Ipv4Addr::new(10, 0, 9, 9));
    let ula = Ula::of(&second.parse().expect("an id"));
    assert_eq!(bench.launched_ipv6(&web), Some(ula.address(Ipv4Addr::new(10, 0, 9, 9))));

    let view = bench.view("vpc");
    assert_eq!(view["ports"].as_array().map(Vec::len), Some(1), "{view}");
    assert_eq!(
        view["networks"].as_array().map(Vec::len),
        Some(1),
        "a VPC without members is none of vpc's business"
    );
    let network = &view["networks"][0];
    assert_eq!((&network["vpc"], &network["range"]), (&json!(second), &json!("10.0.0.0/16")));
    assert_eq!(network["ports"][1]["names"], json!([web, "web"]));
    assert_eq!(network["ports"][1]["mac"], "02:67:0a:00:09:09");

    bench.admin("DELETE", &format!("/v1/vpcs/{first}"), nothing()).await.good();
    let used = bench.admin("DELETE", &format!("/v1/vpcs/{second}"), nothing()).await;
    assert_eq!((refused(&used), &used.body["memberCount"]), ((409, "VPC_IN_USE"), &json!(2)));
    for vm in [&vm, &web] {
        bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();
    }
    assert_eq!(bench.view("vpc")["networks"], json!([]));
    let again = bench.create(nic(&second, json!("10.0.9.9"))).await;
    assert_eq!(bench.launched(&again), Ipv4Addr::new(10, 0, 9, 9), "given back");
    bench.admin("DELETE", &format!("/v1/vms/{again}"), nothing()).await.good();
    assert_eq!(bench.admin("DELETE", &format!("/v1/vpcs/{second}"), nothing()).await.good(), nothing());
    assert_eq!(bench.admin("GET", "/v1/vpcs", nothing()).await.good(), json!({"vpcs": []}));
}

#[tokio::test]
async fn a_wrong_vpc_is_refused_with_its_cause() {
    let bench = Bench::new().await;
    for (body, part) in [
        (json!({"cidr": "10.0.0.0/8"}), "at most a /16"),
        (json!({"cidr": "10.0.0.7/24"}), "did you mean 10.0.0.0/24?"),
        (json!({"cidr": "ten"}), "address/prefix"),
        (json!({"cidr": "100.96.0.0/24"}), "VPN clients"),
        (json!({"cidr": 5}), "string"),
        (json!({"cidr": "10.0.0.0/24", "name": "x".repeat(257)}), "256 characters"),
    ] {
        let reply = bench.admin("POST", "/v1/vpcs", body.clone()).await;
        assert_eq!(refused(&reply), (400, "BAD_REQUEST"), "{body}");
        assert!(reply.body["message"].as_str().expect("text").contains(part), "{reply:?}");
    }
    assert_eq!(bench.admin("GET", "/v1/vpcs", nothing()).await.good(), json!({"vpcs": []}));
}

#[tokio::test]
async fn a_wrong_nic_is_refused_with_its_cause_and_nothing_is_made() {
    let bench = Bench::with(|limits| limits.vms_per_account = 32).await;
    let vpc = bench.vpc("10.0.0.0/28").await;
    let nobodys = format!("vpc-{}", "a".repeat(20));
    let first = bench
        .create(json!({"template": {"memSizeGb": 0.125}, "nics": [{"vpc": vpc, "mode": "routed"}]}))
        .await;
    for (body, part) in [
        (nic(&nobodys, json!(true)), "there is no VPC"),
        (nic("mine", json!(true)), "'vpc-'"),
        (nic(&vpc, json!("10.0.0.0")), "first or last"),
        (nic(&vpc, json!("10.0.0.15")), "first or last"),
        (nic(&vpc, json!("10.0.0.16")), "not within 10.0.0.0/28"),
        (nic(&vpc, json!("10.0.0.1")), "another VM"),
        (nic(&vpc, json!("10.0.0")), "not an IPv4 address"),
        (nic(&vpc, json!(false)), "without an address"),
        (nic(&vpc, json!(7)), "true for the next free one"),
        (json!({"nics": [{"vpc": vpc, "mode": "bridged"}]}), "routed"),
        (json!({"nics": [{"vpc": vpc, "mode": "routed"}, {"vpc": vpc, "mode": "routed"}]}), "one NIC"),
    ] {
        let reply = bench.admin("POST", "/v1/vms", body.clone()).await;
        assert_eq!(refused(&reply), (400, "CREATE_VM_BAD_REQUEST"), "{body}");
        assert!(reply.body["message"].as_str().expect("text").contains(part), "{reply:?}");
    }
    let small =
        json!({"template": {"memSizeGb": 0.125}, "nics": [{"vpc": vpc, "mode": "routed", "ipv4": true}]});
    for _ in 1..14 {
        bench.create(small.clone()).await;
    }
    let full = bench.admin("POST", "/v1/vms", small.clone()).await;
    assert_eq!(refused(&full), (403, "VM_LIMIT_EXCEEDED"));
    assert_eq!((&full.body["limit"], &full.body["current"]), (&json!(14), &json!(14)));
    assert!(full.body["message"].as_str().expect("text").contains("10.0.0.0/28"), "{full:?}");
    bench.admin("DELETE", &format!("/v1/vms/{first}"), nothing()).await.good();
    let last = bench.create(small).await;
    assert_eq!(bench.launched(&last), Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(bench.members(&vpc).await.as_array().map(Vec::len), Some(14));
}

#[tokio::test]
async fn a_nic_that_cannot_be_puts_nobody_to_sleep() {
    let bench = Bench::with(|limits| limits.memory_mib = 256).await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let vm = bench.create(json!({"idleTimeoutSeconds": 60})).await;
    let reply = bench.admin("POST", "/v1/vms", nic(&vpc, json!("10.0.1.1"))).await;
    assert_eq!(refused(&reply), (400, "CREATE_VM_BAD_REQUEST"));
    assert_eq!(bench.info(&vm).await["state"], "running");
}

#[tokio::test]
async fn two_accounts_have_one_range_each_and_do_not_see_each_other() {
    let bench = Bench::new().await;
    let other = bench.admin("POST", "/admin/v1/accounts", json!({"name": "other"})).await.good();
    let header = [("x-gatehouse-account", other["id"].as_str().expect("id"))];
    let socket = bench.config.places.admin_socket();
    let theirs = async |method: &str, path: &str, body: Value| {
        call(&socket, method, path, &header, Some(&body.to_string())).await
    };
    let mine = bench.vpc("10.0.0.0/16").await;
    let made = theirs("POST", "/v1/vpcs", json!({"cidr": "10.0.0.0/16"})).await.good();
    let their_vpc = made["vpcId"].as_str().expect("id");
    let my_vm = bench.create(nic(&mine, json!("10.0.0.5"))).await;
    let their_vm = theirs("POST", "/v1/vms", nic(their_vpc, json!("10.0.0.5"))).await.good();
    let their_vm = their_vm["id"].as_str().expect("id");
    assert_eq!(bench.launched(&my_vm), bench.launched(their_vm));
    assert_eq!(bench.view("vpc")["networks"].as_array().map(Vec::len), Some(2));

    let unknown = format!("vpc-{}", "a".repeat(20));
    let attach = json!({"vmId": their_vm});
    for (method, path, body) in [
        ("GET", String::new(), nothing()),
        ("DELETE", String::new(), nothing()),
        ("POST", "/members".to_owned(), attach),
        ("DELETE", format!("/members/{my_vm}"), nothing()),
        ("DELETE", format!("/members/{their_vm}"), nothing()),
    ] {
        let foreign = theirs(method, &format!("/v1/vpcs/{mine}{path}"), body.clone()).await;
        let nobodys = theirs(method, &format!("/v1/vpcs/{unknown}{path}"), body).await;
        assert_eq!(refused(&foreign), (404, "NOT_FOUND"), "{method} {path}");
        assert_eq!(foreign.body.to_string().replace(&mine, &unknown), nobodys.body.to_string());
    }
    let foreign = theirs("POST", "/v1/vms", nic(&mine, json!(true))).await;
    let nobodys = theirs("POST", "/v1/vms", nic(&unknown, json!(true))).await;
    assert_eq!(refused(&foreign), (400, "CREATE_VM_BAD_REQUEST"));
    assert_eq!(foreign.body.to_string().replace(&mine, &unknown), nobodys.body.to_string());
    let list = theirs("GET", "/v1/vpcs", nothing()).await.good();
    assert_eq!(list["vpcs"].as_array().map(Vec::len), Some(1), "{list}");
    let stolen = theirs("POST", &format!("/v1/vpcs/{their_vpc}/members"), json!({"vmId": my_vm})).await;
    assert_eq!(refused(&stolen), (404, "VM_NOT_FOUND"));
}

#[tokio::test]
async fn of_many_that_ask_for_one_address_one_has_it() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let post = |_| {
        let (socket, body) = (bench.config.places.admin_socket(), nic(&vpc, json!("10.0.0.5")).to_string());
        tokio::spawn(async move { call(&socket, "POST", "/v1/vms", &[], Some(&body)).await })
    };
    let asking: Vec<_> = (0..6).map(post).collect();
    let mut made = 0;
    for asking in asking {
        let reply = asking.await.expect("answered");
        if reply.status.is_success() {
            made += 1;
        } else {
            assert_eq!(refused(&reply), (400, "CREATE_VM_BAD_REQUEST"));
            assert!(reply.body["message"].as_str().expect("text").contains("10.0.0.5"), "{reply:?}");
        }
    }
    assert_eq!((made, bench.members(&vpc).await.as_array().map(Vec::len)), (1, Some(1)));
}

#[tokio::test]
async fn a_stopped_vm_changes_its_network_and_boots_in_it() {
    let bench = Bench::new().await;
    let (one, two) = (bench.vpc("10.0.0.0/24").await, bench.vpc("192.168.7.0/28").await);
    let vm = bench.create(json!({"name": "db", "domains": [{"domain": "db.style.dev"}]})).await;
    let busy = bench.attach(&one, &vm, Value::Null).await;
    assert_eq!((refused(&busy), &busy.body["vmId"]), ((409, "VM_NOT_STOPPED"), &json!(vm)));
    bench.post(&vm, "suspend", nothing()).await.good();
    assert_eq!(refused(&bench.attach(&one, &vm, Value::Null).await), (409, "VM_NOT_STOPPED"));
    bench.post(&vm, "stop", nothing()).await.good();
    for (ipv4, part) in [("10.0.1.1", "not within"), ("10.0.0.255", "first or last"), ("x", "not an IPv4")] {
        let reply = bench.attach(&one, &vm, json!(ipv4)).await;
        assert_eq!(refused(&reply), (400, "BAD_REQUEST"), "{ipv4}");
        assert!(reply.body["message"].as_str().expect("text").contains(part), "{reply:?}");
    }
    let member = bench.attach(&one, &vm, json!("10.0.0.7")).await.good();
    assert_eq!(
        (&member["vmId"], &member["ipv4"], &member["state"]),
        (&json!(vm), &json!("10.0.0.7"), &json!("stopped"))
    );
    let view = bench.view("vpc");
    assert_eq!((&view["ports"], &view["networks"][0]["ports"][0]["names"]), (&json!([]), &json!([vm, "db"])));
    assert_eq!(view["networks"][0]["ports"][0]["dialable"], json!([22, 3000]));
    assert_eq!(bench.attach(&one, &vm, Value::Null).await.good(), member, "it is there already");
    let elsewhere = bench.attach(&two, &vm, Value::Null).await;
    assert_eq!((refused(&elsewhere), &elsewhere.body["vpcId"]), ((409, "VM_IN_VPC"), &json!(one)));
    assert_eq!(refused(&bench.attach(&one, &vm, json!("10.0.0.8")).await), (409, "VM_IN_VPC"));
    assert_eq!(refused(&bench.detach(&two, &vm).await), (404, "NOT_FOUND"));

    bench.post(&vm, "start", nothing()).await.good();
    assert_eq!(bench.launched(&vm), Ipv4Addr::new(10, 0, 0, 7));
    assert_eq!(refused(&bench.detach(&one, &vm).await), (409, "VM_NOT_STOPPED"));
    bench.post(&vm, "suspend", nothing()).await.good();
    assert_eq!(bench.view("vpc")["networks"][0]["ports"][0]["asleep"], true);
    bench.world.packets(&id(&vm));
    bench.until(&vm, "running").await;
    assert_eq!(bench.launched(&vm), Ipv4Addr::new(10, 0, 0, 7), "a packet in its VPC wakes it there");
    bench.post(&vm, "resize", json!({"memSizeGb": 0.5})).await.good();
    assert_eq!(bench.launched(&vm), Ipv4Addr::new(10, 0, 0, 7));
    bench.post(&vm, "stop", nothing()).await.good();
    let left = bench.detach(&one, &vm).await.good();
    assert_eq!((&left["vmId"], &left["ipv4"]), (&json!(vm), &bench.info(&vm).await["ipv4"]));
    assert_eq!(bench.view("vpc")["networks"], json!([]));
    bench.post(&vm, "start", nothing()).await.good();
    assert_eq!(json!(bench.launched(&vm)), left["ipv4"]);
    assert_eq!(refused(&bench.detach(&one, &vm).await), (404, "NOT_FOUND"));
}

#[tokio::test]
async fn a_member_is_not_forked_and_its_snapshots_are_of_no_network() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let vm = bench.create(nic(&vpc, json!(true))).await;
    bench.post(&vm, "suspend", nothing()).await.good();
    let forked = bench.post(&vm, "fork", nothing()).await;
    assert_eq!((refused(&forked), &forked.body["vmId"]), ((400, "VPC_FORK_UNSUPPORTED"), &json!(vm)));
    assert_eq!(bench.info(&vm).await["state"], "suspended", "not woken in vain");
    let copy = bench.post(&vm, "snapshot", nothing()).await.good()["snapshotId"].clone();
    let outside = bench.create(json!({"snapshotId": copy})).await;
    assert_eq!(bench.info(&outside).await["vpc"], Value::Null);
    assert_eq!(bench.launched(&outside), Ipv4Addr::new(10, 201, 0, 1));
    assert_eq!(bench.launched_ipv6(&outside), None);
    let inside = bench.create(json!({"snapshotId": copy, "nics": nic(&vpc, json!(true))["nics"]})).await;
    assert_eq!(bench.launched(&inside), Ipv4Addr::new(10, 0, 0, 2));
    let wrong = bench.admin(
        "POST",
        "/v1/vms",
        json!({"snapshotId": copy, "nics": nic(&vpc, json!("10.0.0.2"))["nics"]}),
    );
    assert_eq!(refused(&wrong.await), (400, "CREATE_VM_BAD_REQUEST"));
    bench.world.state().manner = Manner::DieAtOnce;
    assert_eq!(bench.admin("POST", "/v1/vms", nic(&vpc, json!("10.0.0.9"))).await.code(), "KERNEL_PANIC");
    bench.world.state().manner = Manner::Ready;
    bench.create(nic(&vpc, json!("10.0.0.9"))).await;
}

#[test]
fn a_new_control_knows_all_of_it() {
    let folder = tempfile::tempdir().expect("folder");
    let config = config(folder.path());
    let outside = runtime();
    let world = outside.block_on(async { World::start(&config.places.vmm_socket()) });
    let first = start(&config, FailPoints::default());
    let admin = async |method: &str, path: &str, body: Value| {
        call(&config.places.admin_socket(), method, path, &[], Some(&body.to_string())).await.good()
    };
    let view = || -> Value {
        let bytes = std::fs::read(config.places.feed().join("vpc.json")).expect("view");
        serde_json::from_slice(&bytes).expect("json")
    };
    let (vpc, before) = outside.block_on(async {
        let made = admin("POST", "/v1/vpcs", json!({"name": "kept"})).await;
        let vpc = made["vpcId"].as_str().expect("id").to_owned();
        admin("POST", "/v1/vms", nic(&vpc, json!("10.0.0.5"))).await;
        admin("POST", "/v1/vms", nic(&vpc, json!(true))).await;
        admin("POST", "/v1/vms", nothing()).await;
        (vpc.clone(), admin("GET", &format!("/v1/vpcs/{vpc}"), nothing()).await)
    });
    let published = view();
    first.shutdown_timeout(Duration::from_secs(10));
    let second = start(&config, FailPoints::default());
    outside.block_on(async {
        assert_eq!(admin("GET", &format!("/v1/vpcs/{vpc}"), nothing()).await, before);
        let again = view();
        assert_eq!((&again["networks"], &again["ports"]), (&published["networks"], &published["ports"]));
        let next = admin("POST", "/v1/vms", nic(&vpc, json!(true))).await;
        let info = admin("GET", &format!("/v1/vms/{}", next["id"].as_str().expect("id")), nothing()).await;
        assert_eq!(info["ipv4"], "10.0.0.2", "it goes on behind the one that was given last");
    });
    second.shutdown_timeout(Duration::from_secs(10));
    drop(world);
}
