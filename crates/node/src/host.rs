//! Whether the host goes down, and guests with it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;

/// What the node knows of its host's going down. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host(Arc<Mutex<Option<OffsetDateTime>>>);

impl Host {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<OffsetDateTime>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the host goes down; guests have this long.
    pub(crate) fn go_down(&self, grace: Duration) {
        *self.lock() = Some(OffsetDateTime::now_utc() + grace);
    }

    /// It does not go down, or no more.
    pub(crate) fn stay(&self) {
        *self.lock() = None;
    }

    /// Until when guests have time, where it goes down.
    pub(crate) fn goes_down(&self) -> Option<OffsetDateTime> {
        *self.lock()
    }
}
