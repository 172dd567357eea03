//! Two ends that keep to the protocol, a bridge between them, and chance: whatever the order in which opens, data, ends
//! and closes of both meet, all data arrives in order, all channels end on both sides, and nothing is left behind.

use super::*;
use crate::pure::packet::*;

const CHANNELS: usize = 6;
const WINDOW: u32 = 400;
const MAX_PACKET: u32 = 120;
const BUDGET: u64 = 3000;

#[derive(Default)]
struct Line {
    remote: Option<u32>,
    open: bool,
    /// What it may send, and what the other may.
    may_send: u32,
    allowed: u32,
    /// Received and not yet allowed anew.
    unread: u32,
    sent: u64,
    received: u64,
    eof: (bool, bool),
    close: (bool, bool),
    requests: usize,
}

struct Peer {
    side: Side,
    lines: BTreeMap<u32, Line>,
    next: u32,
    inbox: VecDeque<Vec<u8>>,
    /// All that was sent and received on lines that are over.
    totals: (u64, u64),
    refused: usize,
    asked: usize,
}

fn put(packet: &mut Vec<u8>, fields: &[u32]) {
    packet.extend(fields.iter().flat_map(|field| field.to_be_bytes()));
}

fn opening(kind: &str, sender: u32) -> Vec<u8> {
    let mut packet = vec![OPEN];
    put(&mut packet, &[kind.len() as u32]);
    packet.extend(kind.as_bytes());
    put(&mut packet, &[sender, WINDOW, MAX_PACKET]);
    packet
}

fn data(recipient: u32, from: u64, length: u32) -> Vec<u8> {
    let mut packet = vec![DATA];
    put(&mut packet, &[recipient, length]);
    packet.extend((from..from + u64::from(length)).map(|at| (at % 251) as u8));
    packet
}

fn request(recipient: u32) -> Vec<u8> {
    let mut packet = vec![CHANNEL_REQUEST];
    put(&mut packet, &[recipient, 4]);
    packet.extend(b"any1\x01");
    packet
}

impl Peer {
    fn new(side: Side) -> Self {
        let (lines, inbox) = (BTreeMap::new(), VecDeque::new());
        Self { side, lines, next: 100, inbox, totals: (0, 0), refused: 0, asked: 0 }
    }

    fn pick(&mut self, which: usize) -> Option<&mut Line> {
        let count = self.lines.values().filter(|line| line.open && !line.close.0).count();
        self.lines.values_mut().filter(|line| line.open && !line.close.0).nth(which.checked_rem(count)?)
    }

    /// One step of its own: a message, if there is one to send.
    fn step(&mut self, what: u8, which: usize, length: u32) -> Option<Vec<u8>> {
        if what == 0 {
            if self.lines.len() >= CHANNELS {
                return None;
            }
            // Both ends count from the same number, so that the bridge must tell them apart.
            self.next += 1;
            self.lines.insert(self.next, Line { allowed: WINDOW, ..Line::default() });
            let kind =
                if self.side == Side::Client && length.is_multiple_of(2) { "session" } else { "other" };
            return Some(opening(kind, self.next));
        }
        if what == 8 {
            self.asked += 1;
            let mut packet = vec![GLOBAL_REQUEST];
            let name: &[u8] = if length.is_multiple_of(2) { KEEPALIVE } else { b"tcpip-forward" };
            put(&mut packet, &[name.len() as u32]);
            packet.extend(name);
            packet.push(1);
            return Some(packet);
        }
        let line = self.pick(which)?;
        let remote = line.remote?;
        match what {
            1 | 2 => {
                let length = length.min(line.may_send).min(MAX_PACKET);
                if line.eof.0 {
                    return None;
                }
                line.may_send -= length;
                line.sent += u64::from(length);
                Some(data(remote, line.sent - u64::from(length), length))
            }
            3 | 4 => {
                let more = std::mem::take(&mut line.unread);
                line.allowed += more;
                (more > 0).then(|| window_adjust(remote, more))
            }
            5 => {
                let first = !std::mem::replace(&mut line.eof.0, true);
                first.then(|| bare(EOF, remote))
            }
            6 => {
                line.requests += 1;
                Some(request(remote))
            }
            _ => Some(self.close(which)?),
        }
    }

    fn close(&mut self, which: usize) -> Option<Vec<u8>> {
        let line = self.pick(which)?;
        line.close.0 = true;
        let packet = bare(CLOSE, line.remote?);
        self.forget();
        Some(packet)
    }

