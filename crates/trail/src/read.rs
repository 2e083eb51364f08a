//! Reading the trail, also while it is written.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::files;

/// Which records are wanted: those that fit everything that is given. Texts fit as a whole, whatever their case.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Name of the operation.
    pub event_name: Option<String>,
    /// Service, as `ec2`.
    pub service: Option<String>,
    /// The user's name, the role's, the name of the session, or the ARN.
    pub user: Option<String>,
    /// The key that signed.
    pub access_key: Option<String>,
    /// The account that the request acted in.
    pub account: Option<String>,
    /// A text that occurs in the parameters or the answer, as a resource's id.
    pub resource: Option<String>,
    /// Only what was refused.
    pub errors: bool,
    /// Only what changed something or tried to.
    pub writes: bool,
    /// Not before.
    pub since: Option<OffsetDateTime>,
}

impl Filter {
    /// Whether a record is wanted.
    #[must_use]
    pub fn wants(&self, record: &Value) -> bool {
        let is = |wanted: &Option<String>, found: &Value| {
            wanted
                .as_ref()
                .is_none_or(|wanted| found.as_str().is_some_and(|found| found.eq_ignore_ascii_case(wanted)))
        };
        let identity = &record["userIdentity"];
        let source = self.service.as_ref().map(|service| format!("{service}.amazonaws.com"));
        let user = self.user.as_ref().is_none_or(|wanted| {
            let issuer = &identity["sessionContext"]["sessionIssuer"];
            let arn = identity["arn"].as_str().unwrap_or_default();
            let last = arn.rsplit(['/', ':']).next().unwrap_or_default();
            [arn, last].iter().any(|name| name.eq_ignore_ascii_case(wanted))
                || [&identity["userName"], &issuer["userName"], &issuer["arn"]]
                    .iter()
                    .any(|name| name.as_str().is_some_and(|name| name.eq_ignore_ascii_case(wanted)))
        });
        let resource = self.resource.as_ref().is_none_or(|wanted| {
            mentions(&record["requestParameters"], wanted) || mentions(&record["responseElements"], wanted)
        });
        let since = self.since.is_none_or(|since| {
            let time =
                record["eventTime"].as_str().and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
            time.is_some_and(|time| time >= since)
        });
        is(&self.event_name, &record["eventName"])
            && is(&source, &record["eventSource"])
            && is(&self.access_key, &identity["accessKeyId"])
            && is(&self.account, &record["recipientAccountId"])
            && (!self.errors || record.get("errorCode").is_some())
            && (!self.writes || record["readOnly"] == Value::Bool(false))
            && user
            && resource
            && since
    }
}

/// Whether a text occurs as a value.
fn mentions(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        Value::Array(values) => values.iter().any(|value| mentions(value, wanted)),
        Value::Object(members) => members.values().any(|value| mentions(value, wanted)),
        _ => false,
    }
}

/// Reads a trail from its beginning.
pub struct Reader {
    folder: PathBuf,
    filter: Filter,
    /// The file that was read to an end, and where that was.
    at: Option<(u64, u64)>,
    /// That file was not there at the latest look.
    lost: bool,
}

impl Reader {
    /// A reader of the trail in a folder, which need not exist.
    #[must_use]
    pub fn new(folder: &Path, filter: Filter) -> Self {
        Self { folder: folder.into(), filter, at: None, lost: false }
    }

    /// Calls `each` with the wanted records that came since the latest call, oldest first.
    ///
    /// # Errors
    /// What the system said, or what `each` did, which ends the reading.
    pub fn read<E: From<io::Error>>(
        &mut self,
        mut each: impl FnMut(Value) -> Result<(), E>,
    ) -> Result<(), E> {
        let open = match self.open() {
            Ok(open) => open,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let known = self.at.and_then(|(number, _)| open.iter().position(|(found, _)| *found == number));
        let first = match (self.at, known) {
            // A file was closed between the two looks at the folder: it is found the next time.
            (Some(_), None) if !self.lost => {
                self.lost = true;
                return Ok(());
            }
            // What was read is no longer kept: what is left begins after it.
            (Some(_), None) | (None, _) => 0,
            (Some(_), Some(known)) => known,
        };
        self.lost = false;
        for (position, (number, file)) in open.into_iter().enumerate().skip(first) {
            let from = if Some(position) == known { self.at.map_or(0, |(_, at)| at) } else { 0 };
            let end = self.read_file(file, from, &mut each)?;
            self.at = Some((number, end));
        }
        Ok(())
    }

    /// The files that are there, oldest first, with the numbers that they keep when they are renamed.
    fn open(&self) -> io::Result<Vec<(u64, File)>> {
        let mut open: Vec<(u64, File)> = Vec::new();
        for path in files(&self.folder)? {
            match File::open(path) {
                Ok(file) => {
                    let number = file.metadata()?.ino();
                    open.retain(|(known, _)| *known != number);
                    open.push((number, file));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(open)
    }

    /// Reads the whole lines of a file, and gives where the last one ends.
    fn read_file<E: From<io::Error>>(
        &self,
        mut file: File,
        from: u64,
        each: &mut impl FnMut(Value) -> Result<(), E>,
    ) -> Result<u64, E> {
        file.seek(SeekFrom::Start(from))?;
        let mut file = BufReader::with_capacity(1 << 16, file);
        let (mut at, mut line) = (from, Vec::new());
        loop {
            line.clear();
            let length = file.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                return Ok(at);
            }
            at += length as u64;
            // A line that a crash tore is none.
            if let Ok(record) = serde_json::from_slice::<Value>(&line)
                && self.filter.wants(&record)
            {
                each(record)?;
            }
        }
    }
}
