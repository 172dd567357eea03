//! The route table and its permits: proof, as a value, that a name may reach a VM's port.

use crate::host::HostName;
use crate::id::VmId;
use crate::view::EdgeView;
use std::collections::{HashMap, HashSet};

/// Leave to connect to one port of one VM. Only a look-up in this crate makes one, and dialling takes nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    vm: VmId,
    port: u16,
    run: u64,
}

impl Permit {
    /// Leave that another look-up of this crate gives.
    pub(crate) fn of(vm: VmId, port: u16, run: u64) -> Self {
        Self { vm, port, run }
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &VmId {
        &self.vm
    }

    /// The TCP port inside the VM.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The VM's run; connections of another one must not be reused.
    #[must_use]
    pub fn run(&self) -> u64 {
        self.run
    }
}

/// Where a host name leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To control's API.
    Api,
    /// To a VM.
    Vm(Permit),
}

/// Host name to destination, made once of a view and never changed.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    api: HashSet<HostName>,
    vms: HashMap<HostName, Permit>,
}

impl RouteTable {
    /// Makes the table of what control published. The API's own names win over a mapping of the same name.
    #[must_use]
    pub fn of(view: &EdgeView) -> Self {
        let vms = view
            .routes
            .iter()
            .filter(|entry| entry.port != 0)
            .map(|entry| {
                (entry.host.clone(), Permit { vm: entry.vm.clone(), port: entry.port, run: entry.run })
            })
            .collect();
        Self { api: view.api_hosts.iter().cloned().collect(), vms }
    }

    /// Looks a name up.
    #[must_use]
    pub fn host(&self, name: &HostName) -> Option<Route> {
        if self.api.contains(name) {
            return Some(Route::Api);
        }
        self.vms.get(name).cloned().map(Route::Vm)
    }

    /// Names in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.api.len() + self.vms.len()
    }

    /// Whether no name leads anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Generation;
    use crate::view::{RouteEntry, VIEW_VERSION};

    #[test]
    fn only_listed_names_get_a_permit() {
        let vm = VmId::from_random([1; 20]);
        let entry =
            |host: &str, port| RouteEntry { host: host.parse().expect("host"), vm: vm.clone(), port, run: 3 };
        let view = EdgeView {
            version: VIEW_VERSION,
            generation: Generation(1),
            api_hosts: vec!["api.style.dev".parse().expect("host")],
            routes: vec![entry("a.style.dev", 3000), entry("api.style.dev", 80), entry("zero.style.dev", 0)]
                .into(),
            certificates: Vec::new().into(),
            challenges: Vec::new().into(),
        };
        let table = RouteTable::of(&view);
        let look = |host: &str| table.host(&host.parse().expect("host"));
        let Some(Route::Vm(permit)) = look("A.style.dev") else { panic!("mapped") };
        assert_eq!((permit.vm(), permit.port(), permit.run()), (&vm, 3000, 3));
        assert_eq!(look("api.style.dev"), Some(Route::Api));
        assert_eq!(look("zero.style.dev"), None);
        assert_eq!(look("b.style.dev"), None);
    }
}
