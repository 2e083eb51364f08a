//! What users, groups and roles have in common: inline policies, attached managed policies, boundaries.

use std::collections::BTreeMap;

use haar_api::{Context, Error};
use haar_policy::PolicyKind;
use haar_records::iam::{Group, ManagedPolicy, REGION, Role, User, name_id};
use haar_store::Tx;

use super::Handlers;
use super::common::*;
use super::model::*;
use crate::aws_managed;
use crate::caller::policy_arn;

/// Most managed policies of one user, group or role.
pub(super) const MAX_ATTACHED: usize = 10;

/// A user, group or role.
pub(super) trait Identity: Named {
    const NOUN: &'static str;
    /// The name of the quota of attached policies.
    const ATTACHED_QUOTA: &'static str;
    /// Most characters of all inline policies together.
    const MAX_INLINE: usize;
    fn name(&self) -> &str;
    fn attached(&mut self) -> &mut Vec<String>;
    fn inline(&mut self) -> &mut BTreeMap<String, String>;
    fn see_attached(&self) -> &[String];
    fn see_inline(&self) -> &BTreeMap<String, String>;
    /// Refuses changes of what only a service changes.
    fn check_own(&self) -> Result<()> {
        Ok(())
    }
}

macro_rules! identity {
    ($type:ty, $noun:literal, $quota:literal, $most:literal $(, $own:item)?) => {
        impl Identity for $type {
            const NOUN: &'static str = $noun;
            const ATTACHED_QUOTA: &'static str = $quota;
            const MAX_INLINE: usize = $most;
            fn name(&self) -> &str {
                &self.name
            }
            fn attached(&mut self) -> &mut Vec<String> {
                &mut self.attached_policies
            }
            fn inline(&mut self) -> &mut BTreeMap<String, String> {
                &mut self.inline_policies
            }
            fn see_attached(&self) -> &[String] {
                &self.attached_policies
            }
            fn see_inline(&self) -> &BTreeMap<String, String> {
                &self.inline_policies
            }
            $($own)?
        }
    };
}

identity!(User, "user", "PoliciesPerUser", 2048);
identity!(Group, "group", "PoliciesPerGroup", 5120);
identity!(
    Role,
    "role",
    "PoliciesPerRole",
    10240,
    fn check_own(&self) -> Result<()> {
        match &self.linked_service {
            None => Ok(()),
            Some(_) => Err(unmodifiable(format!(
                "Cannot perform the operation on the protected role '{}' - this role is only modifiable by AWS",
                self.name
            ))),
        }
    }
);

async fn change<T: Identity>(
    handlers: &Handlers,
    ctx: &Context,
    name: &str,
    mut body: impl FnMut(&mut Tx, &mut T) -> Result<()>,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut identity = need::<T>(tx, ctx, name)?;
        identity.check_own()?;
        body(tx, &mut identity)?;
        tx.put(identity);
        Ok(())
    })
    .await
}

async fn put_inline<T: Identity>(
    handlers: &Handlers,
    ctx: &Context,
    name: &str,
    policy_name: &str,
    document: &str,
) -> Result<()> {
    check_document(document, PolicyKind::Inline)?;
    change::<T>(handlers, ctx, name, |_, identity| {
        identity.inline().insert(policy_name.to_owned(), document.to_owned());
        let total = identity.see_inline().values().map(|document| length(document)).sum();
        check_size(total, T::MAX_INLINE, || {
            limit_exceeded(format!(
                "Maximum policy size of {} bytes exceeded for {} {}",
                T::MAX_INLINE,
                T::NOUN,
                identity.name()
            ))
        })
    })
    .await
}

fn no_inline<T: Identity>(policy_name: &str) -> Error {
    no_such(format!("The {} policy with name {policy_name} cannot be found.", T::NOUN))
}

async fn delete_inline<T: Identity>(
    handlers: &Handlers,
    ctx: &Context,
    name: &str,
    policy_name: &str,
) -> Result<()> {
    change::<T>(handlers, ctx, name, |_, identity| {
        identity.inline().remove(policy_name).map(drop).ok_or_else(|| no_inline::<T>(policy_name))
    })
    .await
}

/// Names as they are written, and the document.
fn get_inline<T: Identity>(
    handlers: &Handlers,
    ctx: &Context,
    name: &str,
    policy_name: &str,
) -> Result<(String, String)> {
    let identity = read::<T>(&handlers.store.snapshot(), ctx, name)?;
    let document = identity.see_inline().get(policy_name).ok_or_else(|| no_inline::<T>(policy_name))?;
    Ok((identity.name().to_owned(), encoded(document)))
}

fn list_inline<T: Identity>(
    handlers: &Handlers,
    ctx: &Context,
    name: &str,
    max_items: Option<i32>,
    marker: Option<&str>,
) -> Result<Page<String>> {
    let identity = read::<T>(&handlers.store.snapshot(), ctx, name)?;
    let names = identity.see_inline().keys().cloned();
    page(handlers, ctx, &name, max_items, marker, names, |name| name)
}

