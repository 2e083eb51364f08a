//! Managed policies.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::named;
use crate::Tags;

/// A customer-managed policy (`Policy` in the API reference). AWS's own are no records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManagedPolicy {
    /// Owning account.
    pub account: String,
    /// The name in lower case.
    pub id: String,
    /// The name.
    pub name: String,
    /// Unique id: `ANPA…`
    pub policy_id: String,
    /// Path.
    pub path: String,
    /// Description.
    pub description: Option<String>,
    /// The number of the version in force.
    pub default_version: u32,
    /// Its versions, oldest first; five at most.
    pub versions: Vec<PolicyVersion>,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// Time of the latest version.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub update_time: OffsetDateTime,
    /// The number that the next version gets.
    pub next_version: u32,
    /// Tags.
    pub tags: Tags,
}

named!(ManagedPolicy, "iam.policy", "policy-id" => |p| [p.policy_id.clone()]);

impl ManagedPolicy {
    /// Its ARN.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:policy{}{}", self.account, self.path, self.name)
    }

    /// The document in force.
    #[must_use]
    pub fn document(&self) -> &str {
        let found = self.versions.iter().find(|version| version.number == self.default_version);
        found.map_or("", |version| &version.document)
    }
}

/// A version of a managed policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Its number: 1 for `v1`.
    pub number: u32,
    /// The document.
    pub document: String,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
}
