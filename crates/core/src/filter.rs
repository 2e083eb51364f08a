//! Filters of describe operations (EC2 API Reference, `Filter`; EC2 User Guide, "Find your Amazon EC2 resources").
//!
//! A service declares once which filters an operation has and where their values come from, as a [`FilterTable`]. A
//! request's filters are checked and compiled against the table, and then asked for every record.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use crate::Pattern;
use crate::id::shorten;
use crate::tags::Tags;

/// Most values of all filters of a request together.
pub const MAX_VALUES: usize = 200;

/// Most characters of a value.
pub const MAX_VALUE_CHARS: usize = 255;

/// Why filters are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The operation has no such filter.
    #[error("The filter '{0}' is invalid")]
    Unknown(String),
    /// A filter without values.
    #[error("The filter '{0}' must have at least one value")]
    NoValues(String),
    /// Too many values.
    #[error("The maximum number of filter values specified on a single call is {MAX_VALUES}")]
    TooManyValues,
    /// A value that is too long.
    #[error("The maximum length for a filter value is {MAX_VALUE_CHARS} characters")]
    ValueTooLong,
}

impl FilterError {
    /// EC2's error code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown(_) | Self::NoValues(_) => "InvalidParameterValue",
            Self::TooManyValues | Self::ValueTooLong => "FilterLimitExceeded",
        }
    }
}

/// Shows the values of a record for one filter to a [`Probe`]. `C` is what it needs besides the record.
pub type Accessor<T, C> = fn(&T, &C, &mut Probe<'_>);

/// The filters that an operation has.
///
/// ```
/// use haar_core::{FilterTable, Tags};
///
/// struct Disk { id: String, gib: u32, tags: Tags }
///
/// const FILTERS: FilterTable<Disk> = FilterTable::<Disk>::new(&[
///     ("volume-id", |disk, (), probe| probe.value(&disk.id)),
///     ("size", |disk, (), probe| probe.display(disk.gib)),
/// ])
/// .with_tags(|disk| &disk.tags);
///
/// let request = [("size", vec!["8", "16"]), ("tag:Name", vec!["web-*"])];
/// let filters = FILTERS.parse(request.iter().map(|(name, values)| (Some(*name), values.iter().copied())))?;
/// let tags = Tags::from([("Name".into(), "web-1".into())]);
/// assert!(filters.matches(&Disk { id: "vol-1".into(), gib: 16, tags }, &()));
/// # Ok::<_, haar_core::FilterError>(())
/// ```
pub struct FilterTable<T: 'static, C: 'static = ()> {
    filters: &'static [(&'static str, Accessor<T, C>)],
    tags: Option<fn(&T) -> &Tags>,
}

impl<T, C> FilterTable<T, C> {
    /// Filters by name.
    #[must_use]
    pub const fn new(filters: &'static [(&'static str, Accessor<T, C>)]) -> Self {
        Self { filters, tags: None }
    }

    /// Adds `tag:KEY`, `tag-key` and `tag-value`.
    #[must_use]
    pub const fn with_tags(mut self, tags: fn(&T) -> &Tags) -> Self {
        self.tags = Some(tags);
        self
    }

    /// Checks the filters of a request and makes them ready for many records.
    ///
    /// # Errors
    /// Every [`FilterError`].
    pub fn parse<'a, V>(
        &self,
        filters: impl IntoIterator<Item = (Option<&'a str>, V)>,
    ) -> Result<Filters<'a, T, C>, FilterError>
    where
        V: IntoIterator<Item = &'a str>,
    {
        let mut parsed = Filters { filters: Vec::new() };
        let mut count = 0;
        for (name, values) in filters {
            let name = name.unwrap_or("null");
            let source = self.source(name).ok_or_else(|| FilterError::Unknown(shorten(name).to_owned()))?;
            let mut values_of = Values::default();
            let mut raw = Vec::new();
            for value in values {
                count += 1;
                if count > MAX_VALUES {
                    return Err(FilterError::TooManyValues);
                }
                if value.chars().nth(MAX_VALUE_CHARS).is_some() {
                    return Err(FilterError::ValueTooLong);
                }
                values_of.add(value);
                raw.push(value);
            }
            if raw.is_empty() {
                return Err(FilterError::NoValues(shorten(name).to_owned()));
            }
            values_of.literals.sort_unstable();
            parsed.filters.push(Filter { name, raw, source, values: values_of });
        }
        Ok(parsed)
    }

    fn source<'a>(&self, name: &'a str) -> Option<Source<'a, T, C>> {
        let by_tags = |tags| match name {
            "tag-key" => Some(Source::TagKeys(tags)),
            "tag-value" => Some(Source::TagValues(tags)),
            _ => name.strip_prefix("tag:").map(|key| Source::Tag(tags, key)),
        };
        self.tags.and_then(by_tags).or_else(|| {
            let (_, accessor) = self.filters.iter().find(|(known, _)| *known == name)?;
            Some(Source::Accessor(*accessor))
        })
    }
}

