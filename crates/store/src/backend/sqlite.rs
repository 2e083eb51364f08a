//! Records in a SQLite file, for one process.
//!
//! One thread owns the connection. It takes all requests that have gathered while it was busy and commits them
//! together, so that many concurrent transactions share one `fsync`. The file is in WAL mode with `synchronous=FULL`
//! and locked exclusively (SQLite documentation: "Write-Ahead Logging", "PRAGMA synchronous", "PRAGMA locking_mode").

use std::collections::{HashMap, VecDeque};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::{Backend, BoxFuture, Commit, Compare, LeaseId, Loaded, Op, Outcome, Stored, Txn};
use crate::{Key, Revision, StoreError};

/// `application_id` of a state file: "haar".
const APPLICATION_ID: i64 = 0x6861_6172;

/// What turns layout `n` into layout `n + 1`; the file's layout is its `user_version`.
const LAYOUTS: &[&str] = &[
    "
    CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO counter VALUES ('revision', 0);
    CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL);
    CREATE TABLE record (
        key TEXT NOT NULL UNIQUE,
        revision INTEGER NOT NULL,
        lease INTEGER REFERENCES lease (id),
        value BLOB NOT NULL
    );
    CREATE INDEX record_by_revision ON record (revision);
    CREATE INDEX record_by_lease ON record (lease) WHERE lease IS NOT NULL;
    CREATE TABLE deletion (scope TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
",
    "
    DROP INDEX record_by_revision;
    DROP TABLE deletion;
",
];

/// How many requests share one commit at most.
const BATCH: usize = 512;

/// How many commits are kept for watches that begin in the past.
const HISTORY: usize = 256;

/// How long another process may take to let go of the file.
const BUSY: Duration = Duration::from_millis(500);

/// Longest time of a lease: a hundred years.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How long to wait before an expired lease is tried again whose keys could not be deleted.
const EXPIRY_RETRY: Duration = Duration::from_secs(1);

/// A [`Backend`] in a SQLite file or in memory.
///
/// Leases are kept in the file, and get their full time when it is opened: while it was closed, nobody could keep them
/// alive.
#[derive(Debug)]
pub struct Sqlite {
    requests: mpsc::UnboundedSender<Request>,
}

impl Sqlite {
    /// Opens or makes a file, readable by its owner only.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::NewerLayout`], [`StoreError::Corrupt`], [`StoreError::Full`] or
    /// [`StoreError::Io`].
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let (requests, received) = mpsc::unbounded_channel();
        let (ready, opened) = oneshot::channel();
        let path = path.to_owned();
        let thread = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let engine = match runtime.map_err(|e| StoreError::Io(e.to_string())) {
                Ok(runtime) => Engine::open(&path).map(|engine| (engine, runtime)),
                Err(e) => Err(e),
            };
            match engine {
                Ok((engine, runtime)) => {
                    if ready.send(Ok(())).is_ok() {
                        runtime.block_on(drive(engine, received));
                    }
                }
                Err(e) => drop(ready.send(Err(e))),
            }
        };
        std::thread::Builder::new()
            .name("haar-store".into())
            .spawn(thread)
            .map_err(|e| StoreError::Io(e.to_string()))?;
        opened.await.map_err(|_| StoreError::Closed)??;
        Ok(Self { requests })
    }

    /// Records in memory, gone when this is dropped. Runs as a task of the current runtime.
    ///
    /// # Errors
    /// [`StoreError::Backend`] when SQLite cannot be started.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn in_memory() -> Result<Self, StoreError> {
        let connection = Connection::open_in_memory().map_err(failure)?;
        let engine = Engine::start(connection)?;
        let (requests, received) = mpsc::unbounded_channel();
        tokio::spawn(drive(engine, received));
        Ok(Self { requests })
    }

    async fn ask<R>(&self, request: impl FnOnce(oneshot::Sender<R>) -> Request) -> Result<R, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)
    }
}

impl Backend for Sqlite {
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>> {
        Box::pin(async { self.ask(Request::Load).await? })
    }

