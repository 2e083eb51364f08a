//! Files that accounts upload, for ImportImage and ImportSnapshot to take: `uploads/<account>/<name>` of the state folder.
//!
//! They arrive in pieces, under a hidden name until they are whole, and never change then: what was taken up is what is imported.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Where commands ask for uploads.
pub const PATH: &str = "/_haar/uploads/";

/// How much is sent at a time: what the endpoint takes.
pub const PIECE: usize = 1 << 20;

/// Bytes that stay free on the file system.
const LEFT_FREE: u64 = 1 << 30;

/// What stays as it is in a URL.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The uploads of an installation.
#[derive(Debug, Clone)]
pub struct Uploads(PathBuf);

/// Which upload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Upload {
    /// Twelve digits.
    pub account: String,
    /// Its name; empty to mean all of the account's.
    #[serde(default)]
    pub name: String,
    /// How many bytes it has.
    #[serde(default)]
    pub size: u64,
}

impl Uploads {
    /// Those in a folder, which need not exist. What arrived for a daemon that has ended is removed.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        for account in entries(&folder)? {
            for file in entries(&account)? {
                if file.extension().is_some_and(|extension| extension == "part") && is_hidden(&file) {
                    fs::remove_file(file)?;
                }
            }
        }
        Ok(Self(folder))
    }

    /// Answers a command: what is behind [`PATH`], and the body.
    pub fn answer(&self, what: &str, body: &[u8]) -> Result<Value, String> {
        if let Some(place) = what.strip_prefix("put/") {
            let [account, name, offset] = place.split('/').collect::<Vec<_>>()[..] else {
                return Err("where to?".to_owned());
            };
            let offset = offset.parse().map_err(|_| "where to?".to_owned())?;
            self.put(&upload(account, name), offset, body)?;
            return Ok(json!({}));
        }
        let asked: Upload =
            serde_json::from_slice(body).map_err(|e| format!("the request cannot be read: {e}"))?;
        match what {
            "begin" => self.begin(&asked).map(|()| json!({})),
            "end" => self.end(&asked).map(|url| json!({"url": url})),
            "list" => self.list(&asked),
            "remove" => self.remove(&asked).map(|()| json!({})),
            _ => Err("there is nothing here".to_owned()),
        }
    }

    /// The file of an upload, and its name while it arrives.
    fn paths(&self, of: &Upload) -> Result<(PathBuf, PathBuf), String> {
        let folder = self.folder(of)?;
        check_name(&of.name)?;
        Ok((folder.join(&of.name), folder.join(format!(".{}.part", of.name))))
    }

    fn folder(&self, of: &Upload) -> Result<PathBuf, String> {
        if of.account.len() != 12 || !of.account.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("{:?} is not an account", of.account));
        }
        Ok(self.0.join(&of.account))
    }

    fn begin(&self, of: &Upload) -> Result<(), String> {
        let (file, part) = self.paths(of)?;
        if file.exists() {
            return Err(format!("there is an upload {} already; remove it or choose another name", of.name));
        }
        let folder = self.folder(of)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(told("make a folder"))?;
        let room = statvfs(&folder).map_err(|e| told("examine the disk")(e.into()))?;
        if room.blocks_available().saturating_mul(room.fragment_size()) < of.size.saturating_add(LEFT_FREE) {
            return Err(format!("there is no space for {} bytes", of.size));
        }
        // One that is arriving under the name has lost its file.
        let _ = fs::remove_file(&part);
        let options = File::options().write(true).create_new(true).mode(0o600).open(&part);
        options.map(drop).map_err(told("make the file"))
    }

    fn put(&self, of: &Upload, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let (_, part) = self.paths(of)?;
        let open = File::options().write(true).open(part);
        let mut file = open.map_err(|_| "the upload was not begun, or was given up".to_owned())?;
        let have = file.seek(SeekFrom::End(0)).map_err(told("examine the file"))?;
        if have != offset {
            return Err(format!("the next byte is {have}, not {offset}: another upload has the same name"));
        }
        file.write_all(bytes).map_err(told("write"))
    }

    fn end(&self, of: &Upload) -> Result<String, String> {
        let (file, part) = self.paths(of)?;
        let arrived =
            File::open(&part).map_err(|_| "the upload was not begun, or was given up".to_owned())?;
        let have = arrived.metadata().map_err(told("examine the file"))?.len();
        if have != of.size {
            return Err(format!("{have} bytes have arrived, not {}", of.size));
        }
        arrived.sync_all().map_err(told("write"))?;
        // Unlike a rename, this takes no other file's place.
        fs::hard_link(&part, &file).map_err(told("name the file"))?;
        fs::remove_file(&part).map_err(told("name the file"))?;
        let folder = File::open(self.folder(of)?).and_then(|folder| folder.sync_all());
        folder.map_err(told("write"))?;
        Ok(url(&file))
    }

    fn list(&self, of: &Upload) -> Result<Value, String> {
        let mut found = Vec::new();
        for file in entries(&self.folder(of)?).map_err(told("list the uploads"))? {
            if is_hidden(&file) {
                continue;
            }
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let size = fs::metadata(&file).map_err(told("examine the file"))?.len();
            found.push(json!({"name": name, "size": size, "url": url(&file)}));
        }
        Ok(found.into())
    }

    fn remove(&self, of: &Upload) -> Result<(), String> {
        let (file, _) = self.paths(of)?;
        fs::remove_file(file).map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("there is no upload {}", of.name),
            _ => told("remove the file")(error),
        })
    }
}

