//! Roles and instance profiles.

use std::collections::BTreeMap;

use haar_api::Context;
use haar_policy::PolicyKind;
use haar_records::GLOBAL_ACCOUNT;
use haar_records::iam::{self, REGION, Usage, name_id};
use haar_store::{Entry, Snapshot};

use super::Handlers;
use super::common::*;
use super::identities::{Identity as _, boundary, check_boundary};
use super::model::*;
use super::tags::{new_tags, tag, tags, untag};
use crate::keyring::new_unique_id;
use crate::trust;

const MAX_ROLES: usize = 1000;
const MAX_INSTANCE_PROFILES: usize = 1000;
/// Most characters of a trust policy.
const MAX_TRUST: usize = 2048;
/// The longest session of a role where it is not said.
const DEFAULT_SESSION: u32 = 3600;

pub(super) fn role(handlers: &Handlers, snapshot: &Snapshot, record: &iam::Role) -> Role {
    Role {
        path: Some(record.path.clone()),
        role_name: Some(record.name.clone()),
        role_id: Some(record.role_id.clone()),
        arn: Some(record.arn()),
        create_date: Some(record.create_time),
        assume_role_policy_document: Some(encoded(&trust::document(snapshot, record))),
        description: record.description.clone(),
        max_session_duration: i32::try_from(record.max_session_duration).ok(),
        permissions_boundary: boundary(record.permissions_boundary.as_ref()),
        tags: tags(&record.tags),
        role_last_used: Some(last_used(handlers, snapshot, record)),
    }
}

fn last_used(handlers: &Handlers, snapshot: &Snapshot, record: &iam::Role) -> RoleLastUsed {
    let usage = handlers.keyring.usage(snapshot, &record.role_id);
    RoleLastUsed {
        last_used_date: usage.as_ref().map(|usage| usage.at),
        region: usage.map(|usage| usage.region),
    }
}

/// Lists show neither tags nor boundaries nor use.
fn listed(handlers: &Handlers, snapshot: &Snapshot, record: &iam::Role) -> Role {
    Role {
        permissions_boundary: None,
        tags: Vec::new(),
        role_last_used: None,
        ..role(handlers, snapshot, record)
    }
}

fn check_trust(snapshot: &Snapshot, document: &str) -> Result<BTreeMap<String, String>> {
    let policy = check_document(document, PolicyKind::Trust)?;
    check_size(length(document), MAX_TRUST, || quota("ACLSizePerRole", MAX_TRUST))?;
    trust::resolve(snapshot, &policy)
}

/// `CreateRole`.
pub(super) async fn create_role(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateRoleRequest,
) -> Result<CreateRoleResponse> {
    let path = path(input.path)?;
    if path.starts_with("/aws-service-role/") {
        return Err(validation("The path /aws-service-role/ is reserved for service-linked roles."));
    }
    let record = iam::Role {
        account: ctx.account.clone(),
        id: name_id(&input.role_name),
        name: input.role_name,
        role_id: new_unique_id("AROA"),
        path,
        description: input.description,
        assume_role_policy_document: input.assume_role_policy_document,
        trusted_ids: BTreeMap::new(),
        max_session_duration: input
            .max_session_duration
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(DEFAULT_SESSION),
        create_time: ctx.now,
        permissions_boundary: input.permissions_boundary,
        attached_policies: Vec::new(),
        inline_policies: BTreeMap::new(),
        linked_service: None,
        tags: new_tags(input.tags)?,
    };
    create(handlers, ctx, &record).await?;
    let snapshot = handlers.store.snapshot();
    Ok(CreateRoleResponse { role: Some(Role { role_last_used: None, ..role(handlers, &snapshot, &record) }) })
}

pub(super) async fn create(handlers: &Handlers, ctx: &Context, record: &iam::Role) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        check_boundary(tx, ctx, record.permissions_boundary.as_ref())?;
        check_quota::<iam::Role>(tx, ctx, "RolesPerAccount", MAX_ROLES)?;
        let trusted_ids = check_trust(tx.snapshot(), &record.assume_role_policy_document)?;
        tx.create(iam::Role { trusted_ids, ..record.clone() })
            .map_err(|_| exists(format!("Role with name {} already exists.", record.name)))
    })
    .await
}

