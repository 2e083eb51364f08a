//! The loop that makes reality match the records of one type.
//!
//! It is level-triggered: a run gets the record as it is now, not the change that asked for it, and the same run happens
//! after a change, at the start of the program, periodically, and when something outside of the store asks for it
//! ([`Handle::poke`]). Runs of one id never overlap. A run that fails is reported and repeated, later each time.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use haar_store::{Entry, Event, Key, Resource, Revision, Store, StoreError, Watch};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Makes reality match one kind of record.
///
/// A run may be cut off anywhere, by the end of the process or by [`Handle::stop`], and is then repeated from the start:
/// it must find out what is there, and do what is missing.
pub trait Reconciler: Send + Sync + 'static {
    /// The record's type.
    type Resource: Resource;
    /// Why a run fails.
    type Error: fmt::Display + Send + Sync + 'static;

    /// Whether a change asks for a run. Changes that the reconciler itself makes (to the status) should not.
    ///
    /// Records that appear or are deleted ask for a run in any case.
    fn triggers(&self, before: &Self::Resource, after: &Self::Resource) -> bool;

    /// Makes reality match the record as it is now; none when it was deleted, or never was and somebody asked.
    fn reconcile(
        &self,
        key: &Key,
        entry: Option<Entry<Self::Resource>>,
    ) -> impl Future<Output = Result<Action, Self::Error>> + Send;

    /// Told of every run that failed, before the record's next run can begin, so that the reason gets into the record's
    /// status. `attempt` counts the runs that failed since the last one that did not, from 1.
    fn failed(
        &self,
        key: &Key,
        failure: &Failure<Self::Error>,
        attempt: u32,
    ) -> impl Future<Output = ()> + Send;
}

/// What is to happen after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until something asks for a run.
    Done,
    /// Another run after this time, or sooner when something asks for one.
    RequeueAfter(Duration),
}

/// Why a run failed.
#[derive(Debug, Clone)]
pub enum Failure<E> {
    /// It gave an error.
    Error(E),
    /// It panicked, with this message.
    Panic(String),
}

impl<E: fmt::Display> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(e) => e.fmt(f),
            Self::Panic(message) => write!(f, "internal error: {message}"),
        }
    }
}

/// How a loop behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many records are worked on at the same time.
    pub concurrency: usize,
    /// Time after which every record that nothing asks for gets a run nonetheless.
    pub resync: Duration,
    /// Time between a run that failed for the first time and the next; doubled with each further failure. Also the least
    /// time between a failed run and the next, whatever asks for it.
    pub backoff: Duration,
    /// Longest time between a run that failed and the next.
    pub max_backoff: Duration,
}

impl Default for Options {
    /// 16 records at a time, all of them every 5 minutes, half a second to a minute between failures.
    fn default() -> Self {
        Self {
            concurrency: 16,
            resync: Duration::from_secs(300),
            backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(60),
        }
    }
}

/// What a loop is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Records that wait for their turn.
    pub ready: usize,
    /// Records that are being worked on.
    pub running: usize,
    /// Records that wait for their time.
    pub delayed: usize,
    /// Records whose last run failed.
    pub failing: usize,
}

/// Controls a loop. The loop ends when its last handle is dropped.
pub struct Handle<T> {
    commands: mpsc::UnboundedSender<Command>,
    status: watch::Receiver<Status>,
    store: Store,
    resource: std::marker::PhantomData<fn() -> T>,
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            status: self.status.clone(),
            store: self.store.clone(),
            resource: std::marker::PhantomData,
        }
    }
}

enum Command {
    Poke(Key),
    PokeAll,
    /// Stop, after this time by force, and say when it is done.
    Stop(Duration, oneshot::Sender<()>),
}

