//! `haar doctor`: does this machine have what haar needs?

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, ExitCode};

use haar_image::{Library, Recipe};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use super::find_program;
use crate::config::{Compute, Config, Settings};
use crate::error::Result;
use crate::state::StateDir;

/// The program that runs guests.
const QEMU: &str = "qemu-system-x86_64";

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// haar works, but something is missing or slow.
    Warn,
    /// haar does not work.
    Fail,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), fix: None }
    }

    fn warn(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn fail(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// Runs all checks and prints them.
pub fn doctor(state: &StateDir, json: bool) -> Result<ExitCode> {
    let config = match state.running()? {
        Some(daemon) => daemon.config,
        None => Config::load(state.path(), Settings::default())?,
    };
    let mut checks = vec![privileges()];
    checks.extend(qemu());
    checks.push(uefi());
    checks.extend([nftables(), tun(), namespaces(), forwarding(), cgroups()]);
    checks.extend([disk(state.path()), port(state, &config), image(state), resolvers(), image_tools()]);
    if json {
        println!("{}", serde_json::to_string_pretty(&checks).expect("checks are plain data"));
    } else {
        for Check { name, status, detail, fix } in &checks {
            let mark = match status {
                Status::Ok => "ok  ",
                Status::Warn => "warn",
                Status::Fail => "FAIL",
            };
            println!("{mark}  {name:<16} {}", detail.lines().collect::<Vec<_>>().join("; "));
            if let Some(fix) = fix {
                println!("      {:<16} fix: {fix}", "");
            }
        }
        if config.compute == Compute::Simulated {
            println!(
                "The daemon runs with --compute simulated: it starts no machines, and QEMU is not used."
            );
        }
    }
    let healthy = checks.iter().all(|check| check.status != Status::Fail);
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The capabilities that namespaces, interfaces, mounts and their clean-up need.
fn privileges() -> Check {
    const NAME: &str = "privileges";
    // capability.h: CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN.
    let needed = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<_> =
        needed.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        let who = if nix::unistd::geteuid().is_root() { "root" } else { "not root, but" };
        Check::ok(NAME, format!("{who} with the capabilities needed"))
    } else {
        Check::fail(NAME, format!("missing: {}", missing.join(", ")), "run haar as root: sudo haar …")
    }
}

/// The first line that a program prints.
fn first_line(program: &str, arguments: &[&str]) -> std::result::Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text.lines().next().unwrap_or_default().to_owned())
    } else {
        let error = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program}: {}", error.lines().next().unwrap_or("failed")))
    }
}

/// QEMU's version, and the accelerator that a guest really ran under.
fn qemu() -> Vec<Check> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let program = find_program(QEMU).unwrap_or_else(|| QEMU.into());
    let probe = runtime
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(haar_vm::probe(&program)).map_err(|error| error.to_string()));
    match probe {
        Ok(probe) => {
            let accelerator = match &probe.no_kvm {
                None => Check::ok("accelerator", format!("{}: a guest ran under it", probe.accel)),
                Some(why) => Check::warn(
                    "accelerator",
                    format!("{}, ten and more times slower than KVM: {why}", probe.accel),
                    why.fix(),
                ),
            };
            vec![Check::ok("qemu", format!("version {}", probe.qemu_version)), accelerator]
        }
        Err(error) => vec![Check::fail("qemu", error, "apt-get install qemu-system-x86 qemu-utils")],
    }
}

/// What machines boot through whose image wants UEFI.
fn uefi() -> Check {
    const NAME: &str = "uefi";
    match haar_node::UEFI_FIRMWARE.iter().find(|file| !Path::new(file).exists()) {
        None => Check::ok(NAME, haar_node::UEFI_FIRMWARE[0]),
        Some(missing) => Check::warn(
            NAME,
            format!("{missing} is missing: images that boot by UEFI alone cannot be launched"),
            "apt-get install ovmf",
        ),
    }
}

fn nftables() -> Check {
    match first_line("nft", &["--version"])
        .and_then(|version| first_line("nft", &["list", "tables"]).map(|_| version))
    {
        Ok(version) => Check::ok("nftables", version),
        Err(error) => Check::fail(
            "nftables",
            error,
            "apt-get install nftables; a kernel with nf_tables (modprobe nf_tables)",
        ),
    }
}

/// Opens the device and asks for its features, which changes nothing.
fn tun() -> Check {
    const DEVICE: &str = "/dev/net/tun";
    nix::ioctl_read_bad!(get_features, TUNGETFEATURES, u32);
    // if_tun.h: _IOR('T', 207, unsigned int), and the flag of tap devices.
    const TUNGETFEATURES: nix::libc::c_ulong = 0x8004_54cf;
    const IFF_TAP: u32 = 2;
    let probe = || {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        let mut features = 0_u32;
        // SAFETY: the device writes one unsigned int to the place given.
        unsafe { get_features(file.as_raw_fd(), &raw mut features) }?;
        Ok::<_, std::io::Error>(features)
    };
    match probe() {
        Ok(features) if features & IFF_TAP != 0 => Check::ok("tap devices", DEVICE),
        Ok(_) => Check::fail("tap devices", format!("{DEVICE} makes no taps"), "a kernel with CONFIG_TUN"),
        Err(error) => Check::fail(
            "tap devices",
            format!("{DEVICE}: {error}"),
            "modprobe tun; in a container, pass the device",
        ),
    }
}

/// Makes a network namespace that ends with the thread that made it.
fn namespaces() -> Check {
    let made = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
    match made.unwrap_or(Err(nix::errno::Errno::EAGAIN)) {
        Ok(()) => Check::ok("namespaces", "network namespaces can be made"),
        Err(error) => Check::fail("namespaces", error.desc(), "run as root, on a kernel with CONFIG_NET_NS"),
    }
}

