//! What simulations tell besides the decision.

use haar_policy::{
    Attached, Context, Decision, Policies, Policy, PolicyKind, PolicyType, Position, Principal, Request,
    Resource, ResourcePolicy, Verdict,
};

fn positions(document: &str) -> Vec<((usize, usize), (usize, usize))> {
    let policy = Policy::parse(document, PolicyKind::Managed).unwrap();
    let pair = |position: Position| (position.line, position.column);
    policy.statements().iter().map(|statement| (pair(statement.start()), pair(statement.end()))).collect()
}

#[test]
fn statements_have_iams_positions() {
    // AWS CLI Command Reference, simulate-custom-policy, example 1.
    let single = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"dynamodb:*","Resource":"*","Condition":{"DateGreaterThan":{"aws:CurrentTime":"2018-08-16T12:00:00Z"}}}}"#;
    assert_eq!(positions(single), [((1, 38), (1, 167))]);
    // AdministratorAccess, as simulations of it answer.
    let listed = "{\n  \"Version\": \"2012-10-17\",\n  \"Statement\": [\n    {\n      \"Effect\": \"Allow\",\n      \"Action\": \"*\",\n      \"Resource\": \"*\"\n    }\n  ]\n}";
    assert_eq!(positions(listed), [((3, 17), (8, 6))]);
    let two = r#"{"Statement":[{"Effect":"Allow","Action":"a:é","Resource":"*"}, {"Effect":"Deny","Action":"*","Resource":"*"}],"Version":"2012-10-17"}"#;
    assert_eq!(positions(two), [((1, 15), (1, 63)), ((1, 63), (1, 110))]);
}

#[test]
fn policies_name_their_context_keys() {
    let document = r#"{"Version":"2012-10-17","Statement":[
        {"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::b/${aws:username}/${aws:PrincipalTag/Team, 'x'}",
         "Condition":{"StringEquals":{"aws:SourceVpc":"${aws:USERNAME}"},"ArnLike":{"aws:SourceArn":"arn:aws:iam::1:user/${aws:userid}"}}},
        {"Effect":"Deny","Action":"*","Resource":"*","Condition":{"Null":{"AWS:sourcevpc":"true"}}}]}"#;
    let policy = Policy::parse(document, PolicyKind::Managed).unwrap();
    assert_eq!(
        policy.context_keys(),
        ["aws:SourceVpc", "aws:USERNAME", "aws:SourceArn", "aws:userid", "aws:PrincipalTag/Team"]
    );
    // There are no variables in the old language.
    let old = document.replace("2012", "2008");
    let policy = Policy::parse(&old, PolicyKind::Inline).unwrap();
    assert_eq!(policy.context_keys(), ["aws:SourceVpc", "aws:SourceArn"]);
}

fn attached(document: &str, kind: PolicyKind, name: &str) -> Attached {
    Attached::inline(Policy::parse(document, kind).unwrap(), name)
}

#[test]
fn simulations_tell_why() {
    let identity = [
        attached(
            r#"{"Version":"2012-10-17","Statement":[
                {"Sid":"A","Effect":"Allow","Action":"s3:Get*","Resource":"*"},
                {"Sid":"B","Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::b/${aws:username}",
                 "Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"},"Bool":{"aws:SecureTransport":"true"}}},
                {"Sid":"C","Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"Null":{"ec2:Region":"true"}}}]}"#,
            PolicyKind::Managed,
            "first",
        ),
        attached(
            r#"{"Version":"2012-10-17","Statement":{"Sid":"D","Effect":"Deny","Action":"s3:PutObject","Resource":"*"}}"#,
            PolicyKind::Managed,
            "second",
        ),
    ];
    let boundary = attached(
        r#"{"Version":"2012-10-17","Statement":{"Sid":"E","Effect":"Allow","Action":"s3:*","Resource":"*"}}"#,
        PolicyKind::Managed,
        "boundary",
    );
    let bucket = attached(
        r#"{"Statement":[{"Sid":"F","Effect":"Deny","Principal":"*","Action":"s3:PutObject","Resource":"*"},
            {"Sid":"G","Effect":"Allow","Principal":{"AWS":"999999999999"},"Action":"s3:*","Resource":"*"}]}"#,
        PolicyKind::Resource,
        "ResourcePolicy",
    );
    let principal = Principal::user("arn:aws:iam::123456789012:user/alice", "AIDA1");
    let keys = Context::new().with("aws:SourceIp", ["10.1.1.1"]);
    let policies = Policies { identity: &identity, boundary: Some(&boundary), session: &[] };
    let request = |action| Request { principal: &principal, policies, action, keys: &keys };
    let resource = Resource::new("arn:aws:s3:::b/alice").with_policy(ResourcePolicy::ResourceBased(&bucket));
    let simulate = |action| {
        let simulation = request(action).simulate(&resource);
        let matched: Vec<_> = simulation
            .matched_statements
            .iter()
            .map(|found| {
                (found.policy_type, found.policy.id.clone(), found.statement.sid().unwrap().to_owned())
            })
            .collect();
        (simulation.decision.as_str(), matched, simulation.missing_context_keys.join(" "), simulation.details)
    };
    let of = |policy_type, id: &str, sid: &str| (policy_type, id.to_owned(), sid.to_owned());
    use PolicyType::{IdentityBased, PermissionsBoundary, ResourceBased};
    use Verdict::{Allowed, ExplicitDeny, ImplicitDeny};

    let (decision, matched, missing, details) = simulate("s3:GetObject");
    assert_eq!(decision, "allowed");
    assert_eq!(matched, [of(IdentityBased, "first", "A"), of(PermissionsBoundary, "boundary", "E")]);
    // B is for the action and the resource too.
    assert_eq!(missing, "aws:SecureTransport");
    assert_eq!(
        details.into_iter().collect::<Vec<_>>(),
        [(IdentityBased, Allowed), (ResourceBased, ImplicitDeny), (PermissionsBoundary, Allowed)]
    );

    let (decision, matched, _, details) = simulate("s3:PutObject");
    assert_eq!(decision, "explicitDeny");
    assert_eq!(matched, [of(IdentityBased, "second", "D"), of(ResourceBased, "ResourcePolicy", "F")]);
    assert_eq!(details[&IdentityBased], ExplicitDeny);

    let (decision, matched, missing, _) = simulate("ec2:RunInstances");
    assert_eq!((decision, matched.len(), &*missing), ("implicitDeny", 0, "ec2:Region"));
    assert_eq!(request("ec2:RunInstances").simulate(&resource).allowed_by_permissions_boundary, Some(false));
    assert_eq!(request("s3:GetObject").simulate(&resource).allowed_by_permissions_boundary, Some(true));
    let unlimited =
        Request { policies: Policies { boundary: None, ..policies }, ..request("ec2:RunInstances") };
    assert_eq!(unlimited.simulate(&resource).allowed_by_permissions_boundary, None);
    assert!(unlimited.evaluate(&resource).is_allowed());
}

