//! Requests that are right: random values of a shape, written as a client writes them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use haar_api::OffsetDateTime;
use haar_api::schema::{Kind, Protocol, Shape, slots};
use haar_api::value::Value;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rand::Rng;
use serde_json::json;

/// How deep values of recursive shapes go.
const DEPTH: usize = 5;

/// A random value of a shape. No list, map or structure in it is empty: forms cannot say that they are.
pub fn value(rng: &mut impl Rng, shape: &Shape) -> Value {
    at_depth(rng, shape, 0)
}

fn at_depth(rng: &mut impl Rng, shape: &Shape, depth: usize) -> Value {
    match &shape.kind {
        Kind::Structure(members) => {
            let shapes: Vec<&Shape> = slots(members).map(|(_, shape)| shape).collect();
            // The first member of the recursive shapes is a scalar.
            let always = if depth == 0 || shape.union { rng.random_range(0..shapes.len()) } else { 0 };
            let member = |(index, shape): (usize, &&Shape)| {
                let given = index == always || !shape_is_deep(shape) || depth < DEPTH;
                let given = given && (index == always || rng.random_ratio(1, 3));
                given.then(|| at_depth(rng, shape, depth + 1))
            };
            let mut values: Vec<_> = shapes.iter().enumerate().map(member).collect();
            if shape.union {
                values
                    .iter_mut()
                    .enumerate()
                    .filter(|(index, _)| *index != always)
                    .for_each(|(_, value)| *value = None);
            }
            Value::Structure(values)
        }
        Kind::List(list) => {
            let length = rng.random_range(1..4);
            Value::List((0..length).map(|_| at_depth(rng, list.member, depth + 1)).collect())
        }
        Kind::Map(map) => {
            let length = rng.random_range(1..4);
            Value::Map((0..length).map(|_| (string(rng), at_depth(rng, map.value, depth + 1))).collect())
        }
        Kind::String(text) if text.values.is_empty() => Value::String(string(rng)),
        Kind::String(text) => Value::String(text.values[rng.random_range(0..text.values.len())].to_owned()),
        Kind::Integer(_) => Value::Integer(rng.random::<i32>().into()),
        Kind::Long(_) => Value::Integer(rng.random()),
        Kind::Double(_) => {
            let number = f64::from_bits(rng.random());
            Value::Double(if number.is_finite() { number } else { 0.5 })
        }
        Kind::Boolean => Value::Boolean(rng.random()),
        Kind::Timestamp => {
            let seconds = rng.random_range(-62_135_596_800..253_402_300_799);
            Value::Timestamp(OffsetDateTime::from_unix_timestamp(seconds).expect("years 1 to 9999 are valid"))
        }
        Kind::Blob(_) => Value::Blob((0..rng.random_range(0..40)).map(|_| rng.random::<u8>()).collect()),
        Kind::Document => {
            Value::Document(json!({ string(rng): [rng.random::<i64>(), string(rng), null_or(rng)] }))
        }
    }
}

fn null_or(rng: &mut impl Rng) -> serde_json::Value {
    if rng.random() { serde_json::Value::Null } else { json!({ "a": rng.random::<bool>() }) }
}

fn shape_is_deep(shape: &Shape) -> bool {
    matches!(shape.kind, Kind::Structure(_) | Kind::List(_) | Kind::Map(_))
}

/// Text with what protocols treat specially in it.
fn string(rng: &mut impl Rng) -> String {
    const CHARS: &[char] =
        &['a', 'Z', '0', ' ', '.', '&', '=', '+', '%', '/', '"', '\\', '<', '\n', '\0', 'ä', '漢', '😀'];
    (0..rng.random_range(0..12)).map(|_| CHARS[rng.random_range(0..CHARS.len())]).collect()
}

/// A value as the parameters of a form.
pub fn form(protocol: Protocol, value: &Value, shape: &Shape) -> String {
    let mut pairs = Vec::new();
    parameters(protocol, "", value, shape, &mut pairs);
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pairs: Vec<_> =
        pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.join("&")
}

fn parameters(protocol: Protocol, path: &str, value: &Value, shape: &Shape, out: &mut Vec<(String, String)>) {
    let join = |parts: &[&str]| {
        let parts: Vec<&str> =
            std::iter::once(path).chain(parts.iter().copied()).filter(|part| !part.is_empty()).collect();
        parts.join(".")
    };
    let text = match (value, &shape.kind) {
        (Value::Structure(values), Kind::Structure(members)) => {
            for ((member, shape), value) in slots(members).zip(values) {
                if let Some(value) = value {
                    parameters(protocol, &join(&[member.wire]), value, shape, out);
                }
            }
            return;
        }
        (Value::List(values), Kind::List(list)) => {
            for (index, value) in values.iter().enumerate() {
                parameters(protocol, &join(&[list.wire, &(index + 1).to_string()]), value, list.member, out);
            }
            return;
        }
        (Value::Map(entries), Kind::Map(map)) => {
            for (index, (key, value)) in entries.iter().enumerate() {
                let entry = join(&[map.wire, &(index + 1).to_string()]);
                out.push((format!("{entry}.{}", map.key_wire), key.clone()));
                parameters(protocol, &format!("{entry}.{}", map.value_wire), value, map.value, out);
            }
            return;
        }
        (Value::String(text), _) => text.clone(),
        (Value::Integer(number), _) => number.to_string(),
        (Value::Double(number), _) => format!("{number:e}"),
        (Value::Boolean(flag), _) => flag.to_string(),
        (Value::Timestamp(time), _) => haar_api::timestamp::iso8601(*time, protocol == Protocol::Ec2),
        (Value::Blob(bytes), _) => BASE64_STANDARD.encode(bytes),
        other => panic!("no form says {other:?}"),
    };
    out.push((path.to_owned(), text));
}

/// A value as JSON.
pub fn json(value: &Value, shape: &Shape) -> serde_json::Value {
    match (value, &shape.kind) {
        (Value::Structure(values), Kind::Structure(members)) => {
            let given = slots(members).zip(values);
            let given = given.filter_map(|((member, shape), value)| {
                Some((member.wire.to_owned(), json(value.as_ref()?, shape)))
            });
            given.collect::<serde_json::Map<_, _>>().into()
        }
        (Value::List(values), Kind::List(list)) => {
            values.iter().map(|value| json(value, list.member)).collect()
        }
        (Value::Map(entries), Kind::Map(map)) => {
            let entries = entries.iter().map(|(key, value)| (key.clone(), json(value, map.value)));
            serde_json::to_value(entries.collect::<BTreeMap<_, _>>()).expect("keys are strings")
        }
        (Value::String(text), _) => json!(text),
        (Value::Integer(number), _) => json!(number),
        (Value::Double(number), _) => json!(number),
        (Value::Boolean(flag), _) => json!(flag),
        (Value::Timestamp(time), _) => json!(time.unix_timestamp()),
        (Value::Blob(bytes), _) => json!(BASE64_STANDARD.encode(bytes)),
        (Value::Document(document), _) => document.clone(),
        other => panic!("no JSON says {other:?}"),
    }
}
