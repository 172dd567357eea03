//! A peer in the network of a house: holds a connection to the witness in a guest (`e2e/guest/witness.py`), and asks it.

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The default network of a house with the usual prefix.
const NETWORK: &str = "/run/netns/gh-default";
/// Where the witness listens.
const PORT: u16 = 8090;
/// Longest wait for a connection or an answer: a wake beside a guest that computes, under emulation.
const PATIENCE: Duration = Duration::from_secs(120);
/// A clock is read so often for one reading whose round trip is short.
const CLOCK_READS: usize = 20;
/// Round trips longer than this say too little about a clock, in seconds.
const SHORT_TRIP: f64 = 1.0;
/// How far a guest's clock may be from the host's, in seconds, beyond what the round trip leaves open.
const CLOCK_ERROR: f64 = 1.0;

/// What the witness says, when nothing is torn.
#[derive(Clone, Copy, Debug)]
pub struct Testimony {
    /// How far it has counted, by an interval timer.
    pub counter: u64,
    /// How often its other thread has slept.
    pub beats: u64,
}

/// A connection to a witness.
#[derive(Debug)]
pub struct Peer {
    stream: BufReader<TcpStream>,
    asked: u64,
}

impl Peer {
    /// Connects to the witness of the guest with that address.
    ///
    /// # Errors
    /// When it does not accept.
    pub fn connect(address: Ipv4Addr) -> Result<Self> {
        // The namespace is a thread's own, and a socket stays in that of its birth.
        let connecting = std::thread::spawn(move || -> Result<TcpStream> {
            let network = File::open(NETWORK).context(NETWORK)?;
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), PATIENCE)?)
        });
        let stream = connecting.join().map_err(|_| anyhow::anyhow!("the connecting thread panicked"))?;
        let stream = stream.with_context(|| format!("the witness at {address}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), asked: 0 })
    }

    /// Asks the witness whether all is whole: its files, and this connection.
    ///
    /// # Errors
    /// When it does not answer, or something is torn or lost.
    pub fn ask(&mut self) -> Result<Testimony> {
        let said = self.say("ask")?;
        anyhow::ensure!(said["torn"].is_null(), "torn: {said}");
        let number = |name| said[name].as_u64().with_context(|| format!("no {name}: {said}"));
        Ok(Testimony { counter: number("counter")?, beats: number("beats")? })
    }

    /// Asks until timer and sleeper have gone on since `before`.
    ///
    /// # Errors
    /// When one of them is stuck.
    pub fn await_motion(&mut self, before: Testimony) -> Result<Testimony> {
        let begun = Instant::now();
        loop {
            let now = self.ask()?;
            if now.counter > before.counter && now.beats > before.beats {
                return Ok(now);
            }
            anyhow::ensure!(begun.elapsed() < PATIENCE, "stuck: {before:?}, {now:?}");
        }
    }

    /// Compares the guest's wall clock with the host's; returns the difference that is sure, in seconds.
    ///
    /// # Errors
    /// When it is wrong, or cannot be read within a short round trip.
    pub fn check_clock(&mut self) -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..CLOCK_READS {
            let before = unix_seconds()?;
            let said = self.say("time")?["now"].as_f64().context("no time")?;
            let after = unix_seconds()?;
            best = best.min(after - before);
            if after - before < SHORT_TRIP {
                let wrong = (before - said).max(said - after).max(0.0);
                anyhow::ensure!(
                    wrong < CLOCK_ERROR,
                    "the clock says {said}, it is between {before} and {after}"
                );
                return Ok(wrong);
            }
        }
        anyhow::bail!("no round trip shorter than {best} s: the clock cannot be compared")
    }

    fn say(&mut self, word: &str) -> Result<Value> {
        self.asked += 1;
        let asked = self.asked;
        self.stream
            .get_mut()
            .write_all(format!("{asked} {word}\n").as_bytes())
            .context("the connection broke")?;
        let mut line = String::new();
        self.stream.read_line(&mut line).with_context(|| format!("answer {asked} does not come"))?;
        let said: Value = serde_json::from_str(&line).with_context(|| format!("answer {asked}: {line:?}"))?;
        // Both ends count: a byte that is lost or comes twice is found here.
        anyhow::ensure!(
            said["asked"] == asked && said["served"] == asked,
            "question {asked} was answered by {said}"
        );
        Ok(said)
    }
}

fn unix_seconds() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}
