//! Policy documents, written.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Effect, Policy, Statement, Version};
use crate::condition::Condition;
use crate::principal::Named;

/// The document in one line.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(version) = self.version {
            let name = if version == Version::V2008 { "2008-10-17" } else { "2012-10-17" };
            map.serialize_entry("Version", name)?;
        }
        if let Some(id) = &self.id {
            map.serialize_entry("Id", id)?;
        }
        map.serialize_entry("Statement", &self.statements)?;
        map.end()
    }
}

impl Serialize for Statement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(sid) = &self.sid {
            map.serialize_entry("Sid", sid)?;
        }
        map.serialize_entry("Effect", if self.effect == Effect::Allow { "Allow" } else { "Deny" })?;
        if let Some(principal) = &self.principal {
            let name = if principal.not { "NotPrincipal" } else { "Principal" };
            map.serialize_entry(name, &principal.named)?;
        }
        map.serialize_entry(if self.action.not { "NotAction" } else { "Action" }, &self.action.written)?;
        if let Some(resource) = &self.resource {
            map.serialize_entry(if resource.not { "NotResource" } else { "Resource" }, &resource.written)?;
        }
        if !self.conditions.is_empty() {
            map.serialize_entry("Condition", &Conditions(&self.conditions))?;
        }
        map.end()
    }
}

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Named::Everyone => serializer.serialize_str("*"),
            Named::Map(map) => {
                serializer.collect_map(map.iter().map(|(of, names)| {
                    (of.name(), names.iter().map(|name| &*name.written).collect::<Vec<_>>())
                }))
            }
        }
    }
}

/// Conditions by operator. Those of one operator stand next to each other.
struct Conditions<'a>(&'a [Condition]);

impl Serialize for Conditions<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0
                .chunk_by(|one, other| one.operator == other.operator)
                .map(|conditions| (conditions[0].operator.name(), Keys(conditions))),
        )
    }
}

struct Keys<'a>(&'a [Condition]);

impl Serialize for Keys<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|condition| (condition.key.as_str(), &condition.written)))
    }
}
