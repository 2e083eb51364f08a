//! Condition context keys and where their values come from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use time::OffsetDateTime;

/// The name of a condition context key, as `aws:SourceIp` or `aws:PrincipalTag/CostCenter`. Case does not count, neither
/// in the key nor in a tag's key after the slash (IAM User Guide, "AWS global condition context keys").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    written: Box<str>,
    lower: Box<str>,
    /// Length of what stands before the slash in `lower`.
    name: usize,
}

impl Key {
    /// A key by its name in any case.
    ///
    /// ```
    /// let key = haar_policy::Key::new("aws:ResourceTag/Team");
    /// assert_eq!((key.name(), key.tag()), ("aws:resourcetag", Some("team")));
    /// assert_eq!(key.lower(), "aws:resourcetag/team");
    /// assert_eq!(key.as_str(), "aws:ResourceTag/Team");
    /// ```
    #[must_use]
    pub fn new(name: &str) -> Self {
        let lower: String = lower(name).collect();
        // The service's prefix may be a host and path, as in `oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE:sub`.
        let prefix = lower.find(':').unwrap_or(0);
        let end = lower[prefix..].find('/').map_or(lower.len(), |slash| prefix + slash);
        Self { written: name.into(), lower: lower.into(), name: end }
    }

    /// The key as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// The whole key in lower case, as `aws:resourcetag/team`.
    #[must_use]
    pub fn lower(&self) -> &str {
        &self.lower
    }

    /// The key without a tag's key, in lower case, as `aws:resourcetag`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.lower[..self.name]
    }

    /// The tag's key behind the slash, in lower case.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.lower.get(self.name + 1..)
    }

    /// The value of the tag that [`Key::tag`] names, whatever its case.
    ///
    /// ```
    /// use haar_policy::{Key, Values};
    ///
    /// let tags = [("Team", "red"), ("Stage", "test")];
    /// assert_eq!(Key::new("ec2:ResourceTag/stage").tag_value(tags), Some(Values::from("test")));
    /// ```
    #[must_use]
    pub fn tag_value<'a>(&self, tags: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<Values<'a>> {
        let wanted = self.tag()?;
        let (_, value) = tags.into_iter().find(|(key, _)| lower(key).eq(wanted.chars()))?;
        Some(value.into())
    }
}

fn lower(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// What a key has in a request: texts, in the form that policies compare. Numbers are decimal, dates ISO 8601 or seconds
/// since 1970, Booleans `true` and `false`, binary values base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Values<'a> {
    /// The value of a single-valued key.
    One(Cow<'a, str>),
    /// The values of a multivalued key, as `aws:TagKeys`. None at all is the same as an absent key.
    Many(Vec<Cow<'a, str>>),
}

impl Values<'_> {
    /// The values, one by one.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        match self {
            Values::One(value) => std::slice::from_ref(value),
            Values::Many(values) => values,
        }
        .iter()
        .map(Cow::as_ref)
    }

    /// Whether this is "a null data set, such as an empty string" (IAM User Guide, "Single-valued vs. multivalued context
    /// keys").
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.iter().all(str::is_empty)
    }
}

impl<'a> From<&'a str> for Values<'a> {
    fn from(value: &'a str) -> Self {
        Values::One(Cow::Borrowed(value))
    }
}

impl<'a> From<&'a String> for Values<'a> {
    fn from(value: &'a String) -> Self {
        Values::One(Cow::Borrowed(value))
    }
}

impl From<String> for Values<'_> {
    fn from(value: String) -> Self {
        Values::One(Cow::Owned(value))
    }
}

impl From<bool> for Values<'_> {
    fn from(value: bool) -> Self {
        Values::One(Cow::Borrowed(if value { "true" } else { "false" }))
    }
}

impl From<i64> for Values<'_> {
    fn from(value: i64) -> Self {
        Values::from(value.to_string())
    }
}

impl<'a, T: Into<Cow<'a, str>>> FromIterator<T> for Values<'a> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Values::Many(values.into_iter().map(Into::into).collect())
    }
}

/// Where the values of condition keys come from. A policy asks only for the keys that it names, and only when the rest of
/// a statement matches so far, so that a value may be computed when it is asked for.
///
/// ```
/// use haar_policy::{Key, Keys, Values};
///
/// struct Instance { instance_type: String, tags: Vec<(String, String)> }
///
/// impl Keys for Instance {
///     fn get(&self, key: &Key) -> Option<Values<'_>> {
///         match key.name() {
///             "ec2:instancetype" => Some(Values::from(&self.instance_type)),
///             "aws:resourcetag" | "ec2:resourcetag" => {
///                 key.tag_value(self.tags.iter().map(|(key, value)| (&**key, &**value)))
///             }
///             _ => None,
///         }
///     }
/// }
/// ```
pub trait Keys {
    /// The values of a key, or `None` if the request does not have it. Match on [`Key::name`], [`Key::tag`] and
    /// [`Key::lower`], which are in lower case.
    fn get(&self, key: &Key) -> Option<Values<'_>>;
}

/// No keys.
impl Keys for () {
    fn get(&self, _: &Key) -> Option<Values<'_>> {
        None
    }
}

impl<K: Keys + ?Sized> Keys for &K {
    fn get(&self, key: &Key) -> Option<Values<'_>> {
        (**self).get(key)
    }
}

impl<K: Keys> Keys for Option<K> {
    fn get(&self, key: &Key) -> Option<Values<'_>> {
        self.as_ref()?.get(key)
    }
}

/// The first that has the key counts.
impl<A: Keys, B: Keys> Keys for (A, B) {
    fn get(&self, key: &Key) -> Option<Values<'_>> {
        self.0.get(key).or_else(|| self.1.get(key))
    }
}

