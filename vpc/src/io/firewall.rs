//! Brings a private network's firewall into the kernel, and reads what its rules have counted.

use crate::chaos;
use crate::client::RuleCount;
use crate::io::namespace::Inside;
use crate::io::network::{Network, NetworkError};
use crate::io::nft::{self, NftError, Where};
use crate::pure::firewall::{Firewall, rule_of};
use crate::pure::names::TABLE;
use crate::pure::rules::Logged;
use std::collections::BTreeSet;

/// What stands in the kernel, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    firewall: Firewall,
    counters: BTreeSet<String>,
}

/// Writes the firewall in one transaction, unless it stands already. Counters of rules that stay go on counting.
///
/// # Errors
/// When nft refuses. What stood stays.
pub async fn ensure(
    network: &Network,
    standing: &mut Option<Standing>,
    firewall: &Firewall,
    logged: Logged,
) -> Result<(), NetworkError> {
    let counters = match standing.take() {
        Some(known) if known.firewall == *firewall => {
            *standing = Some(known);
            return Ok(());
        }
        Some(known) => known.counters,
        None if network.new => BTreeSet::new(),
        None => {
            let counters = nft::counters(Where::Network(&network.inside), TABLE).await?;
            counters.into_iter().map(|counter| counter.name).filter(|name| rule_of(name).is_some()).collect()
        }
    };
    let text = firewall.text((network.range, network.ula), logged, &counters);
    nft::apply(Where::Network(&network.inside), text).await?;
    chaos::border();
    *standing = Some(Standing { firewall: firewall.clone(), counters: firewall.counters() });
    Ok(())
}

/// What the rules that stand have counted.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn counts(inside: &Inside) -> Result<Vec<RuleCount>, NftError> {
    let counters = nft::counters(Where::Network(inside), TABLE).await?;
    let of_rules = counters.into_iter().filter_map(|counter| {
        Some(RuleCount { id: rule_of(&counter.name)?, packets: counter.packets, bytes: counter.bytes })
    });
    Ok(of_rules.collect())
}
