//! Tables that describe requests: generated from the API models, read by the decoders.

use std::sync::OnceLock;

use fancy_regex::Regex;

use crate::Error;
use crate::value::Value;

/// How a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// EC2's own: form in, XML out, lists flat.
    Ec2,
    /// AWS Query: form in, XML out.
    Query,
    /// AWS JSON with its version (`1.0`, `1.1`), the operation in `X-Amz-Target`.
    Json(&'static str),
    /// REST with JSON bodies: the operation is the method and the path.
    RestJson,
}

/// One service: its names, its protocol and its operations.
#[derive(Debug)]
pub struct ServiceModel {
    /// The service's name in IAM actions, such as `ec2`.
    pub name: &'static str,
    /// The service's name in the scope of a signature.
    pub signing_name: &'static str,
    /// How the service speaks.
    pub protocol: Protocol,
    /// The version that requests of the form protocols name.
    pub api_version: &'static str,
    /// What stands before the operation in `X-Amz-Target`; empty for other protocols than JSON.
    pub target_prefix: &'static str,
    /// The namespace of XML answers; empty for other protocols.
    pub xml_namespace: &'static str,
    /// The code of the error that answers a violated constraint.
    pub validation_error: &'static str,
    /// The code of the error that answers what AWS has and haar has not.
    pub unsupported_error: &'static str,
    /// The greatest request body, in bytes.
    pub max_body: usize,
    /// The implemented operations, sorted by name.
    pub operations: &'static [Operation],
    /// The operations that AWS has and haar has not, sorted by name.
    pub missing: &'static [Route],
}

/// Where an operation answers.
#[derive(Debug)]
pub struct Route {
    /// The operation's name.
    pub name: &'static str,
    /// The HTTP method, for the REST protocols.
    pub method: &'static str,
    /// The path with its labels, and the query string that it must have, for the REST protocols.
    pub path: &'static str,
}

impl Route {
    /// A route of a protocol that tells operations by their name.
    pub const fn named(name: &'static str) -> Self {
        Route { name, method: "POST", path: "/" }
    }
}

/// An implemented operation.
#[derive(Debug)]
pub struct Operation {
    /// Where it answers.
    pub route: Route,
    /// The shape of its request, always a structure.
    pub input: &'static Shape,
    /// The HTTP status of a success.
    pub status: u16,
    /// The permissions that it asks for.
    pub permissions: &'static [Permission],
    /// Whether its requests need a signature.
    pub signed: bool,
}

/// A permission that an operation asks for: an action upon the resources that its request names.
#[derive(Debug)]
pub struct Permission {
    /// The IAM action, such as `ec2:RunInstances`.
    pub action: &'static str,
    /// The resources' type; none where the action has no resources.
    pub resource: Option<ResourceType>,
    /// The paths of the members that name resources.
    pub members: &'static [&'static [&'static str]],
    /// What is meant when none of them is given.
    pub otherwise: Otherwise,
    /// The path of the member without which the permission is not asked for.
    pub only_if: Option<&'static [&'static str]>,
}

/// A type of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceType {
    /// Its name in the Service Authorization Reference, such as `instance`.
    pub name: &'static str,
    /// The form of its ARNs: `{region}` and `{account}` are the request's, `{}` is what tells the resource apart.
    pub arn: &'static str,
}

impl ResourceType {
    /// The ARN of the resource that `id` tells apart; `*` for one that is about to be made.
    pub fn arn(&self, region: &str, account: &str, id: &str) -> String {
        self.arn.replace("{region}", region).replace("{account}", account).replacen("{}", id, 1)
    }
}

/// Which resource is meant when no member of a request names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// None.
    Nothing,
    /// One that is about to be made.
    New,
    /// Those that the service takes.
    Default,
}

