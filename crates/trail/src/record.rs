//! Records in CloudTrail's form.

use std::borrow::Cow;

use haar_api::note::{Event, Noted};
use haar_api::schema::Protocol;
use haar_api::timestamp::iso8601;
use haar_api::{Context, Error, Principal, PrincipalKind, SessionOrigin};
use serde::{Deserialize, Serialize};

/// How long `requestParameters` and `responseElements` get, in bytes: longer ones are left out, as CloudTrail does.
const MOST_NOTED: usize = 100 << 10;

/// The record of an event, one line (CloudTrail User Guide, "CloudTrail record contents for management, data, and network activity
/// events").
///
/// # Errors
/// What serde says; never, as all of it has a form in JSON.
pub(crate) fn line(event: &Event<'_>) -> serde_json::Result<Vec<u8>> {
    let ctx = event.ctx;
    let mut line = Line(Vec::with_capacity(1024));
    line.push("{\"eventVersion\":\"1.11\",\"userIdentity\":");
    serde_json::to_writer(&mut line.0, &identity(&ctx.principal, ctx.operation, event.response.as_ref()))?;
    line.text("eventTime", &iso8601(ctx.now, false))?;
    line.text("eventSource", &format!("{}.amazonaws.com", ctx.service))?;
    line.text("eventName", ctx.operation)?;
    line.text("awsRegion", &ctx.region)?;
    line.text("sourceIPAddress", &ctx.source_ip.to_canonical().to_string())?;
    if let Some(agent) = &ctx.user_agent {
        line.text("userAgent", agent)?;
    }
    if let Some(error) = event.error {
        line.text("errorCode", &code(error, event.protocol))?;
        line.text("errorMessage", &error.message)?;
    }
    line.text("requestID", &ctx.request_id)?;
    line.text("eventID", &haar_api::request_id())?;
    if let Some(account) = recipient(ctx, event.response.as_ref()) {
        line.text("recipientAccountId", &account)?;
    }
    line.push(if event.read_only { ",\"readOnly\":true" } else { ",\"readOnly\":false" });
    line.push(",\"eventType\":\"AwsApiCall\",\"managementEvent\":true,\"eventCategory\":\"Management\"");
    line.push(",\"requestParameters\":");
    line.0.extend_from_slice(bounded(Some(&event.request)));
    line.push(",\"responseElements\":");
    line.0.extend_from_slice(bounded(event.response.as_ref()));
    line.push("}\n");
    Ok(line.0)
}

/// What was noted, or null where there is nothing, or more than a record has room for.
fn bounded(noted: Option<&Noted>) -> &[u8] {
    noted.map(Noted::as_bytes).filter(|json| json.len() <= MOST_NOTED).unwrap_or(b"null")
}

/// The account that a request concerns: that of the caller; where nobody signed, that of the role which was assumed.
fn recipient<'a>(ctx: &'a Context, response: Option<&Noted>) -> Option<Cow<'a, str>> {
    if !ctx.account.is_empty() {
        return Some(ctx.account.as_str().into());
    }
    let answer: WebIdentity = serde_json::from_slice(response?.as_bytes()).ok()?;
    answer.assumed_role_user.arn.split(':').nth(4).map(|account| account.to_owned().into())
}

/// A record that is being written. What each request writes is written without a tree or a table of its members.
struct Line(Vec<u8>);

impl Line {
    fn push(&mut self, json: &str) {
        self.0.extend_from_slice(json.as_bytes());
    }

    /// Writes a member that is text, after others.
    fn text(&mut self, name: &'static str, text: &str) -> serde_json::Result<()> {
        for piece in [",\"", name, "\":"] {
            self.push(piece);
        }
        serde_json::to_writer(&mut self.0, text)
    }
}

/// CloudTrail User Guide, "CloudTrail userIdentity element".
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Identity<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal_id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arn: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_key_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_context: Option<SessionContext<'a>>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionContext<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    session_issuer: Option<Issuer<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<Attributes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_identity: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    web_id_federation_data: Option<WebIdFederationData<'a>>,
}

/// Who gave the credentials of a session.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Issuer<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    principal_id: &'a str,
    arn: &'a str,
    account_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Attributes {
    creation_date: String,
    mfa_authenticated: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WebIdFederationData<'a> {
    federated_provider: Option<&'a str>,
}

/// EC2's codes say whose fault it was ("Error codes for the Amazon EC2 API").
fn code(error: &Error, protocol: Protocol) -> String {
    match protocol {
        Protocol::Ec2 if error.status.is_server_error() => format!("Server.{}", error.code),
        Protocol::Ec2 => format!("Client.{}", error.code),
        _ => haar_api::code(error, protocol).to_owned(),
    }
}

