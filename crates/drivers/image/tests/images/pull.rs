use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use haar_image::{BootMode, Catalogue, Error, Image, Library, PullOptions, Result, Source};
use sha2::{Digest, Sha256, Sha512};

use super::server::{Served, Server};
use super::{Report, SmallDisk, assert_empty, bootable_disk, content, names, path_str, qemu_img};

/// A server with a published disk, and a library to pull it into.
struct Place {
    dir: tempfile::TempDir,
    server: Server,
    library: Library,
    options: PullOptions,
    /// The disk as a guest should see it.
    disk: Vec<u8>,
    /// The file as it is published: qcow2.
    published: Vec<u8>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (raw, packed) = (dir.path().join("disk.raw"), dir.path().join("disk.qcow2"));
        let disk = bootable_disk(&raw, 4);
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", path_str(&raw), path_str(&packed)]);
        let published = fs::read(packed).unwrap();
        let library = Library::open(dir.path().join("images")).unwrap();
        let options = PullOptions {
            name: None,
            downloads: dir.path().join("downloads"),
            attempts: 3,
            pause: Duration::from_millis(10),
        };
        Place { dir, server: Server::start(), library, options, disk, published }
    }

    /// A catalogue with one entry `test`; the lines are added to it.
    fn catalogue(&self, lines: &str) -> Catalogue {
        let file = self.dir.path().join("catalogue.toml");
        fs::write(&file, format!("[test]\ndefault-user = 'someone'\n{lines}\n")).unwrap();
        let mut catalogue = Catalogue::default();
        catalogue.extend_from_file(&file).unwrap();
        catalogue
    }

    /// The entry of a file behind `/disk` with the right checksum.
    fn entry(&self) -> Catalogue {
        let sum = hex::encode(Sha256::digest(&self.published));
        self.catalogue(&format!("url = '{}'\nchecksum = 'sha256:{sum}'", self.server.url("/disk")))
    }

    fn pull(&self, catalogue: &Catalogue) -> Result<Image> {
        self.library.pull(catalogue, "test", &self.options, &mut ())
    }

    fn downloads(&self) -> Vec<String> {
        if self.options.downloads.exists() { names(&self.options.downloads) } else { Vec::new() }
    }

    /// The image is there with its content, and nothing else.
    fn assert_pulled(&self, image: &Image) {
        assert!(content(image) == self.disk, "another disk");
        self.library.verify(image.id(), &mut ()).unwrap();
        assert_eq!(names(self.library.dir()), [image.id().as_str()]);
        assert_eq!(self.downloads(), Vec::<String>::new());
    }

    /// The byte positions from which the disk was asked for.
    fn ranges(&self) -> Vec<Option<String>> {
        self.server.requests("/disk").into_iter().map(|request| request.range).collect()
    }
}

#[test]
fn a_whole_transfer() {
    let place = Place::new();
    place.server.serve("/disk", Served::new(&place.published));
    let mut report = Report::default();
    let image = place.library.pull(&place.entry(), "test", &place.options, &mut report).unwrap();
    place.assert_pulled(&image);
    assert_eq!(place.ranges(), [None]);
    let length = place.published.len() as u64;
    let downloads: Vec<_> =
        report.stages.iter().zip(&report.done).filter(|(s, _)| s.0 == "download").collect();
    assert_eq!(downloads.len(), 1);
    assert_eq!((downloads[0].0.2, *downloads[0].1), (Some(length), length));

    let manifest = &image.manifest;
    let sum = hex::encode(Sha256::digest(&place.published));
    let source = Source::Pull {
        entry: "test".into(),
        url: place.server.url("/disk"),
        checksum: format!("sha256:{sum}"),
    };
    assert_eq!(manifest.source, source);
    assert_eq!((manifest.name.as_str(), manifest.default_user.as_str()), ("test", "someone"));
    assert_eq!(image.firmware(), Some(BootMode::LegacyBios));
    // A second call fetches nothing.
    assert!(matches!(place.pull(&place.entry()), Err(Error::NameTaken { .. })));
    assert_eq!(place.ranges().len(), 1);
}

