//! The table of a service's implemented operations: `operations.toml`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What a service crate implements of its model.
///
/// ```toml
/// omit_empty = ["TagList"]
/// encoded = ["Reservation"]
///
/// [operations]
/// DescribeKeyPairs = "*"
/// RunInstances = ["ImageId", "MinCount", "MaxCount", "EbsOptimized=false"]
///
/// [shapes]
/// EbsBlockDevice = ["VolumeSize", "VolumeType"]
/// ```
///
/// A list of members names those that are honoured; any other member of the model is refused when a request has it.
/// `Member=value` accepts that one value, because it is what haar does anyway, and refuses all others. `Member?` makes
/// a list or map optional in Rust, where an absent one and an empty one mean different things.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Implemented operations, each with the members of its request that are honoured.
    pub operations: BTreeMap<String, Support>,
    /// Structures below the requests, each with the members that are honoured; all of them where not named here.
    #[serde(default)]
    pub shapes: BTreeMap<String, Support>,
    /// List shapes that are left out of an answer when they are empty.
    #[serde(default)]
    pub omit_empty: Vec<String>,
    /// Structures that answers list as `haar_api::xml::Encoded`.
    #[serde(default)]
    pub encoded: Vec<String>,
    /// Enumerations that AWS has more values of than its model: any string in Rust.
    #[serde(default)]
    pub open_enums: Vec<String>,
    /// The code of the error for a violated constraint, where it is not the protocol's.
    pub validation_error: Option<String>,
    /// The code of the error for what haar has not, where it is not the protocol's.
    pub unsupported_error: Option<String>,
    /// The greatest request body in bytes, where it is not the protocol's.
    pub max_body: Option<usize>,
}

/// Which members of a structure are honoured.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Support {
    /// `"*"`: all of them.
    All(All),
    /// These.
    Members(Vec<String>),
}

/// The text `*`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub enum All {
    /// The only value.
    #[serde(rename = "*")]
    All,
}

/// What the table says of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule<'a> {
    /// Honoured.
    Yes,
    /// Honoured, and an absent list differs from an empty one.
    Optional,
    /// Accepted with one value.
    Only(&'a str),
    /// Refused.
    No,
}

impl Support {
    /// What is said of a member.
    pub fn rule(&self, member: &str) -> Rule<'_> {
        let Support::Members(entries) = self else { return Rule::Yes };
        entries
            .iter()
            .map(|entry| parse(entry))
            .find(|(name, _)| *name == member)
            .map_or(Rule::No, |(_, rule)| rule)
    }

    /// The members that are named.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        let entries = match self {
            Support::All(_) => &[][..],
            Support::Members(entries) => entries,
        };
        entries.iter().map(|entry| parse(entry).0)
    }
}

fn parse(entry: &str) -> (&str, Rule<'_>) {
    if let Some((name, value)) = entry.split_once('=') {
        (name, Rule::Only(value))
    } else if let Some(name) = entry.strip_suffix('?') {
        (name, Rule::Optional)
    } else {
        (entry, Rule::Yes)
    }
}
