//! Encryption of EBS volumes: which keys there are, sealed.

use serde::{Deserialize, Serialize};

use crate::resource;

/// What an account has chosen for EBS in a region, and its default key there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EbsDefaults {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// Always [`EbsDefaults::ID`].
    pub id: String,
    /// New volumes and copies of snapshots are encrypted without being asked for (EnableEbsEncryptionByDefault).
    pub encrypt_by_default: bool,
    /// The default key, made when it is first needed.
    pub key: Option<EbsKey>,
}

impl EbsDefaults {
    /// The id of the record: one an account and region.
    pub const ID: &'static str = "default";

    /// What an account begins with.
    #[must_use]
    pub fn new(account: &str, region: &str) -> Self {
        Self {
            account: account.to_owned(),
            region: region.to_owned(),
            id: Self::ID.to_owned(),
            encrypt_by_default: false,
            key: None,
        }
    }
}

resource!(EbsDefaults, "ec2.ebs-defaults");

/// A key that seals the keys of volumes; itself sealed with the installation's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EbsKey {
    /// As KMS names keys: a UUID.
    pub id: String,
    /// The key, sealed for [`EbsKey::purpose`].
    pub sealed: String,
}

impl EbsKey {
    /// What the key with an id is sealed for.
    #[must_use]
    pub fn purpose(id: &str) -> String {
        format!("ebs key {id}")
    }

    /// The ARN of the key with an id, an account's in a region.
    #[must_use]
    pub fn arn(account: &str, region: &str, id: &str) -> String {
        format!("arn:aws:kms:{region}:{account}:key/{id}")
    }
}

/// How a volume or snapshot is encrypted. A snapshot has the key of its volume, and a volume that of its snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// Whose default key has sealed the data key.
    pub account: String,
    /// In which region.
    pub region: String,
    /// The id of that key.
    pub key_id: String,
    /// What the data is encrypted with, sealed with that key for [`Encryption::purpose`].
    pub data_key: String,
}

impl Encryption {
    /// What data keys are sealed for.
    #[must_use]
    pub fn purpose() -> &'static str {
        "ebs data key"
    }

    /// The ARN of the key that has sealed the data key.
    #[must_use]
    pub fn key_arn(&self) -> String {
        EbsKey::arn(&self.account, &self.region, &self.key_id)
    }
}
