//! `haar service`: haar as services of systemd, and `haar guests`, which they call when the machine goes down and comes up.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::cli::{Guests, Service, ServicePlace};
use crate::client::Client;
use crate::config::{Config, Settings};
use crate::error::{Error, Result};
use crate::state::{Daemon, StateDir};

/// The daemon's unit.
const DAEMON: &str = "haar.service";

/// The unit whose end is that of the guests.
const GUESTS: &str = "haar-guests.service";

/// How long a daemon that systemd has just started may take until it answers.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long machines may take to end once their guests have not shut down in time.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// `haar service …`
pub fn service(state: &StateDir, command: Service) -> Result<ExitCode> {
    match command {
        Service::Install(install) => {
            // What would keep the daemon from starting is better said now.
            Config::load(state.path(), install.settings.clone())?;
            let place = &install.place.unit_dir;
            let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
            for (name, text) in [
                (DAEMON, daemon_unit(&program, state.path(), &install.settings)),
                (GUESTS, guests_unit(&program, state.path())),
            ] {
                let path = place.join(name);
                fs::write(&path, text).map_err(Error::io("write", &path))?;
                println!("{} is written", path.display());
            }
            if !manages_this_machine(&install.place) {
                println!("systemd does not manage this machine from there: nothing was enabled");
                return Ok(ExitCode::SUCCESS);
            }
            systemctl(&["daemon-reload"])?;
            systemctl(&["enable", DAEMON, GUESTS])?;
            println!("haar starts with this machine; start it now: systemctl start {DAEMON} {GUESTS}");
        }
        Service::Uninstall(place) => {
            let managed = manages_this_machine(&place);
            if managed {
                // Only what starts with the machine: what runs, runs on.
                systemctl(&["disable", DAEMON, GUESTS])?;
            }
            for name in [DAEMON, GUESTS] {
                let path = place.unit_dir.join(name);
                match fs::remove_file(&path) {
                    Ok(()) => println!("{} is removed", path.display()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        println!("{} is not there", path.display());
                    }
                    Err(error) => return Err(Error::io("remove", path)(error)),
                }
            }
            if managed {
                systemctl(&["daemon-reload"])?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether systemd runs here and reads units from this folder.
fn manages_this_machine(place: &ServicePlace) -> bool {
    Path::new("/run/systemd/system").is_dir() && place.unit_dir == Path::new(ServicePlace::DEFAULT)
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    let failed = |source| Error::Program { program: "systemctl".into(), source };
    let status = Command::new("systemctl").args(arguments).status().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Refused {
        message: format!("systemctl {} ended with {status}", arguments.join(" ")),
        hint: None,
    })
}

/// Machines are processes of their own that outlive the daemon: only the daemon's process is ended with its unit.
fn daemon_unit(program: &Path, state_dir: &Path, settings: &Settings) -> String {
    let mut command = vec![text(program), "--state-dir".into(), text(state_dir), "serve".into()];
    command.extend(settings.to_arguments());
    format!(
        "[Unit]
Description=haar, the compute cloud of AWS on this machine
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
ExecStart={}
Restart=on-failure
RestartSec=1
# Virtual machines run on when the daemon is stopped or started anew.
KillMode=process
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
",
        line(&command)
    )
}

/// Stopped before the daemon, by nothing but the machine's going down.
fn guests_unit(program: &Path, state_dir: &Path) -> String {
    let command = |what: &str| {
        line(&[text(program), "--state-dir".into(), text(state_dir), "guests".into(), what.to_owned()])
    };
    let patience = Guests::GRACE + 2 * END_PATIENCE.as_secs();
    format!(
        "[Unit]
Description=Instances of haar, which go down and come up with this machine
Wants={DAEMON}
After={DAEMON}
# The daemon may come and go; instances are stopped by the AWS API.
RefuseManualStop=yes

[Service]
Type=oneshot
RemainAfterExit=yes
# This unit must be active for its end to be noticed, whatever the daemon does now.
ExecStart=-{}
ExecStop={}
TimeoutStopSec={patience}

[Install]
WantedBy=multi-user.target
",
        command("start"),
        command("stop")
    )
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A command as units have it: words in quotes where they need them, percent signs and dollars doubled (systemd.service(5)).
fn line(words: &[String]) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=+,@".contains(&b);
    let quoted = words.iter().map(|word| {
        if !word.is_empty() && word.bytes().all(plain) {
            return word.clone();
        }
        let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
        format!("\"{word}\"")
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// `haar guests …`
pub fn guests(state: &StateDir, command: &Guests) -> Result<ExitCode> {
    match command {
        Guests::Stop { grace } => stop_guests(state, Duration::from_secs(*grace)),
        Guests::Start => start_guests(state),
    }
}

/// Shuts all guests down, by the daemon if it runs and else in this process.
fn stop_guests(state: &StateDir, grace: Duration) -> Result<ExitCode> {
    let patience = grace + END_PATIENCE;
    let Some(daemon) = state.running()? else {
        let Some(latest) = state.latest()? else {
            println!("there are no instances");
            return Ok(ExitCode::SUCCESS);
        };
        let left = crate::serve::stop_guests(&latest.config, grace, patience)?;
        return stopped(&left);
    };
    let client = Client::new(&daemon)?;
    client.ask("/_haar/guests/stop", &grace.as_secs().to_string())?;
    let begin = Instant::now();
    loop {
        let left = machines(&client)?;
        if left.is_empty() || begin.elapsed() > patience {
            return stopped(&left);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn machines(client: &Client<'_>) -> Result<Vec<String>> {
    let answer = client.ask("/_haar/guests", "")?;
    let ids = answer["machines"].as_array().cloned().unwrap_or_default();
    Ok(ids.iter().filter_map(|id| id.as_str().map(ToOwned::to_owned)).collect())
}

fn stopped(left: &[String]) -> Result<ExitCode> {
    if left.is_empty() {
        println!("all instances are shut down; they come back when haar starts the next time");
        return Ok(ExitCode::SUCCESS);
    }
    Err(Error::Refused { message: format!("these did not end: {}", left.join(", ")), hint: None })
}

/// Has a daemon that was told that the machine goes down start its guests again. One that has just begun does so by itself.
fn start_guests(state: &StateDir) -> Result<ExitCode> {
    let begin = Instant::now();
    let daemon = loop {
        if let Some(daemon) = answering(state)? {
            break daemon;
        }
        if begin.elapsed() > START_PATIENCE {
            return Err(Error::NotRunning(state.path().into()));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    Client::new(&daemon)?.ask("/_haar/guests/start", "")?;
    println!("instances that went down with the machine come back");
    Ok(ExitCode::SUCCESS)
}

fn answering(state: &StateDir) -> Result<Option<Daemon>> {
    let Some(daemon) = state.running()? else { return Ok(None) };
    let answers = Client::new(&daemon)?.health(Duration::from_secs(5)).is_ok();
    Ok(answers.then_some(daemon))
}

impl ServicePlace {
    /// Where systemd looks for the machine's own units.
    pub const DEFAULT: &'static str = "/etc/systemd/system";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_quoted_as_systemd_reads_them() {
        let words = ["/usr/bin/haar", "a b", "50%", "say \"x\"", "$HOME", ""].map(ToOwned::to_owned);
        assert_eq!(line(&words), r#"/usr/bin/haar "a b" "50%%" "say \"x\"" "$$HOME" """#);
    }

    #[test]
    fn the_guests_unit_waits_longer_than_guests_may_take() {
        let unit = guests_unit(Path::new("/usr/bin/haar"), Path::new("/var/lib/haar"));
        assert!(unit.contains("TimeoutStopSec=150\n"), "{unit}");
        assert!(unit.contains("ExecStop=/usr/bin/haar --state-dir /var/lib/haar guests stop\n"));
    }
}
