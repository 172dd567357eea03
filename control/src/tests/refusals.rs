//! What is refused, and how: always JSON, always with a code that callers know.

use super::{Bench, call, nothing};
use crate::keys;
use serde_json::{Value, json};

#[tokio::test]
async fn the_public_door_opens_with_a_key_alone() {
    let bench = Bench::new().await;
    let made = bench.admin("POST", "/admin/v1/api-keys", json!({"name": "laptop"})).await.good();
    let secret = made["secret"].as_str().expect("secret").to_owned();
    let bearer = format!("Bearer {secret}");
    let socket = bench.config.places.api_socket();
    let who = call(&socket, "GET", "/auth/v1/whoami", &[("authorization", &bearer)], None).await;
    assert!(who.headers["x-freestyle-trace-id"].to_str().expect("text").starts_with("tr-"));
    assert_eq!(who.headers["access-control-allow-origin"], "*");
    assert_eq!(who.good(), json!({"accountId": made["accountId"], "identityId": null}));
    let other = format!("Bearer {}", keys::generate());
    for headers in [
        vec![],
        vec![("authorization", "Bearer x")],
        vec![("authorization", other.as_str())],
        vec![("authorization", secret.as_str())],
        vec![("x-freestyle-identity-access-token", "x")],
    ] {
        for path in ["/auth/v1/whoami", "/v1/vms", "/nowhere", "/openapi.json"] {
            let reply = call(&socket, "GET", path, &headers, None).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (401, "UNAUTHORIZED_ERROR"), "{headers:?}");
            assert_eq!(reply.body["route"], path);
        }
    }
    let admin = call(&socket, "GET", "/admin/v1/status", &[("authorization", &bearer)], None).await;
    assert_eq!(admin.status.as_u16(), 404, "not the operator");
    let listed = bench.admin("GET", "/admin/v1/api-keys", nothing()).await.good();
    assert_eq!(listed["apiKeys"][0]["name"], "laptop");
    assert!(listed["apiKeys"][0]["lastUsedAt"].is_string() && !listed.to_string().contains(&secret));
    let path = format!("/admin/v1/api-keys/{}", made["id"].as_str().expect("id"));
    bench.admin("DELETE", &path, nothing()).await.good();
    let revoked = call(&socket, "GET", "/auth/v1/whoami", &[("authorization", &bearer)], None).await;
    assert_eq!(revoked.code(), "UNAUTHORIZED_ERROR");
}

#[tokio::test]
async fn accounts_do_not_see_each_other() {
    let bench = Bench::new().await;
    let vm = bench.create(json!({"domains": [{"domain": "mine.style.dev"}]})).await;
    let other = bench.admin("POST", "/admin/v1/accounts", json!({"name": "other"})).await.good();
    let header = [("x-gatehouse-account", other["id"].as_str().expect("id"))];
    let socket = bench.config.places.admin_socket();
    for (method, path) in
        [("GET", ""), ("DELETE", ""), ("POST", "/start"), ("POST", "/exec-await"), ("GET", "/files/a")]
    {
        let body = Some(r#"{"command":"true"}"#);
        let reply = call(&socket, method, &format!("/v1/vms/{vm}{path}"), &header, body).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (404, "VM_NOT_FOUND"), "{method} {path}");
    }
    assert_eq!(call(&socket, "GET", "/v1/vms", &header, None).await.good()["totalCount"], 0);
    assert_eq!(call(&socket, "GET", "/domains/v1/mappings", &header, None).await.good(), json!([]));
    let body = json!({"vmId": vm}).to_string();
    let mapped = call(&socket, "POST", "/domains/v1/mappings/x.style.dev", &header, Some(&body)).await;
    assert_eq!((mapped.status.as_u16(), mapped.code()), (401, "VM_ACCESS_DENIED_FOR_MAPPING"));
    let unmapped = call(&socket, "DELETE", "/domains/v1/mappings/mine.style.dev", &header, None).await;
    assert_eq!(unmapped.code(), "DOMAIN_OWNERSHIP_NOT_VERIFIED");
    let nobody = [("x-gatehouse-account", "nobody")];
    assert_eq!(call(&socket, "GET", "/v1/vms", &nobody, None).await.code(), "INVALID_ACCOUNT_ID");
}

