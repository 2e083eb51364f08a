//! What the instance reconciler asks of whatever runs instances.

use std::future::Future;
use std::path::Path;

use haar_records::ec2::{EbsSnapshot, Instance, Volume, VolumeShape};
use time::OffsetDateTime;

use crate::Error;

/// Runs instances. Every method is idempotent.
pub(crate) trait Backend: Send + Sync + 'static {
    /// What a running instance's state reason says, if it has to be told apart from a real one.
    const REASON: Option<(&'static str, &'static str)>;

    /// Makes the instance's disks, links and machine, and lets it run.
    fn start(&self, instance: &Instance) -> impl Future<Output = Result<(), Error>> + Send;

    /// What has become of an instance's machine.
    fn observe(&self, instance_id: &str) -> impl Future<Output = Result<Observation, Error>> + Send;

    /// Asks the guest to shut down.
    fn power_button(&self, instance_id: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Boots the machine anew, whatever it is doing.
    fn reset(&self, instance_id: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Ends the machine if there is one.
    fn power_off(&self, instance_id: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether the machine itself answers, whatever its guest does.
    fn answers(&self, instance_id: &str) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Whether the guest answers on its link.
    fn reachable(&self, instance: &Instance) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Makes the links of an instance's VPC match the records.
    fn sync_network(&self, instance: &Instance) -> impl Future<Output = Result<(), Error>> + Send;

    /// Gives a volume to the instance's machine, which runs.
    fn attach(&self, instance_id: &str, volume: &Volume) -> impl Future<Output = Result<(), Error>> + Send;

    /// Asks the guest to give up a volume; says whether the machine is without it.
    fn detach(&self, instance_id: &str, volume_id: &str) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Takes a volume from a guest that does not give it up.
    fn take_away(&self, instance_id: &str, volume_id: &str)
    -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes the disk of a volume that no instance is launched with.
    fn make_disk(&self, volume: &Volume) -> impl Future<Output = Result<(), Error>> + Send;

    /// Grows a volume's disk and holds it to other limits, whether a machine has it or not.
    fn modify_disk(
        &self,
        volume: &Volume,
        to: &VolumeShape,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Repairs the disk, if it is damaged, of a volume that no machine has.
    fn repair_disk(&self, volume: &Volume) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes a snapshot that is a copy of another one.
    fn copy_snapshot(&self, from: &str, to: &EbsSnapshot) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes a snapshot that is the root disk of its image of the library.
    fn make_library_snapshot(&self, snapshot: &EbsSnapshot)
    -> impl Future<Output = Result<(), Error>> + Send;

    /// The size in GiB of a snapshot that was taken, if it can be told.
    fn snapshot_size(&self, snapshot_id: &str) -> Result<Option<u32>, Error>;

    /// Takes snapshots of volumes that are attached to one instance, or of one volume, all at the same point in time.
    fn take_snapshots(&self, set: &[EbsSnapshot]) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes a snapshot.
    fn remove_snapshot(&self, snapshot_id: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes a volume's disk.
    fn remove_disk(&self, volume: &Volume) -> impl Future<Output = Result<(), Error>> + Send;

    /// Forgets what was kept of an instance whose record goes.
    fn forget(&self, instance_id: &str) -> impl Future<Output = Result<(), Error>> + Send;
}

/// What has become of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Observation {
    /// There is none.
    Absent,
    /// It runs.
    Running,
    /// Its disks' host is full; it stands still.
    OutOfSpace,
    /// The guest has shut down.
    ShutDown,
    /// The guest's kernel has panicked.
    Panicked,
    /// Its process has ended, for this reason.
    Dead(String),
}

/// The end of an instance's console log.
pub(crate) fn console(
    dir: &Path,
    instance_id: &str,
    most: u64,
) -> Result<Option<(Vec<u8>, OffsetDateTime)>, Error> {
    let path = dir.join(format!("{instance_id}.log"));
    let modified = match std::fs::metadata(&path).and_then(|metadata| metadata.modified()) {
        Ok(modified) => modified,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("examine {}", path.display()))(error)),
    };
    let tail = haar_vm::console::tail(&path, most).map_err(Error::io(format!("read {}", path.display())))?;
    Ok((!tail.is_empty()).then(|| (tail, modified.into())))
}
