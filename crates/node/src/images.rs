//! From the image library's manifests to image records.

use haar_image::{Boot, BootMode, Library};
use haar_records::ec2::{self, Image, ImageBoot, ImageState};
use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION, Tags};
use haar_store::Store;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Error;

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
                let tags = known.map(|known| known.tags.clone()).unwrap_or_default();
                tx.put(record(image, owner, tags));
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

fn record(image: &haar_image::Image, owner: &str, tags: Tags) -> Image {
    let manifest = &image.manifest;
    Image {
        account: GLOBAL_ACCOUNT.to_owned(),
        region: GLOBAL_REGION.to_owned(),
        id: image.id().as_str().to_owned(),
        owner: owner.to_owned(),
        name: manifest.name.clone(),
        description: Some(manifest.description.clone()).filter(|description| !description.is_empty()),
        architecture: manifest.architecture.as_str().to_owned(),
        state: ImageState::Available,
        creation_date: OffsetDateTime::parse(&manifest.creation_date, &Rfc3339)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH),
        root_device_name: manifest.root_device_name.clone(),
        root_size_gib: u32::try_from(manifest.minimum_size_gib()).unwrap_or(u32::MAX),
        boot: match &manifest.boot {
            Boot::Direct { .. } => ImageBoot::Kernel,
            Boot::Firmware { mode } => ImageBoot::Firmware(match mode {
                BootMode::LegacyBios => ec2::BootMode::LegacyBios,
                BootMode::Uefi => ec2::BootMode::Uefi,
                BootMode::UefiPreferred => ec2::BootMode::UefiPreferred,
            }),
        },
        default_user: manifest.default_user.clone(),
        tags,
    }
}
