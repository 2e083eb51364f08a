//! Errors.

use std::io;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification cannot be carried out.
    #[error("{0}")]
    Invalid(String),
    /// A tool is not installed.
    #[error("{0} is not installed")]
    ToolMissing(&'static str),
    /// A tool refused.
    #[error("{tool} failed: {stderr}")]
    Tool {
        /// `ip`, `nft` or `tc`.
        tool: &'static str,
        /// What it said.
        stderr: String,
    },
    /// A namespace does not exist.
    #[error("the network of {0} does not exist")]
    NoNamespace(String),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
