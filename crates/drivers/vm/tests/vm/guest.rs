//! A machine to test with: a boot sector that does what a byte on its serial console tells it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use haar_vm::{Accel, Boot, Config, Disk, DiskFormat, DiskLimits, Driver, Spec, Vm, console};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// The QEMU to test with: the distribution's, or the one that `HAAR_TEST_QEMU` names.
pub fn qemu() -> PathBuf {
    std::env::var_os("HAAR_TEST_QEMU").map_or_else(|| "/usr/bin/qemu-system-x86_64".into(), PathBuf::from)
}

/// Says `H` when it runs, and `P` before it powers off, as the power button or the byte `p` asks. `r` resets it, `k`
/// makes it panic, `s` makes it spin for ever, `w` writes a sector to its disk, each time 64 KiB further, and says `W`, or `E` if
/// it failed. It says every other byte back.
#[rustfmt::skip]
const BOOT_SECTOR: &[u8] = &[
    0xfa,                               // 7c00: cli
    0x31, 0xc0,                         // xor ax, ax
    0x8e, 0xd8,                         // mov ds, ax
    0x8e, 0xd0,                         // mov ss, ax
    0xbc, 0x00, 0x7c,                   // mov sp, 0x7c00
    0xba, 0x02, 0x06,                   // mov dx, 0x602: ACPI's event enable register
    0xb8, 0x00, 0x01,                   // mov ax, 0x100: its power button
    0xef,                               // out dx, ax
    0xb0, b'H',                         // mov al, 'H'
    0xe8, 0x60, 0x00,                   // call put
    0xba, 0x00, 0x06,                   // loop (7c16): mov dx, 0x600: ACPI's event status register
    0xed,                               // in ax, dx
    0xf6, 0xc4, 0x01,                   // test ah, 1
    0x75, 0x20,                         // jnz off
    0xba, 0xfd, 0x03,                   // mov dx, 0x3fd: the serial line's status
    0xec,                               // in al, dx
    0xa8, 0x01,                         // test al, 1
    0x74, 0xef,                         // jz loop
    0xba, 0xf8, 0x03,                   // mov dx, 0x3f8
    0xec,                               // in al, dx
    0x3c, b'r',                         // cmp al, 'r'
    0x74, 0x1d,                         // je reset
    0x3c, b'w',                         // cmp al, 'w'
    0x74, 0x20,                         // je write
    0x3c, b'k',                         // cmp al, 'k'
    0x74, 0x38,                         // je panic
    0x3c, b's',                         // cmp al, 's'
    0x74, 0xfe,                         // spin: je spin
    0x3c, b'p',                         // cmp al, 'p'
    0x75, 0x2b,                         // jne echo
    0xb0, b'P',                         // off (7c3f): mov al, 'P'
    0xe8, 0x32, 0x00,                   // call put
    0xba, 0x04, 0x06,                   // mov dx, 0x604: ACPI's control register
    0xb8, 0x00, 0x20,                   // mov ax, 0x2000: sleep, state S5
    0xef,                               // out dx, ax
    0xf4,                               // hlt
    0xba, 0xf9, 0x0c,                   // reset (7c4c): mov dx, 0xcf9
    0xb0, 0x06,                         // mov al, 6
    0xee,                               // out dx, al
    0xf4,                               // hlt
    0xb2, 0x80,                         // write (7c53): mov dl, 0x80: the first disk
    0xbe, 0x7b, 0x7c,                   // mov si, packet
    0xb8, 0x00, 0x43,                   // mov ax, 0x4300: extended write
    0xcd, 0x13,                         // int 0x13
    0xfa,                               // cli
    0xb0, b'E',                         // mov al, 'E'
    0x72, 0x08,                         // jc echo
    0x81, 0x06, 0x83, 0x7c, 0x80, 0x00, // add word [packet + 8], 128
    0xb0, b'W',                         // mov al, 'W'
    0xe8, 0x09, 0x00,                   // echo (7c6a): call put
    0xeb, 0xa7,                         // jmp loop
    0xba, 0x05, 0x05,                   // panic (7c6f): mov dx, 0x505: pvpanic
    0xb0, 0x01,                         // mov al, 1: panicked
    0xee,                               // out dx, al
    0xf4,                               // hlt
    0xba, 0xf8, 0x03,                   // put (7c76): mov dx, 0x3f8
    0xee,                               // out dx, al
    0xc3,                               // ret
    0x10, 0x00, 0x01, 0x00,             // packet (7c7b): its size; one sector
    0x00, 0x7c, 0x00, 0x00,             // from 0:7c00
    0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // to sector 128
];

/// The size of the machine's disk in bytes.
pub const DISK_SIZE: u64 = 64 << 20;

/// Writes a raw disk with the boot sector.
pub fn write_disk(path: &Path) {
    let disk = File::create(path).unwrap();
    disk.set_len(DISK_SIZE).unwrap();
    disk.write_all_at(BOOT_SECTOR, 0).unwrap();
    disk.write_all_at(&[0x55, 0xaa], 510).unwrap();
}

/// A driver, a folder and a machine's id of a test's own. What is left of the machine when it goes is a leak.
pub struct Bench {
    pub folder: PathBuf,
    pub id: String,
    /// Held by the test; not by a process that works for it.
    owned: Option<tempfile::TempDir>,
}

