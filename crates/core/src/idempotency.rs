//! Client tokens (EC2 API Reference, "Ensuring idempotency in Amazon EC2 API requests").
//!
//! What a request with a `ClientToken` made is recorded in the transaction that makes it. The same request with the same
//! token gets the same result for a day, and makes nothing; another request with that token is refused.

use std::time::Duration;

use haar_api::Context;
use haar_store::{Key, Resource, Store, StoreError, Tx};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// How long a token is remembered.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Most characters of a token, which must be ASCII.
pub const MAX_TOKEN_CHARS: usize = 64;

/// How many tokens are forgotten in one transaction.
const SWEEP: usize = 500;

/// A client token that was used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientToken {
    account: String,
    region: String,
    /// `service:operation/SHA-256 of the token`.
    id: String,
    fingerprint: String,
    result: serde_json::Value,
    #[serde(with = "time::serde::timestamp")]
    expires: OffsetDateTime,
}

impl Resource for ClientToken {
    const KIND: &'static str = "core.client-token";
    fn account(&self) -> &str {
        &self.account
    }
    fn region(&self) -> &str {
        &self.region
    }
    fn id(&self) -> &str {
        &self.id
    }
}

/// Why a client token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The token came with another request before.
    #[error(
        "Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."
    )]
    Mismatch,
    /// The token is too long or not ASCII.
    #[error("Client token must be no longer than {MAX_TOKEN_CHARS} ASCII characters.")]
    Invalid,
}

impl TokenError {
    /// EC2's error code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Mismatch => "IdempotentParameterMismatch",
            Self::Invalid => "InvalidParameterValue",
        }
    }
}

/// Runs `create`, unless the same request with the same token did so before: then gives what that gave. Without a token
/// (or with an empty one), every request makes something new.
///
/// `R` should be the ids of what was made and not its state, which has gone on since.
///
/// # Errors
/// What `create` gives; every [`TokenError`], converted.
///
/// # Panics
/// When what `create` gave has no JSON form, which is a mistake in the program.
pub fn idempotent<R, E>(
    tx: &mut Tx,
    ctx: &Context,
    create: impl FnOnce(&mut Tx) -> Result<R, E>,
) -> Result<R, E>
where
    R: Serialize + DeserializeOwned,
    E: From<TokenError>,
{
    let Some(token) = ctx.client_token.as_deref().filter(|token| !token.is_empty()) else {
        return create(tx);
    };
    if token.len() > MAX_TOKEN_CHARS || !token.is_ascii() {
        return Err(TokenError::Invalid.into());
    }
    let id = format!("{}:{}/{}", ctx.service, ctx.operation, hex::encode(Sha256::digest(token)));
    let fingerprint = hex::encode(ctx.fingerprint);
    if let Some(used) = tx.get::<ClientToken>(&ctx.account, &ctx.region, &id)
        && used.expires > ctx.now
    {
        if used.fingerprint != fingerprint {
            return Err(TokenError::Mismatch.into());
        }
        // A result that an older version recorded in another shape cannot be given again; nor may it be made again.
        return R::deserialize(&used.result).map_err(|_| TokenError::Mismatch.into());
    }
    let result = create(tx)?;
    tx.put(ClientToken {
        account: ctx.account.clone(),
        region: ctx.region.clone(),
        id,
        fingerprint,
        result: serde_json::to_value(&result).expect("ids have a JSON form"),
        expires: ctx.now + TOKEN_LIFETIME,
    });
    Ok(result)
}

/// Forgets the tokens that have expired by `now`, and says how many these were.
///
/// # Errors
/// What the store gives.
pub async fn forget_expired(store: &Store, now: OffsetDateTime) -> Result<usize, StoreError> {
    let mut forgotten = 0;
    let expired: Vec<Key> = store
        .snapshot()
        .list_all::<ClientToken>()
        .filter(|token| token.expires <= now)
        .map(|token| Key::of(&*token.value))
        .collect::<Result<_, _>>()?;
    for keys in expired.chunks(SWEEP) {
        forgotten += store
            .transact(|tx| {
                let mut count = 0;
                for key in keys {
                    // It may have been used again meanwhile.
                    if tx.get_key::<ClientToken>(key).is_some_and(|token| token.expires <= now) {
                        tx.delete_key::<ClientToken>(key);
                        count += 1;
                    }
                }
                Ok::<_, StoreError>(count)
            })
            .await?;
    }
    Ok(forgotten)
}

