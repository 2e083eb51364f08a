//! Trust policies: whom they name, by unique id.
//!
//! "When you save the trust policy, IAM transforms the ARN into the user's or role's unique principal ID", so that who is made later
//! under a name that a policy trusts is not trusted (IAM User Guide, "AWS JSON policy elements: Principal").

use std::borrow::Cow;
use std::collections::BTreeMap;

use haar_api::Error;
use haar_policy::Policy;
use haar_records::iam::{Account, REGION, Role, User, name_id};
use haar_store::Snapshot;
use serde_json::Value;

/// The unique ids of the users and roles that a trust policy names, by their ARNs.
///
/// # Errors
/// `MalformedPolicyDocument` for one that is not there. Accounts of other installations are not known, and not looked into.
pub(crate) fn resolve(snapshot: &Snapshot, policy: &Policy) -> Result<BTreeMap<String, String>, Error> {
    let document = serde_json::to_value(policy).unwrap_or_default();
    let mut found = BTreeMap::new();
    for statement in document.get("Statement").and_then(Value::as_array).into_iter().flatten() {
        for element in ["Principal", "NotPrincipal"] {
            let names = statement.get(element).and_then(|principal| principal.get("AWS"));
            for arn in names.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
                let Some((account, kind, name)) = parse(arn) else { continue };
                if snapshot.get::<Account>(account, REGION, account).is_none() {
                    continue;
                }
                let id = unique_id(snapshot, account, kind, name, arn).ok_or_else(|| {
                    let message = format!(r#"Invalid principal in policy: "AWS":"{arn}""#);
                    Error::new("MalformedPolicyDocument", message)
                })?;
                found.insert(arn.to_owned(), id);
            }
        }
    }
    Ok(found)
}

/// A role's trust policy as it is now: an ARN of who is gone has become the unique id.
pub(crate) fn document<'a>(snapshot: &Snapshot, role: &'a Role) -> Cow<'a, str> {
    let mut document = Cow::Borrowed(&*role.assume_role_policy_document);
    for (arn, id) in &role.trusted_ids {
        let Some((account, kind, name)) = parse(arn) else { continue };
        if unique_id(snapshot, account, kind, name, arn).as_ref() != Some(id) {
            document = Cow::Owned(replace_text(&document, arn, id));
        }
    }
    document
}

/// Replaces a text of a JSON document, however it is escaped.
fn replace_text(document: &str, from: &str, to: &str) -> String {
    fn visit(value: &mut Value, from: &str, to: &str) {
        match value {
            Value::String(text) if text == from => to.clone_into(text),
            Value::Array(list) => list.iter_mut().for_each(|item| visit(item, from, to)),
            Value::Object(map) => map.values_mut().for_each(|item| visit(item, from, to)),
            _ => {}
        }
    }
    let Ok(mut value) = serde_json::from_str::<Value>(document) else { return document.to_owned() };
    for statement in match value.get_mut("Statement") {
        Some(Value::Array(list)) => list.iter_mut().collect::<Vec<_>>(),
        Some(one) => vec![one],
        None => Vec::new(),
    } {
        for element in ["Principal", "NotPrincipal"] {
            if let Some(principal) = statement.get_mut(element) {
                visit(principal, from, to);
            }
        }
    }
    value.to_string()
}

/// Account, `user` or `role`, and name in an ARN.
fn parse(arn: &str) -> Option<(&str, &str, &str)> {
    let (account, resource) = arn.strip_prefix("arn:aws:iam::")?.split_once(':')?;
    let (kind, path) = resource.split_once('/')?;
    let name = path.rsplit('/').next()?;
    matches!(kind, "user" | "role").then_some((account, kind, name))
}

fn unique_id(snapshot: &Snapshot, account: &str, kind: &str, name: &str, arn: &str) -> Option<String> {
    let id = name_id(name);
    if kind == "user" {
        let user = snapshot.get::<User>(account, REGION, &id).filter(|user| user.arn() == arn)?;
        return Some(user.user_id.clone());
    }
    let role = snapshot.get::<Role>(account, REGION, &id).filter(|role| role.arn() == arn)?;
    Some(role.role_id.clone())
}

#[cfg(test)]
mod tests {
    use haar_policy::PolicyKind;
    use haar_store::StoreError;

    use super::*;
    use crate::keyring::tests::{ACCOUNT, keyring, role};

    #[tokio::test]
    async fn who_is_gone_is_named_by_id_however_the_document_is_written() {
        let keyring = keyring().await;
        let store = keyring.store();
        let trusted = role("AROATRUSTED1234567890");
        let arn = trusted.arn();
        store
            .transact(|tx| {
                tx.put(trusted.clone());
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        // A slash may be escaped.
        let written = arn.replace('/', "\\/");
        let text = format!(
            r#"{{"Version":"2012-10-17","Statement":{{"Effect":"Allow","Principal":{{"AWS":["{written}","{ACCOUNT}"]}},"Action":"sts:AssumeRole"}}}}"#
        );
        let policy = Policy::parse(&text, PolicyKind::Trust).unwrap();
        let ids = resolve(&store.snapshot(), &policy).unwrap();
        assert_eq!(ids, BTreeMap::from([(arn.clone(), "AROATRUSTED1234567890".to_owned())]));
        let asking = Role {
            assume_role_policy_document: text.clone(),
            trusted_ids: ids,
            ..role("AROAASKING12345678901")
        };
        assert_eq!(document(&store.snapshot(), &asking), text);
        // Made anew: another role.
        store
            .transact(|tx| {
                tx.put(role("AROAOTHER123456789012"));
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        let now = document(&store.snapshot(), &asking).into_owned();
        assert!(now.contains(r#"["AROATRUSTED1234567890","123456789012"]"#), "{now}");
        assert!(Policy::parse(&now, PolicyKind::Trust).is_ok());
        assert_eq!(resolve(&store.snapshot(), &policy).unwrap()[&arn], "AROAOTHER123456789012");
        store
            .transact(|tx| {
                tx.delete::<Role>(ACCOUNT, REGION, "writer");
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        assert_eq!(resolve(&store.snapshot(), &policy).unwrap_err().code, "MalformedPolicyDocument");
    }
}
