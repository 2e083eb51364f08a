//! Tags (EC2 User Guide, "Tag your Amazon EC2 resources"; API Reference, `Tag`, `CreateTags`, `DeleteTags`).

use std::collections::BTreeMap;

use crate::id::shorten;

/// Tags of a resource, by key.
pub type Tags = BTreeMap<String, String>;

/// Most tags that a resource can have, those with [`RESERVED`] keys not counted.
pub const MAX_TAGS: usize = 50;

/// Most characters of a key.
pub const MAX_KEY_CHARS: usize = 128;

/// Most characters of a value.
pub const MAX_VALUE_CHARS: usize = 256;

/// Keys that start so, in any case, are for AWS's own tags.
pub const RESERVED: &str = "aws:";

/// Why tags are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// No key.
    #[error("Tag key cannot be null or empty")]
    NoKey,
    /// A key that is too long.
    #[error("Tag key exceeds the maximum length of {MAX_KEY_CHARS} characters")]
    KeyTooLong,
    /// A value that is too long.
    #[error("Tag value exceeds the maximum length of {MAX_VALUE_CHARS} characters")]
    ValueTooLong,
    /// A key for AWS's own tags.
    #[error(
        "Value ( {0} ) for parameter key is invalid. Tag keys starting with 'aws:' are reserved for internal use"
    )]
    Reserved(String),
    /// A key that comes twice.
    #[error("Duplicate tag key '{0}' specified.")]
    Duplicate(String),
    /// More tags than a resource can have.
    #[error("More than {MAX_TAGS} tags specified")]
    TooMany,
}

impl TagError {
    /// EC2's error code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooMany => "TagLimitExceeded",
            _ => "InvalidParameterValue",
        }
    }
}

/// Checks the tags of a request. A tag without a value has an empty one.
///
/// # Errors
/// Every [`TagError`].
pub fn parse<'a>(
    tags: impl IntoIterator<Item = (Option<&'a str>, Option<&'a str>)>,
) -> Result<Tags, TagError> {
    let mut parsed = Tags::new();
    for (key, value) in tags {
        let key = check_key(key)?;
        let value = value.unwrap_or_default();
        if value.chars().nth(MAX_VALUE_CHARS).is_some() {
            return Err(TagError::ValueTooLong);
        }
        if parsed.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(TagError::Duplicate(key.to_owned()));
        }
        if parsed.len() > MAX_TAGS {
            return Err(TagError::TooMany);
        }
    }
    Ok(parsed)
}

fn check_key(key: Option<&str>) -> Result<&str, TagError> {
    let key = key.filter(|key| !key.is_empty()).ok_or(TagError::NoKey)?;
    if key.get(..RESERVED.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED)) {
        return Err(TagError::Reserved(shorten(key).to_owned()));
    }
    if key.chars().nth(MAX_KEY_CHARS).is_some() {
        return Err(TagError::KeyTooLong);
    }
    Ok(key)
}

/// Adds tags to a resource's, overwriting those with the same keys (`CreateTags`).
///
/// # Errors
/// [`TagError::TooMany`] when the resource had too many then; its tags are unchanged.
pub fn apply(tags: &mut Tags, new: &Tags) -> Result<(), TagError> {
    let own = tags.keys().filter(|key| !key.starts_with(RESERVED)).count();
    let added = new.keys().filter(|key| !tags.contains_key(*key)).count();
    if own + added > MAX_TAGS {
        return Err(TagError::TooMany);
    }
    tags.extend(new.iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(())
}

/// Checks which tags a request wants removed, for [`remove`]: a key, and the value if only that is to go.
///
/// # Errors
/// [`TagError::NoKey`], [`TagError::KeyTooLong`] and [`TagError::Reserved`].
pub fn parse_removal<'a>(
    tags: impl IntoIterator<Item = (Option<&'a str>, Option<&'a str>)>,
) -> Result<Vec<(String, Option<String>)>, TagError> {
    tags.into_iter().map(|(key, value)| Ok((check_key(key)?.to_owned(), value.map(str::to_owned)))).collect()
}

