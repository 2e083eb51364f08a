//! `haar migrate` and `haar receive`: instances that move between daemons.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use haar_node::MigrationStatus;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use super::running;
use crate::cli::Migrate;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::state::{Daemon, StateDir};

/// How often is asked how far a migration is.
const LOOK: Duration = Duration::from_millis(200);

/// The exit status of who was interrupted, as shells give it.
const INTERRUPTED: u8 = 130;

/// Prints an invitation.
pub fn receive(state: &StateDir) -> Result<ExitCode> {
    println!("{}", invitation(&running(state)?)?);
    Ok(ExitCode::SUCCESS)
}

/// An invitation of a daemon: where it answers, and what the other one knows it by and is known by.
fn invitation(daemon: &Daemon) -> Result<String> {
    let endpoint = daemon.endpoint();
    let address = endpoint.strip_prefix("http://").unwrap_or(&endpoint);
    let answer = Client::new(daemon)?.migrations("invite", &json!({ "address": address }))?;
    let invitation = answer["invitation"].as_str().ok_or_else(|| Error::Answer("no invitation".into()))?;
    Ok(invitation.to_owned())
}

/// Moves an instance, or does what else is asked of migrations.
pub fn migrate(state: &StateDir, arguments: &Migrate) -> Result<ExitCode> {
    let daemon = running(state)?;
    let client = Client::new(&daemon)?;
    if let Some(id) = &arguments.take_back {
        let answer = client.migrations(&format!("take-back/{id}"), &json!({}))?;
        println!("{id} is taken back: the instance runs on here");
        if let Some(there) = answer["unasked"].as_str() {
            eprintln!(
                "The daemon at {there} could not be asked. Should it have the instance after all, the one here is shut down when that is known."
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(id) = &arguments.cancel {
        client.migrations(&format!("cancel/{id}"), &json!({}))?;
        return follow(&client, id, arguments.json);
    }
    if arguments.list {
        return list(&client, arguments.json);
    }
    let (Some(instance), Some(to)) = (&arguments.instance, &arguments.to) else {
        return Err(Error::Setting("an instance and --to are needed".into()));
    };
    let to = if to.contains("://") { to.clone() } else { invitation(&running_there(to)?)? };
    let asked =
        json!({ "instance": instance, "invitation": to.trim(), "timeout_seconds": arguments.timeout });
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

/// Shows how far a migration is until it has ended. Who interrupts this has the instance stay, if it can still be kept.
fn follow(client: &Client, id: &str, json: bool) -> Result<ExitCode> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let style =
        ProgressStyle::with_template("{spinner} {msg:28} {bytes:>12} of {total_bytes:12} {bytes_per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let interruptions = interruptions()?;
    let (mut cancelled, mut told) = (false, None);
    let status = loop {
        let status = status(client, id)?;
        if matches!(status.phase.as_str(), "completed" | "failed") {
            break status;
        }
        if let Some(trouble) = &status.message
            && status.message != told
        {
            told.clone_from(&status.message);
            let instance = &status.instance_id;
            bar.suspend(|| {
                eprintln!(
                    "{trouble}. {instance} stands still, or runs there, until that daemon says so. If it never will: haar migrate --take-back {id}"
                );
            });
        }
        show(&bar, &status);
        match interruptions.load(Ordering::Relaxed) {
            0 => {}
            1 if !cancelled => {
                cancelled = true;
                let said = match client.migrations(&format!("cancel/{id}"), &json!({})) {
                    Ok(_) => "The instance stays, unless it was about to be handed over.".to_owned(),
                    Err(error) => error.to_string(),
                };
                bar.suspend(|| eprintln!("{said} Interrupt again to leave {id} to itself."));
            }
            1 => {}
            _ => {
                bar.finish_and_clear();
                eprintln!("{id} goes on: haar migrate --list says how it ends.");
                return Ok(ExitCode::from(INTERRUPTED));
            }
        }
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

fn status(client: &Client, id: &str) -> Result<MigrationStatus> {
    let answer = client.migrations(&format!("status/{id}"), &json!({}))?;
    let found: Vec<MigrationStatus> =
        serde_json::from_value(answer).map_err(|e| Error::Answer(e.to_string()))?;
    found.into_iter().next().ok_or_else(|| Error::Answer(format!("nothing is known of {id}")))
}

fn show(bar: &ProgressBar, status: &MigrationStatus) {
    let progress = &status.progress;
    match status.phase.as_str() {
        "handing-over" | "handed-over" => bar.set_message("handing over"),
        _ if progress.memory_sent == 0 => bar.set_message("copying disks"),
        _ if progress.throttled_percent > 0 => {
            bar.set_message(format!("copying memory, slowed {} %", progress.throttled_percent));
        }
        _ => bar.set_message("copying memory"),
    }
    bar.set_length(progress.disks_total + progress.memory_sent + progress.memory_remaining);
    bar.set_position(progress.disks_copied + progress.memory_sent);
    bar.tick();
}

/// Counts from now on how often the user has interrupted this command, which does not end by itself any more.
fn interruptions() -> Result<Arc<AtomicUsize>> {
    let failed = || Error::io("listen for", "signals");
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed())?;
    let entered = runtime.enter();
    let mut interrupts = signal(SignalKind::interrupt()).map_err(failed())?;
    drop(entered);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        runtime.block_on(async {
            while interrupts.recv().await.is_some() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
    Ok(count)
}