async fn attach<T: Identity>(handlers: &Handlers, ctx: &Context, name: &str, arn: &str) -> Result<()> {
    change::<T>(handlers, ctx, name, |tx, identity| {
        check_attachable(tx, ctx, arn)?;
        if identity.see_attached().iter().any(|own| own == arn) {
            return Ok(());
        }
        if identity.see_attached().len() >= MAX_ATTACHED {
            return Err(quota(T::ATTACHED_QUOTA, MAX_ATTACHED));
        }
        identity.attached().push(arn.to_owned());
        Ok(())
    })
    .await
}

async fn detach<T: Identity>(handlers: &Handlers, ctx: &Context, name: &str, arn: &str) -> Result<()> {
    change::<T>(handlers, ctx, name, |_, identity| {
        let before = identity.see_attached().len();
        identity.attached().retain(|own| own != arn);
        if identity.see_attached().len() == before {
            return Err(no_such(format!("Policy {arn} was not found.")));
        }
        Ok(())
    })
    .await
}

/// Whether a managed policy of the account or of AWS has this ARN; the transaction relies on it, so that one that is deleted at the
/// same time is not attached.
pub(super) fn check_attachable(tx: &mut Tx, ctx: &Context, arn: &str) -> Result<()> {
    let own = policy_arn(arn).filter(|(account, _)| *account == ctx.account);
    let found = match own {
        Some((account, name)) => {
            tx.get::<ManagedPolicy>(account, REGION, &name_id(name)).is_some_and(|policy| policy.arn() == arn)
        }
        None => aws_managed::find(arn).is_some(),
    };
    if found { Ok(()) } else { Err(no_such(format!("Policy {arn} does not exist or is not attachable."))) }
}

fn list_attached<T: Identity>(
    handlers: &Handlers,
    ctx: &Context,
    name: &str,
    prefix: Option<&str>,
    max_items: Option<i32>,
    marker: Option<&str>,
) -> Result<Page<AttachedPolicy>> {
    let identity = read::<T>(&handlers.store.snapshot(), ctx, name)?;
    let mut arns = identity.see_attached().to_vec();
    arns.retain(|arn| policy_path(arn).starts_with(prefix.unwrap_or("/")));
    arns.sort_unstable();
    let found = page(handlers, ctx, &(name, prefix), max_items, marker, arns, |arn| arn)?;
    let items = found.items.iter().map(|arn| attached(arn)).collect();
    Ok(Page { items, is_truncated: found.is_truncated, marker: found.marker })
}

/// The path in a managed policy's ARN.
fn policy_path(arn: &str) -> &str {
    let resource = arn.splitn(6, ':').nth(5).unwrap_or_default();
    let path = resource.strip_prefix("policy").unwrap_or_default();
    path.rfind('/').map_or("", |end| &path[..=end])
}

pub(super) fn attached(arn: &str) -> AttachedPolicy {
    AttachedPolicy {
        policy_name: Some(arn.rsplit('/').next().unwrap_or_default().to_owned()),
        policy_arn: Some(arn.to_owned()),
    }
}

pub(super) fn boundary(arn: Option<&String>) -> Option<AttachedPermissionsBoundary> {
    arn.map(|arn| AttachedPermissionsBoundary {
        permissions_boundary_type: Some(PermissionsBoundaryAttachmentType::PermissionsBoundaryPolicy),
        permissions_boundary_arn: Some(arn.clone()),
    })
}

pub(super) fn check_boundary(tx: &mut Tx, ctx: &Context, arn: Option<&String>) -> Result<()> {
    match arn {
        None => Ok(()),
        Some(arn) => check_attachable(tx, ctx, arn)
            .map_err(|_| no_such(format!("Scope ARN: {arn} does not exist or is not attachable."))),
    }
}

