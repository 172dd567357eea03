//! The store against a real database file.

use super::*;
use crate::keys;
use crate::pure::identity::IdentityRefusal;
use crate::pure::phase::{Ask, Event, Fate, Lack, Phase, step};
use crate::pure::room::{Promised, Shortage};
use crate::pure::vpc::NicRefusal;
use model::api::vm::Persistence;
use model::config::{VmLimits, VmSize};
use model::id::VpcId;
use model::id::{AccountId, ApiKeyId};
use model::net::Ipv4Cidr;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;

const LIMITS: VmLimits = VmLimits {
    largest: VmSize { vcpus: 4, memory_mib: 4096, disk_mib: 8192 },
    vms_per_account: 3,
    memory_mib: 1024,
    memory_storage_mib: None,
    rootfs_storage_mib: None,
    kept_vms: 100,
    snapshots_per_account: 3,
};

fn network() -> Ipv4Cidr {
    "10.201.0.0/29".parse().expect("network")
}

fn new_vm(account: &AccountId, memory_mib: u32, hosts: &[&str]) -> NewVm {
    NewVm {
        account: account.clone(),
        name: Some("name".to_owned()),
        image: "debian".to_owned(),
        origin: None,
        size: VmSize { vcpus: 2, memory_mib, disk_mib: 4096 },
        idle_timeout_seconds: None,
        activity_threshold_bytes: Some(u64::MAX),
        persistence: Persistence::Sticky { priority: Some(3) },
        mappings: hosts
            .iter()
            .map(|host| NewMapping { host: host.parse().expect("host"), port: 3000, right: Right::Preview })
            .collect(),
        nic: None,
    }
}

async fn insert(store: &Store, new: &NewVm) -> VmRecord {
    match store.insert_vm(new, &LIMITS, network()).await.expect("store") {
        Admission::Done(record) => record,
        other => panic!("{other:?}"),
    }
}

async fn drive(store: &Store, vm: &VmRecord, event: Event) -> Admission<VmRecord> {
    let step = step(vm.phase, event, Fate::default()).expect("fits");
    store.apply(vm, &step, None, &LIMITS).await.expect("store")
}

async fn opened() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("folder");
    let store = Store::open(&folder.path().join("control.db")).await.expect("open");
    (folder, store)
}

#[tokio::test]
async fn what_was_stored_is_there_after_opening_again() {
    let (folder, store) = opened().await;
    let account = store.default_account().await.expect("account");
    let vm = insert(&store, &new_vm(&account.id, 256, &["a.style.dev"])).await;
    drop(store);
    let store = Store::open(&folder.path().join("control.db")).await.expect("open again");
    assert_eq!(store.default_account().await.expect("account"), account);
    let mut expected = vm.clone();
    expected.activity_threshold_bytes = Some(i64::MAX as u64);
    assert_eq!(store.vm(&vm.id).await.expect("store"), Some(expected));
    assert_eq!(store.mappings().await.expect("store").len(), 1);
    let first = store.decide().await.expect("decide").generation;
    store.raise_generation(Generation(70)).await.expect("raise");
    store.raise_generation(Generation(7)).await.expect("never lowered");
    let second = store.decide().await.expect("decide");
    let counts = (second.vms.len(), second.mappings.len(), second.vpcs.len());
    assert_eq!((first.0 + 1 < 70, second.generation, counts), (true, Generation(71), (1, 1, 0)));
}

#[tokio::test]
async fn keys_are_known_by_their_hash_alone_until_they_are_revoked() {
    let (folder, store) = opened().await;
    let account = store.default_account().await.expect("account").id;
    let secret = keys::generate();
    let id = store.create_key(&account, Some("laptop"), &keys::hash(&secret)).await.expect("key");
    assert_eq!(store.keys().await.expect("keys")[0].last_used_ms, None);
    let found = store.account_of_key(&keys::hash(&secret)).await.expect("store");
    assert_eq!(found, Some((account.clone(), id.clone())));
    let used = store.keys().await.expect("keys")[0].last_used_ms;
    assert!(used.is_some());
    store.account_of_key(&keys::hash(&secret)).await.expect("store");
    assert_eq!(store.keys().await.expect("keys")[0].last_used_ms, used, "not written each time");
    assert_eq!(store.account_of_key(&keys::hash("other")).await.expect("store"), None);
    for entry in std::fs::read_dir(folder.path()).expect("folder") {
        let entry = entry.expect("entry");
        assert_eq!(entry.metadata().expect("facts").mode() & 0o077, 0, "{entry:?} can be read by others");
        let bytes = std::fs::read(entry.path()).expect("file");
        assert!(
            !bytes.windows(secret.len()).any(|window| window == secret.as_bytes()),
            "the secret is on disk"
        );
    }
    assert!(store.revoke_key(&id).await.expect("store"));
    assert_eq!(store.account_of_key(&keys::hash(&secret)).await.expect("store"), None);
    assert!(!store.revoke_key(&ApiKeyId::from_random([0; 20])).await.expect("store"));
}

