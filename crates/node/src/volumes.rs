//! The volume reconciler: the disks of volumes that no instance was launched with.

use std::sync::Arc;

use haar_core::reconcile::{Action, Failure, Reconciler};
use haar_records::ec2::{Volume, VolumeState};
use haar_store::{Entry, Key, Store};

use crate::Error;
use crate::backend::Backend;
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

impl<B: Backend> Reconciler for Volumes<B> {
    type Resource = Volume;
    type Error = Error;

    fn triggers(&self, before: &Volume, after: &Volume) -> bool {
        before.state != after.state
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
            _ => {}
        }
        Ok(Action::Done)
    }

    async fn failed(&self, key: &Key, failure: &Failure<Error>, attempt: u32) {
        tracing::warn!(volume = key.id(), attempt, %failure, "cannot reconcile the volume");
    }
}
