//! Signature version 4, in the `Authorization` header and presigned (IAM User Guide, "AWS Signature Version 4 for API requests").

use hmac::{Hmac, Mac};
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

/// The only algorithm.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What ends every credential scope.
const TERMINATOR: &str = "aws4_request";

/// How far the clocks of client and server may differ.
const SKEW: Duration = Duration::minutes(15);

/// Longest life of a presigned request.
const MAX_EXPIRES: i64 = 7 * 24 * 3600;

/// `x-amz-content-sha256` of a request whose body is not signed.
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// The format of `X-Amz-Date`.
const BASIC: &[BorrowedFormatItem<'static>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");

/// The characters that URI encoding leaves alone.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a request says of its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The key that signed.
    pub access_key_id: String,
    /// Day of the credential scope, `YYYYMMDD`.
    pub day: String,
    /// Region of the credential scope.
    pub region: String,
    /// Service of the credential scope.
    pub service: String,
    /// Session token of temporary credentials.
    pub session_token: Option<String>,
    signed_headers: Vec<String>,
    signature: String,
    at: OffsetDateTime,
    /// Seconds for which a presigned request is good; none for a signature in the header.
    expires: Option<i64>,
}

/// Why a request is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// It is not signed.
    Missing,
    /// Its signature cannot be read, for this reason.
    Incomplete(String),
    /// Its signature is older or newer than the clock allows, in words.
    Expired(String),
    /// It is signed otherwise than its key and content give, in words.
    Mismatch(String),
}

fn incomplete(reason: impl Into<String>) -> Rejection {
    Rejection::Incomplete(reason.into())
}

impl Signature {
    /// Reads the signature of a request, from its `Authorization` header or its query string.
    ///
    /// # Errors
    /// [`Rejection::Missing`] and [`Rejection::Incomplete`].
    pub fn of(request: &Parts) -> Result<Self, Rejection> {
        if let Some(value) = request.headers.get(header::AUTHORIZATION) {
            let value = value.to_str().map_err(|_| incomplete("The Authorization header is not text."))?;
            return Self::of_header(value, &request.headers);
        }
        let query = query(request);
        match query.iter().find(|(name, _)| name == "X-Amz-Algorithm") {
            Some(_) => Self::of_query(&query),
            None => Err(Rejection::Missing),
        }
    }

    fn of_header(value: &str, headers: &HeaderMap) -> Result<Self, Rejection> {
        let Some(rest) = value.strip_prefix(ALGORITHM) else {
            return Err(incomplete(format!("The Authorization header must begin with {ALGORITHM}.")));
        };
        let part = |name: &str| {
            let parts = rest.split([',', ' ']).filter_map(|part| part.split_once('='));
            let found = parts.filter(|(key, _)| *key == name).map(|(_, value)| value).next();
            found
                .filter(|value| !value.is_empty())
                .ok_or_else(|| incomplete(format!("Authorization header requires '{name}' parameter.")))
        };
        let (credential, signed, signature) =
            (part("Credential")?, part("SignedHeaders")?, part("Signature")?);
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let at = match text("x-amz-date") {
            Some(date) => basic(date),
            None => text("date").and_then(|date| {
                OffsetDateTime::parse(date, &time::format_description::well_known::Rfc2822)
                    .ok()
                    .or_else(|| basic(date))
            }),
        };
        let at = at.ok_or_else(|| {
            incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
        })?;
        let token = text("x-amz-security-token").map(str::to_owned);
        Self::new(credential, signed, signature, at, None, token)
    }

    fn of_query(query: &[(String, String)]) -> Result<Self, Rejection> {
        let get = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let need =
            |name: &str| get(name).ok_or_else(|| incomplete(format!("The query string requires '{name}'.")));
        if need("X-Amz-Algorithm")? != ALGORITHM {
            return Err(incomplete(format!("X-Amz-Algorithm must be {ALGORITHM}.")));
        }
        let at = basic(need("X-Amz-Date")?)
            .ok_or_else(|| incomplete("X-Amz-Date is not in ISO 8601 basic format."))?;
        let expires =
            need("X-Amz-Expires")?.parse().ok().filter(|seconds| (1..=MAX_EXPIRES).contains(seconds));
        let expires = expires
            .ok_or_else(|| incomplete(format!("X-Amz-Expires must be from 1 to {MAX_EXPIRES} seconds.")))?;
        let token = get("X-Amz-Security-Token").map(str::to_owned);
        let (signed, signature) = (need("X-Amz-SignedHeaders")?, need("X-Amz-Signature")?);
        Self::new(need("X-Amz-Credential")?, signed, signature, at, Some(expires), token)
    }