#[tokio::test]
async fn there_is_room_for_so_many_and_no_more() {
    let (_folder, store) = opened().await;
    let account = store.default_account().await.expect("account").id;
    let big = insert(&store, &new_vm(&account, 768, &[])).await;
    let admission = store.insert_vm(&new_vm(&account, 512, &[]), &LIMITS, network()).await.expect("store");
    let short = Shortage { limit: 1024, current: 768, requested: 512 };
    assert_eq!(admission, Admission::Refused(Refused::NoMemory(short)));
    insert(&store, &new_vm(&account, 128, &[])).await;
    insert(&store, &new_vm(&account, 128, &[])).await;
    let admission = store.insert_vm(&new_vm(&account, 128, &[]), &LIMITS, network()).await.expect("store");
    assert_eq!(admission, Admission::Refused(Refused::TooMany { limit: 3, current: 3 }));
    let promised = Promised { memory_mib: 1024, asleep_mib: 0, disk_mib: 3 * 4096 };
    assert_eq!(store.promised().await.expect("store"), promised);

    // A VM that is down holds no memory, and cannot come up while others hold it.
    let Admission::Done(big) = drive(&store, &big, Event::Ready).await else { panic!("running") };
    let Admission::Done(big) = drive(&store, &big, Event::Down).await else { panic!("stopped") };
    let other = store.create_account("other").await.expect("store").expect("free").id;
    insert(&store, &new_vm(&other, 512, &[])).await;
    let short = Shortage { limit: 1024, current: 768, requested: 768 };
    assert_eq!(
        drive(&store, &big, Event::Asked(Ask::Start)).await,
        Admission::Refused(Refused::NoMemory(short))
    );
    let stored = store.vm(&big.id).await.expect("store").expect("there");
    assert_eq!((stored.phase, stored.run, &stored.instance), (Phase::Stopped, 1, &big.instance));
    assert_eq!(store.create_account("other").await.expect("store"), None);
}

#[tokio::test]
async fn what_has_its_memory_keeps_it_where_less_may_be_promised_by_now() {
    let (_folder, store) = opened().await;
    let account = store.default_account().await.expect("account").id;
    let mut vm = insert(&store, &new_vm(&account, 768, &[])).await;
    for event in [Event::Ready, Event::Asked(Ask::Suspend), Event::Suspended] {
        let Admission::Done(next) = drive(&store, &vm, event).await else { panic!("{event:?}") };
        vm = next;
    }
    let promised = Promised { memory_mib: 0, asleep_mib: 768, disk_mib: 4096 };
    assert_eq!(store.promised().await.expect("store"), promised);
    let less = VmLimits { memory_mib: 512, memory_storage_mib: Some(0), ..LIMITS };
    let wake = step(vm.phase, Event::Asked(Ask::Start), Fate::default()).expect("fits");
    let short = Shortage { limit: 512, current: 0, requested: 768 };
    let refused = store.apply(&vm, &wake, None, &less).await.expect("store");
    assert_eq!(refused, Admission::Refused(Refused::NoMemory(short)));
    let Admission::Done(vm) = drive(&store, &vm, Event::Asked(Ask::Start)).await else { panic!("woken") };
    let promised = Promised { memory_mib: 768, asleep_mib: 768, disk_mib: 4096 };
    assert_eq!(store.promised().await.expect("store"), promised, "it may fall back to sleep");
    let boot = step(vm.phase, Event::Refused(Lack::State), Fate::default()).expect("fits");
    assert!(matches!(store.apply(&vm, &boot, None, &less).await.expect("store"), Admission::Done(_)));
}

