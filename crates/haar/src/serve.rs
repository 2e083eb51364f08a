//! The daemon.

use std::convert::Infallible;
use std::future::Future;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::state::StateDir;

/// Claims the state folder and runs the daemon until it is asked to stop.
pub fn run(config: &Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(Error::io("start", "the runtime"))?.block_on(serve(config))
}

/// Runs the daemon until SIGTERM or SIGINT.
async fn serve(config: &Config) -> Result<()> {
    let state = StateDir::new(&config.state_dir);
    state.create()?;
    let claim = state.claim()?;
    let _keys = Credentials::load_or_create(&state)?;
    let stop = stop_signal()?;

    let listener = TcpListener::bind(config.listen).await;
    let listener =
        listener.map_err(|e| Error::Setting(format!("cannot listen on {}: {e}", config.listen)))?;
    let listen = listener.local_addr().map_err(Error::io("examine", "the listening socket"))?;
    let daemon = claim.announce(config, listen)?;
    tracing::info!(endpoint = daemon.endpoint(), region = config.region, "haar {} answers", daemon.version);
    accept(listener, stop).await;
    tracing::info!("haar stopped");
    Ok(())
}

/// Completes when the process is asked to stop.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let on = |kind| signal(kind).map_err(Error::io("listen for", "signals"));
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn accept(listener: TcpListener, stop: impl Future<Output = ()>) {
    let server = auto::Builder::new(TokioExecutor::new());
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection =
                    server.serve_connection(TokioIo::new(stream), service_fn(answer)).into_owned();
                tokio::spawn(graceful.watch(connection));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
    let _ = tokio::time::timeout(std::time::Duration::from_secs(10), graceful.shutdown()).await;
}

async fn answer(request: Request<Incoming>) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/_haar/health") => {
            (StatusCode::OK, serde_json::json!({"version": env!("CARGO_PKG_VERSION")}).to_string())
        }
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    Ok(response)
}

/// Stops everything that the daemon of this configuration runs on the machine. The caller holds the state folder's claim.
pub fn teardown(_config: &Config) -> Result<()> {
    Ok(())
}
