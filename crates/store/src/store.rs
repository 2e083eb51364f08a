use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::backend::{Backend, Commit, LeaseId, Op, Outcome, Sqlite};
use crate::snapshot::{Snapshot, State};
use crate::table::{AnyRecord, Entry, Registry};
use crate::tx::{Finished, Tx};
use crate::watch::{Log, Logged, LoggedCommit, Watch, WatchAll};
use crate::{Key, Resource, Revision, StoreError};

/// A transaction that was overtaken this often runs alone in this process, which ends the race.
const ATTEMPTS_TOGETHER: u32 = 5;

/// A transaction that was overtaken this often, by other processes, fails.
const ATTEMPTS: u32 = 40;

/// How many changes are kept for watchers unless [`Builder::history`] says otherwise.
const HISTORY: usize = 4096;

/// A handle to the records. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Arc<dyn Backend>,
    memory: Arc<Memory>,
    /// Held shared by every transaction, alone by one that was overtaken too often.
    turn: tokio::sync::RwLock<()>,
}

/// The in-memory copy, fed by the backend's watch.
struct Memory {
    registry: Arc<Registry>,
    /// The latest snapshot; closed when the feed ends.
    latest: watch::Receiver<Snapshot>,
    log: Arc<Log>,
}

/// Collects the record types of a store before it is opened.
#[derive(Default)]
pub struct Builder {
    registry: Registry,
    history: Option<usize>,
}

impl Builder {
    /// Adds a record type.
    ///
    /// # Panics
    /// When [`Resource::KIND`] cannot be part of a key.
    #[must_use]
    pub fn register<T: Resource>(mut self) -> Self {
        self.registry.register::<T>();
        self
    }

    /// How many changes are kept in memory for watchers that are behind; 4096 by default.
    #[must_use]
    pub fn history(mut self, changes: usize) -> Self {
        self.history = Some(changes);
        self
    }

    /// Opens or makes the state file. Only one process can have it open.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::NewerLayout`], [`StoreError::UnknownKind`], [`StoreError::Corrupt`],
    /// [`StoreError::Decode`], [`StoreError::Full`] or [`StoreError::Io`].
    pub async fn open_sqlite(self, path: impl AsRef<Path>) -> Result<Store, StoreError> {
        let backend = Sqlite::open(path.as_ref()).await?;
        self.open(Arc::new(backend)).await
    }

    /// A store that is gone when its last handle is.
    ///
    /// # Errors
    /// [`StoreError::Backend`] when there is no memory for it.
    pub async fn in_memory(self) -> Result<Store, StoreError> {
        self.open(Arc::new(Sqlite::in_memory()?)).await
    }

    /// A store on any backend.
    ///
    /// # Errors
    /// As [`Builder::open_sqlite`], and what the backend gives.
    pub async fn open(self, backend: Arc<dyn Backend>) -> Result<Store, StoreError> {
        let registry = Arc::new(self.registry);
        let loaded = backend.load().await?;
        let mut state = State::new(Arc::clone(&registry));
        state.revision = loaded.revision;
        for stored in loaded.records {
            let key = Key::parse(&stored.key)
                .map_err(|e| StoreError::Decode { key: stored.key.clone(), reason: e.to_string() })?;
            let position = position_of(&registry, &key)?;
            let value = registry.kind(position).decode(&key, &stored.value)?;
            state.put(position, &key, Entry { revision: stored.revision, lease: stored.lease, value });
        }
        let (published, latest) = watch::channel(Snapshot(Arc::new(state)));
        let memory = Arc::new(Memory {
            registry,
            latest,
            log: Arc::new(Log::new(loaded.revision, self.history.unwrap_or(HISTORY))),
        });
        let commits = backend.watch(loaded.revision).await?;
        tokio::spawn(feed(Arc::clone(&memory), published, commits));
        Ok(Store { inner: Arc::new(Inner { backend, memory, turn: tokio::sync::RwLock::new(()) }) })
    }
}

