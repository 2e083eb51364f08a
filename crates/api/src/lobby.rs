//! Where connections wait that have not shown yet what they are.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Holds a bounded number of strangers. When one more comes, the one that has waited longest is shown out: so those that show at once what
/// they are get through, however many others say nothing.
#[derive(Clone, Debug)]
pub struct Lobby {
    most: usize,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    places: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place in a [`Lobby`], until it is left or dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    waiting: Arc<Mutex<Waiting>>,
}

impl Lobby {
    /// A lobby for so many strangers.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, waiting: Arc::default() }
    }

    /// Takes a place, and gives with it what completes when its holder is shown out. Once the place is left, it never does.
    pub fn enter(&self) -> (Place, impl Future<Output = ()> + Send + use<>) {
        let (show_out, shown_out) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        if waiting.places.len() >= self.most
            && let Some((_, longest)) = waiting.places.pop_first()
        {
            let _ = longest.send(());
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.places.insert(number, show_out);
        drop(waiting);
        let shown_out = async {
            if shown_out.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        (Place { number, waiting: self.waiting.clone() }, shown_out)
    }
}

impl Place {
    /// Leaves the lobby: its holder is no stranger any more.
    pub fn leave(&self) {
        lock(&self.waiting).places.remove(&self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn is_over(future: impl Future) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        pin!(future).poll(&mut context).is_ready()
    }

    #[test]
    fn who_has_waited_longest_is_shown_out() {
        let lobby = Lobby::new(2);
        let (first, first_out) = lobby.enter();
        let (known, known_out) = lobby.enter();
        let (third, third_out) = lobby.enter();
        assert!(is_over(first_out));
        known.leave();
        // There is room for one.
        let (_fourth, fourth_out) = lobby.enter();
        let (_fifth, _) = lobby.enter();
        assert!(is_over(third_out));
        assert!(!is_over(known_out) && !is_over(fourth_out));
        drop((first, third));
        assert_eq!(lock(&lobby.waiting).places.len(), 2);
    }
}
