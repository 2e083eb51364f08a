//! Requests of the `ec2` and `query` protocols: forms whose keys are paths (`Filter.1.Value.2`).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::Error;
use crate::schema::{self, Kind, Member, Shape, Support};
use crate::timestamp;
use crate::value::Value;

/// The greatest number of parameters of a request.
const MAX_PARAMETERS: usize = 20_000;
/// The greatest number of different parts of all keys together: each takes memory of its own.
const MAX_NODES: usize = 2 * MAX_PARAMETERS;
/// The greatest number of parts of a key. The deepest of the EC2 model has twelve.
const MAX_DEPTH: usize = 32;

/// Base64 as clients write it: padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The parameters of a request, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Form(Vec<(String, String)>);

impl Form {
    /// Reads `application/x-www-form-urlencoded` text.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Error> {
        let mut form = Form::default();
        form.extend(text)?;
        Ok(form)
    }

    /// Adds the parameters of another such text.
    pub(crate) fn extend(&mut self, text: &[u8]) -> Result<(), Error> {
        let pairs = &mut self.0;
        for pair in text.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == MAX_PARAMETERS {
                return Err(malformed(&format!("It has more than {MAX_PARAMETERS} parameters.")));
            }
            let mut halves = pair.splitn(2, |&byte| byte == b'=');
            let key = decode(halves.next().unwrap_or_default())?;
            let value = decode(halves.next().unwrap_or_default())?;
            pairs.push((key, value));
        }
        Ok(())
    }

    /// Refuses more than one parameter of any of these names.
    pub(crate) fn check_once(&self, names: &[&str]) -> Result<(), Error> {
        match names.iter().find(|name| self.0.iter().filter(|(key, _)| key == *name).count() > 1) {
            Some(name) => Err(repeated(name)),
            None => Ok(()),
        }
    }

    /// Drops the parameters of these names.
    pub(crate) fn remove(&mut self, names: &[&str]) {
        self.0.retain(|(key, _)| !names.contains(&key.as_str()));
    }

    /// The value of the first parameter of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Decodes the parameters as a structure.
    ///
    /// # Errors
    /// `MalformedQueryString`, `UnknownParameter`, `InvalidParameterValue`, or `unsupported` for a parameter of AWS that
    /// haar does not honour.
    pub(crate) fn into_value(self, shape: &'static Shape, unsupported: &'static str) -> Result<Value, Error> {
        let mut tree = Tree::default();
        let mut nodes = 0;
        for (key, value) in self.0 {
            if !matches!(key.as_str(), "Action" | "Version") {
                tree.insert(&key, value, &mut nodes)?;
            }
        }
        Decoder { unsupported }.value(tree, shape, &mut String::new())
    }
}

fn decode(text: &[u8]) -> Result<String, Error> {
    let plain: Vec<u8> = if text.iter().any(|byte| matches!(byte, b'+' | b'%')) {
        let spaced: Vec<u8> = text.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
        percent_encoding::percent_decode(&spaced).collect()
    } else {
        text.to_vec()
    };
    String::from_utf8(plain).map_err(|_| malformed("It is not UTF-8."))
}

fn malformed(reason: &str) -> Error {
    Error::new("MalformedQueryString", format!("The query string contains a syntax error. {reason}"))
}

fn repeated(key: &str) -> Error {
    malformed(&format!("The parameter {} is given more than once.", clip(key)))
}

/// Parameters by the parts of their keys.
#[derive(Debug, Default)]
struct Tree {
    text: Option<String>,
    children: BTreeMap<String, Tree>,
}

