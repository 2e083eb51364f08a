//! Disks that change while the machine runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::{Bench, state_becomes, type_in};
use haar_vm::{Disk, DiskFormat, DiskLimits, Error, HOTPLUG_SLOTS, Overlay, RunState};

/// Makes a disk image of a MiB, over another one if there is one.
fn image(path: &Path, backing: Option<&Path>) {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]);
    if let Some(backing) = backing {
        command.args(["-u", "-F", "raw", "-b"]).arg(backing);
    }
    let made = command.arg(path).arg("1M").status().expect("qemu-img is of the package qemu-utils");
    assert!(made.success());
}

fn disk(id: &str, path: PathBuf) -> Disk {
    Disk {
        id: id.into(),
        path,
        format: DiskFormat::Qcow2,
        read_only: false,
        limits: DiskLimits { iops: 100, burst_iops: 300, burst_seconds: 60, ..DiskLimits::default() },
        key: None,
        below: Vec::new(),
    }
}

/// Whether a process has a file open.
fn has_open(pid: u32, path: &Path) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .any(|target| target == path)
}

#[tokio::test]
async fn disks_are_attached_while_the_machine_runs() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let mut spec = bench.spec();
    spec.hotplug = true;
    let vm = driver.start(&spec).await.unwrap();
    bench.console_reads("H").await;
    assert_eq!(vm.disks().await.unwrap(), ["vol-0123456789abcdef0"]);

    let path = bench.folder.join("more.qcow2");
    let missing = vm.attach_disk(&disk("vol-2", path.clone())).await.unwrap_err();
    assert!(matches!(missing, Error::Refused { .. }), "{missing}");
    image(&path, None);
    let more = disk("vol-2", path.clone());
    // Twice, as a daemon does that was interrupted.
    vm.attach_disk(&more).await.unwrap();
    vm.attach_disk(&more).await.unwrap();
    assert_eq!(vm.disks().await.unwrap(), ["vol-0123456789abcdef0", "vol-2"]);
    assert_eq!(vm.disk_file("vol-2").await.unwrap(), Some(path.clone()));
    assert!(has_open(vm.pid(), &path));
    vm.limit_disk("vol-2", DiskLimits::default()).await.unwrap();
    vm.resize_disk("vol-2", 3 << 20).await.unwrap();
    for error in [vm.limit_disk("vol-3", more.limits).await, vm.resize_disk("vol-3", 1).await] {
        assert!(matches!(error, Err(Error::Refused { .. })), "{error:?}");
    }
    // A boot sector does not give its disks up. What spins keeps nobody from attaching, and from being refused.
    type_in(&vm, "s").await;
    assert!(!vm.detach_disk("vol-2").await.unwrap());
    assert!(vm.detach_disk("vol-3").await.unwrap());

    for number in 3..=HOTPLUG_SLOTS + 1 {
        let path = bench.folder.join(format!("{number}.qcow2"));
        image(&path, None);
        vm.attach_disk(&disk(&format!("vol-{number}"), path)).await.unwrap();
    }
    let path = bench.folder.join("one-too-many.qcow2");
    image(&path, None);
    let full = vm.attach_disk(&disk("vol-40", path.clone())).await.unwrap_err();
    assert!(matches!(full, Error::Refused { .. }), "{full}");
    assert!(!has_open(vm.pid(), &path), "a disk that could not be attached stays open");
    assert_eq!(vm.disks().await.unwrap().len(), HOTPLUG_SLOTS + 1);
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn layers_take_what_is_written_after_them() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let spec = bench.spec();
    let disk = spec.disks[0].id.clone();
    let vm = driver.start(&spec).await.unwrap();
    bench.console_reads("H").await;
    type_in(&vm, "w").await;
    bench.console_reads("HW").await;
    let base = bench.folder.join("disk.raw");
    let before = fs::read(&base).unwrap();
    let mut below = base.clone();
    for number in 1..=2 {
        let path = bench.folder.join(format!("layer-{number}.qcow2"));
        image(&path, Some(&below));
        let overlay = Overlay { disk: disk.clone(), path: path.clone() };
        // Twice, as a daemon does that was interrupted.
        vm.overlay_disks(std::slice::from_ref(&overlay)).await.unwrap();
        vm.overlay_disks(&[overlay]).await.unwrap();
        assert_eq!(vm.disk_file(&disk).await.unwrap(), Some(path.clone()));
        let size = fs::metadata(&path).unwrap().len();
        type_in(&vm, "w").await;
        bench.console_reads(&format!("HW{}", "W".repeat(number))).await;
        assert!(fs::metadata(&path).unwrap().len() > size, "nothing was written to the new layer");
        below = path;
    }
    assert!(fs::read(&base).unwrap() == before, "the lowest layer has changed");
    let unknown = Overlay { disk: "vol-9".into(), path: below };
    assert!(matches!(vm.overlay_disks(&[unknown]).await, Err(Error::Refused { .. })));

    type_in(&vm, "p").await;
    state_becomes(&vm, RunState::GuestShutdown).await;
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}