/// Starts a loop, in a task of the current runtime. It begins with a run for every record that there is.
///
/// # Errors
/// [`StoreError::NotRegistered`].
///
/// # Panics
/// Outside of a tokio runtime.
pub fn start<R: Reconciler>(
    store: &Store,
    reconciler: R,
    options: Options,
) -> Result<Handle<R::Resource>, StoreError> {
    let (commands, received) = mpsc::unbounded_channel();
    let (status, shown) = watch::channel(Status::default());
    let changes = store.watch(store.snapshot().revision())?;
    let mut worker = Loop {
        store: store.clone(),
        reconciler: Arc::new(reconciler),
        options,
        changes,
        commands: received,
        status,
        slots: HashMap::new(),
        ready: VecDeque::new(),
        delayed: BTreeSet::new(),
        failing: 0,
        runs: JoinSet::new(),
        running: HashMap::new(),
    };
    worker.list();
    worker.show();
    tokio::spawn(worker.run());
    Ok(Handle { commands, status: shown, store: store.clone(), resource: std::marker::PhantomData })
}

impl<T: Resource> Handle<T> {
    /// Asks for a run of this record, which may not exist.
    pub fn poke(&self, key: Key) {
        // A loop that has ended needs nothing.
        let _ = self.commands.send(Command::Poke(key));
    }

    /// Asks for a run of the record with this id, which may not exist; an id that no record can have is ignored.
    pub fn poke_id(&self, account: &str, region: &str, id: &str) {
        if let Ok(key) = Key::new(T::KIND, account, region, id) {
            self.poke(key);
        }
    }

    /// Asks for a run of every record.
    pub fn poke_all(&self) {
        let _ = self.commands.send(Command::PokeAll);
    }