/// `GetRole`.
pub(super) async fn get_role(
    handlers: &Handlers,
    ctx: &Context,
    input: GetRoleRequest,
) -> Result<GetRoleResponse> {
    let snapshot = handlers.store.snapshot();
    let record = read::<iam::Role>(&snapshot, ctx, &input.role_name)?;
    Ok(GetRoleResponse { role: Some(role(handlers, &snapshot, &record)) })
}

/// `ListRoles`.
pub(super) async fn list_roles(
    handlers: &Handlers,
    ctx: &Context,
    input: ListRolesRequest,
) -> Result<ListRolesResponse> {
    let snapshot = handlers.store.snapshot();
    let prefix = input.path_prefix.as_deref().unwrap_or("/");
    let roles = snapshot.list::<iam::Role>(&ctx.account, REGION).filter(|role| role.path.starts_with(prefix));
    let found =
        page(handlers, ctx, &prefix, input.max_items, input.marker.as_deref(), roles, |role| &role.id)?;
    Ok(ListRolesResponse {
        roles: found.items.into_iter().map(|role| listed(handlers, &snapshot, role)).collect(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

async fn change(
    handlers: &Handlers,
    ctx: &Context,
    name: &str,
    mut body: impl FnMut(&Snapshot, &mut iam::Role) -> Result<()>,
) -> Result<iam::Role> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = need::<iam::Role>(tx, ctx, name)?;
        body(tx.snapshot(), &mut record)?;
        tx.put(record.clone());
        Ok(record)
    })
    .await
}

/// `UpdateRole`.
pub(super) async fn update_role(
    handlers: &Handlers,
    ctx: &Context,
    input: UpdateRoleRequest,
) -> Result<UpdateRoleResponse> {
    change(handlers, ctx, &input.role_name, |_, role| {
        if input.max_session_duration.is_some() {
            role.check_own()?;
        }
        // "If you do not specify a value for this setting, the default value of one hour is applied" is said of new roles only.
        if let Some(seconds) = input.max_session_duration.and_then(|seconds| u32::try_from(seconds).ok()) {
            role.max_session_duration = seconds;
        }
        if input.description.is_some() {
            role.description.clone_from(&input.description);
        }
        Ok(())
    })
    .await?;
    Ok(UpdateRoleResponse {})
}

/// `UpdateRoleDescription`.
pub(super) async fn update_role_description(
    handlers: &Handlers,
    ctx: &Context,
    input: UpdateRoleDescriptionRequest,
) -> Result<UpdateRoleDescriptionResponse> {
    let record = change(handlers, ctx, &input.role_name, |_, role| {
        role.description = Some(input.description.clone());
        Ok(())
    })
    .await?;
    let snapshot = handlers.store.snapshot();
    Ok(UpdateRoleDescriptionResponse { role: Some(role(handlers, &snapshot, &record)) })
}

/// `UpdateAssumeRolePolicy`.
pub(super) async fn update_assume_role_policy(
    handlers: &Handlers,
    ctx: &Context,
    input: UpdateAssumeRolePolicyRequest,
) -> Result<()> {
    change(handlers, ctx, &input.role_name, |snapshot, role| {
        role.check_own()?;
        role.trusted_ids = check_trust(snapshot, &input.policy_document)?;
        role.assume_role_policy_document.clone_from(&input.policy_document);
        Ok(())
    })
    .await
    .map(drop)
}

/// `DeleteRole`.
pub(super) async fn delete_role(handlers: &Handlers, ctx: &Context, input: DeleteRoleRequest) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let record = need::<iam::Role>(tx, ctx, &input.role_name)?;
        record.check_own()?;
        let first = |what: &str| Err(conflict(format!("Cannot delete entity, must {what} first.")));
        if tx.by_index::<iam::InstanceProfile>(&ctx.account, REGION, "role", &record.id).next().is_some() {
            return first("remove roles from instance profile");
        }
        if !record.attached_policies.is_empty() {
            return first("detach all policies");
        }
        if !record.inline_policies.is_empty() {
            return first("delete policies");
        }
        tx.delete::<iam::Role>(&ctx.account, REGION, &record.id);
        tx.delete::<Usage>(GLOBAL_ACCOUNT, REGION, &record.role_id);
        Ok(())
    })
    .await
}

