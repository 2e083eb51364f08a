//! Giving a disk away as a file that stands alone.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};
use crate::tool::{self, Stream};

/// The format of a file that an image is exported to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The disk, byte for byte; holes take no room.
    Raw,
    /// VMware's, as one growing file.
    Vmdk,
}

impl ExportFormat {
    /// QEMU's name of it.
    fn as_str(self) -> &'static str {
        match self {
            ExportFormat::Qcow2 => "qcow2",
            ExportFormat::Raw => "raw",
            ExportFormat::Vmdk => "vmdk",
        }
    }
}

/// Writes a disk, a qcow2 file with all that is below it, to a new file. The disk must not change meanwhile; that its file is removed
/// does no harm.
///
/// The file appears whole or not at all: it is written under a hidden name beside its own, flushed, and renamed. What an export that was
/// cut off has left under that name, the next one to the same file writes over.
///
/// # Errors
/// [`Error::NoSpace`] before anything is written if the disk cannot fit, [`Error::Exists`] if there is such a file, and the others.
pub fn export(disk: &Path, target: &Path, format: ExportFormat, progress: &mut dyn Progress) -> Result<()> {
    if fs::symlink_metadata(target).is_ok() {
        return Err(Error::Exists { path: target.into() });
    }
    let part = part(target)?;
    let folder = part.parent().unwrap_or(Path::new("/"));
    let needed = needed(disk, format)?;
    let room = statvfs(folder).map_err(|error| Error::io("examine", folder)(error.into()))?;
    if room.blocks_available() * room.fragment_size() < needed {
        return Err(Error::NoSpace { path: folder.into() });
    }
    let _claim = claim(&part)?;
    let written = write(disk, &part, target, format, progress);
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

fn write(
    disk: &Path,
    part: &Path,
    target: &Path,
    format: ExportFormat,
    progress: &mut dyn Progress,
) -> Result<()> {
    progress.stage("export", Unit::Percent, None);
    let mut command = tool::command("qemu-img");
    // Other machines have the same layers open.
    command.args(["convert", "-p", "-U", "-f", "qcow2", "-O", format.as_str()]).arg(disk).arg(part);
    tool::run_lines(&mut command, "qemu-utils", Stream::Output, |line| {
        let percent = line.trim().strip_prefix('(').and_then(|line| line.split('/').next());
        if let Some(percent) = percent.and_then(|percent| percent.parse::<f64>().ok()) {
            progress.advance(percent as u64);
        }
    })?;
    File::open(part).and_then(|file| file.sync_all()).map_err(Error::io("flush", part))?;
    // Unlike a rename, this takes no other file's place.
    fs::hard_link(part, target).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists { path: target.into() },
        _ => Error::io("create", target)(error),
    })?;
    fs::remove_file(part).map_err(Error::io("remove", part))?;
    let folder = part.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("flush", folder))
}

/// Makes the file that is written to, in place of one that an export has left that was cut off.
fn claim(part: &Path) -> Result<File> {
    let lock = |file: &File| {
        let locked = file.try_lock();
        locked.map_err(|_| Error::io("write", part)(io::Error::other("another export writes to it")))
    };
    if let Ok(left) = File::open(part) {
        lock(&left)?;
        // Its qemu-img may still run: what it writes is nobody's.
        fs::remove_file(part).map_err(Error::io("remove", part))?;
    }
    let file = File::options().create_new(true).write(true).mode(0o644).open(part);
    let file = file.map_err(Error::io("create", part))?;
    lock(&file)?;
    Ok(file)
}

/// The hidden name under which a file is written.
fn part(target: &Path) -> Result<PathBuf> {
    let nameless = || io::Error::new(io::ErrorKind::InvalidInput, "it has no name");
    let name = target.file_name().ok_or_else(nameless).map_err(Error::io("create", target))?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = fs::canonicalize(folder).map_err(Error::io("find", folder))?;
    let mut part = OsString::from(".");
    part.push(name);
    part.push(".part");
    Ok(folder.join(part))
}

/// How many bytes the file will take.
fn needed(disk: &Path, format: ExportFormat) -> Result<u64> {
    #[derive(serde::Deserialize)]
    struct Measure {
        required: u64,
    }
    // qemu-img cannot measure VMDK, which takes about as much as qcow2.
    let format = if format == ExportFormat::Raw { "raw" } else { "qcow2" };
    let mut command = tool::command("qemu-img");
    command.args(["measure", "-U", "--output=json", "-f", "qcow2", "-O", format]).arg(disk);
    let answer = tool::run(&mut command, "qemu-utils")?;
    let unreadable =
        |error: serde_json::Error| Error::Rejected { path: disk.into(), reason: error.to_string() };
    Ok(serde_json::from_slice::<Measure>(&answer).map_err(unreadable)?.required)
}
