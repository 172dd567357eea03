//! The route table and its permits: proof, as a value, that a name may reach a VM's port.

use crate::host::{HostName, MappedName};
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
    /// To a VM that was deleted: nowhere, and there is something to say.
    Gone,
}

/// Host name to destination, made once of a view and never changed.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    api: HashSet<HostName>,
    names: HashMap<HostName, Lead>,
    /// By the name below which they mean all.
    wildcards: HashMap<HostName, Lead>,
}

/// Where a mapped name leads.
#[derive(Clone, Debug)]
enum Lead {
    Vm(Permit),
    Gone,
}

impl RouteTable {
    /// Makes the table of what control published. The API's own names win over a mapping of the same name.
    #[must_use]
    pub fn of(view: &EdgeView) -> Self {
        let mut table = Self { api: view.api_hosts.iter().cloned().collect(), ..Self::default() };
        for name in &view.gone {
            table.put(name, Lead::Gone);
        }
        for entry in view.routes.iter().filter(|entry| entry.port != 0) {
            let permit = Permit { vm: entry.vm.clone(), port: entry.port, run: entry.run };
            table.put(&entry.host, Lead::Vm(permit));
        }
        table
    }

    fn put(&mut self, name: &MappedName, lead: Lead) {
        let names = if name.is_wildcard() { &mut self.wildcards } else { &mut self.names };
        names.insert(name.base().clone(), lead);
    }

    /// Looks a name up: the name itself first, then the nearest wildcard above it.
    #[must_use]
    pub fn host(&self, name: &HostName) -> Option<Route> {
        if self.api.contains(name) {
            return Some(Route::Api);
        }
        let lead = self.names.get(name).or_else(|| self.wildcard(name))?;
        Some(match lead {
            Lead::Vm(permit) => Route::Vm(permit.clone()),
            Lead::Gone => Route::Gone,
        })
    }

    fn wildcard(&self, name: &HostName) -> Option<&Lead> {
        if self.wildcards.is_empty() {
            return None;
        }
        std::iter::successors(name.parent(), HostName::parent).find_map(|above| self.wildcards.get(&above))
    }

    /// Names in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.api.len() + self.names.len() + self.wildcards.len()
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
            gone: vec!["gone.style.dev".parse().expect("name"), "a.style.dev".parse().expect("name")].into(),
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
        assert_eq!(look("gone.style.dev"), Some(Route::Gone));
    }

    #[test]
    fn a_name_itself_beats_a_wildcard_and_the_nearest_wildcard_beats_one_above() {
        let entry = |host: &str, port| RouteEntry {
            host: host.parse().expect("name"),
            vm: VmId::from_random([1; 20]),
            port,
            run: 1,
        };
        let view = EdgeView {
            version: VIEW_VERSION,
            generation: Generation(1),
            api_hosts: vec!["api.shop.test".parse().expect("host")],
            routes: vec![
                entry("*.shop.test", 1),
                entry("*.eu.shop.test", 2),
                entry("www.eu.shop.test", 3),
                entry("old.shop.test", 4),
            ]
            .into(),
            gone: vec!["old2.shop.test".parse().expect("name")].into(),
            certificates: Vec::new().into(),
            challenges: Vec::new().into(),
        };
        let table = RouteTable::of(&view);
        let port = |host: &str| match table.host(&host.parse().expect("host")) {
            Some(Route::Vm(permit)) => Some(permit.port()),
            _ => None,
        };
        for (host, expected) in [
            ("a.shop.test", Some(1)),
            ("a.b.shop.test", Some(1)),
            ("eu.shop.test", Some(1)),
            ("a.eu.shop.test", Some(2)),
            ("www.eu.shop.test", Some(3)),
            ("a.www.eu.shop.test", Some(2)),
            ("old.shop.test", Some(4)),
            ("shop.test", None),
            ("api.shop.test", None),
            ("ashop.test", None),
        ] {
            assert_eq!(port(host), expected, "{host}");
        }
        assert_eq!(table.host(&"old2.shop.test".parse().expect("host")), Some(Route::Gone));
    }
}
