//! Block device mappings: from what RunInstances says and what the image says to the volumes of an instance.

use haar_api::Error;
use haar_records::ec2::{EbsSnapshot, Encryption, Image, ImageDevice, VolumeType};
use haar_store::Tx;

use crate::encryption::Asked;
use crate::error::{Result, combination, invalid_value, missing};
use crate::{Scope, model, snapshots};

/// Device names that EC2 takes for EBS volumes, as `/dev/sda1`, `/dev/sdf`, `/dev/xvda`, `xvdb` (EC2 User Guide, "Device
/// names for volumes on Amazon EC2 instances").
pub(crate) fn valid_device_name(name: &str) -> bool {
    let bare = name.strip_prefix("/dev/").unwrap_or(name);
    let Some(letters) = bare.strip_prefix("xvd").or_else(|| bare.strip_prefix("sd")) else { return false };
    let digits = letters.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let letters = &letters[..letters.len() - digits.len()];
    (1..=2).contains(&letters.len()) && digits.len() <= 2 && digits.bytes().all(|b| b.is_ascii_digit())
}

/// A volume that an instance is launched with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// As `/dev/xvda`.
    pub device_name: String,
    /// Size in GiB.
    pub size_gib: u32,
    /// Type.
    pub volume_type: VolumeType,
    /// IOPS, where the type has them.
    pub iops: Option<u32>,
    /// MiB/s, gp3 only.
    pub throughput: Option<u32>,
    /// Goes with the instance.
    pub delete_on_termination: bool,
    /// The snapshot that it is made from, with the size of its volume in GiB.
    pub snapshot: Option<(String, u32)>,
    /// How that snapshot is encrypted, if it is.
    pub source: Option<Encryption>,
    /// The image of the library that its disk descends from: of whose root disk it is an overlay, if it is made from no snapshot.
    pub image_id: Option<String>,
    /// What was said about its encryption.
    pub encryption: Asked,
}

/// Limits of a volume type ("Amazon EBS volume types", EBS User Guide).
struct Limits {
    size_gib: (u32, u32),
    /// Least, most, and most per GiB; `None` where IOPS cannot be asked for.
    iops: Option<(u32, u32, u32)>,
}

const fn limits(volume_type: VolumeType) -> Limits {
    match volume_type {
        VolumeType::Gp3 => Limits { size_gib: (1, 65_536), iops: Some((3_000, 80_000, 500)) },
        VolumeType::Gp2 => Limits { size_gib: (1, 16_384), iops: None },
        VolumeType::Io1 => Limits { size_gib: (4, 16_384), iops: Some((100, 64_000, 50)) },
        VolumeType::Io2 => Limits { size_gib: (4, 65_536), iops: Some((100, 256_000, 1_000)) },
        VolumeType::St1 | VolumeType::Sc1 => Limits { size_gib: (125, 16_384), iops: None },
        VolumeType::Standard => Limits { size_gib: (1, 1_024), iops: None },
    }
}

/// Baseline IOPS of a gp2 volume: 3 per GiB, from 100 to 16 000.
fn gp2_iops(size_gib: u32) -> u32 {
    (size_gib * 3).clamp(100, 16_000)
}

