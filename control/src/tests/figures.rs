//! What control tells of itself and of the doors.

use super::{Bench, call, config, eventually, nothing};
use crate::Control;
use crate::vms::FailPoints;
use model::figures::Figures;
use serde_json::{Value, json};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

async fn text(bench: &Bench) -> String {
    let told = bench.admin("GET", "/admin/v1/metrics", Value::Null).await.good();
    serde_json::from_value::<Figures>(told["families"].clone()).expect("figures").text()
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|other| other == line)
}

/// A process whose figure is called `name`.
fn teller(path: &Path, name: &'static str) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
    let (path, own_user) = (path.to_owned(), rustix::process::geteuid().as_raw());
    tokio::spawn(async move {
        let gather = || {
            let mut figures = Figures::default();
            figures.gauge(name, "A test's.", 7);
            std::future::ready(figures)
        };
        feed::figures::serve(&path, own_user, gather).await;
    });
}

#[tokio::test]
async fn requests_and_what_is_done_to_vms_are_counted() {
    let bench = Bench::new().await;
    let vm = bench.create(nothing()).await;
    for what in ["suspend", "suspend", "start", "snapshot", "stop", "start"] {
        bench.post(&vm, what, nothing()).await.good();
    }
    let other = bench.create(nothing()).await;
    bench.post(&other, "suspend", nothing()).await.good();
    bench.admin("GET", "/v1/vms/nobody-has-this-id", nothing()).await;
    bench.admin("GET", "/v1/no/such/path", nothing()).await;
    let text = text(&bench).await;
    for (operation, count) in [
        ("create", 2),
        ("start", 1),
        ("wake", 1),
        ("suspend", 2),
        ("stop", 1),
        ("delete", 0),
        ("snapshot", 1),
        ("fork", 0),
    ] {
        let name = "gatehouse_control_vm_operation_seconds_count";
        let line = format!("{name}{{operation=\"{operation}\"}} {count}");
        assert!(has(&text, &line), "{line}\n{text}");
    }
    for line in [
        "gatehouse_control_requests_total{class=\"2xx\",method=\"POST\",route=\"/v1/vms/{vm_id}/suspend\"} 3",
        "gatehouse_control_requests_total{class=\"4xx\",method=\"GET\",route=\"/v1/vms/{vm_id}\"} 1",
        "gatehouse_control_requests_total{class=\"4xx\",method=\"GET\",route=\"none\"} 1",
        "gatehouse_control_request_seconds_count{method=\"POST\",route=\"/v1/vms\"} 2",
        "gatehouse_control_vms{state=\"running\"} 1",
        "gatehouse_control_vms{state=\"suspended\"} 1",
        "gatehouse_control_vms{state=\"stopped\"} 0",
        "gatehouse_control_certificate_orders_total{outcome=\"ok\"} 0",
        "gatehouse_up{process=\"vmm\"} 1",
        "gatehouse_up{process=\"ssh-proxy\"} 0",
    ] {
        assert!(has(&text, line), "{line}\n{text}");
    }
    assert!(!text.contains("nobody-has-this-id") && !text.contains(&vm), "{text}");
    assert!(
        !has(&text, "gatehouse_control_store_bytes 0") && text.contains("\ngatehouse_control_store_bytes ")
    );
}

#[tokio::test]
async fn figures_are_gathered_from_who_tells_its_own_and_are_the_operators_alone() {
    let bench = Bench::new().await;
    teller(&bench.config.places.ssh_figures(), "gatehouse_ssh_sessions");
    // One that would pass for another process is not heard.
    teller(&bench.config.places.vpn_figures(), "gatehouse_control_vms");
    let text = eventually("ssh-proxy is heard", async || {
        let text = text(&bench).await;
        has(&text, "gatehouse_ssh_sessions 7").then_some(text)
    })
    .await;
    for line in [
        "gatehouse_up{process=\"ssh-proxy\"} 1",
        "gatehouse_up{process=\"vpn\"} 0",
        "gatehouse_up{process=\"edge-proxy\"} 0",
    ] {
        assert!(has(&text, line), "{line}\n{text}");
    }
    assert!(!has(&text, "gatehouse_control_vms 7"), "{text}");
    let key = bench.admin("POST", "/admin/v1/api-keys", json!({"name": "k"})).await.good();
    let bearer = format!("Bearer {}", key["secret"].as_str().expect("a secret"));
    let socket = bench.config.places.api_socket();
    let reply = call(&socket, "GET", "/admin/v1/metrics", &[("authorization", &bearer)], None).await;
    assert!(reply.status.is_client_error(), "{reply:?}");
}

#[tokio::test]
async fn a_listener_for_prometheus_is_there_when_it_is_set_and_has_nothing_else() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("folder"));
    let [silent, mut config] = folders.each_ref().map(|folder| config(folder.path()));
    let silent = Control::start(silent, FailPoints::default()).await.expect("start");
    assert_eq!(silent.metrics_address(), None);
    config.metrics_listen = Some(([127, 0, 0, 1], 0).into());
    let control = Control::start(config, FailPoints::default()).await.expect("start");
    let address = control.metrics_address().expect("it listens");
    let (_stop, stopping) = watch::channel(false);
    tokio::spawn(control.serve(stopping));
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut said = String::new();
        stream.read_to_string(&mut said).await.expect("text");
        said
    };
    let said = ask("/metrics").await;
    assert!(said.starts_with("HTTP/1.1 200 ") && said.contains("text/plain; version=0.0.4"), "{said}");
    assert!(said.contains("gatehouse_control_vms{state=\"running\"} 0"), "{said}");
    for path in ["/", "/v1/vms", "/admin/v1/status"] {
        let said = ask(path).await;
        assert!(said.starts_with("HTTP/1.1 404 "), "{path}: {said}");
    }
}