fn identity<'a>(principal: &'a Principal, operation: &str, response: Option<&Noted>) -> Identity<'a> {
    let named = |kind| Identity {
        kind,
        principal_id: Some(principal.user_id.as_str().into()),
        arn: Some(&principal.arn),
        account_id: Some(&principal.account),
        access_key_id: Some(&principal.access_key_id),
        ..Identity::default()
    };
    let issuer = |kind, principal_id, arn, user_name| {
        let account_id = &principal.account;
        Issuer { kind, principal_id, arn, account_id, user_name }
    };
    let issued = |kind, issuer| Identity {
        session_context: Some(SessionContext { session_issuer: Some(issuer), ..SessionContext::default() }),
        ..named(kind)
    };
    let mut identity = match &principal.kind {
        PrincipalKind::Root => named("Root"),
        PrincipalKind::User { name } => Identity { user_name: Some(name.into()), ..named("IAMUser") },
        PrincipalKind::AssumedRole { role_name, role_id, role_arn, .. } => {
            issued("AssumedRole", issuer("Role", role_id, role_arn, Some(role_name)))
        }
        PrincipalKind::FederatedUser { source_arn, source_id, .. } if source_arn.ends_with(":root") => {
            issued("FederatedUser", issuer("Root", source_id, source_arn, None))
        }
        PrincipalKind::FederatedUser { source_arn, source_id, .. } => {
            let name = source_arn.rsplit('/').next();
            issued("FederatedUser", issuer("IAMUser", source_id, source_arn, name))
        }
        PrincipalKind::Anonymous if operation == "AssumeRoleWithWebIdentity" => web_identity(response),
        PrincipalKind::Anonymous => {
            Identity { kind: "Unknown", account_id: Some("anonymous"), ..Identity::default() }
        }
    };
    if let Some(session) = &principal.session {
        let context = identity.session_context.get_or_insert_default();
        context.attributes = Some(Attributes {
            creation_date: iso8601(session.issued, false),
            mfa_authenticated: if session.mfa { "true" } else { "false" },
        });
        context.source_identity = session.source_identity.as_deref();
        if session.origin == SessionOrigin::AssumeRoleWithWebIdentity {
            let federated_provider = session.federated_provider.as_deref();
            context.web_id_federation_data = Some(WebIdFederationData { federated_provider });
        }
    }
    identity
}

/// What AssumeRoleWithWebIdentity answers of the token.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WebIdentity {
    provider: String,
    #[serde(default)]
    audience: String,
    subject_from_web_identity_token: String,
    assumed_role_user: AssumedRoleUser,
}

#[derive(Deserialize)]
struct AssumedRoleUser {
    arn: String,
}

/// Whom the token is of is known once it was found good.
fn web_identity<'a>(response: Option<&Noted>) -> Identity<'a> {
    let mut identity = Identity { kind: "WebIdentityUser", ..Identity::default() };
    let found = response.and_then(|response| serde_json::from_slice::<WebIdentity>(response.as_bytes()).ok());
    if let Some(WebIdentity { provider, audience, subject_from_web_identity_token: subject, .. }) = found {
        identity.principal_id = Some(format!("{provider}:{audience}:{subject}").into());
        identity.user_name = Some(subject.into());
        identity.identity_provider = Some(provider);
    }
    identity
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use haar_api::Session;
    use serde_json::{Value, json};
    use time::OffsetDateTime;

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
        request: &Value,
        response: Option<&Value>,
    ) -> Value {
        let mut ctx = Context::new("123456789012", "eu-central-1");
        (ctx.principal, ctx.service, ctx.operation) = (principal, "sts", operation);
        let (request, response) = (request.into(), response.map(Noted::from));
        let event =
            Event { ctx: &ctx, protocol: Protocol::Query, read_only: true, request, response, error: None };
        serde_json::from_slice(&line(&event).unwrap()).unwrap()
    }

    fn identity_of(kind: PrincipalKind, session: Option<Arc<Session>>) -> Value {
        let principal = Principal {
            arn: "arn:x".into(),
            user_id: "ID".into(),
            kind,
            session,
            ..Principal::root("123456789012", "ASIAEXAMPLE")
        };
        record(principal, "GetCallerIdentity", &Value::Null, None)["userIdentity"].take()
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
            "assumedRoleUser": {"arn": "arn:aws:sts::111122223333:assumed-role/web/s"},
            "credentials": {"accessKeyId": "ASIANEW", "secretAccessKey": "very secret", "sessionToken": "token"},
        });
        let request = json!({"roleArn": "arn:r", "webIdentityToken": "a.b.c"});
        let web = record(Principal::anonymous(), "AssumeRoleWithWebIdentity", &request, Some(&response));
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
