//! The files of the state folder that the daemon and the commands share.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::config::{self, Config};
use crate::error::{Error, Result};

/// How long a daemon that is known to have ended may still hold the folder.
const DYING: Duration = Duration::from_secs(5);

/// The state folder: `/var/lib/haar` by default. Where what is in it is said once, here.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The state folder at this path, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder where it is missing; only its owner may look into it, as it holds keys and disks.
    pub fn create(&self) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.0).map_err(Error::io("create", &self.0))
    }

    /// The image library.
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// The run directories of machines.
    pub fn machines(&self) -> PathBuf {
        self.0.join("run").join("vm")
    }

    /// What an instance has written to its serial console.
    pub fn console_log(&self, instance_id: &str) -> PathBuf {
        self.0.join("console").join(format!("{instance_id}.log"))
    }

    /// The disks of volumes and snapshots.
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    /// The catalogue file that extends the built-in catalogue of images.
    pub fn catalogue(&self) -> PathBuf {
        self.0.join("catalogue.toml")
    }

    /// Private keys that `haar ssh` finds by the key pair's name.
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    /// Host keys of instances that `haar ssh` has seen.
    pub fn known_hosts(&self) -> PathBuf {
        self.0.join("known_hosts")
    }

    /// The root keys.
    pub fn credentials(&self) -> PathBuf {
        self.0.join("credentials.json")
    }

    /// The root keys of further accounts, a file for each.
    pub fn accounts(&self) -> PathBuf {
        self.0.join("accounts")
    }

    /// The key that seals the secrets among the records, made now where there is none.
    pub fn sealing_key(&self) -> Result<[u8; 32]> {
        let path = self.0.join("sealing.key");
        create_private(&path, hex::encode(rand::random::<[u8; 32]>()).as_bytes())?;
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim(), &mut key)
            .map_err(|e| Error::Malformed { path, reason: e.to_string() })?;
        Ok(key)
    }

    /// The audit trail.
    pub fn trail(&self) -> PathBuf {
        self.0.join("trail")
    }

    /// The log of a daemon that `haar up` started.
    pub fn log(&self) -> PathBuf {
        self.0.join("haar.log")
    }

    fn daemon_file(&self) -> PathBuf {
        self.0.join("daemon.json")
    }

    /// Claims the folder for this process until the returned value is dropped or the process ends, however it ends.
    pub fn claim(&self) -> Result<Claim> {
        let path = self.0.join("daemon.lock");
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        // A daemon that was just killed holds the lock until the kernel has cleared it away.
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Claim { dir: self.clone(), _lock: file }),
                Err(fs::TryLockError::WouldBlock) if self.running()?.is_none() && begin.elapsed() < DYING => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(fs::TryLockError::WouldBlock) => return Err(Error::StateInUse(self.0.clone())),
                Err(fs::TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
            }
        }
    }

    /// The latest daemon of this folder, whether it still runs or not.
    pub fn latest(&self) -> Result<Option<Daemon>> {
        let path = self.daemon_file();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        let malformed = |e: serde_json::Error| Error::Malformed { path, reason: e.to_string() };
        serde_json::from_slice(&text).map(Some).map_err(malformed)
    }

    /// The daemon that runs with this folder.
    pub fn running(&self) -> Result<Option<Daemon>> {
        Ok(self.latest()?.filter(Daemon::is_alive))
    }
}

/// The right to be the daemon of a state folder.
#[derive(Debug)]
pub struct Claim {
    dir: StateDir,
    _lock: File,
}

impl Claim {
    /// Tells the commands where this process answers, in `daemon.json`. `listen` is the address that was bound. The file
    /// stays when the process ends: it says what has to be cleaned up.
    pub fn announce(&self, config: &Config, listen: SocketAddr) -> Result<Daemon> {
        let daemon = Daemon {
            process: Process::current().map_err(Error::io("read", "/proc/self/stat"))?,
            config: Config { listen, ..config.clone() },
            version: env!("CARGO_PKG_VERSION").into(),
            started: OffsetDateTime::now_utc(),
            admin_token: token(),
        };
        let text = serde_json::to_vec_pretty(&daemon).expect("a daemon's description is plain data");
        write_private(&self.dir.daemon_file(), &text)?;
        Ok(daemon)
    }
}

/// A daemon, as it describes itself in `daemon.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Daemon {
    /// Its process.
    pub process: Process,
    /// What it runs with; `listen` is the address that it was given, also where port 0 was asked for.
    pub config: Config,
    /// Its version.
    pub version: String,
    /// When it started.
    #[serde(with = "time::serde::rfc3339")]
    pub started: OffsetDateTime,
    /// What a request to `/_haar/` that changes something must carry in [`ADMIN_HEADER`]; made at each start.
    pub admin_token: String,
}

