//! Where plain HTTP is sent to: the same name and target over HTTPS.

use model::host::HostName;

/// Where certificate authorities ask for proof over plain HTTP (RFC 8555 section 8.3). Reserved: never redirected.
pub const ACME_PATH: &str = "/.well-known/acme-challenge/";

/// The `Location` for a request target of origin form.
#[must_use]
pub fn location(host: &HostName, https_port: u16, target: &str) -> String {
    // The URI's default port is left out (RFC 9110 section 4.2.2).
    let port = if https_port == 443 { String::new() } else { format!(":{https_port}") };
    let path = if target.starts_with('/') { target } else { "/" };
    format!("https://{host}{port}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_port_is_left_out() {
        let host: HostName = "a.style.dev".parse().expect("name");
        assert_eq!(location(&host, 443, "/x?y=1"), "https://a.style.dev/x?y=1");
        assert_eq!(location(&host, 8443, "/"), "https://a.style.dev:8443/");
        assert_eq!(location(&host, 443, "*"), "https://a.style.dev/");
        assert_eq!(location(&host, 443, "//evil.example/"), "https://a.style.dev//evil.example/");
    }
}
