//! The rules of groups: authorized, revoked, replaced, described.

use haar_api::{Context, Error};
use haar_records::Tags;
use haar_records::ec2::{RuleTarget, SecurityGroup, SecurityGroupRule, Vpc};
use haar_store::Tx;

use super::describe::{permissions_to_api, revoked_to_api, rule_to_api};
use super::rules::{self, Traffic};
use super::{find, find_by_name, named};
use crate::error::{Result, combination, invalid_value, missing, unsupported};
use crate::handlers::Handlers;
use crate::model;
use crate::model::{
    AuthorizeSecurityGroupEgressRequest, AuthorizeSecurityGroupEgressResult,
    AuthorizeSecurityGroupIngressRequest, AuthorizeSecurityGroupIngressResult, IpPermission, IpRange,
    ModifySecurityGroupRulesRequest, ModifySecurityGroupRulesResult, RevokeSecurityGroupEgressRequest,
    RevokeSecurityGroupEgressResult, RevokeSecurityGroupIngressRequest, RevokeSecurityGroupIngressResult,
    RevokedSecurityGroupRule, SecurityGroupRuleDescription, SecurityGroupRuleRequest, TagSpecification,
    UpdateSecurityGroupRuleDescriptionsEgressRequest, UpdateSecurityGroupRuleDescriptionsEgressResult,
    UpdateSecurityGroupRuleDescriptionsIngressRequest, UpdateSecurityGroupRuleDescriptionsIngressResult,
    UserIdGroupPair,
};
use crate::scope::Scope;
use crate::{ids, tags};

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

/// The [`Flat`] of a request to authorize or revoke ingress, whose types have these members alike.
macro_rules! flat {
    ($input:ident) => {
        Flat {
            protocol: $input.ip_protocol.as_deref(),
            from_port: $input.from_port,
            to_port: $input.to_port,
            cidr: $input.cidr_ip.as_deref(),
            group_name: $input.source_security_group_name.as_deref(),
            group_owner: $input.source_security_group_owner_id.as_deref(),
        }
    };
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
    let permissions = flat!(input).permissions(input.ip_permissions)?;
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
    let permissions = flat!(input).permissions(input.ip_permissions)?;
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
