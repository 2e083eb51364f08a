//! The blocks of snapshots: disks that are open for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use haar_records::ec2::EbsSnapshot;
use haar_volume::{Driver, Extent, Session};
use tokio::time::Instant;

use crate::Error;

/// How long a disk that nobody reads stays open.
const IDLE: Duration = Duration::from_secs(3);

/// How long the server of a daemon that was killed may take to let go of a disk.
const TAKEN_OVER: Duration = Duration::from_secs(5);

/// The disks that are open, by snapshot. A session serves one request at a time.
#[derive(Default)]
pub(crate) struct Sessions(Arc<Mutex<HashMap<String, Arc<Slot>>>>);

#[derive(Default)]
struct Slot {
    session: tokio::sync::Mutex<Option<Session>>,
    used: Mutex<Option<Instant>>,
}

impl Sessions {
    fn slot(&self, id: &str) -> Arc<Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id.to_owned()).or_default().clone()
    }

    /// Does something with the session of a snapshot, which is opened if it is not; one that fails is closed.
    pub(crate) async fn with<R>(
        &self,
        driver: &Driver,
        id: &str,
        writable: bool,
        work: impl AsyncFnOnce(&mut Session) -> Result<R, haar_volume::Error>,
    ) -> Result<R, Error> {
        let slot = self.slot(id);
        let mut session = slot.session.lock().await;
        if session.is_none() {
            *session = Some(open(driver, id, writable).await?);
            self.close_when_idle(id.to_owned(), slot.clone());
        }
        let Some(opened) = session.as_mut() else { return Err(Error::Inconsistent(id.to_owned())) };
        let done = work(opened).await;
        if done.is_err() {
            *session = None;
        }
        *slot.used.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(done?)
    }

    /// Closes the session of a snapshot.
    pub(crate) async fn close(&self, id: &str) {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(slot) = slot {
            *slot.session.lock().await = None;
        }
    }

    fn close_when_idle(&self, id: String, slot: Arc<Slot>) {
        let slots = self.0.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE).await;
                let mut session = slot.session.lock().await;
                let used = *slot.used.lock().unwrap_or_else(PoisonError::into_inner);
                if session.is_none() || used.is_none_or(|used| used.elapsed() >= IDLE) {
                    *session = None;
                    let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
                    if slots.get(&id).is_some_and(|found| Arc::ptr_eq(found, &slot)) {
                        slots.remove(&id);
                    }
                    return;
                }
            }
        });
    }
}

async fn open(driver: &Driver, id: &str, writable: bool) -> Result<Session, Error> {
    let begin = Instant::now();
    loop {
        match driver.open_session(id, writable).await {
            Err(haar_volume::Error::Tool(why)) if why.contains("lock") && begin.elapsed() < TAKEN_OVER => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// The parts of extents that are in layers above a depth, or in any without one; those that read as zeros only if `zeros`.
pub(crate) fn parts(extents: &[Extent], above: Option<u64>, zeros: bool) -> Vec<(u64, u64)> {
    extents
        .iter()
        .filter(|extent| extent.present && (zeros || !extent.zero))
        .filter(|extent| above.is_none_or(|depth| extent.depth < depth))
        .map(|extent| (extent.start, extent.start + extent.length))
        .collect()
}

/// How many layers of `second` stand above what `first` is; none if it does not stand on it.
pub(crate) fn depth_of(
    driver: &Driver,
    first: &EbsSnapshot,
    second: &EbsSnapshot,
) -> Result<Option<u64>, Error> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |path: &std::path::Path| {
        std::fs::metadata(path)
            .map(|m| (m.dev(), m.ino()))
            .map_err(Error::io(format!("stat {}", path.display())))
    };
    let wanted = inode(&driver.path(&first.id)?)?;
    for (depth, layer) in (0..).zip(driver.layers(&second.id)?) {
        if inode(&layer.path)? == wanted {
            return Ok(Some(depth));
        }
    }
    Ok(None)
}
