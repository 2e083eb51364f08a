//! The snapshot reconciler.

use std::sync::Arc;
use std::time::Duration;

use haar_core::reconcile::{Action, Failure, Reconciler};
use haar_records::ec2::{EbsSnapshot, SnapshotState, Volume, VolumeState};
use haar_store::{Entry, Key, Store};
use time::OffsetDateTime;

use crate::Error;
use crate::backend::Backend;

/// How soon is looked again whether what stands in the way of a snapshot's or volume's removal is done.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(200);

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

impl<B: Backend> Snapshots<B> {
    pub(crate) fn new(store: Store, backend: Arc<B>) -> Self {
        Self { store, backend }
    }

    /// Takes a snapshot, together with those of its set.
    async fn take(&self, asked: &EbsSnapshot) -> Result<Action, Error> {
        let records = self.store.snapshot();
        let (account, region) = (&asked.account, &asked.region);
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
        let (state, message) = match self.backend.take_snapshots(&set).await {
            Ok(()) => (SnapshotState::Completed, None),
            Err(error @ Error::NotTaken(_)) => {
                tracing::warn!(snapshot = asked.id, %error, "cannot take the snapshot");
                (SnapshotState::Error, Some(error.to_string()))
            }
            // It may be half taken, and is gone on with.
            Err(error) => return Err(error),
        };
        let now = OffsetDateTime::now_utc();
        self.store
            .transact(|tx| {
                for member in &set {
                    if let Some(found) = tx.get::<EbsSnapshot>(account, region, &member.id) {
                        tx.put(EbsSnapshot {
                            state,
                            state_message: message.clone(),
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
        let awaited = self
            .store
            .snapshot()
            .by_index::<Volume>(account, region, "snapshot", id)
            .any(|volume| volume.state == VolumeState::Creating);
        if awaited {
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
        (before.state, before.deleted) != (after.state, after.deleted)
    }

    async fn reconcile(&self, _: &Key, entry: Option<Entry<EbsSnapshot>>) -> Result<Action, Error> {
        let Some(snapshot) = entry else { return Ok(Action::Done) };
        match snapshot.state {
            // Also one that is to be removed: half taken, it would be in the volume's way.
            SnapshotState::Pending => self.take(&snapshot).await,
            _ if snapshot.deleted => self.remove(&snapshot).await,
            SnapshotState::Completed | SnapshotState::Error => Ok(Action::Done),
        }
    }

    async fn failed(&self, key: &Key, failure: &Failure<Error>, attempt: u32) {
        tracing::warn!(snapshot = key.id(), attempt, %failure, "cannot reconcile the snapshot");
    }
}
