//! Identities as callers see them, what their tokens open, and what the SSH front is told.

use super::{Bench, PATIENCE, Reply, ask, call, eventually, id, nothing};
use crate::api::routes::{self, Open};
use feed::wire::{Wire, WireListener};
use model::id::{SshSessionId, VmId};
use model::ssh::{LinuxUser, Principal};
use serde_json::{Value, json};
use ssh_proxy::client::{SessionStatus, SshReply, SshRequest};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longest from the answer to a revocation until what was done with the token is cut.
const CUT_WITHIN: Duration = Duration::from_secs(1);
/// A key of nobody.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICFo/k5LU8863u66YC9eUO2170QduohPURkQnbLa/dcz me@home";

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

fn body_of(value: &Value) -> Option<String> {
    Some(value.to_string())
}

impl Bench {
    async fn identity(&self) -> String {
        text(&self.admin("POST", "/identity/v1/identities", nothing()).await.good()["id"])
    }

    /// Asks something about an identity.
    async fn about(&self, identity: &str, method: &str, path: &str, body: Value) -> Reply {
        self.admin(method, &format!("/identity/v1/identities/{identity}{path}"), body).await
    }

    /// A token's id, and it.
    async fn token(&self, identity: &str) -> (String, String) {
        let made = self.about(identity, "POST", "/tokens", nothing()).await.good();
        (text(&made["id"]), text(&made["token"]))
    }

    async fn grant(&self, identity: &str, vm: &str, body: Value) -> Value {
        self.about(identity, "POST", &format!("/permissions/vm/{vm}"), body).await.good()
    }

    /// Asks with a token, as a Linux user if one is named.
    async fn with_token(
        &self,
        token: &str,
        method: &str,
        path: &str,
        user: Option<&str>,
        body: Value,
    ) -> Reply {
        let mut headers = vec![("x-freestyle-identity-access-token", token)];
        headers.extend(user.map(|user| ("x-freestyle-vm-linux-user-id", user)));
        let socket = self.config.places.api_socket();
        call(&socket, method, path, &headers, body_of(&body).as_deref()).await
    }

    /// What the SSH front is told of an identity.
    fn principal(&self, identity: &str) -> Value {
        let view = self.view("ssh");
        let all = view["principals"].as_array().expect("list").clone();
        all.into_iter().find(|entry| entry["principal"]["identity"] == identity).unwrap_or_default()
    }
}

#[tokio::test]
async fn identities_have_tokens_and_grants_as_the_contract_says() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    let (one, other) = (bench.identity().await, bench.identity().await);
    let mut listed = BTreeSet::new();
    for offset in 0..2 {
        let path = format!("/identity/v1/identities?limit=1&offset={offset}&includeManaged=true");
        let list = bench.admin("GET", &path, nothing()).await.good();
        assert_eq!((&list["offset"], &list["total"]), (&json!(offset), &json!(2)));
        assert_eq!(list["identities"].as_array().map(Vec::len), Some(1));
        assert_eq!(list["identities"][0]["managed"], false);
        listed.insert(text(&list["identities"][0]["id"]));
    }
    // Both may be of the same millisecond, so which is the first is open.
    assert_eq!(listed, BTreeSet::from([one.clone(), other]));
    let (id, token) = bench.token(&one).await;
    assert!(token.len() == 32 && token.starts_with("gti_"), "a recognisable one");
    assert_eq!(bench.about(&one, "GET", "/tokens", nothing()).await.good(), json!({"tokens": [{"id": id}]}));
    let at = format!("/permissions/vm/{vm}");
    assert_eq!(bench.about(&one, "GET", &at, nothing()).await.code(), "VM_PERMISSION_NOT_FOUND");
    assert_eq!(bench.about(&one, "PUT", &at, nothing()).await.code(), "VM_PERMISSION_NOT_FOUND");
    assert_eq!(bench.about(&one, "DELETE", &at, nothing()).await.code(), "VM_PERMISSION_NOT_FOUND");
    let granted = bench.grant(&one, &vm, json!({"allowedUsers": ["dev", "ops"]})).await;
    assert_eq!((&granted["vmId"], &granted["identityId"]), (&json!(vm), &json!(one)));
    assert_eq!(granted["allowedUsers"], json!(["dev", "ops"]));
    assert!(text(&granted["grantedAt"]).ends_with('Z') && text(&granted["grantedBy"]).starts_with("ac-"));
    assert_eq!(bench.about(&one, "POST", &at, nothing()).await.code(), "PERMISSION_ALREADY_EXISTS");
    let entry = bench.principal(&one);
    assert_eq!(entry["grants"], json!([{"vm": vm, "allowed_users": ["dev", "ops"]}]));
    assert_eq!(entry["tokens"][0]["id"], json!(id));
    assert!(!bench.view("ssh").to_string().contains(&token), "the token itself is nowhere");
    for bad in [json!({"allowedUsers": []}), json!({"allowedUsers": ["-x"]}), json!({"allowedUsers": "dev"})]
    {
        assert_eq!(bench.about(&one, "PUT", &at, bad).await.code(), "INVALID_REQUEST");
    }
    assert_eq!(bench.about(&one, "GET", &at, nothing()).await.good(), granted, "bad input changes nothing");
    let widened = bench.about(&one, "PUT", &at, nothing()).await.good();
    assert_eq!((&widened["allowedUsers"], &widened["id"]), (&Value::Null, &granted["id"]));
    let list = bench.about(&one, "GET", "/permissions/vm?limit=5", nothing()).await.good();
    assert_eq!(list, json!({"permissions": [widened], "offset": 0, "total": 1}));
    bench.about(&one, "DELETE", &at, nothing()).await.good();
    assert_eq!(bench.principal(&one), Value::Null);
    bench.grant(&one, &vm, nothing()).await;
    bench.admin("DELETE", &format!("/v1/vms/{vm}"), nothing()).await.good();
    assert_eq!(bench.about(&one, "GET", "/permissions/vm", nothing()).await.good()["total"], 0);
    assert_eq!(bench.about(&one, "POST", &at, nothing()).await.code(), "VM_NOT_FOUND");
    bench.about(&one, "DELETE", "", nothing()).await.good();
    for (method, path) in [("DELETE", ""), ("GET", "/tokens"), ("POST", "/tokens"), ("GET", "/keys")] {
        let reply = bench.about(&one, method, path, nothing()).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (404, "IDENTITY_NOT_FOUND"), "{method} {path}");
    }
}

