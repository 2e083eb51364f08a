//! Subnets.

use haar_api::Context;
use haar_core::FilterTable;
use haar_records::ec2::{NetworkInterface, Subnet, Vpc};
use haar_store::{Entry, Snapshot, Tx};

use crate::describe::{Kind, Request};
use crate::error::{Result, invalid_value};
use crate::handlers::Handlers;
use crate::model;
use crate::model::{
    DescribeSubnetsRequest, DescribeSubnetsResult, HostnameType, PrivateDnsNameOptionsOnLaunch, SubnetState,
};
use crate::scope::Scope;
use crate::{addresses, defaults, ids, tags, zones};

/// The subnet with this id.
///
/// # Errors
/// `InvalidSubnetID.Malformed`, `InvalidSubnetID.NotFound`.
pub fn find(tx: &mut Tx, scope: Scope<'_>, id: &str) -> Result<Entry<Subnet>> {
    ids::SUBNET.check(id)?;
    Ok(tx.get(scope.account, scope.region, id).ok_or_else(|| ids::SUBNET.missing(id))?)
}

/// The default subnet of a zone; or of the region's first zone whose has room for `needed` more interfaces, or of the one
/// that has the most. Makes the default VPC if need be.
///
/// # Errors
/// `InvalidParameterValue` for a zone that the region does not have; `MissingInput` when there is no default subnet;
/// `VPCIdNotSpecified` when there is no default VPC.
pub fn default_for(tx: &mut Tx, scope: Scope<'_>, zone: Option<&str>, needed: u32) -> Result<Entry<Subnet>> {
    if let Some(zone) = zone {
        zones::check(scope.region, zone)?;
    }
    let vpc = defaults::ensure(tx, scope)?;
    // The subnets of the VPC must still be these when the transaction commits.
    tx.by_index::<Subnet>(scope.account, scope.region, "vpc", &vpc.id).for_each(drop);
    best_default(tx.snapshot(), &vpc, zone, needed).ok_or_else(|| match zone {
        Some(zone) => invalid_value(format!("No default subnet for availability zone: '{zone}'.")),
        None => haar_api::Error::new("MissingInput", "No subnets found for the default VPC"),
    })
}

/// The default subnet of a VPC that [`default_for`] takes, if there is one.
#[must_use]
pub fn best_default(
    snapshot: &Snapshot,
    vpc: &Vpc,
    zone: Option<&str>,
    needed: u32,
) -> Option<Entry<Subnet>> {
    let mut candidates: Vec<_> = snapshot
        .by_index::<Subnet>(&vpc.account, &vpc.region, "vpc", &vpc.id)
        .filter(|subnet| subnet.default_for_az && zone.is_none_or(|zone| subnet.availability_zone == zone))
        .cloned()
        .collect();
    candidates.sort_by(|a, b| a.availability_zone.cmp(&b.availability_zone));
    let room = |subnet: &Entry<Subnet>| available_addresses(snapshot, subnet);
    let roomy = candidates.iter().find(|subnet| room(subnet) >= needed);
    roomy.or_else(|| candidates.iter().max_by_key(|subnet| room(subnet))).cloned()
}

/// Addresses of a subnet that interfaces can still get.
#[must_use]
pub fn available_addresses(snapshot: &Snapshot, subnet: &Subnet) -> u32 {
    let total = addresses::block(subnet).map_or(0, addresses::assignable);
    let used =
        snapshot.by_index::<NetworkInterface>(&subnet.account, &subnet.region, "subnet", &subnet.id).count();
    total.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
}

