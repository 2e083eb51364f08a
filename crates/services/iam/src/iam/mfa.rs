//! Virtual MFA devices (IAM User Guide, "Assign a virtual MFA device").

use haar_api::{Bytes, Context, Error};
use haar_records::iam::{self, MfaAssignment, MfaDevice, REGION, name_id};
use haar_store::{Entry, Snapshot, Tx};
use qrcode::{Color, QrCode};

use super::Handlers;
use super::common::*;
use super::model::*;
use super::tags::{new_tags, tag, tags, untag};
use super::users::user;
use crate::totp;

const MAX_DEVICES: usize = 5000;
const MAX_DEVICES_PER_USER: usize = 8;

/// Pixels of a module of a QR code, and modules of the quiet zone around it (ISO/IEC 18004 wants four).
const SCALE: usize = 4;
const QUIET: usize = 4;

fn missing(serial: &str) -> Error {
    no_such(format!("MFA Device with serial number {serial} does not exist."))
}

fn invalid_code() -> Error {
    Error::new("InvalidAuthenticationCode", "Authentication code for device is not valid.").with_status(403)
}

/// The id of the record that a serial number names.
fn id<'a>(ctx: &Context, serial: &'a str) -> Option<&'a str> {
    let name = serial.strip_prefix(&format!("arn:aws:iam::{}:mfa/", ctx.account))?;
    Some(name.rsplit('/').next().unwrap_or(name))
}

/// The device of this serial number, which the transaction relies on.
fn need_device(tx: &mut Tx, ctx: &Context, serial: &str) -> Result<MfaDevice> {
    let found = id(ctx, serial).and_then(|id| tx.get::<MfaDevice>(&ctx.account, REGION, &name_id(id)));
    let found = found.filter(|device| device.arn() == serial).ok_or_else(|| missing(serial))?;
    Ok(MfaDevice::clone(&found))
}

/// The device of this serial number.
fn read_device(snapshot: &Snapshot, ctx: &Context, serial: &str) -> Result<Entry<MfaDevice>> {
    let found = id(ctx, serial).and_then(|id| snapshot.get::<MfaDevice>(&ctx.account, REGION, &name_id(id)));
    found.filter(|device| device.arn() == serial).ok_or_else(|| missing(serial))
}

/// The user who has a device.
fn holder(snapshot: &Snapshot, device: &MfaDevice) -> Option<Entry<iam::User>> {
    let user_id = &device.assignment.as_ref()?.user_id;
    snapshot.by_index::<iam::User>(&device.account, REGION, "user-id", user_id).next().cloned()
}

/// The seed of a device.
fn seed(handlers: &Handlers, device: &MfaDevice) -> Result<Vec<u8>> {
    let opened = handlers.keyring.sealer().open_seed(&device.arn(), &device.seed);
    opened.ok_or_else(|| Error::internal("The seed of the MFA device cannot be read."))
}

/// `CreateVirtualMFADevice`. The seed is shown once: at rest it is sealed.
pub(super) async fn create_virtual_mfa_device(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateVirtualMFADeviceRequest,
) -> Result<CreateVirtualMFADeviceResponse> {
    let seed: [u8; totp::SEED] = rand::random();
    let mut record = MfaDevice {
        account: ctx.account.clone(),
        id: name_id(&input.virtual_mfa_device_name),
        name: input.virtual_mfa_device_name,
        path: path(input.path)?,
        seed: iam::Sealed(String::new()),
        assignment: None,
        tags: new_tags(input.tags)?,
    };
    let serial = record.arn();
    record.seed = handlers.keyring.sealer().seal_seed(&serial, &seed);
    haar_core::transact(&handlers.store, ctx, |tx| {
        check_quota::<MfaDevice>(tx, ctx, "MFADevicesPerAccount", MAX_DEVICES)?;
        tx.create(record.clone())
            .map_err(|_| exists("MFADevice entity at the same path and name already exists."))
    })
    .await?;
    let letters = totp::base32(&seed);
    // As apps read it ("Key URI Format").
    let label = format!("Amazon%20Web%20Services:{}@{}", record.name, ctx.account);
    let uri = format!("otpauth://totp/{label}?secret={letters}&issuer=Amazon%20Web%20Services");
    Ok(CreateVirtualMFADeviceResponse {
        virtual_mfa_device: Some(VirtualMFADevice {
            serial_number: Some(serial),
            base32_string_seed: Some(Bytes::from(letters)),
            qr_code_png: Some(Bytes::from(picture(&uri)?)),
            user: None,
            enable_date: None,
            tags: tags(&record.tags),
        }),
    })
}

