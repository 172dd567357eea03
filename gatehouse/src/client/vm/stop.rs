//! The end of all VMs, for `up` when it closes.

use super::show::{ListArgs, all};
use crate::client::{Api, ClientError};
use model::api::vm::VmState;
use model::api::{Empty, admin::AccountList};
use std::io;
use tokio::task::JoinSet;

/// Requests at once when many VMs are shut down; each waits for its VM.
const AT_ONCE: usize = 16;

/// Shuts down all VMs of all accounts; returns how many there were.
///
/// # Errors
/// The first failure; the others were tried all the same.
pub async fn stop_all(api: &Api) -> Result<usize, ClientError> {
    let accounts: AccountList = api.get(&["admin", "v1", "accounts"], &[]).await?;
    let mut stopping = JoinSet::new();
    let mut first = Ok(());
    let mut asked = 0;
    for account in accounts.accounts {
        let api = api.acting_for(account.id);
        for vm in all(&api, &ListArgs::default()).await?.vms {
            let verb = match vm.state {
                VmState::Running | VmState::Suspending => "stop",
                // Nothing in it is worth a shutdown yet.
                VmState::Starting | VmState::Building => "kill",
                VmState::Suspended | VmState::Stopped | VmState::Lost => continue,
            };
            if stopping.len() >= AT_ONCE {
                first = first.and(outcome(stopping.join_next().await));
            }
            asked += 1;
            let api = api.clone();
            stopping.spawn(async move {
                api.post::<_, serde_json::Value>(&["v1", "vms", vm.id.as_str(), verb], &Empty {}).await
            });
        }
    }
    while let Some(joined) = stopping.join_next().await {
        first = first.and(outcome(Some(joined)));
    }
    first.map(|()| asked)
}

type Joined = Option<Result<Result<serde_json::Value, ClientError>, tokio::task::JoinError>>;

fn outcome(joined: Joined) -> Result<(), ClientError> {
    match joined {
        Some(Ok(answer)) => answer.map(|_| ()),
        Some(Err(error)) => Err(ClientError::Output(io::Error::other(error))),
        None => Ok(()),
    }
}
