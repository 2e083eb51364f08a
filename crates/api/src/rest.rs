//! The `rest-json` protocol: operations by method and path, members in labels, query string, headers and body.

use std::collections::BTreeMap;
use std::future::Future;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use percent_encoding::percent_decode_str;

use crate::body::Rope;
use crate::json;
use crate::query::{self, clip};
use crate::schema::{self, Kind, Location, Member, Route, Shape, Support};
use crate::service::{self, Answer, Reply};
use crate::value::{FromValue, Value};
use crate::{Context, Error};

/// The answer of an operation.
pub trait Output {
    /// Writes the members that stand in the status and the headers.
    fn head(&self, _head: &mut Head) {}
    /// The body.
    fn body(&self) -> Rope;
}

impl Output for () {
    fn body(&self) -> Rope {
        Rope::new()
    }
}

/// Status and headers of an answer.
#[derive(Debug)]
pub struct Head {
    status: StatusCode,
    headers: HeaderMap,
    content_type: HeaderValue,
}

impl Head {
    /// Sets the status, where the operation gives one.
    pub fn status(&mut self, status: Option<i32>) {
        let status = status.and_then(|status| u16::try_from(status).ok());
        if let Some(status) = status.and_then(|status| StatusCode::from_u16(status).ok()) {
            self.status = status;
        }
    }

    /// Adds a header; a value that no header can carry is left out.
    pub fn header<T: HeaderText>(&mut self, name: &'static str, value: &Option<T>) {
        if let Some(value) = value {
            self.insert(name, &value.text());
        }
    }

    /// Adds a header with the elements of a list, or nothing for an empty one. Elements with commas or quotes are quoted.
    pub fn list<T: HeaderText>(&mut self, name: &'static str, values: &[T]) {
        let quoted = |value: &T| {
            let text = value.text();
            if text.contains([',', '"']) {
                format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
            } else {
                text
            }
        };
        if !values.is_empty() {
            self.insert(name, &values.iter().map(quoted).collect::<Vec<_>>().join(", "));
        }
    }

    /// Adds a header for every entry, under a common prefix.
    pub fn headers(&mut self, prefix: &str, entries: &BTreeMap<String, String>) {
        for (name, value) in entries {
            self.insert(&format!("{prefix}{name}"), value);
        }
    }

    fn insert(&mut self, name: &str, value: &str) {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
            return;
        };
        if name == http::header::CONTENT_TYPE {
            self.content_type = value;
        } else {
            self.headers.insert(name, value);
        }
    }
}

/// A value that can stand in a header.
pub trait HeaderText {
    /// The header's value.
    fn text(&self) -> String;
}

impl<T: std::fmt::Display> HeaderText for T {
    fn text(&self) -> String {
        self.to_string()
    }
}

/// The body of an answer whose members are the body's.
pub fn members<T: json::Content>(value: &T) -> Rope {
    let mut w = json::Writer::new();
    value.write(&mut w);
    w.finish()
}

/// The body of an answer that is one structure.
pub fn structure<T: json::Content>(value: &Option<T>) -> Rope {
    value.as_ref().map_or_else(Rope::new, members)
}

/// The body of an answer that is bytes or text.
pub fn raw<T: Clone + Into<Bytes>>(value: &Option<T>) -> Rope {
    value.clone().map_or_else(Rope::new, |value| value.into().into())
}

/// Calls a handler and encodes its answer.
pub fn reply<'a, I, O, F>(
    status: u16,
    ctx: &'a Context,
    input: Value,
    handler: impl FnOnce(I) -> F + Send + 'a,
) -> Reply<'a>
where
    I: FromValue + Send + 'a,
    O: Output + 'a,
    F: Future<Output = Result<O, Error>> + Send + 'a,
{
    Box::pin(async move {
        let output = handler(service::input(input)?).await?;
        let mut head = Head {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
            headers: HeaderMap::new(),
            content_type: HeaderValue::from_static("application/json"),
        };
        output.head(&mut head);
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            content_type: head.content_type,
            body: output.body(),
            noted: ctx.noted.then(|| json::noted(output.body())),
        })
    })
}

