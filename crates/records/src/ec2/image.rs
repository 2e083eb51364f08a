//! Amazon machine images.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{StateReason, VolumeType, wire_enum};
use crate::{GLOBAL_ACCOUNT, Tags, resource};

/// A machine image (`Image` in the API reference).
///
/// The images of the host's library live in [`crate::GLOBAL_ACCOUNT`] and [`crate::GLOBAL_REGION`]: every account can launch them in every
/// region. The others live in the account that made them, and stand on its snapshots.
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
    /// Why it failed.
    #[serde(default)]
    pub state_reason: Option<StateReason>,
    /// The volumes of its instances; none for an image of the library, whose only disk is its own.
    #[serde(default)]
    pub devices: Vec<ImageDevice>,
    /// The image of the library that its root disk descends from, whose kernel boots it if it does not boot through firmware.
    #[serde(default)]
    pub library_id: Option<String>,
    /// The recipe or the entry of the catalogue that an image of the library was made by.
    #[serde(default)]
    pub library_entry: Option<String>,
    /// The instance that it was made of.
    #[serde(default)]
    pub source_instance_id: Option<String>,
    /// Who may launch it besides its owner.
    #[serde(default)]
    pub launch_permission: LaunchPermission,
    /// When an instance was last launched from it, to the hour.
    #[serde(default, with = "time::serde::timestamp::nanoseconds::option")]
    pub last_launched: Option<OffsetDateTime>,
    /// The image and the region that it was copied from.
    #[serde(default)]
    pub copied_from: Option<(String, String)>,
    /// From when on it is deprecated.
    #[serde(default, with = "time::serde::timestamp::nanoseconds::option")]
    pub deprecate_at: Option<OffsetDateTime>,
    /// Its instances have IMDSv1 switched off unless their launch says otherwise.
    #[serde(default)]
    pub imds_v2: bool,
    /// Whether it can be deregistered.
    #[serde(default)]
    pub protection: DeregistrationProtection,
}

resource!(Image, "ec2.image",
    "snapshot" => |i| i.devices.iter().filter_map(|device| device.snapshot_id.clone()).collect::<Vec<_>>(),
);

impl Image {
    /// One that an account registers now and that can be launched: its root device has this name and so many GiB. Its maker says the
    /// rest.
    #[must_use]
    pub fn new(
        account: &str,
        region: &str,
        id: String,
        root: (&str, u32),
        boot: ImageBoot,
        now: OffsetDateTime,
    ) -> Self {
        Self {
            account: account.to_owned(),
            region: region.to_owned(),
            id,
            owner: account.to_owned(),
            name: String::new(),
            description: None,
            architecture: "x86_64".to_owned(),
            state: ImageState::Available,
            creation_date: now,
            root_device_name: root.0.to_owned(),
            root_size_gib: root.1,
            boot,
            default_user: "root".to_owned(),
            tags: Tags::new(),
            state_reason: None,
            devices: Vec::new(),
            library_id: None,
            library_entry: None,
            source_instance_id: None,
            launch_permission: LaunchPermission::default(),
            last_launched: None,
            copied_from: None,
            deprecate_at: None,
            imds_v2: false,
            protection: DeregistrationProtection::Disabled,
        }
    }

    /// Whether it is one of the host's library.
    #[must_use]
    pub fn is_of_library(&self) -> bool {
        self.account == GLOBAL_ACCOUNT
    }

    /// Whether everyone may launch it.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.is_of_library() || self.launch_permission.all
    }

    /// Whether an account may launch it.
    #[must_use]
    pub fn is_shared_with(&self, account: &str) -> bool {
        self.account == account || self.is_public() || self.launch_permission.accounts.contains(account)
    }
}

/// A device of an image's instances (`BlockDeviceMapping` in the API reference).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDevice {
    /// As `/dev/xvda`.
    pub device_name: String,
    /// The snapshot that the volume is made from; an empty one if there is none.
    pub snapshot_id: Option<String>,
    /// Size in GiB.
    pub size_gib: u32,
    /// Type.
    pub volume_type: VolumeType,
    /// IOPS, where they are provisioned.
    pub iops: Option<u32>,
    /// MiB/s, gp3 only.
    pub throughput: Option<u32>,
    /// Goes with the instance.
    pub delete_on_termination: bool,
    /// Its snapshot is encrypted.
    #[serde(default)]
    pub encrypted: bool,
}

/// Who may launch an image besides its owner (`LaunchPermission`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchPermission {
    /// Everyone: the image is public.
    pub all: bool,
    /// Accounts.
    pub accounts: BTreeSet<String>,
}

/// Whether an image can be deregistered (`DeregistrationProtection`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeregistrationProtection {
    /// It can.
    #[default]
    Disabled,
    /// It cannot.
    Enabled {
        /// It cannot be for a day after the protection has been lifted.
        cooldown: bool,
    },
    /// The protection was lifted, and goes on until then.
    Until(#[serde(with = "time::serde::timestamp::nanoseconds")] OffsetDateTime),
}

wire_enum! {
    /// `ImageState`.
    ImageState {
        /// Its snapshots are being taken.
        Pending = "pending",
        /// Can be launched.
        Available = "available",
        /// Its snapshots could not be taken.
        Failed = "failed",
        /// Its owner does not want it launched.
        Disabled = "disabled",
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
