//! Snapshots: how a volume's file becomes a layer below it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{Driver, Error, Format, SUFFIX, at, qcow2, sync};

/// The folder of the names under which machines open the layers that volumes go on in. QEMU opens a layer again by its name when
/// what it may do with it changes, so that the name stays until the volume is in no machine.
const OPEN: &str = ".open";

/// One of the files that a volume or snapshot consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// What is in it is encrypted.
    pub encrypted: bool,
}

/// Suffix of the mark of a snapshot that is removed and stood on.
pub(crate) const MARKER: &str = ".removed";

impl Driver {
    /// Prepares a snapshot of a volume: its present file also gets the snapshot's name, and a new layer is made over it. Gives the new layer's
    /// file, to which a machine that has the volume must turn before [`Self::finish_snapshot`]; none if the snapshot is finished.
    ///
    /// No machine may be started with the volume meanwhile.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such volume, [`Error::Conflict`] if the snapshot is of something else,
    /// [`Error::NoSpace`], and the others.
    pub async fn prepare_snapshot(
        &self,
        volume_id: &str,
        snapshot_id: &str,
    ) -> Result<Option<PathBuf>, Error> {
        let layer = self.path(snapshot_id)?;
        let volume = self.info(volume_id)?.ok_or_else(|| Error::NotFound(volume_id.to_owned()))?;
        if volume.encrypted != self.key.is_some() {
            return Err(Error::KeyMissing(volume_id.to_owned()));
        }
        match fs::hard_link(&volume.path, &layer) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !same_file(&volume.path, &layer)? {
                    return if self.stands_on(&volume.path, &layer)? {
                        Ok(None)
                    } else {
                        Err(Error::Conflict(snapshot_id.to_owned()))
                    };
                }
            }
            result => result.map_err(at("make", &layer))?,
        }
        sync(&self.dir)?;
        let next = self.next(volume_id, snapshot_id);
        if !next.exists() {
            let new = self.temporary(volume_id);
            let made = self.make(&new, volume.size, Some((&layer, Format::Qcow2))).await;
            let made = made.and_then(|()| {
                self.publish(&new, &next)?;
                sync(&self.dir.join(OPEN))
            });
            // If it stays, it has a name that the next driver removes.
            let _ = fs::remove_file(&new);
            made.map_err(|error| self.told_space(error))?;
        }
        Ok(Some(next))
    }

    /// Makes a snapshot that is another one: both are names of one file, which never changes again.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such snapshot, [`Error::Conflict`] if the copy is of something else, and the others.
    pub fn copy_snapshot(&self, from: &str, to: &str) -> Result<(), Error> {
        let (source, copy) = (self.path(from)?, self.path(to)?);
        match fs::hard_link(&source, &copy) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::NotFound(from.to_owned()));
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !same_file(&source, &copy)? {
                    return Err(Error::Conflict(to.to_owned()));
                }
            }
            result => result.map_err(at("make", &copy))?,
        }
        sync(&self.dir)
    }

    /// Lets a volume go on in the layer that was prepared, if there is one. It is always safe when no machine has the volume: what a
    /// machine wrote there is kept, and a layer that none had turned to is empty.
    ///
    /// # Errors
    /// [`Error::InvalidId`], [`Error::Io`].
    pub fn finish_snapshot(&self, volume_id: &str) -> Result<(), Error> {
        let path = self.path(volume_id)?;
        for next in self.prepared(volume_id)? {
            if !self.is_over(&next, &path)? {
                continue;
            }
            let new = self.temporary(volume_id);
            fs::hard_link(&next, &new).map_err(at("make", &new))?;
            fs::rename(&new, &path).map_err(at("rename", &new))?;
            sync(&self.dir)?;
        }
        Ok(())
    }

    /// Makes a volume ready for a machine and gives the name under which the machine has to open it: it stays the file's when the file
    /// becomes a snapshot's. A snapshot that an earlier machine was lost over is finished. No machine may have the volume.
    ///
    /// # Errors
    /// [`Error::InvalidId`], [`Error::NotFound`], [`Error::Io`].
    pub fn open_name(&self, volume_id: &str) -> Result<PathBuf, Error> {
        self.finish_snapshot(volume_id)?;
        for name in self.prepared(volume_id)? {
            remove_file(&name)?;
        }
        let (path, name) = (self.path(volume_id)?, self.next(volume_id, "0"));
        match fs::hard_link(&path, &name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::NotFound(volume_id.to_owned())),
            result => result.map_err(at("make", &name)).map(|()| name),
        }
    }

    /// The layers of a volume or snapshot, the topmost first, an image's last.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such volume, [`Error::BadImage`] if a layer is spoilt, and the others.
    pub fn layers(&self, id: &str) -> Result<Vec<Layer>, Error> {
        let mut next = Some(self.info(id)?.ok_or_else(|| Error::NotFound(id.to_owned()))?.path);
        let mut layers = Vec::new();
        while let Some(path) = next {
            let file = File::open(&path).map_err(at("open", &path))?;
            let header = match qcow2::Header::read(&file) {
                Ok(header) => header,
                // An image that is the disk, byte for byte.
                Err(error) if error.kind() == ErrorKind::InvalidData && self.id_of(&path).is_none() => {
                    layers.push(Layer { path, format: Format::Raw, encrypted: false });
                    break;
                }
                Err(error) => return Err(Error::BadImage { path, reason: error.to_string() }),
            };
            layers.push(Layer { path, format: Format::Qcow2, encrypted: header.encrypted });
            next = header.backing;
        }
        Ok(layers)
    }

    /// Whether a layer is over the volume's file, which has a snapshot's name besides; not so once the volume has gone on in it.
    fn is_over(&self, next: &Path, path: &Path) -> Result<bool, Error> {
        let file = File::open(next).map_err(at("open", next))?;
        let below = qcow2::Header::read(&file).ok().and_then(|header| header.backing);
        match below {
            Some(below) if below.exists() && path.exists() => same_file(&below, path),
            _ => Ok(false),
        }
    }

    /// Takes back what was prepared for a snapshot. No machine may have turned to the new layer.
    ///
    /// # Errors
    /// [`Error::InvalidId`], [`Error::Io`].
    pub fn abandon_snapshot(&self, volume_id: &str, snapshot_id: &str) -> Result<(), Error> {
        remove_file(&self.next(volume_id, snapshot_id))?;
        let (layer, path) = (self.path(snapshot_id)?, self.path(volume_id)?);
        if layer.exists() && path.exists() && same_file(&layer, &path)? {
            remove_file(&layer)?;
        }
        Ok(())
    }

    /// Removes a volume or a snapshot. The machine that uses the volume must have ended. That there is none is no error.
    ///
    /// # Errors
    /// [`Error::InvalidId`], [`Error::Io`].
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        let path = self.path(id)?;
        for next in self.prepared(id)? {
            remove_file(&next)?;
        }
        if self.is_stood_on(&path)? {
            let marker = self.marker(id);
            return File::create(&marker).map(drop).map_err(at("make", &marker));
        }
        // What is spoilt can be removed all the same.
        let below = File::open(&path).ok().and_then(|file| qcow2::Header::read(&file).ok()?.backing);
        remove_file(&path)?;
        remove_file(&self.marker(id))?;
        match below.and_then(|path| self.id_of(&path)) {
            Some(below) if self.marker(&below).exists() => self.remove(&below),
            _ => Ok(()),
        }
    }

    /// Removes snapshots that are marked and that nothing stands on any more.
    pub(crate) fn remove_unused_layers(&self) -> Result<(), Error> {
        for name in self.names()? {
            if let Some(id) = name.to_str().and_then(|name| name.strip_suffix(MARKER)) {
                self.remove(id)?;
            }
        }
        Ok(())
    }

    pub(crate) fn marker(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}{MARKER}"))
    }

    /// Where the layer is, or would be, that [`Self::prepare_snapshot`] makes.
    pub fn next(&self, volume_id: &str, snapshot_id: &str) -> PathBuf {
        self.dir.join(OPEN).join(format!("{volume_id}.{snapshot_id}{SUFFIX}"))
    }

    /// Makes the folder of the names under which machines open layers.
    pub(crate) fn make_open(&self) -> Result<(), Error> {
        let next = self.dir.join(OPEN);
        fs::create_dir_all(&next).map_err(at("make", &next))
    }

    /// The names under which machines open layers.
    pub(crate) fn nexts(&self) -> Result<Vec<PathBuf>, Error> {
        let next = self.dir.join(OPEN);
        let entries = fs::read_dir(&next).map_err(at("list", &next))?;
        entries.map(|entry| Ok(entry.map_err(at("list", &next))?.path())).collect()
    }

    /// The layers that a volume is to go on in, or has gone on in since it is in its machine.
    pub(crate) fn prepared(&self, volume_id: &str) -> Result<Vec<PathBuf>, Error> {
        let mut nexts = self.nexts()?;
        let prefix = format!("{volume_id}.");
        nexts.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
        Ok(nexts)
    }

    /// The id whose file this is, if it is in the folder.
    pub(crate) fn id_of(&self, path: &Path) -> Option<String> {
        let name = path.strip_prefix(&self.dir).ok()?.to_str()?;
        Some(name.strip_suffix(SUFFIX)?.to_owned())
    }

    /// What the files of the folder stand on.
    fn backings(&self) -> Result<Vec<PathBuf>, Error> {
        let names = self.names()?.into_iter().filter(|name| name.to_string_lossy().ends_with(SUFFIX));
        let mut files: Vec<PathBuf> = names.map(|name| self.dir.join(name)).collect();
        files.extend(self.nexts()?);
        // One that is removed meanwhile, or is spoilt, stands on nothing.
        let backing = |path| qcow2::Header::read(&File::open(path).ok()?).ok()?.backing;
        Ok(files.into_iter().filter_map(backing).collect())
    }

    fn is_stood_on(&self, path: &Path) -> Result<bool, Error> {
        Ok(path.exists() && self.id_of(path).is_some_and(|id| id.starts_with("snap-")) && {
            self.backings()?.iter().any(|backing| backing == path)
        })
    }

    fn stands_on(&self, path: &Path, layer: &Path) -> Result<bool, Error> {
        let mut path = path.to_owned();
        loop {
            let file = File::open(&path).map_err(at("open", &path))?;
            match qcow2::Header::read(&file).ok().and_then(|header| header.backing) {
                Some(backing) if backing == layer => return Ok(true),
                Some(backing) if self.id_of(&backing).is_some() => path = backing,
                _ => return Ok(false),
            }
        }
    }
}

/// The volumes and snapshots in a folder of volumes, which a driver may be working in, whose lowest layer is in the folder of an
/// image: they are spoilt if it goes. Sorted.
///
/// # Errors
/// [`Error::Io`].
pub fn standing_on(volumes: &Path, image: &Path) -> Result<Vec<String>, Error> {
    let (Ok(volumes), Ok(image)) = (fs::canonicalize(volumes), fs::canonicalize(image)) else {
        // What is not there stands on nothing, and nothing on it.
        return Ok(Vec::new());
    };
    let driver = Driver { dir: volumes, key: None };
    let mut found = Vec::new();
    for name in driver.names()? {
        let Some(id) = driver.id_of(&driver.dir.join(&name)) else { continue };
        let header = File::open(driver.dir.join(&name)).ok().and_then(|file| qcow2::Header::read(&file).ok());
        if header.and_then(|header| header.backing).is_some_and(|backing| backing.starts_with(&image)) {
            found.push(id);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes a file; that there is none is no error.
pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.map_err(at("remove", path)),
    }
}

fn same_file(one: &Path, other: &Path) -> Result<bool, Error> {
    let inode = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).map_err(at("stat", path));
    Ok(inode(one)? == inode(other)?)
}
