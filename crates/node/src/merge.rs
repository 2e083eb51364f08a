//! Merging of layers that nothing needs, in the background: whoever wants to start a machine or to take a snapshot goes first.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use haar_records::ec2::{EbsSnapshot, Encryption, Volume};
use tokio::sync::{Notify, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::Error;
use crate::qemu::Qemu;

/// How soon is looked again after something was merged, or somebody else had to go first.
const SOON: Duration = Duration::from_secs(2);

/// How rarely is looked while there is nothing to do, at most.
const RARELY: Duration = Duration::from_mins(5);

/// Held for reading while a machine is started, for writing while volumes get new layers: no machine may open a file that becomes a
/// snapshot's. Merging holds it for writing, too, but only as long as nobody else wants it.
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
    let mut pause = SOON;
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
        pause = match qemu.merge(&layering).await {
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
    /// Merges what can be merged; says whether there may be more soon.
    async fn merge(&self, layering: &Layering) -> Result<bool, Error> {
        if !self.volumes.has_removed()? {
            return Ok(false);
        }
        let (mut merged, mut failed) = (false, HashSet::new());
        {
            let _layering = layering.lock.write().await;
            self.look(haar_volume::Driver::sweep).await?;
        }
        loop {
            let _layering = layering.lock.write().await;
            let mut runs = self.look(haar_volume::Driver::runs).await?.into_iter();
            let Some(run) = runs.find(|run| !failed.contains(&run.above)) else { return Ok(merged) };
            let volumes = self.volumes.with_key(self.key_of(&run.above)?);
            match layering.unless_wanted(volumes.merge(&run)).await {
                None => return Ok(true),
                Some(Ok(())) => {
                    tracing::debug!(below = ?run.above.first(), "merged removed layers");
                    merged = true;
                }
                Some(Err(error)) => {
                    tracing::warn!(below = ?run.above.first(), %error, "cannot merge removed layers");
                    failed.insert(run.above);
                }
            }
        }
    }

    /// Does with the files of all volumes what may take its time.
    async fn look<T: Send + 'static>(
        &self,
        what: fn(&haar_volume::Driver) -> Result<T, haar_volume::Error>,
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