#[test]
fn an_interrupted_transfer_goes_on_where_it_was() {
    let place = Place::new();
    let mut served = Served::new(&place.published);
    served.etag = Some("\"v1\"".into());
    served.cuts = vec![100_000, 50_000, 0];
    place.server.serve("/disk", served);
    let image = place.pull(&place.entry()).unwrap();
    place.assert_pulled(&image);
    let expected = [None, Some("bytes=100000-"), Some("bytes=150000-"), Some("bytes=150000-")];
    assert_eq!(place.ranges(), expected.map(|range| range.map(str::to_owned)));
    let tags: Vec<_> = place.server.requests("/disk").into_iter().map(|request| request.if_range).collect();
    assert_eq!(tags[1..], [Some("\"v1\"".into()), Some("\"v1\"".into()), Some("\"v1\"".into())]);
}

#[test]
fn a_later_call_goes_on_where_a_failed_one_ended() {
    let place = Place::new();
    let mut served = Served::new(&place.published);
    served.cuts = vec![200_000, 0, 0, 0];
    place.server.serve("/disk", served);
    let error = place.pull(&place.entry()).unwrap_err();
    assert!(matches!(&error, Error::Transfer { reason, .. } if !reason.is_empty()), "{error}");
    assert_empty(&place.library);
    assert_eq!(place.downloads().len(), 1);

    place.server.serve("/disk", Served::new(&place.published));
    let before = place.ranges().len();
    let image = place.pull(&place.entry()).unwrap();
    place.assert_pulled(&image);
    assert_eq!(place.ranges()[before..], [Some("bytes=200000-".into())]);
}

#[test]
fn a_server_without_ranges_starts_again() {
    let place = Place::new();
    let mut served = Served::new(&place.published);
    (served.ranges, served.cuts) = (false, vec![100_000]);
    place.server.serve("/disk", served);
    let image = place.pull(&place.entry()).unwrap();
    place.assert_pulled(&image);
    assert_eq!(place.ranges(), [None, Some("bytes=100000-".into())]);
}

#[test]
fn a_server_that_does_not_say_the_length() {
    let place = Place::new();
    let mut served = Served::new(&place.published);
    // Here a break looks like the end: only the checksum tells, and the rest is fetched.
    (served.length, served.cuts) = (false, vec![100_000]);
    place.server.serve("/disk", served);
    let first = place.pull(&place.entry());
    assert!(matches!(first, Err(Error::Checksum { .. })), "{first:?}");
    let image = place.pull(&place.entry()).unwrap();
    place.assert_pulled(&image);
}

#[test]
fn a_file_that_changed_meanwhile_is_not_mixed() {
    let place = Place::new();
    // The former content has another length and no bytes in common with the new one.
    let mut old = Served::new(&vec![0xaa; place.published.len() + 5]);
    (old.etag, old.cuts) = (Some("\"old\"".into()), vec![100_000, 0, 0, 0]);
    place.server.serve("/disk", old);
    assert!(place.pull(&place.entry()).is_err());
    let mut new = Served::new(&place.published);
    new.etag = Some("\"new\"".into());
    place.server.serve("/disk", new.clone());
    let image = place.pull(&place.entry()).unwrap();
    place.assert_pulled(&image);
    place.library.remove(image.id()).unwrap();

    // Without tags nothing tells, but the checksum: what was put together is thrown away and fetched again.
    let mut old = Served::new(&vec![0xaa; place.published.len()]);
    old.cuts = vec![100_000, 0, 0, 0];
    place.server.serve("/disk", old);
    assert!(place.pull(&place.entry()).is_err());
    new.etag = None;
    place.server.serve("/disk", new);
    let image = place.pull(&place.entry()).unwrap();
    place.assert_pulled(&image);
}

