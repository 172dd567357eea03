//! Which names get certificates from the authority, when, and by which proof.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::domain::{Proofs, stands};
use crate::store::{DomainRecord, MappingRecord};
use model::config::{AcmeConfig, ChallengeKind};
use model::host::{HostName, MappedName};
use model::id::AccountId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Waits after failures in a row; the last one goes on. Let's Encrypt's own advice for clients of many names.
const BACK_OFF: [Duration; 4] = [
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(6000),
    Duration::from_secs(24 * 3600),
];
/// Longest that an authority's `Retry-After` is believed.
const LONGEST_PAUSE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The time over which orders are counted: that of Let's Encrypt's bound on new orders of an account.
pub const BUDGET_WINDOW: Duration = Duration::from_secs(3 * 3600);
/// A certificate that lives less is renewed at half of its life: two thirds would leave too few tries.
const SHORT_LIFE_MS: i64 = 10 * 24 * 3600 * 1000;
/// The part of a certificate's life over which renewals are spread, as its divisor.
const SPREAD: i64 = 20;

/// A certificate that the operator put into the folder, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supplied {
    /// Its names.
    pub names: Vec<String>,
    /// When it ends, since the Unix epoch.
    pub not_after_ms: i64,
}

/// What the wanted names are made of.
#[derive(Debug)]
pub struct Names<'a> {
    /// Whether the preview wildcard is certified too.
    pub config: &'a AcmeConfig,
    /// The preview domain.
    pub preview: &'a HostName,
    /// All mappings.
    pub mappings: &'a [MappingRecord],
    /// All proofs.
    pub domains: &'a [DomainRecord],
    /// Domains below which all names are to be certified, and who asked for it.
    pub wishes: &'a [(AccountId, HostName)],
    /// What the operator supplied.
    pub supplied: &'a [Supplied],
}

/// The names that the authority is to certify: all that are mapped by a right that stands, and wildcards that were asked
/// for, save those that another certificate covers.
#[must_use]
pub fn wanted(names: &Names<'_>, now_ms: i64) -> BTreeSet<MappedName> {
    let proofs = Proofs::of(names.domains);
    let mapped = names
        .mappings
        .iter()
        .filter(|mapping| stands(&mapping.account, &mapping.host, &proofs, names.preview))
        .map(|mapping| mapping.host.clone());
    let asked = names.wishes.iter().filter_map(|(account, domain)| {
        let name = MappedName::below(domain.clone());
        stands(account, &name, &proofs, names.preview).then_some(name)
    });
    let own = names.config.preview.then(|| MappedName::below(names.preview.clone()));
    // What stands below the house's own domain has the house's own certificate in any case.
    let mut wanted: BTreeSet<_> =
        mapped.chain(asked).filter(|name| !name.base().is_within(names.preview)).chain(own).collect();
    let wild = wanted.iter().filter(|name| name.is_wildcard()).map(ToString::to_string).collect::<Vec<_>>();
    let good = names.supplied.iter().filter(|one| one.not_after_ms > now_ms).flat_map(|one| &one.names);
    let good: Vec<_> = good.collect();
    wanted.retain(|name| {
        let by_wild = !name.is_wildcard() && wild.iter().any(|other| covers(other, name));
        !by_wild && !good.iter().any(|other| covers(other, name))
    });
    wanted
}

/// Whether a certificate for `other` serves all that one for `name` would (RFC 6125 section 6.4.3).
#[must_use]
pub fn covers(other: &str, name: &MappedName) -> bool {
    if name.to_string() == other {
        return true;
    }
    let parent = name.base().parent();
    !name.is_wildcard()
        && other.strip_prefix("*.").is_some_and(|other| parent.is_some_and(|parent| parent.as_str() == other))
}

/// The proofs that a name may be given by, in the order of preference. A wildcard has one (RFC 8555 section 7.1.3).
#[must_use]
pub fn kinds(name: &MappedName, config: &AcmeConfig) -> Vec<ChallengeKind> {
    let fits = |kind: &ChallengeKind| match kind {
        ChallengeKind::Dns => true,
        ChallengeKind::TlsAlpn | ChallengeKind::Http => !name.is_wildcard(),
    };
    config.challenges.iter().copied().filter(fits).collect()
}

/// The proof of the next try: another one after each failure.
#[must_use]
pub fn kind(kinds: &[ChallengeKind], failures: u32) -> Option<ChallengeKind> {
    let place = (failures as usize).checked_rem(kinds.len())?;
    kinds.get(place).copied()
}

/// The wait after so many failures in a row, at least 1. An authority that names a longer one is believed.
#[must_use]
pub fn back_off(failures: u32, named: Option<Duration>) -> Duration {
    let place = (failures.max(1) as usize - 1).min(BACK_OFF.len() - 1);
    BACK_OFF[place].max(named.unwrap_or_default().min(LONGEST_PAUSE))
}

/// When to renew: at two thirds of the life (half of a short one), earlier by a share that depends on the name, so that
/// what was certified together is not renewed together.
#[must_use]
pub fn renew_at(name: &MappedName, not_before_ms: i64, not_after_ms: i64) -> i64 {
    let life = not_after_ms.saturating_sub(not_before_ms).max(0);
    let late = if life < SHORT_LIFE_MS { life / 2 } else { life / 3 * 2 };
    not_before_ms + late - share(name, life / SPREAD)
}

