//! What the newest view says, made ready for look-ups: one pointer that is swapped whole.

use crate::certificates::{Certificates, Layer, Reading};
use crate::challenges::Challenges;
use crate::dial::Dialer;
use crate::metrics::{Count, Metrics};
use arc_swap::ArcSwap;
use feed::blobs::Blobs;
use feed::names::NamesReader;
use feed::subscribe::Feed;
use model::digest::Digest;
use model::host::HostName;
use model::id::Generation;
use model::names::PARTS;
use model::route::{Leads, Permit, Route, RouteTable};
use model::view::{CertificateEntry, EdgeView};
use std::sync::Arc;
use tracing::{info, warn};

/// Routes and certificates of one view.
#[derive(Debug, Default)]
pub struct Table {
    routes: RouteTable,
    /// Certificates by name.
    pub certificates: Certificates,
    /// What certificate authorities ask to see.
    pub challenges: Challenges,
    /// Which decision it is.
    pub generation: Generation,
    /// What the parts of its names were made of: none, or [`PARTS`].
    parts: Vec<Part>,
}

/// What has been made of one part of the names.
#[derive(Clone, Debug, Default)]
struct Part {
    /// None: it could not be read, and what is here is the one before it.
    file: Option<Digest>,
    leads: Arc<Leads>,
    certificates: Arc<Layer>,
}

impl Table {
    /// How many names lead somewhere.
    #[must_use]
    pub fn routes(&self) -> usize {
        self.routes.len()
    }

    /// Where a name leads.
    #[must_use]
    pub fn route(&self, host: &HostName) -> Option<Route> {
        self.routes.host(host)
    }

    /// All that may be reached.
    pub fn permits(&self) -> impl Iterator<Item = &Permit> {
        self.routes.permits()
    }
}

/// The table in force. Cheap to clone; reading takes no lock.
#[derive(Clone, Debug)]
pub struct Tables {
    current: Arc<ArcSwap<Table>>,
    blobs: Blobs,
    names: NamesReader,
}

impl Tables {
    /// An empty one. The certificates' files, and those of names in parts, will be among these.
    #[must_use]
    pub fn new(blobs: Blobs, names: NamesReader) -> Self {
        Self { current: Arc::default(), blobs, names }
    }

    /// The table in force now.
    #[must_use]
    pub fn now(&self) -> arc_swap::Guard<Arc<Table>> {
        self.current.load()
    }

    /// Makes the table of a view and puts it in force. Reading certificates costs, so this may take a while.
    pub fn take_over(&self, view: &EdgeView, metrics: &Metrics) {
        let earlier = self.current.load();
        let mut reading = Reading::default();
        let parts = self.parts(view, &earlier, &mut reading, metrics);
        let own: Vec<_> = view.certificates.iter().collect();
        let before = view.names.as_ref().map_or(0, |names| names.certificates_before.min(own.len()));
        let known = [&earlier.certificates.before, &earlier.certificates.after];
        let mut layer = |entries: &[&CertificateEntry]| {
            Layer::of(entries.iter().copied(), &self.blobs, &known, &mut reading)
        };
        let certificates = Certificates {
            before: layer(&own[..before]),
            parts: parts.iter().map(|part| Arc::clone(&part.certificates)).collect(),
            after: layer(&own[before..]),
        };
        let (challenges, unfit) = Challenges::of(&view.challenges);
        for fault in reading.faults.into_iter().chain(unfit) {
            metrics.count(Count::BadCertificates);
            warn!(%fault, "a certificate is left out");
        }
        let generation = view.generation;
        let routes = RouteTable::of(view, parts.iter().map(|part| Arc::clone(&part.leads)).collect());
        let table = Table { routes, certificates, challenges, generation, parts };
        info!(
            generation = generation.0,
            routes = table.routes.len(),
            certificates = table.certificates.len(),
            "table in force"
        );
        self.current.store(Arc::new(table));
    }

