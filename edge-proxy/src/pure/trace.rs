//! W3C Trace Context, Level 1 (<https://www.w3.org/TR/trace-context-1/>): which trace a request belongs to.
//!
//! A client's own trace goes on to the VM unchanged, unless spans of it are recorded here: then the VM is told of the span
//! to which its own belong. Where there is no trace, or none that can be read, one begins here.

use http::{HeaderMap, HeaderName, HeaderValue};
use model::ratio::Ratio;
use std::fmt;

/// Section 3.2.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Section 3.3.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// `00-<32>-<16>-<2>`.
const VERSION_0_BYTES: usize = 55;

/// A trace's id, 32 lower-case hexadecimal digits as text (section 3.2.2.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceNumber([u8; 16]);

/// A span's id, 16 lower-case hexadecimal digits as text (section 3.2.2.4).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SpanNumber([u8; 8]);

impl TraceNumber {
    /// From random bytes: one of zeros would be none.
    #[must_use]
    pub fn new(mut random: [u8; 16]) -> Self {
        random[0] |= u8::from(random == [0; 16]);
        Self(random)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl SpanNumber {
    /// From random bytes: one of zeros would be none.
    #[must_use]
    pub fn new(mut random: [u8; 8]) -> Self {
        random[0] |= u8::from(random == [0; 8]);
        Self(random)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

impl fmt::Display for TraceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_of(&self.0))
    }
}

impl fmt::Debug for TraceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SpanNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_of(&self.0))
    }
}

impl fmt::Debug for SpanNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The trace that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    number: TraceNumber,
    /// The client's span; none when the trace begins here, and what the client said of one cannot be read, and goes.
    client: Option<SpanNumber>,
    /// Of the gateway, for this request.
    own: SpanNumber,
    /// Whether the trace is recorded, by whom it reaches.
    sampled: bool,
}

impl Told {
    /// Of these fields of a request. `random` makes the gateway's own span, and the trace that begins here, if one does.
    /// `roots` is the part of such traces that is recorded; none: that is for others to say.
    #[must_use]
    pub fn of(headers: &HeaderMap, random: [u8; 24], roots: Option<Ratio>) -> Self {
        let (mut trace, mut span, mut among) = ([0; 16], [0; 8], [0; 8]);
        trace.copy_from_slice(&random[..16]);
        span.copy_from_slice(&random[16..]);
        // As OpenTelemetry's samplers do: by the trace's last bytes, so that all of them judge alike.
        among.copy_from_slice(&random[8..16]);
        let own = SpanNumber::new(span);
        let mut said = headers.get_all(TRACEPARENT).iter();
        // One field alone: which of several would it be (section 3.2.1)?
        match (said.next().and_then(|value| parse(value.as_bytes())), said.next()) {
            (Some((number, client, sampled)), None) => Self { number, client: Some(client), own, sampled },
            _ => {
                let sampled = roots.is_none_or(|roots| roots.takes(u64::from_be_bytes(among)));
                Self { number: TraceNumber::new(trace), client: None, own, sampled }
            }
        }
    }

    /// The trace's id.
    #[must_use]
    pub fn number(&self) -> TraceNumber {
        self.number
    }

    /// The client's span, unless the trace began here.
    #[must_use]
    pub fn client(&self) -> Option<SpanNumber> {
        self.client
    }

    /// The gateway's own span.
    #[must_use]
    pub fn own(&self) -> SpanNumber {
        self.own
    }

    /// Whether the trace is recorded.
    #[must_use]
    pub fn sampled(&self) -> bool {
        self.sampled
    }

    /// The field that is to stand in the request instead of what stands there; none when that stays. `parent` is the span
    /// to which the VM's belong, if the gateway records one.
    #[must_use]
    pub fn replacement(&self, parent: Option<SpanNumber>) -> Option<(HeaderName, HeaderValue)> {
        if self.client.is_some() && parent.is_none() {
            return None;
        }
        let (number, parent, flags) = (self.number, parent.unwrap_or(self.own), u8::from(self.sampled));
        let text = ["00-", &hex_of(&number.0), "-", &hex_of(&parent.0), "-", &hex_of(&[flags])].concat();
        Some((TRACEPARENT, HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))))
    }

    /// The field that goes with one that could not be read (section 3.3); none: it stays.
    #[must_use]
    pub fn orphan(&self) -> Option<HeaderName> {
        self.client.is_none().then_some(TRACESTATE)
    }
}

