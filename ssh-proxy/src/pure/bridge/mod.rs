//! What passes between a client and a VM's sshd, packet by packet.
//!
//! Channels, windows, requests and their replies are the two ends' own and pass as they are. The bridge has its hands in
//! where it must:
//!
//! - channels have numbers of ours at the client, so that a session is accepted at once and given to the VM when the VM
//!   is there. Until then its window is zero and what the client asks waits;
//! - windows are kept count of, so that an end that overruns one is found out, and the client's may grow beyond the
//!   VM's (see [`channel`]);
//! - keepalives of both ends are answered here: a client's must not keep a VM awake. So the replies to global requests
//!   have an order of their own;
//! - the VM's host keys are not told to the client, which knows the front by others.

pub mod channel;
#[cfg(any(test, feature = "fuzz"))]
pub mod model;

use crate::pure::packet::{self, Fields};
use channel::{Budget, Channel, End, Kind, Step};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Global requests of one end that wait for their replies: clients forward a few dozen ports.
const MAX_ASKED: usize = 256;
/// Bytes that wait for the VM to be there, or to confirm a channel, above which the client is not read: a few hundred
/// requests.
const MAX_WAITING: usize = 256 << 10;
/// Keepalives that a client may leave unanswered.
const MAX_UNANSWERED: u32 = 4;
/// What an early channel allows in one message, which is what OpenSSH allows (CHAN_SES_PACKET_DEFAULT).
const EARLY_MAX_PACKET: u32 = 32 << 10;

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The VM's sshd.
    Vm,
}

/// An end broke the protocol, so the session cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {} broke the protocol: {what}", match side { Side::Client => "client", Side::Vm => "VM" })]
pub struct Broken {
    /// Which one.
    pub side: Side,
    /// How.
    pub what: &'static str,
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Act {
    /// Send this to the client.
    ToClient(Vec<u8>),
    /// Send this to the VM.
    ToVm(Vec<u8>),
    /// Write down that a channel is over.
    Ended(End),
}

/// What waits for the VM.
#[derive(Debug)]
enum Waiting {
    Packet(Vec<u8>),
    /// The channel's opening, which the channel has.
    Opening(u32),
}

/// A reply that the client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Ours,
    Vms,
}

/// Bounds of one session.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Channels at once.
    pub channels: usize,
    /// Most bytes that a channel's window grows to.
    pub channel_bytes: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Bridge {
    bounds: Bounds,
    budget: Arc<Budget>,
    ready: bool,
    waiting: VecDeque<Waiting>,
    /// Bytes in `waiting` and in channels that the VM has not confirmed.
    waiting_bytes: usize,
    channels: BTreeMap<u32, Channel>,
    /// Our number of the channel that has this number at the client.
    by_client: HashMap<u32, u32>,
    /// Replies that the client waits for, in order.
    to_answer: VecDeque<Answer>,
    /// Whose requests the client has yet to reply to, in order.
    asked: VecDeque<Answer>,
    unanswered: u32,
    acts: VecDeque<Act>,
    received: u64,
    sent: u64,
}

impl Bridge {
    /// A bridge that has a client and no VM yet. `budget` is shared by all sessions.
    #[must_use]
    pub fn new(bounds: Bounds, budget: Arc<Budget>) -> Self {
        Self {
            bounds,
            budget,
            ready: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            channels: BTreeMap::new(),
            by_client: HashMap::new(),
            to_answer: VecDeque::new(),
            asked: VecDeque::new(),
            unanswered: 0,
            acts: VecDeque::new(),
            received: 0,
            sent: 0,
        }
    }

    /// What is to be done next.
    pub fn next_act(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    /// Whether the client may be read: what waits for the VM is bounded.
    #[must_use]
    pub fn wants_client(&self) -> bool {
        self.waiting_bytes < MAX_WAITING
    }

    /// Open channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Bytes of channels from the client and to it.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.received, self.sent)
    }

