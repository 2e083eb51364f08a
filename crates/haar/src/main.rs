//! `haar`: the compute cloud of AWS, real, on a machine you own.
//!
//! The binary is the wiring: it reads the configuration, runs the daemon ([`serve`]), and offers the commands that start,
//! stop, examine and use it ([`commands`]). What the daemon does lives in the library crates.

mod cli;
mod client;
mod commands;
mod config;
mod credentials;
mod error;
mod serve;
mod state;
mod uploads;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let daemon = matches!(cli.command, Command::Serve(_));
    if !daemon {
        restore_sigpipe();
    }
    log_to_stderr(daemon);
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "haar: {error}");
            if let Some(hint) = error.hint() {
                let _ = writeln!(io::stderr(), "      {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Lets `haar … | head` end quietly, as other programs do; Rust starts with SIGPIPE ignored. So it stays for the daemon, which would else
/// end with the first client that closes its connection too early.
fn restore_sigpipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler is installed, only the default action, and no other thread runs yet.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// Logs to the standard error: for the daemon from `info` up, for the commands from `warn` up. `HAAR_LOG` sets the filter
/// and `HAAR_LOG_FORMAT=json` one JSON object a line.
fn log_to_stderr(daemon: bool) {
    let default = if daemon { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("HAAR_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if std::env::var("HAAR_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.with_ansi(io::stderr().is_terminal()).with_target(false).init();
    }
}