/// A moment within the window that the authority suggests (RFC 9773 section 4.2); the same one each time it is asked.
#[must_use]
pub fn within(name: &MappedName, start_ms: i64, end_ms: i64) -> i64 {
    start_ms.saturating_add(share(name, end_ms.saturating_sub(start_ms).max(0)))
}

/// A number from 0 up to `whole`, which depends on the name alone (FNV-1a).
fn share(name: &MappedName, whole: i64) -> i64 {
    let text = name.to_string();
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let part = (i128::from(hash >> 32) * i128::from(whole)) >> 32;
    i64::try_from(part).unwrap_or(0)
}

/// What is known of a wanted name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// When its certificate is to be renewed; none without one.
    pub renew_ms: Option<i64>,
    /// Not tried before.
    pub next_ms: i64,
    /// When the authority is to be asked again when to renew.
    pub ask_ms: i64,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Names to order for, those without a certificate first, then those that are due longest.
    pub now: Vec<MappedName>,
    /// When to look again, if nothing happens before.
    pub look_ms: Option<i64>,
}

/// Which names are due. `busy` are under way; `orders` are the times of the orders within the window, sorted; at most
/// `most` may be made in it, and `room` at once.
#[must_use]
pub fn schedule(
    standings: &BTreeMap<MappedName, Standing>,
    busy: &BTreeSet<MappedName>,
    orders: &[i64],
    most: u32,
    room: usize,
    now_ms: i64,
) -> Schedule {
    let mut due = Vec::new();
    let mut look_ms: Option<i64> = None;
    for (name, standing) in standings.iter().filter(|(name, _)| !busy.contains(*name)) {
        let at = standing.next_ms.max(standing.renew_ms.unwrap_or(i64::MIN));
        if at <= now_ms {
            due.push((standing.renew_ms.is_some(), at, name));
        } else {
            look_ms = Some(look_ms.map_or(at, |look| look.min(at)));
        }
    }
    due.sort();
    let window = i64::try_from(BUDGET_WINDOW.as_millis()).unwrap_or(i64::MAX);
    let spent = orders.iter().filter(|at| now_ms.saturating_sub(**at) < window).count();
    let left = (most as usize).saturating_sub(spent);
    if left < due.len()
        && let Some(oldest) = orders.iter().find(|at| now_ms.saturating_sub(**at) < window)
    {
        let at = oldest.saturating_add(window);
        look_ms = Some(look_ms.map_or(at, |look| look.min(at)));
    }
    let now = due.into_iter().take(left.min(room)).map(|(_, _, name)| name.clone()).collect();
    Schedule { now, look_ms }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::id::{DomainId, MappingId, VmId};
    use proptest::prelude::*;

    fn name(text: &str) -> MappedName {
        text.parse().expect("name")
    }

    fn config() -> AcmeConfig {
        AcmeConfig {
            directory: "https://ca.example/dir".to_owned(),
            contact: Vec::new(),
            external_account: None,
            ca_file: None,
            challenges: vec![ChallengeKind::TlsAlpn, ChallengeKind::Http, ChallengeKind::Dns],
            preview: false,
            orders: 5,
        }
    }

    fn account(number: u8) -> AccountId {
        AccountId::from_random([number; 20])
    }

    fn mapping(owner: u8, host: &str) -> MappingRecord {
        MappingRecord {
            id: MappingId::from_random([owner; 20]),
            host: name(host),
            account: account(owner),
            vm: VmId::from_random([1; 20]),
            port: 80,
            created_ms: 0,
        }
    }

    fn proof(owner: u8, domain: &str) -> DomainRecord {
        DomainRecord {
            id: DomainId::from_random([owner; 20]),
            domain: domain.parse().expect("domain"),
            account: account(owner),
            code: "code".to_owned(),
            created_ms: 0,
            proved_ms: 0,
            checked_ms: 0,
            misses: 0,
            last_error: None,
        }
    }

    #[test]
    fn a_star_of_a_certificate_stands_for_one_label() {
        assert!(covers("a.example.com", &name("a.example.com")));
        assert!(covers("*.example.com", &name("a.example.com")));
        assert!(covers("*.example.com", &name("*.example.com")));
        assert!(!covers("*.example.com", &name("a.b.example.com")));
        assert!(!covers("*.example.com", &name("example.com")));
        assert!(!covers("*.example.com", &name("*.a.example.com")));
    }

    #[test]
    fn what_another_certificate_covers_or_nobody_proved_is_not_wanted() {
        let host = |text: &str| text.parse::<HostName>().expect("host");
        let preview = host("style.dev");
        let mappings = [
            mapping(1, "a.style.dev"),
            mapping(1, "www.example.com"),
            mapping(1, "a.b.example.com"),
            mapping(1, "own.org"),
            mapping(2, "stolen.example.com"),
            mapping(1, "unproved.net"),
            mapping(1, "*.wild.org"),
        ];
        let domains = [proof(1, "example.com"), proof(1, "own.org"), proof(1, "wild.org")];
        let wishes = [(account(1), host("example.com")), (account(2), host("own.org"))];
        let supplied = [
            Supplied { names: vec!["own.org".into()], not_after_ms: 10 },
            Supplied { names: vec!["*.b.example.com".into()], not_after_ms: 5 },
        ];
        let wanted = |preview_too, now| {
            let config = AcmeConfig { preview: preview_too, ..config() };
            let names = Names {
                config: &config,
                preview: &preview,
                mappings: &mappings,
                domains: &domains,
                wishes: &wishes,
                supplied: &supplied,
            };
            let mut names: Vec<_> = wanted(&names, now).iter().map(ToString::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(wanted(false, 1), ["*.example.com", "*.wild.org"]);
        assert_eq!(wanted(true, 7), ["*.example.com", "*.style.dev", "*.wild.org", "a.b.example.com"]);
        assert_eq!(wanted(false, 10), ["*.example.com", "*.wild.org", "a.b.example.com", "own.org"]);
    }

    #[test]
    fn proofs_rotate_and_a_wildcard_has_one() {
        let kinds = kinds(&name("a.example.com"), &config());
        assert_eq!(kinds, [ChallengeKind::TlsAlpn, ChallengeKind::Http, ChallengeKind::Dns]);
        assert_eq!(kind(&kinds, 4), Some(ChallengeKind::Http));
        let wild = super::kinds(&name("*.example.com"), &config());
        assert_eq!((kind(&wild, 3), kind(&[], 3)), (Some(ChallengeKind::Dns), None));
    }

    #[test]
    fn waits_grow_and_the_authority_is_believed_within_reason() {
        let waits: Vec<_> = (0..6).map(|failures| back_off(failures, None).as_secs()).collect();
        assert_eq!(waits, [60, 60, 600, 6000, 86400, 86400]);
        assert_eq!(back_off(1, Some(Duration::from_secs(3600))).as_secs(), 3600);
        assert_eq!(back_off(4, Some(Duration::from_secs(5))).as_secs(), 86400);
        assert_eq!(back_off(1, Some(Duration::MAX)), LONGEST_PAUSE);
    }

    #[test]
    fn orders_stay_within_the_budget_and_the_room() {
        let standings: BTreeMap<_, _> = (0..10)
            .map(|number| {
                let renew_ms = (number % 2 == 0).then_some(number);
                (name(&format!("n{number}.example.com")), Standing { renew_ms, next_ms: 0, ask_ms: 0 })
            })
            .collect();
        let window = i64::try_from(BUDGET_WINDOW.as_millis()).expect("fits");
        let orders = [0, 50, 60];
        let some = schedule(&standings, &BTreeSet::new(), &orders, 5, 64, 100);
        let names: Vec<_> = some.now.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["n1.example.com", "n3.example.com"], "those without one come first");
        assert_eq!(some.look_ms, Some(window));
        assert_eq!(schedule(&standings, &BTreeSet::new(), &orders, 5, 1, 100).now.len(), 1);
        assert_eq!(schedule(&standings, &BTreeSet::new(), &orders, 5, 64, window).now.len(), 3);
        let busy = standings.keys().cloned().collect();
        assert_eq!(schedule(&standings, &busy, &[], 5, 64, 100), Schedule::default());
    }

    #[test]
    fn nothing_is_tried_before_its_time() {
        let later = Standing { renew_ms: Some(500), ..Standing::default() };
        let waits = Standing { next_ms: 300, ..Standing::default() };
        let failed = Standing { renew_ms: Some(10), next_ms: 400, ask_ms: 0 };
        let standings = [("a.example.com", later), ("b.example.com", waits), ("c.example.com", failed)];
        let standings: BTreeMap<_, _> =
            standings.into_iter().map(|(text, standing)| (name(text), standing)).collect();
        let at = |now| schedule(&standings, &BTreeSet::new(), &[], 5, 64, now);
        assert_eq!(at(299), Schedule { now: Vec::new(), look_ms: Some(300) });
        assert_eq!(at(300).now, [name("b.example.com")]);
        assert_eq!(at(500).now.len(), 3);
    }

    proptest! {
        #[test]
        fn renewal_is_in_the_later_half_of_a_life_and_before_its_end(
            label in "[a-z]{1,20}", begin in 0_i64..2_000_000_000_000, life in 1_000_i64..100_000_000_000,
        ) {
            let at = renew_at(&name(&format!("{label}.example.com")), begin, begin + life) - begin;
            let (least, most) = if life < SHORT_LIFE_MS { (45, 50) } else { (61, 67) };
            prop_assert!(at * 100 >= life * least - 200 && at * 100 <= life * most, "{at} of {life}");
        }

        #[test]
        fn a_window_is_kept_to(label in "[a-z]{1,20}", start in any::<i64>(), length in 0_i64..1_000_000_000) {
            let end = start.saturating_add(length);
            let at = within(&name(&format!("{label}.com")), start, end);
            prop_assert!(at >= start && at <= end.max(start));
        }
    }
}
