//! Pages of describe and list operations: `MaxResults` and `NextToken`.
//!
//! A page ends after an id, and the next one begins behind that id, so that records which come or go between two calls
//! shift nothing. The token that carries the id is authenticated, together with the caller, the operation and its
//! parameters, by a key of the installation: a token that was made up, altered, or taken from another request is refused.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use haar_api::Context;
use haar_store::{Store, StoreError};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::id::shorten;
use crate::{Fingerprint, Secret};

/// First byte of a token.
const VERSION: u8 = 1;

/// Bytes of the authentication code in a token (RFC 2104, section 5, allows half of the hash's length).
const MAC_BYTES: usize = 16;

/// Longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 4096;

/// Why a page is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// A token that was not given out for this request.
    #[error("Value ( {0} ) for parameter nextToken is invalid. The token is invalid.")]
    Token(String),
    /// Less results asked for than a page has.
    #[error("Value ( {0} ) for parameter maxResults is invalid. Expecting a value greater than {1}.")]
    TooFew(i32, i32),
    /// More results asked for than a page has.
    #[error("Value ( {0} ) for parameter maxResults is invalid. Expecting a value less than {1}.")]
    TooMany(i32, i32),
}

impl PageError {
    /// EC2's error code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "InvalidParameterValue"
    }
}

/// What a request says about its page.
#[derive(Clone)]
pub struct PageRequest<'a> {
    /// Of the parameters that select what is listed: all but `MaxResults` and `NextToken`. Taken where a token is read or made.
    pub parameters: &'a dyn Fn() -> Fingerprint,
    /// `MaxResults`.
    pub max_results: Option<i32>,
    /// `NextToken`.
    pub next_token: Option<&'a str>,
    /// What `MaxResults` may be, as `5..=1000`. Without `MaxResults`, everything is one page.
    pub limits: RangeInclusive<i32>,
}

/// Makes pages, and the tokens between them.
#[derive(Clone)]
pub struct Paginator {
    key: [u8; 32],
}

impl Paginator {
    /// With the key that is kept in the store.
    ///
    /// # Errors
    /// What the store gives.
    pub async fn load(store: &Store) -> Result<Self, StoreError> {
        Ok(Self { key: Secret::load(store, "pagination").await? })
    }

    /// The page that a request asks for.
    ///
    /// # Errors
    /// Every [`PageError`].
    pub fn page(&self, ctx: &Context, request: &PageRequest<'_>) -> Result<Page, PageError> {
        let (least, most) = (*request.limits.start(), *request.limits.end());
        let limit = match request.max_results {
            None => None,
            Some(n) if n < least => return Err(PageError::TooFew(n, least)),
            Some(n) if n > most => return Err(PageError::TooMany(n, most)),
            Some(n) => Some(usize::try_from(n).unwrap_or(0)),
        };
        if limit.is_none() && request.next_token.is_none() {
            return Ok(Page::WHOLE);
        }
        let mut mac = self.mac();
        for part in [&ctx.account, &ctx.region, ctx.service, ctx.operation] {
            // Lengths keep the parts apart.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.update((request.parameters)().bytes());
        let after = match request.next_token {
            None => None,
            Some(token) => {
                let opened = open(token, mac.clone());
                Some(opened.ok_or_else(|| PageError::Token(shorten(token).to_owned()))?)
            }
        };
        Ok(Page { after, limit: limit.map(|records| Limit { records, mac }) })
    }

    fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&self.key).expect("HMAC takes keys of every length")
    }
}

/// `VERSION id MAC` in base64url, where the MAC is over the request and the id.
fn seal(id: &str, mut mac: Hmac<Sha256>) -> String {
    mac.update(id.as_bytes());
    let mut token = Vec::with_capacity(1 + id.len() + MAC_BYTES);
    token.push(VERSION);
    token.extend_from_slice(id.as_bytes());
    token.extend_from_slice(&mac.finalize().into_bytes()[..MAC_BYTES]);
    URL_SAFE_NO_PAD.encode(token)
}

fn open(token: &str, mut mac: Hmac<Sha256>) -> Option<String> {
    if token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let token = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (version, rest) = token.split_first()?;
    let (id, code) = rest.split_at_checked(rest.len().checked_sub(MAC_BYTES)?)?;
    mac.update(id);
    // In constant time.
    mac.verify_truncated_left(code).ok()?;
    (*version == VERSION).then(|| String::from_utf8(id.to_vec()).ok())?
}

/// One page: which records are on it, and the token of the next one.
pub struct Page {
    after: Option<String>,
    limit: Option<Limit>,
}

/// Where a page ends.
struct Limit {
    records: usize,
    /// Begins the code of the next page's token.
    mac: Hmac<Sha256>,
}

impl Page {
    /// Everything that is listed: what a request with neither `MaxResults` nor `NextToken` asks for.
    const WHOLE: Page = Page { after: None, limit: None };

    /// The id behind which the page begins, if it is not the first.
    #[must_use]
    pub fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// Takes the page's records from all that are listed, and the next page's token if any are left.
    ///
    /// `records` must come sorted by id, bytewise, as the store lists them, and may come from the start or from
    /// [`Page::after`]. They are not read further than to the first record of the next page.
    pub fn take<T>(
        &self,
        records: impl IntoIterator<Item = T>,
        id: impl Fn(&T) -> &str,
    ) -> (Vec<T>, Option<String>) {
        let after = self.after.as_deref();
        let mut records =
            records.into_iter().skip_while(|record| after.is_some_and(|after| id(record) <= after));
        let Some(limit) = &self.limit else { return (records.collect(), None) };
        let page: Vec<T> = records.by_ref().take(limit.records).collect();
        let next = match page.last() {
            Some(last) if records.next().is_some() => Some(seal(id(last), limit.mac.clone())),
            _ => None,
        };
        (page, next)
    }
}

