use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::*;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Thing {
    id: String,
    spec: u32,
    status: u32,
}

impl Resource for Thing {
    const KIND: &'static str = "test.thing";
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

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Part {
    id: String,
    of: String,
}

impl Resource for Part {
    const KIND: &'static str = "test.part";
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

async fn store() -> Store {
    Store::builder().register::<Thing>().register::<Part>().in_memory().await.unwrap()
}

fn key(id: &str) -> Key {
    Key::new(Thing::KIND, "a", "r", id).unwrap()
}

async fn put(store: &Store, id: &str, spec: u32) {
    write(store, id, |thing| thing.spec = spec).await;
}

async fn write(store: &Store, id: &str, change: impl Fn(&mut Thing) + Send + Sync) {
    let written = store.transact(|tx| {
        let mut thing = tx
            .get::<Thing>("a", "r", id)
            .map_or(Thing { id: id.into(), spec: 0, status: 0 }, |thing| Thing::clone(&thing));
        change(&mut thing);
        tx.put(thing);
        Ok::<_, StoreError>(())
    });
    written.await.unwrap();
}

async fn delete(store: &Store, id: &str) {
    store.transact(|tx| Ok::<_, StoreError>(tx.delete::<Thing>("a", "r", id).is_some())).await.unwrap();
}

type Work = Pin<Box<dyn Future<Output = Result<Action, String>> + Send>>;

/// Id, spec and time of a run.
type Run = (String, Option<u32>, Duration);

/// Id, message and attempt of a failure.
type Failed = (String, String, u32);

/// Runs a closure, and keeps what happened and when.
#[derive(Clone)]
struct Recorder {
    work: Arc<dyn Fn(String, Option<Entry<Thing>>) -> Work + Send + Sync>,
    start: Instant,
    runs: Arc<Mutex<Vec<Run>>>,
    failures: Arc<Mutex<Vec<Failed>>>,
    panic_in_report: bool,
}

impl Recorder {
    fn new<F>(work: impl Fn(String, Option<Entry<Thing>>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Action, String>> + Send + 'static,
    {
        Self {
            work: Arc::new(move |id, entry| Box::pin(work(id, entry))),
            start: Instant::now(),
            runs: Arc::default(),
            failures: Arc::default(),
            panic_in_report: false,
        }
    }

    fn runs(&self) -> Vec<(String, Option<u32>)> {
        self.runs.lock().unwrap().iter().map(|(id, spec, _)| (id.clone(), *spec)).collect()
    }

    fn times(&self) -> Vec<Duration> {
        self.runs.lock().unwrap().iter().map(|(_, _, at)| *at).collect()
    }

    fn failures(&self) -> Vec<Failed> {
        self.failures.lock().unwrap().clone()
    }
}

impl Reconciler for Recorder {
    type Resource = Thing;
    type Error = String;

    fn triggers(&self, before: &Thing, after: &Thing) -> bool {
        before.spec != after.spec
    }

    async fn reconcile(&self, key: &Key, entry: Option<Entry<Thing>>) -> Result<Action, String> {
        let id = key.id().to_owned();
        let spec = entry.as_ref().map(|thing| thing.spec);
        self.runs.lock().unwrap().push((id.clone(), spec, self.start.elapsed()));
        (self.work)(id, entry).await
    }

    async fn failed(&self, key: &Key, failure: &Failure<String>, attempt: u32) {
        self.failures.lock().unwrap().push((key.id().into(), failure.to_string(), attempt));
        assert!(!self.panic_in_report, "report");
    }
}

fn done() -> Recorder {
    Recorder::new(|_, _| async { Ok(Action::Done) })
}

fn some(id: &str, spec: u32) -> (String, Option<u32>) {
    (id.to_owned(), Some(spec))
}

/// Lets everything happen that happens without time passing, and a little more.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

fn launch(store: &Store, recorder: &Recorder) -> Handle<Thing> {
    start(store, recorder.clone(), Options::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_record_runs_at_the_start_and_when_it_changes() {
    let store = store().await;
    put(&store, "1", 1).await;
    put(&store, "2", 1).await;
    let recorder = done();
    let handle = launch(&store, &recorder);
    settle().await;
    assert_eq!(recorder.runs(), [some("1", 1), some("2", 1)]);
    put(&store, "2", 2).await;
    put(&store, "3", 1).await;
    settle().await;
    assert_eq!(recorder.runs()[2..], [some("2", 2), some("3", 1)]);
    delete(&store, "1").await;
    settle().await;
    assert_eq!(recorder.runs()[4..], [("1".to_owned(), None)]);
    assert_eq!(handle.status(), Status::default());
}

#[tokio::test(start_paused = true)]
async fn its_own_status_asks_for_no_run() {
    let store = store().await;
    put(&store, "1", 1).await;
    let inner = store.clone();
    let recorder = Recorder::new(move |id, entry| {
        let store = inner.clone();
        async move {
            let spec = entry.unwrap().spec;
            write(&store, &id, |thing| thing.status = spec).await;
            Ok(Action::Done)
        }
    });
    let _handle = launch(&store, &recorder);
    settle().await;
    write(&store, "1", |thing| thing.status = 7).await;
    settle().await;
    assert_eq!(recorder.runs(), [some("1", 1)]);
    put(&store, "1", 2).await;
    settle().await;
    assert_eq!(recorder.runs(), [some("1", 1), some("1", 2)]);
    assert_eq!(store.snapshot().get::<Thing>("a", "r", "1").unwrap().status, 2);
}

#[tokio::test(start_paused = true)]
async fn one_run_an_id_and_a_few_ids_at_a_time() {
    let store = store().await;
    for n in 0..20 {
        put(&store, &n.to_string(), 1).await;
    }
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let busy: Arc<Mutex<BTreeMap<String, bool>>> = Arc::default();
    let recorder = {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        Recorder::new(move |id, _| {
            let (now, most, busy) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&busy));
            async move {
                assert_ne!(busy.lock().unwrap().insert(id.clone(), true), Some(true), "{id} runs twice");
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(Duration::from_secs(1)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                busy.lock().unwrap().insert(id, false);
                Ok(Action::Done)
            }
        })
    };
    let handle = start(&store, recorder.clone(), Options { concurrency: 3, ..Options::default() }).unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(handle.status(), Status { ready: 17, running: 3, ..Status::default() });
    for n in 0..20 {
        put(&store, &n.to_string(), 2).await;
        handle.poke(key(&n.to_string()));
    }
    sleep(Duration::from_secs(10)).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert!(recorder.failures().is_empty());
    let mut last: BTreeMap<String, Option<u32>> = BTreeMap::new();
    last.extend(recorder.runs());
    assert!(last.len() == 20 && last.values().all(|spec| *spec == Some(2)), "{last:?}");
    assert_eq!(recorder.runs().len(), 23, "those that ran before the change run twice");
}

#[tokio::test(start_paused = true)]
async fn changes_during_a_run_are_seen_by_one_more() {
    let store = store().await;
    put(&store, "1", 1).await;
    let recorder = Recorder::new(|_, _| async {
        sleep(Duration::from_secs(1)).await;
        Ok(Action::Done)
    });
    let handle = launch(&store, &recorder);
    settle().await;
    for spec in 2..5 {
        put(&store, "1", spec).await;
        handle.poke(key("1"));
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(recorder.runs(), [some("1", 1), some("1", 4)]);
}

#[tokio::test(start_paused = true)]
async fn failures_are_reported_and_repeated_later_each_time() {
    let store = store().await;
    put(&store, "1", 1).await;
    let count = Arc::new(AtomicUsize::new(0));
    let recorder = {
        let count = Arc::clone(&count);
        Recorder::new(move |_, _| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            async move { if n == 9 { Ok(Action::Done) } else { Err(format!("no {n}")) } }
        })
    };
    let handle = launch(&store, &recorder);
    settle().await;
    assert_eq!(handle.status(), Status { delayed: 1, failing: 1, ..Status::default() });
    sleep(Duration::from_secs(250)).await;
    assert_eq!(handle.status(), Status::default());
    let times = recorder.times();
    assert_eq!(times.len(), 10);
    for (n, pair) in times.windows(2).enumerate() {
        let gap = pair[1] - pair[0];
        let full = Duration::from_millis(500 << n).min(Duration::from_secs(60));
        // Timers have a resolution of a millisecond.
        assert!(gap >= full / 2 && gap <= full + Duration::from_millis(2), "{n}: {gap:?} of {full:?}");
    }
    let failures = recorder.failures();
    assert_eq!(failures.len(), 9);
    assert_eq!(failures[8], ("1".into(), "no 8".into(), 9));
    // It begins anew after a run that succeeded.
    let before = recorder.times().len();
    put(&store, "1", 2).await;
    sleep(Duration::from_millis(600)).await;
    assert!(recorder.times().len() >= before + 2);
    assert_eq!(recorder.failures()[9], ("1".into(), "no 10".into(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_change_cuts_the_wait_short_but_not_below_the_first_step() {
    let store = store().await;
    put(&store, "1", 1).await;
    let recorder = Recorder::new(|_, _| async { Err("no".into()) });
    let options = Options {
        backoff: Duration::from_secs(10),
        max_backoff: Duration::from_secs(1000),
        ..Options::default()
    };
    let handle = start(&store, recorder.clone(), options).unwrap();
    while recorder.times().len() < 5 {
        sleep(Duration::from_secs(1)).await;
    }
    // The next run is 80 to 160 seconds away. Longer than the first step after a failure: at once.
    sleep(Duration::from_secs(11)).await;
    let before = recorder.times();
    assert_eq!(before.len(), 5);
    put(&store, "1", 2).await;
    settle().await;
    let after = recorder.times();
    assert_eq!(after.len(), before.len() + 1);
    // Right after a failure, however often: after the first step.
    for _ in 0..100 {
        handle.poke(key("1"));
        settle().await;
    }
    assert_eq!(recorder.times().len(), after.len());
    sleep(Duration::from_secs(10)).await;
    let gap = recorder.times()[after.len()] - after[after.len() - 1];
    assert!(gap >= Duration::from_secs(5) && gap <= Duration::from_millis(10_002), "{gap:?}");
}

#[tokio::test(start_paused = true)]
async fn a_run_can_ask_for_the_next() {
    let store = store().await;
    put(&store, "1", 1).await;
    let recorder = Recorder::new(|_, _| async { Ok(Action::RequeueAfter(Duration::from_secs(7))) });
    let handle = launch(&store, &recorder);
    sleep(Duration::from_secs(20)).await;
    let seconds: Vec<u64> = recorder.times().iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [0, 7, 14]);
    handle.poke_id("a", "r", "1");
    settle().await;
    assert_eq!(recorder.times().len(), 4, "a poke does not wait");
    sleep(Duration::from_secs(6)).await;
    assert_eq!(recorder.times().len(), 4, "the old wait is forgotten");
    let forever = Recorder::new(|_, _| async { Ok(Action::RequeueAfter(Duration::MAX)) });
    let handle = launch(&store, &forever);
    sleep(Duration::from_secs(1000)).await;
    assert_eq!((forever.times().len(), handle.status().delayed), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_has_no_record_can_be_asked_for() {
    let store = store().await;
    let recorder = done();
    let handle = launch(&store, &recorder);
    handle.poke_id("a", "r", "orphan");
    handle.poke_id("a", "", "ignored");
    settle().await;
    assert_eq!(recorder.runs(), [("orphan".to_owned(), None)]);
    // And is forgotten then.
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(recorder.runs().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_repeated_until_it_succeeds() {
    let store = store().await;
    put(&store, "1", 1).await;
    let recorder = {
        let count = AtomicUsize::new(0);
        Recorder::new(move |_, _| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            async move { if (1..4).contains(&n) { Err("busy".into()) } else { Ok(Action::Done) } }
        })
    };
    let handle = launch(&store, &recorder);
    settle().await;
    delete(&store, "1").await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(recorder.runs()[1..], vec![("1".to_owned(), None); 4]);
    assert_eq!(handle.status(), Status::default());
}

#[tokio::test(start_paused = true)]
async fn idle_records_run_periodically() {
    let store = store().await;
    put(&store, "1", 1).await;
    let recorder = done();
    let _handle = launch(&store, &recorder);
    sleep(Duration::from_secs(1000)).await;
    let seconds: Vec<u64> = recorder.times().iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [0, 300, 600, 900]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure() {
    let store = store().await;
    put(&store, "1", 1).await;
    for panic_in_report in [false, true] {
        let count = AtomicUsize::new(0);
        let mut recorder = Recorder::new(move |_, _| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            async move { if n < 3 { panic!("bug {n}") } else { Ok(Action::Done) } }
        });
        recorder.panic_in_report = panic_in_report;
        let handle = launch(&store, &recorder);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(recorder.runs().len(), 4);
        assert_eq!(recorder.failures().len(), 3);
        assert_eq!(recorder.failures()[2], ("1".into(), "internal error: bug 2".into(), 3));
        assert_eq!(handle.status(), Status::default());
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_for_runs_and_begins_none() {
    let store = store().await;
    for id in ["1", "2", "3"] {
        put(&store, id, 1).await;
    }
    let finished = Arc::new(AtomicUsize::new(0));
    let recorder = {
        let finished = Arc::clone(&finished);
        Recorder::new(move |id, _| {
            let finished = Arc::clone(&finished);
            async move {
                sleep(Duration::from_secs(if id == "1" { 5 } else { 50 })).await;
                finished.fetch_add(1, Ordering::SeqCst);
                Ok(Action::Done)
            }
        })
    };
    let handle = start(&store, recorder.clone(), Options { concurrency: 2, ..Options::default() }).unwrap();
    settle().await;
    handle.stop(Duration::from_secs(10)).await;
    assert_eq!(recorder.start.elapsed().as_secs(), 10);
    assert_eq!(finished.load(Ordering::SeqCst), 1, "one was cut off");
    assert_eq!(recorder.runs().len(), 2, "the third never began");
    handle.poke(key("3"));
    handle.stop(Duration::ZERO).await;
    sleep(Duration::from_secs(1000)).await;
    assert_eq!((recorder.runs().len(), finished.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_last_handle_or_its_store() {
    let store = store().await;
    let (dropped, closed) = (done(), done());
    let handle = launch(&store, &dropped);
    handle.follow::<Part>(|_| Vec::new()).unwrap();
    let other = launch(&store, &closed);
    drop(handle.clone());
    put(&store, "1", 1).await;
    settle().await;
    drop(handle);
    settle().await;
    put(&store, "1", 2).await;
    settle().await;
    assert_eq!(dropped.runs(), [some("1", 1)]);
    assert_eq!(closed.runs(), [some("1", 1), some("1", 2)]);
    store.close().await;
    settle().await;
    other.poke(key("1"));
    other.stop(Duration::from_secs(1)).await;
    assert_eq!(closed.runs().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn other_records_can_ask_for_runs() {
    let store = store().await;
    put(&store, "1", 1).await;
    let recorder = done();
    let handle = launch(&store, &recorder);
    let follow = handle.follow::<Part>(|event| match event {
        Event::Put(part) => vec![key(&part.of)],
        Event::Delete(..) => vec![key("gone")],
    });
    follow.unwrap();
    settle().await;
    let put = store.transact(|tx| {
        tx.create(Part { id: "p".into(), of: "1".into() })?;
        Ok::<_, StoreError>(())
    });
    put.await.unwrap();
    settle().await;
    let delete = store.transact(|tx| Ok::<_, StoreError>(tx.delete::<Part>("a", "r", "p").is_some()));
    assert!(delete.await.unwrap());
    settle().await;
    assert_eq!(recorder.runs(), [some("1", 1), some("1", 1), ("gone".to_owned(), None)]);
}

/// A reconciler whose loop is too slow for the store's history.
#[derive(Clone)]
struct Slow(Recorder);

impl Reconciler for Slow {
    type Resource = Thing;
    type Error = String;

    fn triggers(&self, before: &Thing, after: &Thing) -> bool {
        std::thread::sleep(Duration::from_millis(20));
        self.0.triggers(before, after)
    }

    async fn reconcile(&self, key: &Key, entry: Option<Entry<Thing>>) -> Result<Action, String> {
        self.0.reconcile(key, entry).await
    }

    async fn failed(&self, key: &Key, failure: &Failure<String>, attempt: u32) {
        self.0.failed(key, failure, attempt).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_loop_that_falls_behind_lists_again() {
    let store = Store::builder().register::<Thing>().history(2).in_memory().await.unwrap();
    for id in ["1", "2", "deleted"] {
        put(&store, id, 0).await;
    }
    let recorder = Slow(done());
    let _handle = start(&store, recorder.clone(), Options::default()).unwrap();
    for spec in 1..100 {
        put(&store, "1", spec).await;
        put(&store, "2", spec).await;
        if spec == 50 {
            delete(&store, "deleted").await;
            put(&store, "3", 7).await;
        }
    }
    let expected: BTreeMap<_, _> =
        [some("1", 99), some("2", 99), some("3", 7), ("deleted".to_owned(), None)].into();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let last: BTreeMap<_, _> = recorder.0.runs().into_iter().collect();
        if last == expected {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{last:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u32),
    Delete(u8),
    Wait(u64),
    /// The program is killed and starts again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u8, 0..100_u32).prop_map(|(id, spec)| Step::Put(id, spec)),
        2 => (0..6_u8).prop_map(Step::Delete),
        2 => (0..2000_u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens, and whatever fails on the way: in the end the machine has what the records say.
    #[test]
    fn the_machine_follows_the_records(steps in prop::collection::vec(step(), 0..40), seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (machine, records) = runtime.block_on(async {
            let store = store().await;
            let machine: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
            let chance = Arc::new(AtomicUsize::new(usize::try_from(seed & 0xffff).unwrap()));
            let recorder = {
                let machine = Arc::clone(&machine);
                Recorder::new(move |id, entry| {
                    let (machine, chance) = (Arc::clone(&machine), Arc::clone(&chance));
                    async move {
                        let n = chance.fetch_add(40_503, Ordering::SeqCst) % 65_536;
                        sleep(Duration::from_millis((n % 700) as u64)).await;
                        if n % 3 == 0 {
                            return Err("half way".into());
                        }
                        let mut machine = machine.lock().unwrap();
                        match entry {
                            Some(thing) => drop(machine.insert(id, thing.spec)),
                            None => drop(machine.remove(&id)),
                        }
                        Ok(Action::Done)
                    }
                })
            };
            let mut handle = launch(&store, &recorder);
            for step in steps {
                match step {
                    Step::Put(id, spec) => put(&store, &id.to_string(), spec).await,
                    Step::Delete(id) => delete(&store, &id.to_string()).await,
                    Step::Wait(ms) => sleep(Duration::from_millis(ms)).await,
                    Step::Restart => {
                        handle.stop(Duration::ZERO).await;
                        handle = launch(&store, &recorder);
                        // What is on the machine is found there, and asked for.
                        for id in machine.lock().unwrap().keys() {
                            handle.poke_id("a", "r", id);
                        }
                    }
                }
            }
            settle().await;
            while handle.status() != Status::default() {
                sleep(Duration::from_millis(100)).await;
            }
            let records: BTreeMap<String, u32> =
                store.snapshot().list_all::<Thing>().map(|thing| (thing.id.clone(), thing.spec)).collect();
            let machine = machine.lock().unwrap().clone();
            (machine, records)
        });
        prop_assert_eq!(machine, records);
    }
}
