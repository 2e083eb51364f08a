//! `CopyImage`.

use haar_api::{Context, Error};
use haar_core::idempotent;
use haar_records::ec2::{EbsSnapshot, Encryption, Image, ImageDevice, ImageState, REGIONS, VolumeType};
use haar_store::Tx;

use super::{check_name, launchable};
use crate::encryption::Asked;
use crate::error::{Result, invalid_parameter};
use crate::handlers::Handlers;
use crate::{Scope, encryption, ids, model, snapshots, tags};

/// `CopyImage`: within a region or from another one, of an image of the caller, one that is shared with it, or one of the library. Its
/// snapshots are copies, which take no room.
pub async fn copy_image(
    handlers: &Handlers,
    ctx: &Context,
    input: model::CopyImageRequest,
) -> Result<model::CopyImageResult> {
    let region = input.source_region.as_str();
    if !REGIONS.iter().any(|known| known.name == region) {
        return Err(invalid_parameter(region, "sourceRegion", "There is no such region."));
    }
    let asked = Asked::new(input.encrypted, input.kms_key_id.as_deref())?;
    let by_type = tags::of_new(&input.tag_specifications, &["image", "snapshot"])?;
    let tags_of = |resource_type| by_type.get(resource_type).cloned().unwrap_or_default();
    let id = haar_core::transact(&handlers.store, ctx, |tx| {
        idempotent(tx, ctx, |tx| {
            let source = launchable(tx, Scope { account: &ctx.account, region }, &input.source_image_id)?;
            check_name(tx, Scope::from(ctx), &input.name)?;
            let id = ids::IMAGE.generate();
            let mut image_tags = tags_of("image");
            if input.copy_image_tags == Some(true) && source.owner == ctx.account {
                for (key, value) in &source.tags {
                    image_tags.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
            let library_id =
                if source.is_of_library() { Some(source.id.clone()) } else { source.library_id.clone() };
            let mut devices = copy_devices(ctx, tx, &source, &id)?;
            for (device, snapshot) in &mut devices {
                if let Some((snapshot, source)) = snapshot.take() {
                    let encryption =
                        encryption::of_new(&handlers.config.sealer, ctx, tx, &asked, source.as_ref())?;
                    device.encrypted = encryption.is_some();
                    tx.put(EbsSnapshot { tags: tags_of("snapshot"), encryption, ..snapshot });
                }
            }
            let root = (source.root_device_name.as_str(), source.root_size_gib);
            let image = Image::new(&ctx.account, &ctx.region, id.clone(), root, source.boot, ctx.now);
            tx.put(Image {
                name: input.name.clone(),
                description: input.description.clone().or(source.description),
                architecture: source.architecture,
                state: ImageState::Pending,
                default_user: source.default_user,
                tags: image_tags,
                devices: devices.into_iter().map(|(device, _)| device).collect(),
                library_id,
                copied_from: Some((source.id, region.to_owned())),
                imds_v2: source.imds_v2,
                ..image
            });
            Ok::<_, Error>(id)
        })
    })
    .await?;
    Ok(model::CopyImageResult { image_id: Some(id) })
}

/// A snapshot that is to be made, and how its source is encrypted.
type Copy = (EbsSnapshot, Option<Encryption>);

/// The devices of a copy, with the snapshots that are to be made for it.
fn copy_devices(
    ctx: &Context,
    tx: &mut Tx,
    source: &Image,
    id: &str,
) -> Result<Vec<(ImageDevice, Option<Copy>)>> {
    let description = |of: &str| {
        format!("Copied for DestinationAmi {id} from SourceAmi {} for SourceSnapshot {of}", source.id)
    };
    if source.is_of_library() {
        let snapshot = snapshots::of_library(ctx, source, &description("root"), haar_records::Tags::new());
        let device = ImageDevice {
            device_name: source.root_device_name.clone(),
            snapshot_id: Some(snapshot.id.clone()),
            size_gib: source.root_size_gib,
            volume_type: VolumeType::Gp2,
            iops: None,
            throughput: None,
            delete_on_termination: true,
            encrypted: false,
        };
        return Ok(vec![(device, Some((snapshot, None)))]);
    }
    let mut copies = Vec::with_capacity(source.devices.len());
    for device in &source.devices {
        let Some(of) = device.snapshot_id.as_deref() else {
            copies.push((device.clone(), None));
            continue;
        };
        // Who may launch an image may not copy what it stands on, unless that is shared, too.
        let found = snapshots::restorable(tx, &ctx.account, &source.region, of).map_err(|_| {
            Error::new(
                "InvalidRequest",
                format!("You do not have permission to access the storage of this ami: {of}"),
            )
        })?;
        let copy = snapshots::of_snapshot(ctx, &found, &description(of), haar_records::Tags::new());
        let device = ImageDevice { snapshot_id: Some(copy.id.clone()), ..device.clone() };
        copies.push((device, Some((copy, found.encryption.clone()))));
    }
    Ok(copies)
}
