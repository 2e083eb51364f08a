//! Tasks of VM Import/Export that import disks and machines.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{BootMode, Encryption, wire_enum};
use crate::{Tags, resource};

/// A task that imports disks: into an image (`ImportImageTask` in the API reference) or a snapshot (`ImportSnapshotTask`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImportTask {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `import-ami-…` or `import-snap-…`
    pub id: String,
    /// Description.
    pub description: Option<String>,
    /// What it is to become; none for a snapshot.
    pub image: Option<ImportedImage>,
    /// Where the disks come from.
    pub containers: Vec<ImportContainer>,
    /// The disks that were found there; none until all containers are here.
    pub disks: Vec<ImportDisk>,
    /// State.
    pub state: ImportState,
    /// What is being done, or why it ended.
    pub message: Option<String>,
    /// How far it is, in percent.
    pub progress: u8,
    /// How the first disk is encrypted, if the disks are; the others get data keys of their own.
    pub encryption: Option<Encryption>,
    /// The root of the account that owns the machine has asked for it, who may name any file and any address.
    pub trusted: bool,
    /// When it was asked for.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub created: OffsetDateTime,
    /// When it was over.
    #[serde(with = "time::serde::timestamp::nanoseconds::option")]
    pub ended: Option<OffsetDateTime>,
    /// The image that came of it.
    pub image_id: Option<String>,
    /// Tags.
    pub tags: Tags,
}

/// What an imported image is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedImage {
    /// Architecture, where it was said.
    pub architecture: Option<String>,
    /// Operating system, where it was said.
    pub platform: Option<String>,
    /// Hypervisor, where it was said.
    pub hypervisor: Option<String>,
    /// `BYOL`, where it was said.
    pub license_type: Option<String>,
    /// Usage operation, where it was said.
    pub usage_operation: Option<String>,
    /// How it is to boot; as its root disk can where nothing was said.
    pub boot_mode: Option<BootMode>,
}

/// A file with a disk, or with several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportContainer {
    /// Description.
    pub description: Option<String>,
    /// Its format, where it was said.
    pub format: Option<ImportFormat>,
    /// Where it is.
    pub url: String,
    /// The device that its disk is to be.
    pub device_name: Option<String>,
}

/// A disk that is imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportDisk {
    /// Its container's place among those of the task.
    pub container: usize,
    /// Its format.
    pub format: ImportFormat,
    /// The size of its file in bytes.
    pub file_size: u64,
    /// The size of the disk in bytes.
    pub virtual_size: u64,
    /// The device that it is; none for a snapshot.
    pub device_name: Option<String>,
    /// The snapshot that it becomes, which has a record when the task is complete.
    pub snapshot_id: String,
    /// How the snapshot is encrypted, if it is.
    pub encryption: Option<Encryption>,
    /// How much of it has been converted, in percent.
    pub progress: u8,
}

resource!(ImportTask, "ec2.import-task");

impl ImportTask {
    /// Whether files of its disks may exist that no other record knows.
    #[must_use]
    pub fn holds_disks(&self) -> bool {
        matches!(self.state, ImportState::Active | ImportState::Deleting)
    }
}

wire_enum! {
    /// The `Status` of an import task.
    ImportState {
        /// Under way.
        Active = "active",
        /// Done.
        Completed = "completed",
        /// Failed or cancelled; what it had made is being removed.
        Deleting = "deleting",
        /// Failed or cancelled; nothing is left of it.
        Deleted = "deleted",
    }
}

wire_enum! {
    /// The format of a file that is imported.
    ImportFormat {
        /// The disk, byte for byte.
        Raw = "RAW",
        /// Of Virtual PC, Azure and older versions of Hyper-V.
        Vhd = "VHD",
        /// Of Hyper-V.
        Vhdx = "VHDX",
        /// Of VMware.
        Vmdk = "VMDK",
        /// A tar archive of an OVF description and its disks.
        Ova = "OVA",
    }
}
