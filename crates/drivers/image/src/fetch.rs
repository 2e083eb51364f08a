//! Fetching files that accounts name.
//!
//! What they name is fetched by the daemon, which reaches more than they do. So who asks decides which addresses may be reached, and the
//! addresses are looked at after names have been resolved, for redirections as well.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};
use crate::pull::{Client, Part};

/// Which addresses may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those of the internet: nothing of this machine, of its guests, or of the networks that it is in.
    Public,
    /// All but those that mean a link's own servers, of which metadata services are.
    Anywhere,
}

/// How to fetch a file.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// Which addresses may be reached.
    pub reach: Reach,
    /// Attempts in a row that may fail without a single new byte.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each further one.
    pub pause: Duration,
    /// Once it is true, nothing more is fetched.
    pub cancelled: Arc<AtomicBool>,
}

/// Fetches a file by HTTP to `to`, which appears whole or not at all. What arrives is kept beside it, and a later call goes on there.
///
/// # Errors
/// [`Error::HttpStatus`], [`Error::Transfer`], [`Error::NoSpace`], [`Error::Cancelled`], and the others.
pub fn fetch(url: &str, to: &Path, options: &FetchOptions, progress: &mut dyn Progress) -> Result<()> {
    if options.cancelled.load(Ordering::Relaxed) {
        return Err(Error::Cancelled);
    }
    let FetchOptions { reach, attempts, pause, cancelled } = options.clone();
    let (folder, key) = place(to)?;
    let client = Client::within(reach, attempts, pause, cancelled);
    let part = Part::claim(folder, key, progress)?;
    client.file(url, &part, progress)?;
    fs::rename(&part.path, to).map_err(Error::io("rename", &part.path))?;
    part.remove();
    Ok(())
}

fn place(to: &Path) -> Result<(&Path, &str)> {
    let nameless = || io::Error::new(io::ErrorKind::InvalidInput, "it has no name");
    let key = to.file_stem().and_then(|stem| stem.to_str());
    to.parent().zip(key).ok_or_else(nameless).map_err(Error::io("create", to))
}

/// Copies a file to `to`, which appears whole or not at all; what is zero takes no room.
///
/// # Errors
/// [`Error::NoSpace`], [`Error::Cancelled`], [`Error::Io`].
pub fn copy(from: &mut File, to: &Path, cancelled: &AtomicBool, progress: &mut dyn Progress) -> Result<()> {
    let length = from.metadata().map_err(Error::io("examine", to))?.len();
    let (folder, key) = place(to)?;
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let part = folder.join(format!("{key}.part"));
    let mut file = File::create(&part).map_err(Error::io("create", &part))?;
    progress.stage("copy", Unit::Bytes, Some(length));
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let stat = statvfs(folder).map_err(|e| Error::io("examine", folder)(e.into()))?;
        if stat.blocks_available().saturating_mul(stat.fragment_size()) < 1 << 30 {
            return Err(Error::NoSpace { path: folder.into() });
        }
        let count = from.read(&mut buffer).map_err(Error::io("read", to))?;
        if count == 0 {
            break;
        }
        let written = if buffer[..count].iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(count as i64)).map(drop)
        } else {
            file.write_all(&buffer[..count])
        };
        written.map_err(Error::io("write", &part))?;
        done += count as u64;
        progress.advance(done);
    }
    file.set_len(done).and_then(|()| file.sync_all()).map_err(Error::io("write", &part))?;
    fs::rename(&part, to).map_err(Error::io("rename", &part))
}

/// Resolves names to addresses that may be reached.
#[derive(Debug)]
pub(crate) struct Addresses {
    reach: Reach,
    inner: DefaultResolver,
}

impl Addresses {
    pub(crate) fn new(reach: Reach) -> Self {
        Self { reach, inner: DefaultResolver::default() }
    }
}

impl Resolver for Addresses {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        // All of them: what a name means is not to depend on which address answers.
        if found.iter().all(|address: &SocketAddr| is_within(self.reach, address.ip())) {
            return Ok(found);
        }
        let refused = "the address may not be reached from here";
        Err(ureq::Error::Io(io::Error::new(io::ErrorKind::PermissionDenied, refused)))
    }
}

fn is_within(reach: Reach, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let local_link = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match (reach, ip) {
        _ if local_link || ip.is_multicast() || ip.is_unspecified() => false,
        (Reach::Anywhere, _) => true,
        (Reach::Public, IpAddr::V4(ip)) => is_public_v4(ip),
        (Reach::Public, IpAddr::V6(ip)) => is_public_v6(ip),
    }
}

/// Whether an address is one of the internet (IANA IPv4 Special-Purpose Address Registry).
fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_private()
        || ip.is_loopback()
        || ip.is_broadcast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && b & 0xfe == 18);
    !special
}

/// Whether an address is one of the internet (IANA IPv6 Special-Purpose Address Registry); those that have others within are not.
fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let global = segments[0] & 0xe000 == 0x2000;
    let special = (segments[0] == 0x2001 && (segments[1] < 0x0200 || segments[1] == 0x0db8))
        || segments[0] == 0x2002
        || (segments[0] == 0x3fff && segments[1] < 0x1000);
    global && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_of_the_internet_is_out_of_reach() {
        let within = |reach, ip: &str| is_within(reach, ip.parse().unwrap());
        for public in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2a00:1450::1"] {
            assert!(within(Reach::Public, public) && within(Reach::Anywhere, public), "{public}");
        }
        for near in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "198.18.0.1",
            "198.19.255.1",
            "::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "2001:db8::1",
            "192.0.0.170",
            "250.0.0.1",
        ] {
            assert!(!within(Reach::Public, near), "{near}");
            assert!(within(Reach::Anywhere, near), "{near}");
        }
        for never in ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0", "::"] {
            assert!(!within(Reach::Anywhere, never) && !within(Reach::Public, never), "{never}");
        }
    }

    #[test]
    fn a_copy_is_whole_and_sparse() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to.disk"));
        let mut content = vec![0; (4 << 20) + 7];
        content[3 << 20] = 1;
        fs::write(&from, &content).unwrap();
        let mut source = File::open(&from).unwrap();
        let cancelled = AtomicBool::new(true);
        assert!(matches!(copy(&mut source, &to, &cancelled, &mut ()), Err(Error::Cancelled)));
        copy(&mut source, &to, &AtomicBool::new(false), &mut ()).unwrap();
        assert!(fs::read(&to).unwrap() == content);
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 3 << 20);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
