//! `CreateImage`.

use haar_api::{Context, Error};
use haar_records::Tags;
use haar_records::ec2::{EbsSnapshot, Image, ImageBoot, ImageDevice, ImageState, Instance, InstanceState};
use haar_store::Tx;

use super::{check_name, find};
use crate::block_devices::{self, bad_mapping};
use crate::error::{Result, unsupported};
use crate::handlers::Handlers;
use crate::{Scope, ids, instances, model, snapshots, tags, volumes};

/// `CreateImage`: snapshots of the instance's volumes, all at the same point in time, and an image that stands on them.
///
/// An instance that runs is rebooted unless `NoReboot` says otherwise: its snapshots are taken while the guest is down, so that they hold
/// all that it had still to write.
pub async fn create_image(
    handlers: &Handlers,
    ctx: &Context,
    input: model::CreateImageRequest,
) -> Result<model::CreateImageResult> {
    let by_type = tags::of_new(&input.tag_specifications, &["image", "snapshot"])?;
    let tags_of = |resource_type| by_type.get(resource_type).cloned().unwrap_or_default();
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut instance = instances::by_id(ctx, tx, &input.instance_id)?;
        if !matches!(instance.status.state, InstanceState::Running | InstanceState::Stopped) {
            return Err(Error::new(
                "IncorrectInstanceState",
                format!("The instance '{}' is neither running nor stopped.", instance.id),
            ));
        }
        check_name(tx, Scope::from(ctx), &input.name)?;
        let reboot = instance.status.state == InstanceState::Running && input.no_reboot != Some(true);
        let id = ids::IMAGE.generate();
        let (devices, snapshots) =
            devices(ctx, tx, &instance, &id, &input.block_device_mappings, &tags_of("snapshot"))?;
        let set: Vec<_> = snapshots.iter().map(|snapshot| snapshot.id.clone()).collect();
        for snapshot in snapshots {
            let awaits = reboot.then(|| instance.id.clone());
            tx.put(EbsSnapshot { set: set.clone(), awaits, ..snapshot });
        }
        let image = of_instance(ctx, tx, &instance, &id, &devices)?;
        tx.put(Image {
            devices,
            name: input.name.clone(),
            description: input.description.clone().filter(|description| !description.is_empty()),
            tags: tags_of("image"),
            ..image
        });
        if reboot {
            instance.spec.reboots += 1;
            tx.put(instance);
        }
        Ok(model::CreateImageResult { image_id: Some(id) })
    })
    .await
}

/// An image of an instance, which boots as the instance does.
fn of_instance(
    ctx: &Context,
    tx: &Tx,
    instance: &Instance,
    id: &str,
    devices: &[ImageDevice],
) -> Result<Image> {
    let spec = &instance.spec;
    let source = find(tx.snapshot(), Scope::from(ctx), &spec.image_id);
    let boot = spec.boot.clone().or_else(|| source.as_ref().map(|image| image.boot.clone()));
    let of_library = source.as_ref().filter(|image| image.is_of_library()).map(|image| image.id.clone());
    let root = devices.iter().find(|device| device.device_name == spec.root_device_name);
    let root = root.ok_or_else(|| {
        let message = format!(
            "Instance '{}' does not have a volume attached at root ({})",
            instance.id, spec.root_device_name
        );
        Error::new("IncorrectState", message)
    })?;
    let default_user = spec.default_user.clone().or_else(|| Some(source.as_ref()?.default_user.clone()));
    let root = (root.device_name.as_str(), root.size_gib);
    let boot = boot.unwrap_or(ImageBoot::Kernel);
    Ok(Image {
        state: ImageState::Pending,
        default_user: default_user.unwrap_or_else(|| "root".to_owned()),
        library_id: spec.library_id.clone().or(of_library),
        source_instance_id: Some(instance.id.clone()),
        imds_v2: source.is_some_and(|image| image.imds_v2),
        ..Image::new(&ctx.account, &ctx.region, id.to_owned(), root, boot, ctx.now)
    })
}

/// The devices of an image of an instance, and the snapshots that they are made from.
fn devices(
    ctx: &Context,
    tx: &mut Tx,
    instance: &Instance,
    image_id: &str,
    mappings: &[model::BlockDeviceMapping],
    tags: &Tags,
) -> Result<(Vec<ImageDevice>, Vec<EbsSnapshot>)> {
    let description = format!("Created by CreateImage({}) for {image_id}", instance.id);
    let root = &instance.spec.root_device_name;
    let mut asked = block_devices::by_name(mappings)?;
    let (mut devices, mut snapshots) = (Vec::new(), Vec::new());
    for device in instance.spec.block_devices.iter().filter(|device| !device.detaching) {
        let mapping =
            asked.iter().position(|(name, _)| *name == device.device_name).map(|at| asked.remove(at).1);
        if mapping.is_some_and(|mapping| mapping.no_device.is_some()) {
            if device.device_name == *root {
                return Err(bad_mapping(format!("The root device '{root}' cannot be left out")));
            }
            continue;
        }
        let volume = volumes::by_id(ctx, tx, &device.volume_id)?;
        let mut made = ImageDevice {
            device_name: device.device_name.clone(),
            snapshot_id: None,
            size_gib: volume.size_gib,
            volume_type: volume.volume_type,
            iops: block_devices::provisioned(volume.volume_type, volume.iops),
            throughput: volume.throughput,
            delete_on_termination: device.delete_on_termination,
            encrypted: volume.encryption.is_some(),
        };
        if let Some(ebs) = mapping.and_then(|mapping| mapping.ebs.as_ref()) {
            change(&mut made, ebs)?;
        }
        let snapshot = snapshots::of_volume(ctx, &volume, &description, tags.clone())?;
        made.snapshot_id = Some(snapshot.id.clone());
        devices.push(made);
        snapshots.push(snapshot);
    }
    for (_, mapping) in asked.into_iter().filter(|(_, mapping)| mapping.no_device.is_none()) {
        let planned = block_devices::plan_one(tx, Scope::from(ctx), None, mapping)?;
        if planned.encryption.encrypted == Some(true) {
            return Err(unsupported("The parameter BlockDeviceMapping.Ebs.Encrypted is not supported."));
        }
        if let Some((id, _)) = &planned.snapshot {
            // An image stands on snapshots of its own account.
            snapshots::by_id(ctx, tx, id)?;
        }
        devices.push(block_devices::to_image(&planned));
    }
    Ok((devices, snapshots))
}

/// Changes a device of an instance for its image: `DeleteOnTermination` is all that can be ("CreateImage", EC2 API Reference).
fn change(device: &mut ImageDevice, ebs: &model::EbsBlockDevice) -> Result<()> {
    let number =
        |given: Option<i32>, is: Option<u32>| given.is_some_and(|given| u32::try_from(given).ok() != is);
    let differs = number(ebs.volume_size, Some(device.size_gib))
        || number(ebs.iops, device.iops)
        || number(ebs.throughput, device.throughput)
        || ebs.volume_type.is_some_and(|given| block_devices::record_type(given) != device.volume_type)
        || ebs.snapshot_id.is_some()
        || ebs.encrypted == Some(true);
    if differs {
        return Err(bad_mapping(format!(
            "Only DeleteOnTermination can be changed of the device '{}', which the instance has",
            device.device_name
        )));
    }
    device.delete_on_termination = ebs.delete_on_termination.unwrap_or(device.delete_on_termination);
    Ok(())
}
