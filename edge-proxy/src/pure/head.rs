//! The gate in front of HTTP/1: a request head that two servers could read in two ways goes no further.
//!
//! RFC 9112 lets a recipient repair much; each repair is a chance to disagree with the server behind. Here the head's
//! raw bytes must already be what the repair would make of them: CRLF line ends, one space between the parts of the
//! request line, one `Host`, and at most one of one `Content-Length` or one `Transfer-Encoding: chunked`.

use thiserror::Error;

/// Most header fields of a request. Browsers send about 20; a hundred is nginx's and Apache's order of magnitude.
pub const MAX_FIELDS: usize = 100;

/// How the body's end is known (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks; the end stands in the bytes.
    Chunked,
}

/// What the gate found in a good head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How the body's end is known.
    pub framing: Framing,
    /// Whether the client asks to speak WebSocket from here on (RFC 6455 section 4.1).
    pub websocket: bool,
}

/// Why a head is refused. Each is counted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HeadFault {
    /// A line ends with LF alone, or a CR stands alone.
    #[error("a line does not end with CR LF")]
    BareLineEnd,
    /// Not `method SP target SP version`.
    #[error("the request line is not 'METHOD target HTTP/1.1' with single spaces")]
    RequestLine,
    /// Neither HTTP/1.1 nor HTTP/1.0.
    #[error("the protocol version is not HTTP/1.1 or HTTP/1.0")]
    Version,
    /// CONNECT or TRACE.
    #[error("the method is not allowed here")]
    Method,
    /// The target has a character that no URI has, or is not origin, absolute or asterisk form.
    #[error("the request target is not a path")]
    Target,
    /// A field is not `name: value`, is folded over lines, or has a forbidden character.
    #[error("a header field is malformed")]
    Field,
    /// A field's name has an underscore: programs that make variables of names cannot tell it from a hyphen.
    #[error("a header field's name contains '_'")]
    Underscore,
    /// More than [`MAX_FIELDS`], or more bytes than are allowed.
    #[error("the request's header is too large")]
    TooLarge,
    /// No `Host`, or more than one.
    #[error("the request must have exactly one Host field")]
    Host,
    /// `Content-Length` is repeated, or is not a plain number.
    #[error("Content-Length must be one plain number")]
    ContentLength,
    /// `Transfer-Encoding` is repeated, is not exactly `chunked`, or comes with HTTP/1.0.
    #[error("Transfer-Encoding must be exactly 'chunked'")]
    TransferEncoding,
    /// Both `Content-Length` and `Transfer-Encoding`.
    #[error("Content-Length and Transfer-Encoding exclude each other")]
    BothFramings,
    /// `Connection` names a field that frames or routes the request, as if it were for one hop (RFC 9110 section 7.6.1).
    #[error("Connection must not name a field that frames or routes the request")]
    Connection,
    /// A request to change the protocol that has a body, or is no GET.
    #[error("a request to upgrade must be a GET without a body")]
    Upgrade,
    /// `Expect` is not `100-continue`.
    #[error("the expectation is not known")]
    Expectation,
}

impl HeadFault {
    /// The status of the answer.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Version => 505,
            Self::Method => 405,
            Self::TooLarge => 431,
            Self::Expectation => 417,
            Self::BareLineEnd
            | Self::RequestLine
            | Self::Target
            | Self::Field
            | Self::Underscore
            | Self::Host
            | Self::ContentLength
            | Self::TransferEncoding
            | Self::BothFramings
            | Self::Connection
            | Self::Upgrade => 400,
        }
    }
}

/// Looks for the empty line that ends a head; `from` bytes have been looked at before. Gives the head's length.
///
/// # Errors
/// [`HeadFault::BareLineEnd`] as soon as a line ends wrongly, so that a bad client need not be waited for.
pub fn find_end(bytes: &[u8], from: usize) -> Result<Option<usize>, HeadFault> {
    for (offset, byte) in bytes[from..].iter().enumerate() {
        if *byte != b'\n' {
            continue;
        }
        let at = from + offset;
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(HeadFault::BareLineEnd);
        }
        if at >= 3 && &bytes[at - 3..at - 1] == b"\r\n" {
            return Ok(Some(at + 1));
        }
    }
    Ok(None)
}

