//! Second factors.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Sealed, named};
use crate::Tags;

/// A virtual MFA device: an app that makes one-time codes of a seed (`VirtualMFADevice` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MfaDevice {
    /// Owning account.
    pub account: String,
    /// The name in lower case.
    pub id: String,
    /// The name.
    pub name: String,
    /// Path.
    pub path: String,
    /// The seed of its codes, sealed.
    pub seed: Sealed,
    /// Whose second factor it is; none before it is enabled.
    pub assignment: Option<MfaAssignment>,
    /// Tags.
    pub tags: Tags,
}

/// What a device has been since it was enabled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MfaAssignment {
    /// Unique id of the user (`AIDA…`).
    pub user_id: String,
    /// Time of enabling.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub enable_time: OffsetDateTime,
    /// By how many time steps the device's clock is ahead.
    pub drift: i64,
    /// The time step of the latest code that was taken: no earlier one is, and none twice.
    pub last_step: i64,
    /// How many wrong codes have come since the latest right one.
    pub failures: u32,
    /// When the latest wrong one came.
    #[serde(with = "time::serde::timestamp::option")]
    pub failed: Option<OffsetDateTime>,
}

named!(MfaDevice, "iam.mfa-device", "user" => |d| d.assignment.iter().map(|is| is.user_id.clone()));

impl MfaDevice {
    /// Its serial number: its ARN.
    #[must_use]
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:mfa{}{}", self.account, self.path, self.name)
    }
}

/// The credential report of an account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CredentialReport {
    /// The account.
    pub account: String,
    /// The same.
    pub id: String,
    /// The report, in CSV.
    pub content: String,
    /// When it was made.
    #[serde(with = "time::serde::timestamp")]
    pub generated: OffsetDateTime,
}

named!(CredentialReport, "iam.credential-report");
