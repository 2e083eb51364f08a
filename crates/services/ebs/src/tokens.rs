//! Tokens: of blocks, which tell that the caller has listed them, and of pages.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use time::{Duration, OffsetDateTime};

/// How long tokens of blocks are good ("ListSnapshotBlocks", EBS direct APIs: seven days).
const LIFETIME: Duration = Duration::days(7);

const MAC_BYTES: usize = 16;

/// Makes and checks tokens.
pub(crate) struct Tokens([u8; 32]);

impl Tokens {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// Until when the tokens are good that are made now.
    pub(crate) fn expiry(now: OffsetDateTime) -> OffsetDateTime {
        now + LIFETIME
    }

    /// The token of a block of a snapshot for an account.
    pub(crate) fn block(&self, account: &str, snapshot: &str, index: i32, expiry: OffsetDateTime) -> String {
        self.seal(expiry.unix_timestamp(), &[account, snapshot, &index.to_string()])
    }

    /// Whether a token is the block's, and still good.
    pub(crate) fn is_block(
        &self,
        token: &str,
        account: &str,
        snapshot: &str,
        index: i32,
        now: OffsetDateTime,
    ) -> bool {
        let opened = self.open(token, &[account, snapshot, &index.to_string()]);
        opened.is_some_and(|expiry| expiry >= now.unix_timestamp())
    }

    /// The token of the page that begins with a block.
    pub(crate) fn page(&self, request: &[&str], index: i32) -> String {
        self.seal(i64::from(index), request)
    }

    /// The block with which a page begins.
    pub(crate) fn page_start(&self, token: &str, request: &[&str]) -> Option<i32> {
        i32::try_from(self.open(token, request)?).ok()
    }

    fn seal(&self, number: i64, about: &[&str]) -> String {
        let number = number.to_be_bytes();
        let code = self.mac(number, about).finalize().into_bytes();
        STANDARD.encode([&number[..], &code[..MAC_BYTES]].concat())
    }

    fn open(&self, token: &str, about: &[&str]) -> Option<i64> {
        let token = STANDARD.decode(token).ok()?;
        let (number, code) = token.split_first_chunk::<8>()?;
        // In constant time.
        self.mac(*number, about).verify_truncated_left(code).ok()?;
        (code.len() == MAC_BYTES).then(|| i64::from_be_bytes(*number))
    }

    fn mac(&self, number: [u8; 8], about: &[&str]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of every length");
        mac.update(&number);
        for part in about {
            // Lengths keep the parts apart.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_block_until_it_expires() {
        let (tokens, now) = (Tokens::new([1; 32]), OffsetDateTime::UNIX_EPOCH);
        let expiry = Tokens::expiry(now);
        let token = tokens.block("a", "snap-1", 7, expiry);
        assert!(tokens.is_block(&token, "a", "snap-1", 7, now));
        assert!(!tokens.is_block(&token, "a", "snap-1", 8, now));
        assert!(!tokens.is_block(&token, "a", "snap-2", 7, now));
        assert!(!tokens.is_block(&token, "b", "snap-1", 7, now));
        assert!(!tokens.is_block(&token, "a", "snap-1", 7, expiry + Duration::SECOND));
        assert!(!Tokens::new([2; 32]).is_block(&token, "a", "snap-1", 7, now));
        for garbage in ["", "AAAA", "not base64!", &token[..token.len() - 4]] {
            assert!(!tokens.is_block(garbage, "a", "snap-1", 7, now), "{garbage}");
        }
        let page = tokens.page(&["snap-1"], 1_000);
        assert_eq!(tokens.page_start(&page, &["snap-1"]), Some(1_000));
        assert_eq!(tokens.page_start(&page, &["snap-2"]), None);
    }
}
