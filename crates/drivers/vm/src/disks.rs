//! Disks of live machines: attached, detached, grown, limited, and given new layers while the guest runs.
//!
//! What QEMU calls things, for a disk `ID`: the device `d-ID` drives the block node `ID`, a throttle with the limits of the
//! object `throttle-ID`; below it stands the disk's layer, the node `q0-ID`, and after snapshots `q1-ID`, `q2-ID` and so on, each
//! over the one before. What is below may be opened anew: then it is the node `b0-ID` or `b1-ID`, and the uppermost layer the only one with a
//! name of its own. A disk that was taken from a guest that did not give it up has the node `e-ID` in the place of its layers, which
//! answers everything with an error. Names are all that is needed to go on where an earlier call was cut off.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::utf8;
use crate::qmp::Qmp;
use crate::{Disk, DiskFormat, DiskKey, DiskLayer, DiskLimits, Error, HOTPLUG_SLOTS, Vm, spec};

/// The bus of the disks that are attached while the machine runs.
pub(crate) const HOTPLUG_BUS: &str = "hotplug";

/// How long a guest that heeds the request takes to give up a disk.
const UNPLUG_PATIENCE: Duration = Duration::from_secs(3);

/// How often is asked whether it has.
const UNPLUG_POLL: Duration = Duration::from_millis(10);

/// A new, empty layer over a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The id of the disk.
    pub disk: String,
    /// The qcow2 file, made for the disk's present layer. What the guest writes from now on goes there.
    pub path: PathBuf,
}

/// The object that holds a disk to its limits.
pub(crate) fn throttle_group(disk: &Disk) -> Value {
    json!({ "qom-type": "throttle-group", "id": group_id(&disk.id), "limits": limits(disk.limits) })
}

/// All limits, so that setting them leaves nothing of those before (QEMU QMP Reference, `ThrottleLimits`).
fn limits(limits: DiskLimits) -> Value {
    let DiskLimits {
        iops,
        burst_iops,
        bytes_per_second,
        burst_bytes_per_second,
        burst_seconds,
        operation_bytes,
    } = limits;
    let length = |burst: u64| if burst == 0 { 1 } else { burst_seconds.max(1) };
    json!({
        "iops-total": iops,
        "iops-total-max": burst_iops,
        "iops-total-max-length": length(burst_iops),
        "bps-total": bytes_per_second,
        "bps-total-max": burst_bytes_per_second,
        "bps-total-max-length": length(burst_bytes_per_second),
        "iops-size": operation_bytes,
    })
}

/// The block node of a disk, with all below it.
pub(crate) fn node(disk: &Disk) -> Result<Value, Error> {
    Ok(json!({
        "driver": "throttle",
        "node-name": disk.id,
        "throttle-group": group_id(&disk.id),
        "file": layer(disk, 0)?,
    }))
}

fn layer(disk: &Disk, generation: u32) -> Result<Value, Error> {
    let mut node = json!({
        "driver": disk.format.as_str(),
        "node-name": layer_id(generation, &disk.id),
        "read-only": disk.read_only,
        "discard": "unmap",
        "file": {
            "driver": "file",
            "filename": utf8(&disk.path)?,
            "read-only": disk.read_only,
            "discard": "unmap",
            "aio": "threads",
            // An image that another process holds open for writing is refused.
            "locking": "on",
        },
    });
    if disk.key.is_some() {
        node["encrypt"] = encryption(&disk.id);
    }
    let below = below(&disk.id, &disk.below)?;
    if !below.is_null() {
        node["backing"] = below;
    }
    Ok(node)
}

/// What is below a disk's image, as far as it is named.
fn below(disk: &str, layers: &[DiskLayer]) -> Result<Value, Error> {
    let mut below = Value::Null;
    for layer in layers.iter().rev() {
        let mut next = json!({
            "driver": layer.format.as_str(),
            "read-only": true,
            "file": { "driver": "file", "filename": utf8(&layer.path)?, "read-only": true },
        });
        if layer.encrypted {
            next["encrypt"] = encryption(disk);
        }
        if !below.is_null() {
            next["backing"] = below;
        }
        below = next;
    }
    Ok(below)
}

fn encryption(disk: &str) -> Value {
    json!({ "format": "luks", "key-secret": key_id(disk) })
}

/// The object that holds the key of a disk, which QEMU reads from a file that it inherits.
pub(crate) fn inherited_key(disk: &str, fd: std::os::fd::RawFd) -> Value {
    json!({ "qom-type": "secret", "id": key_id(disk), "format": "raw", "file": format!("/proc/self/fd/{fd}") })
}

