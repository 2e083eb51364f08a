//! Reading and checking signatures.

use std::borrow::Cow;

use http::request::Parts;
use http::{HeaderMap, header};
use subtle::ConstantTimeEq;
use time::{Duration, OffsetDateTime, UtcOffset};

use crate::timestamp::{self, parse_basic};

use super::{
    ALGORITHM, Canonical, PathStyle, Scope, Secret, TERMINATOR, UNSIGNED_PAYLOAD, canonical_header,
    canonical_path, parse_query, sha256_hex,
};

/// How far the clocks of client and server may differ.
const SKEW: Duration = Duration::minutes(15);

/// Longest life of a presigned request.
const MAX_EXPIRES: i64 = 7 * 24 * 3600;

/// The longest element of a credential scope.
const MAX_ELEMENT: usize = 128;

/// How many elements a credential has: the key's id, and the scope's day, region, service and end.
const ELEMENTS: usize = 5;

/// The greatest number of signed headers: more than a request may have.
const MAX_SIGNED_HEADERS: usize = 128;

/// What a request says of its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature<'a> {
    /// Key and scope.
    credential: Cow<'a, str>,
    /// Where each element of the credential ends.
    ends: [usize; ELEMENTS],
    /// Session token of temporary credentials.
    pub session_token: Option<Cow<'a, str>>,
    /// How the path was signed: as the service's signatures write it.
    pub paths: PathStyle,
    /// In lower case, sorted.
    signed_headers: Vec<Cow<'a, str>>,
    signature: Cow<'a, str>,
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

impl<'a> Signature<'a> {
    /// Reads the signature of a request, from its `Authorization` header or its query string.
    ///
    /// # Errors
    /// [`Rejection::Missing`] and [`Rejection::Incomplete`].
    pub fn of(request: &'a Parts) -> Result<Self, Rejection> {
        if let Some(value) = request.headers.get(header::AUTHORIZATION) {
            let value = value.to_str().map_err(|_| incomplete("The Authorization header is not text."))?;
            return Self::of_header(value, &request.headers);
        }
        let query = parse_query(request.uri.query().unwrap_or_default());
        match query.iter().any(|(name, _)| name.starts_with(b"X-Amz-")) {
            true => Self::of_query(&query),
            false => Err(Rejection::Missing),
        }
    }

