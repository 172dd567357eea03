//! A network of its own for a test.

use crate::support::sh;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd;
use std::process::Command;
use tokio::runtime::{Builder, Runtime};

/// A network namespace with nothing but a loopback device, for this thread and what it starts.
pub struct Network {
    name: String,
    /// All of its threads are inside.
    pub runtime: Runtime,
}

impl Network {
    /// Moves this thread into a new one. `name` is of this test alone.
    pub fn enter(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        sh(&format!("ip netns add {name}; ip -n {name} link set lo up"));
        let file = std::fs::File::open(format!("/run/netns/{name}")).expect("namespace");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
        let runtime = Builder::new_multi_thread().enable_all().build().expect("a runtime");
        Self { name, runtime }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // A panic while another one goes on would hide that one.
        Command::new("ip").args(["netns", "del", &self.name]).status().ok();
    }
}
