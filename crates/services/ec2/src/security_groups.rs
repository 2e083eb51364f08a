//! Security groups.

use haar_api::Error;
use haar_core::store_error;
use haar_records::ec2::{Claim, ClaimScope, SecurityGroup};
use haar_store::{Entry, Tx};

use crate::error::Result;
use crate::scope::Scope;
use crate::{defaults, ids};

/// Most groups of an interface (Amazon VPC quotas, "Security groups per network interface").
pub const MAX_GROUPS_PER_INTERFACE: usize = 5;

/// The group with this id.
///
/// # Errors
/// `InvalidGroupId.Malformed`, `InvalidGroup.NotFound`.
pub fn find(tx: &mut Tx, scope: Scope<'_>, id: &str) -> Result<Entry<SecurityGroup>> {
    ids::SECURITY_GROUP.check(id)?;
    Ok(tx.get(scope.account, scope.region, id).ok_or_else(|| ids::SECURITY_GROUP.missing(id))?)
}

/// The group with this name in a VPC.
///
/// # Errors
/// `InvalidGroup.NotFound`.
pub fn find_by_name(tx: &mut Tx, scope: Scope<'_>, vpc_id: &str, name: &str) -> Result<Entry<SecurityGroup>> {
    let claim = ClaimScope::GroupName { vpc_id, name };
    let (account, region, key) = Claim::key(scope.account, scope.region, claim);
    let group = tx
        .get::<Claim>(&account, &region, &key)
        .and_then(|claim| tx.get::<SecurityGroup>(scope.account, scope.region, &claim.holder));
    group.ok_or_else(|| {
        let name = crate::error::shorten(name);
        Error::new("InvalidGroup.NotFound", format!("The security group '{name}' does not exist in VPC '{vpc_id}'"))
    })
}

/// The ids of the groups that an interface in a VPC is to have, from the ids and names in a request; the VPC's default group
/// when it names none. Names are only for the default VPC, which the caller checks.
///
/// # Errors
/// `InvalidGroupId.Malformed`, `InvalidGroup.NotFound`, `SecurityGroupsPerInterfaceLimitExceeded`, and
/// `InvalidParameterValue` for a group of another VPC or one that comes twice.
pub fn resolve(
    tx: &mut Tx,
    scope: Scope<'_>,
    vpc_id: &str,
    group_ids: &[String],
    group_names: &[String],
) -> Result<Vec<String>> {
    if group_ids.len() + group_names.len() > MAX_GROUPS_PER_INTERFACE {
        let message = format!("You have exceeded the maximum number of security groups ({MAX_GROUPS_PER_INTERFACE}) allowed per network interface.");
        return Err(Error::new("SecurityGroupsPerInterfaceLimitExceeded", message));
    }
    let mut resolved = Vec::new();
    for id in group_ids {
        let group = find(tx, scope, id)?;
        if group.vpc_id != vpc_id {
            let message = format!("Security group {id} and subnet belong to different networks.");
            return Err(Error::new("InvalidParameter", message));
        }
        resolved.push(group.id.clone());
    }
    for name in group_names {
        resolved.push(find_by_name(tx, scope, vpc_id, name)?.id.clone());
    }
    if resolved.is_empty() {
        resolved.push(find_by_name(tx, scope, vpc_id, defaults::DEFAULT_GROUP)?.id.clone());
    }
    let mut seen = resolved.clone();
    seen.sort_unstable();
    if let Some(twice) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(crate::error::invalid_value(format!("Duplicate security group: '{}'", twice[0])));
    }
    Ok(resolved)
}

/// Writes a new group with the claim of its name.
///
/// # Errors
/// `InvalidGroup.Duplicate`.
fn put_new(tx: &mut Tx, group: SecurityGroup) -> Result<()> {
    let claim = ClaimScope::GroupName { vpc_id: &group.vpc_id, name: &group.name };
    let (account, region, key) = Claim::key(&group.account, &group.region, claim);
    if tx.get::<Claim>(&account, &region, &key).is_some() {
        let message = format!("The security group '{}' already exists for VPC '{}'", group.name, group.vpc_id);
        return Err(Error::new("InvalidGroup.Duplicate", message));
    }
    tx.create(Claim::new(&group.account, &group.region, claim, &group.id)).map_err(|e| store_error(&e.into()))?;
    tx.put(group);
    Ok(())
}