#[test]
fn messages_name_managed_policies_that_deny() {
    let document = r#"{"Version":"2012-10-17","Statement":{"Effect":"Deny","Action":"*","Resource":"*"}}"#;
    let policy = Policy::parse(document, PolicyKind::Managed).unwrap();
    let identity = [Attached::managed(policy, "No", "arn:aws:iam::123456789012:policy/No")];
    let principal = Principal::user("arn:aws:iam::123456789012:user/Matt", "AIDA1");
    let request = Request {
        principal: &principal,
        policies: Policies { identity: &identity, ..Policies::default() },
        action: "iam:ListRoles",
        keys: &(),
    };
    let error = request.authorize(&[Resource::new("arn:aws:iam::123456789012:role/*")]).unwrap_err();
    assert!(matches!(error.decision, Decision::ExplicitDeny(_)));
    assert_eq!(
        error.to_string(),
        "User: arn:aws:iam::123456789012:user/Matt is not authorized to perform: iam:ListRoles on resource: \
         arn:aws:iam::123456789012:role/* with an explicit deny in an identity-based policy: \
         arn:aws:iam::123456789012:policy/No"
    );
}

#[test]
fn requests_need_all_resources() {
    let document = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"ec2:RunInstances",
        "Resource":["arn:aws:ec2:*:*:instance/*","arn:aws:ec2:*::image/ami-1"]}}"#;
    let identity = [attached(document, PolicyKind::Managed, "run")];
    let principal = Principal::user("arn:aws:iam::123456789012:user/alice", "AIDA1");
    let request = Request {
        principal: &principal,
        policies: Policies { identity: &identity, ..Policies::default() },
        action: "ec2:RunInstances",
        keys: &(),
    };
    let instance = Resource::new("arn:aws:ec2:eu-west-1:123456789012:instance/*");
    let (image, other) = (
        Resource::new("arn:aws:ec2:eu-west-1::image/ami-1"),
        Resource::new("arn:aws:ec2:eu-west-1::image/ami-2"),
    );
    assert!(request.authorize(&[instance, image]).is_ok());
    assert_eq!(request.authorize(&[instance, other, image]).unwrap_err().resource, other.arn);
    // Without resources, the action is meant as a whole.
    assert_eq!(request.authorize(&[]).unwrap_err().resource, "*");
    let root = Principal::root("aws", "123456789012");
    assert!(Request { principal: &root, ..request }.authorize(&[]).is_ok());
}

#[test]
fn keys_of_the_resource_come_before_those_of_the_request_and_the_principal() {
    let document = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*",
        "Condition":{"StringEquals":{"a:x":"resource","a:y":"request","aws:username":"simulated","aws:ResourceAccount":"123456789012"}}}}"#;
    let identity = [attached(document, PolicyKind::Managed, "keys")];
    let principal = Principal::user("arn:aws:iam::123456789012:user/alice", "AIDA1");
    let of_request =
        Context::new().with("a:x", ["request"]).with("a:y", ["request"]).with("aws:username", ["simulated"]);
    let of_resource = Context::new().with("a:x", ["resource"]);
    let request = Request {
        principal: &principal,
        policies: Policies { identity: &identity, ..Policies::default() },
        action: "a:b",
        keys: &of_request,
    };
    let resource = Resource::new("arn:aws:a:r:123456789012:x").with_keys(&of_resource);
    assert!(request.evaluate(&resource).is_allowed());
    assert!(!request.evaluate(&Resource { keys: &(), ..resource }).is_allowed());
    assert!(!request.evaluate(&Resource::ANY.with_keys(&of_resource)).is_allowed());
}
