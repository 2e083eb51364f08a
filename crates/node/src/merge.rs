//! Merging of layers that nothing needs, in the background, beside the guests that run.
//!
//! Layers that nothing writes any more are copied while machines are started, stopped and snapshotted as ever, and take their new places in the
//! moment after: then the machines that have the old ones open are told to open the new ones. Only a volume's own layer, which a machine may be
//! given any time, is merged while nobody else wants to do anything: whoever does goes first.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use haar_records::ec2::{EbsSnapshot, Encryption, Instance, InstanceState, Volume};
use haar_vm::{RunState, Vm};
use haar_volume::Run;
use tokio::sync::{Notify, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::qemu::Qemu;
use crate::{Error, migrations};

/// How soon is looked again after something was merged, or somebody else had to go first.
const SOON: Duration = Duration::from_secs(2);

/// How rarely is looked while there is nothing to do, at most.
const RARELY: Duration = Duration::from_mins(5);

/// How long a machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Held for reading while a machine is started, for writing while volumes get new layers: no machine may open a file that becomes a
/// snapshot's. Merging holds it for writing, too, but only for moments, or as long as nobody else wants it.
#[derive(Default)]
pub(crate) struct Layering {
    lock: RwLock<()>,
    waiting: AtomicUsize,
    wanted: Notify,
    /// There may be something to merge.
    something: Notify,
}

/// Somebody waits for the lock.
struct Waiting<'a>(&'a Layering);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Layering {
    pub(crate) async fn read(&self) -> RwLockReadGuard<'_, ()> {
        let _waiting = self.wait();
        self.lock.read().await
    }

    pub(crate) async fn write(&self) -> RwLockWriteGuard<'_, ()> {
        let _waiting = self.wait();
        self.lock.write().await
    }

    fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.wanted.notify_waiters();
        Waiting(self)
    }

    /// Says that there may be something to merge.
    pub(crate) fn tell(&self) {
        self.something.notify_one();
    }

    /// Does something, unless and until somebody wants the lock.
    async fn unless_wanted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut wanted = std::pin::pin!(self.wanted.notified());
        wanted.as_mut().enable();
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return None;
        }
        tokio::select! {
            biased;
            () = wanted => None,
            done = work => Some(done),
        }
    }
}

/// Merges layers as long as there are machines to be run.
pub(crate) async fn run(layering: Arc<Layering>, qemu: Weak<Qemu>) {
    // An earlier daemon may have ended between the merging and the telling of machines.
    let (mut pause, mut told) = (SOON, false);
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = layering.something.notified() => {
                pause = SOON;
                // What comes at once is merged at once.
                tokio::time::sleep(SOON).await;
            }
        }
        let Some(qemu) = qemu.upgrade() else { return };
        pause = match qemu.merge(&layering, &mut told).await {
            Ok(true) => SOON,
            Ok(false) => (pause * 2).min(RARELY),
            Err(error) => {
                tracing::warn!(%error, "cannot merge layers");
                (pause * 2).min(RARELY)
            }
        };
    }
}

impl Qemu {
    /// Merges what can be merged; says whether there may be more soon. `told` is whether all machines have been told what was merged.
    async fn merge(&self, layering: &Layering, told: &mut bool) -> Result<bool, Error> {
        if *told && !self.volumes.has_removed()? {
            return Ok(false);
        }
        let machines = self.live().await;
        {
            let _layering = layering.lock.write().await;
            self.look(haar_volume::Driver::sweep).await?;
            *told = self.tell_machines(&machines).await;
        }
        let merged = self.merge_all(layering, told).await;
        if !*told {
            let machines = self.live().await;
            let _layering = layering.lock.write().await;
            *told = self.tell_machines(&machines).await;
        }
        merged
    }

    /// Merges run after run, until there is none, or somebody goes first.
    async fn merge_all(&self, layering: &Layering, told: &mut bool) -> Result<bool, Error> {
        let (mut merged, mut failed) = (false, HashSet::new());
        loop {
            let pids: BTreeSet<u32> = self.live().await.iter().map(|(machine, _)| machine.pid()).collect();
            let lock = layering.lock.write().await;
            let mut runs = self.look(move |volumes| volumes.runs(&pids)).await?.into_iter();
            let Some(run) = runs.find(|run| !failed.contains(&run.above)) else { return Ok(merged) };
            let volumes = self.volumes.with_key(self.key_of(&run.above)?);
            let done = if run.exclusive {
                let work = async {
                    volumes.prepare(&run).await?;
                    volumes.copy(&run).await?;
                    volumes.replace(&run)
                };
                match layering.unless_wanted(work).await {
                    Some(done) => done,
                    None => return Ok(true),
                }
            } else {
                let ready = volumes.prepare(&run).await;
                drop(lock);
                match ready {
                    Ok(()) => self.merge_beside(layering, &volumes, &run).await,
                    Err(error) => Err(error),
                }
            };
            match done {
                Ok(true) => {
                    tracing::debug!(below = ?run.above.first(), "merged removed layers");
                    (merged, *told) = (true, false);
                }
                Ok(false) => return Ok(true),
                Err(error) => {
                    tracing::warn!(below = ?run.above.first(), %error, "cannot merge removed layers");
                    failed.insert(run.above);
                }
            }
        }
    }

