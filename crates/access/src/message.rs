//! Authorization messages: what DecodeAuthorizationMessage tells of a refused request (AWS STS API Reference,
//! "DecodeAuthorizationMessage").

use haar_policy::{Decision, Denied, Key, Keys};
use serde_json::{Value, json};

use crate::access::RequestKeys;
use crate::resources::Resource;

/// The message of a refusal.
pub(crate) fn of(denied: &Denied<'_>, resource: &Resource, keys: &RequestKeys<'_>) -> Value {
    let matched = match denied.decision {
        Decision::ExplicitDeny(found) => {
            let statement = found.statement;
            vec![json!({
                "statementId": statement.sid().unwrap_or_default(),
                "effect": "DENY",
                "policy": found.policy.arn.as_deref().unwrap_or(&found.policy.id),
                "policyType": found.policy_type.to_string(),
            })]
        }
        _ => Vec::new(),
    };
    json!({
        "allowed": false,
        "explicitDeny": matches!(denied.decision, Decision::ExplicitDeny(_)),
        "matchedStatements": {"items": matched},
        "failures": {"items": []},
        "context": {
            "principal": {"id": denied.principal.user_id, "arn": denied.principal.arn},
            "action": denied.action,
            "resource": denied.resource,
            "conditions": {"items": conditions(denied, resource, keys)},
        },
    })
}

/// The keys of the request and their values.
fn conditions(denied: &Denied<'_>, resource: &Resource, keys: &RequestKeys<'_>) -> Vec<Value> {
    let item = |key: &str, values: &mut dyn Iterator<Item = &str>| {
        let values: Vec<_> = values.map(|value| json!({"value": value})).collect();
        json!({"key": key, "values": {"items": values}})
    };
    let mut items = Vec::new();
    for (name, values) in &resource.keys {
        items.push(item(name, &mut values.iter().map(String::as_str)));
    }
    for (key, value) in &resource.tags {
        items.push(item(&format!("aws:ResourceTag/{key}"), &mut [value.as_str()].into_iter()));
    }
    for (key, value) in &keys.tags.given {
        items.push(item(&format!("aws:RequestTag/{key}"), &mut [*value].into_iter()));
    }
    for name in
        ["aws:RequestedRegion", "aws:SourceIp", "aws:UserAgent", "aws:CurrentTime", "aws:SecureTransport"]
    {
        if let Some(values) = keys.get(&Key::new(name)) {
            items.push(item(name, &mut values.iter()));
        }
    }
    for name in
        ["aws:PrincipalArn", "aws:PrincipalAccount", "aws:PrincipalType", "aws:userid", "aws:username"]
    {
        if let Some(values) = denied.principal.get(&Key::new(name)) {
            items.push(item(name, &mut values.iter()));
        }
    }
    items
}