    fn watch(
        &self,
        after: Revision,
    ) -> BoxFuture<'_, Result<mpsc::UnboundedReceiver<Arc<[Commit]>>, StoreError>> {
        Box::pin(async move { self.ask(|reply| Request::Watch(after, reply)).await? })
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        Box::pin(async { self.ask(|reply| Request::Write(Write::Commit(txn, reply))).await? })
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        let ttl = ttl.min(MAX_TTL);
        Box::pin(async move { self.ask(|reply| Request::Write(Write::Grant(ttl, reply))).await? })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.ask(|reply| Request::KeepAlive(lease, reply)).await? })
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.ask(|reply| Request::Write(Write::Revoke(lease, Some(reply)))).await? })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.ask(Request::Close).await.unwrap_or(()) })
    }
}

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

enum Request {
    Load(Reply<Loaded>),
    Watch(Revision, Reply<mpsc::UnboundedReceiver<Arc<[Commit]>>>),
    KeepAlive(LeaseId, Reply<()>),
    Write(Write),
    Close(oneshot::Sender<()>),
}

/// What changes the file.
enum Write {
    Commit(Txn, Reply<Outcome>),
    Grant(Duration, Reply<LeaseId>),
    /// By a caller, or because the lease has expired.
    Revoke(LeaseId, Option<Reply<()>>),
}

impl Write {
    fn fail(self, e: StoreError) {
        // Whoever no longer waits for the answer does not miss it.
        match self {
            Self::Commit(_, reply) => drop(reply.send(Err(e))),
            Self::Grant(_, reply) => drop(reply.send(Err(e))),
            Self::Revoke(_, Some(reply)) => drop(reply.send(Err(e))),
            Self::Revoke(lease, None) => {
                tracing::warn!(lease = lease.0, error = %e, "an expired lease could not be ended yet");
            }
        }
    }

    fn answer(self, done: Done) {
        match (self, done) {
            (write, Done::Refused(e)) => write.fail(e),
            (Self::Commit(_, reply), Done::Committed(outcome)) => drop(reply.send(Ok(outcome))),
            (Self::Grant(_, reply), Done::Granted(lease)) => drop(reply.send(Ok(lease))),
            (Self::Revoke(_, Some(reply)), Done::Revoked) => drop(reply.send(Ok(()))),
            _ => {}
        }
    }
}

/// What became of one [`Write`] within a batch.
enum Done {
    Committed(Outcome),
    Granted(LeaseId),
    Revoked,
    Refused(StoreError),
}

async fn drive(mut engine: Engine, mut requests: mpsc::UnboundedReceiver<Request>) {
    let mut batch = Vec::new();
    loop {
        let received = match engine.leases.values().map(|lease| lease.expires).min() {
            None => requests.recv_many(&mut batch, BATCH).await,
            Some(next) => tokio::select! {
                received = requests.recv_many(&mut batch, BATCH) => received,
                () = sleep_until(next) => {
                    engine.expire();
                    continue;
                }
            },
        };
        if received == 0 {
            return;
        }
        if let Some(closed) = engine.serve(&mut batch) {
            drop(engine);
            let _ = closed.send(());
            return;
        }
    }
}

struct Lease {
    ttl: Duration,
    expires: Instant,
}

struct Engine {
    connection: Connection,
    revision: Revision,
    /// The revision when the file was opened: nobody has seen an earlier one.
    opened: Revision,
    /// The latest change since then in each scope that had one. As nobody else writes the file, it need not say.
    scopes: HashMap<String, Revision>,
    leases: HashMap<LeaseId, Lease>,
    /// The latest commits.
    history: VecDeque<Commit>,
    /// Every commit after this revision is in `history`.
    floor: Revision,
    watches: Vec<mpsc::UnboundedSender<Arc<[Commit]>>>,
}

/// What a batch does, known before it is durable.
#[derive(Default)]
struct Batch {
    done: Vec<Done>,
    commits: Vec<Commit>,
    granted: Vec<(LeaseId, Duration)>,
    revoked: Vec<LeaseId>,
    /// The latest change in each scope that has one.
    scopes: HashMap<String, Revision>,
}

impl Batch {
    /// Notes that a record was written or deleted.
    fn changed(&mut self, key: &Key, revision: Revision) {
        match self.scopes.get_mut(key.scope()) {
            Some(latest) => *latest = revision,
            None => drop(self.scopes.insert(key.scope().to_owned(), revision)),
        }
    }
}