/// The daemon turns forwarding on where it is off; something that forbids that is a fault.
fn forwarding() -> Check {
    const FILE: &str = "/proc/sys/net/ipv4/ip_forward";
    match fs::read_to_string(FILE) {
        Ok(value) if value.trim() == "1" => Check::ok("forwarding", "net.ipv4.ip_forward is 1"),
        Ok(_) if OpenOptions::new().write(true).open(FILE).is_ok() => {
            Check::ok("forwarding", "net.ipv4.ip_forward is 0; the daemon sets it to 1")
        }
        Ok(_) => Check::fail(
            "forwarding",
            "net.ipv4.ip_forward is 0 and cannot be changed here",
            "on the host: sysctl -w net.ipv4.ip_forward=1",
        ),
        Err(error) => Check::fail("forwarding", format!("{FILE}: {error}"), "mount /proc"),
    }
}

fn cgroups() -> Check {
    match statfs("/sys/fs/cgroup") {
        Ok(found) if found.filesystem_type() == CGROUP2_SUPER_MAGIC => Check::ok("cgroups", "version 2"),
        Ok(_) if Path::new("/sys/fs/cgroup/cpu").exists() => Check::ok("cgroups", "version 1"),
        _ => Check::warn("cgroups", "no hierarchy in /sys/fs/cgroup", "mount -t cgroup2 none /sys/fs/cgroup"),
    }
}

/// The space where disks of instances grow.
fn disk(state_dir: &Path) -> Check {
    const NAME: &str = "disk space";
    const GIB: u64 = 1 << 30;
    let existing = state_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let fix = "free some, or put the state folder elsewhere: --state-dir";
    match statvfs(existing) {
        Ok(found) => {
            let free = found.blocks_available() * found.fragment_size();
            let detail = format!("{} free for {}", indicatif::HumanBytes(free), state_dir.display());
            match free {
                _ if free < GIB => Check::fail(NAME, detail, fix),
                _ if free < 5 * GIB => Check::warn(NAME, detail, fix),
                _ => Check::ok(NAME, detail),
            }
        }
        Err(error) => Check::fail(NAME, format!("{}: {error}", existing.display()), fix),
    }
}

fn port(state: &StateDir, config: &Config) -> Check {
    if let Ok(Some(daemon)) = state.running() {
        return Check::ok("endpoint", format!("haar answers at {}", daemon.endpoint()));
    }
    match TcpListener::bind(config.listen) {
        Ok(_) => Check::ok("endpoint", format!("{} is free", config.listen)),
        Err(error) => Check::fail(
            "endpoint",
            format!("{}: {error}", config.listen),
            "stop what uses it, or take another: haar up --listen 127.0.0.1:4567",
        ),
    }
}

fn image(state: &StateDir) -> Check {
    const FIX: &str = "haar image build tiny, or haar image pull debian-12";
    if !state.images().exists() {
        return Check::warn("images", "none yet", FIX);
    }
    match Library::open(state.images()).and_then(|library| library.list()) {
        Ok(images) if images.is_empty() => Check::warn("images", "none yet", FIX),
        Ok(images) => {
            let names: Vec<_> = images.iter().map(|image| image.manifest.name.as_str()).collect();
            Check::ok("images", names.join(", "))
        }
        Err(error) => Check::fail("images", error.to_string(), FIX),
    }
}

/// Instances resolve names through this machine's resolvers.
fn resolvers() -> Check {
    const FILE: &str = "/etc/resolv.conf";
    let text = fs::read_to_string(FILE).unwrap_or_default();
    let servers: Vec<_> = nameservers(&text).collect();
    if servers.is_empty() {
        let detail = format!("no nameserver in {FILE}: instances resolve only each other's names");
        Check::warn("resolvers", detail, format!("name one in {FILE}"))
    } else {
        Check::ok("resolvers", servers.join(", "))
    }
}

fn nameservers(resolv_conf: &str) -> impl Iterator<Item = &str> {
    resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    })
}

/// The programs that building images takes.
fn image_tools() -> Check {
    const NAME: &str = "image building";
    let programs = ["apt-get", "dpkg-deb", "mcopy", "mkfs.ext4", "mkfs.vfat", "mmdebstrap", "qemu-img"];
    let missing: Vec<_> = programs.into_iter().filter(|program| find_program(program).is_none()).collect();
    if missing.is_empty() {
        return Check::ok(NAME, programs.join(", "));
    }
    let mut packages: Vec<_> = Recipe::ALL.iter().flat_map(|recipe| recipe.requirements()).copied().collect();
    packages.sort_unstable();
    packages.dedup();
    let fix = format!("apt-get install {}; or pull or import images", packages.join(" "));
    Check::warn(NAME, format!("missing: {}", missing.join(", ")), fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_as_resolv_conf_says() {
        let text =
            "# nameserver 1.1.1.1\nsearch example.org\nnameserver 192.0.2.1\nnameserver\nnameserver ::1 \n";
        assert_eq!(nameservers(text).collect::<Vec<_>>(), ["192.0.2.1", "::1"]);
    }

    #[test]
    fn a_missing_state_folder_is_measured_where_it_would_be() {
        let check = disk(Path::new("/tmp/haar-does-not-exist/a/b"));
        assert!(check.detail.contains("free for /tmp/haar-does-not-exist/a/b"), "{}", check.detail);
    }

    #[test]
    fn a_program_that_fails_says_why() {
        assert!(first_line("false", &[]).is_err());
        assert!(first_line("haar-no-such-program", &[]).unwrap_err().contains("haar-no-such-program"));
        assert_eq!(first_line("echo", &["one"]).unwrap(), "one");
    }
}