impl Bench {
    /// Nothing if QEMU is not here.
    pub fn new() -> Option<Bench> {
        if !qemu().exists() {
            eprintln!("skipped: there is no {}", qemu().display());
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::tempdir().unwrap();
        write_disk(&folder.path().join("disk.raw"));
        let id = format!("i-{:08x}{number:04x}", std::process::id());
        Some(Bench { folder: folder.path().into(), id, owned: Some(folder) })
    }

    /// The bench of another process' test.
    pub fn of(folder: PathBuf, id: String) -> Bench {
        Bench { folder, id, owned: None }
    }

    pub fn config(&self) -> Config {
        Config {
            run_dir: self.folder.join("run"),
            qemu_binary: qemu(),
            accel: Accel::Tcg,
            cgroup_parent: format!("haar-test-{}", self.id),
        }
    }

    pub fn driver(&self) -> Driver {
        Driver::new(self.config()).unwrap()
    }

    pub fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    pub fn spec(&self) -> Spec {
        Spec {
            id: self.id.clone(),
            instance_type: "t3.nano".into(),
            vcpus: 1,
            threads_per_core: 1,
            memory_mib: 32,
            boot: Boot::Firmware,
            disks: vec![Disk {
                id: "vol-0123456789abcdef0".into(),
                path: self.folder.join("disk.raw"),
                format: DiskFormat::Raw,
                read_only: false,
                limits: DiskLimits::default(),
                key: None,
                below: Vec::new(),
            }],
            nics: Vec::new(),
            netns: None,
            console_log: self.console_log(),
            hotplug: false,
            display: false,
        }
    }

    /// Waits until the console's log is this.
    pub async fn console_reads(&self, wanted: &str) {
        let path = self.console_log();
        eventually(&format!("the console to read {wanted:?}"), || {
            String::from_utf8(console::tail(&path, 4096).unwrap()).unwrap() == wanted
        })
        .await;
    }

    /// The processes whose command line names the machine.
    pub fn processes(&self) -> Vec<u32> {
        let name = format!("haar-{},", self.id);
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if command.split(|byte| *byte == 0).any(|word| word.starts_with(name.as_bytes())) {
                pids.push(pid);
            }
        }
        pids
    }

    /// The control groups of the machine.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounts = mounts
            .lines()
            .filter(|line| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup")));
        mounts
            .map(|line| Path::new(line.split(' ').nth(1).unwrap()).join(self.config().cgroup_parent))
            .filter(|path| path.exists())
            .collect()
    }

    /// Asserts that nothing of the machine is left.
    pub fn assert_clean(&self) {
        assert_eq!(self.processes(), Vec::<u32>::new());
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        let run: Vec<_> =
            fs::read_dir(self.config().run_dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(run, Vec::<PathBuf>::new());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.owned.is_none() {
            return;
        }
        // After a failed assertion; a machine of ours, found by its unique name.
        for pid in self.processes() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.cast_signed()),
                nix::sys::signal::SIGKILL,
            );
        }
        for group in self.cgroups() {
            for _ in 0..100 {
                let _ = fs::remove_dir(group.join(&self.id));
                if fs::remove_dir(&group).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Types on the machine's console.
pub async fn type_in(vm: &Vm, bytes: &str) {
    let mut console = UnixStream::connect(vm.console_socket()).await.unwrap();
    console.write_all(bytes.as_bytes()).await.unwrap();
    // QEMU drops what a guest has not yet taken when the client goes.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Waits until something is so.
pub async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a state.
pub async fn state_becomes(vm: &Vm, wanted: haar_vm::RunState) {
    let mut states = vm.watch();
    let reached =
        tokio::time::timeout(Duration::from_secs(30), states.wait_for(|state| *state == wanted)).await;
    assert!(reached.is_ok(), "waited in vain for {wanted:?}; it is {:?}", vm.state());
}

/// What stands for a Linux kernel (Linux, Documentation/arch/x86/boot.rst): its real-mode part says its command line
/// and then, as one digit, how many bytes its initial ramdisk has.
pub fn write_kernel(path: &Path) {
    #[rustfmt::skip]
    const CODE: &[u8] = &[
        0xfa,             // cli
        0xb8, 0x00, 0x20, // mov ax, 0x2000: where QEMU puts the command line
        0x8e, 0xd8,       // mov ds, ax
        0x31, 0xf6,       // xor si, si
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xac,             // next: lodsb
        0x84, 0xc0,       // test al, al
        0x74, 0x03,       // jz end
        0xee,             // out dx, al
        0xeb, 0xf8,       // jmp next
        0xb8, 0x00, 0x10, // end: mov ax, 0x1000: where QEMU puts this
        0x8e, 0xd8,       // mov ds, ax
        0xa0, 0x1c, 0x02, // mov al, [0x21c]: the ramdisk's size
        0x04, b'0',       // add al, '0'
        0xee,             // out dx, al
        0xf4,             // hlt
        0xeb, 0xfd,       // jmp to the hlt
    ];
    let mut image = vec![0; 4096];
    image[0x1f1] = 1; // one sector after the first
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x3e]); // jmp 0x240
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x03, 0x02]); // protocol 2.03
    image[0x211] = 1; // loaded high
    image[0x22c..0x230].copy_from_slice(&0x37ff_ffffu32.to_le_bytes()); // the ramdisk's highest address
    image[0x240..0x240 + CODE.len()].copy_from_slice(CODE);
    fs::write(path, image).unwrap();
}
