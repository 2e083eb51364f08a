//! Connections of guests, each of whom has a share of them.

use std::net::{IpAddr, SocketAddrV4, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ServeError;
use crate::quota::{Permit, Quota};

/// How long to wait when no connection can be accepted for want of file descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Accepts connections: as many at once as there are places for all guests, and for each.
pub(crate) struct Connections {
    listener: TcpListener,
    /// What they lead to, for the log.
    to: &'static str,
    places: Arc<Semaphore>,
    quota: Arc<Quota>,
}

/// A connection's place among those of all guests and of its own, given back when it is dropped.
pub(crate) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_guest: Permit,
}

impl Connections {
    /// Those that arrive at `listener`, `places` at once, and of a guest as many as `quota` says.
    pub(crate) fn new(
        listener: StdTcpListener,
        to: &'static str,
        places: usize,
        quota: Arc<Quota>,
    ) -> Result<Self, ServeError> {
        listener.set_nonblocking(true).map_err(ServeError::Socket)?;
        let listener = TcpListener::from_std(listener).map_err(ServeError::Socket)?;
        Ok(Self { listener, to, places: Arc::new(Semaphore::new(places)), quota })
    }

    /// The next one, when there is a place. A guest that has too many gets no further one.
    pub(crate) async fn next(&self) -> (TcpStream, SocketAddrV4, Place) {
        let of_all = Arc::clone(&self.places).acquire_owned().await.expect("nobody closes the semaphore");
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok((stream, peer)) => (stream, peer),
                Err(error) => {
                    tracing::debug!(%error, "accepting failed");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let IpAddr::V4(guest) = peer.ip() else { continue };
            match self.quota.acquire(guest) {
                Some(permit) => {
                    let place = Place { _of_all: of_all, _of_guest: permit };
                    return (stream, SocketAddrV4::new(guest, peer.port()), place);
                }
                None => tracing::debug!(%guest, "too many connections to {}", self.to),
            }
        }
    }
}
