//! Block device mappings: from what RunInstances says and what the image says to the volumes of an instance.

use haar_api::Error;
use haar_records::ec2::{Image, VolumeType};

use crate::error::{Result, combination, invalid_value, missing, unsupported};
use crate::model;

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
    /// Is an overlay of the image's root disk.
    pub root: bool,
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
/// `InvalidParameterValue`, `InvalidParameterCombination` or `MissingParameter` as CreateVolume gives them.
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
            return Err(Error::new(
                "MissingParameter",
                format!("The parameter iops must be specified for {volume_type} volumes."),
            ));
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

/// The volumes of an instance of `image` that is launched with `mappings`: its root volume first.
///
/// # Errors
/// `InvalidBlockDeviceMapping`, `MissingParameter` and the errors of [`check_volume`].
pub fn plan(image: &Image, mappings: &[model::BlockDeviceMapping]) -> Result<Vec<VolumePlan>> {
    let mut root = VolumePlan {
        device_name: image.root_device_name.clone(),
        size_gib: image.root_size_gib,
        volume_type: VolumeType::Gp2,
        iops: Some(gp2_iops(image.root_size_gib)),
        throughput: None,
        delete_on_termination: true,
        root: true,
    };
    let mut others: Vec<VolumePlan> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for mapping in mappings {
        let Some(name) = mapping.device_name.as_deref() else {
            return Err(missing("BlockDeviceMapping.DeviceName"));
        };
        if !valid_device_name(name) {
            return Err(Error::new("InvalidBlockDeviceMapping", format!("Invalid device name {name}")));
        }
        if seen.contains(&name) {
            return Err(Error::new(
                "InvalidBlockDeviceMapping",
                format!("The device '{name}' is used in more than one block-device mapping"),
            ));
        }
        seen.push(name);
        let is_root = name == image.root_device_name;
        if mapping.no_device.is_some() {
            if is_root {
                return Err(Error::new(
                    "InvalidBlockDeviceMapping",
                    format!("The root device '{name}' cannot be left out"),
                ));
            }
            continue;
        }
        let Some(ebs) = mapping.ebs.as_ref() else {
            return Err(Error::new(
                "InvalidBlockDeviceMapping",
                format!("The mapping of the device '{name}' must contain Ebs or NoDevice"),
            ));
        };
        if ebs.encrypted == Some(true) {
            return Err(unsupported("The parameter BlockDeviceMapping.Ebs.Encrypted is not supported."));
        }
        let size_gib = match ebs.volume_size {
            Some(size) => u32::try_from(size)
                .map_err(|_| invalid_value(format!("Value ({size}) for parameter VolumeSize is invalid.")))?,
            None if is_root => image.root_size_gib,
            None => {
                return Err(Error::new(
                    "MissingParameter",
                    format!(
                        "The request must contain the parameter size or snapshotId for the device '{name}'"
                    ),
                ));
            }
        };
        if is_root && size_gib < image.root_size_gib {
            return Err(Error::new(
                "InvalidBlockDeviceMapping",
                format!(
                    "Volume of size {size_gib}GB is smaller than the root disk of image '{}', expect size >= {}GB",
                    image.id, image.root_size_gib
                ),
            ));
        }
        let volume_type = ebs.volume_type.map_or(VolumeType::Gp2, record_type);
        let (iops, throughput) = check_volume(volume_type, size_gib, ebs.iops, ebs.throughput)?;
        let planned = VolumePlan {
            device_name: name.to_owned(),
            size_gib,
            volume_type,
            iops,
            throughput,
            delete_on_termination: ebs.delete_on_termination.unwrap_or(true),
            root: is_root,
        };
        if is_root {
            root = planned;
        } else {
            others.push(planned);
        }
    }
    others.insert(0, root);
    Ok(others)
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
        assert_eq!(code(check_volume(VolumeType::Io1, 8, None, None)), "MissingParameter");
        assert_eq!(code(check_volume(VolumeType::Io1, 8, Some(401), None)), "InvalidParameterValue");
        assert!(check_volume(VolumeType::Io1, 8, Some(400), None).is_ok());
        assert_eq!(code(check_volume(VolumeType::St1, 124, None, None)), "InvalidParameterValue");
        assert_eq!(code(check_volume(VolumeType::Gp2, 8, Some(100), None)), "InvalidParameterCombination");
        assert_eq!(code(check_volume(VolumeType::Gp3, 8, Some(3_000), Some(751))), "InvalidParameterValue");
        assert!(check_volume(VolumeType::Gp3, 8, Some(3_000), Some(750)).is_ok());
        assert_eq!(code(check_volume(VolumeType::Gp3, 1, Some(3_001), None)), "InvalidParameterValue");
    }
}
