//! A steady load of HTTPS requests, and what became of each.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ArrayVec, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// Longest that one request may take, a restart of a process in the middle included.
pub const REQUEST_WAIT: Duration = Duration::from_secs(30);

/// What became of the requests so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answered as they should be.
    pub good: u64,
    /// Not so: what happened, and how often.
    pub bad: BTreeMap<String, u64>,
}

impl Tally {
    /// How many failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.bad.values().sum()
    }
}

/// Threads that send one request after the other until they are stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<(Mutex<Tally>, Condvar)>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `threads` of them; each request to `url` must be answered with `expected`.
    ///
    /// # Errors
    /// When the certificate authority cannot be read.
    pub fn start(threads: usize, url: &str, ca: &Path, address: SocketAddr, expected: &str) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let tally: Arc<(Mutex<Tally>, Condvar)> = Arc::default();
        let agent = client(ca, address, REQUEST_WAIT)?;
        let threads = (0..threads)
            .map(|_| {
                let (stop, tally, agent) = (Arc::clone(&stop), Arc::clone(&tally), agent.clone());
                let (url, expected) = (url.to_owned(), expected.to_owned());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        count(&tally, ask(&agent, &url, &expected));
                    }
                })
            })
            .collect();
        Ok(Self { stop, tally, threads })
    }

    /// What became of the requests so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `more` requests were answered well from now on.
    ///
    /// # Errors
    /// When that takes longer than `wait`.
    pub fn await_good(&self, more: u64, wait: Duration) -> Result<()> {
        let (tally, changed) = &*self.tally;
        let held = tally.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = held.good + more;
        let begun = Instant::now();
        let (held, timed_out) = changed
            .wait_timeout_while(held, wait, |tally| tally.good < wanted)
            .unwrap_or_else(PoisonError::into_inner);
        anyhow::ensure!(
            !timed_out.timed_out(),
            "{} of {wanted} good answers after {:?}; failures: {:?}",
            held.good,
            begun.elapsed(),
            held.bad
        );
        Ok(())
    }

    /// Ends the load.
    #[must_use]
    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            assert!(thread.join().is_ok(), "a load thread panicked");
        }
        self.tally.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An HTTPS client that trusts the house's own authority, finds every name at `address`, and waits for an answer for
/// `patience` at most.
///
/// # Errors
/// When the certificate authority cannot be read.
pub fn client(ca: &Path, address: SocketAddr, patience: Duration) -> Result<Agent> {
    let pem = std::fs::read(ca).with_context(|| format!("the certificate authority {}", ca.display()))?;
    let root = Certificate::from_pem(&pem).context("the certificate authority")?;
    let config = Config::builder()
        .timeout_global(Some(patience))
        .http_status_as_error(false)
        .tls_config(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[root])).build())
        .build();
    Ok(Agent::with_parts(config, DefaultConnector::default(), Fixed(address)))
}

#[derive(Debug)]
struct Fixed(SocketAddr);

impl Resolver for Fixed {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut found = ArrayVec::from_fn(|_| self.0);
        found.push(self.0);
        Ok(found)
    }
}

fn ask(agent: &Agent, url: &str, expected: &str) -> Result<(), String> {
    let mut answer = agent.get(url).call().map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = answer.body_mut().read_to_string().map_err(|error| format!("body: {error}"))?;
    if status.as_u16() == 200 && body == expected { Ok(()) } else { Err(format!("status {status}")) }
}

fn count(tally: &(Mutex<Tally>, Condvar), outcome: Result<(), String>) {
    let mut held = tally.0.lock().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Ok(()) => held.good += 1,
        Err(what) => *held.bad.entry(what).or_default() += 1,
    }
    drop(held);
    tally.1.notify_all();
}
