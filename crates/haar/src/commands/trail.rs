//! `haar trail`: who did what.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use haar_trail::{Filter, Reader};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::Trail;
use crate::error::{Error, Result};
use crate::state::StateDir;

/// How often a trail that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Prints the wanted records, and with `--follow` those to come.
pub fn trail(state: &StateDir, options: Trail) -> Result<ExitCode> {
    let since =
        options.since.as_deref().map(|text| parse_since(text, OffsetDateTime::now_utc())).transpose()?;
    let filter = Filter {
        event_name: options.event,
        service: options.service,
        user: options.user,
        access_key: options.access_key,
        account: options.account,
        resource: options.resource,
        errors: options.errors,
        writes: options.writes,
        since,
    };
    let folder = state.trail();
    let mut reader = Reader::new(&folder, filter);
    let mut print = |record: &Value| {
        let text = if options.json { record.to_string() } else { line(record) };
        writeln!(io::stdout().lock(), "{text}").map_err(Failure::Write)
    };
    if let Some(most) = options.last {
        let mut last = VecDeque::new();
        let keep = |record| {
            last.push_back(record);
            if last.len() > most {
                last.pop_front();
            }
            Ok(())
        };
        reader.read(keep).map_err(|failure: Failure| failure.of(&folder))?;
        last.iter().try_for_each(&mut print).map_err(|failure| failure.of(&folder))?;
    }
    loop {
        reader.read(|record| print(&record)).map_err(|failure| failure.of(&folder))?;
        if !options.follow {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(LOOK);
    }
}

/// Why the trail is not printed.
enum Failure {
    Read(io::Error),
    Write(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl Failure {
    fn of(self, folder: &Path) -> Error {
        match self {
            Self::Read(error) => Error::io("read", folder)(error),
            Self::Write(error) => Error::io("write to", "the standard output")(error),
        }
    }
}

/// A time, or how long ago: `30m`, `2h`, `7d`.
fn parse_since(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime> {
    let ago = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number: i64 = number.parse().ok().filter(|number| (0..=1_000_000).contains(number))?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86400,
            _ => return None,
        };
        Some(now - time::Duration::seconds(number * seconds))
    };
    let at = ago().or_else(|| OffsetDateTime::parse(text, &Rfc3339).ok());
    at.ok_or_else(|| {
        Error::Setting(format!("{text:?} is no time: one looks like 30m, 2h, 7d or 2026-01-31T12:00:00Z"))
    })
}

/// A record in one line.
fn line(record: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let identity = &record["userIdentity"];
    let who = match identity["arn"].as_str() {
        Some(arn) => arn.splitn(6, ':').nth(5).unwrap_or(arn).to_owned(),
        None => text(&identity["userName"]),
    };
    let service = text(&record["eventSource"]).replace(".amazonaws.com", "");
    let outcome = record["errorCode"].as_str().unwrap_or("ok");
    format!(
        "{}  {}  {who}  {}  {service}:{}  {outcome}",
        text(&record["eventTime"]),
        text(&record["recipientAccountId"]),
        text(&record["sourceIPAddress"]),
        text(&record["eventName"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_past() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let seconds = |text| parse_since(text, now).unwrap().unix_timestamp();
        assert_eq!(seconds("90s"), 1_799_999_910);
        assert_eq!(seconds("2h"), 1_799_992_800);
        assert_eq!(seconds("1970-01-01T00:00:01Z"), 1);
        for wrong in ["", "h", "2", "-1h", "2 h", "é", "yesterday", "99999999999h"] {
            assert!(parse_since(wrong, now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_tells_who_did_what_and_how_it_ended() {
        let record = serde_json::json!({
            "userIdentity": {"arn": "arn:aws:iam::123456789012:user/alice"}, "eventTime": "2026-01-31T12:00:00Z",
            "eventSource": "ec2.amazonaws.com", "eventName": "RunInstances", "sourceIPAddress": "127.0.0.1",
            "recipientAccountId": "123456789012", "errorCode": "Client.UnauthorizedOperation",
        });
        let expected = "2026-01-31T12:00:00Z  123456789012  user/alice  127.0.0.1  ec2:RunInstances  \
                        Client.UnauthorizedOperation";
        assert_eq!(line(&record), expected);
    }
}
