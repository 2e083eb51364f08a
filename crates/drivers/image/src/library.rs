//! The folder that holds a machine's images.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::error::{Error, Result};
use crate::manifest::{
    Architecture, Boot, BootMode, ContentFile, DiskFormat, FORMAT, ImageId, Manifest, RootDisk, Source,
    is_valid_name,
};
use crate::progress::{Progress, Unit};

/// The file names inside an image's folder.
const MANIFEST: &str = "manifest.json";
pub(crate) const ROOT_DISK: &str = "root.qcow2";
pub(crate) const KERNEL: &str = "vmlinuz";
pub(crate) const INITRD: &str = "initrd";

/// Prefixes of the folders of images that are being made and removed.
const NEW: &str = ".new-";
const OLD: &str = ".old-";

/// The folder of temporary files in the folder of an image that is being made.
const SCRATCH: &str = "scratch";

/// The greatest manifest that is read, in bytes.
const MANIFEST_LIMIT: u64 = 4 << 20;

/// The folder that holds a machine's images, one folder `ami-…` an image. Several processes may use it at once.
///
/// An image appears whole or not at all: it is made in a folder with a hidden name on the same file system, flushed, and
/// renamed. Its files are read-only from then on, because disks of instances are copy-on-write overlays of them.
///
/// The functions block; from asynchronous code they belong on a thread for blocking work.
#[derive(Debug, Clone)]
pub struct Library {
    dir: PathBuf,
}

/// An image of a library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its description.
    pub manifest: Manifest,
    dir: PathBuf,
}

impl Image {
    /// Its identifier.
    pub fn id(&self) -> &ImageId {
        &self.manifest.image_id
    }

    /// The folder with its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The disk that root volumes are overlays of, in qcow2 format. It must never be written to.
    pub fn root_disk(&self) -> PathBuf {
        self.dir.join(&self.manifest.root_disk.file.name)
    }

    /// The kernel, where the image boots directly.
    pub fn kernel(&self) -> Option<PathBuf> {
        match &self.manifest.boot {
            Boot::Direct { kernel, .. } => Some(self.dir.join(&kernel.name)),
            Boot::Firmware { .. } => None,
        }
    }

    /// The initial RAM disk, where the image boots directly and has one.
    pub fn initrd(&self) -> Option<PathBuf> {
        match &self.manifest.boot {
            Boot::Direct { initrd: Some(initrd), .. } => Some(self.dir.join(&initrd.name)),
            _ => None,
        }
    }

    /// The kernel's command line, where the image boots directly.
    pub fn command_line(&self) -> Option<&str> {
        match &self.manifest.boot {
            Boot::Direct { command_line, .. } => Some(command_line),
            Boot::Firmware { .. } => None,
        }
    }

    /// The firmware modes, where the image boots by firmware.
    pub fn firmware(&self) -> Option<BootMode> {
        match self.manifest.boot {
            Boot::Firmware { mode } => Some(mode),
            Boot::Direct { .. } => None,
        }
    }
}

