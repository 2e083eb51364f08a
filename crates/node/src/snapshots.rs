//! The snapshot reconciler.

use std::sync::Arc;
use std::time::Duration;

use haar_core::reconcile::{Action, Failure, Reconciler};
use haar_records::ec2::{
    EbsSnapshot, Instance, InstanceState, SnapshotOrigin, SnapshotSource, SnapshotState, SnapshotUpload,
    Volume, VolumeState,
};
use haar_store::{Entry, Key, Store};
use time::OffsetDateTime;

use crate::Error;
use crate::backend::Backend;
use crate::migrations::is_leaving;

/// How soon is looked again whether what stands in the way of a snapshot's or volume's removal is done.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How often is looked whether a snapshot still waits for its instance's reboot, which tells by itself when it comes to it.
const STILL_WAITS: Duration = Duration::from_secs(5);

pub(crate) struct Snapshots<B> {
    store: Store,
    backend: Arc<B>,
}

/// Whether a snapshot of the volume is still to be taken.
pub(crate) fn is_awaited(snapshot: &haar_store::Snapshot, volume: &Volume) -> bool {
    snapshot
        .by_index::<EbsSnapshot>(&volume.account, &volume.region, "volume", &volume.id)
        .any(|found| found.state == SnapshotState::Pending)
}

/// Has the snapshots taken that wait for an instance's reboot; says whether none of the instance's volumes has one still to be taken.
pub(crate) async fn release(store: &Store, instance: &Instance) -> Result<bool, Error> {
    let (account, region, id) = (&instance.account, &instance.region, &instance.id);
    if store.snapshot().by_index::<EbsSnapshot>(account, region, "awaits", id).next().is_some() {
        store
            .transact(|tx| {
                let waiting = tx.by_index::<EbsSnapshot>(account, region, "awaits", id);
                let waiting: Vec<_> = waiting.map(|found| EbsSnapshot::clone(found)).collect();
                waiting.into_iter().for_each(|found| tx.put(EbsSnapshot { awaits: None, ..found }));
                Ok::<_, Error>(())
            })
            .await?;
    }
    let records = store.snapshot();
    let mut volumes = instance
        .spec
        .block_devices
        .iter()
        .filter_map(|device| records.get::<Volume>(account, region, &device.volume_id));
    Ok(!volumes.any(|volume| is_awaited(&records, &volume)))
}

/// Whether an earlier snapshot of the volume is still to be taken: it may have been begun by a daemon that was killed, and would be cut
/// off from its volume by a later one.
fn follows(records: &haar_store::Snapshot, asked: &EbsSnapshot) -> bool {
    fn order(snapshot: &EbsSnapshot) -> (OffsetDateTime, &String) {
        (snapshot.start_time, snapshot.set.first().unwrap_or(&snapshot.id))
    }
    records
        .by_index::<EbsSnapshot>(&asked.account, &asked.region, "volume", &asked.volume_id)
        .filter(|other| other.state == SnapshotState::Pending && other.awaits.is_none())
        .any(|other| order(other) < order(asked))
}

impl<B: Backend> Snapshots<B> {
    pub(crate) fn new(store: Store, backend: Arc<B>) -> Self {
        Self { store, backend }
    }

