//! The description that every image carries beside its disk.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The version of the manifest's own format, written to every manifest and required on reading.
pub(crate) const FORMAT: u32 = 1;

/// The ImageOwnerAlias of images that no account made.
pub(crate) const OWNER_ALIAS: &str = "haar";

/// The identifier of an image, as EC2 writes it: `ami-` and 17 (long ago 8) hexadecimal digits in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

impl ImageId {
    /// A new identifier, from the operating system's random number generator.
    pub fn generate() -> ImageId {
        let number: u128 = rand::random();
        ImageId(format!("ami-0{:016x}", number as u64))
    }

    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<ImageId, Error> {
        let digits = text.strip_prefix("ami-").unwrap_or_default();
        let hexadecimal = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hexadecimal && matches!(digits.len(), 8 | 17) {
            Ok(ImageId(text.to_owned()))
        } else {
            Err(Error::InvalidImageId(text.chars().take(64).collect()))
        }
    }
}

impl TryFrom<String> for ImageId {
    type Error = Error;

    fn try_from(text: String) -> Result<ImageId, Error> {
        text.parse()
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> String {
        id.0
    }
}

/// Everything about an image that is not its content. Stored as `manifest.json` in the image's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this format.
    pub format: u32,
    /// The image's identifier.
    pub image_id: ImageId,
    /// Its name, unique in a library.
    pub name: String,
    /// What it is, in a sentence; may be empty.
    pub description: String,
    /// Instruction set: `x86_64`.
    pub architecture: Architecture,
    /// When it was made: RFC 3339 in UTC with milliseconds, as EC2 writes dates (`2025-01-31T12:00:00.000Z`).
    pub creation_date: String,
    /// Where it came from.
    pub source: Source,
    /// EC2's ImageOwnerAlias for images that were not made by an account: `haar` for what this program's recipes and
    /// catalogue give. Absent for an imported file, which belongs to the account that imported it.
    pub image_owner_alias: Option<String>,
    /// EC2's PlatformDetails: `Linux/UNIX`.
    pub platform_details: String,
    /// The account that logs in by SSH with the instance's key.
    pub default_user: String,
    /// The name of the root device in block device mappings: `/dev/xvda` or `/dev/sda1`.
    pub root_device_name: String,
    /// The disk that an instance's root volume starts as.
    pub root_disk: RootDisk,
    /// How a virtual machine starts from it.
    pub boot: Boot,
}

/// The instruction set of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
}

impl Architecture {
    /// EC2's name of the architecture.
    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86_64",
        }
    }
}

/// Where an image came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// Built on this machine from packages.
    Build {
        /// The recipe's name.
        recipe: String,
        /// The packages that went in, as `name=version`.
        packages: Vec<String>,
    },
    /// Fetched from its publisher.
    Pull {
        /// The catalogue entry's name.
        entry: String,
        /// The address it was fetched from.
        url: String,
        /// The checksum that was verified: algorithm, colon, hexadecimal digest of the published file.
        checksum: String,
    },
    /// Imported from a file.
    Import {
        /// The file's name without its folder.
        file: String,
    },
}

/// The disk that an instance's root volume starts as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootDisk {
    /// The disk's file.
    pub file: ContentFile,
    /// The format of the file.
    pub format: DiskFormat,
    /// The size of the disk that a guest sees, in bytes.
    pub virtual_size: u64,
    /// The least size of a root volume made from it, in bytes: its virtual size, rounded up to a whole GiB.
    pub minimum_size: u64,
}

/// The format of a disk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// QEMU's copy-on-write format, version 3.
    Qcow2,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContentFile {
    /// Its name in the image's folder.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
    /// The SHA-256 digest of its content, in hexadecimal.
    pub sha256: String,
}

/// How a virtual machine starts from an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Boot {
    /// The hypervisor loads a kernel that lies beside the disk (what EC2 calls kernel and ramdisk images).
    Direct {
        /// The kernel: a bzImage, or an ELF image with a PVH entry point.
        kernel: ContentFile,
        /// The initial RAM disk.
        initrd: Option<ContentFile>,
        /// The kernel's command line.
        command_line: String,
    },
    /// The machine's firmware starts a boot loader from the disk.
    Firmware {
        /// The kinds of firmware that the disk can be started by.
        mode: BootMode,
    },
}

/// The firmware that a disk boots with: the values of EC2's BootMode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootMode {
    /// A PC BIOS.
    LegacyBios,
    /// UEFI.
    Uefi,
    /// Either; UEFI where there is a choice.
    UefiPreferred,
}

impl BootMode {
    /// EC2's name of the mode.
    pub fn as_str(self) -> &'static str {
        match self {
            BootMode::LegacyBios => "legacy-bios",
            BootMode::Uefi => "uefi",
            BootMode::UefiPreferred => "uefi-preferred",
        }
    }
}

impl Manifest {
    /// The files of the image, the root disk first.
    pub fn files(&self) -> impl Iterator<Item = &ContentFile> {
        let (kernel, initrd) = match &self.boot {
            Boot::Direct { kernel, initrd, .. } => (Some(kernel), initrd.as_ref()),
            Boot::Firmware { .. } => (None, None),
        };
        std::iter::once(&self.root_disk.file).chain(kernel).chain(initrd)
    }

    /// The least size of a root volume made from the image, in GiB, as block device mappings count.
    pub fn minimum_size_gib(&self) -> u64 {
        self.root_disk.minimum_size.div_ceil(1 << 30)
    }
}

/// Whether a text can name an image: the constraint of the Name parameter of EC2's RegisterImage.
pub fn is_valid_name(name: &str) -> bool {
    (3..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b" ()[]./-'@_".contains(&b))
}
