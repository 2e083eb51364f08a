//! Handing a guest that runs over to another machine, on this host or another one.
//!
//! The machine that receives is started with its devices where the guest has them ([`Layout`]), waits ([`Vm::listen`]) and offers
//! its empty disks to be written ([`Vm::export_disks`]). The one that sends copies its disks there and goes on copying what the guest
//! writes ([`Vm::mirror`]), then its memory ([`Vm::send`]), and stands still when little is left. Nothing is decided then: the copies
//! of the disks are ended ([`Vm::end_mirrors`]), the rest is sent ([`Vm::switch_over`]), and the guest stands still on both sides, whole, until
//! one of them is told to let it run ([`Vm::resume`]). Where anything fails before, QEMU lets the guest run on where it was.
//!
//! Both speak to Unix sockets; what carries the bytes from one to the other is the caller's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::utf8;
use crate::disks::{HOTPLUG_BUS, children, layer_id, named_nodes, remove_node};
use crate::qmp::Qmp;
use crate::spec::{HOTPLUG_SLOTS, Spec};
use crate::{Error, RunState, Vm};

/// How often QEMU is asked how far it is.
const POLL: Duration = Duration::from_millis(5);

/// How long QEMU may take to end a copy or to break off.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the other end may take until a disk of it can be written.
const CONNECT: Duration = Duration::from_secs(10);

/// Where a machine's devices are, which a guest that moves relies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// QEMU's versioned name of the machine's model, such as `pc-q35-7.2`.
    pub machine: String,
    /// How many PCI Express root ports it has.
    pub ports: usize,
    /// Whether it has a display.
    pub display: bool,
    /// Whether it has a bridge for what is attached later.
    pub hotplug: bool,
    /// The places of disks and interfaces, by their ids.
    pub places: BTreeMap<String, Place>,
}

/// The place of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The bus: a root port, or the bridge of what was attached later.
    pub bus: String,
    /// The slot on the bus.
    pub slot: u8,
}

impl Place {
    /// The number of the root port, if it is one.
    pub(crate) fn port(&self) -> Option<usize> {
        self.bus.strip_prefix("port")?.parse().ok()
    }
}

impl Layout {
    pub(crate) fn place(&self, device: &str) -> Result<&Place, Error> {
        self.places.get(device).ok_or_else(|| Error::InvalidSpec {
            id: device.to_owned(),
            reason: "the layout does not say where it is".into(),
        })
    }

    /// Checks what becomes part of QEMU's command line.
    pub(crate) fn validate(&self, id: &str) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::InvalidSpec { id: id.to_owned(), reason });
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
        if !self.machine.contains("q35") || self.machine.len() > 64 || !self.machine.chars().all(plain) {
            return fail(format!("{:?} is not a model of machine", self.machine));
        }
        if self.ports > 65 {
            return fail(format!("{} ports, more than 65", self.ports));
        }
        for (device, place) in &self.places {
            let known = match place.port() {
                Some(port) => port < self.ports && place.slot == 0,
                None => place.bus == HOTPLUG_BUS && usize::from(place.slot) < HOTPLUG_SLOTS,
            };
            if !known {
                return fail(format!("{device:?} cannot be in slot {} of {:?}", place.slot, place.bus));
            }
        }
        Ok(())
    }
}

/// What of a disk is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// What is in its uppermost layer: the other side has those below.
    Top,
    /// Everything.
    Full,
}

/// How far the copy of a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The id of the disk.
    pub disk: String,
    /// Bytes that are copied.
    pub copied: u64,
    /// Bytes that there are to copy.
    pub total: u64,
    /// Whether only what the guest writes from now on is still to be copied.
    pub ready: bool,
    /// Why it ended, if it did.
    pub error: Option<String>,
}

/// How far the guest's memory and devices are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// What is going on.
    pub sending: Sending,
    /// Bytes that were sent.
    pub sent: u64,
    /// Bytes of memory that are still to be sent.
    pub remaining: u64,
    /// How often the memory was gone through.
    pub rounds: u64,
    /// How much of the time the guest is kept from running, in percent, so that it writes less than can be sent.
    pub throttled_percent: u64,
}

