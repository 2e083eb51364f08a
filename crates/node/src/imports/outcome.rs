//! How tasks end that do not come to their end, in the words of VM Import/Export.

use crate::Error;

/// Why a task does not come to its end.
pub(super) enum End {
    /// For good, and this is to be told.
    Failed(String),
    /// It is to be tried again.
    Again(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        End::Again(error)
    }
}

/// It is the fault of who asked.
pub(super) fn client(why: impl std::fmt::Display) -> End {
    End::Failed(format!("ClientError: {why}"))
}

/// It is not.
pub(super) fn server(why: impl std::fmt::Display) -> End {
    End::Failed(format!("ServerError: {why}"))
}

pub(super) fn no_space() -> End {
    server("There is no space left for the disk.")
}

/// What has become of a file that was fetched or looked at. Names of files on this machine are not told.
pub(super) fn of_file(error: haar_image::Error) -> End {
    use haar_image::Error::{Cancelled, HttpStatus, NoSpace, Rejected, Transfer};
    match error {
        Rejected { reason, .. } => client(format!("Disk validation failed [{reason}]")),
        HttpStatus { status, .. } => client(format!(
            "Disk validation failed [We do not have access to the given resource. Reason {status}]"
        )),
        Transfer { reason, .. } => client(format!("The URL cannot be fetched: {reason}")),
        NoSpace { .. } => no_space(),
        Cancelled => End::Again(Error::Image(Cancelled)),
        other => {
            tracing::error!(error = %other, "cannot import a file");
            server("An internal error has occurred.")
        }
    }
}

pub(super) fn of_disk(error: haar_volume::Error) -> End {
    match error {
        haar_volume::Error::NoSpace(_) => no_space(),
        haar_volume::Error::Tool(why) => {
            tracing::warn!(why, "cannot convert a disk");
            client("Disk validation failed [Its content cannot be read]")
        }
        other => {
            tracing::error!(error = %other, "cannot import a disk");
            server("An internal error has occurred.")
        }
    }
}
