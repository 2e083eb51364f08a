//! The machines of this host.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::args::TCG_CACHE_MIB;
use crate::cgroup::{Cgroups, Controller, Limits};
use crate::process::{self, Claim, Claimed, Process, REMOVED, RunDir, stderr_tail};
use crate::qmp::lock;
use crate::{Accel, Error, Layout, RunState, Spec, Vm, spec};

/// What the driver needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder that holds the machines' run directories, on a local file system. It is made if its parent exists.
    pub run_dir: PathBuf,
    /// The QEMU program, such as `/usr/bin/qemu-system-x86_64`.
    pub qemu_binary: PathBuf,
    /// How guests are run: what [`probe`](crate::probe()) found.
    pub accel: Accel,
    /// The control group that holds the machines' groups, such as `haar`: one name.
    pub cgroup_parent: String,
}

/// Starts, adopts, lists and removes machines. Clones share everything.
#[derive(Clone, Debug)]
pub struct Driver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    cgroups: Cgroups,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
}

/// The place of one machine: what is done to it, is done one after the other. QEMU serves one monitor connection at a
/// time, so it is kept here.
type Slot = tokio::sync::Mutex<Option<Vm>>;

/// Memory that QEMU takes beside the guest's and the translated code's, in MiB: about 60 at rest; the rest is for its
/// disk caches and threads.
const QEMU_MIB: u64 = 512;

/// How long a QEMU that could not start may take to end.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

