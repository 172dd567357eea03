//! Whether a request is a person's look at a page, to whom another page can be shown meanwhile.

use http::{HeaderMap, HeaderValue, Method, header};

/// Set by browsers alone, and not by scripts in them: what a request is for (Fetch Metadata, section 2.3).
const SEC_FETCH_MODE: &str = "sec-fetch-mode";
/// The mode of a person's own step to a page.
const NAVIGATE: &[u8] = b"navigate";

/// Whether a request asks for a page to be shown: it only reads, has no body, wants no upgrade, takes HTML by name, and
/// is not one that a script or a page made on its own. A browser too old to say what a request is for is believed.
#[must_use]
pub fn looks_at_a_page(method: &Method, headers: &HeaderMap) -> bool {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    reads
        && !headers.contains_key(header::UPGRADE)
        && !has_body(headers)
        && headers.get_all(SEC_FETCH_MODE).iter().all(|mode| mode.as_bytes() == NAVIGATE)
        && headers.get_all(header::ACCEPT).iter().any(takes_html)
}

/// Whether the head announces a body (RFC 9112 section 6.3, RFC 9113 section 8.1.1).
#[must_use]
pub fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get_all(header::CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0")
}

/// Whether `text/html` stands in the list, by its name and without the weight 0 (RFC 9110 section 12.5.1).
fn takes_html(accept: &HeaderValue) -> bool {
    let Ok(accept) = accept.to_str() else { return false };
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("text/html")) && !parts.any(is_zero_weight)
    })
}

fn is_zero_weight(parameter: &str) -> bool {
    let Some((name, weight)) = parameter.split_once('=') else { return false };
    name.trim().eq_ignore_ascii_case("q") && weight.trim().parse::<f32>().is_ok_and(|weight| weight <= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;
    use proptest::prelude::*;

    /// What Firefox and Chromium send first.
    const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("value"))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn a_persons_look_is_told_from_all_else() {
        let looks = |method, fields: &[_]| looks_at_a_page(&method, &headers(fields));
        assert!(looks(Method::GET, &[("accept", BROWSER)]));
        assert!(looks(Method::HEAD, &[("accept", BROWSER), ("sec-fetch-mode", "navigate")]));
        assert!(looks(Method::GET, &[("accept", "*/*, Text/HTML ; q=0.5"), ("content-length", "0")]));
        for (method, fields) in [
            (Method::POST, vec![("accept", BROWSER)]),
            (Method::OPTIONS, vec![("accept", BROWSER)]),
            (Method::GET, vec![]),
            (Method::GET, vec![("accept", "*/*")]),
            (Method::GET, vec![("accept", "text/html;q=0")]),
            (Method::GET, vec![("accept", "text/html;level=1; Q=0.000")]),
            (Method::GET, vec![("accept", "application/json, text/htmlx")]),
            (Method::GET, vec![("accept", BROWSER), ("sec-fetch-mode", "cors")]),
            (Method::GET, vec![("accept", BROWSER), ("sec-fetch-mode", "no-cors")]),
            (Method::GET, vec![("accept", BROWSER), ("upgrade", "h2c")]),
            (Method::GET, vec![("accept", BROWSER), ("content-length", "5")]),
            (Method::GET, vec![("accept", BROWSER), ("transfer-encoding", "chunked")]),
        ] {
            assert!(!looks_at_a_page(&method, &headers(&fields)), "{method} {fields:?}");
        }
        let mut twice = headers(&[("accept", BROWSER), ("sec-fetch-mode", "navigate")]);
        twice.append(SEC_FETCH_MODE, HeaderValue::from_static("cors"));
        assert!(!looks_at_a_page(&Method::GET, &twice));
    }

    proptest! {
        /// Whatever a client writes, a page is never shown for a request that changes something or asks no HTML.
        #[test]
        fn no_page_for_effects(method in "GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS", accept in "[ -~]{0,60}", mode in "[ -~]{0,12}") {
            let fields = headers(&[("accept", &accept), ("sec-fetch-mode", &mode)]);
            let method: Method = method.parse().expect("method");
            if looks_at_a_page(&method, &fields) {
                prop_assert!(method.is_safe() && method != Method::OPTIONS);
                prop_assert!(accept.to_ascii_lowercase().contains("text/html") && mode == "navigate");
            }
        }
    }
}
