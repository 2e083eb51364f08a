//! The configuration of the daemon: flags before the configuration file before the defaults.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The state folder when none is named.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/haar";
/// The address to listen on when none is named.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:4566";
/// The region when none is named.
pub const DEFAULT_REGION: &str = "us-east-1";
/// The public addresses when none are named: part of 198.18.0.0/15, which RFC 2544 sets aside and nobody routes.
pub const DEFAULT_PUBLIC_POOL: &str = "198.18.0.0/16";
/// The name prefix when none is named.
pub const DEFAULT_NAME: &str = "haar";
/// The least memory in MiB that instances leave to the host when nothing is said.
const LEAST_RESERVE: u64 = 512;
/// vCPUs of an account's running instances when nothing is said: AWS's quota for standard families in accounts that are in use (new
/// ones begin at 5).
const DEFAULT_VCPU_QUOTA: u32 = 1152;
/// The configuration file of the machine, used where the state folder has none.
const SYSTEM_FILE: &str = "/etc/haar/haar.toml";

/// What runs the instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// Virtual machines of QEMU.
    #[default]
    Qemu,
    /// Nothing: instances only change state. For trying out the API and for scale tests.
    Simulated,
}

impl Compute {
    /// Its name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Simulated => "simulated",
        }
    }
}

/// The settings that flags or a file give; what is absent has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Address and port to answer on
    #[arg(long, value_name = "ADDRESS:PORT", help = format!("Address and port to answer on [default: {DEFAULT_LISTEN}]"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// The AWS region to be
    #[arg(long, value_name = "REGION", help = format!("The AWS region to be [default: {DEFAULT_REGION}]"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// What runs the instances
    #[arg(long, value_enum, help = "What runs the instances [default: qemu]")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<Compute>,
    /// Public addresses
    #[arg(
        long,
        value_name = "CIDR",
        help = format!("Addresses for instances to be reached at [default: {DEFAULT_PUBLIC_POOL}, reachable from this machine only]")
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_pool: Option<Ipv4Net>,
    /// Name prefix
    #[arg(
        long,
        value_name = "PREFIX",
        help = format!("What the names of network namespaces, interfaces and tables begin with; two daemons on one machine need two [default: {DEFAULT_NAME}]")
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Prefix>,
    /// Memory that instances leave to the host
    #[arg(
        long,
        value_name = "MIB",
        help = format!("Memory in MiB that instances leave to the host [default: a sixteenth, at least {LEAST_RESERVE}]")
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_reserve: Option<u64>,
    /// Memory of instances in relation to the host's
    #[arg(
        long,
        value_name = "PERCENT",
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        help = "Memory that instances may be promised, in percent of what the host has for them [default: 100]"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_overcommit: Option<u32>,
    /// vCPUs of an account's running instances
    #[arg(
        long,
        value_name = "VCPUS",
        help = format!("vCPUs that an account's running instances may have in a region [default: {DEFAULT_VCPU_QUOTA}]")
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_quota: Option<u32>,
    /// Folders that every account may import from
    #[arg(
        long,
        value_name = "DIR,…",
        value_delimiter = ',',
        help = "Folders of this machine from which every account may import disks by file URLs [default: none]"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub import_folders: Vec<PathBuf>,
}

/// What the names of everything on the machine begin with: one to five lower-case letters or digits, the first a letter. Names of network interfaces
/// have at most 15 characters, so that the prefix must be short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(String);

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if plain && text.len() <= 5 && text.starts_with(|c: char| c.is_ascii_lowercase()) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a prefix is one to five lower-case letters or digits, the first a letter".into())
        }
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Settings {
    /// The arguments that give these settings to `haar serve`.
    pub fn to_arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut push = |flag: &str, value: Option<String>| {
            if let Some(value) = value {
                arguments.extend([flag.to_owned(), value]);
            }
        };
        push("--listen", self.listen.map(|v| v.to_string()));
        push("--region", self.region.clone());
        push("--compute", self.compute.map(|v| v.as_str().to_owned()));
        push("--public-pool", self.public_pool.map(|v| v.to_string()));
        push("--name", self.name.as_ref().map(ToString::to_string));
        push("--memory-reserve", self.memory_reserve.map(|v| v.to_string()));
        push("--memory-overcommit", self.memory_overcommit.map(|v| v.to_string()));
        push("--vcpu-quota", self.vcpu_quota.map(|v| v.to_string()));
        let folders: Vec<_> = self.import_folders.iter().map(|v| v.to_string_lossy()).collect();
        push("--import-folders", (!folders.is_empty()).then(|| folders.join(",")));
        arguments
    }

    /// These settings, and the others' where these are silent.
    fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            region: self.region.or(other.region),
            compute: self.compute.or(other.compute),
            public_pool: self.public_pool.or(other.public_pool),
            name: self.name.or(other.name),
            memory_reserve: self.memory_reserve.or(other.memory_reserve),
            memory_overcommit: self.memory_overcommit.or(other.memory_overcommit),
            vcpu_quota: self.vcpu_quota.or(other.vcpu_quota),
            import_folders: if self.import_folders.is_empty() {
                other.import_folders
            } else {
                self.import_folders
            },
        }
    }

    /// The settings of a file; `None` where there is none.
    fn from_file(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        let malformed = |e: toml::de::Error| Error::Malformed { path: path.into(), reason: e.to_string() };
        toml::from_str(&text).map(Some).map_err(malformed)
    }
}

