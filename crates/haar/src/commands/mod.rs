//! The commands.

mod account;
mod aws;
mod console;
mod doctor;
mod env;
mod generate;
mod image;
mod lifecycle;
mod migrate;
mod service;
mod ssh;
mod trail;
mod upload;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::state::{Daemon, StateDir};

/// Carries out what the command line asks for.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let state_dir = std::path::absolute(&cli.state_dir).map_err(Error::io("find", &cli.state_dir))?;
    let state = StateDir::new(state_dir);
    match cli.command {
        Command::Serve(settings) => lifecycle::serve(&Config::load(state.path(), settings)?),
        Command::Up(settings) => lifecycle::up(&state, &settings),
        Command::Down(down) => lifecycle::down(&state, down.all),
        Command::Status(output) => lifecycle::status(&state, output.json),
        Command::Doctor(output) => doctor::doctor(&state, output.json),
        Command::Env(env) => env::env(&state, env.shell, env.account.as_deref()),
        Command::Account(command) => account::account(&state, command),
        Command::Aws(aws) => aws::aws(&state, &aws.arguments),
        Command::Console(arguments) => console::console(&state, &arguments),
        Command::Service(command) => service::service(&state, command),
        Command::Guests(command) => service::guests(&state, &command),
        Command::Ssh(arguments) => ssh::ssh(&state, &arguments),
        Command::Trail(options) => trail::trail(&state, options),
        Command::Migrate(arguments) => migrate::migrate(&state, &arguments),
        Command::Receive => migrate::receive(&state),
        Command::Upload(arguments) => upload::upload(&state, &arguments),
        Command::Image(command) => image::image(&state, command),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { dir } => generate::man(&dir),
    }
}

/// The running daemon, or [`Error::NotRunning`].
fn running(state: &StateDir) -> Result<Daemon> {
    state.running()?.ok_or_else(|| Error::NotRunning(state.path().into()))
}

/// The first file of this name in the folders of `PATH` that is not a folder.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| {
        use std::os::unix::fs::PermissionsExt;
        file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}
