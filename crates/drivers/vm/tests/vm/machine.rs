//! How a machine lives, and what is said when it does not.

use std::fs;
use std::path::Path;

use crate::guest::{Bench, state_becomes, type_in};
use haar_vm::{Config, DiskFormat, Driver, Error, Event, Nic, RunState};

#[tokio::test]
async fn starts_prints_and_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let vm = driver.start(&bench.spec()).await.unwrap();
    assert_eq!(vm.state(), RunState::Running);
    assert_eq!(vm.id(), bench.id);
    assert_eq!(bench.processes(), [vm.pid()]);
    assert_eq!(driver.list().unwrap(), [bench.id.as_str()]);
    bench.console_reads("H").await;
    type_in(&vm, "xyz").await;
    bench.console_reads("Hxyz").await;

    driver.remove(&bench.id).await.unwrap();
    assert!(matches!(vm.state(), RunState::Exited(exit) if exit.signal == Some(9)), "{:?}", vm.state());
    assert!(matches!(vm.powerdown().await, Err(Error::Gone)));
    assert!(driver.list().unwrap().is_empty());
    assert!(driver.adopt(&bench.id).await.unwrap().is_none());
    bench.assert_clean();
    // Again, as a daemon does that was interrupted.
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
    assert!(bench.console_log().exists());
}

#[tokio::test]
async fn guest_power_off_is_kept_until_it_is_read() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let vm = driver.start(&bench.spec()).await.unwrap();
    bench.console_reads("H").await;
    type_in(&vm, "p").await;
    state_becomes(&vm, RunState::GuestShutdown).await;
    bench.console_reads("HP").await;

    // A daemon that was not there learns it.
    drop((vm, driver));
    let driver = bench.driver();
    let vm = driver.adopt(&bench.id).await.unwrap().unwrap();
    assert_eq!(vm.state(), RunState::GuestShutdown);
    let exit = vm.quit().await.unwrap();
    assert_eq!(exit.code, Some(0));
    assert!(matches!(vm.state(), RunState::Exited(_)));
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn power_button_reaches_the_guest() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let vm = driver.start(&bench.spec()).await.unwrap();
    bench.console_reads("H").await;
    vm.powerdown().await.unwrap();
    state_becomes(&vm, RunState::GuestShutdown).await;
    bench.console_reads("HP").await;
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn resets_are_told_apart() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let vm = driver.start(&bench.spec()).await.unwrap();
    bench.console_reads("H").await;
    let mut events = vm.events();
    type_in(&vm, "r").await;
    assert_eq!(events.recv().await.unwrap(), Event::Reset { guest: true });
    bench.console_reads("HH").await;
    vm.reset().await.unwrap();
    // SeaBIOS resets once more by itself to clear what the first left.
    while events.recv().await.unwrap() != (Event::Reset { guest: false }) {}
    bench.console_reads("HHH").await;
    assert_eq!(vm.state(), RunState::Running);
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn panic_stops_the_guest_until_it_is_reset() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let vm = driver.start(&bench.spec()).await.unwrap();
    bench.console_reads("H").await;
    type_in(&vm, "k").await;
    state_becomes(&vm, RunState::GuestPanicked).await;
    drop((vm, driver));
    let driver = bench.driver();
    let vm = driver.adopt(&bench.id).await.unwrap().unwrap();
    assert_eq!(vm.state(), RunState::GuestPanicked);
    vm.reset().await.unwrap();
    state_becomes(&vm, RunState::Running).await;
    bench.console_reads("HH").await;
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn a_guest_that_powered_off_can_be_reset() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let vm = driver.start(&bench.spec()).await.unwrap();
    bench.console_reads("H").await;
    type_in(&vm, "p").await;
    state_becomes(&vm, RunState::GuestShutdown).await;
    vm.reset().await.unwrap();
    state_becomes(&vm, RunState::Running).await;
    bench.console_reads("HPH").await;
    driver.remove(&bench.id).await.unwrap();
}