/// A shape of a request: its name in the model, and what it is.
#[derive(Debug)]
pub struct Shape {
    /// The name in the model.
    pub name: &'static str,
    /// What it is, and its constraints.
    pub kind: Kind,
    /// Whether exactly one member of the structure is present.
    pub union: bool,
}

impl Shape {
    /// A shape that is no union.
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Shape { name, kind, union: false }
    }

    /// A structure of which exactly one member is present.
    pub const fn union(name: &'static str, members: &'static [Member]) -> Self {
        Shape { name, kind: Kind::Structure(members), union: true }
    }
}

/// What a shape is, and its constraints.
#[derive(Debug)]
pub enum Kind {
    /// Named members.
    Structure(&'static [Member]),
    /// A list of one shape.
    List(List),
    /// A map from strings to one shape.
    Map(Map),
    /// Text.
    String(Text),
    /// A 32-bit integer within its bounds.
    Integer(Bounds),
    /// A 64-bit integer within its bounds.
    Long(Bounds),
    /// A floating-point number within its bounds.
    Double(Bounds),
    /// True or false.
    Boolean,
    /// A point in time.
    Timestamp,
    /// Bytes, base64 on the wire, with bounds of their number.
    Blob(Bounds),
    /// Any JSON value.
    Document,
}

/// Least and greatest value, length or size, both inclusive.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The least.
    pub min: i64,
    /// The greatest.
    pub max: i64,
}

/// No bounds.
pub const ANY: Bounds = Bounds { min: i64::MIN, max: i64::MAX };

impl Bounds {
    /// Whether `value` lies within.
    pub fn contains(&self, value: i64) -> bool {
        (self.min..=self.max).contains(&value)
    }
}

/// A list.
#[derive(Debug)]
pub struct List {
    /// The shape of its elements.
    pub member: &'static Shape,
    /// What stands between the list's name and an index in a form; empty where nothing does.
    pub wire: &'static str,
    /// Bounds of its length.
    pub bounds: Bounds,
}

/// A map.
#[derive(Debug)]
pub struct Map {
    /// The shape of its keys.
    pub key: &'static Shape,
    /// The shape of its values.
    pub value: &'static Shape,
    /// What stands between the map's name and an index in a form (`entry`); empty where nothing does.
    pub wire: &'static str,
    /// The name of a key in a form.
    pub key_wire: &'static str,
    /// The name of a value in a form.
    pub value_wire: &'static str,
    /// Bounds of its number of entries.
    pub bounds: Bounds,
}

/// Text and its constraints.
#[derive(Debug)]
pub struct Text {
    /// Bounds of its length in characters.
    pub bounds: Bounds,
    /// The values that it may take; any where empty.
    pub values: &'static [&'static str],
    /// What all of it must match.
    pub pattern: Option<&'static Pattern>,
}

/// A member of a structure.
#[derive(Debug)]
pub struct Member {
    /// The name in the model.
    pub name: &'static str,
    /// The name on the wire.
    pub wire: &'static str,
    /// Where it stands in a request.
    pub location: Location,
    /// Whether it must be present.
    pub required: bool,
    /// Whether it is the operation's idempotency token.
    pub idempotency_token: bool,
    /// Whether it must not be logged.
    pub sensitive: bool,
    /// Whether haar honours it.
    pub support: Support,
}

impl Member {
    /// An optional member of the body.
    pub const fn new(name: &'static str, wire: &'static str, support: Support) -> Self {
        Member {
            name,
            wire,
            location: Location::Body,
            required: false,
            idempotency_token: false,
            sensitive: false,
            support,
        }
    }

    /// The same member, required.
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// The same member, which must not be logged.
    pub const fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }

    /// The same member as its operation's idempotency token.
    pub const fn idempotency_token(mut self) -> Self {
        self.idempotency_token = true;
        self
    }

    /// The same member in another place.
    pub const fn at(mut self, location: Location) -> Self {
        self.location = location;
        self
    }
}