/// Removes tags (`DeleteTags`): with a value only if it equals, without one in any case; all but AWS's own when nothing
/// is named.
pub fn remove(tags: &mut Tags, removal: &[(String, Option<String>)]) {
    if removal.is_empty() {
        tags.retain(|key, _| key.starts_with(RESERVED));
    }
    for (key, value) in removal {
        if value.is_none() || tags.get(key) == value.as_ref() {
            tags.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(pairs: &[(&str, &str)]) -> Tags {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn parse_one(key: &str, value: &str) -> Result<Tags, TagError> {
        parse([(Some(key), Some(value))])
    }

    #[test]
    fn limits_are_in_characters() {
        assert!(parse_one(&"é".repeat(128), &"é".repeat(256)).is_ok());
        assert_eq!(parse_one(&"é".repeat(129), ""), Err(TagError::KeyTooLong));
        assert_eq!(parse_one("k", &"é".repeat(257)), Err(TagError::ValueTooLong));
    }

    #[test]
    fn keys_are_checked() {
        assert_eq!(parse([(None, Some("v"))]), Err(TagError::NoKey));
        assert_eq!(parse_one("", "v"), Err(TagError::NoKey));
        assert_eq!(parse_one("aws:x", "v"), Err(TagError::Reserved("aws:x".into())));
        assert_eq!(parse_one("AWS:x", "v"), Err(TagError::Reserved("AWS:x".into())));
        assert!(parse_one("aws", "v").is_ok());
        assert!(parse_one("awé:", "v").is_ok());
        assert_eq!(parse([(Some("a"), None), (Some("a"), Some("b"))]), Err(TagError::Duplicate("a".into())));
        assert_eq!(parse([(Some("a"), None), (Some("A"), None)]).unwrap(), tags(&[("a", ""), ("A", "")]));
    }

    #[test]
    fn codes_are_those_of_ec2() {
        assert_eq!(TagError::TooMany.code(), "TagLimitExceeded");
        assert_eq!(TagError::NoKey.code(), "InvalidParameterValue");
    }

    #[test]
    fn a_resource_has_at_most_fifty() {
        let keys: Vec<String> = (0..51).map(|n| n.to_string()).collect();
        assert_eq!(parse(keys.iter().map(|k| (Some(k.as_str()), None))), Err(TagError::TooMany));
        let mut has = parse(keys[..49].iter().map(|k| (Some(k.as_str()), None))).unwrap();
        has.insert("aws:own".into(), String::new());
        apply(&mut has, &tags(&[("0", "again"), ("new", "x")])).unwrap();
        assert_eq!((has.len(), has["0"].as_str()), (51, "again"));
        let before = has.clone();
        assert_eq!(apply(&mut has, &tags(&[("0", "y"), ("more", "x")])), Err(TagError::TooMany));
        assert_eq!(has, before);
        apply(&mut has, &tags(&[("0", "y")])).unwrap();
    }

    #[test]
    fn removal_looks_at_values_that_are_given() {
        let all = tags(&[("a", "1"), ("b", ""), ("c", "3"), ("aws:d", "4")]);
        let removed = |removal: &[(&str, Option<&str>)]| {
            let removal: Vec<_> = parse_removal(removal.iter().map(|(k, v)| (Some(*k), *v))).unwrap();
            let mut tags = all.clone();
            remove(&mut tags, &removal);
            tags
        };
        assert_eq!(removed(&[("a", None), ("b", None)]), tags(&[("c", "3"), ("aws:d", "4")]));
        assert_eq!(
            removed(&[("a", Some("")), ("b", Some("")), ("c", Some("3"))]),
            tags(&[("a", "1"), ("aws:d", "4")])
        );
        assert_eq!(removed(&[("x", None)]), all);
        assert_eq!(removed(&[]), tags(&[("aws:d", "4")]));
        assert!(parse_removal([(Some("aws:d"), None)]).is_err());
    }
}
