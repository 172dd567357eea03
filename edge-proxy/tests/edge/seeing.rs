//! What an operator sees of the front: the access log, the figures for Prometheus, and traces that go on to the VM.

use crate::world::{PATIENCE, World};
use bytes::Bytes;
use edge_proxy::Order;
use http_body_util::Full;
use hyper::Response;
use serde_json::Value;
use std::collections::HashMap;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

const CLIENTS: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// Reads a document with Prometheus' own library for Python, and prints each sample as one line of JSON.
const PARSE: &str = "import sys, json\n\
    from prometheus_client.parser import text_string_to_metric_families as parse\n\
    for family in parse(sys.stdin.read()):\n\
    \x20for one in family.samples: print(json.dumps([family.type, one.name, one.labels, one.value]))";

/// A VM that answers with the trace that it was told of.
async fn echo(world: &World, host: &str) {
    let answer = |request: hyper::Request<hyper::body::Incoming>| async move {
        let field = |name: &str| {
            let values = request.headers().get_all(name).iter();
            values.map(|value| value.to_str().expect("text").to_owned()).collect::<Vec<_>>().join("+")
        };
        let told = format!("{} {}", field("traceparent"), field("tracestate"));
        Response::new(Full::new(Bytes::from(told)))
    };
    world.serve(host, 3000, answer).await;
}

