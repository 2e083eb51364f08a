//! The way to the cloud's API: guests reach it on their link, wherever the daemon listens on the host.

use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::ServeError;
use crate::quota::Quota;

/// The port of the API, at the address of the metadata service.
pub const API_PORT: u16 = 4566;

/// Connections under way at once: of all guests of a VPC, and of one.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_OF_ONE: usize = 64;

/// How long to wait when no connection can be accepted for want of file descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A connection of a guest to the API: its stream, the guest's address in its VPC, and the guest's share of connections, to be dropped with
/// the connection.
pub type Caller = (TcpStream, SocketAddr, Box<dyn Send + Sync>);

/// Hands the connections of guests to who answers the API, until `shutdown` fires.
///
/// `listener` listens on 169.254.169.254:[`API_PORT`] in the VPC's namespace. A guest that has too many connections gets no further one.
///
/// # Errors
/// When the listener cannot be taken over. Nothing that a guest sends ends the server.
pub async fn serve_api(
    listener: StdTcpListener,
    callers: mpsc::Sender<Caller>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    listener.set_nonblocking(true).map_err(ServeError::Socket)?;
    let listener = TcpListener::from_std(listener).map_err(ServeError::Socket)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let quota = Quota::new(CONNECTIONS_OF_ONE);
    let accept = async {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "accepting failed");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let IpAddr::V4(guest) = peer.ip() else { continue };
            let Some(permit) = quota.acquire(guest) else {
                tracing::debug!(%peer, "too many connections to the API");
                continue;
            };
            if callers.send((stream, peer, Box::new((place, permit)))).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = accept => {}
    }
    Ok(())
}
