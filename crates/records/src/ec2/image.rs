//! Amazon machine images.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::wire_enum;
use crate::{Tags, resource};

/// A machine image (`Image` in the API reference).
///
/// The images of the host's library live in [`crate::GLOBAL_ACCOUNT`] and [`crate::GLOBAL_REGION`]: every account can launch them in every
/// region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Account under which the record is kept.
    pub account: String,
    /// Region under which the record is kept.
    pub region: String,
    /// `ami-…`
    pub id: String,
    /// The account shown as owner.
    pub owner: String,
    /// Name.
    pub name: String,
    /// Description.
    pub description: Option<String>,
    /// `x86_64`
    pub architecture: String,
    /// State.
    pub state: ImageState,
    /// Time of registration.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub creation_date: OffsetDateTime,
    /// Root device name, as `/dev/xvda`.
    pub root_device_name: String,
    /// Size of the root volume in GiB, rounded up.
    pub root_size_gib: u32,
    /// How it boots.
    pub boot: ImageBoot,
    /// The user that has the key pair's key.
    pub default_user: String,
    /// Tags.
    pub tags: Tags,
}

resource!(Image, "ec2.image");

wire_enum! {
    /// `ImageState`.
    ImageState {
        /// Can be launched.
        Available = "available",
        /// Removed from the library while instances of it exist.
        Deregistered = "deregistered",
    }
}

wire_enum! {
    /// `BootModeValues`.
    BootMode {
        /// BIOS.
        LegacyBios = "legacy-bios",
        /// UEFI.
        Uefi = "uefi",
        /// Either; UEFI where the host has it.
        UefiPreferred = "uefi-preferred",
    }
}

/// How an image boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageBoot {
    /// The hypervisor loads the image's kernel and initial RAM disk.
    Kernel,
    /// From its root disk, through firmware.
    Firmware(BootMode),
}
