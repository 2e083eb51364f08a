//! `CopySnapshot`.

use haar_api::{Context, Error};
use haar_records::Tags;
use haar_records::ec2::{EbsSnapshot, Image, REGIONS, SnapshotOrigin, SnapshotSource, SnapshotState};
use haar_store::{Entry, Tx};

use super::{check_description, new, restorable};
use crate::encryption::Asked;
use crate::error::{Result, invalid_parameter, shorten};
use crate::handlers::Handlers;
use crate::{encryption, ids, model, tags};

/// `CopySnapshot`: within a region, or from another one of this installation.
pub async fn copy_snapshot(
    handlers: &Handlers,
    ctx: &Context,
    input: model::CopySnapshotRequest,
) -> Result<model::CopySnapshotResult> {
    let description = check_description(input.description)?;
    let tags = tags::of_new_one(&input.tag_specifications, "snapshot")?;
    let (region, id) = (input.source_region.as_str(), input.source_snapshot_id.as_str());
    if !REGIONS.iter().any(|known| known.name == region) {
        return Err(invalid_parameter(region, "sourceRegion", "There is no such region."));
    }
    if let Some(destination) = input.destination_region.as_deref().filter(|name| *name != ctx.region) {
        return Err(invalid_parameter(
            destination,
            "destinationRegion",
            "It must be the region to which the request is sent.",
        ));
    }
    if let Some(url) = &input.presigned_url {
        check_presigned(url, region, id)?;
    }
    let asked = Asked::new(input.encrypted, input.kms_key_id.as_deref())?;
    ids::SNAPSHOT.check(id)?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let source = source(ctx, tx, region, id)?;
        let encryption =
            encryption::of_new(&handlers.config.sealer, ctx, tx, &asked, source.encryption.as_ref())?;
        let copy = EbsSnapshot { encryption, ..of_snapshot(ctx, &source, &description, tags.clone()) };
        let answer =
            model::CopySnapshotResult { snapshot_id: Some(copy.id.clone()), tags: tags::to_api(&copy.tags) };
        tx.put(copy);
        Ok(answer)
    })
    .await
}

/// A copy of a snapshot, to be made; its encryption is the caller's to tell.
pub(crate) fn of_snapshot(ctx: &Context, source: &EbsSnapshot, description: &str, tags: Tags) -> EbsSnapshot {
    EbsSnapshot {
        description: description.to_owned(),
        copy_of: Some(SnapshotSource {
            account: source.account.clone(),
            region: source.region.clone(),
            id: source.id.clone(),
        }),
        tags,
        image_id: source.image_id.clone(),
        ..new(ctx, source.volume_size_gib)
    }
}

/// A snapshot that is the root disk of an image of the library, to be made; its encryption is the caller's to tell.
pub(crate) fn of_library(ctx: &Context, image: &Image, description: &str, tags: Tags) -> EbsSnapshot {
    EbsSnapshot {
        description: description.to_owned(),
        tags,
        image_id: Some(image.id.clone()),
        origin: Some(SnapshotOrigin::Library),
        ..new(ctx, image.root_size_gib)
    }
}

/// The snapshot that is to be copied, which the caller may make volumes from.
fn source(ctx: &Context, tx: &mut Tx, region: &str, id: &str) -> Result<Entry<EbsSnapshot>> {
    let source = restorable(tx, &ctx.account, region, id)?;
    if source.state != SnapshotState::Completed {
        let message = format!("Snapshot '{id}' is not in the 'completed' state.");
        return Err(Error::new("IncorrectState", message));
    }
    Ok(source)
}

/// Checks that a presigned URL is for this copy. It adds nothing to what the signature of the request proves: source and
/// destination are the same installation, which the caller has signed for.
fn check_presigned(url: &str, region: &str, id: &str) -> Result<()> {
    let refused = |why: &str| {
        Err(invalid_parameter(shorten(url.split('?').next().unwrap_or_default()), "presignedUrl", why))
    };
    let Some((_, query)) = url.split_once('?').filter(|(base, _)| base.starts_with("http")) else {
        return refused("It is not a presigned URL.");
    };
    let wanted = [("Action", "CopySnapshot"), ("SourceRegion", region), ("SourceSnapshotId", id)];
    for (name, value) in wanted {
        let said = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut said = said.filter(|(key, _)| *key == name);
        if said.next().is_none_or(|(_, said)| said != value) {
            return refused(&format!("It is not for this copy: {name} differs."));
        }
    }
    Ok(())
}
