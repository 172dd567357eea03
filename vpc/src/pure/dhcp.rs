//! DHCP (RFC 2131) for guests that ask: a reader that trusts nothing, and answers that say what the port is anyway.
//!
//! A guest has a /32 address and its gateway on the link, so its routes come as classless ones (RFC 3442); clients that
//! know those ignore the router beside them.

use model::net::{GATEWAY_IPV4, GUEST_MTU, MacAddress, VPC_DOMAIN};
use std::net::Ipv4Addr;
use thiserror::Error;

/// Where servers listen.
pub const SERVER_PORT: u16 = 67;
/// Where clients listen.
pub const CLIENT_PORT: u16 = 68;
/// Seconds for which an address is told. It is the port's for as long as it stands; an hour bounds how long a guest keeps
/// what is told beside it.
pub const LEASE_SECONDS: u32 = 3600;
/// Bytes of the longest message that is read: what fits into one packet of the guest's.
pub const MAX_BYTES: usize = GUEST_MTU as usize - 28;

/// Fixed fields, up to the cookie.
const FIXED_BYTES: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Shortest message that old clients take (RFC 1542 section 2.1).
const MIN_BYTES: usize = 300;
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const BROADCAST: u8 = 0x80;

// RFC 2132, and 3442 for classless routes.
const PAD: u8 = 0;
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAME_SERVER: u8 = 6;
const DOMAIN: u8 = 15;
const MTU: u8 = 26;
const REQUESTED_ADDRESS: u8 = 50;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER: u8 = 54;
const CLIENT_ID: u8 = 61;
const CLASSLESS_ROUTES: u8 = 121;
const END: u8 = 255;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who serves?
    Discover,
    /// May I have, or keep, this address?
    Request,
    /// I have an address; what else is there?
    Inform,
}

/// Why a message is not answered, each counted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unanswered {
    /// It is not a message of DHCP.
    #[error("not a message of DHCP")]
    Malformed,
    /// It is one that asks for nothing: a release, a word that the address is taken.
    #[error("a message that asks for nothing")]
    Unasking,
    /// A relay sent it.
    #[error("it came through a relay")]
    Relayed,
    /// The address or Ethernet address in it is not that of the port.
    #[error("not from the port that it names")]
    Foreign,
    /// It is for another server.
    #[error("for another server")]
    OtherServer,
}

/// A message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What it asks.
    pub kind: Kind,
    /// The Ethernet address that it says it has.
    pub mac: MacAddress,
    /// It can hear broadcasts only.
    pub broadcast: bool,
    /// The address that it has already; unspecified when none.
    pub has: Ipv4Addr,
    id: [u8; 4],
    seconds_and_flags: [u8; 4],
    wants: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<Vec<u8>>,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To the port's address.
    Port,
    /// To everyone on the port's link, which is the guest.
    Link,
}

/// Reads a message.
///
/// # Errors
/// Why there is no answer to it.
pub fn read(bytes: &[u8]) -> Result<Question, Unanswered> {
    let fixed = bytes.first_chunk::<FIXED_BYTES>().ok_or(Unanswered::Malformed)?;
    let [operation, hardware, length, _hops, a, b, c, d, s1, s2, f1, f2, h1, h2, h3, h4, ..] = *fixed;
    let options = bytes.get(FIXED_BYTES..).and_then(|rest| rest.strip_prefix(&COOKIE));
    if operation != BOOT_REQUEST || (hardware, length) != (ETHERNET, 6) {
        return Err(Unanswered::Malformed);
    }
    let mut question = Question {
        kind: Kind::Discover,
        mac: MacAddress(octets(fixed, 28)?),
        broadcast: f1 & BROADCAST != 0,
        has: Ipv4Addr::new(h1, h2, h3, h4),
        id: [a, b, c, d],
        seconds_and_flags: [s1, s2, f1, f2],
        wants: None,
        server: None,
        client_id: None,
    };
    if octets(fixed, 24)? != [0; 4] {
        return Err(Unanswered::Relayed);
    }
    let mut kind = None;
    for (option, value) in Options(options.ok_or(Unanswered::Malformed)?) {
        match option {
            MESSAGE_TYPE => kind = value.first().copied(),
            REQUESTED_ADDRESS => question.wants = Some(address(value)?),
            SERVER => question.server = Some(address(value)?),
            CLIENT_ID => question.client_id = Some(value.to_vec()),
            _ => {}
        }
    }
    question.kind = match kind {
        Some(1) => Kind::Discover,
        Some(3) => Kind::Request,
        Some(8) => Kind::Inform,
        Some(4 | 7) => return Err(Unanswered::Unasking),
        Some(_) | None => return Err(Unanswered::Malformed),
    };
    Ok(question)
}