#[tokio::test]
async fn repositories_are_noted_for_later() {
    let bench = Bench::new().await;
    let identity = bench.identity().await;
    let at = "/permissions/git/3f2a-b";
    assert_eq!(bench.about(&identity, "GET", at, nothing()).await.code(), "PERMISSION_NOT_FOUND");
    assert_eq!(
        bench.about(&identity, "PUT", at, json!({"permission": "write"})).await.code(),
        "PERMISSION_NOT_FOUND"
    );
    assert_eq!(
        bench.about(&identity, "POST", at, json!({"permission": "own"})).await.code(),
        "INVALID_REQUEST"
    );
    bench.about(&identity, "POST", at, json!({"permission": "read"})).await.good();
    let again = bench.about(&identity, "POST", at, json!({"permission": "read"})).await;
    assert_eq!(again.code(), "PERMISSION_ALREADY_EXISTS");
    bench.about(&identity, "PUT", at, json!({"permission": "write"})).await.good();
    let got = bench.about(&identity, "GET", at, nothing()).await.good();
    assert_eq!(got, json!({"identity": identity, "repo": "3f2a-b", "accessLevel": "write"}));
    let list = bench.about(&identity, "GET", "/permissions/git", nothing()).await.good();
    assert_eq!(list["repositories"][0]["permissions"], "write");
    bench.about(&identity, "DELETE", at, nothing()).await.good();
    assert_eq!(bench.about(&identity, "DELETE", at, nothing()).await.code(), "PERMISSION_NOT_FOUND");
}

#[tokio::test]
async fn keys_are_registered_once_and_only_good_ones() {
    let bench = Bench::new().await;
    let (vm, identity) = (bench.create(nothing()).await, bench.identity().await);
    bench.grant(&identity, &vm, nothing()).await;
    let line = KEY.rsplit_once(' ').expect("a comment").0;
    for at in [format!("/identity/v1/identities/{identity}/keys"), "/v1/ssh/keys".to_owned()] {
        let made = bench.admin("POST", &at, json!({"key": KEY})).await.good();
        assert_eq!((&made["key"], &made["name"]), (&json!(line), &json!("me@home")));
        assert_eq!(bench.admin("POST", &at, json!({"key": KEY, "name": "x"})).await.status.as_u16(), 409);
        for bad in ["", "ssh-rsa AAAA", "-----BEGIN OPENSSH PRIVATE KEY-----"] {
            assert_eq!(bench.admin("POST", &at, json!({"key": bad})).await.code(), "INVALID_REQUEST");
        }
        let listed = bench.admin("GET", &at, nothing()).await.good();
        assert_eq!(listed, json!({"keys": [made]}));
        let principals = bench.view("ssh")["principals"].to_string();
        assert!(principals.contains(line) && principals.contains(&text(&made["id"])));
        let one = format!("{at}/{}", text(&made["id"]));
        bench.admin("DELETE", &one, nothing()).await.good();
        assert_eq!(bench.admin("DELETE", &one, nothing()).await.code(), "NOT_FOUND");
        assert!(!bench.view("ssh")["principals"].to_string().contains(line), "{at}");
    }
}

