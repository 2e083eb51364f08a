//! The contract of a backend, which the SQLite one keeps in a file and in memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use haar_store::backend::{Backend, Commit, Compare, Loaded, Op, Outcome, Sqlite, Txn, Value};
use haar_store::{Key, LeaseId, Revision, StoreError};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{sleep, timeout};

fn key(id: &str) -> Key {
    Key::new("k", "a", "r", id).unwrap()
}

fn put(id: &str, value: &'static str) -> Op {
    Op::Put { key: key(id), value: Value::from(Bytes::from_static(value.as_bytes())), lease: None }
}

fn leased(id: &str, lease: LeaseId) -> Op {
    Op::Put { key: key(id), value: Value::from(Bytes::from_static(b"leased")), lease: Some(lease) }
}

fn delete(id: &str) -> Op {
    Op::Delete { key: key(id) }
}

fn is(id: &str, revision: Option<u64>) -> Compare {
    Compare::Key { key: key(id), revision: revision.map(Revision::new) }
}

fn unchanged(scope: &str, since: u64) -> Compare {
    Compare::Scope { scope: scope.into(), since: Revision::new(since) }
}

async fn commit(backend: &dyn Backend, compares: Vec<Compare>, ops: Vec<Op>) -> Outcome {
    backend.commit(Txn { compares, ops }).await.unwrap()
}

fn committed(revision: u64) -> Outcome {
    Outcome::Committed(Revision::new(revision))
}

fn is_conflict(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Conflict(_))
}

/// Ids, values and revisions, sorted.
async fn records(backend: &dyn Backend) -> Vec<(String, String, u64)> {
    let Loaded { records, .. } = backend.load().await.unwrap();
    let mut records: Vec<_> = records
        .into_iter()
        .map(|r| (r.key[6..].to_owned(), String::from_utf8(r.value.to_vec()).unwrap(), r.revision.get()))
        .collect();
    records.sort_unstable();
    records
}

fn record(id: &str, value: &str, revision: u64) -> (String, String, u64) {
    (id.to_owned(), value.to_owned(), revision)
}

/// Commits up to a revision: revision, and ids with a `-` before what was deleted.
async fn commits(watch: &mut UnboundedReceiver<Arc<[Commit]>>, until: u64) -> Vec<(u64, Vec<String>)> {
    let mut seen: Vec<(u64, Vec<String>)> = Vec::new();
    while seen.last().is_none_or(|(revision, _)| *revision < until) {
        let batch = timeout(Duration::from_secs(10), watch.recv()).await.unwrap().unwrap();
        seen.extend(batch.iter().map(|commit| {
            let ids = commit.ops.iter().map(|op| match op {
                Op::Put { key, .. } => key.id().to_owned(),
                Op::Delete { key } => format!("-{}", key.id()),
            });
            (commit.revision.get(), ids.collect())
        }));
    }
    seen
}

