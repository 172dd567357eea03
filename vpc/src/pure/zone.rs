//! The names of one network: those of its members under [`VPC_DOMAIN`], and their addresses' own under `in-addr.arpa` and
//! `ip6.arpa`.
//!
//! What is under the domain is never asked elsewhere, in any network: no name server out there has an answer, and none
//! needs to know the question. The same is true of addresses of a private network's ranges.

use crate::pure::dns::Question;
use crate::pure::wanted::WantedNetwork;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use model::net::{Ipv4Cidr, Ula, VPC_DOMAIN};
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Seconds for which an answer may be kept: as long as the name of a deleted VM may be missed in its next owner's place.
const TTL: u32 = 5;
/// Under which addresses have their names (RFC 1035 section 3.5).
const REVERSE_DOMAIN: &str = "in-addr.arpa";
/// The same of IPv6 (RFC 3596 section 2.5).
const REVERSE_DOMAIN_IPV6: &str = "ip6.arpa";
/// Labels of an address there, one for each half of an octet.
const NIBBLES: usize = 32;

/// The names of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// A private network's range; none for the default network, which has no names.
    range: Option<Ipv4Cidr>,
    /// The same for IPv6; none when the network speaks none.
    ula: Option<Ula>,
    addresses: HashMap<String, Ipv4Addr>,
    /// The first name of each address.
    names: HashMap<Ipv4Addr, String>,
}

impl Zone {
    /// The names of a private network's members. A VM that sleeps has its name, too, and so has a service that has not
    /// joined yet.
    #[must_use]
    pub fn private(network: &WantedNetwork) -> Self {
        let mut zone = Self { range: Some(network.range), ula: network.ula, ..Self::default() };
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

    /// The member whose IPv6 address is asked for; none when no such address is.
    #[must_use]
    pub fn ipv6_asked(&self, question: &Question) -> Option<Ipv6Addr> {
        let asked = matches!(question.kind(), RecordType::AAAA | RecordType::ANY);
        let ula = self.ula.filter(|_| asked)?;
        let labels = below(question.name(), VPC_DOMAIN)?;
        let [label] = labels.as_slice() else { return None };
        Some(ula.address(*self.addresses.get(label)?))
    }

    /// The answer to a question that is this network's alone; none when name servers must be asked. Of the member whose IPv6
    /// address is asked for, `speaks_ipv6` says whether it has one: an address at which nobody answers would be tried in
    /// vain before the other.
    #[must_use]
    pub fn answer(&self, question: &Question, speaks_ipv6: bool) -> Option<Vec<u8>> {
        let name = question.name();
        if let Some(labels) = below(name, VPC_DOMAIN) {
            return question.answer(self.forward(question, &labels, speaks_ipv6));
        }
        let address = match below(name, REVERSE_DOMAIN) {
            Some(labels) => {
                let address = address_of(&labels)?;
                self.range.filter(|range| range.contains(address))?;
                address
            }
            None => self.ula?.ipv4_of(ipv6_of(&below(name, REVERSE_DOMAIN_IPV6)?)?)?,
        };
        question.answer(self.reverse(name, question.kind(), question.class(), address))
    }

    fn forward(
        &self,
        question: &Question,
        labels: &[String],
        speaks_ipv6: bool,
    ) -> Result<Vec<Record>, ResponseCode> {
        let address = match labels {
            // The domain itself is there, and has no record.
            [] => return Ok(Vec::new()),
            [label] => *self.addresses.get(label).ok_or(ResponseCode::NXDomain)?,
            _ => return Err(ResponseCode::NXDomain),
        };
        let (name, kind) = (question.name(), question.kind());
        let asked =
            |one: RecordType| [one, RecordType::ANY].contains(&kind) && question.class() == DNSClass::IN;
        let ipv4 = asked(RecordType::A).then(|| RData::A(A::from(address)));
        let ula = self.ula.filter(|_| speaks_ipv6 && asked(RecordType::AAAA));
        let ipv6 = ula.map(|ula| RData::AAAA(AAAA::from(ula.address(address))));
        let records = ipv4.into_iter().chain(ipv6);
        Ok(records.map(|data| Record::from_rdata(name.clone(), TTL, data)).collect())
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

/// The same of 32 labels, each half an octet, the last half first.
fn ipv6_of(labels: &[String]) -> Option<Ipv6Addr> {
    let nibble = |label: &String| match label.as_bytes() {
        [digit] => char::from(*digit).to_digit(16),
        _ => None,
    };
    if labels.len() != NIBBLES {
        return None;
    }
    let bits =
        labels.iter().rev().try_fold(0u128, |bits, label| Some(bits << 4 | u128::from(nibble(label)?)));
    bits.map(Ipv6Addr::from_bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::dns::read_question;
    use crate::pure::names::DeviceName;
    use crate::pure::wanted::Port;
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use model::id::{VmId, VpcId};
    use model::net::MacAddress;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ula() -> Ula {
        Ula::of(&VpcId::from_random([1; 20]))
    }

    /// The only member that speaks IPv6.
    fn sixth() -> Ipv6Addr {
        ula().address(Ipv4Addr::new(10, 0, 0, 6))
    }

    fn reverse(address: Ipv6Addr) -> String {
        let digits = format!("{:032x}", address.to_bits());
        digits.chars().rev().map(|digit| format!("{digit}.")).collect::<String>() + "ip6.arpa."
    }

    fn port(last: u8, names: &[&str]) -> Port {
        let (vm, ipv4) = (VmId::from_random([last; 20]), Ipv4Addr::new(10, 0, 0, last));
        Port {
            device: DeviceName::of(&vm),
            vm,
            mac: MacAddress::of_ipv4(ipv4),
            ipv4,
            ipv6: Some(ula().address(ipv4)),
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
        let network = WantedNetwork::of_ports(range, ports.collect());
        Zone::private(&WantedNetwork { ula: Some(ula()), ..network })
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
        let asks = question(asked.clone(), kind);
        let speaks = zone.ipv6_asked(&asks).is_some_and(|address| address == sixth());
        let answer = Message::from_vec(&zone.answer(&asks, speaks)?).expect("a message");
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
        let of = |last| ula().address(Ipv4Addr::new(10, 0, 0, last));
        let (six, six_reversed, seven_reversed) = (of(6).to_string(), reverse(of(6)), reverse(of(7)));
        let cases = [
            ("db.vpc.internal.", RecordType::A, good, vec!["10.0.0.5"]),
            ("Db-2.VPC.internal.", RecordType::A, good, vec!["10.0.0.5"]),
            ("web.vpc.internal.", RecordType::ANY, good, vec!["10.0.0.6", &six]),
            ("web.vpc.internal.", RecordType::AAAA, good, vec![&six]),
            (&six_reversed, RecordType::PTR, good, vec!["web.vpc.internal."]),
            (&seven_reversed, RecordType::PTR, none, vec![]),
            ("db.vpc.internal.", RecordType::AAAA, good, vec![]),
            ("db.vpc.internal.", RecordType::ANY, good, vec!["10.0.0.5"]),
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
            &reverse(Ula::of(&VpcId::from_random([2; 20])).address(Ipv4Addr::new(10, 0, 0, 5))),
            &reverse(ula().address(Ipv4Addr::new(10, 0, 0, 5)))[2..],
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
                prop_assert!(zone.answer(&question(name.clone(), RecordType::A), false).is_some());
            }
        }
    }
}
