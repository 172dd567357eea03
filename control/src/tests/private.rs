//! What private networks have besides VMs, as callers see it and as the others are told of it.

use super::crash::{runtime, start};
use super::vpcs::{nic, refused};
use super::world::World;
use super::{Bench, Reply, call, config, eventually, nothing};
use crate::seal::KEY_FILE;
use crate::vms::FailPoints;
use crate::wireguard::pair;
use ::vpc::client::{RuleCount, VpcReply, VpcRequest};
use feed::wire::WireListener;
use model::key::{PublicKey, SecretKey};
use model::view::{View, VpnView};
use serde_json::{Value, json};
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use vpn::client::{SessionState, SessionStatus, VpnReply, VpnRequest};

impl Bench {
    async fn of(&self, vpc: &str, method: &str, path: &str, body: Value) -> Reply {
        self.admin(method, &format!("/v1/vpcs/{vpc}/{path}"), body).await
    }

    async fn session(&self, vpc: &str) -> Value {
        self.of(vpc, "POST", "wireguard/ephemeral", nothing()).await.good()
    }

    async fn peer(&self, vpc: &str, vm: &str, key: &PublicKey) -> Reply {
        let body = json!({"gatewayVmId": vm, "clientPublicKey": key});
        self.of(vpc, "POST", "wireguard/peers", body).await
    }

    async fn close(&self, vpc: &str, session: &Value) -> Reply {
        self.of(vpc, "DELETE", "wireguard/ephemeral", json!({ "sessionId": session })).await
    }

    async fn sessions(&self, vpc: &str) -> Vec<Value> {
        let list = self.of(vpc, "GET", "wireguard/sessions", nothing()).await.good();
        list["sessions"].as_array().expect("list").iter().map(|row| row["sessionId"].clone()).collect()
    }

    /// Sessions that vpn is told of.
    fn told(&self) -> Vec<Value> {
        let view = self.view("vpn");
        view["sessions"].as_array().expect("list").iter().map(|entry| entry["id"].clone()).collect()
    }

    /// What vpc is told of a network.
    fn network(&self, vpc: &str) -> Value {
        let view = self.view("vpc");
        let networks = view["networks"].as_array().expect("list");
        networks.iter().find(|network| network["vpc"] == vpc).cloned().unwrap_or_default()
    }

    /// An account of its own, as whom to ask.
    async fn other_account(&self) -> String {
        let made = self.admin("POST", "/admin/v1/accounts", json!({"name": "other"})).await.good();
        made["id"].as_str().expect("id").to_owned()
    }

