//! The default VPC of an account and region (Amazon VPC User Guide, "Default VPCs"): made when a request first needs it.

use haar_core::{new_id, store_error};
use haar_records::Tags;
use haar_records::ec2::{
    Claim, ClaimScope, InternetGateway, Route, RouteTable, RouteTableAssociation, RouteTarget, RuleTarget,
    SecurityGroup, SecurityGroupRule, Subnet, Vpc,
};
use haar_store::{Entry, Exists, Snapshot, Tx};

use crate::error::Result;
use crate::scope::Scope;
use crate::security_groups::rules::Traffic;
use crate::{ids, zones};

/// The block of every default VPC.
const VPC_BLOCK: &str = "172.31.0.0/16";

/// Where everything is.
pub const ANYWHERE: &str = "0.0.0.0/0";

/// Name of the security group that every VPC has.
pub const DEFAULT_GROUP: &str = "default";

/// The default VPC, if it was made already.
#[must_use]
pub fn find(snapshot: &Snapshot, scope: Scope<'_>) -> Option<Entry<Vpc>> {
    let (account, region, id) = Claim::key(scope.account, scope.region, ClaimScope::DefaultVpc);
    let claim = snapshot.get::<Claim>(&account, &region, &id)?;
    snapshot.get(scope.account, scope.region, &claim.holder)
}

/// Makes the default VPC with all that belongs to it, unless it was made before.
///
/// # Errors
/// Never in practice: ids are random.
pub fn make(tx: &mut Tx, scope: Scope<'_>) -> Result<(), Exists> {
    let (account, region, id) = Claim::key(scope.account, scope.region, ClaimScope::DefaultVpc);
    if tx.get::<Claim>(&account, &region, &id).is_some() { Ok(()) } else { create(tx, scope) }
}

/// The default VPC, made when there is none yet.
///
/// # Errors
/// `VPCIdNotSpecified` when the default VPC was deleted.
pub fn ensure(tx: &mut Tx, scope: Scope<'_>) -> Result<Entry<Vpc>> {
    make(tx, scope).map_err(|exists| store_error(&exists.into()))?;
    find(tx.snapshot(), scope)
        .ok_or_else(|| haar_api::Error::new("VPCIdNotSpecified", "No default VPC for this user"))
}

fn create(tx: &mut Tx, scope: Scope<'_>) -> Result<(), Exists> {
    let (account, region) = (scope.account.to_owned(), scope.region.to_owned());
    let vpc = Vpc {
        account: account.clone(),
        region: region.clone(),
        id: ids::VPC.generate(),
        cidr_block: VPC_BLOCK.to_owned(),
        cidr_association_id: new_id("vpc-cidr-assoc"),
        dhcp_options_id: ids::DHCP_OPTIONS.generate(),
        is_default: true,
        tags: Tags::new(),
    };
    let gateway = InternetGateway {
        account: account.clone(),
        region: region.clone(),
        id: ids::INTERNET_GATEWAY.generate(),
        vpc_id: Some(vpc.id.clone()),
        tags: Tags::new(),
    };
    let table = RouteTable {
        account: account.clone(),
        region: region.clone(),
        id: ids::ROUTE_TABLE.generate(),
        vpc_id: vpc.id.clone(),
        routes: vec![
            Route { destination: VPC_BLOCK.to_owned(), target: RouteTarget::Local, implicit: true },
            Route {
                destination: ANYWHERE.to_owned(),
                target: RouteTarget::InternetGateway(gateway.id.clone()),
                implicit: false,
            },
        ],
        associations: vec![RouteTableAssociation { id: new_id("rtbassoc"), subnet_id: None }],
        tags: Tags::new(),
    };
    for (index, zone) in zones::zones(scope.region).into_iter().enumerate() {
        tx.put(Subnet {
            account: account.clone(),
            region: region.clone(),
            id: ids::SUBNET.generate(),
            vpc_id: vpc.id.clone(),
            cidr_block: format!("172.31.{}.0/20", index * 16),
            availability_zone: zone.name,
            default_for_az: true,
            map_public_ip_on_launch: true,
            tags: Tags::new(),
        });
    }
    let group = default_group(scope, &vpc.id);
    for (claim, holder) in [
        (ClaimScope::DefaultVpc, &vpc.id),
        (ClaimScope::GroupName { vpc_id: &vpc.id, name: DEFAULT_GROUP }, &group.id),
    ] {
        tx.create(Claim::new(&account, &region, claim, holder))?;
    }
    tx.put(gateway);
    tx.put(table);
    tx.put(group);
    tx.put(vpc);
    Ok(())
}