/// Where a member stands in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// In the body, under its name.
    Body,
    /// It is the body.
    Payload,
    /// A label of the path.
    Uri,
    /// A parameter of the query string; of no fixed name where it is a map of all of them.
    Query,
    /// A header.
    Header,
    /// All headers that begin with its name.
    Headers,
}

/// Whether haar honours a member.
#[derive(Debug, Clone, Copy)]
pub enum Support {
    /// It is decoded by this shape and handed to the handler.
    Yes(&'static Shape),
    /// It is accepted with this value, which is what haar does anyway, and refused with any other.
    Only(&'static str),
    /// It is refused.
    No,
}

/// Values a structure's decoded form has: its supported members, in the order of the table.
pub fn slots(members: &'static [Member]) -> impl Iterator<Item = (&'static Member, &'static Shape)> {
    members.iter().filter_map(|member| match member.support {
        Support::Yes(shape) => Some((member, shape)),
        Support::Only(_) | Support::No => None,
    })
}

/// A decoded value with its shape, to be read by the names of its members.
#[derive(Debug, Clone, Copy)]
pub struct Part<'v>(pub &'static Shape, pub &'v Value);

impl<'v> Part<'v> {
    /// What a path of members leads to, through lists: every value that is there. A path that the shape has not leads nowhere.
    pub fn values(self, path: &[&str]) -> Vec<&'v Value> {
        let mut found = Vec::new();
        collect(self.0, self.1, path, &mut found);
        found
    }

    /// The texts at a path of members.
    pub fn texts(self, path: &[&str]) -> Vec<&'v str> {
        let text = |value: &'v Value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        };
        self.values(path).into_iter().filter_map(text).collect()
    }

