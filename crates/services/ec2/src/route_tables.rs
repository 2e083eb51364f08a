//! Route tables.

use haar_api::Context;
use haar_core::FilterTable;
use haar_records::ec2::{Route, RouteTable, RouteTarget};

use crate::describe::{Kind, Request};
use crate::error::Result;
use crate::handlers::Handlers;
use crate::model;
use crate::model::{
    DescribeRouteTablesRequest, DescribeRouteTablesResult, RouteOrigin, RouteState, RouteTableAssociation,
    RouteTableAssociationState, RouteTableAssociationStateCode,
};
use crate::{ids, tags};

const KIND: Kind<RouteTable, ()> = Kind {
    id: ids::ROUTE_TABLE,
    filters: FilterTable::<RouteTable>::new(&[
        ("association.gateway-id", |_, (), _| ()),
        ("association.main", |table, (), probe| {
            table.associations.iter().for_each(|association| probe.display(association.subnet_id.is_none()));
        }),
        ("association.route-table-association-id", |table, (), probe| {
            probe.values(table.associations.iter().map(|association| association.id.as_str()));
        }),
        ("association.route-table-id", |table, (), probe| {
            probe.values(table.associations.iter().map(|_| table.id.as_str()));
        }),
        ("association.subnet-id", |table, (), probe| {
            probe
                .values(table.associations.iter().filter_map(|association| association.subnet_id.as_deref()));
        }),
        ("owner-id", |table, (), probe| probe.value(&table.account)),
        ("route-table-id", |table, (), probe| probe.value(&table.id)),
        ("route.destination-cidr-block", |table, (), probe| {
            probe.values(table.routes.iter().map(|route| route.destination.as_str()));
        }),
        ("route.destination-ipv6-cidr-block", |_, (), _| ()),
        ("route.destination-prefix-list-id", |_, (), _| ()),
        ("route.egress-only-internet-gateway-id", |_, (), _| ()),
        ("route.gateway-id", |table, (), probe| probe.values(table.routes.iter().map(gateway_id))),
        ("route.instance-id", |_, (), _| ()),
        ("route.nat-gateway-id", |_, (), _| ()),
        ("route.origin", |table, (), probe| {
            probe.values(table.routes.iter().map(|route| origin(route).as_str()));
        }),
        ("route.state", |table, (), probe| probe.values(table.routes.iter().map(|_| "active"))),
        ("route.transit-gateway-id", |_, (), _| ()),
        ("route.vpc-peering-connection-id", |_, (), _| ()),
        ("vpc-id", |table, (), probe| probe.value(&table.vpc_id)),
    ])
    .with_tags(|table| &table.tags),
    indexes: &[("vpc-id", "vpc")],
};

fn gateway_id(route: &Route) -> &str {
    match &route.target {
        RouteTarget::Local => "local",
        RouteTarget::InternetGateway(id) => id,
    }
}

const fn origin(route: &Route) -> RouteOrigin {
    if route.implicit { RouteOrigin::CreateRouteTable } else { RouteOrigin::CreateRoute }
}

/// `DescribeRouteTables`.
pub async fn describe_route_tables(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeRouteTablesRequest,
) -> Result<DescribeRouteTablesResult> {
    let snapshot = handlers.snapshot_with_default_vpc(ctx).await?;
    let request =
        Request::new(&input.route_table_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let (tables, next_token) = KIND.page(handlers, ctx, &snapshot, &request, &())?;
    Ok(DescribeRouteTablesResult {
        route_tables: tables.iter().map(|table| to_api(table)).collect(),
        next_token,
    })
}

fn to_api(table: &RouteTable) -> model::RouteTable {
    let associations = table.associations.iter().map(|association| RouteTableAssociation {
        main: Some(association.subnet_id.is_none()),
        route_table_association_id: Some(association.id.clone()),
        route_table_id: Some(table.id.clone()),
        subnet_id: association.subnet_id.clone(),
        association_state: Some(RouteTableAssociationState {
            state: Some(RouteTableAssociationStateCode::Associated),
        }),
    });
    let routes = table.routes.iter().map(|route| model::Route {
        destination_cidr_block: Some(route.destination.clone()),
        gateway_id: Some(gateway_id(route).to_owned()),
        origin: Some(origin(route)),
        state: Some(RouteState::Active),
    });
    model::RouteTable {
        associations: associations.collect(),
        propagating_vgws: Vec::new(),
        route_table_id: Some(table.id.clone()),
        routes: routes.collect(),
        tags: tags::to_api(&table.tags),
        vpc_id: Some(table.vpc_id.clone()),
        owner_id: Some(table.account.clone()),
    }
}
