//! The control group of a machine: its share of the host's processors, memory and processes.
//!
//! Version 2 is one tree; version 1 has a tree for each controller, or several. A controller that the host does not
//! offer is done without, and said so when the driver starts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Error;

/// A part of the kernel that holds a machine to its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// The number of processes and threads.
    Pids,
}

impl Controller {
    const ALL: [Controller; 3] = [Controller::Cpu, Controller::Memory, Controller::Pids];

    /// The kernel's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Memory => "memory",
            Controller::Pids => "pids",
        }
    }
}

/// What a machine's process may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Processor time a second, in thousandths of a processor.
    pub cpu_millis: u64,
    /// Its weight against other machines: the number of its vCPUs.
    pub cpu_weight: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// A machine's group, open for a process to join.
#[derive(Debug)]
pub(crate) struct Group {
    /// The group in the tree of version 2.
    pub unified: Option<Unified>,
    /// The lists of threads of the groups in version 1's trees. A thread that writes `0` joins.
    pub threads: Vec<File>,
}

/// A group in version 2's tree.
#[derive(Debug)]
pub(crate) struct Unified {
    /// Its folder, into which a process can be born.
    pub dir: File,
    /// The list of its processes. A process that writes `0` joins.
    pub processes: File,
}

/// Where the host's control groups are.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    /// The name of the group that holds the machines' groups.
    parent: String,
    /// The trees in which a machine gets a group.
    trees: Vec<Tree>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tree {
    mount: PathBuf,
    version: Version,
    /// The controllers that hold in this tree. There may be none: systemd finds the processes of a service that it
    /// stops by a tree without controllers, and machines outlive the daemon's service.
    controllers: Vec<Controller>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The period of the processor quota in microseconds: the kernel's default.
const PERIOD_MICROS: u64 = 100_000;

/// How long the kernel may take to let go of the group of a process that has ended.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

impl Cgroups {
    /// Finds the trees in which groups can be made.
    pub(crate) fn detect(parent: &str) -> Result<Cgroups, Error> {
        let path = Path::new("/proc/self/mountinfo");
        let mounts = fs::read_to_string(path).map_err(Error::at("read", path))?;
        let mut cgroups = Cgroups { parent: parent.to_owned(), trees: trees(&mounts) };
        for tree in &mut cgroups.trees {
            if tree.version == Version::Two {
                let offered = fs::read_to_string(tree.mount.join("cgroup.controllers")).unwrap_or_default();
                tree.controllers.retain(|c| offered.split_whitespace().any(|o| o == c.as_str()));
            }
        }
        cgroups.trees.retain(|tree| match make_dir(&tree.mount.join(parent)) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(tree = %tree.mount.display(), %error, "no control group can be made");
                false
            }
        });
        for tree in &mut cgroups.trees {
            if tree.version == Version::Two {
                tree.controllers.retain(|c| match delegate(&tree.mount, parent, *c) {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::warn!(controller = c.as_str(), %error, "cannot be delegated to machines");
                        false
                    }
                });
            }
        }
        cgroups.remove_parent();
        for controller in Controller::ALL {
            if !cgroups.controllers().contains(&controller) {
                tracing::warn!(
                    controller = controller.as_str(),
                    "not offered by this host; machines are not held to it"
                );
            }
        }
        Ok(cgroups)
    }

    /// The controllers that machines are held by.
    pub(crate) fn controllers(&self) -> Vec<Controller> {
        self.trees.iter().flat_map(|tree| tree.controllers.iter().copied()).collect()
    }

    /// Makes a machine's group, or takes the one that is there, and sets its limits.
    pub(crate) fn create(&self, id: &str, limits: &Limits) -> Result<Group, Error> {
        let mut group = Group { unified: None, threads: Vec::new() };
        for tree in &self.trees {
            let dir = self.create_in(tree, id, limits)?;
            let open = |name| {
                let path = dir.join(name);
                OpenOptions::new().write(true).open(&path).map_err(Error::at("open", &path))
            };
            match tree.version {
                // A thread that moves itself alone spares the kernel a grace period of milliseconds.
                Version::One => group.threads.push(open("tasks")?),
                Version::Two => {
                    let processes = open("cgroup.procs")?;
                    let dir = File::open(&dir).map_err(Error::at("open", &dir))?;
                    group.unified = Some(Unified { dir, processes });
                }
            }
        }
        Ok(group)
    }

    fn create_in(&self, tree: &Tree, id: &str, limits: &Limits) -> Result<PathBuf, Error> {
        let group = tree.mount.join(&self.parent).join(id);
        let mut attempts = 0;
        // Whoever removes another machine's group may remove the parent between the two steps.
        while let Err(error) = self.make_parent(tree).and_then(|()| make_dir(&group)) {
            attempts += 1;
            if error.kind() != ErrorKind::NotFound || attempts == 10 {
                return Err(Error::at("make the control group", &group)(error));
            }
        }
        for controller in &tree.controllers {
            for (file, value) in settings(tree.version, *controller, limits) {
                let path = group.join(file);
                fs::write(&path, value).map_err(Error::at("write", &path))?;
            }
        }
        Ok(group)
    }

    fn make_parent(&self, tree: &Tree) -> io::Result<()> {
        make_dir(&tree.mount.join(&self.parent))?;
        if tree.version == Version::Two {
            for controller in &tree.controllers {
                delegate(&tree.mount, &self.parent, *controller)?;
            }
        }
        Ok(())
    }

    fn remove_parent(&self) {
        for tree in &self.trees {
            // It stays while any machine has a group in it.
            let _ = fs::remove_dir(tree.mount.join(&self.parent));
        }
    }

    /// Kills whatever runs in a machine's group and removes it. That it does not exist is no error.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), Error> {
        for tree in &self.trees {
            let group = tree.mount.join(&self.parent).join(id);
            let released = tokio::time::timeout(RELEASE_TIMEOUT, async {
                loop {
                    kill_members(&group)?;
                    match fs::remove_dir(&group) {
                        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                        result => return result,
                    }
                }
            })
            .await;
            released
                .unwrap_or_else(|_| Err(ErrorKind::ResourceBusy.into()))
                .map_err(Error::at("remove the control group", &group))?;
        }
        self.remove_parent();
        Ok(())
    }

    /// Whether anything runs in a machine's group.
    pub(crate) fn is_used(&self, id: &str) -> Result<bool, Error> {
        for tree in &self.trees {
            let group = tree.mount.join(&self.parent).join(id);
            if !members(&group).map_err(Error::at("read the control group", &group))?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The machines that have a group.
    pub(crate) fn list(&self) -> Result<Vec<String>, Error> {
        let mut ids = Vec::new();
        for tree in &self.trees {
            let parent = tree.mount.join(&self.parent);
            ids.extend(crate::process::subdirectories(&parent).map_err(Error::at("list", &parent))?);
        }
        Ok(ids)
    }
}

/// The trees that `/proc/self/mountinfo` shows (proc(5)), each controller once.
fn trees(mountinfo: &str) -> Vec<Tree> {
    let mut trees: Vec<Tree> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(mount), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        let named: Vec<Controller> =
            Controller::ALL.into_iter().filter(|c| options.split(',').any(|o| o == c.as_str())).collect();
        let (version, controllers) = match kind {
            "cgroup" if !named.is_empty() => (Version::One, named),
            "cgroup" if options.split(',').any(|o| o == "name=systemd") => (Version::One, Vec::new()),
            "cgroup2" => (Version::Two, Controller::ALL.to_vec()),
            _ => continue,
        };
        // A second mount of the same tree, as containers have them.
        if trees.iter().any(|t| t.version == version && t.controllers == controllers) {
            continue;
        }
        trees.push(Tree { mount: mount.into(), version, controllers });
    }
    trees
}

