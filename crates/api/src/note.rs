//! What is noted down of the requests that were answered, for an audit trail.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::schema::{Kind, Location, Operation, Part, Protocol, Shape, slots};
use crate::timestamp;
use crate::value::Value;
use crate::{Context, Error};

/// Takes note of what was answered.
pub trait Recorder: Send + Sync + 'static {
    /// Takes note of a request whose caller is known, before the client gets the answer.
    fn record(&self, event: Event<'_>);
}

/// A request and what became of it.
#[derive(Debug)]
pub struct Event<'a> {
    /// Who asked, what, when and from where.
    pub ctx: &'a Context,
    /// The protocol of the service.
    pub protocol: Protocol,
    /// Whether the operation changes nothing.
    pub read_only: bool,
    /// What was asked for, in the form of CloudTrail, without secrets.
    pub request: Noted,
    /// What was answered, in the form of CloudTrail, without secrets; none for what reads only and for errors.
    pub response: Option<Noted>,
    /// The error that was answered.
    pub error: Option<&'a Error>,
}

/// A value as JSON text in the form of CloudTrail, without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted(Vec<u8>);

impl Noted {
    /// `null`.
    pub(crate) fn nothing() -> Self {
        Noted(b"null".to_vec())
    }

    /// The text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A value whose names are the model's.
impl From<&Json> for Noted {
    fn from(value: &Json) -> Self {
        Text::of(|text| text.value(value))
    }
}

/// Operations that move data. CloudTrail has them as data events, which nobody gets without asking, as there are many (EBS User
/// Guide, "Log API calls using AWS CloudTrail").
const DATA: [(&str, &str); 4] = [
    ("ebs", "GetSnapshotBlock"),
    ("ebs", "ListChangedBlocks"),
    ("ebs", "ListSnapshotBlocks"),
    ("ebs", "PutSnapshotBlock"),
];

/// What stands for a secret.
const REMOVED: &str = "<sensitiveDataRemoved>";

/// Members of requests and answers that are secret, beside those of which the model says so.
const SECRETS: [&str; 19] = [
    "authenticationCode1",
    "authenticationCode2",
    "base32StringSeed",
    "keyMaterial",
    "newPassword",
    "oldPassword",
    "password",
    "plaintext",
    "privateKey",
    "qRCodePNG",
    "sAMLAssertion",
    "secretAccessKey",
    "secretBinary",
    "secretString",
    "serializedPolicyState",
    "sessionToken",
    "tokenCode",
    "userData",
    "webIdentityToken",
];

/// Writes JSON in the form of CloudTrail, without what must not be kept. Members, items and leaves are written in their order;
/// a value of which nothing is written is null.
#[derive(Debug, Default)]
pub(crate) struct Text {
    out: Vec<u8>,
    /// The open values, the innermost last.
    open: Vec<Open>,
    /// Members that begin now are secret, whatever they are called.
    pub(crate) sensitive: bool,
}

/// A value that is being written.
#[derive(Debug)]
struct Open {
    holds: Holds,
    /// Where it begins, if it is secret.
    secret: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Nothing,
    Leaf,
    Members,
}

impl Text {
    /// The text of one value, which `write` writes.
    pub(crate) fn of(write: impl FnOnce(&mut Self)) -> Noted {
        let mut text = Self { out: Vec::with_capacity(256), open: Vec::with_capacity(8), sensitive: false };
        text.begin(None);
        write(&mut text);
        text.close();
        Noted(text.out)
    }

    /// Begins a member, which a name of the model has: as CloudTrail writes it, in lower case.
    pub(crate) fn open(&mut self, name: &str) {
        if name == "return" {
            return self.open_key("_return");
        }
        self.open_longer(name, "");
    }

    /// As [`Self::open`], with something appended to the name.
    fn open_longer(&mut self, name: &str, more: &str) {
        let begin = self.begin_key(name);
        self.out[begin].make_ascii_lowercase();
        if !more.is_empty() {
            self.out.pop();
            self.out.extend_from_slice(more.as_bytes());
            self.out.push(b'"');
        }
        self.end_key(begin);
    }

    /// Begins a member, which has this name.
    pub(crate) fn open_key(&mut self, name: &str) {
        let begin = self.begin_key(name);
        self.end_key(begin);
    }

