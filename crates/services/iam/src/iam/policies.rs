//! Managed policies.

use haar_api::Context;
use haar_policy::PolicyKind;
use haar_records::iam::{self, ManagedPolicy, PolicyVersion as VersionRecord, REGION, name_id};
use haar_store::{Snapshot, Tx};
use time::OffsetDateTime;
use time::macros::datetime;

use super::Handlers;
use super::common::*;
use super::model::*;
use super::tags::{new_tags, tag, tags, untag};
use crate::aws_managed::{self, AwsManaged};
use crate::caller::policy_arn;
use crate::keyring::new_unique_id;

const MAX_POLICIES: usize = 1500;
const MAX_VERSIONS: usize = 5;
/// Most characters of a managed policy.
const MAX_SIZE: usize = 6144;

/// When AWS's own policies are said to have been made: their documents here are of this version of haar.
const AWS_TIME: OffsetDateTime = datetime!(2015-02-06 18:39:46 UTC);

/// A managed policy, of the account or of AWS.
enum Found {
    Own(Box<ManagedPolicy>),
    Aws(&'static AwsManaged),
}

fn missing(arn: &str) -> haar_api::Error {
    no_such(format!("Policy {arn} was not found."))
}

/// The account's policy with this ARN, which the transaction relies on.
fn need_own(tx: &mut Tx, ctx: &Context, arn: &str) -> Result<ManagedPolicy> {
    let (account, name) = policy_arn(arn).ok_or_else(|| validation(format!("ARN {arn} is not valid.")))?;
    if account == "aws" && aws_managed::find(arn).is_some() {
        return Err(haar_api::Error::new(
            "AccessDenied",
            format!("Policy {arn} is managed by AWS and cannot be changed."),
        )
        .with_status(403));
    }
    let found =
        (account == ctx.account).then(|| tx.get::<ManagedPolicy>(account, REGION, &name_id(name))).flatten();
    found
        .filter(|policy| policy.arn() == arn)
        .map(|policy| ManagedPolicy::clone(&policy))
        .ok_or_else(|| missing(arn))
}

fn find(snapshot: &Snapshot, ctx: &Context, arn: &str) -> Result<Found> {
    let (account, _) = policy_arn(arn).ok_or_else(|| validation(format!("ARN {arn} is not valid.")))?;
    if let Some(policy) = aws_managed::find(arn) {
        return Ok(Found::Aws(policy));
    }
    let found = crate::caller::managed_policy(snapshot, arn).filter(|_| account == ctx.account);
    found.map(|policy| Found::Own(Box::new(ManagedPolicy::clone(&policy)))).ok_or_else(|| missing(arn))
}

fn version_name(number: u32) -> String {
    format!("v{number}")
}

fn version_number(name: &str) -> Option<u32> {
    name.strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// Who has a policy, and for whom it is the boundary.
pub(super) fn usage_counts(snapshot: &Snapshot, account: &str, arn: &str) -> (usize, usize) {
    let attached = snapshot.by_index::<iam::User>(account, REGION, "policy", arn).count()
        + snapshot.by_index::<iam::Group>(account, REGION, "policy", arn).count()
        + snapshot.by_index::<iam::Role>(account, REGION, "policy", arn).count();
    let boundary = snapshot.by_index::<iam::User>(account, REGION, "boundary", arn).count()
        + snapshot.by_index::<iam::Role>(account, REGION, "boundary", arn).count();
    (attached, boundary)
}

fn count(number: usize) -> Option<i32> {
    i32::try_from(number).ok()
}

fn own(snapshot: &Snapshot, record: &ManagedPolicy) -> Policy {
    let arn = record.arn();
    let (attached, boundary) = usage_counts(snapshot, &record.account, &arn);
    Policy {
        policy_name: Some(record.name.clone()),
        policy_id: Some(record.policy_id.clone()),
        arn: Some(arn),
        path: Some(record.path.clone()),
        default_version_id: Some(version_name(record.default_version)),
        attachment_count: count(attached),
        permissions_boundary_usage_count: count(boundary),
        is_attachable: Some(true),
        description: record.description.clone(),
        create_date: Some(record.create_time),
        update_date: Some(record.update_time),
        tags: tags(&record.tags),
    }
}

fn aws(snapshot: &Snapshot, ctx: &Context, policy: &AwsManaged) -> Policy {
    let arn = policy.arn();
    let (attached, boundary) = usage_counts(snapshot, &ctx.account, &arn);
    Policy {
        policy_name: Some(policy.name.to_owned()),
        policy_id: Some(policy.id()),
        arn: Some(arn),
        path: Some(policy.path.to_owned()),
        default_version_id: Some(version_name(1)),
        attachment_count: count(attached),
        permissions_boundary_usage_count: count(boundary),
        is_attachable: Some(true),
        description: Some(policy.description.to_owned()),
        create_date: Some(AWS_TIME),
        update_date: Some(AWS_TIME),
        tags: Vec::new(),
    }
}

fn check(document: &str) -> Result<()> {
    check_document(document, PolicyKind::Managed)?;
    check_size(length(document), MAX_SIZE, || quota("PolicySize", MAX_SIZE))
}

/// `CreatePolicy`.
pub(super) async fn create_policy(
    handlers: &Handlers,
    ctx: &Context,
    input: CreatePolicyRequest,
) -> Result<CreatePolicyResponse> {
    check(&input.policy_document)?;
    let record = ManagedPolicy {
        account: ctx.account.clone(),
        id: name_id(&input.policy_name),
        name: input.policy_name,
        policy_id: new_unique_id("ANPA"),
        path: path(input.path)?,
        description: input.description,
        default_version: 1,
        versions: vec![VersionRecord { number: 1, document: input.policy_document, create_time: ctx.now }],
        create_time: ctx.now,
        update_time: ctx.now,
        next_version: 2,
        tags: new_tags(input.tags)?,
    };
    haar_core::transact(&handlers.store, ctx, |tx| {
        check_quota::<ManagedPolicy>(tx, ctx, "PoliciesPerAccount", MAX_POLICIES)?;
        tx.create(record.clone()).map_err(|_| {
            exists(format!(
                "A policy called {} already exists. Duplicate names are not allowed.",
                record.name
            ))
        })
    })
    .await?;
    let made = own(&handlers.store.snapshot(), &record);
    Ok(CreatePolicyResponse { policy: Some(made) })
}

/// `GetPolicy`.
pub(super) async fn get_policy(
    handlers: &Handlers,
    ctx: &Context,
    input: GetPolicyRequest,
) -> Result<GetPolicyResponse> {
    let snapshot = handlers.store.snapshot();
    let policy = match find(&snapshot, ctx, &input.policy_arn)? {
        Found::Own(record) => own(&snapshot, &record),
        Found::Aws(policy) => aws(&snapshot, ctx, policy),
    };
    Ok(GetPolicyResponse { policy: Some(policy) })
}

/// `ListPolicies`.
pub(super) async fn list_policies(
    handlers: &Handlers,
    ctx: &Context,
    input: ListPoliciesRequest,
) -> Result<ListPoliciesResponse> {
    let snapshot = handlers.store.snapshot();
    let scope = input.scope.unwrap_or(PolicyScopeType::All);
    let prefix = input.path_prefix.as_deref().unwrap_or("/");
    let only_attached = input.only_attached == Some(true);
    let mut policies = Vec::new();
    if scope != PolicyScopeType::Local {
        policies.extend(aws_managed::POLICIES.iter().map(|policy| aws(&snapshot, ctx, policy)));
    }
    if scope != PolicyScopeType::Aws {
        policies.extend(
            snapshot.list::<ManagedPolicy>(&ctx.account, REGION).map(|record| own(&snapshot, record)),
        );
    }
    policies.retain(|policy| {
        let (attached, boundary) = (policy.attachment_count, policy.permissions_boundary_usage_count);
        let used = |count: Option<i32>| count.is_some_and(|count| count > 0);
        let is_used = match input.policy_usage_filter {
            Some(PolicyUsageType::PermissionsBoundary) => used(boundary),
            Some(PolicyUsageType::PermissionsPolicy) => used(attached),
            None => !only_attached || used(attached),
        };
        is_used && policy.path.as_deref().unwrap_or_default().starts_with(prefix)
    });
    policies.sort_by(|one, other| one.arn.cmp(&other.arn));
    let usage = input.policy_usage_filter.map(PolicyUsageType::as_str);
    let parameters = (scope.as_str(), prefix, only_attached, usage);
    // Lists do not show tags and descriptions.
    let policies =
        policies.into_iter().map(|policy| Policy { description: None, tags: Vec::new(), ..policy });
    let found = page(handlers, ctx, &parameters, input.max_items, input.marker.as_deref(), policies, id_of)?;
    Ok(ListPoliciesResponse { policies: found.items, is_truncated: found.is_truncated, marker: found.marker })
}

fn id_of(policy: &Policy) -> &str {
    policy.arn.as_deref().unwrap_or_default()
}

/// `DeletePolicy`.
pub(super) async fn delete_policy(
    handlers: &Handlers,
    ctx: &Context,
    input: DeletePolicyRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let record = need_own(tx, ctx, &input.policy_arn)?;
        let (account, arn) = (&ctx.account, &input.policy_arn);
        // Relied on: who attaches it at the same time comes before or after.
        let used = tx.by_index::<iam::User>(account, REGION, "policy", arn).next().is_some()
            || tx.by_index::<iam::Group>(account, REGION, "policy", arn).next().is_some()
            || tx.by_index::<iam::Role>(account, REGION, "policy", arn).next().is_some()
            || tx.by_index::<iam::User>(account, REGION, "boundary", arn).next().is_some()
            || tx.by_index::<iam::Role>(account, REGION, "boundary", arn).next().is_some();
        if used {
            return Err(conflict("Cannot delete a policy attached to entities."));
        }
        if record.versions.len() > 1 {
            return Err(conflict("This policy has more than one version. Before you delete a policy, you must delete the policy's versions. The default version is deleted with the policy."));
        }
        tx.delete::<ManagedPolicy>(account, REGION, &record.id);
        Ok(())
    })
    .await
}

