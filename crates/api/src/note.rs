//! What is noted down of the requests that were answered, for an audit trail.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value as Json, json};

use crate::schema::{Kind, Location, Operation, Part, Protocol, Shape, slots};
use crate::timestamp;
use crate::value::Value;
use crate::xml::lower_first;
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
    /// What was asked for, in the form of CloudTrail, with its secrets.
    pub request: Json,
    /// What was answered, in the form of CloudTrail, with its secrets; none for what reads only and for errors.
    pub response: Option<Json>,
    /// The error that was answered.
    pub error: Option<&'a Error>,
}

/// Operations that move data. CloudTrail has them as data events, which nobody gets without asking, as there are many (EBS User
/// Guide, "Log API calls using AWS CloudTrail").
const DATA: [(&str, &str); 4] = [
    ("ebs", "GetSnapshotBlock"),
    ("ebs", "ListChangedBlocks"),
    ("ebs", "ListSnapshotBlocks"),
    ("ebs", "PutSnapshotBlock"),
];

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
pub(crate) fn request(protocol: Protocol, part: Part<'_>) -> Json {
    match json_of(protocol, part.0, part.1) {
        Json::Object(members) if members.is_empty() => Json::Null,
        value => value,
    }
}

fn json_of(protocol: Protocol, shape: &'static Shape, value: &Value) -> Json {
    match (&shape.kind, value) {
        (Kind::Structure(members), Value::Structure(values)) => {
            let mut object = Map::new();
            for ((member, shape), value) in slots(members).zip(values) {
                // What is the body itself is data.
                let Some(value) = value.as_ref().filter(|_| member.location != Location::Payload) else {
                    continue;
                };
                let json = json_of(protocol, shape, value);
                match json {
                    Json::Array(items) if items.is_empty() => {}
                    Json::Array(items) if protocol == Protocol::Ec2 => {
                        let (name, items) = ec2_list(member.name, items);
                        object.insert(name, json!({ "items": items }));
                    }
                    json => drop(object.insert(lower_first(member.name), json)),
                }
            }
            object.into()
        }
        (Kind::List(list), Value::List(values)) => {
            values.iter().map(|value| json_of(protocol, list.member, value)).collect()
        }
        (Kind::Map(map), Value::Map(entries)) => {
            let entries =
                entries.iter().map(|(key, value)| (key.clone(), json_of(protocol, map.value, value)));
            entries.collect::<Map<_, _>>().into()
        }
        (_, Value::String(text)) => text.as_str().into(),
        (_, Value::Integer(number)) => (*number).into(),
        (_, Value::Double(number)) => (*number).into(),
        (_, Value::Boolean(truth)) => (*truth).into(),
        (_, Value::Timestamp(time)) => timestamp::iso8601(*time, false).into(),
        (_, Value::Blob(bytes)) => BASE64_STANDARD.encode(bytes).into(),
        (_, Value::Document(value)) => value.clone(),
        _ => Json::Null,
    }
}

/// A list as EC2's events have them: `InstanceIds` is `instancesSet` with items `{"instanceId": …}`, `Filters` is `filterSet`.
fn ec2_list(member: &str, items: Vec<Json>) -> (String, Vec<Json>) {
    let name = lower_first(member);
    let stem = name.strip_suffix("Ids").or_else(|| name.strip_suffix('s')).unwrap_or(&name);
    let set = match member {
        "InstanceIds" => "instancesSet".to_owned(),
        "Resources" => "resourcesSet".to_owned(),
        "SecurityGroupIds" => "groupSet".to_owned(),
        _ => format!("{stem}Set"),
    };
    let item = match member {
        "Resources" => "resourceId".to_owned(),
        "SecurityGroupIds" => "groupId".to_owned(),
        "Values" => "value".to_owned(),
        _ if name.ends_with("Ids") => format!("{stem}Id"),
        _ => stem.to_owned(),
    };
    let wrap = |value: Json| match value {
        Json::Object(_) => value,
        scalar => json!({ item.as_str(): scalar }),
    };
    (set, items.into_iter().map(wrap).collect())
}
