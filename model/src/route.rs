//! The route table and its permits: proof, as a value, that a name may reach a VM's port.

use crate::host::{HostName, MappedName};
use crate::id::VmId;
use crate::names::part_of;
use crate::view::{EdgeView, Entries, RouteEntry};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

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
    /// Of the view itself.
    own: Leads,
    /// Of its parts: none, or [`crate::names::PARTS`].
    parts: Vec<Arc<Leads>>,
    any_wildcard: bool,
}

/// Where some names lead.
#[derive(Clone, Debug, Default)]
pub struct Leads {
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

impl Leads {
    /// Of these lists. A name in both leads to its VM.
    #[must_use]
    pub fn of(routes: &Entries<RouteEntry>, gone: &Entries<MappedName>) -> Self {
        let mut leads = Self::default();
        for name in gone {
            leads.put(name, Lead::Gone);
        }
        for entry in routes.iter().filter(|entry| entry.port != 0) {
            let permit = Permit { vm: entry.vm.clone(), port: entry.port, run: entry.run };
            leads.put(&entry.host, Lead::Vm(permit));
        }
        leads
    }

    fn put(&mut self, name: &MappedName, lead: Lead) {
        let names = if name.is_wildcard() { &mut self.wildcards } else { &mut self.names };
        names.insert(name.base().clone(), lead);
    }

    fn permits(&self) -> impl Iterator<Item = &Permit> {
        self.names.values().chain(self.wildcards.values()).filter_map(|lead| match lead {
            Lead::Vm(permit) => Some(permit),
            Lead::Gone => None,
        })
    }

    fn len(&self) -> usize {
        self.names.len() + self.wildcards.len()
    }
}

impl RouteTable {
    /// Makes the table of what control published. The API's own names win over a mapping of the same name, and what
    /// stands in the view itself over its `parts`, of which there are none or [`crate::names::PARTS`].
    #[must_use]
    pub fn of(view: &EdgeView, parts: Vec<Arc<Leads>>) -> Self {
        let own = Leads::of(&view.routes, &view.gone);
        let any_wildcard = !own.wildcards.is_empty() || parts.iter().any(|part| !part.wildcards.is_empty());
        Self { api: view.api_hosts.iter().cloned().collect(), own, parts, any_wildcard }
    }

    /// Looks a name up: the name itself first, then the nearest wildcard above it.
    #[must_use]
    pub fn host(&self, name: &HostName) -> Option<Route> {
        if self.api.contains(name) {
            return Some(Route::Api);
        }
        let lead = self.lead(name, |leads| &leads.names).or_else(|| self.wildcard(name))?;
        Some(match lead {
            Lead::Vm(permit) => Route::Vm(permit.clone()),
            Lead::Gone => Route::Gone,
        })
    }

    fn wildcard(&self, name: &HostName) -> Option<&Lead> {
        if !self.any_wildcard {
            return None;
        }
        std::iter::successors(name.parent(), HostName::parent)
            .find_map(|above| self.lead(&above, |leads| &leads.wildcards))
    }

    fn lead(&self, name: &HostName, among: impl Fn(&Leads) -> &HashMap<HostName, Lead>) -> Option<&Lead> {
        among(&self.own).get(name).or_else(|| among(self.parts.get(part_of(name))?).get(name))
    }

    /// All that may be reached.
    pub fn permits(&self) -> impl Iterator<Item = &Permit> {
        self.own.permits().chain(self.parts.iter().flat_map(|part| part.permits()))
    }

    /// Names in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.api.len() + self.own.len() + self.parts.iter().map(|part| part.len()).sum::<usize>()
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
    use crate::view::VIEW_VERSION;

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
            names: None,
        };
        let table = RouteTable::of(&view, Vec::new());
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
            names: None,
        };
        let table = RouteTable::of(&view, Vec::new());
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
