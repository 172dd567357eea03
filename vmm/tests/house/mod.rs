//! A supervisor as a program in a folder of its own, and its client.

#![allow(dead_code, reason = "each test program uses a part")]

use model::config::{Places, VmmConfig};
use model::id::VmId;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;
use tokio::time::timeout;
use vmm::client::{Events, ExitReason, MachineSpec, VmmClient, VmmEvent};

/// Interpreted guests are slow, and the test machine is shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Marks all processes of a house by its folder.
const MARK: &str = "GATEHOUSE_TEST_HOUSE";

pub struct House {
    pub folder: tempfile::TempDir,
    supervisor: Child,
    pub client: VmmClient,
}

impl House {
    pub async fn open() -> Self {
        Self::open_by(&[]).await
    }

    /// With the supervisor as the last argument of another program.
    pub async fn open_by(before: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let config = VmmConfig {
            ssh_uid: None,
            places: Places { data: folder.path().join("data"), run: folder.path().join("run") },
            allowed_uids: vec![],
            console_bytes: 1 << 16,
            // Which is what keeps guests of a machine in software from taking a quarter longer.
            kernel_arguments: "mitigations=off".into(),
        };
        std::fs::create_dir_all(&config.places.run).expect("run");
        std::fs::write(folder.path().join("vmm.toml"), toml::to_string(&config).expect("toml"))
            .expect("config");
        let supervisor = spawn(before, folder.path());
        let client = VmmClient::new(config.places.vmm_socket());
        let house = Self { folder, supervisor, client };
        house.subscribe().await;
        house
    }

    /// The folder of an image, made.
    pub fn image(&self, name: &str) -> PathBuf {
        let image = self.folder.path().join("data/images").join(name);
        std::fs::create_dir_all(&image).expect("image");
        image
    }

    /// Waits for the supervisor to answer, past its restart.
    pub async fn subscribe(&self) -> (Events, Vec<VmmEvent>) {
        let patient = async {
            loop {
                if let Ok(mut events) = self.client.subscribe().await {
                    let mut present = Vec::new();
                    loop {
                        match events.next().await {
                            Ok(VmmEvent::Synced) => return (events, present),
                            Ok(event) => present.push(event),
                            Err(_) => break,
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, patient).await.expect("the supervisor answers")
    }

    pub fn restart(&mut self) {
        self.supervisor.kill().expect("kill -9");
        self.supervisor.wait().expect("wait");
        self.supervisor = spawn(&[], self.folder.path());
    }

    /// Processes of this house beside the supervisor: machines and copies, and not those that wait for an order.
    pub fn others(&self) -> Vec<u32> {
        let jailed =
            |pid: &u32| std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|facts| facts.uid() != 0);
        self.all().into_iter().filter(jailed).collect()
    }

    fn all(&self) -> Vec<u32> {
        let mark = format!("{MARK}={}", self.folder.path().display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("proc") {
            let entry = entry.expect("entry");
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // Processes come and go while we look; one that has ended has no environment.
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if pid != self.supervisor.id()
                && environment.split(|byte| *byte == 0).any(|one| one == mark.as_bytes())
            {
                found.push(pid);
            }
        }
        found
    }

    pub fn folder_of(&self, vm: &VmId) -> PathBuf {
        self.folder.path().join("data/vms").join(vm.as_str())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        for error in [self.supervisor.kill().err(), self.supervisor.wait().err()].into_iter().flatten() {
            eprintln!("the supervisor cannot be ended: {error}");
        }
        // Machines go on without a supervisor, and the guests of these tests never rest.
        for pid in self.all() {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process number");
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => eprintln!("a machine cannot be ended: {error}"),
            }
        }
    }
}

fn spawn(before: &[&str], folder: &Path) -> Child {
    let mut words = before.iter().chain([&env!("CARGO_BIN_EXE_vmm")]);
    let program = words.next().expect("the supervisor, at least");
    Command::new(program)
        .args(words)
        .args(["supervise", "--config"])
        .arg(folder.join("vmm.toml"))
        .env(MARK, folder)
        .process_group(0)
        .spawn()
        .expect("supervisor")
}

/// Waits until the machine's end is told.
pub async fn next_exit(events: &mut Events, of: &MachineSpec) -> ExitReason {
    loop {
        match events.next().await.expect("event") {
            VmmEvent::Exited { vm, instance, reason } if vm == of.vm => {
                assert_eq!(instance, of.instance);
                return reason;
            }
            _ => {}
        }
    }
}