#[tokio::test]
async fn addresses_are_given_once_and_run_out() {
    let (_folder, store) = opened().await;
    let mut addresses = std::collections::BTreeSet::new();
    for number in 0..6 {
        let account = store.create_account(&number.to_string()).await.expect("store").expect("new").id;
        addresses.insert(insert(&store, &new_vm(&account, 128, &[])).await.ipv4);
    }
    assert_eq!(addresses.len(), 6);
    let account = store.create_account("late").await.expect("store").expect("new").id;
    let full = store.insert_vm(&new_vm(&account, 128, &[]), &LIMITS, network()).await;
    assert!(matches!(full, Err(StoreError::NoAddress)), "{full:?}");
}

#[tokio::test]
async fn a_name_belongs_to_whom_it_was_mapped_first_and_goes_with_the_vm() {
    let (_folder, store) = opened().await;
    let mine = store.default_account().await.expect("account").id;
    let other = store.create_account("other").await.expect("store").expect("new").id;
    let one = insert(&store, &new_vm(&mine, 128, &["a.style.dev"])).await;
    let two = insert(&store, &new_vm(&mine, 128, &[])).await;
    let theirs = insert(&store, &new_vm(&other, 128, &[])).await;
    let new = NewMapping { host: "a.style.dev".parse().expect("host"), port: 80, right: Right::Preview };
    assert_eq!(store.put_mapping(&other, &theirs.id, &new).await.expect("store"), PutMapping::Taken);
    assert_eq!(store.put_mapping(&other, &one.id, &new).await.expect("store"), PutMapping::NoVm);
    assert_eq!(store.owner_of_host(&new.host).await.expect("store"), Some(mine.clone()));
    let taken = store.insert_vm(&new_vm(&other, 128, &["a.style.dev"]), &LIMITS, network()).await;
    assert_eq!(taken.expect("store"), Admission::Refused(Refused::Taken(new.host.clone())));
    assert_eq!(store.vms_of(&other).await.expect("store").len(), 1, "nothing of the refused one");

    let moved = store.put_mapping(&mine, &two.id, &new).await.expect("store");
    assert!(matches!(&moved, PutMapping::Done(record) if record.vm == two.id && record.port == 80));
    assert_eq!(store.mappings().await.expect("store").len(), 1);
    let Admission::Done(two) = drive(&store, &two, Event::Asked(Ask::Delete)).await else {
        panic!("deleting")
    };
    assert!(store.mappings().await.expect("store").is_empty());
    assert_eq!(store.put_mapping(&mine, &two.id, &new).await.expect("store"), PutMapping::NoVm);
    drive(&store, &two, Event::Removed).await;
    assert_eq!(store.vm(&two.id).await.expect("store"), None);
    assert!(!store.remove_mapping(&mine, &new.host).await.expect("store"));
}

#[tokio::test]
async fn a_database_of_the_first_version_is_brought_up_to_date() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("control.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let old = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.expect("open");
    migrator(&MIGRATIONS[..1]).run(&old).await.expect("the first version");
    let vm = model::id::VmId::from_random([1; 20]);
    let mapping = model::id::MappingId::from_random([1; 20]);
    for text in [
        "INSERT INTO accounts (id, name, created_ms) VALUES ('ac-aaaaaaaaaaaaaaaaaaaa', 'default', 1)".to_owned(),
        format!(
            "INSERT INTO vms (id, account_id, image, vcpus, memory_mib, disk_mib, ipv4, phase, instance_id, run,
                 persistence, created_ms) VALUES ('{vm}', 'ac-aaaaaaaaaaaaaaaaaaaa', 'debian', 1, 256, 1024,
                 '10.201.0.1', 'stopped', 'in-aaaaaaaaaaaaaaaaaaaa', 3, '{{\"type\":\"sticky\"}}', 77)"
        ),
        format!(
            "INSERT INTO mappings (id, host, account_id, vm_id, port, created_ms)
             VALUES ('{mapping}', 'a.style.dev', 'ac-aaaaaaaaaaaaaaaaaaaa', '{vm}', 80, 78)"
        ),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(text)).execute(&old).await.expect("insert");
    }
    old.close().await;
    let store = Store::open(&path).await.expect("open");
    let record = store.vm(&vm).await.expect("store").expect("there");
    assert_eq!((record.phase, record.origin, record.last_used_ms), (Phase::Stopped, None, 77));
    assert_eq!((record.vpc, record.ipv4), (None, Ipv4Addr::new(10, 201, 0, 1)));
    assert!(store.dead_forks("me").await.expect("store").is_empty());
    assert_eq!(store.mappings().await.expect("store")[0].id, mapping, "kept when tables were made anew");
    sqlx::query("DELETE FROM vms").execute(&store.writer).await.expect("deleted");
    assert!(store.mappings().await.expect("store").is_empty(), "it still goes with its VM");
}

