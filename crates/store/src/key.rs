use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::StoreError;

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// Largest encoded record, in bytes. etcd refuses requests above 1.5 MiB, which leaves room for a transaction around it.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// A record type.
///
/// A record is found under `KIND/account/region/id`. It is kept as JSON, so its serde implementation decides what an
/// older or newer version of the program makes of it: give every added field a `#[serde(default)]`.
pub trait Resource: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// Name of the kind, unique in a store: lowercase letters, digits, `.` and `-`.
    const KIND: &'static str;
    /// Owning account. Must not be empty or contain `/`.
    fn account(&self) -> &str;
    /// Region. Must not be empty or contain `/`.
    fn region(&self) -> &str;
    /// Id, unique for its kind within account and region. May contain `/`.
    fn id(&self) -> &str;
    /// Index names, each with a value under which [`Snapshot::by_index`](crate::Snapshot::by_index) finds the record.
    /// A name may come several times, with different values.
    fn indexes(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// A point in the history of a store. Every commit that changes something has one, larger than all before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(u64);

impl Revision {
    /// Before the first commit.
    pub const ZERO: Self = Self(0);
    /// The revision that a record shows inside the transaction that writes it.
    pub const UNCOMMITTED: Self = Self(u64::MAX);

    /// The revision with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a record is: `kind/account/region/id`. Keys of one kind, account and region sort by id, bytewise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of these parts.
    ///
    /// # Errors
    /// [`StoreError::InvalidKey`] when a part is empty or holds a control character, when account or region contain
    /// `/`, when the kind is not made of `a-z`, `0-9`, `.` and `-`, or when the whole is longer than [`MAX_KEY_BYTES`].
    pub fn new(kind: &str, account: &str, region: &str, id: &str) -> Result<Self, StoreError> {
        let plain = |part: &str| {
            let ascii = part.is_ascii() && !part.bytes().any(|byte| byte.is_ascii_control());
            !part.is_empty() && (ascii || !part.contains(char::is_control))
        };
        let segment = |part: &str| plain(part) && !part.contains('/');
        let is_kind = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'.' || c == b'-';
        let length = kind.len() + account.len() + region.len() + id.len() + 3;
        if length > MAX_KEY_BYTES {
            return Err(StoreError::InvalidKey(format!("{length} bytes")));
        }
        let mut key = String::with_capacity(length);
        for part in [kind, "/", account, "/", region, "/", id] {
            key.push_str(part);
        }
        let valid =
            !kind.is_empty() && kind.bytes().all(is_kind) && segment(account) && segment(region) && plain(id);
        if valid { Ok(Self(key.into())) } else { Err(StoreError::InvalidKey(key)) }
    }

    /// The key of a record.
    ///
    /// # Errors
    /// [`StoreError::InvalidKey`], as [`Key::new`].
    pub fn of<T: Resource>(record: &T) -> Result<Self, StoreError> {
        Self::new(T::KIND, record.account(), record.region(), record.id())
    }

    /// Reads what [`Key::as_str`] gave.
    ///
    /// # Errors
    /// [`StoreError::InvalidKey`], as [`Key::new`].
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let mut parts = text.splitn(4, '/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(kind), Some(account), Some(region), Some(id)) => Self::new(kind, account, region, id),
            _ => Err(StoreError::InvalidKey(text.chars().take(MAX_KEY_BYTES).collect())),
        }
    }

    /// `kind/account/region/id`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.part(0)
    }

    /// Account.
    #[must_use]
    pub fn account(&self) -> &str {
        self.part(1)
    }

    /// Region.
    #[must_use]
    pub fn region(&self) -> &str {
        self.part(2)
    }

    /// Id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.part(3)
    }

    /// What all keys of its kind, account and region start with: `kind/account/region/`.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.0[..self.0.len() - self.id().len()]
    }

    fn part(&self, n: usize) -> &str {
        self.0.splitn(4, '/').nth(n).unwrap_or_default()
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_its_parts() {
        let key = Key::new("logs.group", "123456789012", "eu-central-1", "/aws/lambda/f").unwrap();
        assert_eq!(key.as_str(), "logs.group/123456789012/eu-central-1//aws/lambda/f");
        assert_eq!(
            (key.kind(), key.account(), key.region(), key.id()),
            ("logs.group", "123456789012", "eu-central-1", "/aws/lambda/f")
        );
        assert_eq!(key.scope(), "logs.group/123456789012/eu-central-1/");
        assert_eq!(Key::parse(key.as_str()).unwrap(), key);
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        for (kind, account, region, id) in [
            ("", "a", "r", "i"),
            ("Kind", "a", "r", "i"),
            ("k/x", "a", "r", "i"),
            ("k", "", "r", "i"),
            ("k", "a/b", "r", "i"),
            ("k", "a", "r/s", "i"),
            ("k", "a", "", "i"),
            ("k", "a", "r", ""),
            ("k", "a", "r", "i\0"),
            ("k", "a", "r", "i\n"),
        ] {
            assert!(Key::new(kind, account, region, id).is_err(), "{kind:?} {account:?} {region:?} {id:?}");
        }
        assert!(Key::new("k", "a", "r", &"x".repeat(MAX_KEY_BYTES - 6)).is_ok());
        assert!(Key::new("k", "a", "r", &"x".repeat(MAX_KEY_BYTES - 5)).is_err());
        assert!(Key::parse("k/a/r").is_err());
    }
}
