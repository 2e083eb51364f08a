//! Disks of machines: copy-on-write overlays on images and snapshots, empty volumes, and snapshots of them.
//!
//! A volume is one qcow2 file, `<dir>/<volume id>.qcow2`, of which only what was written takes room. It appears whole
//! or not at all, and is on stable storage once it is made. Everything is idempotent: making a volume that exists, as
//! asked, and removing one that does not, succeed.
//!
//! A snapshot copies nothing: the volume's file becomes the snapshot's, which never changes again, and the volume goes on in an empty
//! layer over it. So a second snapshot holds what was written since the first. A snapshot that is removed while a volume or another
//! snapshot stands on it keeps its file, marked, until nothing does.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::process::Command;

mod blocks;
mod encryption;
mod import;
mod layers;
mod merge;
mod qcow2;

pub use blocks::{Extent, Session};
pub use encryption::Key;
pub use layers::{Layer, standing_on};
pub use merge::Run;

/// The format of an image that volumes are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The disk, byte for byte.
    Raw,
}

impl Format {
    /// QEMU's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
        }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its file, in qcow2.
    pub path: PathBuf,
    /// The size of the disk that a guest sees, in bytes.
    pub size: u64,
    /// The image that it overlays.
    pub backing: Option<PathBuf>,
    /// How much room it takes on the host, in bytes, without the image.
    pub allocated: u64,
    /// Its file was found to be damaged, and is not written to until it is repaired.
    pub corrupt: bool,
    /// What is written to it is encrypted.
    pub encrypted: bool,
}

