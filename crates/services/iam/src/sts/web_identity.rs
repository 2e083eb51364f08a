//! `AssumeRoleWithWebIdentity` (STS API Reference).

use std::collections::{BTreeMap, BTreeSet};

use haar_api::{Context, Error, Session, SessionOrigin};
use haar_policy::{Principal, Request, Resource, ResourcePolicy};
use haar_records::iam::{OpenIdConnectProvider, REGION};
use haar_store::{Entry, Snapshot};
use time::{Duration, OffsetDateTime};

use super::assume_role::{check_arn, duration, find, issue, trust};
use super::jwt::Jwt;
use super::model::*;
use super::{Handlers, add_policies, assumed_role_user, credentials, denied, keys, packed_size, read_tags};

/// How far the clock of an issuer may be ahead, in seconds.
const SKEW: i64 = 300;

/// The claim of session tags (IAM User Guide, "Pass session tags in AWS STS").
const TAGS_CLAIM: &str = "https://aws.amazon.com/tags";

fn bad_token(message: impl Into<String>) -> Error {
    Error::new("InvalidIdentityToken", message)
}

/// An issuer's URL as ARNs and condition keys have it.
pub(crate) fn provider_id(url: &str) -> &str {
    url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or(url)
}

fn provider(snapshot: &Snapshot, account: &str, issuer: &str) -> Option<Entry<OpenIdConnectProvider>> {
    let id = provider_id(issuer);
    let found = snapshot.get::<OpenIdConnectProvider>(account, REGION, id);
    let found = found.or_else(|| snapshot.get(account, REGION, id.trim_end_matches('/')));
    found.filter(|provider| provider.url.trim_end_matches('/') == issuer.trim_end_matches('/'))
}

