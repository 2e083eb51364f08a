//! JSON, read one level at a time: members in their order, no member twice, each value with its place in the document.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A value that was found to be JSON, but not read yet.
pub(crate) type Raw<'a> = &'a RawValue;

/// What a value is.
pub(crate) enum Value<'a> {
    Object(Vec<(String, Raw<'a>)>),
    List(Vec<Raw<'a>>),
    String(String),
    /// A number or a Boolean, as it is written.
    Scalar(&'a str),
    Null,
}

/// Checks that a document is JSON. Takes no stack for nested values.
pub(crate) fn document(text: &str) -> Option<Raw<'_>> {
    serde_json::from_str(text).ok()
}

/// Reads one level of a value. `None` if an object has a member twice or a text is no text (a lone surrogate).
pub(crate) fn value(raw: Raw<'_>) -> Option<Value<'_>> {
    let text = raw.get();
    Some(match text.as_bytes().first()? {
        b'{' => Value::Object(serde_json::from_str::<Members>(text).ok()?.0),
        b'[' => Value::List(serde_json::from_str(text).ok()?),
        b'"' => Value::String(serde_json::from_str(text).ok()?),
        b'n' => Value::Null,
        _ => Value::Scalar(text),
    })
}

/// Where a value of a document begins, in bytes.
pub(crate) fn offset(document: &str, raw: Raw<'_>) -> usize {
    raw.get().as_ptr() as usize - document.as_ptr() as usize
}

struct Members<'a>(Vec<(String, Raw<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut members, mut names) = (Vec::new(), BTreeSet::new());
                while let Some((name, value)) = map.next_entry::<String, Raw<'de>>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom("a member twice"));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_and_place() {
        let text = r#" {"b": [1, {}], "a" :"x"}"#;
        let Some(Value::Object(members)) = value(document(text).unwrap()) else { panic!() };
        assert_eq!(members.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(offset(text, members[1].1), text.find("\"x\"").unwrap());
    }

    #[test]
    fn what_is_not_plain_json_is_refused() {
        for text in ["", "{", "{}x", "{'a':1}", "{\"a\":1,}", "\u{feff}{}"] {
            assert!(document(text).is_none(), "{text}");
        }
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":2}"#, r#""\ud800""#] {
            assert!(document(text).is_none_or(|raw| value(raw).is_none()), "{text}");
        }
    }

    #[test]
    fn depth_takes_no_stack() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        let Some(Value::List(items)) = value(document(&deep).unwrap()) else { panic!() };
        assert_eq!(items.len(), 1);
    }
}
