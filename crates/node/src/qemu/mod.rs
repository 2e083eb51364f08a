//! Instances as virtual machines.

mod disks;
mod snapshots;

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use haar_core::Sealer;
use haar_core::reconcile::Handle;
use haar_image::ImageId;
use haar_records::ec2::{
    BootMode, Bundle, CpuOptions, EbsSnapshot, ImageBoot, ImportTask, Instance, InstanceState,
    NetworkInterface, Volume, VolumeShape, instance_type,
};
use haar_store::Store;
use haar_vm::{Boot, Disk, Nic, RunState, Spec, Sync, Vm};

use self::disks::bytes;
use crate::backend::{Backend, Observation};
use crate::blocks::Sessions;
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
        let vms = vm_driver(config, binary, accel)?;
        refuse_strangers(&vms, config)?;
        Ok(Self {
            store,
            vms,
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

    pub(crate) async fn library_image(&self, image_id: &str) -> Result<haar_image::Image, Error> {
        let (library, image_id) = (self.images.clone(), image_id.to_owned());
        let image = tokio::task::spawn_blocking(move || library.get(&image_id.parse::<ImageId>()?)).await;
        Ok(image.map_err(|error| Error::Inconsistent(error.to_string()))??)
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

/// Refuses to go on where machines run that another daemon of the same name has started: they and their networks would be taken for
/// this one's, and for such that nobody asks for.
fn refuse_strangers(vms: &haar_vm::Driver, config: &Config) -> Result<(), Error> {
    match vms.strangers()?.first() {
        None => Ok(()),
        Some(id) => Err(Error::Refused(format!(
            "{id} runs under the name '{}' and is not of the state folder {}: take another name (--name), or shut down what the other daemon runs",
            config.name,
            config.state_dir.display()
        ))),
    }
}

/// Ends every machine and removes every network of a configuration.
pub(crate) async fn teardown(config: &Config) -> Result<(), Error> {
    if !config.state_dir.join("run").is_dir() {
        // No machine was ever started here, and networks are made for machines.
        return Ok(());
    }
    let vms = vm_driver(config, Path::new("qemu-system-x86_64"), haar_vm::Accel::Tcg)?;
    refuse_strangers(&vms, config)?;
    for id in vms.list()? {
        vms.remove(&id).await?;
    }
    Ok(haar_net::Driver::new(config.driver())?.remove_all().await?)
}