#[test]
fn times_are_written_as_the_contract_says() {
    assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
    assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
}

async fn vpc(store: &Store, account: &AccountId, range: &str) -> VpcId {
    let made = store.insert_vpc(account, None, range.parse().expect("range")).await.expect("store");
    made.expect("there may be one more").id
}

fn nic(vpc: &VpcId, last: Option<u8>) -> NewNic {
    NewNic { vpc: vpc.clone(), ipv4: last.map(|last| Ipv4Addr::new(10, 0, 0, last)), default: true }
}

#[tokio::test]
async fn networks_are_apart_and_each_has_an_address_once() {
    let (_folder, store) = opened().await;
    let mine = store.default_account().await.expect("account").id;
    let other = store.create_account("other").await.expect("store").expect("new").id;
    let (one, two) = (vpc(&store, &mine, "10.0.0.0/28").await, vpc(&store, &other, "10.0.0.0/28").await);
    let with = |account: &AccountId, nic| NewVm { nic: Some(nic), ..new_vm(account, 128, &[]) };
    let first = insert(&store, &with(&mine, nic(&one, None))).await;
    let twin = insert(&store, &with(&other, nic(&two, None))).await;
    assert_eq!((first.ipv4, twin.ipv4), (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 1)));
    assert_eq!((first.vpc.as_ref(), first.vpc_default), (Some(&one), true));
    assert_eq!(store.vm(&first.id).await.expect("store").as_ref().map(|vm| &vm.vpc), Some(&first.vpc));
    let foreign = store.insert_vm(&with(&other, nic(&one, None)), &LIMITS, network()).await.expect("store");
    assert_eq!(foreign, Admission::Refused(Refused::Nic(NicRefusal::NoVpc(one.clone()))));
    let taken = NicRefusal::Taken { ipv4: first.ipv4, vpc: one.clone() };
    assert_eq!(store.nic_fits(&mine, &nic(&one, Some(1))).await.expect("store"), Err(taken.clone()));
    let refused = store.insert_vm(&with(&mine, nic(&one, Some(1))), &LIMITS, network()).await.expect("store");
    assert_eq!(refused, Admission::Refused(Refused::Nic(taken)));
    // Below control's own care, the database keeps it too.
    let twice =
        sqlx::query("UPDATE vms SET vpc_id = $1 WHERE id = $2").bind(one.as_str()).bind(twin.id.as_str());
    assert!(twice.execute(&store.writer).await.is_err());
    assert_eq!(store.delete_vpc(&other, &one).await.expect("store"), DeleteVpc::NoVpc);
    assert_eq!(store.delete_vpc(&mine, &one).await.expect("store"), DeleteVpc::InUse { vms: 1, services: 0 });
    let moved = store.detach(&first, network()).await.expect("store");
    assert_eq!((moved.vpc.as_ref(), moved.ipv4), (None, Ipv4Addr::new(10, 201, 0, 1)));
    assert_eq!(store.delete_vpc(&mine, &one).await.expect("store"), DeleteVpc::Done);
    assert_eq!(store.vpc(&mine, &one).await.expect("store"), None);
    let gone = store.attach(&moved, &nic(&one, None)).await.expect("store");
    assert_eq!(gone, Err(NicRefusal::NoVpc(one)));
    let decision = store.decide().await.expect("decide");
    assert_eq!((decision.vpcs.len(), decision.vms.len()), (1, 2));
}

#[tokio::test]
async fn there_are_so_many_vpcs_and_no_more() {
    let (_folder, store) = opened().await;
    let mine = store.default_account().await.expect("account").id;
    for _ in 0..vpcs::MAX_VPCS_OF_ACCOUNT {
        vpc(&store, &mine, "10.0.0.0/16").await;
    }
    let range = "10.0.0.0/16".parse().expect("range");
    let full = TooManyVpcs { limit: 100, current: 100, of_account: true };
    assert_eq!(store.insert_vpc(&mine, None, range).await.expect("store"), Err(full));
    let other = store.create_account("other").await.expect("store").expect("new").id;
    vpc(&store, &other, "10.0.0.0/16").await;
    let oldest = store.vpcs_of(&mine).await.expect("store").pop().expect("one").0.id;
    assert_eq!(store.delete_vpc(&mine, &oldest).await.expect("store"), DeleteVpc::Done);
    vpc(&store, &mine, "10.0.0.0/16").await;
}