impl Store {
    /// Begins to open a store.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// All records as of now. Costs a pointer copy.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.inner.memory.latest.borrow().clone()
    }

    /// Runs `body` on a fresh snapshot and commits what it wrote, durably, if nothing that it relied on has changed
    /// meanwhile; otherwise runs it again. The next snapshot, taken by anyone after the answer, shows the commit.
    ///
    /// `body` may run several times: it must have no effect outside the transaction. When it fails, nothing is written and
    /// its error is given back. When the future is dropped, the commit may or may not happen.
    ///
    /// # Errors
    /// What `body` gives; and, converted, [`StoreError::Contended`] when other processes kept overtaking, and what the
    /// backend gives: after [`StoreError::Full`] and [`StoreError::Io`] nothing was changed and the store goes on.
    pub async fn transact<R, E, F>(&self, mut body: F) -> Result<R, E>
    where
        F: FnMut(&mut Tx) -> Result<R, E>,
        E: From<StoreError>,
    {
        for attempt in 0..ATTEMPTS {
            // Overtaken once or twice is no reason to wait: what overtook is known and done.
            if attempt >= 2 {
                let most = 1 << attempt.min(6);
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..=most))).await;
            }
            let (mut _together, mut _alone) = (None, None);
            if attempt < ATTEMPTS_TOGETHER {
                _together = Some(self.inner.turn.read().await);
            } else {
                _alone = Some(self.inner.turn.write().await);
            }
            let mut tx = Tx::new(self.snapshot());
            let result = body(&mut tx)?;
            let txn = match tx.finish(&self.snapshot())? {
                Finished::Nothing => return Ok(result),
                Finished::Overtaken => continue,
                Finished::Commit(txn) => txn,
            };
            match self.inner.backend.commit(txn).await? {
                Outcome::Committed(revision) => {
                    self.inner.memory.reached(revision).await?;
                    return Ok(result);
                }
                Outcome::Conflict(revision) => self.inner.memory.reached(revision).await?,
            }
        }
        Err(StoreError::Contended { attempts: ATTEMPTS }.into())
    }

    /// The changes of `T` after a revision, in commit order and without gaps.
    ///
    /// To follow a kind from a listing, list a snapshot and watch from the snapshot's revision.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when changes after `from` are no longer known; [`StoreError::NotRegistered`].
    pub fn watch<T: Resource>(&self, from: Revision) -> Result<Watch<T>, StoreError> {
        let memory = &self.inner.memory;
        let kind = memory.registry.position(T::KIND).ok_or(StoreError::NotRegistered { kind: T::KIND })?;
        Watch::new(Arc::clone(&memory.log), memory.latest.clone(), from, kind)
    }

    /// The changes of every kind after a revision, in commit order and without gaps.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when changes after `from` are no longer known.
    pub fn watch_all(&self, from: Revision) -> Result<WatchAll, StoreError> {
        let memory = &self.inner.memory;
        WatchAll::new(Arc::clone(&memory.log), memory.latest.clone(), from)
    }

    /// Makes a lease that expires when it was not kept alive for `ttl`; a backend may round `ttl` up to whole seconds.
    ///
    /// # Errors
    /// What the backend gives.
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.backend.grant(ttl).await
    }

    /// Gives a lease its full time again.
    ///
    /// # Errors
    /// [`StoreError::NoSuchLease`] when it has expired or was revoked; what the backend gives.
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.backend.keep_alive(lease).await
    }

    /// Ends a lease and deletes its records, in one commit.
    ///
    /// # Errors
    /// [`StoreError::NoSuchLease`] when it has expired or was revoked; what the backend gives.
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.backend.revoke(lease).await
    }

    /// Finishes what was begun, lets go of the file, and ends all watches. Snapshots stay readable.
    pub async fn close(&self) {
        self.inner.backend.close().await;
    }
}

impl Memory {
    async fn reached(&self, revision: Revision) -> Result<(), StoreError> {
        let mut latest = self.latest.clone();
        latest.wait_for(|s| s.revision() >= revision).await.map(|_| ()).map_err(|_| StoreError::Closed)
    }

    /// Puts commits of the backend into a new snapshot and into the log, then publishes them.
    fn apply(&self, published: &watch::Sender<Snapshot>, commits: &[Commit]) -> Result<(), StoreError> {
        let mut state = State::clone(&published.borrow().0);
        let mut logged = Vec::with_capacity(commits.len());
        for commit in commits {
            let mut changes = Vec::with_capacity(commit.ops.len());
            for op in &commit.ops {
                let position = position_of(&self.registry, op.key())?;
                let entry = match op {
                    Op::Delete { .. } => None,
                    Op::Put { key, value, lease } => {
                        let value: AnyRecord = match &value.record {
                            Some(record) => Arc::clone(record),
                            None => self.registry.kind(position).decode(key, &value.bytes)?,
                        };
                        Some(Entry { revision: commit.revision, lease: *lease, value })
                    }
                };
                match &entry {
                    Some(entry) => state.put(position, op.key(), entry.clone()),
                    None => state.remove(position, op.key()),
                }
                changes.push(Logged { position, key: op.key().clone(), entry });
            }
            state.revision = commit.revision;
            logged.push(LoggedCommit { revision: commit.revision, changes });
        }
        self.log.append(logged);
        published.send_replace(Snapshot(Arc::new(state)));
        Ok(())
    }
}

fn position_of(registry: &Registry, key: &Key) -> Result<usize, StoreError> {
    registry.position(key.kind()).ok_or_else(|| StoreError::UnknownKind { kind: key.kind().to_owned() })
}

/// Follows the backend until it ends, or until it gives something that cannot be read.
async fn feed(
    memory: Arc<Memory>,
    published: watch::Sender<Snapshot>,
    mut commits: mpsc::UnboundedReceiver<Arc<[Commit]>>,
) {
    while let Some(batch) = commits.recv().await {
        if let Err(e) = memory.apply(&published, &batch) {
            tracing::error!(error = %e, "the store cannot follow its backend any further");
            return;
        }
    }
}
