//! What is to be known of volumes besides their record: whether their disks are sound, and their attributes.

use haar_api::{Context, Error};
use haar_core::FilterTable;
use haar_records::ec2::{Instance, InstanceState, Volume, VolumeState};

use super::by_id;
use crate::describe::{Kind, Request, ids_or_pages};
use crate::error::{Result, missing};
use crate::handlers::{DiskCheck, Handlers};
use crate::{ids, model, zones};

/// The volume statuses of a listing, found with its records.
struct Checks(std::sync::Arc<dyn crate::Host>);

impl Checks {
    /// The status, and that of the check whether input and output are enabled.
    fn of(&self, volume: &Volume) -> (model::VolumeStatusInfoStatus, &'static str) {
        if !matches!(volume.state, VolumeState::Available | VolumeState::InUse) {
            return (model::VolumeStatusInfoStatus::InsufficientData, "insufficient-data");
        }
        match self.0.check_disk(&volume.id) {
            DiskCheck::Sound => (model::VolumeStatusInfoStatus::Ok, "passed"),
            DiskCheck::Damaged => (model::VolumeStatusInfoStatus::Impaired, "failed"),
            DiskCheck::Unknown => (model::VolumeStatusInfoStatus::InsufficientData, "insufficient-data"),
        }
    }
}

const STATUSES: Kind<Volume, Checks> = Kind {
    id: ids::VOLUME,
    filters: FilterTable::<Volume, Checks>::new(&[
        ("action.code", |volume, checks, probe| {
            if damaged(volume, checks) {
                probe.value(ACTION);
            }
        }),
        ("action.description", |volume, checks, probe| {
            if damaged(volume, checks) {
                probe.value(ACTION_DESCRIPTION);
            }
        }),
        ("action.event-id", |_, _, _| ()),
        ("attachment-status.instance-id", |_, _, _| ()),
        ("attachment-status.io-performance", |_, _, _| ()),
        ("availability-zone", |volume, _, probe| probe.value(&volume.availability_zone)),
        ("event.description", |volume, checks, probe| {
            if damaged(volume, checks) {
                probe.value(EVENT_DESCRIPTION);
            }
        }),
        ("event.event-id", |_, _, _| ()),
        ("event.event-type", |volume, checks, probe| {
            if damaged(volume, checks) {
                probe.value(EVENT);
            }
        }),
        ("event.not-after", |_, _, _| ()),
        ("event.not-before", |_, _, _| ()),
        ("volume-status.details-name", |_, _, probe| {
            probe.value("io-enabled");
            probe.value("io-performance");
        }),
        ("volume-status.details-status", |volume, checks, probe| {
            probe.value(checks.of(volume).1);
            probe.value("not-applicable");
        }),
        ("volume-status.status", |volume, checks, probe| probe.value(checks.of(volume).0.as_str())),
    ]),
    indexes: &[],
};

const ACTION: &str = "enable-volume-io";
const ACTION_DESCRIPTION: &str = "Enable volume I/O";
const EVENT: &str = "potential-data-inconsistency";
const EVENT_DESCRIPTION: &str = "The disk was found to be damaged; its input and output are disabled";

fn damaged(volume: &Volume, checks: &Checks) -> bool {
    checks.of(volume).0 == model::VolumeStatusInfoStatus::Impaired
}

