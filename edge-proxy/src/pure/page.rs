//! The answers that the gateway itself gives, instead of a VM: why, and what the reader can do about it.
//!
//! People get a small page, programs get JSON; neither tells anything of the host's inside. The reasons are a closed
//! list, so that each has its text here and its counter in the metrics.

use crate::pure::authority::AuthorityFault;
use crate::pure::head::HeadFault;
use crate::pure::limit::Limit;
use bytes::Bytes;
use model::id::TraceId;

/// Why the gateway answers by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The head is ambiguous or too large.
    Head(HeadFault),
    /// The request names no host, or several, or something that is none.
    Authority(AuthorityFault),
    /// The connection was made for another name, whose certificate does not cover this one (RFC 9110 15.5.20).
    Misdirected,
    /// The name leads nowhere.
    UnknownHost,
    /// The VM to which the name led was deleted.
    VmDeleted,
    /// Nothing listens on the VM's port.
    NothingListens,
    /// The VM is not there, or the port may not be reached.
    VmGone,
    /// The VM has not accepted a connection yet, and a person waits for it.
    Waking,
    /// The VM accepts no connection in time.
    VmSilent,
    /// The VM took the request and did not answer in time.
    AnswerLate,
    /// The VM closed the connection, or answered something that is no HTTP.
    AnswerBroken,
    /// The gateway's own network process is away, or at its bound.
    NetworkAway,
    /// The API's process is away.
    ApiAway,
    /// The client sent its body too slowly.
    BodyLate,
    /// The client's body is not framed as it said.
    BodyBroken,
    /// A fault in the gateway itself.
    Internal,
    /// The client, or everybody together, asks for too much (RFC 6585 section 4).
    Limited(Limit),
}

