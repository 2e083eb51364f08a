//! What a store keeps its records in.
//!
//! The contract is what etcd's KV, Watch and Lease services offer (etcd API reference, version 3), so that the same
//! store can stand on a file or on a cluster: one revision counter, transactions that compare and then write, a watch
//! that begins at a revision, and leases that take their keys with them.

mod sqlite;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::table::AnyRecord;
use crate::{Key, Revision, StoreError};

pub use sqlite::Sqlite;

/// What the methods of a [`Backend`] give.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Keeps encoded records durably.
///
/// Every commit that writes anything gets the next revision, and is seen whole or not at all. A commit that was
/// answered survives the process and the machine.
pub trait Backend: Send + Sync + 'static {
    /// Every record, all at the one revision that is given with them.
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>>;

    /// Every commit after the revision, by whomever, in order and without gaps, in batches.
    ///
    /// The channel ends when the backend is closed or cannot go on.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when commits after the revision are no longer known.
    fn watch(
        &self,
        after: Revision,
    ) -> BoxFuture<'_, Result<mpsc::UnboundedReceiver<Arc<[Commit]>>, StoreError>>;

    /// Carries out every operation of the transaction if every comparison holds, and nothing otherwise.
    ///
    /// # Errors
    /// After [`StoreError::Full`] or [`StoreError::Io`] nothing was changed, and the backend goes on.
    /// [`StoreError::NoSuchLease`] when an operation names a lease that is not there.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>>;

    /// Makes a lease that expires when it was not kept alive for `ttl`.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>>;

    /// Gives a lease its full time again.
    ///
    /// # Errors
    /// [`StoreError::NoSuchLease`] when it has expired or was revoked.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Ends a lease and deletes its keys, in one commit.
    ///
    /// # Errors
    /// [`StoreError::NoSuchLease`] when it has expired or was revoked.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Finishes what was asked before, and lets go of the file or connection. Later calls give [`StoreError::Closed`].
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A lease: keys that are bound to it vanish when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct LeaseId(pub u64);

/// An encoded record.
#[derive(Clone)]
pub struct Value {
    /// As it is kept.
    pub bytes: Bytes,
    /// What the store made of the bytes before it handed them to a backend in the same process.
    pub(crate) record: Option<AnyRecord>,
}

impl Value {
    pub(crate) fn decoded(bytes: Vec<u8>, record: AnyRecord) -> Self {
        Self { bytes: bytes.into(), record: Some(record) }
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, record: None }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.fmt(f)
    }
}

/// What [`Backend::load`] gives.
#[derive(Debug)]
pub struct Loaded {
    /// The revision of the latest commit.
    pub revision: Revision,
    /// Every record.
    pub records: Vec<Stored>,
}

/// A record as a backend keeps it.
#[derive(Debug)]
pub struct Stored {
    /// Its key, which the store checks.
    pub key: String,
    /// The commit that wrote it last.
    pub revision: Revision,
    /// Encoded record.
    pub value: Bytes,
    /// The lease that it vanishes with.
    pub lease: Option<LeaseId>,
}

/// A transaction: comparisons, and what to do if all of them hold.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// At most one operation a key.
    pub ops: Vec<Op>,
}

/// Something that a transaction relies on.
#[derive(Debug, Clone)]
pub enum Compare {
    /// The record was last written by this commit, or is absent. (etcd: `MOD == revision`, with 0 for an absent key.)
    Key {
        /// The record's key.
        key: Key,
        /// None for a record that must be absent.
        revision: Option<Revision>,
    },
    /// No record of the scope was written or deleted after this commit. (etcd: `MOD < since + 1` with a range end, and
    /// the same for a key beside the records that every deletion in the scope writes.)
    Scope {
        /// `kind/account/region/`, as [`Key::scope`] gives it.
        scope: String,
        /// The latest commit that may have changed anything there.
        since: Revision,
    },
}

/// One operation of a transaction.
#[derive(Debug, Clone)]
pub enum Op {
    /// Writes a record.
    Put {
        /// Its key.
        key: Key,
        /// Encoded record.
        value: Value,
        /// The lease that it is to vanish with.
        lease: Option<LeaseId>,
    },
    /// Deletes a record. Nothing happens when it is absent.
    Delete {
        /// Its key.
        key: Key,
    },
}

impl Op {
    /// The key that it is about.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// What became of a [`Txn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out and is durable.
    Committed(Revision),
    /// A comparison did not hold. The revision is one at which that was so: a copy that old knows why.
    Conflict(Revision),
}

/// A commit, as a watch shows it.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Its revision.
    pub revision: Revision,
    /// What it changed; deletions that changed nothing are left out.
    pub ops: Vec<Op>,
}
