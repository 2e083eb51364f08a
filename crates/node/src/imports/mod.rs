//! The reconciler of imports: files that accounts name become snapshots and images.
//!
//! What arrives is kept in `imports/<task>/` of the state folder and is there whole or as a part that a later run goes on with. The
//! snapshots that it becomes have their ids in the task's record before they have files, so that a run that was cut off goes on with those
//! that are not there yet, and they get records of their own when all are there, in the transaction that ends the task. Whatever goes
//! wrong, the task is `deleting` until nothing is left of it.

mod files;
mod image;
mod outcome;
mod progress;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use haar_core::reconcile::{Action, Failure, Reconciler};
use haar_image::{FetchOptions, ForeignDisk, ForeignFormat, Reach};
use haar_records::ec2::{
    EbsSnapshot, Image, ImportContainer, ImportDisk, ImportFormat, ImportState, ImportTask,
};
use haar_store::{Entry, Key, Store};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, oneshot};

use self::files::{Local, Places, file_of, link};
use self::image::{boots_by, image_of, named, snapshot_of};
use self::outcome::{End, client, no_space, of_disk, of_file, server};
use self::progress::{Meter, Shared, Stand};
use crate::qemu::Qemu;
use crate::{Config, Error};

/// How many tasks are worked on at a time; the others are `pending`.
const AT_A_TIME: usize = 2;

/// How often is looked whether a task was cancelled, and told how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// Most disks of an image (VM Import/Export User Guide, "Limitations").
const MOST_DISKS: usize = 21;

/// How long tasks that are over are shown ("DescribeImportImageTasks").
const SHOWN: time::Duration = time::Duration::days(7);

/// How much of a disk's beginning tells what it boots by, in bytes.
const HEAD: usize = 1 << 20;

/// The progress of a task that has all its files, in percent; fetching is done by then.
const FETCHED: u8 = 40;

/// Bytes that stay free on the file system of disks.
const LEFT_FREE: u64 = 1 << 30;

pub(crate) struct Imports {
    store: Store,
    /// None where compute is simulated.
    qemu: Option<Arc<Qemu>>,
    places: Places,
    slots: Semaphore,
}

/// Becomes true when a run ends, however it ends.
#[derive(Default)]
struct Cancelled(Arc<AtomicBool>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs what blocks in a thread that nobody waits for when the daemon ends.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let (tell, told) = oneshot::channel();
    let started = std::thread::Builder::new().name("import".to_owned()).spawn(move || {
        let _ = tell.send(work());
    });
    started.map_err(Error::io("start a thread"))?;
    told.await.map_err(|_| Error::Inconsistent("an import has ended early".to_owned()))
}

/// Removes what tasks have left that are over or that nobody knows.
pub(crate) fn sweep(state: &Path, store: &Store) -> Result<(), Error> {
    let work = state.join("imports");
    let entries = match fs::read_dir(&work) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io(format!("list {}", work.display())))?,
    };
    let tasks = store.snapshot();
    let known: BTreeSet<_> = tasks
        .list_all::<ImportTask>()
        .filter(|task| task.holds_disks())
        .map(|task| task.id.clone())
        .collect();
    for entry in entries {
        let entry = entry.map_err(Error::io(format!("list {}", work.display())))?;
        if entry.file_name().to_str().is_none_or(|name| !known.contains(name)) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", folder.display()))(error))
        }
        _ => Ok(()),
    }
}

impl Imports {
    pub(crate) fn new(config: &Config, store: Store, qemu: Option<Arc<Qemu>>) -> Self {
        let state = config.state_dir.clone();
        let places = Places {
            work: state.join("imports"),
            uploads: config.uploads(),
            folders: config.import_folders.clone(),
            state,
        };
        Self { store, qemu, places, slots: Semaphore::new(AT_A_TIME) }
    }

    /// Changes a task that is active.
    async fn change(
        &self,
        task: &ImportTask,
        change: impl Fn(&ImportTask) -> ImportTask,
    ) -> Result<(), Error> {
        self.store
            .transact(|tx| {
                let found = tx.get::<ImportTask>(&task.account, &task.region, &task.id);
                if let Some(found) = found.filter(|found| found.state == ImportState::Active) {
                    tx.put(change(&found));
                }
                Ok::<_, Error>(())
            })
            .await
    }