/// Operations that exist for each kind of identity.
macro_rules! operations {
    ($type:ty, $field:ident,
     put $put:ident $put_request:ty; delete $delete:ident $delete_request:ty;
     get $get:ident $get_request:ty => $get_response:ident;
     list $list:ident $list_request:ty => $list_response:ident;
     attach $attach:ident $attach_request:ty; detach $detach:ident $detach_request:ty;
     list_attached $list_attached:ident $list_attached_request:ty => $list_attached_response:ident;
    ) => {
        pub(super) async fn $put(handlers: &Handlers, ctx: &Context, input: $put_request) -> Result<()> {
            put_inline::<$type>(handlers, ctx, &input.$field, &input.policy_name, &input.policy_document)
                .await
        }

        pub(super) async fn $delete(
            handlers: &Handlers,
            ctx: &Context,
            input: $delete_request,
        ) -> Result<()> {
            delete_inline::<$type>(handlers, ctx, &input.$field, &input.policy_name).await
        }

        pub(super) async fn $get(
            handlers: &Handlers,
            ctx: &Context,
            input: $get_request,
        ) -> Result<$get_response> {
            let (name, document) = get_inline::<$type>(handlers, ctx, &input.$field, &input.policy_name)?;
            Ok($get_response {
                $field: Some(name),
                policy_name: Some(input.policy_name),
                policy_document: Some(document),
            })
        }

        pub(super) async fn $list(
            handlers: &Handlers,
            ctx: &Context,
            input: $list_request,
        ) -> Result<$list_response> {
            let marker = input.marker.as_deref();
            let found = list_inline::<$type>(handlers, ctx, &input.$field, input.max_items, marker)?;
            Ok($list_response {
                policy_names: found.items,
                is_truncated: found.is_truncated,
                marker: found.marker,
            })
        }

        pub(super) async fn $attach(
            handlers: &Handlers,
            ctx: &Context,
            input: $attach_request,
        ) -> Result<()> {
            attach::<$type>(handlers, ctx, &input.$field, &input.policy_arn).await
        }

        pub(super) async fn $detach(
            handlers: &Handlers,
            ctx: &Context,
            input: $detach_request,
        ) -> Result<()> {
            detach::<$type>(handlers, ctx, &input.$field, &input.policy_arn).await
        }

        pub(super) async fn $list_attached(
            handlers: &Handlers,
            ctx: &Context,
            input: $list_attached_request,
        ) -> Result<$list_attached_response> {
            let (prefix, marker) = (input.path_prefix.as_deref(), input.marker.as_deref());
            let found =
                list_attached::<$type>(handlers, ctx, &input.$field, prefix, input.max_items, marker)?;
            Ok($list_attached_response {
                attached_policies: found.items,
                is_truncated: found.is_truncated,
                marker: found.marker,
            })
        }
    };
}

operations! { User, user_name,
    put put_user_policy PutUserPolicyRequest; delete delete_user_policy DeleteUserPolicyRequest;
    get get_user_policy GetUserPolicyRequest => GetUserPolicyResponse;
    list list_user_policies ListUserPoliciesRequest => ListUserPoliciesResponse;
    attach attach_user_policy AttachUserPolicyRequest; detach detach_user_policy DetachUserPolicyRequest;
    list_attached list_attached_user_policies ListAttachedUserPoliciesRequest => ListAttachedUserPoliciesResponse;
}

operations! { Group, group_name,
    put put_group_policy PutGroupPolicyRequest; delete delete_group_policy DeleteGroupPolicyRequest;
    get get_group_policy GetGroupPolicyRequest => GetGroupPolicyResponse;
    list list_group_policies ListGroupPoliciesRequest => ListGroupPoliciesResponse;
    attach attach_group_policy AttachGroupPolicyRequest; detach detach_group_policy DetachGroupPolicyRequest;
    list_attached list_attached_group_policies ListAttachedGroupPoliciesRequest => ListAttachedGroupPoliciesResponse;
}

operations! { Role, role_name,
    put put_role_policy PutRolePolicyRequest; delete delete_role_policy DeleteRolePolicyRequest;
    get get_role_policy GetRolePolicyRequest => GetRolePolicyResponse;
    list list_role_policies ListRolePoliciesRequest => ListRolePoliciesResponse;
    attach attach_role_policy AttachRolePolicyRequest; detach detach_role_policy DetachRolePolicyRequest;
    list_attached list_attached_role_policies ListAttachedRolePoliciesRequest => ListAttachedRolePoliciesResponse;
}

/// `PutUserPermissionsBoundary`.
pub(super) async fn put_user_permissions_boundary(
    handlers: &Handlers,
    ctx: &Context,
    input: PutUserPermissionsBoundaryRequest,
) -> Result<()> {
    change::<User>(handlers, ctx, &input.user_name, |tx, user| {
        check_boundary(tx, ctx, Some(&input.permissions_boundary))?;
        user.permissions_boundary = Some(input.permissions_boundary.clone());
        Ok(())
    })
    .await
}

/// `PutRolePermissionsBoundary`.
pub(super) async fn put_role_permissions_boundary(
    handlers: &Handlers,
    ctx: &Context,
    input: PutRolePermissionsBoundaryRequest,
) -> Result<()> {
    change::<Role>(handlers, ctx, &input.role_name, |tx, role| {
        check_boundary(tx, ctx, Some(&input.permissions_boundary))?;
        role.permissions_boundary = Some(input.permissions_boundary.clone());
        Ok(())
    })
    .await
}

/// `DeleteUserPermissionsBoundary`.
pub(super) async fn delete_user_permissions_boundary(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteUserPermissionsBoundaryRequest,
) -> Result<()> {
    change::<User>(handlers, ctx, &input.user_name, |_, user| {
        let name = user.name.clone();
        user.permissions_boundary.take().map(drop).ok_or_else(|| no_boundary("user", &name))
    })
    .await
}

/// `DeleteRolePermissionsBoundary`.
pub(super) async fn delete_role_permissions_boundary(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteRolePermissionsBoundaryRequest,
) -> Result<()> {
    change::<Role>(handlers, ctx, &input.role_name, |_, role| {
        let name = role.name.clone();
        role.permissions_boundary.take().map(drop).ok_or_else(|| no_boundary("role", &name))
    })
    .await
}

fn no_boundary(noun: &str, name: &str) -> Error {
    no_such(format!("There is no permissions boundary on {noun} {name}."))
}
