//! The condition keys of STS (Service Authorization Reference, "Condition keys for AWS Security Token Service").

use std::collections::{BTreeMap, BTreeSet};

use haar_api::Context;
use haar_policy::Environment;

/// The keys that do not depend on the operation.
pub(super) fn environment(ctx: &Context) -> Environment<'_> {
    Environment {
        time: ctx.now,
        source_ip: Some(ctx.source_ip),
        secure_transport: false,
        user_agent: ctx.user_agent.as_deref(),
        referer: None,
        requested_region: Some(&ctx.region),
        via_aws_service: false,
    }
}

/// The keys of a request for a session.
pub(super) fn of_session(
    session_name: Option<&str>,
    duration: Option<i32>,
    tags: &BTreeMap<String, String>,
    transitive: &BTreeSet<String>,
) -> haar_policy::Context {
    let mut keys = haar_policy::Context::new();
    if let Some(name) = session_name {
        keys.insert("sts:RoleSessionName", [name]);
    }
    if let Some(seconds) = duration {
        keys.insert("sts:DurationSeconds", [seconds.to_string()]);
    }
    if !tags.is_empty() {
        keys.insert("aws:TagKeys", tags.keys());
        for (key, value) in tags {
            keys.insert(&format!("aws:RequestTag/{key}"), [value]);
        }
    }
    if !transitive.is_empty() {
        keys.insert("sts:TransitiveTagKeys", transitive.iter());
    }
    keys
}