/// A text as a QR code, in PNG.
fn picture(text: &str) -> Result<Vec<u8>> {
    let failed = || Error::internal("The QR code cannot be drawn.");
    let code = QrCode::new(text).map_err(|_| failed())?;
    let side = (code.width() + 2 * QUIET) * SCALE;
    let dark = |pixel: usize| {
        let place = |pixels: usize| (pixels / SCALE).checked_sub(QUIET).filter(|place| *place < code.width());
        match (place(pixel % side), place(pixel / side)) {
            (Some(x), Some(y)) => code[(x, y)] == Color::Dark,
            _ => false,
        }
    };
    let pixels: Vec<u8> = (0..side * side).map(|pixel| if dark(pixel) { 0 } else { 255 }).collect();
    let width = u32::try_from(side).map_err(|_| failed())?;
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, width, width);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().map_err(|_| failed())?;
    writer.write_image_data(&pixels).map_err(|_| failed())?;
    drop(writer);
    Ok(png)
}

/// `EnableMFADevice`.
pub(super) async fn enable_mfa_device(
    handlers: &Handlers,
    ctx: &Context,
    input: EnableMFADeviceRequest,
) -> Result<()> {
    let codes = [input.authentication_code1.as_str(), input.authentication_code2.as_str()];
    haar_core::transact(&handlers.store, ctx, |tx| {
        let user = need::<iam::User>(tx, ctx, &input.user_name)?;
        let mut device = need_device(tx, ctx, &input.serial_number)?;
        if device.assignment.is_some() {
            return Err(exists("MFA Device is already in use."));
        }
        if tx.by_index::<MfaDevice>(&ctx.account, REGION, "user", &user.user_id).count()
            >= MAX_DEVICES_PER_USER
        {
            return Err(quota("MFADevicesPerUser", MAX_DEVICES_PER_USER));
        }
        let found = totp::synchronise(&seed(handlers, &device)?, ctx.now, codes, None);
        let (drift, last_step) = found.ok_or_else(invalid_code)?;
        device.assignment = Some(MfaAssignment {
            user_id: user.user_id,
            enable_time: ctx.now,
            drift,
            last_step,
            failures: 0,
            failed: None,
        });
        tx.put(device);
        Ok(())
    })
    .await
}

/// The device of this serial number, if it is the user's.
fn need_own(tx: &mut Tx, ctx: &Context, user: &str, serial: &str) -> Result<(MfaDevice, MfaAssignment)> {
    let user = need::<iam::User>(tx, ctx, user)?;
    let device = need_device(tx, ctx, serial)?;
    match device.assignment.clone().filter(|assignment| assignment.user_id == user.user_id) {
        Some(assignment) => Ok((device, assignment)),
        None => Err(no_such(format!("MFA Device invalid for user {}.", user.name))),
    }
}

/// `ResyncMFADevice`: learns anew how the device's clock goes.
pub(super) async fn resync_mfa_device(
    handlers: &Handlers,
    ctx: &Context,
    input: ResyncMFADeviceRequest,
) -> Result<()> {
    let codes = [input.authentication_code1.as_str(), input.authentication_code2.as_str()];
    haar_core::transact(&handlers.store, ctx, |tx| {
        let (mut device, assignment) = need_own(tx, ctx, &input.user_name, &input.serial_number)?;
        let last = Some(assignment.last_step);
        let found = totp::synchronise(&seed(handlers, &device)?, ctx.now, codes, last);
        let (drift, last_step) = found.ok_or_else(invalid_code)?;
        device.assignment = Some(MfaAssignment { drift, last_step, ..assignment });
        tx.put(device);
        Ok(())
    })
    .await
}

/// `DeactivateMFADevice`: the device stays, as nobody's.
pub(super) async fn deactivate_mfa_device(
    handlers: &Handlers,
    ctx: &Context,
    input: DeactivateMFADeviceRequest,
) -> Result<()> {
    let name = user_or_caller(ctx, input.user_name)?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let name = name.as_ref().ok_or_else(|| missing(&input.serial_number))?;
        let (device, _) = need_own(tx, ctx, name, &input.serial_number)?;
        tx.put(MfaDevice { assignment: None, ..device });
        Ok(())
    })
    .await
}

/// `DeleteVirtualMFADevice`.
pub(super) async fn delete_virtual_mfa_device(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteVirtualMFADeviceRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let device = need_device(tx, ctx, &input.serial_number)?;
        if device.assignment.is_some() {
            return Err(conflict("MFA VirtualDevice in use. Must deactivate first."));
        }
        tx.delete::<MfaDevice>(&ctx.account, REGION, &device.id);
        Ok(())
    })
    .await
}

