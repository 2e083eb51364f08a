//! Machine images: building, importing and pulling.
//!
//! A [`Library`] is a folder of images. Each [`Image`] has a [`Manifest`], a root disk in qcow2 format that instances'
//! disks are copy-on-write overlays of, and, where it boots directly, a kernel and an initial RAM disk. There are three ways
//! to get one:
//!
//! - [`Library::build`] makes one from Debian packages by a [`Recipe`]; it needs no more network than a package mirror.
//! - [`Library::pull`] fetches a distribution's own cloud image that a [`Catalogue`] lists, and verifies its checksum.
//! - [`Library::import`] takes a qcow2, raw or VMDK file.
//!
//! Files that others send are [fetched](fetch) and [inspected](inspect), and what of them may be opened, and how, is told.
//!
//! All of it blocks, and reports through [`Progress`]. Nothing here knows the records of a service: whoever runs instances
//! turns manifests into AMIs.

mod build;
mod error;
mod export;
mod fetch;
mod foreign;
mod import;
mod library;
mod manifest;
mod progress;
mod pull;
mod tool;

pub use build::{BuildOptions, Recipe};
pub use error::{Error, Result};
pub use export::{ExportFormat, export};
pub use fetch::{FetchOptions, Reach, copy, fetch};
pub use foreign::{ForeignDisk, ForeignFormat, inspect};
pub use import::{ImportOptions, SIZE_LIMIT, boot_mode_of};
pub use library::{Image, Library};
pub use manifest::{
    Architecture, Boot, BootMode, ContentFile, DiskFormat, ImageId, Manifest, RootDisk, Source, is_valid_name,
};
pub use progress::{Progress, Unit};
pub use pull::{Catalogue, Compression, Entry, PullOptions};
