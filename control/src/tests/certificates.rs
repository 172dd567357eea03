//! The authority's certificates, from the store to the files that edge-proxy's view names.

use super::crash::{runtime, start};
use super::*;
use crate::seal::{KEY_FILE, Seal};
use crate::store::{IssuedRecord, Store, now_ms};
use feed::blobs::Blobs;
use model::digest::Digest;
use model::host::MappedName;
use model::view::EdgeView;
use std::collections::BTreeSet;

const LIFE_MS: i64 = 90 * 24 * 3600 * 1000;

struct House {
    config: ControlConfig,
    _world: World,
    _folder: tempfile::TempDir,
}

impl House {
    fn new(outside: &tokio::runtime::Runtime) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let config = config(folder.path());
        let world = outside.block_on(async { World::start(&config.places.vmm_socket()) });
        Self { config, _world: world, _folder: folder }
    }

    /// One run of control, from its start until it has published.
    fn run(&self) -> EdgeView {
        let control = start(&self.config, FailPoints::default());
        let bytes = std::fs::read(self.config.places.feed().join("edge.json")).expect("view");
        control.shutdown_timeout(PATIENCE);
        serde_json::from_slice(&bytes).expect("a view")
    }

    fn shown(&self) -> Vec<Vec<u8>> {
        let blobs = Blobs::at(self.config.places.certificates());
        self.run().certificates.iter().map(|entry| blobs.read(entry.file).expect("its file")).collect()
    }

    async fn store(&self) -> Store {
        Store::open(&self.config.places.data.join("control.db")).await.expect("open")
    }
}

#[test]
fn a_certificate_is_shown_while_its_key_opens_and_is_due_anew_when_it_does_not() {
    let outside = runtime();
    let house = House::new(&outside);
    house.run();
    let name: MappedName = "shop.example.com".parse().expect("name");
    let made = rcgen::generate_simple_self_signed(vec![name.to_string()]).expect("certificate");
    let (key, chain) = (made.signing_key.serialize_pem(), made.cert.pem());
    let seal = Seal::of_house(&house.config.places.data).expect("seal");
    let issued = IssuedRecord {
        chain_pem: chain.clone(),
        sealed_key: seal.close_bytes(&name.to_string(), key.as_bytes()),
        not_before_ms: now_ms(),
        not_after_ms: now_ms() + LIFE_MS,
        renew_ms: now_ms() + LIFE_MS / 2,
    };
    let file = format!("{key}{chain}").into_bytes();
    outside.block_on(async {
        let store = house.store().await;
        store.want_certificates(&BTreeSet::from([name.clone()])).await.expect("wanted");
        store.put_certificate(&name, &issued, Digest::of(&file), i64::MAX).await.expect("put");
    });
    assert_eq!(house.shown(), std::slice::from_ref(&file));

    // As an earlier version left it.
    let forget = || {
        let options =
            sqlx::sqlite::SqliteConnectOptions::new().filename(house.config.places.data.join("control.db"));
        outside.block_on(async {
            let pool = sqlx::SqlitePool::connect_with(options).await.expect("open");
            sqlx::query("UPDATE certificates SET file = NULL").execute(&pool).await.expect("forgotten");
            pool.close().await;
        });
    };
    forget();
    assert_eq!(house.shown(), std::slice::from_ref(&file), "the start finds its file out");

    let key_file = house.config.places.data.join(KEY_FILE);
    let right = std::fs::read(&key_file).expect("the house's key");
    std::fs::remove_file(&key_file).expect("removed");
    std::fs::remove_dir_all(house.config.places.certificates()).expect("removed");
    // The one run finds out, the next one has it written down.
    assert_eq!((house.shown().len(), house.shown().len()), (0, 0));
    let record = outside.block_on(async { house.store().await.certificate(&name).await });
    let record = record.expect("store").expect("kept");
    assert_eq!(record.issued.map(|issued| issued.renew_ms), Some(0), "due at once");
    let (why, _) = record.last_error.expect("told");
    assert!(why.contains("does not open"), "{why}");

    std::fs::write(&key_file, right).expect("put back");
    assert_eq!(house.shown(), [file], "the right key is back");
}
