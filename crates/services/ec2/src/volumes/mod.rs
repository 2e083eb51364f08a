//! EBS volumes.

mod attach;
mod create;
mod modify;
mod status;

use haar_api::timestamp::iso8601;
use haar_api::{Context, Error};
use haar_core::FilterTable;
use haar_records::ec2::{Encryption, Volume, VolumeAttachment, VolumeState};
use haar_store::Tx;

pub use attach::{attach_volume, detach_volume};
pub use create::{create_volume, delete_volume};
pub use modify::{describe_volumes_modifications, modify_volume};
pub use status::{
    describe_volume_attribute, describe_volume_status, enable_volume_io, modify_volume_attribute,
};

use crate::describe::{BY_TAG, Kind, Request, encoded, ids_or_pages};
use crate::error::Result;
use crate::handlers::Handlers;
use crate::{ids, model, tags, zones};

const VOLUMES: Kind<Volume, ()> = Kind {
    id: ids::VOLUME,
    filters: FilterTable::<Volume>::new(&[
        ("attachment.attach-time", |volume, (), probe| {
            volume
                .attachments
                .iter()
                .for_each(|attachment| probe.value(&iso8601(attachment.attach_time, true)));
        }),
        ("attachment.delete-on-termination", |volume, (), probe| {
            volume.attachments.iter().for_each(|attachment| probe.display(attachment.delete_on_termination));
        }),
        ("attachment.device", |volume, (), probe| {
            probe.values(volume.attachments.iter().map(|attachment| attachment.device.as_str()));
        }),
        ("attachment.instance-id", |volume, (), probe| {
            probe.values(volume.attachments.iter().map(|attachment| attachment.instance_id.as_str()));
        }),
        ("attachment.status", |volume, (), probe| {
            probe.values(volume.attachments.iter().map(|attachment| attachment.status.as_str()));
        }),
        ("availability-zone", |volume, (), probe| probe.value(&volume.availability_zone)),
        ("availability-zone-id", |volume, (), probe| {
            probe.values(zones::zone_id(&volume.region, &volume.availability_zone).as_deref());
        }),
        ("create-time", |volume, (), probe| probe.value(&iso8601(volume.create_time, true))),
        ("encrypted", |volume, (), probe| probe.display(volume.encryption.is_some())),
        ("fast-restored", |_, (), _| ()),
        ("multi-attach-enabled", |_, (), probe| probe.value("false")),
        ("operator.managed", |_, (), probe| probe.value("false")),
        ("operator.principal", |_, (), _| ()),
        ("size", |volume, (), probe| probe.display(volume.size_gib)),
        ("snapshot-id", |volume, (), probe| probe.values(volume.snapshot_id.as_deref())),
        ("status", |volume, (), probe| probe.value(volume.state.as_str())),
        ("volume-id", |volume, (), probe| probe.value(&volume.id)),
        ("volume-type", |volume, (), probe| probe.value(volume.volume_type.as_str())),
    ])
    .with_tags(|volume| &volume.tags),
    indexes: &[("attachment.instance-id", "instance"), BY_TAG],
};

