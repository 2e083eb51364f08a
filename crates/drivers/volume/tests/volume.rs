//! Volumes as `qemu-img` sees them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use haar_volume::{Driver, Error, Format, standing_on};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A folder with a driver's folder and an image of 1 MiB in it.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// Nothing if `qemu-img` is not here.
    fn new() -> Option<Bench> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            eprintln!("skipped: there is no qemu-img");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("image.raw"), pattern()).unwrap();
        Some(Bench { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn driver(&self) -> Driver {
        Driver::new(self.path("volumes")).unwrap()
    }

    /// What is in the driver's folder.
    fn files(&self) -> Vec<String> {
        let folders = [self.path("volumes"), self.path("volumes/.open")];
        let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != ".open").collect()
    }
}

fn pattern() -> Vec<u8> {
    (0..MIB).map(|at| (at / 512 % 251) as u8).collect()
}

fn qemu_img(arguments: &[&str], path: &Path) -> String {
    let output = Command::new("qemu-img").args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The disk's contents, as a guest reads them.
fn contents(path: &Path) -> Vec<u8> {
    contents_through(path, &path.with_extension("out"))
}

/// The same, kept in a file for a moment.
fn contents_through(path: &Path, raw: &Path) -> Vec<u8> {
    let converted =
        Command::new("qemu-img").args(["convert", "-O", "raw"]).args([path, raw]).status().unwrap();
    assert!(converted.success());
    let bytes = fs::read(raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

#[tokio::test]
async fn an_overlay_begins_as_its_image_and_is_larger() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let image = bench.path("image.raw");
    let volume = driver.create_overlay("vol-1", &image, Format::Raw, 3 * MIB).await.unwrap();
    assert_eq!(volume.path, bench.path("volumes/vol-1.qcow2"));
    assert_eq!((volume.size, volume.backing.as_deref()), (3 * MIB, Some(image.as_path())));
    assert!(volume.allocated < MIB, "it takes {} bytes", volume.allocated);
    let mut wanted = pattern();
    wanted.resize(3 << 20, 0);
    assert!(contents(&volume.path) == wanted);
    qemu_img(&["check", "-q"], &volume.path);

    assert_eq!(standing_on(&bench.path("volumes"), &bench.path("")).unwrap(), ["vol-1"]);
    assert_eq!(
        standing_on(&bench.path("volumes"), &bench.path("volumes/.open")).unwrap(),
        Vec::<String>::new()
    );

    // An overlay is an image, too.
    let above = driver.create_overlay("vol-2", &volume.path, Format::Qcow2, 3 * MIB).await.unwrap();
    assert!(contents(&above.path) == wanted);
    assert_eq!(driver.list().unwrap(), ["vol-1", "vol-2"]);
}

#[tokio::test]
async fn our_reading_is_that_of_qemu() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let name = bench.path("an image, with: odd \"name\".raw");
    fs::copy(bench.path("image.raw"), &name).unwrap();
    let mut volumes = vec![
        driver.create_empty("vol-e", 64 << 40).await.unwrap(),
        driver.create_empty("vol-s", 512).await.unwrap(),
        driver.create_overlay("vol-o", &name, Format::Raw, MIB).await.unwrap(),
    ];
    // Version 2, which other tools write.
    let old = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o", "compat=0.10"])
        .arg(driver.path("vol-old").unwrap())
        .arg("5M")
        .status();
    assert!(old.unwrap().success());
    volumes.push(driver.info("vol-old").unwrap().unwrap());
    for volume in volumes {
        let info: Value = serde_json::from_str(&qemu_img(&["info", "--output=json"], &volume.path)).unwrap();
        assert_eq!(info["format"], "qcow2");
        assert_eq!(info["virtual-size"], volume.size);
        assert_eq!(info["actual-size"], volume.allocated);
        assert_eq!(
            info.get("full-backing-filename").and_then(Value::as_str).map(Path::new),
            volume.backing.as_deref()
        );
    }
}

#[tokio::test]
async fn making_and_removing_may_be_repeated() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let image = bench.path("image.raw");
    let volume = driver.create_overlay("vol-1", &image, Format::Raw, 2 * MIB).await.unwrap();
    let inode = fs::metadata(&volume.path).unwrap().ino();
    assert_eq!(driver.create_overlay("vol-1", &image, Format::Raw, 2 * MIB).await.unwrap(), volume);
    assert_eq!(fs::metadata(&volume.path).unwrap().ino(), inode);
    let larger = driver.create_overlay("vol-1", &image, Format::Raw, 3 * MIB).await;
    assert!(matches!(larger, Err(Error::Conflict(_))));
    let other = driver.create_empty("vol-1", 2 * MIB).await;
    assert!(matches!(other, Err(Error::Conflict(_))));
    assert_eq!(driver.info("vol-1").unwrap(), Some(volume));

    driver.remove("vol-1").unwrap();
    driver.remove("vol-1").unwrap();
    assert_eq!(driver.info("vol-1").unwrap(), None);
    assert!(bench.files().is_empty());
    assert!(image.exists());
}

