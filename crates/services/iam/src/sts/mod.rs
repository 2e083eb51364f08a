//! AWS STS.

mod assume_role;
mod federation;
mod jwt;
mod keys;
mod mfa;
mod oidc;
mod web_identity;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use haar_api::{Context, Error, Session};
use haar_policy::{MalformedPolicy, Policy, PolicyKind, length_without_white_space};
use haar_store::{Snapshot, Store};

use crate::caller::{Documents, managed_document, policy_arn};
use crate::keyring::{Keyring, Temporary, pack};

/// The STS API: the types of its requests and answers, its table and the [`Sts`] trait, generated from the model
/// for the operations of `sts.toml`.
pub mod model {
    haar_api::include_model!("sts.rs");
}

pub(crate) use oidc::is_loopback;
pub(crate) use web_identity::provider_id;

use model::*;

/// Most characters of all session policies together (IAM User Guide, "IAM and AWS STS quotas").
const MAX_POLICY: usize = 2048;

/// Most managed session policies.
const MAX_POLICY_ARNS: usize = 10;

/// Bytes that session policies and tags may take, packed.
const MAX_PACKED: usize = 4096;

/// The handlers of STS.
pub struct Handlers {
    store: Store,
    keyring: Keyring,
    documents: Arc<Documents>,
    issuers: oidc::Issuers,
}

impl Handlers {
    /// Handlers over the records and keys of an installation.
    #[must_use]
    pub fn new(store: Store, keyring: Keyring, documents: Arc<Documents>) -> Self {
        Self { store, keyring, documents, issuers: oidc::Issuers::default() }
    }
}

impl model::Sts for Handlers {
    /// `AssumeRole`.
    async fn assume_role(
        &self,
        ctx: &Context,
        input: AssumeRoleRequest,
    ) -> Result<AssumeRoleResponse, Error> {
        assume_role::assume_role(self, ctx, input).await
    }

    /// `AssumeRoleWithWebIdentity`.
    async fn assume_role_with_web_identity(
        &self,
        ctx: &Context,
        input: AssumeRoleWithWebIdentityRequest,
    ) -> Result<AssumeRoleWithWebIdentityResponse, Error> {
        web_identity::assume_role_with_web_identity(self, ctx, input).await
    }

    /// `DecodeAuthorizationMessage`: what [`haar_access`] has sealed for a principal of this account.
    async fn decode_authorization_message(
        &self,
        ctx: &Context,
        input: DecodeAuthorizationMessageRequest,
    ) -> Result<DecodeAuthorizationMessageResponse, Error> {
        let decoded = self.keyring.open_message(&ctx.account, &input.encoded_message);
        let invalid = || errors::invalid_authorization_message_exception("The encoded message is not valid.");
        Ok(DecodeAuthorizationMessageResponse { decoded_message: Some(decoded.ok_or_else(invalid)?) })
    }

    /// `GetAccessKeyInfo`.
    async fn get_access_key_info(
        &self,
        _: &Context,
        input: GetAccessKeyInfoRequest,
    ) -> Result<GetAccessKeyInfoResponse, Error> {
        federation::get_access_key_info(self, &input)
    }

    /// `GetCallerIdentity`.
    async fn get_caller_identity(
        &self,
        ctx: &Context,
        _: GetCallerIdentityRequest,
    ) -> Result<GetCallerIdentityResponse, Error> {
        Ok(GetCallerIdentityResponse {
            user_id: Some(ctx.principal.user_id.clone()),
            account: Some(ctx.principal.account.clone()),
            arn: Some(ctx.principal.arn.clone()),
        })
    }

    /// `GetFederationToken`.
    async fn get_federation_token(
        &self,
        ctx: &Context,
        input: GetFederationTokenRequest,
    ) -> Result<GetFederationTokenResponse, Error> {
        federation::get_federation_token(self, ctx, input)
    }

    /// `GetSessionToken`.
    async fn get_session_token(
        &self,
        ctx: &Context,
        input: GetSessionTokenRequest,
    ) -> Result<GetSessionTokenResponse, Error> {
        federation::get_session_token(self, ctx, &input).await
    }
}

fn denied(message: impl Into<String>) -> Error {
    Error::new("AccessDenied", message).with_status(403)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new("ValidationError", message)
}

