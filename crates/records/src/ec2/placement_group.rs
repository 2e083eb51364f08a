//! Placement groups, and the order in which capacity is given away.

use serde::{Deserialize, Serialize};

use super::wire_enum;
use crate::{GLOBAL_ACCOUNT, GLOBAL_REGION, Tags, resource};

/// A placement group (`PlacementGroup` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlacementGroup {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `pg-…`
    pub id: String,
    /// Name, unique in account and region.
    pub name: String,
    /// How its instances stand to each other.
    pub strategy: PlacementStrategy,
    /// Partitions of a partition group.
    pub partition_count: Option<u32>,
    /// Tags.
    pub tags: Tags,
}

resource!(PlacementGroup, "ec2.placement-group", "name" => |g| [g.name.clone()]);

wire_enum! {
    /// `PlacementStrategy`.
    PlacementStrategy {
        /// Close together, in one zone.
        Cluster = "cluster",
        /// Each on hardware of its own.
        Spread = "spread",
        /// Each partition on hardware of its own.
        Partition = "partition",
    }
}

/// Counts what was given of this installation's capacity. Every transaction that takes some changes it, so that none counts with
/// what another is taking at the same time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CapacityTicket {
    /// [`GLOBAL_ACCOUNT`].
    pub account: String,
    /// [`GLOBAL_REGION`].
    pub region: String,
    /// The only one is [`CapacityTicket::ID`].
    pub id: String,
    /// The number of the latest.
    pub number: u64,
}

impl CapacityTicket {
    /// The id of the one record.
    pub const ID: &'static str = "host";

    /// The ticket of this number.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self { account: GLOBAL_ACCOUNT.into(), region: GLOBAL_REGION.into(), id: Self::ID.into(), number }
    }
}

resource!(CapacityTicket, "ec2.capacity-ticket");
