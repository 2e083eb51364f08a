//! Records: reading, listing, indexes, files.

use std::os::unix::fs::PermissionsExt;

use haar_store::{Entry, Exists, Key, MAX_RECORD_BYTES, Resource, Revision, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::{Disk, Note, builder, delete, disk, get, ids, in_memory, note, put};

#[tokio::test]
async fn records_are_written_read_and_deleted() {
    let store = in_memory().await;
    assert_eq!(store.snapshot().revision(), Revision::ZERO);
    put(&store, disk("d-1", 8)).await;
    put(&store, disk("d-2", 8)).await;
    put(&store, disk("d-1", 9)).await;
    let entry: Entry<Disk> = store.snapshot().get("a", "r", "d-1").unwrap();
    assert_eq!((entry.revision, &*entry), (Revision::new(3), &disk("d-1", 9)));
    assert!(delete::<Disk>(&store, "d-1").await);
    assert!(!delete::<Disk>(&store, "d-1").await);
    assert_eq!(get(&store, "d-1"), None);
    assert_eq!(store.snapshot().revision(), Revision::new(4));
    assert_eq!(store.snapshot().count::<Disk>(), 1);
}

#[tokio::test]
async fn a_snapshot_never_changes() {
    let store = in_memory().await;
    put(&store, disk("d-1", 8)).await;
    let before = store.snapshot();
    put(&store, disk("d-1", 9)).await;
    put(&store, disk("d-2", 9)).await;
    assert_eq!(ids(before.list("a", "r")), ["d-1"]);
    assert_eq!(before.get::<Disk>("a", "r", "d-1").unwrap().gib, 8);
    assert_eq!(before.by_index::<Disk>("a", "r", "gib", "9").count(), 0);
    delete::<Disk>(&store, "d-1").await;
    assert_eq!(before.count::<Disk>(), 1);
}

#[tokio::test]
async fn what_differs_between_snapshots_is_told_as_it_was_and_as_it_is() {
    let store = in_memory().await;
    for n in 0..500 {
        put(&store, disk(&format!("d-{n:03}"), 8)).await;
    }
    let before = store.snapshot();
    assert_eq!(before.changes_since::<Disk>(&before).count(), 0);
    put(&store, disk("d-100", 9)).await;
    put(&store, disk("d-999", 10)).await;
    put(&store, disk("d-998", 10)).await;
    delete::<Disk>(&store, "d-200").await;
    delete::<Disk>(&store, "d-998").await;
    put(&store, note("n-1", "another kind")).await;
    let after = store.snapshot();
    let gib = |entry: Option<&Entry<Disk>>| entry.map(|disk| (disk.id.clone(), disk.gib));
    let changes: Vec<_> =
        after.changes_since::<Disk>(&before).map(|(old, new)| (gib(old), gib(new))).collect();
    let at = |id: &str, gib| Some((id.to_owned(), gib));
    assert_eq!(changes, [(at("d-100", 8), at("d-100", 9)), (at("d-200", 8), None), (None, at("d-999", 10)),]);
    assert_eq!(after.changes_since::<Note>(&before).count(), 1);
}

#[tokio::test]
async fn an_equal_record_is_not_written_again() {
    let store = in_memory().await;
    put(&store, disk("d-1", 8)).await;
    let before = store.snapshot().revision();
    put(&store, disk("d-1", 8)).await;
    assert_eq!(store.snapshot().revision(), before);
    // Unless that changes what it is bound to.
    let lease = store.grant(std::time::Duration::from_secs(60)).await.unwrap();
    let leased = |lease| {
        let store = store.clone();
        async move {
            let write = store.transact(|tx| {
                match lease {
                    Some(lease) => tx.put_leased(disk("d-1", 8), lease),
                    None => tx.put(disk("d-1", 8)),
                }
                Ok::<_, StoreError>(())
            });
            write.await.unwrap();
            store.snapshot().get::<Disk>("a", "r", "d-1").unwrap().lease
        }
    };
    assert_eq!(leased(Some(lease)).await, Some(lease));
    assert_eq!(leased(None).await, None);
    store.revoke(lease).await.unwrap();
    assert_eq!(get(&store, "d-1"), Some(8));
}

#[tokio::test]
async fn listings_are_sorted_and_keep_to_their_account_and_region() {
    let store = in_memory().await;
    for (account, region, id) in [
        ("a", "r", "d-2"),
        ("a", "r", "d-10"),
        ("a", "r", "x/y"),
        ("a", "r", "é"),
        ("a", "r-1", "d-3"),
        ("a", "r0", "d-4"),
        ("a1", "r", "d-5"),
        ("a-", "r", "d-6"),
    ] {
        put(&store, Disk { account: account.into(), region: region.into(), ..disk(id, 1) }).await;
    }
    put(&store, note("n", "")).await;
    let snapshot = store.snapshot();
    assert_eq!(ids(snapshot.list("a", "r")), ["d-10", "d-2", "x/y", "é"]);
    assert_eq!(ids(snapshot.list("a", "r-1")), ["d-3"]);
    assert_eq!(ids(snapshot.list("a", "")), [""; 0]);
    assert_eq!(ids(snapshot.list_after("a", "r", "d-10")), ["d-2", "x/y", "é"]);
    assert_eq!(ids(snapshot.list_after("a", "r", "d-11")), ["d-2", "x/y", "é"]);
    assert_eq!(ids(snapshot.list_after("a", "r", "")), ["d-10", "d-2", "x/y", "é"]);
    assert_eq!(ids(snapshot.list_after("a", "r", "é")), [""; 0]);
    assert_eq!(ids(snapshot.list_after("a", "r", "\u{10ffff}")), [""; 0]);
    assert_eq!(snapshot.list_all::<Disk>().count(), 8);
    assert_eq!(snapshot.list_all::<Note>().count(), 1);
    let key = Key::new(Disk::KIND, "a", "r", "x/y").unwrap();
    assert_eq!(snapshot.get_key::<Disk>(&key).unwrap().id, "x/y");
}

#[tokio::test]
async fn indexes_follow_their_records() {
    let store = in_memory().await;
    let tagged =
        |id: &str, tags: &[&str]| Disk { tags: tags.iter().map(|t| (*t).into()).collect(), ..disk(id, 1) };
    let by = |value: &str| ids(store.snapshot().by_index("a", "r", "tag", value));
    put(&store, tagged("d-2", &["x", "y"])).await;
    put(&store, tagged("d-1", &["x", "xx"])).await;
    put(&store, tagged("d-3", &["x\0", "\0\0x", ""])).await;
    put(&store, Disk { account: "b".into(), ..tagged("d-4", &["x"]) }).await;
    assert_eq!(by("x"), ["d-1", "d-2"]);
    assert_eq!(by("xx"), ["d-1"]);
    assert_eq!(by("x\0"), ["d-3"]);
    assert_eq!(by("\0\0x"), ["d-3"]);
    assert_eq!(by(""), ["d-3"]);
    assert_eq!(by("\0"), [""; 0]);
    assert_eq!(store.snapshot().by_index::<Disk>("a", "r", "gib", "1").count(), 3);
    assert_eq!(store.snapshot().by_index::<Disk>("a", "r", "other", "x").count(), 0);
    put(&store, tagged("d-2", &["y", "y", "z"])).await;
    assert_eq!((by("x"), by("y"), by("z")), (vec!["d-1".into()], vec!["d-2".into()], vec!["d-2".into()]));
    put(&store, Disk { gib: 2, ..tagged("d-2", &["y"]) }).await;
    let snapshot = store.snapshot();
    assert_eq!(snapshot.by_index::<Disk>("a", "r", "tag", "y").map(|d| d.gib).collect::<Vec<_>>(), [2]);
    delete::<Disk>(&store, "d-2").await;
    delete::<Disk>(&store, "d-3").await;
    assert_eq!((by("y"), by("")), (vec![], vec![]));
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_alone() {
    /// Is written as `null`, which cannot be read as a number.
    #[derive(Clone, Serialize, Deserialize)]
    struct Float(f64);

    impl Resource for Float {
        const KIND: &'static str = "test.float";
        fn account(&self) -> &'static str {
            "a"
        }
        fn region(&self) -> &'static str {
            "r"
        }
        fn id(&self) -> &'static str {
            "f"
        }
    }

    let store = builder().register::<Float>().in_memory().await.unwrap();
    let write = |record: Disk| {
        let store = store.clone();
        async move {
            let write = store.transact(|tx| {
                tx.put(disk("with", 1));
                tx.put(record.clone());
                Ok::<_, StoreError>(())
            });
            write.await.unwrap_err()
        }
    };
    assert!(matches!(write(disk("", 1)).await, StoreError::InvalidKey(_)));
    assert!(matches!(write(Disk { account: "a/b".into(), ..disk("d", 1) }).await, StoreError::InvalidKey(_)));
    let large = Disk { tags: vec!["x".repeat(MAX_RECORD_BYTES)], ..disk("d", 1) };
    assert!(matches!(write(large).await, StoreError::TooLarge { .. }));
    let float = store.transact(|tx| {
        tx.put(Float(f64::NAN));
        Ok::<_, StoreError>(())
    });
    assert!(matches!(float.await, Err(StoreError::Encode { .. })));
    assert_eq!(store.snapshot().revision(), Revision::ZERO);
    put(&store, Float(0.5)).await;
    assert!(store.snapshot().get::<Float>("a", "r", "f").is_some_and(|float| float.0 == 0.5));
    // No record has such a key, so none is found, and none is created over it.
    assert!(store.snapshot().get::<Disk>("a", "r", "").is_none());
    let none =
        store.transact(|tx| Ok::<_, StoreError>(tx.get::<Disk>("a", "r\0", &"x".repeat(2000)).is_none()));
    assert!(none.await.unwrap());
    let created = store.transact(|tx| tx.create(disk("", 1)).map_err(StoreError::from));
    assert!(matches!(created.await, Err(StoreError::InvalidKey(_))));
}

