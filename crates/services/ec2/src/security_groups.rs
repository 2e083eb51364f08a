//! Security groups.

use haar_api::{Context, Error};
use haar_core::{FilterTable, Fingerprint, PageRequest, store_error};
use haar_records::Tags;
use haar_records::ec2::{
    Claim, ClaimScope, NetworkInterface, RuleTarget, SecurityGroup, SecurityGroupRule, Vpc,
};
use haar_store::{Entry, Snapshot, Tx};

use crate::describe::{Kind, Request};
use crate::error::{Result, combination, invalid_value, missing, shorten, unsupported};
use crate::handlers::Handlers;
use crate::model;
use crate::model::{
    AuthorizeSecurityGroupEgressRequest, AuthorizeSecurityGroupEgressResult,
    AuthorizeSecurityGroupIngressRequest, AuthorizeSecurityGroupIngressResult, CreateSecurityGroupRequest,
    CreateSecurityGroupResult, DeleteSecurityGroupRequest, DeleteSecurityGroupResult,
    DescribeSecurityGroupRulesRequest, DescribeSecurityGroupRulesResult, DescribeSecurityGroupsRequest,
    DescribeSecurityGroupsResult, IpPermission, IpRange, ModifySecurityGroupRulesRequest,
    ModifySecurityGroupRulesResult, ReferencedSecurityGroup, RevokeSecurityGroupEgressRequest,
    RevokeSecurityGroupEgressResult, RevokeSecurityGroupIngressRequest, RevokeSecurityGroupIngressResult,
    RevokedSecurityGroupRule, SecurityGroupRuleDescription, SecurityGroupRuleRequest, TagSpecification,
    UpdateSecurityGroupRuleDescriptionsEgressRequest, UpdateSecurityGroupRuleDescriptionsEgressResult,
    UpdateSecurityGroupRuleDescriptionsIngressRequest, UpdateSecurityGroupRuleDescriptionsIngressResult,
    UserIdGroupPair,
};
use crate::rules::{self, Traffic};
use crate::scope::Scope;
use crate::{defaults, describe, ids, tags};

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
        if find_by_name(tx, scope, &group.vpc_id, &group.name).is_ok() {
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

/// The rules of a direction that a request describes, without ids of their own yet.
fn parse_rules(
    tx: &mut Tx,
    group: &SecurityGroup,
    egress: bool,
    permissions: &[IpPermission],
) -> Result<Vec<SecurityGroupRule>> {
    let mut parsed: Vec<SecurityGroupRule> = Vec::new();
    for permission in permissions {
        let traffic =
            Traffic::parse(permission.ip_protocol.as_deref(), permission.from_port, permission.to_port)?;
        if !permission.ipv6_ranges.is_empty() {
            return Err(rules::no_ipv6());
        }
        if !permission.prefix_list_ids.is_empty() {
            return Err(unsupported("Prefix lists are not supported in security group rules."));
        }
        let mut targets = Vec::new();
        for range in &permission.ip_ranges {
            let cidr = range.cidr_ip.as_deref().ok_or_else(|| missing("cidrIp"))?;
            targets.push((RuleTarget::Cidr(rules::cidr(cidr)?), &range.description));
        }
        for pair in &permission.user_id_group_pairs {
            targets.push((RuleTarget::Group(referenced(tx, group, pair)?), &pair.description));
        }
        if targets.is_empty() {
            let end = if egress { "destination" } else { "source" };
            let message =
                format!("Missing {end} specification: include {end} security group or CIDR information");
            return Err(Error::new("MissingParameter", message));
        }
        for (target, description) in targets {
            if let Some(description) = description {
                rules::check_rule_description(description)?;
            }
            let rule = SecurityGroupRule {
                id: String::new(),
                egress,
                protocol: traffic.protocol.clone(),
                from_port: traffic.from_port,
                to_port: traffic.to_port,
                target,
                description: description.clone().filter(|text| !text.is_empty()),
                tags: Tags::new(),
            };
            if parsed.iter().any(|other| rules::same(other, &rule)) {
                return Err(invalid_value("The same permission must not appear multiple times"));
            }
            parsed.push(rule);
            if parsed.len() > rules::MAX_RULES {
                return Err(too_many_rules());
            }
        }
    }
    Ok(parsed)
}

fn too_many_rules() -> Error {
    let message = "The maximum number of rules per security group has been reached.";
    Error::new("RulesPerSecurityGroupLimitExceeded", message)
}

/// The group that a rule of `group` refers to.
fn referenced(tx: &mut Tx, group: &SecurityGroup, pair: &UserIdGroupPair) -> Result<String> {
    let scope = Scope { account: &group.account, region: &group.region };
    if pair.user_id.as_deref().is_some_and(|user| user != scope.account) {
        return Err(unsupported(
            "Security groups of other accounts are not supported in security group rules.",
        ));
    }
    let found = match (&pair.group_id, &pair.group_name) {
        (Some(id), _) => find(tx, scope, id)?,
        (None, Some(name)) => find_by_name(tx, scope, &group.vpc_id, name)?,
        (None, None) => return Err(missing("groupId")),
    };
    let elsewhere = pair.vpc_id.as_deref().is_some_and(|vpc_id| vpc_id != found.vpc_id);
    if found.vpc_id != group.vpc_id || elsewhere {
        let message = "You have specified two resources that belong to different networks.";
        return Err(Error::new("InvalidGroup.NotFound", message));
    }
    Ok(found.id.clone())
}

/// The rule parameters of a request besides `IpPermissions`: one rule, or all traffic of one group.
struct Flat<'a> {
    protocol: Option<&'a str>,
    from_port: Option<i32>,
    to_port: Option<i32>,
    cidr: Option<&'a str>,
    group_name: Option<&'a str>,
    group_owner: Option<&'a str>,
}