#[tokio::test]
async fn makers_at_the_same_time_make_one_volume() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let create = || driver.create_empty("vol-1", MIB);
    let (a, b, c, d) = tokio::join!(create(), create(), create(), create());
    for volume in [a, b, c, d] {
        assert_eq!(volume.unwrap().size, MIB);
    }
    assert_eq!(bench.files(), ["vol-1.qcow2"]);
    assert_eq!(fs::metadata(driver.path("vol-1").unwrap()).unwrap().nlink(), 1);
}

#[tokio::test]
async fn what_a_killed_maker_left_is_removed() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    driver.create_empty("vol-1", MIB).await.unwrap();
    let half = bench.path("volumes/.new-vol-2-1-0");
    fs::write(&half, "half").unwrap();
    // Killed between giving the volume its name and taking the other away.
    fs::hard_link(driver.path("vol-1").unwrap(), bench.path("volumes/.new-vol-1-1-0")).unwrap();
    assert_eq!(driver.list().unwrap(), ["vol-1"]);
    let driver = bench.driver();
    assert_eq!(bench.files(), ["vol-1.qcow2"]);
    qemu_img(&["check", "-q"], &driver.path("vol-1").unwrap());
}

#[tokio::test]
async fn bad_wishes_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let image = bench.path("image.raw");
    let long = "v".repeat(65);
    for id in ["", "../vol", "Vol-1", "vol 1", "vol/1", "-vol", ".new-1", &long] {
        assert!(matches!(driver.create_empty(id, MIB).await, Err(Error::InvalidId(_))), "{id}");
        assert!(matches!(driver.remove(id), Err(Error::InvalidId(_))), "{id}");
    }
    for size in [0, 1, MIB + 1, (64 << 40) + 512, u64::MAX] {
        assert!(matches!(driver.create_empty("vol-1", size).await, Err(Error::InvalidSize(_))), "{size}");
    }
    let smaller = driver.create_overlay("vol-1", &image, Format::Raw, MIB - 512).await;
    assert!(matches!(smaller, Err(Error::SmallerThanImage { size: 1_048_064, image: 1_048_576 })));

    let huge_name = bench.path("huge-name.qcow2");
    let mut header = b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\x01\0\xff\xff\xff\xff".to_vec();
    header.resize(512, 0);
    fs::write(&huge_name, header).unwrap();
    let short = bench.path("short.qcow2");
    fs::write(&short, b"QFI\xfb").unwrap();
    let bad = [
        (bench.path("missing"), Format::Raw),
        (bench.path("missing"), Format::Qcow2),
        (bench.path("volumes"), Format::Raw),
        (image, Format::Qcow2),
        (short, Format::Qcow2),
        (huge_name, Format::Qcow2),
    ];
    for (path, format) in bad {
        let error = driver.create_overlay("vol-1", &path, format, MIB).await.unwrap_err();
        assert!(matches!(error, Error::BadImage { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert!(bench.files().is_empty());
}

#[tokio::test]
async fn a_spoilt_volume_is_told() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let volume = driver.create_empty("vol-1", MIB).await.unwrap();
    fs::write(&volume.path, "spoilt, but longer than the head of a qcow2 file").unwrap();
    assert!(matches!(driver.info("vol-1"), Err(Error::BadImage { .. })));
    assert!(matches!(driver.create_empty("vol-1", MIB).await, Err(Error::BadImage { .. })));
    driver.remove("vol-1").unwrap();
    driver.create_empty("vol-1", MIB).await.unwrap();
}

#[tokio::test]
async fn a_full_host_is_called_full() {
    let Some(bench) = Bench::new() else { return };
    let small = bench.path("volumes");
    fs::create_dir(&small).unwrap();
    let flags = nix::mount::MsFlags::empty();
    if let Err(error) = nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), flags, Some("size=64k")) {
        eprintln!("skipped: cannot mount: {error}");
        return;
    }
    let driver = bench.driver();
    let empty = driver.create_empty("vol-1", 1 << 30).await;
    let overlay = driver.create_overlay("vol-2", &bench.path("image.raw"), Format::Raw, 1 << 30).await;
    let files = bench.files();
    drop(driver);
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
    for result in [empty, overlay] {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::NoSpace(path) if *path == small), "{error}");
    }
    assert!(files.is_empty(), "{files:?}");
}

