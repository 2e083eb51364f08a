//! Records in CloudTrail's form.

use haar_api::note::Event;
use haar_api::schema::Protocol;
use haar_api::{Error, Principal, PrincipalKind, SessionOrigin};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

/// What stands for a secret.
const REMOVED: &str = "<sensitiveDataRemoved>";

/// Members of requests and answers that are secret.
const SECRETS: [&str; 19] = [
    "authenticationCode1",
    "authenticationCode2",
    "base32StringSeed",
    "keyMaterial",
    "newPassword",
    "oldPassword",
    "password",
    "plaintext",
    "privateKey",
    "qRCodePNG",
    "sAMLAssertion",
    "secretAccessKey",
    "secretBinary",
    "secretString",
    "serializedPolicyState",
    "sessionToken",
    "tokenCode",
    "userData",
    "webIdentityToken",
];

/// The record of an event.
pub(crate) fn of(event: Event<'_>) -> Value {
    let ctx = event.ctx;
    let mut record = Map::new();
    let mut put = |name: &str, value: Value| drop(record.insert(name.to_owned(), value));
    put("eventVersion", "1.11".into());
    put("userIdentity", identity(&ctx.principal, ctx.operation, event.response.as_ref()));
    put("eventTime", time_of(ctx.now).into());
    put("eventSource", format!("{}.amazonaws.com", ctx.service).into());
    put("eventName", ctx.operation.into());
    put("awsRegion", ctx.region.as_str().into());
    put("sourceIPAddress", ctx.source_ip.to_canonical().to_string().into());
    if let Some(agent) = &ctx.user_agent {
        put("userAgent", agent.as_str().into());
    }
    if let Some(error) = event.error {
        put("errorCode", code(error, event.protocol).into());
        put("errorMessage", error.message.as_str().into());
    }
    put("requestParameters", without_secrets(event.request));
    let response = event.response.map(|response| match (event.protocol, response) {
        // EC2's answers begin with the request's id.
        (Protocol::Ec2, Value::Object(mut members)) => {
            if let Some(value) = members.remove("return") {
                members.insert("_return".to_owned(), value);
            }
            members.insert("requestId".to_owned(), ctx.request_id.as_str().into());
            Value::Object(members)
        }
        (_, response) => response,
    });
    put("responseElements", response.map_or(Value::Null, without_secrets));
    put("requestID", ctx.request_id.as_str().into());
    put("eventID", haar_api::request_id().into());
    put("readOnly", event.read_only.into());
    put("eventType", "AwsApiCall".into());
    put("managementEvent", true.into());
    put("recipientAccountId", ctx.account.as_str().into());
    put("eventCategory", "Management".into());
    Value::Object(record)
}

/// As `2026-01-31T12:00:00Z`.
fn time_of(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    at.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default()
}

/// EC2's codes say whose fault it was ("Error codes for the Amazon EC2 API").
fn code(error: &Error, protocol: Protocol) -> String {
    match protocol {
        Protocol::Ec2 if error.status.is_server_error() => format!("Server.{}", error.code),
        Protocol::Ec2 => format!("Client.{}", error.code),
        _ => error.code.to_string(),
    }
}

/// CloudTrail User Guide, "CloudTrail userIdentity element".
fn identity(principal: &Principal, operation: &str, response: Option<&Value>) -> Value {
    let named = |kind: &str| {
        json!({
            "type": kind,
            "principalId": principal.user_id,
            "arn": principal.arn,
            "accountId": principal.account,
            "accessKeyId": principal.access_key_id,
        })
    };
    let mut identity = match &principal.kind {
        PrincipalKind::Root => named("Root"),
        PrincipalKind::User { name } => {
            let mut identity = named("IAMUser");
            identity["userName"] = name.as_str().into();
            identity
        }
        PrincipalKind::AssumedRole { role_name, role_id, role_arn, .. } => {
            let mut identity = named("AssumedRole");
            identity["sessionContext"] = json!({"sessionIssuer": {
                "type": "Role",
                "principalId": role_id,
                "arn": role_arn,
                "accountId": principal.account,
                "userName": role_name,
            }});
            identity
        }
        PrincipalKind::FederatedUser { source_arn, source_id, .. } => {
            let mut identity = named("FederatedUser");
            let kind = if source_arn.ends_with(":root") { "Root" } else { "IAMUser" };
            let mut issuer = json!({
                "type": kind,
                "principalId": source_id,
                "arn": source_arn,
                "accountId": principal.account,
            });
            if kind == "IAMUser" {
                issuer["userName"] = source_arn.rsplit('/').next().unwrap_or_default().into();
            }
            identity["sessionContext"] = json!({"sessionIssuer": issuer});
            identity
        }
        PrincipalKind::Anonymous if operation == "AssumeRoleWithWebIdentity" => {
            // Whom the token is of is known once it was found good.
            let says = |name: &str| response.and_then(|response| response[name].as_str());
            let mut identity = json!({"type": "WebIdentityUser"});
            if let (Some(provider), Some(subject)) = (says("provider"), says("subjectFromWebIdentityToken")) {
                let audience = says("audience").unwrap_or_default();
                identity["principalId"] = format!("{provider}:{audience}:{subject}").into();
                identity["userName"] = subject.into();
                identity["identityProvider"] = provider.into();
            }
            identity
        }
        PrincipalKind::Anonymous => json!({"type": "Unknown", "accountId": "anonymous"}),
    };
    if let Some(session) = &principal.session {
        let context = &mut identity["sessionContext"];
        context["attributes"] = json!({
            "creationDate": time_of(session.issued),
            "mfaAuthenticated": session.mfa.to_string(),
        });
        if let Some(source) = &session.source_identity {
            context["sourceIdentity"] = source.as_str().into();
        }
        if session.origin == SessionOrigin::AssumeRoleWithWebIdentity {
            context["webIdFederationData"] = json!({"federatedProvider": session.federated_provider});
        }
    }
    identity
}

