//! What a machine is made of, and what its process may do.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::guest::{Bench, type_in};
use haar_vm::{Boot, Controller, DiskLimits, Nic, RunState, console};

#[tokio::test]
async fn a_kernel_gets_its_command_line_and_ramdisk() {
    let Some(bench) = Bench::new() else { return };
    let (kernel, initrd) = (bench.folder.join("kernel"), bench.folder.join("a,comma"));
    crate::guest::write_kernel(&kernel);
    fs::write(&initrd, "seven b").unwrap();
    let driver = bench.driver();
    let mut spec = bench.spec();
    spec.boot = Boot::Kernel { kernel, initrd: Some(initrd), cmdline: "a=1,2 \"b c\" ".into() };
    driver.start(&spec).await.unwrap();
    bench.console_reads("a=1,2 \"b c\" 7").await;
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn uefi_firmware_starts() {
    let Some(bench) = Bench::new() else { return };
    let code = PathBuf::from("/usr/share/OVMF/OVMF_CODE_4M.fd");
    if !code.exists() {
        eprintln!("skipped: there is no {}", code.display());
        return;
    }
    let vars = bench.folder.join("vars.fd");
    fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars).unwrap();
    let driver = bench.driver();
    let mut spec = bench.spec();
    spec.memory_mib = 128;
    spec.boot = Boot::Uefi { code, vars };
    driver.start(&spec).await.unwrap();
    // Our disk has no EFI system partition, and the firmware says that it looked.
    let log = bench.console_log();
    crate::guest::eventually("the firmware to try the disk", || {
        String::from_utf8_lossy(&console::tail(&log, 65536).unwrap()).contains("BdsDxe: failed to load Boot")
    })
    .await;
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn the_console_has_what_was_said_before_anyone_listened() {
    let Some(bench) = Bench::new() else { return };
    // A restart of the machine goes on in the same log.
    fs::write(bench.console_log(), "before ").unwrap();
    let driver = bench.driver();
    driver.start(&bench.spec()).await.unwrap();
    bench.console_reads("before H").await;
    assert_eq!(console::tail(&bench.console_log(), 3).unwrap(), b"e H");
    driver.remove(&bench.id).await.unwrap();
}

#[tokio::test]
async fn disks_are_held_to_their_limits() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    // Twelve writes at a hundred a second, and at four; the first is let through at once.
    let mut took = Vec::new();
    for iops in [100, 4] {
        let mut spec = bench.spec();
        spec.disks[0].limits = DiskLimits { iops, ..DiskLimits::default() };
        fs::write(bench.console_log(), "").unwrap();
        let vm = driver.start(&spec).await.unwrap();
        bench.console_reads("H").await;
        let begun = Instant::now();
        for written in 1..=12 {
            type_in(&vm, "w").await;
            bench.console_reads(&format!("H{}", "W".repeat(written))).await;
        }
        took.push(begun.elapsed());
        driver.remove(&bench.id).await.unwrap();
    }
    assert!(took[1] > Duration::from_secs(2), "{took:?}");
    assert!(took[1] > took[0] + Duration::from_millis(500), "{took:?}");
}

