//! Building images from Debian packages.

mod apt;
mod cpio;
mod debian;
mod disk;
mod modules;
mod tiny;

use std::fs::{self, File};
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::library::{Draft, DraftBoot, Image, Library};
use crate::manifest::{BootMode, OWNER_ALIAS, Source};
use crate::progress::{Progress, Unit};
use apt::Apt;
pub(crate) use disk::convert_to_qcow2;

/// An image that can be built from Debian packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// BusyBox, Dropbear and a kernel: boots in seconds, also without hardware virtualization.
    Tiny,
    /// Debian 12 with systemd, cloud-init and OpenSSH.
    Debian12,
}

impl Recipe {
    /// All recipes.
    pub const ALL: [Recipe; 2] = [Recipe::Tiny, Recipe::Debian12];

    /// The recipe's name: `tiny`, `debian-12`.
    pub fn name(self) -> &'static str {
        match self {
            Recipe::Tiny => "tiny",
            Recipe::Debian12 => "debian-12",
        }
    }

    /// What the image is, in a sentence.
    pub fn description(self) -> &'static str {
        match self {
            Recipe::Tiny => {
                "BusyBox, Dropbear and a Linux kernel of Debian 12; boots in seconds, logs in as root"
            }
            Recipe::Debian12 => "Debian 12 with systemd, cloud-init and OpenSSH, logs in as admin",
        }
    }

    /// The account that logs in by SSH with the instance's key.
    pub fn default_user(self) -> &'static str {
        match self {
            Recipe::Tiny => "root",
            Recipe::Debian12 => "admin",
        }
    }

    /// The recipe with this name.
    ///
    /// # Errors
    /// [`Error::UnknownRecipe`].
    pub fn from_name(name: &str) -> Result<Recipe> {
        let known = || Recipe::ALL.map(Recipe::name).join(", ");
        let found = Recipe::ALL.into_iter().find(|recipe| recipe.name() == name);
        found.ok_or_else(|| Error::UnknownRecipe { name: name.into(), known: known() })
    }

    /// The Debian packages that must be installed on the building machine.
    pub fn requirements(self) -> &'static [&'static str] {
        match self {
            Recipe::Tiny => &["apt", "dpkg", "e2fsprogs", "qemu-utils"],
            Recipe::Debian12 => {
                &["apt", "dosfstools", "dpkg", "e2fsprogs", "fdisk", "mmdebstrap", "mtools", "qemu-utils"]
            }
        }
    }
}

/// How to build an image.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The image's name; by default the recipe's.
    pub name: Option<String>,
    /// The folder that keeps downloaded packages between builds; by default `/var/cache/haar`.
    pub cache: PathBuf,
    /// A sources.list for Debian 12 to fetch packages by; by default it is derived from the machine's own apt sources.
    pub sources: Option<PathBuf>,
}

impl Default for BuildOptions {
    fn default() -> BuildOptions {
        BuildOptions { name: None, cache: "/var/cache/haar".into(), sources: None }
    }
}

impl Library {
    /// Builds an image from Debian packages, which apt fetches from the mirror that this machine is configured with and
    /// checks by the archive's signatures. Needs root, and the packages of [`Recipe::requirements`] on this machine.
    ///
    /// # Errors
    /// [`Error::NeedsRoot`]; [`Error::InvalidName`] and [`Error::NameTaken`]; what a tool or the file system said.
    pub fn build(
        &self,
        recipe: Recipe,
        options: &BuildOptions,
        progress: &mut dyn Progress,
    ) -> Result<Image> {
        let name = options.name.as_deref().unwrap_or(recipe.name());
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NeedsRoot);
        }
        self.check_name(name)?;
        let staging = self.stage()?;
        fs::create_dir_all(&options.cache).map_err(Error::io("create", &options.cache))?;
        let lock = options.cache.join(".lock");
        let exclusive = File::create(&lock).map_err(Error::io("create", &lock))?;
        if exclusive.try_lock().is_err() {
            progress.stage("waiting for another build", Unit::Steps, None);
            exclusive.lock().map_err(Error::io("lock", &lock))?;
        }
        let apt = Apt::open(options.cache.join("apt"), options.sources.as_deref())?;
        apt.update(progress)?;
        let (mut packages, virtual_size, boot) = match recipe {
            Recipe::Tiny => {
                let boot = DraftBoot::Direct { command_line: tiny::COMMAND_LINE.into() };
                (tiny::make(&staging, &apt, progress)?, tiny::DISK_SIZE, boot)
            }
            Recipe::Debian12 => {
                let boot = DraftBoot::Firmware(BootMode::UefiPreferred);
                (debian::make(&staging, &apt, progress)?, debian::DISK_SIZE, boot)
            }
        };
        packages.sort();
        let draft = Draft {
            name: name.into(),
            description: recipe.description().into(),
            source: Source::Build { recipe: recipe.name().into(), packages },
            image_owner_alias: Some(OWNER_ALIAS.into()),
            default_user: recipe.default_user().into(),
            root_device_name: "/dev/xvda".into(),
            virtual_size,
            boot,
        };
        staging.publish(draft, progress)
    }
}
