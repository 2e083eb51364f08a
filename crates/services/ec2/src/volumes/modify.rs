//! `ModifyVolume` and what has become of it.

use haar_api::timestamp::iso8601;
use haar_api::{Context, Error};
use haar_core::FilterTable;
use haar_records::ec2::{
    Instance, ModificationState, Volume, VolumeModification, VolumeShape, VolumeState, VolumeType,
};
use haar_store::Tx;
use time::{Duration, OffsetDateTime};

use super::by_id;
use crate::block_devices::{check_volume, record_type};
use crate::describe::{Kind, Request, ids_or_pages};
use crate::error::{Result, invalid_parameter, invalid_value, missing, unsupported};
use crate::handlers::Handlers;
use crate::{ids, model};

/// The IOPS of a volume that becomes io1, io2 or gp3 when the request says none.
const DEFAULT_IOPS: i32 = 3_000;

/// How often a volume may be modified in [`MODIFICATIONS_WITHIN`] ("ModifyVolume", EC2 API Reference).
const MODIFICATIONS_MOST: usize = 4;

/// The time in which modifications are counted.
const MODIFICATIONS_WITHIN: Duration = Duration::hours(24);

/// `ModifyVolume`.
pub async fn modify_volume(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ModifyVolumeRequest,
) -> Result<model::ModifyVolumeResult> {
    if input.multi_attach_enabled == Some(true) {
        return Err(unsupported("The parameter MultiAttachEnabled is not supported."));
    }
    let model::ModifyVolumeRequest { size, volume_type, iops, throughput, multi_attach_enabled, .. } = &input;
    if size.is_none()
        && volume_type.is_none()
        && iops.is_none()
        && throughput.is_none()
        && multi_attach_enabled.is_none()
    {
        return Err(missing("size, volumeType, iops or throughput"));
    }
    haar_core::transact(&handlers.store, ctx, |tx| {
        let volume = by_id(ctx, tx, &input.volume_id)?;
        if !matches!(volume.state, VolumeState::Available | VolumeState::InUse) {
            let message = format!("Volume '{}' is in the '{}' state.", volume.id, volume.state);
            return Err(Error::new("IncorrectState", message));
        }
        if let Some(modification) = volume.modification.as_ref().filter(|m| m.state.is_under_way()) {
            let state = modification.state.as_str().to_uppercase();
            let message = format!("Volume {} cannot be modified in modification state {state}", volume.id);
            return Err(Error::new("IncorrectModificationState", message));
        }
        let modified = counted(&volume, ctx.now)?;
        let target = target(volume.shape(), &input)?;
        check_root(tx, &volume, target.volume_type)?;
        let modification = VolumeModification {
            state: ModificationState::Modifying,
            message: None,
            original: volume.shape(),
            target,
            start_time: ctx.now,
            end_time: None,
        };
        let answer = to_api(&volume.id, &modification);
        tx.put(Volume { modification: Some(modification), modified, ..volume });
        Ok(model::ModifyVolumeResult { volume_modification: Some(answer) })
    })
    .await
}

/// When a volume was modified of late, and now.
fn counted(volume: &Volume, now: OffsetDateTime) -> Result<Vec<i64>> {
    let since = (now - MODIFICATIONS_WITHIN).unix_timestamp();
    let mut times: Vec<i64> = volume.modified.iter().copied().filter(|time| *time > since).collect();
    if times.len() >= MODIFICATIONS_MOST {
        // As soon as one fewer than the most is left.
        let first = times[times.len() - MODIFICATIONS_MOST];
        let next = OffsetDateTime::from_unix_timestamp(first).map(|time| time + MODIFICATIONS_WITHIN);
        let next = next.map(|time| iso8601(time, true)).unwrap_or_default();
        let message = format!(
            "You've reached the maximum modification rate per volume limit. The volume {} can be modified up to {MODIFICATIONS_MOST} times in 24 hours. Its next modification is possible at {next}.",
            volume.id
        );
        return Err(Error::new("VolumeModificationRateExceeded", message));
    }
    times.push(now.unix_timestamp());
    Ok(times)
}

