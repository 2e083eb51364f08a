//! Disks that are full or fail. Each test runs again as a process of its own, with its own mounts or limits.

use std::path::Path;
use std::process::Command;

use haar_store::{Revision, Store, StoreError};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource as Limit, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::{Disk, builder, disk, get, put};

/// Set in the environment of the child, to a folder of its own.
const FOLDER: &str = "HAAR_STORE_DISK_FOLDER";

/// Runs an ignored test of this module in a child with its own mounts.
fn run_child(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let output = command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("disk::{test}"), "--ignored", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Writes records of a few kilobytes until that fails; says how many there are then, and why.
async fn fill(store: &Store) -> (u32, StoreError) {
    for n in 0..100_000 {
        let record = Disk { tags: vec!["x".repeat(3000)], ..disk(&format!("d-{n:06}"), n) };
        let written = store.transact(|tx| {
            tx.put(record.clone());
            Ok::<_, StoreError>(())
        });
        if let Err(e) = written.await {
            return (n, e);
        }
    }
    panic!("the disk is never full");
}

/// After a failed commit: nothing has changed, and reading goes on.
fn check_unchanged(store: &Store, count: u32, revision: Revision) {
    let snapshot = store.snapshot();
    assert_eq!((snapshot.count::<Disk>(), snapshot.revision()), (count as usize, revision));
    assert_eq!(get(store, &format!("d-{:06}", count - 1)), Some(count - 1));
    assert_eq!(get(store, &format!("d-{count:06}")), None);
}

async fn check_goes_on(store: Store, path: &Path, count: u32) {
    put(&store, disk("after", 7)).await;
    assert_eq!(get(&store, "after"), Some(7));
    store.close().await;
    let store = builder().open_sqlite(path).await.unwrap();
    assert_eq!(store.snapshot().count::<Disk>(), count as usize + 1);
    assert_eq!(get(&store, "after"), Some(7));
    assert_eq!(store.snapshot().revision(), Revision::new(u64::from(count) + 1));
}

#[test]
fn a_full_disk_fails_the_commit_and_nothing_else() {
    run_child("full");
}

#[tokio::test]
#[ignore = "run by the test above, in its own mount namespace"]
async fn full() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    // Seen by nobody else, and gone with this process.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("size=6m")).unwrap();
    std::fs::write(folder.join("ballast"), vec![1; 3 << 20]).unwrap();
    let path = folder.join("state.db");
    let store = builder().open_sqlite(&path).await.unwrap();
    let (count, e) = fill(&store).await;
    assert!(matches!(e, StoreError::Full(_)), "{e:?}");
    assert!(count > 10, "{count}");
    let revision = Revision::new(u64::from(count));
    check_unchanged(&store, count, revision);
    // Concurrent commits fail, each with its own error.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let store = store.clone();
        tasks.spawn(async move {
            let record = Disk { tags: vec!["x".repeat(500_000)], ..disk(&format!("e-{n}"), n) };
            let written = store.transact(|tx| {
                tx.put(record.clone());
                Ok::<_, StoreError>(())
            });
            matches!(written.await, Err(StoreError::Full(_)))
        });
    }
    assert_eq!(tasks.join_all().await, [true; 20]);
    check_unchanged(&store, count, revision);
    std::fs::remove_file(folder.join("ballast")).unwrap();
    check_goes_on(store, &path, count).await;
}

#[test]
fn a_failing_write_fails_the_commit_and_nothing_else() {
    run_child("failing");
}

#[tokio::test]
#[ignore = "run by the test above, with a limit on the size of its files"]
async fn failing() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let path = Path::new(&folder).join("state.db");
    let store = builder().open_sqlite(&path).await.unwrap();
    // SAFETY: no handler is installed; beyond the limit, writes fail instead of ending the process.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let (_, hard) = getrlimit(Limit::RLIMIT_FSIZE).unwrap();
    setrlimit(Limit::RLIMIT_FSIZE, 1 << 20, hard).unwrap();
    let (count, e) = fill(&store).await;
    assert!(matches!(e, StoreError::Io(_)), "{e:?}");
    check_unchanged(&store, count, Revision::new(u64::from(count)));
    setrlimit(Limit::RLIMIT_FSIZE, hard, hard).unwrap();
    check_goes_on(store, &path, count).await;
}
