//! The firewalls of VPCs.

use super::answer::Answer;
use super::auth::Caller;
use super::body::{Named, SMALL_BODY, json};
use super::openapi::Shape;
use super::routes::Route;
use super::vms::stored;
use super::vpcs::found;
use super::{Api, whole};
use crate::fault::Fault;
use crate::pure::rule::{self, RuleRefusal};
use crate::pure::vpc::BAD_VPC;
use crate::store::{RuleRecord, rfc3339};
use ::vpc::client::RuleCount;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing;
use model::api::Empty;
use model::api::rule::{CreateRule, PutRules, RuleInfo, RuleList};
use model::id::{IdError, RuleId, VpcId};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::timeout;

/// Longest wait for the network process' counters: the list is of use without them.
const COUNTS_WAIT: Duration = Duration::from_secs(2);

/// Routes of this part.
pub fn routes() -> Vec<Route> {
    let all = "/v1/vpcs/{vpc_id}/rules";
    vec![
        Route::new(
            "get",
            all,
            "The rules of a VPC's firewall, in the order in which they judge, with their counters",
            Shape::of::<RuleList>(),
            routing::get(list),
        ),
        Route::new(
            "post",
            all,
            "Adds a rule to a VPC's firewall",
            Shape::of::<RuleInfo>(),
            routing::post(create),
        )
        .taking(Shape::of::<CreateRule>()),
        Route::new(
            "put",
            all,
            "Puts these rules in the place of all that a VPC has, in one step",
            Shape::of::<RuleList>(),
            routing::put(replace),
        )
        .taking(Shape::of::<PutRules>()),
        Route::new(
            "delete",
            "/v1/vpcs/{vpc_id}/rules/{rule_id}",
            "Removes a rule from a VPC's firewall",
            Shape::of::<Empty>(),
            routing::delete(remove),
        ),
    ]
}

async fn list(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<RuleList> {
    let vpc = found(&api, &caller, &id).await?.id;
    let rules = api.0.store.rules_of(&vpc).await.map_err(|error| stored(&error))?;
    let counts = if rules.is_empty() { None } else { counts(&api, &vpc).await };
    // One that the kernel does not have yet has judged nothing.
    let counted = |rule: RuleRecord| match &counts {
        None => info(rule, None),
        Some(counts) => {
            let count = counts.get(&rule.id).map_or((0, 0), |count| (count.packets, count.bytes));
            info(rule, Some(count))
        }
    };
    Ok(Json(RuleList { rules: rules.into_iter().map(counted).collect() }))
}

async fn create(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    body: Body,
) -> Answer<RuleInfo> {
    let request: CreateRule = json(body, SMALL_BODY, BAD_VPC).await?;
    let wanted = rule::rule(&request)?;
    let vpc = found(&api, &caller, &id).await?.id;
    whole(async move {
        let made = api.0.store.add_rule(&caller.account, &vpc, &wanted).await;
        let made = made.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
        api.published("rule made").await?;
        tracing::info!(rule = %made.id, %vpc, "rule made");
        Ok(Json(info(made, Some((0, 0)))))
    })
    .await
}

async fn replace(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    body: Body,
) -> Answer<RuleList> {
    let request: PutRules = json(body, SMALL_BODY, BAD_VPC).await?;
    let wanted = rule::rules(&request.rules)?;
    let vpc = found(&api, &caller, &id).await?.id;
    whole(async move {
        let put = api.0.store.put_rules(&caller.account, &vpc, &wanted).await;
        put.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
        api.published("rules put").await?;
        let rules = api.0.store.rules_of(&vpc).await.map_err(|error| stored(&error))?;
        tracing::info!(%vpc, rules = rules.len(), "rules put");
        Ok(Json(RuleList { rules: rules.into_iter().map(|rule| info(rule, Some((0, 0)))).collect() }))
    })
    .await
}

async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Named((id, rule)): Named<(String, String)>,
) -> Answer<Empty> {
    let rule: RuleId = rule.parse().map_err(|error: IdError| Fault::new(400, BAD_VPC, error.to_string()))?;
    let vpc = found(&api, &caller, &id).await?.id;
    whole(async move {
        if !api.0.store.remove_rule(&vpc, &rule).await.map_err(|error| stored(&error))? {
            return Err(RuleRefusal::NoRule { vpc, rule }.fault());
        }
        api.published("rule removed").await?;
        tracing::info!(%rule, %vpc, "rule removed");
        Ok(Json(Empty {}))
    })
    .await
}

/// What the rules have judged; none while the network process does not tell.
async fn counts(api: &Api, vpc: &VpcId) -> Option<HashMap<RuleId, RuleCount>> {
    match timeout(COUNTS_WAIT, api.0.network.rules(vpc)).await {
        Ok(Ok(counts)) => Some(counts.into_iter().map(|count| (count.id.clone(), count)).collect()),
        Ok(Err(error)) => {
            tracing::debug!(%vpc, %error, "no counters of rules");
            None
        }
        Err(_) => None,
    }
}

fn info(rule: RuleRecord, counts: Option<(u64, u64)>) -> RuleInfo {
    RuleInfo {
        rule_id: rule.id,
        action: rule.wanted.action,
        direction: rule.wanted.direction,
        vm: rule.wanted.vm,
        peer: rule.wanted.peer.to_string(),
        protocol: rule.wanted.protocol,
        ports: rule.wanted.ports.iter().map(ToString::to_string).collect(),
        priority: rule.wanted.priority,
        description: rule.wanted.description,
        created_at: rfc3339(rule.created_ms),
        packets: counts.map(|(packets, _)| packets),
        bytes: counts.map(|(_, bytes)| bytes),
    }
}