/// The same without what must not be kept.
fn without_secrets(mut value: Value) -> Value {
    match &mut value {
        Value::Object(members) => {
            for (name, value) in members.iter_mut() {
                let taken = value.take();
                *value = match taken {
                    Value::Null => Value::Null,
                    _ if SECRETS.contains(&name.as_str()) => REMOVED.into(),
                    other => without_secrets(other),
                };
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| *value = without_secrets(value.take())),
        _ => {}
    }
    value
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use haar_api::{Context, Session};

    use super::*;

    fn session(origin: SessionOrigin) -> Arc<Session> {
        let issued = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let mut session = Session::new(origin, issued, time::Duration::HOUR);
        session.source_identity = Some("alice".into());
        session.federated_provider = Some("arn:aws:iam::123456789012:oidc-provider/example.com".into());
        Arc::new(session)
    }

    /// The record of a request of this principal.
    fn record(
        principal: Principal,
        operation: &'static str,
        request: Value,
        response: Option<Value>,
    ) -> Value {
        let mut ctx = Context::new("123456789012", "eu-central-1");
        (ctx.principal, ctx.service, ctx.operation) = (principal, "sts", operation);
        of(Event { ctx: &ctx, protocol: Protocol::Query, read_only: true, request, response, error: None })
    }

    fn identity_of(kind: PrincipalKind, session: Option<Arc<Session>>) -> Value {
        let principal = Principal {
            arn: "arn:x".into(),
            user_id: "ID".into(),
            kind,
            session,
            ..Principal::root("123456789012", "ASIAEXAMPLE")
        };
        record(principal, "GetCallerIdentity", Value::Null, None)["userIdentity"].take()
    }

    #[test]
    fn every_kind_of_caller_has_its_identity() {
        let mut named = json!({
            "type": "Root", "principalId": "ID", "arn": "arn:x", "accountId": "123456789012", "accessKeyId": "ASIAEXAMPLE",
        });
        assert_eq!(identity_of(PrincipalKind::Root, None), named);
        named["type"] = "IAMUser".into();
        named["userName"] = "alice".into();
        assert_eq!(identity_of(PrincipalKind::User { name: "alice".into() }, None), named);
        let user = identity_of(
            PrincipalKind::User { name: "alice".into() },
            Some(session(SessionOrigin::GetSessionToken)),
        );
        let attributes = json!({"creationDate": "2027-01-15T08:00:00Z", "mfaAuthenticated": "false"});
        assert_eq!(user["sessionContext"]["attributes"], attributes);
        let role = PrincipalKind::AssumedRole {
            role_name: "web".into(),
            role_id: "AROAEXAMPLE".into(),
            role_arn: "arn:aws:iam::123456789012:role/web".into(),
            session_name: "s".into(),
        };
        let role = identity_of(role, Some(session(SessionOrigin::AssumeRoleWithWebIdentity)));
        assert_eq!(role["type"], "AssumedRole");
        let expected = json!({
            "sessionIssuer": {
                "type": "Role", "principalId": "AROAEXAMPLE", "arn": "arn:aws:iam::123456789012:role/web",
                "accountId": "123456789012", "userName": "web",
            },
            "attributes": attributes,
            "sourceIdentity": "alice",
            "webIdFederationData": {"federatedProvider": "arn:aws:iam::123456789012:oidc-provider/example.com"},
        });
        assert_eq!(role["sessionContext"], expected);
        let federated = PrincipalKind::FederatedUser {
            source_arn: "arn:aws:iam::123456789012:user/team/bob".into(),
            source_id: "AIDABOB".into(),
            name: "guest".into(),
        };
        let federated = identity_of(federated, None);
        assert_eq!(federated["type"], "FederatedUser");
        assert_eq!(federated["sessionContext"]["sessionIssuer"]["userName"], "bob");
        let response = json!({
            "provider": "example.com", "audience": "sts.amazonaws.com", "subjectFromWebIdentityToken": "pod",
            "credentials": {"accessKeyId": "ASIANEW", "secretAccessKey": "very secret", "sessionToken": "token"},
        });
        let request = json!({"roleArn": "arn:r", "webIdentityToken": "a.b.c"});
        let web = record(Principal::anonymous(), "AssumeRoleWithWebIdentity", request, Some(response));
        let expected = json!({
            "type": "WebIdentityUser", "principalId": "example.com:sts.amazonaws.com:pod", "userName": "pod",
            "identityProvider": "example.com",
        });
        assert_eq!(web["userIdentity"], expected);
        assert_eq!(web["responseElements"]["credentials"]["accessKeyId"], "ASIANEW");
        let text = web.to_string();
        assert!(
            !text.contains("very secret") && !text.contains("a.b.c") && !text.contains("\"token\""),
            "{text}"
        );
    }
}
