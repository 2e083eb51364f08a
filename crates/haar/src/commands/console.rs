//! `haar console`: the serial console of an instance in this terminal.
//!
//! It talks to the machine itself, not to the daemon, so that it goes on while one is started anew. What is shown is the console's log,
//! which has everything in order; what comes over the line only tells that the log has grown.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use haar_vm::console::{self, SessionError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, SetArg, Termios};

use super::{running, ssh};
use crate::cli::Console;
use crate::client::Client;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::state::StateDir;

/// Ctrl-], as telnet and virsh have it.
const DETACH: u8 = 0x1d;

/// How much of what was printed before is shown, in bytes.
const REPLAY: u64 = 16 << 10;

/// How long the log may lag behind the line, in milliseconds.
const LOG_LAG: u16 = 20;

/// How often the log is looked at in any case, in milliseconds.
const LOOK: u16 = 500;

/// Attaches this terminal to the console.
pub fn console(state: &StateDir, arguments: &Console) -> Result<ExitCode> {
    let id = instance_id(state, &arguments.instance)?;
    let session = console::attach(&state.machines(), &id).map_err(|error| {
        let hint = match &error {
            SessionError::NotRunning => "see its state: haar aws ec2 describe-instances",
            SessionError::Taken(_) => "one session at a time: detach that one with Ctrl-] first",
            SessionError::Io(_) => "the console's files are readable for the daemon's user only",
        };
        Error::Refused { message: format!("cannot attach to {id}: {error}"), hint: Some(hint.into()) }
    })?;
    let path = state.console_log(&id);
    let mut log = File::open(&path).map_err(Error::io("open", &path))?;
    let length = log.metadata().map_err(Error::io("examine", &path))?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(REPLAY))).map_err(Error::io("read", &path))?;

    eprintln!("attached to the serial console of {id}; detach with Ctrl-]");
    let raw = Raw::enter().map_err(Error::io("set up", "the terminal"))?;
    let end = relay(&session.stream, &mut log);
    drop(raw);
    let end = end.map_err(Error::io("talk to", "the console"))?;
    eprintln!(
        "\n{}",
        match end {
            End::Detached => "detached; the instance runs on",
            End::Gone => "the instance's machine has ended",
        }
    );
    Ok(ExitCode::SUCCESS)
}

/// The instance that a command line means; only names need the daemon.
fn instance_id(state: &StateDir, instance: &str) -> Result<String> {
    if instance.starts_with("i-") {
        return Ok(instance.to_owned());
    }
    let daemon = running(state)?;
    let keys = Credentials::load(state)?;
    Ok(ssh::find(&Client::new(&daemon)?, &keys, instance)?.instance_id)
}

/// How a session ended.
enum End {
    Detached,
    Gone,
}

/// Carries what is typed to the guest and shows what it prints, until the detach key, the end of the input or of the machine.
fn relay(mut line: &UnixStream, log: &mut File) -> io::Result<End> {
    let (input, mut output) = (io::stdin(), io::stdout());
    let mut buffer = [0; 4096];
    let mut patience = 0;
    loop {
        let grown = io::copy(log, &mut output)?;
        output.flush()?;
        if grown > 0 {
            patience = LOG_LAG;
        }
        let mut ready =
            [PollFd::new(input.as_fd(), PollFlags::POLLIN), PollFd::new(line.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(if patience > 0 { patience } else { LOOK })) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        patience = 0;
        let [typed, printed] = ready.map(|it| it.revents().is_some_and(|events| !events.is_empty()));
        if printed {
            if line.read(&mut buffer)? == 0 {
                // What it said last.
                io::copy(log, &mut output)?;
                output.flush()?;
                return Ok(End::Gone);
            }
            patience = LOG_LAG;
        }
        if typed {
            let count = input.lock().read(&mut buffer)?;
            let keys = &buffer[..count];
            let detach = keys.iter().position(|key| *key == DETACH);
            let sent = line.write_all(&keys[..detach.unwrap_or(count)]);
            if count == 0 || detach.is_some() {
                return Ok(End::Detached);
            }
            match sent {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::Gone),
                sent => sent?,
            }
        }
    }
}

/// A terminal that hands every key on, until this is dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> io::Result<Self> {
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(Self(None));
        }
        let before = termios::tcgetattr(&input)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&input, SetArg::TCSADRAIN, &raw)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that is gone needs no repair.
            let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}