fn version(record: &VersionRecord, default: u32, with_document: bool) -> PolicyVersion {
    PolicyVersion {
        document: with_document.then(|| encoded(&record.document)),
        version_id: Some(version_name(record.number)),
        is_default_version: Some(record.number == default),
        create_date: Some(record.create_time),
    }
}

/// `CreatePolicyVersion`.
pub(super) async fn create_policy_version(
    handlers: &Handlers,
    ctx: &Context,
    input: CreatePolicyVersionRequest,
) -> Result<CreatePolicyVersionResponse> {
    check(&input.policy_document)?;
    let made = haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = need_own(tx, ctx, &input.policy_arn)?;
        if record.versions.len() >= MAX_VERSIONS {
            return Err(limit_exceeded(format!("A managed policy can have up to {MAX_VERSIONS} versions. Before you create a new version, you must delete an existing version.")));
        }
        let number = record.next_version;
        let new = VersionRecord { number, document: input.policy_document.clone(), create_time: ctx.now };
        record.next_version += 1;
        if input.set_as_default == Some(true) {
            record.default_version = number;
        }
        record.update_time = ctx.now;
        record.versions.push(new.clone());
        let made = version(&new, record.default_version, false);
        tx.put(record);
        Ok(made)
    })
    .await?;
    Ok(CreatePolicyVersionResponse { policy_version: Some(made) })
}