/// The labels of a path that fits a template, still percent-encoded; how specific the template is.
pub(crate) fn match_path<'p>(
    template: &'static str,
    path: &'p str,
) -> Option<(usize, Vec<(&'static str, &'p str)>)> {
    let template = template.split('?').next().unwrap_or_default().trim_matches('/');
    let mut rest = path.trim_matches('/');
    let mut labels = Vec::new();
    let mut literals = 0;
    let mut parts = template.split('/').peekable();
    while let Some(part) = parts.next() {
        let greedy = part.strip_prefix('{').and_then(|part| part.strip_suffix("+}"));
        if let Some(label) = greedy {
            // The template's remainder is matched from the end.
            let after: Vec<&str> = parts.collect();
            let mut end = rest;
            for literal in after.iter().rev() {
                end = end.strip_suffix(literal)?.strip_suffix('/')?;
                literals += 1;
            }
            labels.push((label, end));
            return (!end.is_empty()).then_some((literals, labels));
        }
        let (segment, remainder) = rest.split_once('/').unwrap_or((rest, ""));
        let last = parts.peek().is_none();
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(_) if segment.is_empty() => return None,
            Some(label) => labels.push((label, segment)),
            None if part == segment => literals += 1,
            None => return None,
        }
        if last && rest.contains('/') {
            return None;
        }
        rest = remainder;
    }
    Some((literals, labels))
}

/// The parameters that a template wants the query string to have, as `List=ALL`.
fn literal_query(template: &'static str) -> impl Iterator<Item = &'static str> {
    template.split_once('?').map_or("", |(_, query)| query).split('&').filter(|pair| !pair.is_empty())
}

/// The route that a request takes: its index, and the labels of its path.
pub(crate) fn find<'p>(
    routes: impl Iterator<Item = &'static Route>,
    method: &str,
    path: &'p str,
    query: &str,
) -> Option<(usize, Vec<(&'static str, &'p str)>)> {
    routes
        .enumerate()
        .filter(|(_, route)| route.method == method)
        .filter_map(|(index, route)| {
            let literal: Vec<&str> = literal_query(route.path).collect();
            let fits = literal.iter().all(|pair| query.split('&').any(|given| given == *pair));
            let (literals, labels) = match_path(route.path, path).filter(|_| fits)?;
            Some((literals + literal.len(), index, labels))
        })
        .max_by_key(|(literals, ..)| *literals)
        .map(|(_, index, labels)| (index, labels))
}

/// A request, as far as members stand in it.
pub(crate) struct Parts<'a> {
    pub labels: Vec<(&'static str, &'a str)>,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    pub body: Bytes,
}

/// Decodes a request as a shape.
///
/// # Errors
/// `SerializationException` for what cannot be read; `unsupported` for a member that haar does not honour.
pub(crate) fn decode(
    parts: &Parts<'_>,
    shape: &'static Shape,
    unsupported: &'static str,
) -> Result<Value, Error> {
    let Kind::Structure(members) = &shape.kind else {
        return Err(Error::internal("The request's shape is no structure."));
    };
    let query: Vec<(String, String)> = parts
        .query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((text(key, true)?, text(value, true)?))
        })
        .collect::<Result<_, Error>>()?;

    let payload = members.iter().any(|member| member.location == Location::Payload);
    let in_body = members.iter().any(|member| member.location == Location::Body);
    let mut decoded = if in_body && !payload && !parts.body.is_empty() {
        json::decode(&parts.body, shape, unsupported)?
    } else {
        Value::Structure(schema::slots(members).map(|_| None).collect())
    };
    let Value::Structure(values) = &mut decoded else {
        return Err(Error::internal("A structure was not decoded as one."));
    };
    for member in members.iter().filter(|member| member.location != Location::Body) {
        let Support::Yes(shape) = member.support else {
            refuse(member, &query, parts, unsupported)?;
            continue;
        };
        let value = match member.location {
            Location::Uri => {
                let label = parts.labels.iter().find(|(label, _)| *label == member.wire);
                label.map(|(_, value)| one(&text(value, false)?, shape, member.name)).transpose()?
            }
            Location::Query => from_query(&query, members, member, shape)?,
            Location::Header => {
                let header = parts.headers.get(member.wire).map(|value| header_text(value, member));
                header.transpose()?.map(|value| from_header(value, shape, member)).transpose()?
            }
            Location::Headers => {
                let entries: BTreeMap<String, Value> = parts
                    .headers
                    .iter()
                    .filter_map(|(name, value)| Some((strip(name.as_str(), member.wire)?.to_owned(), value)))
                    .map(|(name, value)| Ok((name, Value::String(header_text(value, member)?.to_owned()))))
                    .collect::<Result<_, Error>>()?;
                (!entries.is_empty()).then_some(Value::Map(entries))
            }
            Location::Payload if parts.body.is_empty() => None,
            Location::Payload => Some(match &shape.kind {
                Kind::Blob(_) => Value::Blob(parts.body.clone()),
                Kind::String(_) => {
                    let body = std::str::from_utf8(&parts.body);
                    Value::String(body.map_err(|_| json::serialization_error("It is not UTF-8."))?.to_owned())
                }
                _ => json::decode(&parts.body, shape, unsupported)?,
            }),
            Location::Body => None,
        };
        let slot = query::slot(members, |slot| std::ptr::eq(slot, member));
        if let Some(slot) = slot.and_then(|slot| values.get_mut(slot)) {
            *slot = value;
        }
    }
    Ok(decoded)
}

