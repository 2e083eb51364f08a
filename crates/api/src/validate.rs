//! The constraints of the API models: required, length, range, pattern, enum.

use std::fmt;

use crate::Error;
use crate::query::clip;
use crate::schema::{self, Bounds, Kind, Location, Protocol, ServiceModel, Shape, Text};
use crate::value::Value;

/// Checks every constraint of a decoded request.
///
/// # Errors
/// EC2: `MissingParameter` and `InvalidParameterValue`. Others: the service's validation error.
pub(crate) fn check(value: &Value, shape: &'static Shape, model: &ServiceModel) -> Result<(), Error> {
    Check { model }.value(value, shape, &Path::Root)
}

/// Where in a request a value stands, told only when something is wrong with it.
enum Path<'a> {
    Root,
    Member { parent: &'a Path<'a>, name: &'a str },
    Index { parent: &'a Path<'a>, wire: &'a str, index: usize },
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Member { parent: Path::Root, name } => f.write_str(name),
            Path::Member { parent, name } => write!(f, "{parent}.{name}"),
            Path::Index { parent, wire: "", index } => write!(f, "{parent}.{index}"),
            Path::Index { parent, wire, index } => write!(f, "{parent}.{wire}.{index}"),
        }
    }
}

struct Check<'m> {
    model: &'m ServiceModel,
}

impl Check<'_> {
    fn value(&self, value: &Value, shape: &'static Shape, path: &Path<'_>) -> Result<(), Error> {
        match (value, &shape.kind) {
            (Value::Structure(values), Kind::Structure(members)) => {
                if shape.union && values.iter().flatten().count() != 1 {
                    let constraint = "Member must have exactly one of its members set";
                    return Err(self.violated(path, "(union)", constraint));
                }
                for ((member, shape), value) in schema::slots(members).zip(values) {
                    let path = Path::Member { parent: path, name: self.member_name(member) };
                    match value {
                        Some(value) => self.value(value, shape, &path)?,
                        None if member.required => return Err(self.missing(&path)),
                        None => {}
                    }
                }
                Ok(())
            }
            (Value::List(values), Kind::List(list)) => {
                self.bounds(path, values.len() as i64, list.bounds, "length", || "(list)".into())?;
                for (index, value) in values.iter().enumerate() {
                    self.value(
                        value,
                        list.member,
                        &Path::Index { parent: path, wire: list.wire, index: index + 1 },
                    )?;
                }
                Ok(())
            }
            (Value::Map(entries), Kind::Map(map)) => {
                self.bounds(path, entries.len() as i64, map.bounds, "length", || "(map)".into())?;
                for (key, value) in entries {
                    let path = Path::Member { parent: path, name: key };
                    if let Kind::String(text) = &map.key.kind {
                        self.text(key, text, &path)?;
                    }
                    self.value(value, map.value, &path)?;
                }
                Ok(())
            }
            (Value::String(value), Kind::String(text)) => self.text(value, text, path),
            (Value::Integer(value), Kind::Integer(bounds) | Kind::Long(bounds)) => {
                self.bounds(path, *value, *bounds, "value", || value.to_string())
            }
            (Value::Double(value), Kind::Double(bounds)) => {
                // `as` saturates, and the bounds of the models are small.
                let nearest = if *value < bounds.min as f64 { value.floor() } else { value.ceil() } as i64;
                // What is no number lies within no bounds.
                let beyond = bounds.min.checked_sub(1).unwrap_or(bounds.max.saturating_add(1));
                let nearest = if value.is_nan() { beyond } else { nearest };
                self.bounds(path, nearest, *bounds, "value", || value.to_string())
            }
            (Value::Blob(bytes), Kind::Blob(bounds)) => {
                self.bounds(path, bytes.len() as i64, *bounds, "length", || "(blob)".into())
            }
            _ => Ok(()),
        }
    }

    fn text(&self, value: &str, text: &'static Text, path: &Path<'_>) -> Result<(), Error> {
        if !text.values.is_empty() && !text.values.contains(&value) {
            let values = text.values.join(", ");
            return Err(self.violated(
                path,
                value,
                &match self.model.protocol {
                    Protocol::Ec2 => format!("Valid values are: {values}."),
                    _ => format!("Member must satisfy enum value set: [{values}]"),
                },
            ));
        }
        self.bounds(path, value.chars().count() as i64, text.bounds, "length", || value.to_owned())?;
        if let Some(pattern) = text.pattern
            && !pattern.matches(value)?
        {
            return Err(self.violated(
                path,
                value,
                &match self.model.protocol {
                    Protocol::Ec2 => format!("It must match the pattern {}.", pattern.source()),
                    _ => format!("Member must satisfy regular expression pattern: {}", pattern.source()),
                },
            ));
        }
        Ok(())
    }

    fn bounds(
        &self,
        path: &Path<'_>,
        actual: i64,
        bounds: Bounds,
        what: &str,
        value: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        if bounds.contains(actual) {
            return Ok(());
        }
        let (relation, bound) =
            if actual < bounds.min { ("greater", bounds.min) } else { ("less", bounds.max) };
        Err(self.violated(
            path,
            &value(),
            &match self.model.protocol {
                Protocol::Ec2 => format!("Its {what} must be {relation} than or equal to {bound}."),
                _ => format!("Member must have {what} {relation} than or equal to {bound}"),
            },
        ))
    }

    /// The name by which the error messages of the protocol call a member.
    fn member_name<'a>(&self, member: &'a schema::Member) -> &'a str {
        match (self.model.protocol, member.location) {
            (Protocol::Ec2 | Protocol::Query, _) => member.wire,
            (_, Location::Body) => member.wire,
            _ => member.name,
        }
    }

    fn missing(&self, path: &Path<'_>) -> Error {
        match self.model.protocol {
            Protocol::Ec2 => {
                Error::new("MissingParameter", format!("The request must contain the parameter {path}"))
            }
            _ => self.detected(&format!("Value null at '{}'", lower_first(path)), "Member must not be null"),
        }
    }

    fn violated(&self, path: &Path<'_>, value: &str, constraint: &str) -> Error {
        let value = clip(value);
        match self.model.protocol {
            Protocol::Ec2 => Error::new(
                "InvalidParameterValue",
                format!("Value ({value}) for parameter {path} is invalid. {constraint}"),
            ),
            _ => self.detected(&format!("Value '{value}' at '{}'", lower_first(path)), constraint),
        }
    }

    fn detected(&self, subject: &str, constraint: &str) -> Error {
        Error::new(
            self.model.validation_error,
            format!("1 validation error detected: {subject} failed to satisfy constraint: {constraint}"),
        )
    }
}

/// The path with a small first letter at every member, as AWS's validation messages write it.
fn lower_first(path: &Path<'_>) -> String {
    let path = path.to_string();
    let mut out = String::with_capacity(path.len());
    let mut start = true;
    for c in path.chars() {
        if start {
            out.extend(c.to_lowercase());
        } else {
            out.push(c);
        }
        start = c == '.';
    }
    out
}
