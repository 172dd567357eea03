//! One channel: its windows, what waits, and how far its end has come.
//!
//! To the client everything goes as the VM sends it; the client's window is the client's. To the VM, the client may send
//! what the VM's window takes and something more, which waits here while the VM does not take it:
//!
//! ```text
//!   what the client may still send + what waits here  =  what the VM still takes + extra
//! ```
//! `extra` is zero at first, so nothing can wait, and each byte that the VM allows is passed on as it is. It grows
//! while the client sends a lot and the VM takes all of it at once, because then the path's delay and not the VM is
//! what the VM's window of two MiB holds up. A VM that stalls later costs `extra` at most.

use crate::pure::bridge::Act;
use crate::pure::packet::{self, Fields};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// Characters of a type or target that are written down.
const MAX_SHOWN: usize = 256;

/// What all sessions may let wait beyond the VMs' windows.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Budget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    /// Bytes that are not taken.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u32) -> bool {
        let less = |left: u64| left.checked_sub(bytes.into());
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give(&self, bytes: u32) {
        self.0.fetch_add(bytes.into(), Ordering::Relaxed);
    }
}

/// Who opened a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opener {
    /// The client.
    Client,
    /// The VM.
    Vm,
}

/// Kinds of channels that are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A shell, command or subsystem.
    Session,
    /// An X client's connection.
    X11,
    /// Any other.
    Other,
}

/// What a message says that opens a channel.
#[derive(Debug)]
pub struct Opening {
    /// The kind.
    pub kind: Kind,
    /// The type and where it leads, for the log.
    shown: (String, Option<String>),
    /// The number that its sender gives it.
    pub sender: u32,
    /// Where in the message that number stands.
    pub sender_at: usize,
    window: u32,
    max: u32,
}

impl Opening {
    /// Reads it; none when it is cut off.
    #[must_use]
    pub fn of(packet: &[u8]) -> Option<Self> {
        let mut fields = Fields::of(packet);
        let name = fields.string()?;
        let sender_at = packet.len() - fields.0.len();
        let (sender, window, max) = (fields.number()?, fields.number()?, fields.number()?);
        let kind = match name {
            b"session" => Kind::Session,
            b"x11" => Kind::X11,
            _ => Kind::Other,
        };
        let target = match name {
            b"direct-tcpip" | b"forwarded-tcpip" => {
                let (host, port) = (fields.string()?, fields.number()?);
                Some(format!("{}:{port}", shown(host)))
            }
            b"direct-streamlocal@openssh.com" | b"forwarded-streamlocal@openssh.com" => {
                Some(shown(fields.string()?))
            }
            _ => None,
        };
        Some(Self { kind, shown: (shown(name), target), sender, sender_at, window, max })
    }
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().take(MAX_SHOWN).collect()
}

/// How a channel ended, for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Its type; of a session what was asked for, `shell`, `exec` or the subsystem's name, if anything was.
    pub what: String,
    /// Where it led.
    pub target: Option<String>,
    /// The VM opened it.
    pub of_vm: bool,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// The command's exit status.
    pub exit: Option<u32>,
    /// The signal that ended the command.
    pub signal: Option<String>,
    /// It was refused.
    pub refused: bool,
    /// Both ends closed it; else the session ended with it.
    pub closed: bool,
}

/// What became of a channel by a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes on.
    On,
    /// The same, and so many bytes of data passed.
    Data(u32),
    /// It is over.
    Over,
    /// It never was.
    Refused,
}