/// Judges a whole head, the empty line included.
///
/// # Errors
/// Says what is wrong with it.
pub fn judge(bytes: &[u8]) -> Result<Head, HeadFault> {
    let line_end = bytes.iter().position(|b| *b == b'\r').ok_or(HeadFault::RequestLine)?;
    let line = RequestLine::parse(&bytes[..line_end])?;
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(httparse::Status::Complete(_) | httparse::Status::Partial) => return Err(HeadFault::Field),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadFault::TooLarge),
        Err(_) => return Err(HeadFault::Field),
    }
    let mut found = Found::default();
    for field in request.headers.iter() {
        found.note(field.name, field.value)?;
    }
    found.judge(&line)
}

struct RequestLine {
    is_get: bool,
    is_1_1: bool,
}

impl RequestLine {
    fn parse(line: &[u8]) -> Result<Self, HeadFault> {
        let mut parts = line.split(|b| *b == b' ');
        let (method, target, version) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(method), Some(target), Some(version), None) => (method, target, version),
            _ => return Err(HeadFault::RequestLine),
        };
        if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
            return Err(HeadFault::RequestLine);
        }
        if method.eq_ignore_ascii_case(b"CONNECT") || method.eq_ignore_ascii_case(b"TRACE") {
            return Err(HeadFault::Method);
        }
        let is_1_1 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            _ if version.starts_with(b"HTTP/") => return Err(HeadFault::Version),
            _ => return Err(HeadFault::RequestLine),
        };
        let known_form = target.starts_with(b"/")
            || (target == b"*" && method == b"OPTIONS")
            || starts_with_ignore_case(target, b"http://")
            || starts_with_ignore_case(target, b"https://");
        if !known_form || !target.iter().all(|b| matches!(b, 0x21..=0x7e) && *b != b'#') {
            return Err(HeadFault::Target);
        }
        Ok(Self { is_get: method == b"GET", is_1_1 })
    }
}

/// What has been seen of the fields that decide about framing and routing.
#[derive(Default)]
struct Found {
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    upgrade_websocket: bool,
    connection_upgrade: bool,
}

impl Found {
    fn note(&mut self, name: &str, value: &[u8]) -> Result<(), HeadFault> {
        if name.contains('_') {
            return Err(HeadFault::Underscore);
        }
        // Names of other lengths are none of those below; most fields end here.
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => self.hosts += 1,
            14 if name.eq_ignore_ascii_case("content-length") => {
                let length = plain_number(value)?;
                if self.length.is_some() {
                    return Err(HeadFault::ContentLength);
                }
                self.length = Some(length);
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadFault::TransferEncoding);
                }
                self.chunked = true;
            }
            7 if name.eq_ignore_ascii_case("upgrade") => {
                self.upgrade_websocket |= has_token(value, b"websocket");
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                let framing = [&b"host"[..], b"content-length", b"transfer-encoding"];
                if framing.iter().any(|name| has_token(value, name)) {
                    return Err(HeadFault::Connection);
                }
                self.connection_upgrade |= has_token(value, b"upgrade");
            }
            6 if name.eq_ignore_ascii_case("expect") && !value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(HeadFault::Expectation);
            }
            _ => {}
        }
        Ok(())
    }

    fn judge(&self, line: &RequestLine) -> Result<Head, HeadFault> {
        if self.hosts != 1 {
            return Err(HeadFault::Host);
        }
        if self.chunked && !line.is_1_1 {
            return Err(HeadFault::TransferEncoding);
        }
        let framing = match (self.chunked, self.length) {
            (true, Some(_)) => return Err(HeadFault::BothFramings),
            (true, None) => Framing::Chunked,
            (false, Some(0) | None) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
        };
        let websocket = self.upgrade_websocket && self.connection_upgrade && line.is_1_1;
        if websocket && (!line.is_get || framing != Framing::None) {
            return Err(HeadFault::Upgrade);
        }
        Ok(Head { framing, websocket })
    }
}

