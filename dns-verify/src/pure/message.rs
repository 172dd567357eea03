//! DNS messages (RFC 1035): the questions that we ask, and what a server's bytes say to one.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::IpAddr;
use thiserror::Error;

/// Largest answer over UDP that we ask for: never fragmented (RFC 9715).
pub const MAX_UDP_BYTES: u16 = 1232;
/// Largest answer over TCP that is read. A name with that much text is no proof of anything.
pub const MAX_TCP_BYTES: u16 = 16 << 10;
/// Records of one answer that are looked at.
const MAX_RECORDS: usize = 128;
/// Longest TXT value that is kept, in bytes, its strings joined. Codes are far shorter.
const MAX_TEXT_BYTES: usize = 1024;

/// Which records are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Text.
    Txt,
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
}

impl Kind {
    fn record_type(self) -> RecordType {
        match self {
            Self::Txt => RecordType::TXT,
            Self::A => RecordType::A,
            Self::Aaaa => RecordType::AAAA,
        }
    }

    /// As people write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Txt => "TXT",
            Self::A => "A",
            Self::Aaaa => "AAAA",
        }
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// About which name.
    pub name: Name,
    /// For which records.
    pub kind: Kind,
}

/// Why bytes are not the answer to a question. Over UDP, one goes on waiting for the right one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    /// Not a DNS message.
    #[error("not a DNS message")]
    Garbage,
    /// Another id, another question, or a question itself: forged, or late.
    #[error("not the answer to this question")]
    Other,
}

/// What an answer says to a question, read as far as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It did not fit; it must be asked over TCP.
    Truncated,
    /// The server does not know EDNS (RFC 6891 section 7).
    NoEdns,
    /// The records, from who has authority. TXT strings are joined.
    Records {
        /// Texts, for [`Kind::Txt`].
        texts: Vec<String>,
        /// Addresses, for the others.
        addresses: Vec<IpAddr>,
    },
    /// The name is another's alias; nothing in the answer says what that other has.
    Alias(Name),
    /// The name exists, and has no such records.
    NoRecords,
    /// The name does not exist.
    NoName,
    /// Others know: the name servers of a zone below, each with the addresses that came along.
    Referral {
        /// The zone below.
        zone: Name,
        /// Its servers.
        servers: Vec<(Name, Vec<IpAddr>)>,
    },
    /// The server will not or cannot, or has no authority here.
    Useless(&'static str),
}