/// Run by the next test, in a process that has no programs.
#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn without_programs() {
    let folder = tempfile::tempdir().unwrap();
    let error = Driver::new(folder.path()).unwrap().create_empty("vol-1", MIB).await.unwrap_err();
    assert!(matches!(error, Error::ToolMissing), "{error}");
    println!("it is missing");
}

#[test]
fn a_missing_tool_is_named() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["without_programs", "--exact", "--ignored", "--nocapture"])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("it is missing"));
}

/// Writes a MiB of a byte into a volume, as a guest would.
fn write(path: &Path, at_mib: u64, byte: u8) {
    let command = format!("write -q -P {byte} {at_mib}M 1M");
    let written = Command::new("qemu-io").args(["-f", "qcow2", "-c", &command]).arg(path).status().unwrap();
    assert!(written.success());
}

/// A snapshot of a volume that no machine has.
async fn snapshot(driver: &Driver, volume: &str, snapshot: &str) {
    driver.prepare_snapshot(volume, snapshot).await.unwrap().expect("a snapshot to be taken");
    driver.finish_snapshot(volume).unwrap();
}

#[tokio::test]
async fn snapshots_keep_what_was_and_hold_only_what_changed() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let volume = driver.create_empty("vol-1", 16 * MIB).await.unwrap();
    for (at, name) in [(0, "snap-1"), (1, "snap-2"), (2, "snap-3")] {
        write(&volume.path, at, 7 + at as u8);
        snapshot(&driver, "vol-1", name).await;
        // Again, as a daemon does that was interrupted.
        assert_eq!(driver.prepare_snapshot("vol-1", name).await.unwrap(), None);
    }
    write(&volume.path, 0, 99);
    for (name, written) in [("snap-1", 1), ("snap-2", 2), ("snap-3", 3)] {
        let info = driver.info(name).unwrap().unwrap();
        assert!(info.allocated < 2 * MIB, "{name} takes {} bytes", info.allocated);
        let mut wanted: Vec<u8> = (0..written).flat_map(|at| vec![7 + at; 1 << 20]).collect();
        wanted.resize(16 << 20, 0);
        assert!(contents(&info.path) == wanted, "{name}");
    }

    // A volume of a snapshot, larger than it, whose origin goes.
    let small = driver.create_from_snapshot("vol-2", "snap-2", MIB).await.unwrap_err();
    assert!(matches!(small, Error::SmallerThanImage { .. }), "{small}");
    let missing = driver.create_from_snapshot("vol-2", "snap-9", MIB).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound(_)), "{missing}");
    let copy = driver.create_from_snapshot("vol-2", "snap-2", 20 * MIB).await.unwrap();
    assert!(copy.allocated < MIB);
    for id in ["snap-1", "snap-2", "vol-1"] {
        driver.remove(id).unwrap();
    }
    assert_eq!(driver.list().unwrap(), ["snap-3", "vol-2"]);
    let driver = bench.driver();
    assert_eq!(driver.list().unwrap(), ["snap-3", "vol-2"]);
    assert_eq!(contents(&copy.path)[1 << 20], 8);
    assert_eq!(contents(&driver.path("snap-3").unwrap())[0], 7);

    // What was kept for others goes with the last of them.
    driver.remove("vol-2").unwrap();
    driver.remove("snap-3").unwrap();
    assert_eq!(bench.files(), Vec::<String>::new());
}

