//! Resource ids.

use rand::TryRngCore;
use rand::rngs::OsRng;

/// A fresh id: the prefix, `-0` and 16 hexadecimal digits from the operating system's generator, as `i-0f3a…`.
///
/// EC2's ids have 17 digits (EC2 User Guide, "Resource IDs"); the leading zero is what AWS's own have had so far.
///
/// # Panics
/// When the operating system has no randomness to give, as nothing secret could be made then either.
#[must_use]
pub fn new_id(prefix: &str) -> String {
    let digits = OsRng.try_next_u64().expect("the operating system gives random numbers");
    format!("{prefix}-0{digits:016x}")
}

/// Whether `id` has the form of an id with this prefix: 8 or 17 lowercase hexadecimal digits after it.
#[must_use]
pub fn is_id(prefix: &str, id: &str) -> bool {
    id.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')).is_some_and(|digits| {
        matches!(digits.len(), 8 | 17) && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// How a kind of resource is named in requests, and with which codes EC2 refuses an id of it (EC2 API Reference, "Error
/// codes for the Amazon EC2 API").
///
/// ```
/// use haar_core::IdType;
///
/// const INSTANCE: IdType = IdType::new("i", "instance ID", "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound");
/// let id = INSTANCE.generate();
/// assert!(INSTANCE.check(&id).is_ok());
/// assert!(INSTANCE.check("i-xyz").is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdType {
    /// What ids start with, before the `-`.
    pub prefix: &'static str,
    /// What EC2's messages call the id, as `instance ID`.
    pub noun: &'static str,
    /// Error code for an id of another form.
    pub malformed: &'static str,
    /// Error code for an id of nothing.
    pub not_found: &'static str,
}

impl IdType {
    /// A type of ids.
    #[must_use]
    pub const fn new(
        prefix: &'static str,
        noun: &'static str,
        malformed: &'static str,
        not_found: &'static str,
    ) -> Self {
        Self { prefix, noun, malformed, not_found }
    }

    /// A fresh id ([`new_id`]).
    #[must_use]
    pub fn generate(&self) -> String {
        new_id(self.prefix)
    }

    /// Refuses an id of another form.
    ///
    /// # Errors
    /// With the type's `malformed` code.
    pub fn check(&self, id: &str) -> Result<(), IdError> {
        if is_id(self.prefix, id) {
            return Ok(());
        }
        let message = format!("Invalid id: \"{}\" (expecting \"{}-...\")", shorten(id), self.prefix);
        Err(IdError { code: self.malformed, message })
    }

    /// The refusal of an id that names nothing.
    #[must_use]
    pub fn missing(&self, id: &str) -> IdError {
        IdError {
            code: self.not_found,
            message: format!("The {} '{}' does not exist", self.noun, shorten(id)),
        }
    }

    /// The refusal of ids that name nothing.
    #[must_use]
    pub fn missing_all(&self, ids: &[impl AsRef<str>]) -> IdError {
        match ids {
            [id] => self.missing(id.as_ref()),
            ids => {
                let ids: Vec<_> = ids.iter().map(|id| shorten(id.as_ref())).collect();
                IdError {
                    code: self.not_found,
                    message: format!("The {}s '{}' do not exist", self.noun, ids.join(", ")),
                }
            }
        }
    }
}

/// At most 255 characters of what a client sent, for a message.
pub(crate) fn shorten(text: &str) -> &str {
    text.char_indices().nth(255).map_or(text, |(end, _)| &text[..end])
}

/// An id that is malformed or names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct IdError {
    /// Error code, as `InvalidInstanceID.NotFound`.
    pub code: &'static str,
    /// For a reader.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: IdType =
        IdType::new("i", "instance ID", "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound");

    #[test]
    fn fresh_ids_differ_and_are_well_formed() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| INSTANCE.generate()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            assert_eq!(id.len(), "i-".len() + 17);
            assert!(id.starts_with("i-0"));
            INSTANCE.check(&id).unwrap();
        }
    }

    #[test]
    fn other_forms_are_malformed() {
        INSTANCE.check("i-1234abcd").unwrap();
        for id in [
            "",
            "i",
            "i-",
            "i-1234",
            "i-1234ABCD",
            "vol-1234abcd",
            "i-0123456789abcdef01",
            "i-1234abcg",
            "i-1234abc\u{e9}",
            "ii-1234abcd",
        ] {
            let e = INSTANCE.check(id).unwrap_err();
            assert_eq!(e.code, "InvalidInstanceID.Malformed", "{id}");
        }
        let e = INSTANCE.check(&"é".repeat(10_000)).unwrap_err();
        assert!(e.message.len() < 1000);
    }

    #[test]
    fn missing_ids_are_listed() {
        assert_eq!(INSTANCE.missing("i-1234abcd").message, "The instance ID 'i-1234abcd' does not exist");
        assert_eq!(
            INSTANCE.missing_all(&["i-1234abcd", "i-1234abce"]).message,
            "The instance IDs 'i-1234abcd, i-1234abce' do not exist"
        );
        assert_eq!(INSTANCE.missing_all(&["i-1234abcd"]), INSTANCE.missing("i-1234abcd"));
    }
}
