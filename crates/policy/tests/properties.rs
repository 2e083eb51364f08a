//! What holds for all policies.

use haar_policy::{
    Attached, Context, Decision, Policies, Policy, PolicyKind, Principal, Request, Resource, ResourcePolicy,
    Verdict,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

const ACTIONS: [&str; 6] = ["*", "s3:*", "s3:Get*", "S3:GetObject", "ec2:Run?nstances", "iam:PassRole"];
const RESOURCES: [&str; 6] = [
    "*",
    "arn:aws:s3:::b/*",
    "arn:aws:s3:::b/${aws:username}/*",
    "arn:aws:s3:::${aws:PrincipalTag/team, 'b'}/x",
    "arn:aws:ec2:*:111111111111:*",
    "arn:aws:iam::?11111111111:role/*",
];
const PRINCIPALS: [&str; 9] = [
    r#""*""#,
    r#"{"AWS":"*"}"#,
    r#"{"AWS":"111111111111"}"#,
    r#"{"AWS":"arn:aws:iam::111111111111:user/alice"}"#,
    r#"{"AWS":["arn:aws:iam::111111111111:role/r","222222222222"]}"#,
    r#"{"AWS":"arn:aws:sts::111111111111:assumed-role/r/s"}"#,
    r#"{"Service":"ec2.amazonaws.com"}"#,
    r#"{"Federated":"accounts.google.com"}"#,
    r#"{"AWS":["arn:aws:iam::111111111111:user/alice","arn:aws:iam::111111111111:root"]}"#,
];
const CONDITIONS: [(&str, &str); 14] = [
    ("StringEquals", r#"{"k:a":["1","2"]}"#),
    ("StringNotEqualsIfExists", r#"{"k:a":"1","aws:username":"alice"}"#),
    ("StringLike", r#"{"k:a":"${aws:username}*"}"#),
    ("StringNotEqualsIgnoreCase", r#"{"k:b":"X"}"#),
    ("NumericLessThan", r#"{"k:a":2}"#),
    ("NumericNotEquals", r#"{"k:b":"-1.50e1"}"#),
    ("DateGreaterThanEquals", r#"{"k:a":["1970-01-01T00:00:02Z","2020"]}"#),
    ("Bool", r#"{"k:b":true}"#),
    ("IpAddress", r#"{"k:b":["10.0.0.0/8","2001:db8::1"]}"#),
    ("NotIpAddress", r#"{"k:b":"10.0.0.0/8"}"#),
    ("ArnLike", r#"{"aws:PrincipalArn":"arn:aws:iam::111111111111:*/*"}"#),
    ("ForAllValues:StringEquals", r#"{"k:b":["1","x"]}"#),
    ("ForAnyValue:StringNotLike", r#"{"k:b":"1*"}"#),
    ("Null", r#"{"k:b":"false"}"#),
];

/// Few statements whose parts often fit the requests of [`requests`].
fn statements(with_principal: bool) -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(statement(with_principal, None), 1..4)
}

fn statement(with_principal: bool, effect: Option<&'static str>) -> impl Strategy<Value = Value> {
    let effect = select(effect.map_or(vec!["Allow", "Allow", "Deny"], |effect| vec![effect]));
    let element = |values: &[&'static str]| (any::<Option<bool>>(), subsequence(values.to_vec(), 1..4));
    let conditions = subsequence(CONDITIONS.to_vec(), 0..3);
    (effect, element(&ACTIONS), element(&RESOURCES), any::<bool>(), select(PRINCIPALS.to_vec()), conditions)
        .prop_map(move |(effect, actions, resources, not, principal, conditions)| {
            let mut statement = Map::new();
            statement.insert("Effect".into(), effect.into());
            for (name, (form, values)) in [("Action", actions), ("Resource", resources)] {
                // Negated once in three.
                let name = if form == Some(true) { format!("Not{name}") } else { name.into() };
                let value = if values.len() == 1 { json!(values[0]) } else { json!(values) };
                statement.insert(name, value);
            }
            if with_principal {
                let name = if not { "NotPrincipal" } else { "Principal" };
                statement.insert(name.into(), serde_json::from_str(principal).unwrap());
            }
            let parse = |(name, keys): (&str, &str)| (name.to_owned(), serde_json::from_str(keys).unwrap());
            let conditions: Map<String, Value> = conditions.into_iter().map(parse).collect();
            if !conditions.is_empty() {
                statement.insert("Condition".into(), conditions.into());
            }
            statement.into()
        })
}

fn document(statements: &[Value]) -> String {
    json!({"Version": "2012-10-17", "Statement": statements}).to_string()
}

fn attached(statements: &[Value], kind: PolicyKind) -> Attached {
    Attached::inline(Policy::parse(&document(statements), kind).unwrap(), "policy")
}

/// The statements of each policy of a request.
#[derive(Debug, Clone)]
struct Setting {
    identity: Vec<Value>,
    boundary: Option<Vec<Value>>,
    session: Option<Vec<Value>>,
    resource: Option<Vec<Value>>,
}

fn settings() -> impl Strategy<Value = Setting> {
    let maybe = |with_principal| proptest::option::of(statements(with_principal));
    (statements(false), maybe(false), maybe(false), maybe(true))
        .prop_map(|(identity, boundary, session, resource)| Setting { identity, boundary, session, resource })
}

#[derive(Debug, Clone)]
struct Ask {
    principal: Principal,
    action: &'static str,
    resource: &'static str,
    owner: &'static str,
    keys: Context,
}

fn requests() -> impl Strategy<Value = Ask> {
    let mut tagged = Principal::user("arn:aws:iam::111111111111:user/alice", "AIDA1");
    tagged.tags.push(("Team".into(), "b".into()));
    let principals = vec![
        Principal::root("aws", "111111111111"),
        Principal::user("arn:aws:iam::111111111111:user/alice", "AIDA1"),
        tagged,
        Principal::user("arn:aws:iam::222222222222:user/bob", "AIDA2"),
        Principal::assumed_role("arn:aws:iam::111111111111:role/r", "AROA1", "s"),
        Principal::federated_user("arn:aws:iam::111111111111:user/alice", "f"),
        Principal::service("ec2.amazonaws.com"),
        Principal::federated_identity("accounts.google.com", Context::new()),
        Principal::anonymous(),
    ];
    let values = vec!["", "1", "2", "x", "alice1", "true", "10.1.2.3", "1970-01-01T00:00:02Z"];
    let key = proptest::option::of(subsequence(values, 0..3));
    (
        select(principals),
        select(vec!["s3:GetObject", "s3:PutObject", "ec2:RunInstances", "iam:PassRole"]),
        select(vec![
            "*",
            "arn:aws:s3:::b/alice/x",
            "arn:aws:s3:::b/x",
            "arn:aws:ec2:r:111111111111:instance/i",
        ]),
        select(vec!["", "111111111111", "222222222222"]),
        key.clone(),
        key,
    )
        .prop_map(|(principal, action, resource, owner, a, b)| {
            let mut keys = Context::new();
            for (name, values) in [("k:a", a), ("k:b", b)] {
                if let Some(values) = values {
                    keys.insert(name, values);
                }
            }
            Ask { principal, action, resource, owner, keys }
        })
}

fn with_request<T>(setting: &Setting, ask: &Ask, use_it: impl FnOnce(&Request<'_>, &Resource<'_>) -> T) -> T {
    let identity = [attached(&setting.identity, PolicyKind::Managed)];
    let boundary = setting.boundary.as_ref().map(|statements| attached(statements, PolicyKind::Managed));
    let session: Vec<_> =
        setting.session.iter().map(|statements| attached(statements, PolicyKind::Inline)).collect();
    let policy = setting.resource.as_ref().map(|statements| attached(statements, PolicyKind::Resource));
    let request = Request {
        principal: &ask.principal,
        policies: Policies { identity: &identity, boundary: boundary.as_ref(), session: &session },
        action: ask.action,
        keys: &ask.keys,
    };
    let policy = policy.as_ref().map(ResourcePolicy::ResourceBased);
    use_it(&request, &Resource { arn: ask.resource, account: ask.owner, keys: &(), policy })
}

fn allowed(setting: &Setting, ask: &Ask) -> bool {
    with_request(setting, ask, |request, resource| request.evaluate(resource).is_allowed())
}

/// The setting with one more statement in one of the policies that it has.
fn with_statement(mut setting: Setting, place: usize, own: &Value, of_resource: &Value) -> Setting {
    match (place, &mut setting) {
        (1, Setting { boundary: Some(statements), .. }) | (2, Setting { session: Some(statements), .. }) => {
            statements.push(own.clone());
        }
        (3, Setting { resource: Some(statements), .. }) => statements.push(of_resource.clone()),
        (_, Setting { identity, .. }) => identity.push(own.clone()),
    }
    setting
}

/// Any JSON, whose members are often those of policies.
fn any_json() -> impl Strategy<Value = Value> {
    let words = select(vec![
        "Version",
        "2012-10-17",
        "Statement",
        "Effect",
        "Allow",
        "Action",
        "Resource",
        "Principal",
        "AWS",
        "*",
        "Condition",
        "StringLike",
        "DateLessThan",
        "IpAddress",
        "arn:aws:s3:::b",
        "${aws:username",
        "Sid",
    ])
    .prop_map(str::to_owned);
    let text = prop_oneof![words, any::<String>()];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from)
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((text.clone(), inner), 0..6)
                .prop_map(|members| members.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

const KINDS: [PolicyKind; 4] =
    [PolicyKind::Managed, PolicyKind::Inline, PolicyKind::Trust, PolicyKind::Resource];

/// Parses and, if it is a policy, evaluates and prints.
fn exercise(text: &str, ask: &Ask) {
    for kind in KINDS {
        let Ok(policy) = Policy::parse(text, kind) else { continue };
        assert_eq!(Policy::parse(&policy.to_string(), kind).as_ref(), Ok(&policy));
        let attached = [Attached::inline(policy, "policy")];
        let policies = Policies { identity: &attached, boundary: Some(&attached[0]), session: &attached };
        let request = Request { principal: &ask.principal, policies, action: ask.action, keys: &ask.keys };
        let resource = Resource::new(ask.resource).with_policy(ResourcePolicy::ResourceBased(&attached[0]));
        let _ = request.simulate(&resource);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn one_more_deny_never_allows_more(
        setting in settings(),
        ask in requests(),
        place in 0_usize..4,
        own in statement(false, Some("Deny")),
        of_resource in statement(true, Some("Deny")),
    ) {
        let after = with_statement(setting.clone(), place, &own, &of_resource);
        prop_assert!(allowed(&setting, &ask) || !allowed(&after, &ask));
    }

    #[test]
    fn one_more_allow_never_denies_more(
        setting in settings(),
        ask in requests(),
        place in 0_usize..4,
        own in statement(false, Some("Allow")),
        of_resource in statement(true, Some("Allow")),
    ) {
        let after = with_statement(setting.clone(), place, &own, &of_resource);
        prop_assert!(!allowed(&setting, &ask) || allowed(&after, &ask));
    }

    #[test]
    fn boundaries_and_session_policies_never_allow_more(setting in settings(), ask in requests()) {
        let unlimited = Setting { boundary: None, ..setting.clone() };
        prop_assert!(!allowed(&setting, &ask) || allowed(&unlimited, &ask));
        // Without session policies, a federated user may nothing.
        if !matches!(ask.principal.kind, haar_policy::PrincipalKind::FederatedUser { .. }) {
            let unlimited = Setting { session: None, ..setting.clone() };
            prop_assert!(!allowed(&setting, &ask) || allowed(&unlimited, &ask));
        }
    }

    #[test]
    fn a_deny_of_all_denies_all(setting in settings(), ask in requests(), place in 0_usize..4) {
        let own = json!({"Effect": "Deny", "Action": "*", "Resource": "*"});
        let of_resource = json!({"Effect": "Deny", "Principal": "*", "Action": "*", "Resource": "*"});
        let after = with_statement(setting, place, &own, &of_resource);
        // Who has no account has no policies of its own.
        let applies = !ask.principal.account.is_empty() || place == 3 && after.resource.is_some();
        let denied = with_request(&after, &ask, |request, resource| {
            matches!(request.evaluate(resource), Decision::ExplicitDeny(_))
        });
        prop_assert!(denied || !applies);
    }

    #[test]
    fn simulations_agree_with_decisions(setting in settings(), ask in requests()) {
        with_request(&setting, &ask, |request, resource| {
            let (decision, simulation) = (request.evaluate(resource), request.simulate(resource));
            prop_assert_eq!(decision.as_str(), simulation.decision.as_str());
            let explicit = matches!(decision, Decision::ExplicitDeny(_));
            prop_assert_eq!(explicit, simulation.details.values().any(|verdict| *verdict == Verdict::ExplicitDeny));
            if let Decision::ExplicitDeny(found) = decision {
                let matched = &simulation.matched_statements;
                prop_assert!(matched.iter().any(|other| std::ptr::eq(other.statement, found.statement)));
            }
            prop_assert!(decision.is_allowed() || explicit || simulation.matched_statements.is_empty());
            let denied = request.authorize(&[*resource]).err().map(|denied| denied.to_string());
            prop_assert_eq!(denied.is_none(), decision.is_allowed());
            Ok(())
        })?;
    }

    #[test]
    fn a_printed_policy_is_the_same(own in statements(false), of_resource in statements(true)) {
        for (statements, kind) in [(own, PolicyKind::Managed), (of_resource, PolicyKind::Resource)] {
            let policy = Policy::parse(&document(&statements), kind).unwrap();
            prop_assert_eq!(Policy::parse(&policy.to_string(), kind), Ok(policy));
        }
    }

    #[test]
    fn no_json_is_too_odd(value in any_json(), ask in requests()) {
        exercise(&value.to_string(), &ask);
        // As one of the elements of an otherwise good policy.
        for name in ["Sid", "Effect", "Principal", "Action", "NotResource", "Resource", "Condition"] {
            let mut statement = json!({"Effect": "Deny", "Action": "sts:*", "Principal": {"AWS": "*"}, "Resource": "*"});
            statement[name] = value.clone();
            exercise(&document(&[statement]), &ask);
        }
    }

    #[test]
    fn no_text_is_too_odd(text in any::<String>(), changed in statements(true), at in any::<usize>(), ask in requests()) {
        exercise(&text, &ask);
        let good = document(&changed);
        let mut cut = at % good.len();
        while !good.is_char_boundary(cut) {
            cut -= 1;
        }
        exercise(&good[..cut], &ask);
        exercise(&format!("{}{text}{}", &good[..cut], &good[cut..]), &ask);
    }

    #[test]
    fn no_value_is_too_odd(values in proptest::collection::vec(any::<String>(), 0..3), action in any::<String>(), arn in any::<String>()) {
        let conditions: Map<String, Value> =
            CONDITIONS.iter().map(|(name, keys)| ((*name).into(), serde_json::from_str(keys).unwrap())).collect();
        let statement = json!({"Effect": "Allow", "Action": ["*:*a?b", "*"], "Resource": "*", "Condition": conditions});
        let identity = [attached(&[statement], PolicyKind::Managed)];
        let keys = Context::new().with("k:a", values.clone()).with("k:b", values);
        let principal = Principal::user(&arn, &action);
        let policies = Policies { identity: &identity, ..Policies::default() };
        let request = Request { principal: &principal, policies, action: &action, keys: &keys };
        let _ = request.simulate(&Resource::new(&arn));
    }
}
