//! Accounts.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{accountless, named};

/// An account of this installation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Twelve digits.
    pub account: String,
    /// The same.
    pub id: String,
    /// What the installation calls it.
    #[serde(default)]
    pub name: Option<String>,
    /// Its alias (`CreateAccountAlias`).
    #[serde(default)]
    pub alias: Option<String>,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// The root's access key that was taken from the installation's files.
    #[serde(default)]
    pub root_key: Option<String>,
}

named!(Account, "iam.account");

/// The claim of an alias, which is unique among all accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountAlias {
    /// The alias.
    pub id: String,
    /// The account that has it.
    pub holder: String,
}

accountless!(AccountAlias, "iam.account-alias");
