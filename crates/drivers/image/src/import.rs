//! Importing a disk image from a file.

use std::path::Path;

use crate::error::{Error, Result};
use crate::library::{Image, Library};
use crate::manifest::BootMode;
use crate::progress::Progress;

/// What to make of an imported file.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The image's name; by default the file's name without its extension.
    pub name: Option<String>,
    /// What the image is, in a sentence.
    pub description: String,
    /// The account that logs in by SSH; by default `root`.
    pub default_user: Option<String>,
    /// The firmware that it boots with; by default what its partition table suggests.
    pub boot_mode: Option<BootMode>,
    /// The name of the root device; by default `/dev/xvda`.
    pub root_device_name: Option<String>,
}

impl Library {
    /// Takes a disk image in qcow2, raw or VMDK format into the library. The format is found by looking at the content, and
    /// the file is left as it is.
    pub fn import(&self, file: &Path, options: &ImportOptions, progress: &mut dyn Progress) -> Result<Image> {
        let _ = (options, progress);
        Err(Error::Rejected { path: file.into(), reason: "importing is being written".into() })
    }
}
