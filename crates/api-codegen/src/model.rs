//! An API model, as botocore publishes it in `service-2.json`, without its documentation.
//!
//! The format is described by botocore's own `botocore/model.py`; the traits by the Smithy 1.0 specification's
//! AWS protocols. Fields that haar does not use are dropped when a model is read.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One service's API.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Model {
    /// Names and protocol of the service.
    pub metadata: Metadata,
    /// Every operation, by name.
    pub operations: BTreeMap<String, Operation>,
    /// Every shape, by name.
    pub shapes: BTreeMap<String, Shape>,
}

/// Names and protocol of a service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The version that requests name, such as `2016-11-15`.
    pub api_version: String,
    /// The first label of the service's AWS host name.
    pub endpoint_prefix: String,
    /// `ec2`, `query`, `json` or `rest-json`.
    pub protocol: String,
    /// `1.0` or `1.1`, for the `json` protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_version: Option<String>,
    /// The service's full name.
    pub service_full_name: String,
    /// The service's identifier, such as `EC2` or `CloudWatch Logs`.
    pub service_id: String,
    /// The service's name in a signature's scope; the endpoint prefix where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_name: Option<String>,
    /// What stands before the operation in `X-Amz-Target`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_prefix: Option<String>,
    /// The XML namespace of answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xml_namespace: Option<XmlNamespace>,
}

impl Metadata {
    /// The service's name in a signature's scope.
    pub fn signing_name(&self) -> &str {
        self.signing_name.as_deref().unwrap_or(&self.endpoint_prefix)
    }
}

/// An XML namespace: botocore writes it as a string or as an object.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum XmlNamespace {
    /// The namespace itself.
    Uri(String),
    /// The namespace as the `uri` member of an object.
    Object {
        /// The namespace.
        uri: String,
    },
}

impl XmlNamespace {
    /// The namespace's URI.
    pub fn uri(&self) -> &str {
        match self {
            XmlNamespace::Uri(uri) | XmlNamespace::Object { uri } => uri,
        }
    }
}

/// One operation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Method, path and success status.
    pub http: Http,
    /// The request's shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Reference>,
    /// The answer's shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Reference>,
    /// The shapes of the errors that the operation documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Reference>,
    /// `none` where requests need no signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authtype: Option<String>,
}

/// An operation's HTTP binding.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    /// The HTTP method.
    pub method: String,
    /// The path, with `{Member}` and `{Member+}` labels.
    pub request_uri: String,
    /// The status of a success; 200 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_code: Option<u16>,
}

/// A use of a shape, by a member, a list or an operation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    /// The shape's name.
    pub shape: String,
    /// The name on the wire, where it is not the member's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location_name: Option<String>,
    /// The name in an `ec2` request, where it is not the location name's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_name: Option<String>,
    /// `uri`, `querystring`, `header`, `headers` or `statusCode`; the body where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// The element that wraps a `query` answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_wrapper: Option<String>,
    /// The member is an idempotency token.
    #[serde(default, skip_serializing_if = "is_false")]
    pub idempotency_token: bool,
    /// The list stands without a wrapping element.
    #[serde(default, skip_serializing_if = "is_false")]
    pub flattened: bool,
    /// `iso8601`, `rfc822` or `unixTimestamp`, where it is neither the shape's nor the protocol's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_format: Option<String>,
}

/// A structure, list, map or scalar, with its constraints.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// `structure`, `list`, `map`, `string`, `integer`, `long`, `float`, `double`, `boolean`, `timestamp` or `blob`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A structure's members, in the model's order.
    #[serde(default, skip_serializing_if = "Members::is_empty")]
    pub members: Members,
    /// The members that must be present.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
    /// The values that a string may take.
    #[serde(default, rename = "enum", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// Least length, size or value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<serde_json::Number>,
    /// Greatest length, size or value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<serde_json::Number>,
    /// The regular expression that a string must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// A list's elements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<Reference>,
    /// A map's keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Reference>,
    /// A map's values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Reference>,
    /// The list or map stands without a wrapping element.
    #[serde(default, skip_serializing_if = "is_false")]
    pub flattened: bool,
    /// The member that is the body itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// `iso8601`, `rfc822` or `unixTimestamp`, where it is not the protocol's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_format: Option<String>,
    /// The structure is an error.
    #[serde(default, skip_serializing_if = "is_false")]
    pub exception: bool,
    /// The error is the service's fault.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fault: bool,
    /// The error's code and status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorTrait>,
    /// The value must not be logged.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sensitive: bool,
    /// The blob is a stream.
    #[serde(default, skip_serializing_if = "is_false")]
    pub streaming: bool,
    /// The structure is a stream of events.
    #[serde(default, skip_serializing_if = "is_false")]
    pub eventstream: bool,
    /// Exactly one member of the structure is present.
    #[serde(default, skip_serializing_if = "is_false")]
    pub union: bool,
    /// The structure is any JSON document.
    #[serde(default, skip_serializing_if = "is_false")]
    pub document: bool,
}

impl Shape {
    /// The pattern as it is checked: after the length, so that an upper bound of a repetition that is no less than the greatest
    /// length says nothing more. The model of SSM has one of 100 000, which would compile to hundreds of megabytes.
    pub fn checked_pattern(&self) -> Option<String> {
        /// Bounds below this stay as they are.
        const MANY: u64 = 10_000;
        let pattern = self.pattern.as_deref()?;
        let longest = self.max.as_ref().and_then(serde_json::Number::as_u64).unwrap_or(u64::MAX);
        let mut parts = pattern.split('{');
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let repetition = part.split_once('}').and_then(|(bounds, rest)| {
                let (least, most) = bounds.split_once(',')?;
                let most: u64 = most.parse().ok()?;
                (most > MANY && most >= longest).then(|| format!("{{{least},}}{rest}"))
            });
            out.push_str(&repetition.unwrap_or_else(|| format!("{{{part}")));
        }
        Some(out)
    }
}

/// An error shape's code and status.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorTrait {
    /// The code on the wire, where it is not the shape's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status_code: Option<u16>,
    /// The error is the caller's fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender_fault: Option<bool>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// A structure's members, in the model's order.
#[derive(Debug, Clone, Default)]
pub struct Members(pub Vec<(String, Reference)>);

impl Members {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The members, in the model's order.
    pub fn iter(&self) -> std::slice::Iter<'_, (String, Reference)> {
        self.0.iter()
    }

    /// The member of that name.
    pub fn get(&self, name: &str) -> Option<&Reference> {
        self.0.iter().find(|(member, _)| member == name).map(|(_, reference)| reference)
    }
}

impl<'a> IntoIterator for &'a Members {
    type Item = &'a (String, Reference);
    type IntoIter = std::slice::Iter<'a, (String, Reference)>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, reference) in self {
            map.serialize_entry(name, reference)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a structure's members")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    members.push(entry);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Ordered)
    }
}
