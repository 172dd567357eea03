//! DNS messages (RFC 1035) of guests and name servers: what is taken from either, and what is said.
//!
//! A guest's question is read, and a new one is written of what was understood; nothing of the guest's own bytes goes
//! on. A name server's answer must parse and must answer that very question; then it goes to the guest with the
//! guest's own id.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use thiserror::Error;

/// Largest message over UDP that we ask name servers for and give to guests: never fragmented (RFC 9715).
pub const MAX_UDP_BYTES: usize = 1232;
/// Largest message over UDP to a guest that says nothing of its own bound (RFC 1035 section 4.2.1).
const PLAIN_UDP_BYTES: usize = 512;
/// Largest question that is read: a name of 255 octets and an OPT record fit.
pub const MAX_QUESTION_BYTES: usize = 1024;

/// A guest's question.
#[derive(Clone, Debug)]
pub struct Question {
    id: u16,
    query: Query,
    recursion: bool,
    checking_disabled: bool,
    /// What the guest said of itself, when it speaks EDNS (RFC 6891): bytes it takes, and whether it wants DNSSEC.
    edns: Option<(u16, bool)>,
}

/// Why a guest's message is no question for us.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Unasked {
    /// Not a DNS message, an answer, or too large: no answer is due.
    #[error("not a DNS question")]
    Garbage,
    /// Understood as far as the header; the bytes are the answer.
    #[error("a question of a kind that is not served")]
    Unserved(Vec<u8>),
}

/// Why a name server's message is not the answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    /// Not a DNS message.
    #[error("not a DNS message")]
    Garbage,
    /// Another id, another question, or a question itself: forged, or late.
    #[error("not the answer to this question")]
    Other,
}

/// Reads a guest's question.
///
/// # Errors
/// [`Unasked`]: drop it, or say that it is not served.
pub fn read_question(bytes: &[u8]) -> Result<Question, Unasked> {
    if bytes.len() > MAX_QUESTION_BYTES {
        return Err(Unasked::Garbage);
    }
    let message = Message::from_vec(bytes).map_err(|_| Unasked::Garbage)?;
    let metadata = message.metadata;
    if metadata.message_type != MessageType::Query {
        return Err(Unasked::Garbage);
    }
    let unserved = |code| {
        let bytes = Message::error_msg(metadata.id, metadata.op_code, code).to_vec();
        bytes.map_or(Unasked::Garbage, Unasked::Unserved)
    };
    if metadata.op_code != OpCode::Query {
        return Err(unserved(ResponseCode::NotImp));
    }
    let [query] = message.queries.as_slice() else { return Err(unserved(ResponseCode::FormErr)) };
    Ok(Question {
        id: metadata.id,
        query: query.clone(),
        recursion: metadata.recursion_desired,
        checking_disabled: metadata.checking_disabled,
        edns: message.edns.as_ref().map(|edns| (edns.max_payload(), edns.flags().dnssec_ok)),
    })
}

impl Question {
    /// What is asked about, as the guest wrote it.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.query.name
    }

    /// Which records are asked for.
    #[must_use]
    pub fn kind(&self) -> RecordType {
        self.query.query_type
    }

    /// Of which class.
    #[must_use]
    pub fn class(&self) -> DNSClass {
        self.query.query_class
    }

    /// The same question under another id, for a name server.
    #[must_use]
    pub fn for_upstream(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        if let Some((_, dnssec)) = self.edns {
            message.set_edns(edns(dnssec));
        }
        message.to_vec().ok()
    }

    /// Checks a name server's answer to [`Question::for_upstream`] and gives it the guest's id.
    ///
    /// # Errors
    /// When it is none, or not to this question.
    pub fn accept(&self, id: u16, mut bytes: Vec<u8>) -> Result<Vec<u8>, Mismatch> {
        let message = Message::from_vec(&bytes).map_err(|_| Mismatch::Garbage)?;
        let metadata = message.metadata;
        let ours = metadata.id == id
            && metadata.message_type == MessageType::Response
            && metadata.op_code == OpCode::Query
            && matches!(message.queries.as_slice(), [query] if same(query, &self.query));
        let head = bytes.get_mut(..2).ok_or(Mismatch::Garbage)?;
        if !ours {
            return Err(Mismatch::Other);
        }
        head.copy_from_slice(&self.id.to_be_bytes());
        Ok(bytes)
    }

    /// An answer as it fits into one datagram to the guest: whole, or cut to the question with the sign to ask again
    /// over TCP.
    #[must_use]
    pub fn fit(&self, answer: Vec<u8>) -> Option<Vec<u8>> {
        let said = self.edns.map_or(PLAIN_UDP_BYTES, |(bytes, _)| usize::from(bytes));
        if answer.len() <= said.clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES) {
            return Some(answer);
        }
        Message::from_vec(&answer).ok()?.truncate().to_vec().ok()
    }

    /// Says that there is no answer.
    #[must_use]
    pub fn failed(&self, code: ResponseCode) -> Option<Vec<u8>> {
        self.reply(code).to_vec().ok()
    }

    /// An answer that is ours to give: records, or that the name is not there. It may not be kept then, as nothing says
    /// for how long (RFC 2308 section 5).
    #[must_use]
    pub fn answer(&self, records: Result<Vec<Record>, ResponseCode>) -> Option<Vec<u8>> {
        let (code, records) = match records {
            Ok(records) => (ResponseCode::NoError, records),
            Err(code) => (code, Vec::new()),
        };
        let mut message = self.reply(code);
        message.metadata.authoritative = true;
        for record in records {
            message.add_answer(record);
        }
        message.to_vec().ok()
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let mut message = Message::error_msg(self.id, OpCode::Query, code);
        message.metadata.recursion_desired = self.recursion;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        if let Some((_, dnssec)) = self.edns {
            message.set_edns(edns(dnssec));
        }
        message
    }
}