    async fn as_account(&self, account: &str, method: &str, path: &str, body: Value) -> Reply {
        let header = [("x-gatehouse-account", account)];
        call(&self.config.places.admin_socket(), method, path, &header, Some(&body.to_string())).await
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn message(reply: &Reply) -> &str {
    text(&reply.body["message"])
}

#[tokio::test]
async fn a_service_has_a_way_to_clients_that_come_later() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let made = bench.of(&vpc, "POST", "services", json!({"name": "db"})).await.good();
    assert_eq!(bench.network(&vpc)["clients"]["pool"], "100.96.0.0/16");
    bench.of(&vpc, "DELETE", &format!("services/{}", text(&made["serviceId"])), nothing()).await.good();
    assert!(bench.network(&vpc).is_null());
}

/// A WireGuard front that has one live session, and one that idled.
async fn play_front(bench: &Bench, live: &Value, idled: &Value) {
    std::fs::create_dir_all(bench.config.places.vpn_run()).expect("folder");
    let listener = WireListener::bind(&bench.config.places.vpn_socket(), 0o600).expect("listen");
    let status = |id: &Value, state| SessionStatus {
        id: text(id).parse().expect("id"),
        state,
        endpoint: (state == SessionState::Live).then(|| "198.51.100.7:4711".parse().expect("address")),
        silent_seconds: 3,
        handshake_seconds: None,
        received_bytes: 100,
        sent_bytes: 200,
    };
    let (live, idled) = (status(live, SessionState::Live), status(idled, SessionState::Idled));
    tokio::spawn(async move {
        while let Ok(wire) = listener.accept().await {
            let VpnRequest::Sessions { .. } = wire.receive().await.expect("asked").0;
            // In two replies.
            for (status, more) in [(&live, true), (&idled, false)] {
                let sessions = vec![status.clone()];
                wire.send(&VpnReply::Sessions { sessions, more }, &[]).await.expect("told");
            }
        }
    });
}

#[tokio::test]
async fn what_sessions_do_is_told_and_a_silent_one_ends() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("192.168.10.0/24").await;
    let (live, idle) = (bench.session(&vpc).await, bench.session(&vpc).await);
    let rows = |list: Value| list["sessions"].as_array().expect("list").clone();
    let list = rows(bench.of(&vpc, "GET", "wireguard/sessions", nothing()).await.good());
    assert_eq!((list.len(), &list[0]["state"]), (2, &Value::Null), "nobody to ask");
    play_front(&bench, &live["sessionId"], &idle["sessionId"]).await;
    let list = rows(bench.of(&vpc, "GET", "wireguard/sessions", nothing()).await.good());
    assert_eq!((&list[0]["state"], &list[1]["state"]), (&json!("connected"), &json!("ending")));
    assert_eq!((&list[0]["endpoint"], &list[0]["receivedBytes"]), (&json!("198.51.100.7:4711"), &json!(100)));
    // A new session makes the sweeper look.
    let third = bench.session(&vpc).await;
    let left = [live["sessionId"].clone(), third["sessionId"].clone()];
    let gone = async {
        let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
        while bench.sessions(&vpc).await != left || bench.told() != left {
            looks.tick().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), gone).await.expect("the silent one ends");
}

#[tokio::test]
async fn a_session_has_all_that_its_client_needs_and_ends_when_it_is_closed() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("192.168.10.0/24").await;
    let made = bench.session(&vpc).await;
    for (field, value) in [
        ("vpcId", json!(vpc)),
        ("endpointHost", json!("vpn.style.dev")),
        ("endpointPort", json!(51820)),
        ("listenPort", json!(51820)),
        ("interfaceName", json!("wg0")),
        ("serverTunnelIp", json!("100.96.0.1")),
        ("clientTunnelIp", json!("100.96.0.2")),
        ("vpcIp", json!("100.96.0.2")),
        ("clientAllowedIps", json!(["192.168.10.0/24"])),
        ("vpcCidr", json!("192.168.10.0/24")),
    ] {
        assert_eq!(made[field], value, "{field}");
    }
    let conf = text(&made["clientConfig"]);
    for line in [
        format!("PrivateKey = {}", text(&made["clientPrivateKey"])),
        format!("PublicKey = {}", text(&made["serverPublicKey"])),
        "Address = 100.96.0.2/32".to_owned(),
        "AllowedIPs = 192.168.10.0/24".to_owned(),
        "Endpoint = vpn.style.dev:51820".to_owned(),
        "PersistentKeepalive = 25".to_owned(),
    ] {
        assert!(conf.lines().any(|have| have == line), "{line}: {conf}");
    }
    assert!(
        conf.starts_with(&format!("# Session {} into {vpc}; ends at 2", text(&made["sessionId"]))),
        "{conf}"
    );

    let view = bench.view("vpn");
    let entry = &view["sessions"][0];
    assert_eq!((&entry["id"], &entry["client_key"]), (&made["sessionId"], &made["clientPublicKey"]));
    assert_eq!((&entry["allowed"], &entry["address"]), (&json!("192.168.10.0/24"), &json!("100.96.0.2")));
    assert!(conf.contains(&format!("PresharedKey = {}", text(&entry["preshared_key"]))), "{conf}");
    let file = std::fs::metadata(bench.config.places.feed().join("vpn.json")).expect("view");
    assert_eq!(file.mode() & 0o777, 0o600);
    let clients = &bench.network(&vpc)["clients"];
    assert_eq!((&clients["pool"], &clients["mtu"]), (&json!("100.96.0.0/16"), &json!(1280)));
    let secret = text(&made["clientPrivateKey"]).to_owned();
    assert!(!view.to_string().contains(&secret), "the client's secret is kept nowhere");

    let second = bench.session(&vpc).await;
    assert_eq!(second["clientTunnelIp"], "100.96.0.3");
    assert_eq!(bench.sessions(&vpc).await, [made["sessionId"].clone(), second["sessionId"].clone()]);
    let list = bench.of(&vpc, "GET", "wireguard/sessions", nothing()).await.good().to_string();
    assert!(!list.contains(&secret) && !list.contains("reshared"), "{list}");
    assert_eq!(bench.close(&vpc, &made["sessionId"]).await.good(), nothing());
    assert_eq!(bench.told(), [second["sessionId"].clone()]);
    let again = bench.close(&vpc, &made["sessionId"]).await;
    assert_eq!((refused(&again), &again.body["sessionId"]), ((404, "NOT_FOUND"), &made["sessionId"]));
    assert_eq!(refused(&bench.close(&vpc, &json!("x")).await), (400, "BAD_REQUEST"));
    assert_eq!(bench.session(&vpc).await["clientTunnelIp"], "100.96.0.4", "not at once given to another");
    bench.admin("DELETE", &format!("/v1/vpcs/{vpc}"), nothing()).await.good();
    assert!(bench.told().is_empty() && bench.network(&vpc).is_null());
}

