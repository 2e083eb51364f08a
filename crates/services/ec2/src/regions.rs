//! Regions, availability zones, and what the account may do.

use haar_api::Context;
use haar_core::FilterTable;

use crate::error::{Result, combination, invalid_value, shorten};
use crate::handlers::Handlers;
use crate::model::{
    AccountAttribute, AccountAttributeValue, AvailabilityZone, AvailabilityZoneOptInStatus,
    AvailabilityZoneState, DescribeAccountAttributesRequest, DescribeAccountAttributesResult,
    DescribeAvailabilityZonesRequest, DescribeAvailabilityZonesResult, DescribeRegionsRequest,
    DescribeRegionsResult, Region,
};
use crate::scope::Scope;
use crate::{defaults, describe, security_groups, zones};

const NO_OPT_IN: &str = "opt-in-not-required";

/// The name of AWS's endpoint, by which some clients know a region.
fn endpoint(region: &zones::Region) -> String {
    format!("ec2.{}.amazonaws.com", region.name)
}

const fn opt_in_status(region: &zones::Region) -> &'static str {
    if region.opt_in { "opted-in" } else { NO_OPT_IN }
}

const REGION_FILTERS: FilterTable<zones::Region> = FilterTable::new(&[
    ("endpoint", |region, (), probe| probe.value(&endpoint(region))),
    ("opt-in-status", |region, (), probe| probe.value(opt_in_status(region))),
    ("region-name", |region, (), probe| probe.value(region.name)),
]);

/// `DescribeRegions`. All regions are enabled, so that `AllRegions` adds none.
pub async fn describe_regions(
    _: &Handlers,
    _: &Context,
    input: DescribeRegionsRequest,
) -> Result<DescribeRegionsResult> {
    let filters = describe::parse(&REGION_FILTERS, &input.filters)?;
    for name in &input.region_names {
        if !zones::REGIONS.iter().any(|region| region.name == name) {
            return Err(invalid_value(format!("Invalid region: [{}]", shorten(name))));
        }
    }
    let wanted = |region: &&zones::Region| {
        let named =
            input.region_names.is_empty() || input.region_names.iter().any(|name| name == region.name);
        named && filters.matches(region, &())
    };
    let regions = zones::REGIONS.iter().filter(wanted).map(|region| Region {
        region_name: Some(region.name.to_owned()),
        endpoint: Some(endpoint(region)),
        opt_in_status: Some(opt_in_status(region).to_owned()),
    });
    Ok(DescribeRegionsResult { regions: regions.collect() })
}

/// What all zones of a region have in common.
struct ZoneGroup {
    region: String,
    name: String,
    long_name: String,
}

impl ZoneGroup {
    fn of(region: &str) -> Self {
        let known = zones::REGIONS.iter().find(|known| known.name == region);
        let long_name = known.map_or(region, |known| known.long_name);
        Self {
            region: region.to_owned(),
            name: format!("{region}-zg-1"),
            long_name: format!("{long_name} 1"),
        }
    }

    fn to_api(&self, zone: zones::Zone) -> AvailabilityZone {
        AvailabilityZone {
            opt_in_status: Some(AvailabilityZoneOptInStatus::OptInNotRequired),
            messages: Vec::new(),
            region_name: Some(self.region.clone()),
            zone_name: Some(zone.name),
            zone_id: Some(zone.id),
            group_name: Some(self.name.clone()),
            network_border_group: Some(self.region.clone()),
            zone_type: Some("availability-zone".to_owned()),
            group_long_name: Some(self.long_name.clone()),
            state: Some(AvailabilityZoneState::Available),
        }
    }
}

const ZONE_FILTERS: FilterTable<zones::Zone, ZoneGroup> = FilterTable::<zones::Zone, ZoneGroup>::new(&[
    ("group-long-name", |_, group, probe| probe.value(&group.long_name)),
    ("group-name", |_, group, probe| probe.value(&group.name)),
    ("message", |_, _, _| ()),
    ("opt-in-status", |_, _, probe| probe.value(NO_OPT_IN)),
    ("parent-zone-id", |_, _, _| ()),
    ("parent-zone-name", |_, _, _| ()),
    ("region-name", |_, group, probe| probe.value(&group.region)),
    ("state", |_, _, probe| probe.value("available")),
    ("zone-id", |zone, _, probe| probe.value(&zone.id)),
    ("zone-name", |zone, _, probe| probe.value(&zone.name)),
    ("zone-type", |_, _, probe| probe.value("availability-zone")),
]);

