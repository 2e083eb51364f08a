//! The recipe `tiny`, built and run for real.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use haar_image::{BuildOptions, Image, Library, Recipe, Source};

use crate::lab::{Guest, Lab, Start, obstacle, run};

/// Far more than anything here takes, also on a busy machine without hardware virtualization.
const LONG: Duration = Duration::from_secs(180);

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 20);
const OTHER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 21);
const THIRD_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 22);
const FIRST: &str = "i-00000000000000001";
const SECOND: &str = "i-00000000000000002";
const GIB: u64 = 1 << 30;

/// One image for all tests, built anew.
fn image() -> Option<&'static Image> {
    static IMAGE: OnceLock<Option<Image>> = OnceLock::new();
    IMAGE
        .get_or_init(|| {
            if let Some(obstacle) = obstacle() {
                eprintln!("the tiny image is not tested: {obstacle}");
                return None;
            }
            let library = Library::open(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tiny")).unwrap();
            for old in library.list().unwrap() {
                library.remove(old.id()).unwrap();
            }
            Some(library.build(Recipe::Tiny, &BuildOptions::default(), &mut ()).unwrap())
        })
        .as_ref()
}

fn start<'a>(image: &'a Image, disk: &'a Path) -> Start<'a> {
    Start {
        image,
        disk,
        vcpus: 1,
        memory: 512,
        instance_id: FIRST,
        addresses: &[ADDRESS],
        second_disk: None,
        end_at_reboot: true,
    }
}

fn ready(lab: &Lab, guest: &mut Guest, address: Ipv4Addr) {
    lab.wait_ssh(guest, address, LONG);
    guest.wait_console("haar-tiny: ready", LONG);
}

/// The fingerprint of a guest's host key, by its console and by SSH.
fn fingerprint(lab: &Lab, guest: &Guest, address: Ipv4Addr) -> String {
    let console = guest.console();
    let lines = console.split("-----BEGIN SSH HOST KEY FINGERPRINTS-----").nth(1).expect("no fingerprints");
    let line = lines.lines().find(|line| line.contains("SHA256:")).unwrap();
    let shown = line.split_whitespace().nth(1).unwrap().to_owned();
    let scanned = run(lab.command("ssh-keyscan").args(["-t", "ed25519", &address.to_string()]));
    let file = lab.dir.path().join("scanned");
    std::fs::write(&file, scanned).unwrap();
    let real = run(std::process::Command::new("ssh-keygen").arg("-lf").arg(&file));
    assert!(real.contains(&shown), "{shown} is on the console, but {real}");
    shown
}

#[test]
fn the_manifest_says_what_is_in_it() {
    let Some(image) = image() else { return };
    let manifest = &image.manifest;
    let Source::Build { recipe, packages } = &manifest.source else { panic!("{:?}", manifest.source) };
    assert_eq!(recipe, "tiny");
    for package in ["busybox-static=", "dropbear-bin=", "linux-image-"] {
        assert!(packages.iter().any(|p| p.starts_with(package)), "{package} is not in {packages:?}");
    }
    assert_eq!((manifest.default_user.as_str(), manifest.root_disk.virtual_size), ("root", GIB));
    assert!(image.kernel().unwrap().exists() && image.initrd().unwrap().exists());
    assert!(image.command_line().unwrap().contains("console=ttyS0"));
    assert!(manifest.root_disk.file.length < 32 << 20, "{}", manifest.root_disk.file.length);
}

