//! The policy simulator, and the context keys of policies.

use std::collections::BTreeMap;
use std::sync::Arc;

use haar_api::Context;
use haar_policy::{
    Attached, Match, Policy as Parsed, PolicyKind, PolicyType, Principal, Request, Resource, ResourcePolicy,
    Simulation, Verdict,
};
use haar_records::iam::{self, REGION, name_id};
use haar_store::Snapshot;

use super::Handlers;
use super::common::*;
use super::model::*;
use crate::Caller;

/// Most results of one simulation.
const MAX_RESULTS: usize = 10_000;

/// What both simulations ask.
struct Question {
    boundaries: Vec<String>,
    actions: Vec<String>,
    resources: Vec<String>,
    resource_policy: Option<String>,
    resource_owner: Option<String>,
    entries: Vec<ContextEntry>,
    max_items: Option<i32>,
    marker: Option<String>,
}

/// The [`Question`] of a simulation's input: the types of both have these members alike.
macro_rules! question {
    ($input:ident) => {
        Question {
            boundaries: $input.permissions_boundary_policy_input_list,
            actions: $input.action_names,
            resources: $input.resource_arns,
            resource_policy: $input.resource_policy,
            resource_owner: $input.resource_owner,
            entries: $input.context_entries,
            max_items: $input.max_items,
            marker: $input.marker,
        }
    };
}

/// The user, group or role with this ARN.
fn source(
    handlers: &Handlers,
    snapshot: &Snapshot,
    ctx: &Context,
    arn: &str,
) -> Result<(Caller, PolicySourceType)> {
    let prefix = format!("arn:aws:iam::{}:", ctx.account);
    let invalid =
        || invalid_input(format!("Invalid Entity Arn: {arn} does not clearly define entity type and name."));
    let (kind, rest) = arn.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')).ok_or_else(invalid)?;
    let name = rest.rsplit('/').next().unwrap_or_default();
    let id = name_id(name);
    let documents = &handlers.documents;
    match kind {
        "user" => {
            let found = snapshot.get::<iam::User>(&ctx.account, REGION, &id).filter(|user| user.arn() == arn);
            let user = found.ok_or_else(|| no_such(iam::User::missing(name)))?;
            Ok((Caller::of_user(&user, snapshot, documents), PolicySourceType::User))
        }
        "group" => {
            let found =
                snapshot.get::<iam::Group>(&ctx.account, REGION, &id).filter(|group| group.arn() == arn);
            let group = found.ok_or_else(|| no_such(iam::Group::missing(name)))?;
            Ok((Caller::of_group(&group, snapshot, documents), PolicySourceType::Group))
        }
        "role" => {
            let found = snapshot.get::<iam::Role>(&ctx.account, REGION, &id).filter(|role| role.arn() == arn);
            let role = found.ok_or_else(|| no_such(iam::Role::missing(name)))?;
            Ok((Caller::of_role(&role, snapshot, documents), PolicySourceType::Role))
        }
        _ => Err(invalid()),
    }
}

fn parse(document: &str, kind: PolicyKind) -> Result<Parsed> {
    Parsed::parse(document, kind)
        .map_err(|error| invalid_input(format!("Invalid policy: {}", error.message())))
}

/// Policies of the request, as simulations name them.
fn inputs(documents: &[String], list: &str) -> Result<Vec<Attached>> {
    let attach = |(number, document): (usize, &String)| {
        Ok(Attached::inline(parse(document, PolicyKind::Inline)?, format!("{list}.{}", number + 1)))
    };
    documents.iter().enumerate().map(attach).collect()
}

/// `SimulateCustomPolicy`.
pub(super) async fn simulate_custom_policy(
    handlers: &Handlers,
    ctx: &Context,
    input: SimulateCustomPolicyRequest,
) -> Result<SimulatePolicyResponse> {
    let caller = match input.caller_arn.as_deref() {
        None => Principal::user(&format!("arn:aws:iam::{}:user/simulation", ctx.account), "AIDASIMULATION"),
        Some(arn) => caller_of(arn)?,
    };
    let caller = Caller::simulated(caller, inputs(&input.policy_input_list, "PolicyInputList")?);
    simulate(handlers, ctx, caller, PolicySourceType::None, question!(input))
}