#[tokio::test]
async fn a_creation_is_never_refused_with_a_word_that_is_asked_again_for_ever() {
    let bench = Bench::new().await;
    let socket = bench.config.places.admin_socket();
    for (body, code) in [
        ("{", "CREATE_VM_BAD_REQUEST"),
        ("null", "CREATE_VM_BAD_REQUEST"),
        ("[]", "CREATE_VM_BAD_REQUEST"),
        (r#"{"idleTimeoutSeconds":"soon"}"#, "CREATE_VM_BAD_REQUEST"),
        (r#"{"snapshotId":"sc-1"}"#, "INVALID_SNAPSHOT_ID"),
        (r#"{"snapshotId":"sc-abcdefghij0123456789"}"#, "SNAPSHOT_NOT_FOUND"),
        (r#"{"spec":{"snapshotId":"sc-abcdefghij0123456789","name":null}}"#, "SNAPSHOT_NOT_FOUND"),
        (r#"{"template":{"memSizeGb":1.5}}"#, "CREATE_VM_MEM_NOT_POWER_OF_TWO"),
        (r#"{"template":{"vcpuCount":64}}"#, "CREATE_VM_VCPU_OUT_OF_RANGE"),
        (r#"{"nics":[{"vpc":"v"}]}"#, "CREATE_VM_BAD_REQUEST"),
        (r#"{"nics":[{"vpc":"vpc-abcdefghij0123456789","mode":"routed"}]}"#, "CREATE_VM_BAD_REQUEST"),
        (
            r#"{"nics":[{"vpc":"vpc-abcdefghij0123456789","mode":"routed","ipv4":7}]}"#,
            "CREATE_VM_BAD_REQUEST",
        ),
        (r#"{"domains":[{"domain":"example.com"}]}"#, "DOMAIN_OWNERSHIP_NOT_VERIFIED"),
    ] {
        assert_eq!(call(&socket, "POST", "/v1/vms", &[], Some(body)).await.code(), code, "{body}");
    }
    let snapshots = call(&socket, "POST", "/v1/vms/snapshots", &[], Some("{}")).await;
    assert_eq!(snapshots.code(), "CREATE_SNAPSHOT_BAD_REQUEST");
    bench.create(json!({"template": {"memSizeGb": 2}, "idleTimeoutSeconds": null})).await;
    let full = bench.admin("POST", "/v1/vms", nothing()).await;
    assert_eq!((full.status.as_u16(), full.code()), (503, "NO_LOCAL_STORAGE_CAPACITY"));
}

#[tokio::test]
async fn what_is_not_there_says_so_in_json() {
    let bench = Bench::new().await;
    let vm = "abcdefghij0123456789";
    for (method, path, status, code) in [
        ("GET", "/nowhere".to_owned(), 404, "NOT_FOUND"),
        ("PATCH", "/v1/vms".to_owned(), 405, "INVALID_REQUEST"),
        ("GET", "/v1/vms/no-id".to_owned(), 400, "INVALID_VM_ID"),
        ("POST", format!("/v1/vms/{vm}/suspend"), 404, "VM_NOT_FOUND"),
        ("POST", format!("/v1/vms/{vm}/snapshot"), 404, "VM_NOT_FOUND"),
        ("POST", format!("/v1/vms/{vm}/fork"), 404, "FORK_VM_NOT_FOUND"),
        ("POST", format!("/v1/vms/{vm}/resize"), 400, "RESIZE_VM_EMPTY_REQUEST"),
        ("POST", format!("/v1/vms/{vm}/optimize"), 404, "VM_NOT_FOUND"),
        ("GET", format!("/v1/vms/{vm}/pty/sessions"), 501, "INTERNAL_ERROR"),
        ("POST", format!("/v1/vpcs/vpc-{vm}/wireguard/ephemeral"), 404, "NOT_FOUND"),
        ("DELETE", format!("/v1/vpcs/vpc-{vm}/wireguard/ephemeral/x"), 404, "NOT_FOUND"),
        ("GET", format!("/v1/vpcs/vpc-{vm}/nothing"), 404, "NOT_FOUND"),
        ("GET", format!("/v1/vpcs/vpc-{vm}"), 404, "NOT_FOUND"),
        ("GET", "/v1/vpcs/mine".to_owned(), 400, "BAD_REQUEST"),
        ("PATCH", format!("/v1/vpcs/vpc-{vm}"), 405, "INVALID_REQUEST"),
        ("PUT", "/v1/vms/snapshots".to_owned(), 405, "INVALID_REQUEST"),
        ("DELETE", "/v1/vms/snapshots/sc-1".to_owned(), 400, "INVALID_SNAPSHOT_ID"),
        ("DELETE", format!("/v1/vms/snapshots/sc-{vm}"), 404, "SNAPSHOT_NOT_FOUND"),
        ("GET", format!("/v1/vms/snapshots/sc-{vm}"), 404, "SNAPSHOT_NOT_FOUND"),
        ("GET", "/v1/vms/builds".to_owned(), 501, "INTERNAL_ERROR"),
        ("GET", "/v1/vms?vmState=sleeping".to_owned(), 400, "INVALID_REQUEST"),
        ("POST", "/domains/v1/mappings/api.style.dev".to_owned(), 401, "DOMAIN_OWNERSHIP_NOT_VERIFIED"),
        ("POST", "/domains/v1/mappings/a%20b".to_owned(), 400, "INVALID_DOMAIN"),
        ("POST", "/domains/v1/mappings/a.style.dev".to_owned(), 400, "INVALID_PARAMETERS"),
        ("GET", format!("/v1/vms/{vm}/files/%ff"), 400, "INVALID_REQUEST"),
    ] {
        let reply = bench.admin(method, &path, nothing()).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (status, code), "{method} {path}");
    }
    let document = bench.admin("GET", "/openapi.json", nothing()).await.good();
    assert_eq!(document["openapi"], "3.1.0");
    let preflight = [("access-control-request-method", "POST"), ("origin", "https://example.com")];
    let reply = call(&bench.config.places.api_socket(), "OPTIONS", "/v1/vms", &preflight, None).await;
    assert!(reply.headers["access-control-allow-headers"].to_str().expect("text").contains("authorization"));
    assert_eq!(reply.good(), nothing());
    let status: Value = bench.admin("GET", "/admin/v1/status", nothing()).await.good();
    assert_eq!((&status["supervisor"], &status["domain"]), (&json!(true), &json!("style.dev")));
}
