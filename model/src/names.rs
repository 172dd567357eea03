//! Names in parts: a house of many names publishes them in [`PARTS`] files beside its view, so that a change costs as much
//! as one of them and not as all names.
//!
//! ```text
//!   view ── names ──► part 0    routes and certificates of the names that belong there, by `part_of`
//!                     part 1    …
//!                     part 255
//! ```
//!
//! Which part a name belongs to is a matter of the name alone, so both ends find it without a table. Strangers may choose
//! their names so that all are in one part: that costs them what it cost before there were parts.

use crate::digest::Digest;
use crate::host::{HostName, MappedName};
use crate::view::{CertificateEntry, EdgeView, Entries, RouteEntry};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// In so many parts names are published. Of 50,000 names a part has two hundred, some 60 KiB.
pub const PARTS: usize = 256;
/// A view of no more entries has all of them itself: it takes some milliseconds to read, and one file to write.
pub const MOST_IN_VIEW: usize = 1024;

/// Where the parts are, as a view says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameParts {
    /// Each one's file, [`PARTS`] of them.
    pub files: Vec<Digest>,
    /// So many of the view's own certificates come before those of the parts: of two for a name the later one wins.
    pub certificates_before: usize,
}

/// One part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamePart {
    /// As [`EdgeView::routes`].
    pub routes: Entries<RouteEntry>,
    /// As [`EdgeView::gone`].
    pub gone: Entries<MappedName>,
    /// As [`EdgeView::certificates`]; each is for one name.
    pub certificates: Entries<CertificateEntry>,
}

impl NamePart {
    /// Entries that could not be read.
    #[must_use]
    pub fn rejected(&self) -> usize {
        self.routes.rejected() + self.gone.rejected() + self.certificates.rejected()
    }
}

/// The part of a name, or of all names below it.
#[must_use]
pub fn part_of(name: &HostName) -> usize {
    part_of_text(name.as_str())
}

fn part_of_text(name: &str) -> usize {
    // FNV-1a, of 64 bits: it need not withstand anybody, see above.
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, mix);
    usize::try_from((hash ^ (hash >> 32)) % PARTS as u64).unwrap_or_default()
}

/// Takes the names of a view out of it, if they are many, and says how many of the certificates that are left come before
/// those that were taken.
#[must_use]
pub fn take_out(view: &mut EdgeView) -> Option<(Vec<NamePart>, usize)> {
    if view.routes.len() + view.gone.len() + view.certificates.len() <= MOST_IN_VIEW {
        return None;
    }
    let mut parts = vec![NamePart::default(); PARTS];
    for route in view.routes.take() {
        parts[part_of(route.host.base())].routes.push(route);
    }
    for name in view.gone.take() {
        parts[part_of(name.base())].gone.push(name);
    }
    let mut certificates = view.certificates.take();
    let range = longest_run(&certificates);
    let before = range.start;
    for certificate in certificates.drain(range) {
        // Only those with a name are in the run.
        let part = only_name(&certificate).map_or(0, part_of_text);
        parts[part].certificates.push(certificate);
    }
    view.certificates = certificates.into();
    Some((parts, before))
}

/// The longest run of certificates for one name each: taking all of it out at once keeps their order.
fn longest_run(certificates: &[CertificateEntry]) -> Range<usize> {
    let (mut longest, mut begun) = (0..0, 0);
    for (place, certificate) in certificates.iter().enumerate() {
        if only_name(certificate).is_none() {
            begun = place + 1;
        } else if place + 1 - begun > longest.len() {
            longest = begun..place + 1;
        }
    }
    longest
}

/// The one name that a certificate is for, or is for all names below. It is not parsed, since each change asks this of all
/// certificates, twice; what is no name at all is nobody's in a part as it is in the view.
fn only_name(certificate: &CertificateEntry) -> Option<&str> {
    match certificate.names.as_slice() {
        [name] if is_as_kept(name) => Some(name.strip_prefix("*.").unwrap_or(name)),
        _ => None,
    }
}

