//! EBS volumes.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{network::AttachmentStatus, wire_enum};
use crate::{Tags, resource};

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
    /// The image whose root disk this volume is a copy-on-write overlay of.
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
    /// Tags.
    pub tags: Tags,
}

resource!(Volume, "ec2.volume",
    "instance" => |v| v.attachments.iter().map(|a| a.instance_id.clone()).collect::<Vec<_>>(),
    "snapshot" => |v| v.snapshot_id.clone(),
);

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
