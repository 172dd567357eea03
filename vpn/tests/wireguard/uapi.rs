//! What `wg` says to a userspace WireGuard, as lines `key=value` up to an empty one
//! (<https://www.wireguard.com/xplatform/>).

use crate::device::Device;
use model::key::{PublicKey, SecretKey};
use rustix::io::Errno;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Whoever asks and says nothing more is left alone after this.
const PATIENCE: Duration = Duration::from_secs(5);

/// A line of a request.
pub enum Setting {
    PrivateKey(Option<SecretKey>),
    ListenPort(u16),
    Mark(u32),
    ReplacePeers,
    /// What follows is about this one.
    Peer(PublicKey),
    Of(Change),
}

/// What a line says of a peer.
pub enum Change {
    Remove,
    PresharedKey(Option<SecretKey>),
    Endpoint(SocketAddr),
    /// Seconds.
    Keepalive(u16),
    ReplaceRanges,
    Range(IpAddr, u8),
}

/// Answers one request.
pub fn answer(stream: &UnixStream, device: &mut Device) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let lines: Vec<String> = BufReader::new(stream)
        .lines()
        .take_while(|line| line.as_ref().is_ok_and(|l| !l.is_empty()))
        .collect::<Result<_, _>>()?;
    let (text, errno) = match lines.split_first() {
        Some((word, [])) if word == "get=1" => (device.told(), 0),
        Some((word, lines)) if word == "set=1" => {
            let settings: Option<Vec<Option<Setting>>> = lines.iter().map(|line| read(line)).collect();
            let settings = settings.map(|all| all.into_iter().flatten().collect::<Vec<_>>());
            let done = settings.ok_or(Errno::INVAL).and_then(|settings| device.set(&settings));
            (String::new(), done.map_or_else(|errno| -errno.raw_os_error(), |()| 0))
        }
        Some(_) | None => (String::new(), -Errno::INVAL.raw_os_error()),
    };
    let mut stream = stream;
    write!(stream, "{text}errno={errno}\n\n")
}

/// Reads a line; some of none when it says nothing here.
fn read(line: &str) -> Option<Option<Setting>> {
    let (key, value) = line.split_once('=')?;
    Some(Some(match key {
        "private_key" => Setting::PrivateKey(secret(value)?),
        "listen_port" => Setting::ListenPort(value.parse().ok()?),
        "fwmark" => Setting::Mark(value.parse().ok()?),
        "replace_peers" => Setting::ReplacePeers,
        "public_key" => Setting::Peer(PublicKey(unhex(value)?)),
        "remove" => Setting::Of(Change::Remove),
        "preshared_key" => Setting::Of(Change::PresharedKey(secret(value)?)),
        "endpoint" => Setting::Of(Change::Endpoint(value.parse().ok()?)),
        "persistent_keepalive_interval" => Setting::Of(Change::Keepalive(value.parse().ok()?)),
        "replace_allowed_ips" => Setting::Of(Change::ReplaceRanges),
        "allowed_ip" => {
            let (address, length) = value.split_once('/')?;
            let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
            if length > if address.is_ipv6() { 128 } else { 32 } {
                return None;
            }
            Setting::Of(Change::Range(address, length))
        }
        "protocol_version" => return Some(None),
        _ => return None,
    }))
}

/// All zeros means none.
fn secret(text: &str) -> Option<Option<SecretKey>> {
    let key = unhex(text)?;
    Some((key != [0; 32]).then(|| SecretKey::new(key)))
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut key = [0; 32];
    for (byte, at) in key.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(key)
}

/// A key as `wg` writes it here.
pub fn hex(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