/// What somebody does with VMs and networks.
#[derive(Clone, Copy, Debug)]
enum Move {
    Make { network: usize, last: Option<u8> },
    Delete(usize),
    Attach { vm: usize, network: usize, last: Option<u8> },
    Detach(usize),
}

fn moves() -> impl Strategy<Value = Move> {
    let last = || prop_oneof![2 => Just(None), 1 => (0u8..18).prop_map(Some)];
    prop_oneof![
        4 => (0usize..3, last()).prop_map(|(network, last)| Move::Make { network, last }),
        2 => any::<usize>().prop_map(Move::Delete),
        2 => (any::<usize>(), 0usize..2, last()).prop_map(|(vm, network, last)| Move::Attach { vm, network, last }),
        1 => any::<usize>().prop_map(Move::Detach),
    ]
}

/// Does it; what could not be done changes nothing.
async fn make_move(store: &Store, account: &AccountId, networks: &[VpcId], chosen: Move) {
    let limits = VmLimits { vms_per_account: 1000, memory_mib: u32::MAX, ..LIMITS };
    let vms = store.vms().await.expect("vms");
    let vm = |number: usize| (!vms.is_empty()).then(|| vms[number % vms.len()].clone());
    match chosen {
        Move::Make { network: number, last } => {
            let nic = networks.get(number).map(|vpc| nic(vpc, last));
            let full = nic
                .as_ref()
                .is_none_or(|nic| vms.iter().filter(|vm| vm.vpc.as_ref() == Some(&nic.vpc)).count() == 14);
            let any = nic.as_ref().is_some_and(|nic| nic.ipv4.is_none());
            let new = NewVm { nic, ..new_vm(account, 1, &[]) };
            let made = store.insert_vm(&new, &limits, network()).await;
            assert!(!any || full || matches!(made, Ok(Admission::Done(_))), "{made:?}");
        }
        Move::Delete(number) => {
            let Some(vm) = vm(number) else { return };
            let Admission::Done(vm) = drive(store, &vm, Event::Asked(Ask::Delete)).await else {
                panic!("deleting")
            };
            drive(store, &vm, Event::Removed).await;
        }
        Move::Attach { vm: number, network, last } => {
            let Some(vm) = vm(number) else { return };
            drop(store.attach(&vm, &nic(&networks[network], last)).await.expect("store"));
        }
        Move::Detach(number) => {
            let Some(vm) = vm(number) else { return };
            drop(store.detach(&vm, network()).await);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_two_members_of_a_network_have_one_address(moves in proptest::collection::vec(moves(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let (_folder, store) = opened().await;
            let account = store.default_account().await.expect("account").id;
            let networks = [vpc(&store, &account, "10.0.0.0/28").await, vpc(&store, &account, "10.0.0.0/28").await];
            for chosen in moves {
                make_move(&store, &account, &networks, chosen).await;
                let mut seen: BTreeMap<Option<VpcId>, BTreeSet<Ipv4Addr>> = BTreeMap::new();
                for vm in store.vms().await.expect("vms") {
                    let range = match vm.vpc {
                        Some(_) => "10.0.0.0/28".parse().expect("range"),
                        None => network(),
                    };
                    assert!(range.hosts().any(|host| host == vm.ipv4), "{vm:?} after {chosen:?}");
                    assert!(seen.entry(vm.vpc.clone()).or_default().insert(vm.ipv4), "{vm:?} after {chosen:?}");
                }
            }
        });
    }
}

fn hash(number: u8) -> model::token::TokenHash {
    // A byte makes one of 62 digits, so two of them.
    let mut bytes = [number; model::token::TOKEN_RANDOM_BYTES];
    bytes[0] = number / 62;
    model::token::IdentityToken::from_random(&bytes).expect("usable bytes").hash()
}

#[tokio::test]
async fn an_identity_keeps_what_it_has_until_it_or_the_vm_goes() {
    let (folder, store) = opened().await;
    let account = store.default_account().await.expect("account").id;
    let other = store.create_account("other").await.expect("store").expect("made").id;
    let vm = insert(&store, &new_vm(&account, 256, &[])).await;
    let identity = store.create_identity(&account).await.expect("store").expect("made").id;
    let token = store.create_token(&account, &identity, hash(1)).await.expect("store").expect("made");
    let users = Some(vec!["dev".parse().expect("user")]);
    store.grant_vm(&account, &identity, &vm.id, users.clone()).await.expect("store").expect("granted");
    store.add_ssh_key(&account, Some(&identity), "k", None).await.expect("store").expect("added");
    store.add_ssh_key(&account, None, "k", Some("n")).await.expect("store").expect("another owner's");
    drop(store);
    let store = Store::open(&folder.path().join("control.db")).await.expect("open again");
    let bearer = store.bearer(hash(1)).await.expect("store").expect("there");
    assert_eq!((&bearer.token, &bearer.identity, &bearer.account), (&token, &identity, &account));
    assert_eq!(store.bearer(hash(2)).await.expect("store"), None);
    assert_eq!(store.rights(&token, &vm.id).await.expect("store"), Some(users));
    let decision = store.decide().await.expect("decide");
    assert_eq!((decision.tokens.len(), decision.grants.len(), decision.ssh_keys.len()), (1, 1, 2));
    // Nothing of it is another account's.
    let no = Err(IdentityRefusal::NoIdentity(identity.clone()));
    assert_eq!(store.create_token(&other, &identity, hash(3)).await.expect("store"), no);
    assert_eq!(
        store.revoke_vm(&other, &identity, &vm.id).await.expect("store"),
        Err(IdentityRefusal::NoIdentity(identity.clone()))
    );
    assert!(!store.delete_identity(&other, &identity).await.expect("store"));
    let theirs = store.create_identity(&other).await.expect("store").expect("made").id;
    let refused = store.grant_vm(&other, &theirs, &vm.id, None).await.expect("store");
    assert_eq!(refused, Err(IdentityRefusal::NoVm(vm.id.clone())));
    let deleting = drive(&store, &vm, Event::Asked(Ask::Delete)).await;
    assert!(matches!(deleting, Admission::Done(_)), "{deleting:?}");
    assert_eq!(store.rights(&token, &vm.id).await.expect("store"), None, "in the same moment");
    assert!(store.decide().await.expect("decide").grants.is_empty());
    assert!(store.delete_identity(&account, &identity).await.expect("store"));
    let decision = store.decide().await.expect("decide");
    assert_eq!((decision.tokens.len(), decision.ssh_keys.len()), (0, 1), "the account's own key stays");
    assert_eq!(store.bearer(hash(1)).await.expect("store"), None);
}

#[tokio::test]
async fn identities_keys_and_tokens_have_bounds() {
    let (_folder, store) = opened().await;
    let account = store.default_account().await.expect("account").id;
    let identity = store.create_identity(&account).await.expect("store").expect("made").id;
    for number in 0..MAX_TOKENS_OF_IDENTITY {
        let number = u8::try_from(number).expect("small");
        store.create_token(&account, &identity, hash(number)).await.expect("store").expect("made");
    }
    let more = store.create_token(&account, &identity, hash(200)).await.expect("store");
    assert!(matches!(more, Err(IdentityRefusal::TooMany { limit: MAX_TOKENS_OF_IDENTITY, .. })), "{more:?}");
    for owner in [None, Some(&identity)] {
        for number in 0..MAX_KEYS_OF_ONE {
            let key = format!("k{number}");
            store.add_ssh_key(&account, owner, &key, None).await.expect("store").expect("added");
        }
        let more = store.add_ssh_key(&account, owner, "k", None).await.expect("store");
        assert!(matches!(more, Err(IdentityRefusal::TooMany { limit: MAX_KEYS_OF_ONE, .. })), "{more:?}");
    }
    let query = "INSERT INTO identities (id, account_id, created_ms)
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $2)
         SELECT 'x' || i, $1, i FROM n";
    sqlx::query(query)
        .bind(account.as_str())
        .bind(signed(MAX_IDENTITIES_OF_ACCOUNT - 1))
        .execute(&store.writer)
        .await
        .expect("filled");
    let more = store.create_identity(&account).await.expect("store");
    assert!(matches!(more, Err(IdentityRefusal::TooMany { .. })), "{more:?}");
}
