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

/// The file that will be written next, while it is being made.
const NEXT: &str = "next.jsonl";

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
    /// Closed files that are to be synchronised.
    unsynchronised: Vec<File>,
    /// Something was written since the latest synchronisation.
    dirty: bool,
    /// The latest try to begin another file failed, which the log was told.
    stuck: bool,
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
        // What a process that ended between the two renames of a rotation had begun.
        if let Err(error) = fs::remove_file(folder.join(NEXT))
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let log = Log {
            folder: folder.into(),
            file,
            length,
            closed: 0,
            unsynchronised: Vec::new(),
            dirty: false,
            stuck: false,
            failing: false,
        };
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
    let (closed, file, folder) = {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::take(&mut log.dirty) {
            return;
        }
        (std::mem::take(&mut log.unsynchronised), log.file.try_clone(), log.folder.clone())
    };
    // Outside of the lock: requests are noted meanwhile.
    let written = || {
        if !closed.is_empty() {
            closed.iter().try_for_each(File::sync_data)?;
            File::open(folder)?.sync_all()?;
        }
        file?.sync_data()
    };
    if let Err(error) = written() {
        tracing::error!(%error, "the trail cannot be written to the disk");
    }
}

impl Log {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.length > 0 && self.length + line.len() as u64 > FILE {
            // Where no other file can be begun, this one gets longer.
            let rotated = self.rotate();
            if let Err(error) = &rotated
                && !self.stuck
            {
                tracing::error!(%error, "no other file of the trail can be begun");
            }
            self.stuck = rotated.is_err();
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

    /// Closes the file that is written, and begins another.
    fn rotate(&mut self) -> io::Result<()> {
        let format = format_description!("[year][month][day]T[hour][minute][second]");
        let now = OffsetDateTime::now_utc().format(format).unwrap_or_default();
        let (current, next) = (self.folder.join(CURRENT), self.folder.join(NEXT));
        // Nothing is renamed before the next file is there to be written.
        let (file, length) = open(&next)?;
        self.closed += 1;
        let name = format!("trail-{now}-{:06}.jsonl", self.closed);
        match fs::rename(&current, self.folder.join(name)) {
            // A rotation that failed half-way has done so already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        fs::rename(&next, &current)?;
        self.unsynchronised.push(std::mem::replace(&mut self.file, file));
        (self.length, self.dirty) = (length, true);
        if let Err(error) = self.remove_oldest() {
            tracing::error!(%error, "old files of the trail cannot be removed");
        }
        Ok(())
    }

    /// Removes the oldest files when all are too long together.
    fn remove_oldest(&self) -> io::Result<()> {
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
        let line = match record::line(&event) {
            Ok(line) => line,
            Err(error) => {
                tracing::error!(%error, "a request is answered without a record");
                return;
            }
        };
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

    fn read(reader: &mut Reader) -> Vec<String> {
        let mut names = Vec::new();
        let mut take = |record: serde_json::Value| {
            names.push(record["eventName"].as_str().unwrap().to_owned());
            Ok::<_, io::Error>(())
        };
        reader.read(&mut take).unwrap();
        names
    }

    fn names(folder: &Path) -> Vec<String> {
        read(&mut Reader::new(folder, Filter::default()))
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
            followed += read(&mut follower).len();
        }
        assert_eq!(files(folder.path()).unwrap().len(), 4);
        assert_eq!(names(folder.path()), (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
        assert_eq!(followed, 10, "a follower goes along with the files");
    }

    #[test]
    fn a_file_gets_longer_where_no_other_can_be_begun() {
        let folder = tempfile::tempdir().unwrap();
        let trail = Trail::open(folder.path()).unwrap();
        let write = |number| trail.0.lock().unwrap().append(&line(number, 20 << 20)).unwrap();
        write(0);
        // A folder of that name cannot be opened as a file.
        fs::create_dir(folder.path().join(NEXT)).unwrap();
        write(1);
        assert_eq!(files(folder.path()).unwrap().len(), 1);
        fs::remove_dir(folder.path().join(NEXT)).unwrap();
        write(2);
        trail.sync();
        assert_eq!(files(folder.path()).unwrap().len(), 2);
        assert_eq!(names(folder.path()), ["0", "1", "2"]);
    }
}
