//! Users and groups.

use std::collections::{BTreeMap, BTreeSet};

use haar_api::Context;
use haar_records::GLOBAL_ACCOUNT;
use haar_records::iam::{self, AccessKey, MfaDevice, REGION, name_id};

use super::Handlers;
use super::common::*;
use super::identities::{boundary, check_boundary};
use super::model::*;
use super::tags::{new_tags, tag, tags, untag};
use crate::keyring::new_unique_id;

const MAX_USERS: usize = 5000;
const MAX_GROUPS: usize = 300;
const MAX_GROUPS_PER_USER: usize = 10;

pub(super) fn user(record: &iam::User) -> User {
    User {
        path: Some(record.path.clone()),
        user_name: Some(record.name.clone()),
        user_id: Some(record.user_id.clone()),
        arn: Some(record.arn()),
        create_date: Some(record.create_time),
        password_last_used: None,
        permissions_boundary: boundary(record.permissions_boundary.as_ref()),
        tags: tags(&record.tags),
    }
}

/// Lists show neither tags nor boundaries.
pub(super) fn listed_user(record: &iam::User) -> User {
    User { permissions_boundary: None, tags: Vec::new(), ..user(record) }
}

pub(super) fn group(record: &iam::Group) -> Group {
    Group {
        path: Some(record.path.clone()),
        group_name: Some(record.name.clone()),
        group_id: Some(record.group_id.clone()),
        arn: Some(record.arn()),
        create_date: Some(record.create_time),
    }
}

/// `CreateUser`.
pub(super) async fn create_user(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateUserRequest,
) -> Result<CreateUserResponse> {
    let record = iam::User {
        account: ctx.account.clone(),
        id: name_id(&input.user_name),
        name: input.user_name,
        user_id: new_unique_id("AIDA"),
        path: path(input.path)?,
        create_time: ctx.now,
        permissions_boundary: input.permissions_boundary,
        attached_policies: Vec::new(),
        inline_policies: BTreeMap::new(),
        groups: BTreeSet::new(),
        tags: new_tags(input.tags)?,
    };
    haar_core::transact(&handlers.store, ctx, |tx| {
        check_boundary(tx, ctx, record.permissions_boundary.as_ref())?;
        check_quota::<iam::User>(tx, ctx, "UsersPerAccount", MAX_USERS)?;
        tx.create(record.clone())
            .map_err(|_| exists(format!("User with name {} already exists.", record.name)))
    })
    .await?;
    Ok(CreateUserResponse { user: Some(user(&record)) })
}

/// `GetUser`.
pub(super) async fn get_user(
    handlers: &Handlers,
    ctx: &Context,
    input: GetUserRequest,
) -> Result<GetUserResponse> {
    let snapshot = handlers.store.snapshot();
    let found = match user_or_caller(ctx, input.user_name)? {
        Some(name) => user(&*read::<iam::User>(&snapshot, ctx, &name)?),
        None => User {
            path: Some("/".into()),
            user_name: None,
            user_id: Some(ctx.account.clone()),
            arn: Some(ctx.principal.arn.clone()),
            create_date: snapshot
                .get::<iam::Account>(&ctx.account, REGION, &ctx.account)
                .map(|account| account.create_time),
            password_last_used: None,
            permissions_boundary: None,
            tags: Vec::new(),
        },
    };
    Ok(GetUserResponse { user: Some(found) })
}

