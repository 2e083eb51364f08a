//! Errors as AWS answers them.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;

/// An error of the API: a code that clients match on, a message for people, and an HTTP status.
///
/// How it is written depends on the service's protocol; the code is the same in all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    /// The error code, such as `InvalidInstanceID.NotFound`.
    pub code: Cow<'static, str>,
    /// What went wrong, for people.
    pub message: String,
    /// The HTTP status of the answer.
    pub status: StatusCode,
    /// Further members of the error's shape, for the JSON protocols.
    pub members: Vec<(&'static str, serde_json::Value)>,
}

/// The code of the error that stands for a request that would have succeeded without `DryRun`.
const DRY_RUN: &str = "DryRunOperation";

impl Error {
    /// An error that is the caller's fault: status 400.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Error {
            code: code.into(),
            message: message.into(),
            status: StatusCode::BAD_REQUEST,
            members: Vec::new(),
        }
    }

    /// The same error with another HTTP status; a number that is no status becomes 500.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self
    }

    /// The same error with a further member of its shape.
    #[must_use]
    pub fn with_member(mut self, name: &'static str, value: impl Into<serde_json::Value>) -> Self {
        self.members.push((name, value.into()));
        self
    }

    /// `InternalError`, status 500: haar's own failure, whose cause belongs into the log.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new("InternalError", message).with_status(500)
    }

    /// The answer to a request with `DryRun` that would have succeeded: status 412.
    pub fn dry_run() -> Self {
        Error::new(DRY_RUN, "Request would have succeeded, but DryRun flag is set.").with_status(412)
    }

    /// Whether this is [`Error::dry_run`].
    pub fn is_dry_run(&self) -> bool {
        self.code == DRY_RUN
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Error {}