#[tokio::test]
async fn a_peer_keeps_its_key_and_ends_with_its_gateway() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let vm = bench.create(nic(&vpc, json!(true))).await;
    let (_, key) = pair();
    let made = bench.peer(&vpc, &vm, &key).await.good();
    assert_eq!((&made["gatewayVmId"], &made["vpcCidr"]), (&json!(vm), &json!("10.0.0.0/24")));
    let conf = text(&made["clientConfig"]);
    assert!(conf.contains("\nPrivateKey = YOUR-PRIVATE-KEY\n") && conf.contains(&key.to_string()), "{conf}");
    assert_eq!(bench.peer(&vpc, &vm, &key).await.good(), made, "the same key is the same session");
    assert_eq!(bench.told().len(), 1);

    let plain = bench.create(nothing()).await;
    let elsewhere = bench.vpc("10.0.1.0/24").await;
    let other = bench.create(nic(&elsewhere, json!(true))).await;
    let server: PublicKey = text(&made["serverPublicKey"]).parse().expect("a key");
    for (reply, status, part) in [
        (bench.peer(&vpc, &plain, &pair().1).await, 400, "no VM"),
        (bench.peer(&vpc, &other, &pair().1).await, 400, "no VM"),
        (bench.peer(&elsewhere, &other, &key).await, 409, "another VPN session"),
        (bench.peer(&vpc, &vm, &server).await, 400, "no client's"),
        (bench.peer(&vpc, &vm, &PublicKey([0; 32])).await, 400, "no client's"),
    ] {
        assert_eq!(refused(&reply), (status, "BAD_REQUEST"));
        assert!(message(&reply).contains(part), "{reply:?}");
    }
    let body = json!({"gatewayVmId": vm, "clientPublicKey": "short"});
    let bad = bench.of(&vpc, "POST", "wireguard/peers", body).await;
    assert!(message(&bad).contains("44 characters"), "{bad:?}");

    bench.post(&vm, "stop", nothing()).await.good();
    assert_eq!(bench.told().len(), 1, "a member that is down is one");
    bench.detach(&vpc, &vm).await.good();
    assert!(bench.told().is_empty());
    bench.peer(&elsewhere, &other, &key).await.good();
    bench.admin("DELETE", &format!("/v1/vms/{other}"), nothing()).await.good();
    assert!(bench.told().is_empty() && bench.sessions(&elsewhere).await.is_empty());
}