    /// Writes a member's name in quotes; where it begins.
    fn begin_key(&mut self, name: &str) -> usize {
        if let Some(parent) = self.open.last_mut() {
            self.out.push(if parent.holds == Holds::Members { b',' } else { b'{' });
            parent.holds = Holds::Members;
        }
        let quote = self.out.len();
        self.push(name);
        quote + 1
    }

    fn end_key(&mut self, begin: usize) {
        let name = &self.out[begin..self.out.len() - 1];
        let is_secret = self.sensitive || SECRETS.iter().any(|secret| secret.as_bytes() == name);
        self.out.push(b':');
        self.begin(is_secret.then_some(self.out.len()));
    }

    /// Writes the open value.
    pub(crate) fn leaf(&mut self, value: impl Serialize) {
        self.push(value);
        self.hold_leaf();
    }

    /// Writes the open value where nothing of it is written.
    pub(crate) fn leaf_if_nothing(&mut self, value: impl Serialize) {
        if self.open.last().is_some_and(|open| open.holds == Holds::Nothing) {
            self.leaf(value);
        }
    }

    /// Begins to write the open value as a list.
    pub(crate) fn open_items(&mut self) {
        self.out.push(b'[');
    }

    /// Begins an item of the list.
    pub(crate) fn open_item(&mut self) {
        if !self.out.ends_with(b"[") {
            self.out.push(b',');
        }
        self.begin(None);
    }

    /// Ends the list.
    pub(crate) fn close_items(&mut self) {
        self.out.push(b']');
        self.hold_leaf();
    }

    /// Writes the open value, its names as names of the model.
    fn value(&mut self, value: &Json) {
        match value {
            Json::Object(members) => {
                for (key, member) in members {
                    self.open(key);
                    self.value(member);
                    self.close();
                }
                self.leaf_if_nothing(members);
            }
            Json::Array(items) => {
                self.open_items();
                for item in items {
                    self.open_item();
                    self.value(item);
                    self.close();
                }
                self.close_items();
            }
            scalar => self.leaf(scalar),
        }
    }

    fn push(&mut self, value: impl Serialize) {
        let begin = self.out.len();
        // Into memory, nothing fails that has a form in JSON.
        if serde_json::to_writer(&mut self.out, &value).is_err() {
            self.out.truncate(begin);
            self.out.extend_from_slice(b"null");
        }
    }

    fn hold_leaf(&mut self) {
        if let Some(open) = self.open.last_mut() {
            open.holds = Holds::Leaf;
        }
    }

    fn begin(&mut self, secret: Option<usize>) {
        self.open.push(Open { holds: Holds::Nothing, secret });
    }

