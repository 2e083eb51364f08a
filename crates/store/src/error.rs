use std::path::PathBuf;

use crate::{Key, Revision};

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A record that was to be created is there already.
    #[error("{0} exists already")]
    Exists(Key),
    /// Others kept changing what the transaction relied on.
    #[error("the transaction was overtaken by others {attempts} times")]
    Contended {
        /// How often it was run.
        attempts: u32,
    },
    /// A kind, account, region or id that cannot be part of a key.
    #[error("not a record key: {0:?}")]
    InvalidKey(String),
    /// A record larger than [`MAX_RECORD_BYTES`](crate::MAX_RECORD_BYTES).
    #[error("{key} has {bytes} bytes, more than a record may have")]
    TooLarge {
        /// Its key.
        key: Key,
        /// Its encoded size.
        bytes: usize,
    },
    /// A record that does not survive being written and read, which is a mistake in its serde implementation.
    #[error("{key} cannot be encoded: {reason}")]
    Encode {
        /// Its key.
        key: Key,
        /// What serde says.
        reason: String,
    },
    /// A stored record that this version cannot read.
    #[error("{key} cannot be read: {reason}")]
    Decode {
        /// Its key, as stored.
        key: String,
        /// What serde says.
        reason: String,
    },
    /// Records of a kind that this version does not know: a newer version wrote them.
    #[error(
        "the state has records of kind {kind:?}, which this version does not know; it was written by a newer one"
    )]
    UnknownKind {
        /// The kind.
        kind: String,
    },
    /// A type was used with a store that it was not registered with.
    #[error("records of kind {kind:?} were not registered with the store")]
    NotRegistered {
        /// The kind.
        kind: &'static str,
    },
    /// The file's layout is newer than this version.
    #[error("the state has layout {found}, this version knows layouts up to {known}")]
    NewerLayout {
        /// Layout of the file.
        found: i64,
        /// Newest layout that this version knows.
        known: i64,
    },
    /// Another process has the file open.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The disk or the file system's quota is full. The commit did not happen; the store goes on.
    #[error("no space left for the state: {0}")]
    Full(String),
    /// The disk failed, or the file cannot be written. The commit did not happen; the store goes on.
    #[error("the state could not be written or read: {0}")]
    Io(String),
    /// The file is damaged or not a state file.
    #[error("the state is damaged: {0}")]
    Corrupt(String),
    /// Any other failure of the backend.
    #[error("the state's database failed: {0}")]
    Backend(String),
    /// Changes since the revision asked for are no longer known: list again and watch from there.
    #[error("changes before revision {oldest} are no longer known")]
    Compacted {
        /// The oldest revision that a watch can start from.
        oldest: Revision,
    },
    /// The lease has expired, was revoked or never was.
    #[error("no such lease: {0}")]
    NoSuchLease(u64),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the same call may succeed later without anything being mended.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Contended { .. } | Self::Closed)
    }
}

/// A record that was to be created is there already ([`Tx::create`](crate::Tx::create)).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} exists already")]
pub struct Exists(pub Key);

impl From<Exists> for StoreError {
    fn from(e: Exists) -> Self {
        Self::Exists(e.0)
    }
}
