//! Requests about sleep and copies.

use super::copies::{self, Copies, CopyError};
use super::folder;
use super::registry::Running;
use super::server::{Supervisor, chain_text, refused};
use super::talk::{self, TalkError};
use crate::client::{IdleWatch, LAUNCH_WAIT, Refusal, VmmReply, WRITE_WAIT};
use crate::machine::control::{MachineRequest, STATE, SUSPENDED};
use model::id::{SnapshotId, VmId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Longest that a process takes to end after it has said that its state is durable: its memory is given back.
const END_WAIT: Duration = Duration::from_secs(8);

impl Supervisor {
    pub(super) async fn suspend(&self, vm: &VmId) -> VmmReply {
        let turn = self.registry.turn(vm);
        let _turn = turn.lock().await;
        let home = folder::of(&self.config, vm);
        let Some(running) = self.registry.running(vm) else {
            if home.join(SUSPENDED).join(STATE).is_file() {
                return VmmReply::Done;
            }
            return refused(Refusal::NotRunning, "this VM does not run".to_owned());
        };
        match talk::ask(&home, running.pid, &MachineRequest::Suspend, &[], WRITE_WAIT).await {
            Ok(()) => self.suspended(vm, &running).await,
            Err(error) => {
                // Its process has died at it.
                if !matches!(error, TalkError::Refused { .. })
                    && timeout(END_WAIT, running.wait_down()).await.is_ok()
                    && let Err(error) = folder::tidy(&home)
                {
                    tracing::warn!(%vm, %error, "a leftover stays");
                }
                no(&error, error.refusal())
            }
        }
    }

    async fn suspended(&self, vm: &VmId, running: &Arc<Running>) -> VmmReply {
        if timeout(END_WAIT, running.wait_down()).await.is_err() {
            tracing::warn!(%vm, "a suspended VM's process does not end; it is killed");
            if let Err(error) = super::stop::kill(running).await {
                return refused(Refusal::Internal, error.to_string());
            }
        }
        VmmReply::Done
    }

    pub(super) async fn freeze(&self, vm: &VmId, snapshot: &SnapshotId) -> VmmReply {
        let turn = self.registry.turn(vm);
        let held = turn.lock().await;
        let frozen = self.copies.freeze(&self.config, &self.registry, vm, snapshot).await;
        drop(held);
        match frozen {
            Ok(()) => {
                self.copies.end_in_time(&self.config, snapshot);
                VmmReply::Copied { memory: true }
            }
            Err(error) => self.not_copied(vm, &error),
        }
    }

    pub(super) async fn snapshot(&self, vm: &VmId, snapshot: &SnapshotId) -> VmmReply {
        if let Some(memory) = copies::standing(&self.config, snapshot) {
            return VmmReply::Copied { memory };
        }
        match self.copy(vm, snapshot).await {
            Ok(memory) => VmmReply::Copied { memory },
            Err(error) => self.not_copied(vm, &error),
        }
    }

    async fn copy(&self, vm: &VmId, snapshot: &SnapshotId) -> Result<bool, CopyError> {
        let turn = self.registry.turn(vm);
        let held = turn.lock().await;
        if self.registry.running(vm).is_none() {
            return Copies::copy_files(&self.config, vm, snapshot).await;
        }
        self.copies.freeze(&self.config, &self.registry, vm, snapshot).await?;
        // The VM need not wait while its copy is written.
        drop(held);
        self.copies.keep(&self.config, snapshot).await?;
        Ok(true)
    }

    pub(super) async fn remove_snapshot(&self, snapshot: &SnapshotId) -> VmmReply {
        match self.copies.remove(&self.config, snapshot).await {
            Ok(()) => VmmReply::Done,
            Err(error) => no(&error, error.refusal()),
        }
    }

    pub(super) async fn watch_idle(&self, vm: &VmId, idle: Option<IdleWatch>) -> VmmReply {
        self.tell_machine(vm, &MachineRequest::WatchIdle { idle }, LAUNCH_WAIT).await
    }

    /// Merges the layers of the disk of a VM.
    pub(super) async fn optimize(&self, vm: &VmId) -> VmmReply {
        if self.registry.running(vm).is_some() {
            return self.tell_machine(vm, &MachineRequest::Optimize, WRITE_WAIT).await;
        }
        let turn = self.registry.turn(vm);
        let _turn = turn.lock().await;
        let (config, vm) = (self.config.clone(), vm.clone());
        match tokio::task::spawn_blocking(move || folder::merge(&config, &vm)).await {
            Ok(Ok(())) => VmmReply::Done,
            Ok(Err(error)) => no(&error, error.refusal()),
            Err(error) => no(&error, Refusal::Internal),
        }
    }

    /// Makes the disk of a running VM larger. What runs in its folder is written down first, so that the disk is never
    /// larger than the specification by which it is opened.
    pub(super) async fn grow_disk(&self, vm: &VmId, disk_mib: u32) -> VmmReply {
        let turn = self.registry.turn(vm);
        let _turn = turn.lock().await;
        if self.registry.running(vm).is_none() {
            return refused(Refusal::NotRunning, "this VM does not run".to_owned());
        }
        let (config, id) = (self.config.clone(), vm.clone());
        match tokio::task::spawn_blocking(move || folder::note_growth(&config, &id, disk_mib)).await {
            Ok(Ok(())) => self.tell_machine(vm, &MachineRequest::GrowDisk { disk_mib }, WRITE_WAIT).await,
            Ok(Err(error)) => no(&error, error.refusal()),
            Err(error) => no(&error, Refusal::Internal),
        }
    }

    async fn tell_machine(&self, vm: &VmId, request: &MachineRequest, patience: Duration) -> VmmReply {
        let Some(running) = self.registry.running(vm) else {
            return refused(Refusal::NotRunning, "this VM does not run".to_owned());
        };
        match talk::ask(&folder::of(&self.config, vm), running.pid, request, &[], patience).await {
            Ok(()) => VmmReply::Done,
            Err(error) => no(&error, error.refusal()),
        }
    }

    fn not_copied(&self, vm: &VmId, error: &CopyError) -> VmmReply {
        tracing::warn!(%vm, error = chain_text(error), "a VM was not copied");
        no(error, error.refusal())
    }
}

fn no(error: &dyn std::error::Error, reason: Refusal) -> VmmReply {
    refused(reason, chain_text(error))
}