/// `ListUsers`.
pub(super) async fn list_users(
    handlers: &Handlers,
    ctx: &Context,
    input: ListUsersRequest,
) -> Result<ListUsersResponse> {
    let snapshot = handlers.store.snapshot();
    let prefix = input.path_prefix.as_deref().unwrap_or("/");
    let users = snapshot.list::<iam::User>(&ctx.account, REGION).filter(|user| user.path.starts_with(prefix));
    let found =
        page(handlers, ctx, &prefix, input.max_items, input.marker.as_deref(), users, |user| &user.id)?;
    Ok(ListUsersResponse {
        users: found.items.into_iter().map(|user| listed_user(user)).collect(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

/// `UpdateUser`: another name or path; the unique id, keys and memberships stay.
pub(super) async fn update_user(handlers: &Handlers, ctx: &Context, input: UpdateUserRequest) -> Result<()> {
    let new_path = input.new_path.map(|new| path(Some(new))).transpose()?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = need::<iam::User>(tx, ctx, &input.user_name)?;
        if let Some(path) = &new_path {
            record.path.clone_from(path);
        }
        if let Some(name) = &input.new_user_name {
            let id = name_id(name);
            if id != record.id {
                if tx.get::<iam::User>(&ctx.account, REGION, &id).is_some() {
                    return Err(exists(format!("User with name {name} already exists.")));
                }
                tx.delete::<iam::User>(&ctx.account, REGION, &record.id);
                let owner = AccessKey::owner(&ctx.account, Some(&record.user_id));
                let keys: Vec<_> =
                    tx.by_index::<AccessKey>(GLOBAL_ACCOUNT, REGION, "owner", &owner).cloned().collect();
                for key in keys {
                    tx.put(AccessKey { user_name: Some(id.clone()), ..AccessKey::clone(&key) });
                }
                record.id = id;
            }
            record.name.clone_from(name);
        }
        tx.put(record);
        Ok(())
    })
    .await
}

/// `DeleteUser`.
pub(super) async fn delete_user(handlers: &Handlers, ctx: &Context, input: DeleteUserRequest) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let record = need::<iam::User>(tx, ctx, &input.user_name)?;
        let first = |what: &str| Err(conflict(format!("Cannot delete entity, must {what} first.")));
        let owner = AccessKey::owner(&ctx.account, Some(&record.user_id));
        if tx.by_index::<AccessKey>(GLOBAL_ACCOUNT, REGION, "owner", &owner).next().is_some() {
            return first("delete access keys");
        }
        if tx.by_index::<MfaDevice>(&ctx.account, REGION, "user", &record.user_id).next().is_some() {
            return first("delete MFA device");
        }
        if !record.groups.is_empty() {
            return first("remove users from group");
        }
        if !record.attached_policies.is_empty() {
            return first("detach all policies");
        }
        if !record.inline_policies.is_empty() {
            return first("delete policies");
        }
        tx.delete::<iam::User>(&ctx.account, REGION, &record.id);
        Ok(())
    })
    .await
}

/// `TagUser`.
pub(super) async fn tag_user(handlers: &Handlers, ctx: &Context, input: TagUserRequest) -> Result<()> {
    tag(handlers, ctx, |tx| need::<iam::User>(tx, ctx, &input.user_name), &input.tags).await
}

/// `UntagUser`.
pub(super) async fn untag_user(handlers: &Handlers, ctx: &Context, input: UntagUserRequest) -> Result<()> {
    untag(handlers, ctx, |tx| need::<iam::User>(tx, ctx, &input.user_name), &input.tag_keys).await
}

/// `ListUserTags`.
pub(super) async fn list_user_tags(
    handlers: &Handlers,
    ctx: &Context,
    input: ListUserTagsRequest,
) -> Result<ListUserTagsResponse> {
    let record = read::<iam::User>(&handlers.store.snapshot(), ctx, &input.user_name)?;
    let all = tags(&record.tags);
    let found =
        page(handlers, ctx, &record.id, input.max_items, input.marker.as_deref(), all, |tag| &tag.key)?;
    Ok(ListUserTagsResponse { tags: found.items, is_truncated: found.is_truncated, marker: found.marker })
}

/// `CreateGroup`.
pub(super) async fn create_group(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateGroupRequest,
) -> Result<CreateGroupResponse> {
    let record = iam::Group {
        account: ctx.account.clone(),
        id: name_id(&input.group_name),
        name: input.group_name,
        group_id: new_unique_id("AGPA"),
        path: path(input.path)?,
        create_time: ctx.now,
        attached_policies: Vec::new(),
        inline_policies: BTreeMap::new(),
    };
    haar_core::transact(&handlers.store, ctx, |tx| {
        check_quota::<iam::Group>(tx, ctx, "GroupsPerAccount", MAX_GROUPS)?;
        tx.create(record.clone())
            .map_err(|_| exists(format!("Group with name {} already exists.", record.name)))
    })
    .await?;
    Ok(CreateGroupResponse { group: Some(group(&record)) })
}