    /// The parts of a view's names; those that have not changed are taken from the earlier table.
    fn parts(&self, view: &EdgeView, earlier: &Table, reading: &mut Reading, metrics: &Metrics) -> Vec<Part> {
        let Some(names) = &view.names else { return Vec::new() };
        if names.files.len() != PARTS {
            metrics.count(Count::BadNames);
            warn!(
                parts = names.files.len(),
                wanted = PARTS,
                "the names are in another number of parts; they lead nowhere"
            );
            return Vec::new();
        }
        let mut made = Vec::with_capacity(PARTS);
        for (number, file) in names.files.iter().enumerate() {
            let before = earlier.parts.get(number);
            if let Some(same) = before.filter(|part| part.file == Some(*file)) {
                made.push(same.clone());
                continue;
            }
            made.push(match self.names.read(*file) {
                Ok(part) => {
                    metrics.add(Count::BadNames, part.rejected() as u64);
                    let known = before.map(|part| part.certificates.as_ref());
                    let known = known.as_slice();
                    let certificates = Layer::of(&part.certificates, &self.blobs, known, reading);
                    Part {
                        file: Some(*file),
                        leads: Arc::new(Leads::of(&part.routes, &part.gone)),
                        certificates: Arc::new(certificates),
                    }
                }
                // What is old leads to no VM of another run, since vpc looks each permit up again.
                Err(error) => {
                    metrics.count(Count::BadNames);
                    warn!(%error, "what was known of these names before stays in force");
                    Part { file: None, ..before.cloned().unwrap_or_default() }
                }
            });
        }
        made
    }

