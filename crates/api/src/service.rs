//! Services: what the endpoint calls with decoded input.

use std::future::Future;
use std::pin::Pin;

use http::{HeaderMap, HeaderValue, StatusCode};

use crate::body::Rope;
use crate::note::Noted;
use crate::schema::ServiceModel;
use crate::value::{FromValue, Value};
use crate::{Context, Error};

/// The future of an operation's answer.
pub type Reply<'a> = Pin<Box<dyn Future<Output = Result<Answer, Error>> + Send + 'a>>;

/// A service: its tables, and the way to its handlers. Generated from the API model.
pub trait Service: Send + Sync + 'static {
    /// The service's names, protocol and operations.
    fn model(&self) -> &'static ServiceModel;

    /// Calls the handler of `model().operations[operation]` with input decoded and checked by that operation's table.
    fn call<'a>(&'a self, operation: usize, ctx: &'a Context, input: Value) -> Reply<'a>;
}

/// A success, encoded.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// Headers that belong to the operation's output.
    pub headers: HeaderMap,
    /// The type of the body.
    pub content_type: HeaderValue,
    /// The body.
    pub body: Rope,
    /// What was answered as CloudTrail would have it, without secrets, where the context asks for it.
    pub noted: Option<Noted>,
}

/// What generated code answers to an index beyond its table, which no endpoint asks for.
pub fn no_such_operation<'a>() -> Reply<'a> {
    Box::pin(async { Err(Error::internal("The operation has no handler.")) })
}

/// The input as the handler's type.
pub(crate) fn input<T: FromValue>(value: Value) -> Result<T, Error> {
    T::from_value(value).ok_or_else(|| Error::internal("The decoded request does not fit its type."))
}