#[tokio::test]
async fn a_killed_qemu_is_seen() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let vm = driver.start(&bench.spec()).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(vm.pid().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
    let exit = vm.exited().await;
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
    assert!(driver.adopt(&bench.id).await.unwrap().is_none());
    // What it left is in nobody's way.
    let again = driver.start(&bench.spec()).await.unwrap();
    assert_ne!(again.pid(), vm.pid());
    assert_eq!(again.state(), RunState::Running);
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn a_second_start_finds_the_first() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let spec = bench.spec();
    let (first, second) = tokio::join!(driver.start(&spec), driver.start(&spec));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.pid(), second.pid());
    assert_eq!(bench.processes(), [first.pid()]);

    let mut other = bench.spec();
    other.memory_mib += 1;
    let error = driver.start(&other).await.unwrap_err();
    assert!(matches!(&error, Error::Conflict { pid, .. } if *pid == first.pid()), "{error}");
    assert_eq!(first.state(), RunState::Running);
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn two_machines_cannot_share_a_disk() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    driver.start(&bench.spec()).await.unwrap();
    let mut other = bench.spec();
    other.id = format!("{}b", bench.id);
    let error = driver.start(&other).await.unwrap_err();
    assert!(matches!(&error, Error::Qemu { stderr, .. } if stderr.contains("lock")), "{error}");
    assert_eq!(driver.list().unwrap(), [bench.id.as_str()]);
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn failures_say_what_failed_and_leave_nothing() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();

    let mut corrupt = bench.spec();
    corrupt.disks[0].format = DiskFormat::Qcow2;
    let error = driver.start(&corrupt).await.unwrap_err();
    assert!(matches!(&error, Error::Qemu { stderr, .. } if stderr.contains("qcow2")), "{error}");
    bench.assert_clean();

    let mut missing = bench.spec();
    missing.disks[0].path = "/nonexistent/disk".into();
    let error = driver.start(&missing).await.unwrap_err();
    assert!(matches!(&error, Error::Qemu { stderr, .. } if stderr.contains("/nonexistent/disk")), "{error}");
    bench.assert_clean();

    let mut huge = bench.spec();
    huge.memory_mib = 64 << 20;
    let error = driver.start(&huge).await.unwrap_err();
    assert!(matches!(&error, Error::Qemu { stderr, .. } if stderr.contains("memory")), "{error}");
    bench.assert_clean();

    let mut nowhere = bench.spec();
    nowhere.netns = Some("/nonexistent/netns".into());
    let error = driver.start(&nowhere).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/netns"), "{error}");
    bench.assert_clean();

    let mut tapless = bench.spec();
    tapless.nics = vec![nic("haar-none")];
    let error = driver.start(&tapless).await.unwrap_err();
    assert!(error.to_string().contains("haar-none"), "{error}");
    bench.assert_clean();

    let config = Config { qemu_binary: "/nonexistent/qemu".into(), ..bench.config() };
    let error = Driver::new(config).unwrap().start(&bench.spec()).await.unwrap_err();
    assert!(matches!(error, Error::QemuMissing(_)), "{error}");
    bench.assert_clean();
}

fn nic(ifname: &str) -> Nic {
    Nic { id: "eni-0123456789abcdef0".into(), ifname: ifname.into(), mac: [0x02, 0, 0, 0, 0, 1], mtu: 9001 }
}

#[tokio::test]
async fn bad_specifications_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let changes: [fn(&mut haar_vm::Spec); 12] = [
        |spec| spec.id = "../escape".into(),
        |spec| spec.id = String::new(),
        |spec| spec.id = "i-".repeat(40),
        |spec| spec.vcpus = 0,
        |spec| spec.memory_mib = 0,
        |spec| spec.memory_mib = u64::MAX,
        |spec| spec.disks.clear(),
        |spec| spec.disks.push(spec.disks[0].clone()),
        |spec| spec.disks[0].id = "vol,if=none".into(),
        |spec| spec.disks[0].path = "relative".into(),
        |spec| spec.nics = vec![nic("a-name-of-16-byte")],
        |spec| spec.nics = vec![Nic { mtu: 67, ..nic("tap") }],
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut spec = bench.spec();
        change(&mut spec);
        let error = driver.start(&spec).await.unwrap_err();
        assert!(matches!(error, Error::InvalidSpec { .. }), "{number}: {error}");
    }
    assert!(matches!(driver.remove("..").await, Err(Error::InvalidSpec { .. })));
    assert!(matches!(driver.adopt("a/b").await, Err(Error::InvalidSpec { .. })));
    bench.assert_clean();
}

#[tokio::test]
async fn a_full_host_pauses_the_guest() {
    let Some(bench) = Bench::new() else { return };
    let Some(small) = SmallDisk::mount(&bench.folder.join("small"), 2 << 20) else { return };
    let overlay = small.0.join("disk.qcow2");
    let backing = bench.folder.join("disk.raw");
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([&backing, &overlay])
        .status()
        .unwrap();
    assert!(made.success());
    let ballast = small.0.join("ballast");
    let driver = bench.driver();
    let mut spec = bench.spec();
    spec.disks[0].path = overlay;
    spec.disks[0].format = DiskFormat::Qcow2;
    let vm = driver.start(&spec).await.unwrap();
    bench.console_reads("H").await;
    type_in(&vm, "w").await;
    bench.console_reads("HW").await;

    let mut events = vm.events();
    // To the last byte.
    let _ = fs::write(&ballast, vec![0; 2 << 20]);
    type_in(&vm, "w").await;
    state_becomes(&vm, RunState::OutOfSpace).await;
    let event = events.recv().await.unwrap();
    assert!(
        matches!(&event, Event::DiskError { disk, no_space: true, .. } if disk == &spec.disks[0].id),
        "{event:?}"
    );
    bench.console_reads("HW").await;

    fs::remove_file(&ballast).unwrap();
    vm.resume().await.unwrap();
    state_becomes(&vm, RunState::Running).await;
    bench.console_reads("HWW").await;
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

/// A file system of a few bytes.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &Path, size: u64) -> Option<SmallDisk> {
        fs::create_dir(path).unwrap();
        let options = format!("size={size}");
        let mounted = nix::mount::mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        );
        match mounted {
            Ok(()) => Some(SmallDisk(path.to_owned())),
            Err(error) => {
                eprintln!("skipped: cannot mount: {error}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