impl Driver {
    /// Opens the run directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(config: Config) -> Result<Driver, Error> {
        let dir = &config.run_dir;
        process::make_private_dir(dir).map_err(Error::at("make", dir))?;
        spec::check_id(&config.cgroup_parent)?;
        // What was being removed when the daemon ended.
        for entry in std::fs::read_dir(dir).map_err(Error::at("list", dir))? {
            let entry = entry.map_err(Error::at("list", dir))?;
            if entry.file_name().as_encoded_bytes().starts_with(REMOVED.as_bytes()) {
                process::remove_tree(&entry.path()).map_err(Error::at("remove", &entry.path()))?;
            }
        }
        let cgroups = Cgroups::detect(&config.cgroup_parent)?;
        Ok(Driver(Arc::new(Inner { config, cgroups, slots: Mutex::default() })))
    }

    /// How guests are run.
    pub fn accel(&self) -> Accel {
        self.0.config.accel
    }

    /// What holds machines to their limits on this host.
    pub fn controllers(&self) -> Vec<Controller> {
        self.0.cgroups.controllers()
    }

    /// Starts a machine and returns when its guest runs; if it runs already, from the same specification, returns it
    /// as it is (so look at [`Vm::state`]). Goes on to its end even if the future is dropped.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`]; [`Error::Conflict`] if it runs from another specification; [`Error::QemuMissing`];
    /// [`Error::Qemu`] with QEMU's own words, of a bad image for example; [`Error::Busy`]; [`Error::Io`]. After an
    /// error of a start, nothing of the machine is left.
    pub async fn start(&self, spec: &Spec) -> Result<Vm, Error> {
        spec.validate()?;
        let (driver, spec) = (self.clone(), spec.clone());
        finish(tokio::spawn(async move { driver.start_to_end(spec).await })).await
    }

    async fn start_to_end(&self, spec: Spec) -> Result<Vm, Error> {
        let slot = self.slot(&spec.id);
        let mut vm = slot.lock().await;
        let dir = self.dir(&spec.id);
        loop {
            match dir.claim(true)? {
                Claimed::Free(claim) => {
                    *vm = None;
                    let started = self.start_claimed(claim, dir, spec, None).await?;
                    return Ok(vm.insert(started).clone());
                }
                Claimed::Held | Claimed::Absent => {}
            }
            // It may have ended since.
            let Some(vm) = self.adopt_into(&mut vm, &spec.id).await? else { continue };
            if *vm.spec() != spec.clone().without_keys() {
                return Err(Error::Conflict { id: spec.id, pid: vm.pid() });
            }
            return Ok(vm);
        }
    }

    /// Starts a machine that waits for a guest to arrive ([`Vm::listen`]), its devices laid out as where the guest comes from. Any other
    /// machine of this id is removed. Goes on to its end even if the future is dropped.
    ///
    /// # Errors
    /// As [`Driver::start`].
    pub async fn receive(&self, spec: &Spec, layout: &Layout) -> Result<Vm, Error> {
        spec.validate()?;
        layout.validate(&spec.id)?;
        let (driver, spec, layout) = (self.clone(), spec.clone(), layout.clone());
        finish(tokio::spawn(async move {
            let slot = driver.slot(&spec.id);
            let mut vm = slot.lock().await;
            driver.remove_from(&mut vm, &spec.id).await?;
            let dir = driver.dir(&spec.id);
            let Claimed::Free(claim) = dir.claim(true)? else { return Err(Error::Busy { id: spec.id }) };
            let started = driver.start_claimed(claim, dir, spec, Some(layout)).await?;
            Ok(vm.insert(started).clone())
        }))
        .await
    }

    /// Where a socket of a machine is, or would be.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if the id is malformed or the path is too long for a socket.
    pub fn socket(&self, id: &str, name: &str) -> Result<PathBuf, Error> {
        spec::check_id(id)?;
        self.dir(id).socket(name)
    }

    async fn start_claimed(
        &self,
        claim: Claim,
        dir: RunDir,
        spec: Spec,
        layout: Option<Layout>,
    ) -> Result<Vm, Error> {
        let id = spec.id.clone();
        let error = match self.spawn(claim, &spec, layout).await {
            Ok(process) => match Vm::attach(process.clone(), dir.clone(), spec.without_keys()).await {
                Ok(vm) => return Ok(vm),
                Err(Error::Gone) => {
                    // It closed its monitor, so it ends; if not, it is helped.
                    let ended = tokio::time::timeout(LEAVE_TIMEOUT, process.ended()).await;
                    let exit = match ended {
                        Ok(exit) => exit,
                        Err(_) => process.kill().await?,
                    };
                    Error::Qemu { status: exit.to_string(), stderr: stderr_tail(&dir.stderr_log()) }
                }
                Err(error) => {
                    // It is removed with what else is left.
                    if let Err(error) = process.kill().await {
                        tracing::warn!(id, %error, "cannot end a machine that did not start");
                    }
                    error
                }
            },
            Err(error) => error,
        };
        // The error of the start is what the caller wants to know.
        if let Err(error) = self.remove_from(&mut None, &id).await {
            tracing::warn!(id, %error, "cannot remove what a failed start left");
        }
        Err(error)
    }

    /// Starts QEMU, on a thread of its own, whose network namespace becomes the machine's.
    async fn spawn(&self, claim: Claim, spec: &Spec, layout: Option<Layout>) -> Result<Process, Error> {
        let inner = self.0.clone();
        let spec = spec.clone();
        let (done, result) = oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        let work = move || {
            let _runtime = runtime.enter();
            let Config { qemu_binary, accel, .. } = &inner.config;
            let process = inner
                .cgroups
                .create(&spec.id, &limits(&spec, *accel))
                .and_then(|group| claim.spawn(&spec, qemu_binary, *accel, &group, layout.as_ref()));
            // The receiver waits as long as the runtime lives.
            let _ = done.send(process);
        };
        let thread = std::thread::Builder::new().name("haar-vm-start".into());
        thread.spawn(work).map_err(Error::io("cannot start a thread"))?;
        result.await.unwrap_or(Err(Error::Gone))
    }

    /// The machine of an id if its process lives, whoever started it.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is being started elsewhere and does not come up; [`Error::Timeout`] if QEMU does not
    /// answer, as when another daemon is connected to it; [`Error::Io`].
    pub async fn adopt(&self, id: &str) -> Result<Option<Vm>, Error> {
        spec::check_id(id)?;
        let slot = self.slot(id);
        let mut vm = slot.lock().await;
        self.adopt_into(&mut vm, id).await
    }

    async fn adopt_into(&self, vm: &mut Option<Vm>, id: &str) -> Result<Option<Vm>, Error> {
        if let Some(vm) = vm
            && !matches!(vm.state(), RunState::Exited(_))
        {
            return Ok(Some(vm.clone()));
        }
        *vm = None;
        let dir = self.dir(id);
        let Some(process) = dir.process(id).await? else { return Ok(None) };
        let spec = dir.read_spec()?;
        match Vm::attach(process, dir, spec).await {
            Ok(adopted) => Ok(Some(vm.insert(adopted).clone())),
            Err(Error::Gone) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The ids of all machines that have left anything on this host, alive or not.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<String>, Error> {
        let dir = &self.0.config.run_dir;
        let mut ids: BTreeSet<String> =
            process::subdirectories(dir).map_err(Error::at("list", dir))?.into_iter().collect();
        ids.extend(self.0.cgroups.list()?);
        Ok(ids.into_iter().collect())
    }

    /// The ids of machines that run in control groups of this configuration's name and have nothing in its run directory: those of
    /// another configuration with the same name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn strangers(&self) -> Result<Vec<String>, Error> {
        let mut ids = BTreeSet::from_iter(self.0.cgroups.list()?);
        ids.retain(|id| !self.0.config.run_dir.join(id).exists());
        ids.into_iter()
            .filter_map(|id| self.0.cgroups.is_used(&id).map(|used| used.then_some(id)).transpose())
            .collect()
    }

    /// Ends the machine if it lives, at once, and removes its control group and run directory. Its disks and its
    /// console's log stay. That there is nothing to remove is no error.
    ///
    /// # Errors
    /// [`Error::Busy`] if it is being started elsewhere and does not come up; [`Error::Timeout`]; [`Error::Io`].
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        spec::check_id(id)?;
        let (driver, id) = (self.clone(), id.to_owned());
        finish(tokio::spawn(async move { driver.remove_to_end(&id).await })).await
    }

    async fn remove_to_end(&self, id: &str) -> Result<(), Error> {
        let slot = self.slot(id);
        let mut vm = slot.lock().await;
        self.remove_from(&mut vm, id).await?;
        drop(vm);
        let mut slots = lock(&self.0.slots);
        // Nobody else waits for it: the map has one, and this function the other.
        if Arc::strong_count(&slot) == 2 {
            slots.remove(id);
        }
        Ok(())
    }

    async fn remove_from(&self, vm: &mut Option<Vm>, id: &str) -> Result<(), Error> {
        if let Some(vm) = vm.take() {
            vm.kill().await?;
        }
        let dir = self.dir(id);
        loop {
            match dir.claim(false)? {
                Claimed::Absent => return self.0.cgroups.remove(id).await,
                Claimed::Free(claim) => {
                    self.0.cgroups.remove(id).await?;
                    return claim.remove();
                }
                Claimed::Held => {
                    if let Some(process) = dir.process(id).await? {
                        process.kill().await?;
                    }
                }
            }
        }
    }

    fn slot(&self, id: &str) -> Arc<Slot> {
        lock(&self.0.slots).entry(id.to_owned()).or_default().clone()
    }

    fn dir(&self, id: &str) -> RunDir {
        RunDir::new(&self.0.config.run_dir, id)
    }
}

/// Waits for a task that goes on if nobody does.
async fn finish<T>(task: tokio::task::JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    match task.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only the end of the runtime cancels it.
            Err(_) => Err(Error::Gone),
        },
    }
}

/// What a machine's process may use: what its type has, and what it costs to make it.
fn limits(spec: &Spec, accel: Accel) -> Limits {
    let cache = if accel == Accel::Tcg { TCG_CACHE_MIB } else { 0 };
    let vcpus = u64::from(spec.vcpus);
    Limits {
        // A vCPU is a thread, so the guest never has more than its vCPUs; half a processor is for its disks and network.
        cpu_millis: vcpus * 1000 + 500,
        cpu_weight: vcpus,
        memory_bytes: (spec.memory_mib + cache + QEMU_MIB) << 20,
        // QEMU's pool for disk requests has up to 64 threads.
        pids: vcpus + 128,
    }
}
