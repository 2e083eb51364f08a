//! Merging of layers: what removed snapshots have left is put together, so that chains stay short and room is given back.
//!
//! Removed layers that stand one on the other, and on whose topmost one other layer alone stands, are a run. What the layers above the
//! lowest hold is written into the lowest, which nothing else needs; then it takes the name of the topmost, in whose place it
//! stands from then on, and the others are removed. At every moment every file reads as before: what is written into the lowest layer
//! is what the layers above hide there. So it can be cut off anywhere, and begun again; and who has the old files open goes on
//! reading the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::layers::{Layer, MARKER, remove_file};
use crate::{Driver, Error, SUFFIX, at, qcow2, sync};

/// How much larger than the removed layers below it a layer may be that is still in use, to be written into them: more would be
/// written than is gained.
const WORTH: u64 = 2;

/// Removed layers that can be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The ids of the topmost layer and of what stands on it, the nearest first.
    pub above: Vec<String>,
    /// The layers, the lowest first, which gets what the others hold.
    layers: Vec<PathBuf>,
    /// The names of the topmost.
    names: Vec<PathBuf>,
}

/// A file that is a layer.
struct Entry {
    path: PathBuf,
    /// Its id; none if it is a name under which a machine opens it.
    id: Option<String>,
    /// Which file it is, by device and inode.
    inode: (u64, u64),
    allocated: u64,
    backing: Option<PathBuf>,
    removed: bool,
}

