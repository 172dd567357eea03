//! From the root to the name servers of a name's own zone: whom to ask what, and what to make of each answer.
//!
//! The walker asks one server at a time. What it has learned about zones on the way serves the next name too.

use super::address::is_public;
use super::message::{Kind, Question, Said};
use hickory_proto::rr::Name;
use std::collections::VecDeque;
use std::net::IpAddr;

/// Questions of one proof, over all names. A usual one needs four for its first name and one for each other.
pub const MAX_QUERIES: usize = 48;
/// Names that are resolved inside each other: a zone's server may stand in a zone whose server must be found first.
pub const MAX_DEPTH: usize = 4;
/// Aliases that are followed for one name (as many as common resolvers follow).
pub const MAX_ALIASES: usize = 8;
/// Addresses of one zone's servers that are tried.
const MAX_SERVERS: usize = 6;
/// Servers of one zone whose addresses must be asked for, and are.
const MAX_SERVER_NAMES: usize = 4;
/// So many of a zone's servers, or all there are, are asked before one that says that there is no record is believed: it may
/// have an older copy of the zone. Silent ones count, once each, since time is short.
const DENIALS: u8 = 3;
/// A server that stays silent is asked so often: datagrams get lost.
const TRIES: u8 = 2;

/// A question to a server, to be asked now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whom.
    pub server: IpAddr,
    /// What.
    pub question: Question,
    /// The zone for which the server was named.
    pub zone: Name,
    /// Over TCP, since it did not fit a datagram.
    pub tcp: bool,
    /// With an OPT record (RFC 6891).
    pub edns: bool,
    attempt: u8,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask, and tell the walker what came.
    Ask(Ask),
    /// The name's TXT records are known, or cannot be.
    Done(Found),
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// An answer to it.
    Said(Said),
    /// Nothing in time.
    Silence,
    /// The server could not be asked, or what came was no DNS; why, for people.
    Broken(String),
}

/// What a name has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// TXT records, from a server with authority.
    Texts {
        /// Each record's strings, joined.
        texts: Vec<String>,
        /// Who said it.
        server: IpAddr,
    },
    /// The name exists and has no TXT record.
    NoRecords {
        /// Who said it.
        server: IpAddr,
    },
    /// The name does not exist.
    NoName {
        /// Who said it.
        server: IpAddr,
    },
    /// Nobody with authority answered; why, for people.
    Failed(String),
}

/// One question that was asked, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whom.
    pub server: IpAddr,
    /// About which name.
    pub name: String,
    /// For which records.
    pub kind: Kind,
    /// Over TCP.
    pub tcp: bool,
    /// What came back.
    pub answer: String,
}

/// A name that is being resolved.
#[derive(Debug)]
struct Frame {
    question: Question,
    zone: Name,
    again: Option<Ask>,
    servers: VecDeque<IpAddr>,
    names: VecDeque<Name>,
    denials: u8,
    denied: Option<Found>,
}

/// The walker.
#[derive(Debug)]
pub struct Walk {
    roots: Vec<IpAddr>,
    any_address: bool,
    cuts: Vec<(Name, Vec<IpAddr>)>,
    frames: Vec<Frame>,
    aliases: usize,
    asking: Option<Ask>,
    asked: Vec<Asked>,
    found: Option<Found>,
}

impl Walk {
    /// One that begins at these servers of the root. Unless `any_address`, addresses that the Internet does not reach
    /// are never asked, whoever names them.
    #[must_use]
    pub fn new(roots: Vec<IpAddr>, any_address: bool) -> Self {
        Self {
            roots,
            any_address,
            cuts: Vec::new(),
            frames: Vec::new(),
            aliases: 0,
            asking: None,
            asked: Vec::new(),
            found: None,
        }
    }

    /// Begins with a name; what was going on ends.
    pub fn begin(&mut self, name: Name) {
        self.frames.clear();
        (self.aliases, self.asking, self.found) = (0, None, None);
        self.resolve(Question { name, kind: Kind::Txt });
    }

