//! Transactions: what they see, and what happens when they meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use haar_store::{Resource, Revision, Store, StoreError, Tx};
use tokio::runtime::Handle;
use tokio::task::{JoinSet, block_in_place};

use crate::{Disk, Note, builder, delete, disk, get, ids, in_memory, note, put};

#[tokio::test]
async fn a_transaction_sees_its_own_writes() {
    let store = in_memory().await;
    put(&store, disk("d-1", 1)).await;
    put(&store, disk("d-2", 1)).await;
    let done = store.transact(|tx| {
        tx.put(disk("d-3", 1));
        tx.put(disk("d-1", 2));
        assert_eq!(tx.delete::<Disk>("a", "r", "d-2").unwrap().gib, 1);
        assert!(tx.delete::<Disk>("a", "r", "d-2").is_none());
        assert!(tx.get::<Disk>("a", "r", "d-2").is_none());
        assert_eq!(tx.get::<Disk>("a", "r", "d-3").unwrap().revision, Revision::UNCOMMITTED);
        assert_eq!(ids(tx.list("a", "r")), ["d-1", "d-3"]);
        assert_eq!(ids(tx.by_index("a", "r", "gib", "1")), ["d-3"]);
        assert_eq!(ids(tx.snapshot().by_index("a", "r", "gib", "2")), ["d-1"]);
        tx.put(disk("d-3", 5));
        Ok::<_, StoreError>(())
    });
    done.await.unwrap();
    assert_eq!((get(&store, "d-1"), get(&store, "d-2"), get(&store, "d-3")), (Some(2), None, Some(5)));
    assert_eq!(store.snapshot().revision(), Revision::new(3), "one commit");
    let revisions: Vec<_> = store.snapshot().list_all::<Disk>().map(|d| d.revision.get()).collect();
    assert_eq!(revisions, [3, 3]);
}

#[tokio::test]
async fn a_transaction_that_fails_writes_nothing() {
    let store = in_memory().await;
    let failed = store.transact(|tx| {
        tx.put(disk("d-1", 1));
        Err::<(), _>(StoreError::NoSuchLease(7))
    });
    assert!(matches!(failed.await, Err(StoreError::NoSuchLease(7))));
    assert_eq!((get(&store, "d-1"), store.snapshot().revision()), (None, Revision::ZERO));
}