/// What every backend must do; it must be empty.
async fn conforms(backend: &dyn Backend) {
    assert_eq!(backend.load().await.unwrap().revision, Revision::ZERO);
    let mut watch = backend.watch(Revision::ZERO).await.unwrap();

    // Writing advances the revision by one, whatever is written at once; nothing else does.
    assert_eq!(commit(backend, vec![], vec![put("1", "a"), put("2", "a")]).await, committed(1));
    assert_eq!(commit(backend, vec![], vec![]).await, committed(1));
    assert_eq!(commit(backend, vec![], vec![delete("9")]).await, committed(1));
    assert_eq!(commit(backend, vec![], vec![delete("2"), delete("9"), put("3", "b")]).await, committed(2));
    assert_eq!(records(backend).await, [record("1", "a", 1), record("3", "b", 2)]);

    // Comparisons with a record.
    assert_eq!(
        commit(backend, vec![is("1", Some(1)), is("2", None)], vec![put("1", "c")]).await,
        committed(3)
    );
    for wrong in [is("1", Some(1)), is("1", None), is("2", Some(1)), is("3", Some(3))] {
        assert!(is_conflict(
            commit(backend, vec![is("3", Some(2)), wrong], vec![put("1", "x"), put("4", "x")]).await
        ));
    }
    assert_eq!(records(backend).await, [record("1", "c", 3), record("3", "b", 2)]);

    // Comparisons with a scope: what was written or deleted in it since.
    assert_eq!(commit(backend, vec![unchanged("k/a/r/", 3)], vec![put("5", "d")]).await, committed(4));
    assert!(is_conflict(commit(backend, vec![unchanged("k/a/r/", 3)], vec![put("6", "x")]).await));
    assert_eq!(commit(backend, vec![unchanged("k/a/r/", 4)], vec![delete("5")]).await, committed(5));
    assert!(is_conflict(commit(backend, vec![unchanged("k/a/r/", 4)], vec![put("6", "x")]).await));
    for other in ["k/a/r2/", "k/a2/r/", "k2/a/r/"] {
        assert_eq!(commit(backend, vec![unchanged(other, 0)], vec![]).await, committed(5), "{other}");
    }

    // A watch shows every commit once, from any revision.
    let all = [
        (1, vec!["1".to_owned(), "2".into()]),
        (2, vec!["-2".into(), "3".into()]),
        (3, vec!["1".into()]),
        (4, vec!["5".into()]),
        (5, vec!["-5".into()]),
    ];
    assert_eq!(commits(&mut watch, 5).await, all);
    let mut late = backend.watch(Revision::new(2)).await.unwrap();
    assert_eq!(commits(&mut late, 5).await, all[2..]);
    assert_eq!(commit(backend, vec![], vec![put("6", "e")]).await, committed(6));
    assert_eq!(commits(&mut watch, 6).await, [(6, vec!["6".to_owned()])]);
    assert_eq!(commits(&mut late, 6).await, [(6, vec!["6".to_owned()])]);

    // A lease takes its keys with it, in one commit.
    let lease = backend.grant(Duration::from_secs(60)).await.unwrap();
    let ops = vec![leased("7", lease), leased("8", lease), leased("9", lease)];
    assert_eq!(commit(backend, vec![], ops).await, committed(7));
    // Writing without a lease makes a key permanent.
    assert_eq!(commit(backend, vec![], vec![put("9", "f")]).await, committed(8));
    let bound = backend.load().await.unwrap().records.into_iter().filter(|r| r.lease == Some(lease)).count();
    assert_eq!(bound, 2);
    backend.keep_alive(lease).await.unwrap();
    backend.revoke(lease).await.unwrap();
    assert_eq!(commits(&mut watch, 9).await[2..], [(9, vec!["-7".to_owned(), "-8".into()])]);
    assert!(is_conflict(commit(backend, vec![unchanged("k/a/r/", 8)], vec![]).await));
    let gone = |e: StoreError| matches!(e, StoreError::NoSuchLease(id) if id == lease.0);
    assert!(gone(backend.keep_alive(lease).await.unwrap_err()));
    assert!(gone(backend.revoke(lease).await.unwrap_err()));
    let refused = Txn { compares: vec![], ops: vec![put("1", "x"), leased("7", lease)] };
    assert!(gone(backend.commit(refused).await.unwrap_err()));
    assert_eq!(records(backend).await[0], record("1", "c", 3));
    // A lease without keys ends without a commit, and its id is not given again.
    let empty = backend.grant(Duration::from_secs(60)).await.unwrap();
    backend.revoke(empty).await.unwrap();
    let next = backend.grant(Duration::from_secs(60)).await.unwrap();
    assert!(lease != empty && next != empty);
    assert_eq!(backend.load().await.unwrap().revision, Revision::new(9));
}

#[tokio::test]
async fn sqlite_in_memory_conforms() {
    conforms(&Sqlite::in_memory().unwrap()).await;
}