/// What a volume becomes: what the request says, and else what it is, if that goes with its type ("ModifyVolume", EC2 API
/// Reference; "Modify an Amazon EBS volume", EBS User Guide, for a gp2 volume that becomes gp3).
fn target(is: VolumeShape, input: &model::ModifyVolumeRequest) -> Result<VolumeShape> {
    let size_gib = match input.size {
        None => is.size_gib,
        Some(size) => u32::try_from(size)
            .map_err(|_| invalid_parameter(&size.to_string(), "size", "It must be at least 1 GiB."))?,
    };
    if size_gib < is.size_gib {
        return Err(invalid_value("New size cannot be smaller than existing size"));
    }
    let volume_type = input.volume_type.map_or(is.volume_type, record_type);
    let kept = volume_type == is.volume_type;
    let provisioned = matches!(volume_type, VolumeType::Gp3 | VolumeType::Io1 | VolumeType::Io2);
    let was = |value: Option<u32>| value.and_then(|value| i32::try_from(value).ok());
    let from_gp2 = is.volume_type == VolumeType::Gp2 && volume_type == VolumeType::Gp3;
    let iops = match input.iops {
        None if !provisioned => None,
        None if kept => was(is.iops),
        None if from_gp2 => was(is.iops).max(Some(DEFAULT_IOPS)),
        None => Some(DEFAULT_IOPS),
        asked => asked,
    };
    let throughput = match input.throughput {
        None if kept => was(is.throughput),
        // Above 170 GiB a gp2 volume reaches twice the throughput that a gp3 volume begins with.
        None if from_gp2 && is.size_gib > 170 => Some(250),
        asked => asked,
    };
    let (iops, throughput) = check_volume(volume_type, size_gib, iops, throughput)?;
    Ok(VolumeShape { size_gib, volume_type, iops, throughput })
}

/// A root volume cannot become one that an instance cannot boot from.
fn check_root(tx: &mut Tx, volume: &Volume, volume_type: VolumeType) -> Result<()> {
    if !matches!(volume_type, VolumeType::St1 | VolumeType::Sc1) {
        return Ok(());
    }
    for attachment in &volume.attachments {
        let instance = tx.get::<Instance>(&volume.account, &volume.region, &attachment.instance_id);
        if instance.is_some_and(|instance| instance.spec.root_device_name == attachment.device) {
            let message = format!("The volume type {volume_type} is not supported for root volumes");
            return Err(invalid_value(message));
        }
    }
    Ok(())
}

const MODIFICATIONS: Kind<Volume, ()> = Kind {
    id: ids::VOLUME,
    filters: FilterTable::<Volume>::new(&[
        ("modification-state", |volume, (), probe| {
            probe.values(volume.modification.iter().map(|m| m.state.as_str()));
        }),
        ("original-iops", |volume, (), probe| {
            let iops = volume.modification.iter().filter_map(|m| m.original.iops);
            iops.for_each(|iops| probe.display(iops));
        }),
        ("original-size", |volume, (), probe| {
            volume.modification.iter().for_each(|m| probe.display(m.original.size_gib));
        }),
        ("original-volume-type", |volume, (), probe| {
            probe.values(volume.modification.iter().map(|m| m.original.volume_type.as_str()));
        }),
        ("originalMultiAttachEnabled", |_, (), probe| probe.value("false")),
        ("start-time", |volume, (), probe| {
            volume.modification.iter().for_each(|m| probe.value(&iso8601(m.start_time, true)));
        }),
        ("target-iops", |volume, (), probe| {
            let iops = volume.modification.iter().filter_map(|m| m.target.iops);
            iops.for_each(|iops| probe.display(iops));
        }),
        ("target-size", |volume, (), probe| {
            volume.modification.iter().for_each(|m| probe.display(m.target.size_gib));
        }),
        ("target-volume-type", |volume, (), probe| {
            probe.values(volume.modification.iter().map(|m| m.target.volume_type.as_str()));
        }),
        ("targetMultiAttachEnabled", |_, (), probe| probe.value("false")),
        ("volume-id", |volume, (), probe| probe.value(&volume.id)),
    ]),
    indexes: &[],
};

