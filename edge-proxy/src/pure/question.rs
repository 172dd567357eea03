//! Questions of name servers about `_acme-challenge.` of a name that was delegated to us (RFC 8555 section 8.4), and
//! nothing else: each such name is a zone of its own (RFC 1034 section 4.2) with TXT records or with none.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{NS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use model::host::HostName;

/// The first label of all our names.
const LABEL: &[u8] = b"_acme-challenge";
/// Seconds that others may keep an answer, and that there is none. The next challenge has another one.
const TTL: u32 = 1;
/// Largest datagram that passes everywhere without being cut up (DNS flag day 2020).
pub const DATAGRAM: u16 = 1232;
/// Largest datagram for those who state none (RFC 1035 section 4.2.1).
const PLAIN_DATAGRAM: u16 = 512;
/// Times in our SOA records, in seconds: nobody copies these zones, so they are those that RFC 1912 section 2.2 names.
const SOA_TIMES: [i32; 3] = [7200, 900, 1_209_600];

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In a datagram: the answer is cut to what the asker takes.
    Datagram,
    /// Over a stream: the answer is whole.
    Stream,
}

/// What a question deserves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// An answer, or that there is no such record.
    Answer(Vec<u8>),
    /// A refusal: the name is not ours, or it is no question that we know.
    Refusal(Vec<u8>),
    /// Silence: it is no question at all, and an answer might begin a quarrel between two servers.
    None,
}

/// Answers one message. `texts` gives the TXT records of a name, `host` is the server's own name.
#[must_use]
pub fn answer(bytes: &[u8], way: Way, host: &Name, texts: impl Fn(&HostName) -> Vec<String>) -> Reply {
    let Ok(asked) = Message::from_vec(bytes) else { return Reply::None };
    if asked.metadata.message_type != MessageType::Query {
        return Reply::None;
    }
    let mut reply = Message::response(asked.metadata.id, asked.metadata.op_code);
    reply.metadata.recursion_desired = asked.metadata.recursion_desired;
    if let Some(edns) = &asked.edns {
        let mut own = Edns::new();
        own.set_max_payload(DATAGRAM).set_version(0);
        reply.set_edns(own);
        if edns.version() != 0 {
            return refusal(reply, ResponseCode::BADVERS);
        }
    }
    if asked.metadata.op_code != OpCode::Query {
        return refusal(reply, ResponseCode::NotImp);
    }
    let [query] = asked.queries.as_slice() else { return refusal(reply, ResponseCode::FormErr) };
    reply.add_query(query.clone());
    let Some(name) = proved(query) else { return refusal(reply, ResponseCode::Refused) };
    reply.metadata.authoritative = true;
    fill(&mut reply, query, host, &texts(&name));
    let room = match way {
        Way::Stream => u16::MAX,
        Way::Datagram => asked
            .edns
            .as_ref()
            .map_or(PLAIN_DATAGRAM, |edns| edns.max_payload().clamp(PLAIN_DATAGRAM, DATAGRAM)),
    };
    match reply.to_vec() {
        Ok(bytes) if bytes.len() <= usize::from(room) => Reply::Answer(bytes),
        Ok(_) => reply.truncate().to_vec().map_or(Reply::None, Reply::Answer),
        Err(_) => Reply::None,
    }
}

/// The name that the question is about, when it is one of ours.
fn proved(query: &Query) -> Option<HostName> {
    if query.query_class != DNSClass::IN {
        return None;
    }
    let first = query.name.iter().next()?;
    if !first.eq_ignore_ascii_case(LABEL) {
        return None;
    }
    let name = query.name.base_name().to_ascii();
    name.trim_end_matches('.').parse().ok()
}

fn fill(reply: &mut Message, query: &Query, host: &Name, texts: &[String]) {
    let zone = &query.name;
    let record = |data: RData| Record::from_rdata(zone.clone(), TTL, data);
    let [refresh, retry, expire] = SOA_TIMES;
    let soa = || {
        let mailbox = Name::from_ascii("hostmaster").map_or_else(
            |_| Name::root(),
            |label| label.append_domain(host).unwrap_or_else(|_| Name::root()),
        );
        RData::SOA(SOA::new(host.clone(), mailbox, 1, refresh, retry, expire, TTL))
    };
    match query.query_type {
        // Whoever asks for anything may have what there is (RFC 8482 section 4.1).
        RecordType::TXT | RecordType::ANY if !texts.is_empty() => {
            reply.add_answers(texts.iter().map(|text| record(RData::TXT(TXT::new(vec![text.clone()])))));
        }
        RecordType::NS => {
            reply.add_answer(record(RData::NS(NS(host.clone()))));
        }
        RecordType::SOA => {
            reply.add_answer(record(soa()));
        }
        _ => {
            reply.add_authority(record(soa()));
        }
    }
}