fn upload(account: &str, name: &str) -> Upload {
    Upload { account: account.to_owned(), name: name.to_owned(), size: 0 }
}

/// Whether a file may be called so: it becomes a part of a URL.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if name.is_empty() || name.len() > 200 || !plain || name.starts_with('.') {
        return Err(format!(
            "{name:?} cannot name an upload: letters, digits, '-', '_' and '.', not first, at most 200"
        ));
    }
    Ok(())
}

fn url(file: &Path) -> String {
    format!("file://{}", utf8_percent_encode(&file.to_string_lossy(), KEPT))
}

fn told(what: &'static str) -> impl FnOnce(io::Error) -> String {
    move |error| format!("cannot {what}: {error}")
}

fn is_hidden(file: &Path) -> bool {
    file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// What is in a folder, sorted; nothing where there is none.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let found = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?,
    };
    let mut paths = found.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("uploads");
        let uploads = Uploads::open(folder.clone()).unwrap();
        let ask = |what: &str, name: &str, size: u64| {
            let asked = Upload { account: "123456789012".into(), name: name.into(), size };
            uploads.answer(what, &serde_json::to_vec(&asked).unwrap())
        };
        let put = |name: &str, offset: u64, bytes: &[u8]| {
            uploads.answer(&format!("put/123456789012/{name}/{offset}"), bytes)
        };
        assert!(put("a", 0, b"x").is_err(), "it was not begun");
        ask("begin", "a", 5).unwrap();
        put("a", 0, b"abc").unwrap();
        assert!(put("a", 0, b"abc").is_err() && put("a", 4, b"e").is_err());
        assert!(ask("end", "a", 5).unwrap_err().contains("3 bytes"));
        assert_eq!(ask("list", "", 0).unwrap(), json!([]));
        put("a", 3, b"de").unwrap();
        let url = ask("end", "a", 5).unwrap()["url"].as_str().unwrap().to_owned();
        let path = url.strip_prefix("file://").unwrap();
        assert_eq!(fs::read(path).unwrap(), b"abcde");
        assert!(ask("begin", "a", 1).is_err() && put("a", 5, b"f").is_err());
        assert_eq!(ask("list", "", 0).unwrap(), json!([{"name": "a", "size": 5, "url": url}]));
        ask("begin", "b", 5).unwrap();
        for wrong in ["", "..", ".a.part", "a/b", "ä"] {
            assert!(ask("begin", wrong, 1).is_err() && ask("remove", wrong, 1).is_err(), "{wrong}");
        }
        assert!(ask("begin", "huge", u64::MAX).unwrap_err().contains("no space"));
        // What had not arrived goes with the daemon.
        Uploads::open(folder.clone()).unwrap();
        assert_eq!(fs::read_dir(folder.join("123456789012")).unwrap().count(), 1);
        ask("remove", "a", 0).unwrap();
        assert!(ask("remove", "a", 0).is_err());
    }
}
