//! Customers' domains: proved by a name server's word, covering what is below, moved by a fresh proof, and mapped.

use super::{Bench, Reply, call, nothing};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{RData, Record};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::UdpSocket;

type Texts = Arc<Mutex<HashMap<String, Vec<String>>>>;

/// A name server that has authority over everything: root and customers' zones in one.
#[derive(Clone, Debug)]
pub(super) struct Dns {
    texts: Texts,
    at: SocketAddr,
}

impl Dns {
    pub(super) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let at = socket.local_addr().expect("address");
        let texts = Texts::default();
        tokio::spawn(serve(socket, Arc::clone(&texts)));
        Self { texts, at }
    }

    pub(super) fn configure(&self, config: &mut model::config::ControlConfig) {
        config.domains.roots = vec![self.at.ip()];
        config.domains.port = Some(self.at.port());
        config.domains.any_address = true;
    }

    /// Publishes one TXT record; others of the name go.
    pub(super) fn publish(&self, name: &str, text: &str) {
        let text = vec![text.to_owned()];
        self.texts.lock().expect("lock").insert(format!("{name}."), text);
    }
}

async fn serve(socket: UdpSocket, texts: Texts) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let mut answer = Message::from_vec(&buffer[..length]).expect("a question").into_response();
        answer.metadata.authoritative = true;
        answer.edns = None;
        let name = answer.queries[0].name.clone();
        let found = texts.lock().expect("lock").get(&name.to_ascii().to_ascii_lowercase()).cloned();
        if found.is_none() {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        for text in found.unwrap_or_default() {
            answer.add_answer(Record::from_rdata(name.clone(), 60, RData::TXT(TXT::new(vec![text]))));
        }
        socket.send_to(&answer.to_vec().expect("bytes"), from).await.expect("sent");
    }
}

const VERIFICATIONS: &str = "/domains/v1/verifications";

async fn house() -> (Bench, Dns) {
    let dns = Dns::start().await;
    let bench = Bench::configured(|config| dns.configure(config)).await;
    (bench, dns)
}

async fn other(bench: &Bench) -> String {
    let made = bench.admin("POST", "/admin/v1/accounts", json!({"name": "other"})).await.good();
    made["id"].as_str().expect("id").to_owned()
}

async fn by(bench: &Bench, account: &str, method: &str, path: &str, body: Value) -> Reply {
    let header = [("x-gatehouse-account", account)];
    call(&bench.config.places.admin_socket(), method, path, &header, Some(&body.to_string())).await
}

/// Begins a proof and publishes its record.
async fn begin(bench: &Bench, dns: &Dns, account: Option<&str>, domain: &str) -> Value {
    let body = json!({"domain": domain});
    let begun = match account {
        None => bench.admin("POST", VERIFICATIONS, body).await.good(),
        Some(account) => by(bench, account, "POST", VERIFICATIONS, body).await.good(),
    };
    let domain = begun["domain"].as_str().expect("domain");
    let code = begun["verificationCode"].as_str().expect("code");
    dns.publish(&format!("_freestyle_custom_hostname.{domain}"), code);
    begun
}

async fn prove(bench: &Bench, dns: &Dns, account: Option<&str>, domain: &str) {
    let begun = begin(bench, dns, account, domain).await;
    let body = json!({"id": begun["id"]});
    let done = match account {
        None => bench.admin("PUT", VERIFICATIONS, body).await,
        Some(account) => by(bench, account, "PUT", VERIFICATIONS, body).await,
    };
    assert_eq!(done.good(), json!({"domain": begun["domain"]}));
}

fn hosts(bench: &Bench) -> Vec<String> {
    let view = bench.view("edge");
    let routes = view["routes"].as_array().expect("routes");
    let mut hosts: Vec<String> =
        routes.iter().map(|route| route["host"].as_str().expect("host").to_owned()).collect();
    hosts.sort();
    hosts
}

