//! Decoded requests, and how the generated types take their members from them.

use std::collections::BTreeMap;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// A decoded value, checked against its shape.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// True or false.
    Boolean(bool),
    /// A 32- or 64-bit integer.
    Integer(i64),
    /// A floating-point number.
    Double(f64),
    /// Text.
    String(String),
    /// Bytes.
    Blob(Bytes),
    /// A point in time.
    Timestamp(OffsetDateTime),
    /// A list's elements.
    List(Vec<Value>),
    /// A map's entries.
    Map(BTreeMap<String, Value>),
    /// A structure's supported members, in the order of its table.
    Structure(Vec<Option<Value>>),
    /// Any JSON value.
    Document(serde_json::Value),
}

impl Value {
    /// The members of a structure, to be taken in order.
    pub fn fields(self) -> Option<Fields> {
        match self {
            Value::Structure(members) => Some(Fields(members.into_iter())),
            _ => None,
        }
    }

    /// Feeds an unambiguous form of the value to a hash.
    pub(crate) fn digest(&self, hash: &mut Sha256) {
        fn sized(hash: &mut Sha256, tag: u8, bytes: &[u8]) {
            hash.update([tag]);
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        }
        match self {
            Value::Boolean(value) => hash.update([b'b', u8::from(*value)]),
            Value::Integer(value) => sized(hash, b'i', &value.to_be_bytes()),
            Value::Double(value) => sized(hash, b'd', &value.to_bits().to_be_bytes()),
            Value::String(value) => sized(hash, b's', value.as_bytes()),
            Value::Blob(value) => sized(hash, b'x', value),
            Value::Timestamp(value) => sized(hash, b't', &value.unix_timestamp_nanos().to_be_bytes()),
            Value::List(values) => {
                sized(hash, b'l', &(values.len() as u64).to_be_bytes());
                values.iter().for_each(|value| value.digest(hash));
            }
            Value::Map(entries) => {
                sized(hash, b'm', &(entries.len() as u64).to_be_bytes());
                for (key, value) in entries {
                    sized(hash, b'k', key.as_bytes());
                    value.digest(hash);
                }
            }
            Value::Structure(members) => {
                sized(hash, b'o', &(members.len() as u64).to_be_bytes());
                for member in members {
                    match member {
                        Some(value) => value.digest(hash),
                        None => hash.update([b'-']),
                    }
                }
            }
            Value::Document(value) => sized(hash, b'j', value.to_string().as_bytes()),
        }
    }
}

/// The members of a structure, taken in the order of its table.
#[derive(Debug)]
pub struct Fields(std::vec::IntoIter<Option<Value>>);

impl Fields {
    /// The next member; `None` when it does not fit its type, which a checked value always does.
    pub fn take<T: FromValue>(&mut self) -> Option<T> {
        match self.0.next().flatten() {
            Some(value) => T::from_value(value),
            None => T::absent(),
        }
    }
}

/// A type that is made from a decoded value.
pub trait FromValue: Sized {
    /// The value as this type; `None` when it is of another shape.
    fn from_value(value: Value) -> Option<Self>;

    /// What stands for an absent member; `None` where it must be present.
    fn absent() -> Option<Self> {
        None
    }
}

macro_rules! scalars {
    ($($type:ty: $variant:ident($value:ident) => $into:expr;)*) => {$(
        impl FromValue for $type {
            fn from_value(value: Value) -> Option<Self> {
                match value {
                    Value::$variant($value) => $into,
                    _ => None,
                }
            }
        }
    )*};
}

scalars! {
    bool: Boolean(value) => Some(value);
    i32: Integer(value) => i32::try_from(value).ok();
    i64: Integer(value) => Some(value);
    f64: Double(value) => Some(value);
    String: String(value) => Some(value);
    Bytes: Blob(value) => Some(value);
    OffsetDateTime: Timestamp(value) => Some(value);
    serde_json::Value: Document(value) => Some(value);
}

impl FromValue for () {
    fn from_value(value: Value) -> Option<Self> {
        value.fields().map(drop)
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value) -> Option<Self> {
        T::from_value(value).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl<T: FromValue> FromValue for Box<T> {
    fn from_value(value: Value) -> Option<Self> {
        T::from_value(value).map(Box::new)
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::List(values) => values.into_iter().map(T::from_value).collect(),
            _ => None,
        }
    }

    fn absent() -> Option<Self> {
        Some(Vec::new())
    }
}

impl<T: FromValue> FromValue for BTreeMap<String, T> {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Map(entries) => {
                entries.into_iter().map(|(key, value)| Some((key, T::from_value(value)?))).collect()
            }
            _ => None,
        }
    }

    fn absent() -> Option<Self> {
        Some(BTreeMap::new())
    }
}

/// Defines an enum of the API whose values are strings on the wire.
///
/// It gets `as_str`, `VALUES`, `Display`, `FromStr`, and what decoding and encoding need.
#[macro_export]
macro_rules! string_enum {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $(#[doc = concat!("`", $text, "`")] $variant,)* }

        impl $name {
            /// Every value, in the model's order.
            pub const VALUES: &'static [&'static str] = &[$($text,)*];

            /// The value on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::value::UnknownValue;
            fn from_str(text: &str) -> ::std::result::Result<Self, Self::Err> {
                match text {
                    $($text => ::std::result::Result::Ok($name::$variant),)*
                    _ => ::std::result::Result::Err($crate::value::UnknownValue),
                }
            }
        }

        impl $crate::value::FromValue for $name {
            fn from_value(value: $crate::value::Value) -> ::std::option::Option<Self> {
                match value {
                    $crate::value::Value::String(text) => text.parse().ok(),
                    _ => ::std::option::Option::None,
                }
            }
        }

        impl $crate::xml::Content for $name {
            fn write(&self, w: &mut $crate::xml::Writer) {
                w.text(self.as_str());
            }
        }

        impl $crate::json::Content for $name {
            fn write(&self, w: &mut $crate::json::Writer) {
                w.string(self.as_str());
            }
        }
    };
}

/// A string that is no value of an enum of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a value of this enumeration")]
pub struct UnknownValue;
