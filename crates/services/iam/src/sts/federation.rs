//! `GetSessionToken`, `GetFederationToken`, `GetAccessKeyInfo` (STS API Reference).

use haar_api::{Context, Error, PrincipalKind, Session, SessionOrigin};
use haar_records::GLOBAL_ACCOUNT;
use haar_records::iam::{AccessKey, Account, REGION};
use time::Duration;

use super::model::*;
use super::{Handlers, add_policies, credentials, denied, gone, invalid, mfa, packed_size, read_tags};
use crate::keyring::{Holder, account_of_key_id};

/// The length of these sessions where it is not said: twelve hours.
const DEFAULT_DURATION: i32 = 43_200;

/// Longest session of an account's root.
const MAX_ROOT_DURATION: i32 = 3600;

/// Who asks with a long-term key, and the length of the session.
fn holder(ctx: &Context, operation: &str, asked: Option<i32>) -> Result<(Option<String>, i64), Error> {
    let principal = &ctx.principal;
    if principal.session.is_some() {
        return Err(denied(format!("Cannot call {operation} with session credentials")));
    }
    let seconds = asked.unwrap_or(DEFAULT_DURATION);
    match &principal.kind {
        PrincipalKind::User { .. } => Ok((Some(principal.user_id.clone()), seconds.into())),
        // "If the duration is longer than one hour, the session for AWS account owners defaults to one hour."
        _ => Ok((None, seconds.min(MAX_ROOT_DURATION).into())),
    }
}

pub(super) async fn get_session_token(
    handlers: &Handlers,
    ctx: &Context,
    input: &GetSessionTokenRequest,
) -> Result<GetSessionTokenResponse, Error> {
    let (user, seconds) = holder(ctx, "GetSessionToken", input.duration_seconds)?;
    let holder = user.map_or(Holder::Root, |user_id| Holder::User { user_id });
    let mut session = Session::new(SessionOrigin::GetSessionToken, ctx.now, Duration::seconds(seconds));
    session.mfa =
        mfa::shown(handlers, ctx, input.serial_number.as_deref(), input.token_code.as_deref()).await?;
    let made = handlers.keyring.issue(&handlers.store.snapshot(), &ctx.account, holder, session);
    Ok(GetSessionTokenResponse { credentials: credentials(&made.ok_or_else(gone)?) })
}

pub(super) fn get_federation_token(
    handlers: &Handlers,
    ctx: &Context,
    input: GetFederationTokenRequest,
) -> Result<GetFederationTokenResponse, Error> {
    let (user, seconds) = holder(ctx, "GetFederationToken", input.duration_seconds)?;
    let snapshot = handlers.store.snapshot();
    let mut session = Session::new(SessionOrigin::GetFederationToken, ctx.now, Duration::seconds(seconds));
    add_policies(&mut session, &snapshot, &ctx.account, input.policy, input.policy_arns)?;
    session.tags = read_tags(input.tags)?;
    let packed_policy_size = packed_size(&session)?;
    let source_id = user.unwrap_or_else(|| ctx.account.clone());
    let holder = Holder::Federated { source_id, name: input.name };
    let made = handlers.keyring.issue(&snapshot, &ctx.account, holder, session).ok_or_else(gone)?;
    Ok(GetFederationTokenResponse {
        credentials: credentials(&made),
        federated_user: Some(FederatedUser {
            federated_user_id: Some(made.principal.user_id.clone()),
            arn: Some(made.principal.arn.clone()),
        }),
        packed_policy_size,
    })
}

pub(super) fn get_access_key_info(
    handlers: &Handlers,
    input: &GetAccessKeyInfoRequest,
) -> Result<GetAccessKeyInfoResponse, Error> {
    let snapshot = handlers.store.snapshot();
    let id = &input.access_key_id;
    let long_term =
        snapshot.get::<AccessKey>(GLOBAL_ACCOUNT, REGION, id).map(|key| key.owner_account.clone());
    // Temporary keys are recorded nowhere, but every new key's id has its account in it.
    let account = long_term
        .or_else(|| account_of_key_id(id))
        .filter(|account| snapshot.get::<Account>(account, REGION, account).is_some());
    let account = account.ok_or_else(|| invalid(format!("The access key {id} does not exist.")))?;
    Ok(GetAccessKeyInfoResponse { account: Some(account) })
}