/// The object that holds the key of a disk, for the monitor only.
fn told_key(disk: &str, key: &DiskKey) -> Value {
    json!({ "qom-type": "secret", "id": key_id(disk), "format": "raw", "data": key.as_str() })
}

fn key_id(disk: &str) -> String {
    format!("key-{disk}")
}

/// The guest's device.
pub(crate) fn device(disk: &Disk, bus: &str) -> Value {
    json!({
        "driver": "virtio-blk-pci",
        "id": device_id(&disk.id),
        "drive": disk.id,
        "bus": bus,
        "serial": disk.id.replacen('-', "", 1),
        // A full host pauses the guest; other errors are the guest's to handle.
        "werror": "enospc",
        "rerror": "report",
    })
}

fn device_id(disk: &str) -> String {
    format!("d-{disk}")
}

fn group_id(disk: &str) -> String {
    format!("throttle-{disk}")
}

fn dead_id(disk: &str) -> String {
    format!("e-{disk}")
}

pub(crate) fn layer_id(generation: u32, disk: &str) -> String {
    format!("q{generation}-{disk}")
}

fn lower_id(number: u32, disk: &str) -> String {
    format!("b{number}-{disk}")
}

/// A layer that QEMU has open.
struct Layer {
    generation: u32,
    path: PathBuf,
    /// It is a qcow2 file that is written to.
    is_written: bool,
}

impl Vm {
    /// The ids of the disks that the guest has, sorted; without those that were taken from it.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Timeout`].
    pub async fn disks(&self) -> Result<Vec<String>, Error> {
        let names = children(self.qmp(), "/machine/peripheral").await?;
        // Interfaces have ids of the same form; what drives a block node of its name is a disk.
        let nodes = named_nodes(self.qmp()).await?;
        let mut disks: Vec<String> = names
            .iter()
            .filter_map(|name| name.strip_prefix("d-"))
            .filter(|id| nodes.iter().any(|node| node["node-name"] == **id))
            .filter(|id| !nodes.iter().any(|node| node["node-name"] == dead_id(id)))
            .map(str::to_owned)
            .collect();
        disks.sort_unstable();
        Ok(disks)
    }

    /// Attaches a disk. Attaching one that the guest has changes nothing.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`]; [`Error::Refused`] with QEMU's words, of a missing file for example, or when the machine has no
    /// free slot; [`Error::Gone`]; [`Error::Timeout`].
    pub async fn attach_disk(&self, disk: &Disk) -> Result<(), Error> {
        if !spec::valid_device_id(&disk.id) {
            return Err(Error::InvalidSpec {
                id: self.id().to_owned(),
                reason: format!("device id {:?} is malformed", disk.id),
            });
        }
        let _change = self.change_disks().await;
        let qmp = self.qmp();
        if has_device(qmp, &disk.id).await? {
            if named_nodes(qmp).await?.iter().any(|node| node["node-name"] == dead_id(&disk.id)) {
                let desc = format!("the guest has not given up {}, which was taken from it", disk.id);
                return Err(Error::Refused { command: "device_add".into(), desc });
            }
            return Ok(());
        }
        // QEMU is not asked for what it would refuse: emulating a guest that spins, it may then wait for ever, in the thread that answers
        // QMP, to free the device that was not made.
        let taken = children(qmp, &format!("/machine/peripheral/{HOTPLUG_BUS}/{HOTPLUG_BUS}")).await?;
        if taken.iter().filter(|name| name.starts_with("child[")).count() >= HOTPLUG_SLOTS {
            let desc = format!("no slot is free for {}: all {HOTPLUG_SLOTS} are taken", disk.id);
            return Err(Error::Refused { command: "device_add".into(), desc });
        }
        // What an attempt that was cut off has left.
        remove_nodes(qmp, &disk.id).await?;
        let attach = async {
            qmp.execute("object-add", throttle_group(disk)).await?;
            if let Some(key) = &disk.key {
                qmp.execute("object-add", told_key(&disk.id, key)).await?;
            }
            qmp.execute("blockdev-add", node(disk)?).await?;
            qmp.execute("device_add", device(disk, HOTPLUG_BUS)).await
        };
        let attached = attach.await;
        if attached.is_err() {
            // The error of the attempt is what the caller wants to know.
            let _ = remove_nodes(qmp, &disk.id).await;
        }
        attached.map(drop)
    }

