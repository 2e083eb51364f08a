//! Cases of the IAM User Guide, each with the page that it is from, as data in `cases/`.

use std::collections::BTreeMap;
use std::sync::Arc;

use haar_policy::{
    Attached, Context, Decision, Denied, Policies, Policy, PolicyKind, Principal, Request, Resource,
    ResourcePolicy,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page<C> {
    source: String,
    #[serde(default)]
    policies: BTreeMap<String, Value>,
    cases: Vec<C>,
}

fn pages<C: DeserializeOwned>(text: &str) -> Vec<Page<C>> {
    serde_json::from_str(text).unwrap()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentCase {
    kind: String,
    document: Value,
    error: Option<String>,
}

#[test]
fn documents() {
    for page in pages::<DocumentCase>(include_str!("cases/documents.json")) {
        for case in page.cases {
            let kind = match &*case.kind {
                "Managed" => PolicyKind::Managed,
                "Inline" => PolicyKind::Inline,
                "Trust" => PolicyKind::Trust,
                "Resource" => PolicyKind::Resource,
                other => panic!("no kind of policy: {other}"),
            };
            let text = match case.document {
                Value::String(text) => text,
                document => document.to_string(),
            };
            let parsed = Policy::parse(&text, kind);
            let error = parsed.as_ref().err().map(ToString::to_string);
            assert_eq!(error, case.error, "{}: {text}", page.source);
            if let Ok(policy) = parsed {
                assert_eq!(Policy::parse(&policy.to_string(), kind), Ok(policy), "{}: {text}", page.source);
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConditionCase {
    condition: Value,
    context: BTreeMap<String, Vec<String>>,
    holds: bool,
}

fn context(keys: &BTreeMap<String, Vec<String>>) -> Context {
    keys.iter().fold(Context::new(), |context, (key, values)| context.with(key, values))
}

#[test]
fn conditions() {
    // Has no keys of its own that conditions name, so that only the context counts.
    let principal = Principal::anonymous();
    for page in pages::<ConditionCase>(include_str!("cases/conditions.json")) {
        for case in page.cases {
            let document = serde_json::json!({
                "Version": "2012-10-17",
                "Statement": {"Effect": "Allow", "Principal": "*", "Action": "*", "Condition": case.condition},
            });
            let policy = Policy::parse(&document.to_string(), PolicyKind::Resource).unwrap();
            let attached = Attached::inline(policy, "condition");
            let keys = context(&case.context);
            let request =
                Request { principal: &principal, policies: Policies::default(), action: "k:x", keys: &keys };
            let resource = Resource::ANY.with_policy(ResourcePolicy::ResourceBased(&attached));
            let holds = request.evaluate(&resource).is_allowed();
            assert_eq!(holds, case.holds, "{}: {} with {:?}", page.source, case.condition, case.context);
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Caller {
    root: Option<String>,
    user: Option<String>,
    role: Option<String>,
    session: String,
    federated_user: Option<String>,
    name: String,
    service: Option<String>,
    identity: Option<String>,
    anonymous: bool,
    id: String,
    tags: BTreeMap<String, String>,
    canonical_user: Option<String>,
    session_keys: BTreeMap<String, Vec<String>>,
}

impl Caller {
    fn principal(&self) -> Principal {
        let mut principal = if let Some(account) = &self.root {
            Principal::root("aws", account)
        } else if let Some(arn) = &self.user {
            Principal::user(arn, &self.id)
        } else if let Some(arn) = &self.role {
            Principal::assumed_role(arn, &self.id, &self.session)
        } else if let Some(arn) = &self.federated_user {
            Principal::federated_user(arn, &self.name)
        } else if let Some(name) = &self.service {
            Principal::service(name)
        } else if let Some(provider) = &self.identity {
            Principal::federated_identity(provider, context(&self.session_keys))
        } else {
            assert!(self.anonymous);
            Principal::anonymous()
        };
        principal.tags = self.tags.clone().into_iter().collect();
        principal.canonical_user.clone_from(&self.canonical_user);
        principal
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluationCase {
    principal: Caller,
    identity: Vec<String>,
    boundary: Option<String>,
    #[serde(default)]
    session: Vec<String>,
    resource_policy: Option<String>,
    trust_policy: Option<String>,
    action: String,
    resource: String,
    owner: Option<String>,
    #[serde(default)]
    context: BTreeMap<String, Vec<String>>,
    decision: String,
    /// Type of the policy that denies.
    by: Option<String>,
    /// Sid of the statement that denies.
    sid: Option<String>,
    message: Option<String>,
}

#[test]
fn evaluation() {
    for page in pages::<EvaluationCase>(include_str!("cases/evaluation.json")) {
        for case in &page.cases {
            let attached = |name: &String, kind| {
                let document = page.policies.get(name).unwrap_or_else(|| panic!("no policy {name}"));
                let policy = Policy::parse(&document.to_string(), kind)
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
                Attached::inline(Arc::new(policy), name)
            };
            let all = |names: &[String]| {
                names.iter().map(|name| attached(name, PolicyKind::Inline)).collect::<Vec<_>>()
            };
            let (identity, session) = (all(&case.identity), all(&case.session));
            let boundary = case.boundary.as_ref().map(|name| attached(name, PolicyKind::Inline));
            let resource_policy =
                case.resource_policy.as_ref().map(|name| attached(name, PolicyKind::Resource));
            let trust_policy = case.trust_policy.as_ref().map(|name| attached(name, PolicyKind::Trust));
            let keys = context(&case.context);
            let principal = case.principal.principal();
            let mut resource = Resource::new(&case.resource).with_keys(&keys);
            if let Some(owner) = &case.owner {
                resource.account = owner;
            }
            resource.policy = resource_policy
                .as_ref()
                .map(ResourcePolicy::ResourceBased)
                .or_else(|| trust_policy.as_ref().map(ResourcePolicy::RoleTrust));
            let policies = Policies { identity: &identity, boundary: boundary.as_ref(), session: &session };
            let request = Request { principal: &principal, policies, action: &case.action, keys: &() };

            let decision = request.evaluate(&resource);
            let what = format!(
                "{}: {principal} {} {} with {:?}, {:?}, {:?}, {:?}, {:?}: {decision:?}",
                page.source,
                case.action,
                case.resource,
                case.identity,
                case.boundary,
                case.session,
                case.resource_policy,
                case.trust_policy,
            );
            assert_eq!(decision.as_str(), case.decision, "{what}");
            if let Some(by) = &case.by {
                let policy_type = match decision {
                    Decision::Allowed => panic!("{what}"),
                    Decision::ExplicitDeny(found) => found.policy_type,
                    Decision::ImplicitDeny(policy_type) => policy_type,
                };
                assert_eq!(policy_type.to_string(), *by, "{what}");
            }
            if let Some(sid) = &case.sid {
                let Decision::ExplicitDeny(found) = decision else { panic!("{what}") };
                assert_eq!(found.statement.sid(), Some(&**sid), "{what}");
            }
            let error = request.authorize(&[resource]).err();
            assert_eq!(error.is_none(), decision.is_allowed(), "{what}");
            if let Some(message) = &case.message {
                assert_eq!(error.as_ref().map(Denied::to_string).as_ref(), Some(message), "{what}");
            }
            let simulation = request.simulate(&resource);
            assert_eq!(simulation.decision.as_str(), case.decision, "{what}");
        }
    }
}