#[tokio::test]
async fn a_token_opens_its_vm_as_its_users_and_nothing_else() {
    let bench = Bench::new().await;
    let (vm, foreign) = (bench.create(nothing()).await, bench.create(nothing()).await);
    let identity = bench.identity().await;
    let (_, token) = bench.token(&identity).await;
    let exec = |vm: &str| format!("/v1/vms/{vm}/exec-await");
    let command = json!({"command": "echo hi"});
    let who = bench.with_token(&token, "GET", "/auth/v1/whoami", None, nothing()).await.good();
    assert_eq!(who["identityId"], json!(identity));
    let ungranted = bench.with_token(&token, "POST", &exec(&vm), None, command.clone()).await;
    assert_eq!((ungranted.status.as_u16(), ungranted.code()), (403, "VM_ACCESS_DENIED"));
    bench.grant(&identity, &vm, nothing()).await;
    let done = bench.with_token(&token, "POST", &exec(&vm), Some("dev"), command.clone()).await.good();
    assert_eq!(done["stdout"], "hi\n");
    let at = format!("/permissions/vm/{vm}");
    bench.about(&identity, "PUT", &at, json!({"allowedUsers": ["dev"]})).await.good();
    bench.with_token(&token, "POST", &exec(&vm), Some("dev"), command.clone()).await.good();
    let file = format!("/v1/vms/{vm}/files/%2Fa");
    for user in [None, Some("root"), Some(""), Some("0"), Some("developer")] {
        for (method, path) in [("POST", exec(&vm)), ("GET", file.clone()), ("PUT", file.clone())] {
            let reply = bench.with_token(&token, method, &path, user, command.clone()).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (403, "ACCESS_DENIED"), "{user:?} {path}");
        }
    }
    bench.about(&identity, "PUT", &at, json!({"allowedUsers": ["root"]})).await.good();
    bench.with_token(&token, "POST", &exec(&vm), None, command.clone()).await.good();
    bench.with_token(&token, "PUT", &file, None, json!({"content": "x"})).await.good();
    assert_eq!(bench.with_token(&token, "GET", &file, None, nothing()).await.good()["content"], "x");
    for what in ["suspend", "start", "stop", "start", "kill"] {
        bench.with_token(&token, "POST", &format!("/v1/vms/{vm}/{what}"), None, nothing()).await.good();
    }
    let lasting = json!({"idleTimeoutSeconds": 5});
    let reply = bench.with_token(&token, "POST", &format!("/v1/vms/{vm}/start"), None, lasting).await;
    assert_eq!(reply.code(), "ACCESS_DENIED");
    let nobody = VmId::from_random([7; 20]).to_string();
    let answers: BTreeSet<String> = futures(&bench, &token, [&foreign, &nobody]).await;
    assert_eq!(answers.len(), 1, "who asks learns nothing about other VMs: {answers:?}");
    for bad in ["gti_x", &format!("{token}x"), &token.to_lowercase(), ""] {
        let reply = bench.with_token(bad, "GET", &format!("/v1/vms/{vm}"), None, nothing()).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (401, "UNAUTHORIZED_ERROR"));
    }
}

/// What is answered about each VM, but for its id.
async fn futures(bench: &Bench, token: &str, vms: [&String; 2]) -> BTreeSet<String> {
    let mut answers = BTreeSet::new();
    for vm in vms {
        let reply = bench.with_token(token, "GET", &format!("/v1/vms/{vm}"), None, nothing()).await;
        assert_eq!(reply.code(), "VM_ACCESS_DENIED");
        answers.insert(format!("{} {}", reply.status, reply.body).replace(vm.as_str(), "VM"));
    }
    answers
}

