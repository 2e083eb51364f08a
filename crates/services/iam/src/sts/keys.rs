//! The condition keys of STS (Service Authorization Reference, "Condition keys for AWS Security Token Service").

use std::collections::{BTreeMap, BTreeSet};

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