/// Forgets expired tokens every hour, for as long as the store is open.
pub async fn sweep(store: Store) {
    let mut hours = tokio::time::interval(Duration::from_secs(60 * 60));
    loop {
        hours.tick().await;
        match forget_expired(&store, OffsetDateTime::now_utc()).await {
            Err(StoreError::Closed) => return,
            Err(e) => tracing::warn!(error = %e, "expired client tokens could not be removed"),
            Ok(count) => tracing::debug!(count, "removed expired client tokens"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Error {
        #[error(transparent)]
        Token(#[from] TokenError),
        #[error(transparent)]
        Store(#[from] StoreError),
        #[error("refused")]
        Refused,
    }

    async fn store() -> Store {
        Store::builder().register::<ClientToken>().in_memory().await.unwrap()
    }

    async fn run(
        store: &Store,
        token: Option<&str>,
        parameters: &str,
        made: &str,
    ) -> Result<Vec<String>, Error> {
        let ctx = context(token, parameters);
        store.transact(|tx| idempotent(tx, &ctx, |_| Ok(vec![made.to_owned()]))).await
    }

    fn context(token: Option<&str>, parameters: &str) -> Context {
        let mut ctx = Context::new("123456789012", "eu-central-1");
        (ctx.service, ctx.operation) = ("ec2", "RunInstances");
        ctx.client_token = token.map(str::to_owned);
        ctx.fingerprint = Sha256::digest(parameters).into();
        ctx
    }

    #[tokio::test]
    async fn the_same_request_gets_the_same_result() {
        let store = store().await;
        assert_eq!(run(&store, Some("t"), "p", "i-1").await.unwrap(), ["i-1"]);
        assert_eq!(run(&store, Some("t"), "p", "i-2").await.unwrap(), ["i-1"]);
        assert_eq!(run(&store, Some("T"), "p", "i-3").await.unwrap(), ["i-3"]);
        assert_eq!(run(&store, None, "p", "i-4").await.unwrap(), ["i-4"]);
        assert_eq!(run(&store, Some(""), "p", "i-5").await.unwrap(), ["i-5"]);
        assert_eq!(run(&store, Some(""), "p", "i-6").await.unwrap(), ["i-6"]);
        assert!(matches!(run(&store, Some("t"), "q", "i-7").await, Err(Error::Token(TokenError::Mismatch))));
        assert_eq!(store.snapshot().count::<ClientToken>(), 2);
    }

    #[tokio::test]
    async fn concurrent_requests_make_one_thing() {
        let store = store().await;
        let names: Vec<String> = (0..20).map(|n| format!("i-{n}")).collect();
        let mut calls = tokio::task::JoinSet::new();
        for name in names {
            let store = store.clone();
            calls.spawn(async move { run(&store, Some("t"), "p", &name).await.unwrap() });
        }
        let results = calls.join_all().await;
        assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
    }

    #[tokio::test]
    async fn a_failed_request_leaves_the_token_unused() {
        let store = store().await;
        let ctx = context(Some("t"), "p");
        let failed =
            store.transact(|tx| idempotent::<Vec<String>, _>(tx, &ctx, |_| Err(Error::Refused))).await;
        assert!(matches!(failed, Err(Error::Refused)));
        assert_eq!(run(&store, Some("t"), "q", "i-1").await.unwrap(), ["i-1"]);
    }

    #[tokio::test]
    async fn tokens_are_checked_and_expire() {
        let store = store().await;
        let long = "x".repeat(64);
        assert!(run(&store, Some(&long), "p", "i-0").await.is_ok());
        for token in [format!("{long}x"), "é".into()] {
            assert!(matches!(
                run(&store, Some(&token), "p", "i-1").await,
                Err(Error::Token(TokenError::Invalid))
            ));
        }
        let now = OffsetDateTime::now_utc();
        assert_eq!(forget_expired(&store, now).await.unwrap(), 0);
        assert_eq!(forget_expired(&store, now + TOKEN_LIFETIME + Duration::from_secs(5)).await.unwrap(), 1);
        assert_eq!(run(&store, Some(&long), "q", "i-2").await.unwrap(), ["i-2"]);
    }
}
