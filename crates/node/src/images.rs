//! From the image library's manifests to image records, and from snapshots to the state of the images that stand on them.

use haar_core::reconcile::{Action, Failure, Handle, Reconciler};
use haar_image::{Boot, BootMode, Library, Source};
use haar_records::ec2::{self, EbsSnapshot, Image, ImageBoot, ImageState, SnapshotState, StateReason};
use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION};
use haar_store::{Entry, Event, Key, Resource, Store};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Error;

/// The reconciler of images that are being made: an image is available once all of its snapshots are complete, and failed if one of
/// them cannot be taken.
pub(crate) struct Images {
    store: Store,
}

impl Images {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Has images looked at when their snapshots change.
    pub(crate) fn follow_snapshots(store: &Store, images: &Handle<Image>) -> Result<(), Error> {
        let store = store.clone();
        images.follow::<EbsSnapshot>(move |event| {
            let Event::Put(entry) = event else { return Vec::new() };
            let (account, region, id) = (&entry.value.account, &entry.value.region, &entry.value.id);
            let records = store.snapshot();
            let users = records.by_index::<Image>(account, region, "snapshot", id);
            let users = users.filter(|image| image.state == ImageState::Pending);
            users.filter_map(|image| Key::new(Image::KIND, account, region, &image.id).ok()).collect()
        })?;
        Ok(())
    }
}

impl Reconciler for Images {
    type Resource = Image;
    type Error = Error;

    fn triggers(&self, before: &Image, after: &Image) -> bool {
        before.state != after.state
    }

    async fn reconcile(&self, _: &Key, entry: Option<Entry<Image>>) -> Result<Action, Error> {
        let Some(seen) = entry.filter(|image| image.state == ImageState::Pending) else {
            return Ok(Action::Done);
        };
        self.store
            .transact(|tx| {
                let (account, region) = (&seen.account, &seen.region);
                let Some(image) = tx.get::<Image>(account, region, &seen.id) else { return Ok(()) };
                let mut next = Image { state: ImageState::Available, ..Image::clone(&image) };
                for id in image.devices.iter().filter_map(|device| device.snapshot_id.as_ref()) {
                    let snapshot = tx.get::<EbsSnapshot>(account, region, id);
                    let why = match snapshot.as_ref().map(|snapshot| snapshot.state) {
                        Some(SnapshotState::Completed) => continue,
                        Some(SnapshotState::Pending) => return Ok(()),
                        Some(SnapshotState::Error) => {
                            snapshot.and_then(|snapshot| snapshot.state_message.clone()).unwrap_or_default()
                        }
                        None => "it is gone".to_owned(),
                    };
                    next.state = ImageState::Failed;
                    let message = format!("The snapshot {id} could not be taken: {why}");
                    next.state_reason = Some(StateReason::new("Server.InternalError", &message));
                    break;
                }
                if image.state == ImageState::Pending {
                    tx.put(next);
                }
                Ok::<_, Error>(())
            })
            .await?;
        Ok(Action::Done)
    }

    async fn failed(&self, key: &Key, failure: &Failure<Error>, attempt: u32) {
        tracing::warn!(image = key.id(), attempt, %failure, "cannot reconcile the image");
    }
}

/// Makes the image records match the library.
pub(crate) async fn sync(store: &Store, library: &Library, owner: &str) -> Result<(), Error> {
    let library = library.clone();
    let images = tokio::task::spawn_blocking(move || library.list())
        .await
        .map_err(|error| Error::Inconsistent(format!("the image library's reader ended: {error}")))??;
    store
        .transact(|tx| {
            for image in &images {
                let id = image.id().as_str();
                let known = tx.get::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION, id);
                tx.put(record(image, owner, known.as_deref()));
            }
            let gone: Vec<_> = tx
                .snapshot()
                .list::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION)
                .filter(|record| images.iter().all(|image| image.id().as_str() != record.id))
                .map(|record| record.id.clone())
                .collect();
            for id in gone {
                tx.delete::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION, &id);
            }
            Ok(())
        })
        .await
}

fn record(image: &haar_image::Image, owner: &str, known: Option<&Image>) -> Image {
    let manifest = &image.manifest;
    let id = image.id().as_str().to_owned();
    let root_size_gib = u32::try_from(manifest.minimum_size_gib()).unwrap_or(u32::MAX);
    let root = (manifest.root_device_name.as_str(), root_size_gib);
    let boot = match &manifest.boot {
        Boot::Direct { .. } => ImageBoot::Kernel,
        Boot::Firmware { mode } => ImageBoot::Firmware(match mode {
            BootMode::LegacyBios => ec2::BootMode::LegacyBios,
            BootMode::Uefi => ec2::BootMode::Uefi,
            BootMode::UefiPreferred => ec2::BootMode::UefiPreferred,
        }),
    };
    let date = OffsetDateTime::parse(&manifest.creation_date, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    Image {
        owner: owner.to_owned(),
        name: manifest.name.clone(),
        description: Some(manifest.description.clone()).filter(|description| !description.is_empty()),
        architecture: manifest.architecture.as_str().to_owned(),
        default_user: manifest.default_user.clone(),
        tags: known.map(|known| known.tags.clone()).unwrap_or_default(),
        library_entry: match &manifest.source {
            Source::Build { recipe, .. } => Some(recipe.clone()),
            Source::Pull { entry, .. } => Some(entry.clone()),
            Source::Import { .. } => None,
        },
        last_launched: known.and_then(|known| known.last_launched),
        ..Image::new(GLOBAL_ACCOUNT, GLOBAL_REGION, id, root, boot, date)
    }
}
