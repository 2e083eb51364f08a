//! Files of this machine that tasks take.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use haar_records::ec2::ImportTask;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use percent_encoding::percent_decode_str;

/// Where files are.
pub(super) struct Places {
    pub(super) state: PathBuf,
    pub(super) work: PathBuf,
    pub(super) uploads: PathBuf,
    /// Folders that every account may take files from.
    pub(super) folders: Vec<PathBuf>,
}

/// The file that a URL names on this machine.
pub(super) fn file_of(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("file://")?;
    let rest = rest.strip_prefix("localhost").unwrap_or(rest);
    let path = PathBuf::from(percent_decode_str(rest).decode_utf8().ok()?.into_owned());
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    (rest.starts_with('/') && plain && !rest.contains("%00")).then_some(path)
}

/// A file of this machine that may be taken.
pub(super) enum Local {
    /// It never changes.
    Upload(PathBuf),
    /// It may change.
    Other(File),
}

impl Places {
    /// Opens the file that a task names. Those that an account may not take are told apart from those that are not there to nobody but the
    /// owner of the machine.
    pub(super) fn open(&self, task: &ImportTask, path: &Path) -> Result<Local, String> {
        let none = || "The account has no such file: upload it".to_owned();
        let uploads = self.uploads.join(&task.account);
        if let Ok(name) = path.strip_prefix(&uploads) {
            // The daemon makes them, and what it is making yet has another name.
            let whole = name.to_str().is_some_and(|name| !name.starts_with('.') && !name.contains('/'));
            let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
            return if whole && is_file { Ok(Local::Upload(path.to_owned())) } else { Err(none()) };
        }
        let beneath = self.folders.iter().find_map(|folder| Some((folder, path.strip_prefix(folder).ok()?)));
        let file = if let Some((folder, name)) = beneath {
            // Whatever links there are, and whoever changes them meanwhile, the file is in the folder.
            let folder = File::open(folder).map_err(|_| none())?;
            let how = OpenHow::new()
                .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            File::from(openat2(&folder, name, how).map_err(|_| none())?)
        } else if task.trusted {
            let failed = |error: std::io::Error| format!("{}: {error}", path.display());
            let found = fs::canonicalize(path).map_err(failed)?;
            // The installation's own secrets are not disks.
            if fs::canonicalize(&self.state).is_ok_and(|state| found.starts_with(state)) {
                return Err(none());
            }
            if !fs::metadata(&found).map_err(failed)?.is_file() {
                return Err(format!("{} is not a regular file", path.display()));
            }
            File::open(&found).map_err(failed)?
        } else {
            return Err(none());
        };
        match file.metadata() {
            Ok(found) if found.is_file() => Ok(Local::Other(file)),
            _ => Err(none()),
        }
    }

    pub(super) fn folder(&self, task: &ImportTask) -> PathBuf {
        self.work.join(&task.id)
    }
}

/// Gives an upload the name `to` as well, unless it has it.
pub(super) fn link(upload: PathBuf, to: &Path) -> haar_image::Result<()> {
    match fs::hard_link(&upload, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(haar_image::Error::Rejected { path: upload, reason: "the upload is gone".to_owned() })
        }
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            Err(haar_image::Error::Io { action: "link", path: upload, source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use haar_records::Tags;
    use haar_records::ec2::ImportState;
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn urls_name_files_or_nothing() {
        let path = |url| file_of(url).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(path("file:///srv/a%20b.vmdk").as_deref(), Some("/srv/a b.vmdk"));
        assert_eq!(path("file://localhost/srv/a").as_deref(), Some("/srv/a"));
        for wrong in [
            "file://host/srv",
            "file:///srv/../etc/shadow",
            "file:///a%00b",
            "file:///%2e%2e/a",
            "http://a/b",
            "/srv",
            "file://srv",
        ] {
            assert_eq!(path(wrong), None, "{wrong}");
        }
    }

    fn task(account: &str, trusted: bool) -> ImportTask {
        ImportTask {
            account: account.to_owned(),
            region: "eu-central-1".to_owned(),
            id: "import-snap-00000000000000001".to_owned(),
            description: None,
            image: None,
            containers: Vec::new(),
            disks: Vec::new(),
            state: ImportState::Active,
            message: None,
            progress: 0,
            encryption: None,
            trusted,
            created: OffsetDateTime::UNIX_EPOCH,
            ended: None,
            image_id: None,
            tags: Tags::new(),
        }
    }

    #[test]
    fn an_account_takes_its_uploads_and_what_is_shared() {
        let base = std::env::temp_dir().join(format!("haar-imports-{}", std::process::id()));
        let (state, shared, other) = (base.join("state"), base.join("shared"), base.join("other"));
        for folder in [state.join("uploads/1"), state.join("uploads/2"), shared.clone(), other.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        let files = [
            "state/uploads/1/a",
            "state/uploads/1/.b.part",
            "state/uploads/2/c",
            "state/key",
            "shared/d",
            "other/e",
        ];
        files.iter().for_each(|file| fs::write(base.join(file), "x").unwrap());
        std::os::unix::fs::symlink(other.join("e"), shared.join("out")).unwrap();
        std::os::unix::fs::symlink("d", shared.join("in")).unwrap();
        std::os::unix::fs::symlink(state.join("key"), other.join("key")).unwrap();
        let places = Places {
            work: state.join("imports"),
            uploads: state.join("uploads"),
            folders: vec![shared.clone()],
            state,
        };
        let open = |trusted, file: &str| places.open(&task("1", trusted), &base.join(file)).is_ok();
        let allowed = ["state/uploads/1/a", "shared/d", "shared/in"];
        allowed.iter().for_each(|file| assert!(open(false, file) && open(true, file), "{file}"));
        let never = [
            "state/uploads/1/.b.part",
            "state/uploads/1/missing",
            "state/uploads/2/c",
            "state/key",
            "other/key",
            "shared/out",
            "shared",
            "other",
        ];
        never.iter().for_each(|file| assert!(!open(false, file) && !open(true, file), "{file}"));
        assert!(!open(false, "other/e") && open(true, "other/e"));
        fs::remove_dir_all(base).unwrap();
    }
}