impl Question {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self, id: u16, edns: bool) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        let mut query = Query::query(self.name.clone(), self.kind.record_type());
        query.set_query_class(DNSClass::IN);
        message.add_query(query);
        if edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_BYTES);
            message.set_edns(edns);
        }
        message.to_vec().ok()
    }

    /// Reads what claims to be the answer, of a server that was asked about `zone`.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub fn read(&self, id: u16, bytes: &[u8], zone: &Name) -> Result<Said, Mismatch> {
        let message = Message::from_vec(bytes).map_err(|_| Mismatch::Garbage)?;
        let metadata = message.metadata;
        if metadata.id != id
            || metadata.message_type != MessageType::Response
            || metadata.op_code != OpCode::Query
        {
            return Err(Mismatch::Other);
        }
        let code = metadata.response_code;
        // A server that knows no EDNS may send the header alone.
        if code == ResponseCode::FormErr && message.queries.is_empty() {
            return Ok(Said::NoEdns);
        }
        let [query] = message.queries.as_slice() else { return Err(Mismatch::Other) };
        let same = query.name == self.name
            && query.query_type == self.kind.record_type()
            && query.query_class == DNSClass::IN;
        if !same {
            return Err(Mismatch::Other);
        }
        Ok(self.said(&message, zone))
    }

    fn said(&self, message: &Message, zone: &Name) -> Said {
        let metadata = &message.metadata;
        if metadata.truncation {
            return Said::Truncated;
        }
        match metadata.response_code {
            ResponseCode::NoError => {}
            ResponseCode::NXDomain if metadata.authoritative => {
                return match self.follow(&message.answers, zone) {
                    Followed::End(end) if end != self.name => Said::Alias(end),
                    _ => Said::NoName,
                };
            }
            ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS => return Said::NoEdns,
            ResponseCode::NXDomain => {
                return Said::Useless("says that there is no such name, without authority");
            }
            ResponseCode::ServFail => return Said::Useless("failed (SERVFAIL)"),
            ResponseCode::Refused => return Said::Useless("refused (REFUSED)"),
            _ => return Said::Useless("answered with an error"),
        }
        if metadata.authoritative {
            return self.records(message, zone);
        }
        self.referral(message, zone).unwrap_or(Said::Useless(
            "has no authority over the name and knows nobody who has (a lame server)",
        ))
    }

    fn records(&self, message: &Message, zone: &Name) -> Said {
        let end = match self.follow(&message.answers, zone) {
            Followed::End(end) => end,
            Followed::Loop => return Said::Useless("answered with aliases that lead to each other"),
        };
        let here = || message.answers.iter().take(MAX_RECORDS).filter(|record| of(record, &end));
        let texts: Vec<String> = here().filter_map(text).collect();
        let addresses: Vec<IpAddr> =
            here().filter_map(|record| record.data.ip_addr()).filter(|ip| self.wants(*ip)).collect();
        let found = match self.kind {
            Kind::Txt => !texts.is_empty(),
            Kind::A | Kind::Aaaa => !addresses.is_empty(),
        };
        // What a server says of an alias's end counts only inside the zone that it was asked for.
        if found && zone.zone_of(&end) {
            return match self.kind {
                Kind::Txt => Said::Records { texts, addresses: Vec::new() },
                Kind::A | Kind::Aaaa => Said::Records { texts: Vec::new(), addresses },
            };
        }
        if end != self.name {
            return Said::Alias(end);
        }
        // A parent that serves its child's zone as well answers with authority at once; a referral has none.
        Said::NoRecords
    }

    fn wants(&self, address: IpAddr) -> bool {
        match self.kind {
            Kind::Txt => false,
            Kind::A => address.is_ipv4(),
            Kind::Aaaa => address.is_ipv6(),
        }
    }

    /// Where the aliases in an answer lead, as long as they stay within the zone.
    fn follow(&self, answers: &[Record], zone: &Name) -> Followed {
        let mut end = self.name.clone();
        let mut seen = vec![end.clone()];
        loop {
            if !zone.zone_of(&end) {
                return Followed::End(end);
            }
            let next = answers.iter().take(MAX_RECORDS).find_map(|record| match &record.data {
                RData::CNAME(target) if of(record, &end) => Some(target.0.clone()),
                _ => None,
            });
            let Some(next) = next else { return Followed::End(end) };
            if seen.contains(&next) {
                return Followed::Loop;
            }
            seen.push(next.clone());
            end = next;
        }
    }

    /// Name servers of a zone strictly below the one that was asked, which has our name in it.
    fn referral(&self, message: &Message, zone: &Name) -> Option<Said> {
        let deeper = |owner: &Name| {
            owner.num_labels() > zone.num_labels() && zone.zone_of(owner) && owner.zone_of(&self.name)
        };
        let delegations =
            message.authorities.iter().take(MAX_RECORDS).filter_map(|record| match &record.data {
                RData::NS(server) if record.dns_class == DNSClass::IN && deeper(&record.name) => {
                    Some((&record.name, &server.0))
                }
                _ => None,
            });
        let below =
            delegations.clone().map(|(owner, _)| owner).max_by_key(|owner| owner.num_labels())?.clone();
        let mut servers: Vec<(Name, Vec<IpAddr>)> = Vec::new();
        for (_, server) in delegations.filter(|(owner, _)| **owner == below) {
            if servers.iter().any(|(known, _)| known == server) {
                continue;
            }
            // A server tells addresses for its own zone alone; others' must be asked for.
            let glue = message
                .additionals
                .iter()
                .take(MAX_RECORDS)
                .filter(|record| of(record, server) && zone.zone_of(server));
            servers.push((server.clone(), glue.filter_map(|record| record.data.ip_addr()).collect()));
        }
        Some(Said::Referral { zone: below, servers })
    }
}

enum Followed {
    End(Name),
    Loop,
}

fn of(record: &Record, name: &Name) -> bool {
    record.dns_class == DNSClass::IN && record.name == *name
}

