//! Account aliases, the summary, and the account's authorization details.

use std::collections::BTreeMap;

use haar_api::Context;
use haar_records::GLOBAL_ACCOUNT;
use haar_records::iam::{
    self, Account, AccountAlias, ManagedPolicy, MfaDevice, OpenIdConnectProvider, REGION,
};
use haar_store::Snapshot;

use super::Handlers;
use super::common::*;
use super::identities::attached;
use super::model::*;
use super::policies::{aws_detail, own_detail, usage_counts};
use super::roles::{instance_profile, role};
use super::users::{group, user};
use crate::aws_managed;

fn account(tx: &mut haar_store::Tx, ctx: &Context) -> Result<Account> {
    let found = tx.get::<Account>(&ctx.account, REGION, &ctx.account);
    found.map(|account| Account::clone(&account)).ok_or_else(|| no_such("The account cannot be found."))
}

/// `CreateAccountAlias`: an account has one; a new one replaces it.
pub(super) async fn create_account_alias(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateAccountAliasRequest,
) -> Result<()> {
    let alias = &input.account_alias;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut account = account(tx, ctx)?;
        if account.alias.as_ref() == Some(alias) {
            return Ok(());
        }
        if let Some(old) = account.alias.replace(alias.clone()) {
            tx.delete::<AccountAlias>(GLOBAL_ACCOUNT, REGION, &old);
        }
        let claim = AccountAlias { id: alias.clone(), holder: ctx.account.clone() };
        tx.create(claim).map_err(|_| exists(format!("The account alias {alias} already exists.")))?;
        tx.put(account);
        Ok(())
    })
    .await
}

/// `DeleteAccountAlias`.
pub(super) async fn delete_account_alias(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteAccountAliasRequest,
) -> Result<()> {
    let alias = &input.account_alias;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut account = account(tx, ctx)?;
        if account.alias.as_ref() != Some(alias) {
            return Err(no_such(format!("The account alias with name {alias} cannot be found.")));
        }
        account.alias = None;
        tx.delete::<AccountAlias>(GLOBAL_ACCOUNT, REGION, alias);
        tx.put(account);
        Ok(())
    })
    .await
}

