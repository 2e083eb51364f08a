//! Which accelerator runs guests here. KVM is believed only if a guest ran under it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::Error;
use crate::args::TCG_CACHE_MIB;

/// How QEMU runs a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// On the processor, by the kernel's KVM.
    Kvm,
    /// Translated, by QEMU's TCG: ten and more times slower.
    Tcg,
}

impl Accel {
    /// The accelerator of a machine with that many vCPUs.
    pub(crate) fn option(self, vcpus: u32) -> String {
        match self {
            Accel::Kvm => "kvm".into(),
            // With a thread for each vCPU, QEMU 10 aborts now and then where one changes the memory map (a device is plugged, a display changes
            // its mode) while another, on a busy host, still reads the old one: `iotlb_to_section: Assertion ... failed`. With one thread that
            // takes turns, a machine of a single vCPU has nothing that interrupts a guest that spins: QEMU then waits for ever, in the thread
            // that answers QMP, to free what a refused `device_add` leaves. A thread of its own can be interrupted, unless QEMU waits already.
            Accel::Tcg => {
                let thread = if vcpus > 1 { "single" } else { "multi" };
                format!("tcg,thread={thread},tb-size={TCG_CACHE_MIB}")
            }
        }
    }

    /// The processor's model. Guests see threads of a core only on processors whose maker says how they are told:
    /// AMD's need `topoext`, and QEMU's own is AMD's without it unless it is said to be Intel's.
    pub(crate) fn cpu(self, threads: bool) -> &'static str {
        match self {
            Accel::Kvm if threads && host_is_amd() => "host,topoext=on",
            Accel::Kvm => "host",
            Accel::Tcg if threads => "max,vendor=GenuineIntel",
            Accel::Tcg => "max",
        }
    }
}

fn host_is_amd() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("AuthenticAMD"))
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG",
        })
    }
}

/// What [`probe`] found. It holds until the host boots anew or gets another QEMU, and can be kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The accelerator to use.
    pub accel: Accel,
    /// Why it is not KVM.
    pub no_kvm: Option<NoKvm>,
    /// QEMU's version, such as `10.0.2`.
    pub qemu_version: String,
}

/// Why guests do not run under KVM. Its text is the reason; [`NoKvm::fix`] says what helps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoKvm {
    /// There is no `/dev/kvm`.
    NoDevice {
        /// Whether the processor shows the virtualization extensions (`vmx` or `svm` in `/proc/cpuinfo`).
        extensions: bool,
    },
    /// `/dev/kvm` may not be opened.
    Denied,
    /// `/dev/kvm` cannot be opened, for another cause.
    Unusable(String),
    /// QEMU gave up.
    Failed(String),
    /// The probe guest did not end in time.
    Hung {
        /// How far it came: `firmware`, `boot sector` or `long mode`.
        stage: String,
        /// How long was waited, in milliseconds.
        after_ms: u64,
    },
}

impl fmt::Display for NoKvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoKvm::NoDevice { extensions: true } => {
                f.write_str("there is no /dev/kvm, though the processor can")
            }
            NoKvm::NoDevice { extensions: false } => {
                f.write_str("there is no /dev/kvm, and the processor shows no virtualization extensions")
            }
            NoKvm::Denied => f.write_str("/dev/kvm may not be opened"),
            NoKvm::Unusable(error) => write!(f, "/dev/kvm cannot be opened: {error}"),
            NoKvm::Failed(stderr) => write!(f, "QEMU failed with KVM: {stderr}"),
            NoKvm::Hung { stage, after_ms } => {
                write!(f, "a probe guest under KVM hung in its {stage} ({after_ms} ms)")
            }
        }
    }
}

impl NoKvm {
    /// What the user can do.
    pub fn fix(&self) -> &'static str {
        match self {
            NoKvm::NoDevice { extensions: true } => "load the module: modprobe kvm_intel or modprobe kvm_amd",
            NoKvm::NoDevice { extensions: false } => {
                "enable VT-x or AMD-V in the firmware's setup; on a virtual machine, enable nested virtualization"
            }
            NoKvm::Denied => "run haar as root, or add its user to the group kvm",
            NoKvm::Unusable(_) => "see the kernel's log: dmesg | grep -i kvm",
            NoKvm::Failed(_) | NoKvm::Hung { .. } => {
                "on a virtual machine, its host's nested virtualization is missing or broken: enable it there, or use bare metal"
            }
        }
    }
}

