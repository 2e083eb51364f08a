//! `AttachVolume` and `DetachVolume`.

use haar_api::{Context, Error};
use haar_records::ec2::{
    AttachmentStatus, BlockDevice, Instance, InstanceState, Volume, VolumeAttachment, VolumeState,
    instance_type,
};

use super::{attachment_to_api, by_id, wrong_state};
use crate::block_devices::valid_device_name;
use crate::error::{Result, invalid_parameter, invalid_value, unsupported};
use crate::handlers::Handlers;
use crate::{instances, model};

/// `AttachVolume`.
pub async fn attach_volume(
    handlers: &Handlers,
    ctx: &Context,
    input: model::AttachVolumeRequest,
) -> Result<model::VolumeAttachment> {
    let device = input.device.as_str();
    if !valid_device_name(device) {
        return Err(invalid_parameter(device, "device", "It is not a valid EBS device name."));
    }
    haar_core::transact(&handlers.store, ctx, |tx| {
        let volume = by_id(ctx, tx, &input.volume_id)?;
        let instance = instances::by_id(ctx, tx, &input.instance_id)?;
        check(&volume, &instance, device)?;
        let attachment = VolumeAttachment {
            instance_id: instance.id.clone(),
            device: device.to_owned(),
            status: AttachmentStatus::Attaching,
            attach_time: ctx.now,
            delete_on_termination: false,
        };
        let answer = attachment_to_api(&volume.id, &attachment);
        let mut instance = instance;
        instance.spec.block_devices.push(BlockDevice {
            device_name: device.to_owned(),
            volume_id: volume.id.clone(),
            delete_on_termination: false,
            detaching: false,
            forced: false,
        });
        tx.put(instance);
        tx.put(Volume { state: VolumeState::InUse, attachments: vec![attachment], ..volume });
        Ok(answer)
    })
    .await
}

/// Whether a volume can become a device of an instance.
fn check(volume: &Volume, instance: &Instance, device: &str) -> Result<()> {
    if !volume.attachments.is_empty() {
        return Err(Error::new("VolumeInUse", format!("{} is already attached to an instance", volume.id)));
    }
    if volume.state != VolumeState::Available {
        return Err(wrong_state(volume, VolumeState::Available));
    }
    if !matches!(instance.status.state, InstanceState::Running | InstanceState::Stopped) {
        let message = format!("Instance '{}' is not 'running'.", instance.id);
        return Err(Error::new("IncorrectState", message));
    }
    if volume.availability_zone != instance.spec.availability_zone {
        let message = format!(
            "The volume '{}' is not in the same availability zone as instance '{}'",
            volume.id, instance.id
        );
        return Err(Error::new("InvalidVolume.ZoneMismatch", message));
    }
    let bare = |name: &str| name.strip_prefix("/dev/").unwrap_or(name).to_owned();
    if instance.spec.block_devices.iter().any(|used| bare(&used.device_name) == bare(device)) {
        return Err(invalid_value(format!(
            "Invalid value '{device}' for unixDevice. Attachment point {device} is already in use"
        )));
    }
    let limit = instance_type(&instance.spec.instance_type);
    let used = instance.spec.block_devices.len();
    let interfaces = instance.spec.network_interfaces.len();
    if limit.is_some_and(|limit| !limit.takes(used + 1, interfaces)) {
        let message = format!("Volumes attached exceeds the limit on volume count for {}", instance.id);
        return Err(Error::new("AttachmentLimitExceeded", message));
    }
    Ok(())
}

/// `DetachVolume`.
pub async fn detach_volume(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DetachVolumeRequest,
) -> Result<model::VolumeAttachment> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut volume = by_id(ctx, tx, &input.volume_id)?;
        let Some(attachment) = volume.attachments.first_mut() else {
            return Err(Error::new(
                "IncorrectState",
                format!("Volume '{}' is in the '{}' state.", volume.id, volume.state),
            ));
        };
        let other = |given: &Option<String>, is: &str| given.as_deref().is_some_and(|given| given != is);
        if other(&input.instance_id, &attachment.instance_id) || other(&input.device, &attachment.device) {
            let message = format!(
                "Volume '{}' is not attached to the instance, or not as the device, that the request names.",
                volume.id
            );
            return Err(Error::new("InvalidAttachment.NotFound", message));
        }
        let mut instance = instances::by_id(ctx, tx, &attachment.instance_id)?;
        check_detachable(&instance, attachment)?;
        attachment.status = AttachmentStatus::Detaching;
        let answer = attachment_to_api(&volume.id, attachment);
        for device in instance.spec.block_devices.iter_mut().filter(|device| device.volume_id == volume.id) {
            device.detaching = true;
            device.forced |= input.force == Some(true);
        }
        tx.put(instance);
        tx.put(volume);
        Ok(answer)
    })
    .await
}

fn check_detachable(instance: &Instance, attachment: &VolumeAttachment) -> Result<()> {
    match instance.status.state {
        InstanceState::Running if attachment.device == instance.spec.root_device_name => Err(Error::new(
            "OperationNotPermitted",
            format!("Unable to detach the root volume '{}' of instance '{}'", attachment.device, instance.id),
        )),
        InstanceState::Stopped if attachment.device == instance.spec.root_device_name => {
            Err(unsupported("Detaching the root volume of a stopped instance is not supported."))
        }
        InstanceState::Running | InstanceState::Stopped => Ok(()),
        _ => {
            let message = format!("Instance '{}' is not 'running'.", instance.id);
            Err(Error::new("IncorrectState", message))
        }
    }
}
