//! The credential report of an account (IAM User Guide, "Generate credential reports for your AWS account").

use haar_api::{Bytes, Context, Error};
use haar_records::GLOBAL_ACCOUNT;
use haar_records::iam::{self, AccessKeyStatus, Account, CredentialReport, MfaDevice, REGION};
use haar_store::Snapshot;
use time::{Duration, OffsetDateTime};

use super::Handlers;
use super::common::Result;
use super::model::*;

/// How long a report is given before another one is made.
const LIFE: Duration = Duration::hours(4);

const HEADER: &str = "user,arn,user_creation_time,password_enabled,password_last_used,password_last_changed,\
    password_next_rotation,mfa_active,access_key_1_active,access_key_1_last_rotated,access_key_1_last_used_date,\
    access_key_1_last_used_region,access_key_1_last_used_service,access_key_2_active,access_key_2_last_rotated,\
    access_key_2_last_used_date,access_key_2_last_used_region,access_key_2_last_used_service,cert_1_active,\
    cert_1_last_rotated,cert_2_active,cert_2_last_rotated";

const NOT_APPLICABLE: &str = "N/A";

/// As `2026-01-31T12:00:00+00:00`.
fn time_of(at: OffsetDateTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]+00:00");
    at.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default()
}

/// The line of a user, or of the root.
fn line(handlers: &Handlers, snapshot: &Snapshot, root: &Account, user: Option<&iam::User>) -> String {
    let account = root.id.as_str();
    let mut fields = match user {
        Some(user) => vec![quoted(&user.name), quoted(&user.arn()), time_of(user.create_time)],
        None => {
            let arn = format!("arn:aws:iam::{account}:root");
            vec!["<root_account>".to_owned(), arn, time_of(root.create_time)]
        }
    };
    // Nobody has a password.
    let password = if user.is_some() { "false" } else { "not_supported" };
    fields.push(password.to_owned());
    fields.extend([NOT_APPLICABLE.to_owned(), NOT_APPLICABLE.to_owned(), NOT_APPLICABLE.to_owned()]);
    let user_id = user.map(|user| user.user_id.as_str());
    let devices = snapshot.by_index::<MfaDevice>(account, REGION, "user", user_id.unwrap_or_default());
    fields.push((devices.count() > 0).to_string());
    let owner = iam::AccessKey::owner(account, user_id);
    let mut keys: Vec<_> =
        snapshot.by_index::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, "owner", &owner).collect();
    keys.sort_by_key(|key| key.create_time);
    for place in 0..2 {
        let Some(key) = keys.get(place) else {
            fields.push("false".to_owned());
            fields.extend(std::iter::repeat_n(NOT_APPLICABLE.to_owned(), 4));
            continue;
        };
        fields.push((key.status == AccessKeyStatus::Active).to_string());
        fields.push(time_of(key.create_time));
        match handlers.keyring.usage(snapshot, &key.id) {
            Some(usage) => fields.extend([time_of(usage.at), usage.region, usage.service]),
            None => fields.extend(std::iter::repeat_n(NOT_APPLICABLE.to_owned(), 3)),
        }
    }
    // There are no signing certificates.
    for _ in 0..2 {
        fields.extend(["false".to_owned(), NOT_APPLICABLE.to_owned()]);
    }
    fields.join(",")
}

/// A field of CSV (RFC 4180): names may hold commas.
fn quoted(text: &str) -> String {
    if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

fn report(handlers: &Handlers, snapshot: &Snapshot, account: &str) -> String {
    let mut lines = vec![HEADER.to_owned()];
    if let Some(root) = snapshot.get::<Account>(account, REGION, account) {
        lines.push(line(handlers, snapshot, &root, None));
        let users = snapshot.list::<iam::User>(account, REGION);
        lines.extend(users.map(|user| line(handlers, snapshot, &root, Some(user))));
    }
    lines.join("\n")
}

fn is_good(report: &CredentialReport, now: OffsetDateTime) -> bool {
    now - report.generated < LIFE
}

/// `GenerateCredentialReport`: every four hours a new one.
pub(super) async fn generate_credential_report(
    handlers: &Handlers,
    ctx: &Context,
) -> Result<GenerateCredentialReportResponse> {
    let made = haar_core::transact(&handlers.store, ctx, |tx| {
        let known = tx.get::<CredentialReport>(&ctx.account, REGION, &ctx.account);
        if known.is_some_and(|known| is_good(&known, ctx.now)) {
            return Ok(false);
        }
        let content = report(handlers, tx.snapshot(), &ctx.account);
        tx.put(CredentialReport {
            account: ctx.account.clone(),
            id: ctx.account.clone(),
            content,
            generated: ctx.now,
        });
        Ok::<_, Error>(true)
    })
    .await?;
    Ok(GenerateCredentialReportResponse {
        state: Some(if made { ReportStateType::Started } else { ReportStateType::Complete }),
        description: made.then(|| "No report exists. Starting a new report generation task".to_owned()),
    })
}

/// `GetCredentialReport`.
pub(super) async fn get_credential_report(
    handlers: &Handlers,
    ctx: &Context,
) -> Result<GetCredentialReportResponse> {
    let found = handlers.store.snapshot().get::<CredentialReport>(&ctx.account, REGION, &ctx.account);
    let gone = |code: &'static str, message: &str| Err(Error::new(code, message).with_status(410));
    let Some(report) = found else {
        return gone(
            "ReportNotPresent",
            "No report exists. Use GenerateCredentialReport to generate a report.",
        );
    };
    if !is_good(&report, ctx.now) {
        return gone(
            "ReportExpired",
            "The report has expired. Use GenerateCredentialReport to generate a report.",
        );
    }
    Ok(GetCredentialReportResponse {
        content: Some(Bytes::from(report.content.clone())),
        report_format: Some(ReportFormatType::TextCsv),
        generated_time: Some(report.generated),
    })
}
