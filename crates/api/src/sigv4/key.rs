//! Secrets, and the keys that are derived from them.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::{Scope, TERMINATOR};

/// What requests of one scope are signed with ("Create a signed AWS API request", step 4: calculate the signature).
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// The key of a scope.
    pub fn new(secret: &str, scope: &Scope<'_>) -> Self {
        let first = Self::of(format!("AWS4{secret}").as_bytes());
        let parts = [scope.day, scope.region, scope.service, TERMINATOR];
        parts.iter().fold(first, |key, part| Self::of(&key.mac(part.as_bytes())))
    }

    fn of(key: &[u8]) -> Self {
        Self(Mac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    /// The code of a text under this key.
    pub(super) fn mac(&self, text: &[u8]) -> [u8; 32] {
        self.0.clone().chain_update(text).finalize().into_bytes().into()
    }
}

/// The secret of an access key. It keeps the latest key that was derived from it: clients sign for one scope, mostly, and to derive
/// its key takes longer than to sign with it.
pub struct Secret {
    text: String,
    latest: Mutex<Option<Derived>>,
}

/// A key and the day, region and service of its scope.
struct Derived {
    scope: [String; 3],
    key: SigningKey,
}

impl Secret {
    /// The secret of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), latest: Mutex::default() }
    }

    /// The key of a scope.
    pub fn key(&self, scope: &Scope<'_>) -> SigningKey {
        let wanted = [scope.day, scope.region, scope.service];
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*latest {
            Some(derived) if derived.scope == wanted => derived.key.clone(),
            _ => {
                let key = SigningKey::new(&self.text, scope);
                *latest = Some(Derived { scope: wanted.map(str::to_owned), key: key.clone() });
                key
            }
        }
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

/// Without the secret.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}
