//! The frozen copy of a VM's process: it holds the memory and the state as they were, and makes machines of them.
//!
//! ```text
//!            Spawn: a copy becomes a machine          connection ends
//! Waiting ─────────────────────────────────► Waiting ─────────────────► gone
//!            Write: a copy writes and ends
//! ```
//! It has one thread and nothing of the original's but memory; it never runs the guest itself.

use super::suspend;
use super::{Order, ProcessError, Source, chain_text, refusal};
use crate::devices::GuestRam;
use crate::machine::control::{MachineMessage, MachinePlan, ZygoteRequest};
use crate::machine::jail::Kit;
use crate::machine::state::MachineState;
use crate::machine::sys::{self, Side};
use crate::machine::vm::Shell;
use feed::wire::{BlockingWire, WireError};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;

/// What a copy keeps.
#[derive(Debug)]
pub struct Frozen<'a> {
    /// Where it listens.
    pub socket: &'a OwnedFd,
    /// What was opened on the way into the jail.
    pub kit: &'a Kit,
    /// Guest memory, which nobody writes any more.
    pub mem: &'a GuestRam,
    /// All else.
    pub state: MachineState,
}

/// Becomes the frozen copy. Only right after a fork, in the copy.
pub fn run(frozen: &Frozen<'_>) -> ! {
    let code = match serve(frozen) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(error = chain_text(&error), "a frozen copy ended");
            1
        }
    };
    sys::leave(code)
}

fn serve(frozen: &Frozen<'_>) -> Result<(), ProcessError> {
    let failed = |step| move |source| ProcessError::Copy { step, source };
    let kept: Vec<_> = frozen.kit.descriptors().chain([frozen.socket.as_fd()]).collect();
    sys::close_all_but(&kept).map_err(failed("close"))?;
    sys::ignore_children(true).map_err(ProcessError::Children)?;
    let wire = BlockingWire::of(frozen.socket.try_clone().map_err(failed("dup"))?);
    loop {
        let (request, sockets) = match wire.receive::<ZygoteRequest>() {
            Ok(heard) => heard,
            Err(WireError::Closed) => return Ok(()),
            Err(error) => return Err(ProcessError::NoOrder(error)),
        };
        if sys::fork().map_err(failed("fork"))? == Side::Child {
            let code = i32::from(obey(frozen, request, sockets).is_err());
            sys::leave(code);
        }
    }
}

/// In a copy of the copy: does what was asked, and tells so over the socket.
fn obey(frozen: &Frozen<'_>, request: ZygoteRequest, sockets: Vec<OwnedFd>) -> Result<(), ProcessError> {
    let failed = |step| move |source| ProcessError::Copy { step, source };
    let kept: Vec<_> = sockets.iter().map(AsFd::as_fd).chain(frozen.kit.descriptors()).collect();
    sys::close_all_but(&kept).map_err(failed("close"))?;
    let mut sockets = sockets.into_iter();
    let wire = BlockingWire::of(sockets.next().ok_or(ProcessError::NoSocket)?);
    match request {
        ZygoteRequest::Spawn(plan) => spawn(frozen, wire, *plan, sockets.collect()),
        ZygoteRequest::Write => {
            let answer = match write(frozen, sockets) {
                Ok(()) => MachineMessage::Done,
                Err(error) => {
                    MachineMessage::Refused { reason: refusal(&error), message: chain_text(&error) }
                }
            };
            wire.send(&answer, &[]).map_err(ProcessError::Abandoned)
        }
    }
}

fn write(frozen: &Frozen<'_>, mut files: impl Iterator<Item = OwnedFd>) -> Result<(), ProcessError> {
    let mut file = || files.next().map(File::from).ok_or(ProcessError::NoSocket);
    let (memory, rest) = (file()?, file()?);
    let never = AtomicBool::new(false);
    let bytes = suspend::write_files(memory, &rest, frozen.mem, &frozen.kit.proc, &frozen.state, &never)?;
    tracing::info!(bytes, "the copy is written");
    Ok(())
}

fn spawn(
    frozen: &Frozen<'_>,
    wire: BlockingWire,
    plan: MachinePlan,
    descriptors: Vec<OwnedFd>,
) -> Result<(), ProcessError> {
    let source = Source::Inherited { mem: frozen.mem.clone(), state: Box::new(frozen.state.clone()) };
    let kit = frozen.kit.try_clone().map_err(|source| ProcessError::Copy { step: "dup", source })?;
    let shell = Shell::new(&kit).map_err(ProcessError::from);
    super::obey(wire, Order { plan, descriptors, kit, source }, shell)
}