#[tokio::test]
async fn create_finds_what_is_there() {
    let store = in_memory().await;
    put(&store, disk("d-1", 8)).await;
    let created = store.transact(|tx| {
        tx.create(disk("d-2", 1))?;
        assert_eq!(tx.create(disk("d-2", 2)), Err(Exists(Key::of(&disk("d-2", 2))?)));
        tx.delete::<Disk>("a", "r", "d-1");
        tx.create(disk("d-1", 3))?;
        Ok::<_, StoreError>(())
    });
    created.await.unwrap();
    assert_eq!((get(&store, "d-1"), get(&store, "d-2")), (Some(3), Some(1)));
    let created = store.transact(|tx| tx.create(disk("d-2", 1)).map_err(StoreError::from));
    assert!(matches!(created.await, Err(StoreError::Exists(key)) if key.id() == "d-2"));
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Unknown;

impl Resource for Unknown {
    const KIND: &'static str = "test.unknown";
    fn account(&self) -> &'static str {
        "a"
    }
    fn region(&self) -> &'static str {
        "r"
    }
    fn id(&self) -> &'static str {
        "u"
    }
}

#[tokio::test]
#[should_panic(expected = "were not registered")]
async fn reading_a_type_that_was_not_registered_is_a_mistake() {
    let _ = in_memory().await.snapshot().get::<Unknown>("a", "r", "u");
}