/// The header of the token of administrative requests.
pub const ADMIN_HEADER: &str = "x-haar-admin-token";

impl Daemon {
    /// The URL of its API for clients on this machine.
    pub fn endpoint(&self) -> String {
        config::endpoint(self.config.listen)
    }

    /// Whether the process still is the one that wrote the description.
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(&self, patience: Duration) -> Result<()> {
        let pid = self.process.pid;
        if self.is_alive() {
            match kill(Pid::from_raw(pid), Signal::SIGTERM) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(e) => return Err(Error::io("stop", format!("process {pid}"))(e.into())),
            }
        }
        let begin = Instant::now();
        while self.is_alive() {
            if begin.elapsed() > patience {
                return Err(Error::NotStopped { pid, seconds: patience.as_secs() });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// A process, told apart from later ones with the same number by its start time and the boot of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since the machine's boot: field 22 of proc_pid_stat(5).
    pub start_ticks: u64,
    /// The machine's boot.
    pub boot_id: String,
}

impl Process {
    /// This process.
    pub fn current() -> io::Result<Self> {
        let pid = Pid::this().as_raw();
        Ok(Self { pid, start_ticks: start_ticks(pid)?, boot_id: boot_id()? })
    }

    /// Whether it still runs; one that has ended and was not yet waited for does not.
    pub fn is_alive(&self) -> bool {
        boot_id().is_ok_and(|id| id == self.boot_id)
            && start_ticks(self.pid).is_ok_and(|ticks| ticks == self.start_ticks)
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Reads field 22 of `/proc/PID/stat`. Zombies count as gone.
fn start_ticks(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "an unknown format");
    // The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
    let (_, rest) = text.rsplit_once(')').ok_or_else(invalid)?;
    let mut fields = rest.split_ascii_whitespace();
    match fields.next() {
        Some("Z" | "X") => return Err(io::ErrorKind::NotFound.into()),
        Some(_) => {}
        None => return Err(invalid()),
    }
    fields.nth(18).and_then(|ticks| ticks.parse().ok()).ok_or_else(invalid)
}

/// 128 bits from the operating system, in hexadecimal.
fn token() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// Writes a file that only its owner can read, whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(Error::io("write", path))
}

/// Writes a file that only its owner can read, unless it is there. If two processes make it at once, one does.
pub fn create_private(path: &Path, content: &[u8]) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = folder.join(format!(".{name}-{:016x}.new", rand::random::<u64>()));
    let make = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        // A link fails where a rename would replace the other's file.
        let linked = match fs::hard_link(&new, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        };
        fs::remove_file(&new)?;
        linked?;
        File::open(folder)?.sync_all()
    };
    make().map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use std::os::unix::fs::PermissionsExt;

    fn fixture() -> (tempfile::TempDir, StateDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        state.create().unwrap();
        let config = Config::load(state.path(), Settings::default()).unwrap();
        (dir, state, config)
    }

    #[test]
    fn one_daemon_claims_a_folder_and_announces_itself() {
        let (_guard, state, config) = fixture();
        assert!(state.running().unwrap().is_none());
        let claim = state.claim().unwrap();
        claim.announce(&config, "127.0.0.1:7".parse().unwrap()).unwrap();
        assert!(matches!(state.claim(), Err(Error::StateInUse(_))));
        let daemon = state.running().unwrap().expect("this process is alive");
        assert_eq!(daemon.process.pid, std::process::id() as i32);
        assert_eq!(daemon.endpoint(), "http://127.0.0.1:7");
        let mode = fs::metadata(state.daemon_file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(claim);
        state.claim().unwrap();
    }

    #[test]
    fn a_recycled_process_number_is_not_the_daemon() {
        let mut process = Process::current().unwrap();
        assert!(process.is_alive());
        process.start_ticks += 1;
        assert!(!process.is_alive());
        let process = Process { boot_id: "another".into(), ..Process::current().unwrap() };
        assert!(!process.is_alive());
    }

    #[test]
    fn an_ended_process_is_not_alive_even_before_it_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id() as i32;
        let process = Process { pid, start_ticks: start_ticks(pid).unwrap(), boot_id: boot_id().unwrap() };
        assert!(process.is_alive());
        let (_guard, _, config) = fixture();
        let daemon = Daemon {
            process,
            config,
            version: String::new(),
            started: OffsetDateTime::UNIX_EPOCH,
            admin_token: String::new(),
        };
        daemon.stop(Duration::from_secs(10)).unwrap();
        assert!(!daemon.is_alive());
        child.wait().unwrap();
    }
}
