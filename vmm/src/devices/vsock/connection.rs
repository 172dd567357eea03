//! One stream between a port of the guest and a Unix socket: credit, half-close, and what is to be sent next.

use super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes of the guest's data that are kept for a slow reader on the host: the credit that the guest is given.
pub(super) const BUFFER: u32 = 128 * 1024;
/// Most data in one packet to the guest, the limit of Linux (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub(super) const MAX_PACKET: usize = 64 * 1024;
/// How long the guest may take to answer a connection request.
pub(super) const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long either side may take to close after the other did: Linux' own `VSOCK_CLOSE_TIMEOUT`.
pub(super) const CLOSE_DEADLINE: Duration = Duration::from_secs(8);

/// The two ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest was asked and has not answered.
    Requested,
    /// Data may flow.
    Established,
}

/// What became of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It is over and the guest knows.
    Over,
    /// It is over; the guest must be told by RST.
    Reset,
}

/// Packets without data that wait to be sent.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    pub ports: Ports,
    pub phase: Phase,
    /// When the connection is given up.
    pub deadline: Option<Instant>,
    /// It is in the list of those that may have something to send.
    pub queued: bool,
    waiting: Waiting,
    /// The stream may have data.
    readable: bool,
    /// The stream has ended: no more data for the guest.
    ended: bool,
    /// The stream takes no more data from the guest.
    broken: bool,
    /// SHUTDOWN flags that the guest has been sent, and has sent.
    shutdown_sent: u32,
    shutdown_received: u32,
    /// Data of the guest that the stream did not take yet; at most [`BUFFER`] bytes.
    backlog: Vec<u8>,
    /// Bytes from the guest, and how many of them left the backlog, and what the guest knows of it.
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    forwarded_told: Wrapping<u32>,
    /// Bytes to the guest, and its credit.
    sent: Wrapping<u32>,
    peer_buffer: u32,
    peer_forwarded: Wrapping<u32>,
}

impl Connection {
    /// A connection that the host begins: the guest is to be asked.
    pub fn requested(stream: UnixStream, ports: Ports, now: Instant) -> Self {
        let mut connection = Self::new(stream, ports, Phase::Requested);
        connection.waiting.request = true;
        connection.deadline = Some(now + REQUEST_DEADLINE);
        connection
    }

    /// A connection that the guest began and the host accepts.
    pub fn accepted(stream: UnixStream, ports: Ports, header: &Header) -> Self {
        let mut connection = Self::new(stream, ports, Phase::Established);
        connection.waiting.response = true;
        connection.credit(header);
        connection
    }

    fn new(stream: UnixStream, ports: Ports, phase: Phase) -> Self {
        Self {
            stream,
            ports,
            phase,
            deadline: None,
            queued: false,
            waiting: Waiting::default(),
            readable: true,
            ended: false,
            broken: false,
            shutdown_sent: 0,
            shutdown_received: 0,
            backlog: Vec::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            forwarded_told: Wrapping(0),
            sent: Wrapping(0),
            peer_buffer: 0,
            peer_forwarded: Wrapping(0),
        }
    }

    /// Takes over what a packet of the guest says of its buffer.
    pub fn credit(&mut self, header: &Header) {
        self.peer_buffer = header.buf_alloc;
        self.peer_forwarded = Wrapping(header.fwd_cnt);
        if self.peer_room() != 0 {
            self.waiting.credit_request = false;
        }
    }

    /// Bytes that the guest has room for. A guest that claims more room than it had gets none.
    fn peer_room(&self) -> usize {
        let in_flight = (self.sent - self.peer_forwarded).0;
        self.peer_buffer.saturating_sub(in_flight) as usize
    }

    /// The guest accepted; the client on the host is told.
    pub fn established(&mut self) -> Fate {
        self.phase = Phase::Established;
        self.deadline = None;
        let line = format!("OK {}\n", self.ports.host);
        match send(&self.stream, line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            // Nothing was written to this socket before, so a short line fits or the client is gone.
            Ok(written) if written == line.len() => Fate::Lives,
            Ok(_) | Err(_) => Fate::Reset,
        }
    }

    /// Whether data of this length keeps to the credit that the guest was given.
    pub fn accepts(&self, len: usize) -> bool {
        let kept = (self.received - self.forwarded).0 as usize;
        self.shutdown_received & SHUTDOWN_SEND == 0 && kept + len <= BUFFER as usize
    }

    /// Data from the guest; the caller has asked [`Self::accepts`].
    pub fn data(&mut self, data: &[u8]) -> Fate {
        // A packet is at most as long as the credit, which is a u32.
        self.received += Wrapping(data.len() as u32);
        self.backlog.extend_from_slice(data);
        self.flush()
    }

    /// The guest receives or sends no more.
    pub fn shutdown(&mut self, flags: u32, now: Instant) -> Fate {
        self.shutdown_received |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.shutdown_received & SHUTDOWN_RECEIVE != 0 {
            self.readable = false;
        }
        if self.shutdown_received == SHUTDOWN_RECEIVE | SHUTDOWN_SEND {
            // What it sent before must still reach the client, but not for ever.
            self.deadline.get_or_insert(now + CLOSE_DEADLINE);
        }
        self.flush()
    }

    /// The guest asks how much room there is.
    pub fn credit_requested(&mut self) {
        self.waiting.credit_update = true;
    }