/// `GetGroup`.
pub(super) async fn get_group(
    handlers: &Handlers,
    ctx: &Context,
    input: GetGroupRequest,
) -> Result<GetGroupResponse> {
    let snapshot = handlers.store.snapshot();
    let record = read::<iam::Group>(&snapshot, ctx, &input.group_name)?;
    let members = snapshot.by_index::<iam::User>(&ctx.account, REGION, "group", &record.id);
    let found =
        page(handlers, ctx, &record.id, input.max_items, input.marker.as_deref(), members, |user| &user.id)?;
    Ok(GetGroupResponse {
        group: Some(group(&record)),
        users: found.items.into_iter().map(|user| listed_user(user)).collect(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

/// `ListGroups`.
pub(super) async fn list_groups(
    handlers: &Handlers,
    ctx: &Context,
    input: ListGroupsRequest,
) -> Result<ListGroupsResponse> {
    let snapshot = handlers.store.snapshot();
    let prefix = input.path_prefix.as_deref().unwrap_or("/");
    let groups =
        snapshot.list::<iam::Group>(&ctx.account, REGION).filter(|group| group.path.starts_with(prefix));
    let found =
        page(handlers, ctx, &prefix, input.max_items, input.marker.as_deref(), groups, |group| &group.id)?;
    Ok(ListGroupsResponse {
        groups: found.items.into_iter().map(|record| group(record)).collect(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

/// `ListGroupsForUser`.
pub(super) async fn list_groups_for_user(
    handlers: &Handlers,
    ctx: &Context,
    input: ListGroupsForUserRequest,
) -> Result<ListGroupsForUserResponse> {
    let snapshot = handlers.store.snapshot();
    let user = read::<iam::User>(&snapshot, ctx, &input.user_name)?;
    let groups = user.groups.iter().filter_map(|id| snapshot.get::<iam::Group>(&ctx.account, REGION, id));
    let found =
        page(handlers, ctx, &user.id, input.max_items, input.marker.as_deref(), groups, |group| &group.id)?;
    Ok(ListGroupsForUserResponse {
        groups: found.items.iter().map(|record| group(record)).collect(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

/// `UpdateGroup`: another name or path; members stay.
pub(super) async fn update_group(
    handlers: &Handlers,
    ctx: &Context,
    input: UpdateGroupRequest,
) -> Result<()> {
    let new_path = input.new_path.map(|new| path(Some(new))).transpose()?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = need::<iam::Group>(tx, ctx, &input.group_name)?;
        if let Some(path) = &new_path {
            record.path.clone_from(path);
        }
        if let Some(name) = &input.new_group_name {
            let id = name_id(name);
            if id != record.id {
                if tx.get::<iam::Group>(&ctx.account, REGION, &id).is_some() {
                    return Err(exists(format!("Group with name {name} already exists.")));
                }
                let members: Vec<_> =
                    tx.by_index::<iam::User>(&ctx.account, REGION, "group", &record.id).cloned().collect();
                for member in members {
                    let mut member = iam::User::clone(&member);
                    member.groups.remove(&record.id);
                    member.groups.insert(id.clone());
                    tx.put(member);
                }
                tx.delete::<iam::Group>(&ctx.account, REGION, &record.id);
                record.id = id;
            }
            record.name.clone_from(name);
        }
        tx.put(record);
        Ok(())
    })
    .await
}

/// `DeleteGroup`.
pub(super) async fn delete_group(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteGroupRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let record = need::<iam::Group>(tx, ctx, &input.group_name)?;
        let first = |what: &str| Err(conflict(format!("Cannot delete entity, must {what} first.")));
        if tx.by_index::<iam::User>(&ctx.account, REGION, "group", &record.id).next().is_some() {
            return first("remove users from group");
        }
        if !record.attached_policies.is_empty() {
            return first("detach all policies");
        }
        if !record.inline_policies.is_empty() {
            return first("delete policies");
        }
        tx.delete::<iam::Group>(&ctx.account, REGION, &record.id);
        Ok(())
    })
    .await
}

/// `AddUserToGroup`.
pub(super) async fn add_user_to_group(
    handlers: &Handlers,
    ctx: &Context,
    input: AddUserToGroupRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let group = need::<iam::Group>(tx, ctx, &input.group_name)?;
        let mut user = need::<iam::User>(tx, ctx, &input.user_name)?;
        user.groups.insert(group.id);
        if user.groups.len() > MAX_GROUPS_PER_USER {
            return Err(quota("GroupsPerUser", MAX_GROUPS_PER_USER));
        }
        tx.put(user);
        Ok(())
    })
    .await
}

/// `RemoveUserFromGroup`.
pub(super) async fn remove_user_from_group(
    handlers: &Handlers,
    ctx: &Context,
    input: RemoveUserFromGroupRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let group = need::<iam::Group>(tx, ctx, &input.group_name)?;
        let mut user = need::<iam::User>(tx, ctx, &input.user_name)?;
        // Removing who is not in it succeeds, as on AWS.
        user.groups.remove(&group.id);
        tx.put(user);
        Ok(())
    })
    .await
}
