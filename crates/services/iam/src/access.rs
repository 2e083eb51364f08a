//! What decides whether a request may be: the policies of its caller, and the resources of IAM and STS that it names.

use std::sync::Arc;

use haar_access::{Named, Query, Resource};
use haar_api::Context;
use haar_records::iam::{Group, InstanceProfile, ManagedPolicy, REGION, Role, User, name_id};
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
            // The user that is meant without a name is the caller.
            Named::Default if query.resource.name == "user" => {
                return vec![Resource::new(query.ctx.principal.arn.clone())];
            }
            Named::Default => return Vec::new(),
        };
        let snapshot = self.store.snapshot();
        // A resource is named by its name or by its ARN, which says whose it is; its own ARN has its path besides.
        let arn: Vec<&str> = named.splitn(6, ':').collect();
        let (account, name) = match arn.as_slice() {
            ["arn", _, _, _, account, rest] => (*account, rest.rsplit('/').next().unwrap_or(rest)),
            _ => (query.ctx.account.as_str(), named),
        };
        let id = name_id(name);
        let found = match query.resource.name {
            "user" => snapshot.get::<User>(account, REGION, &id).map(|user| {
                let resource = Resource::new(user.arn()).with_tags(user.tags.clone());
                resource.with_some("iam:PermissionsBoundary", user.permissions_boundary.as_ref())
            }),
            "group" => snapshot.get::<Group>(account, REGION, &id).map(|group| Resource::new(group.arn())),
            "role" => snapshot.get::<Role>(account, REGION, &id).map(|role| {
                let resource = Resource::new(role.arn()).with_tags(role.tags.clone());
                resource.with_some("iam:PermissionsBoundary", role.permissions_boundary.as_ref())
            }),
            "oidc-provider-url" => Some(Resource::new(query.arn(crate::sts::provider_id(named)))),
            "instance-profile" => snapshot
                .get::<InstanceProfile>(account, REGION, &id)
                .map(|profile| Resource::new(profile.arn()).with_tags(profile.tags.clone())),
            "policy" => snapshot
                .get::<ManagedPolicy>(account, REGION, &id)
                .map(|policy| Resource::new(policy.arn()).with_tags(policy.tags.clone())),
            _ => None,
        };
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
        vec![resource]
    }
}
