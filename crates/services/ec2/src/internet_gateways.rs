//! Internet gateways.

use haar_api::Context;
use haar_core::FilterTable;
use haar_records::ec2::InternetGateway;

use crate::describe::{Kind, Request};
use crate::error::Result;
use crate::handlers::Handlers;
use crate::model;
use crate::model::{
    DescribeInternetGatewaysRequest, DescribeInternetGatewaysResult, InternetGatewayAttachment,
};
use crate::{ids, tags};

/// The state of an attachment, which is none of the model's `AttachmentStatus` (API Reference, `InternetGatewayAttachment`).
const ATTACHED: &str = "available";

const KIND: Kind<InternetGateway, ()> = Kind {
    id: ids::INTERNET_GATEWAY,
    filters: FilterTable::<InternetGateway>::new(&[
        ("attachment.state", |gateway, (), probe| probe.values(gateway.vpc_id.iter().map(|_| ATTACHED))),
        ("attachment.vpc-id", |gateway, (), probe| probe.values(gateway.vpc_id.as_deref())),
        ("internet-gateway-id", |gateway, (), probe| probe.value(&gateway.id)),
        ("owner-id", |gateway, (), probe| probe.value(&gateway.account)),
    ])
    .with_tags(|gateway| &gateway.tags),
    indexes: &[("attachment.vpc-id", "vpc")],
};

/// `DescribeInternetGateways`.
pub async fn describe_internet_gateways(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeInternetGatewaysRequest,
) -> Result<DescribeInternetGatewaysResult> {
    let snapshot = handlers.snapshot_with_default_vpc(ctx).await?;
    let request = Request::new(
        &input.internet_gateway_ids,
        &input.filters,
        input.max_results,
        input.next_token.as_deref(),
    );
    let (gateways, next_token) = KIND.page(handlers, ctx, &snapshot, &request, &())?;
    let internet_gateways = gateways.iter().map(|gateway| to_api(gateway)).collect();
    Ok(DescribeInternetGatewaysResult { internet_gateways, next_token })
}

fn to_api(gateway: &InternetGateway) -> model::InternetGateway {
    let attachment = |vpc_id: &String| InternetGatewayAttachment {
        state: Some(ATTACHED.to_owned()),
        vpc_id: Some(vpc_id.clone()),
    };
    model::InternetGateway {
        attachments: gateway.vpc_id.iter().map(attachment).collect(),
        internet_gateway_id: Some(gateway.id.clone()),
        owner_id: Some(gateway.account.clone()),
        tags: tags::to_api(&gateway.tags),
    }
}
