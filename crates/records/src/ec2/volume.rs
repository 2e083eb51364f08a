//! EBS volumes.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Encryption, network::AttachmentStatus, wire_enum};
use crate::{TAG_INDEX, Tags, indexed, resource};

/// A volume (`Volume` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `vol-…`
    pub id: String,
    /// Size in GiB.
    pub size_gib: u32,
    /// Type.
    pub volume_type: VolumeType,
    /// Provisioned or baseline IOPS, where the type has them.
    pub iops: Option<u32>,
    /// Throughput in MiB/s, gp3 only.
    pub throughput: Option<u32>,
    /// Availability zone.
    pub availability_zone: String,
    /// The image of the library that its disk descends from: if it was made from no snapshot, it is an overlay of the image's root
    /// disk.
    pub image_id: Option<String>,
    /// The snapshot that this volume was made from.
    #[serde(default)]
    pub snapshot_id: Option<String>,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// State.
    pub state: VolumeState,
    /// What went wrong, for state `error`.
    pub error: Option<String>,
    /// Attachments; one at most.
    pub attachments: Vec<VolumeAttachment>,
    /// The latest change that was asked for (ModifyVolume).
    #[serde(default)]
    pub modification: Option<VolumeModification>,
    /// When changes were asked for, in seconds of Unix time, the latest last: as many as the limit of them needs to know.
    #[serde(default)]
    pub modified: Vec<i64>,
    /// A disk that was found damaged is repaired and used without being asked for (`autoEnableIO`).
    #[serde(default)]
    pub auto_enable_io: bool,
    /// A damaged disk is to be repaired (EnableVolumeIO).
    #[serde(default)]
    pub enable_io: bool,
    /// How it is encrypted, if it is.
    #[serde(default)]
    pub encryption: Option<Encryption>,
    /// Tags.
    pub tags: Tags,
}

resource!(Volume, "ec2.volume",
    "instance" => |v| v.attachments.iter().map(|a| a.instance_id.clone()).collect::<Vec<_>>(),
    "snapshot" => |v| v.snapshot_id.clone(),
    TAG_INDEX => |v| indexed(&v.tags),
);

impl Volume {
    /// Its size, type and performance.
    #[must_use]
    pub fn shape(&self) -> VolumeShape {
        VolumeShape {
            size_gib: self.size_gib,
            volume_type: self.volume_type,
            iops: self.iops,
            throughput: self.throughput,
        }
    }

    /// The volume with another size, type and performance.
    #[must_use]
    pub fn with_shape(self, shape: VolumeShape) -> Self {
        let VolumeShape { size_gib, volume_type, iops, throughput } = shape;
        Self { size_gib, volume_type, iops, throughput, ..self }
    }
}

/// What ModifyVolume changes of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeShape {
    /// Size in GiB.
    pub size_gib: u32,
    /// Type.
    pub volume_type: VolumeType,
    /// Provisioned or baseline IOPS, where the type has them.
    pub iops: Option<u32>,
    /// Throughput in MiB/s, gp3 only.
    pub throughput: Option<u32>,
}

/// `VolumeModification`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeModification {
    /// State.
    pub state: ModificationState,
    /// Why it failed.
    pub message: Option<String>,
    /// What the volume was.
    pub original: VolumeShape,
    /// What it is to be.
    pub target: VolumeShape,
    /// When it was asked for.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub start_time: OffsetDateTime,
    /// When it was completed or failed.
    #[serde(with = "time::serde::timestamp::nanoseconds::option")]
    pub end_time: Option<OffsetDateTime>,
}

wire_enum! {
    /// `VolumeModificationState`.
    ModificationState {
        /// The disk is being changed.
        Modifying = "modifying",
        /// The disk is changed, and the record; what was started with the old record meanwhile is brought in line.
        Optimizing = "optimizing",
        /// Done.
        Completed = "completed",
        /// The disk could not be changed.
        Failed = "failed",
    }
}

impl ModificationState {
    /// Whether there is something left to do.
    #[must_use]
    pub const fn is_under_way(self) -> bool {
        matches!(self, Self::Modifying | Self::Optimizing)
    }
}

wire_enum! {
    /// `VolumeState`.
    VolumeState {
        /// Its disk is being made.
        Creating = "creating",
        /// Ready, not attached.
        Available = "available",
        /// Attached.
        InUse = "in-use",
        /// Its disk is being removed.
        Deleting = "deleting",
        /// Gone.
        Deleted = "deleted",
        /// Its disk could not be made.
        Error = "error",
    }
}

wire_enum! {
    /// `VolumeType`.
    VolumeType {
        /// Magnetic.
        Standard = "standard",
        /// Provisioned IOPS SSD.
        Io1 = "io1",
        /// Provisioned IOPS SSD.
        Io2 = "io2",
        /// General purpose SSD.
        Gp2 = "gp2",
        /// General purpose SSD.
        Gp3 = "gp3",
        /// Cold HDD.
        Sc1 = "sc1",
        /// Throughput optimised HDD.
        St1 = "st1",
    }
}

/// `VolumeAttachment`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// `i-…`
    pub instance_id: String,
    /// As `/dev/xvda`.
    pub device: String,
    /// State.
    pub status: AttachmentStatus,
    /// Since when.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub attach_time: OffsetDateTime,
    /// The volume goes with the instance.
    pub delete_on_termination: bool,
}
