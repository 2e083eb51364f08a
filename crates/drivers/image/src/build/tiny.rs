//! The recipe `tiny`: BusyBox as the whole userland, Dropbear for SSH, Debian's kernel for clouds.

use std::fs::{self, File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::apt::Apt;
use super::cpio::Archive;
use super::{disk, modules};
use crate::error::{Error, Result};
use crate::library::{INITRD, KERNEL, ROOT_DISK, Staging};
use crate::progress::{Progress, Unit};
use crate::tool;

/// The packages that the userland comes from, with what they depend on.
const PACKAGES: &[&str] = &["busybox-static", "dropbear-bin", "e2fsprogs"];

/// The package of which one program is taken that needs nothing but libc6.
const SFTP_SERVER: &str = "openssh-sftp-server";

/// The programs that are taken from them, with the libraries that they need: where they are unpacked and where they go.
const PROGRAMS: &[(&str, &str)] = &[
    ("usr/sbin/dropbear", "usr/sbin/dropbear"),
    ("usr/bin/dropbearkey", "usr/bin/dropbearkey"),
    ("usr/bin/dbclient", "usr/bin/ssh"),
    ("usr/lib/openssh/sftp-server", "usr/lib/sftp-server"),
    ("sbin/resize2fs", "usr/sbin/resize2fs"),
    ("sbin/mke2fs", "usr/sbin/mkfs.ext4"),
];

/// Applets that would be taken for what they are not.
const UNWANTED_APPLETS: &[&str] = &["dpkg", "dpkg-deb", "rpm", "rpm2cpio", "mke2fs"];

/// The drivers of the devices that a machine may have.
const MODULES: &[&str] =
    &["virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "pvpanic_pci", "button", "evdev"];

/// `cryptomgr.notests` saves a tenth of the boot without hardware virtualization; the rest makes names and ends predictable.
pub(crate) const COMMAND_LINE: &str = "console=ttyS0 net.ifnames=0 panic=5 cryptomgr.notests";

/// The size of the disk: the least that a volume can have. The file system grows with the volume.
pub(crate) const DISK_SIZE: u64 = 1 << 30;

/// The files of the guest that are ours: path, permissions, content.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/inittab", 0o644, include_str!("../../guest/tiny/inittab")),
    ("etc/passwd", 0o644, include_str!("../../guest/tiny/passwd")),
    ("etc/shadow", 0o600, include_str!("../../guest/tiny/shadow")),
    ("etc/group", 0o644, include_str!("../../guest/tiny/group")),
    ("etc/shells", 0o644, "/bin/sh\n/bin/ash\n"),
    ("etc/profile", 0o644, include_str!("../../guest/tiny/profile")),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n"),
    ("etc/os-release", 0o644, include_str!("../../guest/tiny/os-release")),
    ("etc/acpi/PWRF/00000080", 0o755, include_str!("../../guest/tiny/power-button")),
    ("usr/lib/haar/boot", 0o755, include_str!("../../guest/tiny/boot")),
    ("usr/lib/haar/hotplug", 0o755, include_str!("../../guest/tiny/hotplug")),
    ("usr/lib/haar/instance", 0o644, include_str!("../../guest/tiny/instance")),
    ("usr/lib/haar/interface", 0o755, include_str!("../../guest/tiny/interface")),
    ("usr/lib/haar/lease", 0o755, include_str!("../../guest/tiny/lease")),
    ("usr/lib/haar/shutdown", 0o755, include_str!("../../guest/tiny/shutdown")),
    ("usr/lib/haar/user-data", 0o755, include_str!("../../guest/tiny/user-data")),
];

/// The first process of the guest, and the programs that it calls.
const INIT_APPLETS: &[&str] = &["dd", "insmod", "mount", "poweroff", "sleep", "switch_root"];
const INIT: &str = include_str!("../../guest/tiny/initramfs-init");

/// Makes the files of the image; returns the packages that went in, as `name=version`.
pub(crate) fn make(staging: &Staging, apt: &Apt, progress: &mut dyn Progress) -> Result<Vec<String>> {
    let mut packages = apt.fetch_with_dependencies(PACKAGES, progress)?;
    packages.push(apt.fetch(SFTP_SERVER, progress)?);
    let kernel = apt.fetch(&apt.behind("linux-image-cloud-amd64", "linux-image-")?, progress)?;

    progress.stage("unpack", Unit::Steps, Some(packages.len() as u64 + 1));
    let unpacked = staging.scratch("unpacked")?;
    for (done, package) in packages.iter().enumerate() {
        package.unpack(&unpacked)?;
        progress.advance(done as u64 + 1);
    }
    let kernel_files = staging.scratch("kernel")?;
    kernel.unpack(&kernel_files)?;
    progress.advance(packages.len() as u64 + 1);

    progress.stage("file system", Unit::Steps, Some(3));
    let version = kernel.name.trim_start_matches("linux-image-").to_owned();
    let boot = kernel_files.join(format!("boot/vmlinuz-{version}"));
    fs::copy(&boot, staging.path(KERNEL)).map_err(Error::io("copy", &boot))?;
    let busybox = unpacked.join("bin/busybox");
    write_initrd(&staging.path(INITRD), &busybox, &kernel_files.join(format!("lib/modules/{version}")))?;
    progress.advance(1);
    let tree = staging.scratch("tree")?;
    make_tree(&tree, &unpacked, &busybox)?;
    progress.advance(2);
    let raw = staging.scratch("disk")?.join("root.raw");
    disk::make_sparse(&raw, DISK_SIZE)?;
    disk::make_ext4(&raw, disk::Extent { start: 0, length: DISK_SIZE }, "haar-root", &tree)?;
    progress.advance(3);
    disk::convert_to_qcow2(&raw, "raw", &staging.path(ROOT_DISK), progress)?;
    packages.push(kernel);
    Ok(packages.iter().map(|package| format!("{}={}", package.name, package.version)).collect())
}

/// The initial RAM disk: BusyBox, drivers, and the script that finds the root.
fn write_initrd(path: &Path, busybox: &Path, module_tree: &Path) -> Result<()> {
    let busybox = fs::read(busybox).map_err(Error::io("read", busybox))?;
    let modules = modules::collect(module_tree, MODULES)?;
    let order: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
    let file = File::create_new(path).map_err(Error::io("create", path))?;
    let write = || {
        let mut archive = Archive::new(BufWriter::new(file));
        for name in ["bin", "dev", "proc", "sys", "run", "root", "modules"] {
            archive.directory(name)?;
        }
        archive.file("init", 0o755, INIT.as_bytes())?;
        archive.file("bin/busybox", 0o755, &busybox)?;
        for applet in INIT_APPLETS {
            archive.link(&format!("bin/{applet}"), "busybox")?;
        }
        archive.file("modules/order", 0o644, order.as_bytes())?;
        for module in &modules {
            archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.content)?;
        }
        // Not compressed: without hardware virtualization, unpacking takes longer than loading.
        archive.finish()?.flush()
    };
    write().map_err(Error::io("write", path))
}

