//! Groups and rules as the API shows them.

use haar_api::{Context, Error};
use haar_core::{FilterTable, Fingerprint, PageRequest};
use haar_records::ec2::{Claim, ClaimScope, RuleTarget, SecurityGroup, SecurityGroupRule};
use haar_store::{Entry, Snapshot};

use super::not_in_default_vpc;
use crate::describe::{Kind, Request};
use crate::error::Result;
use crate::handlers::Handlers;
use crate::model;
use crate::model::{
    DescribeSecurityGroupRulesRequest, DescribeSecurityGroupRulesResult, DescribeSecurityGroupsRequest,
    DescribeSecurityGroupsResult, IpPermission, IpRange, ReferencedSecurityGroup, RevokedSecurityGroupRule,
    UserIdGroupPair,
};
use crate::scope::Scope;
use crate::{defaults, describe, ids, tags};

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
    let request = Request::new(&group_ids, &input.filters, input.max_results, input.next_token.as_deref());
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
            parameters: &|| Fingerprint::of(&(rule_ids, filters.raw())),
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
pub(super) fn permissions_to_api<'a>(
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

pub(super) fn rule_to_api(group: &SecurityGroup, rule: &SecurityGroupRule) -> model::SecurityGroupRule {
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

pub(super) fn revoked_to_api(group: &SecurityGroup, rule: &SecurityGroupRule) -> RevokedSecurityGroupRule {
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