#[tokio::test]
async fn the_process_has_nothing_that_it_does_not_need() {
    let Some(bench) = Bench::new() else { return };
    // A file that the daemon was started with, as a careless parent passes one on.
    let passed_on = fs::File::open("/etc/hostname").unwrap();
    nix::fcntl::fcntl(&passed_on, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let driver = bench.driver();
    let vm = driver.start(&bench.spec()).await.unwrap();
    let proc = PathBuf::from(format!("/proc/{}", vm.pid()));

    let status = fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.split(':').next() == Some(name)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    for rights in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(rights), 16).unwrap(), 0, "{rights}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2", "no system call filter");
    assert_eq!(field("NSsid"), vm.pid().to_string(), "not in a session of its own");
    assert_eq!(fs::read(proc.join("environ")).unwrap(), b"");
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));

    let run = bench.config().run_dir.join(&bench.id);
    let files: BTreeSet<PathBuf> = fs::read_dir(proc.join("fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.is_absolute())
        .collect();
    let wanted = [
        PathBuf::from("/dev/null"),
        run.join("lock"),
        run.join("stderr.log"),
        bench.folder.join("disk.raw"),
        bench.console_log(),
    ];
    assert_eq!(files, wanted.into());
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn the_type_is_what_the_process_gets() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let mut spec = bench.spec();
    spec.vcpus = 2;
    let vm = driver.start(&spec).await.unwrap();
    let groups = bench.cgroups();
    let read = |names: [&str; 2]| {
        let mut files = groups.iter().flat_map(|group| names.map(|name| group.join(&bench.id).join(name)));
        files.find_map(|file| fs::read_to_string(file).ok()).map(|text| text.trim().to_owned())
    };
    for controller in driver.controllers() {
        let (value, wanted) = match controller {
            Controller::Cpu => (read(["cpu.cfs_quota_us", "cpu.max"]), ["250000", "250000 100000"]),
            Controller::Memory => (read(["memory.limit_in_bytes", "memory.max"]), ["838860800"; 2]),
            Controller::Pids => (read(["pids.max", "pids.max"]), ["130"; 2]),
        };
        assert!(value.as_deref().is_some_and(|value| wanted.contains(&value)), "{controller:?}: {value:?}");
    }
    for group in &groups {
        let members = fs::read_to_string(group.join(&bench.id).join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), vm.pid().to_string(), "{}", group.display());
    }
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

/// A network namespace with a tap.
struct Network {
    name: String,
}

impl Network {
    fn new(bench: &Bench) -> Option<Network> {
        let name = format!("haar-test-{}", bench.id);
        let network = Network { name: name.clone() };
        let commands = [
            format!("netns add {name}"),
            format!("-n {name} tuntap add dev haar-tap mode tap"),
            format!("-n {name} link set haar-tap up"),
        ];
        for command in commands {
            if !Command::new("ip").args(command.split(' ')).status().is_ok_and(|status| status.success()) {
                eprintln!("skipped: cannot make a network namespace");
                return None;
            }
        }
        Some(network)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Whether the tap is held open by a machine.
    fn has_carrier(&self) -> bool {
        let output =
            Command::new("ip").args(["-n", &self.name, "link", "show", "haar-tap"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("haar-tap"), "the tap is gone");
        text.contains("LOWER_UP")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

#[tokio::test]
async fn interfaces_are_taps_in_the_namespace() {
    let Some(bench) = Bench::new() else { return };
    let Some(network) = Network::new(&bench) else { return };
    let driver = bench.driver();
    let mut spec = bench.spec();
    spec.netns = Some(network.path());
    spec.nics = vec![Nic {
        id: "eni-0123456789abcdef0".into(),
        ifname: "haar-tap".into(),
        mac: [0x02, 0, 0, 0, 0, 1],
        mtu: 9001,
    }];
    let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
    assert!(!network.has_carrier());
    let vm = driver.start(&spec).await.unwrap();
    assert!(network.has_carrier());
    let machine = fs::metadata(format!("/proc/{}/ns/net", vm.pid())).unwrap().ino();
    assert_eq!(machine, fs::metadata(network.path()).unwrap().ino());
    // The daemon has not moved.
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let namespace = task.unwrap().path().join("ns/net");
        // A thread may have ended.
        if let Ok(metadata) = fs::metadata(namespace) {
            assert_eq!(metadata.ino(), own);
        }
    }

    // A tap serves one machine.
    let mut other = spec.clone();
    other.id = format!("{}b", bench.id);
    other.disks.clear();
    other.boot = Boot::Kernel { kernel: bench.folder.join("kernel"), initrd: None, cmdline: String::new() };
    let error = driver.start(&other).await.unwrap_err();
    assert!(error.to_string().contains("haar-tap"), "{error}");
    assert_eq!(vm.state(), RunState::Running);

    driver.remove(&bench.id).await.unwrap();
    assert!(!network.has_carrier());
    // The next start takes the same tap.
    driver.start(&spec).await.unwrap();
    assert!(network.has_carrier());
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}
