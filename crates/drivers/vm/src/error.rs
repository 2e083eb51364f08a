//! What can go wrong with a machine.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An error of the machine driver. Its text is fit for an instance's state reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine asked for cannot be.
    #[error("invalid machine {id:?}: {reason}")]
    InvalidSpec {
        /// Its id.
        id: String,
        /// Which field, and why.
        reason: String,
    },
    /// QEMU is not installed where the configuration says.
    #[error("QEMU not found at {}: install the package qemu-system-x86", .0.display())]
    QemuMissing(PathBuf),
    /// QEMU ended before the guest ran.
    #[error("QEMU could not start the machine ({status}): {stderr}")]
    Qemu {
        /// How the process ended.
        status: String,
        /// What it wrote to its standard error, from the end, at most 4 KiB.
        stderr: String,
    },
    /// A machine of this id runs already, started from another [`Spec`](crate::Spec).
    #[error("{id} already runs as process {pid} with another specification")]
    Conflict {
        /// Its id.
        id: String,
        /// Its process.
        pid: u32,
    },
    /// Another task or daemon is starting or removing this machine.
    #[error("{id} is being started or removed by another process")]
    Busy {
        /// Its id.
        id: String,
    },
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The QMP command.
        command: String,
        /// QEMU's words.
        desc: String,
    },
    /// QEMU did not answer in time.
    #[error("QEMU did not answer {command} within {timeout:?}")]
    Timeout {
        /// The QMP command or the phase.
        command: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The machine's process has ended.
    #[error("the machine's process has ended")]
    Gone,
    /// An operation on the host failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, with the path.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    pub(crate) fn at(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        Error::io(format!("cannot {verb} {}", path.display()))
    }
}
