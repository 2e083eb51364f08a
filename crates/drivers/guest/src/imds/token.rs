//! Session tokens of IMDSv2 (EC2 User Guide, "Use the Instance Metadata Service to access instance metadata").
//!
//! A token is its expiry and a message authentication code over the expiry and the instance's id, so that the server
//! keeps no list of tokens: those that it gave out before a restart stay good, and one of another instance is none.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Longest time that a token may live, in seconds: six hours.
pub(crate) const MAX_TTL: u32 = 21_600;

const VERSION: u8 = 1;
const EXPIRY: usize = 5;
const NONCE: usize = 4;
const HEAD: usize = 1 + EXPIRY + NONCE;
const TAG: usize = 32;

/// The key that seals session tokens.
///
/// Whoever has it can make tokens; keep it where only the daemon reads it, and keep it over restarts so that the tokens
/// given out stay good.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl TokenKey {
    /// The key of 32 secret random octets.
    #[must_use]
    pub const fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// A token for the instance that lives `ttl` seconds from `now` (seconds since 1970).
    pub(crate) fn seal(&self, instance_id: &str, ttl: u32, now: u64) -> String {
        let expiry = now + u64::from(ttl);
        let mut token = [0; HEAD + TAG];
        token[0] = VERSION;
        token[1..=EXPIRY].copy_from_slice(&expiry.to_be_bytes()[8 - EXPIRY..]);
        token[1 + EXPIRY..HEAD].copy_from_slice(&rand::random::<[u8; NONCE]>());
        let tag = self.mac(&token[..HEAD], instance_id).finalize().into_bytes();
        token[HEAD..].copy_from_slice(&tag);
        URL_SAFE.encode(token)
    }

    /// The seconds that a token still lives, at least 1, when it is one of the instance's and has not expired.
    pub(crate) fn open(&self, token: &[u8], instance_id: &str, now: u64) -> Option<u32> {
        let token: [u8; HEAD + TAG] = URL_SAFE.decode(token).ok()?.try_into().ok()?;
        let (head, tag) = token.split_at(HEAD);
        self.mac(head, instance_id).verify_slice(tag).ok()?;
        let mut expiry = [0; 8];
        expiry[8 - EXPIRY..].copy_from_slice(&head[1..=EXPIRY]);
        let left = u64::from_be_bytes(expiry).checked_sub(now)?;
        u32::try_from(left).ok().filter(|&left| head[0] == VERSION && left > 0)
    }

    fn mac(&self, head: &[u8], instance_id: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(head);
        mac.update(instance_id.as_bytes());
        mac
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key() -> TokenKey {
        TokenKey::new([7; 32])
    }

    #[test]
    fn a_token_opens_until_it_expires() {
        let token = key().seal("i-1", 60, NOW);
        assert_eq!(token.len(), 56);
        assert_eq!(key().open(token.as_bytes(), "i-1", NOW), Some(60));
        assert_eq!(key().open(token.as_bytes(), "i-1", NOW + 59), Some(1));
        assert_eq!(key().open(token.as_bytes(), "i-1", NOW + 60), None);
        assert_eq!(key().open(token.as_bytes(), "i-1", NOW + 100_000), None);
    }

    #[test]
    fn a_token_is_its_instances_and_its_keys_alone() {
        let token = key().seal("i-1", 60, NOW);
        assert_eq!(key().open(token.as_bytes(), "i-2", NOW), None);
        assert_eq!(TokenKey::new([8; 32]).open(token.as_bytes(), "i-1", NOW), None);
    }

    #[test]
    fn two_tokens_of_one_second_differ() {
        assert_ne!(key().seal("i-1", 60, NOW), key().seal("i-1", 60, NOW));
    }

    proptest! {
        #[test]
        fn a_changed_token_is_none(at in 0_usize..42, with in 1_u8..) {
            let mut token = URL_SAFE.decode(key().seal("i-1", 60, NOW)).unwrap();
            token[at] ^= with;
            prop_assert_eq!(key().open(URL_SAFE.encode(token).as_bytes(), "i-1", NOW), None);
        }

        #[test]
        fn any_octets_are_none(token in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(key().open(&token, "i-1", NOW), None);
        }
    }
}