/// How long a probe guest may take. Under TCG it takes a tenth of a second.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Finds the accelerator by running a guest: SeaBIOS, a boot sector, long mode with paging.
///
/// # Errors
/// [`Error::QemuMissing`] if there is no such program, [`Error::Qemu`] if it does not even tell its version.
pub async fn probe(qemu: &Path) -> Result<Probe, Error> {
    let (version, kvm) = tokio::join!(version(qemu), try_kvm(qemu));
    let qemu_version = version?;
    Ok(match kvm? {
        Ok(()) => Probe { accel: Accel::Kvm, no_kvm: None, qemu_version },
        Err(why) => Probe { accel: Accel::Tcg, no_kvm: Some(why), qemu_version },
    })
}

async fn version(qemu: &Path) -> Result<String, Error> {
    let mut command = Command::new(qemu);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = run(&mut command, qemu).await?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"
    match text.split_whitespace().skip_while(|word| *word != "version").nth(1) {
        Some(version) if output.status.success() => Ok(version.to_owned()),
        _ => Err(Error::Qemu {
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

async fn run(command: &mut Command, qemu: &Path) -> Result<Output, Error> {
    command.output().await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::QemuMissing(qemu.to_owned()),
        _ => Error::at("run", qemu)(error),
    })
}

async fn try_kvm(qemu: &Path) -> Result<Result<(), NoKvm>, Error> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => run_guest(qemu, Accel::Kvm, PROBE_TIMEOUT).await,
        Err(error) => Ok(Err(match error.kind() {
            ErrorKind::NotFound => NoKvm::NoDevice { extensions: has_extensions() },
            ErrorKind::PermissionDenied => NoKvm::Denied,
            _ => NoKvm::Unusable(error.to_string()),
        })),
    }
}

fn has_extensions() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// The exit code that QEMU's `isa-debug-exit` makes of the guest's `0x10`: `(0x10 << 1) | 1`.
const GUEST_DONE: i32 = 33;

/// The probe guest: a boot sector that enters long mode, with the first 2 MiB mapped, and ends QEMU from there. It
/// writes `B` and then `L` to port 0xe9 on its way.
#[rustfmt::skip]
const GUEST: &[u8] = &[
    // 7c00: 16-bit code
    0xfa,                               // cli
    0xb0, b'B', 0xe6, 0xe9,             // mov al, 'B'; out 0xe9, al
    0x31, 0xc0,                         // xor ax, ax
    0x8e, 0xd8, 0x8e, 0xc0,             // mov ds, ax; mov es, ax
    0xfc,                               // cld
    // Three page tables, zeroed, at 0x1000, 0x2000 and 0x3000, each pointing to the next.
    0xbf, 0x00, 0x10,                   // mov di, 0x1000
    0xb9, 0x00, 0x18,                   // mov cx, 0x1800
    0xf3, 0xab,                         // rep stosw
    0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, // mov word [0x1000], 0x2003: present, writable
    0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, // mov word [0x2000], 0x3003
    0xc7, 0x06, 0x00, 0x30, 0x83, 0x00, // mov word [0x3000], 0x0083: a 2 MiB page
    0x0f, 0x01, 0x16, 0x78, 0x7c,       // lgdt [0x7c78]
    0x0f, 0x20, 0xe0,                   // mov eax, cr4
    0x0c, 0x20,                         // or al, 0x20: PAE
    0x0f, 0x22, 0xe0,                   // mov cr4, eax
    0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, // mov eax, 0x1000
    0x0f, 0x22, 0xd8,                   // mov cr3, eax
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, // mov ecx, 0xc0000080: EFER
    0x0f, 0x32,                         // rdmsr
    0x80, 0xcc, 0x01,                   // or ah, 1: LME
    0x0f, 0x30,                         // wrmsr
    0x0f, 0x20, 0xc0,                   // mov eax, cr0
    0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, // or eax, 0x80000001: PG, PE
    0x0f, 0x22, 0xc0,                   // mov cr0, eax
    0xea, 0x5a, 0x7c, 0x08, 0x00,       // jmp 8:0x7c5a
    // 7c5a: 64-bit code
    0xb0, b'L', 0xe6, 0xe9,             // mov al, 'L'; out 0xe9, al
    0xb0, 0x10,                         // mov al, 0x10
    0x66, 0xba, 0x01, 0x05,             // mov dx, 0x501
    0xee,                               // out dx, al
    0xf4,                               // hlt
    0xeb, 0xfd,                         // jmp to the hlt
    // 7c68: the descriptor table
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // entry 0, never read
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00, // entry 1, 64-bit code
    0x0f, 0x00, 0x68, 0x7c, 0x00, 0x00, // 7c78: the table's limit and address
];

/// The smallest disk that SeaBIOS boots from.
const DISK_SIZE: u64 = 1 << 20;

