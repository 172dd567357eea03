//! VMs that change their network. A VM's address is part of what its guest was told at its start, and of its saved
//! state, so only one that is down changes it; its next start tells the guest.

use super::Machines;
use super::error::OpError;
use super::slots::Turn;
use crate::pure::phase::Phase;
use crate::store::{NewNic, VmRecord};
use model::id::{AccountId, VmId, VpcId};
use tracing::info;

impl Machines {
    /// Moves a stopped VM from the default network into a VPC. One that is there already, at that address if one is
    /// named, is left as it is. Goes on when the caller goes away.
    ///
    /// # Errors
    /// See [`OpError`].
    pub async fn attach(&self, account: &AccountId, vm: &VmId, nic: NewNic) -> Result<VmRecord, OpError> {
        let (machines, account, vm) = (self.clone(), account.clone(), vm.clone());
        tokio::spawn(async move { machines.attach_here(&account, &vm, &nic).await }).await?
    }

    /// Moves a stopped VM from a VPC into the default network. Goes on when the caller goes away.
    ///
    /// # Errors
    /// See [`OpError`].
    pub async fn detach(&self, account: &AccountId, vm: &VmId, vpc: &VpcId) -> Result<VmRecord, OpError> {
        let (machines, account, vm, vpc) = (self.clone(), account.clone(), vm.clone(), vpc.clone());
        tokio::spawn(async move { machines.detach_here(&account, &vm, &vpc).await }).await?
    }

    async fn attach_here(&self, account: &AccountId, vm: &VmId, nic: &NewNic) -> Result<VmRecord, OpError> {
        let (record, _turn) = self.rested_in_turn(account, vm).await?;
        if let Some(vpc) = &record.vpc {
            if *vpc == nic.vpc && nic.ipv4.is_none_or(|wanted| wanted == record.ipv4) {
                return Ok(record);
            }
            return Err(OpError::InVpc { vpc: vpc.clone(), ipv4: record.ipv4 });
        }
        is_down(&record)?;
        let moved = self.0.store.attach(&record, nic).await?.map_err(OpError::Nic)?;
        self.moved(moved).await
    }

    async fn detach_here(&self, account: &AccountId, vm: &VmId, vpc: &VpcId) -> Result<VmRecord, OpError> {
        let (record, _turn) = self.rested_in_turn(account, vm).await?;
        if record.vpc.as_ref() != Some(vpc) {
            return Err(OpError::NotInVpc(vpc.clone()));
        }
        is_down(&record)?;
        let moved = self.0.store.detach(&record, self.0.network).await?;
        self.moved(moved).await
    }

    async fn rested_in_turn(&self, account: &AccountId, vm: &VmId) -> Result<(VmRecord, Turn), OpError> {
        self.get(account, vm).await?;
        self.supervisor().await?;
        let mut turn = self.0.slots.turn(vm).await?;
        let record = self.rested(self.get(account, vm).await?, &mut turn).await?;
        Ok((record, turn))
    }

    /// What is written down is published, so that its port is in its new network before it is started.
    async fn moved(&self, record: VmRecord) -> Result<VmRecord, OpError> {
        self.0.failpoints.pass(|| "moved".to_owned()).await;
        self.0.planner.publish().await?;
        info!(vm = %record.id, vpc = ?record.vpc, ipv4 = %record.ipv4, "another network");
        Ok(record)
    }
}

fn is_down(record: &VmRecord) -> Result<(), OpError> {
    match record.phase {
        Phase::Stopped | Phase::Lost => Ok(()),
        Phase::Building
        | Phase::Starting
        | Phase::Resuming
        | Phase::Running
        | Phase::Suspending
        | Phase::Suspended
        | Phase::Stopping
        | Phase::Killing
        | Phase::Deleting => Err(OpError::NotDown(record.phase.shown())),
    }
}
