//! Repository chores, run as `cargo xtask CHORE`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod coverage;
mod licenses;
mod models;

/// Repository chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Regenerate `models/` from the API models that the botocore package carries.
    Models {
        /// botocore's folder; found through `python3` when not given.
        #[arg(long, value_name = "DIR")]
        botocore: Option<PathBuf>,
    },
    /// Write `docs/coverage.md` from the services' tables of operations.
    Coverage,
    /// Check the licences and the sources of what haar is built from against `deny.toml`.
    Licenses,
}

/// The repository's root.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

fn main() -> ExitCode {
    let result = match Cli::parse().chore {
        Chore::Models { botocore } => models::regenerate(&root(), botocore),
        Chore::Coverage => coverage::write(&root(), false),
        Chore::Licenses => licenses::check(&root()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
