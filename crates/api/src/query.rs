//! Requests of the `ec2` and `query` protocols: forms whose keys are paths (`Filter.1.Value.2`).

use std::borrow::Cow;
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
/// The greatest number of parts of a key. The deepest of the EC2 model has twelve.
const MAX_DEPTH: usize = 32;

/// Base64 as clients write it: padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A parameter: its key and its value.
type Parameter<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The parameters of a request, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Form<'a>(Vec<Parameter<'a>>);

impl<'a> Form<'a> {
    /// Reads `application/x-www-form-urlencoded` text.
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, Error> {
        let mut form = Form::default();
        form.extend(text)?;
        Ok(form)
    }

    /// Adds the parameters of another such text.
    pub(crate) fn extend(&mut self, text: &'a [u8]) -> Result<(), Error> {
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
        self.0.retain(|(key, _)| !names.contains(&&**key));
    }

    /// The value of the first parameter of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Decodes the parameters as a structure.
    ///
    /// # Errors
    /// `MalformedQueryString`, `UnknownParameter`, `InvalidParameterValue`, or `unsupported` for a parameter of AWS that
    /// haar does not honour.
    pub(crate) fn into_value(
        mut self,
        shape: &'static Shape,
        unsupported: &'static str,
    ) -> Result<Value, Error> {
        self.remove(&["Action", "Version"]);
        let mut parameters = self.0;
        if parameters.iter().any(|(key, _)| key.bytes().filter(|byte| *byte == b'.').count() >= MAX_DEPTH) {
            return Err(malformed(&format!("A parameter has more than {MAX_DEPTH} parts.")));
        }
        parameters.sort_by(|(one, _), (other, _)| ranks(one).cmp(ranks(other)));
        if let Some(twice) = parameters.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(repeated(&twice[0].0));
        }
        Decoder { unsupported }.value(Node { parameters: &parameters, part: 0, rest: 0 }, shape)
    }
}

/// The bytes of a key, so that they compare as its parts do: what ends a part comes before what goes on with it.
fn ranks(key: &str) -> impl Iterator<Item = Option<u8>> {
    key.bytes().map(|byte| (byte != b'.').then_some(byte))
}

fn decode(text: &[u8]) -> Result<Cow<'_, str>, Error> {
    let not_text = "It is not UTF-8.";
    if !text.iter().any(|byte| matches!(byte, b'+' | b'%')) {
        return std::str::from_utf8(text).map(Cow::Borrowed).map_err(|_| malformed(not_text));
    }
    let spaced: Vec<u8> = text.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
    let plain = Cow::from(percent_encoding::percent_decode(&spaced)).into_owned();
    String::from_utf8(plain).map(Cow::Owned).map_err(|_| malformed(not_text))
}

fn malformed(reason: &str) -> Error {
    Error::new("MalformedQueryString", format!("The query string contains a syntax error. {reason}"))
}

fn repeated(key: &str) -> Error {
    malformed(&format!("The parameter {} is given more than once.", clip(key)))
}

/// Parameters whose keys begin with the same parts, sorted by the parts that follow. There is one at least, but where a request
/// has none.
#[derive(Debug, Clone, Copy)]
struct Node<'p> {
    parameters: &'p [Parameter<'p>],
    /// Where the last of these parts begins in every key.
    part: usize,
    /// Where the parts that follow begin.
    rest: usize,
}