impl Tree {
    fn insert(&mut self, key: &str, value: String, nodes: &mut usize) -> Result<(), Error> {
        let mut node = self;
        for (depth, part) in key.split('.').enumerate() {
            if depth == MAX_DEPTH {
                return Err(malformed(&format!("A parameter has more than {MAX_DEPTH} parts.")));
            }
            // Most parts are there already: look before making the owned key that `entry` needs.
            if !node.children.contains_key(part) {
                *nodes += 1;
                if *nodes > MAX_NODES {
                    return Err(malformed("Its parameters have too many parts."));
                }
                node.children.insert(part.to_owned(), Tree::default());
            }
            node = node.children.get_mut(part).ok_or_else(|| Error::internal("A parameter was lost."))?;
        }
        if node.text.is_some() {
            return Err(repeated(key));
        }
        node.text = Some(value);
        Ok(())
    }

    /// The text of a scalar.
    fn scalar(self, path: &str) -> Result<String, Error> {
        match (self.text, self.children.into_iter().next()) {
            (Some(text), None) => Ok(text),
            (_, Some((child, _))) => Err(unknown(&join(path, &child))),
            (None, None) => Ok(String::new()),
        }
    }

    /// The children of a structure, list or map. The empty text stands for an empty one (botocore's `query` lists).
    fn children(self, path: &str) -> Result<BTreeMap<String, Tree>, Error> {
        match self.text {
            Some(text) if !text.is_empty() || !self.children.is_empty() => Err(unknown(path)),
            _ => Ok(self.children),
        }
    }
}

/// The error for a parameter that AWS does not know.
fn unknown(path: &str) -> Error {
    Error::new("UnknownParameter", format!("The parameter {} is not recognized", clip(path)))
}

/// As much of a client's text as belongs into a message.
pub(crate) fn clip(text: &str) -> std::borrow::Cow<'_, str> {
    const LONGEST: usize = 256;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

fn join(path: &str, part: &str) -> String {
    if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") }
}

struct Decoder {
    unsupported: &'static str,
}

impl Decoder {
    fn value(&self, tree: Tree, shape: &'static Shape, path: &mut String) -> Result<Value, Error> {
        match &shape.kind {
            Kind::Structure(members) => self.structure(tree, members, path),
            Kind::List(list) => {
                let mut children = tree.children(path)?;
                if !list.wire.is_empty() {
                    children = unwrap(children, list.wire, path)?;
                }
                let mut values = Vec::with_capacity(children.len());
                for (index, child) in indexed(children, path, list.wire)? {
                    values.push(self.under(child, list.member, path, &index_part(list.wire, index))?);
                }
                Ok(Value::List(values))
            }
            Kind::Map(map) => {
                let mut children = tree.children(path)?;
                if !map.wire.is_empty() {
                    children = unwrap(children, map.wire, path)?;
                }
                let mut entries = BTreeMap::new();
                for (index, child) in indexed(children, path, map.wire)? {
                    let entry_part = index_part(map.wire, index);
                    let entry_path = join(path, &entry_part);
                    let mut entry = child.children(&entry_path)?;
                    let key = entry.remove(map.key_wire).ok_or_else(|| {
                        Error::new(
                            "MissingParameter",
                            format!("The request must contain the parameter {entry_path}.{}", map.key_wire),
                        )
                    })?;
                    let key = key.scalar(&entry_path)?;
                    let value = entry.remove(map.value_wire).unwrap_or_default();
                    if let Some(other) = entry.keys().next() {
                        return Err(unknown(&join(&entry_path, other)));
                    }
                    let value = self.under(value, map.value, path, &join(&entry_part, map.value_wire))?;
                    entries.insert(key, value);
                }
                Ok(Value::Map(entries))
            }
            _ => {
                let text = tree.scalar(path)?;
                scalar(text, shape).map_err(|(text, expected)| {
                    let (text, path) = (clip(&text), clip(path));
                    let message =
                        format!("Value ({text}) for parameter {path} is invalid. It must be {expected}.");
                    Error::new("InvalidParameterValue", message)
                })
            }
        }
    }

    /// Decodes a value that is `part` of what `path` names.
    fn under(
        &self,
        tree: Tree,
        shape: &'static Shape,
        path: &mut String,
        part: &str,
    ) -> Result<Value, Error> {
        let outer = path.len();
        if outer > 0 {
            path.push('.');
        }
        path.push_str(part);
        let value = self.value(tree, shape, path);
        path.truncate(outer);
        value
    }