#[tokio::test]
async fn a_snapshot_that_was_cut_off_is_gone_on_with() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let volume = driver.create_empty("vol-1", 4 * MIB).await.unwrap();
    write(&volume.path, 0, 1);
    let next = driver.prepare_snapshot("vol-1", "snap-1").await.unwrap().unwrap();
    // A machine has turned to it and written, and the host has gone down.
    write(&next, 1, 2);
    let driver = bench.driver();
    assert_eq!(driver.prepare_snapshot("vol-1", "snap-1").await.unwrap(), Some(next));
    driver.finish_snapshot("vol-1").unwrap();
    let (now, then) = (contents(&volume.path), contents(&driver.path("snap-1").unwrap()));
    assert_eq!((now[0], now[1 << 20], then[0], then[1 << 20]), (1, 2, 1, 0));
    driver.create_empty("vol-2", 4 * MIB).await.unwrap();
    let other = driver.prepare_snapshot("vol-2", "snap-1").await.unwrap_err();
    assert!(matches!(other, Error::Conflict(_)), "{other}");

    // Taken back, as if it had never been asked for.
    driver.prepare_snapshot("vol-2", "snap-2").await.unwrap().unwrap();
    driver.abandon_snapshot("vol-2", "snap-2").unwrap();
    assert_eq!(driver.list().unwrap(), ["snap-1", "vol-1", "vol-2"]);
    // Cut off before any machine turned, and the volume is removed.
    driver.prepare_snapshot("vol-2", "snap-2").await.unwrap().unwrap();
    driver.remove("vol-2").unwrap();
    driver.remove("snap-2").unwrap();
    assert_eq!(driver.list().unwrap(), ["snap-1", "vol-1"]);
}

/// Merges what can be merged, until nothing can.
async fn merge(driver: &Driver) -> usize {
    merge_beside(driver, &BTreeSet::new()).await
}

/// The same, while machines run.
async fn merge_beside(driver: &Driver, machines: &BTreeSet<u32>) -> usize {
    let mut merged = 0;
    loop {
        driver.sweep().unwrap();
        let Some(run) = driver.runs(machines).unwrap().into_iter().next() else { return merged };
        driver.prepare(&run).await.unwrap();
        driver.copy(&run).await.unwrap();
        assert!(driver.replace(&run).unwrap());
        merged += 1;
    }
}

/// Whether all threads of a process are gone, or only wait for its parent to take note: until then its files are open and locked.
fn has_ended(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("stat")).ok()).all(|stat| {
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z') || rest.starts_with('X'))
    })
}

/// The processes that have a file open.
fn users(path: &Path) -> BTreeSet<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let has_open = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        files.filter_map(|file| fs::read_link(file.ok()?.path()).ok()).any(|target| target == path)
    };
    pids.filter(has_open).collect()
}

