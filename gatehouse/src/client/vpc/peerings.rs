//! `gatehouse vpc peer`, `unpeer` and `peerings`: VPCs that reach each other.

use crate::client::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use model::api::Empty;
use model::api::peering::{CreatePeering, PeeringInfo, PeeringList, PeeringState};
use model::id::VpcId;

/// Asks for a peering.
pub(super) async fn peer(api: &Api, vpc: &VpcId, other: &VpcId, json: bool) -> Result<(), ClientError> {
    let body = CreatePeering { peer_vpc_id: other.to_string() };
    let made: PeeringInfo = api.post(&["v1", "vpcs", vpc.as_str(), "peerings"], &body).await?;
    if json {
        return print_json(&made);
    }
    print_line(made.peering_id.as_str())?;
    match made.state {
        PeeringState::Active => eprintln!("They reach each other."),
        PeeringState::Pending | PeeringState::Asked => {
            eprintln!("Its owner must agree: gatehouse vpc peer {other} {vpc}");
        }
    }
    Ok(())
}

/// Ends a peering, or takes the wish for one back.
pub(super) async fn unpeer(api: &Api, vpc: &VpcId, other: &VpcId, json: bool) -> Result<(), ClientError> {
    let list = all(api, vpc).await?;
    let found = list.peerings.into_iter().find(|peering| peering.peer_vpc_id == *other);
    let peering = found
        .ok_or(ClientError::Usage("these two VPCs are not peered; see: gatehouse vpc peerings VPC"))?
        .peering_id;
    let gone: Empty = api.delete(&["v1", "vpcs", vpc.as_str(), "peerings", peering.as_str()]).await?;
    if json { print_json(&gone) } else { print_line(peering.as_str()) }
}

/// Shows the peerings.
pub(super) async fn list(api: &Api, vpc: &VpcId, json: bool) -> Result<(), ClientError> {
    let list = all(api, vpc).await?;
    if json {
        return print_json(&list);
    }
    if list.peerings.is_empty() {
        eprintln!("No peerings. Next: gatehouse vpc peer {vpc} OTHER");
        return Ok(());
    }
    let mut table = Table::new(&["ID", "VPC", "RANGE", "STATE", "CREATED"]);
    for peering in list.peerings {
        table.row([
            peering.peering_id.to_string(),
            peering.peer_vpc_id.to_string(),
            peering.peer_cidr.map(String::from).unwrap_or_default(),
            peering.state.to_string(),
            peering.created_at,
        ]);
    }
    print_line(&table.to_string())
}

async fn all(api: &Api, vpc: &VpcId) -> Result<PeeringList, ClientError> {
    api.get(&["v1", "vpcs", vpc.as_str(), "peerings"], &[]).await
}
