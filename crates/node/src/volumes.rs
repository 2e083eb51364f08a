//! The volume reconciler: the disks of volumes that no instance was launched with, and what is changed of disks.

use std::sync::Arc;

use haar_core::reconcile::{Action, Failure, Reconciler};
use haar_records::ec2::{ModificationState, Volume, VolumeModification, VolumeState};
use haar_store::{Entry, Key, Store};
use time::OffsetDateTime;

use crate::Error;
use crate::backend::Backend;
use crate::migrations::is_leaving;
use crate::snapshots::{LOOK_AGAIN, is_awaited};

pub(crate) struct Volumes<B> {
    store: Store,
    backend: Arc<B>,
}

impl<B: Backend> Volumes<B> {
    pub(crate) fn new(store: Store, backend: Arc<B>) -> Self {
        Self { store, backend }
    }

    /// Ends the state that a volume was seen in, if it still is in it: `None` removes its record.
    async fn leave(&self, seen: &Volume, next: Option<(VolumeState, Option<String>)>) -> Result<(), Error> {
        let (account, region, id) = (&seen.account, &seen.region, &seen.id);
        self.store
            .transact(|tx| {
                let Some(volume) = tx.get::<Volume>(account, region, id) else { return Ok(()) };
                if volume.state != seen.state {
                    return Ok(());
                }
                match next.clone() {
                    Some((state, error)) => tx.put(Volume { state, error, ..Volume::clone(&volume) }),
                    None => drop(tx.delete::<Volume>(account, region, id)),
                }
                Ok(())
            })
            .await
    }
}

impl<B: Backend> Volumes<B> {
    /// Goes on with a modification: first the disk is changed and the record, then what was started with the old record while
    /// the disk was being changed is brought in line.
    async fn modify(&self, volume: &Volume, seen: &VolumeModification) -> Result<Action, Error> {
        if seen.state == ModificationState::Modifying && is_awaited(&self.store.snapshot(), volume) {
            // The layer that is being made has the present size.
            return Ok(Action::RequeueAfter(LOOK_AGAIN));
        }
        let (account, region) = (&volume.account, &volume.region);
        if volume
            .attachments
            .iter()
            .any(|a| is_leaving(&self.store.snapshot(), account, region, &a.instance_id))
        {
            // It stays, because its disk is to be modified.
            return Ok(Action::RequeueAfter(LOOK_AGAIN));
        }
        let next = match self.backend.modify_disk(volume, &seen.target).await {
            Ok(()) if seen.state == ModificationState::Modifying => ModificationState::Optimizing,
            Ok(()) => ModificationState::Completed,
            Err(error) if is_final(&error) => {
                tracing::warn!(volume = volume.id, %error, "cannot modify the volume");
                return self
                    .modified(volume, seen, ModificationState::Failed, Some(&error.to_string()))
                    .await;
            }
            // The machine may be ending, and is looked at again.
            Err(error) => return Err(error),
        };
        self.modified(volume, seen, next, None).await
    }

    async fn modified(
        &self,
        volume: &Volume,
        seen: &VolumeModification,
        state: ModificationState,
        message: Option<&str>,
    ) -> Result<Action, Error> {
        let now = OffsetDateTime::now_utc();
        self.store
            .transact(|tx| {
                let found = tx.get::<Volume>(&volume.account, &volume.region, &volume.id);
                let Some(found) = found.filter(|found| found.modification.as_ref() == Some(seen)) else {
                    return Ok(());
                };
                let modification = VolumeModification {
                    state,
                    message: message.map(str::to_owned),
                    end_time: (!state.is_under_way()).then_some(now),
                    ..seen.clone()
                };
                let found = Volume { modification: Some(modification), ..Volume::clone(&found) };
                tx.put(if state == ModificationState::Failed {
                    found
                } else {
                    found.with_shape(seen.target)
                });
                Ok::<_, Error>(())
            })
            .await?;
        // The change of state asks for the next run.
        Ok(Action::Done)
    }

    /// Repairs a damaged disk, which no machine has.
    async fn repair(&self, volume: &Volume) -> Result<Action, Error> {
        self.backend.repair_disk(volume).await?;
        self.store
            .transact(|tx| {
                if let Some(found) = tx.get::<Volume>(&volume.account, &volume.region, &volume.id) {
                    tx.put(Volume { enable_io: false, ..Volume::clone(&found) });
                }
                Ok::<_, Error>(())
            })
            .await?;
        Ok(Action::Done)
    }
}

/// Whether a disk will not become what it is to be, however often that is tried.
fn is_final(error: &Error) -> bool {
    matches!(error, Error::Volume(_) | Error::Vm(haar_vm::Error::Refused { .. }))
}

impl<B: Backend> Reconciler for Volumes<B> {
    type Resource = Volume;
    type Error = Error;

    fn triggers(&self, before: &Volume, after: &Volume) -> bool {
        let modification = |volume: &Volume| volume.modification.as_ref().map(|m| (m.start_time, m.state));
        before.state != after.state
            || modification(before) != modification(after)
            || before.enable_io != after.enable_io
    }

    async fn reconcile(&self, _: &Key, entry: Option<Entry<Volume>>) -> Result<Action, Error> {
        let Some(volume) = entry else { return Ok(Action::Done) };
        match volume.state {
            // The disks that an instance is launched with are made with it.
            VolumeState::Creating if volume.attachments.is_empty() => {
                let next = match self.backend.make_disk(&volume).await {
                    Ok(()) => (VolumeState::Available, None),
                    Err(error) => {
                        tracing::warn!(volume = volume.id, %error, "cannot make the volume");
                        (VolumeState::Error, Some(error.to_string()))
                    }
                };
                self.leave(&volume, Some(next)).await?;
            }
            VolumeState::Deleting if is_awaited(&self.store.snapshot(), &volume) => {
                return Ok(Action::RequeueAfter(LOOK_AGAIN));
            }
            VolumeState::Deleting => {
                self.backend.remove_disk(&volume).await?;
                self.leave(&volume, None).await?;
            }
            VolumeState::Available | VolumeState::InUse if volume.enable_io => {
                return self.repair(&volume).await;
            }
            VolumeState::Available | VolumeState::InUse => {
                if let Some(seen) = volume.modification.as_ref().filter(|m| m.state.is_under_way()) {
                    return self.modify(&volume, seen).await;
                }
            }
            _ => {}
        }
        Ok(Action::Done)
    }

    async fn failed(&self, key: &Key, failure: &Failure<Error>, attempt: u32) {
        tracing::warn!(volume = key.id(), attempt, %failure, "cannot reconcile the volume");
    }
}