/// An error of the volume driver. Its text is fit for a volume's state reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The id is not one.
    #[error("invalid volume id {0:?}")]
    InvalidId(String),
    /// The size is zero, no multiple of 512, or beyond 64 TiB.
    #[error("invalid volume size: {0} bytes")]
    InvalidSize(u64),
    /// The volume is to be smaller than its image.
    #[error("the volume is to have {size} bytes, less than the {image} of its image")]
    SmallerThanImage {
        /// The size asked for, in bytes.
        size: u64,
        /// The size of the image, in bytes.
        image: u64,
    },
    /// The image is missing or is not what it should be.
    #[error("the image {} cannot be used: {reason}", path.display())]
    BadImage {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A volume of this id exists, with another size or on another image.
    #[error("the volume {0} exists with another size or image")]
    Conflict(String),
    /// There is no such volume.
    #[error("there is no volume {0}")]
    NotFound(String),
    /// The host's storage is full.
    #[error("no space left for volumes in {}", .0.display())]
    NoSpace(PathBuf),
    /// The program `qemu-img` is not installed.
    #[error("qemu-img not found: install the package qemu-utils")]
    ToolMissing,
    /// An encrypted volume is to be made or read without its key, or of one that is not.
    #[error("the key of {0} is missing")]
    KeyMissing(String),
    /// `qemu-img` failed.
    #[error("qemu-img failed: {0}")]
    Tool(String),
    /// An operation on the host failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, with the path.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

/// The largest volume that EC2 offers (`io2`), in bytes.
const MAX_SIZE: u64 = 64 << 40;

/// Prefix of a file that is being made.
const TEMPORARY: &str = ".new-";

const SUFFIX: &str = ".qcow2";

/// Makes, lists and removes volumes in one folder.
#[derive(Clone, Debug)]
pub struct Driver {
    dir: PathBuf,
    /// What new volumes are encrypted with, and what encrypted ones are read with.
    key: Option<Key>,
}

impl Driver {
    /// Opens a folder of volumes, and makes it if its parent exists. One driver works in a folder at a time: it
    /// removes what another left half-made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(dir: impl Into<PathBuf>) -> Result<Driver, Error> {
        let dir = dir.into();
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(at("make", &dir)(error)),
            _ => {}
        }
        // QEMU finds the volumes whatever its own folder is.
        let dir = fs::canonicalize(&dir).map_err(at("open", &dir))?;
        let driver = Driver { dir, key: None };
        for name in driver.names()? {
            if name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
                let path = driver.dir.join(name);
                fs::remove_file(&path).map_err(at("remove", &path))?;
            }
        }
        driver.make_open()?;
        driver.forget_templates()?;
        driver.remove_unused_layers()?;
        Ok(driver)
    }

    /// Makes a volume that begins as an image and keeps only what differs from it. It grows the image's disk to
    /// `size` bytes; the image must not change while the volume exists.
    ///
    /// # Errors
    /// [`Error::SmallerThanImage`], [`Error::BadImage`], [`Error::Conflict`], [`Error::NoSpace`], and the others.
    pub async fn create_overlay(
        &self,
        id: &str,
        image: &Path,
        format: Format,
        size: u64,
    ) -> Result<Volume, Error> {
        let bad = |reason: String| Error::BadImage { path: image.to_owned(), reason };
        // QEMU looks for a relative name beside the volume.
        let image = fs::canonicalize(image).map_err(|error| bad(error.to_string()))?;
        let disk_size = disk_size(&image, format).map_err(|error| bad(error.to_string()))?;
        if size < disk_size {
            return Err(Error::SmallerThanImage { size, image: disk_size });
        }
        self.create(id, size, Some((&image, format))).await
    }

    /// Makes a volume that begins as a snapshot and keeps only what differs from it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such snapshot, [`Error::SmallerThanImage`], [`Error::Conflict`], [`Error::NoSpace`], and the
    /// others.
    pub async fn create_from_snapshot(
        &self,
        id: &str,
        snapshot_id: &str,
        size: u64,
    ) -> Result<Volume, Error> {
        let snapshot = self.info(snapshot_id)?.ok_or_else(|| Error::NotFound(snapshot_id.to_owned()))?;
        if size < snapshot.size {
            return Err(Error::SmallerThanImage { size, image: snapshot.size });
        }
        if self.key.is_some() && !snapshot.encrypted {
            // What is written in plain must not stay below.
            return self.create_encrypted_copy(id, &snapshot, size).await;
        }
        if self.key.is_none() && snapshot.encrypted {
            return Err(Error::KeyMissing(snapshot_id.to_owned()));
        }
        self.create(id, size, Some((&snapshot.path, Format::Qcow2))).await
    }

    /// Makes a volume of zeros of `size` bytes.
    ///
    /// # Errors
    /// [`Error::InvalidSize`], [`Error::Conflict`], [`Error::NoSpace`], and the others.
    pub async fn create_empty(&self, id: &str, size: u64) -> Result<Volume, Error> {
        self.create(id, size, None).await
    }

    async fn create(&self, id: &str, size: u64, image: Option<(&Path, Format)>) -> Result<Volume, Error> {
        let path = self.path(id)?;
        if size == 0 || !size.is_multiple_of(512) || size > MAX_SIZE {
            return Err(Error::InvalidSize(size));
        }
        if let Some(volume) = self.info(id)? {
            let same = volume.encrypted == self.key.is_some()
                && volume.size == size
                && volume.backing.as_deref() == image.map(|(path, _)| path);
            return if same { Ok(volume) } else { Err(Error::Conflict(id.to_owned())) };
        }
        let new = self.temporary(id);
        let made = self.make(&new, size, image).await;
        self.publish_made(id, new, path, made).await
    }

    /// Gives a volume that was made its name, if it was; removes what is left if it was not.
    async fn publish_made(
        &self,
        id: &str,
        new: PathBuf,
        path: PathBuf,
        made: Result<(), Error>,
    ) -> Result<Volume, Error> {
        let made = match made {
            Ok(()) => {
                let (driver, new) = (self.clone(), new.clone());
                // Storage may take its time.
                let published = tokio::task::spawn_blocking(move || driver.publish(&new, &path)).await;
                published.unwrap_or_else(|error| Err(at("make", &self.dir)(io::Error::other(error))))
            }
            Err(error) => Err(error),
        };
        // If it stays, it has a name that the next driver removes.
        let _ = fs::remove_file(&new);
        made.map_err(|error| self.told_space(error))?;
        self.info(id)?.ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// Gives a finished file its name, unless another has it: that may be in use already.
    fn publish(&self, new: &Path, path: &Path) -> Result<(), Error> {
        // The file before its name, the name before the answer.
        sync(new)?;
        match fs::hard_link(new, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            result => result.map_err(at("make", path))?,
        }
        sync(&self.dir)
    }

    /// Grows a volume to `size` bytes, unless it has them. No machine may have it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such volume, [`Error::InvalidSize`], [`Error::NoSpace`], and the others.
    pub async fn grow(&self, id: &str, size: u64) -> Result<(), Error> {
        if !size.is_multiple_of(512) || size > MAX_SIZE {
            return Err(Error::InvalidSize(size));
        }
        let volume = self.info(id)?.ok_or_else(|| Error::NotFound(id.to_owned()))?;
        if volume.size >= size {
            return Ok(());
        }
        let mut command = self.command("resize");
        command.arg("-q").arg(self.alone(&volume)?).arg(size.to_string());
        self.run(command).await.map_err(|error| self.told_space(error))?;
        sync(&volume.path)
    }

    /// Repairs a damaged volume as far as that can be done. No machine may have it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such volume; [`Error::Tool`] if it is beyond repair; and the others.
    pub async fn repair(&self, id: &str) -> Result<(), Error> {
        let volume = self.info(id)?.ok_or_else(|| Error::NotFound(id.to_owned()))?;
        if !volume.corrupt {
            return Ok(());
        }
        let mut command = self.command("check");
        command.args(["-q", "-r", "all"]).arg(self.alone(&volume)?);
        self.run(command).await.map_err(|error| self.told_space(error))?;
        sync(&volume.path)
    }

    /// Runs `qemu-img create`.
    async fn make(&self, path: &Path, size: u64, image: Option<(&Path, Format)>) -> Result<(), Error> {
        if let Some(key) = &self.key {
            return self.make_encrypted(key, path, size, image).await;
        }
        let mut command = self.command("create");
        command.args(["-q", "-f", "qcow2"]);
        if let Some((image, format)) = image {
            // The image was looked at; QEMU need not.
            command.args(["-u", "-F", format.as_str(), "-b"]).arg(image);
        }
        command.arg(path).arg(size.to_string());
        self.run(command).await
    }

    /// `qemu-img` with a subcommand, told of the key if there is one.
    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new("qemu-img");
        command.arg(subcommand);
        self.tell_key(&mut command);
        command
    }

    fn tell_key(&self, command: &mut Command) {
        if self.key.is_some() {
            command.args(["--object", encryption::SECRET]);
        }
    }

    /// Runs `qemu-img`.
    async fn run(&self, command: Command) -> Result<(), Error> {
        self.output(command).await.map(drop)
    }

    /// What `qemu-img` prints.
    async fn output(&self, mut command: Command) -> Result<Vec<u8>, Error> {
        // Its errors are told apart by their text.
        command.env("LC_ALL", "C").kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if self.key.is_some() { Stdio::piped() } else { Stdio::null() });
        let failed = |error| at("run", Path::new("qemu-img"))(error);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::ToolMissing,
            _ => failed(error),
        })?;
        if let (Some(key), Some(mut input)) = (&self.key, child.stdin.take()) {
            // If it has ended already, it says why itself.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut input, key.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(Error::Tool(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// The ids of all volumes and snapshots, without those that are removed and stood on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<String>, Error> {
        let id = |name: OsString| {
            let id = name.to_str()?.strip_suffix(SUFFIX)?;
            valid_id(id).then(|| id.to_owned())
        };
        let mut ids: Vec<String> = self.names()?.into_iter().filter_map(id).collect();
        ids.retain(|id| !self.marker(id).exists());
        ids.sort_unstable();
        Ok(ids)
    }

    /// What a volume is; works while a guest uses it.
    ///
    /// # Errors
    /// [`Error::BadImage`] if its file is spoilt, [`Error::InvalidId`], [`Error::Io`].
    pub fn info(&self, id: &str) -> Result<Option<Volume>, Error> {
        let path = self.path(id)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at("open", &path)(error)),
        };
        let allocated = file.metadata().map_err(at("stat", &path))?.blocks() * 512;
        match qcow2::Header::read(&file) {
            Ok(qcow2::Header { size, backing, corrupt, encrypted }) => {
                Ok(Some(Volume { path, size, backing, allocated, corrupt, encrypted }))
            }
            Err(error) => Err(Error::BadImage { path, reason: error.to_string() }),
        }
    }

    /// Where a volume's file is, or would be.
    ///
    /// # Errors
    /// [`Error::InvalidId`] if the id is not 1 to 64 lower-case letters, digits and dashes.
    pub fn path(&self, id: &str) -> Result<PathBuf, Error> {
        if valid_id(id) {
            Ok(self.dir.join(format!("{id}{SUFFIX}")))
        } else {
            Err(Error::InvalidId(id.chars().take(80).collect()))
        }
    }

    /// A name that no other attempt uses.
    fn temporary(&self, id: &str) -> PathBuf {
        static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
        let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{TEMPORARY}{id}-{}-{attempt}", std::process::id()))
    }

    fn names(&self) -> Result<Vec<OsString>, Error> {
        let entries = fs::read_dir(&self.dir).map_err(at("list", &self.dir))?;
        entries.map(|entry| Ok(entry.map_err(at("list", &self.dir))?.file_name())).collect()
    }

    /// Calls a full disk by its name.
    fn told_space(&self, error: Error) -> Error {
        let full = match &error {
            Error::Tool(text) => {
                text.contains("No space left on device") || text.contains("Disk quota exceeded")
            }
            Error::Io { source, .. } => {
                matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            }
            _ => false,
        };
        if full { Error::NoSpace(self.dir.clone()) } else { error }
    }
}

/// `qemu-img` for what takes long: others go first, and it ends with the daemon, however that ends. It takes at most so much memory, in bytes of
/// address space.
fn background(most_memory: Option<u64>) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "10", "ionice", "-c", "2", "-n", "7"]);
    if let Some(bytes) = most_memory {
        command.arg("prlimit").arg(format!("--as={bytes}"));
    }
    command.args(["setpriv", "--pdeathsig", "KILL", "qemu-img"]);
    command
}

/// The size of an image's disk in bytes.
fn disk_size(image: &Path, format: Format) -> io::Result<u64> {
    let file = File::open(image)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    match format {
        Format::Qcow2 => Ok(qcow2::Header::read(&file)?.size),
        // QEMU shows a guest whole sectors.
        Format::Raw => Ok(metadata.len().next_multiple_of(512)),
    }
}

/// Puts a file or folder on stable storage.
fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(at("sync", path))
}

fn valid_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_lowercase())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn at(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = format!("cannot {verb} {}", path.display());
    move |source| Error::Io { what, source }
}
