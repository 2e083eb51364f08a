//! A live machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::process::{Process, RunDir, stderr_tail};
use crate::qmp::Qmp;
use crate::{Error, Exit, Spec, console};

/// How long QEMU may take from its start to its greeting, and to end after it was told to.
const LIFECYCLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a process that lives may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a guest is given to light its screen after a key was pressed.
const WAKING: Duration = Duration::from_millis(300);

/// How often the logs are kept within bounds.
const LOG_CHECK: Duration = Duration::from_secs(5);

/// How many events a subscriber may lag behind before it loses the oldest.
const EVENT_BACKLOG: usize = 64;

/// What a machine does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// The guest runs.
    Running,
    /// The guest's processors stand still: QEMU has not begun, or was told to pause.
    Paused,
    /// The guest stands still because its disk could not be written for want of space on the host. [`Vm::resume`]
    /// repeats the write.
    OutOfSpace,
    /// The guest powered off, by itself or as [`Vm::powerdown`] asked.
    GuestShutdown,
    /// The guest's kernel panicked. [`Vm::reset`] boots it anew.
    GuestPanicked,
    /// The accelerator failed; the guest is lost. [`Vm::reset`] boots it anew.
    InternalError,
    /// The process ended.
    Exited(Exit),
}

/// What happened to a machine. States are better read from [`Vm::watch`]; an event is for what leaves no state behind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It was reset, by the guest (a reboot) or by [`Vm::reset`].
    Reset {
        /// Whether the guest did it.
        guest: bool,
    },
    /// It entered a state.
    State(RunState),
    /// A disk's input or output failed.
    DiskError {
        /// The id of the volume.
        disk: String,
        /// Whether the host's storage is full.
        no_space: bool,
        /// The error in words.
        reason: String,
    },
}

/// A live machine; clones are the same machine. Dropping all of them lets it run on.
#[derive(Clone, Debug)]
pub struct Vm(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    spec: Spec,
    dir: RunDir,
    process: Process,
    qmp: Qmp,
    /// Held while disks are changed, which takes several commands.
    disks: tokio::sync::Mutex<()>,
    /// Held while a picture of the display is taken.
    screen: tokio::sync::Mutex<()>,
    /// Whether the guest is being handed over, so that nobody lets it run on here.
    held: AtomicBool,
    states: Arc<States>,
    attendant: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.attendant.abort();
    }
}

/// The state as QEMU's events tell it.
#[derive(Debug)]
struct States {
    current: watch::Sender<RunState>,
    events: broadcast::Sender<Event>,
    /// Counts the changes that events brought, so that an older answer to `query-status` does not undo one.
    changes: AtomicU64,
}

impl Vm {
    /// Connects to the monitor of a live process.
    ///
    /// # Errors
    /// [`Error::Gone`] if it ends meanwhile.
    pub(crate) async fn attach(process: Process, dir: RunDir, spec: Spec) -> Result<Vm, Error> {
        let states = Arc::new(States {
            current: watch::Sender::new(RunState::Paused),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            changes: AtomicU64::new(0),
        });
        let listener = states.clone();
        let attach = async {
            let stream = dir.connect_qmp().await?;
            let qmp = Qmp::handshake(stream, move |event, data| listener.event(event, data)).await?;
            loop {
                let changes = states.changes.load(Ordering::Acquire);
                let state = status(&qmp).await?;
                // Also waits for the guest's first instruction, which a new process reaches by itself.
                if changes == states.changes.load(Ordering::Acquire) {
                    states.enter(state);
                    return Ok(qmp);
                }
            }
        };
        let qmp = tokio::select! {
            attached = tokio::time::timeout(LIFECYCLE_TIMEOUT, attach) => attached.unwrap_or_else(|_| {
                Err(Error::Timeout { command: "to its monitor's greeting".into(), timeout: LIFECYCLE_TIMEOUT })
            })?,
            _ = process.ended() => return Err(Error::Gone),
        };
        let attendant =
            tokio::spawn(attend(process.clone(), dir.clone(), spec.console_log.clone(), states.clone()));
        Ok(Vm(Arc::new(Inner {
            spec,
            dir,
            process,
            qmp,
            disks: Default::default(),
            screen: Default::default(),
            held: AtomicBool::default(),
            states,
            attendant,
        })))
    }

    pub(crate) fn qmp(&self) -> &Qmp {
        &self.0.qmp
    }

