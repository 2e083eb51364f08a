//! The keys of OpenID Connect issuers (OpenID Connect Discovery 1.0).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use super::jwt::{Jwk, Jwt};

/// How long the keys of an issuer are believed without asking again.
const LIFETIME: Duration = Duration::from_secs(300);

/// How soon an issuer may be asked again, whatever tokens come: for a key that is not among the known ones.
const PAUSE: Duration = Duration::from_secs(5);

/// How long an issuer may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The greatest document that is read from an issuer.
const MAX_DOCUMENT: u64 = 1 << 20;

/// Issuers that are remembered.
const MAX_ISSUERS: usize = 1000;

/// What is known of issuers.
#[derive(Default)]
pub(super) struct Issuers(Mutex<HashMap<String, Known>>);

#[derive(Clone)]
struct Known {
    keys: Arc<Vec<Jwk>>,
    at: Instant,
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
}

impl Issuers {
    /// Whether the issuer with this URL signed a token.
    ///
    /// # Errors
    /// Why the issuer's keys cannot be had.
    pub async fn signed(&self, url: &str, jwt: &Jwt<'_>) -> Result<bool, String> {
        let known = self.lock().get(url).cloned();
        if let Some(known) = known {
            let age = known.at.elapsed();
            let has_key = known.keys.iter().any(|key| jwt.may_be_of(key));
            if age < PAUSE || age < LIFETIME && has_key {
                return Ok(jwt.is_signed_by(&known.keys));
            }
        }
        let issuer = url.to_owned();
        let fetched = tokio::task::spawn_blocking(move || fetch(&issuer)).await;
        let keys = Arc::new(fetched.map_err(|error| error.to_string())??);
        let mut issuers = self.lock();
        if issuers.len() >= MAX_ISSUERS {
            issuers.clear();
        }
        issuers.insert(url.to_owned(), Known { keys: Arc::clone(&keys), at: Instant::now() });
        Ok(jwt.is_signed_by(&keys))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys that an issuer publishes.
fn fetch(url: &str) -> Result<Vec<Jwk>, String> {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let agent: Agent = Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(PATIENCE))
        .max_redirects(0)
        .proxy(None)
        .build()
        .into();
    let base = url.trim_end_matches('/');
    let configuration: Configuration = get(&agent, &format!("{base}/.well-known/openid-configuration"))?;
    if configuration.issuer.trim_end_matches('/') != base {
        return Err(format!("it says that its issuer is {}", configuration.issuer));
    }
    // Keys must not come over a weaker way than the one that was registered.
    if !configuration.jwks_uri.starts_with("https://") && !is_loopback(&configuration.jwks_uri) {
        return Err("its jwks_uri is not an https URL".into());
    }
    let set: KeySet = get(&agent, &configuration.jwks_uri)?;
    // Keys of unknown kinds are for others.
    Ok(set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect())
}

fn get<T: DeserializeOwned>(agent: &Agent, url: &str) -> Result<T, String> {
    let mut response = agent.get(url).call().map_err(|error| format!("{url}: {error}"))?;
    let body = response.body_mut().with_config().limit(MAX_DOCUMENT).read_to_vec();
    let body = body.map_err(|error| format!("{url}: {error}"))?;
    serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))
}

/// Whether a URL is one of this machine without TLS, which only what runs here can answer.
pub(crate) fn is_loopback(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host == "localhost"
        || host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        || host == "[::1]"
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn loopback_is_only_this_machine() {
        for url in ["http://localhost", "http://127.0.0.1:80/x", "http://127.8.9.1/a:b", "http://[::1]:80"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in [
            "https://localhost",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com/",
            "http://127.0.0.1@example.com/",
            "http://example.com/127.0.0.1",
            "http://10.0.0.1",
        ] {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