    /// Ends the member or item that was begun last.
    pub(crate) fn close(&mut self) {
        let Some(ended) = self.open.pop() else { return };
        match ended.holds {
            Holds::Nothing => self.out.extend_from_slice(b"null"),
            Holds::Leaf => {}
            Holds::Members => self.out.push(b'}'),
        }
        if let Some(begin) = ended.secret.filter(|begin| self.out[*begin..] != *b"null") {
            self.out.truncate(begin);
            self.push(REMOVED);
        }
    }
}

/// Whether an operation is recorded: one that manages.
pub(crate) fn is_recorded(service: &str, operation: &Operation) -> bool {
    !DATA.contains(&(service, operation.route.name))
}

/// Whether an operation changes nothing, by its name.
pub(crate) fn is_read_only(operation: &Operation) -> bool {
    const READING: [&str; 9] =
        ["Assume", "BatchGet", "Decode", "Describe", "Get", "List", "Lookup", "Search", "Simulate"];
    READING.iter().any(|verb| operation.route.name.starts_with(verb))
}

/// Whether the answer of an operation is noted: of those that change something, and of those that give credentials.
pub(crate) fn is_answer_noted(operation: &Operation) -> bool {
    let name = operation.route.name;
    !is_read_only(operation)
        || name.starts_with("Assume")
        || matches!(name, "GetSessionToken" | "GetFederationToken")
}

/// A request's input in the form of CloudTrail's `requestParameters`: null where there is none.
pub(crate) fn request(protocol: Protocol, part: Part<'_>) -> Noted {
    let noted = Text::of(|text| write(text, protocol, part.0, part.1));
    if noted.0 == b"{}" { Noted(b"null".to_vec()) } else { noted }
}

fn write(text: &mut Text, protocol: Protocol, shape: &'static Shape, value: &Value) {
    match (&shape.kind, value) {
        (Kind::Structure(members), Value::Structure(values)) => {
            for ((member, shape), value) in slots(members).zip(values) {
                // What is the body itself is data.
                let Some(value) = value.as_ref().filter(|_| member.location != Location::Payload) else {
                    continue;
                };
                match (&shape.kind, value) {
                    (_, Value::List(values)) if values.is_empty() => {}
                    (Kind::List(list), Value::List(values)) if protocol == Protocol::Ec2 => {
                        let (set, item) = ec2_list(member.name);
                        text.open_longer(set, "Set");
                        text.open("items");
                        write_list(text, protocol, list.member, values, Some(item));
                        text.close();
                        text.close();
                    }
                    _ => {
                        text.sensitive = member.sensitive;
                        text.open(member.name);
                        text.sensitive = false;
                        write(text, protocol, shape, value);
                        text.close();
                    }
                }
            }
            text.leaf_if_nothing(Map::new());
        }
        (Kind::List(list), Value::List(values)) => write_list(text, protocol, list.member, values, None),
        (Kind::Map(map), Value::Map(entries)) => {
            for (key, value) in entries {
                text.open_key(key);
                write(text, protocol, map.value, value);
                text.close();
            }
            text.leaf_if_nothing(Map::new());
        }
        (_, Value::String(value)) => text.leaf(value),
        (_, Value::Integer(number)) => text.leaf(number),
        (_, Value::Double(number)) => text.leaf(number),
        (_, Value::Boolean(truth)) => text.leaf(truth),
        (_, Value::Timestamp(time)) => text.leaf(timestamp::iso8601(*time, false)),
        (_, Value::Blob(bytes)) => text.leaf(BASE64_STANDARD.encode(bytes)),
        (_, Value::Document(value)) => text.leaf(value),
        _ => {}
    }
}

/// A list, whose scalars are members of this name, in two parts, of items of their own, if it is given.
fn write_list(
    text: &mut Text,
    protocol: Protocol,
    shape: &'static Shape,
    values: &[Value],
    scalar: Option<(&str, &str)>,
) {
    let scalar = scalar.filter(|_| !matches!(shape.kind, Kind::Structure(_) | Kind::Map(_)));
    text.open_items();
    for value in values {
        text.open_item();
        if let Some((name, more)) = scalar {
            text.open_longer(name, more);
        }
        write(text, protocol, shape, value);
        if scalar.is_some() {
            text.close();
        }
        text.close();
    }
    text.close_items();
}

/// What EC2's events call a list of this name, without `Set`, and its items where they are scalars, in two parts: `InstanceIds` is
/// `instancesSet` with items `{"instanceId": …}`, `Filters` is `filterSet`.
fn ec2_list(member: &str) -> (&str, (&str, &str)) {
    let ids = member.strip_suffix("Ids");
    let stem = ids.or_else(|| member.strip_suffix('s')).unwrap_or(member);
    match member {
        "InstanceIds" => ("instances", (stem, "Id")),
        "Resources" => ("resources", ("resource", "Id")),
        "SecurityGroupIds" => ("group", ("group", "Id")),
        _ => (stem, (stem, if ids.is_some() { "Id" } else { "" })),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_cloudtrails_and_secrets_are_left_out() {
        let value = json!({
            "Role": {"Arn": "arn:r", "Tags": [{"Key": "a"}, "b", [], {}]},
            "return": true,
            "Credentials": {"SecretAccessKey": "very secret", "SessionToken": ["very", {"Secret": "secret"}]},
            "Password": null,
            "Empty": {},
            "Quoted": "\"[\n",
            "Number": 1.5,
        });
        let noted = Noted::from(&value);
        let expected = json!({
            "role": {"arn": "arn:r", "tags": [{"key": "a"}, "b", [], {}]},
            "_return": true,
            "credentials": {"secretAccessKey": REMOVED, "sessionToken": REMOVED},
            "password": null,
            "empty": {},
            "quoted": "\"[\n",
            "number": 1.5,
        });
        assert_eq!(serde_json::from_slice::<Json>(noted.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn what_nothing_is_written_of_is_null() {
        assert_eq!(Text::of(|_| ()).as_bytes(), b"null");
        let member = Text::of(|text| {
            text.open("Member");
            text.close();
            text.open("Items");
            text.open_items();
            text.open_item();
            text.close();
            text.close_items();
            text.close();
        });
        assert_eq!(member.as_bytes(), br#"{"member":null,"items":[null]}"#);
    }
}
