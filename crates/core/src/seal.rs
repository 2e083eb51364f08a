//! Secrets at rest: sealed with a key that is kept elsewhere.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;

/// Length of a sealing key.
pub const KEY_BYTES: usize = 32;

/// Seals secrets with one key (AES-256-GCM with random nonces). What is sealed is bound to what it is for, so that one
/// sealed secret cannot be put in another's place.
#[derive(Clone)]
pub struct Sealer(Arc<LessSafeKey>);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// With a key.
    ///
    /// # Panics
    /// Never: the key has the algorithm's length.
    #[must_use]
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the algorithm's length");
        Self(Arc::new(LessSafeKey::new(key)))
    }

    /// With a key for one purpose that is derived from a key for several.
    ///
    /// # Panics
    /// Never: a SHA-256 has the length of a key.
    #[must_use]
    pub fn derived(key: &[u8; KEY_BYTES], purpose: &str) -> Self {
        Self::new(&Self::derived_key(key, purpose))
    }

    /// A key for one purpose that is derived from a key for several.
    ///
    /// # Panics
    /// Never: a SHA-256 has the length of a key.
    #[must_use]
    pub fn derived_key(key: &[u8; KEY_BYTES], purpose: &str) -> [u8; KEY_BYTES] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let derived = hmac::sign(&key, purpose.as_bytes());
        derived.as_ref().try_into().expect("a SHA-256 has the length of a key")
    }

    /// A new key from the operating system's randomness.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    #[must_use]
    pub fn random_key() -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        OsRng.try_fill_bytes(&mut key).expect("the operating system gives random numbers");
        key
    }

    /// Seals a secret that is for `purpose`, as text.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    #[must_use]
    pub fn seal(&self, secret: &[u8], purpose: &str) -> String {
        let mut nonce = [0; NONCE_LEN];
        OsRng.try_fill_bytes(&mut nonce).expect("the operating system gives random numbers");
        let mut text = secret.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text)
            .expect("secrets are short");
        STANDARD_NO_PAD.encode([&nonce[..], &text[..]].concat())
    }

    /// What was sealed for `purpose` with this key; none if it was sealed otherwise, or changed since.
    #[must_use]
    pub fn open(&self, sealed: &str, purpose: &str) -> Option<Vec<u8>> {
        let sealed = STANDARD_NO_PAD.decode(sealed).ok()?;
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let secret = self.0.open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut text).ok()?;
        Some(secret.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_for_the_same_purpose_only() {
        let sealer = Sealer::new(&Sealer::random_key());
        let sealed = sealer.seal(b"a secret", "one");
        assert_ne!(sealed, sealer.seal(b"a secret", "one"));
        assert_eq!(sealer.open(&sealed, "one").as_deref(), Some(&b"a secret"[..]));
        assert_eq!(sealer.open(&sealed, "another"), None);
        assert_eq!(Sealer::new(&Sealer::random_key()).open(&sealed, "one"), None);
        let mut changed = STANDARD_NO_PAD.decode(&sealed).unwrap();
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(sealer.open(&STANDARD_NO_PAD.encode(changed), "one"), None);
        for garbage in ["", "AAAA", "not base64!"] {
            assert_eq!(sealer.open(garbage, "one"), None);
        }
    }
}