#[test]
fn a_broken_checksum_lets_nothing_appear() {
    let place = Place::new();
    let mut content = place.published.clone();
    *content.last_mut().unwrap() ^= 1;
    place.server.serve("/disk", Served::new(&content));
    let error = place.pull(&place.entry()).unwrap_err();
    let Error::Checksum { expected, actual, .. } = &error else { panic!("{error}") };
    assert_eq!(*actual, format!("sha256:{}", hex::encode(Sha256::digest(&content))));
    assert_ne!(actual, expected);
    assert_empty(&place.library);
    assert_eq!(place.downloads(), Vec::<String>::new());
    assert_eq!(place.ranges().len(), 1);
}

#[test]
fn errors_of_servers() {
    let place = Place::new();
    let error = place.pull(&place.entry()).unwrap_err();
    assert!(matches!(error, Error::HttpStatus { status: 404, .. }));
    assert_eq!(place.ranges().len(), 1, "what is not there does not come by asking again");
    // Trouble that passes is waited for,
    let mut served = Served::new(&place.published);
    served.failures = vec![503, 429];
    place.server.serve("/disk", served.clone());
    place.pull(&place.entry()).map(|image| place.library.remove(image.id()).unwrap()).unwrap();
    // but not for ever.
    served.failures = vec![500; 10];
    place.server.serve("/disk", served);
    let error = place.pull(&place.entry()).unwrap_err();
    assert!(matches!(&error, Error::Transfer { reason, .. } if reason.contains("500")), "{error}");
    assert_empty(&place.library);
    let nobody =
        place.catalogue(&format!("url = 'http://127.0.0.1:9/d'\nchecksum = 'sha256:{}'", "0".repeat(64)));
    assert!(matches!(place.pull(&nobody), Err(Error::Transfer { .. })));
    assert!(matches!(
        place.library.pull(&nobody, "other", &place.options, &mut ()),
        Err(Error::UnknownEntry { .. })
    ));
}

#[test]
fn redirections_are_followed() {
    let place = Place::new();
    let mut moved = Served::new(b"");
    moved.moved = Some("/elsewhere".into());
    place.server.serve("/disk", moved.clone());
    place.server.serve("/elsewhere", Served::new(&place.published));
    place.pull(&place.entry()).map(|image| place.library.remove(image.id()).unwrap()).unwrap();
    moved.moved = Some("/disk".into());
    place.server.serve("/disk", moved);
    assert!(matches!(place.pull(&place.entry()), Err(Error::Transfer { .. })));
}

#[test]
fn checksum_files_and_patterns() {
    let place = Place::new();
    let sum = hex::encode(Sha512::digest(&place.published));
    place.server.serve("/v/disk-1.10.qcow2", Served::new(&place.published));
    let wrong = "0".repeat(128);
    let list = format!("{wrong}  disk-1.9.qcow2\n{sum}  disk-1.10.qcow2\n{wrong}  disk-1.11.raw\n");
    place.server.serve("/v/SHA512SUMS", Served::new(list.as_bytes()));
    let (url, sums) = (place.server.url("/v/disk-*.qcow2"), place.server.url("/v/SHA512SUMS"));
    let catalogue = place.catalogue(&format!("url = '{url}'\nchecksum-url = '{sums}'"));
    let image = place.pull(&catalogue).unwrap();
    place.assert_pulled(&image);
    let Source::Pull { url, checksum, .. } = &image.manifest.source else { panic!() };
    assert_eq!(
        (url.as_str(), checksum),
        (place.server.url("/v/disk-1.10.qcow2").as_str(), &format!("sha512:{sum}"))
    );
    place.library.remove(image.id()).unwrap();

    // BSD's format.
    place
        .server
        .serve("/v/SHA512SUMS", Served::new(format!("SHA512 (disk-1.10.qcow2) = {sum}\n").as_bytes()));
    place.pull(&catalogue).map(|image| place.library.remove(image.id()).unwrap()).unwrap();
    // A list without the file, a name that leads away, a list that is none.
    for list in [
        format!("{sum}  other.qcow2\n"),
        format!("{sum}  disk-?.qcow2\n"),
        format!("SHA512 (disk-%2e%2e%2f.qcow2) = {sum}\n"),
        "<html>".into(),
    ] {
        place.server.serve("/v/SHA512SUMS", Served::new(list.as_bytes()));
        let error = place.pull(&catalogue).unwrap_err();
        assert!(matches!(error, Error::NoChecksum { .. }), "{list}: {error}");
    }
    assert_empty(&place.library);
}