impl Problem {
    /// The status of the answer.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Head(fault) => fault.status(),
            Self::Authority(_) | Self::BodyBroken => 400,
            Self::Misdirected => 421,
            Self::UnknownHost | Self::VmDeleted => 404,
            Self::NothingListens | Self::VmGone | Self::AnswerBroken => 502,
            Self::VmSilent | Self::AnswerLate => 504,
            Self::Waking | Self::NetworkAway | Self::ApiAway => 503,
            Self::BodyLate => 408,
            Self::Internal => 500,
            Self::Limited(_) => 429,
        }
    }

    /// A short name for programs and counters.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Head(HeadFault::TooLarge) => "HEADER_TOO_LARGE",
            Self::Head(HeadFault::Method) => "METHOD_NOT_ALLOWED",
            Self::Head(_) => "BAD_REQUEST",
            Self::Authority(_) => "BAD_HOST",
            Self::Misdirected => "MISDIRECTED_REQUEST",
            Self::UnknownHost => "HOST_NOT_FOUND",
            Self::VmDeleted => "VM_DELETED",
            Self::NothingListens => "VM_NOT_LISTENING",
            Self::VmGone => "VM_NOT_RUNNING",
            Self::Waking => "VM_WAKING",
            Self::VmSilent => "VM_NOT_REACHABLE",
            Self::AnswerLate => "VM_DID_NOT_ANSWER",
            Self::AnswerBroken => "VM_ANSWER_BROKEN",
            Self::NetworkAway => "GATEWAY_BUSY",
            Self::ApiAway => "API_UNAVAILABLE",
            Self::BodyLate => "BODY_TIMEOUT",
            Self::BodyBroken => "BAD_BODY",
            Self::Internal => "INTERNAL_ERROR",
            Self::Limited(_) => "TOO_MANY_REQUESTS",
        }
    }

    /// The code that clients of the API know (they retry for ever on one that they do not know).
    #[must_use]
    fn api_code(self) -> &'static str {
        if self.status() < 500 { "INVALID_REQUEST" } else { "INTERNAL_ERROR" }
    }

    fn texts(self, about: &About<'_>) -> Texts {
        let About { host, port, api, .. } = about;
        if *api && matches!(self, Self::AnswerLate | Self::AnswerBroken) {
            return Texts {
                title: "The API broke off",
                what:
                    "The API took the request and did not answer: it was restarted, or the work takes long."
                        .to_owned(),
                advice: "It may have taken effect: look before you send it again.",
            };
        }
        let what = match self {
            Self::Head(fault) => format!("The request was refused: {fault}."),
            Self::Authority(fault) => format!("The request was refused: {fault}."),
            Self::Misdirected => format!("This connection was made for another name than {host}."),
            Self::UnknownHost => format!("No VM is mapped to {host}."),
            Self::VmDeleted => format!("The VM behind {host} was deleted."),
            Self::NothingListens => {
                format!("The VM behind {host} runs, but nothing in it listens on port {port}.")
            }
            Self::VmGone => format!("The VM behind {host} is stopped, or port {port} may not be reached."),
            Self::Waking => {
                format!("The VM behind {host} does not answer yet: it may be waking or starting.")
            }
            Self::VmSilent => {
                format!("The VM behind {host} did not accept a connection on port {port} in time.")
            }
            Self::AnswerLate => format!("The VM behind {host} took the request, but did not answer in time."),
            Self::AnswerBroken => {
                format!("The server in the VM behind {host} broke off, or did not answer with HTTP.")
            }
            Self::NetworkAway => "The gateway is busy or starting.".to_owned(),
            Self::ApiAway => "The API is starting or being updated. Running VMs are not affected.".to_owned(),
            Self::BodyLate => "The rest of the request did not arrive in time.".to_owned(),
            Self::BodyBroken => "The request's body does not end as its header says.".to_owned(),
            Self::Internal => "The gateway could not handle the request.".to_owned(),
            Self::Limited(limit) => format!("The request was refused: {limit}."),
        };
        let (title, advice) = self.title_and_advice();
        Texts { title, what, advice }
    }

    fn title_and_advice(self) -> (&'static str, &'static str) {
        match self {
            Self::Head(_) | Self::BodyBroken => {
                ("Bad request", "Send the request again with a standard HTTP client.")
            }
            Self::Authority(_) => ("Bad request", "Send exactly one Host with the name of the site."),
            Self::Misdirected => {
                ("Wrong connection", "Open a new connection for this name; browsers do so by themselves.")
            }
            Self::UnknownHost => (
                "Nothing here yet",
                "If this is your domain, map it to a VM and a port. If you have just done so, check the spelling.",
            ),
            Self::VmDeleted => {
                ("The VM behind this name is gone", "If this is your domain, map it to another VM.")
            }
            Self::NothingListens => (
                "The VM is up, but nothing answers",
                "Start your server in the VM, let it listen on 0.0.0.0 and not on 127.0.0.1 only, and check that the \
                 mapping names its port.",
            ),
            Self::VmGone => ("The VM is not running", "Start the VM, or map the name to another one."),
            Self::Waking => ("Just a moment", "This page looks again by itself."),
            Self::VmSilent => (
                "The VM does not answer",
                "It may still be starting or waking: try again in a moment. If this stays, look at the VM's firewall and console.",
            ),
            Self::AnswerLate => (
                "The VM took too long",
                "Look at the server in the VM: it may be overloaded or waiting for something itself.",
            ),
            Self::AnswerBroken => (
                "The VM broke off",
                "Look at the server's log in the VM, and check that this port speaks plain HTTP and not HTTPS.",
            ),
            Self::Limited(_) => {
                ("Too many requests", "Wait a moment and try again, with fewer requests at once.")
            }
            Self::NetworkAway | Self::ApiAway => ("Please try again", "Try again in a few seconds."),
            Self::BodyLate => {
                ("The request took too long", "Check the connection and send the request again.")
            }
            Self::Internal => {
                ("Something went wrong", "Try again. If this stays, tell the operator the trace id.")
            }
        }
    }
}

/// What an answer is about.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The host that was asked for, as a valid name, or "this site".
    pub host: &'a str,
    /// The VM's port, 0 when there is none.
    pub port: u16,
    /// Whether the host is the API's.
    pub api: bool,
    /// `Accept` of the request, empty when there is none.
    pub accept: &'a [u8],
    /// By which the operator finds the request in the log.
    pub trace: &'a TraceId,
}

/// An answer without its connection: what both HTTP versions send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The status.
    pub status: u16,
    /// Fields besides `Content-Length`.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
}

/// Before a client, or the waiting page by itself, looks again. Each look waits by itself, so more haste gains nothing.
const LOOK_AGAIN_SECONDS: u8 = 2;
/// What a page may do (Content Security Policy, level 3): have its own style, which bears the trace id, random and used
/// once. No script, no picture, no other server.
const CSP: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'nonce-";

struct Texts {
    title: &'static str,
    what: String,
    advice: &'static str,
}