#[tokio::test]
async fn a_session_is_over_at_its_time_and_with_its_key() {
    let bench = Bench::configured(|config| config.vpn.longest_seconds = NonZeroU32::MIN).await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    bench.session(&vpc).await;
    let _over: () = eventually("the session is over", async || {
        (bench.told().is_empty() && bench.network(&vpc).is_null()).then_some(())
    })
    .await;

    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let key = bench.admin("POST", "/admin/v1/api-keys", nothing()).await.good();
    let header = format!("Bearer {}", text(&key["secret"]));
    let path = format!("/v1/vpcs/{vpc}/wireguard/ephemeral");
    let headers = [("authorization", header.as_str())];
    call(&bench.config.places.api_socket(), "POST", &path, &headers, Some("{}")).await.good();
    let kept = bench.session(&vpc).await;
    assert_eq!(bench.told().len(), 2);
    bench.admin("DELETE", &format!("/admin/v1/api-keys/{}", text(&key["id"])), nothing()).await.good();
    assert_eq!(bench.told(), [kept["sessionId"].clone()]);
}

#[tokio::test]
async fn there_are_no_more_sessions_than_may_be() {
    let pool = "100.99.0.0/29".parse().expect("pool");
    let bench = Bench::configured(|config| config.vpn.pool = pool).await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(bench.session(&vpc).await);
    }
    let full = bench.of(&vpc, "POST", "wireguard/ephemeral", nothing()).await;
    assert_eq!(refused(&full), (403, "LIMIT_EXCEEDED"));
    assert_eq!((&full.body["limit"], &full.body["current"]), (&json!(5), &json!(5)));
    let other = bench.vpc("10.0.0.0/24").await;
    assert_eq!(bench.session(&other).await["clientTunnelIp"], "100.99.0.2", "of a network of its own");
    bench.close(&vpc, &made[2]["sessionId"]).await.good();
    assert_eq!(bench.session(&vpc).await["clientTunnelIp"], made[2]["clientTunnelIp"]);
    let clash = bench.admin("POST", "/v1/vpcs", json!({"cidr": "100.99.0.0/24"})).await;
    assert!(message(&clash).contains("VPN clients"), "{clash:?}");
    bench.vpc("100.96.0.0/24").await;
}

#[tokio::test]
async fn hidden_clients_have_the_first_address_for_themselves() {
    let bench = Bench::configured(|config| config.vpn.hide_clients = true).await;
    let vpc = bench.vpc("10.0.0.0/28").await;
    let made = bench.session(&vpc).await;
    assert_eq!((&made["vpcIp"], &made["clientTunnelIp"]), (&json!("10.0.0.1"), &json!("100.96.0.2")));
    assert_eq!(bench.network(&vpc)["clients"]["hidden_behind"], "10.0.0.1");
    let vm = bench.create(nic(&vpc, json!(true))).await;
    assert_eq!(bench.info(&vm).await["ipv4"], "10.0.0.2");
    let taken = bench.admin("POST", "/v1/vms", nic(&vpc, json!("10.0.0.1"))).await;
    assert!(message(&taken).contains("VPN clients"), "{taken:?}");
    let taken = bench.of(&vpc, "POST", "services", json!({"name": "db", "ipv4": "10.0.0.1"})).await;
    assert_eq!(refused(&taken), (400, "BAD_REQUEST"));
}