impl<'p> Node<'p> {
    /// The parts that the keys have in common.
    fn path(self) -> &'p str {
        self.parameters.first().map_or("", |(key, _)| &key[..self.rest.saturating_sub(1)])
    }

    /// The last of these parts.
    fn part(self) -> &'p str {
        &self.path()[self.part..]
    }

    /// The parameter that has no more parts, and the others by their next part.
    fn split(self) -> (Option<&'p str>, Children<'p>) {
        let Node { parameters, rest, .. } = self;
        match parameters {
            [(key, text), parameters @ ..] if key.len() < rest => (Some(text), Children { parameters, rest }),
            _ => (None, Children { parameters, rest }),
        }
    }

    /// The text of a scalar.
    fn scalar(self) -> Result<&'p str, Error> {
        let (text, mut children) = self.split();
        match children.next() {
            Some(child) => Err(unknown(child.path())),
            None => Ok(text.unwrap_or_default()),
        }
    }

    /// The children of a structure, list or map. The empty text stands for an empty one (botocore's `query` lists).
    fn children(self) -> Result<Children<'p>, Error> {
        let (text, children) = self.split();
        match text {
            Some(text) if !text.is_empty() || !children.parameters.is_empty() => Err(unknown(self.path())),
            _ => Ok(children),
        }
    }

    /// The items of a list or map in the order of their indices, which may have gaps. `wire` is the part that stands before
    /// the indices (`member`, `entry`), if there is one.
    fn items(self, wire: &str) -> Result<Vec<(u32, Node<'p>)>, Error> {
        let mut children = self.children()?;
        if !wire.is_empty() {
            let mut inner = None;
            for child in children.by_ref() {
                match child.part() == wire {
                    true => inner = Some(child),
                    false => return Err(unknown(child.path())),
                }
            }
            let Some(inner) = inner else { return Ok(Vec::new()) };
            children = inner.children()?;
        }
        let indexed = |item: Node<'p>| match item.part().parse() {
            Ok(index) if item.part() == "0" || !item.part().starts_with(['0', '+']) => Ok((index, item)),
            _ => Err(unknown(item.path())),
        };
        let mut items = children.map(indexed).collect::<Result<Vec<_>, _>>()?;
        items.sort_unstable_by_key(|(index, _)| *index);
        Ok(items)
    }
}

/// Nodes by the next part of their keys.
struct Children<'p> {
    parameters: &'p [Parameter<'p>],
    rest: usize,
}

impl<'p> Iterator for Children<'p> {
    type Item = Node<'p>;

    fn next(&mut self) -> Option<Node<'p>> {
        let key = self.parameters.first()?.0.as_bytes();
        let end =
            key[self.rest..].iter().position(|&byte| byte == b'.').map_or(key.len(), |dot| self.rest + dot);
        let has_part = |(other, _): &&Parameter<'_>| {
            let other = other.as_bytes();
            other.get(self.rest..end) == Some(&key[self.rest..end])
                && matches!(other.get(end), None | Some(b'.'))
        };
        let count = self.parameters.iter().take_while(has_part).count();
        let (parameters, others) = self.parameters.split_at(count);
        self.parameters = others;
        Some(Node { parameters, part: self.rest, rest: end + 1 })
    }
}

/// The error for a parameter that AWS does not know.
fn unknown(path: &str) -> Error {
    Error::new("UnknownParameter", format!("The parameter {} is not recognized", clip(path)))
}

