//! Key pairs.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::wire_enum;
use crate::{Tags, resource};

/// A key pair's public half (`KeyPairInfo` in the API reference). The private half is never kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyPair {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `key-…`
    pub id: String,
    /// Name, unique in account and region.
    pub name: String,
    /// Type.
    pub key_type: KeyType,
    /// Fingerprint in the form that EC2 gives for the key's type and origin.
    pub fingerprint: String,
    /// Public key in OpenSSH's one-line form.
    pub public_key: String,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// Tags.
    pub tags: Tags,
}

resource!(KeyPair, "ec2.key-pair", "name" => |k| [k.name.clone()]);

wire_enum! {
    /// `KeyType`.
    KeyType {
        /// RSA.
        Rsa = "rsa",
        /// Ed25519.
        Ed25519 = "ed25519",
    }
}