#[test]
fn a_life_of_an_instance() {
    let Some(image) = image() else { return };
    let lab = Lab::new();
    let script = "#!/bin/sh\necho user data of $(cat /var/lib/haar/host-key.done)\ndate >>/root/ran\n\
                  sleep 600 &\nexit 3\n";
    lab.describe(FIRST, &[ADDRESS], Some(script.as_bytes()));
    let disk = lab.disk(image, "disk", GIB);
    let mut guest = Guest::start(&lab, &start(image, &disk));
    let took = lab.wait_ssh(&mut guest, ADDRESS, LONG);
    eprintln!("tiny: SSH {took:.1?} after the start of QEMU");
    // The key is there before the port is open: no moment in which SSH refuses it.
    assert_eq!(lab.ssh_ok("root", ADDRESS, "id -u"), "0");
    guest.wait_console("haar-tiny: ready", LONG);
    let console = guest.console();
    assert!(console.contains("Linux version"), "the boot is not on the console");
    assert!(console.contains(&format!("\nuser data of {FIRST}")), "{console}");
    assert!(console.contains("haar-tiny: the user data ended with code 3"), "{console}");
    assert!(lab.ssh_ok("root", ADDRESS, "cat /var/log/user-data.log").contains("user data of"));
    let key = fingerprint(&lab, &guest, ADDRESS);

    // What the network gave.
    assert_eq!(lab.ssh_ok("root", ADDRESS, "hostname"), "ip-10-99-0-20");
    assert_eq!(lab.ssh_ok("root", ADDRESS, "cat /sys/class/net/eth0/mtu"), "1400");
    let resolver = lab.ssh_ok("root", ADDRESS, "cat /etc/resolv.conf");
    assert_eq!(resolver, "search test.internal\nnameserver 10.99.0.1");
    lab.ssh_ok(
        "root",
        ADDRESS,
        "ping -c 1 -W 5 10.99.0.1 && wget -q -O - http://169.254.169.254/ 2>&1 | head -1",
    );
    assert!(lab.metadata.lock().unwrap().requests.iter().any(|r| r == "PUT api/token"));

    // Nobody comes in without the key, not even on the console.
    let other = lab.dir.path().join("other");
    run(std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&other));
    std::fs::rename(lab.key(), lab.dir.path().join("right")).unwrap();
    std::fs::copy(&other, lab.key()).unwrap();
    let refused = lab.ssh("root", ADDRESS, "true");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("Permission denied (publickey)"),
        "{refused:?}"
    );
    std::fs::rename(lab.dir.path().join("right"), lab.key()).unwrap();
    assert_eq!(lab.ssh_ok("root", ADDRESS, "ps | grep -c '[g]etty' || true"), "0");
    assert!(lab.ssh_ok("root", ADDRESS, "cat /etc/shadow").lines().all(|line| line.contains(":*:")));

    // Files go in and out.
    let mut sftp = lab.command("sftp");
    sftp.args(["-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i"]);
    sftp.arg(lab.key()).args(["-b", "-", &format!("root@{ADDRESS}")]).stdin(Stdio::piped());
    let mut sftp = sftp.stdout(Stdio::null()).spawn().unwrap();
    writeln!(sftp.stdin.take().unwrap(), "put {} /root/file", other.display()).unwrap();
    assert!(sftp.wait().unwrap().success());
    assert_eq!(
        lab.ssh_ok("root", ADDRESS, "cat /root/file"),
        std::fs::read_to_string(&other).unwrap().trim()
    );

    // Stop by the power button, start with another address.
    guest.qmp("system_powerdown", "{}");
    let took = guest.wait_end(LONG);
    eprintln!("tiny: ended {took:.1?} after the power button");
    assert!(guest.console().contains("haar-tiny: the disk is clean"), "{}", guest.console());
    lab.describe(FIRST, &[OTHER_ADDRESS], Some(script.as_bytes()));
    let again = Start { addresses: &[OTHER_ADDRESS], ..start(image, &disk) };
    let mut guest = Guest::start(&lab, &again);
    ready(&lab, &mut guest, OTHER_ADDRESS);
    assert_eq!(lab.ssh_ok("root", OTHER_ADDRESS, "wc -l </root/ran; hostname"), "1\nip-10-99-0-21");
    assert_eq!(fingerprint(&lab, &guest, OTHER_ADDRESS), key);
    assert!(!guest.console().contains("recovery"), "the file system was not clean: {}", guest.console());

    // Another instance from this disk: it has its own key, and its user data run.
    guest.qmp("system_powerdown", "{}");
    guest.wait_end(LONG);
    lab.describe(SECOND, &[ADDRESS], Some(script.as_bytes()));
    let mut guest = Guest::start(&lab, &Start { instance_id: SECOND, ..start(image, &disk) });
    ready(&lab, &mut guest, ADDRESS);
    assert_ne!(fingerprint(&lab, &guest, ADDRESS), key);
    assert_eq!(lab.ssh_ok("root", ADDRESS, "wc -l </root/ran"), "2");
    assert_eq!(lab.ssh_ok("root", ADDRESS, "grep -c . /root/.ssh/authorized_keys"), "1");
}

#[test]
fn a_larger_volume_a_second_interface_and_a_rescued_disk() {
    let Some(image) = image() else { return };
    let lab = Lab::new();
    // The firmware does not know the instance here.
    lab.describe(FIRST, &[ADDRESS, OTHER_ADDRESS, THIRD_ADDRESS], None);
    let disk = lab.disk(image, "disk", 8 * GIB);
    let rescued = lab.disk(image, "rescued", 2 * GIB);
    let start = Start {
        instance_id: "",
        addresses: &[ADDRESS, OTHER_ADDRESS],
        memory: 128,
        vcpus: 2,
        second_disk: Some(&rescued),
        ..start(image, &disk)
    };
    let mut guest = Guest::start(&lab, &start);
    ready(&lab, &mut guest, ADDRESS);
    lab.wait_ssh(&mut guest, OTHER_ADDRESS, LONG);
    let says = |command: &str| lab.ssh_ok("root", ADDRESS, command);
    // The root is the first of two disks with the same label, and as large as its volume.
    assert_eq!(says("cat /run/root-disk; grep -c vd /proc/partitions"), "/dev/vda\n2");
    let size: u64 = says("df -k / | awk 'END { print $2 }'").parse().unwrap();
    assert!(size > 7 << 20 && size < 8 << 20, "{size} KiB");
    assert_eq!(says("nproc"), "2");
    assert_eq!(says("cat /var/lib/haar/host-key.done"), FIRST);
    // Answers leave by the interface that was addressed.
    let from = |address: Ipv4Addr| says(&format!("ip route get 203.0.113.1 from {address} | head -1"));
    assert!(from(ADDRESS).contains("dev eth0"), "{}", from(ADDRESS));
    assert!(from(OTHER_ADDRESS).contains("dev eth1"), "{}", from(OTHER_ADDRESS));
    assert!(says("ip route get 203.0.113.1").contains("dev eth0"));
    // An interface that is plugged in comes up by itself.
    guest.plug_interface(&lab, THIRD_ADDRESS, 2);
    lab.wait_ssh(&mut guest, THIRD_ADDRESS, LONG);
    assert!(from(THIRD_ADDRESS).contains("dev eth2"), "{}", from(THIRD_ADDRESS));
    // The other disk can be mounted, and made anew.
    says("mount /dev/vdb /mnt && ls /mnt/etc/inittab && umount /mnt");
    says("mkfs.ext4 -q -F /dev/vdb && mount /dev/vdb /mnt && echo data >/mnt/file && umount /mnt");
}