    pub(crate) fn dir(&self) -> &RunDir {
        &self.0.dir
    }

    /// Keeps others from changing disks meanwhile.
    pub(crate) async fn change_disks(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.disks.lock().await
    }

    /// The id of the instance.
    pub fn id(&self) -> &str {
        &self.0.spec.id
    }

    /// What it was started from.
    pub fn spec(&self) -> &Spec {
        &self.0.spec
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.0.process.pid()
    }

    /// The Unix socket of its serial console. One client is served at a time; the log is kept in any case.
    pub fn console_socket(&self) -> PathBuf {
        self.0.dir.console_socket()
    }

    /// What it does now.
    pub fn state(&self) -> RunState {
        self.0.states.current.borrow().clone()
    }

    /// Follows what it does. The last state is [`RunState::Exited`].
    pub fn watch(&self) -> watch::Receiver<RunState> {
        self.0.states.current.subscribe()
    }

    /// Follows what happens to it from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.0.states.events.subscribe()
    }

    /// Presses the power button (ACPI). A guest that heeds it ends in [`RunState::GuestShutdown`].
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Timeout`].
    pub async fn powerdown(&self) -> Result<(), Error> {
        self.0.qmp.execute("system_powerdown", json!({})).await.map(drop)
    }

    /// Whether its process answers: a process that hangs, or stands still, does not.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub async fn answers(&self) -> Result<bool, Error> {
        match tokio::time::timeout(ANSWER_TIMEOUT, status(&self.0.qmp)).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(Error::Timeout { .. })) | Err(_) => Ok(false),
            Ok(Err(error)) => Err(error),
        }
    }

    /// What its display shows, as a PPM image; with `wake_up`, after a key was pressed, for a guest whose screen sleeps.
    ///
    /// # Errors
    /// [`Error::Refused`] if it has no display, [`Error::Gone`], [`Error::Timeout`], [`Error::Io`].
    pub async fn screen(&self, wake_up: bool) -> Result<Vec<u8>, Error> {
        if wake_up {
            let shift = json!([{ "type": "qcode", "data": "shift" }]);
            self.0.qmp.execute("send-key", json!({ "keys": shift })).await?;
            tokio::time::sleep(WAKING).await;
        }
        // One picture at a time, so that each is read as it was written.
        let _one = self.0.screen.lock().await;
        let path = self.0.dir.screen();
        let file = path.to_str().ok_or(Error::Gone)?;
        self.0.qmp.execute("screendump", json!({ "filename": file })).await?;
        let picture = tokio::fs::read(&path).await.map_err(Error::at("read", &path));
        // It stays with the machine's folder at worst.
        let _ = tokio::fs::remove_file(&path).await;
        picture
    }

    /// Resets the machine, as the reset button does, and lets it run, whatever its state was.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Timeout`].
    pub async fn reset(&self) -> Result<(), Error> {
        let mut events = self.events();
        self.0.qmp.execute("system_reset", json!({})).await?;
        let reset = async {
            loop {
                match events.recv().await {
                    Ok(Event::Reset { guest: false }) => return Ok(()),
                    Ok(Event::State(RunState::Exited(_))) | Err(broadcast::error::RecvError::Closed) => {
                        return Err(Error::Gone);
                    }
                    // Lagging means that the guest resets itself without end; the next event is as good.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                }
            }
        };
        let timeout = |_| Error::Timeout { command: "system_reset".into(), timeout: LIFECYCLE_TIMEOUT };
        tokio::time::timeout(LIFECYCLE_TIMEOUT, reset).await.map_err(timeout)??;
        if status(&self.0.qmp).await? == RunState::Running { Ok(()) } else { self.resume().await }
    }

    /// Keeps everybody who has this machine from letting the guest run on, until [`Vm::release`]: it is being handed over.
    pub fn hold(&self) {
        self.0.held.store(true, Ordering::SeqCst);
    }

    /// Lets the guest run on again where it is asked for.
    pub fn release(&self) {
        self.0.held.store(false, Ordering::SeqCst);
    }

    /// Whether the guest is being handed over.
    pub fn is_held(&self) -> bool {
        self.0.held.load(Ordering::SeqCst)
    }

    /// Lets a machine run on that stands still, such as one whose disk's host was full.
    ///
    /// # Errors
    /// [`Error::Refused`] if it must be reset first or is being handed over, [`Error::Gone`], [`Error::Timeout`].
    pub async fn resume(&self) -> Result<(), Error> {
        if self.is_held() {
            let desc = "the guest is being handed over to another machine".to_owned();
            return Err(Error::Refused { command: "cont".into(), desc });
        }
        self.0.qmp.execute("cont", json!({})).await.map(drop)
    }

    /// Ends QEMU in good order, its disks flushed, without asking the guest, and waits until it has ended.
    ///
    /// # Errors
    /// [`Error::Timeout`] if it does not; then there is [`Vm::kill`].
    pub async fn quit(&self) -> Result<Exit, Error> {
        match self.0.qmp.execute("quit", json!({})).await {
            Ok(_) | Err(Error::Gone) => {}
            Err(error) => return Err(error),
        }
        let timeout = |_| Error::Timeout { command: "quit".into(), timeout: LIFECYCLE_TIMEOUT };
        tokio::time::timeout(LIFECYCLE_TIMEOUT, self.0.process.ended()).await.map_err(timeout)?;
        Ok(self.exited().await)
    }

    /// Ends QEMU at once (SIGKILL), and waits until it has ended.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the kernel cannot end it.
    pub async fn kill(&self) -> Result<Exit, Error> {
        self.0.process.kill().await?;
        Ok(self.exited().await)
    }

    /// Waits until the process has ended.
    pub async fn exited(&self) -> Exit {
        let mut states = self.watch();
        let exited = states.wait_for(|state| matches!(state, RunState::Exited(_))).await;
        match exited.as_deref() {
            Ok(RunState::Exited(exit)) => exit.clone(),
            // The sender lives as long as this machine.
            _ => Exit::default(),
        }
    }
}