impl Flat<'_> {
    /// The permissions of a request that has either `IpPermissions` or these parameters.
    fn permissions(self, permissions: Vec<IpPermission>) -> Result<Vec<IpPermission>> {
        let given = [
            ("ipProtocol", self.protocol.is_some()),
            ("fromPort", self.from_port.is_some()),
            ("toPort", self.to_port.is_some()),
            ("cidrIp", self.cidr.is_some()),
            ("sourceSecurityGroupName", self.group_name.is_some()),
            ("sourceSecurityGroupOwnerId", self.group_owner.is_some()),
        ];
        let together = |one: &str, other: &str| {
            let message = format!("The parameter '{one}' may not be used in combination with '{other}'");
            Err(combination(message))
        };
        if !permissions.is_empty() {
            return match given.iter().find(|(_, given)| *given) {
                Some((name, _)) => together("ipPermissions", name),
                None => Ok(permissions),
            };
        }
        if let Some(name) = self.group_name {
            // With a group's name go all traffic of TCP, UDP and ICMP, and none of the others (API Reference,
            // `AuthorizeSecurityGroupIngress`, SourceSecurityGroupName).
            if let Some((other, _)) = given[..4].iter().find(|(_, given)| *given) {
                return together("sourceSecurityGroupName", other);
            }
            let pair = UserIdGroupPair {
                group_name: Some(name.to_owned()),
                user_id: self.group_owner.map(str::to_owned),
                ..UserIdGroupPair::default()
            };
            let all = [("tcp", 0, 65535), ("udp", 0, 65535), ("icmp", -1, -1)];
            let permission = |(protocol, from, to): (&str, i32, i32)| IpPermission {
                ip_protocol: Some(protocol.to_owned()),
                from_port: Some(from),
                to_port: Some(to),
                user_id_group_pairs: vec![pair.clone()],
                ..IpPermission::default()
            };
            return Ok(all.into_iter().map(permission).collect());
        }
        if self.group_owner.is_some() {
            return Err(missing("sourceSecurityGroupName"));
        }
        if given.iter().all(|(_, given)| !given) {
            return Ok(Vec::new());
        }
        let range = self.cidr.map(|cidr| IpRange { cidr_ip: Some(cidr.to_owned()), description: None });
        Ok(vec![IpPermission {
            ip_protocol: self.protocol.map(str::to_owned),
            from_port: self.from_port,
            to_port: self.to_port,
            ip_ranges: range.into_iter().collect(),
            ..IpPermission::default()
        }])
    }
}

/// Adds rules to a group, all or none.
async fn authorize(
    handlers: &Handlers,
    ctx: &Context,
    group: (Option<&str>, Option<&str>),
    egress: bool,
    permissions: Vec<IpPermission>,
    specifications: &[TagSpecification],
) -> Result<Vec<model::SecurityGroupRule>> {
    if permissions.is_empty() {
        return Err(missing("ipPermissions"));
    }
    let tags = tags::of_new_one(specifications, "security-group-rule")?;
    let scope = Scope::from(ctx);
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut group = SecurityGroup::clone(&*named(tx, scope, group.0, group.1)?);
        let mut new = parse_rules(tx, &group, egress, &permissions)?;
        for rule in &mut new {
            if group.rules.iter().any(|other| rules::same(other, rule)) {
                return Err(rules::duplicate(rule));
            }
            rule.id = ids::SECURITY_GROUP_RULE.generate();
            rule.tags.clone_from(&tags);
        }
        if group.rules.iter().filter(|rule| rule.egress == egress).count() + new.len() > rules::MAX_RULES {
            return Err(too_many_rules());
        }
        let answer = new.iter().map(|rule| rule_to_api(&group, rule)).collect();
        group.rules.extend(new);
        tx.put(group);
        Ok(answer)
    })
    .await
}

