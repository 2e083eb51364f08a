//! The recipe `debian-12`, built and run for real.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::lab::{Guest, Lab, Start, obstacle};
use haar_image::{BuildOptions, Library, Recipe};

const MINUTES: Duration = Duration::from_secs(300);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 20);

#[test]
fn debian_boots() {
    if let Some(obstacle) = obstacle() {
        eprintln!("not tested: {obstacle}");
        return;
    }
    let dir = PathBuf::from(std::env::var("DEBLIB").unwrap());
    let library = Library::open(dir).unwrap();
    let image = library.find_by_name("debian-12").unwrap().unwrap();
    let lab = Lab::new();
    lab.describe(
        "i-00000000000000001",
        &[ADDRESS],
        Some(b"#cloud-config\nruncmd:\n - echo hello from runcmd\n"),
    );
    let disk = lab.disk(&image, "disk", 8 << 30);
    let start = Start {
        image: &image,
        disk: &disk,
        vcpus: 2,
        memory: 1024,
        instance_id: "i-00000000000000001",
        addresses: &[ADDRESS],
    };
    let mut guest = Guest::start(&lab, &start);
    eprintln!("SSH after {:?}", lab.wait_ssh(&mut guest, ADDRESS, MINUTES));
    println!("{}", String::from_utf8_lossy(&lab.ssh("admin", ADDRESS, "cloud-init status --wait --long; systemd-analyze; systemd-analyze blame | head -30; systemctl --failed; ip a; df -h /; resolvectl | head; cat /etc/resolv.conf; sudo id; systemd-analyze critical-chain; cloud-init analyze blame | head -30; cloud-init analyze show").stdout));
    println!("{:?}", lab.metadata.lock().unwrap().requests);
    guest.qmp("system_powerdown");
    eprintln!("ended after {:?}", guest.wait_end(MINUTES));
    println!("{}", guest.console());
}
