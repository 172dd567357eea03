//! The last steps before a program of the house runs: rights go, then the program comes.
//!
//! This runs in a process of its own that has one thread, so that nothing can slip between the steps.

use crate::pure::roster::Role;
use crate::settings::{EDGE_ID, SSH_ID, VPN_ID};
use clap::Args;
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, Gid, Uid};
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use thiserror::Error;

/// Capabilities are numbered from 0; the kernel has fewer than this (`linux/capability.h`: a set has 64 bits).
const CAPABILITY_BITS: u32 = 64;

/// What is launched.
#[derive(Args, Clone, Debug)]
pub struct Launch {
    /// Which of the programs.
    #[arg(long)]
    role: String,
    /// Where it is.
    #[arg(long)]
    program: PathBuf,
    /// What it is told.
    #[arg(long)]
    config: PathBuf,
}

/// Why the program does not run.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// No such role.
    #[error("{0} is none of the house's programs")]
    Role(String),
    /// The rights could not be taken away, so it must not run.
    #[error("{step} failed: {source}")]
    Rights {
        /// What failed.
        step: &'static str,
        /// Why.
        source: Errno,
    },
    /// The program cannot be run.
    #[error("{path} cannot be run: {source}")]
    Exec {
        /// Of the program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Launch {
    /// Becomes the program.
    ///
    /// # Errors
    /// Returns only when it could not.
    pub fn run(self) -> Result<Infallible, LaunchError> {
        let role = Role::ALL.into_iter().find(|role| role.program() == self.role);
        let role = role.ok_or(LaunchError::Role(self.role))?;
        // Opened while root may, and run by its descriptor: the folders above it, /root for one, may be closed to the
        // user that the program gets.
        let opened = File::open(&self.program);
        let program = opened.map_err(|source| LaunchError::Exec { path: self.program.clone(), source })?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.arg0(&self.program);
        if role == Role::Vmm {
            command.arg("supervise");
        }
        command.arg("--config").arg(self.config);
        match role {
            Role::Edge | Role::Ssh => {
                command.env("LISTEN_PID", std::process::id().to_string());
                drop_rights(if role == Role::Edge { EDGE_ID } else { SSH_ID })?;
            }
            Role::Vpn => drop_rights(VPN_ID)?,
            Role::Vpc | Role::Vmm | Role::Control => {}
        }
        // After the change of user, which clears it. When this process' parent dies, however it does, the program
        // is asked to end: a new `up` then finds nothing in its way, and the VMs, which have no such tie, go on.
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
            .map_err(failed("the tie to the parent"))?;
        let source = command.exec();
        Err(LaunchError::Exec { path: self.program, source })
    }
}

fn failed(step: &'static str) -> impl Fn(Errno) -> LaunchError {
    move |source| LaunchError::Rights { step, source }
}

/// From root to a user of this number who may do nothing more, without a way back.
fn drop_rights(id: u32) -> Result<(), LaunchError> {
    rustix::thread::set_no_new_privs(true).map_err(failed("forbidding new rights"))?;
    for bit in 0..CAPABILITY_BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel's last capability lies before this one.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(failed("dropping capabilities")(error)),
        }
    }
    rustix::thread::set_thread_groups(&[]).map_err(failed("leaving all groups"))?;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("changing the group"))?;
    // The kernel empties the capability sets with this change (capabilities(7)).
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("changing the user"))
}
