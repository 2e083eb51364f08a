//! The audit trail: every request whose caller is known, with what was answered, in CloudTrail's record form (CloudTrail User Guide,
//! "CloudTrail record contents for management, data, and network activity events").
//!
//! # Where
//! A folder of files with one JSON object a line: `trail.jsonl` is written; when it is long enough it is renamed to
//! `trail-YYYYMMDDTHHMMSS-NNNNNN.jsonl` and another begins. The oldest go when all together are too long.
//!
//! # What is promised
//! A record is handed to the operating system before its answer is sent: what a client was told is in the trail, however the
//! daemon ends. The file is synchronised with the disk once a second: only a machine that loses power can lose records, of the last
//! second. A trail that cannot be written, as on a full disk, is an error in the log and keeps no request from being answered.

mod read;
mod record;
mod write;

pub use read::{Filter, Reader};
pub use write::Trail;

/// The file that is written.
const CURRENT: &str = "trail.jsonl";

/// The files of a trail, oldest first.
fn files(folder: &std::path::Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    let mut closed = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("trail-") && name.ends_with(".jsonl") {
            closed.push(folder.join(&*name));
        }
    }
    // Their names sort by time.
    closed.sort();
    closed.push(folder.join(CURRENT));
    Ok(closed)
}
