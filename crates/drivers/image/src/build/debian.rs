//! The recipe `debian-12`: a Debian with systemd, cloud-init and OpenSSH, as Debian's own cloud images are.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::apt::{Apt, RELEASE};
use super::disk;
use crate::error::{Error, Result};
use crate::library::{ROOT_DISK, Staging};
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
    "grub-efi-amd64-bin",
    "grub-pc-bin",
    "grub2-common",
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

/// What the kernel is told beside its root. `cryptomgr.notests` makes the boot shorter without hardware virtualization.
const KERNEL_PARAMETERS: &str = "console=ttyS0 panic=5 cryptomgr.notests";

/// The platforms that GRUB is made for, each with the file of its core in `/boot/grub`, and the module that reads disks by its firmware.
const GRUB_PLATFORMS: &[(&str, &str, &[&str])] =
    &[("i386-pc", "core.img", &["biosdisk"]), ("x86_64-efi", "core.efi", &[])];

/// The modules of GRUB that its cores have; the others are loaded from the root file system by who needs them.
const GRUB_MODULES: &[&str] =
    &["part_gpt", "ext2", "normal", "configfile", "linux", "serial", "terminal", "search"];

/// The files of the guest that are ours and must be there before the kernel is installed: path, permissions, content.
const EARLY_FILES: &[(&str, u32, &str)] = &[
    ("etc/initramfs-tools/conf.d/image", 0o644, include_str!("../../guest/debian-12/initramfs.conf")),
    ("etc/initramfs-tools/hooks/image", 0o755, include_str!("../../guest/debian-12/initramfs-hook")),
];

/// The other files of the guest that are ours: path, content.
const FILES: &[(&str, &str)] = &[
    ("etc/cloud/cloud.cfg.d/90_image.cfg", include_str!("../../guest/debian-12/cloud.cfg")),
    ("etc/default/grub", include_str!("../../guest/debian-12/grub-default")),
    ("etc/systemd/resolved.conf.d/image.conf", include_str!("../../guest/debian-12/resolved.conf")),
    ("etc/fstab", include_str!("../../guest/debian-12/fstab")),
    // Empty: made at the first boot, by every instance for itself.
    ("etc/machine-id", ""),
    ("etc/hostname", "localhost\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
    ("boot/grub/grub.cfg", include_str!("../../guest/debian-12/grub.cfg")),
];

/// Makes the files of the image; returns the packages that went in, as `name=version`.
pub(crate) fn make(staging: &Staging, apt: &Apt, progress: &mut dyn Progress) -> Result<Vec<String>> {
    let root = staging.scratch("root")?;
    bootstrap(&root, &staging.scratch("early")?, apt, progress)?;

    progress.stage("file system", Unit::Steps, Some(2));
    configure(&root)?;
    for (platform, core, modules) in GRUB_PLATFORMS {
        let mut command = tool::command("chroot");
        command.arg(&root).args(["grub-mkimage", "--prefix=(,gpt1)/boot/grub"]);
        command.arg(format!("--format={platform}")).arg(format!("--output=/boot/grub/{core}"));
        tool::run(command.args(*modules).args(GRUB_MODULES), "coreutils")?;
    }
    progress.advance(1);
    let disk = staging.scratch("disk")?.join("root.raw");
    disk::make_sparse(&disk, DISK_SIZE)?;
    let places = disk::partition(&disk, DISK_SIZE)?;
    disk::make_ext4(&disk, places.root, "root", &root)?;
    disk::make_efi(&disk, places.efi, &root.join("boot/grub/core.efi"))?;
    let boot = root.join("usr/lib/grub/i386-pc/boot.img");
    disk::install_grub(&disk, &boot, &root.join("boot/grub/core.img"))?;
    progress.advance(2);
    disk::convert_to_qcow2(&disk, "raw", &staging.path(ROOT_DISK), progress)?;

    let mut query = tool::command("dpkg-query");
    query.arg("--admindir").arg(root.join("var/lib/dpkg"));
    let packages = tool::run(query.args(["--show", "--showformat", "${Package}=${Version}\\n"]), "dpkg")?;
    Ok(String::from_utf8_lossy(&packages).lines().map(str::to_owned).collect())
}

/// Installs the packages into a folder.
fn bootstrap(root: &Path, early: &Path, apt: &Apt, progress: &mut dyn Progress) -> Result<()> {
    progress.stage("packages", Unit::Steps, Some(MMDEBSTRAP_STEPS));
    for (name, mode, content) in EARLY_FILES {
        write_file(&early.join(name), *mode, content)?;
    }
    let (old, new) = (apt.archive_cache("debian-12")?, apt.archive_cache("debian-12.new")?);
    let mut command = tool::command("mmdebstrap");
    command.args(["--mode=root", "--format=directory", "--variant=apt", "--architectures=amd64"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    // Packages that were fetched for an earlier build are not fetched again.
    command.args(["--skip=download/empty", "--skip=essential/unlink"]);
    command.arg("--setup-hook=mkdir -p \"$1/var/cache/apt/archives\"");
    command.arg(format!("--setup-hook=sync-in '{}' /var/cache/apt/archives", old.display()));
    command.arg(format!("--essential-hook=copy-in '{}/etc' /", early.display()));
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
    let kernel = newest(&root.join("boot"), "vmlinuz-")?;
    for (name, content) in FILES {
        let content = content.replace("PARAMETERS", KERNEL_PARAMETERS).replace("VERSION", &kernel);
        write_file(&root.join(name), 0o644, &content)?;
    }
    // What grub-install would do.
    for (platform, ..) in GRUB_PLATFORMS {
        let (from, to) = (root.join("usr/lib/grub").join(platform), root.join("boot/grub").join(platform));
        fs::create_dir_all(&to).map_err(Error::io("create", &to))?;
        for entry in fs::read_dir(&from).map_err(Error::io("list", &from))? {
            let path = entry.map_err(Error::io("list", &from))?.path();
            if let (Some(name), Some("mod" | "lst")) =
                (path.file_name(), path.extension().and_then(|e| e.to_str()))
            {
                fs::copy(&path, to.join(name)).map_err(Error::io("copy", &path))?;
            }
        }
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

/// What follows `prefix` in the name of a file of a folder; where there are several, the last by name.
fn newest(dir: &Path, prefix: &str) -> Result<String> {
    let entries = fs::read_dir(dir).map_err(Error::io("list", dir))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let found = names.filter_map(|name| name.strip_prefix(prefix).map(str::to_owned)).max();
    found.ok_or_else(|| Error::Packages(format!("there is no {prefix}… in {}", dir.display())))
}

/// Writes a file and the folders that it lies in.
fn write_file(path: &Path, mode: u32, content: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    fs::write(path, content).map_err(Error::io("write", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io("protect", path))
}