/// Runs `body` in a transaction, and `meanwhile` once between its first run and its commit. Says how often it ran.
async fn overtaken<F>(store: &Store, body: impl Fn(&mut Tx) + Send + Sync, meanwhile: F) -> u32
where
    F: Future<Output = ()> + Send,
{
    let runs = AtomicU32::new(0);
    let mut meanwhile = Some(Box::pin(meanwhile));
    let done = store.transact(|tx| {
        runs.fetch_add(1, Ordering::SeqCst);
        body(tx);
        if let Some(meanwhile) = meanwhile.take() {
            block_in_place(|| Handle::current().block_on(meanwhile));
        }
        Ok::<_, StoreError>(())
    });
    done.await.unwrap();
    runs.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_relied_on_is_compared() {
    // What the transaction does besides writing a note; what happens meanwhile; how often it must run.
    let read: fn(&mut Tx) = |tx| assert!(tx.get::<Disk>("a", "r", "d-1").is_none_or(|d| d.id == "d-1"));
    let read_absent: fn(&mut Tx) = |tx| assert!(tx.get::<Disk>("a", "r", "d-9").is_none_or(|d| d.gib == 77));
    let list: fn(&mut Tx) = |tx| assert!(tx.list::<Disk>("a", "r").count() > 0);
    let list_other: fn(&mut Tx) = |tx| assert_eq!(tx.list::<Disk>("a", "r2").count(), 0);
    let index: fn(&mut Tx) = |tx| assert!(tx.by_index::<Disk>("a", "r", "gib", "77").count() < 2);
    let index_1: fn(&mut Tx) = |tx| assert!(tx.by_index::<Disk>("a", "r", "gib", "1").count() > 0);
    let snapshot: fn(&mut Tx) = |tx| assert!(tx.snapshot().get::<Disk>("a", "r", "d-1").is_some());
    let write: fn(&mut Tx) = |tx| tx.put(disk("d-1", 5));
    let remove: fn(&mut Tx) = |tx| assert!(tx.delete::<Disk>("a", "r", "d-1").is_some());
    let cases: [Case; 14] = [
        ("read, changed", read, |s| changed(s, "d-1"), 2),
        ("read, deleted", read, |s| deleted(s, "d-1"), 2),
        ("absent, created", read_absent, |s| changed(s, "d-9"), 2),
        ("another changed", read, |s| changed(s, "d-2"), 1),
        ("written blindly, changed", write, |s| changed(s, "d-1"), 2),
        ("deleted, changed", remove, |s| changed(s, "d-1"), 2),
        ("listed, entered", list, |s| changed(s, "d-9"), 2),
        ("listed, changed", list, |s| changed(s, "d-1"), 2),
        ("listed, left", list, |s| deleted(s, "d-2"), 2),
        ("another scope listed", list_other, |s| changed(s, "d-1"), 1),
        ("in index, entered", index, |s| changed(s, "d-9"), 2),
        ("in index, left", index_1, |s| deleted(s, "d-2"), 2),
        ("another part of the index", index, |s| deleted(s, "d-1"), 1),
        ("read without relying on it", snapshot, |s| changed(s, "d-1"), 1),
    ];
    for (name, reads, meanwhile, expected) in cases {
        let store = in_memory().await;
        put(&store, disk("d-1", 1)).await;
        put(&store, disk("d-2", 1)).await;
        let body = |tx: &mut Tx| {
            reads(tx);
            tx.put(note("n", name));
        };
        assert_eq!(overtaken(&store, body, meanwhile(&store)).await, expected, "{name}");
        assert_eq!(store.snapshot().get::<Note>("a", "r", "n").unwrap().text, name);
    }
}

type Case = (&'static str, fn(&mut Tx), fn(&Store) -> Meanwhile, u32);

type Meanwhile = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn changed(store: &Store, id: &'static str) -> Meanwhile {
    let store = store.clone();
    Box::pin(async move { put(&store, disk(id, 77)).await })
}

fn deleted(store: &Store, id: &'static str) -> Meanwhile {
    let store = store.clone();
    Box::pin(async move { assert!(delete::<Disk>(&store, id).await) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_transaction_is_never_repeated() {
    let store = in_memory().await;
    put(&store, disk("d-1", 1)).await;
    let body = |tx: &mut Tx| assert_eq!(tx.get::<Disk>("a", "r", "d-1").unwrap().gib, 1);
    assert_eq!(overtaken(&store, body, changed(&store, "d-1")).await, 1);
}

/// Each transaction finds the other's group unused and removes its own; only one may.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_transactions_cannot_each_rely_on_what_the_other_removes() {
    for _ in 0..100 {
        let store = in_memory().await;
        put(&store, disk("d-1", 1)).await;
        put(&store, disk("d-2", 2)).await;
        let remove = |own: &'static str, gib: &'static str| {
            let store = store.clone();
            async move {
                let removed = store.transact(|tx| {
                    if tx.by_index::<Disk>("a", "r", "gib", gib).next().is_some() {
                        tx.delete::<Disk>("a", "r", own);
                    }
                    Ok::<_, StoreError>(())
                });
                removed.await.unwrap();
            }
        };
        let (one, two) = (tokio::spawn(remove("d-1", "2")), tokio::spawn(remove("d-2", "1")));
        one.await.unwrap();
        two.await.unwrap();
        assert_eq!(store.snapshot().count::<Disk>(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_increments_all_count() {
    let folder = tempfile::tempdir().unwrap();
    for store in [in_memory().await, builder().open_sqlite(folder.path().join("state.db")).await.unwrap()] {
        put(&store, disk("d", 0)).await;
        let mut tasks = JoinSet::new();
        for task in 0..20 {
            let store = store.clone();
            tasks.spawn(async move {
                for n in 0..10 {
                    let count = store.transact(|tx| {
                        let gib = tx.get::<Disk>("a", "r", "d").map_or(0, |disk| disk.gib) + 1;
                        tx.put(disk("d", gib));
                        tx.create(disk(&format!("d-{task}-{n}"), gib))?;
                        Ok::<_, StoreError>(gib)
                    });
                    let count = count.await.unwrap();
                    assert!(
                        get(&store, "d").unwrap() >= count,
                        "a snapshot after the answer shows the commit"
                    );
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(get(&store, "d"), Some(200));
        let mut counts: Vec<u32> =
            store.snapshot().list_all::<Disk>().filter(|d| d.id != "d").map(|d| d.gib).collect();
        counts.sort_unstable();
        assert_eq!(counts, (1..=200).collect::<Vec<_>>());
        store.close().await;
    }
}

/// Others keep entering what a transaction lists; it gets its turn nonetheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_transaction_does_not_starve() {
    let store = in_memory().await;
    let stop = Arc::new(AtomicU32::new(0));
    let mut others = JoinSet::new();
    for task in 0..8 {
        let (store, stop) = (store.clone(), Arc::clone(&stop));
        others.spawn(async move {
            for n in 0.. {
                if stop.load(Ordering::SeqCst) != 0 {
                    return;
                }
                put(&store, disk(&format!("d-{task}-{}", n % 50), n)).await;
            }
        });
    }
    for n in 0..20 {
        let slow = store.transact(|tx| {
            let count = tx.list::<Disk>("a", "r").count();
            std::thread::sleep(Duration::from_millis(5));
            tx.put(note("n", &format!("{n} {count}")));
            Ok::<_, StoreError>(())
        });
        tokio::time::timeout(Duration::from_secs(20), slow).await.unwrap().unwrap();
    }
    stop.store(1, Ordering::SeqCst);
    others.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_transactions_are_commits_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = builder().open_sqlite(folder.path().join("state.db")).await.unwrap();
    let mut events = store.watch_all(Revision::ZERO).unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..500 {
        let store = store.clone();
        tasks.spawn(async move { put(&store, disk(&format!("d-{n:03}"), n)).await });
    }
    tasks.join_all().await;
    assert_eq!(store.snapshot().count::<Disk>(), 500);
    let mut revisions = Vec::new();
    for _ in 0..500 {
        revisions.push(events.next().await.unwrap().revision.get());
    }
    assert_eq!(revisions, (1..=500).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_type_has_one_registration() {
    let store = builder().register::<Disk>().in_memory().await.unwrap();
    put(&store, disk("d", 1)).await;
    assert_eq!((store.snapshot().count::<Disk>(), Disk::KIND), (1, "test.disk"));
}