/// `TagRole`.
pub(super) async fn tag_role(handlers: &Handlers, ctx: &Context, input: TagRoleRequest) -> Result<()> {
    tag(handlers, ctx, |tx| need::<iam::Role>(tx, ctx, &input.role_name), &input.tags).await
}

/// `UntagRole`.
pub(super) async fn untag_role(handlers: &Handlers, ctx: &Context, input: UntagRoleRequest) -> Result<()> {
    untag(handlers, ctx, |tx| need::<iam::Role>(tx, ctx, &input.role_name), &input.tag_keys).await
}

/// `ListRoleTags`.
pub(super) async fn list_role_tags(
    handlers: &Handlers,
    ctx: &Context,
    input: ListRoleTagsRequest,
) -> Result<ListRoleTagsResponse> {
    let record = read::<iam::Role>(&handlers.store.snapshot(), ctx, &input.role_name)?;
    let all = tags(&record.tags);
    let found =
        page(handlers, ctx, &record.id, input.max_items, input.marker.as_deref(), all, |tag| &tag.key)?;
    Ok(ListRoleTagsResponse { tags: found.items, is_truncated: found.is_truncated, marker: found.marker })
}

pub(super) fn instance_profile(
    handlers: &Handlers,
    snapshot: &Snapshot,
    record: &iam::InstanceProfile,
) -> InstanceProfile {
    let of_profile =
        record.role.as_ref().and_then(|id| snapshot.get::<iam::Role>(&record.account, REGION, id));
    InstanceProfile {
        path: Some(record.path.clone()),
        instance_profile_name: Some(record.name.clone()),
        instance_profile_id: Some(record.profile_id.clone()),
        arn: Some(record.arn()),
        create_date: Some(record.create_time),
        roles: of_profile.iter().map(|role| listed(handlers, snapshot, role)).collect(),
        tags: tags(&record.tags),
    }
}

/// `CreateInstanceProfile`.
pub(super) async fn create_instance_profile(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateInstanceProfileRequest,
) -> Result<CreateInstanceProfileResponse> {
    let record = iam::InstanceProfile {
        account: ctx.account.clone(),
        id: name_id(&input.instance_profile_name),
        name: input.instance_profile_name,
        profile_id: new_unique_id("AIPA"),
        path: path(input.path)?,
        create_time: ctx.now,
        role: None,
        tags: new_tags(input.tags)?,
    };
    haar_core::transact(&handlers.store, ctx, |tx| {
        check_quota::<iam::InstanceProfile>(tx, ctx, "InstanceProfilesPerAccount", MAX_INSTANCE_PROFILES)?;
        tx.create(record.clone())
            .map_err(|_| exists(format!("Instance Profile {} already exists.", record.name)))
    })
    .await?;
    let made = instance_profile(handlers, &handlers.store.snapshot(), &record);
    Ok(CreateInstanceProfileResponse { instance_profile: Some(made) })
}

/// `GetInstanceProfile`.
pub(super) async fn get_instance_profile(
    handlers: &Handlers,
    ctx: &Context,
    input: GetInstanceProfileRequest,
) -> Result<GetInstanceProfileResponse> {
    let snapshot = handlers.store.snapshot();
    let record = read::<iam::InstanceProfile>(&snapshot, ctx, &input.instance_profile_name)?;
    Ok(GetInstanceProfileResponse { instance_profile: Some(instance_profile(handlers, &snapshot, &record)) })
}