/// The configuration of one daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    /// The folder of everything that outlives the daemon: records, keys, images, disks, console logs. Absolute.
    pub state_dir: PathBuf,
    /// The address and port of the API.
    pub listen: SocketAddr,
    /// The region that this machine is.
    pub region: String,
    /// What runs the instances.
    pub compute: Compute,
    /// The public addresses.
    pub public_pool: Ipv4Net,
    /// What the names of everything on the machine begin with.
    pub name: Prefix,
    /// Memory in MiB that instances leave to the host, where it was said.
    #[serde(default)]
    pub memory_reserve: Option<u64>,
    /// Memory that instances may be promised, in percent of what there is, where it was said.
    #[serde(default)]
    pub memory_overcommit: Option<u32>,
    /// vCPUs of an account's running instances in a region, where it was said.
    #[serde(default)]
    pub vcpu_quota: Option<u32>,
    /// Folders of this machine from which every account may import disks.
    #[serde(default)]
    pub import_folders: Vec<PathBuf>,
}

impl Config {
    /// The configuration for a state folder: the flags, then `haar.toml` of the state folder or else `/etc/haar/haar.toml`,
    /// then the defaults.
    pub fn load(state_dir: &Path, flags: Settings) -> Result<Self> {
        let file = match Settings::from_file(&state_dir.join("haar.toml"))? {
            Some(settings) => settings,
            None => Settings::from_file(Path::new(SYSTEM_FILE))?.unwrap_or_default(),
        };
        let settings = flags.or(file);
        let region = settings.region.unwrap_or_else(|| DEFAULT_REGION.into());
        check_region(&region)?;
        let parsed = "the defaults are valid";
        let public_pool = settings.public_pool.unwrap_or_else(|| DEFAULT_PUBLIC_POOL.parse().expect(parsed));
        check_pool(public_pool)?;
        if let Some(folder) = settings.import_folders.iter().find(|folder| !folder.is_absolute()) {
            return Err(Error::Setting(format!("{} is not the absolute path of a folder", folder.display())));
        }
        Ok(Self {
            state_dir: std::path::absolute(state_dir).map_err(Error::io("find", state_dir))?,
            listen: settings.listen.unwrap_or_else(|| DEFAULT_LISTEN.parse().expect(parsed)),
            region,
            compute: settings.compute.unwrap_or_default(),
            public_pool: public_pool.trunc(),
            name: settings.name.unwrap_or_else(|| DEFAULT_NAME.parse().expect(parsed)),
            memory_reserve: settings.memory_reserve,
            memory_overcommit: settings.memory_overcommit,
            vcpu_quota: settings.vcpu_quota,
            import_folders: settings.import_folders,
        })
    }

    /// What there is for instances on a host of this much memory, each of which takes `overhead_mib` besides its own. Simulated
    /// instances take nothing, so that they are limited only where it was said.
    pub fn capacity(&self, host_mib: u64, overhead_mib: u64) -> haar_ec2::Capacity {
        let real = self.compute == Compute::Qemu;
        let limited = real || self.memory_reserve.is_some() || self.memory_overcommit.is_some();
        let reserve = self.memory_reserve.unwrap_or((host_mib / 16).max(LEAST_RESERVE));
        let percent = u64::from(self.memory_overcommit.unwrap_or(100));
        haar_ec2::Capacity {
            memory_mib: limited.then(|| host_mib.saturating_sub(reserve) * percent / 100),
            overhead_mib: if real { overhead_mib } else { 0 },
            vcpus: self.vcpu_quota.or(real.then_some(DEFAULT_VCPU_QUOTA)),
            one_host: real,
        }
    }

    /// Where clients on this machine reach the API.
    pub fn endpoint(&self) -> String {
        endpoint(self.listen)
    }
}

/// The URL of an API that listens on this address: an unspecified address is reached by the loopback one.
pub fn endpoint(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listen.port()))
}