/// Checks size, IOPS and throughput against the type and fills in what the type gives by itself.
///
/// # Errors
/// `InvalidParameterValue` or `InvalidParameterCombination` as CreateVolume gives them.
pub fn check_volume(
    volume_type: VolumeType,
    size_gib: u32,
    iops: Option<i32>,
    throughput: Option<i32>,
) -> Result<(Option<u32>, Option<u32>)> {
    let limits = limits(volume_type);
    let (least, most) = limits.size_gib;
    if !(least..=most).contains(&size_gib) {
        let bound = if size_gib < least {
            format!("too small for {volume_type} volumes; the least is {least} GiB")
        } else {
            format!("too large for {volume_type} volumes; the most is {most} GiB")
        };
        return Err(invalid_value(format!("Volume of {size_gib}GiB is {bound}.")));
    }
    let iops = match (limits.iops, iops) {
        (None, Some(_)) => {
            return Err(combination(format!(
                "The parameter iops is not supported for {volume_type} volumes."
            )));
        }
        (None, None) if volume_type == VolumeType::Gp2 => Some(gp2_iops(size_gib)),
        (None, None) => None,
        (Some((least, ..)), None) if volume_type == VolumeType::Gp3 => Some(least),
        (Some(_), None) => {
            return Err(combination(format!(
                "The parameter iops must be specified for {volume_type} volumes."
            )));
        }
        (Some((least, most, per_gib)), Some(wanted)) => {
            let wanted = u32::try_from(wanted).unwrap_or(0);
            if !(least..=most).contains(&wanted) {
                return Err(invalid_value(format!(
                    "Volume iops of {wanted} is out of range; it must be from {least} to {most} for {volume_type} volumes."
                )));
            }
            // gp3 has its baseline at any size; the ratio bounds only what is asked for beyond it.
            if wanted > least && u64::from(wanted) > u64::from(per_gib) * u64::from(size_gib) {
                return Err(invalid_value(format!(
                    "Iops to volume size ratio of {wanted}:{size_gib} is too high; maximum is {per_gib} IOPS per GiB."
                )));
            }
            Some(wanted)
        }
    };
    let throughput = match (volume_type, throughput) {
        (VolumeType::Gp3, None) => Some(125),
        (VolumeType::Gp3, Some(wanted)) => {
            let wanted = u32::try_from(wanted).unwrap_or(0);
            if !(125..=2_000).contains(&wanted) {
                return Err(invalid_value(format!(
                    "Volume throughput of {wanted} is out of range; it must be from 125 to 2000 MiB/s."
                )));
            }
            // 0.25 MiB/s per provisioned IOPS, so that four IOPS carry a MiB/s.
            if wanted > 125 && wanted * 4 > iops.unwrap_or(0) {
                return Err(invalid_value(format!(
                    "Throughput (MiB/s) to iops ratio of {wanted}:{} is too high; maximum is 0.25 MiB/s per IOPS.",
                    iops.unwrap_or(0)
                )));
            }
            Some(wanted)
        }
        (_, Some(_)) => {
            return Err(combination(format!(
                "The parameter throughput is not supported for {volume_type} volumes."
            )));
        }
        (_, None) => None,
    };
    Ok((iops, throughput))
}

/// `InvalidBlockDeviceMapping`.
pub(crate) fn bad_mapping(message: impl Into<String>) -> Error {
    Error::new("InvalidBlockDeviceMapping", message)
}

/// IOPS of a volume of a type that they are asked for of; those that a type has by its size are not.
pub(crate) fn provisioned(volume_type: VolumeType, iops: Option<u32>) -> Option<u32> {
    iops.filter(|_| limits(volume_type).iops.is_some())
}

/// The mappings of a request by the names of their devices, each of which may come once.
///
/// # Errors
/// `InvalidBlockDeviceMapping`, `MissingParameter`.
pub(crate) fn by_name(
    mappings: &[model::BlockDeviceMapping],
) -> Result<Vec<(&str, &model::BlockDeviceMapping)>> {
    let mut found: Vec<(&str, &model::BlockDeviceMapping)> = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        let Some(name) = mapping.device_name.as_deref() else {
            return Err(missing("BlockDeviceMapping.DeviceName"));
        };
        if !valid_device_name(name) {
            return Err(bad_mapping(format!("Invalid device name {name}")));
        }
        if found.iter().any(|(known, _)| *known == name) {
            return Err(bad_mapping(format!(
                "The device '{name}' is used in more than one block-device mapping"
            )));
        }
        if mapping.no_device.is_none() && mapping.ebs.is_none() {
            return Err(bad_mapping(format!(
                "The mapping of the device '{name}' must contain Ebs or NoDevice"
            )));
        }
        found.push((name, mapping));
    }
    Ok(found)
}

/// The volumes of an instance of `image` that is launched with `mappings`: its root volume first.
///
/// # Errors
/// `InvalidBlockDeviceMapping`, `MissingParameter`, those of a snapshot that cannot be used and those of [`check_volume`].
pub fn plan(
    tx: &mut Tx,
    scope: Scope<'_>,
    image: &Image,
    mappings: &[model::BlockDeviceMapping],
) -> Result<Vec<VolumePlan>> {
    let mut volumes = of_image(tx, image)?;
    for (name, mapping) in by_name(mappings)? {
        let position = volumes.iter().position(|volume| volume.device_name == name);
        let is_root = name == image.root_device_name;
        if mapping.no_device.is_some() {
            if is_root {
                return Err(bad_mapping(format!("The root device '{name}' cannot be left out")));
            }
            position.map(|position| volumes.remove(position));
            continue;
        }
        let base = position.map(|position| volumes[position].clone());
        if is_root
            && let (Some(base), Some(ebs)) = (&base, &mapping.ebs)
            && let Some(given) = ebs.snapshot_id.as_deref()
            && base.snapshot.as_ref().is_none_or(|(own, _)| own != given)
        {
            return Err(bad_mapping(format!(
                "The snapshot of the root device '{name}' cannot be other than that of the image '{}'",
                image.id
            )));
        }
        if is_root
            && let Some(size) = mapping.ebs.as_ref().and_then(|ebs| ebs.volume_size)
            && u32::try_from(size).is_ok_and(|size| size < least_root_size(image, base.as_ref()))
        {
            return Err(bad_mapping(format!(
                "Volume of size {size}GB is smaller than the root disk of image '{}', expect size >= {}GB",
                image.id,
                least_root_size(image, base.as_ref())
            )));
        }
        let planned = plan_one(tx, scope, base.as_ref(), mapping)?;
        match position {
            Some(position) => volumes[position] = planned,
            None => volumes.push(planned),
        }
    }
    let root = volumes.iter().position(|volume| volume.device_name == image.root_device_name);
    if let Some(root) = root {
        volumes[..=root].rotate_right(1);
    }
    Ok(volumes)
}

