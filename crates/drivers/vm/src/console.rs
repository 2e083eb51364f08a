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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_flooded_log_gives_room_back_and_keeps_its_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = OpenOptions::new().append(true).open(file.path()).unwrap();
        let line = |number: u64| format!("{number:015}\n");
        let lines = (6 << 20) / 16;
        for number in 0..lines {
            log.write_all(line(number).as_bytes()).unwrap();
        }
        // Allocation is what counts.
        log.sync_all().unwrap();
        release_beginning(file.path()).unwrap();
        let metadata = file.as_file().metadata().unwrap();
        assert_eq!(metadata.len(), 6 << 20);
        assert!(metadata.blocks() * 512 <= KEPT + (64 << 10), "{} bytes stay", metadata.blocks() * 512);
        // QEMU goes on where it was.
        log.write_all(b"end").unwrap();
        assert_eq!(tail(file.path(), 19).unwrap(), format!("{}end", line(lines - 1)).as_bytes());
        let kept = tail(file.path(), u64::MAX).unwrap();
        assert_eq!(kept.len() as u64, KEPT);
        assert!(!kept.contains(&0));
    }

    #[test]
    fn a_small_log_is_left_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "x".repeat(2 << 20)).unwrap();
        release_beginning(file.path()).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), "x".repeat(2 << 20).as_bytes());
    }

    #[test]
    fn no_log_is_an_empty_one() {
        let missing = Path::new("/nonexistent/console.log");
        assert_eq!(tail(missing, 10).unwrap(), b"");
        release_beginning(missing).unwrap();
        assert!(tail(Path::new("/"), 10).is_err());
    }
}