/// The group that every VPC has: its members reach each other, and everything.
fn default_group(scope: Scope<'_>, vpc_id: &str) -> SecurityGroup {
    let id = ids::SECURITY_GROUP.generate();
    SecurityGroup {
        account: scope.account.to_owned(),
        region: scope.region.to_owned(),
        name: DEFAULT_GROUP.to_owned(),
        description: "default VPC security group".to_owned(),
        vpc_id: vpc_id.to_owned(),
        rules: vec![
            any_rule(false, RuleTarget::Group(id.clone())),
            any_rule(true, RuleTarget::Cidr(ANYWHERE.to_owned())),
        ],
        tags: Tags::new(),
        id,
    }
}

/// A new rule for every protocol and port.
#[must_use]
pub fn any_rule(egress: bool, target: RuleTarget) -> SecurityGroupRule {
    let Traffic { protocol, from_port, to_port } = Traffic::all();
    SecurityGroupRule {
        id: ids::SECURITY_GROUP_RULE.generate(),
        egress,
        protocol,
        from_port,
        to_port,
        target,
        description: None,
        tags: Tags::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SCOPE, store, write};
    use crate::{security_groups, subnets};

    #[tokio::test]
    async fn there_is_one_default_vpc_however_many_ask_at_once() {
        let store = store().await;
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(
                    async move { write(&store, |tx| Ok(ensure(tx, SCOPE)?.id.clone())).await.unwrap() },
                )
            })
            .collect();
        let mut found = Vec::new();
        for task in asking {
            found.push(task.await.unwrap());
        }
        found.dedup();
        assert_eq!(found.len(), 1);
        let snapshot = store.snapshot();
        assert_eq!(find(&snapshot, SCOPE).unwrap().id, found[0]);
        assert_eq!(snapshot.count::<Vpc>(), 1);
        assert_eq!(snapshot.count::<Subnet>(), 3);
        assert_eq!(snapshot.count::<RouteTable>(), 1);
        assert_eq!(snapshot.count::<InternetGateway>(), 1);
        assert_eq!(snapshot.count::<SecurityGroup>(), 1);
    }

    #[tokio::test]
    async fn every_account_and_region_has_its_own() {
        let store = store().await;
        let elsewhere = Scope { region: "eu-west-1", ..SCOPE };
        let one = write(&store, |tx| Ok(ensure(tx, SCOPE)?.id.clone())).await.unwrap();
        assert!(find(&store.snapshot(), elsewhere).is_none());
        let other = write(&store, |tx| Ok(ensure(tx, elsewhere)?.id.clone())).await.unwrap();
        assert_ne!(one, other);
    }

    #[tokio::test]
    async fn a_zone_has_a_default_subnet_and_the_group_is_found_by_name() {
        let store = store().await;
        let zone = "eu-central-1b";
        let subnet = write(&store, |tx| subnets::default_for(tx, SCOPE, Some(zone), 1)).await.unwrap();
        assert_eq!((subnet.availability_zone.as_str(), subnet.cidr_block.as_str()), (zone, "172.31.16.0/20"));
        assert_eq!(subnets::available_addresses(&store.snapshot(), &subnet), 4091);
        let wrong = write(&store, |tx| subnets::default_for(tx, SCOPE, Some("us-east-1a"), 1)).await;
        assert_eq!(wrong.unwrap_err().message, "Invalid availability zone: [us-east-1a]");
        let groups =
            write(&store, |tx| security_groups::resolve(tx, SCOPE, &subnet.vpc_id, &[], &[])).await.unwrap();
        let group = store.snapshot().get::<SecurityGroup>(SCOPE.account, SCOPE.region, &groups[0]).unwrap();
        assert_eq!(group.rules[0].target, RuleTarget::Group(group.id.clone()));
        assert_eq!((group.rules[0].egress, group.rules[1].egress), (false, true));
        let twice = [group.id.clone(), group.id.clone()];
        let refused =
            write(&store, |tx| security_groups::resolve(tx, SCOPE, &subnet.vpc_id, &twice, &[])).await;
        assert_eq!(refused.unwrap_err().code, "InvalidParameterValue");
    }
}
