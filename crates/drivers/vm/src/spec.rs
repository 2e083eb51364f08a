//! What a machine is to be: the input of [`Driver::start`](crate::Driver::start).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A machine, whole: everything QEMU is told about it.
///
/// It is kept as `spec.json` in the machine's run directory, so that a restarted daemon knows what it adopts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The id of the instance, such as `i-0123456789abcdef0`: lower-case letters, digits and dashes, at most 64.
    /// The run directory, the cgroup, the SMBIOS serial and the process' name are made from it.
    pub id: String,
    /// The instance type, such as `t3.micro`: the SMBIOS product name, which guests read as the type.
    pub instance_type: String,
    /// Virtual CPUs, 1 to 255.
    pub vcpus: u32,
    /// How many of them are threads of one core; divides `vcpus`.
    #[serde(default = "one")]
    pub threads_per_core: u32,
    /// Memory of the guest in MiB.
    pub memory_mib: u64,
    /// What the guest starts from.
    pub boot: Boot,
    /// Disks in the order in which firmware tries them and the guest numbers them (`/dev/vda` first).
    pub disks: Vec<Disk>,
    /// Network interfaces, in device order (the first is `DeviceIndex` 0).
    pub nics: Vec<Nic>,
    /// The network namespace that holds the taps, as a path that `setns(2)` takes (`/run/netns/NAME`); the
    /// daemon's own if absent.
    pub netns: Option<PathBuf>,
    /// Where the serial console is appended to. It may lie outside the run directory, so that it outlives the
    /// machine; its folder must exist.
    pub console_log: PathBuf,
    /// Whether disks can be attached while the machine runs: it then has a PCI bridge with [`HOTPLUG_SLOTS`] slots.
    #[serde(default)]
    pub hotplug: bool,
    /// Whether it has a display, of which [`Vm::screen`](crate::Vm::screen) takes pictures.
    #[serde(default)]
    pub display: bool,
}

const fn one() -> u32 {
    1
}

/// How many disks can be attached to a machine while it runs, besides those that it started with.
pub const HOTPLUG_SLOTS: usize = 32;

/// What a guest starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Boot {
    /// A Linux kernel, loaded directly (EC2's kernel and ramdisk images).
    Kernel {
        /// The kernel (`bzImage`).
        kernel: PathBuf,
        /// The initial ramdisk.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        cmdline: String,
    },
    /// The boot sector of the first disk, by SeaBIOS (`BootMode` `legacy-bios`).
    Firmware,
    /// The EFI system partition of the first disk, by OVMF (`BootMode` `uefi`).
    Uefi {
        /// OVMF's code, opened read-only (`OVMF_CODE_4M.fd`).
        code: PathBuf,
        /// This machine's own copy of OVMF's variables, opened for writing.
        vars: PathBuf,
    },
}

/// A disk of a machine: a virtio block device.
///
/// AWS's Nitro instances show NVMe disks and its Xen ones `xvd`; virtio is what EC2 does not have and what boots fastest and everywhere: firmware,
/// kernels and initramfs of every distribution's cloud image drive it, and QEMU's NVMe device costs the guest a
/// controller reset per disk. Each sits behind its own PCI Express root port, so that it can be unplugged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The id of the volume, such as `vol-0123456789abcdef0`. The guest reads it without its dash as the disk's
    /// serial number, as on AWS (`vol0123456789abcdef0`, of which virtio carries 20 characters).
    pub id: String,
    /// The image file. QEMU locks it, so that no second machine can open it.
    pub path: PathBuf,
    /// The format of the image; never guessed, because a guest could write another format's header.
    pub format: DiskFormat,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Limits to input and output; all zero means none.
    pub limits: DiskLimits,
    /// What it is encrypted with (LUKS in qcow2). It is told to QEMU and kept nowhere.
    #[serde(skip)]
    pub key: Option<DiskKey>,
    /// The layers below the image, the topmost first, of an encrypted disk. QEMU finds those of others by itself.
    #[serde(default)]
    pub below: Vec<DiskLayer>,
}

/// A layer below a disk's image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLayer {
    /// The image file.
    pub path: PathBuf,
    /// The format of the image.
    pub format: DiskFormat,
    /// It is encrypted with the disk's key.
    pub encrypted: bool,
}

/// What a disk is encrypted with: text.
#[derive(Clone, PartialEq, Eq)]
pub struct DiskKey(String);

impl DiskKey {
    /// A key.
    pub fn new(key: impl Into<String>) -> DiskKey {
        DiskKey(key.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for DiskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskKey")
    }
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The disk, byte for byte.
    Raw,
}

impl DiskFormat {
    /// The name of QEMU's block driver.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
        }
    }
}

