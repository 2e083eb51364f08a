//! How far a task is.

use std::sync::{Arc, Mutex, PoisonError};

use haar_image::Unit;

/// How far a task is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Stand {
    pub(super) message: &'static str,
    pub(super) progress: u8,
    pub(super) disks: Vec<u8>,
}

#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Stand>>);

impl Shared {
    pub(super) fn change(&self, change: impl FnOnce(&mut Stand)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn now(&self) -> Stand {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Progress of what is fetched, as a part of the task's.
pub(super) struct Meter {
    pub(super) shared: Shared,
    pub(super) from: u64,
    pub(super) share: u64,
    pub(super) total: Option<u64>,
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
