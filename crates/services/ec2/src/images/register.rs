//! `RegisterImage`.

use haar_api::Context;
use haar_records::ec2::{BootMode, EbsSnapshot, Image, ImageBoot};
use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION};
use haar_store::Tx;

use super::check_name;
use crate::block_devices::{self, VolumePlan, bad_mapping};
use crate::error::{Result, missing, unsupported};
use crate::handlers::Handlers;
use crate::{Scope, ids, model, snapshots, tags};

/// The root device of an image whose registration names none.
const DEFAULT_ROOT: &str = "/dev/sda1";

/// `RegisterImage`: an image of snapshots that there are.
///
/// A root disk that descends from an image of the library boots as that does, unless the request says `BootMode`.
pub async fn register_image(
    handlers: &Handlers,
    ctx: &Context,
    input: model::RegisterImageRequest,
) -> Result<model::RegisterImageResult> {
    match input.architecture {
        None | Some(model::ArchitectureValues::X86_64) => {}
        Some(other) => {
            return Err(unsupported(format!(
                "The value '{other}' of the parameter Architecture is not supported."
            )));
        }
    }
    if input.virtualization_type.as_deref().is_some_and(|given| given != "hvm") {
        return Err(unsupported(
            "Of the values of the parameter VirtualizationType, only 'hvm' is supported.",
        ));
    }
    let tags = tags::of_new_one(&input.tag_specifications, "image")?;
    let root_name = input.root_device_name.as_deref().unwrap_or(DEFAULT_ROOT);
    haar_core::transact(&handlers.store, ctx, |tx| {
        check_name(tx, Scope::from(ctx), &input.name)?;
        let (volumes, root) = volumes(ctx, tx, &input.block_device_mappings, root_name)?;
        let library_id = root.image_id.clone();
        let library = library_id.as_deref().and_then(|id| tx.get::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION, id));
        let boot = match input.boot_mode {
            Some(mode) => ImageBoot::Firmware(mode.as_str().parse().unwrap_or(BootMode::LegacyBios)),
            None => match &library {
                Some(library) => library.boot.clone(),
                // The default of x86 instance types ("Instance launch behavior with Amazon EC2 boot modes", EC2 User Guide).
                None => ImageBoot::Firmware(BootMode::LegacyBios),
            },
        };
        let id = ids::IMAGE.generate();
        let root = (root_name, root.size_gib);
        tx.put(Image {
            name: input.name.clone(),
            description: input.description.clone().filter(|description| !description.is_empty()),
            default_user: library
                .as_ref()
                .map_or_else(|| "root".to_owned(), |library| library.default_user.clone()),
            tags: tags.clone(),
            devices: volumes.iter().map(block_devices::to_image).collect(),
            library_id,
            imds_v2: input.imds_support.is_some(),
            ..Image::new(&ctx.account, &ctx.region, id.clone(), root, boot, ctx.now)
        });
        Ok(model::RegisterImageResult { image_id: Some(id) })
    })
    .await
}

/// The volumes that mappings ask for, and the root volume among them, which is made from a snapshot.
fn volumes(
    ctx: &Context,
    tx: &mut Tx,
    mappings: &[model::BlockDeviceMapping],
    root_name: &str,
) -> Result<(Vec<VolumePlan>, VolumePlan)> {
    if mappings.is_empty() {
        return Err(missing("BlockDeviceMapping"));
    }
    let mut volumes = Vec::with_capacity(mappings.len());
    for (name, mapping) in block_devices::by_name(mappings)? {
        if mapping.no_device.is_some() {
            return Err(bad_mapping(format!("The device '{name}' cannot be left out: there is none")));
        }
        let volume = block_devices::plan_one(tx, Scope::from(ctx), None, mapping)?;
        if volume.encryption.encrypted == Some(true) && volume.source.is_none() {
            // What is made of an image is encrypted as its snapshot is.
            return Err(unsupported("The parameter BlockDeviceMapping.Ebs.Encrypted is not supported."));
        }
        if let Some((id, _)) = &volume.snapshot {
            // An image stands on snapshots of its own account.
            let _: EbsSnapshot = snapshots::by_id(ctx, tx, id)?;
        }
        volumes.push(volume);
    }
    let root = volumes.iter().find(|volume| volume.device_name == root_name && volume.snapshot.is_some());
    let root = root
        .cloned()
        .ok_or_else(|| bad_mapping(format!("The root device '{root_name}' must be mapped to a snapshot")))?;
    Ok((volumes, root))
}
