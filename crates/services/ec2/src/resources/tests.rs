use haar_access::{Access, Caller, Callers};
use haar_api::{Authorizer, Context, Error, Principal, PrincipalKind};
use haar_policy::{Attached, Policy, PolicyKind};
use haar_records::Tags;

use super::*;
use crate::model::MODEL;
use crate::testing::{SCOPE, another_vpc, context, handlers, write};

const ALICE: &str = "arn:aws:iam::123456789012:user/alice";

/// Alice, with one policy.
struct Alice(String);

impl Callers for Alice {
    fn caller(&self, _: &Context) -> Caller {
        let policy = Policy::parse(&self.0, PolicyKind::Inline).unwrap();
        let principal = haar_policy::Principal::user(ALICE, "AIDAALICE");
        Caller {
            principal,
            identity: vec![Attached::inline(policy, "p")],
            boundary: None,
            session: Vec::new(),
        }
    }
}

/// What alice is answered with these statements before the handler of a request.
fn asked(store: &Store, statements: &str, request: &str) -> Result<(), Error> {
    carried_out(store, statements, request).map(drop)
}

/// The same, with what the handler then gets instead of the request.
fn carried_out(store: &Store, statements: &str, request: &str) -> Result<Option<Value>, Error> {
    let document = format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#);
    let seal = |_: &str, text: &str| format!("sealed {text}");
    let access = Access::new(Alice(document), Box::new(seal)).service("ec2", Resources(store.clone()));
    let (parts, ()) = http::Request::post("/").body(()).unwrap().into_parts();
    let (index, input) = haar_api::endpoint::decode(&MODEL, &parts, request.to_owned().into()).unwrap();
    let operation = &MODEL.operations[index];
    let mut ctx = Context { service: "ec2", operation: operation.route.name, ..context() };
    ctx.principal = Principal {
        arn: ALICE.into(),
        kind: PrincipalKind::User { name: "alice".into() },
        ..Principal::root(SCOPE.account, "AKIAALICE")
    };
    access.authorize(&ctx, &MODEL, operation, &input)
}

