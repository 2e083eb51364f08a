//! `haar image`: the image library from the command line.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use haar_image::{
    BootMode, BuildOptions, Catalogue, Image as LibraryImage, ImageId, ImportOptions, Library, Progress,
    PullOptions, Recipe, Unit,
};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::cli::{self, Firmware, Image, ImageBuild, ImageExport, ImageImport, ImagePull};
use crate::client::{AccountImage, Client};
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::state::StateDir;

/// Carries out a command on images.
pub fn image(state: &StateDir, command: Image) -> Result<ExitCode> {
    match command {
        Image::List(output) => list(state, output.json)?,
        Image::Build(build) => make(state, |library, progress| self::build(library, build, progress))?,
        Image::Pull(arguments) => {
            let catalogue = catalogue(state)?;
            make(state, |library, progress| pull(library, &catalogue, arguments, progress))?;
        }
        Image::Import(arguments) => make(state, |library, progress| import(library, arguments, progress))?,
        Image::Export(arguments) => export(state, &arguments)?,
        Image::Remove { image, force } => remove(state, &image, force)?,
        Image::Catalogue(output) => print_catalogue(&catalogue(state)?, output.json),
    }
    Ok(ExitCode::SUCCESS)
}

fn library(state: &StateDir) -> Result<Library> {
    state.create()?;
    Ok(Library::open(state.images())?)
}

/// The images that accounts have made, as the running daemon knows them; none are known without it.
fn account_images(state: &StateDir) -> Result<Vec<AccountImage>> {
    match state.running()? {
        Some(daemon) => Client::new(&daemon)?.account_images(),
        None => Ok(Vec::new()),
    }
}

fn list(state: &StateDir, json: bool) -> Result<()> {
    let images = library(state)?.list()?;
    let made = account_images(state)?;
    if json {
        let manifests = images.iter().map(|image| serde_json::json!(image.manifest));
        let all = manifests.chain(made.iter().map(|image| serde_json::json!(image)));
        println!("{:#}", serde_json::Value::from_iter(all));
        return Ok(());
    }
    if images.is_empty() && made.is_empty() {
        println!("There is no image yet. Make one: haar image build tiny");
        return Ok(());
    }
    let rows = images.iter().map(|image| {
        let manifest = &image.manifest;
        let size = HumanBytes(manifest.root_disk.file.length).to_string();
        [
            image.id().to_string(),
            manifest.name.clone(),
            size,
            manifest.default_user.clone(),
            manifest.creation_date.clone(),
            manifest.description.clone(),
        ]
    });
    let made = made.into_iter().map(|image| {
        // How much of its snapshots is its own changes with each that goes.
        let description = match (image.state.as_str(), image.description.as_str()) {
            ("available", "") => format!("of account {} in {}", image.account, image.region),
            ("available", description) => description.to_owned(),
            (state, _) => format!("{state}, of account {} in {}", image.account, image.region),
        };
        let size = format!("{} GiB", image.size_gib);
        [image.image_id, image.name, size, image.default_user, image.creation_date, description]
    });
    print_table(["IMAGE", "NAME", "SIZE", "USER", "CREATED", "DESCRIPTION"], rows.chain(made).collect());
    Ok(())
}

