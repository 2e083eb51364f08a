//! Sealing secrets: long-term keys at rest, and the state of temporary credentials inside their session tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use haar_records::iam::Sealed;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use subtle::ConstantTimeEq as _;

/// First byte of what is sealed.
const VERSION: u8 = 1;

/// Longest session token that is looked at.
const MAX_TOKEN: usize = 64 * 1024;

/// Seals with the key of the installation, which is kept outside of the records.
///
/// Everything is sealed with a key of its own, derived from the installation's and from what it belongs to, so that a
/// sealed secret cannot be moved to another access key.
#[derive(Clone)]
pub struct Sealer(hmac::Key);

impl Sealer {
    /// With the installation's key of 32 secret random octets.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// Seals the secret of a long-term access key.
    #[must_use]
    pub fn seal_secret(&self, access_key_id: &str, secret: &str) -> Sealed {
        Sealed(hex::encode(self.seal("access-key", access_key_id, secret.as_bytes())))
    }

    /// The secret of a long-term access key; none if it was sealed with another installation's key, or for another access key.
    #[must_use]
    pub fn open_secret(&self, access_key_id: &str, sealed: &Sealed) -> Option<String> {
        let opened = self.open("access-key", access_key_id, hex::decode(&sealed.0).ok()?)?;
        String::from_utf8(opened).ok()
    }

    /// Seals the seed of an MFA device.
    pub(crate) fn seal_seed(&self, serial: &str, seed: &[u8]) -> Sealed {
        Sealed(hex::encode(self.seal("mfa-seed", serial, seed)))
    }

    /// The seed of an MFA device; none if it was sealed with another installation's key, or for another device.
    pub(crate) fn open_seed(&self, serial: &str, sealed: &Sealed) -> Option<Vec<u8>> {
        self.open("mfa-seed", serial, hex::decode(&sealed.0).ok()?)
    }

    /// The last part of the id of a task of an account, which shows that it was given out: half of it is random, half made of the rest.
    pub(crate) fn task_id(&self, account: &str, task: &str) -> String {
        self.task_id_of(account, task, rand::random())
    }

    /// Whether an id of a task was given out to an account.
    pub(crate) fn is_task_id(&self, account: &str, task: &str, id: &str) -> bool {
        let nonce =
            id.get(..8).zip(id.get(9..13)).zip(id.get(14..18)).map(|((a, b), c)| format!("{a}{b}{c}"));
        let nonce = nonce.and_then(|digits| u64::from_str_radix(&digits, 16).ok());
        nonce
            .is_some_and(|nonce| self.task_id_of(account, task, nonce).as_bytes().ct_eq(id.as_bytes()).into())
    }

    fn task_id_of(&self, account: &str, task: &str, nonce: u64) -> String {
        let about = format!("task\0{account}\0{task}\0{nonce:016x}");
        let seal = hex::encode(&hmac::sign(&self.0, about.as_bytes()).as_ref()[..8]);
        let nonce = format!("{nonce:016x}");
        format!("{}-{}-{}-{}-{}", &nonce[..8], &nonce[8..12], &nonce[12..], &seal[..4], &seal[4..])
    }

    /// Makes the session token of temporary credentials.
    pub(crate) fn seal_token(&self, access_key_id: &str, state: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(self.seal("session", access_key_id, state))
    }