#[tokio::test]
async fn a_domain_is_proved_by_its_dns_and_covers_what_is_below() {
    let (bench, dns) = house().await;
    let vm = bench.create(json!({})).await;
    let map = json!({"vmId": vm, "vmPort": 8080});
    let early = bench.admin("POST", "/domains/v1/mappings/www.shop.test", map.clone()).await;
    assert_eq!((early.status.as_u16(), early.code()), (401, "DOMAIN_OWNERSHIP_NOT_VERIFIED"));

    let begun = bench.admin("POST", VERIFICATIONS, json!({"domain": "Shop.test."})).await.good();
    assert_eq!(begun["domain"], "shop.test");
    assert_eq!(begun["recordName"], "_freestyle_custom_hostname.shop.test");
    let again = bench.admin("POST", VERIFICATIONS, json!({"domain": "shop.test"})).await.good();
    assert_eq!((&again["id"], &again["verificationCode"]), (&begun["id"], &begun["verificationCode"]));
    let refused = bench.admin("PUT", VERIFICATIONS, json!({"domain": "shop.test"})).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (400, "VERIFICATION_FAILED"));
    assert!(refused.body["message"].as_str().expect("text").contains("127.0.0.1"), "{refused:?}");
    let listed = bench.admin("GET", VERIFICATIONS, nothing()).await.good();
    assert!(listed[0]["lastError"].is_string() && listed[0]["domain"] == "shop.test", "{listed}");

    prove(&bench, &dns, None, "shop.test").await;
    assert_eq!(bench.admin("GET", VERIFICATIONS, nothing()).await.good(), json!([]));
    let repeated = bench.admin("PUT", VERIFICATIONS, json!({"domain": "shop.test"})).await.good();
    assert_eq!(repeated, json!({"domain": "shop.test"}), "whoever did not hear it asks again");
    let exists = bench.admin("POST", VERIFICATIONS, json!({"domain": "shop.test"})).await;
    assert_eq!((exists.status.as_u16(), exists.code()), (400, "DOMAIN_ALREADY_EXISTS"));
    let domains = bench.admin("GET", "/domains/v1/domains?limit=10&offset=0", nothing()).await.good();
    assert_eq!((&domains[0]["domain"], &domains[0]["verifiedDns"]), (&json!("shop.test"), &json!(true)));
    let implicit = bench.admin("GET", "/domains/v1/domains?implicitlyOwned=true", nothing()).await.good();
    assert_eq!(implicit, json!([]));

    for name in ["shop.test", "www.shop.test", "*.shop.test"] {
        let made = bench.admin("POST", &format!("/domains/v1/mappings/{name}"), map.clone()).await.good();
        assert_eq!((&made["domain"], &made["ownershipId"]), (&json!(name), &domains[0]["id"]));
    }
    assert_eq!(hosts(&bench), ["*.shop.test", "shop.test", "www.shop.test"]);
    let path = format!("/domains/v1/mappings?domainOwnership={}", domains[0]["id"].as_str().expect("id"));
    assert_eq!(bench.admin("GET", &path, nothing()).await.good().as_array().map(Vec::len), Some(3));
    let made =
        json!({"domains": [{"domain": "a.shop.test", "vmPort": 1}, {"domain": "b.shop.test", "vmPort": 2}]});
    let second = bench.create(made).await;
    let remapped = bench.admin("POST", "/domains/v1/mappings/www.shop.test", json!({"vmId": second})).await;
    assert_eq!(remapped.good()["vmId"], second.as_str());
    assert_eq!(hosts(&bench).len(), 5);
    bench.admin("DELETE", "/domains/v1/mappings/*.shop.test", nothing()).await.good();
    assert_eq!(hosts(&bench), ["a.shop.test", "b.shop.test", "shop.test", "www.shop.test"]);
}

