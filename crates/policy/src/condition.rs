//! The `Condition` element.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ipnet::IpNet;

use crate::date::Date;
use crate::key::{Key, Values};
use crate::pattern::{ArnPattern, Pattern, Variables};

/// Gives the values of keys.
pub(crate) trait Scope: Variables {
    fn values(&self, key: &Key) -> Option<Values<'_>>;
}

/// One key of one operator, with the values that it is compared with (IAM User Guide, "IAM JSON policy elements:
/// Condition").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) operator: Operator,
    pub(crate) key: Key,
    /// The values as they are written; numbers and Booleans as texts.
    pub(crate) written: Vec<String>,
    test: Test,
}

/// An operator with its set operator and `IfExists`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operator {
    set: Option<Set>,
    base: Base,
    if_exists: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    ForAllValues,
    ForAnyValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Base {
    name: &'static str,
    /// What the values are.
    kind: Kind,
    /// Whether the condition holds if nothing matches.
    negated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    String,
    StringIgnoreCase,
    StringLike,
    Numeric(Comparison),
    Date(Comparison),
    Bool,
    Binary,
    IpAddress,
    Arn,
    Null,
}

/// Which orders of the request's value to the policy's hold.
type Comparison = &'static [Ordering];

const EQUAL: Comparison = &[Ordering::Equal];
const LESS: Comparison = &[Ordering::Less];
const LESS_EQUAL: Comparison = &[Ordering::Less, Ordering::Equal];
const GREATER: Comparison = &[Ordering::Greater];
const GREATER_EQUAL: Comparison = &[Ordering::Greater, Ordering::Equal];

const fn base(name: &'static str, kind: Kind) -> Base {
    Base { name, kind, negated: false }
}

const fn negated(name: &'static str, kind: Kind) -> Base {
    Base { name, kind, negated: true }
}

/// IAM User Guide, "IAM JSON policy elements: Condition operators".
const BASES: [Base; 27] = [
    base("StringEquals", Kind::String),
    negated("StringNotEquals", Kind::String),
    base("StringEqualsIgnoreCase", Kind::StringIgnoreCase),
    negated("StringNotEqualsIgnoreCase", Kind::StringIgnoreCase),
    base("StringLike", Kind::StringLike),
    negated("StringNotLike", Kind::StringLike),
    base("NumericEquals", Kind::Numeric(EQUAL)),
    negated("NumericNotEquals", Kind::Numeric(EQUAL)),
    base("NumericLessThan", Kind::Numeric(LESS)),
    base("NumericLessThanEquals", Kind::Numeric(LESS_EQUAL)),
    base("NumericGreaterThan", Kind::Numeric(GREATER)),
    base("NumericGreaterThanEquals", Kind::Numeric(GREATER_EQUAL)),
    base("DateEquals", Kind::Date(EQUAL)),
    negated("DateNotEquals", Kind::Date(EQUAL)),
    base("DateLessThan", Kind::Date(LESS)),
    base("DateLessThanEquals", Kind::Date(LESS_EQUAL)),
    base("DateGreaterThan", Kind::Date(GREATER)),
    base("DateGreaterThanEquals", Kind::Date(GREATER_EQUAL)),
    base("Bool", Kind::Bool),
    base("BinaryEquals", Kind::Binary),
    base("IpAddress", Kind::IpAddress),
    negated("NotIpAddress", Kind::IpAddress),
    base("ArnEquals", Kind::Arn),
    base("ArnLike", Kind::Arn),
    negated("ArnNotEquals", Kind::Arn),
    negated("ArnNotLike", Kind::Arn),
    base("Null", Kind::Null),
];

