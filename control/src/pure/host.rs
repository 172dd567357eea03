//! Which names an account may map, and to which ports.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::fault::Fault;
use crate::store::Right;
use dns_verify::pure::name::{NameError, ascii, customer_domain};
use model::api::domain::DEFAULT_VM_PORT;
use model::host::{HostName, MAX_HOST_CHARS, MappedName};

/// The name of the API's host below the preview domain; nobody may map it.
pub const API_LABEL: &str = "api";

/// The API's host.
#[must_use]
pub fn api_host(domain: &HostName) -> Option<HostName> {
    format!("{API_LABEL}.{domain}").parse().ok()
}

/// A name that may be mapped, and by what right: at once when it is one label below the preview domain, and not the
/// API's; else when the account has proved it, which the store knows. All names below one, `*.`, need a proof.
///
/// # Errors
/// `INVALID_DOMAIN` when it is no host name, `DOMAIN_OWNERSHIP_NOT_VERIFIED` when nobody may map it.
pub fn mappable(text: &str, domain: &HostName) -> Result<(MappedName, Right), Fault> {
    let name = match text.strip_prefix("*.") {
        Some(base) => MappedName::below(ascii(base).map_err(|error| no_domain(text, &error))?),
        None => ascii(text).map_err(|error| no_domain(text, &error))?.into(),
    };
    if !name.base().is_within(domain) {
        return Ok((name, Right::Proof));
    }
    let free = name
        .exact()
        .is_some_and(|host| host.is_direct_child_of(domain) && api_host(domain).as_ref() != Some(host));
    if free {
        return Ok((name, Right::Preview));
    }
    let message = format!(
        "{name} cannot be mapped: below {domain}, names of the form <label>.{domain} (save {API_LABEL}.{domain}) can \
         be mapped, at once"
    );
    Err(Fault::new(401, "DOMAIN_OWNERSHIP_NOT_VERIFIED", message).with("domain", name.to_string()))
}

/// A domain that an account may prove: a customer's own, outside the preview domain.
///
/// # Errors
/// `INVALID_DOMAIN`.
pub fn provable(text: &str, domain: &HostName) -> Result<HostName, Fault> {
    let host = customer_domain(text).map_err(|error| no_domain(text, &error))?;
    if host.is_within(domain) {
        let message =
            format!("{host} needs no proof: names of the form <label>.{domain} can be mapped at once");
        return Err(Fault::new(400, "INVALID_DOMAIN", message).with("domain", host.as_str()));
    }
    Ok(host)
}

/// What to do about a name that the account has not proved.
#[must_use]
pub fn not_proved(name: &MappedName, domain: &HostName) -> Fault {
    let message = format!(
        "{name} cannot be mapped: this account has not proved that it owns it, or a name above it. Next: gatehouse \
         domains verify {}. Names of the form <label>.{domain} can be mapped at once",
        name.base()
    );
    Fault::new(401, "DOMAIN_OWNERSHIP_NOT_VERIFIED", message).with("domain", name.to_string())
}

fn no_domain(text: &str, error: &NameError) -> Fault {
    Fault::new(400, "INVALID_DOMAIN", error.to_string())
        .with("domain", text.chars().take(MAX_HOST_CHARS).collect::<String>())
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
    fn direct_children_of_the_preview_domain_need_no_proof_and_all_others_do() {
        let domain = "style.dev".parse().expect("domain");
        let right = |text: &str| {
            let read = mappable(text, &domain);
            read.map(|(name, right)| (name.to_string(), right)).map_err(|fault| fault.code)
        };
        assert_eq!(right("Shop.Style.dev."), Ok(("shop.style.dev".to_owned(), Right::Preview)));
        for refused in ["api.style.dev", "a.b.style.dev", "style.dev", "*.style.dev", "*.a.style.dev"] {
            assert_eq!(right(refused), Err("DOMAIN_OWNERSHIP_NOT_VERIFIED"), "{refused}");
        }
        for other in ["example.com", "evilstyle.dev", "*.example.com"] {
            assert_eq!(right(other), Ok((other.to_owned(), Right::Proof)));
        }
        assert_eq!(right("*.b\u{fc}cher.example"), Ok(("*.xn--bcher-kva.example".to_owned(), Right::Proof)));
        for bad in ["", "a b.style.dev", "*", "*.", "*.*.example.com", "a.*.example.com", "-.style.dev"] {
            assert_eq!(right(bad), Err("INVALID_DOMAIN"), "{bad}");
        }
    }

    #[test]
    fn what_needs_no_proof_or_is_nobodys_cannot_be_proved() {
        let domain = "style.dev".parse().expect("domain");
        assert!(provable("example.com", &domain).is_ok());
        for bad in ["a.style.dev", "style.dev", "com", "co.uk", "*.example.com", ""] {
            assert_eq!(provable(bad, &domain).map_err(|fault| fault.code), Err("INVALID_DOMAIN"), "{bad}");
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
