//! What two daemons say to each other.

use std::net::Ipv4Addr;
use std::time::Duration;

use haar_records::ec2::{Bundle, Migration, Receiver};
use haar_vm::{Layout, Sync};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::Error;

/// The version of this language.
pub(super) const VERSION: u32 = 1;

/// Where the endpoint answers other daemons.
pub(super) const PATH: &str = "/_haar/migration/";

/// The longest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;

/// What a daemon is asked first: whether it can take a guest.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub version: u32,
    pub id: String,
    pub bundle: Bundle,
    /// The accelerator that the guest runs on.
    pub accelerator: String,
    /// Boot id of the host.
    pub host_boot_id: String,
    pub layout: Layout,
    pub disks: Vec<OfferedDisk>,
    /// The image of the library that it boots from or that its disks stand on.
    pub image: Option<OfferedImage>,
    /// The end of what the guest's console has printed.
    pub console: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OfferedImage {
    pub id: String,
    /// Checksums of its files.
    pub files: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OfferedDisk {
    pub id: String,
    pub bytes: u64,
    /// How much of it will be copied: its uppermost layer stands on the image's disk.
    pub sync: Sync,
}

/// The answer to an offer that is taken.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Taken {
    /// Where disks and memory are to be sent.
    pub port: u16,
}

/// A request about one migration.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct About {
    pub id: String,
    /// The instance as it was when it stood still, where it is handed over.
    #[serde(default)]
    pub bundle: Option<Bundle>,
}

/// What has become of a migration at the receiving daemon.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// The guest is not taken over yet.
    Receiving,
    /// The guest is its own, with these public addresses that are not of its pool.
    Received(Vec<Ipv4Addr>),
    /// The guest is not its own and never will be by this migration.
    Refused(String),
}

/// Every answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer<T> {
    /// The account of the daemon that answers.
    pub account: String,
    pub result: Result<T, String>,
}

/// The other daemon.
pub(super) struct Peer<'a> {
    to: &'a Receiver,
    token: &'a str,
}

impl<'a> Peer<'a> {
    pub(super) fn of(migration: &'a Migration) -> Result<Self, Error> {
        let to = migration.to.as_ref();
        let to = to.ok_or_else(|| Error::Inconsistent(format!("{} leads nowhere", migration.id)))?;
        Ok(Self { to, token: &migration.token })
    }

    /// The host of its endpoint.
    pub(super) fn host(&self) -> &str {
        let host = self.to.address.rsplit_once(':').map_or(self.to.address.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Asks it something.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if no answer of this daemon came; [`Error::Refused`] with its words.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        what: &str,
        about: &impl Serialize,
        patience: Duration,
    ) -> Result<T, Error> {
        let address = &self.to.address;
        let unreachable = |reason: String| Error::Unreachable { address: address.clone(), reason };
        let body = serde_json::to_vec(about).map_err(|error| unreachable(error.to_string()))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{PATH}{what}"))
            .header("host", address)
            .header(haar_token_header(), self.token)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
            let _ = stream.set_nodelay(true);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|e| e.to_string())?;
            let connection = AbortOnDrop(tokio::spawn(connection));
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LIMIT);
            let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
            drop(connection);
            if !status.is_success() {
                return Err(format!("it said {status}"));
            }
            serde_json::from_slice::<Answer<T>>(&body).map_err(|e| format!("its answer cannot be read: {e}"))
        };
        let answer = tokio::time::timeout(patience, exchange).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", patience.as_secs())));
        let answer = answer.map_err(unreachable)?;
        if answer.account != self.to.account {
            return Err(unreachable("another daemon answers there".into()));
        }
        answer.result.map_err(Error::Refused)
    }
}

/// The header of what the daemons know each other by.
pub(super) const fn haar_token_header() -> &'static str {
    "x-haar-migration-token"
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
