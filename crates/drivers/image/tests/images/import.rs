use std::fs;
use std::path::Path;

use haar_image::{BootMode, Error, ImportOptions, Library};

use super::{Report, SmallDisk, assert_empty, bootable_disk, content, path_str, qemu_img};

#[test]
fn every_format_is_taken_by_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(dir.path().join("images")).unwrap();
    let raw = dir.path().join("disk");
    let disk = bootable_disk(&raw, 3);
    for (format, options) in [
        ("raw", ""),
        ("qcow2", "compat=1.1"),
        ("qcow2", "compat=0.10"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
    ] {
        // The name says nothing, or lies.
        let file = dir.path().join(format!("{format}-{}.txt", options.replace(['=', '.'], "-")));
        let mut arguments = vec!["convert", "-f", "raw", "-O", format, path_str(&raw), path_str(&file)];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        qemu_img(&arguments);
        let before = fs::read(&file).unwrap();
        let mut report = Report::default();
        let image = library.import(&file, &ImportOptions::default(), &mut report).unwrap();
        assert_eq!(Some(image.manifest.name.as_str()), file.file_stem().unwrap().to_str());
        assert!(content(&image) == disk, "{format} {options}");
        assert!(fs::read(&file).unwrap() == before, "the file was changed");
        assert_eq!(report.stages[0].0, "convert");
        assert_eq!(report.done[0], 100);
        let info = qemu_img(&["info", "--output=json", path_str(&image.root_disk())]);
        assert!(info.contains("\"format\": \"qcow2\"") && !info.contains("backing"), "{info}");
    }
    assert_eq!(library.list().unwrap().len(), 5);
}

#[test]
fn options_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(dir.path().join("images")).unwrap();
    let raw = dir.path().join("disk");
    bootable_disk(&raw, 1);
    let options = ImportOptions {
        name: Some("mine".into()),
        description: "what it is".into(),
        default_user: Some("me".into()),
        boot_mode: Some(BootMode::Uefi),
        root_device_name: Some("/dev/sda1".into()),
    };
    let manifest = library.import(&raw, &options, &mut ()).unwrap().manifest;
    assert_eq!((manifest.name.as_str(), manifest.description.as_str()), ("mine", "what it is"));
    assert_eq!((manifest.default_user.as_str(), manifest.root_device_name.as_str()), ("me", "/dev/sda1"));
    assert_eq!(manifest.boot, haar_image::Boot::Firmware { mode: BootMode::Uefi });
    assert_eq!(manifest.image_owner_alias, None);
}

/// The files that QEMU itself makes when asked for what must not be taken.
#[test]
fn files_that_reach_out_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(dir.path().join("images")).unwrap();
    let path = |name: &str| dir.path().join(name);
    bootable_disk(&path("base"), 1);
    let base = path("base");
    let overlay = path("overlay");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", path_str(&base), path_str(&overlay)]);
    let external = path("external");
    let data = format!("data_file={},data_file_raw=on", path_str(&path("data")));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data, path_str(&external), "1M"]);
    let flat = path("flat.vmdk");
    let to_flat = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat"];
    qemu_img(&[&to_flat[..], &[path_str(&base), path_str(&flat)]].concat());
    let child = path("child.vmdk");
    let parent = path("parent.vmdk");
    qemu_img(&["convert", "-f", "raw", "-O", "vmdk", path_str(&base), path_str(&parent)]);
    qemu_img(&["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", path_str(&parent), path_str(&child)]);

    let refused = |file: &Path, complaint: &str| {
        let error = library.import(file, &ImportOptions::default(), &mut ()).unwrap_err();
        let Error::Rejected { reason, .. } = error else { panic!("{error}") };
        assert!(reason.contains(complaint), "{reason}");
    };
    refused(&overlay, "backing file");
    refused(&external, "another file");
    refused(&flat, "stand alone");
    refused(&child, "based on another");
    refused(Path::new("/etc/passwd"), "not a disk image");
    refused(Path::new("/dev/null"), "regular file");
    assert_empty(&library);
}

#[test]
fn a_damaged_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(dir.path().join("images")).unwrap();
    let raw = dir.path().join("disk");
    bootable_disk(&raw, 4);
    let file = dir.path().join("cut.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", path_str(&raw), path_str(&file)]);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let error = library.import(&file, &ImportOptions::default(), &mut ()).unwrap_err();
    assert!(matches!(&error, Error::Rejected { .. }), "{error}");
    // A disk of 16 EiB, by the header.
    let mut huge = whole.clone();
    huge[24..32].fill(0xff);
    fs::write(&file, huge).unwrap();
    let error = library.import(&file, &ImportOptions::default(), &mut ()).unwrap_err();
    assert!(matches!(&error, Error::Rejected { .. }), "{error}");
    // Bootable by nothing, unless the user knows better.
    let mut disk = vec![0; 1 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&file, disk).unwrap();
    let error = library.import(&file, &ImportOptions::default(), &mut ()).unwrap_err();
    assert!(error.to_string().contains("nothing in it can be booted"), "{error}");
    assert_empty(&library);
    let options = ImportOptions { boot_mode: Some(BootMode::LegacyBios), ..ImportOptions::default() };
    library.import(&file, &options, &mut ()).unwrap();
}

#[test]
fn a_full_disk_leaves_nothing() {
    let Some(small) = SmallDisk::new(1024) else { return };
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(small.path().join("images")).unwrap();
    let raw = dir.path().join("disk");
    bootable_disk(&raw, 8);
    let error = library.import(&raw, &ImportOptions::default(), &mut ()).unwrap_err();
    assert!(matches!(&error, Error::NoSpace { .. }), "{error}");
    assert_empty(&library);
}
