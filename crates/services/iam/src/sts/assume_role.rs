//! `AssumeRole` (STS API Reference).

use std::collections::BTreeSet;

use haar_api::{Context, Error, PrincipalKind, Session, SessionOrigin};
use haar_policy::{Attached, PolicyKind, Request, Resource, ResourcePolicy};
use haar_records::iam::{REGION, Role, name_id};
use haar_store::{Entry, Snapshot};
use time::Duration;

use super::model::*;
use super::{
    Handlers, add_policies, assumed_role_user, credentials, denied, gone, invalid, keys, mfa, packed_size,
    read_tags,
};
use crate::Caller;
use crate::keyring::Holder;

/// Longest session of a role whose caller is itself a session of one: "role chaining".
const MAX_CHAINED: i32 = 3600;

/// The length of a session that is not said.
const DEFAULT_DURATION: i32 = 3600;

/// The role with this ARN.
pub(super) fn find(snapshot: &Snapshot, arn: &str) -> Option<Entry<Role>> {
    let (account, resource) = arn.strip_prefix("arn:aws:iam::")?.split_once(':')?;
    let name = resource.strip_prefix("role/")?.rsplit('/').next()?;
    snapshot.get::<Role>(account, REGION, &name_id(name)).filter(|role| role.arn() == arn)
}

/// Refuses an ARN that is none of a role.
pub(super) fn check_arn(arn: &str) -> Result<(), Error> {
    let mut parts = arn.splitn(6, ':');
    let is_arn = parts.next() == Some("arn") && parts.clone().count() == 5;
    if is_arn { Ok(()) } else { Err(invalid(format!("{arn} is invalid"))) }
}

/// The length of a session in seconds, within the role's limit.
pub(super) fn duration(role: &Role, asked: Option<i32>) -> Result<i32, Error> {
    let seconds = asked.unwrap_or(DEFAULT_DURATION);
    if i64::from(seconds) > i64::from(role.max_session_duration) {
        return Err(invalid(
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
        ));
    }
    Ok(seconds)
}

/// The trust policy of a role.
pub(super) fn trust(handlers: &Handlers, snapshot: &Snapshot, role: &Role) -> Attached {
    let policy = handlers.documents.read(PolicyKind::Trust, &crate::trust::document(snapshot, role));
    Attached::inline(policy, "AssumeRolePolicyDocument")
}

