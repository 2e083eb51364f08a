//! The resources that requests name.

use haar_api::Context;
use haar_api::schema::{Operation, Part, ResourceType};
use haar_api::value::Value;
use haar_policy::{Key, Keys, ResourcePolicy, Values};

/// Finds the resources of a service that requests name.
pub trait Resources: Send + Sync + 'static {
    /// The resources that one part of a request is about. One that does not exist has an ARN all the same: whether the caller may
    /// act upon it is asked first.
    ///
    /// The default knows resources by their ARNs only.
    fn find(&self, query: &Query<'_>) -> Vec<Resource> {
        match query.named {
            Named::Id(id) => vec![Resource::new(query.arn(id))],
            Named::New => vec![Resource::new(query.arn("*"))],
            Named::Default => Vec::new(),
        }
    }

    /// The request as it will be carried out, where that takes from records what the request does not say itself, as a launch does from a
    /// template; none where it takes nothing.
    fn complete(&self, _ctx: &Context, _operation: &'static Operation, _input: &Value) -> Option<Complete> {
        None
    }
}

/// A request together with what it takes from records.
#[derive(Debug, Clone, PartialEq)]
pub struct Complete {
    /// The request that asks by itself for everything that will be done.
    pub asked: Value,
    /// The request that takes what was looked at, whatever becomes of the records until it is carried out; none where that is the
    /// request itself.
    pub fixed: Option<Value>,
}

/// Services whose resources have nothing but their ARNs.
impl Resources for () {}

/// Which resources are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The request.
    pub ctx: &'a Context,
    /// Its operation.
    pub operation: &'static Operation,
    /// Its input.
    pub input: &'a Value,
    /// The action that is asked for, such as `ec2:RunInstances`.
    pub action: &'static str,
    /// The resources' type.
    pub resource: ResourceType,
    /// How the request names them.
    pub named: Named<'a>,
}

/// How a request names a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    /// By this text, an id or a name or whatever the member holds.
    Id(&'a str),
    /// Not at all: it is about to be made.
    New,
    /// Not at all: the service takes those that it takes.
    Default,
}

impl<'a> Query<'a> {
    /// The ARN of the type's resource that `id` tells apart.
    #[must_use]
    pub fn arn(&self, id: &str) -> String {
        self.resource.arn(&self.ctx.region, &self.ctx.account, id)
    }

    /// The name of the operation, such as `RunInstances`.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.operation.route.name
    }

    /// The request.
    #[must_use]
    pub fn request(&self) -> Part<'a> {
        Part(self.operation.input, self.input)
    }

    /// The first value at a path of the request's members, as policies compare it.
    #[must_use]
    pub fn word(&self, path: &[&str]) -> Option<String> {
        word(self.request(), path)
    }
}

/// The first value at a path of members, as policies compare it.
#[must_use]
pub fn word(part: Part<'_>, path: &[&str]) -> Option<String> {
    part.values(path).into_iter().find_map(|value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    })
}

/// A resource and what policies may ask of it.
#[derive(Debug, Clone, Default)]
pub struct Resource {
    /// Its ARN.
    pub arn: String,
    /// The account that owns it; empty where that does not count.
    pub account: String,
    /// Its tags: `aws:ResourceTag/…` and, for a service that has such keys, `SERVICE:ResourceTag/…`.
    pub tags: Vec<(String, String)>,
    /// Its other keys, such as `ec2:InstanceType`.
    pub keys: Vec<(&'static str, Vec<String>)>,
    /// Its policy: a role's trust policy, or one that may allow by itself.
    pub policy: Option<Policy>,
}

/// The policy of a resource.
#[derive(Debug, Clone)]
pub enum Policy {
    /// May allow what an identity-based policy does not.
    ResourceBased(haar_policy::Attached),
    /// A role's trust policy, which has to allow.
    RoleTrust(haar_policy::Attached),
}

impl Resource {
    /// A resource by its ARN, of the account that the ARN names.
    #[must_use]
    pub fn new(arn: impl Into<String>) -> Self {
        let arn = arn.into();
        let account = arn.split(':').nth(4).unwrap_or_default().to_owned();
        Self { arn, account, ..Self::default() }
    }

    /// The same with one more key.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.keys.push((key, vec![value.into()]));
        self
    }

    /// The same with one more key, where there is a value for it.
    #[must_use]
    pub fn with_some(self, key: &'static str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// The same with tags.
    #[must_use]
    pub fn with_tags<K: Into<String>, V: Into<String>>(
        mut self,
        tags: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.tags = tags.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        self
    }

    pub(crate) fn as_policy_resource(&self) -> haar_policy::Resource<'_> {
        let policy = self.policy.as_ref().map(|policy| match policy {
            Policy::ResourceBased(attached) => ResourcePolicy::ResourceBased(attached),
            Policy::RoleTrust(attached) => ResourcePolicy::RoleTrust(attached),
        });
        haar_policy::Resource { arn: &self.arn, account: &self.account, keys: self, policy }
    }
}

impl Keys for Resource {
    fn get(&self, key: &Key) -> Option<Values<'_>> {
        if key.tag().is_some() && key.name().ends_with(":resourcetag") {
            return key.tag_value(self.tags.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        }
        let (_, values) = self.keys.iter().find(|(name, _)| name.eq_ignore_ascii_case(key.lower()))?;
        Some(match values.as_slice() {
            [value] => value.into(),
            values => values.iter().collect(),
        })
    }
}