/// Prints columns as wide as their content.
fn print_table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) {
    let mut widths = head.map(|name| name.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in std::iter::once(head.map(ToOwned::to_owned)).chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Makes an image, shows how far it is, and tells a running daemon.
fn make(
    state: &StateDir,
    work: impl FnOnce(&Library, &mut dyn Progress) -> haar_image::Result<LibraryImage>,
) -> Result<()> {
    let library = library(state)?;
    let begin = Instant::now();
    let mut bars = Bars::new();
    let made = work(&library, &mut bars);
    bars.end(made.is_ok());
    let image = made?;
    println!("{}  {}  ({:.1} s)", image.id(), image.manifest.name, begin.elapsed().as_secs_f32());
    tell_daemon(state)
}

/// A daemon that runs must look at the library again.
fn tell_daemon(state: &StateDir) -> Result<()> {
    match state.running()? {
        Some(daemon) => Client::new(&daemon)?.rescan_images(),
        None => Ok(()),
    }
}

fn build(
    library: &Library,
    arguments: ImageBuild,
    progress: &mut dyn Progress,
) -> haar_image::Result<LibraryImage> {
    let recipe = Recipe::from_name(&arguments.recipe)?;
    library.build(
        recipe,
        &BuildOptions { name: arguments.name, cache: arguments.cache, sources: arguments.sources },
        progress,
    )
}

fn pull(
    library: &Library,
    catalogue: &Catalogue,
    arguments: ImagePull,
    progress: &mut dyn Progress,
) -> haar_image::Result<LibraryImage> {
    library.pull(
        catalogue,
        &arguments.entry,
        &PullOptions { name: arguments.name, ..PullOptions::default() },
        progress,
    )
}

fn import(
    library: &Library,
    arguments: ImageImport,
    progress: &mut dyn Progress,
) -> haar_image::Result<LibraryImage> {
    let boot_mode = arguments.boot.map(|firmware| match firmware {
        Firmware::Bios => BootMode::LegacyBios,
        Firmware::Uefi => BootMode::Uefi,
    });
    let options = ImportOptions {
        name: arguments.name,
        description: arguments.description,
        default_user: arguments.user,
        boot_mode,
        root_device_name: arguments.root_device,
    };
    library.import(&arguments.file, &options, progress)
}

fn export(state: &StateDir, arguments: &ImageExport) -> Result<()> {
    let disk = disk(state, &arguments.image)?;
    let format = match arguments.format {
        cli::ExportFormat::Qcow2 => haar_image::ExportFormat::Qcow2,
        cli::ExportFormat::Raw => haar_image::ExportFormat::Raw,
        cli::ExportFormat::Vmdk => haar_image::ExportFormat::Vmdk,
    };
    let mut bars = Bars::new();
    let written = haar_image::export(&disk, &arguments.file, format, &mut bars);
    bars.end(written.is_ok());
    written?;
    println!("{}", arguments.file.display());
    Ok(())
}

/// The root disk of an image, by its id or name: of an account's one, its snapshot's file.
fn disk(state: &StateDir, image: &str) -> Result<PathBuf> {
    let made = account_images(state)?;
    if let Some(found) = made.iter().find(|found| found.image_id == image || found.name == image) {
        let refused = |why: &str| Error::Refused { message: format!("{} {why}", found.image_id), hint: None };
        if found.encrypted {
            return Err(refused("is encrypted, and its key does not leave the daemon"));
        }
        let snapshot = found.root_snapshot.as_deref().filter(|_| found.state == "available");
        let snapshot = snapshot.ok_or_else(|| refused(&format!("is {}", found.state)))?;
        return Ok(state.volumes().join(format!("{snapshot}.qcow2")));
    }
    let library = library(state)?;
    let found = match image.parse::<ImageId>() {
        Ok(id) => Some(library.get(&id)?),
        Err(_) => library.find_by_name(image)?,
    };
    let found = found.ok_or_else(|| Error::Refused {
        message: format!("there is no image with the name {image}"),
        hint: Some("see them: haar image list".into()),
    })?;
    Ok(found.root_disk())
}

fn remove(state: &StateDir, image: &str, force: bool) -> Result<()> {
    let library = library(state)?;
    let made = account_images(state)?;
    let id = match image.parse::<ImageId>() {
        Ok(id) if made.iter().any(|image| image.image_id == id.as_str()) => {
            return Err(made_by_account(id.as_str()));
        }
        Ok(id) => id,
        Err(_) => match library.find_by_name(image)? {
            Some(found) => found.id().clone(),
            None => {
                if let Some(found) = made.iter().find(|found| found.name == image) {
                    return Err(made_by_account(&found.image_id));
                }
                let message = format!("there is no image with the name {image}");
                return Err(Error::Refused { message, hint: Some("see them: haar image list".into()) });
            }
        },
    };
    if !force {
        library.get(&id)?;
        let users = users(state, &id)?;
        if !users.is_empty() {
            let message = format!("{id} is used by {}: their disks are overlays of it", users.join(", "));
            return Err(Error::Refused { message, hint: Some("terminate them first".into()) });
        }
        let descendants: Vec<_> = made
            .iter()
            .filter(|image| image.library_id.as_deref() == Some(id.as_str()))
            .map(|image| image.image_id.as_str())
            .collect();
        if !descendants.is_empty() {
            let message = format!("{id} is used by {}, which stand on it", descendants.join(", "));
            return Err(Error::Refused { message, hint: Some("deregister them first".into()) });
        }
        // Volumes that outlived their instance, and snapshots.
        let disks = haar_volume::standing_on(&state.volumes(), &state.images().join(id.as_str()));
        let disks = disks.map_err(Error::daemon)?;
        if !disks.is_empty() {
            let message = format!("{id} is used by {}, which are overlays of it", disks.join(", "));
            return Err(Error::Refused { message, hint: Some("delete them first".into()) });
        }
    }
    library.remove(&id)?;
    println!("{id} removed");
    tell_daemon(state)
}

fn made_by_account(id: &str) -> Error {
    let message = format!("{id} is no image of the library: an account has made it");
    let hint = format!("deregister it: haar aws ec2 deregister-image --image-id {id}");
    Error::Refused { message, hint: Some(hint) }
}

/// The instances that were launched from an image and are not terminated, as the running daemon knows them.
fn users(state: &StateDir, id: &ImageId) -> Result<Vec<String>> {
    let Some(daemon) = state.running()? else {
        let message = "only a running daemon knows whether an instance uses the image".into();
        return Err(Error::Refused {
            message,
            hint: Some("start it: haar up; or remove it in any case: --force".into()),
        });
    };
    let keys = Credentials::load(state)?;
    let states = ["pending", "running", "shutting-down", "stopping", "stopped"];
    let names: Vec<_> = (1..=states.len()).map(|n| format!("Filter.2.Value.{n}")).collect();
    let mut parameters = vec![
        ("Filter.1.Name", "image-id"),
        ("Filter.1.Value.1", id.as_str()),
        ("Filter.2.Name", "instance-state-name"),
    ];
    parameters.extend(names.iter().map(String::as_str).zip(states));
    let answer = Client::new(&daemon)?.ec2(&keys, "DescribeInstances", &parameters)?;
    let document = roxmltree::Document::parse(&answer).map_err(|e| Error::Answer(e.to_string()))?;
    let ids = document.descendants().filter(|node| node.tag_name().name() == "instanceId");
    Ok(ids.filter_map(|node| node.text()).map(ToOwned::to_owned).collect())
}

/// The built-in catalogue, with what the state folder's file adds.
fn catalogue(state: &StateDir) -> Result<Catalogue> {
    let mut catalogue = Catalogue::built_in();
    catalogue.extend_from_file(&state.catalogue())?;
    Ok(catalogue)
}

fn print_catalogue(catalogue: &Catalogue, json: bool) {
    let entries = catalogue.entries();
    if json {
        let entries = entries.map(|entry| {
            serde_json::json!({
                "name": entry.name,
                "description": entry.description,
                "url": entry.url,
                "default_user": entry.default_user,
            })
        });
        println!("{:#}", serde_json::Value::from_iter(entries));
        return;
    }
    let rows = entries.map(|entry| [entry.name.clone(), entry.description.clone(), entry.url.clone()]);
    print_table(["NAME", "DESCRIPTION", "FROM"], rows.collect());
}

/// Progress on the terminal: a bar for the running stage, a line for each that is over. Where the standard error is not a
/// terminal, only the lines.
pub(super) struct Bars {
    terminal: bool,
    stage: Option<Stage>,
}

struct Stage {
    name: String,
    unit: Unit,
    done: u64,
    begin: Instant,
    bar: ProgressBar,
}

impl Bars {
    pub(super) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), stage: None }
    }

    /// Ends the running stage, and says how long it took and how much it did.
    pub(super) fn end(&mut self, complete: bool) {
        let Some(stage) = self.stage.take() else { return };
        stage.bar.finish_and_clear();
        let amount = match stage.unit {
            Unit::Bytes if stage.done > 0 => HumanBytes(stage.done).to_string(),
            Unit::Steps if stage.done > 0 => stage.done.to_string(),
            _ => String::new(),
        };
        let mark = if complete { "✓" } else { "✗" };
        let seconds = stage.begin.elapsed().as_secs_f32();
        eprintln!("{mark} {:<32} {amount:>10} {seconds:>7.1} s", stage.name);
    }
}

