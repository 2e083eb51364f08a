//! What the unit tests of this crate share.

use haar_api::Context;
use haar_store::{Store, Tx};

use crate::Scope;
use crate::error::Result;

/// Where the tests act.
pub const SCOPE: Scope<'static> = Scope { account: "123456789012", region: "eu-central-1" };

/// An empty store in memory.
pub async fn store() -> Store {
    haar_records::ec2::register(haar_core::register(Store::builder())).in_memory().await.unwrap()
}

/// A request to [`SCOPE`].
pub fn context() -> Context {
    Context::new(SCOPE.account, SCOPE.region)
}

/// Commits what `body` writes.
pub async fn write<R>(store: &Store, body: impl FnMut(&mut Tx) -> Result<R>) -> Result<R> {
    haar_core::transact(store, &context(), body).await
}
