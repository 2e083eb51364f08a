//! Fetching Debian packages with apt, beside the machine's own package state.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};
use crate::tool::{self, Stream};

/// The release that images are built from.
pub(crate) const RELEASE: &str = "bookworm";

/// The signing keys of Debian's archive, from the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long package lists are believed without asking the mirror again.
const FRESH: Duration = Duration::from_secs(3600);

/// apt with lists, archives and a status of its own, in a folder. The machine's own sources say where the mirror is; its
/// proxies and certificates apply; its installed packages, pins and hooks do not.
pub(crate) struct Apt {
    dir: PathBuf,
}

/// A package file in the cache.
pub(crate) struct Package {
    pub name: String,
    pub version: String,
    pub file: PathBuf,
}

impl Apt {
    /// Prepares the folder. `sources` replaces what the machine's configuration says, if given.
    pub fn open(dir: PathBuf, sources: Option<&Path>) -> Result<Apt> {
        let text = match sources {
            Some(path) => fs::read_to_string(path).map_err(Error::io("read", path))?,
            None => sources_of_machine()?,
        };
        for sub in ["lists/partial", "archives/partial", "parts"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        let apt = Apt { dir };
        let list = apt.sources();
        if fs::read_to_string(&list).ok().as_ref() != Some(&text) {
            // Lists of another mirror say nothing about this one.
            let _ = fs::remove_file(apt.dir.join("updated"));
            fs::write(&list, &text).map_err(Error::io("write", &list))?;
        }
        let status = apt.dir.join("status");
        fs::write(&status, "").map_err(Error::io("write", &status))?;
        let configuration = apt.dir.join("apt.conf");
        fs::write(&configuration, apt.configuration()).map_err(Error::io("write", &configuration))?;
        Ok(apt)
    }

    /// The sources.list that is used.
    pub fn sources(&self) -> PathBuf {
        self.dir.join("sources.list")
    }

    /// A folder of package files that outlives a build, for a recipe that does not fetch by this apt.
    pub fn archive_cache(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    /// Fetches the package lists, unless that was done within the hour. A mirror that cannot be reached is an error only
    /// if there are no lists from earlier.
    pub fn update(&self, progress: &mut dyn Progress) -> Result<()> {
        let stamp = self.dir.join("updated");
        let age =
            fs::metadata(&stamp).and_then(|m| m.modified()).map(|t| SystemTime::now().duration_since(t));
        if let Ok(Ok(age)) = age
            && age < FRESH
        {
            return Ok(());
        }
        progress.stage("package lists", Unit::Percent, Some(100));
        let mut command = self.command("apt-get");
        command.args(["-o", "APT::Update::Error-Mode=any", "-o", "APT::Status-Fd=1", "update"]);
        match tool::run_lines(&mut command, "apt", Stream::Output, |line| report_download(line, progress)) {
            Ok(()) => {
                // Packages that newer ones have replaced are not kept.
                tool::run(self.command("apt-get").arg("autoclean"), "apt")?;
                fs::write(&stamp, "").map_err(Error::io("write", &stamp))
            }
            Err(error) if stamp.exists() => {
                tracing::warn!(%error, "the package lists are not updated; going on with those from earlier");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Fetches packages with everything that they depend on.
    pub fn fetch_with_dependencies(
        &self,
        names: &[&str],
        progress: &mut dyn Progress,
    ) -> Result<Vec<Package>> {
        let install = |extra: &[&str]| {
            let mut command = self.command("apt-get");
            command.args(["-y", "--no-install-recommends"]).args(extra).arg("install").args(names);
            command
        };
        progress.stage("packages", Unit::Percent, Some(100));
        let mut download = install(&["--download-only", "-o", "APT::Status-Fd=1"]);
        tool::run_lines(&mut download, "apt", Stream::Output, |line| report_download(line, progress))?;
        let plan = tool::run(&mut install(&["--simulate"]), "apt")?;
        let mut packages = Vec::new();
        // Lines of the kind `Inst libc6 (2.36-9 Debian:12/oldstable [amd64])`.
        for line in String::from_utf8_lossy(&plan).lines() {
            let Some(rest) = line.strip_prefix("Inst ") else { continue };
            let mut words = rest.split_whitespace();
            let name = words.next();
            let version = words.find_map(|word| word.strip_prefix('('));
            let (Some(name), Some(version)) = (name, version) else { continue };
            packages.push(self.package(name, version)?);
        }
        Ok(packages)
    }

    /// Fetches one package without what it depends on.
    pub fn fetch(&self, name: &str, progress: &mut dyn Progress) -> Result<Package> {
        let version = self.field(name, "Version")?;
        progress.stage(name, Unit::Percent, Some(100));
        let mut command = self.command("apt-get");
        command.current_dir(self.dir.join("archives"));
        command.args(["-o", "APT::Status-Fd=1", "download"]).arg(format!("{name}={version}"));
        tool::run_lines(&mut command, "apt", Stream::Output, |line| report_download(line, progress))?;
        self.package(name, &version)
    }

    /// The package that a metapackage stands for: its dependency that begins with `prefix`.
    pub fn behind(&self, meta: &str, prefix: &str) -> Result<String> {
        let depends = self.field(meta, "Depends")?;
        let mut names = depends.split(',').filter_map(|dependency| dependency.split_whitespace().next());
        let name = names.find(|name| name.starts_with(prefix));
        let missing = || Error::Packages(format!("{meta} does not depend on a package {prefix}…"));
        name.map(str::to_owned).ok_or_else(missing)
    }

    /// A field of the description of the newest version of a package.
    fn field(&self, package: &str, field: &str) -> Result<String> {
        let shown = tool::run(self.command("apt-cache").args(["--no-all-versions", "show", package]), "apt")?;
        let shown = String::from_utf8_lossy(&shown);
        let value = shown.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
        value.map(str::to_owned).ok_or_else(|| Error::Packages(format!("{package} has no {field}")))
    }

    /// The file of a package that was fetched. apt writes the epoch's colon as `%3a`.
    fn package(&self, name: &str, version: &str) -> Result<Package> {
        let escaped = version.replace(':', "%3a");
        let names = ["amd64", "all"].map(|architecture| format!("{name}_{escaped}_{architecture}.deb"));
        let mut files = names.iter().map(|file| self.dir.join("archives").join(file));
        let file = files.find(|file| file.exists());
        let file = file.ok_or_else(|| Error::Packages(format!("apt did not fetch {name} {version}")))?;
        Ok(Package { name: name.into(), version: version.into(), file })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = tool::command(program);
        let mut option = OsString::from("--config-file=");
        option.push(self.dir.join("apt.conf"));
        command.arg(option).env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// What differs from the machine's configuration of apt.
    fn configuration(&self) -> String {
        let dir = self.dir.display();
        format!(
            r#"#clear APT::Update;
#clear DPkg;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::Languages {{ "none"; }};
Acquire::Retries "3";
Dir::Etc::SourceList "{dir}/sources.list";
Dir::Etc::SourceParts "{dir}/parts";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "{dir}/parts";
Dir::State "{dir}";
Dir::State::Lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::State::extended_states "{dir}/extended_states";
Dir::Cache "{dir}";
Dir::Cache::Archives "{dir}/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Log "{dir}";
"#
        )
    }
}

impl Package {
    /// Unpacks the package's files into a folder.
    pub fn unpack(&self, into: &Path) -> Result<()> {
        tool::run(tool::command("dpkg-deb").arg("--extract").arg(&self.file).arg(into), "dpkg").map(drop)
    }
}

/// Passes on the percentage of a line `dlstatus:1:23.4:Retrieving file 1 of 3`.
fn report_download(line: &str, progress: &mut dyn Progress) {
    let percent = line.strip_prefix("dlstatus:").and_then(|rest| rest.split(':').nth(1));
    if let Some(percent) = percent.and_then(|p| p.parse::<f64>().ok()) {
        progress.advance(percent.clamp(0.0, 100.0) as u64);
    }
}

/// A sources.list for [`RELEASE`] by the mirrors that this machine uses.
fn sources_of_machine() -> Result<String> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let mut command = tool::command("apt-get");
    command.args(["indextargets", "--format", format, "Created-By: Packages"]);
    let targets = tool::run(&mut command, "apt")?;
    let keyring = if Path::new(KEYRING).exists() { format!(" [signed-by={KEYRING}]") } else { String::new() };
    sources_from(&String::from_utf8_lossy(&targets), &keyring)
}

/// Chooses from lines `URI SUITE COMPONENT`, the index targets of the machine's apt. Where the machine runs another release
/// of Debian, the same mirrors have ours.
fn sources_from(targets: &str, keyring: &str) -> Result<String> {
    let mut main: Option<(&str, bool)> = None;
    let mut security = None;
    for line in targets.lines() {
        let mut words = line.split_whitespace();
        let (Some(uri), Some(suite), Some("main")) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let path = uri.trim_end_matches('/');
        let place = if path.ends_with("/debian-security") || suite.ends_with("-security") {
            &mut security
        } else if path.ends_with("/debian") || suite == RELEASE {
            &mut main
        } else {
            continue;
        };
        // A source of our release is better than one that only should have it.
        let exact = suite.starts_with(RELEASE);
        if place.is_none_or(|(_, before)| exact && !before) {
            *place = Some((uri, exact));
        }
    }
    let Some((main, _)) = main else {
        return Err(Error::Packages(
            "its apt sources name no mirror of Debian; give a sources.list for Debian 12".into(),
        ));
    };
    let mut text = String::new();
    for suite in [RELEASE.to_owned(), format!("{RELEASE}-updates")] {
        text += &format!("deb{keyring} {main} {suite} main\n");
    }
    if let Some((security, _)) = security {
        text += &format!("deb{keyring} {security} {RELEASE}-security main\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_follow_the_machine() {
        let targets = "http://m/debian/ bookworm-backports main\nhttp://m/debian/ bookworm main\n\
                       http://m/debian/ bookworm contrib\nhttp://s/debian-security/ bookworm-security main\n\
                       http://other/deb nodistro main\n";
        let text = sources_from(targets, " [signed-by=/k]").unwrap();
        assert_eq!(
            text,
            "deb [signed-by=/k] http://m/debian/ bookworm main\n\
             deb [signed-by=/k] http://m/debian/ bookworm-updates main\n\
             deb [signed-by=/k] http://s/debian-security/ bookworm-security main\n"
        );
    }

    #[test]
    fn another_release_of_debian_lends_its_mirror() {
        let text = sources_from("http://m/debian trixie main\n", "").unwrap();
        assert_eq!(text, "deb http://m/debian bookworm main\ndeb http://m/debian bookworm-updates main\n");
    }

    #[test]
    fn other_distributions_have_no_mirror() {
        let error = sources_from("http://m/ubuntu noble main\nnonsense\n\n", "").unwrap_err();
        assert!(matches!(error, Error::Packages(_)));
    }

    #[test]
    fn only_download_percentages_are_progress() {
        struct Last(Option<u64>);
        impl Progress for Last {
            fn stage(&mut self, _: &str, _: Unit, _: Option<u64>) {}
            fn advance(&mut self, done: u64) {
                self.0 = Some(done);
            }
        }
        let mut last = Last(None);
        for line in ["Get:1 x", "pmstatus:x:50.0:y", "dlstatus:x", "dlstatus:1:NaN:", "dlstatus"] {
            report_download(line, &mut last);
        }
        assert!(last.0.is_none_or(|n| n == 0));
        report_download("dlstatus:1:42.9:Retrieving file 1 of 3", &mut last);
        assert_eq!(last.0, Some(42));
    }
}