#[cfg(test)]
mod tests {
    use haar_store::Store;

    use super::*;

    fn paginator() -> Paginator {
        Paginator { key: [7; 32] }
    }

    fn context() -> Context {
        let mut ctx = Context::new("123456789012", "eu-central-1");
        (ctx.service, ctx.operation) = ("ec2", "DescribeVolumes");
        ctx
    }

    fn request(max_results: Option<i32>, next_token: Option<&str>) -> PageRequest<'_> {
        PageRequest { parameters: &|| Fingerprint::of(&["x"]), max_results, next_token, limits: 2..=1000 }
    }

    #[allow(clippy::ptr_arg)] // What an iterator over strings yields.
    fn own(id: &String) -> &str {
        id
    }

    fn ids(range: std::ops::Range<u32>) -> Vec<String> {
        range.map(|n| format!("vol-{n:04}")).collect()
    }

    #[test]
    fn pages_cover_everything_once() {
        let all = ids(0..25);
        for size in [2, 5, 24, 25, 26] {
            let (mut seen, mut token, mut calls) = (Vec::new(), None, 0);
            loop {
                let page = paginator().page(&context(), &request(Some(size), token.as_deref())).unwrap();
                let (records, next) = page.take(all.clone(), own);
                assert!(records.len() <= size as usize);
                seen.extend(records);
                calls += 1;
                token = next;
                if token.is_none() {
                    break;
                }
            }
            assert_eq!(seen, all);
            assert_eq!(calls, 25_usize.div_ceil(size as usize));
        }
        let (records, next) =
            paginator().page(&context(), &request(None, None)).unwrap().take(all.clone(), own);
        assert_eq!((records, next), (all, None));
    }

    #[test]
    fn pages_are_stable_when_records_come_and_go() {
        let (first, token) =
            paginator().page(&context(), &request(Some(5), None)).unwrap().take(ids(0..10), own);
        let page = paginator().page(&context(), &request(Some(5), token.as_deref())).unwrap();
        assert_eq!(page.after(), Some("vol-0004"));
        let mut now = ids(2..10);
        now.remove(2);
        now.insert(0, "vol-".into());
        let (second, none) = page.take(now, own);
        assert_eq!((first, second, none), (ids(0..5), ids(5..10), None));
    }

    #[test]
    fn foreign_and_forged_tokens_are_refused() {
        let (_, token) = paginator().page(&context(), &request(Some(5), None)).unwrap().take(ids(0..10), own);
        let token = token.unwrap();
        let with = |change: &dyn Fn(&mut Context, &mut PageRequest<'_>)| {
            let (mut ctx, mut request) = (context(), request(Some(7), Some(&token)));
            change(&mut ctx, &mut request);
            paginator().page(&ctx, &request).map(|page| page.after().map(str::to_owned))
        };
        assert_eq!(with(&|_, _| ()), Ok(Some("vol-0004".into())));
        assert!(with(&|ctx, _| ctx.account = "123456789013".into()).is_err());
        assert!(with(&|ctx, _| ctx.region = "us-east-1".into()).is_err());
        assert!(with(&|ctx, _| ctx.operation = "DescribeImages").is_err());
        assert!(with(&|ctx, _| (ctx.service, ctx.operation) = ("ec2D", "escribeVolumes")).is_err());
        assert!(with(&|_, request| request.parameters = &|| Fingerprint::of(&["y"])).is_err());
        let other = Paginator { key: [8; 32] };
        assert!(other.page(&context(), &request(None, Some(&token))).is_err());
        for position in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[position] = if forged[position] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert!(paginator().page(&context(), &request(None, Some(&forged))).is_err(), "{position}");
        }
        for text in ["", "A", "é", "%%%", &"A".repeat(30), &"A".repeat(1_000_000)] {
            let e = paginator().page(&context(), &request(None, Some(text))).err().unwrap();
            assert_eq!(e.code(), "InvalidParameterValue");
            assert!(e.to_string().len() < 1000);
        }
    }

    #[test]
    fn max_results_is_checked() {
        let page = |n| paginator().page(&context(), &request(Some(n), None)).map(|_| ());
        assert_eq!(page(1), Err(PageError::TooFew(1, 2)));
        assert_eq!(page(i32::MIN), Err(PageError::TooFew(i32::MIN, 2)));
        assert_eq!(page(1001), Err(PageError::TooMany(1001, 1000)));
        assert_eq!(page(1000), Ok(()));
        assert_eq!(
            page(1).unwrap_err().to_string(),
            "Value ( 1 ) for parameter maxResults is invalid. Expecting a value greater than 2."
        );
    }

    #[tokio::test]
    async fn the_key_is_made_once() {
        let store = Store::builder().register::<Secret>().in_memory().await.unwrap();
        let first = Paginator::load(&store).await.unwrap();
        let second = Paginator::load(&store).await.unwrap();
        assert_eq!(first.key, second.key);
        assert_ne!(first.key, [0; 32]);
        let other = Store::builder().register::<Secret>().in_memory().await.unwrap();
        assert_ne!(Paginator::load(&other).await.unwrap().key, first.key);
    }
}