/// What one end has sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    eof: bool,
    close: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Channel {
    opener: Opener,
    client: Option<u32>,
    vm: Option<u32>,
    opening: Option<Vec<u8>>,
    /// The client was told that it is open before the VM was.
    early: bool,
    /// The VM refused it, which the client cannot be told any more: it is only being closed.
    dead: bool,
    terminal: bool,
    /// What the client may still send.
    credit: u32,
    /// What the VM still takes.
    window: u32,
    /// The most that the VM took at once, by which `extra` grows. OpenSSH's sshd confirms a session with a window of zero,
    /// and opens it when it has started what was asked for.
    most_window: u32,
    extra: u32,
    /// Bytes that passed since `extra` grew.
    passed: u64,
    /// The longest data that the VM takes in one message.
    vm_max: u32,
    /// From the client, for the VM.
    held: VecDeque<Vec<u8>>,
    held_bytes: usize,
    /// What the VM may still send.
    down: u32,
    by_client: Sent,
    by_vm: Sent,
    end: End,
}

impl Channel {
    fn new(opener: Opener, opening: &Opening) -> Self {
        let (what, target) = opening.shown.clone();
        Self {
            opener,
            client: None,
            vm: None,
            opening: None,
            early: false,
            dead: false,
            terminal: false,
            credit: 0,
            window: 0,
            most_window: 0,
            extra: 0,
            passed: 0,
            vm_max: 0,
            held: VecDeque::new(),
            held_bytes: 0,
            down: 0,
            by_client: Sent::default(),
            by_vm: Sent::default(),
            end: End { what, target, of_vm: opener == Opener::Vm, ..End::default() },
        }
    }

    pub(super) fn of_client(opening: &Opening) -> Self {
        Self { client: Some(opening.sender), down: opening.window, ..Self::new(Opener::Client, opening) }
    }

    pub(super) fn of_vm(opening: &Opening) -> Self {
        let mut channel = Self { vm: Some(opening.sender), ..Self::new(Opener::Vm, opening) };
        channel.vm_allows(opening.window, opening.max);
        channel
    }

    pub(super) fn accept_early(&mut self) {
        self.early = true;
    }

    pub(super) fn keep_opening(&mut self, packet: Vec<u8>) {
        self.opening = Some(packet);
    }

    /// The message that opens it at the VM, once, with the window that is left.
    pub(super) fn take_opening(&mut self) -> Option<Vec<u8>> {
        let mut opening = self.opening.take()?;
        let at = Opening::of(&opening)?.sender_at + 4;
        packet::rewrite(&mut opening, at, self.down);
        Some(opening)
    }

    /// Whether the client has it and the VM knows nothing of it.
    pub(super) fn is_early(&self) -> bool {
        self.early && self.opening.is_some()
    }

    pub(super) fn has_terminal(&self) -> bool {
        self.terminal
    }

    pub(super) fn client(&self) -> Option<u32> {
        self.client
    }

    /// Bytes that wait until the VM confirms it.
    pub(super) fn unconfirmed_bytes(&self) -> usize {
        if self.vm.is_none() { self.held_bytes } else { 0 }
    }

    /// A message to its stderr, if the client takes that much.
    pub(super) fn tell(&mut self, text: &str) -> Option<Vec<u8>> {
        let length = u32::try_from(text.len()).ok()?;
        let client = self.client.filter(|_| !self.by_vm.eof && !self.by_vm.close && !self.by_client.close)?;
        self.down = self.down.checked_sub(length)?;
        Some(packet::stderr(client, text))
    }

    pub(super) fn end(self, budget: &Budget, refused: bool) -> End {
        budget.give(self.extra);
        let closed = self.by_client.close && self.by_vm.close && !refused && !self.dead;
        End { refused: refused || self.dead, closed, ..self.end }
    }

    /// Lets the client send more at once, if it sends a lot and the VM takes all of it.
    pub(super) fn grow(&mut self, most: u32, budget: &Budget, acts: &mut VecDeque<Act>) {
        let all = self.most_window.saturating_add(self.extra);
        // After a close there is nobody to tell.
        let over = self.by_vm.close || self.by_client.close || self.by_client.eof;
        if over || !self.held.is_empty() || self.passed < u64::from(all) || all == 0 {
            return;
        }
        self.passed = 0;
        let more = all.min(most.saturating_sub(all));
        let (Some(client), Some(credit)) = (self.client, self.credit.checked_add(more)) else { return };
        if more > 0 && budget.take(more) {
            self.extra += more;
            self.credit = credit;
            acts.push_back(Act::ToClient(packet::window_adjust(client, more)));
        }
    }