#[tokio::test]
async fn rules_judge_in_their_order_and_go_with_whom_they_name() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/24").await;
    let (web, db) = (bench.create(nic(&vpc, json!(true))).await, bench.create(nic(&vpc, json!(true))).await);
    let outside = bench.create(nothing()).await;
    let full = json!({"action": "allow", "direction": "in", "vm": db, "peer": web, "protocol": "tcp",
        "ports": ["5432", "8000-8099"], "priority": 5, "description": "the shop"});
    let first = bench.of(&vpc, "POST", "rules", full).await.good();
    let second =
        bench.of(&vpc, "POST", "rules", json!({"action": "deny", "direction": "in", "vm": db})).await.good();
    let zeroth = json!({"action": "deny", "direction": "out", "peer": "10.9.0.0/16", "priority": 0});
    let zeroth = bench.of(&vpc, "POST", "rules", zeroth).await.good();
    assert_eq!((&second["peer"], &second["priority"]), (&json!("any"), &json!(1000)));
    let network = bench.network(&vpc);
    let ids: Vec<_> = network["rules"].as_array().expect("list").iter().map(|rule| &rule["id"]).collect();
    assert_eq!(ids, [&zeroth["ruleId"], &first["ruleId"], &second["ruleId"]]);
    let entry = &network["rules"][1];
    assert_eq!((&entry["member"], &entry["peer"]), (&json!("10.0.0.2"), &json!({"range": "10.0.0.1/32"})));
    assert_eq!(entry["ports"], json!([[5432, 5432], [8000, 8099]]));

    let listener = WireListener::bind(&bench.config.places.vpc_socket(), 0o600).expect("listen");
    let id = text(&first["ruleId"]).parse().expect("id");
    tokio::spawn(async move {
        while let Ok(wire) = listener.accept().await {
            let (request, _) = wire.receive::<VpcRequest>().await.expect("asked");
            assert!(matches!(request, VpcRequest::Rules { .. }), "{request:?}");
            let counts = vec![RuleCount { id: model::id::RuleId::clone(&id), packets: 7, bytes: 420 }];
            wire.send(&VpcReply::Rules { counts }, &[]).await.expect("told");
        }
    });
    let list = bench.of(&vpc, "GET", "rules", nothing()).await.good();
    let counts: Vec<_> =
        list["rules"].as_array().expect("list").iter().map(|rule| &rule["packets"]).collect();
    assert_eq!(counts, [&json!(0), &json!(7), &json!(0)]);
    assert_eq!(list["rules"][1]["bytes"], 420);

    for (body, part) in [
        (json!({"action": "deny", "direction": "in", "vm": outside}), "no VM"),
        (json!({"action": "deny", "direction": "in", "peer": outside}), "neither in"),
        (
            json!({"action": "deny", "direction": "in", "peer": format!("vpc-{}", "a".repeat(20))}),
            "neither in",
        ),
        (json!({"action": "drop", "direction": "in"}), "unknown variant"),
        (json!({"action": "deny"}), "direction"),
        (json!({"action": "deny", "direction": "in", "priority": 65536}), "65536"),
    ] {
        let reply = bench.of(&vpc, "POST", "rules", body.clone()).await;
        assert_eq!(refused(&reply), (400, "BAD_REQUEST"), "{body}");
        assert!(message(&reply).contains(part), "{reply:?}");
    }
    let half = json!({"rules": [{"action": "deny", "direction": "in"}, {"action": "deny", "direction": "in", "vm": outside}]});
    assert_eq!(refused(&bench.of(&vpc, "PUT", "rules", half).await), (400, "BAD_REQUEST"));
    assert_eq!(bench.network(&vpc)["rules"], network["rules"], "all or none");

    bench.post(&web, "stop", nothing()).await.good();
    bench.detach(&vpc, &web).await.good();
    let left = &bench.network(&vpc)["rules"];
    assert_eq!((left.as_array().map(Vec::len), &left[0]["id"]), (Some(2), &zeroth["ruleId"]));
    let one = json!({"action": "deny", "direction": "in"});
    let most = json!({"rules": vec![one.clone(); 128]});
    let put = bench.of(&vpc, "PUT", "rules", most).await.good();
    let (listed, told) = (&put["rules"], &bench.network(&vpc)["rules"]);
    assert_eq!((&listed[127]["ruleId"], told[127]["id"].is_string()), (&told[127]["id"], true));
    assert_eq!(refused(&bench.of(&vpc, "POST", "rules", one).await), (403, "LIMIT_EXCEEDED"));
    let gone = format!("rules/{}", text(&listed[0]["ruleId"]));
    bench.of(&vpc, "DELETE", &gone, nothing()).await.good();
    assert_eq!(refused(&bench.of(&vpc, "DELETE", &gone, nothing()).await), (404, "NOT_FOUND"));
    bench.admin("DELETE", &format!("/v1/vms/{db}"), nothing()).await.good();
    bench.admin("DELETE", &format!("/v1/vpcs/{vpc}"), nothing()).await.good();
}

