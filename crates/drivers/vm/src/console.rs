//! The serial console's log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

/// How much of a log is always kept, in bytes. EC2 keeps 64 KiB.
pub const KEPT: u64 = 1 << 20;

/// How much room a log may take on the disk before its beginning is released, in bytes.
const ALLOWED: u64 = 4 << 20;

/// The last `max` bytes of a console's log, at most [`KEPT`]; empty if there is none yet.
///
/// # Errors
/// Those of opening and reading the file.
pub fn tail(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let wanted = length.min(max).min(KEPT);
    file.seek(SeekFrom::Start(length - wanted))?;
    let mut bytes = Vec::new();
    // The log grows meanwhile; what was its end is what is wanted.
    file.take(wanted).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Gives the disk blocks of all but the last [`KEPT`] bytes of a log back to the file system, once it takes more
/// than 4 MiB, so that a guest cannot fill the host by printing. Nothing is lost to a race with QEMU, which appends:
/// the file keeps its length and has a hole at its beginning.
pub(crate) fn release_beginning(path: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if metadata.blocks() * 512 <= ALLOWED || metadata.len() <= KEPT {
        return Ok(());
    }
    let length = i64::try_from(metadata.len() - KEPT).unwrap_or(i64::MAX);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(&file, punch, 0, length)?)
}