    /// The stream is ready: readable, writable, or hung up.
    pub fn stream_event(&mut self, readable: bool, hung_up: bool) -> Fate {
        if readable && self.shutdown_received & SHUTDOWN_RECEIVE == 0 && !self.ended {
            self.readable = true;
        }
        if hung_up {
            self.break_off();
            if self.phase == Phase::Requested {
                return Fate::Reset;
            }
        }
        self.flush()
    }

    /// Whether [`Self::next_packet`] may have something.
    pub fn wants_to_send(&self) -> bool {
        let Waiting { request, response, credit_update, credit_request } = self.waiting;
        match self.phase {
            Phase::Requested => request,
            Phase::Established => {
                let data = self.readable && self.peer_room() != 0;
                response || credit_update || credit_request || data || self.shutdown_due() != 0
            }
        }
    }

    /// The next packet to the guest, with up to `room` bytes of data appended to `data`.
    pub fn next_packet(&mut self, room: usize, data: &mut Vec<u8>, now: Instant) -> Option<Header> {
        let op = if std::mem::take(&mut self.waiting.request) {
            Op::Request
        } else if std::mem::take(&mut self.waiting.response) {
            Op::Response
        } else if self.phase == Phase::Requested {
            return None;
        } else if self.read(room, data) {
            Op::Data
        } else if self.shutdown_due() != 0 {
            self.shutdown_sent |= self.shutdown_due();
            if self.shutdown_sent == SHUTDOWN_RECEIVE | SHUTDOWN_SEND {
                self.deadline.get_or_insert(now + CLOSE_DEADLINE);
            }
            Op::Shutdown
        } else if std::mem::take(&mut self.waiting.credit_request) {
            Op::CreditRequest
        } else if std::mem::take(&mut self.waiting.credit_update) {
            Op::CreditUpdate
        } else {
            return None;
        };
        // Every packet tells the credit.
        self.waiting.credit_update = false;
        self.forwarded_told = self.forwarded;
        Some(Header {
            len: data.len() as u32,
            op: op as u16,
            flags: if op == Op::Shutdown { self.shutdown_sent } else { 0 },
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded.0,
            ..Header::default()
        })
    }

    /// Reads data of the host for the guest as its credit allows; false when there is none.
    fn read(&mut self, room: usize, data: &mut Vec<u8>) -> bool {
        if !self.readable {
            return false;
        }
        let room = room.min(MAX_PACKET).min(self.peer_room());
        if room == 0 {
            // The driver lent a buffer that holds a header only, or has no room.
            self.waiting.credit_request = true;
            return false;
        }
        data.resize(room, 0);
        let read = loop {
            match recv(&self.stream, data.as_mut_slice(), RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Ok((read, _)) => break Ok(read),
                Err(error) => break Err(error),
            }
        };
        data.truncate(read.unwrap_or(0));
        match read {
            Ok(0) => {
                self.readable = false;
                self.ended = true;
            }
            Ok(read) => {
                self.sent += Wrapping(read as u32);
                // Asked once; the answer is a packet that gives credit.
                self.waiting.credit_request |= self.peer_room() == 0;
            }
            Err(Errno::AGAIN) => self.readable = false,
            Err(_) => {
                self.readable = false;
                self.ended = true;
                self.break_off();
            }
        }
        !data.is_empty()
    }

    /// SHUTDOWN flags that the guest should be sent and was not: the stream has ended, or is broken.
    fn shutdown_due(&self) -> u32 {
        let send = if self.ended { SHUTDOWN_SEND } else { 0 };
        let receive = if self.broken && self.ended { SHUTDOWN_RECEIVE } else { 0 };
        (send | receive) & !self.shutdown_sent
    }

    /// Passes the backlog on, and the guest's half-close behind it.
    fn flush(&mut self) -> Fate {
        let mut done = 0;
        while done < self.backlog.len() && !self.broken {
            match send(&self.stream, &self.backlog[done..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The client on the host is gone; what it sent before may still be waiting for the guest.
                Err(_) => self.break_off(),
            }
        }
        if self.broken {
            done = self.backlog.len();
        }
        self.backlog.drain(..done);
        self.forwarded += Wrapping(done as u32);
        // Tell the guest before its idea of our room falls below half.
        if (self.received - self.forwarded_told).0 > BUFFER / 2 && self.forwarded != self.forwarded_told {
            self.waiting.credit_update = true;
        }
        self.close_if_done()
    }

    fn close_if_done(&mut self) -> Fate {
        let (receive, send) =
            (self.shutdown_received & SHUTDOWN_RECEIVE != 0, self.shutdown_received & SHUTDOWN_SEND != 0);
        if !self.backlog.is_empty() {
            return Fate::Lives;
        }
        if receive && send {
            return Fate::Reset;
        }
        let how = if send {
            Some(Shutdown::Write)
        } else if receive {
            Some(Shutdown::Read)
        } else {
            None
        };
        if let Some(how) = how
            && let Err(error) = self.stream.shutdown(how)
            && error.kind() != std::io::ErrorKind::NotConnected
        {
            tracing::debug!(%error, "cannot half-close a client's socket");
        }
        Fate::Lives
    }

    /// The stream takes no more data. What is still to be read from it comes first.
    fn break_off(&mut self) {
        self.broken = true;
    }
}
