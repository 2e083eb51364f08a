//! A small client of the daemon: a health check, administrative requests, and signed requests of the EC2 API.

use std::fmt::Write as _;
use std::time::Duration;

use hmac::{Hmac, Mac};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::net::TcpStream;

use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::state::{ADMIN_HEADER, Daemon};

/// The version of the EC2 API that is spoken.
const EC2_VERSION: &str = "2016-11-15";
/// The greatest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 64 << 20;
/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

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
        let request = Request::builder().method(Method::GET).uri("/_haar/health");
        let (status, body) = self.send(request, Bytes::new(), patience)?;
        if status != StatusCode::OK {
            return Err(self.broken(status));
        }
        serde_json::from_slice(&body).map_err(|e| Error::Answer(e.to_string()))
    }

    /// Tells the daemon that the image library has changed.
    pub fn rescan_images(&self) -> Result<()> {
        let request = Request::builder()
            .method(Method::POST)
            .uri("/_haar/images/rescan")
            .header(ADMIN_HEADER, &self.daemon.admin_token);
        let (status, _) = self.send(request, Bytes::new(), PATIENCE)?;
        if status.is_success() { Ok(()) } else { Err(self.broken(status)) }
    }

    /// Carries out an EC2 operation and returns the XML of its answer.
    pub fn ec2(&self, keys: &Credentials, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let mut body = format!("Action={action}&Version={EC2_VERSION}");
        for (name, value) in parameters {
            let _ = write!(body, "&{name}={}", encode(value));
        }
        let host = self.daemon.endpoint()["http://".len()..].to_owned();
        let signature =
            sign(keys, &self.daemon.config.region, "ec2", &host, body.as_bytes(), OffsetDateTime::now_utc());
        let request = Request::builder()
            .method(Method::POST)
            .uri("/")
            .header("content-type", FORM)
            .header("x-amz-date", signature.date)
            .header("authorization", signature.authorization);
        let (status, answer) = self.send(request, body.into(), PATIENCE)?;
        let answer = String::from_utf8(answer.into()).map_err(|e| Error::Answer(e.to_string()))?;
        if status.is_success() { Ok(answer) } else { Err(api_error(status, &answer)) }
    }

    fn send(
        &self,
        request: hyper::http::request::Builder,
        body: Bytes,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes)> {
        let endpoint = self.daemon.endpoint();
        let host = endpoint["http://".len()..].to_owned();
        let request = request.header("host", &host).body(Full::new(body)).expect("the parts are valid");
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

/// What a request must carry to be signed.
struct Signature {
    date: String,
    authorization: String,
}

/// Signs a form posted to `/`, by Signature Version 4 (AWS General Reference, "Create a signed AWS API request").
fn sign(
    keys: &Credentials,
    region: &str,
    service: &str,
    host: &str,
    body: &[u8],
    now: OffsetDateTime,
) -> Signature {
    let date = now
        .format(format_description!("[year][month][day]T[hour][minute][second]Z"))
        .expect("the format has only fields that a UTC time has");
    let scope = format!("{}/{region}/{service}/aws4_request", &date[..8]);
    let signed_headers = "content-type;host;x-amz-date";
    let canonical = format!(
        "POST\n/\n\ncontent-type:{FORM}\nhost:{host}\nx-amz-date:{date}\n\n{signed_headers}\n{}",
        hex::encode(Sha256::digest(body))
    );
    let to_sign =
        format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::encode(Sha256::digest(canonical.as_bytes())));
    let mut key = format!("AWS4{}", keys.secret_access_key).into_bytes();
    for part in scope.split('/') {
        key = hmac(&key, part);
    }
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed_headers}, Signature={}",
        keys.access_key_id,
        hex::encode(hmac(&key, &to_sign))
    );
    Signature { date, authorization }
}

fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

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

    /// The expected value is what botocore 1.43 computes for the same request.
    #[test]
    fn the_signature_is_the_one_of_botocore() {
        let keys = Credentials {
            account_id: "123456789012".into(),
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
        };
        let now = OffsetDateTime::from_unix_timestamp(1_440_938_160).unwrap();
        let body = b"Action=DescribeInstances&Version=2016-11-15&Filter.1.Name=tag%3Aa%20b";
        let signature = sign(&keys, "us-east-1", "ec2", "127.0.0.1:4566", body, now);
        assert_eq!(signature.date, "20150830T123600Z");
        assert!(
            signature
                .authorization
                .ends_with("Signature=5b6fe82d842cd407bcd08238332af1103dbd21d798d25518f5046b33d0a51a8a"),
            "{}",
            signature.authorization
        );
    }

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
