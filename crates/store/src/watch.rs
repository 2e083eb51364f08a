use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::snapshot::Snapshot;
use crate::table::{AnyEntry, Entry};
use crate::{Key, Resource, Revision, StoreError};

/// A change of a record of type `T`.
#[derive(Debug, Clone)]
pub enum Event<T> {
    /// Created or changed.
    Put(Entry<T>),
    /// Deleted, by the commit of this revision.
    Delete(Key, Revision),
}

impl<T: Resource> Event<T> {
    /// The commit that made the change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Delete(_, revision) => *revision,
        }
    }
}

/// A change of a record of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The record's key.
    pub key: Key,
    /// The commit that made the change.
    pub revision: Revision,
    /// The record is gone.
    pub deleted: bool,
}

/// One change in the log.
pub(crate) struct Logged {
    pub(crate) position: usize,
    pub(crate) key: Key,
    /// None for a deletion.
    pub(crate) entry: Option<AnyEntry>,
}

/// One commit in the log.
pub(crate) struct LoggedCommit {
    pub(crate) revision: Revision,
    pub(crate) changes: Vec<Logged>,
}

/// The latest commits, so that watchers can be behind without anything waiting for them.
pub(crate) struct Log {
    inner: Mutex<LogInner>,
    /// How many changes are kept; the latest commit is always kept whole.
    capacity: usize,
}

struct LogInner {
    commits: VecDeque<Arc<LoggedCommit>>,
    changes: usize,
    /// Every commit after this revision is in `commits`.
    floor: Revision,
}

impl Log {
    pub(crate) fn new(floor: Revision, capacity: usize) -> Self {
        Self { inner: Mutex::new(LogInner { commits: VecDeque::new(), changes: 0, floor }), capacity }
    }

    pub(crate) fn append(&self, commits: Vec<LoggedCommit>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for commit in commits {
            inner.changes += commit.changes.len();
            inner.commits.push_back(Arc::new(commit));
        }
        while inner.changes > self.capacity && inner.commits.len() > 1 {
            if let Some(oldest) = inner.commits.pop_front() {
                inner.changes -= oldest.changes.len();
                inner.floor = oldest.revision;
            }
        }
    }

    /// Up to `limit` commits after a revision.
    fn after(&self, revision: Revision, limit: usize) -> Result<Vec<Arc<LoggedCommit>>, StoreError> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if revision < inner.floor {
            return Err(StoreError::Compacted { oldest: inner.floor });
        }
        let start = inner.commits.partition_point(|c| c.revision <= revision);
        Ok(inner.commits.iter().skip(start).take(limit).cloned().collect())
    }
}

/// How many commits a watcher takes from the log at once.
const PAGE: usize = 64;

/// Follows the log on behalf of one watcher.
struct Cursor {
    log: Arc<Log>,
    published: watch::Receiver<Snapshot>,
    position: Revision,
}

impl Cursor {
    /// The next commits, at least one. Cancelling it loses nothing.
    async fn next(&mut self) -> Result<Vec<Arc<LoggedCommit>>, StoreError> {
        loop {
            self.published.mark_unchanged();
            let commits = self.log.after(self.position, PAGE)?;
            if let Some(last) = commits.last() {
                self.position = last.revision;
                return Ok(commits);
            }
            self.published.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }
}

/// The changes of the records of one type, in commit order and without gaps ([`Store::watch`](crate::Store::watch)).
///
/// A watcher that falls behind by more than the store's history gets [`StoreError::Compacted`], and holds nobody up.
pub struct Watch<T> {
    cursor: Cursor,
    kind: usize,
    ready: VecDeque<Event<T>>,
}

impl<T: Resource> Watch<T> {
    pub(crate) fn new(
        log: Arc<Log>,
        published: watch::Receiver<Snapshot>,
        from: Revision,
        kind: usize,
    ) -> Result<Self, StoreError> {
        log.after(from, 0)?;
        Ok(Self { cursor: Cursor { log, published, position: from }, kind, ready: VecDeque::new() })
    }

    /// The next change; waits for one. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the watcher is too far behind: take a snapshot, list, and watch from its
    /// revision. [`StoreError::Closed`] when the store was closed and every change was given.
    pub async fn next(&mut self) -> Result<Event<T>, StoreError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            for commit in self.cursor.next().await? {
                for change in commit.changes.iter().filter(|c| c.position == self.kind) {
                    self.ready.extend(event_of(commit.revision, change));
                }
            }
        }
    }
}

fn event_of<T: Resource>(revision: Revision, change: &Logged) -> Option<Event<T>> {
    match &change.entry {
        None => Some(Event::Delete(change.key.clone(), revision)),
        Some(entry) => {
            let value = Arc::clone(&entry.value).downcast::<T>().ok()?;
            Some(Event::Put(Entry { revision: entry.revision, lease: entry.lease, value }))
        }
    }
}

/// The changes of every record, in commit order and without gaps ([`Store::watch_all`](crate::Store::watch_all)).
pub struct WatchAll {
    cursor: Cursor,
    ready: VecDeque<Change>,
}

impl WatchAll {
    pub(crate) fn new(
        log: Arc<Log>,
        published: watch::Receiver<Snapshot>,
        from: Revision,
    ) -> Result<Self, StoreError> {
        log.after(from, 0)?;
        Ok(Self { cursor: Cursor { log, published, position: from }, ready: VecDeque::new() })
    }

    /// The next change; waits for one. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn next(&mut self) -> Result<Change, StoreError> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            for commit in self.cursor.next().await? {
                self.ready.extend(commit.changes.iter().map(|change| Change {
                    key: change.key.clone(),
                    revision: commit.revision,
                    deleted: change.entry.is_none(),
                }));
            }
        }
    }
}