    fn forget(&mut self) {
        let totals = &mut self.totals;
        self.lines.retain(|_, line| {
            let over = line.close == (true, true);
            if over {
                *totals = (totals.0 + line.sent, totals.1 + line.received);
            }
            !over
        });
    }

    fn accept(&mut self, remote: u32, may_send: u32) {
        self.next += 1;
        let line = Line { remote: Some(remote), open: true, may_send, allowed: WINDOW, ..Line::default() };
        self.lines.insert(self.next, line);
    }

    /// Takes the next message; what it must answer at once.
    fn receive(&mut self, refuse: bool) -> Option<Vec<u8>> {
        let packet = self.inbox.pop_front()?;
        let mut fields = Fields::of(&packet);
        match packet[0] {
            OPEN => {
                fields.string().expect("type");
                let (sender, window) = (fields.number().expect("sender"), fields.number().expect("window"));
                if refuse {
                    return Some(open_failure(sender, SHORTAGE, "no"));
                }
                self.accept(sender, window);
                return Some(confirmation(sender, self.next, WINDOW, MAX_PACKET));
            }
            GLOBAL_REQUEST => return Some(vec![REQUEST_SUCCESS]),
            REQUEST_SUCCESS | REQUEST_FAILURE => {
                self.asked -= 1;
                return None;
            }
            _ => {}
        }
        let number = fields.number().expect("recipient");
        let line = self
            .lines
            .get_mut(&number)
            .unwrap_or_else(|| panic!("{:?}: no {number} for {packet:?}", self.side));
        assert!(!line.close.1, "a message after the close");
        match packet[0] {
            CONFIRMATION => {
                line.remote = fields.number();
                line.may_send = fields.number().expect("window");
                line.open = true;
            }
            OPEN_FAILURE => {
                self.refused += 1;
                self.lines.remove(&number);
            }
            WINDOW_ADJUST => line.may_send += fields.number().expect("bytes"),
            DATA => {
                let bytes = fields.string().expect("data");
                assert!(!line.eof.1, "data after its end");
                line.allowed = line.allowed.checked_sub(bytes.len() as u32).expect("within the window");
                line.unread += bytes.len() as u32;
                for byte in bytes {
                    assert_eq!(u64::from(*byte), line.received % 251, "in order");
                    line.received += 1;
                }
            }
            // What the bridge says of a refused session.
            EXTENDED_DATA => {}
            EOF => line.eof.1 = true,
            CLOSE => {
                line.close.1 = true;
                let answer = (!line.close.0).then(|| bare(CLOSE, line.remote.expect("open")));
                line.close.0 = true;
                self.forget();
                return answer;
            }
            CHANNEL_REQUEST => {
                let answers = !line.close.0;
                return answers.then(|| bare(CHANNEL_SUCCESS, line.remote.expect("open")));
            }
            CHANNEL_SUCCESS | CHANNEL_FAILURE => {
                line.requests = line.requests.checked_sub(1).expect("somebody asked");
            }
            other => panic!("{other}"),
        }
        None
    }
}

struct World {
    bridge: Bridge,
    budget: Arc<Budget>,
    client: Peer,
    vm: Peer,
    ready: bool,
    ended: Vec<End>,
}

impl World {
    fn new() -> Self {
        let budget = Arc::new(Budget::new(BUDGET));
        let bounds = Bounds { channels: 2 * CHANNELS, channel_bytes: 4 * WINDOW };
        let bridge = Bridge::new(bounds, Arc::clone(&budget));
        let (client, vm) = (Peer::new(Side::Client), Peer::new(Side::Vm));
        Self { bridge, budget, client, vm, ready: false, ended: Vec::new() }
    }

    fn sends(&mut self, side: Side, packet: Option<Vec<u8>>) {
        if let Some(packet) = packet {
            let passed = match side {
                Side::Client => self.bridge.client_sent(packet),
                Side::Vm => self.bridge.vm_sent(packet),
            };
            passed.expect("both keep to the protocol");
        }
        while let Some(act) = self.bridge.next_act() {
            match act {
                Act::ToClient(packet) => self.client.inbox.push_back(packet),
                Act::ToVm(packet) => {
                    assert!(self.ready, "nothing goes to a VM that is not there");
                    self.vm.inbox.push_back(packet);
                }
                Act::Ended(end) => self.ended.push(end),
            }
        }
        let held: u32 = self.bridge.channels.values().map(|channel| channel.held_bytes().1).sum();
        assert_eq!(self.budget.left() + u64::from(held), BUDGET, "what is taken is held");
    }