#[tokio::test]
async fn a_service_has_an_address_and_a_name_of_its_own() {
    let bench = Bench::new().await;
    let vpc = bench.vpc("10.0.0.0/28").await;
    let vm = bench.create(nic(&vpc, json!(true))).await;
    let made = bench.of(&vpc, "POST", "services", json!({"name": "Redis", "ipv4": "10.0.0.9"})).await.good();
    assert_eq!(
        (&made["name"], &made["ipv4"], &made["vpcId"]),
        (&json!("redis"), &json!("10.0.0.9"), &json!(vpc))
    );
    assert_eq!(made["generation"], bench.view("vpc")["generation"], "what joining must wait for");
    let entry = bench.network(&vpc)["services"][0].clone();
    assert_eq!(
        entry,
        json!({"id": made["serviceId"], "mac": "02:67:0a:00:00:09", "ipv4": "10.0.0.9", "names": ["redis"]})
    );
    let again = bench.of(&vpc, "POST", "services", json!({"name": "redis"})).await.good();
    assert_eq!(again["serviceId"], made["serviceId"]);
    for (body, word) in [
        (json!({"name": "redis", "ipv4": "10.0.0.8"}), (409, "SERVICE_EXISTS")),
        (json!({"name": "x", "ipv4": "10.0.0.9"}), (400, "BAD_REQUEST")),
        (json!({"name": "x", "ipv4": "10.0.0.1"}), (400, "BAD_REQUEST")),
        (json!({"name": "a.b"}), (400, "BAD_REQUEST")),
        (json!({"name": vm}), (400, "BAD_REQUEST")),
        (json!({}), (400, "BAD_REQUEST")),
    ] {
        assert_eq!(refused(&bench.of(&vpc, "POST", "services", body.clone()).await), word, "{body}");
    }
    assert_eq!(
        bench.admin("POST", "/v1/vms", nic(&vpc, json!("10.0.0.9"))).await.code(),
        "CREATE_VM_BAD_REQUEST"
    );
    let info = bench.admin("GET", &format!("/v1/vpcs/{vpc}"), nothing()).await.good();
    assert_eq!(
        (&info["services"][0]["name"], info["services"].as_array().map(Vec::len)),
        (&json!("redis"), Some(1))
    );
    let list = bench.of(&vpc, "GET", "services", nothing()).await.good();
    assert_eq!(list["services"], info["services"]);
    bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();
    let used = bench.admin("DELETE", &format!("/v1/vpcs/{vpc}"), nothing()).await;
    assert_eq!((refused(&used), &used.body["serviceCount"]), ((409, "VPC_IN_USE"), &json!(1)));
    let path = format!("services/{}", text(&made["serviceId"]));
    bench.of(&vpc, "DELETE", &path, nothing()).await.good();
    assert_eq!(refused(&bench.of(&vpc, "DELETE", &path, nothing()).await), (404, "NOT_FOUND"));
    assert!(bench.network(&vpc).is_null());
    bench.admin("DELETE", &format!("/v1/vpcs/{vpc}"), nothing()).await.good();
}

