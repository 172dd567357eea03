//! Forks: copies of a running VM that run at once, all of them or none.
//!
//! ```text
//! children written down ──► the parent is frozen ──► each child is launched ──► the frozen copy goes ──► done
//!          │ refused                   │ refused             │ one fails
//!          ▼                           ▼                     ▼
//!       nothing                 all children are deleted, the frozen copy goes
//! ```
//! A fork is done when its row is gone. A control that finds the row of an earlier one deletes all its children:
//! nobody has been told of them.

use super::error::OpError;
use super::notes::Notes;
use super::room::Search;
use super::slots::Turn;
use super::{Machines, admitted};
use crate::figures::Operation;
use crate::pure::phase::{Ask, Event, Phase, Seen};
use crate::pure::request::DEFAULT_READY_WAIT;
use crate::random;
use crate::store::{NewVm, VmRecord};
use model::api::vm::Persistence;
use model::id::{AccountId, SnapshotId, VmId};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// Copies that one call makes at most: as many processes are started for it.
pub const MAX_FORKS: u32 = 100;
/// Children that are launched at once, for each fork: the others wait for the CPUs anyway.
const LAUNCHED_AT_ONCE: usize = 8;

impl Machines {
    /// Makes running copies of a VM. One that sleeps is woken first. Goes on when the caller goes away.
    ///
    /// # Errors
    /// See [`OpError`]; then there is no copy.
    pub async fn fork(
        &self,
        account: &AccountId,
        vm: &VmId,
        count: u32,
        persistence: Option<Persistence>,
    ) -> Result<Vec<VmId>, OpError> {
        let (machines, account, vm) = (self.clone(), account.clone(), vm.clone());
        let forked = tokio::spawn(async move {
            let begun = Instant::now();
            let made = machines.fork_here(&account, &vm, count, persistence).await;
            machines.0.ledger.operation(Operation::Fork, made.is_ok(), begun.elapsed());
            made
        })
        .await?;
        forked.map_err(|error| match error {
            OpError::NoVm(id) => OpError::NoForkVm(id),
            other => other,
        })
    }

    async fn fork_here(
        &self,
        account: &AccountId,
        vm: &VmId,
        count: u32,
        persistence: Option<Persistence>,
    ) -> Result<Vec<VmId>, OpError> {
        // Before anybody gives way or is woken for it, and again when nobody else moves it.
        forkable(&self.get(account, vm).await?)?;
        self.supervisor().await?;
        self.make_place().await?;
        let mut parent_turn = self.0.slots.turn(vm).await?;
        let parent = self.get(account, vm).await?;
        forkable(&parent)?;
        let parent = self.awake(parent, &mut parent_turn).await?;
        let fork = SnapshotId::from_random(random::bytes());
        let ids: Vec<VmId> = (0..count).map(|_| VmId::from_random(random::bytes())).collect();
        // Nobody knows them yet, so nothing is waited for; whoever finds them in the list waits for us.
        let mut turns = Vec::with_capacity(ids.len());
        for id in &ids {
            turns.push(self.0.slots.turn(id).await?);
        }
        let child = NewVm {
            account: account.clone(),
            name: None,
            image: parent.image,
            origin: Some(fork.clone()),
            size: parent.size,
            idle_timeout_seconds: parent.idle_timeout_seconds,
            activity_threshold_bytes: parent.activity_threshold_bytes,
            persistence: persistence.unwrap_or(parent.persistence),
            mappings: Vec::new(),
            nic: None,
        };
        let children = self.insert_children(vm, &fork, &ids, &child).await?;
        self.0.failpoints.pass(|| "fork inserted".to_owned()).await;
        let frozen = self.0.vmm.freeze(vm, &fork).await;
        self.0.failpoints.pass(|| "frozen".to_owned()).await;
        drop(parent_turn);
        let raised = match frozen {
            Ok(()) => self.raise(children.into_iter().zip(turns).collect()).await,
            Err(error) => {
                drop(turns);
                Err(error.into())
            }
        };
        self.0.failpoints.pass(|| "raised".to_owned()).await;
        match raised {
            Ok(()) => self.keep(&fork).await?,
            Err(error) => {
                self.give_up(&fork, &ids).await;
                return Err(OpError::ForkFailed(Box::new(error)));
            }
        }
        info!(%vm, count, "forked");
        Ok(ids)
    }

