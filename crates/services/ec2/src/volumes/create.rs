//! `CreateVolume` and `DeleteVolume`.

use haar_api::{Context, Error};
use haar_core::idempotent;
use haar_records::ec2::{EbsSnapshot, SnapshotState, Volume, VolumeState, VolumeType};
use haar_store::{Entry, Tx};

use super::{by_id, to_api, wrong_state};
use crate::block_devices::{check_volume, record_type};
use crate::encryption::Asked;
use crate::error::{Result, combination, invalid_parameter, invalid_value, missing, shorten, unsupported};
use crate::handlers::Handlers;
use crate::{encryption, ids, model, snapshots, tags, zones};

/// `CreateVolume`.
pub async fn create_volume(
    handlers: &Handlers,
    ctx: &Context,
    input: model::CreateVolumeRequest,
) -> Result<model::Volume> {
    if input.multi_attach_enabled == Some(true) {
        return Err(unsupported("The parameter MultiAttachEnabled is not supported."));
    }
    let asked = Asked::new(input.encrypted, input.kms_key_id.as_deref())?;
    let availability_zone =
        zone(ctx, input.availability_zone.as_deref(), input.availability_zone_id.as_deref())?;
    let volume_type = input.volume_type.map_or(VolumeType::Gp2, record_type);
    let tags = tags::of_new_one(&input.tag_specifications, "volume")?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let id = idempotent(tx, ctx, |tx| {
            let source = source(ctx, tx, &input)?;
            let size_gib = size(&input, source.as_deref())?;
            let (iops, throughput) = check_volume(volume_type, size_gib, input.iops, input.throughput)?;
            let from = source.as_ref().and_then(|source| source.encryption.as_ref());
            let encryption = encryption::of_new(&handlers.config.sealer, ctx, tx, &asked, from)?;
            let volume = Volume {
                account: ctx.account.clone(),
                region: ctx.region.clone(),
                id: ids::VOLUME.generate(),
                size_gib,
                volume_type,
                iops,
                throughput,
                availability_zone: availability_zone.clone(),
                image_id: input.snapshot_id.as_deref().and_then(|id| descent(ctx, tx, id)),
                snapshot_id: input.snapshot_id.clone(),
                create_time: ctx.now,
                state: VolumeState::Creating,
                error: None,
                attachments: Vec::new(),
                modification: None,
                modified: Vec::new(),
                auto_enable_io: false,
                encryption,
                enable_io: false,
                tags: tags.clone(),
            };
            let id = volume.id.clone();
            tx.put(volume);
            Ok::<_, Error>(id)
        })?;
        Ok(to_api(&by_id(ctx, tx, &id)?))
    })
    .await
}

/// The snapshot that a volume is to be made from.
fn source(
    ctx: &Context,
    tx: &mut Tx,
    input: &model::CreateVolumeRequest,
) -> Result<Option<Entry<EbsSnapshot>>> {
    let Some(id) = input.snapshot_id.as_deref() else { return Ok(None) };
    let snapshot = snapshots::restorable(tx, &ctx.account, &ctx.region, id)?;
    if snapshot.state != SnapshotState::Completed {
        let message = format!("Snapshot '{id}' is not in the 'completed' state.");
        return Err(Error::new("IncorrectState", message));
    }
    Ok(Some(snapshot))
}

/// The size that a request asks for in GiB: its snapshot's, where it says none.
fn size(input: &model::CreateVolumeRequest, source: Option<&EbsSnapshot>) -> Result<u32> {
    match (input.size, source.map(|source| source.volume_size_gib)) {
        (None, None) => Err(missing("size or snapshotId")),
        (None, Some(least)) => Ok(least),
        (Some(size), least) => {
            let size = u32::try_from(size)
                .map_err(|_| invalid_parameter(&size.to_string(), "size", "It must be at least 1 GiB."))?;
            match least {
                Some(least) if size < least => Err(invalid_parameter(
                    &size.to_string(),
                    "size",
                    &format!("It is less than the {least} GiB of the snapshot."),
                )),
                _ => Ok(size),
            }
        }
    }
}

/// The image of the library that a snapshot descends from.
fn descent(ctx: &Context, tx: &mut Tx, snapshot_id: &str) -> Option<String> {
    snapshots::restorable(tx, &ctx.account, &ctx.region, snapshot_id).ok()?.image_id.clone()
}

/// The name of the zone that a request names or tells the id of.
fn zone(ctx: &Context, name: Option<&str>, id: Option<&str>) -> Result<String> {
    match (name, id) {
        (None, None) => Err(missing("availabilityZone")),
        (Some(_), Some(_)) => {
            Err(combination("The parameters availabilityZone and availabilityZoneId cannot be used together"))
        }
        (Some(name), None) => {
            zones::check(&ctx.region, name).map_err(|_| {
                let message = format!("The zone '{}' does not exist.", shorten(name));
                Error::new("InvalidZone.NotFound", message)
            })?;
            Ok(name.to_owned())
        }
        (None, Some(id)) => zones::zone_name(&ctx.region, id)
            .ok_or_else(|| invalid_value(format!("Invalid availability zone ID: [{}]", shorten(id)))),
    }
}

/// `DeleteVolume`.
pub async fn delete_volume(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DeleteVolumeRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let volume = by_id(ctx, tx, &input.volume_id)?;
        if let Some(attachment) = volume.attachments.first() {
            let message = format!("Volume {} is currently attached to {}", volume.id, attachment.instance_id);
            return Err(Error::new("VolumeInUse", message));
        }
        match volume.state {
            VolumeState::Available | VolumeState::Error => {
                tx.put(Volume { state: VolumeState::Deleting, ..volume });
                Ok(())
            }
            VolumeState::Deleting | VolumeState::Deleted => Ok(()),
            VolumeState::Creating | VolumeState::InUse => Err(wrong_state(&volume, VolumeState::Available)),
        }
    })
    .await
}