    /// The first text at a path of members.
    pub fn text(self, path: &[&str]) -> Option<&'v str> {
        self.texts(path).first().copied()
    }

    /// A member of a structure.
    pub fn member(self, name: &str) -> Option<Part<'v>> {
        let (Kind::Structure(members), Value::Structure(values)) = (&self.0.kind, self.1) else {
            return None;
        };
        let ((_, shape), value) = slots(members).zip(values).find(|((member, _), _)| member.name == name)?;
        value.as_ref().map(|value| Part(shape, value))
    }

    /// The elements of the list in a member.
    pub fn list(self, name: &str) -> Vec<Part<'v>> {
        match self.member(name) {
            Some(Part(Shape { kind: Kind::List(list), .. }, Value::List(values))) => {
                values.iter().map(|value| Part(list.member, value)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The value of a shape that JSON tells by the names of the model, without what the shape does not support; none for nulls and for what is
/// of another type.
pub fn value_named(shape: &'static Shape, json: &serde_json::Value) -> Option<Value> {
    Some(match (&shape.kind, json) {
        (Kind::Structure(members), serde_json::Value::Object(given)) => {
            let values = slots(members).map(|(member, shape)| value_named(shape, given.get(member.name)?));
            Value::Structure(values.collect())
        }
        (Kind::List(list), serde_json::Value::Array(values)) => {
            Value::List(values.iter().filter_map(|value| value_named(list.member, value)).collect())
        }
        (Kind::String(_), serde_json::Value::String(text)) => Value::String(text.clone()),
        (Kind::Integer(_) | Kind::Long(_), serde_json::Value::Number(number)) => {
            Value::Integer(number.as_i64()?)
        }
        (Kind::Boolean, serde_json::Value::Bool(truth)) => Value::Boolean(*truth),
        _ => return None,
    })
}

/// Sets the member at a path of structures, where the value has them.
pub fn set(shape: &'static Shape, value: &mut Value, path: &[&str], to: Option<Value>) {
    let (Kind::Structure(members), Value::Structure(values)) = (&shape.kind, value) else { return };
    let Some((name, rest)) = path.split_first() else { return };
    let mut there = slots(members).zip(values);
    match there.find(|((member, _), _)| member.name == *name) {
        Some((_, slot)) if rest.is_empty() => *slot = to,
        Some(((_, shape), Some(value))) => set(shape, value, rest, to),
        _ => {}
    }
}

fn collect<'v>(shape: &'static Shape, value: &'v Value, path: &[&str], found: &mut Vec<&'v Value>) {
    match (&shape.kind, value) {
        (Kind::List(list), Value::List(values)) => {
            values.iter().for_each(|value| collect(list.member, value, path, found));
        }
        (Kind::Structure(members), Value::Structure(values)) => {
            let Some((name, rest)) = path.split_first() else { return found.push(value) };
            let mut there = slots(members).zip(values);
            if let Some(((_, shape), Some(value))) = there.find(|((member, _), _)| member.name == *name) {
                collect(shape, value, rest, found);
            }
        }
        _ if path.is_empty() => found.push(value),
        _ => {}
    }
}

/// A regular expression of the model, compiled at its first use.
#[derive(Debug)]
pub struct Pattern {
    source: &'static str,
    regex: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// The pattern with this source, in the syntax of `java.util.regex`.
    pub const fn new(source: &'static str) -> Self {
        Pattern { source, regex: OnceLock::new() }
    }

    /// The pattern's source.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// Whether all of `text` matches. A text on which matching takes too many steps does not: it was written to do that.
    ///
    /// # Errors
    /// `InternalError` when the pattern cannot be compiled.
    pub fn matches(&self, text: &str) -> Result<bool, Error> {
        let regex = self.regex.get_or_init(|| compile(self.source).ok());
        let regex =
            regex.as_ref().ok_or_else(|| Error::internal("A pattern of the model cannot be compiled."))?;
        Ok(regex.is_match(text).unwrap_or(false))
    }
}

/// Compiles a pattern of a model so that it matches whole texts only.
#[allow(clippy::result_large_err)] // the error is formatted at once
fn compile(source: &str) -> Result<Regex, fancy_regex::Error> {
    let source = escape_hyphens(source);
    fancy_regex::RegexBuilder::new(&format!("^(?:{source})$")).backtrack_limit(200_000).build()
}

/// Escapes the hyphens after a class like `\w` within brackets, which Java takes for themselves (`[\w-_]`).
fn escape_hyphens(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 8);
    let mut chars = source.chars().peekable();
    let mut bracketed = false;
    while let Some(c) = chars.next() {
        out.push(c);
        match c {
            '\\' => {
                let escaped = chars.next();
                out.extend(escaped);
                let class = escaped.is_some_and(|c| "dDsSwW".contains(c));
                if bracketed && class && chars.next_if_eq(&'-').is_some() {
                    out.push_str("\\-");
                }
            }
            '[' => bracketed = true,
            ']' => bracketed = false,
            _ => {}
        }
    }
    out
}

/// A string without constraints.
pub static STRING: Shape =
    Shape::new("String", Kind::String(Text { bounds: ANY, values: &[], pattern: None }));
/// A 32-bit integer without constraints.
pub static INTEGER: Shape = Shape::new("Integer", Kind::Integer(ANY));
/// A 64-bit integer without constraints.
pub static LONG: Shape = Shape::new("Long", Kind::Long(ANY));
/// A floating-point number without constraints.
pub static DOUBLE: Shape = Shape::new("Double", Kind::Double(ANY));
/// True or false.
pub static BOOLEAN: Shape = Shape::new("Boolean", Kind::Boolean);
/// A point in time.
pub static TIMESTAMP: Shape = Shape::new("Timestamp", Kind::Timestamp);
/// Bytes without constraints.
pub static BLOB: Shape = Shape::new("Blob", Kind::Blob(ANY));
/// Any JSON value.
pub static DOCUMENT: Shape = Shape::new("Document", Kind::Document);
/// A structure without members: the request of an operation that takes none.
pub static EMPTY: Shape = Shape::new("Empty", Kind::Structure(&[]));
