//! Space that is kept for the records when guests have filled the disk.
//!
//! Records and disks share a file system. When it is full, guests stand still, and to say so a record must be written: the reserve
//! is given up for that, and made again before guests go on.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use crate::Error;

/// Size of the reserve: some hundred records and their write-ahead log.
const SIZE: i64 = 2 << 20;

/// Free bytes from which guests that stand still go on.
const ENOUGH: u64 = 16 << 20;

pub(crate) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// The reserve of a state folder, made if there is space for it.
    pub(crate) fn new(state_dir: &Path) -> Result<Self, Error> {
        let reserve = Self { path: state_dir.join("reserve") };
        reserve.make()?;
        Ok(reserve)
    }

    /// Takes back the reserve if there is again enough space for guests to go on; else gives it up.
    pub(crate) fn has_space(&self) -> Result<bool, Error> {
        let dir = self.path.parent().unwrap_or(&self.path);
        let free = statvfs(dir).map_err(|e| Error::io(format!("examine {}", dir.display()))(e.into()))?;
        if free.blocks_available() * free.fragment_size() >= ENOUGH {
            self.make()?;
            return Ok(true);
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", self.path.display()))(error))
            }
            _ => Ok(false),
        }
    }

    fn make(&self) -> Result<(), Error> {
        let failed = || Error::io(format!("reserve space in {}", self.path.display()));
        let options = File::options().write(true).create(true).truncate(false).open(&self.path);
        let file = match options {
            // As good as full: there is nothing to reserve.
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            file => file.map_err(failed())?,
        };
        match fallocate(&file, FallocateFlags::empty(), 0, SIZE) {
            // File systems without allocation in advance have no reserve.
            Ok(()) | Err(nix::errno::Errno::ENOSPC | nix::errno::Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(failed()(errno.into())),
        }
    }
}