/// Keys with values that are known beforehand: a session's, or the context entries of a simulation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context(BTreeMap<Box<str>, Vec<String>>);

impl Context {
    /// No keys.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the values of a key, whose case does not count.
    pub fn insert<T: Into<String>>(&mut self, key: &str, values: impl IntoIterator<Item = T>) {
        self.0.insert(Key::new(key).lower, values.into_iter().map(Into::into).collect());
    }

    /// The same with one more key.
    #[must_use]
    pub fn with<T: Into<String>>(mut self, key: &str, values: impl IntoIterator<Item = T>) -> Self {
        self.insert(key, values);
        self
    }
}

impl Keys for Context {
    fn get(&self, key: &Key) -> Option<Values<'_>> {
        Some(match &**self.0.get(key.lower())? {
            [value] => value.into(),
            values => values.iter().collect(),
        })
    }
}

/// Global keys that do not depend on action, principal or resource (IAM User Guide, "AWS global condition context keys",
/// "Properties of the network" and "Properties of the request").
#[derive(Debug, Clone, Copy)]
pub struct Environment<'a> {
    /// `aws:CurrentTime` and `aws:EpochTime`.
    pub time: OffsetDateTime,
    /// `aws:SourceIp`.
    pub source_ip: Option<IpAddr>,
    /// `aws:SecureTransport`: whether the request came over TLS.
    pub secure_transport: bool,
    /// `aws:UserAgent`.
    pub user_agent: Option<&'a str>,
    /// `aws:Referer`.
    pub referer: Option<&'a str>,
    /// `aws:RequestedRegion`.
    pub requested_region: Option<&'a str>,
    /// `aws:ViaAWSService`: whether a service makes the request with its caller's credentials.
    pub via_aws_service: bool,
}

impl Keys for Environment<'_> {
    fn get(&self, key: &Key) -> Option<Values<'_>> {
        match key.lower() {
            "aws:currenttime" => Some(date_text(self.time).into()),
            "aws:epochtime" => Some(self.time.unix_timestamp().into()),
            "aws:sourceip" => Some(self.source_ip?.to_canonical().to_string().into()),
            "aws:securetransport" => Some(self.secure_transport.into()),
            "aws:useragent" => self.user_agent.map(Values::from),
            "aws:referer" => self.referer.map(Values::from),
            "aws:requestedregion" => self.requested_region.map(Values::from),
            "aws:viaawsservice" => Some(self.via_aws_service.into()),
            _ => None,
        }
    }
}

/// A time in the form of `aws:CurrentTime` and `aws:TokenIssueTime`, as `2020-01-01T00:00:01Z`.
///
/// ```
/// let time = time::OffsetDateTime::from_unix_timestamp(1_577_836_801).unwrap();
/// assert_eq!(haar_policy::date_text(time), "2020-01-01T00:00:01Z");
/// ```
#[must_use]
pub fn date_text(time: OffsetDateTime) -> String {
    let time = time.to_offset(time::UtcOffset::UTC);
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    let (hour, minute, second) = time.to_hms();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_may_contain_slashes() {
        let key = Key::new("oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE:sub");
        assert_eq!((key.name(), key.tag()), ("oidc.eks.eu-west-1.amazonaws.com/id/example:sub", None));
        let key = Key::new("aws:RequestTag/a/B:c");
        assert_eq!((key.name(), key.tag()), ("aws:requesttag", Some("a/b:c")));
        assert_eq!(Key::new("odd").name(), "odd");
        assert_eq!(Key::new("").tag(), None);
    }

    #[test]
    fn tags_are_found_in_any_case() {
        let tags = [("ÄRGER", "1"), ("team", "2")];
        assert_eq!(Key::new("aws:ResourceTag/ärger").tag_value(tags), Some("1".into()));
        assert_eq!(Key::new("aws:ResourceTag/TEAM").tag_value(tags), Some("2".into()));
        assert_eq!(Key::new("aws:ResourceTag/tea").tag_value(tags), None);
        assert_eq!(Key::new("aws:ResourceTag").tag_value(tags), None);
    }

    #[test]
    fn the_environment_has_the_documented_forms() {
        let environment = Environment {
            time: OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap(),
            source_ip: Some("::ffff:192.0.2.1".parse().unwrap()),
            secure_transport: false,
            user_agent: None,
            referer: None,
            requested_region: Some("eu-central-1"),
            via_aws_service: false,
        };
        for (key, expected) in [
            ("aws:CurrentTime", Some("2023-11-14T22:13:20Z")),
            ("aws:EpochTime", Some("1700000000")),
            ("AWS:sourceIP", Some("192.0.2.1")),
            ("aws:SecureTransport", Some("false")),
            ("aws:UserAgent", None),
            ("aws:RequestedRegion", Some("eu-central-1")),
            ("aws:SourceVpc", None),
        ] {
            assert_eq!(environment.get(&Key::new(key)), expected.map(Values::from), "{key}");
        }
    }

    #[test]
    fn the_first_of_several_counts() {
        let first = Context::new().with("a:x", ["1"]);
        let second = Context::new().with("A:X", ["2"]).with("a:y", ["3", "4"]);
        assert_eq!((&first, &second).get(&Key::new("a:x")), Some("1".into()));
        assert_eq!((&first, &second).get(&Key::new("a:y")), Some(["3", "4"].into_iter().collect()));
        assert_eq!((Some(second), first).get(&Key::new("a:x")), Some("2".into()));
        assert_eq!(
            Context::new().with("a:y", ["3", "4"]).get(&Key::new("a:Y")),
            Some(["3", "4"].into_iter().collect())
        );
    }
}