/// `DescribeVolumesModifications`: the latest modification of each volume.
pub async fn describe_volumes_modifications(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeVolumesModificationsRequest,
) -> Result<model::DescribeVolumesModificationsResult> {
    ids_or_pages("volumeSet", &input.volume_ids, input.max_results)?;
    let snapshot = handlers.store.snapshot();
    let request =
        Request::new(&input.volume_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let modified = |volume: &Volume| volume.modification.is_some();
    let (volumes, next_token) =
        MODIFICATIONS.page_where(handlers, ctx, &snapshot, &request, &(), modified)?;
    let unmodified = |id: &&String| {
        snapshot.get::<Volume>(&ctx.account, &ctx.region, id).is_some_and(|volume| !modified(&volume))
    };
    if let Some(id) = input.volume_ids.iter().find(unmodified) {
        let message = format!("Modification for volume '{id}' does not exist.");
        return Err(Error::new("InvalidVolumeModification.NotFound", message));
    }
    let modifications =
        volumes.iter().filter_map(|volume| Some(to_api(&volume.id, volume.modification.as_ref()?))).collect();
    Ok(model::DescribeVolumesModificationsResult { volumes_modifications: modifications, next_token })
}

fn to_api(volume_id: &str, modification: &VolumeModification) -> model::VolumeModification {
    let VolumeModification { state, message, original, target, start_time, end_time } = modification;
    let number = |value: Option<u32>| value.and_then(|value| i32::try_from(value).ok());
    model::VolumeModification {
        volume_id: Some(volume_id.to_owned()),
        modification_state: state.as_str().parse().ok(),
        status_message: message.clone(),
        target_size: i32::try_from(target.size_gib).ok(),
        target_iops: number(target.iops),
        target_volume_type: target.volume_type.as_str().parse().ok(),
        target_throughput: number(target.throughput),
        target_multi_attach_enabled: Some(false),
        original_size: i32::try_from(original.size_gib).ok(),
        original_iops: number(original.iops),
        original_volume_type: original.volume_type.as_str().parse().ok(),
        original_throughput: number(original.throughput),
        original_multi_attach_enabled: Some(false),
        // The first of two steps changes the disk.
        progress: Some(match state {
            ModificationState::Modifying | ModificationState::Failed => 0,
            ModificationState::Optimizing => 50,
            ModificationState::Completed => 100,
        }),
        start_time: Some(*start_time),
        end_time: *end_time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Ec2;
    use crate::testing::{SCOPE, code, context, handlers, write};

    fn asked(input: &model::ModifyVolumeRequest) -> Result<VolumeShape> {
        let is =
            VolumeShape { size_gib: 200, volume_type: VolumeType::Gp2, iops: Some(600), throughput: None };
        target(is, input)
    }

    #[test]
    fn what_is_not_said_stays_or_is_the_type_s_default() {
        let grown = asked(&model::ModifyVolumeRequest { size: Some(2_000), ..Default::default() }).unwrap();
        assert_eq!((grown.volume_type, grown.iops), (VolumeType::Gp2, Some(6_000)));
        let to =
            |volume_type| model::ModifyVolumeRequest { volume_type: Some(volume_type), ..Default::default() };
        let gp3 = asked(&to(model::VolumeType::Gp3)).unwrap();
        assert_eq!((gp3.size_gib, gp3.iops, gp3.throughput), (200, Some(3_000), Some(250)));
        assert_eq!(asked(&to(model::VolumeType::Io2)).unwrap().iops, Some(3_000));
        assert_eq!(asked(&to(model::VolumeType::St1)).unwrap().iops, None);
        let kept =
            target(gp3, &model::ModifyVolumeRequest { size: Some(300), ..Default::default() }).unwrap();
        assert_eq!((kept.iops, kept.throughput), (Some(3_000), Some(250)));
    }

    #[test]
    fn a_volume_never_shrinks() {
        let refused =
            asked(&model::ModifyVolumeRequest { size: Some(199), ..Default::default() }).unwrap_err();
        assert_eq!(refused.code, "InvalidParameterValue");
    }

    #[tokio::test]
    async fn a_volume_is_modified_four_times_in_24_hours() {
        let handlers = handlers().await;
        let made = handlers
            .create_volume(
                &context(),
                model::CreateVolumeRequest {
                    availability_zone: Some("eu-central-1a".into()),
                    size: Some(1),
                    ..Default::default()
                },
            )
            .await
            .unwrap();
        let id = made.volume_id.unwrap();
        let begin = context().now;
        let modify = |hours: i64| {
            let (handlers, id) = (&handlers, id.clone());
            async move {
                // Nothing makes disks here.
                write(&handlers.store, |tx| {
                    let mut volume =
                        Volume::clone(&*tx.get::<Volume>(SCOPE.account, SCOPE.region, &id).unwrap());
                    volume.state = VolumeState::Available;
                    if let Some(modification) = &mut volume.modification {
                        modification.state = ModificationState::Completed;
                    }
                    tx.put(volume);
                    Ok(())
                })
                .await?;
                let ctx = Context { now: begin + Duration::hours(hours), ..context() };
                let input = model::ModifyVolumeRequest { volume_id: id, size: Some(2), ..Default::default() };
                handlers.modify_volume(&ctx, input).await
            }
        };
        for hours in [0, 1, 2, 23] {
            modify(hours).await.unwrap();
        }
        let refused = modify(23).await.unwrap_err();
        assert_eq!(refused.code, "VolumeModificationRateExceeded");
        let next = iso8601((begin + MODIFICATIONS_WITHIN).replace_nanosecond(0).unwrap(), true);
        assert!(refused.message.contains(&next), "{}", refused.message);
        // The first is out of sight, and then the second.
        modify(24).await.unwrap();
        assert_eq!(code(modify(24).await), "VolumeModificationRateExceeded");
        modify(25).await.unwrap();
        modify(100).await.unwrap();
        let kept = handlers.store.snapshot().get::<Volume>(SCOPE.account, SCOPE.region, &id).unwrap();
        assert_eq!(kept.modified.len(), 1);
    }
}