/// `ListAccountAliases`.
pub(super) async fn list_account_aliases(
    handlers: &Handlers,
    ctx: &Context,
    input: ListAccountAliasesRequest,
) -> Result<ListAccountAliasesResponse> {
    let account = handlers.store.snapshot().get::<Account>(&ctx.account, REGION, &ctx.account);
    let aliases = account.and_then(|account| account.alias.clone());
    let found =
        page(handlers, ctx, &(), input.max_items, input.marker.as_deref(), aliases, |alias| alias.as_str())?;
    Ok(ListAccountAliasesResponse {
        account_aliases: found.items,
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

/// `GetAccountSummary`: what there is, and the quotas.
pub(super) async fn get_account_summary(
    handlers: &Handlers,
    ctx: &Context,
) -> Result<GetAccountSummaryResponse> {
    let snapshot = handlers.store.snapshot();
    let account = &ctx.account;
    let policies: Vec<_> = snapshot.list::<ManagedPolicy>(account, REGION).collect();
    let versions = policies.iter().map(|policy| policy.versions.len()).sum();
    let devices: Vec<_> = snapshot.list::<MfaDevice>(account, REGION).collect();
    let root_keys = iam::AccessKey::owner(account, None);
    let root_keys = snapshot.by_index::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, "owner", &root_keys).count();
    let entries: &[(&str, usize)] = &[
        ("AccessKeysPerUserQuota", 2),
        ("AccountAccessKeysPresent", usize::from(root_keys > 0)),
        ("AccountMFAEnabled", 0),
        ("AccountPasswordPresent", 0),
        ("AccountSigningCertificatesPresent", 0),
        ("AssumeRolePolicySizeQuota", 2048),
        ("AttachedPoliciesPerGroupQuota", 10),
        ("AttachedPoliciesPerRoleQuota", 10),
        ("AttachedPoliciesPerUserQuota", 10),
        ("GlobalEndpointTokenVersion", 2),
        ("GroupPolicySizeQuota", 5120),
        ("Groups", snapshot.list::<iam::Group>(account, REGION).count()),
        ("GroupsPerUserQuota", 10),
        ("GroupsQuota", 300),
        ("InstanceProfiles", snapshot.list::<iam::InstanceProfile>(account, REGION).count()),
        ("InstanceProfilesQuota", 1000),
        ("MFADevices", devices.len()),
        ("MFADevicesInUse", devices.iter().filter(|device| device.assignment.is_some()).count()),
        ("Policies", policies.len()),
        ("PoliciesQuota", 1500),
        ("PolicySizeQuota", 6144),
        ("PolicyVersionsInUse", versions),
        ("PolicyVersionsInUseQuota", 10_000),
        ("Providers", snapshot.list::<OpenIdConnectProvider>(account, REGION).count()),
        ("RolePolicySizeQuota", 10_240),
        ("Roles", snapshot.list::<iam::Role>(account, REGION).count()),
        ("RolesQuota", 1000),
        ("ServerCertificates", 0),
        ("ServerCertificatesQuota", 20),
        ("SigningCertificatesPerUserQuota", 2),
        ("UserPolicySizeQuota", 2048),
        ("Users", snapshot.list::<iam::User>(account, REGION).count()),
        ("UsersQuota", 5000),
        ("VersionsPerPolicyQuota", 5),
    ];
    let entry =
        |(name, value): &(&str, usize)| ((*name).to_owned(), i32::try_from(*value).unwrap_or(i32::MAX));
    Ok(GetAccountSummaryResponse { summary_map: entries.iter().map(entry).collect() })
}

/// One of what GetAccountAuthorizationDetails lists.
enum Detail {
    User(UserDetail),
    Group(GroupDetail),
    Role(RoleDetail),
    Policy(ManagedPolicyDetail),
}

fn inline(policies: &BTreeMap<String, String>) -> Vec<PolicyDetail> {
    let detail = |(name, document): (&String, &String)| PolicyDetail {
        policy_name: Some(name.clone()),
        policy_document: Some(encoded(document)),
    };
    policies.iter().map(detail).collect()
}

fn managed(arns: &[String]) -> Vec<AttachedPolicy> {
    arns.iter().map(|arn| attached(arn)).collect()
}

fn user_detail(snapshot: &Snapshot, record: &iam::User) -> UserDetail {
    let group = |id: &String| Some(snapshot.get::<iam::Group>(&record.account, REGION, id)?.name.clone());
    let User { path, user_name, user_id, arn, create_date, permissions_boundary, tags, .. } = user(record);
    UserDetail {
        path,
        user_name,
        user_id,
        arn,
        create_date,
        user_policy_list: inline(&record.inline_policies),
        group_list: record.groups.iter().filter_map(group).collect(),
        attached_managed_policies: managed(&record.attached_policies),
        permissions_boundary,
        tags,
    }
}

fn group_detail(record: &iam::Group) -> GroupDetail {
    let Group { path, group_name, group_id, arn, create_date } = group(record);
    GroupDetail {
        path,
        group_name,
        group_id,
        arn,
        create_date,
        group_policy_list: inline(&record.inline_policies),
        attached_managed_policies: managed(&record.attached_policies),
    }
}

fn role_detail(handlers: &Handlers, snapshot: &Snapshot, record: &iam::Role) -> RoleDetail {
    let profiles = snapshot.by_index::<iam::InstanceProfile>(&record.account, REGION, "role", &record.id);
    let role = role(handlers, snapshot, record);
    RoleDetail {
        path: role.path,
        role_name: role.role_name,
        role_id: role.role_id,
        arn: role.arn,
        create_date: role.create_date,
        assume_role_policy_document: role.assume_role_policy_document,
        instance_profile_list: profiles
            .map(|profile| instance_profile(handlers, snapshot, profile))
            .collect(),
        role_policy_list: inline(&record.inline_policies),
        attached_managed_policies: managed(&record.attached_policies),
        permissions_boundary: role.permissions_boundary,
        tags: role.tags,
        role_last_used: role.role_last_used,
    }
}

/// `GetAccountAuthorizationDetails`. Of AWS's policies, those that are used.
pub(super) async fn get_account_authorization_details(
    handlers: &Handlers,
    ctx: &Context,
    input: GetAccountAuthorizationDetailsRequest,
) -> Result<GetAccountAuthorizationDetailsResponse> {
    let snapshot = handlers.store.snapshot();
    let account = &ctx.account;
    let wants = |kind: EntityType| input.filter.is_empty() || input.filter.contains(&kind);
    let mut ids: Vec<String> = Vec::new();
    if wants(EntityType::User) {
        ids.extend(snapshot.list::<iam::User>(account, REGION).map(|user| format!("user/{}", user.id)));
    }
    if wants(EntityType::Group) {
        ids.extend(snapshot.list::<iam::Group>(account, REGION).map(|group| format!("group/{}", group.id)));
    }
    if wants(EntityType::Role) {
        ids.extend(snapshot.list::<iam::Role>(account, REGION).map(|role| format!("role/{}", role.id)));
    }
    if wants(EntityType::LocalManagedPolicy) {
        let policies = snapshot.list::<ManagedPolicy>(account, REGION);
        ids.extend(policies.map(|policy| format!("policy/{}", policy.id)));
    }
    if wants(EntityType::AWSManagedPolicy) {
        let used = aws_managed::POLICIES
            .iter()
            .filter(|policy| usage_counts(&snapshot, account, &policy.arn()) != (0, 0));
        ids.extend(used.map(|policy| format!("aws/{}", policy.arn())));
    }
    ids.sort_unstable();
    let filter: Vec<_> = input.filter.iter().map(|kind| kind.as_str()).collect();
    let found =
        page(handlers, ctx, &filter, input.max_items, input.marker.as_deref(), ids, |id| id.as_str())?;
    let detail = |id: &String| {
        let (kind, name) = id.split_once('/')?;
        Some(match kind {
            "user" => {
                Detail::User(user_detail(&snapshot, &*snapshot.get::<iam::User>(account, REGION, name)?))
            }
            "group" => Detail::Group(group_detail(&*snapshot.get::<iam::Group>(account, REGION, name)?)),
            "role" => Detail::Role(role_detail(
                handlers,
                &snapshot,
                &*snapshot.get::<iam::Role>(account, REGION, name)?,
            )),
            "policy" => {
                Detail::Policy(own_detail(&snapshot, &*snapshot.get::<ManagedPolicy>(account, REGION, name)?))
            }
            _ => Detail::Policy(aws_detail(&snapshot, ctx, aws_managed::find(name)?)),
        })
    };
    let mut answer = GetAccountAuthorizationDetailsResponse {
        user_detail_list: Vec::new(),
        group_detail_list: Vec::new(),
        role_detail_list: Vec::new(),
        policies: Vec::new(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    };
    for detail in found.items.iter().filter_map(detail) {
        match detail {
            Detail::User(user) => answer.user_detail_list.push(user),
            Detail::Group(group) => answer.group_detail_list.push(group),
            Detail::Role(role) => answer.role_detail_list.push(role),
            Detail::Policy(policy) => answer.policies.push(policy),
        }
    }
    Ok(answer)
}