/// What a root volume must at least have: the disk of the image.
fn least_root_size(image: &Image, root: Option<&VolumePlan>) -> u32 {
    match root.and_then(|root| root.snapshot.as_ref()) {
        Some((_, size)) => *size,
        None => image.root_size_gib,
    }
}

/// The volumes that an image alone asks for.
fn of_image(tx: &Tx, image: &Image) -> Result<Vec<VolumePlan>> {
    if image.devices.is_empty() {
        return Ok(vec![VolumePlan {
            device_name: image.root_device_name.clone(),
            size_gib: image.root_size_gib,
            volume_type: VolumeType::Gp2,
            iops: Some(gp2_iops(image.root_size_gib)),
            throughput: None,
            delete_on_termination: true,
            snapshot: None,
            source: None,
            image_id: Some(image.id.clone()),
            encryption: Asked::default(),
        }]);
    }
    let volume = |device: &ImageDevice| {
        let signed = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        // Its snapshot stays as long as the image.
        let snapshot = device
            .snapshot_id
            .as_ref()
            .and_then(|id| tx.snapshot().get::<EbsSnapshot>(&image.account, &image.region, id));
        // A volume that was growing when its snapshot was taken may have been larger than it said.
        let size_gib = snapshot.as_ref().map_or(0, |snapshot| snapshot.volume_size_gib).max(device.size_gib);
        let (iops, throughput) = check_volume(
            device.volume_type,
            size_gib,
            device.iops.map(signed),
            device.throughput.map(signed),
        )?;
        Ok(VolumePlan {
            device_name: device.device_name.clone(),
            size_gib,
            volume_type: device.volume_type,
            iops,
            throughput,
            delete_on_termination: device.delete_on_termination,
            image_id: snapshot.as_ref().and_then(|snapshot| snapshot.image_id.clone()),
            source: snapshot.as_ref().and_then(|snapshot| snapshot.encryption.clone()),
            encryption: Asked::default(),
            snapshot: device
                .snapshot_id
                .clone()
                .map(|id| (id, snapshot.map_or(device.size_gib, |snapshot| snapshot.volume_size_gib))),
        })
    };
    image.devices.iter().map(volume).collect()
}

/// The volume that a mapping with `Ebs` asks for: what it does not say is as in `base`, the image's mapping of the device.
///
/// # Errors
/// As [`plan`].
pub(crate) fn plan_one(
    tx: &mut Tx,
    scope: Scope<'_>,
    base: Option<&VolumePlan>,
    mapping: &model::BlockDeviceMapping,
) -> Result<VolumePlan> {
    let name = mapping.device_name.as_deref().unwrap_or_default();
    let ebs = mapping.ebs.clone().unwrap_or_default();
    let encryption = Asked::new(ebs.encrypted, ebs.kms_key_id.as_deref())?;
    let mut source = base.and_then(|base| base.source.clone());
    let mut snapshot = base.and_then(|base| base.snapshot.clone());
    let mut image_id = base.and_then(|base| base.image_id.clone());
    if let Some(given) = ebs.snapshot_id.as_deref()
        && snapshot.as_ref().is_none_or(|(own, _)| own != given)
    {
        let found = snapshots::complete(scope, tx, given)?;
        image_id = found.image_id;
        source = found.encryption;
        snapshot = Some((found.id, found.volume_size_gib));
    }
    // "If you specify a snapshot, the default is the snapshot size" (EbsBlockDevice).
    let own = |base: &&VolumePlan| base.snapshot == snapshot;
    let base_size = base.filter(own).map(|base| base.size_gib);
    let least = snapshot.as_ref().map(|(_, size)| *size);
    let size_gib = match ebs.volume_size {
        Some(size) => u32::try_from(size)
            .map_err(|_| invalid_value(format!("Value ({size}) for parameter VolumeSize is invalid.")))?,
        None => base_size.max(least).ok_or_else(|| {
            Error::new(
                "MissingParameter",
                format!("The request must contain the parameter size or snapshotId for the device '{name}'"),
            )
        })?,
    };
    if let Some((id, least)) = snapshot.as_ref().filter(|(_, least)| size_gib < *least) {
        return Err(bad_mapping(format!(
            "Volume of size {size_gib}GB is smaller than snapshot '{id}', expect size >= {least}GB"
        )));
    }
    let volume_type = match (ebs.volume_type, base) {
        (Some(given), _) => record_type(given),
        (None, Some(base)) => base.volume_type,
        (None, None) => VolumeType::Gp2,
    };
    // What the image provisions goes with its type.
    let same = base.filter(|base| base.volume_type == volume_type);
    let signed = |number: Option<u32>| number.and_then(|number| i32::try_from(number).ok());
    let iops = ebs.iops.or_else(|| signed(provisioned(volume_type, same?.iops)));
    let throughput = ebs.throughput.or_else(|| signed(same?.throughput));
    let (iops, throughput) = check_volume(volume_type, size_gib, iops, throughput)?;
    let goes = base.is_none_or(|base| base.delete_on_termination);
    Ok(VolumePlan {
        device_name: name.to_owned(),
        size_gib,
        volume_type,
        iops,
        throughput,
        delete_on_termination: ebs.delete_on_termination.unwrap_or(goes),
        snapshot,
        source,
        image_id,
        encryption,
    })
}