/// Refuses a member that haar does not honour, where the request has it.
fn refuse(
    member: &'static Member,
    query: &[(String, String)],
    parts: &Parts<'_>,
    unsupported: &'static str,
) -> Result<(), Error> {
    let given = match member.location {
        Location::Query => query.iter().find(|(key, _)| key == member.wire).map(|(_, value)| value.clone()),
        Location::Header => {
            parts.headers.get(member.wire).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        }
        Location::Headers => {
            parts.headers.keys().find_map(|name| strip(name.as_str(), member.wire)).map(str::to_owned)
        }
        Location::Payload => (!parts.body.is_empty()).then(String::new),
        Location::Uri | Location::Body => None,
    };
    match (given, member.support) {
        (None, _) => Ok(()),
        (Some(given), Support::Only(only)) if given == only => Ok(()),
        _ => Err(Error::new(unsupported, format!("The parameter {} is not supported.", member.name))),
    }
}

fn from_header(text: &str, shape: &'static Shape, member: &Member) -> Result<Value, Error> {
    match &shape.kind {
        Kind::List(list) => {
            let elements = elements(text);
            let elements = elements.iter().map(|text| one(text, list.member, member.name));
            elements.collect::<Result<_, _>>().map(Value::List)
        }
        _ => one(text, shape, member.name),
    }
}

/// The elements of a header that is a list: separated by commas, quoted where they hold one.
fn elements(text: &str) -> Vec<String> {
    let mut elements = Vec::new();
    let (mut element, mut quoted, mut escaped) = (String::new(), false, false);
    for c in text.chars() {
        match c {
            _ if escaped => {
                element.push(c);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' if quoted || element.trim().is_empty() => quoted = !quoted,
            ',' if !quoted => elements.push(std::mem::take(&mut element).trim().to_owned()),
            _ => element.push(c),
        }
    }
    elements.push(element.trim().to_owned());
    elements
}

fn from_query(
    query: &[(String, String)],
    members: &'static [Member],
    member: &'static Member,
    shape: &'static Shape,
) -> Result<Option<Value>, Error> {
    let mut given =
        query.iter().filter(|(key, _)| key == member.wire).map(|(_, value)| value.as_str()).peekable();
    match &shape.kind {
        Kind::List(list) => {
            if given.peek().is_none() {
                return Ok(None);
            }
            given
                .map(|value| one(value, list.member, member.name))
                .collect::<Result<_, _>>()
                .map(Value::List)
                .map(Some)
        }
        // A map takes every parameter that no other member names.
        Kind::Map(map) => {
            let named = |key: &str| members.iter().any(|m| m.location == Location::Query && m.wire == key);
            let mut entries: BTreeMap<String, Value> = BTreeMap::new();
            for (key, value) in query.iter().filter(|(key, _)| !named(key) && !key.starts_with("X-Amz-")) {
                match (&map.value.kind, entries.get_mut(key)) {
                    (Kind::List(list), Some(Value::List(values))) => {
                        values.push(one(value, list.member, key)?);
                    }
                    (Kind::List(list), _) => {
                        entries.insert(key.clone(), Value::List(vec![one(value, list.member, key)?]));
                    }
                    _ => {
                        entries.insert(key.clone(), one(value, map.value, key)?);
                    }
                }
            }
            Ok((!entries.is_empty()).then_some(Value::Map(entries)))
        }
        _ => given.next().map(|value| one(value, shape, member.name)).transpose(),
    }
}

fn one(text: &str, shape: &'static Shape, name: &str) -> Result<Value, Error> {
    query::scalar(text, shape).map_err(|expected| {
        json::serialization_error(&format!("The value ({}) of {name} must be {expected}.", clip(text)))
    })
}

fn text(encoded: &str, plus: bool) -> Result<String, Error> {
    let encoded = if plus { encoded.replace('+', " ") } else { encoded.to_owned() };
    let decoded = percent_decode_str(&encoded).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| json::serialization_error("The path is not UTF-8."))
}

fn header_text<'h>(value: &'h HeaderValue, member: &Member) -> Result<&'h str, Error> {
    let text = std::str::from_utf8(value.as_bytes());
    text.map(str::trim)
        .map_err(|_| json::serialization_error(&format!("The header {} is not UTF-8.", member.wire)))
}

/// What follows a prefix, whose case does not matter.
fn strip<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, tail) = name.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(tail)
}
