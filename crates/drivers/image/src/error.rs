//! What can go wrong with a machine image.

use std::io;
use std::path::{Path, PathBuf};

use crate::manifest::ImageId;

/// The result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a machine image. Each message is a whole sentence for a user to read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write`, `rename`.
        action: &'static str,
        /// The file it was tried on.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The library has no such image.
    #[error("there is no image {0}")]
    NotFound(ImageId),
    /// The text is not an image id: `ami-` followed by 8 or 17 hexadecimal digits.
    #[error("{0:?} is not an image id (ami- and 17 hexadecimal digits)")]
    InvalidImageId(String),
    /// The text cannot name an image (see the Name parameter of EC2's RegisterImage).
    #[error("{0:?} cannot name an image: 3 to 128 letters, digits, spaces or ()[]./-'@_")]
    InvalidName(String),
    /// Another image already has the name.
    #[error("an image named {name:?} exists already ({image_id}); remove it or choose another name")]
    NameTaken {
        /// The name that was asked for.
        name: String,
        /// The image that has it.
        image_id: ImageId,
    },
    /// The manifest of an image cannot be understood.
    #[error("the manifest {} is damaged: {reason}", path.display())]
    Manifest {
        /// The manifest file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of an image is not what its manifest says.
    #[error("the image {image_id} is corrupt: {} {reason}", path.display())]
    Corrupt {
        /// The image.
        image_id: ImageId,
        /// Its bad file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program that does part of the work is not installed.
    #[error("{program} is not installed (Debian package {package})")]
    ToolMissing {
        /// The program.
        program: String,
        /// The Debian package that carries it.
        package: &'static str,
    },
    /// A program that does part of the work failed.
    #[error("{command} failed ({status}): {output}")]
    Tool {
        /// The program and its first arguments.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines that it wrote to its standard error.
        output: String,
    },
    /// A file is not a disk image that can be taken.
    #[error("{} cannot be imported: {reason}", path.display())]
    Rejected {
        /// The file.
        path: PathBuf,
        /// Why it is refused.
        reason: String,
    },
    /// There is not enough room for the image.
    #[error("no space left for the image in {}", path.display())]
    NoSpace {
        /// The file or folder that could not grow.
        path: PathBuf,
    },
    /// The file that was to be written is there already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// No recipe has the name.
    #[error("there is no recipe {name:?}; there are: {known}")]
    UnknownRecipe {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// Building makes files that belong to root.
    #[error("building an image needs root")]
    NeedsRoot,
    /// The machine's package sources do not lead to what a recipe needs.
    #[error("cannot build from the packages of this machine: {0}")]
    Packages(String),
    /// The catalogue has no such entry.
    #[error("the catalogue has no image {name:?}; it has: {known}")]
    UnknownEntry {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A catalogue file cannot be understood.
    #[error("the catalogue {origin} is not valid: {reason}")]
    Catalogue {
        /// The file, or `built-in`.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A server answered with an error.
    #[error("{url} answered with status {status}")]
    HttpStatus {
        /// The address.
        url: String,
        /// The HTTP status code.
        status: u16,
    },
    /// It was given up because the caller wanted so.
    #[error("cancelled")]
    Cancelled,
    /// A transfer failed, also when tried again.
    #[error("cannot fetch {url}: {reason}")]
    Transfer {
        /// The address.
        url: String,
        /// The last failure.
        reason: String,
    },
    /// What was fetched is not what its publisher says it published.
    #[error(
        "{url} does not have the published checksum: expected {expected}, found {actual}; it was discarded"
    )]
    Checksum {
        /// The address.
        url: String,
        /// Algorithm and digest as published, in hexadecimal.
        expected: String,
        /// Algorithm and digest of what came, in hexadecimal.
        actual: String,
    },
    /// A publisher's checksum file says nothing about the image, or is not one.
    #[error("{url} has no checksum for {file}")]
    NoChecksum {
        /// The address of the checksum file.
        url: String,
        /// The file that it should list.
        file: String,
    },
}

impl Error {
    /// Wraps the failure of a file operation; a full disk becomes [`Error::NoSpace`].
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        move |source| {
            let path = path.as_ref().to_path_buf();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { path },
                _ => Error::Io { action, path, source },
            }
        }
    }
}
