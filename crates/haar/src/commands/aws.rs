//! `haar aws`: the AWS command line client, pointed here.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::error::{Error, Result};
use crate::state::StateDir;

/// Becomes `aws`, with the environment of `haar env` and the endpoint as an argument, which every version of it knows.
pub fn aws(state: &StateDir, arguments: &[OsString]) -> Result<ExitCode> {
    let environment = super::env::variables(state, None)?;
    let mut command = Command::new("aws");
    if !arguments.iter().any(|a| a.to_string_lossy().starts_with("--endpoint-url")) {
        command.arg("--endpoint-url").arg(&environment.endpoint);
    }
    command
        .args(arguments)
        .envs(environment.variables)
        .env_remove("AWS_SESSION_TOKEN")
        .env_remove("AWS_PROFILE");
    Err(Error::Program { program: "aws".into(), source: command.exec() })
}