/// `SimulatePrincipalPolicy`.
pub(super) async fn simulate_principal_policy(
    handlers: &Handlers,
    ctx: &Context,
    input: SimulatePrincipalPolicyRequest,
) -> Result<SimulatePolicyResponse> {
    let snapshot = handlers.store.snapshot();
    let (mut caller, kind) = source(handlers, &snapshot, ctx, &input.policy_source_arn)?;
    if kind == PolicySourceType::Group && input.resource_policy.is_some() && input.caller_arn.is_none() {
        return Err(invalid_input("CallerArn is required for the resource policy of a group's simulation."));
    }
    if let Some(arn) = &input.caller_arn {
        let tags = std::mem::take(&mut caller.principal.tags);
        caller.principal = Principal { tags, ..caller_of(arn)? };
    }
    caller.identity_mut().extend(inputs(&input.policy_input_list, "PolicyInputList")?);
    simulate(handlers, ctx, caller, kind, question!(input))
}

/// The user that a simulation names as its caller.
fn caller_of(arn: &str) -> Result<Principal> {
    let is_user = arn.strip_prefix("arn:aws:iam::").is_some_and(|rest| rest.contains(":user/"));
    if is_user {
        return Ok(Principal::user(arn, "AIDASIMULATION"));
    }
    Err(invalid_input(format!("Invalid caller ARN: {arn}. It must be the ARN of an IAM user.")))
}