    /// Merges a run while others do what they like.
    async fn merge_beside(
        &self,
        layering: &Layering,
        volumes: &haar_volume::Driver,
        run: &Run,
    ) -> Result<bool, haar_volume::Error> {
        volumes.copy(run).await?;
        let _layering = layering.lock.write().await;
        volumes.replace(run)
    }

    /// The machines that run, with the volumes that they may have. One that moves is left out: what copies its disks must not be
    /// disturbed. One that does not answer is left out as well.
    async fn live(&self) -> Vec<(Vm, Vec<String>)> {
        let records = self.records();
        let moving: BTreeSet<&String> = migrations::holding(&records).map(|m| &m.instance_id).collect();
        let mut live = Vec::new();
        for instance in records.list_all::<Instance>().filter(|found| !moving.contains(&found.id)) {
            if matches!(instance.status.state, InstanceState::Stopped | InstanceState::Terminated) {
                continue;
            }
            let found = tokio::time::timeout(PATIENCE, self.machine(&instance.id)).await;
            if let Ok(Ok(Some(machine))) = found
                && !matches!(machine.state(), RunState::Exited(_))
            {
                let volumes = instance.spec.block_devices.iter().map(|device| device.volume_id.clone());
                live.push((machine, volumes.collect()));
            }
        }
        live
    }

    /// Has machines open anew what is below their disks where it was merged, or is to be; says whether all have that should.
    async fn tell_machines(&self, machines: &[(Vm, Vec<String>)]) -> bool {
        // Those that move may stay after all.
        let mut told = migrations::holding(&self.records()).next().is_none();
        for (machine, volumes) in machines {
            match self.tell_machine(machine, volumes).await {
                Ok(done) => told &= done,
                Err(error) => {
                    tracing::warn!(machine = machine.id(), %error, "cannot open merged layers");
                    told = false;
                }
            }
        }
        told
    }

    /// Has a machine open anew what is below its disks, if it must; says whether it did all. Cut off anywhere, it can be begun again.
    async fn tell_machine(&self, machine: &Vm, volumes: &[String]) -> Result<bool, Error> {
        let (pid, disks) = (machine.pid(), volumes.to_vec());
        let mut told = true;
        if self.look(move |driver| driver.is_outdated(pid, &disks)).await? {
            for volume in volumes {
                match tokio::time::timeout(PATIENCE, self.rebase(machine, volume)).await {
                    Ok(done) => told &= done?,
                    // It hangs, and others wait.
                    Err(_) => return Ok(false),
                }
            }
        }
        Ok(told)
    }

    /// Has a machine open anew what is below a disk, if it has the disk; says whether it did.
    async fn rebase(&self, machine: &Vm, volume: &str) -> Result<bool, Error> {
        let Some(file) = machine.disk_file(volume).await? else { return Ok(true) };
        if !self.volumes.is_file_of(&file, volume)? {
            // A snapshot that was begun is ended first.
            return Ok(false);
        }
        let mut below = self.below(volume)?;
        if !below.iter().any(|layer| layer.encrypted) {
            // The others are found by the files' own words, as at the machine's start.
            below.truncate(1);
        }
        let done = machine.rebase_disk(volume, &below).await?;
        if done {
            self.volumes.forget_lower_open_names(volume)?;
        }
        Ok(done)
    }

    /// Does with the files of all volumes what may take its time.
    async fn look<T: Send + 'static>(
        &self,
        what: impl FnOnce(&haar_volume::Driver) -> Result<T, haar_volume::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let volumes = self.volumes.clone();
        let looked = tokio::task::spawn_blocking(move || what(&volumes)).await;
        Ok(looked.map_err(|error| Error::Inconsistent(error.to_string()))??)
    }

    /// What the first of these volumes and snapshots that has a record is encrypted with, if it is.
    fn key_of(&self, ids: &[String]) -> Result<Option<haar_volume::Key>, Error> {
        let records = self.records();
        let encryption = |id: &String| -> Option<Option<Encryption>> {
            let volume = records.list_all::<Volume>().find(|found| found.id == *id);
            let snapshot = || records.list_all::<EbsSnapshot>().find(|found| found.id == *id);
            volume
                .map(|found| found.encryption.clone())
                .or_else(|| snapshot().map(|found| found.encryption.clone()))
        };
        match ids.iter().find_map(|id| Some((id, encryption(id)?))) {
            Some((id, encryption)) => self.key(id, encryption.as_ref()),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_else_wants_the_lock_goes_first() {
        let layering = Arc::new(Layering::default());
        let merging = tokio::spawn({
            let layering = layering.clone();
            async move {
                let _lock = layering.lock.write().await;
                let never = std::future::pending::<()>();
                layering.unless_wanted(never).await
            }
        });
        tokio::task::yield_now().await;
        let limit = Duration::from_secs(10);
        drop(tokio::time::timeout(limit, layering.read()).await.expect("a machine is started"));
        assert_eq!(merging.await.unwrap(), None);
        // Nobody wants it any more, and what is done is done.
        assert_eq!(layering.unless_wanted(std::future::ready(7)).await, Some(7));
        // Who waits already is not overlooked.
        let lock = layering.lock.write().await;
        let mut waiting = std::pin::pin!(layering.write());
        assert!(tokio::time::timeout(Duration::from_millis(10), waiting.as_mut()).await.is_err());
        assert_eq!(layering.unless_wanted(std::future::ready(7)).await, None);
        drop(lock);
        drop(waiting.await);
        assert_eq!(layering.unless_wanted(std::future::ready(7)).await, Some(7));
    }
}
