//! The public parameters of AWS Systems Manager by which users find machine images, mapped onto what the host's library has.
//!
//! A distribution's parameter names its newest image; version N of it, counted from 1, is the Nth image of the distribution that the
//! library has.

use haar_store::{Entry, Snapshot};

use super::{Image, ImageState};
use crate::{GLOBAL_ACCOUNT, GLOBAL_REGION};

/// The names, sorted, each with the entry of the image catalogue that it stands for and its `DataType`.
///
/// "Query for the latest AMI" in Amazon Linux's, Ubuntu's and Debian's documentation of their images on AWS.
const PARAMETERS: [(&str, &str, &str); 10] = [
    ("/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64", "al2023", "text"),
    ("/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64", "al2023", "text"),
    (
        "/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id",
        "ubuntu-22.04",
        "aws:ec2:image",
    ),
    (
        "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
        "ubuntu-24.04",
        "aws:ec2:image",
    ),
    (
        "/aws/service/canonical/ubuntu/server/jammy/stable/current/amd64/hvm/ebs-gp2/ami-id",
        "ubuntu-22.04",
        "aws:ec2:image",
    ),
    (
        "/aws/service/canonical/ubuntu/server/noble/stable/current/amd64/hvm/ebs-gp3/ami-id",
        "ubuntu-24.04",
        "aws:ec2:image",
    ),
    ("/aws/service/debian/release/12/latest/amd64", "debian-12", "aws:ec2:image"),
    ("/aws/service/debian/release/13/latest/amd64", "debian-13", "aws:ec2:image"),
    ("/aws/service/debian/release/bookworm/latest/amd64", "debian-12", "aws:ec2:image"),
    ("/aws/service/debian/release/trixie/latest/amd64", "debian-13", "aws:ec2:image"),
];

/// A parameter that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its name.
    pub name: &'static str,
    /// Its `DataType`.
    pub data_type: &'static str,
    /// The image that it names.
    pub image: Entry<Image>,
    /// Its version.
    pub version: i64,
    /// The version that was asked for, as `:2`.
    pub selector: Option<String>,
}

/// What keeps a parameter from being found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// There is none of its name, or the library has no image for it.
    Parameter,
    /// It has no such version; labels it has none.
    Version,
}

/// The names of all parameters, sorted, for which the library may have an image.
pub fn names() -> impl Iterator<Item = &'static str> {
    PARAMETERS.iter().map(|(name, ..)| *name)
}

/// The parameter that a name or an ARN, perhaps with a version (`NAME:2`), refers to.
///
/// # Errors
/// What is missing.
pub fn find(records: &Snapshot, reference: &str) -> Result<Found, Missing> {
    // arn:aws:ssm:REGION::parameter/aws/service/…
    let path = match reference.strip_prefix("arn:") {
        Some(arn) => arn.splitn(5, ':').nth(4).and_then(|rest| rest.strip_prefix("parameter")),
        None => Some(reference),
    };
    let path = path.ok_or(Missing::Parameter)?;
    let (name, selector) = match path.split_once(':') {
        Some((name, selector)) => (name, Some(selector)),
        None => (path, None),
    };
    let (name, entry, data_type) =
        *PARAMETERS.iter().find(|(known, ..)| *known == name).ok_or(Missing::Parameter)?;
    let images = records.list::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION);
    let of_entry = |image: &&Entry<Image>| {
        image.library_entry.as_deref() == Some(entry) && image.state == ImageState::Available
    };
    let mut images: Vec<_> = images.filter(of_entry).collect();
    images.sort_by_key(|image| (image.creation_date, &image.id));
    if images.is_empty() {
        return Err(Missing::Parameter);
    }
    let version = match selector {
        None => images.len(),
        Some(selector) => selector.parse().map_err(|_| Missing::Version)?,
    };
    let image = version.checked_sub(1).and_then(|at| images.get(at)).ok_or(Missing::Version)?;
    Ok(Found {
        name,
        data_type,
        image: Entry::clone(image),
        version: i64::try_from(version).unwrap_or(i64::MAX),
        selector: selector.map(|selector| format!(":{selector}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_sorted_and_differ() {
        assert!(names().zip(names().skip(1)).all(|(before, after)| before < after));
    }
}
