//! What a handler knows about a request besides its parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::Error;
use crate::schema::{Operation, ServiceModel};
use crate::value::Value;

/// Who signed a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The twelve-digit account; empty for [`PrincipalKind::Anonymous`].
    pub account: String,
    /// The principal's ARN, such as `arn:aws:iam::123456789012:root`; of a session, `arn:aws:sts::…:assumed-role/…` or
    /// `…:federated-user/…`.
    pub arn: String,
    /// The principal's unique id; the account for its root, `AIDA…` of a user, `AROA…:session` of a role's session,
    /// `account:name` of a federated user.
    pub user_id: String,
    /// The key that signed the request.
    pub access_key_id: String,
    /// What it is.
    pub kind: PrincipalKind,
    /// What its temporary credentials say; none for a long-term key.
    pub session: Option<Arc<Session>>,
}

/// The kinds of [`Principal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrincipalKind {
    /// The root of an account.
    Root,
    /// An IAM user, with a key of its own or that of GetSessionToken.
    User {
        /// Its name, without path.
        name: String,
    },
    /// A session of a role.
    AssumedRole {
        /// The role's name, without path.
        role_name: String,
        /// The role's unique id.
        role_id: String,
        /// The role's ARN in IAM, with its path.
        role_arn: String,
        /// The session's name.
        session_name: String,
    },
    /// A session of GetFederationToken.
    FederatedUser {
        /// ARN of the IAM user, or of the account's root, that asked for it.
        source_arn: String,
        /// Unique id of that user, or the account of that root.
        source_id: String,
        /// The name that was asked for.
        name: String,
    },
    /// Nobody: an operation that needs no signature.
    Anonymous,
}

/// What temporary credentials say besides who has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Which operation gave the credentials.
    pub origin: SessionOrigin,
    /// When they were given.
    #[serde(with = "time::serde::timestamp")]
    pub issued: OffsetDateTime,
    /// When they end.
    #[serde(with = "time::serde::timestamp")]
    pub expires: OffsetDateTime,
    /// Documents of inline session policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// ARNs of managed session policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy_arns: Vec<String>,
    /// Session tags, inherited ones included.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Keys of those tags that the next session of the chain inherits.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub transitive_tag_keys: BTreeSet<String>,
    /// `SourceIdentity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_identity: Option<String>,
    /// Whether a second factor was shown.
    #[serde(default, skip_serializing_if = "is_false")]
    pub mfa: bool,
    /// ARN of the identity provider that vouched for the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federated_provider: Option<String>,
    /// Further condition keys of the session with their values, such as those of a web identity's token.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, Vec<String>>,
}

impl Session {
    /// A session from `issued` on for this long, with nothing in it. Its times are whole seconds, as tokens have them.
    #[must_use]
    pub fn new(origin: SessionOrigin, issued: OffsetDateTime, life: time::Duration) -> Self {
        let issued = issued.replace_nanosecond(0).unwrap_or(issued);
        Self {
            origin,
            issued,
            expires: issued + life,
            policies: Vec::new(),
            policy_arns: Vec::new(),
            tags: BTreeMap::new(),
            transitive_tag_keys: BTreeSet::new(),
            source_identity: None,
            mfa: false,
            federated_provider: None,
            keys: BTreeMap::new(),
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the form that serde calls
fn is_false(value: &bool) -> bool {
    !value
}

/// Which operation gave temporary credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionOrigin {
    /// `AssumeRole`, also on a service's behalf.
    AssumeRole,
    /// `AssumeRoleWithWebIdentity`.
    AssumeRoleWithWebIdentity,
    /// `GetSessionToken`.
    GetSessionToken,
    /// `GetFederationToken`.
    GetFederationToken,
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
            kind: PrincipalKind::Root,
            session: None,
        }
    }

    /// Who has not signed a request.
    pub fn anonymous() -> Self {
        Principal {
            account: String::new(),
            arn: String::new(),
            user_id: String::new(),
            access_key_id: String::new(),
            kind: PrincipalKind::Anonymous,
            session: None,
        }
    }

    /// Whether this is the root of its account.
    pub fn is_root(&self) -> bool {
        self.kind == PrincipalKind::Root
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
    /// What is answered is noted down: the answer has to come with [`Answer::noted`](crate::Answer::noted).
    pub noted: bool,
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
            noted: false,
        }
    }
}

/// Decides whether a principal may do what a request asks.
///
/// Called once a request, after its signature and its parameters were found good, before its handler.
pub trait Authorizer: Send + Sync + 'static {
    /// Allows an operation of a service with this input, or refuses it with the error to answer. The operation declares the
    /// permissions that it asks for ([`Operation::permissions`]).
    ///
    /// Where the input may mean something else by the time that it is carried out, gives the one that means what was allowed, which
    /// the handler gets instead.
    ///
    /// # Errors
    /// The error that the client gets, such as `UnauthorizedOperation`.
    fn authorize(
        &self,
        ctx: &Context,
        service: &'static ServiceModel,
        operation: &'static Operation,
        input: &Value,
    ) -> Result<Option<Value>, Error>;
}
