//! Subnets.

use haar_records::ec2::{NetworkInterface, Subnet};
use haar_store::{Entry, Snapshot, Tx};

use crate::error::{Result, invalid_value};
use crate::scope::Scope;
use crate::{addresses, defaults, ids, zones};

/// The subnet with this id.
///
/// # Errors
/// `InvalidSubnetID.Malformed`, `InvalidSubnetID.NotFound`.
pub fn find(tx: &mut Tx, scope: Scope<'_>, id: &str) -> Result<Entry<Subnet>> {
    ids::SUBNET.check(id)?;
    Ok(tx.get(scope.account, scope.region, id).ok_or_else(|| ids::SUBNET.missing(id))?)
}

/// The default subnet of a zone, or of the region's first zone that has one. Makes the default VPC if need be.
///
/// # Errors
/// `InvalidParameterValue` for a zone that the region does not have; `MissingInput` when there is no default subnet;
/// `VPCIdNotSpecified` when there is no default VPC.
pub fn default_for(tx: &mut Tx, scope: Scope<'_>, zone: Option<&str>) -> Result<Entry<Subnet>> {
    if let Some(zone) = zone {
        zones::check(scope.region, zone)?;
    }
    let vpc = defaults::ensure(tx, scope)?;
    let mut candidates: Vec<_> = tx
        .by_index::<Subnet>(scope.account, scope.region, "vpc", &vpc.id)
        .filter(|subnet| subnet.default_for_az && zone.is_none_or(|zone| subnet.availability_zone == zone))
        .cloned()
        .collect();
    candidates.sort_by(|a, b| a.availability_zone.cmp(&b.availability_zone));
    candidates.into_iter().next().ok_or_else(|| match zone {
        Some(zone) => invalid_value(format!("No default subnet for availability zone: '{zone}'.")),
        None => haar_api::Error::new("MissingInput", "No subnets found for the default VPC"),
    })
}

/// Addresses of a subnet that interfaces can still get.
#[must_use]
pub fn available_addresses(snapshot: &Snapshot, subnet: &Subnet) -> u32 {
    let total = addresses::block(subnet).map_or(0, addresses::assignable);
    let used =
        snapshot.by_index::<NetworkInterface>(&subnet.account, &subnet.region, "subnet", &subnet.id).count();
    total.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
}