    fn new(
        credential: &str,
        signed: &str,
        signature: &str,
        at: OffsetDateTime,
        expires: Option<i64>,
        session_token: Option<String>,
    ) -> Result<Self, Rejection> {
        let [access_key_id, day, region, service, TERMINATOR] = credential.split('/').collect::<Vec<_>>()[..]
        else {
            return Err(incomplete(
                "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term.",
            ));
        };
        if [access_key_id, day, region, service].iter().any(|part| part.is_empty() || part.len() > 128) {
            return Err(incomplete("An element of the Credential is empty or too long."));
        }
        let signed_headers: Vec<String> = signed.split(';').map(str::to_ascii_lowercase).collect();
        if !signed_headers.iter().any(|name| name == "host" || name == ":authority") {
            return Err(incomplete(
                "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
            ));
        }
        Ok(Self {
            access_key_id: access_key_id.to_owned(),
            day: day.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
            session_token,
            signed_headers,
            signature: signature.to_owned(),
            at,
            expires,
        })
    }

    /// Checks that the request's signature is that of the key's secret, and still good.
    ///
    /// # Errors
    /// [`Rejection::Expired`] and [`Rejection::Mismatch`].
    pub fn verify(
        &self,
        secret: &str,
        request: &Parts,
        body: &[u8],
        now: OffsetDateTime,
    ) -> Result<(), Rejection> {
        self.check_time(now)?;
        let payload = self.payload(request, body)?;
        let canonical = self.canonical(request, &payload)?;
        let date = format_basic(self.at);
        let scope = format!("{}/{}/{}/{TERMINATOR}", self.day, self.region, self.service);
        let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
        let first = mac(format!("AWS4{secret}").as_bytes(), self.day.as_bytes());
        let key = [self.region.as_str(), &self.service, TERMINATOR]
            .iter()
            .fold(first, |key, part| mac(&key, part.as_bytes()));
        let expected = hex::encode(mac(&key, to_sign.as_bytes()));
        if bool::from(expected.as_bytes().ct_eq(self.signature.as_bytes())) {
            return Ok(());
        }
        Err(Rejection::Mismatch(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.".to_owned(),
        ))
    }

    fn check_time(&self, now: OffsetDateTime) -> Result<(), Rejection> {
        let (at, clock) = (format_basic(self.at), format_basic(now));
        if !at.starts_with(&self.day) {
            return Err(Rejection::Mismatch(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != '{}', from '{at}'.",
                self.day,
                &at[..8]
            )));
        }
        let good_for = self.expires.map_or(SKEW, Duration::seconds);
        if self.at - now > SKEW {
            return Err(Rejection::Expired(format!(
                "Signature not yet current: {at} is still later than {clock} (15 min.)"
            )));
        }
        if now - self.at > good_for {
            return Err(Rejection::Expired(format!("Signature expired: {at} is now earlier than {clock}")));
        }
        Ok(())
    }

    /// The hash of the body as it was signed.
    fn payload(&self, request: &Parts, body: &[u8]) -> Result<String, Rejection> {
        let told = request.headers.get("x-amz-content-sha256").and_then(|value| value.to_str().ok());
        match told {
            Some(UNSIGNED_PAYLOAD) => Ok(UNSIGNED_PAYLOAD.to_owned()),
            Some(told) if told != sha256_hex(body) => Err(Rejection::Mismatch(
                "The value of x-amz-content-sha256 is not the SHA-256 of the request's body.".to_owned(),
            )),
            _ => Ok(sha256_hex(body)),
        }
    }

    fn canonical(&self, request: &Parts, payload: &str) -> Result<String, Rejection> {
        let mut names = self.signed_headers.clone();
        names.sort_unstable();
        let mut headers = String::new();
        for name in &names {
            let value = canonical_header(request, name).ok_or_else(|| {
                Rejection::Mismatch(format!("The signed header '{name}' is not in the request."))
            })?;
            headers.push_str(&format!("{name}:{value}\n"));
        }
        Ok(format!(
            "{}\n{}\n{}\n{headers}\n{}\n{payload}",
            request.method,
            canonical_path(request.uri.path()),
            canonical_query(&query(request)),
            names.join(";"),
        ))
    }
}

fn mac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

fn basic(text: &str) -> Option<OffsetDateTime> {
    PrimitiveDateTime::parse(text, BASIC).ok().map(PrimitiveDateTime::assume_utc)
}

fn format_basic(at: OffsetDateTime) -> String {
    at.format(BASIC).unwrap_or_default()
}

/// The parameters of the query string, decoded.
fn query(request: &Parts) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = request.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

fn canonical_query(query: &[(String, String)]) -> String {
    let encode = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
    let mut pairs: Vec<_> = query
        .iter()
        .filter(|(name, _)| name != "X-Amz-Signature")
        .map(|(k, v)| (encode(k), encode(v)))
        .collect();
    pairs.sort_unstable();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// The path as it was sent, normalized (RFC 3986, section 6) and each segment encoded once more.
fn canonical_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let encoded: Vec<_> =
        segments.iter().map(|segment| utf8_percent_encode(segment, ENCODED).to_string()).collect();
    let slash = if path.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{slash}", encoded.join("/"))
}