impl Progress for Bars {
    fn stage(&mut self, name: &str, unit: Unit, total: Option<u64>) {
        self.end(true);
        let bar = if self.terminal { bar(name, unit, total) } else { ProgressBar::hidden() };
        self.stage = Some(Stage { name: name.into(), unit, done: 0, begin: Instant::now(), bar });
    }

    fn advance(&mut self, done: u64) {
        if let Some(stage) = &mut self.stage {
            stage.done = done;
            stage.bar.set_position(done);
        }
    }
}

/// A bar where the length is known, a spinner where not.
fn bar(name: &str, unit: Unit, total: Option<u64>) -> ProgressBar {
    let total = match unit {
        Unit::Percent => Some(100),
        _ => total,
    };
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let template = match (unit, total) {
        (Unit::Bytes, Some(_)) => {
            "  {msg:24} {wide_bar} {bytes:>10}/{total_bytes} {bytes_per_sec:>12} {eta:>4}"
        }
        (Unit::Steps, Some(_)) => "  {msg:24} {wide_bar} {pos:>5}/{len} {elapsed:>4}",
        (Unit::Percent, _) => "  {msg:24} {wide_bar} {percent:>3} % {elapsed:>4}",
        (Unit::Bytes, None) => "{spinner} {msg:24} {bytes} {bytes_per_sec} {elapsed}",
        (Unit::Steps, None) => "{spinner} {msg:24} {pos} {elapsed}",
    };
    bar.set_style(ProgressStyle::with_template(template).expect("the templates are valid"));
    bar.set_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
