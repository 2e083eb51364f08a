//! Running `ip`, `nft` and `tc` in batches: one process per batch, in the network namespace of the calling thread.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use crate::Error;

/// Runs `tool` with `args`, feeding it `input`, and gives back what it printed.
pub(crate) fn run(tool: &'static str, args: &[&str], input: &str) -> Result<String, Error> {
    let mut command = Command::new(tool);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::ToolMissing(tool),
        _ => Error::Io { what: format!("start {tool}"), source: error },
    })?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A tool that stops reading early says why on stderr.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(Error::io(format!("wait for {tool}")))?;
    if !output.status.success() {
        return Err(Error::Tool { tool, stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned() });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a batch of `ip` commands, stopping at the first that fails.
pub(crate) fn ip(batch: &str) -> Result<(), Error> {
    if batch.is_empty() { Ok(()) } else { run("ip", &["-batch", "-"], batch).map(drop) }
}

/// Runs a batch of `tc` commands, stopping at the first that fails.
pub(crate) fn tc(batch: &str) -> Result<(), Error> {
    if batch.is_empty() { Ok(()) } else { run("tc", &["-batch", "-"], batch).map(drop) }
}

/// Carries out an nftables script in one transaction.
pub(crate) fn nft(script: &str) -> Result<(), Error> {
    run("nft", &["-f", "-"], script).map(drop)
}
