//! The reconciler of imports: files that accounts name become snapshots and images.
//!
//! What arrives is kept in `imports/<task>/` of the state folder and is there whole or as a part that a later run goes on with. The
//! snapshots that it becomes have their ids in the task's record before they have files, so that a run that was cut off goes on with those
//! that are not there yet, and they get records of their own when all are there, in the transaction that ends the task. Whatever goes
//! wrong, the task is `deleting` until nothing is left of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use haar_core::reconcile::{Action, Failure, Reconciler};
use haar_image::{FetchOptions, ForeignDisk, ForeignFormat, Reach, Unit};
use haar_records::ec2::{
    BootMode, EbsSnapshot, Image, ImageBoot, ImageDevice, ImportContainer, ImportDisk, ImportFormat,
    ImportState, ImportTask, ImportedImage, SnapshotState, VolumeType,
};
use haar_store::{Entry, Key, Store};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use percent_encoding::percent_decode_str;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, oneshot};

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

/// The root device of an imported image whose task names none.
const ROOT: &str = "/dev/sda1";

/// Bytes that stay free on the file system of disks.
const LEFT_FREE: u64 = 1 << 30;

pub(crate) struct Imports {
    store: Store,
    /// None where compute is simulated.
    qemu: Option<Arc<Qemu>>,
    places: Places,
    slots: Semaphore,
}

/// Where files are.
struct Places {
    state: PathBuf,
    work: PathBuf,
    uploads: PathBuf,
    /// Folders that every account may take files from.
    folders: Vec<PathBuf>,
}

/// Why a task does not come to its end.
enum End {
    /// For good, and this is to be told.
    Failed(String),
    /// It is to be tried again.
    Again(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        End::Again(error)
    }
}

/// It is the fault of who asked.
fn client(why: impl std::fmt::Display) -> End {
    End::Failed(format!("ClientError: {why}"))
}

/// It is not.
fn server(why: impl std::fmt::Display) -> End {
    End::Failed(format!("ServerError: {why}"))
}

fn no_space() -> End {
    server("There is no space left for the disk.")
}

/// What has become of a file that was fetched or looked at. Names of files on this machine are not told.
fn of_file(error: haar_image::Error) -> End {
    use haar_image::Error::{Cancelled, HttpStatus, NoSpace, Rejected, Transfer};
    match error {
        Rejected { reason, .. } => client(format!("Disk validation failed [{reason}]")),
        HttpStatus { status, .. } => client(format!(
            "Disk validation failed [We do not have access to the given resource. Reason {status}]"
        )),
        Transfer { reason, .. } => client(format!("The URL cannot be fetched: {reason}")),
        NoSpace { .. } => no_space(),
        Cancelled => End::Again(Error::Image(Cancelled)),
        other => {
            tracing::error!(error = %other, "cannot import a file");
            server("An internal error has occurred.")
        }
    }
}

fn of_disk(error: haar_volume::Error) -> End {
    match error {
        haar_volume::Error::NoSpace(_) => no_space(),
        haar_volume::Error::Tool(why) => {
            tracing::warn!(why, "cannot convert a disk");
            client("Disk validation failed [Its content cannot be read]")
        }
        other => {
            tracing::error!(error = %other, "cannot import a disk");
            server("An internal error has occurred.")
        }
    }
}

