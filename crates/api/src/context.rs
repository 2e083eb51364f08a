//! What a handler knows about a request besides its parameters.

use std::net::{IpAddr, Ipv4Addr};

use time::OffsetDateTime;

use crate::Error;

/// Who signed a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The twelve-digit account.
    pub account: String,
    /// The principal's ARN, such as `arn:aws:iam::123456789012:root`.
    pub arn: String,
    /// The principal's unique id; the account for its root.
    pub user_id: String,
    /// The key that signed the request.
    pub access_key_id: String,
}

impl Principal {
    /// The root of an account, with one of its access keys.
    pub fn root(account: impl Into<String>, access_key_id: impl Into<String>) -> Self {
        let account = account.into();
        Principal {
            arn: format!("arn:aws:iam::{account}:root"),
            user_id: account.clone(),
            account,
            access_key_id: access_key_id.into(),
        }
    }

    /// Whether this is the root of its account.
    pub fn is_root(&self) -> bool {
        self.user_id == self.account
    }
}

/// What a handler knows about a request besides its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    /// The id of the request, a UUID, as the answer carries it.
    pub request_id: String,
    /// The service's name in IAM actions, such as `ec2`.
    pub service: &'static str,
    /// The operation's name, such as `RunInstances`.
    pub operation: &'static str,
    /// The twelve-digit account that the request acts in.
    pub account: String,
    /// The region that the request's signature names.
    pub region: String,
    /// Who signed the request.
    pub principal: Principal,
    /// The request asks whether it would succeed; nothing may be committed.
    pub dry_run: bool,
    /// When the request arrived.
    pub now: OffsetDateTime,
    /// Where the request came from.
    pub source_ip: IpAddr,
    /// The client's `User-Agent`.
    pub user_agent: Option<String>,
    /// The value of the operation's idempotency token (`ClientToken`, `clientToken`, …), when the request has one.
    pub client_token: Option<String>,
    /// SHA-256 of the decoded parameters without the idempotency token and `DryRun`; all zero without a token.
    pub fingerprint: [u8; 32],
}

impl Context {
    /// A context of the account's root, now, from the loopback address: for calls from inside haar and for tests.
    pub fn new(account: impl Into<String>, region: impl Into<String>) -> Self {
        let account = account.into();
        Context {
            request_id: crate::request_id(),
            service: "",
            operation: "",
            principal: Principal::root(account.clone(), ""),
            account,
            region: region.into(),
            dry_run: false,
            now: OffsetDateTime::now_utc(),
            source_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            user_agent: None,
            client_token: None,
            fingerprint: [0; 32],
        }
    }
}

/// Decides whether a principal may do what a request asks.
///
/// Called once a request, after its signature and its parameters were found good, before its handler.
pub trait Authorizer: Send + Sync + 'static {
    /// Allows `action` (such as `ec2:RunInstances`), or refuses it with the error to answer.
    ///
    /// # Errors
    /// The error that the client gets, such as `UnauthorizedOperation`.
    fn authorize(&self, ctx: &Context, action: &str) -> Result<(), Error>;
}