const KIND: Kind<Subnet, Snapshot> = Kind {
    id: ids::SUBNET,
    filters: FilterTable::<Subnet, Snapshot>::new(&[
        ("availability-zone", |subnet, _, probe| probe.value(&subnet.availability_zone)),
        ("availabilityZone", |subnet, _, probe| probe.value(&subnet.availability_zone)),
        ("availability-zone-id", |subnet, _, probe| probe.values(zone_id(subnet).as_deref())),
        ("availabilityZoneId", |subnet, _, probe| probe.values(zone_id(subnet).as_deref())),
        ("available-ip-address-count", |subnet, snapshot, probe| {
            probe.display(available_addresses(snapshot, subnet));
        }),
        ("cidr", |subnet, _, probe| probe.value(&subnet.cidr_block)),
        ("cidr-block", |subnet, _, probe| probe.value(&subnet.cidr_block)),
        ("cidrBlock", |subnet, _, probe| probe.value(&subnet.cidr_block)),
        ("customer-owned-ipv4-pool", |_, _, _| ()),
        ("default-for-az", |subnet, _, probe| probe.display(subnet.default_for_az)),
        ("defaultForAz", |subnet, _, probe| probe.display(subnet.default_for_az)),
        ("enable-dns64", |_, _, probe| probe.value("false")),
        ("enable-lni-at-device-index", |_, _, _| ()),
        ("ipv6-cidr-block-association.association-id", |_, _, _| ()),
        ("ipv6-cidr-block-association.ipv6-cidr-block", |_, _, _| ()),
        ("ipv6-cidr-block-association.state", |_, _, _| ()),
        ("ipv6-native", |_, _, probe| probe.value("false")),
        ("map-customer-owned-ip-on-launch", |_, _, probe| probe.value("false")),
        ("map-public-ip-on-launch", |subnet, _, probe| probe.display(subnet.map_public_ip_on_launch)),
        ("outpost-arn", |_, _, _| ()),
        ("owner-id", |subnet, _, probe| probe.value(&subnet.account)),
        ("private-dns-name-options-on-launch.enable-resource-name-dns-a-record", |_, _, probe| {
            probe.value("false");
        }),
        ("private-dns-name-options-on-launch.enable-resource-name-dns-aaaa-record", |_, _, probe| {
            probe.value("false");
        }),
        ("private-dns-name-options-on-launch.hostname-type", |_, _, probe| probe.value("ip-name")),
        ("state", |_, _, probe| probe.value("available")),
        ("subnet-arn", |subnet, _, probe| probe.value(&arn(subnet))),
        ("subnet-id", |subnet, _, probe| probe.value(&subnet.id)),
        ("vpc-id", |subnet, _, probe| probe.value(&subnet.vpc_id)),
    ])
    .with_tags(|subnet| &subnet.tags),
    indexes: &[("vpc-id", "vpc")],
};

fn zone_id(subnet: &Subnet) -> Option<String> {
    zones::zone_id(&subnet.region, &subnet.availability_zone)
}

fn arn(subnet: &Subnet) -> String {
    Scope { account: &subnet.account, region: &subnet.region }.arn("subnet", &subnet.id)
}

/// `DescribeSubnets`.
pub async fn describe_subnets(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeSubnetsRequest,
) -> Result<DescribeSubnetsResult> {
    let snapshot = handlers.snapshot_with_default_vpc(ctx).await?;
    let request =
        Request::new(&input.subnet_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let (subnets, next_token) = KIND.page(handlers, ctx, &snapshot, &request, &snapshot)?;
    let subnets = subnets.iter().map(|subnet| to_api(subnet, &snapshot)).collect();
    Ok(DescribeSubnetsResult { next_token, subnets })
}

fn to_api(subnet: &Subnet, snapshot: &Snapshot) -> model::Subnet {
    model::Subnet {
        availability_zone_id: zone_id(subnet),
        map_customer_owned_ip_on_launch: Some(false),
        owner_id: Some(subnet.account.clone()),
        assign_ipv6_address_on_creation: Some(false),
        ipv6_cidr_block_association_set: Vec::new(),
        tags: tags::to_api(&subnet.tags),
        subnet_arn: Some(arn(subnet)),
        enable_dns64: Some(false),
        ipv6_native: Some(false),
        private_dns_name_options_on_launch: Some(PrivateDnsNameOptionsOnLaunch {
            hostname_type: Some(HostnameType::IpName),
            enable_resource_name_dns_a_record: Some(false),
            enable_resource_name_dns_aaaa_record: Some(false),
        }),
        subnet_id: Some(subnet.id.clone()),
        state: Some(SubnetState::Available),
        vpc_id: Some(subnet.vpc_id.clone()),
        cidr_block: Some(subnet.cidr_block.clone()),
        available_ip_address_count: i32::try_from(available_addresses(snapshot, subnet)).ok(),
        availability_zone: Some(subnet.availability_zone.clone()),
        default_for_az: Some(subnet.default_for_az),
        map_public_ip_on_launch: Some(subnet.map_public_ip_on_launch),
    }
}