impl Operator {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (set, rest) = match text.split_once(':') {
            None => (None, text),
            Some(("ForAllValues", rest)) => (Some(Set::ForAllValues), rest),
            Some(("ForAnyValue", rest)) => (Some(Set::ForAnyValue), rest),
            Some(_) => return None,
        };
        let (name, if_exists) = rest.strip_suffix("IfExists").map_or((rest, false), |name| (name, true));
        let base = BASES.into_iter().find(|base| base.name == name)?;
        // `Null` asks for existence itself.
        (base.kind != Kind::Null || set.is_none() && !if_exists).then_some(Self { set, base, if_exists })
    }

    pub(crate) fn name(self) -> String {
        let set = match self.set {
            None => "",
            Some(Set::ForAllValues) => "ForAllValues:",
            Some(Set::ForAnyValue) => "ForAnyValue:",
        };
        format!("{set}{}{}", self.base.name, if self.if_exists { "IfExists" } else { "" })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    /// `Null`: whether there may be no value.
    Null(Vec<bool>),
    /// A comparison of each value.
    Value(Operand),
}

/// The policy's values in the form in which they are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Operand {
    Strings(Vec<Pattern>),
    StringsInAnyCase(Vec<Pattern>),
    Numbers(Comparison, Vec<Number>),
    Dates(Comparison, Vec<Date>),
    Binaries(Vec<Vec<u8>>),
    Networks(Vec<IpNet>),
    Arns(Vec<ArnPattern>),
}

impl Condition {
    /// Reads the values; `None` if one is not of the operator's type. `variables`: whether there are policy variables.
    pub(crate) fn new(operator: Operator, key: &str, written: Vec<String>, variables: bool) -> Option<Self> {
        fn all<T>(texts: &[String], read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
            texts.iter().map(|text| read(text)).collect()
        }
        let exact = |text: &str| Some(Pattern::exact(text, variables));
        // "You can use a policy variable with the Boolean condition operator" (the operators' page).
        let boolean_or_variable = |text: &str| {
            exact(text).filter(|pattern| boolean(text).is_some() || pattern.keys().next().is_some())
        };
        let operand = match operator.base.kind {
            Kind::Null => {
                let test = Test::Null(all(&written, boolean)?);
                return Some(Self { operator, key: Key::new(key), written, test });
            }
            Kind::String => Operand::Strings(all(&written, exact)?),
            Kind::StringIgnoreCase => Operand::StringsInAnyCase(all(&written, exact)?),
            Kind::StringLike => Operand::Strings(all(&written, |text| Some(Pattern::wild(text, variables)))?),
            Kind::Bool => Operand::StringsInAnyCase(all(&written, boolean_or_variable)?),
            Kind::Numeric(comparison) => Operand::Numbers(comparison, all(&written, Number::parse)?),
            Kind::Date(comparison) => Operand::Dates(comparison, all(&written, Date::parse)?),
            Kind::Binary => Operand::Binaries(all(&written, |text| BASE64.decode(text).ok())?),
            Kind::IpAddress => Operand::Networks(all(&written, network)?),
            Kind::Arn => Operand::Arns(all(&written, |text| Some(ArnPattern::new(text, variables)))?),
        };
        Some(Self { operator, key: Key::new(key), written, test: Test::Value(operand) })
    }

    /// The keys that the condition asks for, with those of its variables.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        let (patterns, arns): (&[Pattern], &[ArnPattern]) = match &self.test {
            Test::Value(Operand::Strings(patterns) | Operand::StringsInAnyCase(patterns)) => (patterns, &[]),
            Test::Value(Operand::Arns(arns)) => (&[], arns),
            _ => (&[], &[]),
        };
        let of_patterns = patterns.iter().flat_map(Pattern::keys);
        std::iter::once(&self.key).chain(of_patterns).chain(arns.iter().flat_map(ArnPattern::keys))
    }

    /// Whether the condition holds.
    ///
    /// Without a value of the key, negated operators and those with `IfExists` hold; `ForAllValues` holds, `ForAnyValue`
    /// does not, with or without `IfExists` and negation (IAM User Guide, "Single-valued vs. multivalued context keys":
    /// "if the key does not exist, the condition returns false"). Several values without a set operator, which the
    /// documentation does not define, are taken as if one had to match.
    pub(crate) fn holds(&self, scope: &impl Scope) -> bool {
        let values = scope.values(&self.key);
        let operand = match &self.test {
            Test::Null(wanted) => return wanted.contains(&values.is_none_or(|values| values.is_null())),
            Test::Value(operand) => operand,
        };
        let Operator { set, base, if_exists } = self.operator;
        let single = |value: &str| operand.matches(value, scope) != base.negated;
        match (set, values) {
            (Some(Set::ForAllValues), values) => {
                values.is_none_or(|values| values.is_null() || values.iter().all(single))
            }
            (Some(Set::ForAnyValue), values) => {
                values.is_some_and(|values| !values.is_null() && values.iter().any(single))
            }
            (None, Some(values)) if values.iter().next().is_some() => {
                values.iter().any(|value| operand.matches(value, scope)) != base.negated
            }
            (None, _) => if_exists || base.negated,
        }
    }
}