/// `AuthorizeSecurityGroupIngress`.
pub async fn authorize_security_group_ingress(
    handlers: &Handlers,
    ctx: &Context,
    input: AuthorizeSecurityGroupIngressRequest,
) -> Result<AuthorizeSecurityGroupIngressResult> {
    let flat = Flat {
        protocol: input.ip_protocol.as_deref(),
        from_port: input.from_port,
        to_port: input.to_port,
        cidr: input.cidr_ip.as_deref(),
        group_name: input.source_security_group_name.as_deref(),
        group_owner: input.source_security_group_owner_id.as_deref(),
    };
    let permissions = flat.permissions(input.ip_permissions)?;
    let group = (input.group_id.as_deref(), input.group_name.as_deref());
    let rules = authorize(handlers, ctx, group, false, permissions, &input.tag_specifications).await?;
    Ok(AuthorizeSecurityGroupIngressResult { r#return: Some(true), security_group_rules: rules })
}

/// `AuthorizeSecurityGroupEgress`.
pub async fn authorize_security_group_egress(
    handlers: &Handlers,
    ctx: &Context,
    input: AuthorizeSecurityGroupEgressRequest,
) -> Result<AuthorizeSecurityGroupEgressResult> {
    let group = (Some(input.group_id.as_str()), None);
    let rules =
        authorize(handlers, ctx, group, true, input.ip_permissions, &input.tag_specifications).await?;
    Ok(AuthorizeSecurityGroupEgressResult { r#return: Some(true), security_group_rules: rules })
}

/// What a revocation did.
struct Revoked {
    rules: Vec<RevokedSecurityGroupRule>,
    /// What was to be revoked and was not there, which only groups of a default VPC forgive.
    unknown: Vec<IpPermission>,
}

/// Removes rules from a group, all or none.
async fn revoke(
    handlers: &Handlers,
    ctx: &Context,
    group: (Option<&str>, Option<&str>),
    egress: bool,
    rule_ids: &[String],
    permissions: &[IpPermission],
) -> Result<Revoked> {
    match (rule_ids.is_empty(), permissions.is_empty()) {
        (true, true) => return Err(missing("ipPermissions")),
        (false, false) => {
            let message =
                "The parameter 'ipPermissions' may not be used in combination with 'securityGroupRuleIds'";
            return Err(combination(message));
        }
        _ => {}
    }
    let (permissions, never_there) = split_off_ipv6(permissions);
    let scope = Scope::from(ctx);
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut group = SecurityGroup::clone(&*named(tx, scope, group.0, group.1)?);
        let (mut rules, mut unknown) = (Vec::new(), Vec::new());
        for id in rule_ids {
            ids::SECURITY_GROUP_RULE.check(id)?;
            let position = group.rules.iter().position(|rule| rule.id == *id && rule.egress == egress);
            rules.push(group.rules.remove(position.ok_or_else(|| ids::SECURITY_GROUP_RULE.missing(id))?));
        }
        for wanted in parse_rules(tx, &group, egress, &permissions)? {
            match group.rules.iter().position(|rule| rules::same(rule, &wanted)) {
                Some(position) => rules.push(group.rules.remove(position)),
                None => unknown.push(wanted),
            }
        }
        if !unknown.is_empty() || !never_there.is_empty() {
            let vpc = tx.get::<Vpc>(scope.account, scope.region, &group.vpc_id);
            if !vpc.is_some_and(|vpc| vpc.is_default) {
                return Err(no_such_permission());
            }
        }
        let revoked = Revoked {
            rules: rules.iter().map(|rule| revoked_to_api(&group, rule)).collect(),
            unknown: [permissions_to_api(&group, unknown.iter()), never_there.clone()].concat(),
        };
        tx.put(group);
        Ok(revoked)
    })
    .await
}

/// Parts permissions from what no group has, because rules with it cannot be made: IPv6 ranges and prefix lists. Clients revoke
/// these to be sure that they are not there.
fn split_off_ipv6(permissions: &[IpPermission]) -> (Vec<IpPermission>, Vec<IpPermission>) {
    let (mut kept, mut split_off) = (Vec::new(), Vec::new());
    for permission in permissions {
        let is_icmpv6 = |protocol: &str| protocol.eq_ignore_ascii_case("icmpv6") || protocol == "58";
        if permission.ip_protocol.as_deref().is_some_and(is_icmpv6) {
            split_off.push(permission.clone());
            continue;
        }
        let of_ipv4 =
            IpPermission { ipv6_ranges: Vec::new(), prefix_list_ids: Vec::new(), ..permission.clone() };
        let has_others = of_ipv4 != *permission;
        if has_others {
            let (ip_ranges, user_id_group_pairs) = (Vec::new(), Vec::new());
            split_off.push(IpPermission { ip_ranges, user_id_group_pairs, ..permission.clone() });
        }
        if !has_others || !of_ipv4.ip_ranges.is_empty() || !of_ipv4.user_id_group_pairs.is_empty() {
            kept.push(of_ipv4);
        }
    }
    (kept, split_off)
}

fn no_such_permission() -> Error {
    Error::new("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
}

/// `RevokeSecurityGroupIngress`.
pub async fn revoke_security_group_ingress(
    handlers: &Handlers,
    ctx: &Context,
    input: RevokeSecurityGroupIngressRequest,
) -> Result<RevokeSecurityGroupIngressResult> {
    let flat = Flat {
        protocol: input.ip_protocol.as_deref(),
        from_port: input.from_port,
        to_port: input.to_port,
        cidr: input.cidr_ip.as_deref(),
        group_name: input.source_security_group_name.as_deref(),
        group_owner: input.source_security_group_owner_id.as_deref(),
    };
    let permissions = flat.permissions(input.ip_permissions)?;
    let group = (input.group_id.as_deref(), input.group_name.as_deref());
    let revoked = revoke(handlers, ctx, group, false, &input.security_group_rule_ids, &permissions).await?;
    Ok(RevokeSecurityGroupIngressResult {
        r#return: Some(true),
        unknown_ip_permissions: revoked.unknown,
        revoked_security_group_rules: revoked.rules,
    })
}

/// `RevokeSecurityGroupEgress`.
pub async fn revoke_security_group_egress(
    handlers: &Handlers,
    ctx: &Context,
    input: RevokeSecurityGroupEgressRequest,
) -> Result<RevokeSecurityGroupEgressResult> {
    let group = (Some(input.group_id.as_str()), None);
    let revoked =
        revoke(handlers, ctx, group, true, &input.security_group_rule_ids, &input.ip_permissions).await?;
    Ok(RevokeSecurityGroupEgressResult {
        r#return: Some(true),
        unknown_ip_permissions: revoked.unknown,
        revoked_security_group_rules: revoked.rules,
    })
}

/// `ModifySecurityGroupRules`: replaces rules, all or none; a rule keeps its id, its direction, its tags and the kind of its
/// target.
pub async fn modify_security_group_rules(
    handlers: &Handlers,
    ctx: &Context,
    input: ModifySecurityGroupRulesRequest,
) -> Result<ModifySecurityGroupRulesResult> {
    if input.security_group_rules.is_empty() {
        return Err(missing("securityGroupRule"));
    }
    if input.security_group_rules.len() > 2 * rules::MAX_RULES {
        return Err(too_many_rules());
    }
    let scope = Scope::from(ctx);
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut group = SecurityGroup::clone(&*find(tx, scope, &input.group_id)?);
        let before = group.clone();
        let mut changed = Vec::new();
        for update in &input.security_group_rules {
            let id = &update.security_group_rule_id;
            ids::SECURITY_GROUP_RULE.check(id)?;
            let request = update.security_group_rule.as_ref().ok_or_else(|| missing("securityGroupRule"))?;
            let position = group.rules.iter().position(|rule| rule.id == *id);
            let position = position.ok_or_else(|| ids::SECURITY_GROUP_RULE.missing(id))?;
            if changed.contains(&position) {
                return Err(invalid_value(format!(
                    "The security group rule ID '{id}' appears multiple times"
                )));
            }
            changed.push(position);
            group.rules[position] = modified(tx, &before, &group.rules[position], request)?;
        }
        for (position, rule) in group.rules.iter().enumerate() {
            let twin = group.rules[..position].iter().position(|other| rules::same(other, rule));
            match twin {
                Some(twin) if changed.contains(&twin) && changed.contains(&position) => {
                    return Err(invalid_value("The same permission must not appear multiple times"));
                }
                Some(_) => return Err(rules::duplicate(rule)),
                None => {}
            }
        }
        tx.put(group);
        Ok(())
    })
    .await?;
    Ok(ModifySecurityGroupRulesResult { r#return: Some(true) })
}

/// A rule as a ModifySecurityGroupRules request wants it.
fn modified(
    tx: &mut Tx,
    group: &SecurityGroup,
    rule: &SecurityGroupRule,
    request: &SecurityGroupRuleRequest,
) -> Result<SecurityGroupRule> {
    if request.cidr_ipv6.is_some() {
        return Err(rules::no_ipv6());
    }
    if request.prefix_list_id.is_some() {
        return Err(unsupported("Prefix lists are not supported in security group rules."));
    }
    let wrong_kind = |parameter| {
        let message = format!(
            "Invalid rule type for security group rule '{}'. You may not specify {parameter} for this rule.",
            rule.id
        );
        Err(invalid_value(message))
    };
    let target = match (&rule.target, &request.cidr_ipv4, &request.referenced_group_id) {
        (RuleTarget::Cidr(_), Some(cidr), None) => RuleTarget::Cidr(rules::cidr(cidr)?),
        (RuleTarget::Group(_), None, Some(id)) => {
            let pair = UserIdGroupPair { group_id: Some(id.clone()), ..UserIdGroupPair::default() };
            RuleTarget::Group(referenced(tx, group, &pair)?)
        }
        (RuleTarget::Cidr(_), _, Some(_)) => return wrong_kind("ReferencedGroupId"),
        (RuleTarget::Group(_), Some(_), _) => return wrong_kind("CidrIpv4"),
        (RuleTarget::Cidr(_), None, None) => return Err(missing("CidrIpv4")),
        (RuleTarget::Group(_), None, None) => return Err(missing("ReferencedGroupId")),
    };
    let traffic = Traffic::parse(request.ip_protocol.as_deref(), request.from_port, request.to_port)?;
    if let Some(description) = &request.description {
        rules::check_rule_description(description)?;
    }
    Ok(SecurityGroupRule {
        id: rule.id.clone(),
        egress: rule.egress,
        protocol: traffic.protocol,
        from_port: traffic.from_port,
        to_port: traffic.to_port,
        target,
        description: request.description.clone().filter(|text| !text.is_empty()),
        tags: rule.tags.clone(),
    })
}

/// Replaces descriptions of rules, all or none.
async fn describe_rules(
    handlers: &Handlers,
    ctx: &Context,
    group: (Option<&str>, Option<&str>),
    egress: bool,
    permissions: &[IpPermission],
    descriptions: &[SecurityGroupRuleDescription],
) -> Result<()> {
    match (permissions.is_empty(), descriptions.is_empty()) {
        (true, true) => return Err(missing("ipPermissions")),
        (false, false) => {
            let message = "The parameter 'ipPermissions' may not be used in combination with 'securityGroupRuleDescriptions'";
            return Err(combination(message));
        }
        _ => {}
    }
    let scope = Scope::from(ctx);
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut group = SecurityGroup::clone(&*named(tx, scope, group.0, group.1)?);
        for wanted in parse_rules(tx, &group, egress, permissions)? {
            let rule = group.rules.iter_mut().find(|rule| rules::same(rule, &wanted));
            rule.ok_or_else(no_such_permission)?.description = wanted.description;
        }
        for update in descriptions {
            let id =
                update.security_group_rule_id.as_deref().ok_or_else(|| missing("securityGroupRuleId"))?;
            ids::SECURITY_GROUP_RULE.check(id)?;
            if let Some(description) = &update.description {
                rules::check_rule_description(description)?;
            }
            let rule = group.rules.iter_mut().find(|rule| rule.id == id && rule.egress == egress);
            let rule = rule.ok_or_else(|| ids::SECURITY_GROUP_RULE.missing(id))?;
            rule.description = update.description.clone().filter(|text| !text.is_empty());
        }
        tx.put(group);
        Ok(())
    })
    .await
}

/// `UpdateSecurityGroupRuleDescriptionsIngress`.
pub async fn update_security_group_rule_descriptions_ingress(
    handlers: &Handlers,
    ctx: &Context,
    input: UpdateSecurityGroupRuleDescriptionsIngressRequest,
) -> Result<UpdateSecurityGroupRuleDescriptionsIngressResult> {
    let group = (input.group_id.as_deref(), input.group_name.as_deref());
    let descriptions = &input.security_group_rule_descriptions;
    describe_rules(handlers, ctx, group, false, &input.ip_permissions, descriptions).await?;
    Ok(UpdateSecurityGroupRuleDescriptionsIngressResult { r#return: Some(true) })
}

/// `UpdateSecurityGroupRuleDescriptionsEgress`.
pub async fn update_security_group_rule_descriptions_egress(
    handlers: &Handlers,
    ctx: &Context,
    input: UpdateSecurityGroupRuleDescriptionsEgressRequest,
) -> Result<UpdateSecurityGroupRuleDescriptionsEgressResult> {
    let group = (input.group_id.as_deref(), input.group_name.as_deref());
    let descriptions = &input.security_group_rule_descriptions;
    describe_rules(handlers, ctx, group, true, &input.ip_permissions, descriptions).await?;
    Ok(UpdateSecurityGroupRuleDescriptionsEgressResult { r#return: Some(true) })
}

/// Whether the rule's ports are of any meaning.
fn has_ports(rule: &SecurityGroupRule) -> bool {
    matches!(rule.protocol.as_str(), "tcp" | "udp" | "icmp")
}

/// The group's rules of a direction.
fn rules_of(group: &SecurityGroup, egress: bool) -> impl Iterator<Item = &SecurityGroupRule> {
    group.rules.iter().filter(move |rule| rule.egress == egress)
}

fn cidrs(group: &SecurityGroup, egress: bool) -> impl Iterator<Item = &str> {
    rules_of(group, egress).filter_map(|rule| match &rule.target {
        RuleTarget::Cidr(cidr) => Some(cidr.as_str()),
        RuleTarget::Group(_) => None,
    })
}

fn group_ids(group: &SecurityGroup, egress: bool) -> impl Iterator<Item = &str> {
    rules_of(group, egress).filter_map(|rule| match &rule.target {
        RuleTarget::Group(id) => Some(id.as_str()),
        RuleTarget::Cidr(_) => None,
    })
}

/// The filters of DescribeSecurityGroups: those given, and those on the rules of each direction.
macro_rules! filters {
    ($($prefix:literal => $egress:literal),+; $($own:tt)+) => {
        FilterTable::<SecurityGroup, Snapshot>::new(&[
            $($own)+
            $(
                (concat!($prefix, ".cidr"), |group, _, probe| probe.values(cidrs(group, $egress))),
                (concat!($prefix, ".from-port"), |group, _, probe| {
                    rules_of(group, $egress).filter(|rule| has_ports(rule)).for_each(|rule| probe.display(rule.from_port));
                }),
                (concat!($prefix, ".group-id"), |group, _, probe| probe.values(group_ids(group, $egress))),
                (concat!($prefix, ".group-name"), |group, snapshot, probe| {
                    for id in group_ids(group, $egress) {
                        let referenced = snapshot.get::<SecurityGroup>(&group.account, &group.region, id);
                        probe.values(referenced.as_ref().map(|group| group.name.as_str()));
                    }
                }),
                (concat!($prefix, ".ipv6-cidr"), |_, _, _| ()),
                (concat!($prefix, ".prefix-list-id"), |_, _, _| ()),
                (concat!($prefix, ".protocol"), |group, _, probe| {
                    probe.values(rules_of(group, $egress).map(|rule| rule.protocol.as_str()));
                }),
                (concat!($prefix, ".to-port"), |group, _, probe| {
                    rules_of(group, $egress).filter(|rule| has_ports(rule)).for_each(|rule| probe.display(rule.to_port));
                }),
                (concat!($prefix, ".user-id"), |group, _, probe| {
                    probe.values(group_ids(group, $egress).map(|_| group.account.as_str()));
                }),
            )+
        ])
        .with_tags(|group| &group.tags)
    };
}

const KIND: Kind<SecurityGroup, Snapshot> = Kind {
    id: ids::SECURITY_GROUP,
    filters: filters! {
        "ip-permission" => false, "egress.ip-permission" => true;
        ("description", |group, _, probe| probe.value(&group.description)),
        ("group-id", |group, _, probe| probe.value(&group.id)),
        ("group-name", |group, _, probe| probe.value(&group.name)),
        ("owner-id", |group, _, probe| probe.value(&group.account)),
        ("vpc-id", |group, _, probe| probe.value(&group.vpc_id)),
    },
    indexes: &[
        ("vpc-id", "vpc"),
        ("ip-permission.group-id", "reference"),
        ("egress.ip-permission.group-id", "reference"),
    ],
};

/// `DescribeSecurityGroups`.
pub async fn describe_security_groups(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeSecurityGroupsRequest,
) -> Result<DescribeSecurityGroupsResult> {
    let snapshot = handlers.snapshot_with_default_vpc(ctx).await?;
    let mut group_ids = input.group_ids;
    if !input.group_names.is_empty() {
        let vpc = defaults::find(&snapshot, Scope::from(ctx))
            .ok_or_else(|| Error::new("VPCIdNotSpecified", "No default VPC for this user"))?;
        for name in &input.group_names {
            let claim = ClaimScope::GroupName { vpc_id: &vpc.id, name };
            let (account, region, claim) = Claim::key(&ctx.account, &ctx.region, claim);
            let claim = snapshot.get::<Claim>(&account, &region, &claim);
            group_ids.push(claim.ok_or_else(|| not_in_default_vpc(name, &vpc.id))?.holder.clone());
        }
    }
    let request = Request {
        ids: &group_ids,
        filters: &input.filters,
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (groups, next_token) = KIND.page(handlers, ctx, &snapshot, &request, &snapshot)?;
    let security_groups = groups.iter().map(|group| to_api(group)).collect();
    Ok(DescribeSecurityGroupsResult { next_token, security_groups })
}

/// A rule with its group, as DescribeSecurityGroupRules lists it.
struct RuleOf {
    group: Entry<SecurityGroup>,
    position: usize,
}

impl RuleOf {
    fn rule(&self) -> &SecurityGroupRule {
        &self.group.rules[self.position]
    }
}

const RULE_FILTERS: FilterTable<RuleOf> = FilterTable::<RuleOf>::new(&[
    ("group-id", |of, (), probe| probe.value(&of.group.id)),
    ("security-group-rule-id", |of, (), probe| probe.value(&of.rule().id)),
])
.with_tags(|of| &of.rule().tags);

/// `DescribeSecurityGroupRules`.
pub async fn describe_security_group_rules(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeSecurityGroupRulesRequest,
) -> Result<DescribeSecurityGroupRulesResult> {
    let snapshot = handlers.snapshot_with_default_vpc(ctx).await?;
    let filters = describe::parse(&RULE_FILTERS, &input.filters)?;
    let rule_ids = &input.security_group_rule_ids;
    let page = handlers.paginator.page(
        ctx,
        &PageRequest {
            parameters: Fingerprint::of(&(rule_ids, filters.raw())),
            max_results: input.max_results,
            next_token: input.next_token.as_deref(),
            limits: describe::PAGE,
        },
    )?;
    let (account, region) = (&ctx.account, &ctx.region);
    let groups: Vec<&Entry<SecurityGroup>> = if !rule_ids.is_empty() {
        let mut groups = Vec::new();
        for id in rule_ids {
            ids::SECURITY_GROUP_RULE.check(id)?;
            let group = snapshot.by_index::<SecurityGroup>(account, region, "rule", id).next();
            groups.push(group.ok_or_else(|| ids::SECURITY_GROUP_RULE.missing(id))?);
        }
        groups.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        groups.dedup_by(|a, b| a.id == b.id);
        groups
    } else {
        snapshot.list::<SecurityGroup>(account, region).collect()
    };
    let mut found: Vec<RuleOf> = groups
        .into_iter()
        .flat_map(|group| (0..group.rules.len()).map(|position| RuleOf { group: group.clone(), position }))
        .filter(|of| rule_ids.is_empty() || rule_ids.contains(&of.rule().id))
        .filter(|of| filters.matches(of, &()))
        .collect();
    found.sort_unstable_by(|a, b| a.rule().id.cmp(&b.rule().id));
    let (found, next_token) = page.take(found, |of| &of.rule().id);
    let security_group_rules = found.iter().map(|of| rule_to_api(&of.group, of.rule())).collect();
    Ok(DescribeSecurityGroupRulesResult { security_group_rules, next_token })
}

fn to_api(group: &SecurityGroup) -> model::SecurityGroup {
    model::SecurityGroup {
        group_id: Some(group.id.clone()),
        ip_permissions_egress: permissions_to_api(group, rules_of(group, true)),
        tags: tags::to_api(&group.tags),
        vpc_id: Some(group.vpc_id.clone()),
        security_group_arn: Some(arn(group, "security-group", &group.id)),
        owner_id: Some(group.account.clone()),
        group_name: Some(group.name.clone()),
        description: Some(group.description.clone()),
        ip_permissions: permissions_to_api(group, rules_of(group, false)),
    }
}

fn arn(group: &SecurityGroup, resource_type: &str, id: &str) -> String {
    Scope { account: &group.account, region: &group.region }.arn(resource_type, id)
}

/// Rules as permissions: one for each protocol and port range, with all its sources or destinations.
fn permissions_to_api<'a>(
    group: &SecurityGroup,
    rules: impl Iterator<Item = &'a SecurityGroupRule>,
) -> Vec<IpPermission> {
    let mut permissions: Vec<IpPermission> = Vec::new();
    for rule in rules {
        let port = |port: i32| has_ports(rule).then_some(port);
        let (from_port, to_port) = (port(rule.from_port), port(rule.to_port));
        let same = |p: &&mut IpPermission| {
            p.ip_protocol.as_ref() == Some(&rule.protocol) && (p.from_port, p.to_port) == (from_port, to_port)
        };
        let permission = match permissions.iter_mut().find(same) {
            Some(permission) => permission,
            None => permissions.push_mut(IpPermission {
                ip_protocol: Some(rule.protocol.clone()),
                from_port,
                to_port,
                ..IpPermission::default()
            }),
        };
        let description = rule.description.clone();
        match &rule.target {
            RuleTarget::Cidr(cidr) => {
                permission.ip_ranges.push(IpRange { description, cidr_ip: Some(cidr.clone()) });
            }
            RuleTarget::Group(id) => permission.user_id_group_pairs.push(UserIdGroupPair {
                description,
                user_id: Some(group.account.clone()),
                group_id: Some(id.clone()),
                ..UserIdGroupPair::default()
            }),
        }
    }
    permissions
}

/// The IPv4 range and the group that a rule is about; it has one of them.
fn target(rule: &SecurityGroupRule) -> (Option<String>, Option<String>) {
    match &rule.target {
        RuleTarget::Cidr(cidr) => (Some(cidr.clone()), None),
        RuleTarget::Group(id) => (None, Some(id.clone())),
    }
}

fn rule_to_api(group: &SecurityGroup, rule: &SecurityGroupRule) -> model::SecurityGroupRule {
    let (cidr_ipv4, group_id) = target(rule);
    model::SecurityGroupRule {
        security_group_rule_id: Some(rule.id.clone()),
        group_id: Some(group.id.clone()),
        group_owner_id: Some(group.account.clone()),
        is_egress: Some(rule.egress),
        ip_protocol: Some(rule.protocol.clone()),
        from_port: Some(rule.from_port),
        to_port: Some(rule.to_port),
        cidr_ipv4,
        referenced_group_info: group_id
            .map(|id| ReferencedSecurityGroup { group_id: Some(id), user_id: Some(group.account.clone()) }),
        description: rule.description.clone(),
        tags: tags::to_api(&rule.tags),
        security_group_rule_arn: Some(arn(group, "security-group-rule", &rule.id)),
        ..model::SecurityGroupRule::default()
    }
}

fn revoked_to_api(group: &SecurityGroup, rule: &SecurityGroupRule) -> RevokedSecurityGroupRule {
    let (cidr_ipv4, referenced_group_id) = target(rule);
    RevokedSecurityGroupRule {
        security_group_rule_id: Some(rule.id.clone()),
        group_id: Some(group.id.clone()),
        is_egress: Some(rule.egress),
        ip_protocol: Some(rule.protocol.clone()),
        from_port: Some(rule.from_port),
        to_port: Some(rule.to_port),
        cidr_ipv4,
        referenced_group_id,
        description: rule.description.clone(),
        ..RevokedSecurityGroupRule::default()
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ec2, Tag};
    use crate::testing::{SCOPE, another_vpc, code, context, filter, handlers, write};

    async fn create(handlers: &Handlers, name: &str) -> Result<String> {
        let input = CreateSecurityGroupRequest {
            description: "a group".into(),
            group_name: name.into(),
            ..CreateSecurityGroupRequest::default()
        };
        Ok(handlers.create_security_group(&context(), input).await?.group_id.unwrap())
    }

    fn tcp(port: i32, cidr: &str) -> IpPermission {
        IpPermission {
            ip_protocol: Some("tcp".into()),
            from_port: Some(port),
            to_port: Some(port),
            ip_ranges: vec![IpRange { description: None, cidr_ip: Some(cidr.into()) }],
            ..IpPermission::default()
        }
    }

    fn from_group(group: UserIdGroupPair) -> IpPermission {
        IpPermission {
            ip_protocol: Some("-1".into()),
            user_id_group_pairs: vec![group],
            ..IpPermission::default()
        }
    }

    fn pair(id: &str) -> UserIdGroupPair {
        UserIdGroupPair { group_id: Some(id.into()), ..UserIdGroupPair::default() }
    }

    async fn allow(
        handlers: &Handlers,
        group: &str,
        permissions: Vec<IpPermission>,
    ) -> Result<Vec<model::SecurityGroupRule>> {
        let input = AuthorizeSecurityGroupIngressRequest {
            group_id: Some(group.into()),
            ip_permissions: permissions,
            ..AuthorizeSecurityGroupIngressRequest::default()
        };
        Ok(handlers.authorize_security_group_ingress(&context(), input).await?.security_group_rules)
    }

    async fn disallow(
        handlers: &Handlers,
        group: &str,
        permissions: Vec<IpPermission>,
    ) -> Result<RevokeSecurityGroupIngressResult> {
        let input = RevokeSecurityGroupIngressRequest {
            group_id: Some(group.into()),
            ip_permissions: permissions,
            ..RevokeSecurityGroupIngressRequest::default()
        };
        handlers.revoke_security_group_ingress(&context(), input).await
    }

    async fn group(handlers: &Handlers, id: &str) -> model::SecurityGroup {
        let input = DescribeSecurityGroupsRequest {
            group_ids: vec![id.into()],
            ..DescribeSecurityGroupsRequest::default()
        };
        handlers.describe_security_groups(&context(), input).await.unwrap().security_groups.remove(0)
    }

    async fn delete(handlers: &Handlers, id: &str) -> Result<DeleteSecurityGroupResult> {
        let input = DeleteSecurityGroupRequest { group_id: Some(id.into()), group_name: None };
        handlers.delete_security_group(&context(), input).await
    }

    #[tokio::test]
    async fn a_group_comes_with_all_egress_and_its_name_is_taken() {
        let handlers = handlers().await;
        let id = create(&handlers, "web").await.unwrap();
        let described = group(&handlers, &id).await;
        assert_eq!(described.ip_permissions, []);
        assert_eq!(described.ip_permissions_egress.len(), 1);
        assert_eq!(described.ip_permissions_egress[0].ip_protocol.as_deref(), Some("-1"));
        assert_eq!(described.ip_permissions_egress[0].from_port, None);
        assert_eq!(
            described.security_group_arn,
            Some(format!("arn:aws:ec2:eu-central-1:123456789012:security-group/{id}"))
        );
        assert_eq!(code(create(&handlers, "web").await), "InvalidGroup.Duplicate");
        delete(&handlers, &id).await.unwrap();
        assert_eq!(code(delete(&handlers, &id).await), "InvalidGroup.NotFound");
        assert_ne!(create(&handlers, "web").await.unwrap(), id);
    }

    #[tokio::test]
    async fn the_default_group_stays_and_used_groups_stay() {
        let handlers = handlers().await;
        let (web, db) = (create(&handlers, "web").await.unwrap(), create(&handlers, "db").await.unwrap());
        let by_name = DeleteSecurityGroupRequest { group_id: None, group_name: Some("default".into()) };
        assert_eq!(code(handlers.delete_security_group(&context(), by_name).await), "CannotDelete");
        allow(&handlers, &db, vec![from_group(pair(&web))]).await.unwrap();
        assert_eq!(code(delete(&handlers, &web).await), "DependencyViolation");
        disallow(&handlers, &db, vec![from_group(pair(&web))]).await.unwrap();
        // A rule on itself keeps no group.
        allow(&handlers, &web, vec![from_group(pair(&web))]).await.unwrap();
        write(&handlers.store, |tx| {
            let subnet = crate::subnets::default_for(tx, SCOPE, None, 1)?;
            let interface = crate::network_interfaces::LaunchInterface {
                subnet: &subnet,
                instance_id: "i-00000000000000001",
                device_index: 0,
                groups: vec![web.clone()],
                private_ip: None,
                associate_public_ip: false,
                description: String::new(),
                delete_on_termination: true,
                tags: Tags::new(),
            };
            let pool = handlers.config.public_pool;
            crate::network_interfaces::launch(tx, interface, pool, context().now)
        })
        .await
        .unwrap();
        assert_eq!(code(delete(&handlers, &web).await), "DependencyViolation");
        delete(&handlers, &db).await.unwrap();
        assert_eq!(code(delete(&handlers, "sg-x").await), "InvalidGroupId.Malformed");
    }

    #[tokio::test]
    async fn rules_are_kept_in_normal_form_and_shown_by_traffic() {
        let handlers = handlers().await;
        let id = create(&handlers, "web").await.unwrap();
        let mut two = tcp(22, "10.1.2.3/8");
        two.ip_ranges
            .push(IpRange { description: Some("home".into()), cidr_ip: Some("192.0.2.0/24".into()) });
        let made = allow(&handlers, &id, vec![two, from_group(pair(&id))]).await.unwrap();
        assert_eq!(made.len(), 3);
        assert_eq!(made[0].cidr_ipv4.as_deref(), Some("10.0.0.0/8"));
        assert_eq!((made[2].from_port, made[2].to_port), (Some(-1), Some(-1)));
        let permissions = group(&handlers, &id).await.ip_permissions;
        assert_eq!(permissions.len(), 2);
        assert_eq!(permissions[0].ip_ranges.len(), 2);
        assert_eq!(permissions[0].ip_ranges[1].description.as_deref(), Some("home"));
        assert_eq!(permissions[1].user_id_group_pairs[0].group_id.as_deref(), Some(&*id));

        let refused = allow(&handlers, &id, vec![tcp(22, "10.0.0.0/8")]).await.unwrap_err();
        assert_eq!(refused.code, "InvalidPermission.Duplicate");
        let twice = vec![tcp(80, "10.0.0.0/8"), tcp(80, "10.9.9.9/8")];
        assert!(
            allow(&handlers, &id, twice)
                .await
                .unwrap_err()
                .message
                .contains("must not appear multiple times")
        );
        // All or none: port 443 is not there either.
        assert!(allow(&handlers, &id, vec![tcp(443, "10.0.0.0/8"), tcp(22, "10.0.0.0/8")]).await.is_err());
        assert_eq!(group(&handlers, &id).await.ip_permissions.len(), 2);
    }

    #[tokio::test]
    async fn what_haar_has_not_is_refused() {
        let handlers = handlers().await;
        let id = create(&handlers, "web").await.unwrap();
        let mut ipv6 = tcp(22, "10.0.0.0/8");
        ipv6.ipv6_ranges.push(model::Ipv6Range { cidr_ipv6: Some("::/0".into()), description: None });
        assert_eq!(code(allow(&handlers, &id, vec![ipv6]).await), "UnsupportedOperation");
        let mut list = tcp(22, "10.0.0.0/8");
        list.prefix_list_ids
            .push(model::PrefixListId { prefix_list_id: Some("pl-1".into()), description: None });
        assert_eq!(code(allow(&handlers, &id, vec![list]).await), "UnsupportedOperation");
        let foreign = UserIdGroupPair { user_id: Some("210987654321".into()), ..pair(&id) };
        assert_eq!(code(allow(&handlers, &id, vec![from_group(foreign)]).await), "UnsupportedOperation");
        let own = UserIdGroupPair { user_id: Some(SCOPE.account.into()), ..pair(&id) };
        assert!(allow(&handlers, &id, vec![from_group(own)]).await.is_ok());
        let nothing = IpPermission { ip_protocol: Some("-1".into()), ..IpPermission::default() };
        assert_eq!(code(allow(&handlers, &id, vec![nothing]).await), "MissingParameter");
        let (_, other) = another_vpc(&handlers, "other").await;
        let elsewhere = allow(&handlers, &id, vec![from_group(pair(&other))]).await.unwrap_err();
        assert_eq!(elsewhere.message, "You have specified two resources that belong to different networks.");
    }

    #[tokio::test]
    async fn a_direction_has_sixty_rules() {
        let handlers = handlers().await;
        let id = create(&handlers, "web").await.unwrap();
        let ports = |from, to| (from..=to).map(|port| tcp(port, "0.0.0.0/0")).collect::<Vec<_>>();
        assert_eq!(code(allow(&handlers, &id, ports(1, 61)).await), "RulesPerSecurityGroupLimitExceeded");
        allow(&handlers, &id, ports(1, 59)).await.unwrap();
        assert_eq!(code(allow(&handlers, &id, ports(60, 61)).await), "RulesPerSecurityGroupLimitExceeded");
        allow(&handlers, &id, ports(60, 60)).await.unwrap();
    }

    #[tokio::test]
    async fn the_old_parameters_make_one_rule_or_all_of_a_group() {
        let handlers = handlers().await;
        create(&handlers, "web").await.unwrap();
        let flat = AuthorizeSecurityGroupIngressRequest {
            group_name: Some("web".into()),
            ip_protocol: Some("tcp".into()),
            from_port: Some(22),
            to_port: Some(22),
            cidr_ip: Some("0.0.0.0/0".into()),
            ..AuthorizeSecurityGroupIngressRequest::default()
        };
        let made = handlers.authorize_security_group_ingress(&context(), flat.clone()).await.unwrap();
        assert_eq!(made.security_group_rules.len(), 1);
        let mixed = AuthorizeSecurityGroupIngressRequest {
            ip_permissions: vec![tcp(80, "0.0.0.0/0")],
            ..flat.clone()
        };
        let refused = handlers.authorize_security_group_ingress(&context(), mixed).await;
        assert_eq!(code(refused), "InvalidParameterCombination");
        let of_group = AuthorizeSecurityGroupIngressRequest {
            group_name: Some("web".into()),
            source_security_group_name: Some("default".into()),
            ..AuthorizeSecurityGroupIngressRequest::default()
        };
        let made = handlers.authorize_security_group_ingress(&context(), of_group).await.unwrap();
        let protocols: Vec<_> =
            made.security_group_rules.iter().map(|rule| rule.ip_protocol.as_deref()).collect();
        assert_eq!(protocols, [Some("tcp"), Some("udp"), Some("icmp")]);
        let nothing = AuthorizeSecurityGroupIngressRequest {
            group_name: Some("web".into()),
            ..AuthorizeSecurityGroupIngressRequest::default()
        };
        assert_eq!(
            code(handlers.authorize_security_group_ingress(&context(), nothing).await),
            "MissingParameter"
        );
        let unknown = AuthorizeSecurityGroupIngressRequest { group_name: Some("nope".into()), ..flat };
        assert_eq!(
            code(handlers.authorize_security_group_ingress(&context(), unknown).await),
            "InvalidGroup.NotFound"
        );
    }

    #[tokio::test]
    async fn only_a_default_vpc_forgives_the_revocation_of_nothing() {
        let handlers = handlers().await;
        let id = create(&handlers, "web").await.unwrap();
        let made = allow(&handlers, &id, vec![tcp(22, "0.0.0.0/0"), tcp(80, "0.0.0.0/0")]).await.unwrap();
        let revoked =
            disallow(&handlers, &id, vec![tcp(22, "0.0.0.0/0"), tcp(443, "0.0.0.0/0")]).await.unwrap();
        assert_eq!(
            revoked.revoked_security_group_rules[0].security_group_rule_id,
            made[0].security_group_rule_id
        );
        assert_eq!(revoked.unknown_ip_permissions[0].from_port, Some(443));
        let (_, elsewhere) = another_vpc(&handlers, "other").await;
        let refused = disallow(&handlers, &elsewhere, vec![tcp(22, "0.0.0.0/0")]).await;
        assert_eq!(code(refused), "InvalidPermission.NotFound");
        let ipv6 = IpPermission {
            ip_protocol: Some("-1".into()),
            ipv6_ranges: vec![model::Ipv6Range { cidr_ipv6: Some("::/0".into()), description: None }],
            ..IpPermission::default()
        };
        assert_eq!(
            code(disallow(&handlers, &elsewhere, vec![ipv6.clone()]).await),
            "InvalidPermission.NotFound"
        );
        let forgiven = disallow(&handlers, &id, vec![ipv6.clone()]).await.unwrap();
        assert_eq!(forgiven.unknown_ip_permissions, [ipv6]);
        let rule_id = made[1].security_group_rule_id.clone().unwrap();
        let by_id = |group: &str, rule: &str| RevokeSecurityGroupIngressRequest {
            group_id: Some(group.into()),
            security_group_rule_ids: vec![rule.into()],
            ..RevokeSecurityGroupIngressRequest::default()
        };
        let wrong = handlers.revoke_security_group_ingress(&context(), by_id(&elsewhere, &rule_id)).await;
        assert_eq!(code(wrong), "InvalidSecurityGroupRuleId.NotFound");
        handlers.revoke_security_group_ingress(&context(), by_id(&id, &rule_id)).await.unwrap();
        assert_eq!(group(&handlers, &id).await.ip_permissions, []);
    }

    #[tokio::test]
    async fn rules_change_in_place() {
        let handlers = handlers().await;
        let id = create(&handlers, "web").await.unwrap();
        let made = allow(&handlers, &id, vec![tcp(22, "0.0.0.0/0"), tcp(80, "0.0.0.0/0")]).await.unwrap();
        let rule_id = made[0].security_group_rule_id.clone().unwrap();
        let change = |port, cidr: Option<&str>, group_id: Option<&str>| {
            let request = SecurityGroupRuleRequest {
                ip_protocol: Some("tcp".into()),
                from_port: Some(port),
                to_port: Some(port),
                cidr_ipv4: cidr.map(str::to_owned),
                referenced_group_id: group_id.map(str::to_owned),
                description: Some("new".into()),
                ..SecurityGroupRuleRequest::default()
            };
            let update = model::SecurityGroupRuleUpdate {
                security_group_rule_id: rule_id.clone(),
                security_group_rule: Some(request),
            };
            let input =
                ModifySecurityGroupRulesRequest { group_id: id.clone(), security_group_rules: vec![update] };
            let handlers = &handlers;
            async move { handlers.modify_security_group_rules(&context(), input).await }
        };
        assert_eq!(code(change(80, Some("0.0.0.0/0"), None).await), "InvalidPermission.Duplicate");
        assert_eq!(code(change(22, None, Some(&id)).await), "InvalidParameterValue");
        change(2222, Some("192.0.2.7/24"), None).await.unwrap();
        let rules = DescribeSecurityGroupRulesRequest {
            security_group_rule_ids: vec![rule_id.clone()],
            ..DescribeSecurityGroupRulesRequest::default()
        };
        let rules = handlers.describe_security_group_rules(&context(), rules).await.unwrap();
        let rule = &rules.security_group_rules[0];
        assert_eq!((rule.from_port, rule.cidr_ipv4.as_deref()), (Some(2222), Some("192.0.2.0/24")));
        assert_eq!(rule.description.as_deref(), Some("new"));

        let mut described = tcp(80, "0.0.0.0/0");
        described.ip_ranges[0].description = Some("web".into());
        let update = UpdateSecurityGroupRuleDescriptionsIngressRequest {
            group_id: Some(id.clone()),
            ip_permissions: vec![described],
            ..UpdateSecurityGroupRuleDescriptionsIngressRequest::default()
        };
        handlers.update_security_group_rule_descriptions_ingress(&context(), update).await.unwrap();
        let permissions = group(&handlers, &id).await.ip_permissions;
        assert_eq!(permissions[1].ip_ranges[0].description.as_deref(), Some("web"));
    }

    #[tokio::test]
    async fn groups_are_found_by_their_rules() {
        let handlers = handlers().await;
        let (web, db) = (create(&handlers, "web").await.unwrap(), create(&handlers, "db").await.unwrap());
        allow(&handlers, &web, vec![tcp(443, "0.0.0.0/0")]).await.unwrap();
        allow(&handlers, &db, vec![from_group(pair(&web))]).await.unwrap();
        let found = |name: &'static str, value: String| {
            let handlers = &handlers;
            async move {
                let input = DescribeSecurityGroupsRequest {
                    filters: filter(name, &value),
                    ..DescribeSecurityGroupsRequest::default()
                };
                let found = handlers.describe_security_groups(&context(), input).await?;
                Ok(found.security_groups.into_iter().filter_map(|g| g.group_name).collect::<Vec<_>>())
            }
        };
        assert_eq!(found("ip-permission.from-port", "443".into()).await.unwrap(), ["web"]);
        assert_eq!(found("ip-permission.group-id", web.clone()).await.unwrap(), ["db"]);
        assert_eq!(found("egress.ip-permission.group-id", web.clone()).await.unwrap(), [""; 0]);
        assert_eq!(found("ip-permission.group-name", "we?".into()).await.unwrap(), ["db"]);
        assert_eq!(found("egress.ip-permission.cidr", "0.0.0.0/*".into()).await.unwrap().len(), 3);
        assert_eq!(code(found("ip-permission.colour", "red".into()).await), "InvalidParameterValue");
        let by_name = DescribeSecurityGroupsRequest {
            group_names: vec!["nope".into()],
            ..DescribeSecurityGroupsRequest::default()
        };
        assert_eq!(
            code(handlers.describe_security_groups(&context(), by_name).await),
            "InvalidGroup.NotFound"
        );
    }

    #[tokio::test]
    async fn rules_come_in_pages_and_have_tags() {
        let handlers = handlers().await;
        let id = create(&handlers, "web").await.unwrap();
        let ports = (1..=11).map(|port| tcp(port, "0.0.0.0/0")).collect();
        let tags = vec![Tag { key: Some("team".into()), value: Some("a".into()) }];
        let input = AuthorizeSecurityGroupIngressRequest {
            group_id: Some(id.clone()),
            ip_permissions: ports,
            tag_specifications: vec![TagSpecification {
                resource_type: Some("security-group-rule".into()),
                tags,
            }],
            ..AuthorizeSecurityGroupIngressRequest::default()
        };
        handlers.authorize_security_group_ingress(&context(), input).await.unwrap();
        let mut request = DescribeSecurityGroupRulesRequest {
            filters: filter("tag:team", "a"),
            max_results: Some(5),
            ..DescribeSecurityGroupRulesRequest::default()
        };
        let mut ports = Vec::new();
        for expected in [5, 5, 1] {
            let page = handlers.describe_security_group_rules(&context(), request.clone()).await.unwrap();
            assert_eq!(page.security_group_rules.len(), expected);
            ports.extend(page.security_group_rules.iter().filter_map(|rule| rule.from_port));
            request.next_token = page.next_token;
        }
        assert_eq!(request.next_token, None);
        ports.sort_unstable();
        assert_eq!(ports, (1..=11).collect::<Vec<_>>());
        let volume = TagSpecification { resource_type: Some("volume".into()), tags: Vec::new() };
        let input = CreateSecurityGroupRequest {
            description: "d".into(),
            group_name: "n".into(),
            tag_specifications: vec![volume],
            ..CreateSecurityGroupRequest::default()
        };
        assert_eq!(code(handlers.create_security_group(&context(), input).await), "InvalidParameterValue");
    }
}
