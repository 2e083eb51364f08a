//! Regions and their availability zones (AWS Regions and Availability Zones User Guide).

/// A region of AWS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Name, as `eu-central-1`.
    pub name: &'static str,
    /// What the console calls it.
    pub long_name: &'static str,
    /// AWS has accounts enable it before they use it; here it is enabled.
    pub opt_in: bool,
}

const fn region(name: &'static str, long_name: &'static str) -> Region {
    Region { name, long_name, opt_in: false }
}

const fn opt_in(name: &'static str, long_name: &'static str) -> Region {
    Region { name, long_name, opt_in: true }
}

/// The regions of the `aws` partition, by name.
pub const REGIONS: &[Region] = &[
    opt_in("af-south-1", "Africa (Cape Town)"),
    opt_in("ap-east-1", "Asia Pacific (Hong Kong)"),
    opt_in("ap-east-2", "Asia Pacific (Taipei)"),
    region("ap-northeast-1", "Asia Pacific (Tokyo)"),
    region("ap-northeast-2", "Asia Pacific (Seoul)"),
    region("ap-northeast-3", "Asia Pacific (Osaka)"),
    region("ap-south-1", "Asia Pacific (Mumbai)"),
    opt_in("ap-south-2", "Asia Pacific (Hyderabad)"),
    region("ap-southeast-1", "Asia Pacific (Singapore)"),
    region("ap-southeast-2", "Asia Pacific (Sydney)"),
    opt_in("ap-southeast-3", "Asia Pacific (Jakarta)"),
    opt_in("ap-southeast-4", "Asia Pacific (Melbourne)"),
    opt_in("ap-southeast-5", "Asia Pacific (Malaysia)"),
    opt_in("ap-southeast-6", "Asia Pacific (New Zealand)"),
    opt_in("ap-southeast-7", "Asia Pacific (Thailand)"),
    region("ca-central-1", "Canada (Central)"),
    opt_in("ca-west-1", "Canada West (Calgary)"),
    region("eu-central-1", "Europe (Frankfurt)"),
    opt_in("eu-central-2", "Europe (Zurich)"),
    region("eu-north-1", "Europe (Stockholm)"),
    opt_in("eu-south-1", "Europe (Milan)"),
    opt_in("eu-south-2", "Europe (Spain)"),
    region("eu-west-1", "Europe (Ireland)"),
    region("eu-west-2", "Europe (London)"),
    region("eu-west-3", "Europe (Paris)"),
    opt_in("il-central-1", "Israel (Tel Aviv)"),
    opt_in("me-central-1", "Middle East (UAE)"),
    opt_in("me-south-1", "Middle East (Bahrain)"),
    opt_in("mx-central-1", "Mexico (Central)"),
    region("sa-east-1", "South America (Sao Paulo)"),
    region("us-east-1", "US East (N. Virginia)"),
    region("us-east-2", "US East (Ohio)"),
    region("us-west-1", "US West (N. California)"),
    region("us-west-2", "US West (Oregon)"),
];

/// An availability zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Name, as `eu-central-1a`.
    pub name: String,
    /// Id, as `euc1-az1`.
    pub id: String,
}

/// What the names of a region's zones end with.
const LETTERS: [&str; 3] = ["a", "b", "c"];

/// The availability zones of a region, in the order of their names. Every region has three.
#[must_use]
pub fn zones(region: &str) -> Vec<Zone> {
    let named = |letter| {
        let name = format!("{region}{letter}");
        zone_id(region, &name).map(|id| Zone { name, id })
    };
    LETTERS.iter().filter_map(named).collect()
}

/// The id of the zone with this name, if the region has it.
#[must_use]
pub fn zone_id(region: &str, zone_name: &str) -> Option<String> {
    let letter = zone_name.strip_prefix(region)?;
    let index = LETTERS.iter().position(|known| *known == letter)?;
    Some(format!("{}-az{}", zone_id_prefix(region), index + 1))
}

/// What the ids of a region's zones start with: the region's name with its directions shortened, as `apse2` for
/// `ap-southeast-2`.
fn zone_id_prefix(region: &str) -> String {
    region
        .split('-')
        .map(|part| match part {
            "north" => "n",
            "south" => "s",
            "east" => "e",
            "west" => "w",
            "central" => "c",
            "northeast" => "ne",
            "northwest" => "nw",
            "southeast" => "se",
            "southwest" => "sw",
            "gov" => "g",
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_ids_are_those_of_aws() {
        for (region, prefix) in [
            ("us-east-1", "use1"),
            ("us-west-2", "usw2"),
            ("eu-central-1", "euc1"),
            ("ap-southeast-2", "apse2"),
            ("ap-northeast-3", "apne3"),
            ("sa-east-1", "sae1"),
            ("us-gov-west-1", "usgw1"),
        ] {
            assert_eq!(zone_id_prefix(region), prefix);
        }
        assert_eq!(zone_id("eu-north-1", "eu-north-1c").as_deref(), Some("eun1-az3"));
        assert_eq!(zone_id("eu-north-1", "eu-west-1c"), None);
    }

    #[test]
    fn regions_are_sorted_and_their_zones_distinct() {
        assert!(REGIONS.is_sorted_by_key(|region| region.name));
        let mut ids: Vec<_> =
            REGIONS.iter().flat_map(|region| zones(region.name)).map(|zone| zone.id).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }
}