/// Whether a text that is a name is the same text as that name.
fn is_as_kept(text: &str) -> bool {
    !text.ends_with('.') && !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Generation, VmId};
    use crate::route::{Leads, Route, RouteTable};
    use crate::view::VIEW_VERSION;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn certificate(names: &[&str]) -> CertificateEntry {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        CertificateEntry { file: Digest::of(names.concat().as_bytes()), names }
    }

    fn view(routes: Vec<RouteEntry>, gone: Vec<MappedName>, certificates: Vec<CertificateEntry>) -> EdgeView {
        EdgeView {
            version: VIEW_VERSION,
            generation: Generation(1),
            api_hosts: vec!["api.style.dev".parse().expect("host")],
            routes: routes.into(),
            gone: gone.into(),
            certificates: certificates.into(),
            challenges: Vec::new().into(),
            names: None,
        }
    }

    fn many() -> Vec<MappedName> {
        (0..MOST_IN_VIEW).map(|number| format!("f{number}.dev").parse().expect("name")).collect()
    }

    #[test]
    fn few_stay_and_of_many_the_longest_run_of_certificates_for_one_name_is_taken() {
        let mut few = view(Vec::new(), many(), Vec::new());
        assert!(take_out(&mut few).is_none() && few.gone.len() == MOST_IN_VIEW);
        let listed = [
            certificate(&["alone.dev"]),
            certificate(&["style.dev", "*.style.dev"]),
            certificate(&["a.dev"]),
            certificate(&["*.a.dev"]),
            certificate(&["a.dev", "b.dev"]),
            certificate(&["not a name"]),
            certificate(&["B.dev"]),
            certificate(&["c.dev."]),
        ];
        let mut view = view(Vec::new(), many(), listed.to_vec());
        let (parts, before) = take_out(&mut view).expect("many");
        assert_eq!((before, view.certificates.len(), view.gone.len()), (2, 6, 0));
        let part = |name: &str| &parts[part_of(&name.parse().expect("name"))];
        // A name and all below it are in the same part; what is not written as names are kept is in none.
        assert_eq!(part("a.dev").certificates.iter().cloned().collect::<Vec<_>>(), listed[2..4]);
        assert_eq!(parts.iter().map(|part| part.gone.len()).sum::<usize>(), MOST_IN_VIEW);
        let most = parts.iter().map(|part| part.gone.len()).max();
        assert!(most.is_some_and(|most| most < 20), "evenly enough: {most:?}");
    }

    proptest! {
        #[test]
        fn a_table_of_parts_leads_as_one_of_the_whole_view(
            names in prop::collection::vec(("(\\*\\.)?([a-c]\\.){0,3}dev", 0_u16..4, any::<bool>()), 0..20),
            asked in prop::collection::vec("([a-c]\\.){0,4}dev", 1..20),
        ) {
            let mut gone = many();
            gone.push("one-more.dev".parse().expect("name"));
            let mut routes = Vec::new();
            for (name, port, lost) in names {
                let Ok(name) = name.parse::<MappedName>() else { continue };
                if lost {
                    gone.push(name);
                } else {
                    routes.push(RouteEntry { host: name, vm: VmId::from_random([1; 20]), port, run: 1 });
                }
            }
            let mut view = view(routes, gone, Vec::new());
            let whole = RouteTable::of(&view, Vec::new());
            let (parts, _) = take_out(&mut view).expect("many");
            let leads = parts.iter().map(|part| Arc::new(Leads::of(&part.routes, &part.gone))).collect();
            let table = RouteTable::of(&view, leads);
            prop_assert_eq!(table.len(), whole.len());
            prop_assert_eq!(table.permits().count(), whole.permits().count());
            for name in asked {
                let Ok(name) = name.parse::<HostName>() else { continue };
                prop_assert_eq!(table.host(&name), whole.host(&name), "{}", name);
            }
            prop_assert_eq!(table.host(&"api.style.dev".parse().expect("host")), Some(Route::Api));
        }
    }
}