    /// Asks, at every change of another type's records from now on, for runs of the records that `affected` names. When
    /// changes are missed, asks for a run of every record.
    ///
    /// # Errors
    /// [`StoreError::NotRegistered`].
    pub fn follow<U: Resource>(
        &self,
        affected: impl Fn(&Event<U>) -> Vec<Key> + Send + 'static,
    ) -> Result<(), StoreError> {
        let store = self.store.clone();
        let mut changes = store.watch::<U>(store.snapshot().revision())?;
        let commands = self.commands.downgrade();
        tokio::spawn(async move {
            loop {
                let (asked, missed) = match changes.next().await {
                    Ok(event) => (affected(&event), false),
                    Err(StoreError::Compacted { .. }) => {
                        match store.watch::<U>(store.snapshot().revision()) {
                            Ok(again) => changes = again,
                            Err(StoreError::Compacted { .. }) => {}
                            Err(_) => return,
                        }
                        (Vec::new(), true)
                    }
                    Err(_) => return,
                };
                let Some(commands) = commands.upgrade() else { return };
                let asked = asked.into_iter().map(Command::Poke).chain(missed.then_some(Command::PokeAll));
                for command in asked {
                    if commands.send(command).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(())
    }

    /// What the loop is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Begins no further run, waits for those that have begun, and cuts off what is left after `grace`.
    pub async fn stop(&self, grace: Duration) {
        let (done, stopped) = oneshot::channel();
        if self.commands.send(Command::Stop(grace, done)).is_ok() {
            let _ = stopped.await;
        }
    }
}

/// What a loop knows of one record.
struct Slot<T> {
    /// The record as last seen in a change or by a run.
    seen: Option<Entry<T>>,
    /// What the last run knew: changes up to here are not news.
    knew: Revision,
    phase: Phase,
    failures: u32,
    /// No run before this time.
    not_before: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Ready,
    /// Working; `again` when a run was asked for meanwhile.
    Running {
        again: bool,
    },
    Delayed(Instant),
}

struct Loop<R: Reconciler> {
    store: Store,
    reconciler: Arc<R>,
    options: Options,
    changes: Watch<R::Resource>,
    commands: mpsc::UnboundedReceiver<Command>,
    status: watch::Sender<Status>,
    slots: HashMap<Key, Slot<R::Resource>>,
    ready: VecDeque<Key>,
    delayed: BTreeSet<(Instant, Key)>,
    failing: usize,
    /// Runs, and reports of runs that panicked.
    runs: JoinSet<Result<Action, ()>>,
    running: HashMap<task::Id, Task>,
}

/// What a task in [`Loop::runs`] does.
struct Task {
    key: Key,
    /// It reports a run that panicked.
    report: bool,
}

impl<R: Reconciler> Loop<R> {
    async fn run(mut self) {
        let mut resync = Instant::now() + self.options.resync;
        loop {
            self.begin_runs();
            self.show();
            let next = self.delayed.first().map_or(resync, |(at, _)| resync.min(*at));
            tokio::select! {
                Some(finished) = self.runs.join_next_with_id() => self.finished(finished),
                change = self.changes.next() => match change {
                    Ok(event) => self.changed(event),
                    Err(StoreError::Compacted { .. }) => self.list(),
                    Err(_) => return self.stop(Duration::MAX, None).await,
                },
                command = self.commands.recv() => match command {
                    Some(Command::Poke(key)) => self.ask(key),
                    Some(Command::PokeAll) => self.ask_all(|_| true),
                    Some(Command::Stop(grace, done)) => return self.stop(grace, Some(done)).await,
                    None => return self.stop(Duration::MAX, None).await,
                },
                () = sleep_until(next) => {
                    let now = Instant::now();
                    if now >= resync {
                        resync = now + self.options.resync;
                        self.ask_all(|phase| phase == Phase::Idle);
                    }
                    self.wake(now);
                }
            }
        }
    }

    fn show(&self) {
        self.status.send_replace(Status {
            ready: self.ready.len(),
            running: self.running.len(),
            delayed: self.delayed.len(),
            failing: self.failing,
        });
    }

    /// Learns everything that there is, and follows it from there.
    fn list(&mut self) {
        let snapshot = self.store.snapshot();
        let gone: Vec<Key> = self
            .slots
            .iter()
            .filter(|(key, slot)| slot.seen.is_some() && snapshot.get_key::<R::Resource>(key).is_none())
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.changed(Event::Delete(key, snapshot.revision()));
        }
        for entry in snapshot.list_all::<R::Resource>() {
            self.changed(Event::Put(entry.clone()));
        }
        // The type is registered, as the loop was started. If this is too old already, the next call says so.
        if let Ok(changes) = self.store.watch(snapshot.revision()) {
            self.changes = changes;
        }
    }

    fn changed(&mut self, event: Event<R::Resource>) {
        let revision = event.revision();
        let (key, entry) = match event {
            Event::Delete(key, _) => (key, None),
            Event::Put(entry) => match Key::of(&*entry.value) {
                Ok(key) => (key, Some(entry)),
                Err(_) => return,
            },
        };
        let slot = self.slot(&key);
        if revision <= slot.knew {
            return;
        }
        let before = std::mem::replace(&mut slot.seen, entry.clone());
        let news = match (before, entry) {
            (Some(before), Some(after)) => {
                before.revision != after.revision && self.reconciler.triggers(&before, &after)
            }
            _ => true,
        };
        if news {
            self.ask(key);
        }
    }

    fn slot(&mut self, key: &Key) -> &mut Slot<R::Resource> {
        self.slots.entry(key.clone()).or_insert_with(|| Slot {
            seen: None,
            knew: Revision::ZERO,
            phase: Phase::Idle,
            failures: 0,
            not_before: Instant::now(),
        })
    }

    /// Asks for a run as soon as may be.
    fn ask(&mut self, key: Key) {
        let now = Instant::now();
        let slot = self.slot(&key);
        match slot.phase {
            Phase::Ready => {}
            Phase::Running { .. } => slot.phase = Phase::Running { again: true },
            Phase::Idle => self.make_ready(key),
            Phase::Delayed(until) => {
                let sooner = slot.not_before.max(now).min(until);
                self.delay(key, sooner);
            }
        }
    }

    /// Asks for a run of every record in such a phase.
    fn ask_all(&mut self, of: impl Fn(Phase) -> bool) {
        let asked = self.slots.iter().filter(|(_, slot)| of(slot.phase));
        for key in asked.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.ask(key);
        }
    }

    fn make_ready(&mut self, key: Key) {
        self.slot(&key).phase = Phase::Ready;
        self.ready.push_back(key);
    }

    fn delay(&mut self, key: Key, until: Instant) {
        let slot = self.slot(&key);
        let before = std::mem::replace(&mut slot.phase, Phase::Delayed(until));
        if let Phase::Delayed(before) = before {
            self.delayed.remove(&(before, key.clone()));
        }
        self.delayed.insert((until, key));
        self.wake(Instant::now());
    }

    /// Makes ready what has waited long enough.
    fn wake(&mut self, now: Instant) {
        while let Some((at, _)) = self.delayed.first()
            && *at <= now
            && let Some((_, key)) = self.delayed.pop_first()
        {
            self.make_ready(key);
        }
    }

    fn begin_runs(&mut self) {
        while self.running.len() < self.options.concurrency.max(1)
            && let Some(key) = self.ready.pop_front()
        {
            let snapshot = self.store.snapshot();
            let entry = snapshot.get_key::<R::Resource>(&key);
            let slot = self.slot(&key);
            slot.phase = Phase::Running { again: false };
            slot.knew = snapshot.revision();
            slot.seen.clone_from(&entry);
            let attempt = slot.failures + 1;
            let (reconciler, own) = (Arc::clone(&self.reconciler), key.clone());
            let run = self.runs.spawn(async move {
                match reconciler.reconcile(&own, entry).await {
                    Ok(action) => Ok(action),
                    Err(e) => {
                        tracing::warn!(key = %own, attempt, error = %e, "reconciling failed");
                        reconciler.failed(&own, &Failure::Error(e), attempt).await;
                        Err(())
                    }
                }
            });
            self.running.insert(run.id(), Task { key, report: false });
        }
    }

    fn finished(&mut self, finished: Result<(task::Id, Result<Action, ()>), JoinError>) {
        let id = match &finished {
            Ok((id, _)) => *id,
            Err(e) => e.id(),
        };
        let Some(task) = self.running.remove(&id) else { return };
        match finished {
            Ok((_, result)) => self.next(task.key, result),
            Err(e) => self.panicked(task, e),
        }
    }

    /// Reports a run that panicked, as part of that run.
    fn panicked(&mut self, Task { key, report }: Task, e: JoinError) {
        let message = match e.try_into_panic() {
            Ok(panic) => panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default(),
            Err(e) => e.to_string(),
        };
        let attempt = self.slot(&key).failures + 1;
        tracing::error!(%key, attempt, message, "reconciling panicked");
        if report {
            return self.next(key, Err(()));
        }
        let (reconciler, own) = (Arc::clone(&self.reconciler), key.clone());
        let report = self.runs.spawn(async move {
            reconciler.failed(&own, &Failure::Panic(message), attempt).await;
            Err(())
        });
        self.running.insert(report.id(), Task { key, report: true });
    }

    /// Decides when a record runs again.
    fn next(&mut self, key: Key, result: Result<Action, ()>) {
        let now = Instant::now();
        let (backoff, max) = (self.options.backoff, self.options.max_backoff);
        let slot = self.slot(&key);
        let again = slot.phase == Phase::Running { again: true };
        slot.phase = Phase::Idle;
        let failed_before = slot.failures > 0;
        match result {
            Ok(action) => {
                slot.failures = 0;
                slot.not_before = now;
                let gone = slot.seen.is_none();
                self.failing -= usize::from(failed_before);
                match action {
                    _ if again => self.make_ready(key),
                    Action::RequeueAfter(time) => self.delay(key, after(now, time)),
                    Action::Done if gone => drop(self.slots.remove(&key)),
                    Action::Done => {}
                }
            }
            Err(()) => {
                slot.failures = slot.failures.saturating_add(1);
                slot.not_before = after(now, jitter(backoff));
                let full = backoff.saturating_mul(1 << (slot.failures - 1).min(20)).min(max);
                let until = if again { slot.not_before } else { after(now, jitter(full)) };
                self.failing += usize::from(!failed_before);
                self.delay(key, until);
            }
        }
    }

    async fn stop(mut self, grace: Duration, done: Option<oneshot::Sender<()>>) {
        let all = async { while self.runs.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all).await.is_err() {
            self.runs.shutdown().await;
        }
        self.status.send_replace(Status::default());
        if let Some(done) = done {
            let _ = done.send(());
        }
    }
}

/// Between half of a time and all of it, so that what failed together is not tried together.
fn jitter(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.5..=1.0))
}

/// A time from now, or far away when there is no such time.
fn after(now: Instant, time: Duration) -> Instant {
    now.checked_add(time).unwrap_or_else(|| now + Duration::from_secs(86400 * 365))
}

#[cfg(test)]
mod tests;
