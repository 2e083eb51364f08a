//! Identity providers.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::named;
use crate::Tags;

/// An OpenID Connect provider whose tokens an account takes (`OpenIDConnectProvider…` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenIdConnectProvider {
    /// Owning account.
    pub account: String,
    /// The issuer's URL without its scheme, as ARN and condition keys have it.
    pub id: String,
    /// The issuer's URL.
    pub url: String,
    /// The audiences that tokens may be for.
    pub client_ids: Vec<String>,
    /// SHA-1 fingerprints of certificates of the issuer's server.
    pub thumbprints: Vec<String>,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// Tags.
    pub tags: Tags,
}

named!(OpenIdConnectProvider, "iam.oidc-provider");

impl OpenIdConnectProvider {
    /// Its ARN.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:oidc-provider/{}", self.account, self.id)
    }
}
