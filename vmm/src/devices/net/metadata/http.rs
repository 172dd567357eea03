//! The few words of HTTP/1.1 (RFC 9112) that the metadata address speaks: one request, one answer, the end.
//!
//! Paths are those of the EC2 instance metadata service, which cloud-init and its kin ask for.

use super::MetadataContent;
use std::fmt::Write as _;

/// Longest head of a request, in bytes: curl's has 100, and one with a token and a few fields of a proxy 1000.
pub const HEAD_MAX: usize = 4096;
/// How long a token is said to last, in seconds: the longest that EC2 allows.
const TOKEN_SECONDS: u32 = 21_600;

/// An answer before it is bytes.
#[derive(Debug)]
struct Answer {
    status: &'static str,
    /// Methods that the path has; for a refusal of another one.
    allow: Option<&'static str>,
    token: bool,
    body: String,
}

/// The answer to a request of which `head` has arrived, or nothing while more of it must come. `token` makes the
/// answer to who wants one; before there is `content`, every path is unknown.
///
/// What follows the head is the request's body and is not looked at.
#[must_use]
pub fn answer(
    head: &[u8],
    content: Option<&MetadataContent>,
    token: impl FnOnce() -> String,
) -> Option<Vec<u8>> {
    let Some(end) = end_of_head(head) else {
        return (head.len() >= HEAD_MAX)
            .then(|| Answer::refusal("431 Request Header Fields Too Large").bytes(true));
    };
    let Some((method, path)) = request_line(&head[..end]) else {
        return Some(Answer::refusal("400 Bad Request").bytes(true));
    };
    let found = match (path, content) {
        ("/latest/api/token", _) if method == "PUT" => Answer { token: true, ..Answer::ok(token()) },
        ("/latest/api/token", _) => Answer::not_allowed("PUT"),
        (path, Some(content)) => match body(path, content) {
            Some(body) if matches!(method, "GET" | "HEAD") => Answer::ok(body),
            Some(_) => Answer::not_allowed("GET, HEAD"),
            None => Answer::refusal("404 Not Found"),
        },
        (_, None) => Answer::refusal("404 Not Found"),
    };
    Some(found.bytes(method != "HEAD"))
}

/// Number of bytes up to the end of the empty line. A bare line feed ends a line too (RFC 9112 section 2.2).
fn end_of_head(head: &[u8]) -> Option<usize> {
    let mut line_is_empty = false;
    for (at, byte) in head.iter().enumerate() {
        match byte {
            b'\n' if line_is_empty => return Some(at + 1),
            b'\n' => line_is_empty = true,
            b'\r' if line_is_empty => {}
            _ => line_is_empty = false,
        }
    }
    None
}

/// Method and path without its query, of a request that makes sense.
fn request_line(head: &[u8]) -> Option<(&str, &str)> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.strip_suffix('\r').unwrap_or(line).split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let known = matches!(version, "HTTP/1.1" | "HTTP/1.0") && words.next().is_none();
    let token = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphabetic());
    let path = target.split('?').next()?;
    (known && token && path.starts_with('/')).then_some((method, path))
}

/// What stands at a path. The folders list what is in them, as clients walk through them.
fn body(path: &str, content: &MetadataContent) -> Option<String> {
    Some(match path {
        "/latest/" | "/latest" => {
            let user_data = if content.user_data.is_some() { "user-data\n" } else { "" };
            format!("meta-data/\n{user_data}")
        }
        "/latest/meta-data/" | "/latest/meta-data" => {
            "hostname\ninstance-id\nlocal-ipv4\nmac\npublic-keys/\n".to_owned()
        }
        "/latest/meta-data/hostname" => content.hostname.clone(),
        "/latest/meta-data/instance-id" => content.instance_id.clone(),
        "/latest/meta-data/local-ipv4" => content.ipv4.to_string(),
        "/latest/meta-data/mac" => content.mac.to_string(),
        "/latest/meta-data/public-keys/" | "/latest/meta-data/public-keys" => "0=gatehouse\n".to_owned(),
        "/latest/meta-data/public-keys/0/" | "/latest/meta-data/public-keys/0" => "openssh-key\n".to_owned(),
        "/latest/meta-data/public-keys/0/openssh-key" | "/v1/ssh-keys" => {
            content.ssh_keys.iter().flat_map(|key| [key.as_str(), "\n"]).collect()
        }
        "/latest/user-data" => content.user_data.clone()?,
        _ => return None,
    })
}

impl Answer {
    fn ok(body: String) -> Self {
        Self { status: "200 OK", allow: None, token: false, body }
    }

    fn refusal(status: &'static str) -> Self {
        Self { status, allow: None, token: false, body: format!("{status}\n") }
    }