fn allow(action: &str, resource: &str, condition: &str) -> String {
    let condition = if condition.is_empty() { String::new() } else { format!(r#","Condition":{condition}"#) };
    format!(r#"{{"Effect":"Allow","Action":"{action}","Resource":"{resource}"{condition}}}"#)
}

fn allowed(store: &Store, statements: &[String], request: &str) -> bool {
    asked(store, &statements.join(","), request).is_ok()
}

#[tokio::test]
async fn an_action_is_asked_for_upon_every_resource_of_a_request() {
    let store = handlers().await.store;
    let one = "Action=StopInstances&InstanceId.1=i-00000000000000001";
    let two = format!("{one}&InstanceId.2=i-00000000000000002");
    let arn = "arn:aws:ec2:eu-central-1:123456789012:instance/i-00000000000000001";
    let statement = allow("ec2:StopInstances", arn, "");
    assert_eq!(asked(&store, &statement, one), Ok(()));
    let refused = asked(&store, &statement, &two).unwrap_err();
    assert_eq!((&*refused.code, refused.status.as_u16()), ("UnauthorizedOperation", 403));
    let expected = format!(
        "You are not authorized to perform this operation. User: {ALICE} is not authorized to perform: ec2:StopInstances on \
         resource: arn:aws:ec2:eu-central-1:123456789012:instance/i-00000000000000002 because no identity-based policy \
         allows the ec2:StopInstances action. Encoded authorization failure message: sealed {{"
    );
    assert!(refused.message.starts_with(&expected), "{}", refused.message);
    let everything = allow("*", "*", "");
    let deny = format!(r#"{everything},{{"Effect":"Deny","Action":"ec2:Stop*","Resource":"{arn}"}}"#);
    let refused = asked(&store, &deny, &two).unwrap_err();
    assert!(
        refused.message.contains("with an explicit deny in an identity-based policy"),
        "{}",
        refused.message
    );
    assert!(refused.message.contains(r#""explicitDeny":true"#), "{}", refused.message);
    assert!(asked(&store, &allow("ec2:StartInstances", "*", ""), one).is_err());
    assert!(asked(&store, &allow("ec2:DescribeInstances", "*", ""), "Action=DescribeInstances").is_ok());
}

#[tokio::test]
async fn a_launch_asks_for_all_that_it_uses() {
    let handlers = handlers().await;
    write(&handlers.store, |tx| Ok(defaults::ensure(tx, SCOPE)?.id.clone())).await.unwrap();
    let store = &handlers.store;
    let launch = "Action=RunInstances&ImageId=ami-00000000000000001&InstanceType=t3.nano&MinCount=1&MaxCount=1&KeyName=k";
    let of = |resource: &str| format!("arn:aws:ec2:*:*:{resource}/*");
    let types = ["instance", "key-pair", "network-interface", "security-group", "subnet", "volume"];
    let image = allow("ec2:RunInstances", "arn:aws:ec2:*::image/ami-00000000000000001", "");
    let mut all: Vec<_> = types.iter().map(|name| allow("ec2:RunInstances", &of(name), "")).collect();
    all.push(image);
    assert!(allowed(store, &all, launch));
    for without in 0..all.len() {
        let mut rest = all.clone();
        let left_out = rest.remove(without);
        assert!(!allowed(store, &rest, launch), "without {left_out}");
    }
    // The subnet and the group that a launch takes by default are asked for by their ids.
    let subnets: Vec<_> = store.snapshot().list::<Subnet>(SCOPE.account, SCOPE.region).cloned().collect();
    let best =
        subnets::best_default(&store.snapshot(), &defaults::find(&store.snapshot(), SCOPE).unwrap(), None, 1);
    let best = best.unwrap().id.clone();
    for subnet in &subnets {
        let mut by_id = all.clone();
        by_id[4] = allow("ec2:RunInstances", &format!("arn:aws:ec2:*:*:subnet/{}", subnet.id), "");
        assert_eq!(allowed(store, &by_id, launch), subnet.id == best);
    }
    let tagged = format!(
        "{launch}&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=team&TagSpecification.1.Tag.1.Value=red"
    );
    assert!(!allowed(store, &all, &tagged), "tags ask for ec2:CreateTags");
    let condition = r#"{"StringEquals":{"ec2:CreateAction":"RunInstances","aws:RequestTag/team":"red"},"ForAllValues:StringEquals":{"aws:TagKeys":["team"]}}"#;
    all.push(allow("ec2:CreateTags", &of("instance"), condition));
    assert!(allowed(store, &all, &tagged));
    assert!(!allowed(store, &all, &tagged.replace("=red", "=blue")));
    assert!(!allowed(store, &all, &tagged.replace("ResourceType=instance", "ResourceType=volume")));
    all[0] = allow("ec2:RunInstances", &of("instance"), r#"{"StringEquals":{"ec2:InstanceType":"t3.nano"}}"#);
    assert!(allowed(store, &all, launch));
    assert!(!allowed(store, &all, &launch.replace("t3.nano", "t3.large")));
}

#[tokio::test]
async fn a_template_is_asked_for_like_the_request_itself() {
    use crate::model::{CreateLaunchTemplateRequest, Ec2, RequestLaunchTemplateData, Tag, TagSpecification};
    let handlers = handlers().await;
    let tags = vec![Tag { key: Some("team".into()), value: Some("red".into()) }];
    let data = RequestLaunchTemplateData {
        image_id: Some("ami-00000000000000001".into()),
        instance_type: Some("t3.large".into()),
        security_group_ids: vec!["sg-00000000000000001".into()],
        ..RequestLaunchTemplateData::default()
    };
    let input = CreateLaunchTemplateRequest {
        launch_template_name: "web".into(),
        launch_template_data: data,
        tag_specifications: vec![TagSpecification {
            resource_type: Some("launch-template".parse().unwrap()),
            tags,
        }],
        ..CreateLaunchTemplateRequest::default()
    };
    handlers.create_launch_template(&context(), input).await.unwrap();
    let store = &handlers.store;
    let by_template = "Action=RunInstances&MinCount=1&MaxCount=1&LaunchTemplate.LaunchTemplateName=web";
    let deny = |resource: &str, condition: &str| {
        let everything = allow("*", "*", "");
        format!(
            r#"{everything},{{"Effect":"Deny","Action":"ec2:RunInstances","Resource":"arn:aws:ec2:*:*:{resource}","Condition":{condition}}}"#
        )
    };
    let everything = allow("*", "*", "");
    assert!(asked(store, &everything, by_template).is_ok());
    // The handler gets the version that was looked at, however the request names it.
    for version in ["", "&LaunchTemplate.Version=%24Latest", "&LaunchTemplate.Version=1"] {
        let fixed = carried_out(store, &everything, &format!("{by_template}{version}")).unwrap().unwrap();
        let run = MODEL.operations.iter().find(|operation| operation.route.name == "RunInstances").unwrap();
        let says = |member: &str| Part(run.input, &fixed).text(&["LaunchTemplate", member]);
        assert_eq!((says("Version"), says("LaunchTemplateName")), (Some("1"), None), "{version}");
        assert!(says("LaunchTemplateId").unwrap().starts_with("lt-"));
    }
    // Which version there is none of, and which of two names counts, is the handler's to say.
    for request in [
        format!("{by_template}&LaunchTemplate.Version=7"),
        format!("{by_template}&LaunchTemplate.LaunchTemplateId=lt-00000000000000001"),
    ] {
        assert_eq!(carried_out(store, &everything, &request), Ok(None), "{request}");
    }
    for (resource, condition, over) in [
        ("image/ami-00000000000000001", "{}", "&ImageId=ami-00000000000000002"),
        ("security-group/sg-00000000000000001", "{}", "&SecurityGroupId.1=sg-00000000000000002"),
        ("instance/*", r#"{"StringEquals":{"ec2:InstanceType":"t3.large"}}"#, "&InstanceType=t3.nano"),
        ("launch-template/*", r#"{"StringEquals":{"aws:ResourceTag/team":"red"}}"#, ""),
    ] {
        let policy = deny(resource, condition);
        assert!(asked(store, &policy, by_template).is_err(), "{resource}");
        if !over.is_empty() {
            assert!(asked(store, &policy, &format!("{by_template}{over}")).is_ok(), "{resource}");
        }
    }
}

#[tokio::test]
async fn tags_and_attributes_of_what_exists_count() {
    let handlers = handlers().await;
    let (vpc, group) = another_vpc(&handlers, "web").await;
    write(&handlers.store, |tx| {
        let found = tx.get::<SecurityGroup>(SCOPE.account, SCOPE.region, &group).unwrap();
        let tags = Tags::from([("Team".into(), "red".into())]);
        tx.put(SecurityGroup { tags, ..SecurityGroup::clone(&found) });
        Ok(())
    })
    .await
    .unwrap();
    let store = &handlers.store;
    let delete = format!("Action=DeleteSecurityGroup&GroupId={group}");
    for (condition, expected) in [
        (r#"{"StringEquals":{"aws:ResourceTag/team":"red"}}"#.to_owned(), true),
        (r#"{"StringEquals":{"ec2:ResourceTag/Team":"red"}}"#.to_owned(), true),
        (r#"{"StringEquals":{"ec2:ResourceTag/Team":"blue"}}"#.to_owned(), false),
        (
            r#"{"StringEquals":{"ec2:Region":"eu-central-1","aws:RequestedRegion":"eu-central-1"}}"#
                .to_owned(),
            true,
        ),
        (format!(r#"{{"ArnEquals":{{"ec2:Vpc":"arn:aws:ec2:eu-central-1:123456789012:vpc/{vpc}"}}}}"#), true),
        (r#"{"IpAddress":{"aws:SourceIp":"127.0.0.0/8"}}"#.to_owned(), true),
        (r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#.to_owned(), false),
        (r#"{"Bool":{"aws:SecureTransport":"true"}}"#.to_owned(), false),
        (r#"{"StringEquals":{"aws:username":"alice"}}"#.to_owned(), true),
    ] {
        let statement = allow("ec2:DeleteSecurityGroup", "*", &condition);
        assert_eq!(allowed(store, &[statement], &delete), expected, "{condition}");
    }
    // Tags are told by the type of what is tagged.
    let tag = format!("Action=CreateTags&ResourceId.1={group}&Tag.1.Key=a&Tag.1.Value=b");
    let on = |resource: &str| allow("ec2:CreateTags", &format!("arn:aws:ec2:*:*:{resource}/*"), "");
    assert!(allowed(store, &[on("security-group")], &tag));
    assert!(!allowed(store, &[on("instance")], &tag));
    let dry = format!("{delete}&DryRun=true");
    assert!(!allowed(store, &[on("security-group")], &dry), "a dry run is asked like any other");
}

#[test]
fn every_type_of_resource_that_an_operation_names_is_an_arn() {
    for operation in MODEL.operations {
        for resource in operation.permissions.iter().filter_map(|permission| permission.resource) {
            let arn = resource.arn("eu-central-1", "123456789012", "x");
            assert!(
                // Besides EC2's own, the public parameter that may name an image.
                arn == "x"
                    || arn.starts_with("arn:aws:ec2:eu-central-1:")
                    || arn == "arn:aws:ssm:eu-central-1::parameterx",
                "{}: {arn}",
                operation.route.name
            );
        }
    }
}