    /// Makes a snapshot that is a copy of another one.
    async fn copy(&self, copy: &EbsSnapshot, source: &SnapshotSource) -> Result<Action, Error> {
        let (state, message) = match self.backend.copy_snapshot(&source.id, copy).await {
            Ok(()) => (SnapshotState::Completed, None),
            Err(error @ Error::Volume(_)) => {
                tracing::warn!(snapshot = copy.id, %error, "cannot copy the snapshot");
                (SnapshotState::Error, Some(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        self.end(std::slice::from_ref(copy), state, message.as_deref()).await
    }

    /// Makes a snapshot that is the root disk of an image of the library.
    async fn copy_library(&self, copy: &EbsSnapshot) -> Result<Action, Error> {
        let (state, message) = match self.backend.make_library_snapshot(copy).await {
            Ok(()) => (SnapshotState::Completed, None),
            Err(error @ (Error::Volume(_) | Error::Image(_) | Error::Inconsistent(_))) => {
                tracing::warn!(snapshot = copy.id, %error, "cannot make the snapshot");
                (SnapshotState::Error, Some(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        self.end(std::slice::from_ref(copy), state, message.as_deref()).await
    }

    /// Whether the instance is still to be rebooted for the snapshot. One that went down otherwise has been released.
    fn waits(&self, asked: &EbsSnapshot) -> bool {
        let Some(id) = &asked.awaits else { return false };
        let instance = self.store.snapshot().get::<Instance>(&asked.account, &asked.region, id);
        instance.is_some_and(|instance| match instance.status.state {
            InstanceState::Running => instance.spec.reboots > instance.status.reboots,
            InstanceState::Pending | InstanceState::Stopping | InstanceState::ShuttingDown => true,
            InstanceState::Stopped | InstanceState::Terminated => false,
        })
    }

    /// Waits for an upload, which fails when it takes too long.
    async fn wait(&self, snapshot: &EbsSnapshot, upload: &SnapshotUpload) -> Result<Action, Error> {
        let left = upload.deadline - OffsetDateTime::now_utc();
        if left.is_positive() {
            return Ok(Action::RequeueAfter(left.unsigned_abs()));
        }
        let message = "The snapshot was not completed in time";
        self.end(std::slice::from_ref(snapshot), SnapshotState::Error, Some(message)).await
    }

    /// Takes a snapshot, together with those of its set.
    async fn take(&self, asked: &EbsSnapshot) -> Result<Action, Error> {
        let records = self.store.snapshot();
        let (account, region) = (&asked.account, &asked.region);
        let volume = records.get::<Volume>(account, region, &asked.volume_id);
        let instance = volume.and_then(|volume| Some(volume.attachments.first()?.instance_id.clone()));
        if instance.is_some_and(|instance| is_leaving(&records, account, region, &instance)) {
            // It stays, because a snapshot is asked for.
            return Ok(Action::RequeueAfter(LOOK_AGAIN));
        }
        let mut set: Vec<EbsSnapshot> = asked
            .set
            .iter()
            .filter_map(|id| records.get::<EbsSnapshot>(account, region, id))
            .map(|entry| EbsSnapshot::clone(&entry))
            .filter(|member| member.state == SnapshotState::Pending)
            .collect();
        if set.is_empty() {
            set.push(asked.clone());
        }
        if set.iter().any(|member| follows(&records, member)) {
            return Ok(Action::RequeueAfter(LOOK_AGAIN));
        }
        let (state, message) = match self.backend.take_snapshots(&set).await {
            Ok(()) => (SnapshotState::Completed, None),
            Err(error @ Error::NotTaken(_)) => {
                tracing::warn!(snapshot = asked.id, %error, "cannot take the snapshot");
                (SnapshotState::Error, Some(error.to_string()))
            }
            // It may be half taken, and is gone on with.
            Err(error) => return Err(error),
        };
        self.end(&set, state, message.as_deref()).await
    }

    /// Writes down how snapshots have ended.
    async fn end(
        &self,
        set: &[EbsSnapshot],
        state: SnapshotState,
        message: Option<&str>,
    ) -> Result<Action, Error> {
        let now = OffsetDateTime::now_utc();
        // A volume that was growing may be larger than its record said when the snapshot was asked for.
        let mut sizes = Vec::new();
        for member in set {
            sizes.push(self.backend.snapshot_size(&member.id)?.unwrap_or(member.volume_size_gib));
        }
        self.store
            .transact(|tx| {
                for (member, size) in set.iter().zip(&sizes) {
                    if let Some(found) = tx.get::<EbsSnapshot>(&member.account, &member.region, &member.id) {
                        tx.put(EbsSnapshot {
                            state,
                            state_message: message.map(str::to_owned),
                            volume_size_gib: *size,
                            completion_time: (state == SnapshotState::Completed).then_some(now),
                            ..EbsSnapshot::clone(&found)
                        });
                    }
                }
                Ok::<_, Error>(())
            })
            .await?;
        // The change of state asks for the next run.
        Ok(Action::Done)
    }

    async fn remove(&self, seen: &EbsSnapshot) -> Result<Action, Error> {
        let (account, region, id) = (&seen.account, &seen.region, &seen.id);
        let records = self.store.snapshot();
        // Those of other accounts and regions, too.
        let makes = |volume: &Volume| {
            volume.state == VolumeState::Creating && volume.snapshot_id.as_ref() == Some(id)
        };
        let copies = |copy: &EbsSnapshot| {
            let uploads = copy.upload.as_ref().is_some_and(|upload| upload.parent.as_ref() == Some(id));
            copy.state == SnapshotState::Pending
                && (uploads || copy.copy_of.as_ref().is_some_and(|of| of.id == *id))
        };
        if records.list_all::<Volume>().any(|volume| makes(volume))
            || records.list_all::<EbsSnapshot>().any(|copy| copies(copy))
        {
            return Ok(Action::RequeueAfter(LOOK_AGAIN));
        }
        self.backend.remove_snapshot(id).await?;
        self.store
            .transact(|tx| {
                tx.delete::<EbsSnapshot>(account, region, id);
                Ok::<_, Error>(())
            })
            .await?;
        Ok(Action::Done)
    }
}

impl<B: Backend> Reconciler for Snapshots<B> {
    type Resource = EbsSnapshot;
    type Error = Error;

    fn triggers(&self, before: &EbsSnapshot, after: &EbsSnapshot) -> bool {
        (before.state, before.deleted, &before.awaits) != (after.state, after.deleted, &after.awaits)
    }

    async fn reconcile(&self, _: &Key, entry: Option<Entry<EbsSnapshot>>) -> Result<Action, Error> {
        let Some(snapshot) = entry else { return Ok(Action::Done) };
        match snapshot.state {
            SnapshotState::Pending if self.waits(&snapshot) => Ok(Action::RequeueAfter(STILL_WAITS)),
            // Also one that is to be removed: half taken, it would be in the volume's way.
            SnapshotState::Pending => match (&snapshot.copy_of, &snapshot.upload) {
                (_, Some(_)) if snapshot.deleted => self.remove(&snapshot).await,
                (_, Some(upload)) => self.wait(&snapshot, upload).await,
                (Some(source), _) => self.copy(&snapshot, source).await,
                (None, None) if snapshot.origin == Some(SnapshotOrigin::Library) => {
                    self.copy_library(&snapshot).await
                }
                (None, None) => self.take(&snapshot).await,
            },
            _ if snapshot.deleted => self.remove(&snapshot).await,
            SnapshotState::Completed | SnapshotState::Error => Ok(Action::Done),
        }
    }

    async fn failed(&self, key: &Key, failure: &Failure<Error>, attempt: u32) {
        tracing::warn!(snapshot = key.id(), attempt, %failure, "cannot reconcile the snapshot");
    }
}
