//! JSON requests and answers of the `json` and `rest-json` protocols.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use time::OffsetDateTime;

use crate::body::Rope;
use crate::note::Noted;
use crate::query::clip;
use crate::schema::{self, Kind, Location, Member, Protocol, ServiceModel, Shape, Support};
use crate::service::{self, Answer, Reply};
use crate::timestamp;
use crate::value::{FromValue, Value};
use crate::{Context, Error};

/// Writes JSON values.
#[derive(Debug, Default)]
pub struct Writer {
    out: Rope,
    /// Whether a comma goes before the next member of the object that is open.
    comma: bool,
}

/// What can be written as a JSON value.
pub trait Content {
    /// Writes the value.
    fn write(&self, w: &mut Writer);
}

impl Writer {
    /// A writer that has written nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything written.
    pub fn finish(self) -> Rope {
        self.out
    }

    /// Writes JSON as it is.
    pub fn raw(&mut self, json: &str) {
        self.out.push(json.as_bytes());
    }

    /// Writes a string.
    pub fn string(&mut self, text: &str) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let bytes = text.as_bytes();
        let mut written = 0;
        self.out.push(b"\"");
        for (index, &byte) in bytes.iter().enumerate() {
            let escape: [u8; 6] = match byte {
                b'"' | b'\\' => [b'\\', byte, 0, 0, 0, 0],
                b'\n' => *b"\\n\0\0\0\0",
                b'\r' => *b"\\r\0\0\0\0",
                b'\t' => *b"\\t\0\0\0\0",
                0..=0x1f => {
                    [b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]
                }
                _ => continue,
            };
            self.out.push(&bytes[written..index]);
            self.out.push(if escape[2] == 0 { &escape[..2] } else { &escape });
            written = index + 1;
        }
        self.out.push(&bytes[written..]);
        self.out.push(b"\"");
    }

    /// Writes an object, whose members `members` writes.
    pub fn object(&mut self, members: impl FnOnce(&mut Self)) {
        self.out.push(b"{");
        self.comma = false;
        members(self);
        self.out.push(b"}");
        self.comma = true;
    }

    /// Writes a member of the open object.
    pub fn member<T: Content + ?Sized>(&mut self, name: &str, value: &T) {
        if self.comma {
            self.out.push(b",");
        }
        self.string(name);
        self.out.push(b":");
        value.write(self);
        self.comma = true;
    }

    /// Writes a member of the open object, or nothing.
    pub fn option<T: Content>(&mut self, name: &str, value: &Option<T>) {
        if let Some(value) = value {
            self.member(name, value);
        }
    }
}

impl Content for str {
    fn write(&self, w: &mut Writer) {
        w.string(self);
    }
}

impl Content for String {
    fn write(&self, w: &mut Writer) {
        w.string(self);
    }
}

impl Content for bool {
    fn write(&self, w: &mut Writer) {
        w.raw(if *self { "true" } else { "false" });
    }
}

impl Content for i32 {
    fn write(&self, w: &mut Writer) {
        w.raw(&self.to_string());
    }
}

impl Content for i64 {
    fn write(&self, w: &mut Writer) {
        w.raw(&self.to_string());
    }
}

impl Content for f64 {
    fn write(&self, w: &mut Writer) {
        // JSON has no numbers for these; the AWS JSON protocols write them as strings.
        if self.is_finite() {
            // With an exponent where it is long, and always a number with a fraction.
            w.raw(&format!("{self:?}"));
        } else if self.is_nan() {
            w.string("NaN");
        } else {
            w.string(if *self > 0.0 { "Infinity" } else { "-Infinity" });
        }
    }
}

impl Content for OffsetDateTime {
    fn write(&self, w: &mut Writer) {
        timestamp::epoch_seconds(*self).write(w);
    }
}

impl Content for Bytes {
    fn write(&self, w: &mut Writer) {
        w.string(&BASE64_STANDARD.encode(self));
    }
}

impl<T: Content> Content for Box<T> {
    fn write(&self, w: &mut Writer) {
        self.as_ref().write(w);
    }
}

impl<T: Content> Content for Vec<T> {
    fn write(&self, w: &mut Writer) {
        w.out.push(b"[");
        for (index, value) in self.iter().enumerate() {
            if index > 0 {
                w.out.push(b",");
            }
            value.write(w);
        }
        w.out.push(b"]");
    }
}

impl<T: Content> Content for BTreeMap<String, T> {
    fn write(&self, w: &mut Writer) {
        w.object(|w| self.iter().for_each(|(key, value)| w.member(key, value)));
    }
}

impl Content for serde_json::Value {
    fn write(&self, w: &mut Writer) {
        w.raw(&self.to_string());
    }
}

impl Content for () {
    fn write(&self, _: &mut Writer) {}
}

