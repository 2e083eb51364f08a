//! Merging of layers: what removed snapshots have left is put together, so that chains stay short and room is given back.
//!
//! Removed layers that stand one on the other, and on whose topmost one other layer alone stands, are a run. What the layers above the
//! lowest hold is written into the lowest, which nothing else needs; then it takes the name of the topmost, in whose place it
//! stands from then on, and the others are removed. At every moment every file reads as before: what is written into the lowest layer
//! is what the layers above hide there. So it can be cut off anywhere, and begun again; and who has the old files open goes on
//! reading the same, or opens the new ones when it likes: a machine is told to ([`Driver::is_outdated`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::layers::{Layer, MARKER, remove_file};
use crate::{Driver, Error, SUFFIX, at, background, qcow2, sync};

/// How much larger than the removed layers below it a layer may be that is still in use, to be written into them: more would be
/// written than is gained.
const WORTH: u64 = 2;

/// Room that merging leaves to others, in bytes.
const MARGIN: u64 = 64 << 20;

/// How many bytes a second are copied at most, as `qemu-img` takes it: guests use the disk, too.
const RATE: &str = "64M";

/// Which file it is: device and inode.
type Inode = (u64, u64);

/// Removed layers that can be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The ids of the topmost layer and of what stands on it, the nearest first.
    pub above: Vec<String>,
    /// The topmost layer is a volume's own: no machine may be given it until the run is merged or given up.
    pub exclusive: bool,
    /// How many bytes are copied at most.
    cost: u64,
    /// The layers, the lowest first, which gets what the others hold.
    layers: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    path: PathBuf,
    inode: Inode,
}

