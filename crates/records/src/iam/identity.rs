//! Users, groups, roles and instance profiles.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::named;
use crate::Tags;

/// A user (`User` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Owning account.
    pub account: String,
    /// The name in lower case.
    pub id: String,
    /// The name.
    pub name: String,
    /// Unique id: `AIDA…`
    pub user_id: String,
    /// Path, as `/` or `/division/`.
    pub path: String,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// ARN of the permissions boundary.
    pub permissions_boundary: Option<String>,
    /// ARNs of the attached managed policies, in the order of attachment.
    pub attached_policies: Vec<String>,
    /// Documents of the inline policies, by name.
    pub inline_policies: BTreeMap<String, String>,
    /// The groups that it is in, by the ids of their records.
    pub groups: BTreeSet<String>,
    /// Tags.
    pub tags: Tags,
}

named!(User, "iam.user",
    "group" => |u| u.groups.iter().cloned(),
    "policy" => |u| u.attached_policies.iter().cloned(),
    "boundary" => |u| u.permissions_boundary.clone(),
    "user-id" => |u| [u.user_id.clone()],
);

impl User {
    /// Its ARN.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:user{}{}", self.account, self.path, self.name)
    }
}

/// A group (`Group` in the API reference). Its members are found by the index `group` of [`User`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Owning account.
    pub account: String,
    /// The name in lower case.
    pub id: String,
    /// The name.
    pub name: String,
    /// Unique id: `AGPA…`
    pub group_id: String,
    /// Path.
    pub path: String,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// ARNs of the attached managed policies.
    pub attached_policies: Vec<String>,
    /// Documents of the inline policies, by name.
    pub inline_policies: BTreeMap<String, String>,
}

named!(Group, "iam.group", "policy" => |g| g.attached_policies.iter().cloned());

impl Group {
    /// Its ARN.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:group{}{}", self.account, self.path, self.name)
    }
}

/// A role (`Role` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Role {
    /// Owning account.
    pub account: String,
    /// The name in lower case.
    pub id: String,
    /// The name.
    pub name: String,
    /// Unique id: `AROA…`
    pub role_id: String,
    /// Path.
    pub path: String,
    /// Description.
    pub description: Option<String>,
    /// The trust policy.
    pub assume_role_policy_document: String,
    /// Unique ids of the users and roles that it names, by ARN: who is made later under such a name is not meant.
    #[serde(default)]
    pub trusted_ids: BTreeMap<String, String>,
    /// Longest session, in seconds.
    pub max_session_duration: u32,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// ARN of the permissions boundary.
    pub permissions_boundary: Option<String>,
    /// ARNs of the attached managed policies.
    pub attached_policies: Vec<String>,
    /// Documents of the inline policies, by name.
    pub inline_policies: BTreeMap<String, String>,
    /// The service that a service-linked role belongs to, as `eks.amazonaws.com`.
    pub linked_service: Option<String>,
    /// Tags.
    pub tags: Tags,
}

named!(Role, "iam.role",
    "policy" => |r| r.attached_policies.iter().cloned(),
    "boundary" => |r| r.permissions_boundary.clone(),
    "role-id" => |r| [r.role_id.clone()],
);

impl Role {
    /// Its ARN.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:role{}{}", self.account, self.path, self.name)
    }
}

/// An instance profile (`InstanceProfile` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceProfile {
    /// Owning account.
    pub account: String,
    /// The name in lower case.
    pub id: String,
    /// The name.
    pub name: String,
    /// Unique id: `AIPA…`
    pub profile_id: String,
    /// Path.
    pub path: String,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// The role in it, by the id of its record.
    pub role: Option<String>,
    /// Tags.
    pub tags: Tags,
}

named!(InstanceProfile, "iam.instance-profile",
    "role" => |p| p.role.clone(),
    "profile-id" => |p| [p.profile_id.clone()],
);

impl InstanceProfile {
    /// Its ARN.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:instance-profile{}{}", self.account, self.path, self.name)
    }
}
