//! Which names an account may map, and to which ports.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::fault::Fault;
use model::api::domain::DEFAULT_VM_PORT;
use model::host::HostName;

/// The name of the API's host below the preview domain; nobody may map it.
pub const API_LABEL: &str = "api";

/// The API's host.
#[must_use]
pub fn api_host(domain: &HostName) -> Option<HostName> {
    format!("{API_LABEL}.{domain}").parse().ok()
}

/// A name that may be mapped at once: one label below the preview domain, and not the API's.
///
/// # Errors
/// `INVALID_DOMAIN` when it is no host name, `DOMAIN_OWNERSHIP_NOT_VERIFIED` when it stands elsewhere.
pub fn mappable(text: &str, domain: &HostName) -> Result<HostName, Fault> {
    let host: HostName = text.parse().map_err(|error| {
        Fault::new(400, "INVALID_DOMAIN", format!("{text:?} is no host name: {error}")).with("domain", text)
    })?;
    if host.is_direct_child_of(domain) && api_host(domain).as_ref() != Some(&host) {
        return Ok(host);
    }
    let message = format!(
        "{host} cannot be mapped: this account has not proved that it owns it. Names of the form <label>.{domain} \
         (save {API_LABEL}.{domain}) can be mapped at once"
    );
    Err(Fault::new(401, "DOMAIN_OWNERSHIP_NOT_VERIFIED", message).with("domain", host.as_str()))
}

/// A port inside a VM.
///
/// # Errors
/// `INVALID_PARAMETERS` when it is not within 1..=65535.
pub fn port(wanted: Option<i64>) -> Result<u16, Fault> {
    let Some(wanted) = wanted else { return Ok(DEFAULT_VM_PORT) };
    u16::try_from(wanted).ok().filter(|port| *port != 0).ok_or_else(|| {
        Fault::new(400, "INVALID_PARAMETERS", format!("vmPort must be within 1 and 65535, got {wanted}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_direct_children_of_the_preview_domain_can_be_mapped() {
        let domain = "style.dev".parse().expect("domain");
        let code =
            |text: &str| mappable(text, &domain).map(|host| host.to_string()).map_err(|fault| fault.code);
        assert_eq!(code("Shop.Style.dev."), Ok("shop.style.dev".to_owned()));
        for refused in ["api.style.dev", "a.b.style.dev", "style.dev", "example.com", "evilstyle.dev"] {
            assert_eq!(code(refused), Err("DOMAIN_OWNERSHIP_NOT_VERIFIED"), "{refused}");
        }
        for bad in ["", "a b.style.dev", "*.style.dev", "-.style.dev"] {
            assert_eq!(code(bad), Err("INVALID_DOMAIN"), "{bad}");
        }
    }

    #[test]
    fn ports_are_bounded() {
        assert_eq!(port(None), Ok(3000));
        assert_eq!(port(Some(65535)), Ok(65535));
        for bad in [0, -1, 65536, i64::MAX] {
            assert!(port(Some(bad)).is_err(), "{bad}");
        }
    }
}
