//! Name servers on 127.0.0.0/8, all on one port, as the Internet's are.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, NS, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// Servers of a world; each has its address from the start.
const SERVERS: u8 = 6;
/// Worlds that look for a port of their own.
const TRIES: u8 = 50;

/// How a server behaves.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    /// As it should.
    True,
    /// It says that it knows nothing, without authority.
    Lame,
    /// Always the same code.
    Code(ResponseCode),
    /// Over UDP, answers with other ids come before the right one.
    WrongIdsFirst,
    /// It answers FORMERR to what has an OPT record.
    WithoutEdns,
}

#[derive(Clone, Debug)]
struct Server {
    records: Vec<Record>,
    cuts: Vec<(Name, Name, Option<u8>)>,
    reply: Reply,
}

/// The servers.
#[derive(Debug)]
pub struct World {
    servers: BTreeMap<u8, Server>,
    sockets: BTreeMap<u8, (UdpSocket, TcpListener)>,
    port: u16,
}

impl World {
    /// Servers that know nothing yet, on a port that is free on all their addresses.
    pub async fn new() -> Self {
        for _ in 0..TRIES {
            if let Some((sockets, port)) = bind().await {
                let server = Server { records: Vec::new(), cuts: Vec::new(), reply: Reply::True };
                let servers = (1..=SERVERS).map(|number| (number, server.clone())).collect();
                return Self { servers, sockets, port };
            }
        }
        panic!("no port is free on all addresses");
    }

    /// The root's address.
    pub fn root(&self) -> IpAddr {
        self.address(1)
    }

    /// The address of a server.
    pub fn address(&self, number: u8) -> IpAddr {
        ip(number).into()
    }

    /// The port of all.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn server(&mut self, number: u8) -> &mut Server {
        self.servers.get_mut(&number).expect("a server")
    }

    /// Lets a server lead to another zone's.
    pub fn delegate(&mut self, by: u8, zone: &str, server: &str, glue: Option<u8>) {
        self.server(by).cuts.push((name(zone), name(server), glue));
    }

    fn add(&mut self, by: u8, owner: &str, data: RData) {
        self.server(by).records.push(Record::from_rdata(name(owner), 60, data));
    }

    /// A TXT record of these strings.
    pub fn text(&mut self, by: u8, owner: &str, strings: &[&str]) {
        let strings = strings.iter().map(|text| (*text).to_owned()).collect();
        self.add(by, owner, RData::TXT(TXT::new(strings)));
    }

    /// A CNAME record.
    pub fn alias(&mut self, by: u8, owner: &str, target: &str) {
        self.add(by, owner, RData::CNAME(CNAME(name(target))));
    }

    /// An A record with a server's address.
    pub fn addresses(&mut self, by: u8, owner: &str, of: u8) {
        self.add(by, owner, RData::A(A(ip(of))));
    }

    /// Lets a server misbehave.
    pub fn behave(&mut self, number: u8, reply: Reply) {
        self.server(number).reply = reply;
    }

    /// Begins to serve.
    pub fn start(&mut self) {
        for (number, (udp, tcp)) in std::mem::take(&mut self.sockets) {
            let server = Arc::new(self.servers[&number].clone());
            tokio::spawn(serve_udp(udp, Arc::clone(&server)));
            tokio::spawn(serve_tcp(tcp, server));
        }
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("name")
}

fn ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 53, 0, number)
}

async fn bind() -> Option<(BTreeMap<u8, (UdpSocket, TcpListener)>, u16)> {
    let mut sockets = BTreeMap::new();
    let mut port = 0;
    for number in 1..=SERVERS {
        let udp = UdpSocket::bind((ip(number), port)).await.ok()?;
        port = udp.local_addr().ok()?.port();
        let tcp = TcpListener::bind((ip(number), port)).await.ok()?;
        sockets.insert(number, (udp, tcp));
    }
    Some((sockets, port))
}

impl Server {
    fn answer(&self, bytes: &[u8], udp: bool) -> Vec<Vec<u8>> {
        let question = Message::from_vec(bytes).expect("a question");
        let edns = question.edns.is_some();
        let mut message = question.into_response();
        message.edns = None;
        match self.reply {
            Reply::Code(code) => message.metadata.response_code = code,
            Reply::WithoutEdns if edns => message.metadata.response_code = ResponseCode::FormErr,
            Reply::Lame => {}
            Reply::True | Reply::WrongIdsFirst | Reply::WithoutEdns => self.fill(&mut message),
        }
        let full = message.to_vec().expect("bytes");
        if udp && full.len() > 1232 {
            message.answers.clear();
            message.metadata.truncation = true;
        }
        let right = message.to_vec().expect("bytes");
        if !udp || !matches!(self.reply, Reply::WrongIdsFirst) {
            return vec![right];
        }
        let forged = |add: u16| {
            let mut forged = message.clone();
            forged.metadata.id = message.metadata.id.wrapping_add(add);
            forged.answers.clear();
            forged.metadata.response_code = ResponseCode::NXDomain;
            forged.to_vec().expect("bytes")
        };
        vec![forged(1), b"garbage".to_vec(), forged(2), right]
    }

    fn fill(&self, message: &mut Message) {
        let (asked, kind) = (message.queries[0].name.clone(), message.queries[0].query_type);
        let below: Vec<_> = self.cuts.iter().filter(|(zone, _, _)| zone.zone_of(&asked)).collect();
        if !below.is_empty() {
            for (zone, server, glue) in below {
                message.add_authority(Record::from_rdata(zone.clone(), 60, RData::NS(NS(server.clone()))));
                if let Some(glue) = glue {
                    message.add_additional(Record::from_rdata(server.clone(), 60, RData::A(A(ip(*glue)))));
                }
            }
            return;
        }
        message.metadata.authoritative = true;
        let here: Vec<_> = self.records.iter().filter(|record| record.name == asked).collect();
        if here.is_empty() {
            message.metadata.response_code = ResponseCode::NXDomain;
        }
        for record in here {
            if record.record_type() == kind || record.record_type() == RecordType::CNAME {
                message.add_answer(record.clone());
            }
        }
    }
}

async fn serve_udp(socket: UdpSocket, server: Arc<Server>) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        for answer in server.answer(&buffer[..length], true) {
            socket.send_to(&answer, from).await.expect("sent");
        }
    }
}

async fn serve_tcp(listener: TcpListener, server: Arc<Server>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let Ok(length) = stream.read_u16().await else { continue };
        let mut question = vec![0; usize::from(length)];
        stream.read_exact(&mut question).await.expect("a question");
        for answer in server.answer(&question, false) {
            stream.write_u16(u16::try_from(answer.len()).expect("short")).await.expect("sent");
            stream.write_all(&answer).await.expect("sent");
        }
    }
}
