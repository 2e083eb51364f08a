//! Records of Amazon EC2, named and shaped after the types of its API reference.

mod encryption;
mod image;
mod import;
mod instance;
mod instance_types;
mod key_pair;
pub mod launch_template;
mod migration;
mod network;
mod placement_group;
pub mod public_parameters;
mod security_group;
mod snapshot;
mod volume;
mod zones;

pub use encryption::{EbsDefaults, EbsKey, Encryption};
pub use image::{
    BootMode, DeregistrationProtection, Image, ImageBoot, ImageDevice, ImageState, LaunchPermission,
};
pub use import::{ImportContainer, ImportDisk, ImportFormat, ImportState, ImportTask, ImportedImage};
pub use instance::{
    BlockDevice, CpuOptions, Instance, InstanceGoal, InstanceProfileAssociation, InstanceSpec, InstanceState,
    InstanceStatus, MetadataOptions, Placement, ShutdownBehavior, StateReason, StatusCheck,
};
pub use instance_types::{EbsLimit, EbsPerformance, Hypervisor, InstanceType, instance_type, instance_types};
pub use key_pair::{KeyPair, KeyType};
pub use launch_template::{LaunchTemplate, LaunchTemplateData, LaunchTemplateVersion};
pub use migration::{Bundle, Migration, MigrationPhase, Receiver};
pub use network::{
    Attachment, AttachmentStatus, Claim, ClaimScope, InternetGateway, NetworkInterface, PublicAddress, Route,
    RouteTable, RouteTableAssociation, RouteTarget, Subnet, Vpc,
};
pub use placement_group::{CapacityTicket, PlacementGroup, PlacementStrategy};
pub use security_group::{RuleTarget, SecurityGroup, SecurityGroupRule};
pub use snapshot::{EbsSnapshot, SnapshotOrigin, SnapshotSource, SnapshotState, SnapshotUpload};
pub use volume::{
    ModificationState, Volume, VolumeAttachment, VolumeModification, VolumeShape, VolumeState, VolumeType,
};
pub use zones::{REGIONS, Region, Zone, zone_id, zones};

/// Adds the record types of EC2 to a store.
#[must_use]
pub fn register(builder: haar_store::Builder) -> haar_store::Builder {
    builder
        .register::<CapacityTicket>()
        .register::<Claim>()
        .register::<EbsDefaults>()
        .register::<EbsSnapshot>()
        .register::<Image>()
        .register::<ImportTask>()
        .register::<Instance>()
        .register::<InternetGateway>()
        .register::<KeyPair>()
        .register::<LaunchTemplate>()
        .register::<LaunchTemplateVersion>()
        .register::<Migration>()
        .register::<NetworkInterface>()
        .register::<PlacementGroup>()
        .register::<RouteTable>()
        .register::<SecurityGroup>()
        .register::<Subnet>()
        .register::<Volume>()
        .register::<Vpc>()
}

/// Implements `as_str`, `Display` and `FromStr` for an enum whose variants have wire names.
macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $wire:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$vmeta])* #[serde(rename = $wire)] $variant),+
        }

        impl $name {
            /// The name on the wire, as the API reference writes it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $wire),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = ();
            fn from_str(name: &str) -> Result<Self, ()> {
                match name {
                    $($wire => Ok(Self::$variant),)+
                    _ => Err(()),
                }
            }
        }
    };
}
pub(crate) use wire_enum;