/// `DescribeVolumes`.
pub async fn describe_volumes(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeVolumesRequest,
) -> Result<model::DescribeVolumesResult> {
    let snapshot = handlers.store.snapshot();
    ids_or_pages("volumeSet", &input.volume_ids, input.max_results)?;
    let request =
        Request::new(&input.volume_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let (volumes, next_token) = VOLUMES.page(handlers, ctx, &snapshot, &request, &())?;
    Ok(model::DescribeVolumesResult { volumes: encoded(&volumes, to_api), next_token })
}

fn to_api(volume: &Volume) -> model::Volume {
    model::Volume {
        volume_id: Some(volume.id.clone()),
        availability_zone: Some(volume.availability_zone.clone()),
        availability_zone_id: zones::zone_id(&volume.region, &volume.availability_zone),
        create_time: Some(volume.create_time),
        encrypted: Some(volume.encryption.is_some()),
        kms_key_id: volume.encryption.as_ref().map(Encryption::key_arn),
        iops: volume.iops.and_then(|iops| i32::try_from(iops).ok()),
        throughput: volume.throughput.and_then(|throughput| i32::try_from(throughput).ok()),
        multi_attach_enabled: Some(false),
        size: i32::try_from(volume.size_gib).ok(),
        // Empty when the volume was not made from a snapshot.
        snapshot_id: Some(volume.snapshot_id.clone().unwrap_or_default()),
        state: Some(match volume.state {
            VolumeState::Creating => model::VolumeState::Creating,
            VolumeState::Available => model::VolumeState::Available,
            VolumeState::InUse => model::VolumeState::InUse,
            VolumeState::Deleting => model::VolumeState::Deleting,
            VolumeState::Deleted => model::VolumeState::Deleted,
            VolumeState::Error => model::VolumeState::Error,
        }),
        volume_type: volume.volume_type.as_str().parse().ok(),
        attachments: volume
            .attachments
            .iter()
            .map(|attachment| attachment_to_api(&volume.id, attachment))
            .collect(),
        tags: tags::to_api(&volume.tags),
    }
}

fn attachment_to_api(volume_id: &str, attachment: &VolumeAttachment) -> model::VolumeAttachment {
    model::VolumeAttachment {
        attach_time: Some(attachment.attach_time),
        delete_on_termination: Some(attachment.delete_on_termination),
        device: Some(attachment.device.clone()),
        instance_id: Some(attachment.instance_id.clone()),
        state: attachment.status.as_str().parse().ok(),
        volume_id: Some(volume_id.to_owned()),
    }
}

/// The volume with this id.
pub(crate) fn by_id(ctx: &Context, tx: &mut Tx, id: &str) -> Result<Volume> {
    ids::VOLUME.check(id)?;
    let volume = tx.get::<Volume>(&ctx.account, &ctx.region, id).ok_or_else(|| ids::VOLUME.missing(id))?;
    Ok(Volume::clone(&volume))
}

/// `IncorrectState`.
fn wrong_state(volume: &Volume, wanted: VolumeState) -> Error {
    Error::new("IncorrectState", format!("The volume '{}' is not '{wanted}'.", volume.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CreateVolumeRequest, Ec2, Tag, TagSpecification};
    use crate::testing::{context, filter, handlers};

    #[tokio::test]
    async fn the_index_of_tags_tells_keys_and_values_apart() {
        let handlers = handlers().await;
        for tags in [&[("a", "b=c"), ("x", "1")][..], &[("a=b", "c"), ("x", "1")], &[("a", "*")]] {
            let tag = |(key, value): &(&str, &str)| Tag {
                key: Some((*key).to_owned()),
                value: Some((*value).to_owned()),
            };
            let specification = TagSpecification {
                resource_type: Some("volume".into()),
                tags: tags.iter().map(tag).collect(),
            };
            let input = CreateVolumeRequest {
                availability_zone: Some("eu-central-1a".into()),
                size: Some(1),
                tag_specifications: vec![specification],
                ..CreateVolumeRequest::default()
            };
            handlers.create_volume(&context(), input).await.unwrap();
        }
        for (filters, expected) in [
            (vec![filter("tag:a", "b=c")], 1),
            (vec![filter("tag:a=b", "c")], 1),
            (vec![filter("tag:x", "1")], 2),
            (vec![filter("tag:x", "1"), filter("tag:a", "b=c")], 1),
            (vec![filter("tag:a", "*"), filter("tag:x", "1")], 1),
            (vec![filter("tag:a", "\\*"), filter("tag:x", "1")], 0),
            (vec![filter("tag:a", "\\*")], 1),
            (vec![filter("tag:x", "2")], 0),
        ] {
            let filters = filters.concat();
            let request = Request::new(&[], &filters, None, None);
            let (found, _) =
                VOLUMES.page(&handlers, &context(), &handlers.store.snapshot(), &request, &()).unwrap();
            assert_eq!(found.len(), expected, "{filters:?}");
        }
    }
}
