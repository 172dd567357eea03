//! The names of one network: those of its members under [`VPC_DOMAIN`], and their addresses' own under `in-addr.arpa`.
//!
//! What is under the domain is never asked elsewhere, in any network: no name server out there has an answer, and none
//! needs to know the question. The same is true of addresses of a private network's range.

use crate::pure::dns::Question;
use crate::pure::wanted::WantedNetwork;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use model::net::{Ipv4Cidr, VPC_DOMAIN};
use std::collections::HashMap;
use std::net::Ipv4Addr;

/// Seconds for which an answer may be kept: as long as the name of a deleted VM may be missed in its next owner's place.
const TTL: u32 = 5;
/// Under which addresses have their names (RFC 1035 section 3.5).
const REVERSE_DOMAIN: &str = "in-addr.arpa";

/// The names of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// A private network's range; none for the default network, which has no names.
    range: Option<Ipv4Cidr>,
    addresses: HashMap<String, Ipv4Addr>,
    /// The first name of each address.
    names: HashMap<Ipv4Addr, String>,
}

impl Zone {
    /// The names of a private network's members. A VM that sleeps has its name, too, and so has a service that has not
    /// joined yet.
    #[must_use]
    pub fn private(network: &WantedNetwork) -> Self {
        let mut zone = Self { range: Some(network.range), ..Self::default() };
        let ports = network.ports.values().map(|port| (port.ipv4, &port.names));
        let services = network.services.values().map(|service| (service.seat.ipv4, &service.names));
        for (ipv4, names) in ports.chain(services) {
            for name in names {
                zone.addresses.insert(name.clone(), ipv4);
            }
            if let Some(first) = names.first() {
                zone.names.insert(ipv4, first.clone());
            }
        }
        zone
    }

    /// The answer to a question that is this network's alone; none when name servers must be asked.
    #[must_use]
    pub fn answer(&self, question: &Question) -> Option<Vec<u8>> {
        let name = question.name();
        if let Some(labels) = below(name, VPC_DOMAIN) {
            return question.answer(self.forward(name, question.kind(), question.class(), &labels));
        }
        let labels = below(name, REVERSE_DOMAIN)?;
        let address = address_of(&labels)?;
        self.range.filter(|range| range.contains(address))?;
        question.answer(self.reverse(name, question.kind(), question.class(), address))
    }

    fn forward(
        &self,
        name: &Name,
        kind: RecordType,
        class: DNSClass,
        labels: &[String],
    ) -> Result<Vec<Record>, ResponseCode> {
        let address = match labels {
            // The domain itself is there, and has no record.
            [] => return Ok(Vec::new()),
            [label] => *self.addresses.get(label).ok_or(ResponseCode::NXDomain)?,
            _ => return Err(ResponseCode::NXDomain),
        };
        let asked = matches!(kind, RecordType::A | RecordType::ANY) && class == DNSClass::IN;
        let record = || Record::from_rdata(name.clone(), TTL, RData::A(A::from(address)));
        Ok(asked.then(record).into_iter().collect())
    }

    fn reverse(
        &self,
        name: &Name,
        kind: RecordType,
        class: DNSClass,
        address: Ipv4Addr,
    ) -> Result<Vec<Record>, ResponseCode> {
        let label = self.names.get(&address).ok_or(ResponseCode::NXDomain)?;
        let asked = matches!(kind, RecordType::PTR | RecordType::ANY) && class == DNSClass::IN;
        let full = Name::from_ascii(format!("{label}.{VPC_DOMAIN}.")).map_err(|_| ResponseCode::ServFail)?;
        let record = || Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(full)));
        Ok(asked.then(record).into_iter().collect())
    }
}

/// The labels in front of the domain, in lower case; none when the name is not under it. A label may hold any octets, a
/// point for one, so names are compared by label.
fn below(name: &Name, domain: &str) -> Option<Vec<String>> {
    let mut labels: Vec<String> =
        name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
    for expected in domain.rsplit('.') {
        (labels.pop()? == expected).then_some(())?;
    }
    Some(labels)
}