#[tokio::test]
async fn removed_layers_are_merged_unless_they_are_needed_or_open() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let volume = driver.create_empty("vol-1", 16 * MIB).await.unwrap();
    for at in 0..8u64 {
        write(&volume.path, at, 1 + at as u8);
        write(&volume.path, 15, 1 + at as u8);
        snapshot(&driver, "vol-1", &format!("snap-{at}")).await;
    }
    let read = |id: &str| contents(&driver.path(id).unwrap());
    let depth = |id: &str| driver.layers(id).unwrap().len();
    let (all, half) = (read("vol-1"), read("snap-4"));
    assert_eq!((depth("vol-1"), merge(&driver).await), (9, 0));
    // Something else stands on the first; a copy of the third is needed; the fifth is needed itself.
    driver.create_from_snapshot("vol-2", "snap-0", 16 * MIB).await.unwrap();
    driver.copy_snapshot("snap-2", "snap-c").unwrap();
    for at in [0, 1, 2, 3, 5, 6, 7] {
        driver.remove(&format!("snap-{at}")).unwrap();
    }
    // As long as a process has them open, they stay.
    let session = driver.open_session("vol-1", true).await.unwrap();
    assert_eq!(merge(&driver).await, 0);
    drop(session);
    let (first, copied) = (read("vol-2"), read("snap-c"));
    let runs = || driver.runs(&BTreeSet::new()).unwrap();
    let mut open = runs();
    for _ in 0..100 {
        if !open.is_empty() {
            break;
        }
        // The session's process ends a little later.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        open = runs();
    }
    assert!(merge(&driver).await > 0);
    assert!(read("vol-1") == all && read("snap-4") == half);
    assert!(read("vol-2") == first && read("snap-c") == copied);
    // snap-0, snap-c with snap-1 in it, snap-4 with snap-3, and the volume with the rest.
    assert!(depth("vol-1") <= 5, "{:?}", driver.layers("vol-1"));
    // What stood in the way goes, and all that is removed with it.
    for id in ["vol-2", "snap-c", "snap-4"] {
        driver.remove(id).unwrap();
    }
    merge(&driver).await;
    assert!(read("vol-1") == all);
    assert_eq!((depth("vol-1"), driver.list().unwrap()), (1, vec!["vol-1".to_owned()]));
    qemu_img(&["check", "-q"], &volume.path);
    let allocated = driver.info("vol-1").unwrap().unwrap().allocated;
    assert!(allocated < 10 * MIB, "it takes {allocated} bytes");
    // It goes on as any volume.
    write(&volume.path, 9, 77);
    snapshot(&driver, "vol-1", "snap-9").await;
    assert_eq!(read("snap-9")[9 << 20], 77);
    driver.remove("vol-1").unwrap();
    driver.remove("snap-9").unwrap();
    driver.sweep().unwrap();
    assert_eq!(bench.files(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_below_a_volume_that_runs_is_merged_and_its_own_layer_is_not() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let size = 16 * MIB;
    let volume = driver.create_overlay("vol-1", &bench.path("image.raw"), Format::Raw, size).await.unwrap();
    for at in 0..6u64 {
        write(&volume.path, at, 1 + at as u8);
        write(&volume.path, 15, 1 + at as u8);
        snapshot(&driver, "vol-1", &format!("snap-{at}")).await;
    }
    let kept = contents(&driver.path("snap-4").unwrap());
    // What has the volume open stands for a machine.
    let mut session = driver.open_session("vol-1", true).await.unwrap();
    session.write(9 * MIB, &[99; 512]).await.unwrap();
    let machine = users(&volume.path);
    let all = session.read(0, size as usize).await.unwrap();
    let disks = ["vol-1".to_owned()];
    let outdated = || machine.iter().any(|pid| driver.is_outdated(*pid, &disks).unwrap());
    for at in [0, 1, 2, 3, 5] {
        driver.remove(&format!("snap-{at}")).unwrap();
    }
    // The names under which a machine opened the volume are in the way as long as what is below has them.
    assert!(outdated());
    assert_eq!(merge_beside(&driver, &machine).await, 0);
    driver.forget_lower_open_names("vol-1").unwrap();
    assert!(!outdated());
    // Nothing is merged beside anything but machines.
    assert_eq!(merge(&driver).await, 0);
    assert_eq!(merge_beside(&driver, &machine).await, 1);
    assert!(outdated(), "it has the old layers open");
    assert_eq!(session.read(0, size as usize).await.unwrap(), all);
    session.write(10 * MIB, &[100; 512]).await.unwrap();
    session.flush().await.unwrap();
    drop(session);
    while !machine.iter().copied().all(has_ended) {
        // The session's process ends a little later, and gives its locks up while it does.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // The volume, snap-5, snap-4 with what was below it, and the image.
    assert_eq!(driver.layers("vol-1").unwrap().len(), 4);
    let read = contents(&driver.path("vol-1").unwrap());
    assert!(read[..10 << 20] == all[..10 << 20] && read[11 << 20..] == all[11 << 20..]);
    assert_eq!(read[10 << 20], 100);
    assert!(contents(&driver.path("snap-4").unwrap()) == kept);
    assert_eq!(merge(&driver).await, 1, "its own layer is merged when nothing has it open");
    assert!(contents(&driver.path("vol-1").unwrap()) == read);
}

#[tokio::test]
async fn what_happens_while_layers_are_copied_is_heeded() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let volume = driver.create_empty("vol-1", 8 * MIB).await.unwrap();
    for at in 0..3u64 {
        write(&volume.path, at, 1 + at as u8);
        snapshot(&driver, "vol-1", &format!("snap-{at}")).await;
        driver.finish_snapshot("vol-1").unwrap();
    }
    driver.sweep().unwrap();
    let all = contents(&driver.path("vol-1").unwrap());
    driver.remove("snap-0").unwrap();
    driver.remove("snap-1").unwrap();
    let run = || driver.runs(&BTreeSet::new()).unwrap().into_iter().next().unwrap();
    // The topmost gets another name meanwhile, and a volume, and is removed.
    let first = run();
    driver.prepare(&first).await.unwrap();
    driver.copy(&first).await.unwrap();
    driver.copy_snapshot("snap-2", "snap-c").unwrap();
    driver.create_from_snapshot("vol-2", "snap-c", 8 * MIB).await.unwrap();
    driver.remove("snap-2").unwrap();
    assert!(driver.replace(&first).unwrap());
    driver.sweep().unwrap();
    for id in ["vol-1", "vol-2", "snap-c"] {
        assert!(contents(&driver.path(id).unwrap()) == all, "{id}");
    }
    assert_eq!(driver.layers("vol-1").unwrap().len(), 2);
    // All goes meanwhile.
    write(&driver.path("vol-2").unwrap(), 5, 5);
    for at in 3..5 {
        snapshot(&driver, "vol-2", &format!("snap-{at}")).await;
        driver.sweep().unwrap();
    }
    driver.remove("snap-3").unwrap();
    driver.remove("snap-4").unwrap();
    let second = run();
    driver.prepare(&second).await.unwrap();
    driver.copy(&second).await.unwrap();
    driver.remove("vol-2").unwrap();
    assert!(!driver.replace(&second).unwrap());
    driver.sweep().unwrap();
    assert!(contents(&driver.path("vol-1").unwrap()) == all);
    assert_eq!(driver.list().unwrap(), ["snap-c", "vol-1"]);
}

#[tokio::test]
async fn a_full_host_has_nothing_merged_and_nothing_spoilt() {
    let Some(bench) = Bench::new() else { return };
    let small = bench.path("volumes");
    fs::create_dir(&small).unwrap();
    let flags = nix::mount::MsFlags::empty();
    if let Err(error) = nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), flags, Some("size=80m")) {
        eprintln!("skipped: cannot mount: {error}");
        return;
    }
    let driver = bench.driver();
    let volume = driver.create_empty("vol-1", 32 * MIB).await.unwrap();
    for at in 0..3u64 {
        for mib in 0..4 {
            write(&volume.path, 4 * at + mib, 1 + at as u8);
        }
        snapshot(&driver, "vol-1", &format!("snap-{at}")).await;
    }
    driver.sweep().unwrap();
    let all = contents(&driver.path("vol-1").unwrap());
    driver.remove("snap-0").unwrap();
    driver.remove("snap-1").unwrap();
    let run = driver.runs(&BTreeSet::new()).unwrap().into_iter().next().unwrap();
    let refused = driver.prepare(&run).await;
    // It was begun all the same, and the disk has become full.
    fs::write(small.join("rest"), vec![1; 64 << 20]).unwrap();
    let broken = driver.copy(&run).await;
    let contents = |id| contents_through(&driver.path(id).unwrap(), &bench.path("read"));
    let read = ["vol-1", "snap-2"].map(contents);
    fs::remove_file(small.join("rest")).unwrap();
    let copied = driver.copy(&run).await;
    let replaced = driver.replace(&run).unwrap();
    let after = ["vol-1", "snap-2"].map(contents);
    drop(driver);
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
    for result in [refused, broken] {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::NoSpace(path) if *path == small), "{error}");
    }
    assert!(read.iter().chain(&after).all(|read| *read == all));
    copied.unwrap();
    assert!(replaced);
}