/// `DescribeAvailabilityZones`. There are no local and wavelength zones, so that `AllAvailabilityZones` adds none.
pub async fn describe_availability_zones(
    _: &Handlers,
    ctx: &Context,
    input: DescribeAvailabilityZonesRequest,
) -> Result<DescribeAvailabilityZonesResult> {
    let filters = describe::parse(&ZONE_FILTERS, &input.filters)?;
    let (names, zone_ids) = (&input.zone_names, &input.zone_ids);
    if !names.is_empty() && !zone_ids.is_empty() {
        return Err(combination("The parameter zoneIds cannot be used with the parameter zoneNames"));
    }
    let mut zones = zones::zones(&ctx.region);
    let unknown_name = names.iter().find(|name| !zones.iter().any(|zone| zone.name == **name));
    let unknown_id = zone_ids.iter().find(|id| !zones.iter().any(|zone| zone.id == **id));
    if let Some(unknown) = unknown_name.or(unknown_id) {
        return Err(invalid_value(format!("Invalid availability zone: [{}]", shorten(unknown))));
    }
    let group = ZoneGroup::of(&ctx.region);
    zones.retain(|zone| {
        (names.is_empty() || names.contains(&zone.name))
            && (zone_ids.is_empty() || zone_ids.contains(&zone.id))
            && filters.matches(zone, &group)
    });
    let availability_zones = zones.into_iter().map(|zone| group.to_api(zone)).collect();
    Ok(DescribeAvailabilityZonesResult { availability_zones })
}

/// `DescribeAccountAttributes`.
pub async fn describe_account_attributes(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeAccountAttributesRequest,
) -> Result<DescribeAccountAttributesResult> {
    let snapshot = handlers.snapshot_with_default_vpc(ctx).await?;
    let default_vpc =
        defaults::find(&snapshot, Scope::from(ctx)).map_or("none".to_owned(), |vpc| vpc.id.clone());
    let attributes = [
        ("supported-platforms", "VPC".to_owned()),
        ("vpc-max-security-groups-per-interface", security_groups::MAX_GROUPS_PER_INTERFACE.to_string()),
        // There are no Elastic IP addresses.
        ("max-elastic-ips", "0".to_owned()),
        ("vpc-max-elastic-ips", "0".to_owned()),
        // Not a limit of this installation, nor of AWS's: "the returned value does not reflect your actual vCPU limit" (API
        // Reference, `DescribeAccountAttributes`).
        ("max-instances", "20".to_owned()),
        ("default-vpc", default_vpc),
    ];
    let names = &input.attribute_names;
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted.as_str() == name);
    let account_attributes =
        attributes.into_iter().filter(|(name, _)| wanted(name)).map(|(name, value)| AccountAttribute {
            attribute_name: Some(name.to_owned()),
            attribute_values: vec![AccountAttributeValue { attribute_value: Some(value) }],
        });
    Ok(DescribeAccountAttributesResult { account_attributes: account_attributes.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Ec2;
    use crate::testing::{code, context, filter, handlers};

    #[tokio::test]
    async fn regions_are_those_named_and_filtered() {
        let handlers = handlers().await;
        let ask = |names: &[&str], filters| {
            let region_names = names.iter().map(|&name| name.to_owned()).collect();
            let input = DescribeRegionsRequest { region_names, filters, ..DescribeRegionsRequest::default() };
            let handlers = &handlers;
            async move {
                let regions = handlers.describe_regions(&context(), input).await?.regions;
                Ok(regions.into_iter().filter_map(|region| region.region_name).collect::<Vec<_>>())
            }
        };
        assert!(ask(&[], vec![]).await.unwrap().len() > 30);
        let two = ask(&["us-east-1", "af-south-1"], filter("opt-in-status", "opted-in")).await.unwrap();
        assert_eq!(two, ["af-south-1"]);
        assert_eq!(ask(&[], filter("endpoint", "ec2.eu-n*")).await.unwrap(), ["eu-north-1"]);
        assert_eq!(code(ask(&["moon-1"], vec![]).await), "InvalidParameterValue");
    }

    #[tokio::test]
    async fn zones_are_those_of_the_region() {
        let handlers = handlers().await;
        let ask = |input: DescribeAvailabilityZonesRequest| {
            let handlers = &handlers;
            async move {
                let zones = handlers.describe_availability_zones(&context(), input).await?.availability_zones;
                let names: Vec<_> = zones.into_iter().filter_map(|zone| zone.zone_name).collect();
                Ok::<_, haar_api::Error>(names)
            }
        };
        let all = ask(DescribeAvailabilityZonesRequest::default()).await.unwrap();
        assert_eq!(all, ["eu-central-1a", "eu-central-1b", "eu-central-1c"]);
        let by_id = DescribeAvailabilityZonesRequest {
            zone_ids: vec!["euc1-az2".into()],
            filters: filter("group-name", "eu-central-1-zg-1"),
            ..DescribeAvailabilityZonesRequest::default()
        };
        assert_eq!(ask(by_id).await.unwrap(), ["eu-central-1b"]);
        let elsewhere = DescribeAvailabilityZonesRequest {
            zone_names: vec!["us-east-1a".into()],
            ..DescribeAvailabilityZonesRequest::default()
        };
        assert_eq!(ask(elsewhere).await.unwrap_err().message, "Invalid availability zone: [us-east-1a]");
    }

    #[tokio::test]
    async fn the_account_knows_its_default_vpc() {
        let handlers = handlers().await;
        let input = DescribeAccountAttributesRequest { attribute_names: vec!["default-vpc".into()] };
        let mut found =
            handlers.describe_account_attributes(&context(), input).await.unwrap().account_attributes;
        assert_eq!(found.len(), 1);
        let value = found.remove(0).attribute_values.remove(0).attribute_value.unwrap();
        assert_eq!(value, defaults::find(&handlers.store.snapshot(), Scope::from(&context())).unwrap().id);
    }
}