impl Engine {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |e: &io::Error| match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(e.to_string()),
            _ => StoreError::Io(format!("{}: {e}", path.display())),
        };
        // SQLite gives its side files the mode of the file.
        let made = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
        drop(made.map_err(|e| io(&e))?);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let attempt = || {
            let connection = Connection::open_with_flags(path, flags).map_err(failure)?;
            connection.busy_timeout(BUSY).map_err(failure)?;
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(failure)?;
            let mode: String = connection
                .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
                .map_err(failure)?;
            if mode != "wal" {
                return Err(StoreError::Io(format!("{}: no write-ahead log, but {mode}", path.display())));
            }
            connection.pragma_update(None, "synchronous", "FULL").map_err(failure)?;
            connection.pragma_update(None, "journal_size_limit", 16 << 20).map_err(failure)?;
            Self::start(connection)
        };
        attempt().map_err(|e| match e {
            StoreError::InUse(_) => StoreError::InUse(path.to_owned()),
            e => e,
        })
    }

    fn start(connection: Connection) -> Result<Self, StoreError> {
        lay_out(&connection)?;
        let revision = connection
            .query_row("SELECT value FROM counter WHERE name = 'revision'", [], |row| row.get(0).map(number))
            .map(Revision::new)
            .map_err(failure)?;
        let now = Instant::now();
        let mut leases = HashMap::new();
        {
            let mut statement = connection.prepare("SELECT id, ttl_ms FROM lease").map_err(failure)?;
            let rows = statement
                .query_map([], |row| Ok((number(row.get(0)?), number(row.get(1)?))))
                .map_err(failure)?;
            for row in rows {
                let (id, ttl) = row.map_err(failure)?;
                let ttl = Duration::from_millis(ttl).min(MAX_TTL);
                leases.insert(LeaseId(id), Lease { ttl, expires: now + ttl });
            }
        }
        Ok(Self {
            connection,
            revision,
            opened: revision,
            scopes: HashMap::new(),
            leases,
            history: VecDeque::new(),
            floor: revision,
            watches: Vec::new(),
        })
    }

    /// Answers requests in their order. Gives the reply of a request to close, which ends everything.
    fn serve(&mut self, requests: &mut Vec<Request>) -> Option<oneshot::Sender<()>> {
        let mut writes = Vec::new();
        for request in requests.drain(..) {
            if let Request::Write(write) = request {
                writes.push(write);
                continue;
            }
            self.write(std::mem::take(&mut writes));
            match request {
                Request::Write(_) => {}
                Request::Load(reply) => drop(reply.send(self.load())),
                Request::Watch(after, reply) => drop(reply.send(self.watch(after))),
                Request::KeepAlive(lease, reply) => drop(reply.send(self.keep_alive(lease))),
                Request::Close(reply) => return Some(reply),
            }
        }
        self.write(writes);
        None
    }

    fn load(&self) -> Result<Loaded, StoreError> {
        let read = || {
            let mut statement = self.connection.prepare("SELECT key, revision, lease, value FROM record")?;
            let rows = statement.query_map([], |row| {
                Ok(Stored {
                    key: row.get(0)?,
                    revision: Revision::new(number(row.get(1)?)),
                    lease: row.get::<_, Option<i64>>(2)?.map(|id| LeaseId(number(id))),
                    value: row.get::<_, Vec<u8>>(3)?.into(),
                })
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        Ok(Loaded { revision: self.revision, records: read().map_err(failure)? })
    }

    fn watch(&mut self, after: Revision) -> Result<mpsc::UnboundedReceiver<Arc<[Commit]>>, StoreError> {
        if after < self.floor {
            return Err(StoreError::Compacted { oldest: self.floor });
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let missed: Arc<[Commit]> = self.history.iter().filter(|c| c.revision > after).cloned().collect();
        if !missed.is_empty() {
            let _ = sender.send(missed);
        }
        self.watches.push(sender);
        Ok(receiver)
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        let lease = self.leases.get_mut(&lease).ok_or(StoreError::NoSuchLease(lease.0))?;
        lease.expires = Instant::now() + lease.ttl;
        Ok(())
    }

    /// Ends the leases that are due.
    fn expire(&mut self) {
        let now = Instant::now();
        let due: Vec<LeaseId> =
            self.leases.iter().filter(|(_, l)| l.expires <= now).map(|(id, _)| *id).collect();
        self.write(due.iter().map(|id| Write::Revoke(*id, None)).collect());
        for lease in due {
            if let Some(lease) = self.leases.get_mut(&lease) {
                lease.expires = now + EXPIRY_RETRY;
            }
        }
    }

    /// Carries out writes with one commit of the file; if that fails, each with its own, so that only those fail that
    /// have to.
    fn write(&mut self, mut writes: Vec<Write>) {
        if writes.is_empty() {
            return;
        }
        match self.try_write(&writes) {
            Ok(batch) => self.finish(writes, batch),
            Err(e) if writes.len() == 1 => {
                if let Some(write) = writes.pop() {
                    write.fail(failure(e));
                }
            }
            Err(_) => writes.into_iter().for_each(|write| self.write(vec![write])),
        }
    }

    fn try_write(&self, writes: &[Write]) -> rusqlite::Result<Batch> {
        // Rolls back when it is dropped before it was committed.
        let transaction = self.connection.unchecked_transaction()?;
        let mut batch = Batch::default();
        let mut revision = self.revision;
        for write in writes {
            let (done, ops) = match write {
                Write::Commit(txn, _) => self.stage(txn, &mut revision, &mut batch)?,
                Write::Grant(ttl, _) => {
                    let ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
                    self.connection
                        .prepare_cached("INSERT INTO lease (ttl_ms) VALUES (?1)")?
                        .execute([ms])?;
                    let lease = LeaseId(number(self.connection.last_insert_rowid()));
                    batch.granted.push((lease, *ttl));
                    (Done::Granted(lease), Vec::new())
                }
                Write::Revoke(lease, _) => self.stage_revoke(*lease, &mut revision, &mut batch)?,
            };
            batch.done.push(done);
            if !ops.is_empty() {
                batch.commits.push(Commit { revision, ops });
            }
        }
        if revision != self.revision {
            self.connection
                .prepare_cached("UPDATE counter SET value = ?1 WHERE name = 'revision'")?
                .execute([integer(revision.get())])?;
        }
        transaction.commit()?;
        Ok(batch)
    }

    /// Makes a durable batch visible, then answers.
    fn finish(&mut self, writes: Vec<Write>, batch: Batch) {
        let now = Instant::now();
        for (lease, ttl) in batch.granted {
            self.leases.insert(lease, Lease { ttl, expires: now + ttl });
        }
        for lease in batch.revoked {
            self.leases.remove(&lease);
        }
        self.scopes.extend(batch.scopes);
        if let Some(last) = batch.commits.last() {
            self.revision = last.revision;
            self.history.extend(batch.commits.iter().cloned());
            while self.history.len() > HISTORY {
                if let Some(oldest) = self.history.pop_front() {
                    self.floor = oldest.revision;
                }
            }
            let commits: Arc<[Commit]> = batch.commits.into();
            self.watches.retain(|watch| watch.send(Arc::clone(&commits)).is_ok());
        }
        writes.into_iter().zip(batch.done).for_each(|(write, done)| write.answer(done));
    }

    /// Writes what a transaction asks for, if its comparisons hold. `revision` advances when it writes anything.
    fn stage(
        &self,
        txn: &Txn,
        revision: &mut Revision,
        batch: &mut Batch,
    ) -> rusqlite::Result<(Done, Vec<Op>)> {
        for compare in &txn.compares {
            if !self.holds(compare, batch)? {
                return Ok((Done::Committed(Outcome::Conflict(*revision)), Vec::new()));
            }
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.has_lease(*lease)?
            {
                return Ok((Done::Refused(StoreError::NoSuchLease(lease.0)), Vec::new()));
            }
        }
        let next = revision.next();
        let mut effective = Vec::with_capacity(txn.ops.len());
        for op in &txn.ops {
            if self.apply(op, next)? {
                batch.changed(op.key(), next);
                effective.push(op.clone());
            }
        }
        if !effective.is_empty() {
            *revision = next;
        }
        Ok((Done::Committed(Outcome::Committed(*revision)), effective))
    }

    fn stage_revoke(
        &self,
        lease: LeaseId,
        revision: &mut Revision,
        batch: &mut Batch,
    ) -> rusqlite::Result<(Done, Vec<Op>)> {
        if !self.has_lease(lease)? {
            return Ok((Done::Refused(StoreError::NoSuchLease(lease.0)), Vec::new()));
        }
        let id = integer(lease.0);
        let mut ops = Vec::new();
        {
            let mut statement =
                self.connection.prepare_cached("SELECT key FROM record WHERE lease = ?1 ORDER BY key")?;
            for key in statement.query_map([id], |row| row.get::<_, String>(0))? {
                if let Ok(key) = Key::parse(&key?) {
                    ops.push(Op::Delete { key });
                }
            }
        }
        self.connection.prepare_cached("DELETE FROM record WHERE lease = ?1")?.execute([id])?;
        self.connection.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([id])?;
        batch.revoked.push(lease);
        if !ops.is_empty() {
            *revision = revision.next();
        }
        for op in &ops {
            batch.changed(op.key(), *revision);
        }
        Ok((Done::Revoked, ops))
    }

    fn holds(&self, compare: &Compare, batch: &Batch) -> rusqlite::Result<bool> {
        match compare {
            Compare::Key { key, revision } => {
                let found = self
                    .connection
                    .prepare_cached("SELECT revision FROM record WHERE key = ?1")?
                    .query_row([key.as_str()], |row| row.get(0).map(number))
                    .optional()?;
                Ok(found == revision.map(Revision::get))
            }
            Compare::Scope { scope, since } => {
                let latest = batch.scopes.get(scope).or_else(|| self.scopes.get(scope));
                Ok(latest.unwrap_or(&self.opened) <= since)
            }
        }
    }

    fn has_lease(&self, lease: LeaseId) -> rusqlite::Result<bool> {
        self.connection.prepare_cached("SELECT 1 FROM lease WHERE id = ?1")?.exists([integer(lease.0)])
    }

    /// Whether anything was changed.
    fn apply(&self, op: &Op, revision: Revision) -> rusqlite::Result<bool> {
        match op {
            Op::Put { key, value, lease } => {
                self.connection
                    .prepare_cached(
                        "INSERT INTO record (key, revision, lease, value) VALUES (?1, ?2, ?3, ?4)
                         ON CONFLICT (key) DO UPDATE SET revision = ?2, lease = ?3, value = ?4",
                    )?
                    .execute(params![
                        key.as_str(),
                        integer(revision.get()),
                        lease.map(|lease| integer(lease.0)),
                        &value.bytes[..]
                    ])?;
                Ok(true)
            }
            Op::Delete { key } => {
                let mut statement = self.connection.prepare_cached("DELETE FROM record WHERE key = ?1")?;
                Ok(statement.execute([key.as_str()])? > 0)
            }
        }
    }
}

/// Brings the file to the newest layout.
fn lay_out(connection: &Connection) -> Result<(), StoreError> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let known = i64::try_from(LAYOUTS.len()).unwrap_or(i64::MAX);
    let found = pragma("user_version").map_err(failure)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failure)?;
    if tables > 0 && pragma("application_id").map_err(failure)? != APPLICATION_ID {
        return Err(StoreError::Corrupt("the file is a database of another program".into()));
    }
    if found > known {
        return Err(StoreError::NewerLayout { found, known });
    }
    for (layout, step) in (0..).zip(LAYOUTS).skip_while(|(layout, _)| *layout < found) {
        let advance = || {
            let transaction = connection.unchecked_transaction()?;
            connection.execute_batch(step)?;
            connection.pragma_update(None, "application_id", APPLICATION_ID)?;
            connection.pragma_update(None, "user_version", layout + 1)?;
            transaction.commit()
        };
        advance().map_err(failure)?;
    }
    Ok(())
}

/// SQLite's integers are signed; ours start at zero and stay far below the limit.
fn number(integer: i64) -> u64 {
    integer.cast_unsigned()
}

fn integer(number: u64) -> i64 {
    number.cast_signed()
}

#[allow(clippy::needless_pass_by_value)] // For `map_err`.
fn failure(e: rusqlite::Error) -> StoreError {
    let text = e.to_string();
    match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(text),
        Some(
            ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied,
        ) => StoreError::Io(text),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(text),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse(PathBuf::new()),
        _ => StoreError::Backend(text),
    }
}