    /// Asks the guest to give up a disk and, when it has, closes it. Says whether it has; if not, it may be asked again: a guest that
    /// is booting does not hear.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`], [`Error::Timeout`].
    pub async fn detach_disk(&self, id: &str) -> Result<bool, Error> {
        let _change = self.change_disks().await;
        let qmp = self.qmp();
        if has_device(qmp, id).await? {
            match qmp.execute("device_del", json!({ "id": device_id(id) })).await {
                // That it was asked already, or that the disk is gone meanwhile.
                Ok(_) | Err(Error::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
            let deadline = Instant::now() + UNPLUG_PATIENCE;
            while has_device(qmp, id).await? {
                if Instant::now() >= deadline {
                    return Ok(false);
                }
                tokio::time::sleep(UNPLUG_POLL).await;
            }
        }
        remove_nodes(qmp, id).await?;
        Ok(true)
    }

    /// Takes a disk from a guest that does not give it up: its files are flushed and closed, and all that the guest still asks of it
    /// fails.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`], [`Error::Timeout`].
    pub async fn take_disk(&self, id: &str) -> Result<(), Error> {
        let _change = self.change_disks().await;
        let qmp = self.qmp();
        if !has_device(qmp, id).await? {
            return remove_nodes(qmp, id).await;
        }
        let nodes = named_nodes(qmp).await?;
        let node = |name: &str| nodes.iter().find(|node| node["node-name"] == name);
        if node(&dead_id(id)).is_none() {
            let size = node(id).map_or(Value::Null, |node| node["image"]["virtual-size"].clone());
            let dead = json!({
                "driver": "blkdebug",
                "node-name": dead_id(id),
                "image": { "driver": "null-co", "size": size },
                // EIO, whatever is asked.
                "inject-error": [{ "event": "none", "errno": 5, "once": false, "immediately": true }],
            });
            qmp.execute("blockdev-add", dead).await?;
        }
        let instead = json!({
            "driver": "throttle", "node-name": id, "throttle-group": group_id(id), "file": dead_id(id),
        });
        qmp.execute("blockdev-reopen", json!({ "options": [instead] })).await?;
        remove_layers(qmp, id).await
    }

    /// Holds a disk to other limits from now on.
    ///
    /// # Errors
    /// [`Error::Refused`] if the guest does not have it, [`Error::Gone`], [`Error::Timeout`].
    pub async fn limit_disk(&self, id: &str, to: DiskLimits) -> Result<(), Error> {
        let path = format!("/objects/{}", group_id(id));
        let change = json!({ "path": path, "property": "limits", "value": limits(to) });
        self.qmp().execute("qom-set", change).await.map(drop)
    }

    /// Grows a disk, and tells the guest.
    ///
    /// # Errors
    /// [`Error::Refused`] if the guest does not have it or the host is full, [`Error::Gone`], [`Error::Timeout`].
    pub async fn resize_disk(&self, id: &str, bytes: u64) -> Result<(), Error> {
        let _change = self.change_disks().await;
        self.qmp().execute("block_resize", json!({ "node-name": id, "size": bytes })).await.map(drop)
    }

    /// Puts new layers over disks, all at one point in time: what was written before is in the layers below, which QEMU
    /// only reads from then on. Layers that are in place already are left so.
    ///
    /// # Errors
    /// [`Error::Refused`], after which nothing has changed; [`Error::Gone`]; [`Error::Timeout`].
    pub async fn overlay_disks(&self, overlays: &[Overlay]) -> Result<(), Error> {
        let _change = self.change_disks().await;
        let qmp = self.qmp();
        let mut actions = Vec::new();
        for Overlay { disk, path } in overlays {
            let layers = layers_in_use(qmp, disk).await?;
            let Some(top) = layers.last() else {
                let desc = format!("the machine has no disk {disk}");
                return Err(Error::Refused { command: "blockdev-snapshot".into(), desc });
            };
            if top.path == *path {
                continue;
            }
            let next = top.generation + 1;
            // QEMU puts the present layer there, which it has open.
            let node = layer_over(qmp, disk, path, next, Value::Null).await?;
            qmp.execute("blockdev-add", node).await?;
            actions.push(json!({
                "type": "blockdev-snapshot",
                "data": { "node": layer_id(top.generation, disk), "overlay": layer_id(next, disk) },
            }));
        }
        if actions.is_empty() {
            return Ok(());
        }
        qmp.execute("transaction", json!({ "actions": actions })).await.map(drop)
    }

    /// Opens what is below a disk anew, the topmost layer first, and closes what was there: the files may have been replaced by others
    /// with the same bytes. Layers below those that are named are found by the files' own words. Says whether it was done: a disk that is being copied
    /// elsewhere, or that is no qcow2 file, is left as it is.
    ///
    /// # Errors
    /// [`Error::Refused`], after which the guest has its disk as before; [`Error::Gone`]; [`Error::Timeout`].
    pub async fn rebase_disk(&self, id: &str, layers: &[DiskLayer]) -> Result<bool, Error> {
        let _change = self.change_disks().await;
        let qmp = self.qmp();
        let Some(top) = layers_in_use(qmp, id).await?.pop() else { return Ok(false) };
        // What copies a disk, or lets it be written, knows its layers.
        for command in ["query-jobs", "query-block-exports"] {
            if qmp.execute(command, json!({})).await?.as_array().is_none_or(|list| !list.is_empty()) {
                return Ok(false);
            }
        }
        if !top.is_written {
            return Ok(false);
        }
        let names = lower_nodes(qmp, id).await?;
        let mut node = below(id, layers)?;
        let mut backing = Value::Null;
        if !node.is_null() {
            let name = (0..).map(|number| lower_id(number, id)).find(|name| !names.contains(name));
            backing = name.unwrap_or_default().into();
            node["node-name"] = backing.clone();
            qmp.execute("blockdev-add", node).await?;
        }
        let node = layer_over(qmp, id, &top.path, top.generation, backing).await?;
        let turned = qmp.execute("blockdev-reopen", json!({ "options": [node] })).await;
        // Whatever of both is in use stays.
        let closed = remove_lower(qmp, id).await;
        turned?;
        closed.map(|()| true)
    }

    /// The file that a disk's writes go to, as it was named when it was opened; none if the guest does not have the disk.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Timeout`].
    pub async fn disk_file(&self, id: &str) -> Result<Option<PathBuf>, Error> {
        let _change = self.change_disks().await;
        let top = layers_in_use(self.qmp(), id).await?.pop();
        Ok(top.map(|layer| layer.path))
    }
}

pub(crate) async fn children(qmp: &Qmp, path: &str) -> Result<Vec<String>, Error> {
    let list = qmp.execute("qom-list", json!({ "path": path })).await?;
    let names = list.as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

async fn has_device(qmp: &Qmp, disk: &str) -> Result<bool, Error> {
    let device = device_id(disk);
    Ok(children(qmp, "/machine/peripheral").await?.contains(&device))
}

pub(crate) async fn named_nodes(qmp: &Qmp) -> Result<Vec<Value>, Error> {
    match qmp.execute("query-named-block-nodes", json!({ "flat": true })).await? {
        Value::Array(nodes) => Ok(nodes),
        _ => Ok(Vec::new()),
    }
}

/// The block node under a node, as its `file`. A node with backing files of other names than their headers say is itself called by
/// all of its options, cut off where they are long; what it lies in has a plain name.
async fn file_nodes(qmp: &Qmp) -> Result<BTreeMap<String, String>, Error> {
    let graph = qmp.execute("x-debug-query-block-graph", json!({})).await?;
    let list = |name: &str| graph[name].as_array().cloned().unwrap_or_default();
    let names: BTreeMap<u64, String> = list("nodes")
        .iter()
        .filter_map(|node| Some((node["id"].as_u64()?, node["name"].as_str()?.to_owned())))
        .collect();
    let name = |end: &Value| names.get(&end.as_u64()?).cloned();
    let edges = list("edges");
    let files = edges.iter().filter(|edge| edge["name"] == "file");
    Ok(files.filter_map(|edge| Some((name(&edge["parent"])?, name(&edge["child"])?))).collect())
}

/// The layers of a disk, the lowest first.
async fn layers(qmp: &Qmp, disk: &str) -> Result<Vec<Layer>, Error> {
    let (nodes, files) = (named_nodes(qmp).await?, file_nodes(qmp).await?);
    let mut layers = Vec::new();
    for node in &nodes {
        let Some(name) = node["node-name"].as_str() else { continue };
        let Some((generation, id)) = name.strip_prefix('q').and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        let Some(generation) = generation.parse().ok().filter(|_| id == disk) else { continue };
        let file = files.get(name).and_then(|file| nodes.iter().find(|node| node["node-name"] == **file));
        let Some(path) = file.and_then(|file| file["file"].as_str()).filter(|path| path.starts_with('/'))
        else {
            let desc = format!("it does not say in which file the layer {name} lies");
            return Err(Error::Refused { command: "query-named-block-nodes".into(), desc });
        };
        layers.push(Layer {
            generation,
            path: path.into(),
            is_written: node["drv"] == DiskFormat::Qcow2.as_str() && node["ro"] == false,
        });
    }
    layers.sort_unstable_by_key(|layer: &Layer| layer.generation);
    Ok(layers)
}

/// The layers of a disk that a device drives, the lowest first; one that an attempt that was cut off has opened, and that is not
/// over the others yet, is closed.
async fn layers_in_use(qmp: &Qmp, disk: &str) -> Result<Vec<Layer>, Error> {
    let mut layers = layers(qmp, disk).await?;
    while let Some(top) = layers.pop_if(|layer| layer.generation > 0) {
        match remove_node(qmp, &layer_id(top.generation, disk)).await {
            Ok(()) => {}
            // QEMU closes nothing that is in use.
            Err(Error::Refused { .. }) => {
                layers.push(top);
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(layers)
}

/// The block node of a layer of a disk that the guest has, over another node.
async fn layer_over(
    qmp: &Qmp,
    disk: &str,
    path: &Path,
    generation: u32,
    backing: Value,
) -> Result<Value, Error> {
    let new = Disk {
        id: disk.to_owned(),
        path: path.to_owned(),
        format: DiskFormat::Qcow2,
        read_only: false,
        limits: DiskLimits::default(),
        key: None,
        below: Vec::new(),
    };
    let mut node = layer(&new, generation)?;
    if children(qmp, "/objects").await?.contains(&key_id(disk)) {
        node["encrypt"] = encryption(disk);
    }
    node["backing"] = backing;
    Ok(node)
}

/// The nodes of what was opened anew below a disk.
async fn lower_nodes(qmp: &Qmp, disk: &str) -> Result<Vec<String>, Error> {
    let nodes = named_nodes(qmp).await?;
    let names = nodes.iter().filter_map(|node| node["node-name"].as_str());
    let is_lower = |name: &&str| {
        let split = name.strip_prefix('b').and_then(|rest| rest.split_once('-'));
        split.is_some_and(|(number, id)| number.parse::<u32>().is_ok() && id == disk)
    };
    Ok(names.filter(is_lower).map(str::to_owned).collect())
}

/// Closes what is below a disk and no layer of it stands on any more.
async fn remove_lower(qmp: &Qmp, disk: &str) -> Result<(), Error> {
    let mut layers = layers(qmp, disk).await?;
    layers.pop();
    let named = layers.iter().rev().filter(|layer| layer.generation > 0);
    let mut names: Vec<String> = named.map(|layer| layer_id(layer.generation, disk)).collect();
    names.extend(lower_nodes(qmp, disk).await?);
    for name in names {
        match remove_node(qmp, &name).await {
            // QEMU closes nothing that is in use.
            Ok(()) | Err(Error::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Closes what QEMU has open of a disk that no device drives.
async fn remove_nodes(qmp: &Qmp, disk: &str) -> Result<(), Error> {
    if named_nodes(qmp).await?.iter().any(|node| node["node-name"] == disk) {
        remove_node(qmp, disk).await?;
    }
    if named_nodes(qmp).await?.iter().any(|node| node["node-name"] == dead_id(disk)) {
        remove_node(qmp, &dead_id(disk)).await?;
    }
    remove_layers(qmp, disk).await?;
    let objects = children(qmp, "/objects").await?;
    for object in [group_id(disk), key_id(disk)] {
        if objects.contains(&object) {
            qmp.execute("object-del", json!({ "id": object })).await?;
        }
    }
    Ok(())
}

/// Closes the layers of a disk that nothing uses.
async fn remove_layers(qmp: &Qmp, disk: &str) -> Result<(), Error> {
    // The lowest layer went with the throttle that it was opened with, unless another one stood between.
    for layer in layers(qmp, disk).await?.iter().rev().filter(|layer| layer.generation > 0) {
        remove_node(qmp, &layer_id(layer.generation, disk)).await?;
    }
    for name in lower_nodes(qmp, disk).await? {
        remove_node(qmp, &name).await?;
    }
    Ok(())
}

pub(crate) async fn remove_node(qmp: &Qmp, node: &str) -> Result<(), Error> {
    qmp.execute("blockdev-del", json!({ "node-name": node })).await.map(drop)
}