/// What goes on with a guest that is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Nothing.
    Idle,
    /// It is being sent.
    Active,
    /// The guest stands still, and what is left waits for [`Vm::switch_over`].
    Waiting,
    /// All was sent; the guest stands still.
    Completed,
    /// It was broken off, and the guest is as it was.
    Failed(String),
}

/// What goes on with a guest that arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is not all there.
    Incomplete,
    /// It is whole, and stands still.
    Complete,
    /// It will not arrive.
    Failed(String),
}

impl Vm {
    /// Where one of the machine's sockets is.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if the path is too long for a socket.
    pub fn socket(&self, name: &str) -> Result<PathBuf, Error> {
        self.dir().socket(name)
    }

    /// Where the machine's devices are.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Timeout`].
    pub async fn layout(&self) -> Result<Layout, Error> {
        let qmp = self.qmp();
        let model = get(qmp, "/machine", "type").await?;
        let model = model.as_str().unwrap_or_default();
        let machine = model.strip_suffix("-machine").unwrap_or(model).to_owned();
        let names = children(qmp, "/machine/peripheral").await?;
        let ports = names.iter().filter_map(|name| name.strip_prefix("port")?.parse::<usize>().ok()).count();
        let mut places = BTreeMap::new();
        for id in names.iter().filter_map(|name| name.strip_prefix("d-")) {
            let path = format!("/machine/peripheral/d-{id}");
            let bus = get(qmp, &path, "parent_bus").await?;
            let bus = bus.as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
            // The slot and, in the lowest three bits, the function.
            let address = get(qmp, &path, "addr").await?.as_u64().unwrap_or_default();
            places.insert(id.to_owned(), Place { bus, slot: (address >> 3) as u8 });
        }
        let Spec { display, hotplug, .. } = *self.spec();
        Ok(Layout { machine, ports, display, hotplug, places })
    }

    /// Begins to copy a disk to the one of the same id that [`Vm::export_disks`] offers behind a socket.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`], [`Error::Timeout`].
    pub async fn mirror(&self, disk: &str, socket: &Path, sync: Sync) -> Result<(), Error> {
        let _change = self.change_disks().await;
        let (qmp, name) = (self.qmp(), mirror_id(disk));
        let target = json!({
            "driver": "nbd",
            "node-name": name,
            "server": { "type": "unix", "path": utf8(socket)? },
            "export": disk,
            // The guest stands still while QEMU waits for the other end's first word.
            "open-timeout": CONNECT.as_secs(),
        });
        qmp.execute("blockdev-add", target).await?;
        let job = json!({
            "job-id": name,
            "device": disk,
            "target": name,
            "sync": match sync { Sync::Top => "top", Sync::Full => "full" },
            // It stays to be asked how it ended.
            "auto-dismiss": false,
        });
        qmp.execute("blockdev-mirror", job).await.map(drop)
    }

    /// The copies of disks that are being made.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Timeout`].
    pub async fn mirrors(&self) -> Result<Vec<Mirror>, Error> {
        let jobs = self.qmp().execute("query-jobs", json!({})).await?;
        let mirror = |job: &Value| {
            let status = job["status"].as_str().unwrap_or_default();
            let ended = matches!(status, "concluded" | "aborting" | "null");
            let error = job["error"].as_str().map(str::to_owned);
            Some(Mirror {
                disk: job["id"].as_str()?.strip_prefix(MIRROR)?.to_owned(),
                copied: job["current-progress"].as_u64().unwrap_or_default(),
                total: job["total-progress"].as_u64().unwrap_or_default(),
                ready: matches!(status, "ready" | "standby"),
                error: if ended { Some(error.unwrap_or_default()) } else { error },
            })
        };
        Ok(jobs.as_array().into_iter().flatten().filter_map(mirror).collect())
    }

