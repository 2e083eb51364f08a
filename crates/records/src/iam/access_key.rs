//! Access keys, and when keys and roles were last used.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::accountless;
use crate::ec2::wire_enum;

/// A long-term access key. Requests name it without its account, so all of them are kept under [`crate::GLOBAL_ACCOUNT`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccessKey {
    /// `AKIA…`
    pub id: String,
    /// The account of its owner.
    pub owner_account: String,
    /// Unique id (`AIDA…`) of the user that it belongs to; none for the account's root.
    pub user_id: Option<String>,
    /// Name of that user, as the record of the user is found.
    pub user_name: Option<String>,
    /// The secret, sealed.
    pub secret: Sealed,
    /// Whether it may be used.
    pub status: AccessKeyStatus,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
}

impl AccessKey {
    /// The value of the index `owner` for the keys of a user, by its unique id, or of an account's root.
    #[must_use]
    pub fn owner(account: &str, user_id: Option<&str>) -> String {
        format!("{account}/{}", user_id.unwrap_or("root"))
    }
}

accountless!(AccessKey, "iam.access-key",
    "owner" => |k| [Self::owner(&k.owner_account, k.user_id.as_deref())],
    "account" => |k| [k.owner_account.clone()],
);

wire_enum! {
    /// `statusType` of an access key.
    AccessKeyStatus {
        /// May be used.
        Active = "Active",
        /// May not.
        Inactive = "Inactive",
    }
}

/// Something secret, encrypted with a key that is not among the records. In hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed(pub String);

/// When an access key or a role was last used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The key's id (`AKIA…`) or the role's unique id (`AROA…`).
    pub id: String,
    /// When, in whole seconds.
    #[serde(with = "time::serde::timestamp")]
    pub at: OffsetDateTime,
    /// Region of the request's signature.
    pub region: String,
    /// Service of the request.
    pub service: String,
}

accountless!(Usage, "iam.usage");