/// Makes the answer to a problem.
#[must_use]
pub fn render(problem: Problem, about: &About<'_>) -> Page {
    let status = problem.status();
    let texts = problem.texts(about);
    let wants_html = !about.api && contains(about.accept, b"text/html");
    let (kind, body) = if wants_html {
        ("text/html; charset=utf-8", html(problem, &texts, about.trace))
    } else {
        ("application/json", json(problem, &texts, about))
    };
    let mut fields = vec![
        ("content-type", kind.to_owned()),
        ("cache-control", "no-store".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-freestyle-trace-id", about.trace.to_string()),
    ];
    if wants_html {
        fields.push(("content-security-policy", format!("{CSP}{}'", about.trace)));
    }
    match status {
        503 => fields.push(("retry-after", LOOK_AGAIN_SECONDS.to_string())),
        429 => fields.push(("retry-after", "1".to_owned())),
        405 => fields.push(("allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".to_owned())),
        _ => {}
    }
    Page { status, fields, body: body.into() }
}

fn json(problem: Problem, texts: &Texts, about: &About<'_>) -> String {
    let code = if about.api { problem.api_code() } else { problem.code() };
    let message = format!("{} {}", texts.what, texts.advice);
    serde_json::json!({ "code": code, "error": code, "message": message, "traceId": about.trace.as_str() })
        .to_string()
}

fn html(problem: Problem, texts: &Texts, trace: &TraceId) -> String {
    let status = problem.status();
    let Texts { title, what, advice } = texts;
    let (what, advice) = (escape(what), escape(advice));
    let again = if problem == Problem::Waking {
        format!("<meta http-equiv=\"refresh\" content=\"{LOOK_AGAIN_SECONDS}\">")
    } else {
        String::new()
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">{again}<title>{title}</title><style nonce=\"{trace}\">\
         body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:16vh auto 0;padding:0 1rem;color:#222;\
         background:#fff}}h1{{font-size:1.5rem}}small{{color:#777}}\
         @media(prefers-color-scheme:dark){{body{{color:#ddd;background:#161616}}}}</style></head>\n\
         <body><h1>{title}</h1><p>{what}</p><p>{advice}</p><small>{status} · {trace}</small></body></html>\n"
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about<'a>(accept: &'a str, api: bool, trace: &'a TraceId) -> About<'a> {
        About { host: "a.style.dev", port: 3000, api, accept: accept.as_bytes(), trace }
    }

    #[test]
    fn people_get_a_page_and_programs_get_json() {
        let trace = TraceId::from_random([9; 20]);
        let page = render(Problem::NothingListens, &about("text/html,*/*", false, &trace));
        let text = String::from_utf8(page.body.to_vec()).expect("text");
        assert_eq!(page.status, 502);
        assert!(text.contains("port 3000") && text.contains("0.0.0.0") && text.contains(trace.as_str()));
        assert!(!text.contains("http://") && !text.contains("src="));
        let page = render(Problem::UnknownHost, &about("*/*", false, &trace));
        let value: serde_json::Value = serde_json::from_slice(&page.body).expect("json");
        assert_eq!(
            (page.status, &value["error"], &value["code"]),
            (404, &"HOST_NOT_FOUND".into(), &"HOST_NOT_FOUND".into())
        );
        assert!(value["message"].as_str().expect("text").contains("a.style.dev"));
    }

    #[test]
    fn the_apis_clients_get_codes_that_they_know() {
        let trace = TraceId::from_random([9; 20]);
        let page = render(Problem::ApiAway, &about("text/html", true, &trace));
        let value: serde_json::Value = serde_json::from_slice(&page.body).expect("json");
        assert_eq!((page.status, &value["code"]), (503, &"INTERNAL_ERROR".into()));
        assert!(page.fields.iter().any(|(name, _)| *name == "retry-after"));
        for problem in [Problem::AnswerBroken, Problem::AnswerLate] {
            let page = render(problem, &about("*/*", true, &trace));
            let text = String::from_utf8(page.body.to_vec()).expect("text");
            assert!(text.contains("It may have taken effect") && !text.contains("VM"), "{text}");
        }
    }

    #[test]
    fn the_waiting_page_looks_again_and_has_nothing_from_elsewhere() {
        let trace = TraceId::from_random([9; 20]);
        let page = render(Problem::Waking, &about("text/html", false, &trace));
        let text = String::from_utf8(page.body.to_vec()).expect("text");
        let field =
            |name| page.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str());
        assert_eq!(
            (page.status, field("retry-after"), field("cache-control")),
            (503, Some("2"), Some("no-store"))
        );
        assert!(text.contains("<meta http-equiv=\"refresh\" content=\"2\">"), "{text}");
        for outside in ["//", "src", "href", "url(", "@import", "<script", "<link"] {
            assert!(!text.contains(outside), "{outside}: {text}");
        }
        let policy = field("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
        assert!(
            policy.ends_with(&format!("'nonce-{trace}'")) && text.contains(&format!("nonce=\"{trace}\""))
        );
        let other = render(Problem::VmSilent, &about("text/html", false, &trace));
        assert!(!String::from_utf8_lossy(&other.body).contains("refresh"));
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("<a href='x'>&\"</a>"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;&lt;/a&gt;");
    }
}