    fn structure(&self, tree: Tree, members: &'static [Member], path: &mut String) -> Result<Value, Error> {
        let mut children = tree.children(path)?;
        let mut values: Vec<Option<Value>> = Vec::with_capacity(members.len());
        for member in members {
            match (member.support, children.remove(member.wire)) {
                (Support::Yes(shape), Some(child)) => {
                    values.push(Some(self.under(child, shape, path, member.wire)?));
                }
                (Support::Yes(_), None) => values.push(None),
                (_, None) => {}
                (Support::Only(only), Some(child)) if child.text.as_deref() == Some(only) => {}
                (Support::Only(_) | Support::No, Some(_)) => {
                    let at = join(path, member.wire);
                    return Err(Error::new(
                        self.unsupported,
                        format!("The parameter {} is not supported.", clip(&at)),
                    ));
                }
            }
        }
        match children.keys().next() {
            Some(other) => Err(unknown(&join(path, other))),
            None => Ok(Value::Structure(values)),
        }
    }
}

/// Takes the part that stands before the indices (`member`, `entry`).
fn unwrap(
    mut children: BTreeMap<String, Tree>,
    wire: &str,
    path: &str,
) -> Result<BTreeMap<String, Tree>, Error> {
    let inner = children.remove(wire);
    if let Some(other) = children.keys().next() {
        return Err(unknown(&join(path, other)));
    }
    inner.unwrap_or_default().children(&join(path, wire))
}

/// The children in the order of their indices, which may have gaps.
fn indexed(children: BTreeMap<String, Tree>, path: &str, wire: &str) -> Result<BTreeMap<u32, Tree>, Error> {
    children
        .into_iter()
        .map(|(part, child)| match part.parse::<u32>() {
            Ok(index) if index.to_string() == part => Ok((index, child)),
            _ => {
                Err(unknown(&join(&if wire.is_empty() { path.to_owned() } else { join(path, wire) }, &part)))
            }
        })
        .collect()
}

/// The part of an item in a path.
fn index_part(wire: &str, index: u32) -> String {
    join(wire, &index.to_string())
}

/// Reads a scalar's text; an error gives the text back with what it should have been.
pub(crate) fn scalar(text: String, shape: &Shape) -> Result<Value, (String, &'static str)> {
    let value = match &shape.kind {
        Kind::String(_) => return Ok(Value::String(text)),
        Kind::Integer(_) => {
            text.parse::<i32>().map(|value| Value::Integer(value.into())).map_err(|_| "an integer")
        }
        Kind::Long(_) => text.parse().map(Value::Integer).map_err(|_| "an integer"),
        Kind::Double(_) => double(&text).map(Value::Double).ok_or("a number"),
        Kind::Boolean => match text.as_str() {
            "true" | "True" | "TRUE" => Ok(Value::Boolean(true)),
            "false" | "False" | "FALSE" => Ok(Value::Boolean(false)),
            _ => Err("true or false"),
        },
        Kind::Timestamp => timestamp::parse(&text).map(Value::Timestamp).ok_or("an ISO 8601 time"),
        Kind::Blob(_) => {
            BASE64.decode(text.as_bytes()).map(|bytes| Value::Blob(bytes.into())).map_err(|_| "base64")
        }
        Kind::Structure(_) | Kind::List(_) | Kind::Map(_) | Kind::Document => Err("a single value"),
    };
    value.map_err(|expected| (text, expected))
}

/// A number, or one of the three that Smithy spells out; Rust's own spellings of these are not AWS's.
fn double(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => text.parse().ok().filter(|value: &f64| value.is_finite()),
    }
}

/// Finds the slot of a member among a structure's decoded values.
pub(crate) fn slot(members: &'static [Member], wanted: impl Fn(&Member) -> bool) -> Option<usize> {
    schema::slots(members).position(|(member, _)| wanted(member))
}
