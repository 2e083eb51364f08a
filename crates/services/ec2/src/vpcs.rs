//! VPCs.

use haar_api::Context;
use haar_core::FilterTable;
use haar_records::ec2::Vpc;

use crate::describe::{Kind, Request};
use crate::error::Result;
use crate::handlers::Handlers;
use crate::model;
use crate::model::{
    AttributeBooleanValue, DescribeVpcAttributeRequest, DescribeVpcAttributeResult, DescribeVpcsRequest,
    DescribeVpcsResult, Tenancy, VpcAttributeName, VpcCidrBlockAssociation, VpcCidrBlockState,
    VpcCidrBlockStateCode, VpcState,
};
use crate::{ids, tags};

const KIND: Kind<Vpc, ()> = Kind {
    id: ids::VPC,
    filters: FilterTable::<Vpc>::new(&[
        ("cidr", |vpc, (), probe| probe.value(&vpc.cidr_block)),
        ("cidr-block-association.association-id", |vpc, (), probe| probe.value(&vpc.cidr_association_id)),
        ("cidr-block-association.cidr-block", |vpc, (), probe| probe.value(&vpc.cidr_block)),
        ("cidr-block-association.state", |_, (), probe| probe.value("associated")),
        ("dhcp-options-id", |vpc, (), probe| probe.value(&vpc.dhcp_options_id)),
        ("ipv6-cidr-block-association.association-id", |_, (), _| ()),
        ("ipv6-cidr-block-association.ipv6-cidr-block", |_, (), _| ()),
        ("ipv6-cidr-block-association.ipv6-pool", |_, (), _| ()),
        ("ipv6-cidr-block-association.state", |_, (), _| ()),
        ("is-default", |vpc, (), probe| probe.display(vpc.is_default)),
        ("isDefault", |vpc, (), probe| probe.display(vpc.is_default)),
        ("owner-id", |vpc, (), probe| probe.value(&vpc.account)),
        ("state", |_, (), probe| probe.value("available")),
        ("vpc-id", |vpc, (), probe| probe.value(&vpc.id)),
    ])
    .with_tags(|vpc| &vpc.tags),
    indexes: &[],
};

/// `DescribeVpcs`.
pub async fn describe_vpcs(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeVpcsRequest,
) -> Result<DescribeVpcsResult> {
    let snapshot = handlers.snapshot_with_default_vpc(ctx).await?;
    let request =
        Request::new(&input.vpc_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let (vpcs, next_token) = KIND.page(handlers, ctx, &snapshot, &request, &())?;
    Ok(DescribeVpcsResult { next_token, vpcs: vpcs.iter().map(|vpc| to_api(vpc)).collect() })
}

fn to_api(vpc: &Vpc) -> model::Vpc {
    model::Vpc {
        owner_id: Some(vpc.account.clone()),
        instance_tenancy: Some(Tenancy::Default),
        cidr_block_association_set: vec![VpcCidrBlockAssociation {
            association_id: Some(vpc.cidr_association_id.clone()),
            cidr_block: Some(vpc.cidr_block.clone()),
            cidr_block_state: Some(VpcCidrBlockState { state: Some(VpcCidrBlockStateCode::Associated) }),
        }],
        is_default: Some(vpc.is_default),
        tags: tags::to_api(&vpc.tags),
        vpc_id: Some(vpc.id.clone()),
        state: Some(VpcState::Available),
        cidr_block: Some(vpc.cidr_block.clone()),
        dhcp_options_id: Some(vpc.dhcp_options_id.clone()),
    }
}

/// `DescribeVpcAttribute`. Every VPC has the resolver and host names; no VPC counts its addresses.
pub async fn describe_vpc_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeVpcAttributeRequest,
) -> Result<DescribeVpcAttributeResult> {
    ids::VPC.check(&input.vpc_id)?;
    let vpc = handlers.store.snapshot().get::<Vpc>(&ctx.account, &ctx.region, &input.vpc_id);
    let vpc = vpc.ok_or_else(|| ids::VPC.missing(&input.vpc_id))?;
    let value =
        |asked, value| (input.attribute == asked).then_some(AttributeBooleanValue { value: Some(value) });
    Ok(DescribeVpcAttributeResult {
        enable_dns_hostnames: value(VpcAttributeName::EnableDnsHostnames, true),
        enable_dns_support: value(VpcAttributeName::EnableDnsSupport, true),
        enable_network_address_usage_metrics: value(
            VpcAttributeName::EnableNetworkAddressUsageMetrics,
            false,
        ),
        vpc_id: Some(vpc.id.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Ec2;
    use crate::model::{DescribeInternetGatewaysRequest, DescribeRouteTablesRequest};
    use crate::testing::{code, context, filter, handlers};

    #[tokio::test]
    async fn the_default_vpc_leads_to_the_internet() {
        let handlers = handlers().await;
        let input =
            DescribeVpcsRequest { filters: filter("is-default", "true"), ..DescribeVpcsRequest::default() };
        let vpc_id = handlers.describe_vpcs(&context(), input).await.unwrap().vpcs.remove(0).vpc_id.unwrap();
        let input = DescribeInternetGatewaysRequest {
            filters: filter("attachment.vpc-id", &vpc_id),
            ..DescribeInternetGatewaysRequest::default()
        };
        let gateways =
            handlers.describe_internet_gateways(&context(), input).await.unwrap().internet_gateways;
        assert_eq!(gateways[0].attachments[0].state.as_deref(), Some("available"));
        let input = DescribeRouteTablesRequest {
            filters: [filter("association.main", "true"), filter("vpc-id", &vpc_id)].concat(),
            ..DescribeRouteTablesRequest::default()
        };
        let tables = handlers.describe_route_tables(&context(), input).await.unwrap().route_tables;
        let routes = &tables[0].routes;
        assert_eq!(routes[0].gateway_id.as_deref(), Some("local"));
        assert_eq!(routes[1].destination_cidr_block.as_deref(), Some("0.0.0.0/0"));
        assert_eq!(routes[1].gateway_id, gateways[0].internet_gateway_id);
    }

    #[tokio::test]
    async fn an_attribute_comes_alone() {
        let handlers = handlers().await;
        let vpcs = handlers.describe_vpcs(&context(), DescribeVpcsRequest::default()).await.unwrap().vpcs;
        let ask = |vpc_id: &str| DescribeVpcAttributeRequest {
            attribute: VpcAttributeName::EnableDnsSupport,
            vpc_id: vpc_id.into(),
        };
        let input = ask(vpcs[0].vpc_id.as_deref().unwrap());
        let found = handlers.describe_vpc_attribute(&context(), input).await.unwrap();
        assert_eq!(found.enable_dns_support, Some(AttributeBooleanValue { value: Some(true) }));
        assert_eq!(found.enable_dns_hostnames, None);
        let missing = handlers.describe_vpc_attribute(&context(), ask("vpc-00000000000000000")).await;
        assert_eq!(code(missing), "InvalidVpcID.NotFound");
    }
}
