//! Instances as virtual machines.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use haar_core::Sealer;
use haar_core::reconcile::Handle;
use haar_image::ImageId;
use haar_records::ec2::{
    BootMode, Bundle, CpuOptions, EbsDefaults, EbsKey, EbsSnapshot, Encryption, ImageBoot, ImportTask,
    Instance, InstanceState, NetworkInterface, Volume, VolumeShape, instance_type,
};
use haar_store::Store;
use haar_vm::{Boot, Disk, DiskFormat, DiskKey, DiskLayer, Nic, Overlay, RunState, Spec, Sync, Vm};

use crate::backend::{Backend, Observation};
use crate::blocks::{self, Sessions};
use crate::directory::MTU;
use crate::merge::{self, Layering};
use crate::network::{self, Network};
use crate::reserve::Reserve;
use crate::{Config, Error, limits, migrations};

/// Firmware for machines that boot through UEFI (package `ovmf`): its code, and empty variables, of which each machine gets a copy.
pub const UEFI_FIRMWARE: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

/// Runs instances under QEMU.
pub(crate) struct Qemu {
    store: Store,
    pub(crate) vms: haar_vm::Driver,
    pub(crate) volumes: haar_volume::Driver,
    pub(crate) images: haar_image::Library,
    network: Arc<Network>,
    pub(crate) console_dir: PathBuf,
    firmware_dir: PathBuf,
    reserve: Reserve,
    sealer: Sealer,
    sessions: Sessions,
    layering: Arc<Layering>,
    watched: Mutex<HashMap<String, Vm>>,
    reconciler: OnceLock<Handle<Instance>>,
}

impl Qemu {
    pub(crate) fn new(
        config: &Config,
        binary: &Path,
        accel: haar_vm::Accel,
        images: haar_image::Library,
        network: Arc<Network>,
        store: Store,
    ) -> Result<Self, Error> {
        let (console_dir, firmware_dir) = (config.console_dir(), config.state_dir.join("firmware"));
        for dir in [&console_dir, &firmware_dir, &config.state_dir.join("run")] {
            std::fs::create_dir_all(dir).map_err(Error::io(format!("make {}", dir.display())))?;
        }
        Ok(Self {
            store,
            vms: vm_driver(config, binary, accel)?,
            volumes: haar_volume::Driver::new(config.state_dir.join("volumes"))?,
            images,
            network,
            console_dir,
            firmware_dir,
            reserve: Reserve::new(&config.state_dir)?,
            sealer: config.sealer.clone(),
            sessions: Sessions::default(),
            layering: Arc::default(),
            watched: Mutex::default(),
            reconciler: OnceLock::new(),
        })
    }

    /// Merges layers that nothing needs, from now on.
    pub(crate) fn merge_layers(self: &Arc<Self>) {
        tokio::spawn(merge::run(self.layering.clone(), Arc::downgrade(self)));
    }

    pub(crate) fn records(&self) -> haar_store::Snapshot {
        self.store.snapshot()
    }