    fn not_allowed(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::refusal("405 Method Not Allowed") }
    }

    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let Self { status, allow, token, body } = self;
        let mut text = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n");
        // Writing to a String cannot fail.
        let mut written = write!(text, "Content-Length: {}\r\nCache-Control: no-store\r\n", body.len());
        if let Some(methods) = allow {
            written = written.and(write!(text, "Allow: {methods}\r\n"));
        }
        if *token {
            written = written.and(write!(text, "X-Aws-Ec2-Metadata-Token-Ttl-Seconds: {TOKEN_SECONDS}\r\n"));
        }
        debug_assert!(written.is_ok());
        text.push_str("Connection: close\r\n\r\n");
        if with_body {
            text.push_str(body);
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::net::MacAddress;
    use proptest::prelude::*;

    fn content() -> MetadataContent {
        MetadataContent {
            instance_id: "vm-1".to_owned(),
            hostname: "box".to_owned(),
            ipv4: "10.0.0.2".parse().unwrap(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            ssh_keys: vec!["ssh-ed25519 AAAA a".to_owned(), "ssh-ed25519 BBBB b".to_owned()],
            user_data: None,
        }
    }

    fn ask(request: &str) -> String {
        let answer = answer(request.as_bytes(), Some(&content()), || "token".to_owned());
        String::from_utf8(answer.expect("the request is complete")).unwrap()
    }

    fn status_and_body(request: &str) -> (u16, String) {
        let answer = ask(request);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn get(path: &str) -> (u16, String) {
        status_and_body(&format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"))
    }

    #[test]
    fn each_path_has_its_content() {
        for (path, body) in [
            ("/latest/meta-data/", "hostname\ninstance-id\nlocal-ipv4\nmac\npublic-keys/\n"),
            ("/latest/meta-data/instance-id", "vm-1"),
            ("/latest/meta-data/hostname", "box"),
            ("/latest/meta-data/local-ipv4", "10.0.0.2"),
            ("/latest/meta-data/mac", "02:00:00:00:00:01"),
            ("/latest/meta-data/public-keys/", "0=gatehouse\n"),
            ("/latest/meta-data/public-keys/0/", "openssh-key\n"),
            ("/latest/meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b\n"),
            ("/v1/ssh-keys?user=root", "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b\n"),
        ] {
            assert_eq!(get(path), (200, body.to_owned()), "{path}");
        }
        for path in ["/", "/latest/user-data", "/v1/", "/latest/meta-data/../user-data", "/ssh-keys"] {
            assert_eq!(get(path).0, 404, "{path}");
        }
    }

    #[test]
    fn user_data_is_there_when_it_was_given() {
        let with = MetadataContent { user_data: Some("#cloud-config\n".to_owned()), ..content() };
        let answer = answer(b"GET /latest/user-data HTTP/1.1\r\n\r\n", Some(&with), String::new).unwrap();
        let text = String::from_utf8(answer).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n#cloud-config\n"),
            "{text}"
        );
    }

    #[test]
    fn head_says_the_length_and_sends_nothing() {
        let answer = ask("HEAD /latest/meta-data/instance-id HTTP/1.1\r\n\r\n");
        assert!(answer.contains("\r\nContent-Length: 4\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[test]
    fn a_token_is_handed_out_and_only_put_gets_it() {
        let answer = ask("PUT /latest/api/token HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\ntoken"), "{answer}");
        assert!(answer.contains("\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\n"), "{answer}");
        let refused = ask("GET /latest/api/token HTTP/1.1\r\n\r\n");
        assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("\r\nAllow: PUT\r\n"), "{refused}");
    }

    #[test]
    fn other_methods_and_senseless_heads_are_refused() {
        for (request, status) in [
            ("POST /latest/meta-data/ HTTP/1.1\r\n\r\n", 405),
            ("DELETE /v1/ssh-keys HTTP/1.1\r\n\r\n", 405),
            ("POST /nowhere HTTP/1.1\r\n\r\n", 404),
            ("GET /latest/meta-data/mac HTTP/1.0\n\n", 200),
            ("GET /latest/meta-data/mac\r\n\r\n", 400),
            ("GET /latest/meta-data/mac HTTP/2.0\r\n\r\n", 400),
            ("GET  /latest/meta-data/mac HTTP/1.1\r\n\r\n", 400),
            ("GET http://169.254.169.254/latest/meta-data/mac HTTP/1.1\r\n\r\n", 400),
            (" / HTTP/1.1\r\n\r\n", 400),
            ("\r\n\r\n", 400),
        ] {
            assert_eq!(status_and_body(request).0, status, "{request:?}");
        }
        let before = answer(b"GET /v1/ssh-keys HTTP/1.1\r\n\r\n", None, String::new).unwrap();
        assert!(before.starts_with(b"HTTP/1.1 404 "));
    }

    #[test]
    fn a_head_that_does_not_end_is_refused_at_the_bound() {
        let mut head = b"GET /latest/meta-data/mac HTTP/1.1\r\nX: ".to_vec();
        head.resize(HEAD_MAX - 1, b'x');
        assert_eq!(answer(&head, None, String::new), None);
        head.push(b'x');
        assert!(answer(&head, None, String::new).unwrap().starts_with(b"HTTP/1.1 431 "));
    }

    proptest! {
        #[test]
        fn any_head_is_answered_or_waited_for(head in prop::collection::vec(any::<u8>(), 0..200), ends in any::<bool>()) {
            let mut head = head;
            if ends {
                head.extend(b"\r\n\r\n");
            }
            let answer = answer(&head, Some(&content()), String::new);
            prop_assert!(answer.is_some() || !ends);
            prop_assert!(answer.is_none_or(|a| a.starts_with(b"HTTP/1.1 ")));
        }

        /// More bytes never change what a complete head is answered.
        #[test]
        fn the_body_is_not_looked_at(path in "[/a-z0-9-]{0,30}", body in prop::collection::vec(any::<u8>(), 0..50)) {
            let mut request = format!("GET {path} HTTP/1.1\r\n\r\n").into_bytes();
            let alone = answer(&request, Some(&content()), String::new);
            request.extend(body);
            prop_assert_eq!(answer(&request, Some(&content()), String::new), alone);
        }
    }
}