/// A header's values in one line, white space folded; none when the request does not have it.
fn canonical_header(request: &Parts, name: &str) -> Option<String> {
    if name == "host" && !request.headers.contains_key(header::HOST) {
        return request.uri.authority().map(ToString::to_string);
    }
    let name = HeaderName::try_from(name).ok()?;
    let mut values = request.headers.get_all(name).iter().peekable();
    values.peek()?;
    let fold = |value: &http::HeaderValue| {
        String::from_utf8_lossy(value.as_bytes()).split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    };
    Some(values.map(fold).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn verify(request: &Parts, body: &[u8], now: &str) -> Result<(), Rejection> {
        Signature::of(request)?.verify(SECRET, request, body, basic(now).unwrap())
    }

    fn signed(method: &str, uri: &str, extra: &[(&str, &str)], names: &str, signature: &str) -> Parts {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders={names}, Signature={signature}"
        );
        let mut headers = vec![("Host", "example.amazonaws.com"), ("X-Amz-Date", "20150830T123600Z")];
        headers.extend_from_slice(extra);
        headers.push(("Authorization", &authorization));
        request(method, uri, &headers)
    }

    /// Cases of AWS's Signature Version 4 test suite: name, method, URI, further headers, body, signed headers, signature.
    #[test]
    fn the_test_suite_of_aws_is_accepted() {
        let vanilla = "host;x-amz-date";
        let form = ("Content-Type", "application/x-www-form-urlencoded");
        type Case<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8], &'a str, &'a str);
        let cases: &[Case<'_>] = &[
            (
                "get-vanilla",
                "GET",
                "/",
                &[],
                b"",
                vanilla,
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-vanilla-query",
                "GET",
                "/",
                &[],
                b"",
                vanilla,
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-vanilla-query-order-key-case",
                "GET",
                "/?Param2=value2&Param1=value1",
                &[],
                b"",
                vanilla,
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "get-vanilla-empty-query-key",
                "GET",
                "/?Param1=value1",
                &[],
                b"",
                vanilla,
                "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
            ),
            (
                "post-vanilla",
                "POST",
                "/",
                &[],
                b"",
                vanilla,
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "post-vanilla-query",
                "POST",
                "/?Param1=value1",
                &[],
                b"",
                vanilla,
                "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
            ),
            (
                "post-header-key-sort",
                "POST",
                "/",
                &[("My-Header1", "value1")],
                b"",
                "host;my-header1;x-amz-date",
                "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
            ),
            (
                "post-x-www-form-urlencoded",
                "POST",
                "/",
                &[form],
                b"Param1=value1",
                "content-type;host;x-amz-date",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
            (
                "get-header-value-trim",
                "GET",
                "/",
                &[("My-Header1", " value1"), ("My-Header2", " \"a   b   c\"")],
                b"",
                "host;my-header1;my-header2;x-amz-date",
                "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
            ),
        ];
        for (name, method, uri, headers, body, names, signature) in cases {
            let request = signed(method, uri, headers, names, signature);
            assert_eq!(verify(&request, body, "20150830T123600Z"), Ok(()), "{name}");
            let changed = signature.replacen(|c: char| c.is_ascii_digit(), "f", 1);
            let request = signed(method, uri, headers, names, &changed);
            assert!(
                matches!(verify(&request, body, "20150830T123600Z"), Err(Rejection::Mismatch(_))),
                "{name}"
            );
        }
    }

    /// The example of the IAM User Guide ("Create a signed AWS API request", ListUsers).
    #[test]
    fn the_example_of_the_guide_is_accepted() {
        let authorization = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, SignedHeaders=content-type;host;x-amz-date, Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
        let request = request(
            "GET",
            "/?Action=ListUsers&Version=2010-05-08",
            &[
                ("Host", "iam.amazonaws.com"),
                ("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"),
                ("X-Amz-Date", "20150830T123600Z"),
                ("Authorization", authorization),
            ],
        );
        assert_eq!(verify(&request, b"", "20150830T124000Z"), Ok(()));
        assert!(matches!(verify(&request, b"", "20150830T125101Z"), Err(Rejection::Expired(_))));
        assert!(matches!(verify(&request, b"", "20150830T122059Z"), Err(Rejection::Expired(_))));
        assert!(matches!(verify(&request, b"x", "20150830T124000Z"), Err(Rejection::Mismatch(_))));
    }

    #[test]
    fn paths_are_normalized() {
        for (path, canonical) in [
            ("/", "/"),
            ("//", "/"),
            ("/./a/../b/", "/b/"),
            ("/a%20b/c", "/a%2520b/c"),
            ("/../..", "/"),
            ("/-._~0AZ", "/-._~0AZ"),
        ] {
            assert_eq!(canonical_path(path), canonical, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_incomplete() {
        for authorization in
            ["", "Basic x", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request"]
        {
            let request = request("GET", "/", &[("Host", "h"), ("Authorization", authorization)]);
            assert!(matches!(Signature::of(&request), Err(Rejection::Incomplete(_))), "{authorization}");
        }
        assert_eq!(Signature::of(&request("GET", "/?a=b", &[("Host", "h")])), Err(Rejection::Missing));
    }
}
