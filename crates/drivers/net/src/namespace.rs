//! Network namespaces by name, as `ip netns` keeps them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::{Error, command};

/// Where named namespaces are mounted.
const DIR: &str = "/run/netns";

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Whether a namespace of this name is there: a mount, not just the file that a mount was made on.
pub(crate) fn exists(name: &str) -> bool {
    // A namespace file lives on nsfs, the placeholder on the tmpfs of /run.
    let device = |path: &Path| nix::sys::stat::stat(path).ok().map(|stat| stat.st_dev);
    let this = device(Path::new("/proc/self/ns/net"));
    this.is_some() && device(&path(name)) == this
}

/// Names of the namespaces that begin with `prefix`.
pub(crate) fn list(prefix: &str) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(format!("list {DIR}"))(error)),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(prefix)).collect())
}

/// Makes a namespace unless it is there.
pub(crate) fn create(name: &str) -> Result<(), Error> {
    if exists(name) {
        return Ok(());
    }
    // A placeholder without a mount is left when a creation was cut off, or after the host started anew.
    let _ = std::fs::remove_file(path(name));
    command::run("ip", &["netns", "add", name], "").map(drop)
}

/// Removes a namespace with everything in it.
pub(crate) fn remove(name: &str) -> Result<(), Error> {
    if !exists(name) {
        let _ = std::fs::remove_file(path(name));
        return Ok(());
    }
    command::run("ip", &["netns", "delete", name], "").map(drop)
}

/// Runs `body` on a thread that is in the namespace. What it spawns and every socket it makes is there too.
pub(crate) fn within<R: Send>(
    name: &str,
    body: impl FnOnce() -> Result<R, Error> + Send,
) -> Result<R, Error> {
    let file = File::open(path(name)).map_err(|_| Error::NoNamespace(name.to_owned()))?;
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::io(format!("enter the namespace {name}"))(errno.into()))?;
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
