//! `haar serve`, `haar up`, `haar down` and `haar status`.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::client::Client;
use crate::config::{Config, DEFAULT_STATE_DIR, Settings};
use crate::error::{Error, Result};
use crate::state::{Daemon, StateDir};

/// How long a started daemon may take until it answers. It answers within milliseconds where there is little to adopt.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a daemon may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// How long a daemon may take to answer a health check.
const HEALTH_PATIENCE: Duration = Duration::from_secs(5);
/// How much of the log an error shows, in bytes.
const TAIL: u64 = 2000;

/// Runs the daemon in this process.
pub fn serve(config: &Config) -> Result<ExitCode> {
    crate::serve::run(config)?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the daemon, unless it runs.
pub fn up(state: &StateDir, settings: &Settings) -> Result<ExitCode> {
    let wanted = Config::load(state.path(), settings.clone())?;
    if let Some(daemon) = state.running()? {
        Client::new(&daemon)?.health(HEALTH_PATIENCE)?;
        println!("haar already runs at {} (process {})", daemon.endpoint(), daemon.process.pid);
        if *settings != Settings::default() && daemon.config != wanted {
            println!(
                "It runs with other settings than it would be started with now; to apply them: haar down, haar up"
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    state.create()?;
    let begin = Instant::now();
    let log = state.log();
    let log_file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
    let log_file = log_file.map_err(Error::io("open", &log))?;
    let log_start = log_file.metadata().map_err(Error::io("examine", &log))?.len();
    let mut child = spawn_detached(state, settings, log_file)?;
    let daemon = loop {
        if let Some(daemon) = answering(state, &child)? {
            break daemon;
        }
        let ended = child.try_wait().map_err(Error::io("wait for", "haar serve"))?;
        let failed =
            |reason: String| Err(Error::NotStarted { reason, tail: tail(&log, log_start), log: log.clone() });
        if let Some(status) = ended {
            return failed(format!("it ended ({status})"));
        }
        if begin.elapsed() > START_PATIENCE {
            let _ = child.kill();
            return failed(format!("no answer within {} s", START_PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    println!(
        "haar {} runs at {} (process {}, up in {} ms)",
        daemon.version,
        daemon.endpoint(),
        daemon.process.pid,
        begin.elapsed().as_millis()
    );
    let haar = if state.path() == DEFAULT_STATE_DIR {
        "haar".to_owned()
    } else {
        format!("haar --state-dir {}", state.path().display())
    };
    println!("  eval \"$({haar} env)\"  points this shell's AWS clients at it");
    println!("  aws ec2 describe-instances  tries it");
    println!("  {haar} down  stops it; instances keep running");
    println!("  log: {}", log.display());
    Ok(ExitCode::SUCCESS)
}

/// Starts `haar serve` in a session of its own, so that it outlives this process and its terminal.
fn spawn_detached(state: &StateDir, settings: &Settings, log: fs::File) -> Result<Child> {
    let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
    let failed = |source| Error::Program { program: program.display().to_string(), source };
    let mut command = Command::new(&program);
    command.arg("--state-dir").arg(state.path()).arg("serve").args(settings.to_arguments());
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log).current_dir("/");
    // SAFETY: setsid is async-signal-safe, and nothing else runs between fork and exec.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    command.spawn().map_err(failed)
}

/// The daemon that `child` has become, once it answers.
fn answering(state: &StateDir, child: &Child) -> Result<Option<Daemon>> {
    match state.running()? {
        Some(daemon) if u32::try_from(daemon.process.pid) == Ok(child.id()) => {
            Ok(Client::new(&daemon)?.health(HEALTH_PATIENCE).is_ok().then_some(daemon))
        }
        _ => Ok(None),
    }
}

/// What the log says from `start` on, at most its last [`TAIL`] bytes.
fn tail(log: &Path, start: u64) -> String {
    let read = || {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(TAIL))))?;
        let mut text = Vec::new();
        file.take(TAIL).read_to_end(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim_end().to_owned()
}

/// Stops the daemon, and with `all` everything that it runs.
pub fn down(state: &StateDir, all: bool) -> Result<ExitCode> {
    let daemon = state.latest()?;
    match &daemon {
        Some(daemon) if daemon.is_alive() => {
            daemon.stop(STOP_PATIENCE)?;
            println!("haar stopped (process {})", daemon.process.pid);
        }
        _ => println!("haar does not run"),
    }
    if all && state.path().exists() {
        let config = match daemon {
            Some(daemon) => daemon.config,
            None => Config::load(state.path(), Settings::default())?,
        };
        // Nobody may start a daemon while the ground is taken from under it.
        let _claim = state.claim()?;
        crate::serve::teardown(&config)?;
        println!("everything that it ran is stopped");
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints whether the daemon runs, with what, and since when.
pub fn status(state: &StateDir, json: bool) -> Result<ExitCode> {
    let Some(daemon) = state.running()? else {
        if json {
            println!("{}", serde_json::json!({"running": false, "state-dir": state.path()}));
        } else {
            println!("haar does not run with the state folder {}", state.path().display());
        }
        return Ok(ExitCode::from(3));
    };
    let health = Client::new(&daemon)?.health(HEALTH_PATIENCE);
    let uptime = (OffsetDateTime::now_utc() - daemon.started).whole_seconds().max(0);
    let (pid, endpoint) = (daemon.process.pid, daemon.endpoint());
    if json {
        let config = &daemon.config;
        let answer = serde_json::json!({
            "running": true,
            "answers": health.is_ok(),
            "health": health.as_ref().ok(),
            "pid": pid,
            "endpoint": endpoint,
            "version": daemon.version,
            "uptime-seconds": uptime,
            "config": config,
        });
        println!("{answer:#}");
    } else {
        let config = &daemon.config;
        println!("haar {} runs", daemon.version);
        println!("  endpoint     {endpoint}");
        println!("  process      {pid}, for {}", duration(uptime));
        println!("  region       {}", config.region);
        println!("  compute      {}", config.compute.as_str());
        println!("  public pool  {}", config.public_pool);
        println!("  state        {}", config.state_dir.display());
    }
    health.map(|_| ExitCode::SUCCESS)
}

/// Seconds as a person says them.
fn duration(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_two_units() {
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(61), "1 min 1 s");
        assert_eq!(duration(3600), "1 h 0 min");
        assert_eq!(duration(90_000), "1 d 1 h");
    }

    #[test]
    fn the_tail_of_a_log_begins_where_this_start_began() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "earlier\nlater\n").unwrap();
        assert_eq!(tail(&log, 8), "later");
        assert_eq!(tail(&dir.path().join("missing"), 0), "");
        fs::write(&log, vec![b'x'; 5000]).unwrap();
        assert_eq!(tail(&log, 0).len(), TAIL as usize);
    }
}