impl Question {
    /// What the port that has `own` is told, and where. `private` says whether it is in a network with names.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn answer(&self, own: Ipv4Addr, private: bool) -> Result<(Vec<u8>, To), Unanswered> {
        if self.server.is_some_and(|server| server != GATEWAY_IPV4) {
            return Err(Unanswered::OtherServer);
        }
        match self.kind {
            Kind::Discover => Ok((self.lease(2, own, private), self.to())),
            Kind::Request if self.wants.unwrap_or(self.has) != own => {
                // What it had was another's or an earlier one's. It must ask anew (RFC 2131 section 4.3.2).
                Ok((self.reply(6, Ipv4Addr::UNSPECIFIED, &[]), To::Link))
            }
            Kind::Request => Ok((self.lease(5, own, private), self.to())),
            Kind::Inform if self.has != own => Err(Unanswered::Foreign),
            Kind::Inform => Ok((self.reply(5, Ipv4Addr::UNSPECIFIED, &network_options(private)), To::Port)),
        }
    }

    fn to(&self) -> To {
        if self.broadcast && self.has.is_unspecified() { To::Link } else { To::Port }
    }

    fn lease(&self, kind: u8, own: Ipv4Addr, private: bool) -> Vec<u8> {
        let mut options = option(LEASE_TIME, &LEASE_SECONDS.to_be_bytes());
        options.extend(network_options(private));
        self.reply(kind, own, &options)
    }

    fn reply(&self, kind: u8, yours: Ipv4Addr, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![BOOT_REPLY, ETHERNET, 6, 0];
        bytes.extend(self.id);
        let [_, _, flags, more] = self.seconds_and_flags;
        bytes.extend([0, 0, flags, more]);
        // A refusal names no address (RFC 2131 table 3).
        bytes.extend(if kind == 6 { [0; 4] } else { self.has.octets() });
        bytes.extend(yours.octets());
        bytes.extend([0; 8]);
        bytes.extend(self.mac.0);
        bytes.resize(FIXED_BYTES, 0);
        bytes.extend(COOKIE);
        bytes.extend(option(MESSAGE_TYPE, &[kind]));
        bytes.extend(option(SERVER, &GATEWAY_IPV4.octets()));
        // So that a client knows its own among several (RFC 6842).
        bytes.extend(self.client_id.iter().flat_map(|id| option(CLIENT_ID, id)));
        bytes.extend(options);
        bytes.push(END);
        bytes.resize(bytes.len().max(MIN_BYTES), PAD);
        bytes
    }
}

fn network_options(private: bool) -> Vec<u8> {
    let gateway = GATEWAY_IPV4.octets();
    let [a, b, c, d] = gateway;
    // The gateway on the link itself, and everything else behind it.
    let routes = [32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d];
    let mut options = [
        option(SUBNET_MASK, &[255; 4]),
        option(CLASSLESS_ROUTES, &routes),
        option(ROUTER, &gateway),
        option(NAME_SERVER, &gateway),
        option(MTU, &GUEST_MTU.to_be_bytes()),
    ]
    .concat();
    if private {
        options.extend(option(DOMAIN, VPC_DOMAIN.as_bytes()));
    }
    options
}

fn option(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[kind, length], value.get(..usize::from(length)).unwrap_or_default()].concat()
}

/// Options one behind the other. Ends where they are cut short.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(rest) = self.0.strip_prefix(&[PAD]) {
            self.0 = rest;
        }
        let (kind, rest) = self.0.split_first().filter(|(kind, _)| **kind != END)?;
        let (length, rest) = rest.split_first()?;
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        self.0 = rest;
        Some((*kind, value))
    }
}

fn address(value: &[u8]) -> Result<Ipv4Addr, Unanswered> {
    value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets)).ok_or(Unanswered::Malformed)
}

