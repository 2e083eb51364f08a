//! The images that can be fetched, by name.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::checksum::Checksum;
use crate::error::{Error, Result};
use crate::manifest::{BootMode, is_valid_name};

const BUILT_IN: &str = include_str!("catalogue.toml");

/// The greatest catalogue file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// The images that can be fetched, by name.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    entries: BTreeMap<String, Entry>,
}

/// One image of a catalogue. The fields are those of the file, which explains them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Entry {
    /// The name to ask for it by.
    #[serde(skip)]
    pub name: String,
    /// What it is, in a sentence.
    #[serde(default)]
    pub description: String,
    /// Where its publisher offers it. In the last part of the path, `*` stands for any text; which one, the checksum file
    /// says.
    pub url: String,
    /// The checksum of the file behind the URL: `sha256:` or `sha512:` and a digest in hexadecimal.
    pub checksum: Option<String>,
    /// Where its publisher lists the checksums of files.
    pub checksum_url: Option<String>,
    /// How the disk is packed.
    #[serde(default)]
    pub compression: Compression,
    /// The firmware that it boots with.
    #[serde(default = "legacy_bios")]
    pub boot_mode: BootMode,
    /// The account that logs in by SSH.
    pub default_user: String,
    /// The name of the root device.
    #[serde(default = "xvda")]
    pub root_device_name: String,
}

/// How a published disk is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// The xz format.
    Xz,
    /// A tar archive in the xz format; the disk is the only regular file in it.
    #[serde(rename = "tar.xz")]
    TarXz,
}

fn legacy_bios() -> BootMode {
    BootMode::LegacyBios
}

fn xvda() -> String {
    "/dev/xvda".into()
}

impl Catalogue {
    /// The catalogue that is part of the program.
    pub fn built_in() -> Catalogue {
        let mut catalogue = Catalogue::default();
        catalogue.extend(BUILT_IN, "built-in").expect("the tests read it");
        catalogue
    }

    /// Adds the entries of a catalogue file; one with the name of an existing entry replaces it. A file that does not exist
    /// adds nothing.
    ///
    /// # Errors
    /// [`Error::Catalogue`] for a file that is no catalogue; [`Error::Io`].
    pub fn extend_from_file(&mut self, path: &Path) -> Result<()> {
        let origin = path.display().to_string();
        match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Ok(found) if found.len() > LIMIT => {
                return Err(Error::Catalogue { origin, reason: "it is too long".into() });
            }
            _ => {}
        }
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        self.extend(&text, &origin)
    }

    /// All entries, in the order of their names.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The entry with this name.
    ///
    /// # Errors
    /// [`Error::UnknownEntry`].
    pub fn get(&self, name: &str) -> Result<&Entry> {
        let known = || self.entries.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.entries.get(name).ok_or_else(|| Error::UnknownEntry { name: name.into(), known: known() })
    }

    fn extend(&mut self, text: &str, origin: &str) -> Result<()> {
        let invalid = |reason: String| Error::Catalogue { origin: origin.into(), reason };
        let read: BTreeMap<String, Entry> = toml::from_str(text).map_err(|e| invalid(e.to_string()))?;
        for (name, mut entry) in read {
            entry.check(&name).map_err(|reason| invalid(format!("{name:?}: {reason}")))?;
            entry.name = name.clone();
            self.entries.insert(name, entry);
        }
        Ok(())
    }
}

impl Entry {
    /// The last part of the URL's path: the file's name, or a pattern for it.
    pub(crate) fn file_name(&self) -> &str {
        let path = self.url.split(['?', '#']).next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }

    fn check(&self, name: &str) -> std::result::Result<(), String> {
        if !is_valid_name(name) {
            return Err("the name cannot name an image".into());
        }
        for url in std::iter::once(&self.url).chain(&self.checksum_url) {
            let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            if host.is_none_or(|host| host.is_empty() || host.starts_with('/')) {
                return Err(format!("{url:?} is not an http or https URL"));
            }
        }
        let pattern = self.url.contains('*');
        if pattern && (self.url.matches('*').count() != self.file_name().matches('*').count()) {
            return Err("only the last part of the URL's path can have a *".into());
        }
        match (&self.checksum, &self.checksum_url) {
            (Some(_), Some(_)) => Err("checksum and checksum-url exclude each other".into()),
            (None, None) => Err("it has neither checksum nor checksum-url".into()),
            (Some(_), None) if pattern => Err("a URL with a * needs a checksum-url".into()),
            (Some(text), None) if Checksum::parse(text).is_none() => {
                Err(format!("{text:?} is not sha256: or sha512: and a digest"))
            }
            _ if self.file_name().is_empty() => Err("the URL does not end with a file name".into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_is_valid() {
        let catalogue = Catalogue::built_in();
        for name in
            ["debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04", "al2023", "alpine-3.20", "alpine-3.22"]
        {
            let entry = catalogue.get(name).unwrap();
            assert!(entry.url.starts_with("https://"), "{name}");
            assert!(entry.checksum_url.as_ref().is_some_and(|url| url.starts_with("https://")), "{name}");
        }
        assert!(matches!(catalogue.get("nonsense"), Err(Error::UnknownEntry { .. })));
    }

    #[test]
    fn a_file_extends_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("images.toml");
        let mut catalogue = Catalogue::built_in();
        let before = catalogue.entries().count();
        catalogue.extend_from_file(&file).unwrap();
        assert_eq!(catalogue.entries().count(), before);
        let digest = "0".repeat(64);
        let text = format!(
            "[debian-12]\nurl = 'http://mirror/a.img.xz'\nchecksum = 'sha256:{digest}'\ncompression = 'tar.xz'\n\
             default-user = 'me'\nboot-mode = 'uefi'\n[mine]\nurl = 'http://m/b-*.raw'\ndefault-user = 'me'\n\
             checksum-url = 'http://m/SUMS'\n"
        );
        fs::write(&file, text).unwrap();
        catalogue.extend_from_file(&file).unwrap();
        assert_eq!(catalogue.entries().count(), before + 1);
        let entry = catalogue.get("debian-12").unwrap();
        assert_eq!((entry.compression, entry.boot_mode), (Compression::TarXz, BootMode::Uefi));
        assert_eq!(catalogue.get("mine").unwrap().file_name(), "b-*.raw");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let digest = "0".repeat(64);
        let checksum = format!("checksum = 'sha256:{digest}'");
        for (text, complaint) in [
            ("[abc]\n", "missing field"),
            ("abc", "expected"),
            ("[abc]\nurl = 'http://h/f'\ndefault-user = 'u'\n", "neither"),
            ("[abc]\nurl = 'http://h/f'\ndefault-user = 'u'\nchecksum = 'md5:00'\n", "is not sha256"),
            ("[abc]\nurl = 'file:///etc/shadow'\ndefault-user = 'u'\nCHECKSUM\n", "not an http"),
            ("[abc]\nurl = 'http://h/'\ndefault-user = 'u'\nCHECKSUM\n", "file name"),
            ("[abc]\nurl = 'http://h/*'\ndefault-user = 'u'\nCHECKSUM\n", "needs a checksum-url"),
            ("[abc]\nurl = 'http://h/*/f'\ndefault-user = 'u'\nchecksum-url = 'http://h/S'\n", "last part"),
            (
                "[abc]\nurl = 'http://h/f'\ndefault-user = 'u'\nchecksum-url = 'http://h/S'\nCHECKSUM\n",
                "exclude",
            ),
            ("[abc]\nurl = 'http://h/f'\ndefault-user = 'u'\ncolour = 'red'\nCHECKSUM\n", "unknown field"),
            ("['a/*']\nurl = 'http://h/f'\ndefault-user = 'u'\nCHECKSUM\n", "cannot name an image"),
        ] {
            let error =
                Catalogue::default().extend(&text.replace("CHECKSUM", &checksum), "here").unwrap_err();
            assert!(error.to_string().contains(complaint), "{text}: {error}");
        }
    }
}
