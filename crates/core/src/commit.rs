use haar_api::{Context, Error};
use haar_store::{Builder, Store, StoreError, Tx};

use crate::{ClientToken, FilterError, IdError, PageError, Secret, TagError, TokenError};

/// Adds the record types of this crate to a store.
#[must_use]
pub fn register(builder: Builder) -> Builder {
    builder.register::<ClientToken>().register::<Secret>()
}

/// Commits what `body` writes, for a request; with `DryRun`, answers so instead, if `body` succeeds.
///
/// `body` may run several times and must have no effect outside of the transaction ([`Store::transact`]).
///
/// # Errors
/// What `body` gives; [`Error::dry_run`]; what [`store_error`] makes of the store's errors.
pub async fn transact<R, F>(store: &Store, ctx: &Context, mut body: F) -> Result<R, Error>
where
    F: FnMut(&mut Tx) -> Result<R, Error>,
{
    enum Stop {
        Api(Error),
        Store(StoreError),
    }

    impl From<StoreError> for Stop {
        fn from(e: StoreError) -> Self {
            Self::Store(e)
        }
    }

    let committed = store.transact(|tx| match body(tx) {
        Ok(_) if ctx.dry_run => Err(Stop::Api(Error::dry_run())),
        result => result.map_err(Stop::Api),
    });
    committed.await.map_err(|stop| match stop {
        Stop::Api(e) => e,
        Stop::Store(e) => store_error(&e),
    })
}

/// The answer to a request that the store failed: `Unavailable` (503) when it may be sent again as it is, `InternalError`
/// (500) otherwise. The cause goes to the log.
#[must_use]
pub fn store_error(e: &StoreError) -> Error {
    tracing::error!(error = %e, "the store failed a request");
    if e.is_transient() {
        Error::new("Unavailable", "The server is overloaded and can't handle the request.").with_status(503)
    } else if matches!(e, StoreError::Full(_)) {
        Error::internal("An internal error has occurred: no space is left for the state.")
    } else {
        Error::internal("An internal error has occurred.")
    }
}

macro_rules! api_error {
    ($($error:ty => |$e:ident| $code:expr),+ $(,)?) => {
        $(impl From<$error> for Error {
            fn from($e: $error) -> Self {
                Self::new($code, $e.to_string())
            }
        })+
    };
}

api_error! {
    IdError => |e| e.code,
    TagError => |e| e.code(),
    FilterError => |e| e.code(),
    PageError => |e| e.code(),
    TokenError => |e| e.code(),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IdType;

    async fn store() -> Store {
        register(Store::builder()).in_memory().await.unwrap()
    }

    #[tokio::test]
    async fn a_dry_run_commits_nothing() {
        let store = store().await;
        let mut ctx = Context::new("123456789012", "eu-central-1");
        ctx.client_token = Some("t".into());
        let run = |ctx: Context| {
            let store = store.clone();
            async move { transact(&store, &ctx, |tx| crate::idempotent(tx, &ctx, |_| Ok(1))).await }
        };
        let mut dry = ctx.clone();
        dry.dry_run = true;
        assert!(run(dry).await.unwrap_err().is_dry_run());
        assert_eq!(store.snapshot().count::<ClientToken>(), 0);
        assert_eq!(run(ctx).await, Ok(1));
        assert_eq!(store.snapshot().count::<ClientToken>(), 1);
    }

    #[tokio::test]
    async fn a_dry_run_shows_what_would_fail() {
        let mut ctx = Context::new("123456789012", "eu-central-1");
        ctx.dry_run = true;
        let id = IdType::new("i", "instance ID", "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound");
        let failed = transact::<(), _>(&store().await, &ctx, |_| Ok(id.check("x")?)).await.unwrap_err();
        assert_eq!((&*failed.code, failed.status.as_u16()), ("InvalidInstanceID.Malformed", 400));
    }

    #[tokio::test]
    async fn a_failing_store_is_not_the_clients_fault() {
        let ctx = Context::new("123456789012", "eu-central-1");
        let store = store().await;
        store.close().await;
        let mut with_token = ctx.clone();
        with_token.client_token = Some("t".into());
        let failed =
            transact(&store, &ctx, |tx| crate::idempotent(tx, &with_token, |_| Ok(1))).await.unwrap_err();
        assert_eq!((&*failed.code, failed.status.as_u16()), ("Unavailable", 503));
        let full = store_error(&StoreError::Full("disk full".into()));
        assert_eq!((&*full.code, full.status.as_u16()), ("InternalError", 500));
    }
}