pub(super) async fn assume_role(
    handlers: &Handlers,
    ctx: &Context,
    input: AssumeRoleRequest,
) -> Result<AssumeRoleResponse, Error> {
    check_arn(&input.role_arn)?;
    let caller = &ctx.principal;
    match &caller.kind {
        PrincipalKind::Root => return Err(denied("Roles may not be assumed by root accounts.")),
        PrincipalKind::FederatedUser { .. } => {
            return Err(denied("Cannot call AssumeRole with the credentials of a federated user"));
        }
        _ => {}
    }
    let tags = read_tags(input.tags)?;
    let mut transitive = BTreeSet::new();
    for key in input.transitive_tag_keys {
        let of_tag = tags.keys().find(|tag| tag.eq_ignore_ascii_case(&key));
        let of_tag = of_tag.ok_or_else(|| {
            let message =
                format!("The specified transitive tag key {key} must be included in the requested tags.");
            Error::new("InvalidParameterValue", message)
        })?;
        transitive.insert(of_tag.clone());
    }
    let chained =
        caller.session.as_deref().filter(|session| session.origin != SessionOrigin::GetSessionToken);
    let inherited = chained.map(|session| {
        let keys = session.transitive_tag_keys.iter();
        keys.filter_map(|key| Some((key.clone(), session.tags.get(key)?.clone()))).collect::<Vec<_>>()
    });
    let inherited = inherited.unwrap_or_default();
    if let Some((key, _)) =
        inherited.iter().find(|(key, _)| tags.keys().any(|tag| tag.eq_ignore_ascii_case(key)))
    {
        let message =
            format!("The tag key {key} cannot be set because it is a transitive tag of the calling session.");
        return Err(Error::new("InvalidParameterValue", message));
    }

    let second_factor =
        mfa::shown(handlers, ctx, input.serial_number.as_deref(), input.token_code.as_deref()).await?;
    let snapshot = handlers.store.snapshot();
    let mut who = Caller::of(caller, &snapshot, &handlers.documents);
    // It counts for this request, not for the role's session: "the temporary credentials returned by AssumeRole do not include MFA
    // information in the context" (IAM User Guide, "Secure API access with MFA").
    if second_factor {
        who.principal.session.insert("aws:MultiFactorAuthPresent", ["true"]);
        who.principal.session.insert("aws:MultiFactorAuthAge", ["0"]);
    }
    let refused = |action: &str| {
        denied(format!(
            "User: {} is not authorized to perform: {action} on resource: {}",
            caller.arn, input.role_arn
        ))
    };
    // A role that is not there is not told from one that may not be assumed.
    let role = find(&snapshot, &input.role_arn).ok_or_else(|| refused("sts:AssumeRole"))?;
    let held = caller.session.as_ref().and_then(|session| session.source_identity.clone());
    let source_identity = input.source_identity.clone().or_else(|| held.clone());
    let mut of_request =
        keys::of_session(Some(&input.role_session_name), input.duration_seconds, &tags, &transitive);
    if let Some(id) = &input.external_id {
        of_request.insert("sts:ExternalId", [id]);
    }
    if let Some(identity) = &source_identity {
        of_request.insert("sts:SourceIdentity", [identity]);
    }
    let role_tags: Vec<_> = role.tags.iter().collect();
    let mut of_role = haar_policy::Context::new();
    for (key, value) in role_tags {
        of_role.insert(&format!("aws:ResourceTag/{key}"), [value]);
        of_role.insert(&format!("iam:ResourceTag/{key}"), [value]);
    }
    let trust = trust(handlers, &snapshot, &role);
    let keys = (of_request, haar_access::environment(ctx));
    let resource =
        Resource::new(&input.role_arn).with_keys(&of_role).with_policy(ResourcePolicy::RoleTrust(&trust));
    let mut actions = vec!["sts:AssumeRole"];
    if !tags.is_empty() {
        actions.push("sts:TagSession");
    }
    if source_identity.is_some() {
        actions.push("sts:SetSourceIdentity");
    }
    for action in actions {
        let request = Request { principal: &who.principal, policies: who.policies(), action, keys: &keys };
        let decision = request.evaluate(&resource);
        if let haar_policy::Decision::ExplicitDeny(_) = decision {
            let text = haar_policy::Denied {
                principal: &who.principal,
                action,
                resource: &input.role_arn,
                decision,
            };
            return Err(denied(text.to_string()));
        }
        if !decision.is_allowed() {
            return Err(refused(action));
        }
    }
    if held.is_some() && held != source_identity {
        return Err(denied("The source identity of the calling session cannot be changed."));
    }
    let seconds = duration(&role, input.duration_seconds)?;
    if seconds > MAX_CHAINED && matches!(caller.kind, PrincipalKind::AssumedRole { .. }) {
        return Err(invalid(
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
        ));
    }

    let mut session = Session::new(SessionOrigin::AssumeRole, ctx.now, Duration::seconds(seconds.into()));
    add_policies(&mut session, &snapshot, &role.account, input.policy, input.policy_arns)?;
    session.tags = tags;
    session.tags.extend(inherited.iter().cloned());
    session.transitive_tag_keys = transitive;
    session.transitive_tag_keys.extend(inherited.into_iter().map(|(key, _)| key));
    session.source_identity.clone_from(&source_identity);
    let packed_policy_size = packed_size(&session)?;
    let made = issue(handlers, &snapshot, &role, &input.role_session_name, session)?;
    Ok(AssumeRoleResponse {
        credentials: credentials(&made),
        assumed_role_user: assumed_role_user(&made),
        packed_policy_size,
        source_identity: input.source_identity.or(held),
    })
}

pub(super) fn issue(
    handlers: &Handlers,
    snapshot: &Snapshot,
    role: &Role,
    session_name: &str,
    session: Session,
) -> Result<crate::keyring::Temporary, Error> {
    let holder = Holder::Role { role_id: role.role_id.clone(), session_name: session_name.to_owned() };
    handlers.keyring.issue(snapshot, &role.account, holder, session).ok_or_else(gone)
}
