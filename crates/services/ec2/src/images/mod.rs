//! Machine images: those of the host's library, and those that accounts make of instances and snapshots.

mod attributes;
mod availability;
mod copy;
mod create;
mod deregister;
mod describe;
mod register;

use haar_api::{Context, Error};
use haar_records::ec2::public_parameters::{self, Missing};
use haar_records::ec2::{Image, ImageState};
use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION};
use haar_store::{Entry, Snapshot, Tx};

pub use attributes::{describe_image_attribute, modify_image_attribute, reset_image_attribute};
pub use availability::{
    disable_image, disable_image_deprecation, disable_image_deregistration_protection, enable_image,
    enable_image_deprecation, enable_image_deregistration_protection,
};
pub use copy::copy_image;
pub use create::create_image;
pub use deregister::deregister_image;
pub use describe::describe_images;
pub(crate) use describe::{boot_mode, devices};
pub use register::register_image;

use crate::error::{Result, invalid_value, shorten};
use crate::{Scope, ids};

/// The image with this id that an account may see: its own, one of the library, or one that is shared with it.
pub(crate) fn find(snapshot: &Snapshot, scope: Scope<'_>, id: &str) -> Option<Entry<Image>> {
    let Scope { account, region } = scope;
    snapshot
        .get::<Image>(account, region, id)
        .or_else(|| snapshot.get::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION, id))
        .or_else(|| snapshot.list_all::<Image>().find(|image| image.id == id && sees(scope, image)).cloned())
}

/// Whether an account sees an image: one that is disabled is its owner's alone.
fn sees(scope: Scope<'_>, image: &Image) -> bool {
    let here = image.is_of_library() || image.region == scope.region;
    let own = image.account == scope.account;
    here && (own || (image.is_shared_with(scope.account) && image.state != ImageState::Disabled))
}

/// As [`find`], for a transaction, which relies on what it finds.
fn get(tx: &mut Tx, scope: Scope<'_>, id: &str) -> Result<Image> {
    ids::IMAGE.check(id)?;
    let found = find(tx.snapshot(), scope, id).ok_or_else(|| ids::IMAGE.missing(id))?;
    let found = tx.get::<Image>(&found.account, &found.region, id);
    Ok(Image::clone(&*found.ok_or_else(|| ids::IMAGE.missing(id))?))
}

/// The image with this id, which the caller must own and can change.
fn own(tx: &mut Tx, scope: Scope<'_>, id: &str) -> Result<Image> {
    let image = get(tx, scope, id)?;
    check_owner(scope, &image)?;
    if image.is_of_library() {
        return Err(Error::new(
            "OperationNotPermitted",
            format!("The image '{id}' is of this host's library, which the command 'haar image' changes."),
        ));
    }
    Ok(image)
}

fn check_owner(scope: Scope<'_>, image: &Image) -> Result<()> {
    if image.owner == scope.account {
        return Ok(());
    }
    Err(Error::new("AuthFailure", format!("Not authorized for image:{}", image.id)).with_status(403))
}

/// The image with this id, if instances can be launched from it.
///
/// # Errors
/// `InvalidAMIID.Malformed`, `InvalidAMIID.NotFound`, `InvalidAMIID.Unavailable`.
pub fn launchable(tx: &mut Tx, scope: Scope<'_>, id: &str) -> Result<Image> {
    let image = get(tx, scope, id)?;
    if image.state == ImageState::Available {
        return Ok(image);
    }
    Err(Error::new(
        "InvalidAMIID.Unavailable",
        format!("The image ID '{id}' is not available: its state is '{}'", image.state),
    ))
}

/// How `ImageId` refers to a parameter of Systems Manager.
const PARAMETER: &str = "resolve:ssm:";

/// The parameter of Systems Manager that an image is named by, without version and label.
pub fn parameter(image: &str) -> Option<&str> {
    let name = image.strip_prefix(PARAMETER)?;
    Some(name.split_once(':').map_or(name, |(name, _)| name))
}

/// The id of the image that a launch names: by its id, or by a parameter that has it.
pub fn resolve(records: &Snapshot, image: &str) -> Result<String> {
    let Some(name) = image.strip_prefix(PARAMETER) else { return Ok(image.to_owned()) };
    match public_parameters::find(records, name) {
        Ok(found) => Ok(found.image.id.clone()),
        Err(Missing::Parameter) => Err(invalid_value(format!(
            "The parameter '{}' of ImageId does not exist in Parameter Store.",
            shorten(name)
        ))),
        Err(Missing::Version) => Err(invalid_value(format!(
            "The parameter '{}' of ImageId does not have that version or label.",
            shorten(name)
        ))),
    }
}

/// Writes down that an instance is launched from an image; AWS shows it a day later, here it is right to the hour.
pub fn launched(ctx: &Context, tx: &mut Tx, image: &Image) {
    let known = image.last_launched.is_some_and(|at| ctx.now - at < time::Duration::HOUR);
    if !known {
        tx.put(Image { last_launched: Some(ctx.now), ..image.clone() });
    }
}

/// Checks the name of a new image ("RegisterImage", EC2 API Reference), which no other image of the account may have here.
fn check_name(tx: &mut Tx, scope: Scope<'_>, name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    if !(3..=128).contains(&name.chars().count()) || !name.chars().all(allowed) {
        return Err(Error::new(
            "InvalidAMIName.Malformed",
            format!(
                "AMI name '{}' is invalid. AMI names must be between 3 and 128 characters long, and may contain letters, numbers, \
                 spaces, and the characters ( ) [ ] . / - ' @ _",
                shorten(name)
            ),
        ));
    }
    let taken = tx.list::<Image>(scope.account, scope.region).find(|image| image.name == name);
    match taken {
        Some(image) => Err(Error::new(
            "InvalidAMIName.Duplicate",
            format!("AMI name {name} is already in use by AMI {}", image.id),
        )),
        None => Ok(()),
    }
}
