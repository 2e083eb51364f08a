//! Snapshots of EBS volumes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Encryption, wire_enum};
use crate::{TAG_INDEX, Tags, indexed, resource};

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
    /// The snapshot that it is a copy of (CopySnapshot), which may be gone once the copy is complete.
    #[serde(default)]
    pub copy_of: Option<SnapshotSource>,
    /// It is uploaded block by block (StartSnapshot), or was.
    #[serde(default)]
    pub upload: Option<SnapshotUpload>,
    /// Everyone may make volumes from it (`createVolumePermission`, group `all`).
    #[serde(default)]
    pub public: bool,
    /// The accounts that may make volumes from it besides its owner (`createVolumePermission`).
    #[serde(default)]
    pub shared_with: BTreeSet<String>,
    /// How it is encrypted, if it is.
    #[serde(default)]
    pub encryption: Option<Encryption>,
    /// Tags.
    pub tags: Tags,
    /// The image of the library that the volume's disk descends from.
    #[serde(default)]
    pub image_id: Option<String>,
    /// What it is made from that is neither a volume nor another snapshot.
    #[serde(default)]
    pub origin: Option<SnapshotOrigin>,
    /// The instance for whose reboot it waits, so that it is taken while the guest is down.
    #[serde(default)]
    pub awaits: Option<String>,
}

impl EbsSnapshot {
    /// The volume that a snapshot is said to be of that is of none.
    pub const NO_VOLUME: &str = "vol-ffffffff";

    /// One that is asked for now and that is of nothing yet: its maker says what it is of.
    #[must_use]
    pub fn new(account: &str, region: &str, id: String, volume_size_gib: u32, now: OffsetDateTime) -> Self {
        Self {
            account: account.to_owned(),
            region: region.to_owned(),
            id,
            volume_id: Self::NO_VOLUME.to_owned(),
            volume_size_gib,
            state: SnapshotState::Pending,
            state_message: None,
            start_time: now,
            completion_time: None,
            description: String::new(),
            set: Vec::new(),
            deleted: false,
            copy_of: None,
            upload: None,
            public: false,
            shared_with: BTreeSet::new(),
            encryption: None,
            tags: Tags::new(),
            image_id: None,
            origin: None,
            awaits: None,
        }
    }

    /// Whether an account may see it and make volumes from it.
    #[must_use]
    pub fn is_restorable_by(&self, account: &str) -> bool {
        self.account == account || self.public || self.shared_with.contains(account)
    }
}

/// A snapshot that is uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotUpload {
    /// The snapshot that it stands on.
    pub parent: Option<String>,
    /// When it fails if it is not complete.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub deadline: OffsetDateTime,
    /// No more blocks are taken: it is being completed.
    pub completing: bool,
}

/// What a snapshot is made from that is neither a volume nor another snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotOrigin {
    /// The root disk of its image of the library.
    Library,
}

/// What a copied snapshot is a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSource {
    /// Its owner.
    pub account: String,
    /// Its region.
    pub region: String,
    /// `snap-…`
    pub id: String,
}

resource!(EbsSnapshot, "ec2.snapshot",
    "volume" => |s| [s.volume_id.clone()],
    "awaits" => |s| s.awaits.clone(),
    TAG_INDEX => |s| indexed(&s.tags),
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