/// Limits to a disk's input and output, reads and writes together; zero means unlimited.
///
/// Bursts are those of a leaky bucket (QEMU documentation, "The QEMU throttling infrastructure"): the higher rate holds for
/// `burst_seconds`, and what is left unused of the lower one fills the bucket again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskLimits {
    /// Operations a second.
    pub iops: u64,
    /// Operations a second during a burst; zero, or more than `iops`.
    pub burst_iops: u64,
    /// Bytes a second.
    pub bytes_per_second: u64,
    /// Bytes a second during a burst; zero, or more than `bytes_per_second`.
    pub burst_bytes_per_second: u64,
    /// How long a burst lasts in seconds, where there is one.
    pub burst_seconds: u64,
    /// Bytes that count as one operation: a larger request counts as several. Zero: every request is one.
    pub operation_bytes: u64,
}

/// A network interface of a machine: a virtio network device on a tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The id of the interface, such as `eni-0123456789abcdef0`.
    pub id: String,
    /// The name of the tap, which exists, persists and is not multi-queue, in the machine's network namespace.
    pub ifname: String,
    /// The address that the guest's interface has: six bytes.
    pub mac: [u8; 6],
    /// The largest packet in bytes, told to the guest; 68 to 65535.
    pub mtu: u16,
}

impl Spec {
    /// The specification as it is kept: without keys.
    pub(crate) fn without_keys(mut self) -> Spec {
        for disk in &mut self.disks {
            disk.key = None;
        }
        self
    }

    /// Checks what QEMU would not, or would report badly.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`], which names the field.
    pub fn validate(&self) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::InvalidSpec { id: self.id.clone(), reason });
        check_id(&self.id)?;
        if !(1..=255).contains(&self.vcpus) {
            return fail(format!("vcpus is {}, not within 1 to 255", self.vcpus));
        }
        if self.threads_per_core == 0 || !self.vcpus.is_multiple_of(self.threads_per_core) {
            return fail(format!("{} vCPUs are not cores of {} threads", self.vcpus, self.threads_per_core));
        }
        if !(1..=64 << 20).contains(&self.memory_mib) {
            return fail(format!("memory_mib is {}, not within 1 to {}", self.memory_mib, 64 << 20));
        }
        // Root ports are functions of slots on the root bus, of which there are 32; more devices than AWS attaches.
        if self.disks.len() + self.nics.len() > 64 {
            return fail(format!("{} devices, more than 64", self.disks.len() + self.nics.len()));
        }
        let mut seen = std::collections::HashSet::new();
        for id in self.disks.iter().map(|d| &d.id).chain(self.nics.iter().map(|n| &n.id)) {
            if !valid_device_id(id) {
                return fail(format!(
                    "device id {id:?} is not 1 to {MAX_DEVICE_ID} lower-case letters, digits and dashes"
                ));
            }
            if !seen.insert(id) {
                return fail(format!("device id {id:?} appears twice"));
            }
        }
        for nic in &self.nics {
            if nic.ifname.is_empty() || nic.ifname.len() > 15 || nic.ifname.contains(['/', '\0']) {
                return fail(format!("interface name {:?} is not 1 to 15 bytes", nic.ifname));
            }
            if nic.mtu < 68 {
                return fail(format!("mtu of {} is {}, less than 68", nic.id, nic.mtu));
            }
        }
        let mut paths = vec![&self.console_log];
        paths.extend(&self.netns);
        paths.extend(self.disks.iter().map(|disk| &disk.path));
        paths.extend(self.disks.iter().flat_map(|disk| &disk.below).map(|layer| &layer.path));
        match &self.boot {
            Boot::Kernel { kernel, initrd, .. } => {
                paths.push(kernel);
                paths.extend(initrd);
            }
            Boot::Firmware => {}
            Boot::Uefi { code, vars } => paths.extend([code, vars]),
        }
        for path in paths {
            // QEMU runs in the root folder, and its options are text.
            if !path.is_absolute() || path.to_str().is_none() {
                return fail(format!("the path {} is not absolute or not UTF-8", path.display()));
            }
        }
        if matches!(self.boot, Boot::Firmware | Boot::Uefi { .. }) && self.disks.is_empty() {
            return fail("firmware has no disk to boot from".into());
        }
        Ok(())
    }
}

/// Refuses an id that could leave the run directory or confuse QEMU's option parser.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    if valid_id(id) && id.len() <= 64 {
        return Ok(());
    }
    Err(Error::InvalidSpec {
        id: id.chars().take(80).collect(),
        reason: "an id is 1 to 64 lower-case letters, digits and dashes, and begins with a letter".into(),
    })
}

/// QEMU's node names have at most 31 characters, and those of a disk's layers a prefix with a number.
const MAX_DEVICE_ID: usize = 24;

pub(crate) fn valid_device_id(id: &str) -> bool {
    valid_id(id) && id.len() <= MAX_DEVICE_ID
}

fn valid_id(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_lowercase())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
