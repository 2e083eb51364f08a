//! The recipe `debian-12`, built and run for real.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use haar_image::{BootMode, BuildOptions, ImportOptions, Library, Recipe, Source};

use crate::lab::{Guest, Lab, Start, installed, obstacle};

/// Far more than anything here takes, also on a busy machine without hardware virtualization.
const LONG: Duration = Duration::from_secs(600);

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 20);

#[test]
fn a_life_of_an_instance() {
    let missing = ["mmdebstrap", "sfdisk"].into_iter().find(|program| !installed(program));
    if let Some(obstacle) = obstacle().or(missing.map(|program| format!("{program} is not installed"))) {
        eprintln!("the debian-12 image is not tested: {obstacle}");
        return;
    }
    let library = Library::open(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("debian")).unwrap();
    for old in library.list().unwrap() {
        library.remove(old.id()).unwrap();
    }
    let image = library.build(Recipe::Debian12, &BuildOptions::default(), &mut ()).unwrap();
    let Source::Build { packages, .. } = &image.manifest.source else { panic!() };
    assert!(packages.iter().any(|package| package.starts_with("cloud-init=")), "{packages:?}");
    assert_eq!(image.firmware(), Some(BootMode::UefiPreferred));

    let lab = Lab::new();
    let config = "#cloud-config\nwrite_files:\n- {path: /etc/written, content: by cloud-config}\n\
                  runcmd:\n- [sh, -c, 'echo ran as $(id -un) >/etc/ran']\n";
    lab.describe("i-00000000000000001", &[ADDRESS], Some(config.as_bytes()));
    let disk = lab.disk(&image, "disk", 8 << 30);
    let first = Start {
        image: &image,
        disk: &disk,
        vcpus: 2,
        memory: 1024,
        instance_id: "i-00000000000000001",
        addresses: &[ADDRESS],
        second_disk: None,
        end_at_reboot: true,
    };
    let mut guest = Guest::start(&lab, &first);
    let took = lab.wait_ssh(&mut guest, ADDRESS, LONG);
    eprintln!("debian-12: SSH {took:.1?} after the start of QEMU");
    let says = |command: &str| lab.ssh_ok("admin", ADDRESS, command);
    assert!(says("cloud-init status --wait").ends_with("status: done"));
    assert_eq!(says("cat /etc/written /etc/ran"), "by cloud-configran as root");
    assert_eq!(says("sudo id -u; hostname; cloud-init query cloud_name"), "0\nguest\naws");
    assert_eq!(says("systemctl is-system-running --wait"), "running");
    // The root file system has grown into the volume.
    let size: u64 = says("df --output=size / | tail -1").parse().unwrap();
    assert!(size > 7 << 20, "{size} KiB");
    assert_eq!(says("findmnt -no SOURCE /"), "/dev/vda1");
    let (machine, key) = (says("cat /etc/machine-id"), says("cat /etc/ssh/ssh_host_ed25519_key.pub"));
    assert_eq!(machine.len(), 32);
    assert!(guest.console().contains("-----BEGIN SSH HOST KEY FINGERPRINTS-----"));
    assert!(lab.metadata.lock().unwrap().requests.iter().any(|request| request == "PUT api/token"));

    // The boot loader's configuration can be written anew by the guest itself, as an update of the kernel does it.
    says("sudo update-grub 2>&1");
    guest.qmp("system_powerdown", "{}");
    let took = guest.wait_end(LONG);
    eprintln!("debian-12: ended {took:.1?} after the power button");
    assert!(guest.console().contains("Power down"), "{}", guest.console());

    // Another instance from the same disk, with a script.
    lab.describe("i-00000000000000002", &[ADDRESS], Some(b"#!/bin/sh\necho by script >/etc/script\n"));
    let mut guest = Guest::start(&lab, &Start { instance_id: "i-00000000000000002", ..first });
    lab.wait_ssh(&mut guest, ADDRESS, LONG);
    assert!(says("cloud-init status --wait").ends_with("status: done"));
    assert_eq!(says("cat /etc/script"), "by script");
    assert_ne!(says("cat /etc/ssh/ssh_host_ed25519_key.pub"), key);
    assert_eq!(says("cat /etc/machine-id"), machine);
    guest.kill();

    // What it boots by can be seen from its disk.
    let options = ImportOptions { name: Some("imported".into()), ..ImportOptions::default() };
    let imported = library.import(&image.root_disk(), &options, &mut ()).unwrap();
    assert_eq!(imported.firmware(), Some(BootMode::UefiPreferred));
    assert_eq!(imported.manifest.root_disk.virtual_size, image.manifest.root_disk.virtual_size);
    for image in library.list().unwrap() {
        library.remove(image.id()).unwrap();
    }
}