/// How far a task is.
#[derive(Debug, Clone, Default, PartialEq)]
struct Stand {
    message: &'static str,
    progress: u8,
    disks: Vec<u8>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Stand>>);

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Stand)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn now(&self) -> Stand {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Progress of what is fetched, as a part of the task's.
struct Meter {
    shared: Shared,
    from: u64,
    share: u64,
    total: Option<u64>,
}

impl haar_image::Progress for Meter {
    fn stage(&mut self, _: &str, _: Unit, total: Option<u64>) {
        self.total = total.filter(|total| *total > 0);
    }

    fn advance(&mut self, done: u64) {
        let Some(total) = self.total else { return };
        let percent = self.from
            + u64::try_from(u128::from(done.min(total)) * u128::from(self.share) / u128::from(total))
                .unwrap_or_default();
        self.shared.change(|stand| stand.progress = u8::try_from(percent).unwrap_or(100));
    }
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

/// The file that a URL names on this machine.
fn file_of(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("file://")?;
    let rest = rest.strip_prefix("localhost").unwrap_or(rest);
    let path = PathBuf::from(percent_decode_str(rest).decode_utf8().ok()?.into_owned());
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    (rest.starts_with('/') && plain && !rest.contains("%00")).then_some(path)
}

/// A file of this machine that may be taken.
enum Local {
    /// It never changes.
    Upload(PathBuf),
    /// It may change.
    Other(File),
}

impl Places {
    /// Opens the file that a task names. Those that an account may not take are told apart from those that are not there to nobody but the
    /// owner of the machine.
    fn open(&self, task: &ImportTask, path: &Path) -> Result<Local, String> {
        let none = || "The account has no such file: upload it".to_owned();
        let uploads = self.uploads.join(&task.account);
        if let Ok(name) = path.strip_prefix(&uploads) {
            // The daemon makes them, and what it is making yet has another name.
            let whole = name.to_str().is_some_and(|name| !name.starts_with('.') && !name.contains('/'));
            let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
            return if whole && is_file { Ok(Local::Upload(path.to_owned())) } else { Err(none()) };
        }
        let beneath = self.folders.iter().find_map(|folder| Some((folder, path.strip_prefix(folder).ok()?)));
        let file = if let Some((folder, name)) = beneath {
            // Whatever links there are, and whoever changes them meanwhile, the file is in the folder.
            let folder = File::open(folder).map_err(|_| none())?;
            let how = OpenHow::new()
                .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            File::from(openat2(&folder, name, how).map_err(|_| none())?)
        } else if task.trusted {
            let failed = |error: std::io::Error| format!("{}: {error}", path.display());
            let found = fs::canonicalize(path).map_err(failed)?;
            // The installation's own secrets are not disks.
            if fs::canonicalize(&self.state).is_ok_and(|state| found.starts_with(state)) {
                return Err(none());
            }
            if !fs::metadata(&found).map_err(failed)?.is_file() {
                return Err(format!("{} is not a regular file", path.display()));
            }
            File::open(&found).map_err(failed)?
        } else {
            return Err(none());
        };
        match file.metadata() {
            Ok(found) if found.is_file() => Ok(Local::Other(file)),
            _ => Err(none()),
        }
    }

    fn folder(&self, task: &ImportTask) -> PathBuf {
        self.work.join(&task.id)
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
        let folder = self.places.folder(task);
        fs::create_dir_all(&folder).map_err(Error::io(format!("make {}", folder.display())))?;
        let mut found = Vec::new();
        for (index, container) in task.containers.iter().enumerate() {
            let file = folder.join(format!("{index}.disk"));
            if !file.exists() {
                let share = u64::from(FETCHED) / task.containers.len() as u64;
                let from = share * index as u64;
                let meter = Meter { shared: shared.clone(), from, share, total: None };
                self.bring(task, container, file.clone(), cancelled, meter).await?;
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
        let count = disks.len() as u64;
        for (index, (disk, (_, foreign))) in disks.iter().zip(&found).enumerate() {
            let tell = |percent: u8| {
                shared.change(|stand| {
                    stand.disks[index] = percent;
                    let done =
                        u64::from(FETCHED) + (55 * index as u64 + 55 * u64::from(percent) / 100) / count;
                    stand.progress = u8::try_from(done).unwrap_or(95);
                });
            };
            qemu.import_disk(&snapshot_of(task, disk), &foreign.node, &tell).await.map_err(|error| {
                match error {
                    Error::Volume(error) => of_disk(error),
                    other => End::Again(other),
                }
            })?;
            tell(100);
        }
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

    /// Gets the file that a container is.
    async fn bring(
        &self,
        task: &ImportTask,
        container: &ImportContainer,
        to: PathBuf,
        cancelled: &Arc<AtomicBool>,
        mut meter: Meter,
    ) -> Result<(), End> {
        let cancelled = cancelled.clone();
        if let Some(path) = file_of(&container.url) {
            let denied = |why| {
                client(format!("Disk validation failed [We do not have access to the given resource. {why}]"))
            };
            let brought = match self.places.open(task, &path).map_err(denied)? {
                Local::Upload(path) => apart(move || match fs::hard_link(&path, &to) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        Err(haar_image::Error::Rejected { path, reason: "the upload is gone".to_owned() })
                    }
                    Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => {
                        Err(haar_image::Error::Io { action: "link", path, source })
                    }
                    _ => Ok(()),
                }),
                Local::Other(mut file) => {
                    return apart(move || haar_image::copy(&mut file, &to, &cancelled, &mut meter))
                        .await?
                        .map_err(of_file);
                }
            };
            return brought.await?.map_err(of_file);
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

/// The snapshot that a disk becomes.
fn snapshot_of(task: &ImportTask, disk: &ImportDisk) -> EbsSnapshot {
    let gib = u32::try_from(disk.virtual_size.div_ceil(1 << 30)).unwrap_or(u32::MAX);
    EbsSnapshot {
        state: SnapshotState::Completed,
        description: format!("Created by AWS-VMImport service for {}", task.id),
        encryption: disk.encryption.clone(),
        ..EbsSnapshot::new(&task.account, &task.region, disk.snapshot_id.clone(), gib, task.created)
    }
}

/// Which of the disks is the root disk, by what each can be booted by, and how the image boots.
fn boots_by(
    wanted: &ImportedImage,
    modes: &[Option<haar_image::BootMode>],
) -> Result<(usize, BootMode), End> {
    use haar_image::BootMode::{LegacyBios, Uefi, UefiPreferred};
    let found = modes.iter().enumerate().find_map(|(index, mode)| Some((index, (*mode)?)));
    let (root, can) = found.ok_or_else(|| {
        client("No bootable partition found: no disk has boot code or an EFI system partition")
    })?;
    let mode = match (wanted.boot_mode, can) {
        (Some(BootMode::LegacyBios), Uefi) => {
            return Err(client(
                "Boot mode legacy-bios is not supported by the root disk, which has no boot code",
            ));
        }
        (Some(BootMode::Uefi), LegacyBios) => {
            return Err(client(
                "Boot mode uefi is not supported by the root disk, which has no EFI system partition",
            ));
        }
        (Some(mode), _) => mode,
        (None, LegacyBios) => BootMode::LegacyBios,
        (None, Uefi) => BootMode::Uefi,
        (None, UefiPreferred) => BootMode::UefiPreferred,
    };
    Ok((root, mode))
}

/// Gives each disk the name of a device that it has none of.
fn named(mut disks: Vec<ImportDisk>, root: usize) -> Vec<ImportDisk> {
    let mut taken: BTreeSet<String> = disks.iter().filter_map(|disk| disk.device_name.clone()).collect();
    let free = ('b'..='z').map(|letter| format!("/dev/sd{letter}"));
    let mut names = free.filter(|name| !taken.contains(name)).collect::<Vec<_>>().into_iter();
    if disks[root].device_name.is_none() {
        let name = if taken.insert(ROOT.to_owned()) { Some(ROOT.to_owned()) } else { names.next() };
        disks[root].device_name = name;
    }
    for disk in disks.iter_mut().filter(|disk| disk.device_name.is_none()) {
        disk.device_name = names.next();
    }
    disks
}

/// The image of a machine's disks.
fn image_of(task: &ImportTask, disks: &[ImportDisk], root: usize, mode: BootMode) -> Image {
    let device = |disk: &ImportDisk| ImageDevice {
        device_name: disk.device_name.clone().unwrap_or_default(),
        snapshot_id: Some(disk.snapshot_id.clone()),
        size_gib: snapshot_of(task, disk).volume_size_gib,
        volume_type: VolumeType::Gp2,
        iops: None,
        throughput: None,
        delete_on_termination: true,
        encrypted: disk.encryption.is_some(),
    };
    let devices: Vec<_> = disks.iter().map(device).collect();
    let (id, boot) = (haar_core::new_id("ami"), ImageBoot::Firmware(mode));
    let root = (devices[root].device_name.as_str(), devices[root].size_gib);
    let image = Image::new(&task.account, &task.region, id, root, boot, task.created);
    let described = || format!("Created by AWS-VMImport service for {}", task.id);
    Image {
        name: task.id.clone(),
        description: task.description.clone().or_else(|| Some(described())),
        devices,
        ..image
    }
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

#[cfg(test)]
mod tests {
    use haar_records::Tags;

    use super::*;

    #[test]
    fn urls_name_files_or_nothing() {
        let path = |url| file_of(url).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(path("file:///srv/a%20b.vmdk").as_deref(), Some("/srv/a b.vmdk"));
        assert_eq!(path("file://localhost/srv/a").as_deref(), Some("/srv/a"));
        for wrong in [
            "file://host/srv",
            "file:///srv/../etc/shadow",
            "file:///a%00b",
            "file:///%2e%2e/a",
            "http://a/b",
            "/srv",
            "file://srv",
        ] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }

    fn task(account: &str, trusted: bool) -> ImportTask {
        ImportTask {
            account: account.to_owned(),
            region: "eu-central-1".to_owned(),
            id: "import-snap-00000000000000001".to_owned(),
            description: None,
            image: None,
            containers: Vec::new(),
            disks: Vec::new(),
            state: ImportState::Active,
            message: None,
            progress: 0,
            encryption: None,
            trusted,
            created: OffsetDateTime::UNIX_EPOCH,
            ended: None,
            image_id: None,
            tags: Tags::new(),
        }
    }

    #[test]
    fn an_account_takes_its_uploads_and_what_is_shared() {
        let base = std::env::temp_dir().join(format!("haar-imports-{}", std::process::id()));
        let (state, shared, other) = (base.join("state"), base.join("shared"), base.join("other"));
        for folder in [state.join("uploads/1"), state.join("uploads/2"), shared.clone(), other.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        let files = [
            "state/uploads/1/a",
            "state/uploads/1/.b.part",
            "state/uploads/2/c",
            "state/key",
            "shared/d",
            "other/e",
        ];
        files.iter().for_each(|file| fs::write(base.join(file), "x").unwrap());
        std::os::unix::fs::symlink(other.join("e"), shared.join("out")).unwrap();
        std::os::unix::fs::symlink("d", shared.join("in")).unwrap();
        std::os::unix::fs::symlink(state.join("key"), other.join("key")).unwrap();
        let places = Places {
            work: state.join("imports"),
            uploads: state.join("uploads"),
            folders: vec![shared.clone()],
            state,
        };
        let open = |trusted, file: &str| places.open(&task("1", trusted), &base.join(file)).is_ok();
        let allowed = ["state/uploads/1/a", "shared/d", "shared/in"];
        allowed.iter().for_each(|file| assert!(open(false, file) && open(true, file), "{file}"));
        let never = [
            "state/uploads/1/.b.part",
            "state/uploads/1/missing",
            "state/uploads/2/c",
            "state/key",
            "other/key",
            "shared/out",
            "shared",
            "other",
        ];
        never.iter().for_each(|file| assert!(!open(false, file) && !open(true, file), "{file}"));
        assert!(!open(false, "other/e") && open(true, "other/e"));
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn the_root_disk_is_the_first_that_boots() {
        use haar_image::BootMode::{LegacyBios, Uefi};
        let wanted = |boot_mode| ImportedImage { boot_mode, ..ImportedImage::default() };
        let by = |boot_mode, modes: &[_]| boots_by(&wanted(boot_mode), modes).ok();
        assert_eq!(by(None, &[None, Some(Uefi)]), Some((1, BootMode::Uefi)));
        assert_eq!(by(Some(BootMode::LegacyBios), &[Some(LegacyBios)]), Some((0, BootMode::LegacyBios)));
        assert_eq!(by(Some(BootMode::Uefi), &[Some(LegacyBios)]), None);
        assert_eq!(by(None, &[None]), None);
    }

    #[test]
    fn disks_without_a_device_get_one() {
        let disk = |name: Option<&str>| ImportDisk {
            container: 0,
            format: ImportFormat::Vmdk,
            file_size: 1,
            virtual_size: 1,
            device_name: name.map(str::to_owned),
            snapshot_id: String::new(),
            encryption: None,
            progress: 0,
        };
        let names = |disks: Vec<ImportDisk>, root| {
            named(disks, root).into_iter().filter_map(|disk| disk.device_name).collect::<Vec<_>>()
        };
        assert_eq!(
            names(vec![disk(None), disk(None), disk(Some("/dev/sdb"))], 1),
            ["/dev/sdc", "/dev/sda1", "/dev/sdb"]
        );
        assert_eq!(names(vec![disk(Some("/dev/xvda")), disk(None)], 0), ["/dev/xvda", "/dev/sdb"]);
    }
}
