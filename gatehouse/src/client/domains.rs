//! `gatehouse domains`: customers' domains, and public names that lead to a VM's port.

use super::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use clap::Subcommand;
use model::api::Empty;
use model::api::domain::{
    CancelVerification, CompleteVerification, CreateMapping, CreateVerification, DEFAULT_VM_PORT, Domain,
    DomainStatus, Mapping, Verification, VerificationCompleted, WildcardCertificate,
};
use model::id::VmId;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Entries of one answer; lists are asked for in pieces of this size.
const PAGE: usize = 200;

/// What can be done with names.
#[derive(Clone, Debug, Subcommand)]
pub enum DomainsCommand {
    /// List the domains that are proved, and the proofs that were begun
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Begin to prove that a domain is yours: tells the TXT record to publish
    #[command(after_help = "Example:\n  gatehouse domains verify example.com")]
    Verify {
        /// The domain; names below it come with it
        domain: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look for the TXT record and take the domain
    Complete {
        /// The domain
        domain: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a proof up that was begun
    Cancel {
        /// The domain
        domain: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Lead a name to a port of a VM; HTTPS is ended at the door, the VM gets plain HTTP
    #[command(after_help = "Examples:\n  gatehouse domains map hello.style.dev --vm VM --port 8000\n  \
                            gatehouse domains map '*.example.com' --vm VM")]
    Map {
        /// The public name; `*.` before it means all names below it
        domain: String,
        /// The VM that answers
        #[arg(long, value_name = "ID")]
        vm: VmId,
        /// The TCP port on which it listens, on 0.0.0.0
        #[arg(long, default_value_t = DEFAULT_VM_PORT, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Lead a name nowhere
    Unmap {
        /// The public name
        domain: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List names and where they lead
    Mappings {
        /// Only this name
        #[arg(long)]
        domain: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have all names below a domain certified by one certificate; `_acme-challenge` of it must be delegated to this house
    Certify {
        /// A domain that is proved
        domain: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a name's DNS, proof, certificate, mapping and VM, and what to do next
    Status {
        /// The public name
        domain: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl DomainsCommand {
    /// Does it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api) -> Result<(), ClientError> {
        match self {
            Self::List { json } => list(api, json).await,
            Self::Verify { domain, json } => verify(api, domain, json).await,
            Self::Complete { domain, json } => {
                let body = CompleteVerification { domain: Some(domain), id: None };
                let done: VerificationCompleted = api.put(VERIFICATIONS, &body).await?;
                if json {
                    return print_json(&done);
                }
                print_line(&format!("{} is yours, with all names below it", done.domain))
            }
            Self::Cancel { domain, json } => cancel(api, &domain, json).await,
            Self::Map { domain, vm, port, json } => map(api, &domain, &vm, port, json).await,
            Self::Unmap { domain, json } => {
                let done: Empty = api.delete(&["domains", "v1", "mappings", &domain]).await?;
                if json { print_json(&done) } else { print_line(&format!("https://{domain} leads nowhere")) }
            }
            Self::Mappings { domain, json } => mappings(api, domain, json).await,
            Self::Certify { domain, json } => {
                let path = ["domains", "v1", "certs", &domain, "wildcard"];
                let asked: WildcardCertificate = api.post(&path, &Empty {}).await?;
                if json {
                    return print_json(&asked);
                }
                let domain = asked.domain;
                print_line(&format!(
                    "*.{domain} is being certified; watch it with: gatehouse domains status '*.{domain}'"
                ))
            }
            Self::Status { domain, json } => {
                let status: DomainStatus = api.get(&["domains", "v1", "status", &domain], &[]).await?;
                if json { print_json(&status) } else { print_line(&told(&status)) }
            }
        }
    }
}

const VERIFICATIONS: &[&str] = &["domains", "v1", "verifications"];

/// What `list --json` prints.
#[derive(Serialize)]
struct Domains {
    domains: Vec<Domain>,
    /// Proofs that were begun.
    verifications: Vec<Verification>,
}

async fn list(api: &Api, json: bool) -> Result<(), ClientError> {
    let domains: Vec<Domain> = all(api, &["domains", "v1", "domains"], &[]).await?;
    let begun: Vec<Verification> = api.get(VERIFICATIONS, &[]).await?;
    if json {
        return print_json(&Domains { domains, verifications: begun });
    }
    let mut table = Table::new(&["DOMAIN", "STATE", "SINCE", "LAST ERROR"]);
    for domain in domains {
        let state = if domain.verified_dns { "proved" } else { "proof gone" };
        table.row([
            domain.domain.to_string(),
            state.to_owned(),
            domain.created_at,
            domain.last_error.unwrap_or_default(),
        ]);
    }
    for begun in begun {
        table.row([
            begun.domain.to_string(),
            "begun".to_owned(),
            begun.created_at,
            begun.last_error.unwrap_or_default(),
        ]);
    }
    if table.is_empty() {
        eprintln!("No domains. Next: gatehouse domains verify DOMAIN");
        return Ok(());
    }
    print_line(&table.to_string())
}

async fn verify(api: &Api, domain: String, json: bool) -> Result<(), ClientError> {
    let begun: Verification = api.post(VERIFICATIONS, &CreateVerification { domain }).await?;
    if json {
        return print_json(&begun);
    }
    print_line(&format!(
        "Publish this record at the DNS provider of {0}:\n\n  {1}  TXT  {2}\n\nNext: gatehouse domains complete {0}",
        begun.domain, begun.record_name, begun.verification_code
    ))
}

async fn cancel(api: &Api, domain: &str, json: bool) -> Result<(), ClientError> {
    let begun: Vec<Verification> = api.get(VERIFICATIONS, &[]).await?;
    let kept = kept(domain);
    let code = begun.into_iter().find(|begun| begun.domain.as_str() == kept);
    // Without one the API says so in its own words.
    let verification_code = code.map(|begun| begun.verification_code).unwrap_or_default();
    let body = CancelVerification { domain: domain.to_owned(), verification_code };
    let done: CancelVerification = api.delete_with(VERIFICATIONS, &body).await?;
    if json { print_json(&done) } else { print_line(&format!("the proof of {} is given up", done.domain)) }
}

/// A domain as the API keeps it: of A-labels in lower case, without the root's dot (RFC 5890 section 2.3.2.1). What is no
/// domain stays as it is, for the API to refuse.
fn kept(domain: &str) -> String {
    let domain = domain.trim_end_matches('.');
    idna::domain_to_ascii(domain).unwrap_or_else(|_| domain.to_owned())
}

async fn map(api: &Api, domain: &str, vm: &VmId, port: u16, json: bool) -> Result<(), ClientError> {
    let body = CreateMapping {
        vm_id: Some(vm.to_string()),
        vm_port: Some(i64::from(port)),
        ..CreateMapping::default()
    };
    let mapping: Mapping = api.post(&["domains", "v1", "mappings", domain], &body).await?;
    if json {
        return print_json(&mapping);
    }
    print_line(&format!("https://{} leads to port {port} of {vm}", mapping.domain))
}

async fn mappings(api: &Api, domain: Option<String>, json: bool) -> Result<(), ClientError> {
    let only: Vec<_> = domain.into_iter().map(|domain| ("domain", domain)).collect();
    let mappings: Vec<Mapping> = all(api, &["domains", "v1", "mappings"], &only).await?;
    if json {
        return print_json(&mappings);
    }
    let mut table = Table::new(&["NAME", "VM", "PORT", "SINCE"]);
    for mapping in mappings {
        table.row([
            mapping.domain.to_string(),
            mapping.vm_id.map(|vm| vm.to_string()).unwrap_or_default(),
            mapping.vm_port.map(|port| port.to_string()).unwrap_or_default(),
            mapping.created_at,
        ]);
    }
    if table.is_empty() {
        eprintln!("No names lead anywhere. Next: gatehouse domains map NAME --vm VM --port PORT");
        return Ok(());
    }
    print_line(&table.to_string())
}

/// All entries of a list, piece by piece.
async fn all<T: DeserializeOwned>(
    api: &Api,
    path: &[&str],
    only: &[(&'static str, String)],
) -> Result<Vec<T>, ClientError> {
    let mut found: Vec<T> = Vec::new();
    loop {
        let mut query = vec![("limit", PAGE.to_string()), ("offset", found.len().to_string())];
        query.extend(only.iter().cloned());
        let mut page: Vec<T> = api.get(path, &query).await?;
        let last = page.len() < PAGE;
        found.append(&mut page);
        if last {
            return Ok(found);
        }
    }
}

fn told(status: &DomainStatus) -> String {
    let proof = match (&status.proof, &status.verification) {
        _ if status.preview => "none needed".to_owned(),
        (Some(proof), _) if proof.verified_dns => format!("{}, last seen {}", proof.domain, proof.proved_at),
        (Some(proof), _) => format!("{}, gone from its DNS; last seen {}", proof.domain, proof.proved_at),
        (None, Some(begun)) => format!("begun: {} TXT {}", begun.record_name, begun.verification_code),
        (None, None) => "none".to_owned(),
    };
    let mapping = status.mapping.as_ref().map_or_else(
        || "none".to_owned(),
        |mapping| {
            let vm = mapping.vm_id.as_ref().map_or("no VM", |vm| vm.as_str());
            format!("port {} of {vm}", mapping.vm_port.unwrap_or_default())
        },
    );
    let error = [
        status.proof.as_ref().and_then(|proof| proof.last_error.clone()),
        status.verification.as_ref().and_then(|begun| begun.last_error.clone()),
    ];
    let mut lines = vec![
        ("name", status.domain.to_string()),
        ("dns", status.dns.as_ref().map_or_else(|| "not looked at".to_owned(), |dns| dns.message.clone())),
    ];
    for asked in status.dns.iter().flat_map(|dns| &dns.asked) {
        lines.push(("", format!("{} {} {}: {}", asked.server, asked.kind, asked.name, asked.answer)));
    }
    let certificate = match &status.certificate_error {
        _ if status.certificate => "there".to_owned(),
        Some(why) => format!("none: {why}"),
        None => "none".to_owned(),
    };
    lines.extend([
        ("proof", proof),
        ("certificate", certificate),
        ("mapping", mapping),
        ("VM", status.vm_state.clone().unwrap_or_else(|| "none".to_owned())),
        ("last error", error.into_iter().flatten().next().unwrap_or_else(|| "none".to_owned())),
        ("next", status.next.clone()),
    ]);
    let lines: Vec<String> = lines.into_iter().map(|(what, text)| format!("{what:<12} {text}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn domains_are_looked_for_as_they_are_kept() {
        for (written, expected) in [
            ("Example.COM.", "example.com"),
            ("B\u{fc}cher.example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("\u{4f8b}\u{3048}.jp", "xn--r8jz45g.jp"),
            ("xn--\u{fc}.example", "xn--\u{fc}.example"),
            ("", ""),
        ] {
            assert_eq!(kept(written), expected);
        }
    }
}
