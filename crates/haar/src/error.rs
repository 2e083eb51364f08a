//! What a command fails with.

use std::io;
use std::path::PathBuf;

/// The error of a command: a sentence, and for many a hint at what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as `read`.
        action: &'static str,
        /// What it was attempted on.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} cannot be used: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting has a value that cannot be.
    #[error("{0}")]
    Setting(String),
    /// The daemon does not run.
    #[error("haar does not run with the state folder {}", .0.display())]
    NotRunning(PathBuf),
    /// Another daemon holds the state folder.
    #[error("another haar daemon uses {}", .0.display())]
    StateInUse(PathBuf),
    /// There are no root keys yet.
    #[error("there are no keys in {} yet", .0.display())]
    NoCredentials(PathBuf),
    /// The daemon was started and ended, or did not answer in time.
    #[error("the daemon did not start: {reason}\n{tail}")]
    NotStarted {
        /// What happened.
        reason: String,
        /// The end of its log.
        tail: String,
        /// The log.
        log: PathBuf,
    },
    /// The daemon was asked to stop and did not.
    #[error("the daemon (process {pid}) did not stop within {seconds} seconds")]
    NotStopped {
        /// Its process.
        pid: i32,
        /// How long it was given.
        seconds: u64,
    },
    /// The daemon could not be reached or broke off.
    #[error("no answer from {endpoint}: {reason}")]
    Connection {
        /// Where it should answer.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// The API answered with an error.
    #[error("{code}: {message}")]
    Api {
        /// The AWS error code.
        code: String,
        /// Its message.
        message: String,
    },
    /// The API answered something that cannot be read.
    #[error("an answer of the API cannot be read: {0}")]
    Answer(String),
    /// A program could not be run.
    #[error("cannot run {program}: {source}")]
    Program {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Images.
    #[error(transparent)]
    Image(#[from] haar_image::Error),
    /// The command cannot do what was asked, for a reason that a sentence says.
    #[error("{message}")]
    Refused {
        /// The reason.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The daemon could not be set up or failed.
    #[error("{0}")]
    Daemon(#[from] Box<dyn std::error::Error + Send + Sync>),
}

/// The result of a command's parts.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A mapper of [`io::Error`]s to this type.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Wraps what kept the daemon from its work.
    pub fn daemon(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Daemon(Box::new(source))
    }

    /// What to do about it, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("haar needs root: try again with sudo".into())
            }
            Self::NotRunning(_) | Self::NoCredentials(_) => Some("start it: haar up".into()),
            Self::StateInUse(_) => Some("see it: haar status; stop it: haar down".into()),
            Self::NotStarted { log, .. } => {
                Some(format!("its log: {}; the machine: haar doctor", log.display()))
            }
            Self::Refused { hint, .. } => hint.clone(),
            Self::Program { program, source } if source.kind() == io::ErrorKind::NotFound => {
                let package = match program.as_str() {
                    "ssh" => "openssh-client",
                    "aws" => "awscli",
                    _ => return None,
                };
                Some(format!("install it: apt-get install {package}"))
            }
            _ => None,
        }
    }
}
