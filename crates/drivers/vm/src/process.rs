//! A machine's process and its run directory: who owns it, and whether it lives.
//!
//! `<run_dir>/<id>/` holds:
//!
//! | file | what |
//! |---|---|
//! | `lock` | locked (`flock(2)`) by whoever starts or removes the machine, and then, inherited, by its QEMU process for as long as that lives |
//! | `spec.json` | the [`Spec`] it was started from |
//! | `pid` | the process, written by itself before it becomes QEMU |
//! | `qmp.sock`, `console.sock` | QEMU's monitor and the serial console |
//! | `stderr.log` | what QEMU said |
//! | `console.lock` | locked by who talks to the serial console, with their process id |
//! | `screen.ppm` | a picture of the display, while it is read |
//!
//! The lock decides everything: it is held exactly while a process lives that is this machine or is about to become
//! it, and the kernel lets go of it at the instant the last such process ends, however it ends. Hence a machine is never
//! started twice, not even by a daemon that is killed between any two lines and started again. A process id in `pid`
//! is believed only if that process has the lock open, so a reused one is never mistaken for a machine.

use std::ffi::{CString, OsStr};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::cgroup::Group;
use crate::probe::Accel;
use crate::spawn::{Program, spawn};
use crate::{Error, Layout, Nic, Spec, args};

/// How long a process may hold the lock before its id is known, or after it was killed.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
const SETTLE_STEP: Duration = Duration::from_millis(2);

/// The run directory of a machine.
#[derive(Clone, Debug)]
pub(crate) struct RunDir(PathBuf);

/// The right to start or remove a machine: its lock.
#[derive(Debug)]
pub(crate) struct Claim {
    dir: RunDir,
    lock: File,
}

/// What became of an attempt to take a machine's lock.
pub(crate) enum Claimed {
    /// It is ours; no process of the machine lives.
    Free(Claim),
    /// A process of the machine lives, or is about to.
    Held,
    /// There is no run directory.
    Absent,
}

impl RunDir {
    pub(crate) fn new(parent: &Path, id: &str) -> RunDir {
        RunDir(parent.join(id))
    }

    pub(crate) fn stderr_log(&self) -> PathBuf {
        self.0.join("stderr.log")
    }

    pub(crate) fn console_socket(&self) -> PathBuf {
        self.0.join("console.sock")
    }

    pub(crate) fn screen(&self) -> PathBuf {
        self.0.join("screen.ppm")
    }

    pub(crate) fn console_lock(&self) -> PathBuf {
        self.0.join("console.lock")
    }

    /// Connects to the serial console.
    pub(crate) fn connect_console(&self) -> io::Result<std::os::unix::net::UnixStream> {
        let dir = File::open(&self.0)?;
        std::os::unix::net::UnixStream::connect(below(&dir, "console.sock"))
    }

    /// Where a socket of this name is for QEMU, which knows no other way to it.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if the path is longer than a socket's address may be (unix(7)).
    pub(crate) fn socket(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.0.join(name);
        if path.as_os_str().len() <= 107 {
            return Ok(path);
        }
        let id = self.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let reason = format!("the path {} is too long for a socket", path.display());
        Err(Error::InvalidSpec { id, reason })
    }

