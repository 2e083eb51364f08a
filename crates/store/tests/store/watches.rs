//! Watches: order, gaps, and watchers that are too slow.

use std::time::Duration;

use haar_store::{Change, Event, Key, Resource, Revision, Store, StoreError, Watch};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{Disk, Note, builder, delete, disk, in_memory, note, put};

/// Id, size or deletion, revision.
fn shown(event: &Event<Disk>) -> (String, Option<u32>, u64) {
    match event {
        Event::Put(disk) => (disk.id.clone(), Some(disk.gib), event.revision().get()),
        Event::Delete(key, revision) => (key.id().to_owned(), None, revision.get()),
    }
}

async fn take(watch: &mut Watch<Disk>, count: usize) -> Vec<(String, Option<u32>, u64)> {
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(shown(&timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap()));
    }
    events
}

#[tokio::test]
async fn changes_come_in_order_from_any_revision() {
    let store = in_memory().await;
    let mut early = store.watch::<Disk>(Revision::ZERO).unwrap();
    put(&store, disk("d-1", 1)).await;
    put(&store, note("n", "")).await;
    put(&store, disk("d-1", 2)).await;
    let several = store.transact(|tx| {
        tx.put(disk("d-2", 1));
        tx.delete::<Disk>("a", "r", "d-1");
        tx.put(note("n", "x"));
        Ok::<_, StoreError>(())
    });
    several.await.unwrap();
    let all = [
        ("d-1".to_owned(), Some(1), 1),
        ("d-1".to_owned(), Some(2), 3),
        ("d-1".to_owned(), None, 4),
        ("d-2".to_owned(), Some(1), 4),
    ];
    assert_eq!(take(&mut early, 4).await, all);
    for (from, skipped) in [(0, 0), (1, 1), (2, 1), (3, 2), (4, 4)] {
        let mut watch = store.watch::<Disk>(Revision::new(from)).unwrap();
        assert_eq!(take(&mut watch, 4 - skipped).await, all[skipped..], "{from}");
        assert!(timeout(Duration::from_millis(1), watch.next()).await.is_err());
    }
    let mut every = store.watch_all(Revision::new(2)).unwrap();
    let change = |key: &str, revision, deleted| Change {
        key: Key::parse(&format!("test.{key}")).unwrap(),
        revision: Revision::new(revision),
        deleted,
    };
    for expected in [
        change("disk/a/r/d-1", 3, false),
        change("disk/a/r/d-1", 4, true),
        change("disk/a/r/d-2", 4, false),
        change("note/a/r/n", 4, false),
    ] {
        assert_eq!(every.next().await.unwrap(), expected);
    }
}

#[tokio::test]
async fn waiting_can_be_cancelled() {
    let store = in_memory().await;
    let mut watch = store.watch::<Disk>(Revision::ZERO).unwrap();
    for n in 0..50 {
        assert!(timeout(Duration::from_micros(1), watch.next()).await.is_err());
        put(&store, disk("d", n)).await;
        put(&store, disk("e", n)).await;
        let events = take(&mut watch, 2).await;
        assert_eq!((events[0].1, events[1].1), (Some(n), Some(n)));
    }
}

#[tokio::test]
async fn a_slow_watcher_is_told_to_list_again() {
    let store = builder().history(10).in_memory().await.unwrap();
    let mut slow = store.watch::<Disk>(Revision::ZERO).unwrap();
    for n in 0..30 {
        put(&store, disk("d", n)).await;
    }
    match slow.next().await {
        Err(StoreError::Compacted { oldest }) => assert_eq!(oldest, Revision::new(20)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(store.watch::<Disk>(Revision::new(19)), Err(StoreError::Compacted { .. })));
    assert!(matches!(store.watch_all(Revision::new(19)), Err(StoreError::Compacted { .. })));
    let mut again = store.watch::<Disk>(Revision::new(20)).unwrap();
    assert_eq!(take(&mut again, 10).await.len(), 10);
    // A commit is kept whole, however large it is.
    let large = store.transact(|tx| {
        for n in 0..25 {
            tx.put(disk(&format!("l-{n:02}"), n));
        }
        Ok::<_, StoreError>(())
    });
    large.await.unwrap();
    assert_eq!(take(&mut again, 25).await.len(), 25);
}

#[tokio::test]
async fn history_begins_when_the_store_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = builder().open_sqlite(&path).await.unwrap();
    put(&store, disk("d", 1)).await;
    store.close().await;
    let store = builder().open_sqlite(&path).await.unwrap();
    assert!(matches!(store.watch::<Disk>(Revision::ZERO), Err(StoreError::Compacted { .. })));
    let mut watch = store.watch::<Disk>(store.snapshot().revision()).unwrap();
    put(&store, disk("d", 2)).await;
    assert_eq!(take(&mut watch, 1).await, [("d".to_owned(), Some(2), 2)]);
}

#[tokio::test]
async fn closing_ends_a_watch_after_its_last_change() {
    let store = in_memory().await;
    let mut watch = store.watch::<Disk>(Revision::ZERO).unwrap();
    put(&store, disk("d", 1)).await;
    delete::<Disk>(&store, "d").await;
    store.close().await;
    assert_eq!(take(&mut watch, 2).await.len(), 2);
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));
    let waiting = in_memory().await;
    let mut watch = waiting.watch::<Note>(Revision::ZERO).unwrap();
    drop(waiting);
    assert!(matches!(timeout(Duration::from_secs(10), watch.next()).await.unwrap(), Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_type_must_be_registered_to_be_watched() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Other;

    impl Resource for Other {
        const KIND: &'static str = "test.other";
        fn account(&self) -> &'static str {
            "a"
        }
        fn region(&self) -> &'static str {
            "r"
        }
        fn id(&self) -> &'static str {
            "o"
        }
    }

    let store: Store = in_memory().await;
    assert!(matches!(
        store.watch::<Other>(Revision::ZERO),
        Err(StoreError::NotRegistered { kind: "test.other" })
    ));
}

/// Watchers that come and go while others write see every change from where they began, once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watchers_miss_nothing_under_load() {
    let store = in_memory().await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = store.clone();
        tasks.spawn(async move {
            for n in 0..200 {
                put(&store, disk(&format!("d-{writer}"), n)).await;
            }
        });
    }
    for _ in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            let from = store.snapshot();
            let mut watch = store.watch::<Disk>(from.revision()).unwrap();
            let mut latest = from.revision().get();
            while latest < 800 {
                let event = timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap();
                latest += 1;
                assert_eq!(event.revision().get(), latest);
                tokio::task::yield_now().await;
            }
        });
    }
    tasks.join_all().await;
}
