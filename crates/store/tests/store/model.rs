//! Random transactions, several at a time, against a model: a plain map that carries them out one after the other, in
//! the order in which the store says that they were committed. What each saw, what it changed, and what watches,
//! listings and indexes then show must be the same in both, also after the file was closed and opened again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use haar_store::{Event, Revision, Store, StoreError, Tx, Watch};
use proptest::prelude::*;
use tokio::task::JoinSet;

use crate::{Disk, Note, builder, disk, note};

/// Sizes by id.
type Model = BTreeMap<String, u32>;

#[derive(Debug, Clone)]
enum Op {
    Get(u8),
    List,
    BySize(u32),
    /// Writes a size that depends on everything that was seen before.
    Put(u8, u32),
    Create(u8),
    Delete(u8),
}

#[derive(Debug, Clone)]
enum Step {
    Together(Vec<Vec<Op>>),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let id = || 0..4_u8;
    prop_oneof![
        3 => id().prop_map(Op::Get),
        1 => Just(Op::List),
        1 => (0..4_u32).prop_map(Op::BySize),
        3 => (id(), 0..4_u32).prop_map(|(id, gib)| Op::Put(id, gib)),
        1 => id().prop_map(Op::Create),
        2 => id().prop_map(Op::Delete),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let transactions = prop::collection::vec(prop::collection::vec(op(), 1..6), 1..7);
    prop_oneof![8 => transactions.prop_map(Step::Together), 1 => Just(Step::Reopen)]
}

fn size(seen: &str, gib: u32) -> u32 {
    (seen.bytes().map(u32::from).sum::<u32>() + gib) % 4
}

/// Carries out a transaction, and says what it saw.
fn in_store(tx: &mut Tx, ops: &[Op]) -> String {
    let mut seen = String::new();
    for op in ops {
        // So that transactions meet.
        std::thread::yield_now();
        match op {
            Op::Get(id) => {
                let found = tx.get::<Disk>("a", "r", &id.to_string()).map(|disk| disk.gib);
                write!(seen, "{found:?};").unwrap();
            }
            Op::List => {
                let all: Vec<_> = tx.list::<Disk>("a", "r").map(|disk| (disk.id.clone(), disk.gib)).collect();
                write!(seen, "{all:?};").unwrap();
            }
            Op::BySize(gib) => {
                let found: Vec<_> = tx
                    .by_index::<Disk>("a", "r", "gib", &gib.to_string())
                    .map(|disk| disk.id.clone())
                    .collect();
                write!(seen, "{found:?};").unwrap();
            }
            Op::Put(id, gib) => tx.put(disk(&id.to_string(), size(&seen, *gib))),
            Op::Create(id) => {
                let created = tx.create(disk(&id.to_string(), size(&seen, 0))).is_ok();
                write!(seen, "{created};").unwrap();
            }
            Op::Delete(id) => {
                let deleted = tx.delete::<Disk>("a", "r", &id.to_string()).map(|disk| disk.gib);
                write!(seen, "{deleted:?};").unwrap();
            }
        }
    }
    seen
}

fn in_model(model: &mut Model, ops: &[Op]) -> String {
    let mut seen = String::new();
    for op in ops {
        match op {
            Op::Get(id) => write!(seen, "{:?};", model.get(&id.to_string()).copied()).unwrap(),
            Op::List => {
                let all: Vec<_> = model.iter().map(|(id, gib)| (id.clone(), *gib)).collect();
                write!(seen, "{all:?};").unwrap();
            }
            Op::BySize(gib) => {
                let found: Vec<_> =
                    model.iter().filter(|(_, g)| *g == gib).map(|(id, _)| id.clone()).collect();
                write!(seen, "{found:?};").unwrap();
            }
            Op::Put(id, gib) => drop(model.insert(id.to_string(), size(&seen, *gib))),
            Op::Create(id) => {
                let created = !model.contains_key(&id.to_string());
                if created {
                    model.insert(id.to_string(), size(&seen, 0));
                }
                write!(seen, "{created};").unwrap();
            }
            Op::Delete(id) => write!(seen, "{:?};", model.remove(&id.to_string())).unwrap(),
        }
    }
    seen
}

/// What changed from one state of the model to the next: sizes, or none for what was deleted.
fn difference(before: &Model, after: &Model) -> BTreeMap<String, Option<u32>> {
    let gone = before.keys().filter(|id| !after.contains_key(*id)).map(|id| (id.clone(), None));
    let put = after
        .iter()
        .filter(|(id, gib)| before.get(*id) != Some(gib))
        .map(|(id, gib)| (id.clone(), Some(*gib)));
    gone.chain(put).collect()
}

async fn check_reads(store: &Store, model: &Model) {
    let snapshot = store.snapshot();
    let all: Model = snapshot.list_all::<Disk>().map(|disk| (disk.id.clone(), disk.gib)).collect();
    assert_eq!(all, *model);
    assert_eq!(snapshot.count::<Disk>(), model.len());
    for gib in 0..4 {
        let found: Vec<_> = snapshot
            .by_index::<Disk>("a", "r", "gib", &gib.to_string())
            .map(|disk| disk.id.clone())
            .collect();
        let expected: Vec<_> = model.iter().filter(|(_, g)| **g == gib).map(|(id, _)| id.clone()).collect();
        assert_eq!(found, expected);
    }
}

/// Takes the changes of one commit from a watch.
async fn changes_at(
    watch: &mut Watch<Disk>,
    revision: Revision,
    count: usize,
) -> BTreeMap<String, Option<u32>> {
    let mut changes = BTreeMap::new();
    for _ in 0..count {
        let event = watch.next().await.unwrap();
        assert_eq!(event.revision(), revision);
        let (id, change) = match event {
            Event::Put(disk) => (disk.id.clone(), Some(disk.gib)),
            Event::Delete(key, _) => (key.id().to_owned(), None),
        };
        assert_eq!(changes.insert(id, change), None, "one change a commit and key");
    }
    changes
}

async fn run(path: &Path, steps: Vec<Step>) {
    let mut model = Model::new();
    let mut store = builder().open_sqlite(path).await.unwrap();
    let mut next = 0;
    for step in steps {
        let together = match step {
            Step::Together(together) => together,
            Step::Reopen => {
                let revision = store.snapshot().revision();
                store.close().await;
                store = builder().open_sqlite(path).await.unwrap();
                assert_eq!(store.snapshot().revision(), revision);
                check_reads(&store, &model).await;
                continue;
            }
        };
        let from = store.snapshot().revision();
        let mut tasks = JoinSet::new();
        for ops in &together {
            let (store, ops, id) = (store.clone(), ops.clone(), next.to_string());
            next += 1;
            tasks.spawn(async move {
                let done = store.transact(|tx| {
                    let seen = in_store(tx, &ops);
                    tx.create(note(&id, &seen))?;
                    Ok::<_, StoreError>(seen)
                });
                done.await.unwrap()
            });
        }
        let mut answers = tasks.join_all().await;
        let first = next - together.len();

        let mut notes = store.watch::<Note>(from).unwrap();
        let mut disks = store.watch::<Disk>(from).unwrap();
        let mut seen_in_order = Vec::new();
        for n in 1..=together.len() {
            let Event::Put(note) = notes.next().await.unwrap() else { panic!("a note is never deleted") };
            assert_eq!(
                note.revision,
                Revision::new(from.get() + n as u64),
                "every transaction is one commit"
            );
            let ops = &together[note.id.parse::<usize>().unwrap() - first];
            let before = model.clone();
            let expected = in_model(&mut model, ops);
            assert_eq!(note.text, expected, "what {ops:?} saw");
            let difference = difference(&before, &model);
            assert_eq!(changes_at(&mut disks, note.revision, difference.len()).await, difference);
            seen_in_order.push(expected);
        }
        answers.sort_unstable();
        seen_in_order.sort_unstable();
        assert_eq!(answers, seen_in_order, "what was committed is what was answered");
        assert_eq!(store.snapshot().revision(), Revision::new(from.get() + together.len() as u64));
        check_reads(&store, &model).await;
    }
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn transactions_are_as_if_one_after_the_other(steps in prop::collection::vec(step(), 1..12)) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(run(&folder.path().join("state.db"), steps));
    }
}