impl Operand {
    /// Whether one of the policy's values matches, negation aside. A value that is not of the type does not.
    fn matches(&self, value: &str, variables: &impl Variables) -> bool {
        match self {
            Self::Strings(patterns) => patterns.iter().any(|pattern| pattern.matches(value, variables)),
            Self::StringsInAnyCase(patterns) => {
                patterns.iter().any(|pattern| pattern.equals_ignoring_case(value, variables))
            }
            Self::Numbers(comparison, numbers) => {
                Number::parse(value).is_some_and(|value| compare(comparison, &value, numbers))
            }
            Self::Dates(comparison, dates) => {
                Date::parse(value).is_some_and(|value| compare(comparison, &value, dates))
            }
            Self::Binaries(binaries) => BASE64.decode(value).is_ok_and(|value| binaries.contains(&value)),
            Self::Networks(networks) => value.parse().is_ok_and(|address: IpAddr| {
                let address = address.to_canonical();
                networks.iter().any(|network| network.contains(&address))
            }),
            Self::Arns(arns) => arns.iter().any(|arn| arn.matches(value, variables)),
        }
    }
}

fn compare<T: Ord>(comparison: Comparison, value: &T, others: &[T]) -> bool {
    others.iter().any(|other| comparison.contains(&value.cmp(other)))
}

fn boolean(text: &str) -> Option<bool> {
    ["false", "true"].iter().position(|name| text.eq_ignore_ascii_case(name)).map(|index| index == 1)
}

/// A block in CIDR notation, or an address alone.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// "An integer or decimal value", of any length: without leading zeros before the point and trailing ones behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Number {
    negative: bool,
    integer: Box<str>,
    fraction: Box<str>,
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        // JSON writes numbers with an exponent too.
        let plain = match digits.find(['e', 'E']) {
            None => Cow::Borrowed(digits),
            Some(at) => Cow::Owned(shift(&digits[..at], digits[at + 1..].parse().ok()?)?),
        };
        let (integer, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
        let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if integer.len() + fraction.len() == 0 || !is_digits(integer) || !is_digits(fraction) {
            return None;
        }
        let (integer, fraction) = (integer.trim_start_matches('0'), fraction.trim_end_matches('0'));
        // There is one zero.
        let negative = negative && integer.len() + fraction.len() > 0;
        Some(Self { negative, integer: integer.into(), fraction: fraction.into() })
    }
}

/// A decimal number times a power of ten, in digits. `None` if that would take many.
fn shift(digits: &str, exponent: i32) -> Option<String> {
    let (integer, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let digits = format!("{integer}{fraction}");
    let point = i32::try_from(integer.len()).ok()?.checked_add(exponent)?;
    if !(-400..=400).contains(&exponent) || digits.is_empty() {
        return None;
    }
    Some(match usize::try_from(point) {
        Ok(point) if point >= digits.len() => digits.clone() + &"0".repeat(point - digits.len()),
        Ok(point) => format!("{}.{}", digits.get(..point)?, digits.get(point..)?),
        Err(_) => format!("0.{}{digits}", "0".repeat(point.unsigned_abs() as usize)),
    })
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        fn size(number: &Number) -> (usize, &str, &str) {
            (number.integer.len(), &number.integer, &number.fraction)
        }
        match (self.negative, other.negative) {
            (false, false) => size(self).cmp(&size(other)),
            (true, true) => size(other).cmp(&size(self)),
            (negative, _) => other.negative.cmp(&negative),
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