fn refusal(mut reply: Message, code: ResponseCode) -> Reply {
    reply.metadata.response_code = code;
    reply.to_vec().map_or(Reply::None, Reply::Refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(name: &HostName) -> Vec<String> {
        match name.as_str() {
            "example.com" => vec!["first".to_owned(), "second".to_owned()],
            "large.example.com" => (0..40).map(|number| format!("{number:043}")).collect(),
            _ => Vec::new(),
        }
    }

    fn ask(name: &str, kind: RecordType, way: Way, change: impl Fn(&mut Message)) -> Reply {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        // Not by parsing, which folds letters.
        message.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
        change(&mut message);
        answer(&message.to_vec().expect("bytes"), way, &"dns.style.dev.".parse().expect("name"), texts)
    }

    fn answered(reply: Reply) -> Message {
        let Reply::Answer(bytes) = reply else { panic!("{reply:?}") };
        let message = Message::from_vec(&bytes).expect("good");
        assert!(message.metadata.authoritative && message.metadata.id == 77);
        message
    }

    fn refused(reply: Reply) -> ResponseCode {
        let Reply::Refusal(bytes) = reply else { panic!("{reply:?}") };
        Message::from_vec(&bytes).expect("good").metadata.response_code
    }

    #[test]
    fn all_records_of_a_name_are_told_and_the_case_of_the_question_is_kept() {
        let message = answered(ask("_Acme-Challenge.ExAmple.com.", RecordType::TXT, Way::Datagram, |_| {}));
        assert_eq!(message.answers.len(), 2);
        assert_eq!(message.queries[0].name.to_ascii(), "_Acme-Challenge.ExAmple.com.");
        assert_eq!(message.answers[0].name.to_ascii(), "_Acme-Challenge.ExAmple.com.");
        let message = answered(ask("_acme-challenge.other.com.", RecordType::TXT, Way::Datagram, |_| {}));
        assert_eq!((message.answers.len(), message.authorities.len()), (0, 1));
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        for (kind, answers) in
            [(RecordType::NS, 1), (RecordType::SOA, 1), (RecordType::A, 0), (RecordType::CAA, 0)]
        {
            let message = answered(ask("_acme-challenge.example.com.", kind, Way::Datagram, |_| {}));
            assert_eq!((message.answers.len(), message.authorities.len()), (answers, 1 - answers), "{kind}");
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        for name in
            ["example.com.", ".", "x._acme-challenge.example.com.", "_acme-challenge.", "www.example.com."]
        {
            assert_eq!(
                refused(ask(name, RecordType::TXT, Way::Datagram, |_| {})),
                ResponseCode::Refused,
                "{name}"
            );
        }
        let name = "_acme-challenge.example.com.";
        let with = |change: &dyn Fn(&mut Message)| refused(ask(name, RecordType::TXT, Way::Datagram, change));
        assert_eq!(with(&|message| message.metadata.op_code = OpCode::Update), ResponseCode::NotImp);
        assert_eq!(with(&|message| message.queries.clear()), ResponseCode::FormErr);
        assert_eq!(
            with(&|message| {
                message.queries[0].set_query_class(DNSClass::CH);
            }),
            ResponseCode::Refused
        );
        let silent = ask(name, RecordType::TXT, Way::Datagram, |message| {
            message.metadata.message_type = MessageType::Response;
        });
        assert_eq!(silent, Reply::None);
    }

    #[test]
    fn what_does_not_fit_a_datagram_is_cut_and_whole_over_a_stream() {
        let large = |way, payload: Option<u16>| {
            answered(ask("_acme-challenge.large.example.com.", RecordType::TXT, way, |message| {
                if let Some(payload) = payload {
                    let mut edns = Edns::new();
                    edns.set_max_payload(payload);
                    message.set_edns(edns);
                }
            }))
        };
        for payload in [None, Some(1232), Some(65535)] {
            let cut = large(Way::Datagram, payload);
            assert!(cut.metadata.truncation && cut.answers.is_empty(), "{payload:?}");
            assert_eq!(cut.edns.is_some(), payload.is_some());
        }
        assert_eq!(large(Way::Stream, None).answers.len(), 40);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_answer_much(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let reply = answer(&bytes, Way::Datagram, &Name::root(), texts);
            if let Reply::Answer(reply) | Reply::Refusal(reply) = reply {
                prop_assert!(reply.len() <= usize::from(DATAGRAM));
            }
        }

        #[test]
        fn no_damaged_question_makes_it_panic(at in 0_usize..60, byte in any::<u8>(), length in 0_usize..60) {
            let mut message = Message::new(1, MessageType::Query, OpCode::Query);
            message.add_query(Query::query("_acme-challenge.example.com.".parse().expect("name"), RecordType::TXT));
            let mut bytes = message.to_vec().expect("bytes");
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(length);
            drop(answer(&bytes, Way::Stream, &Name::root(), texts));
        }
    }
}