/// Region names become parts of record keys, DNS names and availability zones.
fn check_region(region: &str) -> Result<()> {
    let plain = region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let shape = region.starts_with(|c: char| c.is_ascii_lowercase())
        && region.ends_with(|c: char| c.is_ascii_digit())
        && region.contains('-');
    if plain && shape && region.len() <= 32 {
        Ok(())
    } else {
        Err(Error::Setting(format!("{region:?} is not a region: one looks like us-east-1")))
    }
}

/// The pool must have addresses to give away, and must not shadow addresses that mean something else.
fn check_pool(pool: Ipv4Net) -> Result<()> {
    let reserved = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"];
    let overlaps = |net: &&&str| {
        let net: Ipv4Net = net.parse().expect("the list is valid");
        net.contains(&pool) || pool.contains(&net)
    };
    if pool.prefix_len() > 30 || pool.prefix_len() < 8 {
        return Err(Error::Setting(format!("{pool} cannot be the public pool: it must be a /8 to a /30")));
    }
    match reserved.iter().find(overlaps) {
        Some(net) => Err(Error::Setting(format!("{pool} cannot be the public pool: it overlaps {net}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_dir(file: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("haar.toml"), file).unwrap();
        let path = dir.path().to_owned();
        (dir, path)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let (_guard, dir) = state_dir("listen = \"127.0.0.1:5000\"\nregion = \"eu-central-1\"\n");
        let flags = Settings { region: Some("us-west-2".into()), ..Settings::default() };
        let config = Config::load(&dir, flags).unwrap();
        assert_eq!(config.region, "us-west-2");
        assert_eq!(config.listen.port(), 5000);
        assert_eq!(config.compute, Compute::Qemu);
        assert_eq!(config.name.to_string(), "haar");
    }

    #[test]
    fn capacity_is_the_host_s_less_the_reserve() {
        let (_guard, dir) = state_dir("memory-overcommit = 150\n");
        let load = |settings| Config::load(&dir, settings).unwrap().capacity(16_384, 64);
        let real = load(Settings::default());
        assert_eq!((real.memory_mib, real.overhead_mib, real.one_host), (Some(15_360 * 3 / 2), 64, true));
        assert_eq!(real.vcpus, Some(DEFAULT_VCPU_QUOTA));
        let all = load(Settings { memory_reserve: Some(20_000), ..Settings::default() });
        assert_eq!(all.memory_mib, Some(0));
        let (_guard, dir) = state_dir("compute = \"simulated\"\n");
        let simulated = Config::load(&dir, Settings::default()).unwrap().capacity(16_384, 64);
        assert_eq!(simulated, haar_ec2::Capacity::default());
    }

    #[test]
    fn a_misspelled_key_is_an_error_that_names_it() {
        let (_guard, dir) = state_dir("regoin = \"eu-central-1\"\n");
        let error = Config::load(&dir, Settings::default()).unwrap_err().to_string();
        assert!(error.contains("regoin") && error.contains("haar.toml"), "{error}");
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        let (_guard, dir) = state_dir("");
        let with = |settings: Settings| Config::load(&dir, settings).map(|_| ());
        for pool in ["127.0.0.0/8", "10.0.0.0/31", "0.0.0.0/0", "169.254.169.0/24"] {
            let settings = Settings { public_pool: Some(pool.parse().unwrap()), ..Settings::default() };
            assert!(with(settings).is_err(), "{pool}");
        }
        for region in ["", "US-EAST-1", "useast1", "us/east-1", "us-east-"] {
            let settings = Settings { region: Some(region.into()), ..Settings::default() };
            assert!(with(settings).is_err(), "{region}");
        }
        for name in ["", "toolong", "1a", "a-b", "Haar"] {
            assert!(name.parse::<Prefix>().is_err(), "{name}");
        }
    }

    #[test]
    fn arguments_give_the_same_settings_back() {
        use clap::Parser;
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            settings: Settings,
        }
        let settings = Settings {
            listen: Some("127.0.0.1:1".parse().unwrap()),
            region: Some("eu-west-1".into()),
            compute: Some(Compute::Simulated),
            public_pool: Some("10.1.0.0/16".parse().unwrap()),
            name: Some("h2".parse().unwrap()),
            memory_reserve: Some(700),
            memory_overcommit: Some(150),
            vcpu_quota: Some(5),
            import_folders: vec!["/srv/disks".into(), "/srv/more".into()],
        };
        let arguments = std::iter::once("haar".to_owned()).chain(settings.to_arguments());
        assert_eq!(Only::parse_from(arguments).settings, settings);
    }

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        assert_eq!(endpoint("0.0.0.0:4566".parse().unwrap()), "http://127.0.0.1:4566");
        assert_eq!(endpoint("[::]:80".parse().unwrap()), "http://[::1]:80");
    }
}