fn settings(version: Version, controller: Controller, limits: &Limits) -> Vec<(&'static str, String)> {
    let quota = limits.cpu_millis * PERIOD_MICROS / 1000;
    match (version, controller) {
        (Version::One, Controller::Cpu) => vec![
            ("cpu.cfs_period_us", PERIOD_MICROS.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
            ("cpu.shares", (limits.cpu_weight * 1024).clamp(2, 262_144).to_string()),
        ],
        (Version::Two, Controller::Cpu) => vec![
            ("cpu.max", format!("{quota} {PERIOD_MICROS}")),
            ("cpu.weight", (limits.cpu_weight * 100).clamp(1, 10_000).to_string()),
        ],
        (Version::One, Controller::Memory) => {
            vec![("memory.limit_in_bytes", limits.memory_bytes.to_string())]
        }
        (Version::Two, Controller::Memory) => vec![("memory.max", limits.memory_bytes.to_string())],
        (_, Controller::Pids) => vec![("pids.max", limits.pids.to_string())],
    }
}

/// Lets the groups below `parent` use a controller of version 2.
fn delegate(mount: &Path, parent: &str, controller: Controller) -> io::Result<()> {
    for group in [mount.to_owned(), mount.join(parent)] {
        fs::write(group.join("cgroup.subtree_control"), format!("+{}", controller.as_str()))?;
    }
    Ok(())
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// The processes of a group; none where it does not exist.
fn members(group: &Path) -> io::Result<Vec<Pid>> {
    let members = match fs::read_to_string(group.join("cgroup.procs")) {
        Ok(members) => members,
        // ENODEV is what an open group gives that was removed meanwhile.
        Err(error)
            if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let pids = members.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1);
    Ok(pids.map(Pid::from_raw).collect())
}

fn kill_members(group: &Path) -> io::Result<()> {
    for pid in members(group)? {
        // It may have ended by itself.
        let _ = kill(pid, Signal::SIGKILL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 22 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/systemd rw,nosuid shared:10 - cgroup cgroup rw,xattr,name=systemd
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:12 - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/freezer rw,nosuid - cgroup cgroup rw,freezer
35 30 0:31 / /sys/fs/cgroup/pids rw,nosuid shared:13 master:2 - cgroup cgroup rw,pids
";
    const V2: &str = "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn tree(mount: &str, version: Version, controllers: &[Controller]) -> Tree {
        Tree { mount: mount.into(), version, controllers: controllers.to_vec() }
    }

    #[test]
    fn trees_are_found() {
        let v1 = [
            tree("/sys/fs/cgroup/systemd", Version::One, &[]),
            tree("/sys/fs/cgroup/cpu,cpuacct", Version::One, &[Controller::Cpu]),
            tree("/sys/fs/cgroup/memory", Version::One, &[Controller::Memory]),
            tree("/sys/fs/cgroup/pids", Version::One, &[Controller::Pids]),
        ];
        assert_eq!(trees(V1), v1);
        let v2 = tree("/sys/fs/cgroup", Version::Two, &Controller::ALL);
        assert_eq!(trees(V2), std::slice::from_ref(&v2));
        let mut both = v1.to_vec();
        both.push(v2);
        assert_eq!(trees(&format!("{V1}{V2}")), both);
        // A container sees a tree twice.
        assert_eq!(trees(&format!("{V1}{V1}")), v1);
        assert_eq!(trees("nonsense\n - \n30 22 - cgroup\n"), []);
    }

    #[test]
    fn limits_are_written_as_the_kernel_wants_them() {
        let limits = Limits { cpu_millis: 2500, cpu_weight: 2, memory_bytes: 1 << 30, pids: 130 };
        assert_eq!(
            settings(Version::Two, Controller::Cpu, &limits),
            [("cpu.max", "250000 100000".to_owned()), ("cpu.weight", "200".to_owned())]
        );
        let most = Limits { cpu_millis: 255_500, cpu_weight: 255, memory_bytes: 1 << 46, pids: 400 };
        assert_eq!(settings(Version::Two, Controller::Cpu, &most)[1].1, "10000");
        assert_eq!(settings(Version::One, Controller::Cpu, &most)[2].1, "261120");
    }

    /// Whatever trees this host has: a process is born into a group that limits it, and goes with it.
    #[tokio::test]
    async fn a_process_is_in_its_group_until_that_is_removed() {
        let cgroups = Cgroups::detect(&format!("haar-unit-{}", std::process::id())).unwrap();
        if cgroups.trees.is_empty() {
            eprintln!("skipped: no control group can be made here");
            return;
        }
        let limits = Limits { cpu_millis: 1500, cpu_weight: 1, memory_bytes: 64 << 20, pids: 7 };
        let group = cgroups.create("i-1", &limits).unwrap();
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        let pid_file = tempfile::tempfile().unwrap();
        let program = crate::spawn::Program {
            path: c"/bin/sleep".into(),
            arguments: vec![c"sleep".into(), c"600".into()],
            keep: &[],
            input: &null,
            output: &null,
            pid_file: &pid_file,
            group: &group,
        };
        let (pid, _pidfd) = crate::spawn::spawn(&program).unwrap();
        let mut written = String::new();
        std::io::Seek::rewind(&mut &pid_file).unwrap();
        std::io::Read::read_to_string(&mut &pid_file, &mut written).unwrap();
        assert_eq!(written, format!("{}\n", pid.as_raw_nonzero()));

        assert_eq!(cgroups.list().unwrap().first().unwrap(), "i-1");
        for tree in &cgroups.trees {
            let dir = tree.mount.join(&cgroups.parent).join("i-1");
            assert_eq!(fs::read_to_string(dir.join("cgroup.procs")).unwrap(), written, "{}", dir.display());
            for controller in &tree.controllers {
                for (file, value) in settings(tree.version, *controller, &limits) {
                    assert_eq!(fs::read_to_string(dir.join(file)).unwrap().trim(), value, "{file}");
                }
            }
        }
        cgroups.remove("i-1").await.unwrap();
        let ended =
            rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(ended.1.terminating_signal(), Some(9));
        cgroups.remove("i-1").await.unwrap();
        for tree in &cgroups.trees {
            assert!(!tree.mount.join(&cgroups.parent).exists());
        }
    }
}