fn account_of(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

pub(super) async fn assume_role_with_web_identity(
    handlers: &Handlers,
    ctx: &Context,
    input: AssumeRoleWithWebIdentityRequest,
) -> Result<AssumeRoleWithWebIdentityResponse, Error> {
    check_arn(&input.role_arn)?;
    let token = &input.web_identity_token;
    let jwt = Jwt::parse(token).ok_or_else(|| {
        bad_token(
            "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)",
        )
    })?;
    let claim =
        |name: &str| jwt.text(name).ok_or_else(|| bad_token(format!("Missing a required claim: {name}")));
    let (issuer, subject) = (claim("iss")?.to_owned(), claim("sub")?.to_owned());
    let audiences = match jwt.text("azp") {
        Some(party) => vec![party.to_owned()],
        None => jwt.texts("aud"),
    };
    if audiences.is_empty() {
        return Err(bad_token("Missing a required claim: aud"));
    }
    let expires = jwt.time("exp").ok_or_else(|| bad_token("Missing a required claim: exp"))?;
    let account = account_of(&input.role_arn);
    let provider_in = |snapshot: &Snapshot| {
        let found = provider(snapshot, account, &issuer);
        found
            .ok_or_else(|| bad_token(format!("No OpenIDConnect provider found in your account for {issuer}")))
    };
    match handlers.issuers.signed(&provider_in(&handlers.store.snapshot())?.url, &jwt).await {
        Ok(true) => {}
        Ok(false) => {
            return Err(bad_token("Couldn't verify the signature of the token with the keys of its issuer"));
        }
        Err(why) => {
            tracing::info!(issuer, why, "the keys of an identity provider cannot be had");
            let message = format!(
                "Couldn't retrieve verification key from your identity provider, please reference AssumeRoleWithWebIdentity documentation for requirements: {why}"
            );
            return Err(Error::new("IDPCommunicationError", message));
        }
    }
    // Getting the keys may have taken a while: what counts are the records as they are now.
    let snapshot = handlers.store.snapshot();
    let provider = provider_in(&snapshot)?;
    let now = ctx.now.unix_timestamp();
    if expires <= now {
        let text = |seconds: i64| {
            OffsetDateTime::from_unix_timestamp(seconds).map(haar_policy::date_text).unwrap_or_default()
        };
        let message = format!(
            "Token expired: current date/time {} must be before the expiration date/time {}",
            text(now),
            text(expires)
        );
        return Err(Error::new("ExpiredTokenException", message));
    }
    if [jwt.time("nbf"), jwt.time("iat")].into_iter().flatten().any(|begin| begin > now + SKEW) {
        return Err(bad_token("The token is not valid yet"));
    }
    let Some(audience) = audiences.iter().find(|audience| provider.client_ids.contains(audience)) else {
        return Err(bad_token("Incorrect token audience"));
    };
    let (tags, transitive) = session_tags(&jwt)?;

    let refused = || denied("Not authorized to perform sts:AssumeRoleWithWebIdentity");
    let role = find(&snapshot, &input.role_arn).ok_or_else(refused)?;
    let of_token = token_keys(&provider.id, &jwt, audience, &subject);
    let mut of_identity = haar_policy::Context::new();
    for (key, values) in &of_token {
        of_identity.insert(key, values.iter().cloned());
    }
    of_identity.insert("aws:FederatedProvider", [provider.arn()]);
    let identity = Principal::federated_identity(&provider.arn(), of_identity);
    let keys = (
        keys::of_session(Some(&input.role_session_name), input.duration_seconds, &tags, &transitive),
        haar_access::environment(ctx),
    );
    let trust = trust(handlers, &snapshot, &role);
    let resource = Resource::new(&input.role_arn).with_policy(ResourcePolicy::RoleTrust(&trust));
    let mut actions = vec!["sts:AssumeRoleWithWebIdentity"];
    if !tags.is_empty() {
        actions.push("sts:TagSession");
    }
    for action in actions {
        let request =
            Request { principal: &identity, policies: haar_policy::Policies::default(), action, keys: &keys };
        if !request.evaluate(&resource).is_allowed() {
            return Err(denied(format!("Not authorized to perform {action}")));
        }
    }
    let seconds = duration(&role, input.duration_seconds)?;
    let mut session =
        Session::new(SessionOrigin::AssumeRoleWithWebIdentity, ctx.now, Duration::seconds(seconds.into()));
    add_policies(&mut session, &snapshot, &role.account, input.policy, input.policy_arns)?;
    session.tags = tags;
    session.transitive_tag_keys = transitive;
    session.federated_provider = Some(provider.arn());
    session.keys = of_token;
    let packed_policy_size = packed_size(&session)?;
    let made = issue(handlers, &snapshot, &role, &input.role_session_name, session)?;
    Ok(AssumeRoleWithWebIdentityResponse {
        credentials: credentials(&made),
        subject_from_web_identity_token: Some(subject),
        assumed_role_user: assumed_role_user(&made),
        packed_policy_size,
        provider: Some(provider.arn()),
        audience: Some(audience.clone()),
        source_identity: None,
    })
}

/// The condition keys of a token (IAM User Guide, "Available keys for AWS web identity federation").
fn token_keys(provider: &str, jwt: &Jwt<'_>, audience: &str, subject: &str) -> BTreeMap<String, Vec<String>> {
    let mut keys = BTreeMap::new();
    keys.insert(format!("{provider}:aud"), vec![audience.to_owned()]);
    keys.insert(format!("{provider}:sub"), vec![subject.to_owned()]);
    for claim in ["amr", "email", "oaud"] {
        let values =
            if claim == "oaud" && jwt.text("azp").is_some() { jwt.texts("aud") } else { jwt.texts(claim) };
        if !values.is_empty() {
            keys.insert(format!("{provider}:{claim}"), values);
        }
    }
    keys
}

/// The session tags that a token carries.
fn session_tags(jwt: &Jwt<'_>) -> Result<(BTreeMap<String, String>, BTreeSet<String>), Error> {
    let Some(claim) = jwt.claims.get(TAGS_CLAIM) else { return Ok(Default::default()) };
    let malformed = || bad_token(format!("The claim {TAGS_CLAIM} of the token is malformed"));
    let principal_tags =
        claim.get("principal_tags").and_then(|tags| tags.as_object()).ok_or_else(malformed)?;
    let mut tags = Vec::new();
    for (key, value) in principal_tags {
        let value = match value {
            serde_json::Value::Array(list) if list.len() == 1 => &list[0],
            value => value,
        };
        tags.push(Tag { key: key.clone(), value: value.as_str().ok_or_else(malformed)?.to_owned() });
    }
    let is_short = |tag: &Tag| tag.key.chars().count() <= 128 && tag.value.chars().count() <= 256;
    if tags.len() > 50 || !tags.iter().all(is_short) {
        return Err(malformed());
    }
    let mut transitive = BTreeSet::new();
    for key in claim.get("transitive_tag_keys").and_then(|keys| keys.as_array()).into_iter().flatten() {
        let key = key.as_str().filter(|key| principal_tags.contains_key(*key)).ok_or_else(malformed)?;
        transitive.insert(key.to_owned());
    }
    Ok((read_tags(tags)?, transitive))
}