/// `GetMFADevice`.
pub(super) async fn get_mfa_device(
    handlers: &Handlers,
    ctx: &Context,
    input: GetMFADeviceRequest,
) -> Result<GetMFADeviceResponse> {
    let snapshot = handlers.store.snapshot();
    let device = read_device(&snapshot, ctx, &input.serial_number)?;
    let holder = holder(&snapshot, &device);
    if let Some(name) = &input.user_name {
        let user = read::<iam::User>(&snapshot, ctx, name)?;
        if holder.as_ref().is_none_or(|holder| holder.user_id != user.user_id) {
            return Err(missing(&input.serial_number));
        }
    }
    Ok(GetMFADeviceResponse {
        user_name: holder.map(|holder| holder.name.clone()),
        serial_number: Some(device.arn()),
        enable_date: device.assignment.as_ref().map(|assignment| assignment.enable_time),
        certifications: Default::default(),
    })
}

/// `ListMFADevices`.
pub(super) async fn list_mfa_devices(
    handlers: &Handlers,
    ctx: &Context,
    input: ListMFADevicesRequest,
) -> Result<ListMFADevicesResponse> {
    let snapshot = handlers.store.snapshot();
    let name = user_or_caller(ctx, input.user_name)?;
    let user = name.map(|name| read::<iam::User>(&snapshot, ctx, &name)).transpose()?;
    // A root has none here.
    let user_id = user.as_ref().map(|user| user.user_id.as_str()).unwrap_or_default();
    let devices = snapshot.by_index::<MfaDevice>(&ctx.account, REGION, "user", user_id);
    let found =
        page(handlers, ctx, &user_id, input.max_items, input.marker.as_deref(), devices, |one| &one.id)?;
    let of_user = |device: &Entry<MfaDevice>| {
        Some(MFADevice {
            user_name: Some(user.as_ref()?.name.clone()),
            serial_number: Some(device.arn()),
            enable_date: Some(device.assignment.as_ref()?.enable_time),
        })
    };
    Ok(ListMFADevicesResponse {
        mfa_devices: found.items.into_iter().filter_map(of_user).collect(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

/// `ListVirtualMFADevices`.
pub(super) async fn list_virtual_mfa_devices(
    handlers: &Handlers,
    ctx: &Context,
    input: ListVirtualMFADevicesRequest,
) -> Result<ListVirtualMFADevicesResponse> {
    let snapshot = handlers.store.snapshot();
    let wanted = input.assignment_status;
    let devices = snapshot.list::<MfaDevice>(&ctx.account, REGION).filter(|device| match wanted {
        Some(AssignmentStatusType::Assigned) => device.assignment.is_some(),
        Some(AssignmentStatusType::Unassigned) => device.assignment.is_none(),
        Some(AssignmentStatusType::Any) | None => true,
    });
    let about = wanted.map(AssignmentStatusType::as_str);
    let found =
        page(handlers, ctx, &about, input.max_items, input.marker.as_deref(), devices, |one| &one.id)?;
    let listed = |device: &Entry<MfaDevice>| VirtualMFADevice {
        serial_number: Some(device.arn()),
        base32_string_seed: None,
        qr_code_png: None,
        user: holder(&snapshot, device).map(|holder| user(&holder)),
        enable_date: device.assignment.as_ref().map(|assignment| assignment.enable_time),
        tags: tags(&device.tags),
    };
    Ok(ListVirtualMFADevicesResponse {
        virtual_mfa_devices: found.items.into_iter().map(listed).collect(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

/// `TagMFADevice`.
pub(super) async fn tag_mfa_device(
    handlers: &Handlers,
    ctx: &Context,
    input: TagMFADeviceRequest,
) -> Result<()> {
    tag(handlers, ctx, |tx| need_device(tx, ctx, &input.serial_number), &input.tags).await
}

/// `UntagMFADevice`.
pub(super) async fn untag_mfa_device(
    handlers: &Handlers,
    ctx: &Context,
    input: UntagMFADeviceRequest,
) -> Result<()> {
    untag(handlers, ctx, |tx| need_device(tx, ctx, &input.serial_number), &input.tag_keys).await
}

/// `ListMFADeviceTags`.
pub(super) async fn list_mfa_device_tags(
    handlers: &Handlers,
    ctx: &Context,
    input: ListMFADeviceTagsRequest,
) -> Result<ListMFADeviceTagsResponse> {
    let device = read_device(&handlers.store.snapshot(), ctx, &input.serial_number)?;
    let all = tags(&device.tags);
    let found =
        page(handlers, ctx, &device.id, input.max_items, input.marker.as_deref(), all, |tag| &tag.key)?;
    Ok(ListMFADeviceTagsResponse {
        tags: found.items,
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_read_by_cameras() {
        let uri = format!("otpauth://totp/Amazon%20Web%20Services:a@1?secret={}", "A".repeat(64));
        let png = picture(&uri).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        let (width, height) = (frame.width as usize, frame.height as usize);
        let seen = |x: usize, y: usize| pixels[y * width + x];
        let mut image = rqrr::PreparedImage::prepare_from_greyscale(width, height, seen);
        let grids = image.detect_grids();
        assert_eq!(grids.len(), 1);
        assert_eq!(grids[0].decode().unwrap().1, uri);
    }
}