#[test]
fn reboot_power_off_and_power_failure() {
    let Some(image) = image() else { return };
    let lab = Lab::new();
    let script =
        "#!/bin/sh\necho ran >>/root/ran\n[ -e /root/rebooted ] || { touch /root/rebooted; reboot; }\n";
    lab.describe(FIRST, &[ADDRESS], Some(script.as_bytes()));
    let disk = lab.disk(image, "disk", GIB);
    // User data that reboot do so once.
    let mut guest = Guest::start(&lab, &Start { end_at_reboot: false, ..start(image, &disk) });
    guest.wait_console("reboot: Restarting system", LONG);
    let second_boot = |guest: &Guest| guest.console().matches("haar-tiny: ready").count();
    while second_boot(&guest) == 0 {
        std::thread::sleep(Duration::from_millis(50));
        assert!(guest.started.elapsed() < LONG, "{}", guest.console());
    }
    lab.wait_ssh(&mut guest, ADDRESS, LONG);
    assert_eq!(lab.ssh_ok("root", ADDRESS, "wc -l </root/ran"), "1");

    // The power fails: what was synced is there, and the file system repairs itself.
    lab.ssh_ok(
        "root",
        ADDRESS,
        "echo kept >/root/kept && sync && dd if=/dev/zero of=/root/big bs=1M count=20 2>&1",
    );
    guest.kill();
    let mut guest = Guest::start(&lab, &start(image, &disk));
    ready(&lab, &mut guest, ADDRESS);
    assert_eq!(lab.ssh_ok("root", ADDRESS, "cat /root/kept"), "kept");

    // Off by its own wish.
    lab.ssh("root", ADDRESS, "poweroff");
    guest.wait_end(LONG);
    let console = guest.console();
    assert!(
        console.contains("haar-tiny: the disk is clean") && console.contains("reboot: Power down"),
        "{console}"
    );
}

#[test]
fn without_metadata_it_boots_all_the_same() {
    let Some(image) = image() else { return };
    let lab = Lab::new();
    // The service refuses, as it does when it is disabled for an instance.
    lab.describe(FIRST, &[ADDRESS], Some(b"#!/bin/sh\necho never\n"));
    lab.metadata.lock().unwrap().refuse = Some(403);
    let disk = lab.disk(image, "disk", GIB);
    let mut guest = Guest::start(&lab, &start(image, &disk));
    ready(&lab, &mut guest, ADDRESS);
    let key = fingerprint(&lab, &guest, ADDRESS);
    let console = guest.console();
    assert!(console.contains("the metadata service refuses (status 403): no key is installed"), "{console}");
    assert!(console.contains("cannot read the user data (status 403)"), "{console}");
    assert!(!console.contains("never"), "{console}");
    assert!(String::from_utf8_lossy(&lab.ssh("root", ADDRESS, "true").stderr).contains("Permission denied"));

    // Its host key stays.
    guest.qmp("system_powerdown", "{}");
    guest.wait_end(LONG);
    let mut guest = Guest::start(&lab, &start(image, &disk));
    ready(&lab, &mut guest, ADDRESS);
    assert_eq!(fingerprint(&lab, &guest, ADDRESS), key);
}

#[test]
fn user_data_of_every_kind() {
    let Some(image) = image() else { return };
    let lab = Lab::new();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    // Longer than any buffer on the way, and with bytes that no text has.
    let long =
        [b"#!/bin/sh\necho unpacked\nexit 0\n".to_vec(), (0..=255).cycle().take(15_000).collect()].concat();
    gzip.write_all(&long).unwrap();
    let gzip = gzip.finish().unwrap();
    for (user_data, expected) in [
        (&gzip[..], "\nunpacked"),
        (&long, "\nunpacked"),
        (b"#cloud-config\nruncmd: [reboot]\n", "is not a script that begins with #!"),
        (b"", "haar-tiny: ready"),
        (b"#!/does/not/exist\n", "the user data ended with code 127"),
    ] {
        lab.describe(FIRST, &[ADDRESS], Some(user_data));
        let disk = lab.disk(image, "disk", GIB);
        let mut guest = Guest::start(&lab, &start(image, &disk));
        guest.wait_console("haar-tiny: ready", LONG);
        let console = guest.console().replace('\r', "");
        assert!(console.contains(expected), "{expected}: {console}");
    }
}
