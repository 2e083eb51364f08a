//! Signature version 4, in the `Authorization` header and presigned (IAM User Guide, "AWS Signature Version 4 for API requests").
//!
//! The algorithm stands here once: [`Canonical`] is a request in the form that is signed, [`SigningKey`] what it is signed with.
//! [`Signer`] makes signatures, [`Signature`] reads and checks them.

use std::borrow::Cow;

use http::header;
use http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::timestamp;

mod key;
mod sign;
mod verify;

pub use key::{Secret, SigningKey};
pub use sign::{Signer, Unsignable};
pub use verify::{Rejection, Signature};

/// The only algorithm.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What ends every credential scope.
const TERMINATOR: &str = "aws4_request";

/// `x-amz-content-sha256` of a request whose body is not signed.
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// The characters that URI encoding leaves alone.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How a service's signatures write the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathStyle {
    /// Normalized (RFC 3986, section 6), and every segment of it, as sent, encoded once more.
    Normalized,
    /// As sent, encoded once: S3, whose keys may contain `//` and `..`.
    AsSent,
}

impl PathStyle {
    /// The style of the service with this signing name.
    pub fn of(service: &str) -> Self {
        match service {
            "s3" | "s3-object-lambda" | "s3-outposts" | "s3express" => PathStyle::AsSent,
            _ => PathStyle::Normalized,
        }
    }
}

/// A request in the form that is signed.
///
/// Names and values are bytes as they came (decoded from percent-encoding, in the query string): two requests that differ in
/// what they say never have the same canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canonical<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// The canonical path; see [`canonical_path`].
    pub path: String,
    /// The parameters of the query string, decoded, without `X-Amz-Signature`.
    pub query: Vec<(Vec<u8>, Vec<u8>)>,
    /// The signed headers: names in lower case, values of one name joined by commas.
    pub headers: Vec<(Cow<'a, str>, Cow<'a, [u8]>)>,
    /// SHA-256 of the body in hexadecimal, or `UNSIGNED-PAYLOAD`.
    pub payload: String,
}

impl Canonical<'_> {
    /// The canonical request. It is text unless a header is not.
    pub fn request(&self) -> Vec<u8> {
        let mut headers: Vec<_> = self.headers.iter().collect();
        headers.sort_unstable();
        let mut out = Vec::with_capacity(1024);
        for part in [self.method, "\n", &self.path, "\n", &self.query_string(), "\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        for (name, value) in &headers {
            for part in [name.as_bytes(), b":", &value[..], b"\n"] {
                out.extend_from_slice(part);
            }
        }
        for (index, (name, _)) in headers.iter().enumerate() {
            out.push(if index == 0 { b'\n' } else { b';' });
            out.extend_from_slice(name.as_bytes());
        }
        out.push(b'\n');
        out.extend_from_slice(self.payload.as_bytes());
        out
    }

    /// The names of the signed headers, as `SignedHeaders` has them.
    pub fn signed_headers(&self) -> String {
        let mut names: Vec<&str> = self.headers.iter().map(|(name, _)| &**name).collect();
        names.sort_unstable();
        names.join(";")
    }

    /// What is signed: algorithm, time, scope and the canonical request's hash.
    pub fn string_to_sign(&self, at: OffsetDateTime, scope: &Scope<'_>) -> String {
        let Scope { day, region, service } = scope;
        let (at, hash) = (timestamp::basic(at), sha256_hex(&self.request()));
        [ALGORITHM, "\n", &at, "\n", day, "/", region, "/", service, "/", TERMINATOR, "\n", &hash].concat()
    }

    /// The signature with the key of this scope, in hexadecimal.
    pub fn sign(&self, key: &SigningKey, at: OffsetDateTime, scope: &Scope<'_>) -> String {
        in_hex(key.mac(self.string_to_sign(at, scope).as_bytes()))
    }

    fn query_string(&self) -> String {
        let encode = |text: &[u8]| percent_encode(text, ENCODED).to_string();
        let mut pairs: Vec<_> =
            self.query.iter().map(|(name, value)| (encode(name), encode(value))).collect();
        pairs.sort_unstable();
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    }
}

/// What a signature is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    /// The day, `YYYYMMDD`.
    pub day: &'a str,
    /// The region.
    pub region: &'a str,
    /// The service's signing name.
    pub service: &'a str,
}

impl std::fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}/{TERMINATOR}", self.day, self.region, self.service)
    }
}

/// A path as signatures write it.
pub fn canonical_path(path: &str, style: PathStyle) -> String {
    if style == PathStyle::AsSent {
        let decoded: Vec<u8> = percent_decode(path.as_bytes()).collect();
        let segments: Vec<_> = decoded
            .split(|&byte| byte == b'/')
            .map(|segment| percent_encode(segment, ENCODED).to_string())
            .collect();
        return segments.join("/");
    }
    if path == "/" {
        return path.to_owned();
    }
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let encoded: Vec<_> =
        segments.iter().map(|segment| percent_encode(segment.as_bytes(), ENCODED).to_string()).collect();
    let slash = if path.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{slash}", encoded.join("/"))
}

/// The parameters of a query string, decoded.
pub fn parse_query(query: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let decode = |text: &str| percent_decode(text.replace('+', " ").as_bytes()).collect();
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

/// A header's values in one line, white space folded; none when the request does not have it.
fn canonical_header<'a>(request: &'a Parts, name: &str) -> Option<Cow<'a, [u8]>> {
    if name == "host" && !request.headers.contains_key(header::HOST) {
        return request.uri.authority().map(|authority| authority.as_str().as_bytes().into());
    }
    let mut values = request.headers.get_all(name).iter().map(|value| fold(value.as_bytes()));
    let first = values.next()?;
    Some(values.fold(first, |before, value| [&before[..], b",", &value].concat().into()))
}

/// A header's value without white space around it, and one space for white space within it.
pub fn fold(value: &[u8]) -> Cow<'_, [u8]> {
    let value = value.trim_ascii();
    let is_space = u8::is_ascii_whitespace;
    let is_folded =
        !value.windows(2).any(|pair| is_space(&pair[0]) && (pair[0] != b' ' || is_space(&pair[1])));
    if is_folded {
        return value.into();
    }
    let words = value.split(is_space).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(&b' ').into()
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(data: &[u8]) -> String {
    in_hex(Sha256::digest(data).into())
}

fn in_hex(digest: [u8; 32]) -> String {
    let mut text = vec![0; 64];
    hex::encode_to_slice(digest, &mut text).expect("a byte has two digits");
    String::from_utf8(text).expect("digits are ASCII")
}