fn no_version(arn: &str, name: &str) -> haar_api::Error {
    no_such(format!("Policy {arn} version {name} does not exist or is not attachable."))
}

/// `GetPolicyVersion`.
pub(super) async fn get_policy_version(
    handlers: &Handlers,
    ctx: &Context,
    input: GetPolicyVersionRequest,
) -> Result<GetPolicyVersionResponse> {
    let (arn, name) = (&input.policy_arn, &input.version_id);
    let number = version_number(name);
    let found = match find(&handlers.store.snapshot(), ctx, arn)? {
        Found::Own(record) => {
            let found = record.versions.iter().find(|version| Some(version.number) == number);
            found.map(|found| version(found, record.default_version, true))
        }
        Found::Aws(policy) => (number == Some(1)).then(|| version(&aws_version(policy), 1, true)),
    };
    Ok(GetPolicyVersionResponse { policy_version: Some(found.ok_or_else(|| no_version(arn, name))?) })
}

fn aws_version(policy: &AwsManaged) -> VersionRecord {
    VersionRecord { number: 1, document: policy.document.to_owned(), create_time: AWS_TIME }
}

/// `ListPolicyVersions`, the latest first.
pub(super) async fn list_policy_versions(
    handlers: &Handlers,
    ctx: &Context,
    input: ListPolicyVersionsRequest,
) -> Result<ListPolicyVersionsResponse> {
    let (versions, default) = match find(&handlers.store.snapshot(), ctx, &input.policy_arn)? {
        Found::Own(record) => (record.versions, record.default_version),
        Found::Aws(policy) => (vec![aws_version(policy)], 1),
    };
    // Pages want ids that ascend: what is left of the greatest number.
    let mut keyed: Vec<_> = versions
        .iter()
        .map(|one| (format!("{:010}", u32::MAX - one.number), version(one, default, false)))
        .collect();
    keyed.sort_by(|one, other| one.0.cmp(&other.0));
    let found =
        page(handlers, ctx, &input.policy_arn, input.max_items, input.marker.as_deref(), keyed, |one| {
            one.0.as_str()
        })?;
    Ok(ListPolicyVersionsResponse {
        versions: found.items.into_iter().map(|(_, version)| version).collect(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

/// `DeletePolicyVersion`.
pub(super) async fn delete_policy_version(
    handlers: &Handlers,
    ctx: &Context,
    input: DeletePolicyVersionRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = need_own(tx, ctx, &input.policy_arn)?;
        let number = version_number(&input.version_id);
        if number == Some(record.default_version) {
            return Err(conflict("Cannot delete the default version of a policy."));
        }
        let before = record.versions.len();
        record.versions.retain(|version| Some(version.number) != number);
        if record.versions.len() == before {
            return Err(no_version(&input.policy_arn, &input.version_id));
        }
        tx.put(record);
        Ok(())
    })
    .await
}

/// `SetDefaultPolicyVersion`.
pub(super) async fn set_default_policy_version(
    handlers: &Handlers,
    ctx: &Context,
    input: SetDefaultPolicyVersionRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = need_own(tx, ctx, &input.policy_arn)?;
        let number = version_number(&input.version_id);
        let found = record.versions.iter().find(|version| Some(version.number) == number);
        record.default_version =
            found.ok_or_else(|| no_version(&input.policy_arn, &input.version_id))?.number;
        record.update_time = ctx.now;
        tx.put(record);
        Ok(())
    })
    .await
}

