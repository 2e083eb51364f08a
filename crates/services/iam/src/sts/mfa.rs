//! Second factors of who asks for credentials.

use haar_api::{Context, Error, PrincipalKind};
use haar_records::iam::{MfaDevice, REGION, name_id};

use super::{Handlers, denied, invalid};
use crate::totp;

/// Whether a request shows the second factor of the user who makes it; false where it shows none.
///
/// # Errors
/// `AccessDenied` for a device that is not the user's, and for a wrong code.
pub(super) async fn shown(
    handlers: &Handlers,
    ctx: &Context,
    serial: Option<&str>,
    code: Option<&str>,
) -> Result<bool, Error> {
    let (serial, code) = match (serial, code) {
        (None, None) => return Ok(false),
        (Some(serial), Some(code)) => (serial, code),
        _ => return Err(invalid("SerialNumber and TokenCode must be given together.")),
    };
    let not_theirs = || {
        denied(
            "MultiFactorAuthentication failed, unable to validate MFA code.  Please verify your MFA serial number is valid and associated with this user.",
        )
    };
    let PrincipalKind::User { .. } = ctx.principal.kind else { return Err(not_theirs()) };
    let name = serial.strip_prefix(&format!("arn:aws:iam::{}:mfa/", ctx.account)).ok_or_else(not_theirs)?;
    let name = name.rsplit('/').next().unwrap_or(name);
    let right = haar_core::transact(&handlers.store, ctx, |tx| {
        let device = tx.get::<MfaDevice>(&ctx.account, REGION, &name_id(name));
        let device = device.filter(|device| device.arn() == serial).ok_or_else(not_theirs)?;
        let mut device = MfaDevice::clone(&device);
        let assignment = device.assignment.as_mut();
        let assignment = assignment.filter(|assignment| assignment.user_id == ctx.principal.user_id);
        let assignment = assignment.ok_or_else(not_theirs)?;
        let seed = handlers.keyring.sealer().open_seed(serial, &device.seed);
        let seed = seed.ok_or_else(|| Error::internal("The seed of the MFA device cannot be read."))?;
        // A wrong code is noted as well as a right one.
        let right = totp::check(&seed, assignment, ctx.now, code);
        tx.put(device);
        Ok::<_, Error>(right)
    })
    .await?;
    if right {
        Ok(true)
    } else {
        Err(denied("MultiFactorAuthentication failed with invalid MFA one time pass code. "))
    }
}
