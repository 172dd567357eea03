//! What one client address, and one host, may take: connections at once, requests at once, requests per second.
//!
//! A ticket is held for as long as the thing lasts; dropping it gives it back, however the thing ended.

use crate::pure::limit::Limit;
use crate::pure::meters::{Allowance, MAX_KEYS, Meters, Over, client_key};
use model::config::EdgeGuard;
use model::host::HostName;
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The tables of a process. Cheap to clone. What is not bounded is not counted, and costs nothing.
#[derive(Clone)]
pub struct Guard {
    tables: Arc<Tables>,
}

struct Tables {
    start: Instant,
    connections: Table<IpAddr>,
    addresses: Table<IpAddr>,
    hosts: Table<HostName>,
}

/// A table that is there when something is bounded.
struct Table<K>(Option<Mutex<Meters<K>>>);

/// One connection.
#[derive(Debug)]
pub struct ConnectionTicket {
    guard: Guard,
    key: IpAddr,
}

/// One request.
#[derive(Debug)]
pub struct RequestTicket {
    guard: Guard,
    key: IpAddr,
    host: Option<HostName>,
}

impl Guard {
    /// Empty tables with these bounds.
    #[must_use]
    pub fn new(bounds: &EdgeGuard) -> Self {
        let at_once = |at_once| Allowance { at_once, per_second: 0 };
        let addresses = Allowance {
            at_once: bounds.requests_at_once_per_address,
            per_second: bounds.requests_per_second_per_address,
        };
        let hosts = Allowance {
            at_once: bounds.requests_at_once_per_host,
            per_second: bounds.requests_per_second_per_host,
        };
        let tables = Tables {
            start: Instant::now(),
            connections: Table::new(at_once(bounds.connections_per_address)),
            addresses: Table::new(addresses),
            hosts: Table::new(hosts),
        };
        Self { tables: Arc::new(tables) }
    }

    /// Counts a connection of a client; nothing when it has too many.
    #[must_use]
    pub fn connection(&self, address: IpAddr) -> Option<ConnectionTicket> {
        let key = client_key(address);
        self.tables.connections.begin(&key, self.tables.start).ok()?;
        Some(ConnectionTicket { guard: self.clone(), key })
    }

    /// Counts a request of a client.
    ///
    /// # Errors
    /// When the client has reached a bound.
    pub fn request(&self, address: IpAddr) -> Result<RequestTicket, Limit> {
        let key = client_key(address);
        self.tables.addresses.begin(&key, self.tables.start).map_err(|over| match over {
            Over::AtOnce => Limit::AddressAtOnce,
            Over::Rate => Limit::AddressRate,
            Over::Keys => Limit::Keys,
        })?;
        Ok(RequestTicket { guard: self.clone(), key, host: None })
    }
}

impl RequestTicket {
    /// Counts the request for its host too, which leads somewhere.
    ///
    /// # Errors
    /// When the host has reached a bound.
    pub fn to_host(&mut self, host: &HostName) -> Result<(), Limit> {
        let tables = &self.guard.tables;
        tables.hosts.begin(host, tables.start).map_err(|over| match over {
            Over::AtOnce => Limit::HostAtOnce,
            Over::Rate => Limit::HostRate,
            Over::Keys => Limit::Keys,
        })?;
        self.host = Some(host.clone());
        Ok(())
    }
}

impl<K: Eq + Hash + Clone> Table<K> {
    fn new(allowance: Allowance) -> Self {
        Self(allowance.is_bounded().then(|| Mutex::new(Meters::new(allowance, MAX_KEYS))))
    }

    fn begin(&self, key: &K, start: Instant) -> Result<(), Over> {
        let Some(meters) = &self.0 else { return Ok(()) };
        meters.lock().unwrap_or_else(PoisonError::into_inner).begin(key, start.elapsed())
    }

    fn end(&self, key: &K) {
        if let Some(meters) = &self.0 {
            meters.lock().unwrap_or_else(PoisonError::into_inner).end(key);
        }
    }
}

impl Drop for ConnectionTicket {
    fn drop(&mut self) {
        self.guard.tables.connections.end(&self.key);
    }
}

impl Drop for RequestTicket {
    fn drop(&mut self) {
        self.guard.tables.addresses.end(&self.key);
        if let Some(host) = &self.host {
            self.guard.tables.hosts.end(host);
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: EdgeGuard = EdgeGuard {
        connections_per_address: 0,
        requests_per_second_per_address: 0,
        requests_at_once_per_address: 0,
        requests_per_second_per_host: 0,
        requests_at_once_per_host: 0,
        body_bytes_per_second: 0,
    };

    #[test]
    fn tickets_are_given_back_when_they_are_dropped() {
        let address: IpAddr = "192.0.2.1".parse().expect("address");
        let host: HostName = "a.style.dev".parse().expect("name");
        let guard = Guard::new(&EdgeGuard {
            connections_per_address: 1,
            requests_at_once_per_address: 2,
            requests_at_once_per_host: 1,
            ..NONE
        });
        for _ in 0..3 {
            let connection = guard.connection(address);
            assert!(connection.is_some() && guard.connection(address).is_none());
            let mut first = guard.request(address).expect("first");
            let mut second = guard.request(address).expect("second");
            assert_eq!(guard.request(address).err(), Some(Limit::AddressAtOnce));
            assert_eq!(first.to_host(&host), Ok(()));
            assert_eq!(second.to_host(&host), Err(Limit::HostAtOnce));
        }
        let free = Guard::new(&NONE);
        let held: Vec<_> = (0..10_000).map(|_| free.connection(address)).collect();
        assert!(held.iter().all(Option::is_some));
    }
}