/// `ListEntitiesForPolicy`.
pub(super) async fn list_entities_for_policy(
    handlers: &Handlers,
    ctx: &Context,
    input: ListEntitiesForPolicyRequest,
) -> Result<ListEntitiesForPolicyResponse> {
    let snapshot = handlers.store.snapshot();
    let (account, arn) = (&ctx.account, &input.policy_arn);
    find(&snapshot, ctx, arn)?;
    let prefix = input.path_prefix.as_deref().unwrap_or("/");
    let wants = |kind: EntityType| input.entity_filter.is_none_or(|filter| filter == kind);
    let indexes: &[&str] = match input.policy_usage_filter {
        Some(PolicyUsageType::PermissionsPolicy) => &["policy"],
        Some(PolicyUsageType::PermissionsBoundary) => &["boundary"],
        None => &["policy", "boundary"],
    };
    // Kind and name, so that pages have one order.
    let mut entities: Vec<(String, String, String)> = Vec::new();
    for index in indexes {
        if wants(EntityType::Group) && *index == "policy" {
            let groups = snapshot.by_index::<iam::Group>(account, REGION, index, arn);
            let groups = groups.filter(|group| group.path.starts_with(prefix));
            entities.extend(groups.map(|g| (format!("group/{}", g.id), g.name.clone(), g.group_id.clone())));
        }
        if wants(EntityType::User) {
            let users = snapshot.by_index::<iam::User>(account, REGION, index, arn);
            let users = users.filter(|user| user.path.starts_with(prefix));
            entities.extend(users.map(|u| (format!("user/{}", u.id), u.name.clone(), u.user_id.clone())));
        }
        if wants(EntityType::Role) {
            let roles = snapshot.by_index::<iam::Role>(account, REGION, index, arn);
            let roles = roles.filter(|role| role.path.starts_with(prefix));
            entities.extend(roles.map(|r| (format!("role/{}", r.id), r.name.clone(), r.role_id.clone())));
        }
    }
    entities.sort_unstable();
    entities.dedup();
    let (filter, usage) =
        (input.entity_filter.map(EntityType::as_str), input.policy_usage_filter.map(PolicyUsageType::as_str));
    let parameters = (arn, prefix, filter, usage);
    let found =
        page(handlers, ctx, &parameters, input.max_items, input.marker.as_deref(), entities, |one| {
            one.0.as_str()
        })?;
    let mut answer = ListEntitiesForPolicyResponse {
        policy_groups: Vec::new(),
        policy_users: Vec::new(),
        policy_roles: Vec::new(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    };
    for (key, name, id) in found.items {
        let (name, id) = (Some(name), Some(id));
        match key.split('/').next() {
            Some("group") => answer.policy_groups.push(PolicyGroup { group_name: name, group_id: id }),
            Some("user") => answer.policy_users.push(PolicyUser { user_name: name, user_id: id }),
            _ => answer.policy_roles.push(PolicyRole { role_name: name, role_id: id }),
        }
    }
    Ok(answer)
}

/// `TagPolicy`.
pub(super) async fn tag_policy(handlers: &Handlers, ctx: &Context, input: TagPolicyRequest) -> Result<()> {
    tag(handlers, ctx, |tx| need_own(tx, ctx, &input.policy_arn), &input.tags).await
}

/// `UntagPolicy`.
pub(super) async fn untag_policy(
    handlers: &Handlers,
    ctx: &Context,
    input: UntagPolicyRequest,
) -> Result<()> {
    untag(handlers, ctx, |tx| need_own(tx, ctx, &input.policy_arn), &input.tag_keys).await
}

/// `ListPolicyTags`.
pub(super) async fn list_policy_tags(
    handlers: &Handlers,
    ctx: &Context,
    input: ListPolicyTagsRequest,
) -> Result<ListPolicyTagsResponse> {
    let all = match find(&handlers.store.snapshot(), ctx, &input.policy_arn)? {
        Found::Own(record) => tags(&record.tags),
        Found::Aws(_) => Vec::new(),
    };
    let found =
        page(handlers, ctx, &input.policy_arn, input.max_items, input.marker.as_deref(), all, |tag| {
            &tag.key
        })?;
    Ok(ListPolicyTagsResponse { tags: found.items, is_truncated: found.is_truncated, marker: found.marker })
}

/// A policy in the form of GetAccountAuthorizationDetails.
pub(super) fn own_detail(snapshot: &Snapshot, record: &ManagedPolicy) -> ManagedPolicyDetail {
    let versions = record.versions.iter().map(|one| version(one, record.default_version, true)).collect();
    detail(own(snapshot, record), versions)
}

/// A policy of AWS in that form.
pub(super) fn aws_detail(snapshot: &Snapshot, ctx: &Context, policy: &AwsManaged) -> ManagedPolicyDetail {
    detail(aws(snapshot, ctx, policy), vec![version(&aws_version(policy), 1, true)])
}

fn detail(policy: Policy, versions: Vec<PolicyVersion>) -> ManagedPolicyDetail {
    ManagedPolicyDetail {
        policy_name: policy.policy_name,
        policy_id: policy.policy_id,
        arn: policy.arn,
        path: policy.path,
        default_version_id: policy.default_version_id,
        attachment_count: policy.attachment_count,
        permissions_boundary_usage_count: policy.permissions_boundary_usage_count,
        is_attachable: policy.is_attachable,
        description: policy.description,
        create_date: policy.create_date,
        update_date: policy.update_date,
        policy_version_list: versions,
    }
}