    /// Has machines' changes of state reported to the reconciler from now on.
    pub(crate) fn report_to(&self, reconciler: &Handle<Instance>) {
        let _ = self.reconciler.set(reconciler.clone());
        // Machines that were adopted before there was anybody to report to.
        reconciler.poke_all();
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vm>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instance's machine, adopted if an earlier daemon started it.
    pub(crate) async fn machine(&self, instance_id: &str) -> Result<Option<Vm>, Error> {
        if let Some(vm) = self.watched().get(instance_id) {
            return Ok(Some(vm.clone()));
        }
        let vm = self.vms.adopt(instance_id).await?;
        if let Some(vm) = &vm {
            self.watch(vm);
        }
        Ok(vm)
    }

    /// Asks for a run of the reconciler at each change of the machine's state.
    fn watch(&self, vm: &Vm) {
        let Some(reconciler) = self.reconciler.get().cloned() else { return };
        let id = vm.id().to_owned();
        if self.watched().insert(id.clone(), vm.clone()).is_some() {
            return;
        }
        let (store, mut states, layering) = (self.store.clone(), vm.watch(), self.layering.clone());
        tokio::spawn(async move {
            while states.changed().await.is_ok() {
                let gone = matches!(*states.borrow_and_update(), RunState::Exited(_));
                let snapshot = store.snapshot();
                if let Some(instance) = snapshot.list_all::<Instance>().find(|instance| instance.id == id) {
                    reconciler.poke_id(&instance.account, &instance.region, &id);
                }
                if gone {
                    // Its disks are in no machine any more.
                    layering.tell();
                    return;
                }
            }
        });
    }

    fn inconsistent(instance: &Instance, what: impl std::fmt::Display) -> Error {
        Error::Inconsistent(format!("{}: {what}", instance.id))
    }

    /// Makes the instance's disks that are not there yet.
    async fn disks(&self, instance: &Instance) -> Result<Vec<Disk>, Error> {
        let snapshot = self.store.snapshot();
        let mut disks = Vec::with_capacity(instance.spec.block_devices.len());
        for device in instance.spec.block_devices.iter().filter(|device| !device.detaching) {
            let record = snapshot
                .get::<Volume>(&instance.account, &instance.region, &device.volume_id)
                .ok_or_else(|| Self::inconsistent(instance, format!("{} has no record", device.volume_id)))?;
            // A snapshot that was being taken when the machine was lost.
            self.volumes.finish_snapshot(&record.id)?;
            if self.volumes.info(&record.id)?.is_some() {
                self.make_usable(&record).await?;
            } else {
                match (&record.snapshot_id, &record.image_id) {
                    (None, Some(image_id)) => {
                        let backing = self.library_image(image_id).await?.root_disk();
                        let format = haar_volume::Format::Qcow2;
                        let volumes = self.volumes_of(&record)?;
                        volumes.create_overlay(&record.id, &backing, format, bytes(&record)).await?;
                    }
                    _ => self.make_disk(&record).await?,
                }
            }
            disks.push(self.disk(&record)?);
        }
        Ok(disks)
    }

    pub(crate) async fn library_image(&self, image_id: &str) -> Result<haar_image::Image, Error> {
        let (library, image_id) = (self.images.clone(), image_id.to_owned());
        let image = tokio::task::spawn_blocking(move || library.get(&image_id.parse::<ImageId>()?)).await;
        Ok(image.map_err(|error| Error::Inconsistent(error.to_string()))??)
    }

    /// What a volume or snapshot is encrypted with, if it is.
    pub(crate) fn key(
        &self,
        id: &str,
        encryption: Option<&Encryption>,
    ) -> Result<Option<haar_volume::Key>, Error> {
        let Some(encryption) = encryption else { return Ok(None) };
        let Encryption { account, region, key_id, data_key } = encryption;
        let defaults = self.store.snapshot().get::<EbsDefaults>(account, region, EbsDefaults::ID);
        let open = || {
            let sealed = defaults?.key.clone().filter(|key| key.id == *key_id)?.sealed;
            let key = self.sealer.open(&sealed, &EbsKey::purpose(key_id))?;
            let sealer = Sealer::new(key.as_slice().try_into().ok()?);
            String::from_utf8(sealer.open(data_key, Encryption::purpose())?).ok()
        };
        let key = open().ok_or_else(|| Error::Sealed(id.to_owned()))?;
        Ok(Some(haar_volume::Key::new(key)))
    }

    fn volumes_for(&self, snapshot: &EbsSnapshot) -> Result<haar_volume::Driver, Error> {
        Ok(self.volumes.with_key(self.key(&snapshot.id, snapshot.encryption.as_ref())?))
    }

    /// Which parts of a snapshot are written, and in which layers.
    pub(crate) async fn map_snapshot(
        &self,
        snapshot: &EbsSnapshot,
    ) -> Result<Vec<haar_volume::Extent>, Error> {
        Ok(self.volumes_for(snapshot)?.map(&snapshot.id).await?)
    }

    pub(crate) fn depth_of(&self, first: &EbsSnapshot, second: &EbsSnapshot) -> Result<Option<u64>, Error> {
        blocks::depth_of(&self.volumes, first, second)
    }

    /// Makes the file of a snapshot that is uploaded.
    pub(crate) async fn make_upload(&self, snapshot: &EbsSnapshot) -> Result<(), Error> {
        if self.volumes.info(&snapshot.id)?.is_some() {
            return Ok(());
        }
        let (volumes, size) = (self.volumes_for(snapshot)?, u64::from(snapshot.volume_size_gib) << 30);
        let parent = snapshot.upload.as_ref().and_then(|upload| upload.parent.as_deref());
        match parent {
            Some(parent) => drop(volumes.create_from_snapshot(&snapshot.id, parent, size).await?),
            None => drop(volumes.create_empty(&snapshot.id, size).await?),
        }
        Ok(())
    }

    pub(crate) async fn read_snapshot(
        &self,
        snapshot: &EbsSnapshot,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, Error> {
        let volumes = self.volumes_for(snapshot)?;
        let read = async |session: &mut haar_volume::Session| session.read(offset, length).await;
        self.sessions.with(&volumes, &snapshot.id, false, read).await
    }

    pub(crate) async fn write_snapshot(
        &self,
        snapshot: &EbsSnapshot,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Error> {
        self.make_upload(snapshot).await?;
        let volumes = self.volumes_for(snapshot)?;
        let write = async |session: &mut haar_volume::Session| session.write(offset, data).await;
        self.sessions.with(&volumes, &snapshot.id, true, write).await
    }

    pub(crate) async fn finish_upload(&self, snapshot: &EbsSnapshot) -> Result<(), Error> {
        self.make_upload(snapshot).await?;
        let volumes = self.volumes_for(snapshot)?;
        let flush = async |session: &mut haar_volume::Session| session.flush().await;
        self.sessions.with(&volumes, &snapshot.id, true, flush).await?;
        // What is read from now on is opened for reading only.
        self.sessions.close(&snapshot.id).await;
        Ok(())
    }

    /// Makes the disk of a snapshot from one that others have made.
    pub(crate) async fn import_disk(
        &self,
        snapshot: &EbsSnapshot,
        node: &serde_json::Value,
        progress: &(dyn Fn(u8) + Send + std::marker::Sync),
    ) -> Result<(), Error> {
        let size = u64::from(snapshot.volume_size_gib) << 30;
        self.volumes_for(snapshot)?.create_imported(&snapshot.id, node, size, progress).await?;
        Ok(())
    }

    /// The beginning of a snapshot.
    pub(crate) async fn read_head(&self, snapshot: &EbsSnapshot, length: usize) -> Result<Vec<u8>, Error> {
        let head = self.read_snapshot(snapshot, 0, length).await;
        self.sessions.close(&snapshot.id).await;
        head
    }

    /// Removes what there is of an imported snapshot.
    pub(crate) async fn abandon_import(&self, snapshot_id: &str) -> Result<(), Error> {
        self.sessions.close(snapshot_id).await;
        Ok(self.volumes.abandon(snapshot_id)?)
    }

    /// A further data key, sealed as one that there is.
    pub(crate) fn another_key(&self, id: &str, of: &Encryption) -> Result<Encryption, Error> {
        use base64::Engine as _;
        let defaults = self.store.snapshot().get::<EbsDefaults>(&of.account, &of.region, EbsDefaults::ID);
        let seal = || {
            let sealed = defaults?.key.clone().filter(|key| key.id == of.key_id)?.sealed;
            let key = self.sealer.open(&sealed, &EbsKey::purpose(&of.key_id))?;
            let data_key = base64::engine::general_purpose::STANDARD.encode(Sealer::random_key());
            Some(
                Sealer::new(key.as_slice().try_into().ok()?).seal(data_key.as_bytes(), Encryption::purpose()),
            )
        };
        let data_key = seal().ok_or_else(|| Error::Sealed(id.to_owned()))?;
        Ok(Encryption { data_key, ..of.clone() })
    }

    /// The driver that makes and reads what is encrypted as a volume is.
    fn volumes_of(&self, volume: &Volume) -> Result<haar_volume::Driver, Error> {
        Ok(self.volumes.with_key(self.key(&volume.id, volume.encryption.as_ref())?))
    }

    /// A volume as a disk of a machine that does not have it yet.
    fn disk(&self, volume: &Volume) -> Result<Disk, Error> {
        let path = self.volumes.open_name(&volume.id)?;
        let key = self.key(&volume.id, volume.encryption.as_ref())?;
        let mut below = Vec::new();
        if key.is_some() {
            for haar_volume::Layer { path, format, encrypted } in
                self.volumes.layers(&volume.id)?.into_iter().skip(1)
            {
                let format = match format {
                    haar_volume::Format::Qcow2 => DiskFormat::Qcow2,
                    haar_volume::Format::Raw => DiskFormat::Raw,
                };
                below.push(DiskLayer { path, format, encrypted });
            }
        }
        Ok(Disk {
            id: volume.id.clone(),
            path,
            format: DiskFormat::Qcow2,
            read_only: false,
            limits: limits::of(volume),
            key: key.map(|key| DiskKey::new(key.as_str())),
            below,
        })
    }

    /// Whether a volume's disk was found to be damaged; none when there is no disk.
    pub(crate) fn is_damaged(&self, volume_id: &str) -> Result<Option<bool>, Error> {
        Ok(self.volumes.info(volume_id)?.map(|found| found.corrupt))
    }

    /// Repairs a damaged disk if its volume says that this needs no request.
    async fn make_usable(&self, volume: &Volume) -> Result<(), Error> {
        let damaged = self.volumes.info(&volume.id)?.is_some_and(|found| found.corrupt);
        if !damaged {
            return Ok(());
        }
        if !volume.auto_enable_io {
            return Err(Error::Damaged(volume.id.clone()));
        }
        tracing::warn!(volume = volume.id, "the disk is damaged and is repaired");
        Ok(self.volumes_of(volume)?.repair(&volume.id).await?)
    }

    /// The machine that runs with a volume.
    async fn machine_of(&self, account: &str, region: &str, volume_id: &str) -> Result<Option<Vm>, Error> {
        let volume = self.store.snapshot().get::<Volume>(account, region, volume_id);
        let Some(attachment) = volume.and_then(|volume| volume.attachments.first().cloned()) else {
            return Ok(None);
        };
        let machine = self.machine(&attachment.instance_id).await?;
        Ok(machine.filter(|machine| !matches!(machine.state(), RunState::Exited(_))))
    }

    /// Makes the layers for snapshots of one machine's volumes, or of one volume, and has the machine turn to them.
    async fn take(&self, set: &[EbsSnapshot]) -> Result<(), Error> {
        let mut overlays = Vec::new();
        for asked in set {
            let volumes = self.volumes.with_key(self.key(&asked.id, asked.encryption.as_ref())?);
            if let Some(path) = volumes.prepare_snapshot(&asked.volume_id, &asked.id).await? {
                overlays.push(Overlay { disk: asked.volume_id.clone(), path });
            }
        }
        // A volume may have been given up, or attached to another instance, since the set was asked for.
        let mut machines: Vec<Vm> = Vec::new();
        for asked in set {
            if let Some(machine) = self.machine_of(&asked.account, &asked.region, &asked.volume_id).await?
                && machines.iter().all(|known| known.id() != machine.id())
            {
                machines.push(machine);
            }
        }
        for machine in machines {
            // What no machine has is a file that nobody writes.
            let disks = machine.disks().await?;
            let own = overlays.extract_if(.., |overlay| disks.contains(&overlay.disk));
            machine.overlay_disks(&own.collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// Takes back what was prepared for a snapshot, unless a machine may have turned to the new layer; says whether it did.
    async fn abandon(&self, asked: &EbsSnapshot) -> Result<bool, Error> {
        let next = self.volumes.next(&asked.volume_id, &asked.id);
        if next.exists() {
            let machine = self.machine_of(&asked.account, &asked.region, &asked.volume_id).await?;
            let Some(machine) = machine else { return Ok(false) };
            match machine.disk_file(&asked.volume_id).await? {
                Some(file) if file != next => {}
                _ => return Ok(false),
            }
        }
        self.volumes.abandon_snapshot(&asked.volume_id, &asked.id)?;
        Ok(true)
    }

    fn nics(&self, instance: &Instance) -> Result<Vec<Nic>, Error> {
        let snapshot = self.store.snapshot();
        let of = |id: &String| {
            let eni = snapshot
                .get::<NetworkInterface>(&instance.account, &instance.region, id)
                .ok_or_else(|| Self::inconsistent(instance, format!("{id} has no record")))?;
            nic(&eni)
        };
        instance.spec.network_interfaces.iter().map(of).collect()
    }

    /// What runs guests.
    pub(crate) fn accelerator(&self) -> String {
        self.vms.accel().to_string()
    }

    /// Makes the disk that one of a guest that arrives is copied to.
    pub(crate) async fn make_arriving_disk(
        &self,
        volume: &Volume,
        bytes: u64,
        sync: Sync,
        image: Option<&haar_image::Image>,
    ) -> Result<(), Error> {
        let (id, volumes) = (&volume.id, self.volumes_of(volume)?);
        // Nobody has it: there is no record of it.
        volumes.remove(id)?;
        match (sync, image) {
            (Sync::Top, Some(image)) => {
                let format = haar_volume::Format::Qcow2;
                volumes.create_overlay(id, &image.root_disk(), format, bytes).await?;
            }
            (Sync::Top, None) => {
                return Err(Error::Inconsistent(format!("{id} stands on an image that is not named")));
            }
            (Sync::Full, _) => drop(volumes.create_empty(id, bytes).await?),
        }
        Ok(())
    }

    /// Starts a machine that waits for a guest.
    pub(crate) async fn receive(
        &self,
        bundle: &Bundle,
        layout: &haar_vm::Layout,
        console: &str,
    ) -> Result<Vm, Error> {
        let instance = &bundle.instance;
        let log = self.console_dir.join(format!("{}.log", instance.id));
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&log);
        file.and_then(|mut file| file.write_all(console.as_bytes()))
            .map_err(Error::io(format!("write {}", log.display())))?;
        let _started = self.layering.read().await;
        let disks = bundle.volumes.iter().map(|volume| self.disk(volume)).collect::<Result<_, _>>()?;
        let nics = bundle.interfaces.iter().map(nic).collect::<Result<_, _>>()?;
        let spec = self.spec(instance, disks, nics).await?;
        let spec = Spec { display: layout.display, hotplug: layout.hotplug, ..spec };
        let vm = self.vms.receive(&spec, layout).await?;
        self.watched().remove(&instance.id);
        self.watch(&vm);
        Ok(vm)
    }

    /// Removes machine, disks and all else of a guest that is not here, or not any more.
    pub(crate) async fn clear(&self, bundle: &Bundle) -> Result<(), Error> {
        self.power_off(&bundle.instance.id).await?;
        let _layering = self.layering.read().await;
        for volume in &bundle.volumes {
            self.volumes.remove(&volume.id)?;
        }
        self.forget(&bundle.instance.id).await
    }

    async fn spec(&self, instance: &Instance, disks: Vec<Disk>, nics: Vec<Nic>) -> Result<Spec, Error> {
        let hardware = instance_type(&instance.spec.instance_type)
            .ok_or_else(|| Self::inconsistent(instance, "its instance type is unknown"))?;
        let cpu = instance.cpu_options();
        // Emulated processors that have threads are slower: they are for those who ask.
        let threads = instance.spec.cpu_options.is_some() || self.vms.accel() == haar_vm::Accel::Kvm;
        Ok(Spec {
            id: instance.id.clone(),
            instance_type: instance.spec.instance_type.clone(),
            vcpus: cpu.map_or(hardware.vcpus(), CpuOptions::vcpus),
            threads_per_core: if threads { cpu.map_or(1, |cpu| cpu.threads_per_core) } else { 1 },
            memory_mib: hardware.memory_mib,
            boot: self.boot(instance).await?,
            disks,
            nics,
            netns: Some(self.network.namespace(&instance.spec.vpc_id)),
            console_log: self.console_dir.join(format!("{}.log", instance.id)),
            hotplug: true,
            display: true,
        })
    }

    async fn boot(&self, instance: &Instance) -> Result<Boot, Error> {
        let mode = match (&instance.spec.boot, instance.spec.kernel_image()) {
            (Some(ImageBoot::Firmware(mode)), _) => *mode,
            (_, Some(image_id)) => {
                let image = self.library_image(image_id).await?;
                if let Some(kernel) = image.kernel() {
                    let cmdline = image.command_line().unwrap_or_default().to_owned();
                    return Ok(Boot::Kernel { kernel, initrd: image.initrd(), cmdline });
                }
                match image.firmware() {
                    Some(haar_image::BootMode::LegacyBios) => BootMode::LegacyBios,
                    Some(haar_image::BootMode::UefiPreferred) => BootMode::UefiPreferred,
                    Some(haar_image::BootMode::Uefi) | None => BootMode::Uefi,
                }
            }
            _ => return Err(Self::inconsistent(instance, "it has no kernel")),
        };
        match mode {
            BootMode::LegacyBios => return Ok(Boot::Firmware),
            BootMode::UefiPreferred if UEFI_FIRMWARE.iter().any(|file| !Path::new(file).exists()) => {
                return Ok(Boot::Firmware);
            }
            BootMode::Uefi | BootMode::UefiPreferred => {}
        }
        let [code, empty] = UEFI_FIRMWARE;
        let vars = self.firmware_dir.join(format!("{}.fd", instance.id));
        if !vars.exists() {
            let copy = vars.with_extension("new");
            std::fs::copy(empty, &copy)
                .and_then(|_| std::fs::rename(&copy, &vars))
                .map_err(Error::io(format!("copy {empty} (package ovmf)")))?;
        }
        Ok(Boot::Uefi { code: code.into(), vars })
    }

    /// What an instance's display shows, as a PPM image; none where it has no machine or no display.
    pub(crate) async fn screen(&self, instance_id: &str, wake_up: bool) -> Result<Option<Vec<u8>>, Error> {
        let Some(vm) = self.machine(instance_id).await? else { return Ok(None) };
        if !vm.spec().display {
            return Ok(None);
        }
        Ok(Some(vm.screen(wake_up).await?))
    }

    /// The instances whose machines have not ended.
    pub(crate) fn machines(&self) -> Result<Vec<String>, Error> {
        Ok(self.vms.list()?)
    }

    /// Removes machines, disks and networks that have no record.
    pub(crate) async fn collect_garbage(&self) -> Result<(), Error> {
        // What exists is listed before the records are: a record is always there before what it stands for.
        let (machines, disks) = (self.vms.list()?, self.volumes.list()?);
        let snapshot = self.store.snapshot();
        let runs = |instance: &Instance| {
            !matches!(instance.status.state, InstanceState::Stopped | InstanceState::Terminated)
        };
        let moving = || migrations::holding(&snapshot);
        let instances = snapshot.list_all::<Instance>().filter(|i| runs(i)).map(|i| i.id.clone());
        let instances: BTreeSet<_> = instances.chain(moving().map(|m| m.instance_id.clone())).collect();
        for id in machines.iter().filter(|id| !instances.contains(*id)) {
            tracing::info!(instance = id, "removing a machine that no record asks for");
            if let Err(error) = self.vms.remove(id).await {
                tracing::warn!(instance = id, %error, "cannot remove the machine");
            }
        }
        let volumes = snapshot.list_all::<Volume>().map(|volume| volume.id.clone());
        let snapshots = snapshot.list_all::<EbsSnapshot>().map(|snapshot| snapshot.id.clone());
        let moving = moving().flat_map(|m| m.bundle.volumes.iter().map(|volume| volume.id.clone()));
        let imports = snapshot.list_all::<ImportTask>().filter(|task| task.holds_disks());
        let imports = imports.flat_map(|task| task.disks.iter().map(|disk| disk.snapshot_id.clone()));
        let known: BTreeSet<_> = volumes.chain(snapshots).chain(moving).chain(imports).collect();
        let layering = self.layering.read().await;
        for id in disks.iter().filter(|id| !known.contains(*id)) {
            tracing::info!(volume = id, "removing a disk without a record");
            if let Err(error) = self.volumes.remove(id) {
                tracing::warn!(volume = id, %error, "cannot remove the disk");
            }
        }
        drop(layering);
        self.network.collect_garbage().await
    }
}

impl Backend for Qemu {
    const REASON: Option<(&'static str, &'static str)> = None;

    async fn start(&self, instance: &Instance) -> Result<(), Error> {
        if let Some(vm) = self.machine(&instance.id).await? {
            // An earlier daemon got this far, unless the guest has ended since.
            if vm.state() == RunState::Running {
                return Ok(());
            }
            self.power_off(&instance.id).await?;
        }
        let _started = self.layering.read().await;
        let (disks, ()) = tokio::try_join!(self.disks(instance), self.sync_network(instance))?;
        let spec = self.spec(instance, disks, self.nics(instance)?).await?;
        let vm = match self.vms.start(&spec).await {
            Err(haar_vm::Error::Conflict { .. }) => {
                // A half-made machine of an earlier specification.
                self.vms.remove(&instance.id).await?;
                self.vms.start(&spec).await?
            }
            started => started?,
        };
        self.watch(&vm);
        Ok(())
    }

    async fn observe(&self, instance_id: &str) -> Result<Observation, Error> {
        let Some(vm) = self.machine(instance_id).await? else { return Ok(Observation::Absent) };
        Ok(match vm.state() {
            RunState::Running => Observation::Running,
            RunState::Paused if vm.is_held() => Observation::Running,
            RunState::Paused => {
                vm.resume().await?;
                Observation::Running
            }
            RunState::OutOfSpace if self.reserve.has_space()? => {
                // Repeats the write.
                vm.resume().await?;
                Observation::Running
            }
            RunState::OutOfSpace => Observation::OutOfSpace,
            RunState::GuestShutdown => Observation::ShutDown,
            RunState::GuestPanicked => Observation::Panicked,
            RunState::InternalError => Observation::Dead("the accelerator failed".to_owned()),
            RunState::Exited(exit) => Observation::Dead(exit.to_string()),
        })
    }

    async fn power_button(&self, instance_id: &str) -> Result<(), Error> {
        match self.machine(instance_id).await? {
            Some(vm) => tolerate_gone(vm.powerdown().await),
            None => Ok(()),
        }
    }

    async fn reset(&self, instance_id: &str) -> Result<(), Error> {
        match self.machine(instance_id).await? {
            Some(vm) => tolerate_gone(vm.reset().await),
            None => Ok(()),
        }
    }

    async fn power_off(&self, instance_id: &str) -> Result<(), Error> {
        self.vms.remove(instance_id).await?;
        self.watched().remove(instance_id);
        Ok(())
    }

    async fn answers(&self, instance_id: &str) -> Result<bool, Error> {
        match self.machine(instance_id).await? {
            Some(vm) => match vm.answers().await {
                // Its end is told by its state.
                Err(haar_vm::Error::Gone) => Ok(true),
                other => Ok(other?),
            },
            None => Ok(true),
        }
    }

    async fn reachable(&self, instance: &Instance) -> Result<bool, Error> {
        self.network.reachable(instance).await
    }

    async fn sync_network(&self, instance: &Instance) -> Result<(), Error> {
        self.network.sync(&instance.account, &instance.region, &instance.spec.vpc_id).await
    }

    async fn attach(&self, instance_id: &str, volume: &Volume) -> Result<(), Error> {
        let machine = self.machine(instance_id).await?.ok_or(haar_vm::Error::Gone)?;
        let _attached = self.layering.read().await;
        if machine.disks().await?.contains(&volume.id) {
            return Ok(());
        }
        // It may have been modified while this waited.
        let found = self.store.snapshot().get::<Volume>(&volume.account, &volume.region, &volume.id);
        let volume = found.as_deref().unwrap_or(volume);
        self.make_usable(volume).await?;
        Ok(machine.attach_disk(&self.disk(volume)?).await?)
    }

    async fn detach(&self, instance_id: &str, volume_id: &str) -> Result<bool, Error> {
        match self.machine(instance_id).await? {
            Some(machine) => {
                let given_up = machine.detach_disk(volume_id).await?;
                if given_up {
                    self.layering.tell();
                }
                Ok(given_up)
            }
            None => Ok(true),
        }
    }

    async fn take_away(&self, instance_id: &str, volume_id: &str) -> Result<(), Error> {
        // No layer may be given to it meanwhile.
        let _layering = self.layering.read().await;
        match self.machine(instance_id).await? {
            Some(machine) => Ok(machine.take_disk(volume_id).await?),
            None => Ok(()),
        }
    }

    async fn make_disk(&self, volume: &Volume) -> Result<(), Error> {
        let volumes = self.volumes_of(volume)?;
        match &volume.snapshot_id {
            Some(snapshot) => drop(volumes.create_from_snapshot(&volume.id, snapshot, bytes(volume)).await?),
            None => drop(volumes.create_empty(&volume.id, bytes(volume)).await?),
        }
        Ok(())
    }

    async fn modify_disk(&self, volume: &Volume, to: &VolumeShape) -> Result<(), Error> {
        let target = volume.clone().with_shape(*to);
        // A machine that is being started, or given the volume, is waited for.
        let _layering = self.layering.write().await;
        if let Some(machine) = self.machine_of(&volume.account, &volume.region, &volume.id).await?
            && machine.disks().await?.contains(&volume.id)
        {
            let changed = async {
                machine.resize_disk(&volume.id, bytes(&target)).await?;
                machine.limit_disk(&volume.id, limits::of(&target)).await
            };
            return match changed.await {
                // The guest gave it up meanwhile, and it is looked at again.
                Err(haar_vm::Error::Refused { .. }) if !machine.disks().await?.contains(&volume.id) => {
                    Err(haar_vm::Error::Gone.into())
                }
                changed => Ok(changed?),
            };
        }
        self.volumes.finish_snapshot(&volume.id)?;
        Ok(self.volumes_of(volume)?.grow(&volume.id, bytes(&target)).await?)
    }

    async fn repair_disk(&self, volume: &Volume) -> Result<(), Error> {
        let _layering = self.layering.write().await;
        self.volumes.finish_snapshot(&volume.id)?;
        Ok(self.volumes_of(volume)?.repair(&volume.id).await?)
    }

    async fn make_library_snapshot(&self, snapshot: &EbsSnapshot) -> Result<(), Error> {
        let missing = || Error::Inconsistent(format!("{} is of no image", snapshot.id));
        let image = self.library_image(snapshot.image_id.as_deref().ok_or_else(missing)?).await?;
        let size = u64::from(snapshot.volume_size_gib) << 30;
        let (disk, format) = (image.root_disk(), haar_volume::Format::Qcow2);
        self.volumes_for(snapshot)?.create_overlay(&snapshot.id, &disk, format, size).await?;
        Ok(())
    }

    async fn copy_snapshot(&self, from: &str, to: &EbsSnapshot) -> Result<(), Error> {
        let plain = self.volumes.info(from)?.is_some_and(|source| !source.encrypted);
        match self.key(&to.id, to.encryption.as_ref())? {
            Some(key) if plain => {
                Ok(self.volumes.with_key(Some(key)).copy_snapshot_encrypted(from, &to.id).await?)
            }
            _ => Ok(self.volumes.copy_snapshot(from, &to.id)?),
        }
    }

    fn snapshot_size(&self, snapshot_id: &str) -> Result<Option<u32>, Error> {
        let size = self.volumes.info(snapshot_id)?.map(|found| found.size.div_ceil(1 << 30));
        Ok(size.and_then(|gib| u32::try_from(gib).ok()))
    }

    async fn take_snapshots(&self, set: &[EbsSnapshot]) -> Result<(), Error> {
        let _layering = self.layering.write().await;
        if let Err(error) = self.take(set).await {
            for asked in set {
                if !self.abandon(asked).await? {
                    return Err(error);
                }
            }
            return Err(Error::NotTaken(Box::new(error)));
        }
        for asked in set {
            self.volumes.finish_snapshot(&asked.volume_id)?;
        }
        Ok(())
    }

    async fn remove_snapshot(&self, snapshot_id: &str) -> Result<(), Error> {
        self.sessions.close(snapshot_id).await;
        let _layering = self.layering.read().await;
        self.volumes.remove(snapshot_id)?;
        self.layering.tell();
        Ok(())
    }

    async fn remove_disk(&self, volume: &Volume) -> Result<(), Error> {
        let _layering = self.layering.read().await;
        self.volumes.remove(&volume.id)?;
        // What it stood on may be one other's alone now.
        self.layering.tell();
        Ok(())
    }

    async fn forget(&self, instance_id: &str) -> Result<(), Error> {
        for path in [
            self.console_dir.join(format!("{instance_id}.log")),
            self.firmware_dir.join(format!("{instance_id}.fd")),
            self.firmware_dir.join(format!("{instance_id}.new")),
        ] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("remove {}", path.display()))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// An interface as a device of a machine.
fn nic(eni: &NetworkInterface) -> Result<Nic, Error> {
    let ifname = haar_net::interface_name(&eni.id);
    Ok(Nic { id: eni.id.clone(), ifname, mac: network::mac(eni)?, mtu: MTU })
}

/// The size of a volume in bytes.
fn bytes(volume: &Volume) -> u64 {
    u64::from(volume.size_gib) << 30
}

/// A machine that ended meanwhile shows so the next time it is observed.
fn tolerate_gone(result: Result<(), haar_vm::Error>) -> Result<(), Error> {
    match result {
        Err(haar_vm::Error::Gone) => Ok(()),
        other => Ok(other?),
    }
}

fn vm_driver(config: &Config, binary: &Path, accel: haar_vm::Accel) -> Result<haar_vm::Driver, Error> {
    Ok(haar_vm::Driver::new(haar_vm::Config {
        run_dir: config.state_dir.join("run").join("vm"),
        qemu_binary: binary.to_owned(),
        accel,
        cgroup_parent: config.name.clone(),
    })?)
}

/// Ends every machine and removes every network of a configuration.
pub(crate) async fn teardown(config: &Config) -> Result<(), Error> {
    if config.state_dir.join("run").is_dir() {
        let vms = vm_driver(config, Path::new("qemu-system-x86_64"), haar_vm::Accel::Tcg)?;
        for id in vms.list()? {
            vms.remove(&id).await?;
        }
    }
    Ok(haar_net::Driver::new(config.driver())?.remove_all().await?)
}
