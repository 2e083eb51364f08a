//! Disks that change while the machine runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::{Bench, state_becomes, type_in};
use haar_vm::{Disk, DiskFormat, DiskLayer, DiskLimits, Error, HOTPLUG_SLOTS, Overlay, RunState, Sync};

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
    assert!(matches!(&full, Error::Refused { desc, .. } if desc.contains("no slot is free")), "{full}");
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

/// What is below a disk's image, when the files named are merged into one.
fn merged(path: &Path, top: &Path) -> Vec<DiskLayer> {
    let mut command = Command::new("qemu-img");
    let done = command.args(["convert", "-q", "-U", "-f", "qcow2", "-O", "raw"]).args([top, path]).status();
    assert!(done.unwrap().success());
    vec![DiskLayer { path: path.to_owned(), format: DiskFormat::Raw, encrypted: false }]
}

#[tokio::test]
async fn what_is_below_a_disk_is_opened_anew_while_the_guest_writes() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let spec = bench.spec();
    let disk = spec.disks[0].id.clone();
    let vm = driver.start(&spec).await.unwrap();
    bench.console_reads("H").await;
    let below =
        vec![DiskLayer { path: bench.folder.join("disk.raw"), format: DiskFormat::Raw, encrypted: false }];
    assert!(!vm.rebase_disk(&disk, &below).await.unwrap(), "a raw file stands on nothing");
    let layer = async |number: usize, below: &Path| {
        let path = bench.folder.join(format!("layer-{number}.qcow2"));
        let format = if below.extension().is_some_and(|name| name == "raw") { "raw" } else { "qcow2" };
        let mut command = Command::new("qemu-img");
        command
            .args(["create", "-q", "-f", "qcow2", "-u", "-F", format, "-b"])
            .arg(below)
            .arg(&path)
            .arg("64M");
        assert!(command.status().unwrap().success());
        vm.overlay_disks(&[Overlay { disk: disk.clone(), path: path.clone() }]).await.unwrap();
        type_in(&vm, "w").await;
        bench.console_reads(&format!("H{}", "W".repeat(number))).await;
        path
    };
    let mut closed = vec![bench.folder.join("disk.raw")];
    let mut written = 0;
    // What is merged is what was opened first, what was put over it later, and what was opened anew before.
    for round in 1..=3 {
        for _ in 0..2 {
            written += 1;
            let path = layer(written, closed.last().unwrap()).await;
            closed.push(path);
        }
        let top = closed.pop().unwrap();
        let base = bench.folder.join(format!("merged-{round}.raw"));
        let layers = merged(&base, closed.last().unwrap());
        // Twice, as a daemon does that was interrupted.
        assert!(vm.rebase_disk(&disk, &layers).await.unwrap());
        assert!(vm.rebase_disk(&disk, &layers).await.unwrap());
        assert_eq!(vm.disk_file(&disk).await.unwrap(), Some(top.clone()));
        for path in &closed {
            assert!(!has_open(vm.pid(), path), "{} is still open", path.display());
        }
        assert!(has_open(vm.pid(), &base) && has_open(vm.pid(), &top));
        closed.extend([base, top]);
        written += 1;
        type_in(&vm, "w").await;
        bench.console_reads(&format!("H{}", "W".repeat(written))).await;
    }
    let (top, base) = (closed.pop().unwrap(), closed.pop().unwrap());
    let layers = [DiskLayer { path: base.clone(), format: DiskFormat::Raw, encrypted: false }];
    // What cannot be opened changes nothing; nor does anything while a disk is copied elsewhere.
    let missing = [DiskLayer { path: bench.folder.join("missing"), ..layers[0].clone() }];
    let refused = vm.rebase_disk(&disk, &missing).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    assert!(has_open(vm.pid(), &base));
    let (socket, copy) = (bench.folder.join("nbd.sock"), bench.folder.join("copy.raw"));
    fs::File::create(&copy).unwrap().set_len(crate::guest::DISK_SIZE).unwrap();
    let mut command = Command::new("qemu-nbd");
    command.args(["-f", "raw", "-x", &disk, "-k"]).arg(&socket).arg(&copy);
    let mut server = command.spawn().unwrap();
    crate::guest::eventually("the server", || socket.exists()).await;
    vm.mirror(&disk, &socket, Sync::Full).await.unwrap();
    assert!(!vm.rebase_disk(&disk, &layers).await.unwrap());
    vm.break_off().await.unwrap();
    assert!(vm.rebase_disk(&disk, &layers).await.unwrap());
    server.kill().unwrap();
    server.wait().unwrap();
    type_in(&vm, "w").await;
    bench.console_reads(&format!("H{}", "W".repeat(written + 1))).await;
    type_in(&vm, "p").await;
    state_becomes(&vm, RunState::GuestShutdown).await;
    driver.remove(&bench.id).await.unwrap();
    // Every sector that the guest wrote is there, each 64 KiB behind the one before.
    let whole = bench.folder.join("whole.raw");
    let link =
        Command::new("qemu-img").args(["rebase", "-u", "-F", "raw", "-b"]).args([&base, &top]).status();
    assert!(link.unwrap().success());
    merged(&whole, &top);
    let bytes = fs::read(whole).unwrap();
    let sector = |number: usize| &bytes[number << 16..(number << 16) + 512];
    // The boot sector, whose code is before what tells it where to write.
    let is_there = |number| sector(number)[..0x77] == bytes[..0x77] && sector(number)[510..] == [0x55, 0xaa];
    assert!((1..=written + 1).all(is_there));
    assert!(sector(written + 2).iter().all(|byte| *byte == 0));
    bench.assert_clean();
}