/// Keeps the logs within bounds and tells of the process' end.
async fn attend(process: Process, dir: RunDir, console_log: PathBuf, states: Arc<States>) {
    let mut ticks = tokio::time::interval(LOG_CHECK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let exit = loop {
        tokio::select! {
            exit = process.ended() => break exit,
            _ = ticks.tick() => {
                for log in [&console_log, &dir.stderr_log()] {
                    if let Err(error) = console::release_beginning(log) {
                        tracing::warn!(log = %log.display(), %error, "cannot be kept within bounds");
                    }
                }
            }
        }
    };
    states.enter(RunState::Exited(Exit { stderr: stderr_tail(&dir.stderr_log()), ..exit }));
}

/// Asks for the state.
async fn status(qmp: &Qmp) -> Result<RunState, Error> {
    let answer = qmp.execute("query-status", json!({})).await?;
    Ok(match answer["status"].as_str().unwrap_or_default() {
        "running" => RunState::Running,
        "shutdown" => RunState::GuestShutdown,
        "guest-panicked" => RunState::GuestPanicked,
        "io-error" => RunState::OutOfSpace,
        "internal-error" => RunState::InternalError,
        _ => RunState::Paused,
    })
}

impl States {
    fn enter(&self, state: RunState) {
        let changed = self.current.send_if_modified(|current| {
            // Nothing follows the end.
            let changes = *current != state && !matches!(current, RunState::Exited(_));
            if changes {
                *current = state.clone();
            }
            changes
        });
        if changed {
            // Nobody may be listening.
            let _ = self.events.send(Event::State(state));
        }
    }

    /// Takes an event of QEMU's (QEMU QMP Reference Manual).
    fn event(&self, event: &str, data: &Value) {
        let guest = data["guest"].as_bool().unwrap_or(false);
        let state = match event {
            "RESUME" => RunState::Running,
            "SHUTDOWN" if guest => RunState::GuestShutdown,
            "GUEST_PANICKED" if data["action"] == "pause" => RunState::GuestPanicked,
            // The reason of a stop is told before the stop.
            "STOP" if *self.current.borrow() == RunState::Running => RunState::Paused,
            "RESET" => {
                let _ = self.events.send(Event::Reset { guest });
                return;
            }
            "BLOCK_IO_ERROR" => {
                let no_space = data["nospace"].as_bool().unwrap_or(false);
                let _ = self.events.send(Event::DiskError {
                    disk: data["node-name"].as_str().unwrap_or_default().to_owned(),
                    no_space,
                    reason: data["reason"].as_str().unwrap_or_default().to_owned(),
                });
                if data["action"] != "stop" {
                    return;
                }
                RunState::OutOfSpace
            }
            _ => return,
        };
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.enter(state);
    }
}