fn malformed(error: &MalformedPolicy) -> Error {
    Error::new("MalformedPolicyDocument", error.message())
}

/// Puts session policies into a session, checked. `account` is that of the role or user.
fn add_policies(
    session: &mut Session,
    snapshot: &Snapshot,
    account: &str,
    policy: Option<String>,
    arns: Vec<PolicyDescriptorType>,
) -> Result<(), Error> {
    if arns.len() > MAX_POLICY_ARNS {
        let message = format!("The number of policy ARNs exceeds the limit of {MAX_POLICY_ARNS}.");
        return Err(invalid(message));
    }
    for descriptor in arns {
        let arn = descriptor.arn.ok_or_else(|| invalid("The member arn of PolicyArns is required."))?;
        let is_own = policy_arn(&arn).is_some_and(|(owner, _)| owner == account || owner == "aws");
        if !is_own || managed_document(snapshot, &arn).is_none() {
            let message = format!("The policy {arn} in PolicyArns does not exist in the account.");
            return Err(Error::new("InvalidParameterValue", message));
        }
        if session.policy_arns.contains(&arn) {
            return Err(Error::new(
                "InvalidParameterValue",
                format!("PolicyArns names {arn} more than once."),
            ));
        }
        session.policy_arns.push(arn);
    }
    let Some(document) = policy else { return Ok(()) };
    if length_without_white_space(&document) > MAX_POLICY {
        let message = format!("Member must have length less than or equal to {MAX_POLICY}");
        return Err(invalid(format!(
            "1 validation error detected: Value at 'policy' failed to satisfy constraint: {message}"
        )));
    }
    Policy::parse(&document, PolicyKind::Inline).map_err(|error| malformed(&error))?;
    session.policies.push(document);
    Ok(())
}

/// The tags of a request, whose keys differ in more than case.
fn read_tags(tags: Vec<Tag>) -> Result<BTreeMap<String, String>, Error> {
    let (mut read, mut keys) = (BTreeMap::new(), BTreeSet::new());
    for Tag { key, value } in tags {
        if key.to_lowercase().starts_with("aws:") {
            return Err(invalid(format!("The tag key {key} begins with the reserved prefix aws:.")));
        }
        if !keys.insert(key.to_lowercase()) {
            let message = "Duplicate tag keys found. Please note that Tag keys are case insensitive.";
            return Err(Error::new("InvalidParameterValue", message));
        }
        read.insert(key, value);
    }
    Ok(read)
}

/// How much of the room for session policies and tags is taken, in percent; none if there are none.
///
/// # Errors
/// `PackedPolicyTooLarge`.
fn packed_size(session: &Session) -> Result<Option<i32>, Error> {
    if session.policies.is_empty() && session.policy_arns.is_empty() && session.tags.is_empty() {
        return Ok(None);
    }
    let parts = (&session.policies, &session.policy_arns, &session.tags, &session.transitive_tag_keys);
    let text = serde_json::to_vec(&parts).map_err(|_| Error::internal("A session cannot be written."))?;
    let percent = (pack(&text).len() * 100).div_ceil(MAX_PACKED);
    if percent > 100 {
        let message =
            format!("Packed policy consumes {percent}% of allotted space, please use smaller policy.");
        return Err(Error::new("PackedPolicyTooLarge", message));
    }
    Ok(i32::try_from(percent).ok())
}

fn credentials(made: &Temporary) -> Option<Credentials> {
    let session = made.principal.session.as_ref()?;
    Some(Credentials {
        access_key_id: Some(made.access_key_id.clone()),
        secret_access_key: Some(made.secret.clone()),
        session_token: Some(made.session_token.clone()),
        expiration: Some(session.expires),
    })
}

fn assumed_role_user(made: &Temporary) -> Option<AssumedRoleUser> {
    Some(AssumedRoleUser {
        assumed_role_id: Some(made.principal.user_id.clone()),
        arn: Some(made.principal.arn.clone()),
    })
}

/// What answers when who is to hold the credentials went away meanwhile.
fn gone() -> Error {
    Error::new("InvalidClientTokenId", "The security token included in the request is invalid.")
        .with_status(403)
}
