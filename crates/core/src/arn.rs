//! Amazon Resource Names (AWS General Reference, "Amazon Resource Names (ARNs)").

use std::fmt;
use std::str::FromStr;

/// `arn:partition:service:region:account:resource`.
///
/// ```
/// use haar_core::Arn;
///
/// let arn = Arn::new("ec2", "eu-central-1", "123456789012", "instance/i-01234567890abcdef");
/// assert_eq!(arn.to_string(), "arn:aws:ec2:eu-central-1:123456789012:instance/i-01234567890abcdef");
/// assert_eq!(arn.to_string().parse(), Ok(arn));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arn {
    /// `aws`, `aws-cn`, `aws-us-gov`, …
    pub partition: String,
    /// Service namespace, as `ec2`.
    pub service: String,
    /// Region; empty for global resources.
    pub region: String,
    /// Account; empty where the resource's name is globally unique.
    pub account: String,
    /// What is left, as `instance/i-…` or `role/name`; may contain `:`.
    pub resource: String,
}

impl Arn {
    /// The ARN of a resource, in the partition that the region belongs to.
    #[must_use]
    pub fn new(service: &str, region: &str, account: &str, resource: &str) -> Self {
        let partition = if region.starts_with("cn-") {
            "aws-cn"
        } else if region.starts_with("us-gov-") {
            "aws-us-gov"
        } else {
            "aws"
        };
        Self {
            partition: partition.into(),
            service: service.into(),
            region: region.into(),
            account: account.into(),
            resource: resource.into(),
        }
    }
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, service, region, account, resource } = self;
        write!(f, "arn:{partition}:{service}:{region}:{account}:{resource}")
    }
}

/// A text that is not an ARN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an ARN")]
pub struct NotAnArn;

impl FromStr for Arn {
    type Err = NotAnArn;

    fn from_str(text: &str) -> Result<Self, NotAnArn> {
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next().ok_or(NotAnArn);
        if next()? != "arn" {
            return Err(NotAnArn);
        }
        let arn = Self {
            partition: next()?.into(),
            service: next()?.into(),
            region: next()?.into(),
            account: next()?.into(),
            resource: next()?.into(),
        };
        if arn.partition.is_empty() || arn.service.is_empty() || arn.resource.is_empty() {
            return Err(NotAnArn);
        }
        Ok(arn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_may_contain_colons_and_slashes() {
        let text = "arn:aws:logs:us-east-1:123456789012:log-group:/aws/lambda/f:*";
        let arn: Arn = text.parse().unwrap();
        assert_eq!(arn.resource, "log-group:/aws/lambda/f:*");
        assert_eq!(arn.to_string(), text);
    }

    #[test]
    fn what_is_not_an_arn_is_refused() {
        for text in [
            "",
            "arn",
            "arn:aws:ec2:r:a",
            "arn:aws:ec2:r:a:",
            "arn::ec2:r:a:x",
            "urn:aws:ec2:r:a:x",
            "arn:aws::r:a:x",
        ] {
            assert_eq!(text.parse::<Arn>(), Err(NotAnArn), "{text}");
        }
        assert!("arn:aws:iam::123456789012:root".parse::<Arn>().is_ok());
    }

    #[test]
    fn partitions_follow_regions() {
        assert_eq!(Arn::new("ec2", "cn-north-1", "1", "x").partition, "aws-cn");
        assert_eq!(Arn::new("ec2", "us-gov-west-1", "1", "x").partition, "aws-us-gov");
    }
}
