//! `haar migrate` and `haar receive`: instances that move between daemons.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use haar_node::MigrationStatus;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;

use super::running;
use crate::cli::Migrate;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::state::{Daemon, StateDir};

/// How often is asked how far a migration is.
const LOOK: Duration = Duration::from_millis(200);

/// Prints an invitation.
pub fn receive(state: &StateDir) -> Result<ExitCode> {
    println!("{}", invitation(&running(state)?)?);
    Ok(ExitCode::SUCCESS)
}

/// An invitation of a daemon: where it answers, and what it knows the other one by.
fn invitation(daemon: &Daemon) -> Result<String> {
    let answer = Client::new(daemon)?.migrations("invite", &json!({}))?;
    let invitation = answer["invitation"].as_str().ok_or_else(|| Error::Answer("no invitation".into()))?;
    Ok(format!("{}/#{invitation}", daemon.endpoint()))
}

/// Moves an instance, or does what else is asked of migrations.
pub fn migrate(state: &StateDir, arguments: &Migrate) -> Result<ExitCode> {
    let daemon = running(state)?;
    let client = Client::new(&daemon)?;
    if let Some(id) = &arguments.take_back {
        client.migrations(&format!("take-back/{id}"), &json!({}))?;
        println!("{id} is taken back: the instance runs on here");
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.list {
        return list(&client, arguments.json);
    }
    let (Some(instance), Some(to)) = (&arguments.instance, &arguments.to) else {
        return Err(Error::Setting("an instance and --to are needed".into()));
    };
    let to = if to.contains("://") { to.clone() } else { invitation(&running_there(to)?)? };
    let (address, invitation) = read(&to)?;
    let asked = json!({ "instance": instance, "address": address, "invitation": invitation });
    let answer = client.migrations("begin", &asked)?;
    let id = answer["id"].as_str().ok_or_else(|| Error::Answer("no migration".into()))?;
    follow(&client, id, arguments.json)
}

/// The daemon of another state folder.
fn running_there(folder: &str) -> Result<Daemon> {
    let folder = std::path::absolute(folder).map_err(Error::io("find", folder))?;
    if !Path::new(&folder).is_dir() {
        let message = format!("{} is neither a state folder nor an invitation", folder.display());
        let hint = "make an invitation at the other daemon: haar receive".to_owned();
        return Err(Error::Refused { message, hint: Some(hint) });
    }
    running(&StateDir::new(folder))
}

/// Address and secret part of an invitation.
fn read(invitation: &str) -> Result<(String, String)> {
    let parts = invitation.trim().strip_prefix("http://").and_then(|rest| rest.split_once("/#"));
    match parts {
        Some((address, secret)) if address.contains(':') && secret.contains('.') => {
            Ok((address.to_owned(), secret.to_owned()))
        }
        _ => Err(Error::Refused {
            message: "the invitation cannot be read".into(),
            hint: Some(
                "it looks like http://10.0.0.2:4566/#123456789012.3f0c…; haar receive prints one".into(),
            ),
        }),
    }
}

fn list(client: &Client, json: bool) -> Result<ExitCode> {
    let answer = client.migrations("list", &json!({}))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&answer).expect("what was read can be written"));
        return Ok(ExitCode::SUCCESS);
    }
    let found: Vec<MigrationStatus> =
        serde_json::from_value(answer).map_err(|e| Error::Answer(e.to_string()))?;
    for status in found {
        let to = status.to.map(|to| format!(" to {to}")).unwrap_or_default();
        let why = status.message.map(|why| format!(": {why}")).unwrap_or_default();
        println!("{}  {}  {}{to}{why}", status.id, status.instance_id, status.phase);
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows how far a migration is until it has ended.
fn follow(client: &Client, id: &str, json: bool) -> Result<ExitCode> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let style =
        ProgressStyle::with_template("{spinner} {msg:28} {bytes:>12} of {total_bytes:12} {bytes_per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let status = loop {
        let answer = client.migrations(&format!("status/{id}"), &json!({}))?;
        let found: Vec<MigrationStatus> =
            serde_json::from_value(answer).map_err(|e| Error::Answer(e.to_string()))?;
        let status =
            found.into_iter().next().ok_or_else(|| Error::Answer(format!("nothing is known of {id}")))?;
        match status.phase.as_str() {
            "completed" | "failed" => break status,
            "handing-over" | "handed-over" => bar.set_message("handing over"),
            _ => {
                let progress = &status.progress;
                let (sent, left) = (progress.memory_sent, progress.memory_remaining);
                bar.set_message(if sent == 0 { "copying disks" } else { "copying memory" });
                bar.set_length(progress.disks_total + sent + left);
                bar.set_position(progress.disks_copied + sent);
            }
        }
        bar.tick();
        std::thread::sleep(LOOK);
    };
    bar.finish_and_clear();
    if json {
        println!("{}", serde_json::to_string_pretty(&status).expect("what was read can be written"));
    }
    if status.phase.as_str() == "failed" {
        let why = status.message.unwrap_or_default();
        let message = format!("{} stays here: {why}", status.instance_id);
        return Err(Error::Refused { message, hint: None });
    }
    if !json {
        let to = status.to.unwrap_or_default();
        let still = status.downtime_ms.map(|ms| format!("; it stood still for {ms} ms")).unwrap_or_default();
        let (bytes, seconds) = (HumanBytes(status.bytes), status.duration_ms as f64 / 1000.0);
        println!("{} is at {to}: {bytes} in {seconds:.1} s{still}", status.instance_id);
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invitations_are_read_or_refused() {
        let (address, secret) = read("http://10.0.0.2:4566/#123456789012.abc\n").unwrap();
        assert_eq!((address.as_str(), secret.as_str()), ("10.0.0.2:4566", "123456789012.abc"));
        for wrong in ["", "http://10.0.0.2:4566/", "https://a:1/#1.2", "http://host/#1.2", "http://a:1/#12"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