fn octets<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Unanswered> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Unanswered::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
    const MAC: [u8; 6] = [2, 0x67, 10, 0, 0, 5];

    fn message(kind: u8, has: Ipv4Addr, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 9, 0, 0];
        bytes.extend(has.octets());
        bytes.extend([0; 12]);
        bytes.extend(MAC);
        bytes.resize(FIXED_BYTES, 0);
        bytes.extend(COOKIE);
        bytes.extend([option(MESSAGE_TYPE, &[kind]), options.to_vec(), vec![END]].concat());
        bytes
    }

    fn say(kind: u8, has: Ipv4Addr, options: &[u8]) -> Result<(Vec<u8>, To), Unanswered> {
        read(&message(kind, has, options))?.answer(OWN, true)
    }

    fn said(answer: &[u8], kind: u8) -> Option<Vec<u8>> {
        Options(&answer[FIXED_BYTES + 4..]).find(|(found, _)| *found == kind).map(|(_, value)| value.to_vec())
    }

    #[test]
    fn who_asks_is_told_what_its_port_is() {
        let none = Ipv4Addr::UNSPECIFIED;
        let (offer, to) = say(1, none, &option(CLIENT_ID, b"me")).expect("answered");
        assert_eq!((said(&offer, MESSAGE_TYPE), to), (Some(vec![2]), To::Port));
        assert_eq!(
            (&offer[..8], &offer[16..20], &offer[28..34]),
            (&[2, 1, 6, 0, 1, 2, 3, 4][..], &OWN.octets()[..], &MAC[..])
        );
        let expected: [(u8, &[u8]); 9] = [
            (SUBNET_MASK, &[255; 4]),
            (ROUTER, &[169, 254, 1, 1]),
            (NAME_SERVER, &[169, 254, 1, 1]),
            (SERVER, &[169, 254, 1, 1]),
            (CLASSLESS_ROUTES, &[32, 169, 254, 1, 1, 0, 0, 0, 0, 0, 169, 254, 1, 1]),
            (MTU, &[5, 220]),
            (LEASE_TIME, &[0, 0, 14, 16]),
            (DOMAIN, b"vpc.internal"),
            (CLIENT_ID, b"me"),
        ];
        for (kind, value) in expected {
            assert_eq!(said(&offer, kind).as_deref(), Some(value), "{kind}");
        }
        let wants = |address: Ipv4Addr| option(REQUESTED_ADDRESS, &address.octets());
        let ours = option(SERVER, &GATEWAY_IPV4.octets());
        let cases = [
            (say(3, none, &[wants(OWN), ours.clone()].concat()), 5, OWN, To::Port),
            (say(3, none, &wants(OWN)), 5, OWN, To::Port),
            (say(3, OWN, &[]), 5, OWN, To::Port),
            (say(3, none, &wants(Ipv4Addr::new(10, 0, 0, 6))), 6, none, To::Link),
            (say(3, Ipv4Addr::new(10, 0, 0, 6), &[]), 6, none, To::Link),
            (say(3, none, &[]), 6, none, To::Link),
            (say(8, OWN, &[]), 5, none, To::Port),
        ];
        for (number, (answer, kind, yours, to)) in cases.into_iter().enumerate() {
            let (answer, said_to) = answer.expect("answered");
            assert_eq!((said(&answer, MESSAGE_TYPE), said_to), (Some(vec![kind]), to), "{number}");
            assert_eq!(answer[16..20], yours.octets(), "{number}");
            assert_eq!(said(&answer, LEASE_TIME).is_some(), kind == 5 && !yours.is_unspecified(), "{number}");
        }
    }

    #[test]
    fn who_hears_broadcasts_only_gets_one() {
        let mut bytes = message(1, Ipv4Addr::UNSPECIFIED, &[]);
        bytes[10] = BROADCAST;
        let (answer, to) = read(&bytes).expect("read").answer(OWN, false).expect("answered");
        assert_eq!((to, answer[10], said(&answer, DOMAIN)), (To::Link, BROADCAST, None));
        assert!(answer.len() >= MIN_BYTES);
    }

    #[test]
    fn what_is_not_for_us_is_not_answered() {
        let none = Ipv4Addr::UNSPECIFIED;
        assert_eq!(say(3, none, &option(SERVER, &[10, 0, 0, 1])), Err(Unanswered::OtherServer));
        assert_eq!(say(8, none, &[]), Err(Unanswered::Foreign));
        for (kind, why) in [
            (4, Unanswered::Unasking),
            (7, Unanswered::Unasking),
            (2, Unanswered::Malformed),
            (0, Unanswered::Malformed),
        ] {
            assert_eq!(say(kind, none, &[]), Err(why));
        }
        for (at, value, why) in [
            (0, 2, Unanswered::Malformed),
            (1, 6, Unanswered::Malformed),
            (2, 16, Unanswered::Malformed),
            (FIXED_BYTES, 0, Unanswered::Malformed),
            (24, 1, Unanswered::Relayed),
        ] {
            let mut bytes = message(1, none, &[]);
            bytes[at] = value;
            assert_eq!(read(&bytes), Err(why), "{at}");
        }
        assert_eq!(read(&message(1, none, &option(SERVER, &[1]))), Err(Unanswered::Malformed));
        assert_eq!(read(&[]), Err(Unanswered::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_and_answers_are_bounded(
            options in proptest::collection::vec(any::<u8>(), 0..400), flips in proptest::collection::vec((0usize..700, any::<u8>()), 0..8)
        ) {
            let mut bytes = message(1, Ipv4Addr::UNSPECIFIED, &options);
            for (at, value) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            if let Ok(question) = read(&bytes) && let Ok((answer, _)) = question.answer(OWN, true) {
                prop_assert!(answer.len() <= MIN_BYTES + 300);
                prop_assert!(read(&answer).is_err(), "an answer is no question");
            }
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(read(&bytes).is_err() || bytes.len() > FIXED_BYTES);
        }
    }
}
