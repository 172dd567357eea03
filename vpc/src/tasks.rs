//! One task for each network that stands: its name server, its DHCP, its flow log.

use crate::io::namespace::Inside;
use crate::pure::names::NetworkId;
use crate::switch::Switch;
use std::collections::BTreeMap;
use std::future::Future;
use tokio::task::JoinHandle;

/// A network's task; it ends when this is dropped.
struct Working {
    sockets: Inside,
    task: JoinHandle<()>,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps the task that `begin` makes for each network that stands, for ever. A network that was made anew has other
/// sockets, and another task.
pub async fn each_network<T>(switch: &Switch, begin: impl Fn(&NetworkId, Inside) -> T)
where
    T: Future<Output = ()> + Send + 'static,
{
    let mut working: BTreeMap<NetworkId, Working> = BTreeMap::new();
    let mut changes = switch.changes();
    loop {
        let table = switch.table();
        working
            .retain(|id, at| table.networks.get(id).is_some_and(|network| network.sockets.same(&at.sockets)));
        for (id, network) in &table.networks {
            let sockets = &network.sockets;
            working.entry(id.clone()).or_insert_with(|| {
                let task = tokio::spawn(begin(id, sockets.clone()));
                Working { sockets: sockets.clone(), task }
            });
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