    /// Takes the lock, and makes the directory before if `create`.
    pub(crate) fn claim(&self, create: bool) -> Result<Claimed, Error> {
        let path = self.0.join("lock");
        loop {
            if create {
                make_private_dir(&self.0).map_err(Error::at("make", &self.0))?;
            }
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path);
            let lock = match opened {
                Ok(lock) => lock,
                Err(error) if error.kind() == ErrorKind::NotFound && create => continue,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Claimed::Absent),
                Err(error) => return Err(Error::at("open", &path)(error)),
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Claimed::Held),
                Err(TryLockError::Error(error)) => return Err(Error::at("lock", &path)(error)),
            }
            // Whoever held it may have removed the directory: then this lock is nobody's.
            let current = fs::metadata(&path).map(|m| (m.dev(), m.ino()));
            let ours = lock.metadata().map(|m| (m.dev(), m.ino())).map_err(Error::at("stat", &path))?;
            if current.is_ok_and(|current| current == ours) {
                return Ok(Claimed::Free(Claim { dir: self.clone(), lock }));
            }
        }
    }

    /// The machine's process, if one lives.
    ///
    /// # Errors
    /// [`Error::Busy`] if the lock is held by a process that does not become the machine.
    pub(crate) async fn process(&self, id: &str) -> Result<Option<Process>, Error> {
        let path = self.0.join("lock");
        let settled = tokio::time::timeout(SETTLE_TIMEOUT, async {
            loop {
                let lock = match File::open(&path) {
                    Ok(lock) => lock,
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(Error::at("open", &path)(error)),
                };
                match lock.try_lock_shared() {
                    Ok(()) => return Ok(None),
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(error)) => return Err(Error::at("lock", &path)(error)),
                }
                if let Some(process) = self.recorded(&lock)? {
                    return Ok(Some(process));
                }
                tokio::time::sleep(SETTLE_STEP).await;
            }
        });
        settled.await.unwrap_or_else(|_| Err(Error::Busy { id: id.to_owned() }))
    }

    /// The process named in `pid`, if it is alive and has the lock open.
    fn recorded(&self, lock: &File) -> Result<Option<Process>, Error> {
        let Ok(text) = fs::read_to_string(self.0.join("pid")) else { return Ok(None) };
        // Without its newline it is not yet written to its end.
        let pid = text.strip_suffix('\n').and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|pid| pid.as_raw_nonzero().get().cast_unsigned() != std::process::id())
        else {
            return Ok(None);
        };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::NONBLOCK) else { return Ok(None) };
        let wanted = lock.metadata().map(|m| (m.dev(), m.ino())).map_err(Error::at("stat", &self.0))?;
        let Ok(open) = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())) else { return Ok(None) };
        let has_lock = open
            .flatten()
            .any(|entry| fs::metadata(entry.path()).is_ok_and(|m| (m.dev(), m.ino()) == wanted));
        if has_lock { Process::watch(pid, pidfd).map(Some) } else { Ok(None) }
    }

    pub(crate) fn read_spec(&self) -> Result<Spec, Error> {
        let path = self.0.join("spec.json");
        let text = fs::read(&path).map_err(Error::at("read", &path))?;
        serde_json::from_slice(&text).map_err(|e| Error::at("read", &path)(e.into()))
    }

    /// Connects to one of the sockets in the directory.
    pub(crate) async fn connect_qmp(&self) -> Result<tokio::net::UnixStream, Error> {
        let dir = File::open(&self.0).map_err(Error::at("open", &self.0))?;
        let path = below(&dir, "qmp.sock");
        tokio::net::UnixStream::connect(path).await.map_err(|error| match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound | ErrorKind::ConnectionReset => Error::Gone,
            _ => Error::at("connect to QEMU in", &self.0)(error),
        })
    }
}

/// The path of a file in an open directory. Socket addresses have at most 107 bytes (unix(7)); state folders may be
/// deeper than that.
fn below(dir: &File, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).into()
}

pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// The names of the folders in a folder that are resource ids; none if it does not exist.
pub(crate) fn subdirectories(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if crate::spec::check_id(&name).is_ok() && entry.file_type().is_ok_and(|t| t.is_dir()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The prefix of a run directory that is being removed.
pub(crate) const REMOVED: &str = ".removed-";

impl Claim {
    /// Removes the run directory. The lock is let go of after.
    pub(crate) fn remove(self) -> Result<(), Error> {
        let Some((parent, id)) = self.dir.0.parent().zip(self.dir.0.file_name()) else { return Ok(()) };
        // In one step, so that whoever starts the machine anew meets all of it or nothing.
        let mut name = std::ffi::OsString::from(REMOVED);
        name.push(id);
        let removed = parent.join(name);
        remove_tree(&removed).map_err(Error::at("remove", &removed))?;
        fs::rename(&self.dir.0, &removed).map_err(Error::at("remove", &self.dir.0))?;
        remove_tree(&removed).map_err(Error::at("remove", &removed))
    }

    /// Starts QEMU. Blocks for milliseconds and changes the calling thread's network namespace, so it must have a thread of its own.
    pub(crate) fn spawn(
        self,
        spec: &Spec,
        qemu: &Path,
        accel: Accel,
        group: &Group,
        layout: Option<&Layout>,
    ) -> Result<Process, Error> {
        let dir = &self.dir.0;
        for stale in ["pid", "qmp.sock", "console.sock"] {
            let path = dir.join(stale);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::at("remove", &path)(error));
                }
                _ => {}
            }
        }
        let path = dir.join("spec.json");
        let text = serde_json::to_vec_pretty(spec).map_err(|e| Error::at("write", &path)(e.into()))?;
        fs::write(&path, text).map_err(Error::at("write", &path))?;

        let handle = File::open(dir).map_err(Error::at("open", dir))?;
        let listen = |name| UnixListener::bind(below(&handle, name)).map_err(Error::at("listen in", dir));
        let qmp = listen("qmp.sock")?;
        let console = listen("console.sock")?;
        let pid_file = create(&dir.join("pid"))?;
        let stderr = create(&self.dir.stderr_log())?;
        // The console's log is made here so that only its owner can read it.
        let console_log = OpenOptions::new().append(true).create(true).mode(0o600).open(&spec.console_log);
        drop(console_log.map_err(Error::at("open", &spec.console_log))?);

        if let Some(path) = &spec.netns {
            let namespace = File::open(path).map_err(Error::at("open the network namespace", path))?;
            setns(&namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::at("enter the network namespace", path)(e.into()))?;
        }
        let taps = spec.nics.iter().map(open_tap).collect::<Result<Vec<_>, _>>()?;
        let keys = spec
            .disks
            .iter()
            .filter_map(|disk| Some((disk.id.clone(), disk.key.as_ref()?)))
            .map(|(disk, key)| Ok((disk, pass(key.as_str())?)))
            .collect::<Result<Vec<(String, OwnedFd)>, Error>>()?;

        let inherited = args::Inherited {
            qmp: qmp.as_raw_fd(),
            console: console.as_raw_fd(),
            taps: taps.iter().map(AsRawFd::as_raw_fd).collect(),
            keys: keys.iter().map(|(disk, key)| (disk.clone(), key.as_raw_fd())).collect(),
        };
        let text = |text: &OsStr| {
            let invalid =
                |_| Error::InvalidSpec { id: spec.id.clone(), reason: "a text in it has a zero byte".into() };
            CString::new(text.as_bytes()).map_err(invalid)
        };
        let mut keep: Vec<RawFd> = vec![self.lock.as_raw_fd(), qmp.as_raw_fd(), console.as_raw_fd()];
        keep.extend(&inherited.taps);
        keep.extend(inherited.keys.iter().map(|(_, key)| key));
        let mut arguments = vec![text(qemu.as_os_str())?];
        for argument in args::args(spec, accel, &inherited, layout)? {
            arguments.push(text(&argument)?);
        }
        let program = Program {
            path: text(qemu.as_os_str())?,
            arguments,
            keep: &keep,
            input: &File::open("/dev/null").map_err(Error::io("cannot open /dev/null"))?,
            output: &stderr,
            pid_file: &pid_file,
            group,
        };
        let (pid, pidfd) = spawn(&program).map_err(|(step, error)| match error.kind() {
            ErrorKind::NotFound if step == "run" => Error::QemuMissing(qemu.to_owned()),
            _ => Error::io(format!("cannot {step} {}", qemu.display()))(error),
        })?;
        Process::watch(pid, pidfd)
    }
}

