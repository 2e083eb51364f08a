//! Errors.

/// What keeps the node from making the machine match a record.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The records could not be read or written.
    #[error(transparent)]
    Store(#[from] haar_store::StoreError),
    /// The machine driver.
    #[error(transparent)]
    Vm(#[from] haar_vm::Error),
    /// The network driver.
    #[error(transparent)]
    Net(#[from] haar_net::Error),
    /// The image library.
    #[error(transparent)]
    Image(#[from] haar_image::Error),
    /// The volume driver.
    #[error(transparent)]
    Volume(#[from] haar_volume::Error),
    /// A server of the guests' link.
    #[error(transparent)]
    Guest(#[from] haar_guest::ServeError),
    /// The operating system refused.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A snapshot could not be taken, and nothing of it is left.
    #[error("{0}")]
    NotTaken(Box<Error>),
    /// The key of an encrypted volume or snapshot is sealed with another key than this installation's, or is spoilt.
    #[error("the key of {0} cannot be opened")]
    Sealed(String),
    /// The disk of a volume was found to be damaged, and nobody has asked to use it all the same.
    #[error("the disk of {0} is damaged: its input and output are disabled")]
    Damaged(String),
    /// What was asked cannot be done, and nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// Another daemon does not answer.
    #[error("no answer from the daemon at {address}: {reason}")]
    Unreachable {
        /// Host and port of its endpoint.
        address: String,
        /// What happened.
        reason: String,
    },
    /// A record that another one names is not there, or says what cannot be.
    #[error("{0}")]
    Inconsistent(String),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
