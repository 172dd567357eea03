//! Control as a whole, over its real sockets. What stands beyond its borders (the supervisor of the VMs, the agents in
//! them) is played by [`world`], which speaks their protocols: machines need KVM, and the end-to-end tests have it.

mod certificates;
mod copies;
mod crash;
mod domains;
mod figures;
mod identities;
mod life;
mod private;
mod refusals;
mod room;
mod sleep;
mod vpcs;
mod world;

use crate::Control;
use crate::vms::FailPoints;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use model::config::{ControlConfig, Places, SshDoor, VmLimits, VmSize, VpnDoor};
use model::id::VmId;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;
use world::World;

/// No step of a test takes longer unless something is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came back.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Reply {
    fn good(self) -> Value {
        assert!(self.status.is_success(), "{self:?}");
        self.body
    }

    fn code(&self) -> &str {
        assert!(!self.status.is_success(), "{self:?}");
        assert_eq!(self.body["code"], self.body["error"], "{self:?}");
        assert!(self.body["message"].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        self.body["code"].as_str().expect("a code")
    }
}

/// A control with its world.
struct Bench {
    world: World,
    config: ControlConfig,
    _stop: watch::Sender<bool>,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With other limits.
    async fn with(change: impl FnOnce(&mut VmLimits)) -> Self {
        Self::configured(|config| change(&mut config.limits)).await
    }

    /// With other settings.
    async fn configured(change: impl FnOnce(&mut ControlConfig)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let mut config = config(folder.path());
        change(&mut config);
        let world = World::start(&config.places.vmm_socket());
        let control = Control::start(config.clone(), FailPoints::default()).await.expect("start");
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(control.serve(stopping));
        Self { world, config, _stop: stop, _folder: folder }
    }

    async fn admin(&self, method: &str, path: &str, body: Value) -> Reply {
        call(&self.config.places.admin_socket(), method, path, &[], Some(&body.to_string())).await
    }

    async fn create(&self, body: Value) -> String {
        let made = self.admin("POST", "/v1/vms", body).await.good();
        made["id"].as_str().expect("id").to_owned()
    }

    /// Asks something of a VM.
    async fn post(&self, vm: &str, what: &str, body: Value) -> Reply {
        self.admin("POST", &format!("/v1/vms/{vm}/{what}"), body).await
    }

    /// What is told of a VM.
    async fn info(&self, vm: &str) -> Value {
        self.admin("GET", &format!("/v1/vms/{vm}"), nothing()).await.body
    }

    async fn until(&self, vm: &str, state: &str) {
        let _reached: () = eventually(&format!("{vm} is {state}"), async || {
            (self.info(vm).await["state"] == state).then_some(())
        })
        .await;
    }

    fn view(&self, name: &str) -> Value {
        let bytes = std::fs::read(self.config.places.feed().join(format!("{name}.json"))).expect("view");
        serde_json::from_slice(&bytes).expect("json")
    }
}

fn config(folder: &Path) -> ControlConfig {
    let places = Places { data: folder.join("data"), run: folder.join("run") };
    std::fs::create_dir_all(&places.run).expect("run");
    ControlConfig {
        places,
        domain: "style.dev".parse().expect("domain"),
        default_network: "10.201.0.0/24".parse().expect("network"),
        api_listen: None,
        default_image: "debian".to_owned(),
        default_size: VmSize { vcpus: 1, memory_mib: 256, disk_mib: 1024 },
        limits: VmLimits {
            largest: VmSize { vcpus: 4, memory_mib: 2048, disk_mib: 4096 },
            vms_per_account: 8,
            memory_mib: 2048,
            memory_storage_mib: None,
            rootfs_storage_mib: None,
            kept_vms: 4,
            snapshots_per_account: 3,
        },
        edge_gid: None,
        vpn: VpnDoor::default(),
        vpn_gid: None,
        ssh: SshDoor::default(),
        ssh_gid: None,
        acme: None,
        domains: model::config::DomainProof::default(),
        metrics_listen: None,
    }
}

async fn call(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> Reply {
    timeout(PATIENCE, ask(socket.to_owned(), method, path, headers, body)).await.expect("an answer in time")
}

async fn ask(
    socket: PathBuf,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> Reply {
    let stream = UnixStream::connect(&socket).await.expect("connect");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
    tokio::spawn(connection);
    let mut request = Request::builder().method(method.parse::<Method>().expect("method")).uri(path);
    request = request.header("host", "api.style.dev");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(Bytes::from(body.unwrap_or_default().to_owned()));
    let response = sender.send_request(request.body(body).expect("request")).await.expect("response");
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("body").to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| panic!("no JSON: {:?}", String::from_utf8_lossy(&bytes)));
    Reply { status: parts.status, headers: parts.headers, body }
}

fn id(text: &str) -> VmId {
    text.parse().expect("an id")
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn nothing() -> Value {
    json!({})
}
