//! Builds that must fail. What builds make is tested by running it.

use std::fs;

use haar_image::{BuildOptions, Error, Library, Recipe};

use super::{SmallDisk, assert_empty, names};

/// Why nothing can be built here, if so.
fn obstacle() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("builds need root");
    }
    (!fs::exists("/usr/bin/apt-get").unwrap()).then_some("builds need apt")
}

#[test]
fn recipes_have_names() {
    for recipe in Recipe::ALL {
        assert_eq!(Recipe::from_name(recipe.name()).unwrap(), recipe);
    }
    assert!(matches!(Recipe::from_name("windows"), Err(Error::UnknownRecipe { .. })));
}

#[test]
fn a_mirror_that_is_not_there_or_that_nobody_signed() {
    if let Some(obstacle) = obstacle() {
        return eprintln!("not tested: {obstacle}");
    }
    let dir = tempfile::tempdir().unwrap();
    // What apt runs as another user must be able to read it.
    let mirror = dir.path().join("mirror");
    fs::create_dir(&mirror).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), open).unwrap();
    fs::write(mirror.join("Packages"), "Package: busybox-static\nVersion: 1\nArchitecture: amd64\n").unwrap();
    fs::write(mirror.join("Release"), "Origin: nobody\n").unwrap();
    let library = Library::open(dir.path().join("images")).unwrap();
    let sources = dir.path().join("sources.list");
    for (place, complaint) in [(&mirror, "not signed"), (&dir.path().join("nowhere"), "nowhere")] {
        fs::write(&sources, format!("deb file:{} ./\n", place.display())).unwrap();
        let cache = dir.path().join("cache");
        let options = BuildOptions { cache, sources: Some(sources.clone()), ..BuildOptions::default() };
        let error = library.build(Recipe::Tiny, &options, &mut ()).unwrap_err();
        assert!(matches!(&error, Error::Tool { output, .. } if output.contains(complaint)), "{error}");
        assert_empty(&library);
    }
    assert_eq!(names(&dir.path().join("cache/apt/archives")), ["partial"]);
}

#[test]
fn a_full_disk_leaves_nothing() {
    if let Some(obstacle) = obstacle() {
        return eprintln!("not tested: {obstacle}");
    }
    // Enough for the packages' files, the modules or the disk, but never for all of it.
    for kibibytes in [8 << 10, 160 << 10] {
        let Some(small) = SmallDisk::new(kibibytes) else { return };
        let library = Library::open(small.path().join("images")).unwrap();
        let error = library.build(Recipe::Tiny, &BuildOptions::default(), &mut ()).unwrap_err();
        assert!(matches!(&error, Error::NoSpace { .. }), "{error}");
        assert_empty(&library);
    }
}