/// The filters of a request, whose text is `'r`.
pub struct Filters<'r, T, C = ()> {
    filters: Vec<Filter<'r, T, C>>,
}

struct Filter<'r, T, C> {
    name: &'r str,
    /// Values as they came.
    raw: Vec<&'r str>,
    source: Source<'r, T, C>,
    values: Values<'r>,
}

enum Source<'r, T, C> {
    Accessor(Accessor<T, C>),
    Tag(fn(&T) -> &Tags, &'r str),
    TagKeys(fn(&T) -> &Tags),
    TagValues(fn(&T) -> &Tags),
}

impl<'r, T, C> Filter<'r, T, C> {
    /// Its values, if all of them stand for themselves.
    fn literals(&self) -> Option<&[Cow<'r, str>]> {
        self.values.patterns.is_empty().then_some(self.values.literals.as_slice())
    }
}

impl<'r, T, C> Filters<'r, T, C> {
    /// Whether a record passes: every filter has a value that one of the record's values matches.
    #[must_use]
    pub fn matches(&self, record: &T, context: &C) -> bool {
        self.filters.iter().all(|filter| {
            let mut probe = Probe { values: &filter.values, matched: false, buffer: String::new() };
            match &filter.source {
                Source::Accessor(accessor) => accessor(record, context, &mut probe),
                Source::Tag(tags, key) => {
                    tags(record).get(*key).into_iter().for_each(|value| probe.value(value));
                }
                Source::TagKeys(tags) => tags(record).keys().for_each(|key| probe.value(key)),
                Source::TagValues(tags) => tags(record).values().for_each(|value| probe.value(value)),
            }
            probe.matched
        })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// The values of the first filter of this name, if all of them stand for themselves: records that pass have one of
    /// them, so that an index can find these records.
    #[must_use]
    pub fn literals(&self, name: &str) -> Option<&[Cow<'r, str>]> {
        self.filters.iter().find(|filter| filter.name == name)?.literals()
    }

    /// Takes out the first filter by a tag whose values all stand for themselves: its key and the values. Records that have the
    /// tag with one of them, which an index tells, pass if they pass the other filters.
    pub fn take_tag(&mut self) -> Option<(&'r str, Vec<Cow<'r, str>>)> {
        let is_such = |filter: &Filter<'r, T, C>| {
            matches!(filter.source, Source::Tag(..)) && filter.literals().is_some()
        };
        let filter = self.filters.remove(self.filters.iter().position(is_such)?);
        match filter.source {
            Source::Tag(_, key) => Some((key, filter.values.literals)),
            _ => None,
        }
    }

    /// Names and values as they came, for a [`Fingerprint`](crate::Fingerprint).
    #[must_use]
    pub fn raw(&self) -> Vec<(&'r str, &[&'r str])> {
        self.filters.iter().map(|filter| (filter.name, filter.raw.as_slice())).collect()
    }
}

impl<T, C> fmt::Debug for Filters<'_, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.filters.iter().map(|filter| (&filter.name, &filter.raw))).finish()
    }
}

/// Takes the values that a record has for a filter.
pub struct Probe<'f> {
    values: &'f Values<'f>,
    matched: bool,
    buffer: String,
}

impl Probe<'_> {
    /// One value.
    pub fn value(&mut self, value: &str) {
        self.matched = self.matched || self.values.match_any(value);
    }

    /// A value that may be absent, or several.
    pub fn values<'v>(&mut self, values: impl IntoIterator<Item = &'v str>) {
        values.into_iter().for_each(|value| self.value(value));
    }

    /// A value that is written out: a number, an address, `true` or `false`.
    pub fn display(&mut self, value: impl fmt::Display) {
        if !self.matched {
            self.buffer.clear();
            // Writing to a string does not fail.
            let _ = write!(self.buffer, "{value}");
            self.matched = self.values.match_any(&self.buffer);
        }
    }
}

/// The values of one filter.
#[derive(Default)]
struct Values<'r> {
    /// Sorted, unescaped.
    literals: Vec<Cow<'r, str>>,
    patterns: Vec<Pattern>,
}

impl<'r> Values<'r> {
    fn add(&mut self, value: &'r str) {
        if Pattern::is_plain(value) {
            return self.literals.push(value.into());
        }
        let pattern = Pattern::new(value);
        match pattern.literal() {
            Some(literal) => self.literals.push(literal.to_owned().into()),
            None => self.patterns.push(pattern),
        }
    }