impl Library {
    /// Opens the library in `dir`, and makes the folder where it is missing.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be made or found.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Library> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let dir = fs::canonicalize(&dir).map_err(Error::io("find", &dir))?;
        Ok(Library { dir })
    }

    /// The library's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All images, in the order of their identifiers. What an interrupted process left half-made is removed on the way.
    /// An image whose manifest is damaged is left out, with a warning in the log; [`get`](Library::get) says why.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Image>> {
        self.collect_garbage()?;
        let mut images = Vec::new();
        for name in self.entries()? {
            let Ok(id) = name.parse::<ImageId>() else { continue };
            match self.get(&id) {
                Ok(image) => images.push(image),
                Err(Error::NotFound(_)) => {}
                Err(error) => tracing::warn!(image_id = %id, %error, "an image cannot be used"),
            }
        }
        images.sort_by(|a, b| a.id().cmp(b.id()));
        Ok(images)
    }

    /// The image with this identifier. Checks the manifest and that its files are there with their
    /// lengths, but does not read them; [`verify`](Library::verify) does.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Manifest`] and [`Error::Corrupt`] for an image that cannot be used; [`Error::Io`].
    pub fn get(&self, id: &ImageId) -> Result<Image> {
        let dir = self.dir.join(id.as_str());
        let path = dir.join(MANIFEST);
        let damaged = |reason: String| Error::Manifest { path: path.clone(), reason };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !dir.exists() => {
                return Err(Error::NotFound(id.clone()));
            }
            Err(e) => return Err(Error::io("open", &path)(e)),
        };
        let mut text = Vec::new();
        file.take(MANIFEST_LIMIT + 1).read_to_end(&mut text).map_err(Error::io("read", &path))?;
        if text.len() as u64 > MANIFEST_LIMIT {
            return Err(damaged("it is too long".into()));
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(damaged(format!("its format is {}, known is {FORMAT}", manifest.format)));
        }
        if manifest.image_id != *id {
            return Err(damaged(format!("it is of {}", manifest.image_id)));
        }
        for content in manifest.files() {
            if Path::new(&content.name).file_name() != Some(content.name.as_ref()) {
                return Err(damaged(format!("{:?} is not a file of the image", content.name)));
            }
            let path = dir.join(&content.name);
            let corrupt =
                |reason: String| Error::Corrupt { image_id: id.clone(), path: path.clone(), reason };
            match fs::symlink_metadata(&path) {
                Ok(found) if !found.is_file() => return Err(corrupt("is not a regular file".into())),
                Ok(found) if found.len() != content.length => {
                    return Err(corrupt(format!("has {} of {} bytes", found.len(), content.length)));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(corrupt("is missing".into())),
                Err(e) => return Err(Error::io("examine", &path)(e)),
            }
        }
        Ok(Image { manifest, dir })
    }

    /// The image with this name, if there is one.
    ///
    /// # Errors
    /// As [`list`](Library::list).
    pub fn find_by_name(&self, name: &str) -> Result<Option<Image>> {
        Ok(self.list()?.into_iter().find(|image| image.manifest.name == name))
    }

    /// Reads an image's files and compares them with the digests in its manifest.
    ///
    /// # Errors
    /// As [`get`](Library::get), and [`Error::Corrupt`] for a file with other content.
    pub fn verify(&self, id: &ImageId, progress: &mut dyn Progress) -> Result<()> {
        let image = self.get(id)?;
        let total = image.manifest.files().map(|file| file.length).sum();
        progress.stage("verify", Unit::Bytes, Some(total));
        let mut done = 0;
        for content in image.manifest.files() {
            let path = image.dir.join(&content.name);
            let (length, sha256) = digest(&path, &mut done, progress)?;
            if (length, &sha256) != (content.length, &content.sha256) {
                let reason = "does not have the content it was made with".into();
                return Err(Error::Corrupt { image_id: id.clone(), path, reason });
            }
        }
        Ok(())
    }

    /// Removes an image. Nothing checks whether a disk is still an overlay of it: that is for the caller to know.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Io`] where something of it cannot be removed.
    pub fn remove(&self, id: &ImageId) -> Result<()> {
        let _exclusive = self.lock()?;
        let dir = self.dir.join(id.as_str());
        let doomed = self.dir.join(format!("{OLD}{id}"));
        match fs::rename(&dir, &doomed) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound(id.clone())),
            Err(e) => return Err(Error::io("remove", &dir)(e)),
        }
        sync_dir(&self.dir)?;
        fs::remove_dir_all(&doomed).map_err(Error::io("remove", &doomed))
    }

    /// Fails if an image cannot be made under this name.
    pub(crate) fn check_name(&self, name: &str) -> Result<()> {
        if !is_valid_name(name) {
            return Err(Error::InvalidName(name.chars().take(200).collect()));
        }
        match self.find_by_name(name)? {
            Some(image) => Err(Error::NameTaken { name: name.into(), image_id: image.id().clone() }),
            None => Ok(()),
        }
    }

    /// A folder for a new image, safe from the garbage collection of any process until it is dropped.
    pub(crate) fn stage(&self) -> Result<Staging> {
        let _exclusive = self.lock()?;
        let image_id = ImageId::generate();
        let dir = self.dir.join(format!("{NEW}{image_id}"));
        fs::create_dir(&dir).map_err(Error::io("create", &dir))?;
        let claim = File::open(&dir).map_err(Error::io("open", &dir))?;
        claim.lock().map_err(Error::io("lock", &dir))?;
        Ok(Staging { library: self.clone(), image_id, dir, _claim: claim, published: false })
    }

    /// Removes the folders that are claimed by no process.
    fn collect_garbage(&self) -> Result<()> {
        let leftovers = |name: &String| name.starts_with(NEW) || name.starts_with(OLD);
        let doomed: Vec<String> = self.entries()?.into_iter().filter(leftovers).collect();
        if doomed.is_empty() {
            return Ok(());
        }
        let _exclusive = self.lock()?;
        for name in doomed {
            let dir = self.dir.join(name);
            let Ok(claim) = File::open(&dir) else { continue };
            if claim.try_lock().is_ok() {
                tracing::info!(dir = %dir.display(), "removing a half-made image");
                match fs::remove_dir_all(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", &dir)(e));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The names in the folder that are text.
    fn entries(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let entry = entry.map_err(Error::io("list", &self.dir))?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }

    /// Keeps every other process from claiming, publishing and collecting until the file is dropped.
    fn lock(&self) -> Result<File> {
        let path = self.dir.join(".lock");
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(file)
    }
}

/// What the maker of an image says about it; the library adds the rest.
pub(crate) struct Draft {
    pub name: String,
    pub description: String,
    pub source: Source,
    pub image_owner_alias: Option<String>,
    pub default_user: String,
    pub root_device_name: String,
    /// The virtual size of the root disk, in bytes.
    pub virtual_size: u64,
    pub boot: DraftBoot,
}

/// How a drafted image boots.
pub(crate) enum DraftBoot {
    /// From the files `vmlinuz` and `initrd` of the folder.
    Direct {
        command_line: String,
    },
    Firmware(BootMode),
}

/// A folder in which an image is made.
pub(crate) struct Staging {
    library: Library,
    image_id: ImageId,
    dir: PathBuf,
    /// The open folder, locked: tells the garbage collection that someone is at work here.
    _claim: File,
    published: bool,
}

impl Staging {
    /// Where to put a file of the image.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A new folder for temporary files, which is gone when the image is published.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(SCRATCH).join(name);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    /// Turns the folder into an image of the library. Beside temporary files it must hold `root.qcow2`, for a direct boot also `vmlinuz` and
    /// `initrd`, and nothing else.
    pub fn publish(mut self, draft: Draft, progress: &mut dyn Progress) -> Result<Image> {
        let mut names = vec![ROOT_DISK];
        if let DraftBoot::Direct { .. } = draft.boot {
            names.extend([KERNEL, INITRD]);
        }
        let scratch = self.path(SCRATCH);
        match fs::remove_dir_all(&scratch) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &scratch)(e)),
            _ => {}
        }
        let mut total = 0;
        for name in &names {
            let path = self.path(name);
            total += fs::metadata(&path).map_err(Error::io("examine", &path))?.len();
        }
        progress.stage("checksum", Unit::Bytes, Some(total));
        let mut contents = Vec::new();
        let mut done = 0;
        for name in names {
            let path = self.path(name);
            let (length, sha256) = digest(&path, &mut done, progress)?;
            fs::set_permissions(&path, Permissions::from_mode(0o444)).map_err(Error::io("protect", &path))?;
            File::open(&path).and_then(|f| f.sync_all()).map_err(Error::io("flush", &path))?;
            contents.push(ContentFile { name: name.into(), length, sha256 });
        }
        let mut contents = contents.into_iter();
        let mut next = || contents.next().expect("one was pushed for each name");
        let root = next();
        let boot = match draft.boot {
            DraftBoot::Direct { command_line } => {
                Boot::Direct { kernel: next(), initrd: Some(next()), command_line }
            }
            DraftBoot::Firmware(mode) => Boot::Firmware { mode },
        };
        let now = OffsetDateTime::now_utc();
        let date = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        let manifest = Manifest {
            format: FORMAT,
            image_id: self.image_id.clone(),
            name: draft.name,
            description: draft.description,
            architecture: Architecture::X86_64,
            creation_date: now.format(&date).expect("the format has only fields that a UTC time has"),
            source: draft.source,
            image_owner_alias: draft.image_owner_alias,
            platform_details: "Linux/UNIX".into(),
            default_user: draft.default_user,
            root_device_name: draft.root_device_name,
            root_disk: RootDisk {
                file: root,
                format: DiskFormat::Qcow2,
                virtual_size: draft.virtual_size,
                minimum_size: draft.virtual_size.div_ceil(1 << 30) << 30,
            },
            boot,
        };
        let path = self.path(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain data");
        let mut file = File::create_new(&path).map_err(Error::io("create", &path))?;
        file.write_all(&text).map_err(Error::io("write", &path))?;
        file.set_permissions(Permissions::from_mode(0o444)).map_err(Error::io("protect", &path))?;
        file.sync_all().map_err(Error::io("flush", &path))?;
        fs::set_permissions(&self.dir, Permissions::from_mode(0o755))
            .map_err(Error::io("protect", &self.dir))?;
        sync_dir(&self.dir)?;

        let _exclusive = self.library.lock()?;
        let same_name = |image: &Image| image.manifest.name == manifest.name;
        let library = &self.library;
        let ids = library.entries()?.into_iter().filter_map(|name| name.parse().ok());
        if let Some(other) = ids.filter_map(|id| library.get(&id).ok()).find(same_name) {
            return Err(Error::NameTaken { name: manifest.name, image_id: other.id().clone() });
        }
        let dir = library.dir.join(self.image_id.as_str());
        fs::rename(&self.dir, &dir).map_err(Error::io("publish", &dir))?;
        self.published = true;
        sync_dir(&library.dir)?;
        tracing::info!(image_id = %manifest.image_id, name = manifest.name, "image made");
        Ok(Image { manifest, dir })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove a half-made image");
        }
    }
}

/// The length and the SHA-256 digest of a file; adds to `done` what it reads.
fn digest(path: &Path, done: &mut u64, progress: &mut dyn Progress) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                length += n as u64;
                *done += n as u64;
                progress.advance(*done);
            }
        }
    }
    Ok((length, hex::encode(hash.finalize())))
}

/// Makes the names in a folder durable.
fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|f| f.sync_all()).map_err(Error::io("flush", dir))
}