/// The table of routes says to which a token leads; whoever adds one there changes this list too.
#[tokio::test]
async fn every_route_that_says_nothing_is_closed_to_tokens() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    let identity = bench.identity().await;
    let (id, token) = bench.token(&identity).await;
    bench.grant(&identity, &vm, nothing()).await;
    let mut open = BTreeSet::new();
    for route in routes::all() {
        let path =
            route.path.replace("{vm_id}", &vm).replace("{identity}", &identity).replace("{token}", &id);
        let path = path.replace("{*filepath}", "a");
        let path =
            path.split('/').map(|part| if part.starts_with('{') { "x" } else { part }).collect::<Vec<_>>();
        let (path, method) = (path.join("/"), route.method.to_uppercase());
        if route.open != Open::No {
            open.insert(format!("{method} {}", route.path));
            continue;
        }
        let reply = bench.with_token(&token, &method, &path, None, nothing()).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (403, "FORBIDDEN"), "{method} {path}");
        let socket = bench.config.places.admin_socket();
        let header = [("x-freestyle-identity-access-token", token.as_str())];
        let reply = call(&socket, &method, &path, &header, Some("{}")).await;
        assert_eq!(reply.status.as_u16(), 403, "the operator's door is no way around: {method} {path}");
    }
    for (method, path) in [
        ("GET", "/nowhere"),
        ("POST", "/v1/vms/snapshots"),
        ("HEAD", "/v1/cron/x"),
        ("DELETE", "/auth/v1/whoami"),
        ("GET", "/v1/vms/builds"),
    ] {
        if method != "HEAD" {
            assert_eq!(bench.with_token(&token, method, path, None, nothing()).await.code(), "FORBIDDEN");
        }
    }
    let expected = [
        "GET /auth/v1/whoami",
        "GET /v1/vms/{vm_id}",
        "GET /v1/vms/{vm_id}/files/{*filepath}",
        "POST /v1/vms/{vm_id}/await",
        "POST /v1/vms/{vm_id}/exec-await",
        "POST /v1/vms/{vm_id}/kill",
        "POST /v1/vms/{vm_id}/start",
        "POST /v1/vms/{vm_id}/stop",
        "POST /v1/vms/{vm_id}/suspend",
        "PUT /v1/vms/{vm_id}/files/{*filepath}",
    ];
    assert_eq!(open, expected.map(str::to_owned).into());
    assert_eq!(
        bench.admin("GET", "/v1/vms", nothing()).await.good()["totalCount"],
        1,
        "and nothing was done"
    );
}

#[tokio::test]
async fn what_runs_with_a_token_is_cut_when_its_rights_go() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    for way in ["token", "grant", "users", "identity"] {
        let identity = bench.identity().await;
        let (id, token) = bench.token(&identity).await;
        bench.grant(&identity, &vm, json!({"allowedUsers": ["root"]})).await;
        let mark = bench.config.places.run.join(way);
        let command = json!({"command": format!("touch {}; sleep 60", mark.display())}).to_string();
        let (socket, path) = (bench.config.places.api_socket(), format!("/v1/vms/{vm}/exec-await"));
        let running = tokio::spawn(async move {
            let header = [("x-freestyle-identity-access-token", token.as_str())];
            ask(socket, "POST", &path, &header, Some(&command)).await
        });
        let _began: () = eventually("the command runs", async || mark.exists().then_some(())).await;
        // Somebody else's rights change meanwhile: that cuts nobody.
        let bystander = bench.identity().await;
        bench.about(&bystander, "DELETE", "", nothing()).await.good();
        assert!(!running.is_finished());
        let (method, path, body) = match way {
            "token" => ("DELETE", format!("/tokens/{id}"), nothing()),
            "grant" => ("DELETE", format!("/permissions/vm/{vm}"), nothing()),
            "users" => ("PUT", format!("/permissions/vm/{vm}"), json!({"allowedUsers": ["dev"]})),
            _ => ("DELETE", String::new(), nothing()),
        };
        bench.about(&identity, method, &path, body).await.good();
        let begun = Instant::now();
        let reply = timeout(PATIENCE, running).await.expect("cut").expect("asked");
        assert_eq!((reply.status.as_u16(), reply.code()), (403, "FORBIDDEN"), "{way}");
        assert!(begun.elapsed() < CUT_WITHIN, "{way}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn the_ssh_front_is_told_what_vms_do_and_guests_whom_to_trust() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    let state = || {
        let view = bench.view("ssh");
        let entry = view["vms"].as_array().expect("list").iter().find(|entry| entry["vm"] == vm.as_str());
        entry.expect("the VM is told of")["state"].clone()
    };
    assert_eq!(state(), "up");
    bench.post(&vm, "suspend", nothing()).await.good();
    assert_eq!(state(), "asleep");
    bench.post(&vm, "start", nothing()).await.good();
    assert_eq!(state(), "up");
    let copy = bench.post(&vm, "snapshot", nothing()).await.good();
    bench.create(json!({"snapshotId": copy["snapshotId"]})).await;
    bench.post(&vm, "fork", json!({"count": 1})).await.good();
    bench.post(&vm, "stop", nothing()).await.good();
    assert_eq!(state(), "down");
    let lines: BTreeSet<Vec<String>> =
        bench.world.state().launched.iter().map(|spec| spec.metadata.ssh_keys.clone()).collect();
    let lines: Vec<_> = lines.into_iter().collect();
    assert!(lines.len() == 1 && lines[0].len() == 1, "the same for all: {lines:?}");
    assert!(lines[0][0].starts_with("cert-authority ssh-ed25519 AAAA"), "{lines:?}");
    let host = bench.admin("GET", "/v1/ssh/host", nothing()).await.good();
    assert_eq!(host["host"], "vm-ssh.style.dev");
    assert!(text(&host["knownHosts"]).starts_with("@cert-authority vm-ssh.style.dev,*.vm-ssh.style.dev,"));
    let keys = bench.view("ssh")["host_keys"].clone();
    assert!(keys.as_array().is_some_and(|keys| keys.len() == 2) && keys[1]["certificate"].is_string());
}