    /// A message of the client to this channel.
    pub(super) fn client_sent(
        &mut self,
        packet: Vec<u8>,
        acts: &mut VecDeque<Act>,
    ) -> Result<Step, &'static str> {
        if self.by_client.close {
            return Err("a message to a channel that it closed");
        }
        if self.opener == Opener::Client && self.vm.is_none() && !self.early {
            return Err("a message to a channel that is not open");
        }
        if self.client.is_none()
            != matches!(packet.first(), Some(&(packet::CONFIRMATION | packet::OPEN_FAILURE)))
        {
            return Err("a confirmation that does not fit the channel");
        }
        match packet.first().copied().unwrap_or_default() {
            packet::CONFIRMATION => self.client_confirms(packet, acts),
            packet::OPEN_FAILURE => {
                self.to_vm(packet, acts);
                Ok(Step::Refused)
            }
            packet::WINDOW_ADJUST => {
                let more = Fields(packet.get(5..).unwrap_or_default()).number();
                let down = more.and_then(|more| self.down.checked_add(more));
                self.down = down.ok_or("a window that is too large")?;
                // What the VM does not know of yet is in its opening.
                if self.opening.is_none() {
                    self.pass(packet, acts);
                }
                Ok(Step::On)
            }
            packet::DATA | packet::EXTENDED_DATA => self.client_data(packet, acts),
            packet::EOF | packet::CLOSE => Ok(self.client_ends(packet, acts)),
            packet::CHANNEL_REQUEST => self.client_asks(packet, acts),
            // CHANNEL_SUCCESS and CHANNEL_FAILURE
            _ => {
                self.pass(packet, acts);
                Ok(Step::On)
            }
        }
    }

    fn client_confirms(
        &mut self,
        mut packet: Vec<u8>,
        acts: &mut VecDeque<Act>,
    ) -> Result<Step, &'static str> {
        let mut fields = Fields(packet.get(5..).unwrap_or_default());
        let (Some(sender), Some(window), Some(_)) = (fields.number(), fields.number(), fields.number())
        else {
            return Err("a channel's message that is cut off");
        };
        (self.client, self.down) = (Some(sender), window);
        if let Some(vm) = self.vm {
            packet::rewrite(&mut packet, packet::RECIPIENT, vm);
        }
        acts.push_back(Act::ToVm(packet));
        Ok(Step::On)
    }

    fn client_data(&mut self, packet: Vec<u8>, acts: &mut VecDeque<Act>) -> Result<Step, &'static str> {
        let length = packet::data_length(&packet).ok_or("data that is cut off")?;
        if self.by_client.eof {
            return Err("data after its end");
        }
        self.credit = self.credit.checked_sub(length).ok_or("more data than the window allows")?;
        self.end.received += u64::from(length);
        self.passed += u64::from(length);
        if !self.by_vm.close && !self.dead {
            self.hold(packet);
            self.drain(acts);
        }
        Ok(Step::Data(length))
    }

    fn client_ends(&mut self, packet: Vec<u8>, acts: &mut VecDeque<Act>) -> Step {
        if packet.first() == Some(&packet::CLOSE) {
            self.by_client.close = true;
        } else {
            self.by_client.eof = true;
        }
        if self.dead {
            return if self.by_client.close { Step::Over } else { Step::On };
        }
        self.hold(packet);
        self.drain(acts);
        self.step()
    }

    fn client_asks(&mut self, packet: Vec<u8>, acts: &mut VecDeque<Act>) -> Result<Step, &'static str> {
        let mut fields = Fields(packet.get(5..).unwrap_or_default());
        let (Some(name), Some(_)) = (fields.string(), fields.truth()) else {
            return Err("a channel's request that is cut off");
        };
        match name {
            b"pty-req" => self.terminal = true,
            b"shell" | b"exec" => self.end.what = shown(name),
            b"subsystem" => self.end.what = fields.string().map(shown).unwrap_or_default(),
            _ => {}
        }
        // After the close that stood for a refusal nothing may follow, a reply neither.
        if !self.dead {
            self.pass(packet, acts);
        }
        Ok(Step::On)
    }

    /// Sends what needs no window, at once if the VM knows the channel.
    fn pass(&mut self, packet: Vec<u8>, acts: &mut VecDeque<Act>) {
        if self.vm.is_some() {
            self.to_vm(packet, acts);
        } else if !self.dead {
            self.hold(packet);
        }
    }

    fn hold(&mut self, packet: Vec<u8>) {
        self.held_bytes += packet.len();
        self.held.push_back(packet);
    }

    fn to_vm(&self, mut packet: Vec<u8>, acts: &mut VecDeque<Act>) {
        if let Some(vm) = self.vm {
            packet::rewrite(&mut packet, packet::RECIPIENT, vm);
            acts.push_back(Act::ToVm(packet));
        }
    }

    /// Sends of what is held what the VM takes.
    fn drain(&mut self, acts: &mut VecDeque<Act>) {
        if self.vm.is_none() {
            return;
        }
        while let Some(mut packet) = self.held.pop_front() {
            self.held_bytes -= packet.len();
            if matches!(packet.first(), Some(&(packet::DATA | packet::EXTENDED_DATA))) {
                let room = self.window.min(self.vm_max);
                let length = packet::data_length(&packet).unwrap_or_default();
                if room == 0 && length > 0 {
                    self.held_bytes += packet.len();
                    self.held.push_front(packet);
                    return;
                }
                if let Some(rest) = packet::split_data(&mut packet, room) {
                    self.held_bytes += rest.len();
                    self.held.push_front(rest);
                }
                self.window -= length.min(room);
            }
            self.to_vm(packet, acts);
        }
    }

    fn vm_allows(&mut self, window: u32, max: u32) {
        (self.window, self.most_window, self.credit, self.vm_max) = (window, window, window, max);
    }

    fn step(&self) -> Step {
        if self.by_client.close && self.by_vm.close { Step::Over } else { Step::On }
    }

    /// A message of the VM to this channel, which has the number `number` at the client.
    pub(super) fn vm_sent(
        &mut self,
        packet: Vec<u8>,
        number: u32,
        acts: &mut VecDeque<Act>,
    ) -> Result<Step, &'static str> {
        if self.by_vm.close || self.dead {
            return Err("a message to a channel that it closed");
        }
        if self.vm.is_none() != matches!(packet.first(), Some(&(packet::CONFIRMATION | packet::OPEN_FAILURE)))
            || self.opening.is_some()
        {
            return Err("a confirmation that does not fit the channel");
        }
        match packet.first().copied().unwrap_or_default() {
            packet::CONFIRMATION => return self.vm_confirms(packet, number, acts),
            packet::OPEN_FAILURE => return Ok(self.vm_refuses(packet, acts)),
            packet::WINDOW_ADJUST => return self.vm_adjusts(packet, acts),
            packet::DATA | packet::EXTENDED_DATA => {
                let length = packet::data_length(&packet).ok_or("data that is cut off")?;
                if self.by_vm.eof {
                    return Err("data after its end");
                }
                self.down = self.down.checked_sub(length).ok_or("more data than the window allows")?;
                self.end.sent += u64::from(length);
                acts.push_back(Act::ToClient(packet));
                return Ok(Step::Data(length));
            }
            packet::EOF => self.by_vm.eof = true,
            packet::CLOSE => {
                self.by_vm.close = true;
                acts.push_back(Act::ToClient(packet));
                return Ok(self.vm_closed(acts));
            }
            packet::CHANNEL_REQUEST => self.note_exit(&packet),
            // CHANNEL_SUCCESS and CHANNEL_FAILURE
            _ => {}
        }
        acts.push_back(Act::ToClient(packet));
        Ok(Step::On)
    }

    fn vm_confirms(
        &mut self,
        mut packet: Vec<u8>,
        number: u32,
        acts: &mut VecDeque<Act>,
    ) -> Result<Step, &'static str> {
        let mut fields = Fields(packet.get(5..).unwrap_or_default());
        let (Some(sender), Some(window), Some(max)) = (fields.number(), fields.number(), fields.number())
        else {
            return Err("a channel's message that is cut off");
        };
        self.vm = Some(sender);
        self.vm_allows(window, max);
        let client = self.client.unwrap_or_default();
        if self.early {
            acts.push_back(Act::ToClient(packet::window_adjust(client, window)));
        } else {
            packet::rewrite(&mut packet, packet::RECIPIENT + 4, number);
            acts.push_back(Act::ToClient(packet));
        }
        self.drain(acts);
        Ok(self.step())
    }

    /// A channel that the client has already cannot be refused: it is closed.
    fn vm_refuses(&mut self, packet: Vec<u8>, acts: &mut VecDeque<Act>) -> Step {
        if !self.early {
            acts.push_back(Act::ToClient(packet));
            return Step::Refused;
        }
        let client = self.client.unwrap_or_default();
        let asked = |held: &Vec<u8>| {
            let mut fields = Fields(held.get(5..).unwrap_or_default());
            held.first() == Some(&packet::CHANNEL_REQUEST)
                && fields.string().is_some()
                && fields.truth() == Some(true)
        };
        let replies = self.held.iter().filter(|held| asked(held)).count();
        acts.extend((0..replies).map(|_| Act::ToClient(packet::bare(packet::CHANNEL_FAILURE, client))));
        let reason = Fields(packet.get(9..).unwrap_or_default()).string().map(shown).unwrap_or_default();
        acts.extend(self.tell(&format!("the VM refuses the session: {reason}\r\n")).map(Act::ToClient));
        acts.push_back(Act::ToClient(packet::bare(packet::CLOSE, client)));
        self.held.clear();
        self.held_bytes = 0;
        self.dead = true;
        self.by_vm.close = true;
        self.step()
    }

    fn vm_adjusts(&mut self, packet: Vec<u8>, acts: &mut VecDeque<Act>) -> Result<Step, &'static str> {
        let more = Fields(packet.get(5..).unwrap_or_default()).number();
        let more = more.ok_or("a channel's message that is cut off")?;
        self.window = self.window.checked_add(more).ok_or("a window that is too large")?;
        self.credit = self.credit.checked_add(more).ok_or("a window that is too large")?;
        self.most_window = self.most_window.max(self.window);
        // As the VM sent it: the recipient is the client's number.
        acts.push_back(Act::ToClient(packet));
        self.drain(acts);
        Ok(self.step())
    }

    /// Nothing is owed to a VM that closed but the client's own close, if that waits behind data.
    fn vm_closed(&mut self, acts: &mut VecDeque<Act>) -> Step {
        let close_waits = self.held.back().is_some_and(|packet| packet.first() == Some(&packet::CLOSE));
        let close = if close_waits { self.held.pop_back() } else { None };
        self.held.clear();
        self.held_bytes = 0;
        if let Some(close) = close {
            self.to_vm(close, acts);
        }
        self.step()
    }

    fn note_exit(&mut self, packet: &[u8]) {
        let mut fields = Fields(packet.get(5..).unwrap_or_default());
        match fields.string() {
            Some(b"exit-status") => {
                fields.truth();
                self.end.exit = fields.number();
            }
            Some(b"exit-signal") => {
                fields.truth();
                self.end.signal = fields.string().map(shown);
            }
            _ => {}
        }
    }

    /// Bytes that wait for the VM.
    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn held_bytes(&self) -> (usize, u32) {
        (self.held_bytes, self.extra)
    }
}
