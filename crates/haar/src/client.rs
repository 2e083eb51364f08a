//! A small client of the daemon: a health check, administrative requests, and signed requests of the EC2 API.

use std::fmt::Write as _;
use std::time::Duration;

use haar_api::sigv4::Signer;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::http::request::Builder;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::net::TcpStream;

use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::state::{ADMIN_HEADER, Daemon};
use crate::uploads::{self, Upload};

/// The version of the EC2 API that is spoken.
const EC2_VERSION: &str = "2016-11-15";
/// The greatest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 64 << 20;
/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// An image that an account has made of an instance or of snapshots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccountImage {
    /// `ami-…`
    pub image_id: String,
    /// Its name, of which the account has one in the region.
    pub name: String,
    /// What it is; may be empty.
    pub description: String,
    /// The account that owns it.
    pub account: String,
    /// Its region.
    pub region: String,
    /// As DescribeImages gives it.
    pub state: String,
    /// RFC 3339.
    pub creation_date: String,
    /// The user that has the key pair's key.
    pub default_user: String,
    /// The image of the library that has its kernel.
    pub library_id: Option<String>,
    /// The snapshot that root volumes are made from.
    pub root_snapshot: Option<String>,
    /// Its root disk is encrypted.
    pub encrypted: bool,
    /// Size of the root volume.
    pub size_gib: u32,
}

/// A client of one daemon.
pub struct Client<'a> {
    daemon: &'a Daemon,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Client<'a> {
    /// A client of this daemon.
    pub fn new(daemon: &'a Daemon) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { daemon, runtime: runtime.map_err(Error::io("start", "the runtime"))? })
    }

    /// What the daemon says of itself at `/_haar/health`; an error if it does not answer within `patience`.
    pub fn health(&self, patience: Duration) -> Result<serde_json::Value> {
        let request = self.request(Method::GET, "/_haar/health");
        let (status, body) = self.send(finish(request, Bytes::new()), patience)?;
        if status != StatusCode::OK {
            return Err(self.broken(status));
        }
        serde_json::from_slice(&body).map_err(|e| Error::Answer(e.to_string()))
    }

    /// Tells the daemon that the image library has changed.
    pub fn rescan_images(&self) -> Result<()> {
        self.administer("/_haar/images/rescan")
    }

    /// Tells the daemon that there are more accounts.
    pub fn rescan_accounts(&self) -> Result<()> {
        self.administer("/_haar/accounts/rescan")
    }

    fn administer(&self, path: &str) -> Result<()> {
        let request = self.request(Method::POST, path).header(ADMIN_HEADER, &self.daemon.admin_token);
        let (status, _) = self.send(finish(request, Bytes::new()), PATIENCE)?;
        if status.is_success() { Ok(()) } else { Err(self.broken(status)) }
    }

    /// The images that accounts have made.
    pub fn account_images(&self) -> Result<Vec<AccountImage>> {
        let body = self.admin("/_haar/images")?.ok_or_else(|| self.broken(StatusCode::NOT_FOUND))?;
        serde_json::from_slice(&body).map_err(|e| Error::Answer(e.to_string()))
    }

    /// The user of an instance that has the key pair's key, if it is known.
    pub fn default_user(&self, instance_id: &str) -> Result<Option<String>> {
        #[derive(Deserialize)]
        struct Answer {
            default_user: String,
        }
        let Some(body) = self.admin(&format!("/_haar/default-user/{instance_id}"))? else { return Ok(None) };
        let answer: Answer = serde_json::from_slice(&body).map_err(|e| Error::Answer(e.to_string()))?;
        Ok(Some(answer.default_user))
    }

    /// What the daemon says of itself; nothing if there is none of it.
    fn admin(&self, path: &str) -> Result<Option<Bytes>> {
        let request = self.request(Method::GET, path).header(ADMIN_HEADER, &self.daemon.admin_token);
        match self.send(finish(request, Bytes::new()), PATIENCE)? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) if status.is_success() => Ok(Some(body)),
            (status, _) => Err(self.broken(status)),
        }
    }

    /// An administrative request, and its answer.
    pub fn ask(&self, path: &str, body: &str) -> Result<serde_json::Value> {
        let request = self.request(Method::POST, path).header(ADMIN_HEADER, &self.daemon.admin_token);
        let (status, answer) = self.send(finish(request, body.to_owned().into()), PATIENCE)?;
        if !status.is_success() {
            return Err(self.broken(status));
        }
        serde_json::from_slice(&answer).map_err(|e| Error::Answer(e.to_string()))
    }

    /// Asks the daemon for something of migrations, and returns its answer.
    pub fn migrations(&self, what: &str, body: &serde_json::Value) -> Result<serde_json::Value> {
        self.told(&format!("/_haar/migrations/{what}"), body.to_string().into())
    }

    /// Asks the daemon for something of uploads, and returns its answer.
    pub fn uploads(&self, what: &str, of: &Upload) -> Result<serde_json::Value> {
        let body = serde_json::to_vec(of).expect("it is plain data");
        self.told(&format!("{}{what}", uploads::PATH), body.into())
    }

    /// Sends bytes of an upload, from an offset on.
    pub fn upload_piece(&self, of: &Upload, offset: u64, bytes: Bytes) -> Result<()> {
        self.told(&format!("{}put/{}/{}/{offset}", uploads::PATH, of.account, of.name), bytes).map(drop)
    }

    /// The answer to an administrative request; a refusal says why.
    fn told(&self, path: &str, body: Bytes) -> Result<serde_json::Value> {
        let request = self.request(Method::POST, path).header(ADMIN_HEADER, &self.daemon.admin_token);
        let (status, answer) = self.send(finish(request, body), PATIENCE)?;
        let answer: serde_json::Value =
            serde_json::from_slice(&answer).map_err(|e| Error::Answer(e.to_string()))?;
        if status.is_success() {
            return Ok(answer);
        }
        let message = answer["message"].as_str().map_or_else(|| format!("it said {status}"), str::to_owned);
        Err(Error::Refused { message, hint: None })
    }

    /// Carries out an EC2 operation and returns the XML of its answer.
    pub fn ec2(&self, keys: &Credentials, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let mut body = format!("Action={action}&Version={EC2_VERSION}");
        for (name, value) in parameters {
            let _ = write!(body, "&{name}={}", encode(value));
        }
        let request = self.request(Method::POST, "/").header("content-type", FORM);
        let (mut parts, body) = finish(request, body.into()).into_parts();
        let region = &self.daemon.config.region;
        let signer = Signer::new(&keys.access_key_id, &keys.secret_access_key, region, "ec2");
        signer
            .sign(&mut parts, &body, OffsetDateTime::now_utc())
            .map_err(|e| Error::Setting(format!("the keys cannot be used: {e}")))?;
        let (status, answer) = self.send(Request::from_parts(parts, body), PATIENCE)?;
        let answer = String::from_utf8(answer.into()).map_err(|e| Error::Answer(e.to_string()))?;
        if status.is_success() { Ok(answer) } else { Err(api_error(status, &answer)) }
    }

    /// A request to the daemon.
    fn request(&self, method: Method, path: &str) -> Builder {
        Request::builder().method(method).uri(path).header("host", self.host())
    }

    /// Where the daemon listens: address and port.
    fn host(&self) -> String {
        self.daemon.endpoint()["http://".len()..].to_owned()
    }

    fn send(&self, request: Request<Bytes>, patience: Duration) -> Result<(StatusCode, Bytes)> {
        let (endpoint, host) = (self.daemon.endpoint(), self.host());
        let request = request.map(Full::new);
        let exchange = async {
            let stream = TcpStream::connect(&host).await.map_err(|e| e.to_string())?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|e| e.to_string())?;
            let connection = tokio::spawn(connection);
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LIMIT);
            let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
            connection.abort();
            Ok((status, body))
        };
        let timed = self.runtime.block_on(async { tokio::time::timeout(patience, exchange).await });
        let outcome = timed.unwrap_or_else(|_| Err(format!("none within {} s", patience.as_secs_f32())));
        outcome.map_err(|reason: String| Error::Connection { endpoint, reason })
    }

    fn broken(&self, status: StatusCode) -> Error {
        Error::Connection { endpoint: self.daemon.endpoint(), reason: format!("it said {status}") }
    }
}