/// The content of the root file system.
fn make_tree(tree: &Path, unpacked: &Path, busybox: &Path) -> Result<()> {
    let dirs = "dev proc sys run tmp mnt root root/.ssh etc etc/acpi/PWRF etc/dropbear usr/bin usr/sbin usr/lib/haar \
                usr/lib/x86_64-linux-gnu usr/lib64 var/lib/haar var/log";
    for dir in dirs.split_whitespace() {
        let path = tree.join(dir);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    for (dir, mode) in [("root", 0o700), ("root/.ssh", 0o700), ("tmp", 0o1777), ("var/lib/haar", 0o700)] {
        let path = tree.join(dir);
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(Error::io("protect", &path))?;
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        link(&format!("usr/{dir}"), &tree.join(dir))?;
    }
    link("/run", &tree.join("var/run"))?;
    link("/proc/mounts", &tree.join("etc/mtab"))?;
    for (name, mode, content) in FILES {
        let path = tree.join(name);
        fs::write(&path, content).map_err(Error::io("write", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(*mode)).map_err(Error::io("protect", &path))?;
    }
    // The file system is as large as the disk: the first boot has nothing to grow, unless the volume is larger.
    let sectors = tree.join("var/lib/haar/disk-sectors");
    fs::write(&sectors, format!("{}\n", DISK_SIZE / 512)).map_err(Error::io("write", &sectors))?;

    install(busybox, &tree.join("usr/bin/busybox"))?;
    let applets = tool::run(tool::command(&busybox.to_string_lossy()).arg("--list-full"), "busybox-static")?;
    for applet in String::from_utf8_lossy(&applets).lines() {
        let applet = Path::new(applet);
        let (Some(dir), Some(name)) = (applet.parent(), applet.file_name()) else { continue };
        let dir = if dir.ends_with("sbin") { "usr/sbin" } else { "usr/bin" };
        let path = tree.join(dir).join(name);
        if !UNWANTED_APPLETS.iter().any(|unwanted| *unwanted == name) && !path.exists() {
            link("/usr/bin/busybox", &path)?;
        }
    }
    for (from, to) in PROGRAMS {
        let program = unpacked.join(from);
        install(&program, &tree.join(to))?;
        for library in libraries(&program, unpacked)? {
            let name = library.file_name().expect("the loader names files");
            let to = tree.join("usr/lib/x86_64-linux-gnu").join(name);
            if !to.exists() {
                install(&library, &to)?;
            }
        }
    }
    install(&loader(unpacked), &tree.join("usr/lib64/ld-linux-x86-64.so.2"))
}

/// The dynamic loader of an unpacked libc6.
fn loader(unpacked: &Path) -> PathBuf {
    // The link in lib64 is absolute, thus leads out of the folder.
    unpacked.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
}

/// The libraries that a program needs, directly or not, in the folder that packages were unpacked to.
fn libraries(program: &Path, unpacked: &Path) -> Result<Vec<PathBuf>> {
    let dirs = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
    let path = dirs.map(|dir| unpacked.join(dir).to_string_lossy().into_owned()).join(":");
    let mut command = tool::command(&loader(unpacked).to_string_lossy());
    command.args(["--inhibit-cache", "--library-path", &path, "--list"]).arg(program);
    let listed = tool::run(&mut command, "libc6")?;
    let mut libraries = Vec::new();
    // Lines of the kind `libz.so.1 => /folder/libz.so.1 (0x…)`, and some without a file.
    for line in String::from_utf8_lossy(&listed).lines() {
        let Some((name, found)) = line.split_once(" => ") else { continue };
        let file = PathBuf::from(found.split(" (0x").next().unwrap_or_default().trim());
        if !file.starts_with(unpacked) {
            let (program, name) = (program.display(), name.trim());
            return Err(Error::Packages(format!("{program} needs {name}, which no package has")));
        }
        libraries.push(file);
    }
    Ok(libraries)
}

fn install(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map_err(Error::io("copy", from))?;
    fs::set_permissions(to, Permissions::from_mode(0o755)).map_err(Error::io("protect", to))
}

fn link(target: &str, path: &Path) -> Result<()> {
    symlink(target, path).map_err(Error::io("link", path))
}
