//! How much one guest may have under way, so that it cannot take what belongs to the others.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts what each address has under way, up to a limit.
#[derive(Debug)]
pub(crate) struct Quota {
    limit: usize,
    held: Mutex<HashMap<Ipv4Addr, usize>>,
}

impl Quota {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: Mutex::default() })
    }

    /// One more for `ip`, given back when the permit is dropped; `None` at the limit.
    pub(crate) fn acquire(self: &Arc<Self>, ip: Ipv4Addr) -> Option<Permit> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(ip).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Permit { quota: Arc::clone(self), ip })
    }
}

/// A place within a [`Quota`].
#[derive(Debug)]
pub(crate) struct Permit {
    quota: Arc<Quota>,
    ip: Ipv4Addr,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.quota.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_limit_and_leaves_nothing_behind() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let quota = Quota::new(2);
        let first = quota.acquire(a);
        let second = quota.acquire(a);
        assert!(first.is_some() && second.is_some() && quota.acquire(a).is_none());
        let other = quota.acquire(b);
        assert!(other.is_some());
        drop(first);
        assert!(quota.acquire(a).is_some());
        drop((second, other));
        assert!(quota.held.lock().unwrap().is_empty());
    }
}