    /// Takes places for all children, making room on the host if it must. Their parent stays awake.
    async fn insert_children(
        &self,
        parent: &VmId,
        fork: &SnapshotId,
        ids: &[VmId],
        child: &NewVm,
    ) -> Result<Vec<VmRecord>, OpError> {
        let (limits, network) = (&self.0.limits, self.0.network);
        let mut search = Search::new(&[parent]);
        loop {
            let inserted = self.0.store.insert_fork(fork, &self.0.me, ids, child, limits, network).await?;
            match admitted(inserted) {
                Err(refusal) => self.find_room(&mut search, refusal).await?,
                children => return children,
            }
        }
    }

    /// The parent, running.
    async fn awake(&self, record: VmRecord, turn: &mut Turn) -> Result<VmRecord, OpError> {
        let record = self.rested(record, turn).await?;
        let record = if record.phase == Phase::Suspended {
            self.perform(record, turn, DEFAULT_READY_WAIT, &Notes::default(), Ask::Start).await?.1
        } else {
            record
        };
        if record.phase != Phase::Running {
            return Err(OpError::NotRunning);
        }
        self.0.store.touch(&record).await?;
        Ok(record)
    }

    /// Launches all children. The first failure ends the waiting for the others.
    async fn raise(&self, children: Vec<(VmRecord, Turn)>) -> Result<(), OpError> {
        let ids: Vec<VmId> = children.iter().map(|(record, _)| record.id.clone()).collect();
        let places = Arc::new(Semaphore::new(LAUNCHED_AT_ONCE));
        let mut launching = JoinSet::new();
        for (record, mut turn) in children {
            let (machines, places) = (self.clone(), Arc::clone(&places));
            launching.spawn(async move {
                // The semaphore is closed when one has failed.
                let Ok(_place) = places.acquire().await else { return Err(OpError::Interrupted) };
                let notes = Notes::default();
                let mut drive = machines.0.drive(record, &mut turn, DEFAULT_READY_WAIT, &notes);
                let there = drive.run(Event::Resumed(Seen::Absent)).await?;
                if there && drive.record.phase == Phase::Running { Ok(()) } else { Err(OpError::Interrupted) }
            });
        }
        let mut outcome = Ok(());
        while let Some(done) = launching.join_next().await {
            if let Err(error) = done.map_err(OpError::from).and_then(|done| done)
                && outcome.is_ok()
            {
                outcome = Err(error);
                places.close();
                for id in &ids {
                    self.0.slots.want_down(id);
                }
            }
        }
        outcome
    }

    async fn keep(&self, fork: &SnapshotId) -> Result<(), OpError> {
        if let Err(error) = self.0.vmm.remove_snapshot(fork).await {
            // It goes by itself after a while.
            warn!(%fork, %error, "the frozen copy of a fork stays for now");
        }
        self.0.failpoints.pass(|| "thawed".to_owned()).await;
        Ok(self.0.store.end_fork(fork).await?)
    }

    /// Deletes the children of a fork that came to nothing, and the frozen copy. What cannot be done now is done later.
    pub(super) async fn give_up(&self, fork: &SnapshotId, children: &[VmId]) {
        let given_up = async {
            for child in children {
                self.nudge(child, Ask::Delete, |_| true).await?;
            }
            self.0.vmm.remove_snapshot(fork).await?;
            Ok::<(), OpError>(self.0.store.end_fork(fork).await?)
        };
        let Err(error) = given_up.await else { return };
        warn!(%fork, %error, "what a failed fork left is removed later");
        if let Err(error) = self.0.store.release_fork(fork).await {
            warn!(%fork, %error, "what a failed fork left is removed by the next control");
        }
    }
}

/// The contract has no forks of VMs with a NIC in a VPC.
fn forkable(parent: &VmRecord) -> Result<(), OpError> {
    match &parent.vpc {
        Some(vpc) => Err(OpError::ForkInVpc(vpc.clone())),
        None => Ok(()),
    }
}