/// An SSH front that tells of one session and of whom clients wait for.
fn front(bench: &Bench, session: SessionStatus) -> (mpsc::Sender<VmId>, mpsc::Receiver<SshSessionId>) {
    let (wish, mut wished) = mpsc::channel(4);
    let (ended, told) = mpsc::channel(4);
    std::fs::create_dir_all(bench.config.places.ssh_run()).expect("folder");
    let listener = WireListener::bind(&bench.config.places.ssh_socket(), 0o600).expect("bind");
    let (wants, mut waiting) = mpsc::channel::<Wire>(1);
    tokio::spawn(async move {
        let wire = waiting.recv().await.expect("control follows");
        while let Some(vm) = wished.recv().await {
            wire.send(&SshReply::Wanted { vm }, &[]).await.expect("told");
        }
    });
    tokio::spawn(async move {
        while let Ok(wire) = listener.accept().await {
            match wire.receive::<SshRequest>().await.expect("a request").0 {
                SshRequest::Wants => drop(wants.send(wire).await),
                SshRequest::Sessions { .. } => {
                    let reply = SshReply::Sessions { sessions: vec![session.clone()], more: false };
                    wire.send(&reply, &[]).await.expect("told");
                }
                SshRequest::End { session } => {
                    ended.send(session).await.expect("told");
                    wire.send(&SshReply::Ended { was_there: true }, &[]).await.expect("told");
                }
            }
        }
    });
    (wish, told)
}

#[tokio::test]
async fn who_waits_at_the_ssh_front_gets_the_vm_started_and_sessions_are_seen_by_their_account() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    bench.post(&vm, "stop", nothing()).await.good();
    let away = bench.admin("GET", "/v1/ssh/sessions", nothing()).await;
    assert_eq!((away.status.as_u16(), away.code()), (503, "INTERNAL_ERROR"), "nobody is there yet");
    let identity = bench.identity().await;
    let session = SessionStatus {
        id: SshSessionId::from_random([3; 20]),
        vm: id(&vm),
        user: LinuxUser::root(),
        principal: Principal::Identity(identity.parse().expect("id")),
        client: "192.0.2.7".parse().expect("address"),
        seconds: 9,
        channels: 2,
        received_bytes: 3,
        sent_bytes: 4,
    };
    let (wish, mut ended) = front(&bench, session.clone());
    wish.send(id(&vm)).await.expect("told");
    bench.until(&vm, "running").await;
    wish.send(VmId::from_random([9; 20])).await.expect("told of nobody's VM");
    let list = bench.admin("GET", "/v1/ssh/sessions", nothing()).await.good();
    assert_eq!(
        (&list["sessions"][0]["vmId"], &list["sessions"][0]["identityId"]),
        (&json!(vm), &json!(identity))
    );
    let one = format!("/v1/ssh/sessions/{}", session.id);
    let other = bench.admin("POST", "/admin/v1/accounts", json!({"name": "other"})).await.good();
    let header = [("x-gatehouse-account", other["id"].as_str().expect("id"))];
    let socket = bench.config.places.admin_socket();
    let theirs = call(&socket, "GET", "/v1/ssh/sessions", &header, None).await.good();
    assert_eq!(theirs, json!({"sessions": []}));
    assert_eq!(call(&socket, "DELETE", &one, &header, None).await.code(), "NOT_FOUND");
    bench.admin("DELETE", &one, nothing()).await.good();
    assert_eq!(ended.recv().await, Some(session.id));
}
