//! What two daemons say to each other.

use std::fmt;
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

use super::channel::{Speech, connect};
use crate::Error;

/// The version of this language.
pub(super) const VERSION: u32 = 3;

/// What the paths of requests begin with.
pub(super) const PATH: &str = "/_haar/migration/";

/// The longest request or answer that is read, in bytes.
pub(super) const LIMIT: usize = 16 << 20;

/// Most bytes of a bundle's open connections: what is more is left out, so that the rest is always read.
pub(super) const CONNECTIONS_LIMIT: usize = 8 << 20;

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

/// A request about one migration.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct About {
    pub id: String,
    /// The instance as it was when it stood still, where it is handed over.
    #[serde(default)]
    pub bundle: Option<Bundle>,
}

impl About {
    /// A request that hands nothing over.
    pub(super) fn of(migration: &Migration) -> Self {
        Self { id: migration.id.clone(), bundle: None }
    }
}

/// What has become of a migration at the receiving daemon.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// The guest is not taken over yet.
    Receiving,
    /// The guest is its own.
    Received(Received),
    /// The guest is not its own and never will be by this migration.
    Refused(String),
}

/// What has become of a guest that another daemon has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Received {
    /// Its public addresses that are not of that daemon's pool.
    pub borrowed: Vec<Ipv4Addr>,
    /// Whether it was terminated since.
    pub terminated: bool,
}

/// Every answer.
pub(super) type Answer<T> = Result<T, String>;

/// The other daemon.
#[derive(Clone, Copy)]
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

    /// Asks it something.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if no answer of this daemon came; [`Error::Refused`] with its words.
    pub(super) async fn ask<T: DeserializeOwned>(
        self,
        what: &str,
        about: &impl Serialize,
        patience: Duration,
    ) -> Result<T, Error> {
        let answer = tokio::time::timeout(patience, self.exchange(what, about)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", patience.as_secs())));
        let address = &self.to.address;
        answer
            .map_err(|reason| Error::Unreachable { address: address.clone(), reason })?
            .map_err(Error::Refused)
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        what: &str,
        about: &impl Serialize,
    ) -> Result<Answer<T>, String> {
        let Receiver { address, fingerprint } = self.to;
        let body = serde_json::to_vec(about).map_err(|error| error.to_string())?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{PATH}{what}"))
            .header("host", address)
            .header(TOKEN_HEADER, self.token)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let stream = connect(address, fingerprint, Speech::Ask).await.map_err(|e| e.to_string())?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
        let _connection = AbortOnDrop(tokio::spawn(connection));
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LIMIT);
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        if !status.is_success() {
            return Err(format!("it said {status}"));
        }
        serde_json::from_slice(&body).map_err(|error| format!("its answer cannot be read: {error}"))
    }
}

/// The header of the secret by which the daemon that sends is known.
pub(super) const TOKEN_HEADER: &str = "x-haar-migration-token";

/// Where a daemon answers, its fingerprint and the secret of one guest: an invitation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invitation {
    pub to: Receiver,
    pub token: String,
}

impl Invitation {
    const SCHEME: &'static str = "haar://";

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, secrets) = text.trim().strip_prefix(Self::SCHEME)?.split_once("/#")?;
        let (token, fingerprint) = secrets.split_once('.')?;
        let hexadecimal = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let good = address.contains(':') && hexadecimal(token, 32) && hexadecimal(fingerprint, 64);
        let to = Receiver { address: address.to_owned(), fingerprint: fingerprint.to_owned() };
        good.then(|| Self { to, token: token.to_owned() })
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}/#{}.{}", Self::SCHEME, self.to.address, self.token, self.to.fingerprint)
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invitations_are_read_or_refused() {
        let (token, key) = ("0f".repeat(16), "a1".repeat(32));
        let text = format!("haar://10.0.0.2:4566/#{token}.{key}");
        let invitation = Invitation::parse(&format!("{text}\n")).unwrap();
        assert_eq!((invitation.to.address.as_str(), &invitation.to.fingerprint), ("10.0.0.2:4566", &key));
        assert_eq!((&invitation.token, invitation.to_string()), (&token, text));
        for wrong in [
            String::new(),
            "haar://10.0.0.2:4566/".into(),
            format!("http://a:1/#{token}.{key}"),
            format!("haar://host/#{token}.{key}"),
            format!("haar://a:1/#{token}"),
            format!("haar://a:1/#{token}.{token}"),
            format!("haar://a:1/#{}.{key}", token.to_uppercase()),
        ] {
            assert_eq!(Invitation::parse(&wrong), None, "{wrong}");
        }
    }
}