#[tokio::test]
async fn a_grown_volume_keeps_its_size_when_what_is_below_is_merged() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let volume =
        driver.create_overlay("vol-1", &bench.path("image.raw"), Format::Raw, 4 * MIB).await.unwrap();
    write(&volume.path, 1, 1);
    snapshot(&driver, "vol-1", "snap-1").await;
    driver.grow("vol-1", 8 * MIB).await.unwrap();
    write(&volume.path, 6, 6);
    let all = contents(&volume.path);
    driver.remove("snap-1").unwrap();
    assert_eq!(merge(&driver).await, 1);
    let merged = driver.info("vol-1").unwrap().unwrap();
    assert_eq!((merged.size, merged.backing), (8 * MIB, Some(bench.path("image.raw"))));
    assert!(contents(&volume.path) == all);
    // An upper layer that is much larger than what is gained is left alone.
    snapshot(&driver, "vol-1", "snap-2").await;
    for at in 0..8 {
        write(&volume.path, at, 9);
    }
    snapshot(&driver, "vol-1", "snap-3").await;
    driver.remove("snap-3").unwrap();
    assert_eq!(driver.layers("vol-1").unwrap().len(), 4);
    assert_eq!(merge(&driver).await, 1, "the volume is empty yet");
    assert_eq!(contents(&volume.path), vec![9; 8 << 20]);
}

