//! What is said with supervisors and with the agent.

use super::{Connection, Event, MAX_CONNECTIONS, Outcome, Process, chain_text};
use crate::client::{ExitReason, Refusal};
use crate::machine::control::{MachineMessage, MachineRequest};
use crate::machine::hello::{Answer, Hello};
use crate::machine::pure::power::EVENT_POWER_BUTTON;
use crate::machine::vm::Machine;
use feed::wire::{BlockingWire, WireError};
use rustix::net::SocketFlags;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

impl Process {
    pub(super) fn accept_supervisor(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = rustix::net::accept_with(&self.listener, flags).map_err(io::Error::from);
        if let Err(error) = accepted.and_then(|socket| self.adopt_connection(BlockingWire::of(socket), false))
        {
            tracing::warn!(%error, "a control connection was not taken");
        }
    }

    /// Takes a connection into the loop; non-blocking, so that a peer that does not read cannot hold it up.
    pub(super) fn adopt_connection(&mut self, wire: BlockingWire, subscribed: bool) -> io::Result<()> {
        rustix::io::ioctl_fionbio(wire.as_fd(), true)?;
        let Some(slot) = self.connections.iter().position(Option::is_none) else {
            return Err(io::Error::other(format!("all {MAX_CONNECTIONS} connections are in use")));
        };
        self.watch(wire.as_fd(), Event::Connection(slot))?;
        self.connections[slot] = Some(Connection { wire, subscribed });
        Ok(())
    }

    pub(super) fn hear_supervisor(&mut self, slot: usize, machine: &Machine) -> Option<Outcome> {
        let connection = self.connections[slot].as_ref()?;
        let (request, sockets) = match connection.wire.receive::<MachineRequest>() {
            Ok(heard) => heard,
            Err(WireError::Receive(error)) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => {
                tracing::debug!(%error, "a control connection ended");
                self.connections[slot] = None;
                return None;
            }
        };
        self.serve_request(slot, request, sockets, machine)
    }

    fn serve_request(
        &mut self,
        slot: usize,
        request: MachineRequest,
        sockets: Vec<OwnedFd>,
        machine: &Machine,
    ) -> Option<Outcome> {
        match request {
            MachineRequest::Start(_) => {
                let message = "a machine runs already".to_owned();
                self.answer(slot, &MachineMessage::Refused { reason: Refusal::Busy, message });
            }
            MachineRequest::Subscribe => {
                if let Some(connection) = &mut self.connections[slot] {
                    connection.subscribed = true;
                }
                let running = self.running();
                self.answer(slot, &running);
            }
            MachineRequest::PowerButton => {
                let raised = machine.bus().raise(EVENT_POWER_BUTTON);
                self.answer(slot, &done(raised));
            }
            MachineRequest::Kill => {
                self.answer(slot, &MachineMessage::Done);
                return Some(Outcome::Exit(ExitReason::Killed));
            }
            MachineRequest::Suspend => {
                if let Err(refused) = self.begin_suspend(slot, machine) {
                    self.answer(slot, &refused);
                }
            }
            MachineRequest::Freeze => {
                let answer = self.freeze(sockets, machine);
                self.answer(slot, &answer);
            }
            MachineRequest::Optimize => {
                let answer = self.optimize();
                self.answer(slot, &answer);
            }
            MachineRequest::GrowDisk { disk_mib } => {
                let answer = self.grow_disk(disk_mib, machine);
                self.answer(slot, &answer);
            }
            MachineRequest::WatchIdle { idle } => {
                let set = self.watch_idle(idle);
                self.answer(slot, &done(set));
            }
        }
        None
    }

    pub(super) fn accept_agent(&mut self) {
        let accepted = self.host.agents.accept().and_then(|(stream, _)| Hello::new(stream));
        let hello = match accepted {
            Ok(hello) => hello,
            Err(error) => return tracing::warn!(%error, "a connection of the agent was not taken"),
        };
        let Some(slot) = self.hellos.iter().position(Option::is_none) else {
            return tracing::warn!("a connection of the agent was not taken: all are in use");
        };
        if let Err(error) = self.watch(hello.stream().as_fd(), Event::Hello(slot)) {
            return tracing::warn!(%error, "a connection of the agent was not taken");
        }
        self.hellos[slot] = Some(hello);
    }

    pub(super) fn hear_agent(&mut self, slot: usize, machine: &mut Machine) {
        let Some(hello) = &mut self.hellos[slot] else { return };
        let answer = Answer { config: &self.plan.spec.boot, restored: self.restored };
        match hello.advance(&answer) {
            Ok(false) => {}
            Ok(true) => {
                // The guest has mended what no two may share: now it may talk to others.
                if let Err(error) = machine.open_nic() {
                    return tracing::error!(error = chain_text(&error), "the NIC stays closed");
                }
                // Mended once: an agent that reports again, after its own restart for one, has nothing more to mend.
                self.restored = None;
                self.agent_ready = true;
                self.tell(&MachineMessage::AgentReady);
            }
            Err(error) => {
                tracing::info!(error = chain_text(&error), "the agent's connection ended");
                self.hellos[slot] = None;
            }
        }
    }

    pub(super) fn running(&self) -> MachineMessage {
        MachineMessage::Running {
            vm: self.plan.spec.vm.clone(),
            instance: self.plan.spec.instance.clone(),
            agent_ready: self.agent_ready,
        }
    }

    /// Tells an event to all who subscribed.
    pub(super) fn tell(&mut self, message: &MachineMessage) {
        for slot in 0..self.connections.len() {
            if self.connections[slot].as_ref().is_some_and(|connection| connection.subscribed) {
                self.answer(slot, message);
            }
        }
    }

    /// Sends to one; whoever does not read is dropped.
    pub(super) fn answer(&mut self, slot: usize, message: &MachineMessage) {
        let Some(connection) = &self.connections[slot] else { return };
        if let Err(error) = connection.wire.send(message, &[]) {
            tracing::debug!(%error, "a control connection is dropped");
            self.connections[slot] = None;
        }
    }
}

pub(super) fn done(outcome: io::Result<()>) -> MachineMessage {
    match outcome {
        Ok(()) => MachineMessage::Done,
        Err(error) => MachineMessage::Refused { reason: Refusal::Internal, message: error.to_string() },
    }
}