/// `1*DIGIT` (RFC 9110 section 8.6), nothing else: no sign, no list, no space.
fn plain_number(value: &[u8]) -> Result<u64, HeadFault> {
    /// 10^18 - 1 bytes fit in 63 bits, and no body is longer.
    const MAX_DIGITS: usize = 18;
    if value.is_empty() || value.len() > MAX_DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return Err(HeadFault::ContentLength);
    }
    Ok(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

fn starts_with_ignore_case(text: &[u8], start: &[u8]) -> bool {
    text.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start))
}

/// `tchar` of RFC 9110 section 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gate(text: &str) -> Result<Head, HeadFault> {
        let bytes = text.as_bytes();
        let end = find_end(bytes, 0)?.expect("the test's heads are whole");
        judge(&bytes[..end])
    }

    const NONE: Result<Head, HeadFault> = Ok(Head { framing: Framing::None, websocket: false });

    #[test]
    fn what_every_server_reads_alike_passes() {
        assert_eq!(gate("GET / HTTP/1.1\r\nHost: a.dev\r\n\r\n"), NONE);
        assert_eq!(gate("GET / HTTP/1.0\r\nHost: a.dev\r\n\r\n"), NONE);
        assert_eq!(gate("OPTIONS * HTTP/1.1\r\nHost: a.dev\r\n\r\n"), NONE);
        assert_eq!(gate("GET https://a.dev/x?y HTTP/1.1\r\nhOST: a.dev\r\n\r\n"), NONE);
        assert_eq!(
            gate("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n").map(|head| head.framing),
            Ok(Framing::Length(12))
        );
        assert_eq!(
            gate("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n").map(|head| head.framing),
            Ok(Framing::Chunked)
        );
    }

    #[test]
    fn a_websocket_is_told_from_other_upgrades() {
        let ask = |method: &str, upgrade: &str, connection: &str, more: &str| {
            gate(&format!(
                "{method} / HTTP/1.1\r\nHost: a\r\nUpgrade: {upgrade}\r\nConnection: {connection}\r\n{more}\r\n"
            ))
            .map(|head| head.websocket)
        };
        assert_eq!(ask("GET", "WebSocket", "keep-alive, Upgrade", ""), Ok(true));
        assert_eq!(ask("GET", "h2c", "Upgrade, HTTP2-Settings", ""), Ok(false));
        assert_eq!(ask("GET", "websocket", "keep-alive", ""), Ok(false));
        assert_eq!(ask("POST", "websocket", "upgrade", ""), Err(HeadFault::Upgrade));
        assert_eq!(ask("GET", "websocket", "upgrade", "Content-Length: 5\r\n"), Err(HeadFault::Upgrade));
    }

    /// The framing fields of a request that servers are known to read in two ways.
    #[test]
    fn the_smuggling_table_of_framing() {
        let table = [
            ("Content-Length: 3, 3", HeadFault::ContentLength),
            ("Content-Length: 3\r\nContent-Length: 3", HeadFault::ContentLength),
            ("Content-Length: +3", HeadFault::ContentLength),
            ("Content-Length: 0x3", HeadFault::ContentLength),
            ("Content-Length: -1", HeadFault::ContentLength),
            ("Content-Length: ", HeadFault::ContentLength),
            ("Content-Length: 99999999999999999999", HeadFault::ContentLength),
            ("Content-Length: 3\r\nTransfer-Encoding: chunked", HeadFault::BothFramings),
            ("Transfer-Encoding: chunked\r\nContent-Length: 3", HeadFault::BothFramings),
            ("Transfer-Encoding: identity, chunked", HeadFault::TransferEncoding),
            ("Transfer-Encoding: gzip", HeadFault::TransferEncoding),
            ("Transfer-Encoding: xchunked", HeadFault::TransferEncoding),
            ("Transfer-Encoding: \x0bchunked", HeadFault::Field),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", HeadFault::TransferEncoding),
            ("Transfer-Encoding : chunked", HeadFault::Field),
            ("Expect: 200-ok", HeadFault::Expectation),
            ("Connection: close, Content-Length", HeadFault::Connection),
            ("Connection: transfer-encoding", HeadFault::Connection),
            ("Connection: Host,keep-alive", HeadFault::Connection),
        ];
        for (fields, fault) in table {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            assert_eq!(gate(&text), Err(fault), "{fields}");
        }
        let old = "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(gate(old), Err(HeadFault::TransferEncoding));
    }

    /// Request lines and fields that servers are known to read in two ways, or that no client sends.
    #[test]
    fn the_smuggling_table_of_lines() {
        let line = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
        let field = |field: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
        let table = [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(), HeadFault::BareLineEnd),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n".to_owned(), HeadFault::BareLineEnd),
            (line("GET  / HTTP/1.1"), HeadFault::RequestLine),
            (line("GET /a b HTTP/1.1"), HeadFault::RequestLine),
            (line("GET\t/ HTTP/1.1"), HeadFault::RequestLine),
            (line("GET /"), HeadFault::RequestLine),
            (line("GET / http/1.1"), HeadFault::RequestLine),
            (line("GET / HTTP/2.0"), HeadFault::Version),
            (line("GET / HTTP/1.11"), HeadFault::Version),
            (line("TRACE / HTTP/1.1"), HeadFault::Method),
            (line("CONNECT a:443 HTTP/1.1"), HeadFault::Method),
            (line("GET /#a HTTP/1.1"), HeadFault::Target),
            (line("GET /\u{e4} HTTP/1.1"), HeadFault::Target),
            (line("GET a.dev HTTP/1.1"), HeadFault::Target),
            ("GET / HTTP/1.1\r\nAccept: a\r\n\r\n".to_owned(), HeadFault::Host),
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), HeadFault::Host),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_owned(), HeadFault::Field),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(), HeadFault::Field),
            (field("Host: a"), HeadFault::Host),
            (field("X: a\rY: b"), HeadFault::Field),
            (field("X: a\r\n b"), HeadFault::Field),
            (field("X: a\0b"), HeadFault::Field),
            (field("X_Forwarded_For: a"), HeadFault::Underscore),
        ];
        for (text, fault) in table {
            assert_eq!(gate(&text), Err(fault), "{text:?}");
        }
    }

    #[test]
    fn one_field_too_many_is_too_large() {
        let fields = |count: usize| "X: y\r\n".repeat(count);
        assert!(gate(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(MAX_FIELDS - 1))).is_ok());
        assert_eq!(
            gate(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(MAX_FIELDS))),
            Err(HeadFault::TooLarge)
        );
    }

    proptest! {
        #[test]
        fn the_end_is_found_however_the_bytes_arrive(cut in 0usize..40) {
            let text = b"GET / HTTP/1.1\r\nHost: a.dev\r\n\r\nrest";
            let cut = cut.min(text.len());
            let early = find_end(&text[..cut], 0).expect("good");
            let late = find_end(text, cut.saturating_sub(3)).expect("good");
            prop_assert_eq!(early.or(late), Some(text.len() - 4));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(Some(end)) = find_end(&bytes, 0) {
                let _either_way = judge(&bytes[..end]);
            }
        }

        #[test]
        fn what_passes_has_one_host_and_one_framing(
            fields in proptest::collection::vec(("(?i)host|content-length|transfer-encoding|x", "[a-z0-9, ]{0,8}"), 0..6)
        ) {
            let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            if gate(&format!("POST / HTTP/1.1\r\n{lines}\r\n")).is_ok() {
                let count = |wanted: &str| fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).count();
                prop_assert_eq!(count("host"), 1);
                prop_assert!(count("content-length") + count("transfer-encoding") <= 1);
            }
        }
    }
}