/// Runs the probe guest under an accelerator.
async fn run_guest(qemu: &Path, accel: Accel, timeout: Duration) -> Result<Result<(), NoKvm>, Error> {
    let what = || Error::io("cannot run the probe guest");
    let disk = boot_disk().map_err(what())?;
    let mut command = Command::new(qemu);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-m", "32"])
        .args(["-accel", &accel.option(1), "-cpu", accel.cpu(false), "-no-reboot"])
        .args(["-drive", "if=none,id=disk,format=raw,readonly=on,file=/proc/self/fd/0"])
        .args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"])
        .args(["-chardev", "file,id=out,path=/dev/stdout", "-device", "isa-debugcon,iobase=0xe9,chardev=out"])
        .args(["-device", "isa-debug-exit,iobase=0x501,iosize=2"])
        .stdin(disk)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::QemuMissing(qemu.to_owned()),
        _ => Error::at("run", qemu)(error),
    })?;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut said, mut complaints) = (Vec::new(), Vec::new());
    let finish = async {
        // The pipes end with the process; a probe guest says two bytes.
        if let (Some(stdout), Some(stderr)) = (&mut stdout, &mut stderr) {
            tokio::try_join!(stdout.read_to_end(&mut said), stderr.read_to_end(&mut complaints))?;
        }
        child.wait().await
    };
    let ended = tokio::time::timeout(timeout, finish).await;
    Ok(match ended {
        Ok(status) => {
            let status = status.map_err(what())?;
            if status.code() == Some(GUEST_DONE) && said == b"BL" {
                Ok(())
            } else {
                Err(NoKvm::Failed(format!("{status}: {}", String::from_utf8_lossy(&complaints).trim())))
            }
        }
        Err(_) => {
            child.kill().await.map_err(what())?;
            let stage = match said.last() {
                Some(b'L') => "long mode",
                Some(_) => "boot sector",
                None => "firmware",
            };
            Err(NoKvm::Hung { stage: stage.into(), after_ms: timeout.as_millis() as u64 })
        }
    })
}

/// A disk in memory that begins with the probe guest.
fn boot_disk() -> std::io::Result<Stdio> {
    let disk = File::from(memfd_create("haar-probe", MFdFlags::MFD_CLOEXEC)?);
    disk.set_len(DISK_SIZE)?;
    disk.write_all_at(GUEST, 0)?;
    disk.write_all_at(&[0x55, 0xaa], 510)?;
    Ok(disk.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QEMU: &str = "/usr/bin/qemu-system-x86_64";

    #[tokio::test]
    async fn guest_reaches_long_mode_under_tcg() {
        if !Path::new(QEMU).exists() {
            eprintln!("skipped: no {QEMU}");
            return;
        }
        // Translation has no way to hang; the time is for a loaded machine.
        let ran = run_guest(Path::new(QEMU), Accel::Tcg, Duration::from_secs(60)).await;
        assert_eq!(ran.unwrap(), Ok(()));
    }

    /// Makes a program that stands for QEMU.
    fn fake(script: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        (dir, path)
    }

    #[tokio::test]
    async fn a_hung_guest_is_told_by_its_stage() {
        for (said, stage) in [("", "firmware"), ("B", "boot sector"), ("BL", "long mode")] {
            let (_dir, qemu) = fake(&format!("printf '{said}'; exec sleep 60"));
            let timeout = Duration::from_millis(500);
            let ran = run_guest(&qemu, Accel::Kvm, timeout).await.unwrap();
            assert_eq!(ran, Err(NoKvm::Hung { stage: stage.into(), after_ms: 500 }));
        }
    }

    #[tokio::test]
    async fn a_failed_qemu_is_quoted() {
        let (_dir, qemu) = fake("echo no luck >&2; exit 1");
        let Err(NoKvm::Failed(text)) = run_guest(&qemu, Accel::Kvm, PROBE_TIMEOUT).await.unwrap() else {
            panic!("it did not fail")
        };
        assert!(text.contains("no luck"), "{text}");
        // Ending well is not enough: the guest must have said where it is.
        let (_dir, qemu) = fake("exit 33");
        assert!(matches!(run_guest(&qemu, Accel::Kvm, PROBE_TIMEOUT).await.unwrap(), Err(NoKvm::Failed(_))));
    }

    #[tokio::test]
    async fn a_missing_qemu_is_named() {
        let error = probe(Path::new("/nonexistent/qemu")).await.unwrap_err();
        assert!(matches!(error, Error::QemuMissing(_)), "{error}");
    }

    #[tokio::test]
    async fn version_is_read() {
        let (_dir, qemu) = fake("echo 'QEMU emulator version 9.2.1 (Some 1:9.2)'");
        assert_eq!(version(&qemu).await.unwrap(), "9.2.1");
        let (_dir, qemu) = fake("echo unheard-of");
        assert!(version(&qemu).await.is_err());
    }
}