    fn is_active(&self, task: &ImportTask) -> bool {
        let found = self.store.snapshot().get::<ImportTask>(&task.account, &task.region, &task.id);
        found.is_some_and(|found| found.state == ImportState::Active)
    }

    /// Works on a task until it is over or was cancelled, and tells how far it is.
    async fn run(&self, task: &ImportTask) -> Result<Action, Error> {
        let (shared, cancelled) = (Shared::default(), Cancelled::default());
        let mut told = Stand::default();
        let work = self.work(task, &shared, &cancelled.0);
        tokio::pin!(work);
        let mut ticks = tokio::time::interval(LOOK);
        let end = loop {
            tokio::select! {
                end = &mut work => break end,
                _ = ticks.tick() => {}
            }
            if !self.is_active(task) {
                // Its change of state asks for the next run.
                return Ok(Action::Done);
            }
            let stand = shared.now();
            if stand.progress >= FETCHED && !self.has_space()? {
                break Err(no_space());
            }
            if stand != told && (stand.message != told.message || stand.progress >= told.progress + 2) {
                self.change(task, |found| {
                    let mut found = found.clone();
                    found.message = Some(stand.message.to_owned());
                    found.progress = stand.progress;
                    found.disks.iter_mut().zip(&stand.disks).for_each(|(disk, done)| disk.progress = *done);
                    found
                })
                .await?;
                told = stand;
            }
        };
        match end {
            Ok(()) => {}
            Err(End::Failed(why)) => {
                tracing::info!(task = task.id, why, "the import has failed");
                self.change(task, |found| ImportTask {
                    state: ImportState::Deleting,
                    message: Some(why.clone()),
                    ..found.clone()
                })
                .await?;
            }
            Err(End::Again(error)) => return Err(error),
        }
        Ok(Action::Done)
    }

    fn has_space(&self) -> Result<bool, Error> {
        let dir = &self.places.state;
        let found = nix::sys::statvfs::statvfs(dir);
        let found = found.map_err(|e| Error::io(format!("examine {}", dir.display()))(e.into()))?;
        Ok(found.blocks_available().saturating_mul(found.fragment_size()) >= LEFT_FREE)
    }

    async fn work(&self, task: &ImportTask, shared: &Shared, cancelled: &Arc<AtomicBool>) -> Result<(), End> {
        let Some(qemu) = &self.qemu else {
            return Err(server("No disks are made: compute is simulated."));
        };
        shared.change(|stand| stand.message = "pending");
        let _slot = self.slots.acquire().await;
        let of_image = task.image.is_some();
        shared.change(|stand| stand.message = if of_image { "validating" } else { "downloading/converting" });
        let found = self.fetch(task, shared, cancelled).await?;
        if !of_image && found.len() != 1 {
            return Err(client(format!(
                "Disk validation failed [It has {} disks; a snapshot is of one]",
                found.len()
            )));
        }
        if found.len() > MOST_DISKS {
            return Err(client(format!("Disk validation failed [There are more than {MOST_DISKS} disks]")));
        }
        let disks = self.note(qemu, task, &found).await?;
        shared.change(|stand| {
            stand.disks = vec![0; disks.len()];
            stand.message = if of_image { "converting" } else { "downloading/converting" };
            stand.progress = FETCHED;
        });
        convert(qemu, task, &disks, &found, shared).await?;
        let Some(wanted) = &task.image else { return Ok(self.complete(task, &disks, None).await?) };
        shared.change(|stand| (stand.message, stand.progress) = ("updating", 95));
        let mut modes = Vec::new();
        for disk in &disks {
            let head = qemu.read_head(&snapshot_of(task, disk), HEAD).await?;
            modes.push(haar_image::boot_mode_of(&head));
        }
        let (root, mode) = boots_by(wanted, &modes)?;
        shared.change(|stand| (stand.message, stand.progress) = ("preparing ami", 98));
        let disks = named(disks, root);
        let image = image_of(task, &disks, root, mode);
        Ok(self.complete(task, &disks, Some(image)).await?)
    }

