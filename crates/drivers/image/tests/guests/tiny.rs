//! The recipe `tiny`, built and run for real.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use crate::lab::{Guest, Lab, Start, obstacle};
use haar_image::{BuildOptions, Image, Library, Recipe};

const MINUTE: Duration = Duration::from_secs(60);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 20);

/// One image for all tests of this file.
fn image() -> Option<&'static Image> {
    static IMAGE: OnceLock<Option<Image>> = OnceLock::new();
    IMAGE
        .get_or_init(|| {
            if let Some(obstacle) = obstacle() {
                eprintln!("not tested: {obstacle}");
                return None;
            }
            let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tiny");
            let library = Library::open(dir).unwrap();
            for old in library.list().unwrap() {
                library.remove(old.id()).unwrap();
            }
            Some(library.build(Recipe::Tiny, &BuildOptions::default(), &mut ()).unwrap())
        })
        .as_ref()
}

fn start<'a>(image: &'a Image, disk: &'a std::path::Path) -> Start<'a> {
    Start { image, disk, vcpus: 1, memory: 512, instance_id: "", addresses: &[ADDRESS] }
}

#[test]
fn boots_logs_in_and_shuts_down() {
    let Some(image) = image() else { return };
    let lab = Lab::new();
    lab.describe(
        "i-00000000000000001",
        &[ADDRESS],
        Some(b"#!/bin/sh\necho hello from $0\nid -u >/root/ran\nsleep 2\n"),
    );
    let disk = lab.disk(image, "disk", 1 << 30);
    let mut guest = Guest::start(&lab, &start(image, &disk));
    eprintln!("SSH after {:?}", lab.wait_ssh(&mut guest, ADDRESS, MINUTE));
    println!("{}", lab.ssh_ok("root", ADDRESS, "cat /root/ran; uptime; ps; ip a; df; dmesg | tail -3; cat /etc/resolv.conf /etc/hosts; hostname; logread"));
    eprintln!("ready after {:?}", guest.wait_console("haar-tiny: ready", MINUTE));
    guest.qmp("system_powerdown");
    eprintln!("ended after {:?}", guest.wait_end(MINUTE));
    println!("{}", guest.console());
}
