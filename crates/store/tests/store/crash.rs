//! A process that is killed while it commits.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use haar_store::StoreError;

use crate::{Disk, Note, builder, disk, note};

/// The state file, in the environment of the child.
const FILE: &str = "HAAR_STORE_CRASH_FILE";

const TASKS: u32 = 8;

/// Commits until it is killed, and says so after each commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test below, as the process that is killed"]
async fn child() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let store = builder().open_sqlite(path).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            let id = task.to_string();
            loop {
                let committed = store.transact(|tx| {
                    let n = tx.get::<Disk>("a", "r", &id).map_or(0, |disk| disk.gib) + 1;
                    tx.put(disk(&id, n));
                    tx.put(note(&id, &n.to_string()));
                    tx.put(disk(&format!("{id}-{n}"), n));
                    tx.delete::<Disk>("a", "r", &format!("{id}-{}", n - 1));
                    Ok::<_, StoreError>(n)
                });
                let n = committed.await.unwrap();
                // One write, so that a line is whole or not there.
                std::io::stdout().write_all(format!("\n{task} {n}\n").as_bytes()).unwrap();
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let mut acknowledged: BTreeMap<u32, u32> = BTreeMap::new();
    for round in 0..8_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child", "--ignored", "--nocapture"])
            .env(FILE, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note_down = |line: &str| {
            let mut words = line.split(' ').map(str::parse::<u32>);
            if let (Some(Ok(task)), Some(Ok(n)), None) = (words.next(), words.next(), words.next()) {
                assert!(acknowledged.insert(task, n).is_none_or(|before| before < n), "{line}");
                return true;
            }
            false
        };
        // Let it begin, then kill it at some point.
        while !note_down(&lines.next().unwrap().unwrap()) {}
        std::thread::sleep(Duration::from_millis(17 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            note_down(&line);
        }

        let store = builder().open_sqlite(&path).await.unwrap();
        let snapshot = store.snapshot();
        for (task, n) in &acknowledged {
            let id = task.to_string();
            let stored = snapshot.get::<Disk>("a", "r", &id).unwrap().gib;
            assert!(stored >= *n, "task {task}: {stored} is stored, {n} was acknowledged");
        }
        // What was not acknowledged is there whole or not at all.
        for task in 0..TASKS {
            let id = task.to_string();
            let Some(disk) = snapshot.get::<Disk>("a", "r", &id) else { continue };
            assert_eq!(snapshot.get::<Note>("a", "r", &id).unwrap().text, disk.gib.to_string());
            let own: Vec<_> = snapshot
                .list::<Disk>("a", "r")
                .filter(|disk| disk.id.starts_with(&format!("{id}-")))
                .map(|disk| disk.gib)
                .collect();
            assert_eq!(own, [disk.gib]);
        }
        store.close().await;
    }
    assert_eq!(acknowledged.len(), TASKS as usize);
}
