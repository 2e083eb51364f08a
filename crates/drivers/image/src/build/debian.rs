//! The recipe `debian-12`: a Debian with systemd, cloud-init and OpenSSH, as Debian's own cloud images are.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::apt::{Apt, RELEASE};
use super::disk;
use crate::error::{Error, Result};
use crate::library::{INITRD, KERNEL, ROOT_DISK, Staging};
use crate::progress::{Progress, Unit};
use crate::tool::{self, Stream};

/// What is installed beside the essential packages and apt.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "curl",
    "dbus",
    "e2fsprogs",
    "fdisk",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "isc-dhcp-client",
    "less",
    "linux-image-cloud-amd64",
    "netbase",
    "openssh-server",
    "procps",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "udev",
    "vim-tiny",
];

/// The messages that mmdebstrap prints on its way.
const MMDEBSTRAP_STEPS: u64 = 10;

/// The size of the disk. The file system grows with the volume.
pub(crate) const DISK_SIZE: u64 = 4 << 30;

pub(crate) const COMMAND_LINE: &str = "root=LABEL=haar-root ro console=ttyS0 panic=5 cryptomgr.notests";

/// The files of the guest that are ours: path, content.
const FILES: &[(&str, &str)] = &[
    ("etc/cloud/cloud.cfg.d/90_image.cfg", include_str!("../../guest/debian-12/cloud.cfg")),
    ("etc/fstab", include_str!("../../guest/debian-12/fstab")),
    // Empty: made at the first boot, by every instance for itself.
    ("etc/machine-id", ""),
    ("etc/hostname", "localhost\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
];

/// Makes the files of the image; returns the packages that went in, as `name=version`.
pub(crate) fn make(staging: &Staging, apt: &Apt, progress: &mut dyn Progress) -> Result<Vec<String>> {
    let root = staging.scratch("root")?;
    bootstrap(&root, apt, progress)?;

    progress.stage("file system", Unit::Steps, Some(2));
    configure(&root)?;
    for (file, name) in [("vmlinuz", KERNEL), ("initrd.img", INITRD)] {
        let installed = newest(&root.join("boot"), &format!("{file}-"))?;
        fs::copy(&installed, staging.path(name)).map_err(Error::io("copy", &installed))?;
    }
    progress.advance(1);
    let raw = staging.scratch("disk")?.join("root.raw");
    disk::make_ext4(&raw, DISK_SIZE, "haar-root", &root)?;
    progress.advance(2);
    disk::convert_to_qcow2(&raw, "raw", &staging.path(ROOT_DISK), progress)?;

    let mut query = tool::command("dpkg-query");
    query.arg("--admindir").arg(root.join("var/lib/dpkg"));
    let packages = tool::run(query.args(["--show", "--showformat", "${Package}=${Version}\\n"]), "dpkg")?;
    Ok(String::from_utf8_lossy(&packages).lines().map(str::to_owned).collect())
}

/// Installs the packages into a folder.
fn bootstrap(root: &Path, apt: &Apt, progress: &mut dyn Progress) -> Result<()> {
    progress.stage("packages", Unit::Steps, Some(MMDEBSTRAP_STEPS));
    let (old, new) = (apt.archive_cache("debian-12")?, apt.archive_cache("debian-12.new")?);
    let mut command = tool::command("mmdebstrap");
    command.args(["--mode=root", "--format=directory", "--variant=apt", "--architectures=amd64"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    // Packages that were fetched for an earlier build are not fetched again.
    command.args(["--skip=download/empty", "--skip=essential/unlink"]);
    command.arg("--setup-hook=mkdir -p \"$1/var/cache/apt/archives\"");
    command.arg(format!("--setup-hook=sync-in '{}' /var/cache/apt/archives", old.display()));
    command.arg(format!("--customize-hook=sync-out /var/cache/apt/archives '{}'", new.display()));
    command.arg(RELEASE).arg(root).arg(apt.sources());
    let mut steps = 0;
    tool::run_lines(&mut command, "mmdebstrap", Stream::Error, |line| {
        if line.starts_with("I: ") {
            steps += 1;
            progress.advance(steps.min(MMDEBSTRAP_STEPS));
        }
    })?;
    fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
    fs::rename(&new, &old).map_err(Error::io("rename", &new))
}

/// Makes a bootable guest of an installed tree: nothing in it may be the same in two instances.
fn configure(root: &Path) -> Result<()> {
    let ssh = root.join("etc/ssh");
    for entry in fs::read_dir(&ssh).map_err(Error::io("list", &ssh))? {
        let path = entry.map_err(Error::io("list", &ssh))?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ssh_host_")) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    for (name, content) in FILES {
        let path = root.join(name);
        fs::write(&path, content).map_err(Error::io("write", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o644)).map_err(Error::io("protect", &path))?;
    }
    // What `systemctl enable` would do.
    let wanted = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wanted).map_err(Error::io("create", &wanted))?;
    let service = wanted.join("systemd-networkd.service");
    if fs::symlink_metadata(&service).is_err() {
        let unit = "/lib/systemd/system/systemd-networkd.service";
        symlink(unit, &service).map_err(Error::io("link", &service))?;
    }
    let resolv = root.join("etc/resolv.conf");
    let _ = fs::remove_file(&resolv);
    symlink("../run/systemd/resolve/stub-resolv.conf", &resolv).map_err(Error::io("link", &resolv))
}

/// The file of a folder that begins with `prefix`; where there are several, the last by name.
fn newest(dir: &Path, prefix: &str) -> Result<std::path::PathBuf> {
    let entries = fs::read_dir(dir).map_err(Error::io("list", dir))?;
    let names = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let found = names.filter(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
    });
    found.max().ok_or_else(|| Error::Packages(format!("there is no {prefix}… in {}", dir.display())))
}