/// As much of a client's text as belongs into a message.
pub(crate) fn clip(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 256;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

struct Decoder {
    unsupported: &'static str,
}

impl Decoder {
    fn value(&self, node: Node<'_>, shape: &'static Shape) -> Result<Value, Error> {
        match &shape.kind {
            Kind::Structure(members) => self.structure(node, members),
            Kind::List(list) => {
                let items = node.items(list.wire)?.into_iter();
                items
                    .map(|(_, item)| self.value(item, list.member))
                    .collect::<Result<_, _>>()
                    .map(Value::List)
            }
            Kind::Map(map) => {
                let mut entries = BTreeMap::new();
                for (_, entry) in node.items(map.wire)? {
                    let (mut key, mut value) = (None, None);
                    for child in entry.children()? {
                        match child.part() {
                            part if part == map.key_wire => key = Some(child),
                            part if part == map.value_wire => value = Some(child),
                            _ => return Err(unknown(child.path())),
                        }
                    }
                    let need = |child: Option<_>, part| child.ok_or_else(|| missing(entry.path(), part));
                    let (key, value) = (need(key, map.key_wire)?, need(value, map.value_wire)?);
                    entries.insert(key.scalar()?.to_owned(), self.value(value, map.value)?);
                }
                Ok(Value::Map(entries))
            }
            _ => {
                let text = node.scalar()?;
                scalar(text, shape).map_err(|expected| {
                    let (text, path) = (clip(text), clip(node.path()));
                    let message =
                        format!("Value ({text}) for parameter {path} is invalid. It must be {expected}.");
                    Error::new("InvalidParameterValue", message)
                })
            }
        }
    }

    fn structure(&self, node: Node<'_>, members: &'static [Member]) -> Result<Value, Error> {
        let mut values = Vec::new();
        values.resize_with(schema::slots(members).count(), || None);
        for child in node.children()? {
            let Some(index) = members.iter().position(|member| member.wire == child.part()) else {
                return Err(unknown(child.path()));
            };
            match members[index].support {
                Support::Yes(shape) => {
                    values[schema::slots(&members[..index]).count()] = Some(self.value(child, shape)?);
                }
                Support::Only(only) if child.scalar()?.eq_ignore_ascii_case(only) => {}
                Support::Only(_) | Support::No => {
                    let message = format!("The parameter {} is not supported.", clip(child.path()));
                    return Err(Error::new(self.unsupported, message));
                }
            }
        }
        Ok(Value::Structure(values))
    }
}

/// The error for a part of an entry of a map that is not there.
fn missing(path: &str, part: &str) -> Error {
    Error::new("MissingParameter", format!("The request must contain the parameter {}.{part}", clip(path)))
}

/// Reads a scalar's text; an error says what it should have been.
pub(crate) fn scalar(text: &str, shape: &Shape) -> Result<Value, &'static str> {
    match &shape.kind {
        Kind::String(_) => Ok(Value::String(text.to_owned())),
        Kind::Integer(_) => {
            text.parse::<i32>().map(|value| Value::Integer(value.into())).map_err(|_| "an integer")
        }
        Kind::Long(_) => text.parse().map(Value::Integer).map_err(|_| "an integer"),
        Kind::Double(_) => double(text).map(Value::Double).ok_or("a number"),
        Kind::Boolean => match text {
            "true" | "True" | "TRUE" => Ok(Value::Boolean(true)),
            "false" | "False" | "FALSE" => Ok(Value::Boolean(false)),
            _ => Err("true or false"),
        },
        Kind::Timestamp => timestamp::parse(text).map(Value::Timestamp).ok_or("an ISO 8601 time"),
        Kind::Blob(_) => {
            BASE64.decode(text.as_bytes()).map(|bytes| Value::Blob(bytes.into())).map_err(|_| "base64")
        }
        Kind::Structure(_) | Kind::List(_) | Kind::Map(_) | Kind::Document => Err("a single value"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_the_parts_of_their_keys() {
        let keys = ["B.C", "L.10.B", "L.2", "A.B", "A-x", "A", "A.C", ".A", "A\0", "L.10"];
        let mut parameters: Vec<Parameter<'_>> = keys.map(|key| (key.into(), Cow::default())).into();
        parameters.sort_by(|(one, _), (other, _)| ranks(one).cmp(ranks(other)));
        let root = Node { parameters: &parameters, part: 0, rest: 0 };
        let of = |children: Children<'_>| -> Vec<(String, String, usize)> {
            children
                .map(|node| (node.path().to_owned(), node.part().to_owned(), node.parameters.len()))
                .collect()
        };
        let expected =
            [("", "", 1), ("A", "A", 3), ("A\0", "A\0", 1), ("A-x", "A-x", 1), ("B", "B", 1), ("L", "L", 3)];
        let owned = |(path, part, count): (&str, &str, usize)| (path.to_owned(), part.to_owned(), count);
        assert_eq!(of(root.split().1), expected.map(owned));
        let child = |index| root.split().1.nth(index).unwrap();
        let (text, below) = child(1).split();
        assert_eq!(text, Some(""));
        assert_eq!(of(below), [("A.B", "B", 1), ("A.C", "C", 1)].map(owned));
        let indices =
            |items: Vec<(u32, Node<'_>)>| items.into_iter().map(|(index, _)| index).collect::<Vec<_>>();
        assert_eq!(indices(child(5).items("").unwrap()), [2, 10]);
        let refused = |items: Result<Vec<_>, Error>| items.unwrap_err().message;
        assert_eq!(refused(child(4).items("")), "The parameter B.C is not recognized");
        assert_eq!(refused(child(1).items("")), "The parameter A is not recognized");
    }
}