    fn peer(&mut self, side: Side) -> &mut Peer {
        match side {
            Side::Client => &mut self.client,
            Side::Vm => &mut self.vm,
        }
    }

    fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            self.bridge.vm_ready();
            self.sends(Side::Client, None);
        }
    }

    fn act(&mut self, (side, what, which, length): (bool, u8, usize, u32)) {
        let side = if side { Side::Client } else { Side::Vm };
        if what == 20 {
            return self.ready();
        }
        if side == Side::Vm && !self.ready {
            return;
        }
        let refuse = what == 9 && side == Side::Vm;
        let peer = self.peer(side);
        let packet = if what >= 9 { peer.receive(refuse) } else { peer.step(what, which, length) };
        self.sends(side, packet);
    }

    fn wind_down(&mut self) {
        self.ready();
        for _ in 0..200_000 {
            let before = (self.client.inbox.len(), self.vm.inbox.len());
            for side in [Side::Client, Side::Vm] {
                let packet = self.peer(side).receive(false);
                self.sends(side, packet);
                // All is read, then closed.
                for which in 0..CHANNELS * 2 {
                    let packet = self.peer(side).step(3, which, 0);
                    self.sends(side, packet);
                }
            }
            if before == (0, 0) && self.client.inbox.is_empty() && self.vm.inbox.is_empty() {
                let side = if self.client.pick(0).is_some() { Side::Client } else { Side::Vm };
                let Some(packet) = self.peer(side).close(0) else { return };
                self.sends(side, Some(packet));
            }
        }
        panic!("it does not come to rest");
    }
}

/// Has a client and a VM do this and that, each order as `(client, what, which channel, length)`, and come to an end.
///
/// # Panics
/// When something hangs, leaks, or is lost.
pub fn orders(orders: impl IntoIterator<Item = (bool, u8, usize, u32)>) {
    let mut world = World::new();
    for order in orders {
        world.act(order);
    }
    world.wind_down();
    assert!(world.client.lines.is_empty() && world.vm.lines.is_empty(), "a channel that one end still has");
    assert_eq!((world.bridge.channels(), world.bridge.waiting_bytes), (0, 0), "what the bridge still has");
    assert_eq!(world.budget.left(), BUDGET, "what is taken is given back");
    assert_eq!((world.client.asked, world.vm.asked), (0, 0), "requests without a reply");
    assert!(world.bridge.by_client.is_empty(), "a number that is over");
    let (client, vm) = (world.client.totals, world.vm.totals);
    assert!(client.1 <= vm.0 && vm.1 <= client.0, "data from nowhere: {client:?}, {vm:?}");
}

/// Has both ends send what they like, up to what the bridge takes for an error. `true` is the client.
///
/// # Panics
/// When something leaks.
pub fn noise(ready: bool, packets: impl IntoIterator<Item = (bool, Vec<u8>)>) {
    let mut world = World::new();
    let mut ready = ready;
    if ready {
        world.bridge.vm_ready();
    }
    for (client, packet) in packets {
        if !client && !ready {
            // That the VM speaks says that it is there.
            world.bridge.vm_ready();
            ready = true;
        }
        let passed = if client { world.bridge.client_sent(packet) } else { world.bridge.vm_sent(packet) };
        while let Some(act) = world.bridge.next_act() {
            assert!(ready || !matches!(act, Act::ToVm(_)), "nothing goes to a VM that is not there");
        }
        if passed.is_err() {
            break;
        }
    }
    world.bridge.end();
    assert_eq!(world.bridge.channels(), 0, "all are over");
    assert_eq!(world.budget.left(), BUDGET, "what is taken is given back");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_the_order_nothing_hangs_leaks_or_is_lost(
            all in proptest::collection::vec((any::<bool>(), 0u8..=20, any::<usize>(), 0u32..200), 0..600)
        ) {
            orders(all);
        }

        #[test]
        fn noise_of_either_end_is_an_error_and_no_panic(
            ready: bool,
            packets in proptest::collection::vec(
                (any::<bool>(), 80u8..=101, proptest::collection::vec(0u8..3, 0..40)),
                0..60,
            )
        ) {
            noise(ready, packets.into_iter().map(|(client, number, rest)| (client, [vec![number], rest].concat())));
        }
    }
}