#[test]
fn packed_disks_are_unpacked() {
    let place = Place::new();
    let raw = &place.disk;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(raw).unwrap();
    let xz = |content: &[u8]| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    let tar = |files: &[(&str, &[u8])]| {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, *content).unwrap();
        }
        archive.into_inner().unwrap()
    };
    let pull = |published: &[u8], compression: &str| {
        place.server.serve("/packed", Served::new(published));
        let sum = hex::encode(Sha256::digest(published));
        let url = place.server.url("/packed");
        let lines = format!("url = '{url}'\nchecksum = 'sha256:{sum}'\ncompression = '{compression}'");
        place.pull(&place.catalogue(&lines))
    };
    for (published, compression) in [
        (gzip.finish().unwrap(), "gzip"),
        (xz(raw), "xz"),
        (xz(&place.published), "xz"),
        (xz(&tar(&[("disk.raw", raw)])), "tar.xz"),
    ] {
        let image = pull(&published, compression).unwrap();
        place.assert_pulled(&image);
        place.library.remove(image.id()).unwrap();
    }
    let whole = xz(raw);
    for (published, compression) in [
        (whole[..whole.len() / 2].to_vec(), "xz"),
        (raw.clone(), "gzip"),
        (xz(&tar(&[])), "tar.xz"),
        (xz(&tar(&[("a", raw), ("b", raw)])), "tar.xz"),
        (xz(b"not an archive, and long enough to be read as one".repeat(50).as_slice()), "tar.xz"),
        (xz(b"not a disk"), "xz"),
    ] {
        let error = pull(&published, compression).unwrap_err();
        assert!(matches!(&error, Error::Rejected { .. }), "{error}");
        assert_empty(&place.library);
    }
}

#[test]
fn a_full_disk_lets_nothing_appear() {
    let mut place = Place::new();
    let Some(small) = SmallDisk::new(256) else { return };
    place.options.downloads = small.path().join("downloads");
    // Known to be too long before a byte is written, and found out by writing.
    for length in [true, false] {
        let mut served = Served::new(&place.published);
        served.length = length;
        place.server.serve("/disk", served);
        let error = place.pull(&place.entry()).unwrap_err();
        assert!(matches!(&error, Error::NoSpace { .. }), "{error}");
        assert_eq!(place.downloads(), Vec::<String>::new());
        assert_empty(&place.library);
    }
}

/// Not a test by itself: what the next one kills.
#[test]
fn helper_pull() {
    let Some(dir) = std::env::var_os("HAAR_TEST_PULL").map(PathBuf::from) else { return };
    let mut catalogue = Catalogue::default();
    catalogue.extend_from_file(&dir.join("catalogue.toml")).unwrap();
    let options = PullOptions { downloads: dir.join("downloads"), ..PullOptions::default() };
    let library = Library::open(dir.join("images")).unwrap();
    let _ = library.pull(&catalogue, "test", &options, &mut ());
}

#[test]
fn a_killed_pull_goes_on() {
    let place = Place::new();
    let mut served = Served::new(&place.published);
    // The first answer breaks and the pause before the second is where the process dies.
    served.cuts = vec![123_456];
    place.server.serve("/disk", served);
    let catalogue = place.entry();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pull::helper_pull"])
        .env("HAAR_TEST_PULL", place.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let fetched = || {
        let parts = place.downloads().into_iter().filter(|name| name.ends_with(".part"));
        parts.map(|name| fs::metadata(place.options.downloads.join(name)).map_or(0, |m| m.len())).max()
    };
    while fetched() < Some(123_456) {
        assert!(Instant::now() < deadline, "the transfer does not begin");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_empty(&place.library);
    let image = place.pull(&catalogue).unwrap();
    place.assert_pulled(&image);
    assert_eq!(place.ranges().last().unwrap().as_deref(), Some("bytes=123456-"));
}
