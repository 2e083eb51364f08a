//! The way to the cloud's API: guests reach it on their link, wherever the daemon listens on the host.

use std::net::{SocketAddr, TcpListener as StdTcpListener};

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ServeError;
use crate::accept::Connections;
use crate::quota::Quota;

/// The port of the API, at the address of the metadata service.
pub const API_PORT: u16 = 4566;

/// Connections under way at once: of all guests of a VPC, and of one.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_OF_ONE: usize = 64;

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
    let connections = Connections::new(listener, "the API", CONNECTIONS, Quota::new(CONNECTIONS_OF_ONE))?;
    let accept = async {
        loop {
            let (stream, peer, place) = connections.next().await;
            if callers.send((stream, peer.into(), Box::new(place))).await.is_err() {
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
