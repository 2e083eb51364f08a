//! What decides whether a request may be: the policies of its caller, and the resources of IAM and STS that it names.

use std::sync::Arc;

use haar_access::{Named, Query, Resource};
use haar_api::{Context, PrincipalKind};
use haar_records::iam::{
    Group, InstanceProfile, ManagedPolicy, MfaDevice, OpenIdConnectProvider, REGION, Role, User, name_id,
};
use haar_store::Store;

use crate::caller::{Caller, Documents};

/// Knows who signed requests, and the resources of IAM and STS.
#[derive(Clone)]
pub struct Directory {
    store: Store,
    documents: Arc<Documents>,
}

impl Directory {
    /// Over the records of a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, documents: Arc::default() }
    }
}

impl haar_access::Callers for Directory {
    fn caller(&self, ctx: &Context) -> haar_access::Caller {
        Caller::of(&ctx.principal, &self.store.snapshot(), &self.documents).into_access()
    }
}

impl haar_access::Resources for Directory {
    fn find(&self, query: &Query<'_>) -> Vec<Resource> {
        let named = match query.named {
            Named::Id(named) => named,
            Named::New => "*",
            // Without a name, IAM means the user that asks.
            Named::Default => match &query.ctx.principal.kind {
                PrincipalKind::User { name } => name,
                _ => "*",
            },
        };
        let snapshot = self.store.snapshot();
        // A resource is named by its name or by its ARN, which says whose it is and of which type; its own ARN has its path besides.
        let arn: Vec<&str> = named.splitn(6, ':').collect();
        let (account, resource_type, name) = match arn.as_slice() {
            ["arn", _, _, _, account, rest] => {
                let (resource_type, _) = rest.split_once('/').unwrap_or((rest, ""));
                (*account, resource_type, rest.rsplit('/').next().unwrap_or(rest))
            }
            _ => (query.ctx.account.as_str(), query.resource.name, named),
        };
        let id = name_id(name);
        let found = match resource_type {
            "user" => snapshot.get::<User>(account, REGION, &id).map(|user| {
                let resource = Resource::new(user.arn()).with_tags(user.tags.clone());
                resource.with_some("iam:PermissionsBoundary", user.permissions_boundary.as_ref())
            }),
            "group" => snapshot.get::<Group>(account, REGION, &id).map(|group| Resource::new(group.arn())),
            "role" => snapshot.get::<Role>(account, REGION, &id).map(|role| {
                let resource = Resource::new(role.arn()).with_tags(role.tags.clone());
                resource.with_some("iam:PermissionsBoundary", role.permissions_boundary.as_ref())
            }),
            "mfa" => snapshot
                .get::<MfaDevice>(account, REGION, &id)
                .map(|device| Resource::new(device.arn()).with_tags(device.tags.clone())),
            "oidc-provider-url" => Some(Resource::new(query.arn(crate::sts::provider_id(named)))),
            "instance-profile" => snapshot
                .get::<InstanceProfile>(account, REGION, &id)
                .map(|profile| Resource::new(profile.arn()).with_tags(profile.tags.clone())),
            "policy" => snapshot
                .get::<ManagedPolicy>(account, REGION, &id)
                .map(|policy| Resource::new(policy.arn()).with_tags(policy.tags.clone())),
            "oidc-provider" => snapshot
                .get::<OpenIdConnectProvider>(
                    account,
                    REGION,
                    named.split_once("oidc-provider/").map_or(name, |(_, id)| id),
                )
                .map(|provider| Resource::new(provider.arn()).with_tags(provider.tags.clone())),
            _ => None,
        };
        // An ARN that is not quite the resource's names nothing, and must not tell what there is in its place.
        let found = found.filter(|resource| !named.starts_with("arn:") || resource.arn == named);
        // What does not exist yet gets the path that the request says.
        let new = || {
            let path = query.request().text(&["Path"]).unwrap_or("/").trim_start_matches('/');
            Resource::new(if named.starts_with("arn:") {
                named.to_owned()
            } else {
                query.arn(&format!("{path}{named}"))
            })
        };
        let mut resource = found.unwrap_or_else(new);
        for (key, path) in [
            ("iam:PolicyARN", &["PolicyArn"][..]),
            ("iam:PermissionsBoundary", &["PermissionsBoundary"]),
            ("iam:AWSServiceName", &["AWSServiceName"]),
            ("sts:ExternalId", &["ExternalId"]),
            ("sts:RoleSessionName", &["RoleSessionName"]),
            ("sts:SourceIdentity", &["SourceIdentity"]),
        ] {
            if let Some(value) = query.request().text(path) {
                // What the request gives counts, not what was there before.
                resource.keys.retain(|(known, _)| *known != key);
                resource = resource.with(key, value);
            }
        }
        if query.action == "iam:PassRole" {
            resource = resource.with("iam:PassedToService", "ec2.amazonaws.com");
        }
        let target = renamed(query, &resource);
        std::iter::once(resource).chain(target).collect()
    }
}

/// What a user or group is to be after a request that renames or moves it: "the requester must have appropriate permissions on both the
/// source object and the target object" (IAM API Reference, "UpdateUser", "UpdateGroup").
fn renamed(query: &Query<'_>, source: &Resource) -> Option<Resource> {
    if !matches!(query.operation(), "UpdateGroup" | "UpdateUser") {
        return None;
    }
    let says = |member: &str| query.request().text(&[member]);
    let (name, path) = (says("NewUserName").or_else(|| says("NewGroupName")), says("NewPath"));
    let (_, own) = source.arn.split_once('/')?;
    let (own_path, own_name) = own.rsplit_once('/').unwrap_or(("", own));
    let path = path.unwrap_or(own_path).trim_matches('/');
    let name = name.unwrap_or(own_name);
    let separator = if path.is_empty() { "" } else { "/" };
    let target = Resource::new(query.arn(&format!("{path}{separator}{name}")));
    (target.arn != source.arn).then_some(target)
}