/// The name server that `nameserver` lines of a resolv.conf(5) name, in order.
pub fn name_servers(resolv_conf: &str) -> impl Iterator<Item = std::net::IpAddr> + '_ {
    resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    })
}

fn same(left: &Query, right: &Query) -> bool {
    left.name == right.name && left.query_type == right.query_type && left.query_class == right.query_class
}

fn edns(dnssec: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(u16::try_from(MAX_UDP_BYTES).unwrap_or(u16::MAX)).set_dnssec_ok(dnssec);
    edns
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, TXT};
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use proptest::prelude::*;

    fn asked(id: u16, name: &str, edns: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).expect("name"), RecordType::A));
        if let Some(bytes) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(bytes);
            message.set_edns(edns);
        }
        message.to_vec().expect("encodes")
    }

    fn answered(question: &[u8], texts: usize) -> Vec<u8> {
        let mut message = Message::from_vec(question).expect("question").into_response();
        let name = message.queries[0].name.clone();
        message.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, 1))));
        for _ in 0..texts {
            let text = TXT::new(vec!["x".repeat(200)]);
            message.add_answer(Record::from_rdata(name.clone(), 60, RData::TXT(text)));
        }
        message.to_vec().expect("encodes")
    }

    #[test]
    fn an_answer_comes_back_under_the_guests_id() {
        let question = read_question(&asked(7, "Example.com.", None)).expect("a question");
        let upstream = question.for_upstream(4242).expect("encodes");
        let answer = question.accept(4242, answered(&upstream, 0)).expect("the answer");
        let read = Message::from_vec(&answer).expect("a message");
        assert_eq!((read.metadata.id, read.answers.len()), (7, 1));
    }

    #[test]
    fn other_answers_are_refused() {
        let question = read_question(&asked(7, "example.com.", None)).expect("a question");
        let upstream = question.for_upstream(1).expect("encodes");
        assert_eq!(question.accept(2, answered(&upstream, 0)), Err(Mismatch::Other));
        assert_eq!(question.accept(1, answered(&asked(1, "example.org.", None), 0)), Err(Mismatch::Other));
        assert_eq!(question.accept(1, upstream), Err(Mismatch::Other));
        assert_eq!(question.accept(1, vec![0; 5]), Err(Mismatch::Garbage));
    }

    #[test]
    fn a_large_answer_is_cut_to_what_the_guest_takes() {
        for (says, texts, whole) in
            [(None, 0, true), (None, 4, false), (Some(4096), 4, true), (Some(4096), 8, false)]
        {
            let question = read_question(&asked(7, "example.com.", says)).expect("a question");
            let answer = answered(&question.for_upstream(7).expect("encodes"), texts);
            let sent = question.fit(answer.clone()).expect("fits");
            assert!(sent.len() <= MAX_UDP_BYTES);
            assert_eq!(sent == answer, whole, "{says:?} {texts}");
            assert_eq!(Message::from_vec(&sent).expect("a message").metadata.truncation, !whole);
        }
    }

    #[test]
    fn what_is_no_question_gets_no_server_or_an_error() {
        let mut response = asked(7, "example.com.", None);
        response[2] |= 0x80;
        assert_eq!(read_question(&response).expect_err("an answer"), Unasked::Garbage);
        let update = Message::new(9, MessageType::Query, OpCode::Update).to_vec().expect("encodes");
        let Unasked::Unserved(bytes) = read_question(&update).expect_err("an update") else {
            panic!("unserved")
        };
        assert_eq!(
            Message::from_vec(&bytes).expect("a message").metadata.response_code,
            ResponseCode::NotImp
        );
        assert_eq!(read_question(&[0; 2000]).expect_err("too large"), Unasked::Garbage);
    }

    #[test]
    fn resolv_conf_is_read_as_the_manual_says() {
        let text =
            "# nameserver 1.1.1.1\nsearch a\n nameserver\t192.0.2.1\nnameserver ::1 # x\nnameserver bad\n";
        let servers: Vec<_> = name_servers(text).map(|server| server.to_string()).collect();
        assert_eq!(servers, ["192.0.2.1", "::1"]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let question = read_question(&asked(7, "example.com.", Some(1))).expect("a question");
            if let Ok(asked) = read_question(&bytes) {
                prop_assert!(asked.failed(ResponseCode::ServFail).is_some());
                prop_assert!(asked.for_upstream(3).is_some());
            }
            prop_assert!(question.accept(7, bytes).is_err());
        }

        #[test]
        fn a_damaged_question_never_panics(at in 0usize..40, with: u8) {
            let mut bytes = asked(7, "a.long-name.example.com.", Some(1232));
            let length = bytes.len();
            bytes[at % length] = with;
            if let Ok(question) = read_question(&bytes) {
                prop_assert!(question.for_upstream(1).is_some());
            }
        }
    }
}