/// Calls a handler and encodes its answer.
pub fn reply<'a, I, O, F>(
    model: &'static ServiceModel,
    ctx: &'a Context,
    input: Value,
    handler: impl FnOnce(I) -> F + Send + 'a,
) -> Reply<'a>
where
    I: FromValue + Send + 'a,
    O: Content + 'a,
    F: Future<Output = Result<O, Error>> + Send + 'a,
{
    Box::pin(async move {
        let output = handler(service::input(input)?).await?;
        let write = || {
            let mut w = Writer::new();
            output.write(&mut w);
            w.finish()
        };
        Ok(Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            content_type: content_type(model.protocol),
            body: write(),
            noted: ctx.noted.then(|| noted(write())),
        })
    })
}

/// An answer's body, for those who note it down.
pub(crate) fn noted(body: Rope) -> Noted {
    let value: serde_json::Value = serde_json::from_slice(&body.into_bytes()).unwrap_or_default();
    Noted::from(&value)
}

/// The content type of a protocol's answers.
pub(crate) fn content_type(protocol: Protocol) -> HeaderValue {
    HeaderValue::from_static(match protocol {
        Protocol::Json("1.0") => "application/x-amz-json-1.0",
        Protocol::Json(_) => "application/x-amz-json-1.1",
        _ => "application/json",
    })
}

/// Decodes a JSON body as a shape. Members that AWS does not know are skipped, as AWS does.
///
/// # Errors
/// `SerializationException` for what is no JSON or no value of the shape; the service's unsupported-operation error for
/// a member that haar does not honour.
pub(crate) fn decode(body: &[u8], shape: &'static Shape, unsupported: &'static str) -> Result<Value, Error> {
    let mut state = State { path: Vec::new(), refused: None, unsupported, values: 0 };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Seed { shape, state: &mut state }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match (state.refused, value) {
        (Some(error), _) => Err(error),
        (None, Ok(value)) => Ok(value),
        (None, Err(error)) => Err(serialization_error(&format!("{error}"))),
    }
}

/// The error of the JSON protocols for a body that cannot be read.
pub(crate) fn serialization_error(reason: &str) -> Error {
    Error::new("SerializationException", format!("The request body could not be read: {}", clip(reason)))
}

/// The greatest number of values of a request, a structure counting as many as it has members. A few bytes of JSON can stand for
/// a large structure, so that the body's size alone does not bound the memory that it takes.
const MAX_VALUES: usize = 400_000;

/// How many values a map counts as, besides its own: the memory that the first entry takes for itself and those after it.
const MAP_VALUES: usize = 12;

struct State {
    /// Names of the members around the one being read.
    path: Vec<&'static str>,
    /// Why the request is refused although it can be read.
    refused: Option<Error>,
    unsupported: &'static str,
    /// How many values were read.
    values: usize,
}

impl State {
    /// Counts values before they are made.
    fn count<E: de::Error>(&mut self, values: usize) -> Result<(), E> {
        self.values += values;
        if self.values > MAX_VALUES {
            return Err(E::custom(format_args!("it has more than {MAX_VALUES} values")));
        }
        Ok(())
    }

    fn refuse(&mut self, member: &Member) {
        let mut path = self.path.join(".");
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(member.wire);
        self.refused
            .get_or_insert(Error::new(self.unsupported, format!("The parameter {path} is not supported.")));
    }
}