#[tokio::test]
async fn an_encrypted_volume_shows_its_image_to_the_end_and_hides_what_is_written() {
    let Some(bench) = Bench::new() else { return };
    let key = haar_volume::Key::new("a key of the tests, not of anything");
    let driver = bench.driver().with_key(Some(key.clone()));
    // An image that is larger than the empty file that encrypted ones are copies of.
    let large = bench.path("large.raw");
    fs::write(&large, [pattern(), pattern(), pattern()].concat()).unwrap();
    for id in ["vol-1", "vol-2"] {
        let volume = driver.create_overlay(id, &large, Format::Raw, 4 * MIB).await.unwrap();
        assert!(volume.encrypted && volume.size == 4 * MIB);
    }
    let mut session = driver.open_session("vol-1", true).await.unwrap();
    assert_eq!(session.read(2 * MIB, MIB as usize).await.unwrap(), pattern());
    assert_eq!(session.read(3 * MIB, MIB as usize).await.unwrap(), vec![0; MIB as usize]);
    let secret = b"in no file ".repeat(4096);
    session.write(MIB, &secret).await.unwrap();
    session.flush().await.unwrap();
    drop(session);
    let path = driver.path("vol-1").unwrap();
    let within = |path: &Path| fs::read(path).unwrap().windows(11).any(|window| window == b"in no file ");
    assert!(!within(&path));
    let mut session = driver.open_session("vol-1", false).await.unwrap();
    assert_eq!(session.read(MIB, secret.len()).await.unwrap(), secret);
    drop(session);
    // The layers of a volume have one key, and nothing opens without it.
    let next = driver.prepare_snapshot("vol-1", "snap-1").await.unwrap().unwrap();
    driver.finish_snapshot("vol-1").unwrap();
    assert!(
        next.exists() && driver.layers("vol-1").unwrap().iter().filter(|layer| layer.encrypted).count() == 2
    );
    let copy = driver.create_from_snapshot("vol-3", "snap-1", 5 * MIB).await.unwrap();
    assert!(copy.encrypted);
    let mut session = driver.open_session("vol-3", false).await.unwrap();
    assert_eq!(session.read(MIB, secret.len()).await.unwrap(), secret);
    drop(session);
    let plain = driver.with_key(None);
    assert!(matches!(
        plain.create_from_snapshot("vol-4", "snap-1", 5 * MIB).await,
        Err(Error::KeyMissing(_))
    ));
    let wrong = driver.with_key(Some(haar_volume::Key::new("another")));
    assert!(matches!(wrong.open_session("vol-1", false).await, Err(Error::Tool(_))));
}