/// A pipe that holds a text, to be read once.
fn pass(text: &str) -> Result<OwnedFd, Error> {
    let what = || Error::io("cannot pass a key to QEMU");
    let (reader, writer) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| what()(errno.into()))?;
    io::Write::write_all(&mut File::from(writer), text.as_bytes()).map_err(what())?;
    Ok(reader)
}

fn create(path: &Path) -> Result<File, Error> {
    let options = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let file = options.map_err(Error::at("open", path))?;
    file.set_len(0).map_err(Error::at("empty", path))?;
    Ok(file)
}

pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

nix::ioctl_write_ptr_bad!(
    /// Attaches an open `/dev/net/tun` to an interface (Linux, Documentation/networking/tuntap.rst).
    tun_set_interface,
    nix::request_code_write!(b'T', 202, size_of::<nix::libc::c_int>()),
    nix::libc::ifreq
);

/// Opens a machine's tap in the thread's network namespace.
fn open_tap(nic: &Nic) -> Result<OwnedFd, Error> {
    let what = || Error::io(format!("cannot open the tap {} of {}", nic.ifname, nic.id));
    // Attaching to an interface that is missing would make one.
    nix::net::if_::if_nametoindex(nic.ifname.as_str()).map_err(|e| what()(e.into()))?;
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(what())?;
    // SAFETY: zero is a valid value of this structure of integers and unions of them.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(nic.ifname.bytes()) {
        *to = from.cast_signed();
    }
    let flags = nix::libc::IFF_TAP | nix::libc::IFF_NO_PI | nix::libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: the descriptor is open and the request lives through the call.
    unsafe { tun_set_interface(tun.as_raw_fd(), &raw const request) }.map_err(|e| what()(e.into()))?;
    Ok(tun.into())
}

/// How a machine's process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code. Nothing is known of a process that this daemon did not start itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The end of what it wrote to its standard error.
    pub stderr: String,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "killed by signal {signal}"),
            (None, None) => f.write_str("ended in an unknown way"),
        }
    }
}

/// A live process, held by a descriptor, so that its id cannot come to mean another.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Watches for the end of a process, and reaps it if it is a child of this one: init does so otherwise.
    fn watch(pid: Pid, pidfd: OwnedFd) -> Result<Process, Error> {
        let what = || Error::io("cannot watch QEMU");
        let pidfd = Arc::new(pidfd);
        let duplicate = pidfd.try_clone().map_err(what())?;
        // SAFETY: an `OwnedFd` is open as long as it lives, and the `AsyncFd` owns it.
        let ready = unsafe { AsyncFd::register_with_interest(duplicate, Interest::READABLE) }
            .map_err(|error| what()(error.into()))?;
        let (ended, exit) = watch::channel(None);
        tokio::spawn(async move {
            if let Err(error) = ready.readable().await {
                tracing::error!(%error, "cannot watch QEMU");
            }
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let status = waitid(WaitId::PidFd(ready.get_ref().as_fd()), options).ok().flatten();
            let (code, signal) = match status {
                Some(status) => (status.exit_status(), status.terminating_signal()),
                None => (None, None),
            };
            ended.send_replace(Some(Exit { code, signal, stderr: String::new() }));
        });
        Ok(Process { pid, pidfd, exit })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Waits for the end of the process.
    pub(crate) async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_default(),
            // The watching task is gone only with the runtime.
            Err(_) => Exit::default(),
        }
    }

    /// Ends the process at once and waits until it has ended.
    pub(crate) async fn kill(&self) -> Result<Exit, Error> {
        match pidfd_send_signal(&*self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(Error::io("cannot kill QEMU")(error.into())),
        }
        let timeout = || Error::Timeout { command: "SIGKILL".into(), timeout: SETTLE_TIMEOUT };
        tokio::time::timeout(SETTLE_TIMEOUT, self.ended()).await.map_err(|_| timeout())
    }
}

/// The end of a text file, at most 4 KiB, without the timestamps that QEMU prefixes lines with.
pub(crate) fn stderr_tail(path: &Path) -> String {
    let bytes = crate::console::tail(path, 4096).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}