/// `DescribeVolumeStatus`: whether a volume's disk is sound, by what QEMU has written into it.
pub async fn describe_volume_status(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeVolumeStatusRequest,
) -> Result<model::DescribeVolumeStatusResult> {
    ids_or_pages("volumeSet", &input.volume_ids, input.max_results)?;
    let snapshot = handlers.store.snapshot();
    let request =
        Request::new(&input.volume_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let checks = Checks(handlers.host.clone());
    let (volumes, next_token) = STATUSES.page(handlers, ctx, &snapshot, &request, &checks)?;
    let volume_statuses = volumes.iter().map(|volume| to_api(volume, &checks)).collect();
    Ok(model::DescribeVolumeStatusResult { volume_statuses, next_token })
}

fn to_api(volume: &Volume, checks: &Checks) -> model::VolumeStatusItem {
    let (status, io_enabled) = checks.of(volume);
    let detail =
        |name, status: &str| model::VolumeStatusDetails { name: Some(name), status: Some(status.to_owned()) };
    let (mut actions, mut events) = (Vec::new(), Vec::new());
    if status == model::VolumeStatusInfoStatus::Impaired {
        actions.push(model::VolumeStatusAction {
            code: Some(ACTION.to_owned()),
            description: Some(ACTION_DESCRIPTION.to_owned()),
            event_type: Some(EVENT.to_owned()),
        });
        events.push(model::VolumeStatusEvent {
            description: Some(EVENT_DESCRIPTION.to_owned()),
            event_type: Some(EVENT.to_owned()),
        });
    }
    model::VolumeStatusItem {
        actions,
        availability_zone: Some(volume.availability_zone.clone()),
        availability_zone_id: zones::zone_id(&volume.region, &volume.availability_zone),
        events,
        volume_id: Some(volume.id.clone()),
        volume_status: Some(model::VolumeStatusInfo {
            details: vec![
                detail(model::VolumeStatusName::IoEnabled, io_enabled),
                detail(model::VolumeStatusName::IoPerformance, "not-applicable"),
            ],
            status: Some(status),
        }),
    }
}

/// `EnableVolumeIO`: has a damaged disk repaired, so that it can be used again. On a sound one it changes nothing.
pub async fn enable_volume_io(
    handlers: &Handlers,
    ctx: &Context,
    input: model::EnableVolumeIORequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let volume = by_id(ctx, tx, &input.volume_id)?;
        if !matches!(volume.state, VolumeState::Available | VolumeState::InUse) {
            let message = format!("Volume '{}' is in the '{}' state.", volume.id, volume.state);
            return Err(Error::new("IncorrectState", message));
        }
        if handlers.host.check_disk(&volume.id) != DiskCheck::Damaged {
            return Ok(());
        }
        for attachment in &volume.attachments {
            let instance = tx.get::<Instance>(&ctx.account, &ctx.region, &attachment.instance_id);
            if instance.is_some_and(|instance| instance.status.state != InstanceState::Stopped) {
                // A machine that found the damage does not take up the disk again.
                let message = format!(
                    "The volume '{}' can be enabled when the instance '{}' is stopped.",
                    volume.id, attachment.instance_id
                );
                return Err(Error::new("IncorrectState", message));
            }
        }
        tx.put(Volume { enable_io: true, ..volume });
        Ok(())
    })
    .await
}

/// `DescribeVolumeAttribute`.
pub async fn describe_volume_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeVolumeAttributeRequest,
) -> Result<model::DescribeVolumeAttributeResult> {
    ids::VOLUME.check(&input.volume_id)?;
    let volume = handlers
        .store
        .snapshot()
        .get::<Volume>(&ctx.account, &ctx.region, &input.volume_id)
        .ok_or_else(|| ids::VOLUME.missing(&input.volume_id))?;
    let auto_enable_io = match input.attribute {
        model::VolumeAttributeName::AutoEnableIO => {
            Some(model::AttributeBooleanValue { value: Some(volume.auto_enable_io) })
        }
        // No volume here comes from AWS Marketplace.
        model::VolumeAttributeName::ProductCodes => None,
    };
    Ok(model::DescribeVolumeAttributeResult {
        auto_enable_io,
        product_codes: Vec::new(),
        volume_id: Some(volume.id.clone()),
    })
}

/// `ModifyVolumeAttribute`.
pub async fn modify_volume_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ModifyVolumeAttributeRequest,
) -> Result<()> {
    let value = input.auto_enable_io.as_ref().and_then(|attribute| attribute.value);
    let auto_enable_io = value.ok_or_else(|| missing("autoEnableIO.value"))?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let volume = by_id(ctx, tx, &input.volume_id)?;
        tx.put(Volume { auto_enable_io, ..volume });
        Ok(())
    })
    .await
}