    /// The state inside a session token; none if it is not the token of these credentials.
    pub(crate) fn open_token(&self, access_key_id: &str, token: &str) -> Option<Vec<u8>> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        self.open("session", access_key_id, URL_SAFE_NO_PAD.decode(token).ok()?)
    }

    /// Makes the encoded form of an authorization message, for the account whose principal was refused.
    #[must_use]
    pub fn seal_message(&self, account: &str, message: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.seal("authorization-message", account, message.as_bytes()))
    }

    /// The authorization message in its encoded form; none if it is not one of the account.
    #[must_use]
    pub fn open_message(&self, account: &str, encoded: &str) -> Option<String> {
        if encoded.len() > MAX_TOKEN {
            return None;
        }
        let opened = self.open("authorization-message", account, URL_SAFE_NO_PAD.decode(encoded).ok()?)?;
        String::from_utf8(opened).ok()
    }

    /// `VERSION nonce ciphertext`
    fn seal(&self, purpose: &str, owner: &str, plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut text = plain.to_vec();
        self.key(purpose, owner)
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut text)
            .expect("the text is not longer than the cipher allows");
        [&[VERSION], &nonce[..], &text].concat()
    }

    fn open(&self, purpose: &str, owner: &str, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let (head, text) = sealed.split_at_mut_checked(1 + NONCE_LEN)?;
        if head[0] != VERSION {
            return None;
        }
        let nonce = Nonce::try_assume_unique_for_key(&head[1..]).ok()?;
        let plain = self.key(purpose, owner).open_in_place(nonce, Aad::empty(), text).ok()?;
        Some(plain.to_vec())
    }

    fn key(&self, purpose: &str, owner: &str) -> LessSafeKey {
        let derived = hmac::sign(&self.0, format!("{purpose}\0{owner}").as_bytes());
        let key = UnboundKey::new(&CHACHA20_POLY1305, derived.as_ref());
        LessSafeKey::new(key.expect("a SHA-256 is as long as the cipher's key"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens_for_the_same_owner() {
        let sealer = Sealer::new([1; 32]);
        let sealed = sealer.seal_secret("AKIAONE", "secret");
        assert!(!sealed.0.contains(&hex::encode("secret")));
        assert_eq!(sealer.open_secret("AKIAONE", &sealed).as_deref(), Some("secret"));
        assert_ne!(sealer.seal_secret("AKIAONE", "secret"), sealed);
        assert_eq!(sealer.open_secret("AKIATWO", &sealed), None);
        assert_eq!(Sealer::new([2; 32]).open_secret("AKIAONE", &sealed), None);
        assert_eq!(sealer.open_secret("AKIAONE", &Sealed("01".into())), None);
    }

    #[test]
    fn the_id_of_a_task_is_known_again_and_not_made_up() {
        let sealer = Sealer::new([1; 32]);
        let id = sealer.task_id("1", "task/a");
        assert_eq!(id.len(), 36);
        assert!(sealer.is_task_id("1", "task/a", &id));
        assert!(!sealer.is_task_id("2", "task/a", &id) && !sealer.is_task_id("1", "task/b", &id));
        assert!(!Sealer::new([2; 32]).is_task_id("1", "task/a", &id));
        for text in ["", "é", "00000000-0000-0000-0000-000000000000", &id[..35], &"é".repeat(18)] {
            assert!(!sealer.is_task_id("1", "task/a", text), "{text}");
        }
    }

    #[test]
    fn a_token_is_good_only_as_it_was_made() {
        let sealer = Sealer::new([1; 32]);
        let token = sealer.seal_token("ASIAONE", b"state");
        assert_eq!(sealer.open_token("ASIAONE", &token).as_deref(), Some(&b"state"[..]));
        assert_eq!(sealer.open_token("ASIATWO", &token), None);
        for position in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[position] = if forged[position] == b'A' { b'B' } else { b'A' };
            assert_eq!(
                sealer.open_token("ASIAONE", std::str::from_utf8(&forged).unwrap()),
                None,
                "{position}"
            );
        }
        for text in ["", "A", "é", "%%", &"A".repeat(1_000_000)] {
            assert_eq!(sealer.open_token("ASIAONE", text), None);
        }
        // A sealed secret is no token.
        let secret = hex::decode(sealer.seal_secret("ASIAONE", "secret").0).unwrap();
        assert_eq!(sealer.open_token("ASIAONE", &URL_SAFE_NO_PAD.encode(secret)), None);
    }
}
