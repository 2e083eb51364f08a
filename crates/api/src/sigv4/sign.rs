//! Signing requests.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::utf8_percent_encode;
use time::OffsetDateTime;

use crate::timestamp;

use super::{
    ALGORITHM, Canonical, ENCODED, PathStyle, Scope, SigningKey, UNSIGNED_PAYLOAD, canonical_header,
    canonical_path, parse_query, sha256_hex,
};

/// Headers that are not signed: those that a connection's two ends or what lies between them may change.
const UNSIGNED: &[&str] = &[
    "authorization",
    "connection",
    "expect",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-amzn-trace-id",
];

/// Signs requests with one access key, for one service in one region.
///
/// ```
/// # fn main() -> Result<(), haar_api::sigv4::Unsignable> {
/// use haar_api::sigv4::Signer;
/// let signer = Signer::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "us-east-1", "iam");
/// let request = http::Request::builder().uri("/?Action=ListUsers").header("host", "iam.amazonaws.com");
/// let (mut parts, ()) = request.body(()).expect("the parts are valid").into_parts();
/// signer.sign(&mut parts, b"", time::OffsetDateTime::now_utc())?;
/// assert!(parts.headers.contains_key("authorization"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Signer<'a> {
    /// The access key's id.
    pub access_key_id: &'a str,
    /// The access key's secret.
    pub secret_access_key: &'a str,
    /// The token of temporary credentials.
    pub session_token: Option<&'a str>,
    /// The region of the credential scope.
    pub region: &'a str,
    /// The service of the credential scope.
    pub service: &'a str,
    /// How the service's signatures write the path.
    pub paths: PathStyle,
}

/// Why a request cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum Unsignable {
    /// It has neither a `Host` header nor an absolute URI.
    #[error("the request names no host")]
    Host,
    /// The access key's id or token cannot stand in a header.
    #[error("the credentials cannot stand in a header")]
    Header(#[from] header::InvalidHeaderValue),
    /// The signed URI is none.
    #[error("the signed URI is invalid")]
    Uri(#[from] http::Error),
}

impl<'a> Signer<'a> {
    /// A signer with a long-term key, in the service's path style.
    pub fn new(
        access_key_id: &'a str,
        secret_access_key: &'a str,
        region: &'a str,
        service: &'a str,
    ) -> Self {
        let paths = PathStyle::of(service);
        Signer { access_key_id, secret_access_key, session_token: None, region, service, paths }
    }

    /// The same signer with the token of temporary credentials.
    #[must_use]
    pub fn with_token(mut self, token: &'a str) -> Self {
        self.session_token = Some(token);
        self
    }

    /// Signs a request in its headers: sets `X-Amz-Date`, `X-Amz-Security-Token` and `Authorization`, and signs every header that
    /// may be signed. A header `X-Amz-Content-Sha256: UNSIGNED-PAYLOAD` leaves the body out.
    ///
    /// # Errors
    /// [`Unsignable::Host`] and [`Unsignable::Header`].
    pub fn sign(&self, request: &mut Parts, body: &[u8], at: OffsetDateTime) -> Result<(), Unsignable> {
        let date = timestamp::basic(at);
        request.headers.insert("x-amz-date", HeaderValue::from_str(&date)?);
        if let Some(token) = self.session_token {
            request.headers.insert("x-amz-security-token", HeaderValue::from_str(token)?);
        }
        let scope = Scope { day: &date[..8], region: self.region, service: self.service };
        let canonical = self.canonical(request, body)?;
        let authorization = format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={}, Signature={}",
            self.access_key_id,
            canonical.signed_headers(),
            canonical.sign(&SigningKey::new(self.secret_access_key, &scope), at, &scope),
        );
        request.headers.insert(header::AUTHORIZATION, HeaderValue::try_from(authorization)?);
        Ok(())
    }

    /// Presigns a request for `expires` seconds: adds the signature to its query string, and signs every header that it has.
    ///
    /// # Errors
    /// Any [`Unsignable`].
    pub fn presign(
        &self,
        request: &mut Parts,
        body: &[u8],
        at: OffsetDateTime,
        expires: u32,
    ) -> Result<(), Unsignable> {
        let date = timestamp::basic(at);
        let scope = Scope { day: &date[..8], region: self.region, service: self.service };
        let mut canonical = self.canonical(request, body)?;
        let mut parameters = vec![
            ("X-Amz-Algorithm", ALGORITHM.to_owned()),
            ("X-Amz-Credential", format!("{}/{scope}", self.access_key_id)),
            ("X-Amz-Date", date.clone()),
            ("X-Amz-Expires", expires.to_string()),
            ("X-Amz-SignedHeaders", canonical.signed_headers()),
        ];
        parameters.extend(self.session_token.map(|token| ("X-Amz-Security-Token", token.to_owned())));
        let pairs = parameters.iter().map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into()));
        canonical.query.extend(pairs);
        parameters.push((
            "X-Amz-Signature",
            canonical.sign(&SigningKey::new(self.secret_access_key, &scope), at, &scope),
        ));

        let mut query = request.uri.query().unwrap_or_default().to_owned();
        for (name, value) in &parameters {
            let separator = if query.is_empty() { "" } else { "&" };
            query.push_str(&format!("{separator}{name}={}", utf8_percent_encode(value, ENCODED)));
        }
        let path = format!("{}?{query}", request.uri.path());
        let mut uri = http::uri::Builder::from(request.uri.clone());
        uri = uri.path_and_query(path);
        request.uri = uri.build()?;
        Ok(())
    }

    /// The request in the form that is signed, with all its headers that may be.
    fn canonical<'r>(&self, request: &'r Parts, body: &[u8]) -> Result<Canonical<'r>, Unsignable> {
        let mut names: Vec<&str> = request.headers.keys().map(HeaderName::as_str).collect();
        names.retain(|name| !UNSIGNED.contains(name) && *name != "host");
        names.push("host");
        let headers = names
            .into_iter()
            .map(|name| canonical_header(request, name).map(|value| (name.into(), value)))
            .collect::<Option<_>>()
            .ok_or(Unsignable::Host)?;
        let unsigned = is_unsigned_payload(&request.headers);
        Ok(Canonical {
            method: request.method.as_str(),
            path: canonical_path(request.uri.path(), self.paths),
            query: parse_query(request.uri.query().unwrap_or_default()),
            headers,
            payload: if unsigned { UNSIGNED_PAYLOAD.to_owned() } else { sha256_hex(body) },
        })
    }
}

fn is_unsigned_payload(headers: &HeaderMap) -> bool {
    headers.get("x-amz-content-sha256").is_some_and(|value| value == UNSIGNED_PAYLOAD)
}