#[tokio::test]
async fn vpcs_of_one_account_are_peered_at_once_and_share_no_address() {
    let bench = Bench::new().await;
    let (a, b, c) =
        (bench.vpc("10.0.0.0/24").await, bench.vpc("10.0.1.0/24").await, bench.vpc("10.0.0.0/25").await);
    let ask =
        async |one: &str, other: &str| bench.of(one, "POST", "peerings", json!({"peerVpcId": other})).await;
    let made = ask(&a, &b).await.good();
    assert_eq!((&made["state"], &made["peerCidr"]), (&json!("active"), &json!("10.0.1.0/24")));
    assert_eq!(ask(&b, &a).await.good()["peeringId"], made["peeringId"]);
    for (vpc, other, range) in [(&a, &b, "10.0.1.0/24"), (&b, &a, "10.0.0.0/24")] {
        let entry = json!([{"id": made["peeringId"], "vpc": other, "range": range}]);
        assert_eq!(bench.network(vpc)["peerings"], entry);
    }
    for (one, other) in [(&a, &c), (&b, &c), (&c, &b)] {
        let clash = ask(one, other).await;
        assert_eq!((refused(&clash), &clash.body["peerVpcId"]), ((409, "VPC_RANGES_OVERLAP"), &json!(other)));
    }
    assert_eq!(refused(&ask(&a, &a).await), (400, "BAD_REQUEST"));
    assert_eq!(refused(&ask(&a, &format!("vpc-{}", "a".repeat(20))).await), (404, "NOT_FOUND"));

    let vm = bench.create(nic(&b, json!(true))).await;
    for peer in [&vm, &b] {
        let rule = json!({"action": "deny", "direction": "in", "peer": peer});
        bench.of(&a, "POST", "rules", rule).await.good();
    }
    assert_eq!(bench.network(&a)["rules"][0]["peer"], json!({"range": "10.0.1.1/32"}));
    bench.of(&b, "DELETE", &format!("peerings/{}", text(&made["peeringId"])), nothing()).await.good();
    assert!(bench.network(&a).is_null() && bench.network(&b)["peerings"] == json!([]));
    assert_eq!(
        bench.of(&a, "GET", "rules", nothing()).await.good(),
        json!({"rules": []}),
        "they mean nobody now"
    );
    ask(&b, &c).await.good();
    bench.admin("DELETE", &format!("/v1/vpcs/{c}"), nothing()).await.good();
    assert_eq!(bench.of(&b, "GET", "peerings", nothing()).await.good(), json!({"peerings": []}));
    assert_eq!(bench.network(&b)["peerings"], json!([]));
}

#[tokio::test]
async fn vpcs_of_two_accounts_are_peered_when_both_ask() {
    let bench = Bench::new().await;
    let other = bench.other_account().await;
    let mine = bench.vpc("10.0.0.0/24").await;
    let made = bench.as_account(&other, "POST", "/v1/vpcs", json!({"cidr": "10.0.1.0/24"})).await.good();
    let theirs = text(&made["vpcId"]).to_owned();
    let (my_path, their_path) = (format!("/v1/vpcs/{mine}/peerings"), format!("/v1/vpcs/{theirs}/peerings"));
    let asked = bench.admin("POST", &my_path, json!({"peerVpcId": theirs})).await.good();
    assert_eq!((&asked["state"], &asked["peerCidr"]), (&json!("pending"), &Value::Null));
    assert!(bench.network(&mine).is_null());
    let seen = bench.as_account(&other, "GET", &their_path, nothing()).await.good();
    assert_eq!(
        (&seen["peerings"][0]["state"], &seen["peerings"][0]["peerCidr"]),
        (&json!("asked"), &Value::Null)
    );
    let early = json!({"action": "deny", "direction": "in", "peer": theirs});
    assert_eq!(refused(&bench.of(&mine, "POST", "rules", early).await), (400, "BAD_REQUEST"));
    let agreed = bench.as_account(&other, "POST", &their_path, json!({"peerVpcId": mine})).await.good();
    assert_eq!((&agreed["state"], &agreed["peeringId"]), (&json!("active"), &asked["peeringId"]));
    assert_eq!(bench.network(&mine)["peerings"][0]["vpc"], theirs);
    let id = text(&asked["peeringId"]);
    let stranger = bench.vpc("10.0.2.0/24").await;
    let gone = bench.of(&stranger, "DELETE", &format!("peerings/{id}"), nothing()).await;
    assert_eq!(refused(&gone), (404, "NOT_FOUND"), "no side of it");
    bench.admin("DELETE", &format!("{my_path}/{id}"), nothing()).await.good();
    let left = bench.as_account(&other, "GET", &their_path, nothing()).await.good();
    assert_eq!(left, json!({"peerings": []}));
}