/// The address whose own name these four labels are.
fn address_of(labels: &[String]) -> Option<Ipv4Addr> {
    let octet = |label: &String| {
        let number: u8 = label.parse().ok()?;
        // As it is written, and not otherwise: no leading zero, no sign.
        (number.to_string() == *label).then_some(number)
    };
    let [d, c, b, a] = labels else { return None };
    Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::dns::read_question;
    use crate::pure::names::DeviceName;
    use crate::pure::wanted::Port;
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use model::id::VmId;
    use model::net::MacAddress;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn port(last: u8, names: &[&str]) -> Port {
        let (vm, ipv4) = (VmId::from_random([last; 20]), Ipv4Addr::new(10, 0, 0, last));
        Port {
            device: DeviceName::of(&vm),
            vm,
            mac: MacAddress::of_ipv4(ipv4),
            ipv4,
            queues: 1,
            dialable: BTreeSet::new(),
            asleep: true,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn zone() -> Zone {
        let range = "10.0.0.0/24".parse().expect("range");
        let ports = [port(5, &["db", "db-2"]), port(6, &["web"]), port(7, &[])];
        let ports = ports.into_iter().map(|port| (port.device.clone(), port));
        Zone::private(&WantedNetwork::of_ports(range, ports.collect()))
    }

    fn question(name: Name, kind: RecordType) -> Question {
        let mut message = Message::new(9, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name, kind));
        read_question(&message.to_vec().expect("encodes")).expect("a question")
    }

    /// The answer's code and data; none when name servers must be asked.
    fn said(zone: &Zone, name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
        let asked = Name::from_ascii(name).expect("name");
        let answer = Message::from_vec(&zone.answer(&question(asked.clone(), kind))?).expect("a message");
        assert_eq!((answer.metadata.id, answer.metadata.message_type), (9, MessageType::Response));
        assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
        assert!(answer.queries[0].name.eq_case(&asked), "as the guest wrote it");
        assert!(answer.answers.iter().all(|record| record.name.eq_case(&asked) && record.ttl <= TTL));
        let data = answer.answers.iter().map(|record| record.data.to_string()).collect();
        Some((answer.metadata.response_code, data))
    }

    #[test]
    fn members_have_names_and_addresses_have_theirs() {
        let (good, none) = (ResponseCode::NoError, ResponseCode::NXDomain);
        let cases = [
            ("db.vpc.internal.", RecordType::A, good, vec!["10.0.0.5"]),
            ("Db-2.VPC.internal.", RecordType::A, good, vec!["10.0.0.5"]),
            ("web.vpc.internal.", RecordType::ANY, good, vec!["10.0.0.6"]),
            ("web.vpc.internal.", RecordType::AAAA, good, vec![]),
            ("web.vpc.internal.", RecordType::TXT, good, vec![]),
            ("vpc.internal.", RecordType::A, good, vec![]),
            ("nobody.vpc.internal.", RecordType::A, none, vec![]),
            ("nobody.vpc.internal.", RecordType::AAAA, none, vec![]),
            ("a.db.vpc.internal.", RecordType::A, none, vec![]),
            ("5.0.0.10.in-addr.arpa.", RecordType::PTR, good, vec!["db.vpc.internal."]),
            ("5.0.0.10.in-addr.arpa.", RecordType::A, good, vec![]),
            ("7.0.0.10.in-addr.arpa.", RecordType::PTR, none, vec![]),
        ];
        for (name, kind, code, data) in cases {
            let data = data.into_iter().map(str::to_owned).collect();
            assert_eq!(said(&zone(), name, kind), Some((code, data)), "{name} {kind}");
        }
    }

    #[test]
    fn other_names_are_others() {
        let forwarded = [
            "example.com.",
            "internal.",
            "avpc.internal.",
            "db.vpc.internal.example.com.",
            "5.0.1.10.in-addr.arpa.",
            "05.0.0.10.in-addr.arpa.",
            "0.0.10.in-addr.arpa.",
            "a.5.0.0.10.in-addr.arpa.",
        ];
        for name in forwarded {
            assert_eq!(said(&zone(), name, RecordType::A), None, "{name}");
        }
        let default = Zone::default();
        assert_eq!(
            said(&default, "db.vpc.internal.", RecordType::A),
            Some((ResponseCode::NXDomain, vec![])),
            "the default network has no names and asks nobody for them"
        );
        assert_eq!(said(&default, "5.0.0.10.in-addr.arpa.", RecordType::PTR), None);
    }

    proptest! {
        #[test]
        fn no_name_under_the_domain_is_ever_forwarded(
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..4),
            upper: bool,
        ) {
            let domain = if upper { ["VPC", "Internal"] } else { ["vpc", "internal"] };
            let all = labels.iter().map(Vec::as_slice).chain(domain.map(str::as_bytes));
            let name = Name::from_labels(all).expect("a name");
            for zone in [zone(), Zone::default()] {
                prop_assert!(zone.answer(&question(name.clone(), RecordType::A)).is_some());
            }
        }
    }
}