fn simulate(
    handlers: &Handlers,
    ctx: &Context,
    mut caller: Caller,
    kind: PolicySourceType,
    question: Question,
) -> Result<SimulatePolicyResponse> {
    if question.boundaries.len() > 1 {
        return Err(invalid_input("Only one permissions boundary policy can be given."));
    }
    if let Some(boundary) = inputs(&question.boundaries, "PermissionsBoundaryPolicyInputList")?.pop() {
        caller.set_boundary(boundary);
    }
    if let Some(action) = question.actions.iter().find(|action| !action.contains(':') || action.contains('*'))
    {
        return Err(invalid_input(format!("Invalid Action: {action}")));
    }
    let resources = if question.resources.is_empty() { vec!["*".to_owned()] } else { question.resources };
    if question.actions.len() * resources.len() > MAX_RESULTS {
        return Err(invalid_input("The simulation has too many results."));
    }
    let resource_policy = match &question.resource_policy {
        None => None,
        Some(document) => Some(Attached::inline(parse(document, PolicyKind::Resource)?, "ResourcePolicy")),
    };
    let owner = question.resource_owner.as_deref();
    let owner = owner.map(|owner| owner.split(':').nth(4).unwrap_or(owner).to_owned());
    let mut keys = haar_policy::Context::new();
    for entry in &question.entries {
        let name = entry.context_key_name.as_deref();
        let name = name.ok_or_else(|| invalid_input("A context entry has no ContextKeyName."))?;
        keys.insert(name, entry.context_key_values.iter().cloned());
    }
    let source_type = |found: &Match<'_>| match (found.policy_type, &found.policy.arn) {
        (PolicyType::ResourceBased | PolicyType::RoleTrust, _) => PolicySourceType::Resource,
        (_, Some(arn)) if arn.starts_with("arn:aws:iam::aws:") => PolicySourceType::AwsManaged,
        (_, Some(_)) => PolicySourceType::UserManaged,
        (_, None) if found.policy.id.contains("InputList.") => PolicySourceType::None,
        (_, None) => kind,
    };
    let position = |position: haar_policy::Position| Position {
        line: i32::try_from(position.line).ok(),
        column: i32::try_from(position.column).ok(),
    };
    let statement = |found: &Match<'_>| Statement {
        source_policy_id: Some(found.policy.id.clone()),
        source_policy_type: Some(source_type(found)),
        start_position: Some(position(found.statement.start())),
        end_position: Some(position(found.statement.end())),
    };
    let mut results = Vec::new();
    for action in &question.actions {
        for arn in &resources {
            let request =
                Request { principal: &caller.principal, policies: caller.policies(), action, keys: &keys };
            let mut resource = Resource::new(arn);
            // Without a resource policy, whose the resource is does not matter; one that does not say is the caller's.
            match (&owner, &resource_policy) {
                (Some(owner), _) => resource.account = owner,
                (None, None) => resource.account = "",
                (None, Some(_)) if resource.account.is_empty() => {
                    resource.account = &caller.principal.account;
                }
                (None, Some(_)) => {}
            }
            if let Some(policy) = &resource_policy {
                resource = resource.with_policy(ResourcePolicy::ResourceBased(policy));
            }
            let found: Simulation<'_> = request.simulate(&resource);
            results.push(EvaluationResult {
                eval_action_name: Some(action.clone()),
                eval_resource_name: Some(arn.clone()),
                eval_decision: Some(decision(found.decision.as_str())),
                matched_statements: found.matched_statements.iter().map(statement).collect(),
                missing_context_values: found
                    .missing_context_keys
                    .iter()
                    .map(|key| (*key).to_owned())
                    .collect(),
                organizations_decision_detail: None,
                permissions_boundary_decision_detail: found.allowed_by_permissions_boundary.map(|allowed| {
                    PermissionsBoundaryDecisionDetail { allowed_by_permissions_boundary: Some(allowed) }
                }),
                eval_decision_details: details(&found),
                resource_specific_results: Vec::new(),
            });
        }
    }
    let mut keyed: Vec<_> =
        results.into_iter().enumerate().map(|(place, result)| (format!("{place:08}"), result)).collect();
    keyed.sort_by(|one, other| one.0.cmp(&other.0));
    let parameters = (&question.actions, &resources, &question.resource_policy, &question.boundaries);
    let marker = question.marker.as_deref();
    let found = page(handlers, ctx, &parameters, question.max_items, marker, keyed, |one| one.0.as_str())?;
    Ok(SimulatePolicyResponse {
        evaluation_results: found.items.into_iter().map(|(_, result)| result).collect(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

fn decision(text: &str) -> PolicyEvaluationDecisionType {
    text.parse().unwrap_or(PolicyEvaluationDecisionType::ImplicitDeny)
}

/// What each type of policy says, where there are several.
fn details(found: &Simulation<'_>) -> BTreeMap<String, PolicyEvaluationDecisionType> {
    let name = |kind: PolicyType| match kind {
        PolicyType::IdentityBased => "IAM Policy",
        PolicyType::PermissionsBoundary => "Permissions Boundary Policy",
        PolicyType::Session => "Session Policy",
        PolicyType::ResourceBased | PolicyType::RoleTrust => "Resource Policy",
    };
    if found.details.len() < 2 {
        return BTreeMap::new();
    }
    let detail =
        |(kind, verdict): (&PolicyType, &Verdict)| (name(*kind).to_owned(), decision(verdict.as_str()));
    found.details.iter().map(detail).collect()
}

fn context_keys(policies: &[Arc<Parsed>]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for key in policies.iter().flat_map(|policy| policy.context_keys()) {
        if !keys.iter().any(|known| known.eq_ignore_ascii_case(key)) {
            keys.push(key.to_owned());
        }
    }
    keys
}

/// `GetContextKeysForCustomPolicy`.
pub(super) async fn get_context_keys_for_custom_policy(
    _: &Handlers,
    _: &Context,
    input: GetContextKeysForCustomPolicyRequest,
) -> Result<GetContextKeysForPolicyResponse> {
    let policies = inputs(&input.policy_input_list, "PolicyInputList")?;
    let policies: Vec<_> = policies.into_iter().map(|policy| policy.policy).collect();
    Ok(GetContextKeysForPolicyResponse { context_key_names: context_keys(&policies) })
}

/// `GetContextKeysForPrincipalPolicy`.
pub(super) async fn get_context_keys_for_principal_policy(
    handlers: &Handlers,
    ctx: &Context,
    input: GetContextKeysForPrincipalPolicyRequest,
) -> Result<GetContextKeysForPolicyResponse> {
    let snapshot = handlers.store.snapshot();
    let (caller, _) = source(handlers, &snapshot, ctx, &input.policy_source_arn)?;
    let mut policies: Vec<_> =
        caller.policies().identity.iter().map(|policy| Arc::clone(&policy.policy)).collect();
    policies
        .extend(inputs(&input.policy_input_list, "PolicyInputList")?.into_iter().map(|policy| policy.policy));
    Ok(GetContextKeysForPolicyResponse { context_key_names: context_keys(&policies) })
}