    fn match_any(&self, value: &str) -> bool {
        let literal = match self.literals.as_slice() {
            [] => false,
            [one] => one == value,
            many => many.binary_search_by(|literal| (**literal).cmp(value)).is_ok(),
        };
        literal || self.patterns.iter().any(|pattern| pattern.matches(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Disk {
        id: &'static str,
        gib: u32,
        zones: Vec<&'static str>,
        tags: Tags,
    }

    const FILTERS: FilterTable<Disk, u32> = FilterTable::<Disk, u32>::new(&[
        ("volume-id", |disk, _, probe| probe.value(disk.id)),
        ("size", |disk, unit, probe| probe.display(disk.gib * unit)),
        ("zone", |disk, _, probe| probe.values(disk.zones.iter().copied())),
    ])
    .with_tags(|disk| &disk.tags);

    fn disk() -> Disk {
        let tags = [("Name", "web-1"), ("stage", "prod"), ("a:b", "x*y")];
        Disk {
            id: "vol-1",
            gib: 8,
            zones: vec!["a", "b"],
            tags: tags.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        }
    }

    fn parse(
        filters: &[(&'static str, &[&'static str])],
    ) -> Result<Filters<'static, Disk, u32>, FilterError> {
        FILTERS.parse(filters.iter().map(|(name, values)| (Some(*name), values.iter().copied())))
    }

    fn passes(filters: &[(&'static str, &[&'static str])]) -> bool {
        parse(filters).unwrap().matches(&disk(), &2)
    }

    #[test]
    fn values_are_alternatives_and_filters_conditions() {
        assert!(passes(&[]));
        assert!(passes(&[("volume-id", &["vol-2", "vol-1"])]));
        assert!(!passes(&[("volume-id", &["vol-2", "VOL-1"])]));
        assert!(passes(&[("volume-id", &["vol-1"]), ("size", &["16"])]));
        assert!(!passes(&[("volume-id", &["vol-1"]), ("size", &["8"])]));
        assert!(passes(&[("zone", &["b"])]));
        assert!(!passes(&[("zone", &["c"])]));
        assert!(!passes(&[("zone", &["a"]), ("zone", &["c"])]));
    }

    #[test]
    fn tags_are_filters() {
        assert!(passes(&[("tag:Name", &["web-*"])]));
        assert!(!passes(&[("tag:name", &["web-1"])]));
        assert!(!passes(&[("tag:Missing", &["*"])]));
        assert!(passes(&[("tag:a:b", &["x\\*y"])]));
        assert!(passes(&[("tag-key", &["stage"])]));
        assert!(!passes(&[("tag-key", &["prod"])]));
        assert!(passes(&[("tag-value", &["pro?"])]));
        let untagged: FilterTable<Disk> = FilterTable::new(&[]);
        let request = || [(Some("tag-key"), ["x"])];
        assert_eq!(untagged.parse(request()).unwrap_err(), FilterError::Unknown("tag-key".into()));
    }

    #[test]
    fn filters_are_checked() {
        assert_eq!(parse(&[("size ", &["1"])]).unwrap_err(), FilterError::Unknown("size ".into()));
        assert_eq!(parse(&[("Size", &["1"])]).unwrap_err().to_string(), "The filter 'Size' is invalid");
        assert_eq!(FILTERS.parse([(None, ["x"])]).unwrap_err(), FilterError::Unknown("null".into()));
        assert_eq!(parse(&[("size", &[])]).unwrap_err(), FilterError::NoValues("size".into()));
        assert!(parse(&[("size", &["1"; 100]), ("zone", &["1"; 100])]).is_ok());
        let e = parse(&[("size", &["1"; 100]), ("zone", &["1"; 101])]).unwrap_err();
        assert_eq!((e.code(), e), ("FilterLimitExceeded", FilterError::TooManyValues));
        let long = "é".repeat(256);
        assert_eq!(FILTERS.parse([(Some("size"), [long.as_str()])]).unwrap_err(), FilterError::ValueTooLong);
        assert!(FILTERS.parse([(Some("size"), [&long[2..]])]).is_ok());
    }

    #[test]
    fn requests_with_other_filters_are_told_apart() {
        let print = |filters| crate::Fingerprint::of(&parse(filters).unwrap().raw());
        let one = print(&[("zone", &["a"]), ("zone", &["b"])]);
        assert_eq!(one, print(&[("zone", &["a"]), ("zone", &["b"])]));
        assert_ne!(one, print(&[("zone", &["c"]), ("zone", &["b"])]));
        assert_ne!(one, print(&[("zone", &["a", "b"])]));
    }

    #[test]
    fn an_index_is_offered_literal_values_only() {
        let mut filters = parse(&[("volume-id", &["b\\*", "a"]), ("size", &["1*"])]).unwrap();
        assert_eq!(filters.literals("volume-id").unwrap(), ["a", "b*"]);
        assert_eq!(filters.literals("size"), None);
        assert_eq!(filters.literals("zone"), None);
        assert!(filters.take_tag().is_none());
        let mut filters =
            parse(&[("tag-key", &["Name"]), ("tag:a", &["z*"]), ("tag:a:b", &["x\\*y"])]).unwrap();
        assert_eq!(filters.take_tag().unwrap(), ("a:b", vec![Cow::from("x*y")]));
        assert!(filters.take_tag().is_none());
        assert_eq!(filters.raw(), [("tag-key", &["Name"][..]), ("tag:a", &["z*"])]);
    }
}