#[tokio::test]
async fn sqlite_in_a_file_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let backend = Sqlite::open(&path).await.unwrap();
    conforms(&backend).await;
    let before = records(&backend).await;
    backend.close().await;
    assert!(matches!(backend.load().await, Err(StoreError::Closed)));
    backend.close().await;
    let backend = Sqlite::open(&path).await.unwrap();
    assert_eq!(records(&backend).await, before);
    // What was compared before is compared still.
    assert!(is_conflict(commit(&backend, vec![unchanged("k/a/r/", 8)], vec![]).await));
    assert_eq!(commit(&backend, vec![unchanged("k/a/r/", 9), is("1", Some(3))], vec![]).await, committed(9));
    assert!(matches!(backend.watch(Revision::new(8)).await, Err(StoreError::Compacted { .. })));
}

#[tokio::test]
async fn history_is_bounded() {
    let backend = Sqlite::in_memory().unwrap();
    for n in 1..=300 {
        assert_eq!(commit(&backend, vec![], vec![put("1", "x")]).await, committed(n));
    }
    let Err(StoreError::Compacted { oldest }) = backend.watch(Revision::ZERO).await else { panic!() };
    assert_eq!(oldest, Revision::new(44));
    assert_eq!(commits(&mut backend.watch(oldest).await.unwrap(), 300).await.len(), 256);
}

/// Commits that wait for the disk at the same time share one write to it.
#[tokio::test]
async fn concurrent_commits_are_grouped() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Arc::new(Sqlite::open(&folder.path().join("state.db")).await.unwrap());
    let mut watch = backend.watch(Revision::ZERO).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let backend = Arc::clone(&backend);
        tasks.spawn(async move { commit(&*backend, vec![], vec![put(&n.to_string(), "x")]).await });
    }
    tasks.join_all().await;
    let (mut batches, mut commits) = (0, 0);
    while commits < 200 {
        batches += 1;
        commits += watch.recv().await.unwrap().len();
    }
    assert!(batches < 100, "{batches}");
}

#[tokio::test(start_paused = true)]
async fn leases_expire_unless_they_are_kept_alive() {
    let backend = Sqlite::in_memory().unwrap();
    let mut watch = backend.watch(Revision::ZERO).await.unwrap();
    let kept = backend.grant(Duration::from_secs(10)).await.unwrap();
    let left = backend.grant(Duration::from_secs(20)).await.unwrap();
    let endless = backend.grant(Duration::MAX).await;
    assert!(endless.is_ok());
    commit(&backend, vec![], vec![leased("1", kept), leased("2", left)]).await;
    for _ in 0..6 {
        sleep(Duration::from_secs(4)).await;
        backend.keep_alive(kept).await.unwrap();
    }
    assert_eq!(
        commits(&mut watch, 2).await,
        [(1, vec!["1".to_owned(), "2".into()]), (2, vec!["-2".to_owned()])]
    );
    assert!(backend.keep_alive(left).await.is_err());
    sleep(Duration::from_secs(9)).await;
    assert_eq!(records(&backend).await.len(), 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(commits(&mut watch, 3).await, [(3, vec!["-1".to_owned()])]);
    assert_eq!(records(&backend).await, []);
}

#[tokio::test]
async fn leases_begin_anew_when_the_file_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let backend = Sqlite::open(&path).await.unwrap();
    let lease = backend.grant(Duration::from_millis(400)).await.unwrap();
    commit(&backend, vec![], vec![leased("1", lease)]).await;
    backend.close().await;
    sleep(Duration::from_millis(600)).await;
    let backend = Sqlite::open(&path).await.unwrap();
    assert_eq!(records(&backend).await.len(), 1, "nobody could keep it alive");
    backend.keep_alive(lease).await.unwrap();
    let mut watch = backend.watch(Revision::new(1)).await.unwrap();
    assert_eq!(commits(&mut watch, 2).await, [(2, vec!["-1".to_owned()])]);
    assert_eq!(records(&backend).await, []);
}
