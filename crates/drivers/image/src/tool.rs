//! Running the programs that do part of the work.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// How many bytes of a program's complaint an error carries.
const KEPT_OUTPUT: usize = 2000;

/// A command with a predictable environment: no input, messages in English.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
    command
}

/// Runs a command to its end and returns what it wrote to its standard output.
pub(crate) fn run(command: &mut Command, package: &'static str) -> Result<Vec<u8>> {
    let output = command.output().map_err(|e| not_started(command, package, e))?;
    if output.status.success() {
        tracing::debug!(command = describe(command), "ran");
        return Ok(output.stdout);
    }
    Err(failed(command, output.status, &output.stderr))
}

/// One of the streams that a program writes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Output,
    Error,
}

/// Runs a command to its end and passes on the lines of one of its streams as they come; a carriage return ends a line too.
pub(crate) fn run_lines(
    command: &mut Command,
    package: &'static str,
    watched: Stream,
    mut each: impl FnMut(&str),
) -> Result<()> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| not_started(command, package, e))?;
    let mut stdout = child.stdout.take().expect("it is piped");
    let mut stderr = child.stderr.take().expect("it is piped");
    let (mut watched_pipe, other): (&mut dyn Read, &mut (dyn Read + Send)) = match watched {
        Stream::Output => (&mut stdout, &mut stderr),
        Stream::Error => (&mut stderr, &mut stdout),
    };
    let mut line = Vec::new();
    let (seen, unseen) = std::thread::scope(|scope| {
        let unseen = scope.spawn(|| drain(other, |_| {}));
        let seen = drain(&mut watched_pipe, |bytes| {
            for &byte in bytes {
                match byte {
                    b'\n' | b'\r' => {
                        each(&String::from_utf8_lossy(&line));
                        line.clear();
                    }
                    _ if line.len() < KEPT_OUTPUT => line.push(byte),
                    _ => {}
                }
            }
        });
        (seen, unseen.join().unwrap_or_default())
    });
    let status = child.wait().map_err(|e| not_started(command, package, e))?;
    let complaint = if watched == Stream::Error { seen } else { unseen };
    if status.success() { Ok(()) } else { Err(failed(command, status, &complaint)) }
}

/// Reads a stream to its end and returns the last of it.
fn drain(stream: &mut dyn Read, mut each: impl FnMut(&[u8])) -> Vec<u8> {
    let mut tail = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        each(&buffer[..n]);
        tail.extend_from_slice(&buffer[..n]);
        let excess = tail.len().saturating_sub(4 * KEPT_OUTPUT);
        tail.drain(..excess);
    }
    tail
}

/// The error of a program that could not be started.
pub(crate) fn not_started(command: &Command, package: &'static str, source: io::Error) -> Error {
    let program = command.get_program().to_string_lossy().into_owned();
    if source.kind() == io::ErrorKind::NotFound {
        Error::ToolMissing { program, package }
    } else {
        Error::Io { action: "run", path: program.into(), source }
    }
}

/// The error of a program that ended without success.
pub(crate) fn failed(command: &Command, status: std::process::ExitStatus, stderr: &[u8]) -> Error {
    let text = String::from_utf8_lossy(stderr);
    let text = text.trim();
    let mut start = text.len().saturating_sub(KEPT_OUTPUT);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    if text.contains("No space left on device") {
        return Error::NoSpace { path: last_path(command).into() };
    }
    Error::Tool { command: describe(command), status: status.to_string(), output: text[start..].to_owned() }
}

/// The program with its arguments, shortened for a message.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut text = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = text.char_indices().nth(300) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

fn last_path(command: &Command) -> String {
    let absolute = command.get_args().filter(|a| a.as_encoded_bytes().starts_with(b"/")).last();
    absolute.unwrap_or(command.get_program()).to_string_lossy().into_owned()
}
