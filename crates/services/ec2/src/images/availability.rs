//! What keeps an image from being launched, found or deregistered: `DisableImage`, `EnableImageDeprecation`,
//! `EnableImageDeregistrationProtection` and what undoes them.

use haar_api::{Context, Error};
use haar_records::ec2::{DeregistrationProtection, Image, ImageState, LaunchPermission};
use time::{Duration, OffsetDateTime};

use super::{describe, own};
use crate::error::{Result, invalid_value};
use crate::handlers::Handlers;
use crate::{Scope, model};

/// How far ahead the deprecation of an image can be ("Deprecate an Amazon EC2 AMI", EC2 User Guide): ten years, or two from its creation
/// for one that is public.
const MOST_AHEAD: Duration = Duration::days(3650);
const MOST_AHEAD_PUBLIC: Duration = Duration::days(730);

/// How long a protection with cooldown goes on after it was lifted.
const COOLDOWN: Duration = Duration::DAY;

/// Changes an image of the caller.
async fn change(
    handlers: &Handlers,
    ctx: &Context,
    id: &str,
    mut change: impl FnMut(&mut Image) -> Result<()>,
) -> Result<Image> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut image = own(tx, Scope::from(ctx), id)?;
        change(&mut image)?;
        tx.put(image.clone());
        Ok(image)
    })
    .await
}

/// `DisableImage`: nobody can launch it, and only its owner sees it.
pub async fn disable_image(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DisableImageRequest,
) -> Result<model::DisableImageResult> {
    change(handlers, ctx, &input.image_id, |image| {
        move_on(image, ImageState::Available, ImageState::Disabled)?;
        image.launch_permission = LaunchPermission::default();
        Ok(())
    })
    .await?;
    Ok(model::DisableImageResult { r#return: Some(true) })
}

/// `EnableImage`. The launch permissions that it had are not given back.
pub async fn enable_image(
    handlers: &Handlers,
    ctx: &Context,
    input: model::EnableImageRequest,
) -> Result<model::EnableImageResult> {
    change(handlers, ctx, &input.image_id, |image| {
        move_on(image, ImageState::Disabled, ImageState::Available)
    })
    .await?;
    Ok(model::EnableImageResult { r#return: Some(true) })
}

fn move_on(image: &mut Image, from: ImageState, to: ImageState) -> Result<()> {
    if image.state != from && image.state != to {
        let message = format!("The image '{}' is in the '{}' state.", image.id, image.state);
        return Err(Error::new("IncorrectState", message));
    }
    image.state = to;
    Ok(())
}

/// `EnableImageDeprecation`.
pub async fn enable_image_deprecation(
    handlers: &Handlers,
    ctx: &Context,
    input: model::EnableImageDeprecationRequest,
) -> Result<model::EnableImageDeprecationResult> {
    change(handlers, ctx, &input.image_id, |image| {
        let at = to_the_minute(input.deprecate_at);
        let latest =
            if image.is_public() { image.creation_date + MOST_AHEAD_PUBLIC } else { ctx.now + MOST_AHEAD };
        if at <= ctx.now {
            return Err(invalid_value("The value of the parameter DeprecateAt must be in the future."));
        }
        if at > latest {
            return Err(invalid_value("The value of the parameter DeprecateAt is too far in the future."));
        }
        image.deprecate_at = Some(at);
        Ok(())
    })
    .await?;
    Ok(model::EnableImageDeprecationResult { r#return: Some(true) })
}

/// Seconds are rounded to the nearest minute.
fn to_the_minute(at: OffsetDateTime) -> OffsetDateTime {
    let minutes = (at.unix_timestamp() + 30).div_euclid(60);
    OffsetDateTime::from_unix_timestamp(minutes * 60).unwrap_or(at)
}

/// `DisableImageDeprecation`.
pub async fn disable_image_deprecation(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DisableImageDeprecationRequest,
) -> Result<model::DisableImageDeprecationResult> {
    change(handlers, ctx, &input.image_id, |image| {
        image.deprecate_at = None;
        Ok(())
    })
    .await?;
    Ok(model::DisableImageDeprecationResult { r#return: Some(true) })
}

/// `EnableImageDeregistrationProtection`.
pub async fn enable_image_deregistration_protection(
    handlers: &Handlers,
    ctx: &Context,
    input: model::EnableImageDeregistrationProtectionRequest,
) -> Result<model::EnableImageDeregistrationProtectionResult> {
    let cooldown = input.with_cooldown == Some(true);
    let image = change(handlers, ctx, &input.image_id, |image| {
        image.protection = DeregistrationProtection::Enabled { cooldown };
        Ok(())
    })
    .await?;
    let protection = describe::protection(&image, ctx.now).to_owned();
    Ok(model::EnableImageDeregistrationProtectionResult { r#return: Some(protection) })
}

/// `DisableImageDeregistrationProtection`: with a cooldown, it goes on for a day.
pub async fn disable_image_deregistration_protection(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DisableImageDeregistrationProtectionRequest,
) -> Result<model::DisableImageDeregistrationProtectionResult> {
    let image = change(handlers, ctx, &input.image_id, |image| {
        image.protection = match image.protection {
            DeregistrationProtection::Enabled { cooldown: true } => {
                DeregistrationProtection::Until(ctx.now + COOLDOWN)
            }
            DeregistrationProtection::Enabled { cooldown: false } => DeregistrationProtection::Disabled,
            lifted => lifted,
        };
        Ok(())
    })
    .await?;
    let protection = describe::protection(&image, ctx.now).to_owned();
    Ok(model::DisableImageDeregistrationProtectionResult { r#return: Some(protection) })
}
