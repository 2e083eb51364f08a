//! How long policies take: `cargo bench -p haar-policy`. Prints a table; nothing is asserted about times.

use std::hint::black_box;
use std::time::{Duration, Instant};

use haar_policy::{
    Attached, Context, Environment, Policies, Policy, PolicyKind, Principal, Request, Resource,
};
use time::OffsetDateTime;

/// A principal with as many statements, three actions, two resources and, in every second one, two conditions each. None
/// but the last fits the request.
fn document(statements: usize) -> String {
    let statement = |index: usize| {
        let condition = r#","Condition":{"StringEquals":{"aws:ResourceTag/team":"${aws:PrincipalTag/team}"},
            "IpAddress":{"aws:SourceIp":["203.0.113.0/24","2001:db8::/32"]}}"#;
        format!(
            r#"{{"Sid":"S{index}","Effect":"Allow","Action":["ec2:Describe*","ec2:RunInstances","s3:Get*"],
            "Resource":["arn:aws:ec2:*:*:instance/i-{index:04}*","arn:aws:s3:::bucket-{index}/${{aws:username}}/*"]{}}}"#,
            if index.is_multiple_of(2) { condition } else { "" }
        )
    };
    let last = r#"{"Sid":"Last","Effect":"Allow","Action":"ec2:*","Resource":"arn:aws:ec2:*:123456789012:*",
        "Condition":{"StringLike":{"ec2:InstanceType":["t3.*","m5.*"]},"Bool":{"aws:SecureTransport":"true"}}}"#;
    let others: String = (1..statements).map(|index| statement(index) + ",").collect();
    format!(r#"{{"Version":"2012-10-17","Statement":[{others}{last}]}}"#)
}

/// The shortest time of a call, of many rounds.
fn measure<T>(mut call: impl FnMut() -> T) -> Duration {
    let mut calls = 1_u32;
    let mut best = Duration::MAX;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(400) {
        let start = Instant::now();
        for _ in 0..calls {
            black_box(call());
        }
        let time = start.elapsed();
        best = best.min(time / calls);
        if time < Duration::from_millis(2) {
            calls = calls.saturating_mul(2);
        }
    }
    best
}

fn main() {
    let mut principal = Principal::user("arn:aws:iam::123456789012:user/alice", "AIDAEXAMPLE");
    principal.tags.push(("team".into(), "red".into()));
    let environment = Environment {
        time: OffsetDateTime::now_utc(),
        source_ip: Some([203, 0, 113, 7].into()),
        secure_transport: true,
        user_agent: Some("aws-cli/2"),
        referer: None,
        requested_region: Some("eu-central-1"),
        via_aws_service: false,
    };
    let keys = Context::new().with("ec2:InstanceType", ["t3.micro"]).with("aws:ResourceTag/team", ["red"]);
    let resource =
        Resource::new("arn:aws:ec2:eu-central-1:123456789012:instance/i-01234567890abcdef").with_keys(&keys);

    println!(
        "{:>10} {:>12} {:>12} {:>12} {:>22}",
        "statements", "parse", "authorize", "denied", "to one statement"
    );
    let mut one = None;
    for statements in [1, 5, 20, 100] {
        let document = document(statements);
        let policy = Policy::parse(&document, PolicyKind::Inline).expect("the document is a policy");
        let parse = measure(|| Policy::parse(black_box(&document), PolicyKind::Inline));
        let identity = [Attached::inline(policy, "bench")];
        let request = |action| Request {
            principal: &principal,
            policies: Policies { identity: &identity, ..Policies::default() },
            action,
            keys: &environment,
        };
        let allowed = request("ec2:RunInstances");
        assert!(allowed.authorize(&[resource]).is_ok());
        let authorize = measure(|| black_box(&allowed).authorize(&[resource]).is_ok());
        let refused = request("sqs:SendMessage");
        let denied = measure(|| black_box(&refused).authorize(&[resource]).is_ok());
        let ratio = authorize.as_secs_f64() / one.get_or_insert(authorize).as_secs_f64();
        println!("{statements:>10} {parse:>12.2?} {authorize:>12.2?} {denied:>12.2?} {ratio:>21.1}x");
    }
}
