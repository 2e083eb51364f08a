//! Snapshots of EBS volumes.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::wire_enum;
use crate::{Tags, resource};

/// A snapshot (`Snapshot` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EbsSnapshot {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `snap-…`
    pub id: String,
    /// The volume that it was taken of, which may be gone.
    pub volume_id: String,
    /// Size of the volume in GiB.
    pub volume_size_gib: u32,
    /// State.
    pub state: SnapshotState,
    /// What went wrong, for state `error`.
    pub state_message: Option<String>,
    /// When it was asked for.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub start_time: OffsetDateTime,
    /// When it was complete.
    #[serde(with = "time::serde::timestamp::nanoseconds::option")]
    pub completion_time: Option<OffsetDateTime>,
    /// Description.
    pub description: String,
    /// The snapshots, this one among them, that are taken at the same point in time (CreateSnapshots); empty when it is taken by itself.
    pub set: Vec<String>,
    /// It is to be removed.
    pub deleted: bool,
    /// Tags.
    pub tags: Tags,
}

resource!(EbsSnapshot, "ec2.snapshot",
    "volume" => |s| [s.volume_id.clone()],
);

wire_enum! {
    /// `SnapshotState`.
    SnapshotState {
        /// Being taken.
        Pending = "pending",
        /// Complete.
        Completed = "completed",
        /// It could not be taken.
        Error = "error",
    }
}