/// A `traceparent` (section 3.2.2): trace, span, and whether it is recorded; none where it is not valid. Later versions may have more after the
/// flags (section 3.2.4).
fn parse(value: &[u8]) -> Option<(TraceNumber, SpanNumber, bool)> {
    let known = value.get(..VERSION_0_BYTES)?;
    let version = hex(&known[..2])?;
    let rest = &value[VERSION_0_BYTES..];
    let follows = rest.is_empty() || (version != 0 && rest[0] == b'-');
    if version == 0xff || !follows || known[2] != b'-' || known[35] != b'-' || known[52] != b'-' {
        return None;
    }
    let mut trace = [0; 16];
    for (byte, digits) in trace.iter_mut().zip(known[3..35].chunks_exact(2)) {
        *byte = hex(digits)?;
    }
    let mut span = [0; 8];
    for (byte, digits) in span.iter_mut().zip(known[36..52].chunks_exact(2)) {
        *byte = hex(digits)?;
    }
    let flags = hex(&known[53..])?;
    (trace != [0; 16] && span != [0; 8]).then_some((TraceNumber(trace), SpanNumber(span), flags & 1 == 1))
}

/// By hand, since each request has some and `format!` takes ten times as long.
fn hex_of(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Two lower-case digits: upper-case ones are not valid (section 3.2.1).
fn hex(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0, |byte: u8, digit| {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(byte << 4 | nibble)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn of(values: &[&[u8]]) -> Told {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(value).expect("a value"));
        }
        Told::of(&headers, [7; 24], None)
    }

    #[test]
    fn a_clients_trace_goes_on_and_what_is_none_begins_anew() {
        let told = of(&[GOOD.as_bytes()]);
        assert_eq!(told.number().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((told.replacement(None), told.orphan()), (None, None));
        let later = GOOD.replacen("00", "cc", 1) + "-more";
        assert!(of(&[later.as_bytes()]).client().is_some(), "a later version says more");
        for bad in [
            String::new(),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            format!("{GOOD}-more"),
            format!("{GOOD}0"),
            GOOD.replacen("00", "cc", 1) + "x",
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace('-', "_"),
            GOOD[..54].to_owned(),
            GOOD.replace("01", "0g"),
        ] {
            assert!(of(&[bad.as_bytes()]).client().is_none(), "{bad}");
        }
        assert!(of(&[]).client().is_none() && of(&[]).orphan().is_some());
        assert!(of(&[GOOD.as_bytes(), GOOD.as_bytes()]).client().is_none(), "which of the two?");
    }

    #[test]
    fn who_begins_a_trace_says_whether_it_is_recorded_and_else_the_client_does() {
        let part = |text: &str| Some(text.parse().expect("a ratio"));
        let begun = |roots| Told::of(&HeaderMap::new(), [7; 24], roots);
        assert!(begun(part("1")).sampled() && begun(None).sampled() && !begun(part("0")).sampled());
        let (_, value) = begun(part("0")).replacement(None).expect("one begins");
        assert!(value.as_bytes().ends_with(b"-00"), "nor by the VM");
        let own = SpanNumber::new([9; 8]);
        for (flags, sampled) in [("00", false), ("01", true), ("03", true), ("fe", false)] {
            let mut headers = HeaderMap::new();
            let value = GOOD[..53].to_owned() + flags;
            headers.insert(TRACEPARENT, HeaderValue::try_from(value).expect("a value"));
            let told = Told::of(&headers, [7; 24], part("0"));
            assert_eq!((told.sampled(), told.replacement(None)), (sampled, None), "{flags}");
            assert_eq!(told.client().map(|span| span.to_string()).as_deref(), Some("00f067aa0ba902b7"));
            let (_, value) = told.replacement(Some(own)).expect("the gateway's span is between");
            let expected = format!("{}-0909090909090909-0{}", &GOOD[..35], u8::from(sampled));
            assert_eq!(value.to_str().expect("text"), expected);
        }
    }

    proptest! {
        #[test]
        fn what_begins_here_can_be_read_and_any_bytes_are_judged(
            random in any::<[u8; 24]>(),
            bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let begun = Told::of(&HeaderMap::new(), random, None);
            let (_, value) = begun.replacement(None).expect("one begins");
            prop_assert_eq!(parse(value.as_bytes()), Some((begun.number(), begun.own(), true)));
            if let Some((number, span, _)) = parse(&bytes) {
                let text = format!("{number}-{span}");
                prop_assert_eq!(text.as_bytes(), &bytes[3..52]);
            }
        }

        #[test]
        fn near_misses_of_a_good_one_are_judged(place in 0_usize..55, byte in any::<u8>()) {
            let mut near = GOOD.as_bytes().to_vec();
            near[place] = byte;
            let judged = parse(&near).is_some();
            let digit = byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            prop_assert!(!judged || digit || byte == b'-');
        }
    }
}