#[tokio::test]
async fn a_file_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = builder().open_sqlite(&path).await.unwrap();
    let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    put(&store, disk("d-1", 8)).await;
    assert_eq!((mode("state.db"), mode("state.db-wal")), (0o600, 0o600));
    put(&store, note("n", "text")).await;
    put(&store, disk("d-2", 8)).await;
    delete::<Disk>(&store, "d-2").await;
    let before: Vec<Entry<Disk>> = store.snapshot().list_all().cloned().collect();
    store.close().await;
    let late = store.transact(|tx| tx.create(disk("d", 1)).map_err(StoreError::from));
    assert!(matches!(late.await, Err(StoreError::Closed)));
    assert_eq!(get(&store, "d-1"), Some(8), "snapshots stay readable");

    let store = builder().open_sqlite(&path).await.unwrap();
    let after: Vec<Entry<Disk>> = store.snapshot().list_all().cloned().collect();
    assert_eq!(store.snapshot().revision(), Revision::new(4));
    assert_eq!(
        before.iter().map(|d| (d.revision, Disk::clone(d))).collect::<Vec<_>>(),
        after.iter().map(|d| (d.revision, Disk::clone(d))).collect::<Vec<_>>()
    );
    assert_eq!(store.snapshot().get::<Note>("a", "r", "n").unwrap().text, "text");
    put(&store, disk("d-3", 1)).await;
    assert_eq!(store.snapshot().revision(), Revision::new(5));
}