#[tokio::test]
async fn a_fresh_proof_moves_a_domain_and_ends_what_the_loser_mapped() {
    let (bench, dns) = house().await;
    let other = other(&bench).await;
    let mine = bench.create(json!({"domains": [{"domain": "p.style.dev"}]})).await;
    let theirs = by(&bench, &other, "POST", "/v1/vms", nothing()).await.good()["id"].clone();
    prove(&bench, &dns, None, "shop.test").await;
    for name in ["shop.test", "a.eu.shop.test", "www.shop.test"] {
        let path = format!("/domains/v1/mappings/{name}");
        bench.admin("POST", &path, json!({"vmId": mine})).await.good();
        let refused = by(&bench, &other, "POST", &path, json!({"vmId": theirs})).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (401, "DOMAIN_OWNERSHIP_NOT_VERIFIED"));
    }
    prove(&bench, &dns, Some(&other), "eu.shop.test").await;
    assert_eq!(hosts(&bench), ["p.style.dev", "shop.test", "www.shop.test"], "what is below alone");
    let lost = bench.admin("POST", "/domains/v1/mappings/a.eu.shop.test", json!({"vmId": mine})).await;
    assert_eq!(lost.code(), "DOMAIN_OWNERSHIP_NOT_VERIFIED");
    by(&bench, &other, "POST", "/domains/v1/mappings/a.eu.shop.test", json!({"vmId": theirs})).await.good();

    let waiting = by(&bench, &other, "POST", VERIFICATIONS, json!({"domain": "shop.test"})).await.good();
    let refused = by(&bench, &other, "PUT", VERIFICATIONS, json!({"id": waiting["id"]})).await;
    assert_eq!(refused.code(), "VERIFICATION_FAILED", "the old owner's record proves nothing for another");
    assert_eq!(hosts(&bench).len(), 4, "an error changes nothing");
    prove(&bench, &dns, Some(&other), "shop.test").await;
    assert_eq!(hosts(&bench), ["a.eu.shop.test", "p.style.dev"]);
    assert_eq!(bench.admin("GET", "/domains/v1/domains", nothing()).await.good(), json!([]));
}

#[tokio::test]
async fn what_cannot_be_proved_is_refused_and_changes_nothing() {
    let (bench, dns) = house().await;
    for bad in ["", "com", "co.uk", "a.style.dev", "*.example.com", "a b.com", "192.0.2.1"] {
        let refused = bench.admin("POST", VERIFICATIONS, json!({"domain": bad})).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "INVALID_DOMAIN"), "{bad}");
        assert_eq!(refused.body["domain"], bad.to_ascii_lowercase());
    }
    let begun = begin(&bench, &dns, None, "b\u{fc}cher.test").await;
    assert_eq!(begun["domain"], "xn--bcher-kva.test");
    for body in [json!({}), json!({"domain": "a.test", "id": "x"})] {
        let refused = bench.admin("PUT", VERIFICATIONS, body).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "INVALID_REQUEST"));
    }
    for body in [json!({"domain": "unknown.test"}), json!({"id": "dv-abcdefghij0123456789"})] {
        let refused = bench.admin("PUT", VERIFICATIONS, body).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (404, "VERIFICATION_NOT_FOUND"));
    }
    let wrong = json!({"domain": "b\u{fc}cher.test", "verificationCode": "x"});
    let refused = bench.admin("DELETE", VERIFICATIONS, wrong).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (404, "VERIFICATION_NOT_FOUND"));
    let right = json!({"domain": "b\u{fc}cher.test", "verificationCode": begun["verificationCode"]});
    assert_eq!(bench.admin("DELETE", VERIFICATIONS, right.clone()).await.good(), right);
    let cancelled = bench.admin("PUT", VERIFICATIONS, json!({"id": begun["id"]})).await;
    assert_eq!(cancelled.code(), "VERIFICATION_NOT_FOUND");
    assert_eq!(bench.admin("GET", "/domains/v1/domains", nothing()).await.good(), json!([]));
}

#[tokio::test]
async fn the_door_is_told_of_a_vm_that_was_deleted_until_its_name_leads_elsewhere() {
    let (bench, dns) = house().await;
    prove(&bench, &dns, None, "shop.test").await;
    let vm = bench.create(json!({"domains": [{"domain": "shop.test"}, {"domain": "p.style.dev"}]})).await;
    bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();
    assert_eq!(bench.view("edge")["gone"], json!(["p.style.dev", "shop.test"]));
    let next = bench.create(json!({"domains": [{"domain": "shop.test"}]})).await;
    assert_eq!(bench.view("edge")["gone"], json!(["p.style.dev"]));
    let status = bench.admin("GET", "/domains/v1/status/shop.test", nothing()).await.good();
    assert_eq!((&status["mapping"]["vmId"], &status["vmState"]), (&json!(next), &json!("running")));
    assert_eq!((&status["dns"]["found"], &status["certificate"]), (&json!(true), &json!(false)));
    let unknown = bench.admin("GET", "/domains/v1/status/new.test", nothing()).await.good();
    assert!(unknown["next"].as_str().expect("text").contains("domains verify new.test"), "{unknown}");
    begin(&bench, &dns, None, "new.test").await;
    let begun = bench.admin("GET", "/domains/v1/status/new.test", nothing()).await.good();
    assert!(begun["next"].as_str().expect("text").contains("domains complete new.test"), "{begun}");
}