    fn of_header(value: &'a str, headers: &'a HeaderMap) -> Result<Self, Rejection> {
        let rest = value.strip_prefix(ALGORITHM).filter(|rest| rest.is_empty() || rest.starts_with(' '));
        let rest =
            rest.ok_or_else(|| incomplete(format!("The Authorization header must begin with {ALGORITHM}.")))?;
        let (mut credential, mut signed, mut signature) = (None, None, None);
        let parts = rest.split(',').flat_map(|part| part.split(' '));
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            let found = match key {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed,
                "Signature" => &mut signature,
                _ => continue,
            };
            found.get_or_insert(value);
        }
        let need = |found: Option<&'a str>, name: &str| {
            found
                .filter(|value| !value.is_empty())
                .ok_or_else(|| incomplete(format!("Authorization header requires '{name}' parameter.")))
        };
        let credential = need(credential, "Credential")?;
        let (signed, signature) = (need(signed, "SignedHeaders")?, need(signature, "Signature")?);
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let at = match text("x-amz-date") {
            Some(date) => parse_basic(date),
            None => text("date").and_then(|date| {
                OffsetDateTime::parse(date, &time::format_description::well_known::Rfc2822)
                    .ok()
                    .and_then(|date| date.checked_to_offset(UtcOffset::UTC))
                    .or_else(|| parse_basic(date))
            }),
        };
        let at = at.ok_or_else(|| {
            incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
        })?;
        let token = text("x-amz-security-token").map(Cow::from);
        Self::new(credential.into(), signed.into(), signature.into(), at, None, token)
    }

    fn of_query(query: &[(Vec<u8>, Vec<u8>)]) -> Result<Self, Rejection> {
        let get = |name: &str| {
            let (_, value) = query.iter().find(|(key, _)| key == name.as_bytes())?;
            std::str::from_utf8(value).ok().filter(|value| !value.is_empty())
        };
        let need = |name: &str| {
            get(name).ok_or_else(|| incomplete(format!("AWS query-string parameters must include '{name}'.")))
        };
        if need("X-Amz-Algorithm")? != ALGORITHM {
            return Err(incomplete(format!("X-Amz-Algorithm must be {ALGORITHM}.")));
        }
        let at = parse_basic(need("X-Amz-Date")?).ok_or_else(|| {
            incomplete("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\".")
        })?;
        let expires =
            need("X-Amz-Expires")?.parse().ok().filter(|seconds| (1..=MAX_EXPIRES).contains(seconds));
        let expires = expires
            .ok_or_else(|| incomplete(format!("X-Amz-Expires must be from 1 to {MAX_EXPIRES} seconds.")))?;
        let need = |name: &str| need(name).map(|value| Cow::from(value.to_owned()));
        let (signed, signature) = (need("X-Amz-SignedHeaders")?, need("X-Amz-Signature")?);
        let token = get("X-Amz-Security-Token").map(|token| token.to_owned().into());
        Self::new(need("X-Amz-Credential")?, signed, signature, at, Some(expires), token)
    }

    fn new(
        credential: Cow<'a, str>,
        signed: Cow<'a, str>,
        signature: Cow<'a, str>,
        at: OffsetDateTime,
        expires: Option<i64>,
        session_token: Option<Cow<'a, str>>,
    ) -> Result<Self, Rejection> {
        let slashes = credential.bytes().enumerate().filter(|(_, byte)| *byte == b'/');
        let last = credential.rsplit('/').next();
        if slashes.clone().count() != ELEMENTS - 1 || last != Some(TERMINATOR) {
            return Err(incomplete(
                "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term.",
            ));
        }
        let mut ends = [credential.len(); ELEMENTS];
        ends.iter_mut().zip(slashes).for_each(|(end, (place, _))| *end = place);
        if signed.bytes().filter(|byte| *byte == b';').count() >= MAX_SIGNED_HEADERS {
            return Err(incomplete("SignedHeaders names too many headers."));
        }
        let mut signed_headers: Vec<Cow<'a, str>> = match signed {
            Cow::Borrowed(names) => names.split(';').map(in_lower_case).collect(),
            Cow::Owned(names) => names.split(';').map(|name| name.to_ascii_lowercase().into()).collect(),
        };
        signed_headers.sort_unstable();
        if !signed_headers.iter().any(|name| name == "host" || name == ":authority") {
            return Err(incomplete(
                "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
            ));
        }
        let mut found = Self {
            credential,
            ends,
            session_token,
            paths: PathStyle::Normalized,
            signed_headers,
            signature,
            at,
            expires,
        };
        if (0..ELEMENTS).any(|index| !(1..=MAX_ELEMENT).contains(&found.element(index).len())) {
            return Err(incomplete("An element of the Credential is empty or too long."));
        }
        found.paths = PathStyle::of(found.scope().service);
        Ok(found)
    }

    /// The key that signed.
    pub fn access_key_id(&self) -> &str {
        self.element(0)
    }

    /// What the signature is good for, as it says itself.
    pub fn scope(&self) -> Scope<'_> {
        Scope { day: self.element(1), region: self.element(2), service: self.element(3) }
    }

    fn element(&self, index: usize) -> &str {
        let begin = index.checked_sub(1).map_or(0, |before| self.ends[before] + 1);
        &self.credential[begin..self.ends[index]]
    }

    /// Checks that the request's signature is that of the key's secret, and still good.
    ///
    /// # Errors
    /// [`Rejection::Expired`] and [`Rejection::Mismatch`].
    pub fn verify(
        &self,
        secret: &Secret,
        request: &Parts,
        body: &[u8],
        now: OffsetDateTime,
    ) -> Result<(), Rejection> {
        self.check_time(now)?;
        self.check_headers(&request.headers)?;
        let scope = self.scope();
        let expected = self.canonical(request, body)?.sign(&secret.key(&scope), self.at, &scope);
        if bool::from(expected.as_bytes().ct_eq(self.signature.as_bytes())) {
            return Ok(());
        }
        Err(Rejection::Mismatch(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.".to_owned(),
        ))
    }

    fn check_time(&self, now: OffsetDateTime) -> Result<(), Rejection> {
        let (at, day) = (timestamp::basic(self.at), self.scope().day);
        if &at[..8] != day {
            return Err(Rejection::Mismatch(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{day}' != '{}', from '{at}'.",
                &at[..8]
            )));
        }
        let clock = || timestamp::basic(now);
        let good_for = self.expires.map_or(SKEW, Duration::seconds);
        if self.at - now > SKEW {
            let limit = timestamp::basic(now + SKEW);
            return Err(Rejection::Expired(format!(
                "Signature not yet current: {at} is still later than {limit} ({} + 15 min.)",
                clock()
            )));
        }
        if now - self.at > good_for {
            let limit = timestamp::basic(now - good_for);
            let good_for = match self.expires {
                None => "15 min.".to_owned(),
                Some(seconds) => format!("{seconds} s"),
            };
            return Err(Rejection::Expired(format!(
                "Signature expired: {at} is now earlier than {limit} ({} - {good_for})",
                clock()
            )));
        }
        Ok(())
    }

    /// Every `X-Amz-*` header must be signed: they say what is asked for. The session token alone may be added afterwards; it is
    /// compared with the key's.
    fn check_headers(&self, headers: &HeaderMap) -> Result<(), Rejection> {
        let unsigned = headers.keys().find(|name| {
            let name = name.as_str();
            name.starts_with("x-amz-")
                && name != "x-amz-security-token"
                && !self.signed_headers.iter().any(|signed| signed == name)
        });
        match unsigned {
            None => Ok(()),
            Some(name) => Err(Rejection::Mismatch(format!(
                "There were headers present in the request which were not signed: {name}"
            ))),
        }
    }

    /// The hash of the body as it was signed.
    fn payload(&self, request: &Parts, body: &[u8]) -> Result<String, Rejection> {
        let told = request.headers.get("x-amz-content-sha256").map(http::HeaderValue::as_bytes);
        if told == Some(UNSIGNED_PAYLOAD.as_bytes()) {
            return Ok(UNSIGNED_PAYLOAD.to_owned());
        }
        let is = sha256_hex(body);
        match told {
            Some(told) if told != is.as_bytes() => Err(Rejection::Mismatch(
                "The value of x-amz-content-sha256 is not the SHA-256 of the request's body.".to_owned(),
            )),
            _ => Ok(is),
        }
    }

    /// The request in the form that this signature must be of.
    ///
    /// # Errors
    /// [`Rejection::Mismatch`] where a signed header is missing, or the body is not that of `X-Amz-Content-Sha256`.
    pub fn canonical<'r>(&'r self, request: &'r Parts, body: &[u8]) -> Result<Canonical<'r>, Rejection> {
        let payload = self.payload(request, body)?;
        let header = |name: &'r Cow<'a, str>| {
            canonical_header(request, name).map(|value| ((&**name).into(), value)).ok_or_else(|| {
                Rejection::Mismatch(format!("The signed header '{name}' is not in the request."))
            })
        };
        let headers = self.signed_headers.iter().map(header).collect::<Result<_, _>>()?;
        let mut query = parse_query(request.uri.query().unwrap_or_default());
        if self.expires.is_some() {
            query.retain(|(name, _)| name != b"X-Amz-Signature");
        }
        Ok(Canonical {
            method: request.method.as_str(),
            path: canonical_path(request.uri.path(), self.paths),
            query,
            headers,
            payload,
        })
    }
}

fn in_lower_case(name: &str) -> Cow<'_, str> {
    match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => name.to_ascii_lowercase().into(),
        false => name.into(),
    }
}
