//! The serial console: its log, and sessions with it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::process::RunDir;

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

/// The right to talk to a machine's serial console: one at a time, as a serial line has two ends.
#[derive(Debug)]
pub struct Session {
    /// Carries what is typed to the guest, and back what it prints.
    pub stream: UnixStream,
    _lock: File,
}

/// Why a session cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// There is no machine, or it has just ended.
    #[error("it does not run")]
    NotRunning,
    /// Another process has it.
    #[error("process {0} is attached to it")]
    Taken(String),
    /// An operation on the host failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Begins a session with the serial console of the machine of this id. It needs no daemon, and goes on while one is started anew.
///
/// # Errors
/// [`SessionError`].
pub fn attach(run_dir: &Path, id: &str) -> Result<Session, SessionError> {
    let dir = RunDir::new(run_dir, id);
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => SessionError::NotRunning,
        _ => SessionError::Io(error),
    };
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
    let mut lock = options.open(dir.console_lock()).map_err(gone)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            lock.read_to_string(&mut holder)?;
            return Err(SessionError::Taken(holder.trim().to_owned()));
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    let stream = dir.connect_console().map_err(gone)?;
    lock.set_len(0)?;
    write!(lock, "{}", std::process::id())?;
    Ok(Session { stream, _lock: lock })
}

#[cfg(test)]
mod tests {
    use super::*;

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