    /// Takes over the view at hand, then each newer one, for ever.
    pub async fn follow(self, feed: Feed<EdgeView>, dialer: Dialer, metrics: Arc<Metrics>) {
        let mut changes = feed.changes();
        loop {
            changes.mark_unchanged();
            if let Some(view) = feed.current() {
                let (tables, feed, dialer, metrics) =
                    (self.clone(), feed.clone(), dialer.clone(), Arc::clone(&metrics));
                let made = tokio::task::spawn_blocking(move || {
                    tables.take_over(&view, &metrics);
                    feed.in_force(view.generation);
                    dialer.retain(&tables.now());
                })
                .await;
                if let Err(error) = made {
                    warn!(%error, "a view could not be taken over; the last one stays");
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use feed::names::NamesWriter;
    use model::id::VmId;
    use model::names::{MOST_IN_VIEW, part_of};
    use model::view::{RouteEntry, VIEW_VERSION};

    fn host(text: &str) -> HostName {
        text.parse().expect("name")
    }

    fn certificate(blobs: &Blobs, names: &[&str]) -> CertificateEntry {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names.clone()).expect("certificate");
        let file = made.signing_key.serialize_pem() + &made.cert.pem();
        CertificateEntry { names, file: blobs.put(file.as_bytes(), None).expect("put") }
    }

    /// So many names that they are in parts, each with a route, and these certificates.
    fn view(generation: u64, port: u16, certificates: &[CertificateEntry]) -> EdgeView {
        let route = |number| RouteEntry {
            host: format!("n{number}.dev").parse().expect("name"),
            vm: VmId::from_random([1; 20]),
            port: if number == 0 { port } else { 80 },
            run: 1,
        };
        EdgeView {
            version: VIEW_VERSION,
            generation: Generation(generation),
            api_hosts: Vec::new(),
            routes: (0..=MOST_IN_VIEW).map(route).collect::<Vec<_>>().into(),
            gone: Vec::new().into(),
            certificates: certificates.to_vec().into(),
            challenges: Vec::new().into(),
            names: None,
        }
    }

    fn port(tables: &Tables, name: &str) -> Option<u16> {
        match tables.now().route(&host(name)) {
            Some(Route::Vm(permit)) => Some(permit.port()),
            Some(Route::Api | Route::Gone) | None => None,
        }
    }

    #[test]
    fn of_names_in_parts_what_has_changed_is_read_again_and_what_cannot_be_read_stays_as_it_was() {
        let place = tempfile::tempdir().expect("folder");
        let blobs = Blobs::make(place.path().join("certificates"), None).expect("blobs");
        let folder = place.path().join("names");
        let mut writer = NamesWriter::open(folder.clone(), None).expect("open");
        let tables = Tables::new(blobs.clone(), NamesReader::at(folder.clone()));
        let metrics = Metrics::default();
        let mut show = |view: EdgeView, spoil: bool| {
            let mut view = view;
            writer.take_out(&mut view).expect("written");
            let names = view.names.as_ref().expect("many");
            if spoil {
                std::fs::remove_file(folder.join(names.files[part_of(&host("n0.dev"))].to_string()))
                    .expect("removed");
            }
            tables.take_over(&view, &metrics);
            tables.now().parts.clone()
        };
        let first = show(view(1, 80, &[]), false);
        let second = show(view(2, 81, &[]), false);
        assert_eq!(
            (port(&tables, "n0.dev"), port(&tables, "n1.dev"), port(&tables, "n.dev")),
            (Some(81), Some(80), None)
        );
        let changed = (0..PARTS).filter(|part| !Arc::ptr_eq(&first[*part].leads, &second[*part].leads));
        assert_eq!(changed.collect::<Vec<_>>(), [part_of(&host("n0.dev"))]);
        show(view(3, 82, &[]), true);
        assert_eq!((port(&tables, "n0.dev"), port(&tables, "n1.dev")), (Some(81), Some(80)));
        assert_eq!(metrics.get(Count::BadNames), 1);
        // The next view has it.
        show(view(4, 83, &[]), false);
        assert_eq!(port(&tables, "n0.dev"), Some(83));
        let mut odd = view(5, 80, &[]);
        odd.names = Some(model::names::NameParts { files: Vec::new(), certificates_before: 0 });
        odd.routes = Vec::new().into();
        tables.take_over(&odd, &metrics);
        assert_eq!((port(&tables, "n1.dev"), metrics.get(Count::BadNames)), (None, 2));
    }

    #[test]
    fn of_certificates_in_parts_and_beside_them_the_later_one_counts() {
        let place = tempfile::tempdir().expect("folder");
        let blobs = Blobs::make(place.path().join("certificates"), None).expect("blobs");
        let folder = place.path().join("names");
        let mut writer = NamesWriter::open(folder.clone(), None).expect("open");
        let tables = Tables::new(blobs.clone(), NamesReader::at(folder));
        let listed = [
            certificate(&blobs, &["n1.dev", "n2.dev", "*.n3.dev"]),
            certificate(&blobs, &["n2.dev"]),
            certificate(&blobs, &["*.n3.dev"]),
            certificate(&blobs, &["n4.dev"]),
            certificate(&blobs, &["n4.dev", "n5.dev"]),
        ];
        let mut view = view(1, 80, &listed);
        writer.take_out(&mut view).expect("written");
        assert_eq!(view.certificates.len(), 2, "the others are in parts");
        tables.take_over(&view, &Metrics::default());
        let table = tables.now();
        let found = |name: &str| table.certificates.find(&host(name)).map(|one| one.names().to_vec());
        for (name, place) in [("n1.dev", 0), ("n2.dev", 1), ("a.n3.dev", 2), ("n4.dev", 4), ("n5.dev", 4)] {
            assert_eq!(found(name).as_ref(), Some(&listed[place].names), "{name}");
        }
        assert_eq!((found("n6.dev"), table.certificates.len()), (None, 5));
        let first = Arc::clone(table.certificates.find(&host("n2.dev")).expect("there"));
        drop(table);
        // Another view, with the same certificates and another route, reads none of them again.
        view.generation = Generation(2);
        tables.take_over(&view, &Metrics::default());
        let again = Arc::clone(tables.now().certificates.find(&host("n2.dev")).expect("there"));
        assert!(Arc::ptr_eq(&first, &again));
    }
}
