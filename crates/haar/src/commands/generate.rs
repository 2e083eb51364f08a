//! `haar completions` and `haar man`: files made from the definition of the command line.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::{Error, Result};

/// Prints the completion script.
pub fn completions(shell: Shell) -> Result<ExitCode> {
    clap_complete::generate(shell, &mut Cli::command(), "haar", &mut io::stdout());
    Ok(ExitCode::SUCCESS)
}

/// Writes one page a command: `haar.1`, `haar-up.1`, `haar-image-build.1`, ….
pub fn man(dir: &Path) -> Result<ExitCode> {
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(Error::io("write", dir))?;
    Ok(ExitCode::SUCCESS)
}
