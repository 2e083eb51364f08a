//! Making a process with what `std::process` does not offer: it is born into its control group (moving into one of
//! version 2 costs a process a grace period of the kernel's, ten milliseconds and more), with a descriptor of itself,
//! its inherited files named, and no rights.

use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, signal};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};

use crate::cgroup::Group;

/// A program to run as a machine.
pub(crate) struct Program<'a> {
    /// Its path.
    pub path: CString,
    /// Its arguments, of which the first is its name.
    pub arguments: Vec<CString>,
    /// Open files that it inherits under their numbers.
    pub keep: &'a [RawFd],
    /// Its standard input.
    pub input: &'a File,
    /// Its standard output and error.
    pub output: &'a File,
    /// Where it writes its own process id, before it is the program.
    pub pid_file: &'a File,
    /// What it is born into.
    pub group: &'a Group,
}

/// What a new process does before it is the program.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Step {
    Session,
    Signals,
    Files,
    Group,
    Rights,
    PidFile,
    Program,
}

impl Step {
    fn describe(byte: u8) -> &'static str {
        const STEPS: [(Step, &str); 7] = [
            (Step::Session, "leave the session"),
            (Step::Signals, "reset the signals"),
            (Step::Files, "arrange the files"),
            (Step::Group, "join the control group"),
            (Step::Rights, "drop the rights"),
            (Step::PidFile, "write the process id"),
            (Step::Program, "run"),
        ];
        STEPS.iter().find(|(step, _)| *step as u8 == byte).map_or("start", |(_, text)| text)
    }
}

/// Why a program does not run: at what, and the error.
pub(crate) type Failure = (&'static str, io::Error);

/// Runs a program in a process of its own, which outlives this one. Returns once it is the program.
pub(crate) fn spawn(program: &Program) -> Result<(Pid, OwnedFd), Failure> {
    let failed = |error: io::Error| ("start", error);
    let mut argv: Vec<*const c_char> = program.arguments.iter().map(|argument| argument.as_ptr()).collect();
    argv.push(ptr::null());
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;

    // SAFETY: in the child, `become_program` makes only async-signal-safe calls and does not return.
    let forked = unsafe { fork(program.group) }.map_err(failed)?;
    let (pid, pidfd) = match forked {
        Forked::Parent(pid, pidfd) => (pid, pidfd),
        Forked::Child { joined } => report_failure(become_program(program, &argv, joined), &writer),
    };
    drop(writer);
    let mut report = Vec::new();
    // The end of the pipe is closed by the program's start.
    File::from(reader).read_to_end(&mut report).map_err(failed)?;
    match report[..] {
        [step, a, b, c, d] => {
            let error = io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]));
            // It has ended, and is waited for so that it does not stay.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            Err((Step::describe(step), error))
        }
        _ => Ok((pid, pidfd)),
    }
}

/// Ends the child, and tells the parent why.
fn report_failure((step, errno): (Step, i32), parent: &OwnedFd) -> ! {
    let mut report = [step as u8, 0, 0, 0, 0];
    report[1..].copy_from_slice(&errno.to_ne_bytes());
    // The parent learns it, or is no more.
    let _ = nix::unistd::write(parent, &report);
    // SAFETY: it ends this process, without running what the parent has registered.
    unsafe { libc::_exit(127) }
}

enum Forked {
    Parent(Pid, OwnedFd),
    /// The new process, in its control group of version 2 already or not.
    Child {
        joined: bool,
    },
}

/// Copies this process.
///
/// # Safety
/// In the child only async-signal-safe calls are allowed (signal-safety(7)), and the caller must not return.
unsafe fn fork(group: &Group) -> io::Result<Forked> {
    if let Some(unified) = &group.unified {
        let mut pidfd: RawFd = -1;
        // SAFETY: zero is a valid value of this structure of integers.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_PIDFD as u64) | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP;
        args.pidfd = (&raw mut pidfd).addr() as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        args.cgroup = unified.dir.as_raw_fd() as u64;
        // SAFETY: the arguments are as clone3(2) wants them; without CLONE_VM the child has its own copy of memory.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
        match pid {
            0 => return Ok(Forked::Child { joined: true }),
            1.. => {
                // SAFETY: the kernel opened it for us, close-on-exec.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                return pid
                    .map(|pid| Forked::Parent(pid, pidfd))
                    .ok_or_else(|| io::ErrorKind::InvalidData.into());
            }
            // Containers forbid it, and kernels before 5.7 do not know it.
            _ => {}
        }
    }
    // SAFETY: the caller keeps to what is allowed in the child.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child { joined: false }),
        pid => {
            let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(io::Error::last_os_error)?;
            // Nobody has waited for the child, so its id is still its own.
            Ok(Forked::Parent(pid, pidfd_open(pid, PidfdFlags::empty())?))
        }
    }
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Turns the child into the program; returns only if that fails, with the step and the error number. Allocates nothing.
fn become_program(program: &Program, argv: &[*const c_char], joined: bool) -> (Step, i32) {
    match prepare(program, joined) {
        Err((step, errno)) => (step, errno as i32),
        Ok(()) => {
            let environment = [ptr::null()];
            // SAFETY: the arrays end with a null pointer, and the strings outlive the call.
            unsafe { libc::execve(program.path.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
            (Step::Program, nix::errno::Errno::last_raw())
        }
    }
}

fn prepare(program: &Program, joined: bool) -> Result<(), (Step, nix::errno::Errno)> {
    let at = |step: Step| move |errno: nix::errno::Errno| (step, errno);
    nix::unistd::setsid().map_err(at(Step::Session))?;

    // Handlers are gone with the old program; what is ignored or held back is not.
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map_err(at(Step::Signals))?;
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(at(Step::Signals))?;

    // What the daemon itself inherited and did not mark is not passed on.
    // SAFETY: it marks descriptors.
    let marked = unsafe { libc::close_range(3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    nix::errno::Errno::result(marked).map_err(at(Step::Files))?;
    for fd in program.keep {
        // SAFETY: they were open in the parent, and so they are here.
        let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map_err(at(Step::Files))?;
    }
    nix::unistd::dup2_stdin(program.input).map_err(at(Step::Files))?;
    nix::unistd::dup2_stdout(program.output).map_err(at(Step::Files))?;
    nix::unistd::dup2_stderr(program.output).map_err(at(Step::Files))?;
    nix::unistd::chdir(c"/" as &CStr).map_err(at(Step::Files))?;

    let unified = program.group.unified.iter().filter(|_| !joined).map(|unified| &unified.processes);
    for join in program.group.threads.iter().chain(unified) {
        nix::unistd::write(join, b"0").map_err(at(Step::Group))?;
    }

    // The user stays, root's rights go: all that the program needs, it is given open. Who may not drop rights, has none.
    for bit in 0..u64::BITS {
        if remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)).is_err() {
            break;
        }
    }
    let errno = |error: rustix::io::Errno| nix::errno::Errno::from_raw(error.raw_os_error());
    set_no_new_privs(true).map_err(|error| (Step::Rights, errno(error)))?;

    let mut digits = [b'\n'; 12];
    let mut first = digits.len() - 1;
    let mut pid = nix::unistd::getpid().as_raw();
    while pid > 0 {
        first -= 1;
        digits[first] = b'0' + (pid % 10) as u8;
        pid /= 10;
    }
    nix::unistd::write(program.pid_file, &digits[first..]).map_err(at(Step::PidFile))?;
    Ok(())
}

const CLOSE_RANGE_CLOEXEC: i32 = libc::CLOSE_RANGE_CLOEXEC as i32;