/// `ListInstanceProfiles`.
pub(super) async fn list_instance_profiles(
    handlers: &Handlers,
    ctx: &Context,
    input: ListInstanceProfilesRequest,
) -> Result<ListInstanceProfilesResponse> {
    let snapshot = handlers.store.snapshot();
    let prefix = input.path_prefix.as_deref().unwrap_or("/");
    let profiles = snapshot.list::<iam::InstanceProfile>(&ctx.account, REGION);
    let profiles = profiles.filter(|profile| profile.path.starts_with(prefix));
    let found =
        page(handlers, ctx, &prefix, input.max_items, input.marker.as_deref(), profiles, |one| &one.id)?;
    Ok(ListInstanceProfilesResponse {
        instance_profiles: listed_profiles(handlers, &snapshot, found.items),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

/// Lists do not show tags.
fn listed_profiles(
    handlers: &Handlers,
    snapshot: &Snapshot,
    records: Vec<&Entry<iam::InstanceProfile>>,
) -> Vec<InstanceProfile> {
    let listed = |record: &Entry<iam::InstanceProfile>| InstanceProfile {
        tags: Vec::new(),
        ..instance_profile(handlers, snapshot, record)
    };
    records.into_iter().map(listed).collect()
}

/// `ListInstanceProfilesForRole`.
pub(super) async fn list_instance_profiles_for_role(
    handlers: &Handlers,
    ctx: &Context,
    input: ListInstanceProfilesForRoleRequest,
) -> Result<ListInstanceProfilesForRoleResponse> {
    let snapshot = handlers.store.snapshot();
    let role = read::<iam::Role>(&snapshot, ctx, &input.role_name)?;
    let profiles = snapshot.by_index::<iam::InstanceProfile>(&ctx.account, REGION, "role", &role.id);
    let found =
        page(handlers, ctx, &role.id, input.max_items, input.marker.as_deref(), profiles, |one| &one.id)?;
    Ok(ListInstanceProfilesForRoleResponse {
        instance_profiles: listed_profiles(handlers, &snapshot, found.items),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

/// `DeleteInstanceProfile`.
pub(super) async fn delete_instance_profile(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteInstanceProfileRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let record = need::<iam::InstanceProfile>(tx, ctx, &input.instance_profile_name)?;
        if record.role.is_some() {
            return Err(conflict("Cannot delete entity, must remove roles from instance profile first."));
        }
        tx.delete::<iam::InstanceProfile>(&ctx.account, REGION, &record.id);
        Ok(())
    })
    .await
}

/// `AddRoleToInstanceProfile`.
pub(super) async fn add_role_to_instance_profile(
    handlers: &Handlers,
    ctx: &Context,
    input: AddRoleToInstanceProfileRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = need::<iam::InstanceProfile>(tx, ctx, &input.instance_profile_name)?;
        let role = need::<iam::Role>(tx, ctx, &input.role_name)?;
        role.check_own()?;
        if record.role.is_some() {
            return Err(quota("InstanceSessionsPerInstanceProfile", 1));
        }
        record.role = Some(role.id);
        tx.put(record);
        Ok(())
    })
    .await
}

/// `RemoveRoleFromInstanceProfile`.
pub(super) async fn remove_role_from_instance_profile(
    handlers: &Handlers,
    ctx: &Context,
    input: RemoveRoleFromInstanceProfileRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = need::<iam::InstanceProfile>(tx, ctx, &input.instance_profile_name)?;
        if record.role != Some(name_id(&input.role_name)) {
            return Err(no_such(format!(
                "The role with name {} cannot be found in the instance profile {}.",
                input.role_name, record.name
            )));
        }
        record.role = None;
        tx.put(record);
        Ok(())
    })
    .await
}

/// `TagInstanceProfile`.
pub(super) async fn tag_instance_profile(
    handlers: &Handlers,
    ctx: &Context,
    input: TagInstanceProfileRequest,
) -> Result<()> {
    tag(handlers, ctx, |tx| need::<iam::InstanceProfile>(tx, ctx, &input.instance_profile_name), &input.tags)
        .await
}

/// `UntagInstanceProfile`.
pub(super) async fn untag_instance_profile(
    handlers: &Handlers,
    ctx: &Context,
    input: UntagInstanceProfileRequest,
) -> Result<()> {
    untag(
        handlers,
        ctx,
        |tx| need::<iam::InstanceProfile>(tx, ctx, &input.instance_profile_name),
        &input.tag_keys,
    )
    .await
}

/// `ListInstanceProfileTags`.
pub(super) async fn list_instance_profile_tags(
    handlers: &Handlers,
    ctx: &Context,
    input: ListInstanceProfileTagsRequest,
) -> Result<ListInstanceProfileTagsResponse> {
    let record = read::<iam::InstanceProfile>(&handlers.store.snapshot(), ctx, &input.instance_profile_name)?;
    let all = tags(&record.tags);
    let found =
        page(handlers, ctx, &record.id, input.max_items, input.marker.as_deref(), all, |tag| &tag.key)?;
    Ok(ListInstanceProfileTagsResponse {
        tags: found.items,
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}