    /// Ends the copies of disks, whole: the machine must stand still.
    ///
    /// # Errors
    /// [`Error::Refused`] if one is not whole, [`Error::Gone`], [`Error::Timeout`].
    pub async fn end_mirrors(&self) -> Result<(), Error> {
        let qmp = self.qmp();
        for mirror in self.mirrors().await? {
            qmp.execute("block-job-cancel", json!({ "device": mirror_id(&mirror.disk) })).await?;
        }
        let failed = self.dismiss_mirrors().await?;
        match failed.into_iter().next() {
            Some(desc) => Err(Error::Refused { command: "block-job-cancel".into(), desc }),
            None => Ok(()),
        }
    }

    /// Waits until all copies have ended and forgets them; gives what went wrong with them.
    async fn dismiss_mirrors(&self) -> Result<Vec<String>, Error> {
        let (qmp, deadline) = (self.qmp(), Instant::now() + PATIENCE);
        let mut failed = Vec::new();
        loop {
            let mirrors = self.mirrors().await?;
            for mirror in &mirrors {
                let Some(error) = &mirror.error else { continue };
                match qmp.execute("job-dismiss", json!({ "id": mirror_id(&mirror.disk) })).await {
                    Ok(_) if error.is_empty() => {}
                    Ok(_) => failed.push(format!("the copy of {} failed: {error}", mirror.disk)),
                    // Not quite ended yet.
                    Err(Error::Refused { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            if mirrors.is_empty() {
                return Ok(failed);
            }
            wait(deadline, "the end of the disks' copies").await?;
        }
    }

    /// Begins to send the guest's memory to a socket. Goes on until little is left, then the guest stands still.
    ///
    /// # Errors
    /// [`Error::Refused`] with QEMU's words if a device cannot move; [`Error::Gone`]; [`Error::Timeout`].
    pub async fn send(&self, socket: &Path) -> Result<(), Error> {
        let qmp = self.qmp();
        let on = |name: &str| json!({ "capability": name, "state": true });
        let capabilities = json!({ "capabilities": [on("pause-before-switchover"), on("auto-converge")] });
        qmp.execute("migrate-set-capabilities", capabilities).await?;
        // As fast as the way allows: a guest that writes more than this would never arrive.
        qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 })).await?;
        qmp.execute("migrate", json!({ "uri": format!("unix:{}", utf8(socket)?) })).await.map(drop)
    }

    /// How far the guest is sent.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Timeout`].
    pub async fn transfer(&self) -> Result<Transfer, Error> {
        let answer = self.qmp().execute("query-migrate", json!({})).await?;
        let failed = || answer["error-desc"].as_str().unwrap_or("the transfer was broken off").to_owned();
        let sending = match answer["status"].as_str().unwrap_or("none") {
            "none" => Sending::Idle,
            "pre-switchover" => Sending::Waiting,
            "completed" => Sending::Completed,
            "failed" | "cancelled" => Sending::Failed(failed()),
            _ => Sending::Active,
        };
        let number = |name: &str| answer["ram"][name].as_u64().unwrap_or_default();
        Ok(Transfer {
            sending,
            sent: number("transferred"),
            remaining: number("remaining"),
            rounds: number("dirty-sync-count"),
            throttled_percent: answer["cpu-throttle-percentage"].as_u64().unwrap_or_default(),
        })
    }

    /// Sends what is left, and gives what became of it.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`], [`Error::Timeout`].
    pub async fn switch_over(&self) -> Result<Sending, Error> {
        self.qmp().execute("migrate-continue", json!({ "state": "pre-switchover" })).await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.transfer().await?.sending {
                Sending::Active | Sending::Waiting => {}
                sending => return Ok(sending),
            }
            wait(deadline, "the guest's last part").await?;
        }
    }

