//! Security groups.

mod describe;
mod permissions;
pub mod rules;
#[cfg(test)]
mod tests;

use haar_api::{Context, Error};
use haar_core::store_error;
use haar_records::Tags;
use haar_records::ec2::{Claim, ClaimScope, NetworkInterface, RuleTarget, SecurityGroup, Vpc};
use haar_store::{Entry, Snapshot, Tx};

pub use describe::{describe_security_group_rules, describe_security_groups};
pub use permissions::{
    authorize_security_group_egress, authorize_security_group_ingress, modify_security_group_rules,
    revoke_security_group_egress, revoke_security_group_ingress,
    update_security_group_rule_descriptions_egress, update_security_group_rule_descriptions_ingress,
};

use crate::error::{Result, combination, missing, shorten};
use crate::handlers::Handlers;
use crate::model::{
    CreateSecurityGroupRequest, CreateSecurityGroupResult, DeleteSecurityGroupRequest,
    DeleteSecurityGroupResult,
};
use crate::scope::Scope;
use crate::{defaults, ids, tags};

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
        Error::new(
            "InvalidGroup.NotFound",
            format!("The security group '{name}' does not exist in VPC '{vpc_id}'"),
        )
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
        let message = format!(
            "You have exceeded the maximum number of security groups ({MAX_GROUPS_PER_INTERFACE}) allowed per network interface."
        );
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

/// The group that a request names: by id, or by name in the default VPC.
fn named(
    tx: &mut Tx,
    scope: Scope<'_>,
    group_id: Option<&str>,
    group_name: Option<&str>,
) -> Result<Entry<SecurityGroup>> {
    match (group_id, group_name) {
        (Some(_), Some(_)) => {
            Err(combination("The parameter groupId cannot be used with the parameter groupName"))
        }
        (None, None) => Err(missing("groupName or groupId")),
        (Some(id), None) => find(tx, scope, id),
        (None, Some(name)) => {
            let vpc = defaults::ensure(tx, scope)?;
            find_by_name(tx, scope, &vpc.id, name).map_err(|_| not_in_default_vpc(name, &vpc.id))
        }
    }
}

fn not_in_default_vpc(name: &str, vpc_id: &str) -> Error {
    let name = shorten(name);
    let message = format!("The security group '{name}' does not exist in default VPC '{vpc_id}'");
    Error::new("InvalidGroup.NotFound", message)
}

/// `CreateSecurityGroup`.
pub async fn create_security_group(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateSecurityGroupRequest,
) -> Result<CreateSecurityGroupResult> {
    rules::check_group_name(&input.group_name)?;
    rules::check_group_description(&input.description)?;
    let tags = tags::of_new_one(&input.tag_specifications, "security-group")?;
    let scope = Scope::from(ctx);
    let group = haar_core::transact(&handlers.store, ctx, |tx| {
        let vpc = match &input.vpc_id {
            None => defaults::ensure(tx, scope)?,
            Some(id) => {
                ids::VPC.check(id)?;
                tx.get::<Vpc>(scope.account, scope.region, id).ok_or_else(|| ids::VPC.missing(id))?
            }
        };
        let group = SecurityGroup {
            account: ctx.account.clone(),
            region: ctx.region.clone(),
            id: ids::SECURITY_GROUP.generate(),
            name: input.group_name.clone(),
            description: input.description.clone(),
            vpc_id: vpc.id.clone(),
            rules: vec![defaults::any_rule(true, RuleTarget::Cidr(defaults::ANYWHERE.to_owned()))],
            tags: tags.clone(),
        };
        let claim = ClaimScope::GroupName { vpc_id: &group.vpc_id, name: &group.name };
        // "Names are case-insensitive and must be unique within the VPC" (CreateSecurityGroup).
        let is_same = |other: &Entry<SecurityGroup>| other.name.eq_ignore_ascii_case(&group.name);
        if tx.by_index(scope.account, scope.region, "vpc", &group.vpc_id).any(is_same) {
            let message =
                format!("The security group '{}' already exists for VPC '{}'", group.name, group.vpc_id);
            return Err(Error::new("InvalidGroup.Duplicate", message));
        }
        let claim = Claim::new(&ctx.account, &ctx.region, claim, &group.id);
        tx.create(claim).map_err(|exists| store_error(&exists.into()))?;
        tx.put(group.clone());
        Ok(group)
    })
    .await?;
    Ok(CreateSecurityGroupResult {
        security_group_arn: Some(scope.arn("security-group", &group.id)),
        tags: tags::to_api(&group.tags),
        group_id: Some(group.id),
    })
}

/// `DeleteSecurityGroup`.
pub async fn delete_security_group(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteSecurityGroupRequest,
) -> Result<DeleteSecurityGroupResult> {
    let scope = Scope::from(ctx);
    let id = haar_core::transact(&handlers.store, ctx, |tx| {
        let group = named(tx, scope, input.group_id.as_deref(), input.group_name.as_deref())?;
        if group.name == defaults::DEFAULT_GROUP {
            let message = format!(
                "the specified group: \"{}\" name: \"default\" cannot be deleted by a user",
                group.id
            );
            return Err(Error::new("CannotDelete", message));
        }
        let by_interface =
            tx.by_index::<NetworkInterface>(scope.account, scope.region, "group", &group.id).next().is_some();
        let by_rule = tx
            .by_index::<SecurityGroup>(scope.account, scope.region, "reference", &group.id)
            .any(|other| other.id != group.id);
        if by_interface || by_rule {
            return Err(crate::error::in_use(&group.id));
        }
        let claim = ClaimScope::GroupName { vpc_id: &group.vpc_id, name: &group.name };
        let (account, region, claim) = Claim::key(scope.account, scope.region, claim);
        tx.delete::<Claim>(&account, &region, &claim);
        tx.delete::<SecurityGroup>(scope.account, scope.region, &group.id);
        Ok(group.id.clone())
    })
    .await?;
    Ok(DeleteSecurityGroupResult { r#return: Some(true), group_id: Some(id) })
}

/// Changes the tags of the rule with this id; false when there is none.
pub(crate) fn edit_rule_tags(
    tx: &mut Tx,
    scope: Scope<'_>,
    id: &str,
    change: &(dyn Fn(&mut Tags) -> Result<()> + Sync),
) -> Result<bool> {
    let group = tx.by_index::<SecurityGroup>(scope.account, scope.region, "rule", id).next().cloned();
    let Some(group) = group else { return Ok(false) };
    let mut group = SecurityGroup::clone(&*group);
    let Some(rule) = group.rules.iter_mut().find(|rule| rule.id == id) else { return Ok(false) };
    change(&mut rule.tags)?;
    tx.put(group);
    Ok(true)
}

/// Shows ids and tags of all rules.
pub(crate) fn each_rule_tags(snapshot: &Snapshot, scope: Scope<'_>, show: &mut dyn FnMut(&str, &Tags)) {
    let groups = snapshot.list::<SecurityGroup>(scope.account, scope.region);
    groups.flat_map(|group| &group.rules).for_each(|rule| show(&rule.id, &rule.tags));
}