async fn lines(world: &World) -> Vec<Value> {
    let text = std::fs::read_to_string(world.places.access_log().join("access.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_to_the_vm_and_into_the_log() {
    let world = World::with(|settings| settings.access_log_bytes = 1 << 20).await;
    echo(&world, "a.style.dev").await;
    let asked = async |version: &str, fields: &[&str]| {
        let fields: Vec<_> = fields.iter().flat_map(|field| ["-H", field]).collect();
        let words = [&[version][..], &fields].concat();
        world.curl("https://a.style.dev/path?token=secret", &words).await.out
    };
    let (given, state) = (format!("traceparent: {CLIENTS}"), "tracestate: congo=t61rcWkgMzE");
    for version in ["--http1.1", "--http2"] {
        let told = asked(version, &[&given, state]).await;
        assert_eq!(told, format!("{CLIENTS} congo=t61rcWkgMzE"), "the client's own goes on as it is");
        let begun = asked(version, &[]).await;
        let malformed = asked(version, &["traceparent: 00-nothing-01", state]).await;
        let twice = asked(version, &[&given, &given, state]).await;
        for told in [&begun, &malformed, &twice] {
            let (parent, state) = told.split_once(' ').expect("both");
            assert!(parent.starts_with("00-") && parent.ends_with("-01") && parent.len() == 55, "{told}");
            assert!(state.is_empty() && !told.contains("4bf92f35"), "what belongs to none goes: {told}");
        }
        assert_ne!(begun, malformed, "each begins its own");
    }
    let known = |line: &Value| line["host"] == "a.style.dev" && line["path"] == "/path";
    world.until(|| async { lines(&world).await.iter().filter(|line| known(line)).count() == 8 }).await;
    let all = lines(&world).await;
    let first = all.iter().find(|line| known(line)).expect("there");
    assert_eq!(first["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(
        (&first["status"], &first["port"], &first["client"]),
        (&200.into(), &3000.into(), &"127.0.0.1".into())
    );
    assert!(
        first["vm"].is_string() && first["micros"].as_u64() >= first["answer_micros"].as_u64(),
        "{first}"
    );
    assert!(!all.iter().any(|line| line.to_string().contains("secret")), "a query may hold secrets");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_lines_are_written_before_the_process_ends_and_none_when_nobody_wants_them() {
    let logs = World::with(|settings| settings.access_log_bytes = 1 << 20).await;
    let silent = World::new().await;
    for world in [&logs, &silent] {
        echo(world, "a.style.dev").await;
        assert_eq!(world.curl("https://a.style.dev/last", &[]).await.code, 0);
        world.order(Order::Stop);
        let running = world.running.lock().expect("lock").take().expect("it runs");
        timeout(PATIENCE, running).await.expect("in time").expect("no panic");
    }
    assert!(lines(&logs).await.iter().any(|line| line["path"] == "/last"));
    assert!(!silent.places.access_log().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_the_figures() {
    let world = World::new().await;
    echo(&world, "a.style.dev").await;
    for (url, version) in [
        ("https://a.style.dev/", "--http2"),
        ("https://a.style.dev/", "--http1.1"),
        ("https://nobody.style.dev/", "--http2"),
    ] {
        assert_eq!(world.curl(url, &[version]).await.code, 0);
    }
    let at = world.figures;
    let ask = async |words: &[&str], path: &str| {
        let url = format!("http://{at}{path}");
        let done =
            Command::new("curl").args(["-sS", "-i", "--max-time", "30"]).args(words).arg(url).output().await;
        String::from_utf8(done.expect("curl").stdout).expect("text")
    };
    let all = world.until_some(async || {
        let said = ask(&[], "/metrics").await;
        let (head, document) = said.split_once("\r\n\r\n").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
        let samples = parsed(document).await;
        // Requests are counted when they are over, which a client may see earlier.
        (samples.get("gatehouse_edge_requests_total class=4xx protocol=h2") == Some(&1.0)).then_some(samples)
    });
    let all = all.await;
    let value = |name: &str| all.get(name).copied().unwrap_or_else(|| panic!("{name} is missing: {all:#?}"));
    assert!(value("gatehouse_edge_requests_total class=2xx protocol=h2") >= 1.0);
    assert_eq!(value("gatehouse_edge_requests_total class=2xx protocol=h1"), 1.0);
    assert_eq!(value("gatehouse_edge_request_seconds_count protocol=h1"), 1.0);
    assert_eq!(value("gatehouse_edge_request_seconds_bucket le=+Inf protocol=h1"), 1.0);
    assert_eq!(value("gatehouse_edge_events_total event=answered_404_unknown_host"), 1.0);
    // One more marks the newest view.
    assert_eq!(value("gatehouse_edge_certificates"), (world.certificates() + 1) as f64);
    assert!(value("gatehouse_edge_events_total event=handshakes") >= 3.0);
    assert!(ask(&[], "/other").await.starts_with("HTTP/1.1 404 "));
    assert!(ask(&["-d", "x"], "/metrics").await.starts_with("HTTP/1.1 405 "));
    let told = feed::figures::ask(&world.places.edge_figures(), "gatehouse_edge_").await.expect("told");
    let told = parsed(&told.text()).await;
    assert_eq!(
        told.get("gatehouse_edge_requests_total class=2xx protocol=h1"),
        Some(&1.0),
        "control hears the same"
    );
}

/// All samples, by name and sorted labels.
async fn parsed(document: &str) -> HashMap<String, f64> {
    let mut parser = Command::new("/usr/bin/python3")
        .args(["-c", PARSE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3");
    let mut stdin = parser.stdin.take().expect("piped");
    stdin.write_all(document.as_bytes()).await.expect("written");
    drop(stdin);
    let done = timeout(PATIENCE, parser.wait_with_output()).await.expect("in time").expect("it runs");
    assert!(done.status.success(), "Prometheus' parser refuses it: {document}");
    let text = String::from_utf8(done.stdout).expect("text");
    let samples = text.lines().map(|line| {
        let sample: Value = serde_json::from_str(line).expect("JSON");
        let kind = sample[0].as_str().expect("a type");
        assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
        let labels = sample[2].as_object().expect("labels").iter();
        let labels = labels.map(|(name, text)| format!(" {name}={}", text.as_str().expect("text")));
        let name = sample[1].as_str().expect("a name").to_owned() + &labels.collect::<String>();
        (name, sample[3].as_f64().expect("a number"))
    });
    samples.collect()
}