fn finish(request: Builder, body: Bytes) -> Request<Bytes> {
    request.body(body).expect("the parts are valid")
}

/// The error in an answer of the EC2 API.
fn api_error(status: StatusCode, answer: &str) -> Error {
    let document = roxmltree::Document::parse(answer);
    let text = |name: &str| {
        let document = document.as_ref().ok()?;
        let node = document.descendants().find(|node| node.has_tag_name(name))?;
        node.text().map(ToOwned::to_owned)
    };
    match (text("Code"), text("Message")) {
        (Some(code), message) => Error::Api { code, message: message.unwrap_or_default() },
        (None, _) => Error::Answer(format!("status {status} without an error code")),
    }
}

const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// Percent-encodes all but RFC 3986's unreserved characters.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_encoded_as_signatures_need_it() {
        assert_eq!(encode("a b+c/ü~"), "a%20b%2Bc%2F%C3%BC~");
    }

    #[test]
    fn the_error_code_of_an_answer_is_found() {
        let answer = "<Response><Errors><Error><Code>AuthFailure</Code><Message>no</Message></Error></Errors></Response>";
        assert_eq!(api_error(StatusCode::UNAUTHORIZED, answer).to_string(), "AuthFailure: no");
        assert!(matches!(api_error(StatusCode::BAD_GATEWAY, "<html>"), Error::Answer(_)));
    }
}