#[tokio::test]
async fn what_is_another_accounts_is_nobodys() {
    let bench = Bench::new().await;
    let other = bench.other_account().await;
    let mine = bench.vpc("10.0.0.0/24").await;
    let unknown = format!("vpc-{}", "a".repeat(20));
    let session = bench.session(&mine).await["sessionId"].clone();
    for (method, path, body) in [
        ("POST", "wireguard/ephemeral", nothing()),
        ("DELETE", "wireguard/ephemeral", json!({ "sessionId": session })),
        ("GET", "wireguard/sessions", nothing()),
        ("GET", "rules", nothing()),
        ("POST", "rules", json!({"action": "deny", "direction": "in"})),
        ("PUT", "rules", json!({"rules": []})),
        ("GET", "services", nothing()),
        ("POST", "services", json!({"name": "db"})),
        ("GET", "peerings", nothing()),
        ("POST", "peerings", json!({ "peerVpcId": mine })),
    ] {
        let foreign =
            bench.as_account(&other, method, &format!("/v1/vpcs/{mine}/{path}"), body.clone()).await;
        let nobodys = bench.as_account(&other, method, &format!("/v1/vpcs/{unknown}/{path}"), body).await;
        assert_eq!(refused(&foreign), (404, "NOT_FOUND"), "{method} {path}");
        assert_eq!(foreign.body.to_string().replace(&mine, &unknown), nobodys.body.to_string());
    }
    assert_eq!(bench.told(), [session]);
}

#[test]
fn the_keys_outlive_control_and_a_lost_house_key_ends_the_sessions() {
    let folder = tempfile::tempdir().expect("folder");
    let config = config(folder.path());
    let outside = runtime();
    let world = outside.block_on(async { World::start(&config.places.vmm_socket()) });
    let admin = async |method: &str, path: &str, body: Value| {
        call(&config.places.admin_socket(), method, path, &[], Some(&body.to_string())).await.good()
    };
    let view = || -> VpnView {
        let bytes = std::fs::read(config.places.feed().join("vpn.json")).expect("view");
        serde_json::from_slice(&bytes).expect("a view")
    };
    let first = start(&config, FailPoints::default());
    let (path, made) = outside.block_on(async {
        let made = admin("POST", "/v1/vpcs", nothing()).await;
        let path = format!("/v1/vpcs/{}/wireguard/ephemeral", text(&made["vpcId"]));
        let made = admin("POST", &path, nothing()).await;
        (path, made)
    });
    let before = view();
    let database = std::fs::read(config.places.data.join("control.db-wal")).expect("the log");
    let preshared = before.sessions.iter().next().and_then(|entry| entry.preshared_key.clone()).expect("one");
    for secret in [
        String::from(before.server_key.clone()),
        String::from(preshared),
        text(&made["clientPrivateKey"]).to_owned(),
    ] {
        let clear = database.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!clear, "a secret in clear");
    }
    first.shutdown_timeout(Duration::from_secs(10));

    let second = start(&config, FailPoints::default());
    let after = view();
    assert_eq!((&after.server_key, &after.sessions), (&before.server_key, &before.sessions));
    assert!(after.generation() > before.generation());
    second.shutdown_timeout(Duration::from_secs(10));

    std::fs::remove_file(config.places.data.join(KEY_FILE)).expect("removed");
    let third = start(&config, FailPoints::default());
    let renewed = view();
    assert_ne!(renewed.server_key, before.server_key);
    assert_eq!(renewed.sessions.iter().count(), 0);
    let again = outside.block_on(admin("POST", &path, nothing()));
    assert_ne!(again["serverPublicKey"], made["serverPublicKey"]);
    assert_ne!(view().server_key, SecretKey::new([0; 32]));
    third.shutdown_timeout(Duration::from_secs(10));
    drop(world);
}
