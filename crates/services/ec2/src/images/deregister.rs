//! `DeregisterImage`.

use haar_api::{Context, Error};
use haar_records::ec2::{EbsSnapshot, Image};

use super::{describe, own};
use crate::error::Result;
use crate::handlers::Handlers;
use crate::{Scope, model, snapshots};

/// `DeregisterImage`. Instances of the image are not affected.
pub async fn deregister_image(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DeregisterImageRequest,
) -> Result<model::DeregisterImageResult> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let image = own(tx, Scope::from(ctx), &input.image_id)?;
        if describe::protection(&image, ctx.now) != "disabled" {
            return Err(Error::new(
                "OperationNotPermitted",
                format!("The image '{}' is protected against deregistration.", image.id),
            ));
        }
        tx.delete::<Image>(&image.account, &image.region, &image.id);
        let mut results = Vec::new();
        let snapshots = image.devices.iter().filter_map(|device| device.snapshot_id.as_ref());
        for id in snapshots.filter(|_| input.delete_associated_snapshots == Some(true)) {
            // What another image stands on stays.
            let code = match snapshots::by_id(ctx, tx, id) {
                Ok(_) if snapshots::image_on(ctx, tx, id).is_some() => model::SnapshotReturnCodes::Skipped,
                Ok(snapshot) => {
                    tx.put(EbsSnapshot { deleted: true, ..snapshot });
                    model::SnapshotReturnCodes::Success
                }
                Err(_) => model::SnapshotReturnCodes::ClientError,
            };
            results.push(model::DeleteSnapshotReturnCode {
                snapshot_id: Some(id.clone()),
                return_code: Some(code),
            });
        }
        Ok(model::DeregisterImageResult { r#return: Some(true), delete_snapshot_results: results })
    })
    .await
}