impl Driver {
    /// Whether there are removed layers that something stands on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn has_removed(&self) -> Result<bool, Error> {
        Ok(self.names()?.iter().any(|name| name.to_string_lossy().ends_with(MARKER)))
    }

    /// Removes what is left that nothing stands on: removed layers, and the names under which machines opened volumes that no process
    /// has open. What was merged goes only now, so that who was about to open it still finds it.
    ///
    /// No machine may be started, given a volume, or have a layer made meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sweep(&self) -> Result<(), Error> {
        self.forget_open_names(&opened()?)?;
        self.remove_unused_layers()
    }

    /// The runs that no process has open, those that take the least to merge first.
    ///
    /// No machine may be started, given a volume, or have a layer made meanwhile, nor until one of them is merged.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn runs(&self) -> Result<Vec<Run>, Error> {
        let (open, entries) = (opened()?, self.entries()?);
        let mut runs: Vec<(u64, Run)> =
            entries.iter().filter_map(|lowest| run(&entries, lowest, &open)).collect();
        runs.sort_by_key(|(cost, _)| *cost);
        Ok(runs.into_iter().map(|(_, run)| run).collect())
    }

    /// Merges a run. Dropped before it is done, it has done no harm.
    ///
    /// # Errors
    /// [`Error::KeyMissing`], [`Error::NoSpace`], and the others.
    pub async fn merge(&self, run: &Run) -> Result<(), Error> {
        let Some((base, others)) = run.layers.split_first() else { return Ok(()) };
        // From below, so that each is written once: what is merged stands for all that was below.
        for layer in others {
            let mut command = self.command("commit");
            // The layer is left as it is.
            command.args(["-q", "-d"]).arg(self.over(layer, base)?);
            self.run(command).await.map_err(|error| self.told_space(error))?;
        }
        sync(base)?;
        for name in &run.names {
            // The volume may have been removed.
            if !name.exists() {
                continue;
            }
            let new = self.temporary("merged");
            fs::hard_link(base, &new).map_err(at("make", &new))?;
            fs::rename(&new, name).map_err(at("rename", &new))?;
        }
        sync(&self.dir)
    }

    /// A layer right over the lowest one of its run. Without QEMU's locks, so that nobody is kept from reading either.
    fn over(&self, layer: &Path, base: &Path) -> Result<String, Error> {
        let layers = |path: &Path| {
            let id = self.id_of(path).ok_or_else(|| Error::InvalidId(path.display().to_string()))?;
            self.layers(&id)
        };
        let unlocked = |layer: &Layer| {
            let mut node = self.node(layer)?;
            node["file"]["locking"] = "off".into();
            Ok::<_, Error>(node)
        };
        let (above, below) = (layers(layer)?, layers(base)?);
        let mut node = Value::Null;
        for (depth, layer) in below.iter().enumerate().rev() {
            let next = if depth == 0 { unlocked(layer)? } else { self.node(layer)? };
            node = standing(next, node);
        }
        let top = above.first().ok_or_else(|| Error::NotFound(layer.display().to_string()))?;
        Ok(format!("json:{}", standing(unlocked(top)?, node)))
    }

    /// Removes the names under which machines opened volumes that no process has open, once they have gone on in their layers.
    fn forget_open_names(&self, open: &BTreeSet<(u64, u64)>) -> Result<(), Error> {
        let mut volumes: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for name in self.nexts()? {
            let volume =
                name.file_name().and_then(|name| name.to_str()?.split('.').next().map(str::to_owned));
            volumes.entry(volume.unwrap_or_default()).or_default().push(name);
        }
        for (volume, names) in volumes {
            let is_open = |path: &PathBuf| {
                fs::metadata(path).is_ok_and(|file| open.contains(&(file.dev(), file.ino())))
            };
            if names.iter().any(is_open) || self.path(&volume).is_ok_and(|path| is_open(&path)) {
                continue;
            }
            self.finish_snapshot(&volume)?;
            for name in names {
                remove_file(&name)?;
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<Entry>, Error> {
        let names = self.names()?.into_iter().filter(|name| name.to_string_lossy().ends_with(SUFFIX));
        let mut files: Vec<PathBuf> = names.map(|name| self.dir.join(name)).collect();
        files.extend(self.nexts()?);
        let mut entries = Vec::with_capacity(files.len());
        for path in files {
            let file = match File::open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                file => file.map_err(at("open", &path))?,
            };
            let about = file.metadata().map_err(at("stat", &path))?;
            let id = self.id_of(&path).filter(|id| crate::valid_id(id));
            entries.push(Entry {
                removed: id.as_ref().is_some_and(|id| self.marker(id).exists()),
                // One that is spoilt stands on nothing.
                backing: qcow2::Header::read(&file).ok().and_then(|header| header.backing),
                id,
                inode: (about.dev(), about.ino()),
                allocated: about.blocks() * 512,
                path,
            });
        }
        Ok(entries)
    }
}

/// A block node over another one, if there is one.
fn standing(mut node: Value, below: Value) -> Value {
    if !below.is_null() {
        node["backing"] = below;
    }
    node
}

/// The run whose lowest layer this is, with what it costs in bytes; none if it is none, is open, or is not worth it.
fn run(entries: &[Entry], lowest: &Entry, open: &BTreeSet<(u64, u64)>) -> Option<(u64, Run)> {
    // A removed layer that is also something else's, a copy's, stays as it is.
    let alone = |entry: &Entry| {
        entry.removed && !entries.iter().any(|e| e.inode == entry.inode && e.path != entry.path)
    };
    // What stands on a layer, if that is one file.
    let over = |entry: &Entry| {
        let mut names = entries.iter().filter(|e| e.backing.as_ref() == Some(&entry.path));
        let first = names.next()?;
        names.all(|name| name.inode == first.inode).then_some(first)
    };
    let below = entries.iter().find(|e| Some(&e.path) == lowest.backing.as_ref());
    if !alone(lowest) || below.is_some_and(|below| alone(below) && over(below).is_some()) {
        return None;
    }
    let mut layers = vec![lowest];
    let last = loop {
        match over(layers[layers.len() - 1]) {
            Some(next) if alone(next) => layers.push(next),
            next => break next,
        }
    };
    let removed: u64 = layers.iter().map(|layer| layer.allocated).sum();
    layers.extend(last.filter(|last| last.allocated <= WORTH * removed));
    let (top, others) = layers.split_last()?;
    let names: Vec<&Entry> = entries.iter().filter(|e| e.inode == top.inode).collect();
    let is_open = layers.iter().any(|layer| open.contains(&layer.inode));
    if others.is_empty() || is_open || names.iter().any(|name| name.id.is_none()) {
        return None;
    }
    let cost = layers[1..].iter().map(|layer| layer.allocated).sum();
    let run = Run {
        above: above(entries, top),
        layers: layers.iter().map(|layer| layer.path.clone()).collect(),
        names: names.iter().map(|name| name.path.clone()).collect(),
    };
    Some((cost, run))
}

/// The ids of a file and of all that stands on it, the nearest first.
fn above(entries: &[Entry], top: &Entry) -> Vec<String> {
    let mut found: Vec<&Entry> = entries.iter().filter(|e| e.inode == top.inode).collect();
    let mut next = 0;
    while let Some(&entry) = found.get(next) {
        next += 1;
        let more = entries.iter().filter(|e| e.backing.as_ref() == Some(&entry.path));
        let more: Vec<_> = more.filter(|e| !found.iter().any(|known| known.path == e.path)).collect();
        found.extend(more);
    }
    found.into_iter().filter_map(|entry| entry.id.clone()).collect()
}

/// The files that processes have open, by device and inode.
fn opened() -> Result<BTreeSet<(u64, u64)>, Error> {
    let proc = Path::new("/proc");
    let mut found = BTreeSet::new();
    for process in fs::read_dir(proc).map_err(at("list", proc))? {
        let Ok(process) = process else { continue };
        if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // One that has ended meanwhile has nothing open.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let about = files.filter_map(|file| fs::metadata(file.ok()?.path()).ok());
        found.extend(about.filter(fs::Metadata::is_file).map(|file| (file.dev(), file.ino())));
    }
    Ok(found)
}
