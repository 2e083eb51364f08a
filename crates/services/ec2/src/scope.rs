//! Where a request acts.

use haar_api::Context;
use haar_core::Arn;

/// An account and a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    /// Twelve-digit account.
    pub account: &'a str,
    /// Region.
    pub region: &'a str,
}

impl Scope<'_> {
    /// The ARN of a resource here, as `arn:aws:ec2:eu-central-1:123456789012:subnet/subnet-…`.
    #[must_use]
    pub fn arn(&self, resource_type: &str, id: &str) -> String {
        Arn::new("ec2", self.region, self.account, &format!("{resource_type}/{id}")).to_string()
    }
}

impl<'a> From<&'a Context> for Scope<'a> {
    fn from(ctx: &'a Context) -> Self {
        Self { account: &ctx.account, region: &ctx.region }
    }
}