fn text(record: &Record) -> Option<String> {
    let RData::TXT(text) = &record.data else { return None };
    let mut joined: Vec<u8> = text.txt_data.concat();
    joined.truncate(MAX_TEXT_BYTES);
    Some(String::from_utf8_lossy(&joined).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, CNAME, NS, TXT};
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("name")
    }

    fn question() -> Question {
        Question { name: name("p.zone.test."), kind: Kind::Txt }
    }

    fn answer(change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let asked = question().bytes(7, true).expect("bytes");
        let mut message = Message::from_vec(&asked).expect("message").into_response();
        message.metadata.authoritative = true;
        change(&mut message);
        message.to_vec().expect("bytes")
    }

    fn record(owner: &str, data: RData) -> Record {
        Record::from_rdata(name(owner), 60, data)
    }

    fn read(bytes: &[u8]) -> Result<Said, Mismatch> {
        question().read(7, bytes, &name("zone.test."))
    }

    #[test]
    fn split_strings_are_joined_and_others_records_are_not_taken() {
        let bytes = answer(|message| {
            let split = TXT::new(vec!["ab".to_owned(), "cd".to_owned()]);
            message.add_answer(record("p.zone.test.", RData::TXT(split)));
            message.add_answer(record("q.zone.test.", RData::TXT(TXT::new(vec!["no".to_owned()]))));
            message.add_answer(record("p.zone.test.", RData::A(A::new(192, 0, 2, 1))));
        });
        let texts = vec!["abcd".to_owned()];
        assert_eq!(read(&bytes), Ok(Said::Records { texts, addresses: vec![] }));
    }

    #[test]
    fn only_the_answer_to_this_question_is_read() {
        let bytes = answer(|_| {});
        assert_eq!(read(&bytes), Ok(Said::NoRecords));
        assert_eq!(question().read(8, &bytes, &name("zone.test.")), Err(Mismatch::Other));
        let other = Question { name: name("q.zone.test."), kind: Kind::Txt };
        assert_eq!(other.read(7, &bytes, &name("zone.test.")), Err(Mismatch::Other));
        let other = Question { kind: Kind::A, ..question() };
        assert_eq!(other.read(7, &bytes, &name("zone.test.")), Err(Mismatch::Other));
        assert_eq!(read(&question().bytes(7, true).expect("bytes")), Err(Mismatch::Other));
        assert_eq!(read(&bytes[..5]), Err(Mismatch::Garbage));
    }

    #[test]
    fn an_alias_is_followed_within_the_zone_and_told_beyond_it() {
        let alias = |from: &str, to: &str| record(from, RData::CNAME(CNAME(name(to))));
        let text = |owner: &str| record(owner, RData::TXT(TXT::new(vec!["code".to_owned()])));
        let inside = answer(|message| {
            message.add_answer(alias("p.zone.test.", "q.zone.test.")).add_answer(text("q.zone.test."));
        });
        assert!(matches!(read(&inside), Ok(Said::Records { .. })));
        let outside = answer(|message| {
            message.add_answer(alias("p.zone.test.", "q.other.test.")).add_answer(text("q.other.test."));
        });
        assert_eq!(read(&outside), Ok(Said::Alias(name("q.other.test."))));
        let circle = answer(|message| {
            message.add_answer(alias("p.zone.test.", "q.zone.test."));
            message.add_answer(alias("q.zone.test.", "p.zone.test."));
        });
        assert!(matches!(read(&circle), Ok(Said::Useless(_))));
    }

    #[test]
    fn a_referral_leads_down_and_its_glue_is_the_zones_own() {
        let referral = |owner: &str| {
            answer(|message| {
                message.metadata.authoritative = false;
                message.add_authority(record(owner, RData::NS(NS(name("ns.zone.test.")))));
                message.add_authority(record(owner, RData::NS(NS(name("ns.far.org.")))));
                message.add_additional(record("ns.zone.test.", RData::A(A::new(192, 0, 2, 1))));
                message.add_additional(record("ns.far.org.", RData::A(A::new(192, 0, 2, 2))));
            })
        };
        let read = |owner: &str, zone: &str| question().read(7, &referral(owner), &name(zone));
        let near = (name("ns.zone.test."), vec!["192.0.2.1".parse().expect("address")]);
        let far = (name("ns.far.org."), vec![]);
        assert_eq!(
            read("zone.test.", "test."),
            Ok(Said::Referral { zone: name("zone.test."), servers: vec![near, far] })
        );
        for (owner, zone) in [("zone.test.", "zone.test."), ("test.", "zone.test."), ("else.test.", "test.")]
        {
            assert!(matches!(read(owner, zone), Ok(Said::Useless(_))), "{owner} {zone}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(read(&bytes));
        }

        #[test]
        fn no_damage_breaks_the_reader(at in 0usize..200, with in any::<u8>(), cut in 0usize..200) {
            let mut bytes = answer(|message| {
                message.add_answer(record("p.zone.test.", RData::CNAME(CNAME(name("q.zone.test.")))));
                message.add_answer(record("q.zone.test.", RData::TXT(TXT::new(vec!["code".to_owned()]))));
            });
            let length = bytes.len();
            bytes[at % length] = with;
            bytes.truncate(length - cut % length);
            drop(read(&bytes));
        }
    }
}