    /// Breaks off whatever was begun to hand the guest over, and forgets it. QEMU then lets the guest run on by itself, unless all of it
    /// had been sent: that is told.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`], [`Error::Timeout`].
    pub async fn break_off(&self) -> Result<Sending, Error> {
        let (qmp, deadline) = (self.qmp(), Instant::now() + PATIENCE);
        if matches!(self.transfer().await?.sending, Sending::Active | Sending::Waiting) {
            qmp.execute("migrate_cancel", json!({})).await?;
        }
        let sending = loop {
            match self.transfer().await?.sending {
                Sending::Active | Sending::Waiting => {}
                sending => break sending,
            }
            wait(deadline, "migrate_cancel").await?;
        };
        for mirror in self.mirrors().await?.iter().filter(|mirror| mirror.error.is_none()) {
            let cancel = json!({ "device": mirror_id(&mirror.disk), "force": true });
            match qmp.execute("block-job-cancel", cancel).await {
                // It ended meanwhile.
                Ok(_) | Err(Error::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.dismiss_mirrors().await?;
        let _change = self.change_disks().await;
        for node in named_nodes(qmp).await? {
            if let Some(name) = node["node-name"].as_str().filter(|name| name.starts_with(MIRROR)) {
                remove_node(qmp, name).await?;
            }
        }
        Ok(sending)
    }

    /// Offers the disks of a machine that waits for a guest to be written, behind a socket that QEMU makes.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`], [`Error::Timeout`].
    pub async fn export_disks(&self, socket: &Path) -> Result<(), Error> {
        let qmp = self.qmp();
        let address = json!({ "type": "unix", "data": { "path": utf8(socket)? } });
        qmp.execute("nbd-server-start", json!({ "addr": address })).await?;
        for disk in &self.spec().disks {
            let export = json!({
                "type": "nbd",
                "id": format!("x-{}", disk.id),
                // Below the throttle: its limits are the guest's.
                "node-name": layer_id(0, &disk.id),
                "name": disk.id,
                "writable": true,
            });
            qmp.execute("block-export-add", export).await?;
        }
        Ok(())
    }

    /// Ends the offer of disks: they are the guest's from now on.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Timeout`].
    pub async fn end_exports(&self) -> Result<(), Error> {
        match self.qmp().execute("nbd-server-stop", json!({})).await {
            // It was ended before.
            Ok(_) | Err(Error::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Has a machine that was started to receive wait for the guest at a socket that QEMU makes.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`], [`Error::Timeout`].
    pub async fn listen(&self, socket: &Path) -> Result<(), Error> {
        let uri = format!("unix:{}", utf8(socket)?);
        self.qmp().execute("migrate-incoming", json!({ "uri": uri })).await.map(drop)
    }

    /// Waits, at most this long, until the guest has arrived.
    ///
    /// # Errors
    /// [`Error::Timeout`] of the monitor.
    pub async fn arrival(&self, patience: Duration) -> Result<Arrival, Error> {
        let deadline = Instant::now() + patience;
        loop {
            if let RunState::Exited(exit) = self.state() {
                return Ok(Arrival::Failed(format!("{exit} {}", exit.stderr).trim().to_owned()));
            }
            let answer = match self.qmp().execute("query-migrate", json!({})).await {
                Ok(answer) => answer,
                Err(Error::Gone) => return Ok(Arrival::Failed(self.exited().await.stderr)),
                Err(error) => return Err(error),
            };
            match answer["status"].as_str() {
                Some("completed") => return Ok(Arrival::Complete),
                Some("failed") => {
                    return Ok(Arrival::Failed(answer["error-desc"].as_str().unwrap_or_default().into()));
                }
                _ if Instant::now() >= deadline => return Ok(Arrival::Incomplete),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }
}

/// What names of copies of disks begin with: jobs and the nodes that are written to.
const MIRROR: &str = "m-";

fn mirror_id(disk: &str) -> String {
    format!("{MIRROR}{disk}")
}

async fn get(qmp: &Qmp, path: &str, property: &str) -> Result<Value, Error> {
    qmp.execute("qom-get", json!({ "path": path, "property": property })).await
}

async fn wait(deadline: Instant, command: &str) -> Result<(), Error> {
    if Instant::now() >= deadline {
        return Err(Error::Timeout { command: command.to_owned(), timeout: PATIENCE });
    }
    tokio::time::sleep(POLL).await;
    Ok(())
}