    /// All that was asked so far.
    #[must_use]
    pub fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// What to do next. The same until [`Walk::hear`] or [`Walk::begin`] is called.
    pub fn step(&mut self) -> Step {
        if let Some(ask) = &self.asking {
            return Step::Ask(ask.clone());
        }
        loop {
            if let Some(found) = &self.found {
                return Step::Done(found.clone());
            }
            let Some(frame) = self.frames.last_mut() else {
                self.found = Some(Found::Failed(self.failure()));
                continue;
            };
            if let Some(ask) = frame.again.take() {
                return self.ask(ask);
            }
            if let Some(server) = frame.servers.pop_front() {
                let (question, zone) = (frame.question.clone(), frame.zone.clone());
                return self.ask(Ask { server, question, zone, tcp: false, edns: true, attempt: 1 });
            }
            match frame.names.pop_front() {
                Some(name) if self.may_resolve(&name) => self.resolve(Question { name, kind: Kind::A }),
                Some(_) => {}
                None => self.end_frame(),
            }
        }
    }

    /// Tells the walker what came of its question.
    pub fn hear(&mut self, heard: Heard) {
        let Some(ask) = self.asking.take() else { return };
        self.asked.push(Asked {
            server: ask.server,
            name: ask.question.name.to_ascii(),
            kind: ask.question.kind,
            tcp: ask.tcp,
            answer: told(&heard),
        });
        let Some(frame) = self.frames.last_mut() else { return };
        let server = ask.server;
        match heard {
            Heard::Silence if ask.attempt < TRIES && !ask.tcp && frame.denied.is_none() => {
                frame.again = Some(Ask { attempt: ask.attempt + 1, ..ask });
            }
            Heard::Said(Said::Truncated) if !ask.tcp => frame.again = Some(Ask { tcp: true, ..ask }),
            Heard::Said(Said::NoEdns) if ask.edns => frame.again = Some(Ask { edns: false, ..ask }),
            Heard::Said(Said::Records { texts, addresses }) => self.records(server, texts, &addresses),
            Heard::Said(Said::Alias(target)) => self.alias(target),
            Heard::Said(Said::NoRecords) => self.nothing(Found::NoRecords { server }),
            Heard::Said(Said::NoName) => self.nothing(Found::NoName { server }),
            Heard::Said(Said::Referral { zone, servers }) => self.descend(zone, servers),
            // The next server is asked.
            Heard::Silence
            | Heard::Broken(_)
            | Heard::Said(Said::Truncated | Said::NoEdns | Said::Useless(_)) => {
                if let Some(denied) = frame.denied.clone() {
                    self.nothing(denied);
                }
            }
        }
    }

    /// Ends the name at hand, for want of time.
    pub fn give_up(&mut self, why: &str) {
        self.fail(why.to_owned());
    }

    fn ask(&mut self, ask: Ask) -> Step {
        if self.asked.len() >= MAX_QUERIES {
            self.fail(format!("no answer came of {MAX_QUERIES} questions, and no more are asked"));
            return self.step();
        }
        self.asking = Some(ask.clone());
        Step::Ask(ask)
    }

    /// There is no more to be asked: a server that denied is believed then.
    fn fail(&mut self, why: String) {
        let denied = self.frames.drain(..).next().and_then(|first| first.denied);
        (self.asking, self.found) = (None, Some(denied.unwrap_or(Found::Failed(why))));
    }

    fn resolve(&mut self, question: Question) {
        let cut = self.cuts.iter().filter(|(zone, _)| zone.zone_of(&question.name));
        let (zone, servers) = match cut.max_by_key(|(zone, _)| zone.num_labels()) {
            Some((zone, servers)) => (zone.clone(), servers.clone()),
            None => (Name::root(), self.roots.iter().take(MAX_SERVERS).copied().collect()),
        };
        let servers = servers.into();
        let names = VecDeque::new();
        self.frames.push(Frame { question, zone, again: None, servers, names, denials: 0, denied: None });
    }

    /// Whether a server's name may be looked for: not too deep, and not inside the search for itself.
    fn may_resolve(&self, name: &Name) -> bool {
        self.frames.len() < MAX_DEPTH && self.frames.iter().all(|frame| frame.question.name != *name)
    }

