//! Groups and rules, through the handlers.

use super::*;
use crate::model::{
    self, AuthorizeSecurityGroupIngressRequest, DescribeSecurityGroupRulesRequest,
    DescribeSecurityGroupsRequest, Ec2, IpPermission, IpRange, ModifySecurityGroupRulesRequest,
    RevokeSecurityGroupIngressRequest, RevokeSecurityGroupIngressResult, SecurityGroupRuleRequest, Tag,
    TagSpecification, UpdateSecurityGroupRuleDescriptionsIngressRequest, UserIdGroupPair,
};
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
    two.ip_ranges.push(IpRange { description: Some("home".into()), cidr_ip: Some("192.0.2.0/24".into()) });
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
        allow(&handlers, &id, twice).await.unwrap_err().message.contains("must not appear multiple times")
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
    list.prefix_list_ids.push(model::PrefixListId { prefix_list_id: Some("pl-1".into()), description: None });
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
    let mixed =
        AuthorizeSecurityGroupIngressRequest { ip_permissions: vec![tcp(80, "0.0.0.0/0")], ..flat.clone() };
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
    let revoked = disallow(&handlers, &id, vec![tcp(22, "0.0.0.0/0"), tcp(443, "0.0.0.0/0")]).await.unwrap();
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
    assert_eq!(code(disallow(&handlers, &elsewhere, vec![ipv6.clone()]).await), "InvalidPermission.NotFound");
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
    assert_eq!(code(handlers.describe_security_groups(&context(), by_name).await), "InvalidGroup.NotFound");
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