/// Reads a value of a shape; `null` reads as absent where a member may be.
struct Seed<'a> {
    shape: &'static Shape,
    state: &'a mut State,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if matches!(self.shape.kind, Kind::Document) {
            return Document(self.state).deserialize(deserializer).map(Value::Document);
        }
        self.state.count(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.shape.kind {
            Kind::Structure(_) | Kind::Map(_) => "an object",
            Kind::List(_) => "an array",
            Kind::String(_) => "a string",
            Kind::Integer(_) | Kind::Long(_) => "an integer",
            Kind::Double(_) => "a number",
            Kind::Boolean => "a boolean",
            Kind::Timestamp => "a timestamp",
            Kind::Blob(_) => "a base64 string",
            Kind::Document => "any value",
        })
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        match self.shape.kind {
            Kind::Boolean => Ok(Value::Boolean(value)),
            _ => Err(E::invalid_type(de::Unexpected::Bool(value), &self)),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        match self.shape.kind {
            Kind::Integer(_) if i32::try_from(value).is_ok() => Ok(Value::Integer(value)),
            Kind::Long(_) => Ok(Value::Integer(value)),
            Kind::Double(_) => Ok(Value::Double(value as f64)),
            Kind::Timestamp => self.epoch(value as f64),
            _ => Err(E::invalid_type(de::Unexpected::Signed(value), &self)),
        }
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => self.visit_f64(value as f64),
        }
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        match self.shape.kind {
            Kind::Double(_) => Ok(Value::Double(value)),
            Kind::Timestamp => self.epoch(value),
            Kind::Integer(_) if value.fract() == 0.0 && (value as i32) as f64 == value => {
                Ok(Value::Integer(value as i64))
            }
            // Within these a double holds an integer exactly.
            Kind::Long(_) if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 => {
                Ok(Value::Integer(value as i64))
            }
            _ => Err(E::invalid_type(de::Unexpected::Float(value), &self)),
        }
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        match self.shape.kind {
            Kind::String(_) => Ok(Value::String(value.to_owned())),
            Kind::Blob(_) => match BASE64_STANDARD.decode(value) {
                Ok(bytes) => Ok(Value::Blob(bytes.into())),
                Err(_) => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
            },
            Kind::Timestamp => match timestamp::parse(value) {
                Some(time) => Ok(Value::Timestamp(time)),
                None => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
            },
            Kind::Double(_) => match value {
                "NaN" => Ok(Value::Double(f64::NAN)),
                "Infinity" => Ok(Value::Double(f64::INFINITY)),
                "-Infinity" => Ok(Value::Double(f64::NEG_INFINITY)),
                _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
            },
            _ => Err(E::invalid_type(de::Unexpected::Str(value), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let Kind::List(list) = &self.shape.kind else {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
        };
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Seed { shape: list.member, state: &mut *self.state })? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        match &self.shape.kind {
            Kind::Map(shape) => {
                self.state.count(MAP_VALUES)?;
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key()? {
                    entries.insert(
                        key,
                        map.next_value_seed(Seed { shape: shape.value, state: &mut *self.state })?,
                    );
                }
                Ok(Value::Map(entries))
            }
            Kind::Structure(members) => structure(members, self.state, map),
            _ => Err(de::Error::invalid_type(de::Unexpected::Map, &self)),
        }
    }
}

impl Seed<'_> {
    fn epoch<E: de::Error>(self, seconds: f64) -> Result<Value, E> {
        match timestamp::from_epoch(seconds) {
            Some(time) => Ok(Value::Timestamp(time)),
            None => Err(E::invalid_value(de::Unexpected::Float(seconds), &self)),
        }
    }
}

fn structure<'de, A: MapAccess<'de>>(
    members: &'static [Member],
    state: &mut State,
    mut map: A,
) -> Result<Value, A::Error> {
    state.count(schema::slots(members).count())?;
    let mut values: Vec<Option<Value>> = schema::slots(members).map(|_| None).collect();
    while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
        let known = members.iter().find(|member| member.wire == name && member.location == Location::Body);
        let Some(member) = known else {
            map.next_value::<IgnoredAny>()?;
            continue;
        };
        match member.support {
            Support::Yes(shape) => {
                state.path.push(member.wire);
                let value = map.next_value_seed(Nullable(Seed { shape, state: &mut *state }))?;
                state.path.pop();
                let slot = schema::slots(members).position(|(slot, _)| std::ptr::eq(slot, member));
                if let Some(slot) = slot.and_then(|slot| values.get_mut(slot)) {
                    *slot = value;
                }
            }
            Support::Only(only) => match map.next_value_seed(Document(state))? {
                serde_json::Value::Null => {}
                serde_json::Value::String(text) if text == only => {}
                value => {
                    let json = value.to_string();
                    if json != only {
                        state.refuse(member);
                    }
                }
            },
            Support::No => {
                if !map.next_value::<Presence>()?.0 {
                    continue;
                }
                state.refuse(member);
            }
        }
    }
    Ok(Value::Structure(values))
}

/// Reads any JSON value, counted.
struct Document<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = serde_json::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.count(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = serde_json::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(serde_json::Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Document(&mut *self.0))? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        self.0.count(MAP_VALUES)?;
        let mut members = serde_json::Map::new();
        while let Some(name) = map.next_key()? {
            members.insert(name, map.next_value_seed(Document(&mut *self.0))?);
        }
        Ok(members.into())
    }
}

/// Whether a value is anything but `null`.
struct Presence(bool);

impl<'de> de::Deserialize<'de> for Presence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<IgnoredAny>::deserialize(deserializer).map(|value| Presence(value.is_some()))
    }
}

/// Reads `null` as absent.
struct Nullable<'a>(Seed<'a>);

impl<'de> DeserializeSeed<'de> for Nullable<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        struct Optional<'a>(Seed<'a>);
        impl<'de> Visitor<'de> for Optional<'_> {
            type Value = Option<Value>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.expecting(f)
            }
            fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(None)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(None)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
                self.0.deserialize(deserializer).map(Some)
            }
        }
        deserializer.deserialize_option(Optional(self.0))
    }
}