    fn records(&mut self, server: IpAddr, texts: Vec<String>, addresses: &[IpAddr]) {
        if self.frames.len() == 1 {
            self.found = Some(Found::Texts { texts, server });
            return;
        }
        let good = self.askable(addresses.iter().copied());
        if good.is_empty() {
            return self.other_family();
        }
        self.frames.pop();
        if let Some(parent) = self.frames.last_mut() {
            parent.servers.extend(&good);
            let zone = parent.zone.clone();
            self.learn(zone, good);
        }
    }

    fn nothing(&mut self, found: Found) {
        match &mut self.frames[..] {
            [name] => {
                name.denials += 1;
                name.denied = Some(found);
                if name.denials == DENIALS {
                    self.found = name.denied.take();
                }
            }
            _ => self.other_family(),
        }
    }

    /// A server without an IPv4 address may have one of IPv6.
    fn other_family(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        if frame.question.kind == Kind::A {
            self.resolve(Question { kind: Kind::Aaaa, ..frame.question });
        }
    }

    fn alias(&mut self, target: Name) {
        self.aliases += 1;
        let Some(frame) = self.frames.pop() else { return };
        if self.aliases > MAX_ALIASES {
            self.fail(format!("more than {MAX_ALIASES} aliases lead from one to the next"));
        } else {
            self.resolve(Question { name: target, kind: frame.question.kind });
        }
    }

    fn descend(&mut self, zone: Name, servers: Vec<(Name, Vec<IpAddr>)>) {
        let glue = servers.iter().flat_map(|(_, addresses)| addresses.iter().copied());
        let known = self.askable(glue);
        let without = servers.iter().filter(|(_, addresses)| addresses.is_empty());
        let names = without.map(|(name, _)| name.clone()).take(MAX_SERVER_NAMES).collect();
        self.learn(zone.clone(), known.clone());
        if let Some(frame) = self.frames.last_mut() {
            (frame.zone, frame.servers, frame.names) = (zone, known.into(), names);
        }
    }

    fn learn(&mut self, zone: Name, servers: Vec<IpAddr>) {
        if servers.is_empty() || zone.is_root() {
            return;
        }
        match self.cuts.iter_mut().find(|(known, _)| *known == zone) {
            Some((_, known)) => *known = servers,
            None => self.cuts.push((zone, servers)),
        }
    }

    /// Those that may be asked, IPv4 first: more hosts have that alone than the other.
    fn askable(&self, addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
        let mut good: Vec<IpAddr> = Vec::new();
        for address in addresses {
            if (self.any_address || is_public(address)) && !good.contains(&address) {
                good.push(address);
            }
        }
        good.sort_by_key(IpAddr::is_ipv6);
        good.truncate(MAX_SERVERS);
        good
    }

    /// No server is left for the name at hand.
    fn end_frame(&mut self) {
        if self.frames.len() > 1 {
            self.frames.pop();
        } else {
            self.fail(self.failure());
        }
    }

    fn failure(&self) -> String {
        let zone = self.frames.first().map_or_else(|| ".".to_owned(), |frame| frame.zone.to_ascii());
        match self.asked.last() {
            Some(last) => format!(
                "no name server of {zone} gave an answer; the last that was asked, {} about {}, {}",
                last.server, last.name, last.answer
            ),
            None => format!("no name server of {zone} may be asked"),
        }
    }
}

fn told(heard: &Heard) -> String {
    match heard {
        Heard::Silence => "did not answer in time".to_owned(),
        Heard::Broken(why) => why.clone(),
        Heard::Said(said) => match said {
            Said::Truncated => "says that the answer needs TCP".to_owned(),
            Said::NoEdns => "does not understand EDNS".to_owned(),
            Said::Records { texts, addresses } => {
                format!("has {} records", texts.len().max(addresses.len()))
            }
            Said::Alias(target) => format!("says that it is an alias of {}", target.to_ascii()),
            Said::NoRecords => "says that the name has no such records".to_owned(),
            Said::NoName => "says that the name does not exist".to_owned(),
            Said::Referral { zone, servers } => {
                format!("leads on to the {} name servers of {}", servers.len(), zone.to_ascii())
            }
            Said::Useless(why) => (*why).to_owned(),
        },
    }
}