#[tokio::test]
async fn a_file_is_used_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = builder().open_sqlite(&path).await.unwrap();
    match builder().open_sqlite(&path).await.err() {
        Some(StoreError::InUse(used)) => assert_eq!(used, path),
        e => panic!("{e:?}"),
    }
    put(&store, disk("d-1", 8)).await;
    store.close().await;
    assert!(builder().open_sqlite(&path).await.is_ok());
}

#[tokio::test]
async fn the_last_handle_lets_go_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    drop(builder().open_sqlite(&path).await.unwrap());
    // Waits up to half a second for whoever has it.
    assert!(builder().open_sqlite(&path).await.is_ok());
}

#[tokio::test]
async fn what_is_no_state_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let open = async |name: &str| builder().open_sqlite(path(name)).await.err().unwrap();

    std::fs::write(path("text"), "x".repeat(10_000)).unwrap();
    assert!(matches!(open("text").await, StoreError::Corrupt(_)));
    assert_eq!(std::fs::read(path("text")).unwrap().len(), 10_000);

    let other = rusqlite::Connection::open(path("other")).unwrap();
    other.execute_batch("CREATE TABLE mine (x)").unwrap();
    drop(other);
    assert!(matches!(open("other").await, StoreError::Corrupt(_)));

    builder().open_sqlite(path("newer")).await.unwrap().close().await;
    let newer = rusqlite::Connection::open(path("newer")).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    assert!(matches!(open("newer").await, StoreError::NewerLayout { found: 99, .. }));

    assert!(matches!(open("no/such/folder").await, StoreError::Io(_)));
    std::fs::create_dir(path("folder")).unwrap();
    assert!(matches!(open("folder").await, StoreError::Io(_)));
}

#[tokio::test]
async fn a_file_of_the_first_layout_is_brought_to_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = builder().open_sqlite(&path).await.unwrap();
    put(&store, disk("d-1", 8)).await;
    store.close().await;
    let older = rusqlite::Connection::open(&path).unwrap();
    older
        .execute_batch(
            "CREATE INDEX record_by_revision ON record (revision);
             CREATE TABLE deletion (scope TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
             PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(older);

    let store = builder().open_sqlite(&path).await.unwrap();
    assert_eq!(store.snapshot().get::<Disk>("a", "r", "d-1").unwrap().gib, 8);
    put(&store, disk("d-1", 9)).await;
    store.close().await;
    let newest = rusqlite::Connection::open(&path).unwrap();
    let left = "SELECT count(*) FROM sqlite_schema WHERE name IN ('record_by_revision', 'deletion')";
    assert_eq!(newest.query_row(left, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

#[tokio::test]
async fn records_of_another_version_are_named() {
    /// The same kind with another shape.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Other {
        id: String,
        needed: u32,
    }

    impl Resource for Other {
        const KIND: &'static str = Note::KIND;
        fn account(&self) -> &'static str {
            "a"
        }
        fn region(&self) -> &'static str {
            "r"
        }
        fn id(&self) -> &str {
            &self.id
        }
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = builder().open_sqlite(&path).await.unwrap();
    put(&store, note("n", "text")).await;
    store.close().await;
    match Store::builder().register::<Disk>().open_sqlite(&path).await.err() {
        Some(StoreError::UnknownKind { kind }) => assert_eq!(kind, "test.note"),
        e => panic!("{e:?}"),
    }
    match Store::builder().register::<Other>().open_sqlite(&path).await.err() {
        Some(StoreError::Decode { key, reason }) => {
            assert_eq!(key, "test.note/a/r/n");
            assert!(reason.contains("needed"), "{reason}");
        }
        e => panic!("{e:?}"),
    }
    // And nothing was lost by that.
    let store = builder().open_sqlite(&path).await.unwrap();
    assert_eq!(store.snapshot().get::<Note>("a", "r", "n").unwrap().text, "text");
}