/// A device of an image, which its instances have as planned.
pub(crate) fn to_image(planned: &VolumePlan) -> ImageDevice {
    ImageDevice {
        device_name: planned.device_name.clone(),
        snapshot_id: planned.snapshot.as_ref().map(|(id, _)| id.clone()),
        size_gib: planned.size_gib,
        volume_type: planned.volume_type,
        iops: provisioned(planned.volume_type, planned.iops),
        throughput: planned.throughput,
        delete_on_termination: planned.delete_on_termination,
        encrypted: planned.source.is_some(),
    }
}

/// The record's form of a volume type.
#[must_use]
pub fn record_type(volume_type: model::VolumeType) -> VolumeType {
    match volume_type {
        model::VolumeType::Standard => VolumeType::Standard,
        model::VolumeType::Io1 => VolumeType::Io1,
        model::VolumeType::Io2 => VolumeType::Io2,
        model::VolumeType::Gp2 => VolumeType::Gp2,
        model::VolumeType::Gp3 => VolumeType::Gp3,
        model::VolumeType::Sc1 => VolumeType::Sc1,
        model::VolumeType::St1 => VolumeType::St1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names() {
        for good in ["/dev/sda1", "/dev/sdf", "/dev/xvda", "xvdba", "/dev/xvdb", "sdb"] {
            assert!(valid_device_name(good), "{good}");
        }
        for bad in ["", "/dev/", "/dev/vda", "/dev/sd", "/dev/xvdabc", "/dev/sda123", "/dev/sdA", "../sda"] {
            assert!(!valid_device_name(bad), "{bad}");
        }
    }

    #[test]
    fn defaults_of_types() {
        assert_eq!(check_volume(VolumeType::Gp3, 8, None, None).unwrap(), (Some(3_000), Some(125)));
        assert_eq!(check_volume(VolumeType::Gp2, 8, None, None).unwrap(), (Some(100), None));
        assert_eq!(check_volume(VolumeType::Gp2, 1_000, None, None).unwrap(), (Some(3_000), None));
        assert_eq!(check_volume(VolumeType::Standard, 8, None, None).unwrap(), (None, None));
    }

    #[test]
    fn limits_of_types() {
        let code = |r: Result<(Option<u32>, Option<u32>)>| r.unwrap_err().code.into_owned();
        assert_eq!(code(check_volume(VolumeType::Io1, 8, None, None)), "InvalidParameterCombination");
        assert_eq!(code(check_volume(VolumeType::Io1, 8, Some(401), None)), "InvalidParameterValue");
        assert!(check_volume(VolumeType::Io1, 8, Some(400), None).is_ok());
        assert_eq!(code(check_volume(VolumeType::St1, 124, None, None)), "InvalidParameterValue");
        assert_eq!(code(check_volume(VolumeType::Gp2, 8, Some(100), None)), "InvalidParameterCombination");
        assert_eq!(code(check_volume(VolumeType::Gp3, 8, Some(3_000), Some(751))), "InvalidParameterValue");
        assert!(check_volume(VolumeType::Gp3, 8, Some(3_000), Some(750)).is_ok());
        assert_eq!(code(check_volume(VolumeType::Gp3, 1, Some(3_001), None)), "InvalidParameterValue");
    }
}
