//! Writing the trail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use haar_api::note::{Event, Recorder};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::{CURRENT, files, record};

/// How long a file gets before another begins.
const FILE: u64 = 32 << 20;

/// How long all files together may get.
const ALL: u64 = 2 << 30;

/// How often the file is synchronised with the disk.
const SYNC: Duration = Duration::from_secs(1);

/// The trail, to be written.
#[derive(Clone)]
pub struct Trail(Arc<Mutex<Log>>);

struct Log {
    folder: PathBuf,
    file: File,
    length: u64,
    /// How many files were closed, so that the names of those of one second differ.
    closed: u32,
    /// Something was written since the latest synchronisation.
    dirty: bool,
    /// The latest record could not be written, which the log was told.
    failing: bool,
}

impl Trail {
    /// Opens the trail of a folder, which is made where it is missing, and keeps it synchronised with the disk.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let (file, length) = open(&folder.join(CURRENT))?;
        let log = Log { folder: folder.into(), file, length, closed: 0, dirty: false, failing: false };
        let log = Arc::new(Mutex::new(log));
        let weak = Arc::downgrade(&log);
        std::thread::Builder::new().name("trail".into()).spawn(move || keep_synchronised(&weak))?;
        Ok(Self(log))
    }

    /// Writes what was recorded to the disk.
    pub fn sync(&self) {
        synchronise(&self.0);
    }
}

/// Opens the file that is written, after what a process that ended in the middle of a line left.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let mut length = file.metadata()?.len();
    if length > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            length += 1;
        }
    }
    Ok((file, length))
}

fn keep_synchronised(log: &Weak<Mutex<Log>>) {
    loop {
        std::thread::sleep(SYNC);
        let Some(log) = log.upgrade() else { return };
        synchronise(&log);
    }
}

fn synchronise(log: &Mutex<Log>) {
    let file = {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::take(&mut log.dirty) {
            return;
        }
        log.file.try_clone()
    };
    // Outside of the lock: requests are noted meanwhile.
    if let Err(error) = file.and_then(|file| file.sync_data()) {
        tracing::error!(%error, "the trail cannot be written to the disk");
    }
}

impl Log {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.length > 0 && self.length + line.len() as u64 > FILE {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(line) {
            // What was written of the line must not run into the next one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += line.len() as u64;
        self.dirty = true;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let format = format_description!("[year][month][day]T[hour][minute][second]");
        let now = OffsetDateTime::now_utc().format(format).unwrap_or_default();
        self.closed += 1;
        let name = format!("trail-{now}-{:06}.jsonl", self.closed);
        fs::rename(self.folder.join(CURRENT), self.folder.join(name))?;
        (self.file, self.length) = open(&self.folder.join(CURRENT))?;
        File::open(&self.folder)?.sync_all()?;
        let files = files(&self.folder)?;
        let lengths: Vec<u64> =
            files.iter().map(|file| file.metadata().map_or(0, |file| file.len())).collect();
        let mut all: u64 = lengths.iter().sum();
        for (file, length) in files.iter().zip(lengths) {
            if all <= ALL {
                break;
            }
            tracing::info!(file = %file.display(), "the oldest part of the trail is removed");
            fs::remove_file(file)?;
            all -= length;
        }
        Ok(())
    }
}

impl Recorder for Trail {
    fn record(&self, event: Event<'_>) {
        let mut line = record::of(event).to_string().into_bytes();
        line.push(b'\n');
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let written = log.append(&line);
        let failed = written.is_err();
        if let Err(error) = written
            && !log.failing
        {
            tracing::error!(%error, "the trail cannot be written: requests are answered without a record");
        }
        log.failing = failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Filter, Reader};

    fn line(number: usize, length: usize) -> Vec<u8> {
        format!("{{\"eventName\":\"{number}\",\"x\":\"{}\"}}\n", "y".repeat(length)).into_bytes()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut reader = Reader::new(folder, Filter::default());
        let read = reader.read().unwrap();
        read.iter().map(|record| record["eventName"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_was_written_is_read_after_a_restart_and_after_half_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let trail = Trail::open(folder.path()).unwrap();
        trail.0.lock().unwrap().append(&line(1, 10)).unwrap();
        drop(trail);
        let mut file = OpenOptions::new().append(true).open(folder.path().join(CURRENT)).unwrap();
        file.write_all(b"{\"eventName\":\"torn").unwrap();
        let trail = Trail::open(folder.path()).unwrap();
        trail.0.lock().unwrap().append(&line(2, 10)).unwrap();
        trail.sync();
        assert_eq!(names(folder.path()), ["1", "2"]);
    }

    #[test]
    fn files_are_closed_when_they_are_long_and_read_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let trail = Trail::open(folder.path()).unwrap();
        let mut follower = Reader::new(folder.path(), Filter::default());
        let mut followed = 0;
        for number in 0..10 {
            trail.0.lock().unwrap().append(&line(number, 10 << 20)).unwrap();
            followed += follower.read().unwrap().len();
        }
        assert_eq!(files(folder.path()).unwrap().len(), 4);
        assert_eq!(names(folder.path()), (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
        assert_eq!(followed, 10, "a follower goes along with the files");
    }
}