    /// Gets the files of a task that are not there yet, and finds the disks in them; with each goes the number of its container.
    async fn fetch(
        &self,
        task: &ImportTask,
        shared: &Shared,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Vec<(usize, ForeignDisk)>, End> {
        let folder = self.places.folder(task);
        fs::create_dir_all(&folder).map_err(Error::io(format!("make {}", folder.display())))?;
        let mut found = Vec::new();
        for (index, container) in task.containers.iter().enumerate() {
            let file = folder.join(format!("{index}.disk"));
            if !file.exists() {
                let share = u64::from(FETCHED) / task.containers.len() as u64;
                let from = share * index as u64;
                let meter = Meter { shared: shared.clone(), from, share, total: None };
                self.bring(task, container, file.clone(), cancelled.clone(), meter).await?;
            }
            let format = container.format.map(|format| match format {
                ImportFormat::Raw => ForeignFormat::Raw,
                ImportFormat::Vhd => ForeignFormat::Vhd,
                ImportFormat::Vhdx => ForeignFormat::Vhdx,
                ImportFormat::Vmdk => ForeignFormat::Vmdk,
                ImportFormat::Ova => ForeignFormat::Ova,
            });
            let disks = apart(move || haar_image::inspect(&file, format)).await?.map_err(of_file)?;
            found.extend(disks.into_iter().map(|disk| (index, disk)));
        }
        Ok(found)
    }

    /// Gets the file that a container is.
    async fn bring(
        &self,
        task: &ImportTask,
        container: &ImportContainer,
        to: PathBuf,
        cancelled: Arc<AtomicBool>,
        mut meter: Meter,
    ) -> Result<(), End> {
        if let Some(path) = file_of(&container.url) {
            let denied = |why| {
                client(format!("Disk validation failed [We do not have access to the given resource. {why}]"))
            };
            let brought = match self.places.open(task, &path).map_err(denied)? {
                Local::Upload(path) => apart(move || link(path, &to)).await?,
                Local::Other(mut file) => {
                    apart(move || haar_image::copy(&mut file, &to, &cancelled, &mut meter)).await?
                }
            };
            return brought.map_err(of_file);
        }
        let options = FetchOptions {
            reach: if task.trusted { Reach::Anywhere } else { Reach::Public },
            attempts: 4,
            pause: Duration::from_millis(500),
            cancelled,
        };
        let url = container.url.clone();
        apart(move || haar_image::fetch(&url, &to, &options, &mut meter)).await?.map_err(of_file)
    }

    /// Writes down which snapshots the disks become, unless an earlier run did.
    async fn note(
        &self,
        qemu: &Qemu,
        task: &ImportTask,
        found: &[(usize, ForeignDisk)],
    ) -> Result<Vec<ImportDisk>, End> {
        if task.disks.len() == found.len() {
            return Ok(task.disks.clone());
        }
        let mut disks = Vec::with_capacity(found.len());
        for (index, (container, disk)) in found.iter().enumerate() {
            let alone = found.iter().filter(|(other, _)| other == container).count() == 1;
            let device_name = task.containers[*container].device_name.clone().filter(|_| alone);
            let encryption = match &task.encryption {
                Some(first) if index > 0 => Some(qemu.another_key(&task.id, first)?),
                first => first.clone(),
            };
            disks.push(ImportDisk {
                container: *container,
                format: match disk.format {
                    ForeignFormat::Raw | ForeignFormat::Ova => ImportFormat::Raw,
                    ForeignFormat::Vhd => ImportFormat::Vhd,
                    ForeignFormat::Vhdx => ImportFormat::Vhdx,
                    ForeignFormat::Vmdk => ImportFormat::Vmdk,
                },
                file_size: disk.file_size,
                virtual_size: disk.virtual_size,
                device_name,
                snapshot_id: haar_core::new_id("snap"),
                encryption,
                progress: 0,
            });
        }
        self.change(task, |found| ImportTask { disks: disks.clone(), ..found.clone() }).await?;
        Ok(disks)
    }

    /// Makes the records of what a task has made, and ends it.
    async fn complete(
        &self,
        task: &ImportTask,
        disks: &[ImportDisk],
        image: Option<Image>,
    ) -> Result<(), Error> {
        let now = OffsetDateTime::now_utc();
        self.store
            .transact(|tx| {
                let found = tx.get::<ImportTask>(&task.account, &task.region, &task.id);
                let Some(found) = found.filter(|found| found.state == ImportState::Active) else {
                    return Ok(());
                };
                for disk in disks {
                    let done = Some(now);
                    tx.put(EbsSnapshot { completion_time: done, ..snapshot_of(&found, disk) });
                }
                let image = image.clone().map(|image| Image { creation_date: now, ..image });
                let image_id = image.as_ref().map(|image| image.id.clone());
                image.into_iter().for_each(|image| tx.put(image));
                tx.put(ImportTask {
                    state: ImportState::Completed,
                    message: None,
                    progress: 100,
                    disks: disks.to_vec(),
                    ended: Some(now),
                    image_id,
                    ..ImportTask::clone(&found)
                });
                Ok::<_, Error>(())
            })
            .await
    }

    /// Removes what there is of a task that has failed or was cancelled.
    async fn clean(&self, task: &ImportTask) -> Result<Action, Error> {
        if let Some(qemu) = &self.qemu {
            for disk in &task.disks {
                qemu.abandon_import(&disk.snapshot_id).await?;
            }
        }
        remove(&self.places.folder(task))?;
        let now = OffsetDateTime::now_utc();
        self.store
            .transact(|tx| {
                let found = tx.get::<ImportTask>(&task.account, &task.region, &task.id);
                if let Some(found) = found.filter(|found| found.state == ImportState::Deleting) {
                    let found = ImportTask::clone(&found);
                    tx.put(ImportTask {
                        state: ImportState::Deleted,
                        ended: Some(now),
                        disks: Vec::new(),
                        ..found
                    });
                }
                Ok::<_, Error>(())
            })
            .await?;
        Ok(Action::Done)
    }

    /// Forgets a task that is over, when it is no longer shown.
    async fn forget(&self, task: &ImportTask) -> Result<Action, Error> {
        remove(&self.places.folder(task))?;
        let left = task.ended.unwrap_or(task.created) + SHOWN - OffsetDateTime::now_utc();
        if left.is_positive() {
            return Ok(Action::RequeueAfter(left.unsigned_abs()));
        }
        self.store
            .transact(|tx| {
                tx.delete::<ImportTask>(&task.account, &task.region, &task.id);
                Ok::<_, Error>(())
            })
            .await?;
        Ok(Action::Done)
    }
}

/// Converts the disks that a run before did not.
async fn convert(
    qemu: &Qemu,
    task: &ImportTask,
    disks: &[ImportDisk],
    found: &[(usize, ForeignDisk)],
    shared: &Shared,
) -> Result<(), End> {
    let count = disks.len() as u64;
    for (index, (disk, (_, foreign))) in disks.iter().zip(found).enumerate() {
        let tell = |percent: u8| {
            shared.change(|stand| {
                stand.disks[index] = percent;
                let done = u64::from(FETCHED) + (55 * index as u64 + 55 * u64::from(percent) / 100) / count;
                stand.progress = u8::try_from(done).unwrap_or(95);
            });
        };
        let converted = qemu.import_disk(&snapshot_of(task, disk), &foreign.node, &tell).await;
        converted.map_err(|error| match error {
            Error::Volume(error) => of_disk(error),
            other => End::Again(other),
        })?;
        tell(100);
    }
    Ok(())
}

impl Reconciler for Imports {
    type Resource = ImportTask;
    type Error = Error;

    fn triggers(&self, before: &ImportTask, after: &ImportTask) -> bool {
        before.state != after.state
    }

    async fn reconcile(&self, _: &Key, entry: Option<Entry<ImportTask>>) -> Result<Action, Error> {
        let Some(task) = entry else { return Ok(Action::Done) };
        match task.state {
            ImportState::Active => self.run(&task).await,
            ImportState::Deleting => self.clean(&task).await,
            ImportState::Completed | ImportState::Deleted => self.forget(&task).await,
        }
    }

    async fn failed(&self, key: &Key, failure: &Failure<Error>, attempt: u32) {
        tracing::warn!(task = key.id(), attempt, %failure, "cannot go on with the import");
    }
}