    /// The VM's sshd is there.
    pub fn vm_ready(&mut self) {
        self.ready = true;
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Packet(packet) => {
                    self.waiting_bytes -= packet.len();
                    self.acts.push_back(Act::ToVm(packet));
                }
                Waiting::Opening(number) => self.open_at_vm(number),
            }
        }
    }

    /// Text to the stderr of those sessions that have a terminal and of which the VM knows nothing yet: there alone it
    /// disturbs no program and no count of the VM's.
    pub fn tell(&mut self, text: &str) {
        for channel in self.channels.values_mut() {
            if channel.is_early() && channel.has_terminal() {
                self.acts.extend(channel.tell(text).map(Act::ToClient));
            }
        }
    }

    /// Text to the stderr of all sessions that have a terminal, before the end.
    pub fn tell_last(&mut self, text: &str) {
        for channel in self.channels.values_mut().filter(|channel| channel.has_terminal()) {
            self.acts.extend(channel.tell(text).map(Act::ToClient));
        }
    }

    /// Ends all channels.
    pub fn end(&mut self) {
        while let Some((_, channel)) = self.channels.pop_first() {
            self.acts.push_back(Act::Ended(channel.end(&self.budget, false)));
        }
    }

    /// Asks the client whether it is there; false when it has not answered several times.
    pub fn keepalive(&mut self) -> bool {
        if self.unanswered >= MAX_UNANSWERED {
            return false;
        }
        if self.asked.len() < MAX_ASKED {
            self.unanswered += 1;
            self.asked.push_back(Answer::Ours);
            self.acts.push_back(Act::ToClient(packet::keepalive()));
        }
        true
    }

    /// The client sent a packet.
    ///
    /// # Errors
    /// When it breaks the protocol.
    pub fn client_sent(&mut self, packet: Vec<u8>) -> Result<(), Broken> {
        self.unanswered = 0;
        let broken = |what| Broken { side: Side::Client, what };
        match packet.first() {
            Some(&packet::GLOBAL_REQUEST) => self.global_of_client(packet).map_err(broken),
            Some(&(packet::REQUEST_SUCCESS | packet::REQUEST_FAILURE)) => match self.asked.pop_front() {
                Some(Answer::Ours) => Ok(()),
                Some(Answer::Vms) => {
                    self.acts.push_back(Act::ToVm(packet));
                    Ok(())
                }
                None => Err(broken("a reply that nobody asked for")),
            },
            Some(&packet::OPEN) => self.open_of_client(packet).map_err(broken),
            Some(packet::CONFIRMATION..=packet::CHANNEL_FAILURE) => {
                self.channel_of_client(packet).map_err(broken)
            }
            _ => Err(broken("an unknown message")),
        }
    }

    /// The VM sent a packet.
    ///
    /// # Errors
    /// When it breaks the protocol.
    pub fn vm_sent(&mut self, packet: Vec<u8>) -> Result<(), Broken> {
        let broken = |what| Broken { side: Side::Vm, what };
        match packet.first() {
            Some(&packet::GLOBAL_REQUEST) => self.global_of_vm(packet).map_err(broken),
            Some(&(packet::REQUEST_SUCCESS | packet::REQUEST_FAILURE)) => match self.to_answer.pop_front() {
                Some(Answer::Vms) => {
                    self.acts.push_back(Act::ToClient(packet));
                    self.answer_ours();
                    Ok(())
                }
                Some(Answer::Ours) | None => Err(broken("a reply that nobody asked for")),
            },
            Some(&packet::OPEN) => self.open_of_vm(packet).map_err(broken),
            Some(packet::CONFIRMATION..=packet::CHANNEL_FAILURE) => {
                self.channel_of_vm(packet).map_err(broken)
            }
            _ => Err(broken("an unknown message")),
        }
    }

    fn global_of_client(&mut self, packet: Vec<u8>) -> Result<(), &'static str> {
        let mut fields = Fields::of(&packet);
        let (Some(name), Some(wants)) = (fields.string(), fields.truth()) else {
            return Err("a global request that is cut off");
        };
        let ours = name == packet::KEEPALIVE;
        if wants {
            if self.to_answer.len() >= MAX_ASKED {
                return Err("too many global requests at once");
            }
            self.to_answer.push_back(if ours { Answer::Ours } else { Answer::Vms });
        }
        if ours {
            self.answer_ours();
        } else if self.ready {
            self.acts.push_back(Act::ToVm(packet));
        } else {
            self.waiting_bytes += packet.len();
            self.waiting.push_back(Waiting::Packet(packet));
        }
        Ok(())
    }

    /// Gives those answers of ours that no answer of the VM's must come before. What a client asks here it does to see
    /// whether the other end lives; a failure says so, as OpenSSH's does.
    fn answer_ours(&mut self) {
        while self.to_answer.front() == Some(&Answer::Ours) {
            self.to_answer.pop_front();
            self.acts.push_back(Act::ToClient(vec![packet::REQUEST_FAILURE]));
        }
    }

    fn global_of_vm(&mut self, packet: Vec<u8>) -> Result<(), &'static str> {
        let mut fields = Fields::of(&packet);
        let (Some(name), Some(wants)) = (fields.string(), fields.truth()) else {
            return Err("a global request that is cut off");
        };
        if name.starts_with(b"hostkeys-") {
            if wants {
                self.acts.push_back(Act::ToVm(vec![packet::REQUEST_FAILURE]));
            }
            return Ok(());
        }
        if wants {
            if self.asked.len() >= MAX_ASKED {
                return Err("too many global requests at once");
            }
            self.asked.push_back(Answer::Vms);
        }
        self.acts.push_back(Act::ToClient(packet));
        Ok(())
    }

    fn free_number(&self) -> Option<u32> {
        let bound = u32::try_from(self.bounds.channels).unwrap_or(u32::MAX);
        (0..bound).find(|number| !self.channels.contains_key(number))
    }

    fn open_of_client(&mut self, packet: Vec<u8>) -> Result<(), &'static str> {
        let opening = channel::Opening::of(&packet).ok_or("a channel's opening that is cut off")?;
        if self.by_client.contains_key(&opening.sender) {
            return Err("a channel number that is in use");
        }
        let Some(number) = self.free_number() else {
            let refusal =
                packet::open_failure(opening.sender, packet::SHORTAGE, "too many channels are open");
            self.acts.push_back(Act::ToClient(refusal));
            return Ok(());
        };
        self.by_client.insert(opening.sender, number);
        let mut channel = Channel::of_client(&opening);
        if !self.ready {
            if opening.kind == Kind::Session {
                channel.accept_early();
                let accepted = packet::confirmation(opening.sender, number, 0, EARLY_MAX_PACKET);
                self.acts.push_back(Act::ToClient(accepted));
            }
            self.waiting.push_back(Waiting::Opening(number));
        }
        self.waiting_bytes += packet.len();
        channel.keep_opening(packet);
        self.channels.insert(number, channel);
        if self.ready {
            self.open_at_vm(number);
        }
        Ok(())
    }

    fn open_at_vm(&mut self, number: u32) {
        if let Some(opening) = self.channels.get_mut(&number).and_then(Channel::take_opening) {
            self.waiting_bytes -= opening.len();
            self.acts.push_back(Act::ToVm(opening));
        }
    }

    fn open_of_vm(&mut self, mut packet: Vec<u8>) -> Result<(), &'static str> {
        let opening = channel::Opening::of(&packet).ok_or("a channel's opening that is cut off")?;
        let refusal =
            if opening.kind == Kind::X11 { Some((packet::PROHIBITED, "X11 is not forwarded")) } else { None };
        let number = self.free_number().filter(|_| refusal.is_none());
        let Some(number) = number else {
            let (reason, text) = refusal.unwrap_or((packet::SHORTAGE, "too many channels are open"));
            self.acts.push_back(Act::ToVm(packet::open_failure(opening.sender, reason, text)));
            return Ok(());
        };
        self.channels.insert(number, Channel::of_vm(&opening));
        let at = opening.sender_at;
        packet::rewrite(&mut packet, at, number);
        self.acts.push_back(Act::ToClient(packet));
        Ok(())
    }

    fn channel_of_client(&mut self, packet: Vec<u8>) -> Result<(), &'static str> {
        let number = Fields::of(&packet).number().ok_or("a channel's message that is cut off")?;
        let channel = self.channels.get_mut(&number).ok_or("a message to a channel that is not open")?;
        if packet.first() == Some(&packet::CONFIRMATION) {
            let client = Fields(packet.get(5..).unwrap_or_default()).number();
            let client = client.ok_or("a channel's message that is cut off")?;
            if self.by_client.insert(client, number).is_some() {
                return Err("a channel number that is in use");
            }
        }
        let before = channel.unconfirmed_bytes();
        let step = channel.client_sent(packet, &mut self.acts)?;
        self.waiting_bytes = self.waiting_bytes + channel.unconfirmed_bytes() - before;
        if let Step::Data(bytes) = step {
            self.received += u64::from(bytes);
            channel.grow(self.bounds.channel_bytes, &self.budget, &mut self.acts);
        }
        self.settle(number, step);
        Ok(())
    }

    fn channel_of_vm(&mut self, packet: Vec<u8>) -> Result<(), &'static str> {
        let client = Fields::of(&packet).number().ok_or("a channel's message that is cut off")?;
        // What the VM opened has no number at the client before the client confirms it, and the VM knows none.
        let number = *self.by_client.get(&client).ok_or("a message to a channel that is not open")?;
        let channel = self.channels.get_mut(&number).ok_or("a message to a channel that is not open")?;
        let before = channel.unconfirmed_bytes();
        let step = channel.vm_sent(packet, number, &mut self.acts)?;
        self.waiting_bytes = self.waiting_bytes + channel.unconfirmed_bytes() - before;
        match step {
            Step::Data(bytes) => self.sent += u64::from(bytes),
            // It may have taken the last of what waited. Where all that a client may send at once comes in one burst, that
            // is the only time when nothing waits.
            Step::On => channel.grow(self.bounds.channel_bytes, &self.budget, &mut self.acts),
            Step::Over | Step::Refused => {}
        }
        self.settle(number, step);
        Ok(())
    }

    fn settle(&mut self, number: u32, step: Step) {
        let refused = match step {
            Step::Data(_) | Step::On => return,
            Step::Over => false,
            Step::Refused => true,
        };
        if let Some(channel) = self.channels.remove(&number) {
            if let Some(client) = channel.client() {
                self.by_client.remove(&client);
            }
            self.acts.push_back(Act::Ended(channel.end(&self.budget, refused)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the client is allowed by what the bridge does now, and bytes of data for the VM.
    fn acts(bridge: &mut Bridge) -> (u32, u32) {
        let (mut allowed, mut passed) = (0, 0);
        while let Some(act) = bridge.next_act() {
            match act {
                Act::ToClient(packet) if packet.first() == Some(&packet::WINDOW_ADJUST) => {
                    allowed += Fields(packet.get(5..).expect("whole")).number().expect("whole");
                }
                Act::ToVm(packet) => passed += packet::data_length(&packet).unwrap_or_default(),
                Act::ToClient(_) | Act::Ended(_) => {}
            }
        }
        (allowed, passed)
    }

    fn message(number: u8, fields: &[u32]) -> Vec<u8> {
        let mut message = vec![number];
        message.extend(fields.iter().flat_map(|field| field.to_be_bytes()));
        message
    }

    /// As OpenSSH's sshd does it: the confirmation has no window, and the window comes once a command runs.
    #[test]
    fn the_window_grows_for_who_sends_a_lot_though_it_is_zero_at_first() {
        const WINDOW: u32 = 1000;
        let bounds = Bounds { channels: 8, channel_bytes: 16 * WINDOW };
        let mut bridge = Bridge::new(bounds, Arc::new(Budget::new(1 << 20)));
        bridge.vm_ready();
        let mut opening = vec![packet::OPEN, 0, 0, 0, 7];
        opening.extend(b"session");
        opening.extend([3, 1 << 20, 1 << 15].iter().flat_map(|field: &u32| field.to_be_bytes()));
        bridge.client_sent(opening).expect("an opening");
        bridge.vm_sent(message(packet::CONFIRMATION, &[3, 5, 0, 1 << 15])).expect("a confirmation");
        acts(&mut bridge);
        let mut credit = 0;
        let mut largest = 0;
        for _ in 0..40 {
            // All that the client may send comes at once; the VM takes it a window at a time.
            let mut taken = WINDOW;
            while taken > 0 {
                bridge.vm_sent(message(packet::WINDOW_ADJUST, &[3, taken])).expect("an adjustment");
                let (allowed, passed) = acts(&mut bridge);
                (credit, taken) = (credit + allowed, passed);
            }
            largest = largest.max(credit);
            let mut first = WINDOW;
            while credit > 0 {
                let length = credit.min(250);
                let mut data = message(packet::DATA, &[0, length]);
                data.resize(data.len() + length as usize, 0);
                bridge.client_sent(data).expect("data within the window");
                let (allowed, passed) = acts(&mut bridge);
                credit = credit - length + allowed;
                first -= passed;
            }
            assert_eq!(first, 0, "the VM's window is used up");
        }
        assert_eq!(largest, 16 * WINDOW);
    }
}
