//! Regions and their availability zones, as requests name them.

pub use haar_records::ec2::{REGIONS, Region, Zone, zone_id, zones};

use crate::error::{Result, invalid_value, shorten};

/// The name of the zone with this id in a region.
pub fn zone_name(region: &str, zone_id: &str) -> Option<String> {
    zones(region).into_iter().find(|zone| zone.id == zone_id).map(|zone| zone.name)
}

/// Refuses a zone that the region does not have.
///
/// # Errors
/// `InvalidParameterValue`.
pub fn check(region: &str, zone_name: &str) -> Result<()> {
    match zone_id(region, zone_name) {
        Some(_) => Ok(()),
        None => Err(invalid_value(format!("Invalid availability zone: [{}]", shorten(zone_name)))),
    }
}