/// A file that is a layer.
struct Entry {
    path: PathBuf,
    /// Its id; none if it is a name under which a machine opens it.
    id: Option<String>,
    inode: Inode,
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
        self.forget_open_names(&opened(|_| true)?)?;
        self.remove_unused_layers()
    }

    /// The runs that no process has open but these machines, which may have them open to read what is below their disks; those that
    /// take the least to merge first.
    ///
    /// No machine may be started, given a volume, or have a layer made meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn runs(&self, machines: &BTreeSet<u32>) -> Result<Vec<Run>, Error> {
        let others = opened(|pid| !machines.contains(&pid))?;
        let in_use = opened(|pid| machines.contains(&pid))?;
        let mut runs = runs(&self.entries()?, &in_use);
        runs.retain(|run| !run.layers.iter().any(|layer| others.contains(&layer.inode)));
        runs.sort_by_key(|run| run.cost);
        Ok(runs)
    }

    /// Makes ready to merge a run: its lowest layer becomes as large as the topmost.
    ///
    /// No machine may be started, given a volume, or have a layer made meanwhile: who opens a file finds it as it was or as it is, but not in
    /// between.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if there is not the room for what is copied, with some to spare; [`Error::KeyMissing`]; and the others.
    pub async fn prepare(&self, run: &Run) -> Result<(), Error> {
        let about = nix::sys::statvfs::statvfs(&self.dir).map_err(|e| at("examine", &self.dir)(e.into()))?;
        if about.blocks_available() * about.fragment_size() < run.cost + MARGIN {
            return Err(Error::NoSpace(self.dir.clone()));
        }
        let (Some(lowest), Some(topmost)) = (run.layers.first(), run.layers.last()) else { return Ok(()) };
        let wanted = self.size(&topmost.path)?;
        if self.size(&lowest.path)? >= wanted {
            return Ok(());
        }
        let mut node = self.unlocked(&self.stack(&lowest.path)?[0])?;
        node["backing"] = Value::Null;
        let mut command = self.command("resize");
        command.arg("-q").arg(format!("json:{node}")).arg(wanted.to_string());
        self.run(command).await.map_err(|error| self.told_space(error))
    }

    /// Copies into the lowest layer of a run what the others hold. Machines may be started meanwhile, unless the run is
    /// [exclusive](Run::exclusive). Dropped before it is done, it has done no harm.
    ///
    /// # Errors
    /// [`Error::KeyMissing`], [`Error::NoSpace`], and the others.
    pub async fn copy(&self, run: &Run) -> Result<(), Error> {
        let Some((base, others)) = run.layers.split_first() else { return Ok(()) };
        // From below, so that each is written once: what is copied stands for all that was below.
        for layer in others {
            let mut command = background(None);
            command.arg("commit");
            self.tell_key(&mut command);
            // The layer is left as it is.
            command.args(["-q", "-d", "-r", RATE]).arg(self.over(&layer.path, &base.path)?);
            self.run(command).await.map_err(|error| self.told_space(error))?;
        }
        sync(&base.path)
    }

    /// Puts the lowest layer of a run, into which the others are copied, in the place of the topmost; says whether it did: much may
    /// have happened meanwhile. The others go with the next [`Self::sweep`].
    ///
    /// No machine may be started, given a volume, or have a layer made meanwhile, and none of an [exclusive](Run::exclusive) run since it
    /// was found.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn replace(&self, run: &Run) -> Result<bool, Error> {
        let entries = self.entries()?;
        let (Some(base), Some(topmost)) = (run.layers.first(), run.layers.last()) else { return Ok(false) };
        // The topmost may have been removed, too, which makes the run longer. What is open reads the same in any case.
        if !runs(&entries, &BTreeSet::new()).iter().any(|found| found.layers.starts_with(&run.layers)) {
            return Ok(false);
        }
        for name in entries.iter().filter(|entry| entry.inode == topmost.inode) {
            let new = self.temporary("merged");
            fs::hard_link(&base.path, &new).map_err(at("make", &new))?;
            fs::rename(&new, &name.path).map_err(at("rename", &new))?;
        }
        sync(&self.dir)?;
        Ok(true)
    }

    /// Whether a machine that has these volumes has open what is none of their layers any more, or has open under other names
    /// what could be merged: it is to open what is below its disks anew.
    ///
    /// No layer may be made meanwhile.
    ///
    /// # Errors
    /// [`Error::BadImage`] if a layer is spoilt, [`Error::Io`], and the others.
    pub fn is_outdated(&self, machine: u32, volumes: &[String]) -> Result<bool, Error> {
        let mut current = BTreeSet::new();
        for volume in volumes {
            if self.info(volume)?.is_none() {
                continue;
            }
            let lower = self.layers(volume)?.split_off(1);
            let removed = |layer: &Layer| self.id_of(&layer.path).is_some_and(|id| self.marker(&id).exists());
            if lower.iter().any(removed) && !self.lower_open_names(volume)?.is_empty() {
                return Ok(true);
            }
            for path in lower.iter().map(|layer| &layer.path).chain([&self.path(volume)?]) {
                current.insert(inode(path)?);
            }
        }
        let mut ours = files_of(machine).filter(|(name, _)| name.starts_with(&self.dir));
        Ok(ours.any(|(_, inode)| !current.contains(&inode)))
    }

    /// Whether a file is the one that a volume goes on in.
    ///
    /// # Errors
    /// [`Error::InvalidId`], [`Error::Io`].
    pub fn is_file_of(&self, file: &Path, volume_id: &str) -> Result<bool, Error> {
        Ok(inode(file)? == inode(&self.path(volume_id)?)?)
    }

    /// Forgets the names under which a machine opened what is below a volume, once it has opened that under others.
    ///
    /// # Errors
    /// [`Error::InvalidId`], [`Error::NotFound`], [`Error::Io`].
    pub fn forget_lower_open_names(&self, volume_id: &str) -> Result<(), Error> {
        self.lower_open_names(volume_id)?.iter().try_for_each(|name| remove_file(name))
    }

    fn lower_open_names(&self, volume_id: &str) -> Result<Vec<PathBuf>, Error> {
        let lower = self.layers(volume_id)?.split_off(1);
        let lower = lower.iter().map(|layer| inode(&layer.path)).collect::<Result<BTreeSet<_>, _>>()?;
        let mut names = self.prepared(volume_id)?;
        names.retain(|name| inode(name).is_ok_and(|inode| lower.contains(&inode)));
        Ok(names)
    }

    fn size(&self, path: &Path) -> Result<u64, Error> {
        let read = File::open(path).and_then(|file| qcow2::Header::read(&file));
        Ok(read.map_err(at("read", path))?.size)
    }

    /// A file of the folder with all that is below it.
    fn stack(&self, path: &Path) -> Result<Vec<Layer>, Error> {
        self.layers(&self.id_of(path).ok_or_else(|| Error::InvalidId(path.display().to_string()))?)
    }

    /// The block node of a layer without QEMU's locks, so that nobody is kept from reading it.
    fn unlocked(&self, layer: &Layer) -> Result<Value, Error> {
        let mut node = self.node(layer)?;
        node["file"]["locking"] = "off".into();
        Ok(node)
    }

    /// A layer right over the lowest one of its run.
    fn over(&self, layer: &Path, base: &Path) -> Result<String, Error> {
        let mut node = Value::Null;
        for (depth, layer) in self.stack(base)?.iter().enumerate().rev() {
            let next = if depth == 0 { self.unlocked(layer)? } else { self.node(layer)? };
            node = standing(next, node);
        }
        let above = self.stack(layer)?;
        let top = above.first().ok_or_else(|| Error::NotFound(layer.display().to_string()))?;
        Ok(format!("json:{}", standing(self.unlocked(top)?, node)))
    }

    /// Removes the names under which machines opened volumes that no process has open, once they have gone on in their layers.
    fn forget_open_names(&self, open: &BTreeSet<Inode>) -> Result<(), Error> {
        let mut volumes: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for name in self.nexts()? {
            let volume =
                name.file_name().and_then(|name| name.to_str()?.split('.').next().map(str::to_owned));
            volumes.entry(volume.unwrap_or_default()).or_default().push(name);
        }
        for (volume, names) in volumes {
            let is_open = |path: &PathBuf| inode(path).is_ok_and(|inode| open.contains(&inode));
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

/// The runs, if these files are open in machines.
fn runs(entries: &[Entry], in_use: &BTreeSet<Inode>) -> Vec<Run> {
    entries.iter().filter_map(|lowest| run(entries, lowest, in_use)).collect()
}

/// The run whose lowest layer this is; none if it is none, or is not worth it.
fn run(entries: &[Entry], lowest: &Entry, in_use: &BTreeSet<Inode>) -> Option<Run> {
    let named = |inode: Inode| entries.iter().filter(move |e| e.inode == inode);
    // A removed layer that is also something else's, a copy's, stays as it is.
    let alone = |entry: &Entry| entry.removed && named(entry.inode).count() == 1;
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
    let may_be_written = |entry: &Entry| {
        named(entry.inode).any(|name| name.id.as_ref().is_none_or(|id| !id.starts_with("snap-")))
    };
    // A volume's own layer comes last of all, when there is little left to be copied, and not while a machine has it.
    let is_last = layers.len() == 1;
    let free = |entry: &Entry| !may_be_written(entry) || is_last && !in_use.contains(&entry.inode);
    let named_twice = |entry: &Entry| named(entry.inode).any(|name| name.id.is_none());
    layers.extend(last.filter(|last| last.allocated <= WORTH * removed && free(last) && !named_twice(last)));
    let (top, others) = layers.split_last()?;
    // What was merged, and is only still there because somebody may be about to open it, is not merged again.
    let is_left = top.removed && !entries.iter().any(|e| e.backing.as_ref() == Some(&top.path));
    if others.is_empty() || is_left {
        return None;
    }
    Some(Run {
        above: above(entries, top),
        exclusive: may_be_written(top),
        cost: layers[1..].iter().map(|layer| layer.allocated).sum(),
        layers: layers.iter().map(|e| Part { path: e.path.clone(), inode: e.inode }).collect(),
    })
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

fn inode(path: &Path) -> Result<Inode, Error> {
    fs::metadata(path).map(|about| (about.dev(), about.ino())).map_err(at("stat", path))
}

/// The files that processes of some kind have open.
fn opened(which: impl Fn(u32) -> bool) -> Result<BTreeSet<Inode>, Error> {
    let proc = Path::new("/proc");
    let mut found = BTreeSet::new();
    for process in fs::read_dir(proc).map_err(at("list", proc))? {
        let name = process.ok().and_then(|process| process.file_name().into_string().ok());
        if let Some(pid) = name.and_then(|name| name.parse().ok()).filter(|pid| which(*pid)) {
            found.extend(files_of(pid).map(|(_, inode)| inode));
        }
    }
    Ok(found)
}

/// The files that a process has open, by name; none of one that has ended.
fn files_of(process: u32) -> impl Iterator<Item = (PathBuf, Inode)> {
    let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
    files.filter_map(|file| {
        let link = file.ok()?.path();
        let about = fs::metadata(&link).ok().filter(fs::Metadata::is_file)?;
        Some((fs::read_link(&link).ok()?, (about.dev(), about.ino())))
    })
}
