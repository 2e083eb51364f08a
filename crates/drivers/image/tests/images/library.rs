use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use haar_image::{Boot, BootMode, Error, ImageId, ImportOptions, Library, Progress, Source, Unit};

use super::{assert_empty, bootable_disk, names};

fn named(name: &str) -> ImportOptions {
    ImportOptions { name: Some(name.into()), ..ImportOptions::default() }
}

#[test]
fn an_image_is_listed_found_verified_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(dir.path().join("new/images")).unwrap();
    let disk = dir.path().join("disk.raw");
    bootable_disk(&disk, 2);
    let one = library.import(&disk, &named("one"), &mut ()).unwrap();
    let two = library.import(&disk, &named("two"), &mut ()).unwrap();
    assert_ne!(one.id(), two.id());

    let mut expected = [one.clone(), two.clone()];
    expected.sort_by(|a, b| a.id().cmp(b.id()));
    assert_eq!(library.list().unwrap(), expected);
    assert_eq!(library.get(one.id()).unwrap(), one);
    assert_eq!(library.find_by_name("two").unwrap(), Some(two.clone()));
    assert_eq!(library.find_by_name("three").unwrap(), None);
    library.verify(one.id(), &mut ()).unwrap();

    let manifest = &one.manifest;
    assert_eq!(manifest.source, Source::Import { file: "disk.raw".into() });
    assert_eq!((manifest.root_disk.virtual_size, manifest.root_disk.minimum_size), (2 << 20, 1 << 30));
    assert_eq!(manifest.minimum_size_gib(), 1);
    assert_eq!(manifest.boot, Boot::Firmware { mode: BootMode::LegacyBios });
    assert_eq!((one.kernel(), one.initrd(), one.command_line()), (None, None, None));
    let date = &manifest.creation_date;
    assert!(date.len() == 24 && date.ends_with('Z') && &date[10..11] == "T", "{date}");
    // What overlays are made of cannot be written to by accident.
    for file in names(one.dir()) {
        let mode = fs::metadata(one.dir().join(&file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444, "{file}");
    }
    assert_eq!(names(one.dir()), ["manifest.json", "root.qcow2"]);

    library.remove(one.id()).unwrap();
    assert!(matches!(library.get(one.id()), Err(Error::NotFound(id)) if id == *one.id()));
    assert!(matches!(library.remove(one.id()), Err(Error::NotFound(_))));
    assert_eq!(library.list().unwrap(), [two]);
}

#[test]
fn a_name_is_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(dir.path().join("images")).unwrap();
    let disk = dir.path().join("disk.raw");
    bootable_disk(&disk, 1);
    let first = library.import(&disk, &named("name"), &mut ()).unwrap();
    let error = library.import(&disk, &named("name"), &mut ()).unwrap_err();
    assert!(matches!(error, Error::NameTaken { image_id, .. } if image_id == *first.id()));
    for bad in ["", "ab", "a/../../b\0", "ümlaut", &"x".repeat(129)] {
        assert!(matches!(library.import(&disk, &named(bad), &mut ()), Err(Error::InvalidName(_))), "{bad}");
    }
    assert_eq!(library.list().unwrap(), [first]);

    // Also when two are made at the same time.
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| library.import(&disk, &named("race"), &mut ()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(Error::NameTaken { .. }))));
    assert_eq!(names(library.dir()).len(), 2);
}

#[test]
fn damage_is_noticed_and_does_not_hide_other_images() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(dir.path().join("images")).unwrap();
    let disk = dir.path().join("disk.raw");
    bootable_disk(&disk, 1);
    let [good, flipped, cut, gone, text, other] = ["good", "flipped", "cut", "gone", "text", "other"]
        .map(|name| library.import(&disk, &named(name), &mut ()).unwrap());

    let mut content = fs::read(flipped.root_disk()).unwrap();
    *content.last_mut().unwrap() ^= 1;
    let rewrite = |path: PathBuf, content: &[u8]| {
        fs::remove_file(&path).unwrap();
        fs::write(path, content).unwrap();
    };
    rewrite(flipped.root_disk(), &content);
    rewrite(cut.root_disk(), &content[..content.len() / 2]);
    fs::remove_file(gone.root_disk()).unwrap();
    rewrite(text.dir().join("manifest.json"), b"{\"format\": 1");
    let manifest = fs::read_to_string(other.dir().join("manifest.json")).unwrap();
    let outside = manifest.replace("\"root.qcow2\"", "\"../secret\"");
    rewrite(other.dir().join("manifest.json"), outside.as_bytes());

    // A flipped bit is seen by reading, the rest by looking.
    assert!(matches!(library.verify(flipped.id(), &mut ()), Err(Error::Corrupt { .. })));
    assert!(matches!(library.get(cut.id()), Err(Error::Corrupt { reason, .. }) if reason.contains("bytes")));
    assert!(
        matches!(library.get(gone.id()), Err(Error::Corrupt { reason, .. }) if reason.contains("missing"))
    );
    assert!(matches!(library.get(text.id()), Err(Error::Manifest { .. })));
    assert!(matches!(library.get(other.id()), Err(Error::Manifest { .. })));
    let mut usable = [good, flipped];
    usable.sort_by(|a, b| a.id().cmp(b.id()));
    assert_eq!(library.list().unwrap(), usable);
}

#[test]
fn identifiers_are_checked() {
    for bad in
        ["", "ami-", "ami-0123", "ami-0123456789ABCDEF0", "i-0123456789abcdef0", "ami-../../../../../../a"]
    {
        assert!(bad.parse::<ImageId>().is_err(), "{bad}");
    }
    for good in ["ami-0123456789abcdef0", "ami-12345678"] {
        assert_eq!(good.parse::<ImageId>().unwrap().as_str(), good);
    }
}

/// Stops for ever at a stage, and says so.
struct Stuck;

impl Progress for Stuck {
    fn stage(&mut self, name: &str, _: Unit, _: Option<u64>) {
        if name == "checksum" {
            println!("stuck");
            std::thread::sleep(Duration::from_secs(600));
        }
    }

    fn advance(&mut self, _: u64) {}
}

/// Not a test by itself: what the next one kills.
#[test]
fn helper_stuck_import() {
    let Some(dir) = std::env::var_os("HAAR_TEST_STUCK").map(PathBuf::from) else { return };
    let library = Library::open(dir.join("images")).unwrap();
    let _ = library.import(&dir.join("disk.raw"), &named("stuck"), &mut Stuck);
}

#[test]
fn a_killed_import_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    bootable_disk(&dir.path().join("disk.raw"), 1);
    let library = Library::open(dir.path().join("images")).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "library::helper_stuck_import", "--nocapture"])
        .env("HAAR_TEST_STUCK", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let half_made = || {
        let found = names(library.dir());
        found.iter().any(|name| library.dir().join(name).join("root.qcow2").exists())
    };
    while !half_made() {
        assert!(Instant::now() < deadline, "the import does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Somebody is at work there: it is neither an image nor garbage.
    assert_eq!(library.list().unwrap(), []);
    assert!(half_made());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(library.list().unwrap(), []);
    assert_empty(&library);
}
