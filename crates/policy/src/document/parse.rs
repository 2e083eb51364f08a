//! Policy documents, read and checked as IAM does.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::{Effect, MalformedPolicy, Patterns, Policy, PolicyKind, Position, Statement, Version};
use crate::condition::{Condition, Operator};
use crate::json::{self, Raw, Value};
use crate::pattern::Pattern;
use crate::principal::{Name, Named, PARTITIONS, PrincipalElement, PrincipalType, is_partition};

const SYNTAX: MalformedPolicy = MalformedPolicy(Cow::Borrowed("Syntax errors in policy."));
const LEGACY: MalformedPolicy = MalformedPolicy(Cow::Borrowed("The policy failed legacy parsing"));

fn malformed<T>(message: impl Into<Cow<'static, str>>) -> Result<T, MalformedPolicy> {
    Err(MalformedPolicy(message.into()))
}

impl Policy {
    /// Reads a document and checks it as IAM does.
    ///
    /// The length is the caller's to check, see [`crate::length_without_white_space`]. Takes memory proportional to the
    /// document's length, and no more stack for deeply nested ones.
    ///
    /// # Errors
    /// What IAM answers to such a document.
    pub fn parse(document: &str, kind: PolicyKind) -> Result<Self, MalformedPolicy> {
        let parsed = Document::parse(document)?;
        if kind == PolicyKind::Managed && parsed.version != Some(Version::V2012) {
            return malformed("Policy document must be version 2012-10-17 or greater.");
        }
        parsed.check(kind)?;
        let compile = |statement: ParsedStatement| statement.compile(parsed.version == Some(Version::V2012));
        Ok(Self {
            version: parsed.version,
            id: parsed.id,
            statements: parsed.statements.into_iter().map(compile).collect::<Result<_, _>>()?,
        })
    }
}

impl Patterns {
    fn new(element: Element, pattern: impl Fn(&str) -> Pattern) -> Self {
        let patterns = element.values.iter().map(|text| pattern(text)).collect();
        Self { not: element.not, written: element.values, patterns }
    }
}

/// A document whose syntax is right.
struct Document {
    version: Option<Version>,
    id: Option<String>,
    statements: Vec<ParsedStatement>,
}

struct ParsedStatement {
    sid: Option<String>,
    effect: String,
    principal: Option<ParsedPrincipal>,
    action: Option<Element>,
    resource: Option<Element>,
    conditions: Vec<(Operator, String, Vec<String>)>,
    start: Position,
    end: Position,
}

struct ParsedPrincipal {
    not: bool,
    /// None for `"*"`.
    map: Option<Vec<(PrincipalType, Vec<String>)>>,
}

/// Values of an element or of its negation.
struct Element {
    not: bool,
    values: Vec<String>,
}

impl Document {
    fn parse(text: &str) -> Result<Self, MalformedPolicy> {
        let (mut version, mut id, mut statements) = (None, None, None);
        for (name, value) in object(json::document(text).ok_or(SYNTAX)?)? {
            match &*name {
                "Version" => {
                    version = Some(match &*string(value)? {
                        "2008-10-17" => Version::V2008,
                        "2012-10-17" => Version::V2012,
                        _ => return Err(SYNTAX),
                    });
                }
                "Id" => id = Some(string(value)?),
                "Statement" => statements = Some(value),
                _ => return Err(SYNTAX),
            }
        }
        let raw = statements.ok_or(SYNTAX)?;
        let begin = json::offset(text, raw) + 1;
        let mut positions = Positions { text, at: 0, position: Position { line: 1, column: 1 } };
        let mut start = positions.of(begin);
        let list = match read(raw)? {
            Value::List(list) if !list.is_empty() => list,
            Value::Object(_) => vec![raw],
            _ => return Err(SYNTAX),
        };
        let mut statements = Vec::with_capacity(list.len());
        for raw in list {
            let end = positions.of(json::offset(text, raw) + raw.get().len());
            statements.push(ParsedStatement::parse(raw, start, end)?);
            start = end;
        }
        Ok(Self { version, id, statements })
    }

    /// Checks what goes beyond syntax, in IAM's order.
    fn check(&self, kind: PolicyKind) -> Result<(), MalformedPolicy> {
        for statement in &self.statements {
            statement.check_legacy(self.version == Some(Version::V2012))?;
        }
        self.check_sids(kind)?;
        for statement in &self.statements {
            statement.check_presence(kind)?;
        }
        for statement in &self.statements {
            for resource in statement.resource.iter().flat_map(|element| &element.values) {
                check_resource(resource)?;
            }
        }
        for statement in &self.statements {
            statement.check_actions(kind)?;
            statement.check_principals(kind)?;
        }
        Ok(())
    }

    fn check_sids(&self, kind: PolicyKind) -> Result<(), MalformedPolicy> {
        let sids = || self.statements.iter().filter_map(|statement| statement.sid.as_deref());
        // Other services allow more characters.
        let is_plain = |sid: &str| sid.bytes().all(|b| b.is_ascii_alphanumeric());
        if kind != PolicyKind::Resource && !sids().all(is_plain) {
            return malformed(
                "Statement IDs (SID) must be alpha-numeric. Check that your input satisfies the regular expression \
                 [0-9A-Za-z]*",
            );
        }
        let mut known = BTreeSet::new();
        if !sids().filter(|sid| !sid.is_empty()).all(|sid| known.insert(sid)) {
            return malformed("Statement IDs (SID) in a single policy must be unique.");
        }
        Ok(())
    }
}

impl ParsedStatement {
    fn parse(raw: Raw<'_>, start: Position, end: Position) -> Result<Self, MalformedPolicy> {
        let (mut sid, mut effect, mut conditions) = (None, None, Vec::new());
        let (mut principal, mut action, mut resource) = (None, None, None);
        for (name, value) in object(raw)? {
            match &*name {
                "Sid" => sid = Some(string(value)?),
                "Effect" => effect = Some(string(value)?),
                "Principal" | "NotPrincipal" => {
                    once(&mut principal, ParsedPrincipal::parse(name == "NotPrincipal", value)?)?;
                }
                "Action" | "NotAction" => {
                    once(&mut action, Element { not: name == "NotAction", values: strings(value)? })?;
                }
                "Resource" | "NotResource" => {
                    once(&mut resource, Element { not: name == "NotResource", values: strings(value)? })?;
                }
                "Condition" => conditions = parse_conditions(value)?,
                _ => return Err(SYNTAX),
            }
        }
        let effect = effect.ok_or(SYNTAX)?;
        if !["allow", "deny"].iter().any(|name| effect.eq_ignore_ascii_case(name)) {
            return Err(SYNTAX);
        }
        Ok(Self { sid, effect, principal, action, resource, conditions, start, end })
    }

    /// What IAM calls legacy parsing: the case of the effect, the values of conditions, and ARNs that are too short.
    fn check_legacy(&self, variables: bool) -> Result<(), MalformedPolicy> {
        if !matches!(&*self.effect, "Allow" | "Deny") {
            return Err(LEGACY);
        }
        for (operator, key, values) in &self.conditions {
            if Condition::new(*operator, key, values.clone(), variables).is_none() {
                return Err(LEGACY);
            }
        }
        for resource in self.resource.iter().flat_map(|element| &element.values) {
            let mut parts = resource.split(':');
            let is_known = parts.next() == Some("arn") && parts.next().is_some_and(is_partition);
            let no_service = parts.next() == Some("");
            let is_short = resource.contains("::") && resource.matches(':').count() < 5;
            if is_known && (no_service || is_short) {
                return Err(LEGACY);
            }
        }
        Ok(())
    }

    /// The elements that a kind of policy must or must not have.
    fn check_presence(&self, kind: PolicyKind) -> Result<(), MalformedPolicy> {
        let missing =
            |element: &Option<Element>| element.as_ref().is_none_or(|element| element.values.is_empty());
        if missing(&self.action) {
            return malformed("Policy statement must contain actions.");
        }
        if kind == PolicyKind::Trust
            && let Some(resource) = &self.resource
        {
            let not = if resource.not { "Not" } else { "" };
            return malformed(format!("Has prohibited field {not}Resource"));
        }
        let needed = kind.is_identity_based() || self.resource.is_some();
        if needed && missing(&self.resource) {
            return malformed("Policy statement must contain resources.");
        }
        match &self.principal {
            Some(_) if kind.is_identity_based() => {
                malformed("Policy document should not specify a principal.")
            }
            None if !kind.is_identity_based() => malformed("Missing required field Principal"),
            _ => Ok(()),
        }
    }

    fn check_actions(&self, kind: PolicyKind) -> Result<(), MalformedPolicy> {
        let Some(element) = &self.action else { return Ok(()) };
        for action in &element.values {
            let Some((vendor, name)) = action.split_once(':') else {
                if action == "*" {
                    continue;
                }
                return malformed(
                    "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.",
                );
            };
            if name.contains(':') {
                return malformed("Actions/Condition can contain only one colon.");
            }
            let is_plain =
                |vendor: &str| vendor.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
            if vendor != "*" && (vendor.is_empty() || !is_plain(vendor)) {
                return malformed(format!("Vendor {vendor} is not valid"));
            }
        }
        let of_sts =
            |action: &String| action.get(..4).is_some_and(|vendor| vendor.eq_ignore_ascii_case("sts:"));
        if kind == PolicyKind::Trust && (element.not || !element.values.iter().all(of_sts)) {
            return malformed("AssumeRole policy may only specify STS AssumeRole actions.");
        }
        Ok(())
    }

    fn check_principals(&self, kind: PolicyKind) -> Result<(), MalformedPolicy> {
        let Some(principal) = &self.principal else { return Ok(()) };
        let Some(map) = &principal.map else {
            if kind == PolicyKind::Trust {
                return malformed(r#"AssumeRolepolicy contained an invalid principal: "STAR":"*"."#);
            }
            return Ok(());
        };
        if map.iter().all(|(_, names)| names.is_empty()) {
            return malformed("Missing required field Principal cannot be empty!");
        }
        for (of, names) in map {
            for name in names {
                let is_allowed = kind != PolicyKind::Trust || *of != PrincipalType::CanonicalUser;
                if !is_allowed || Name::parse(*of, name).is_none() {
                    let of = of.name();
                    return malformed(format!(r#"Invalid principal in policy: "{of}":"{name}""#));
                }
            }
        }
        Ok(())
    }

    fn compile(self, variables: bool) -> Result<Statement, MalformedPolicy> {
        let principal = self.principal.map(ParsedPrincipal::compile).transpose()?;
        let conditions = self
            .conditions
            .into_iter()
            .map(|(operator, key, values)| Condition::new(operator, &key, values, variables).ok_or(LEGACY));
        Ok(Statement {
            sid: self.sid,
            effect: if self.effect == "Allow" { Effect::Allow } else { Effect::Deny },
            principal,
            action: Patterns::new(self.action.ok_or(SYNTAX)?, Pattern::action),
            resource: self
                .resource
                .map(|element| Patterns::new(element, |text| Pattern::resource(text, variables))),
            conditions: conditions.collect::<Result<_, _>>()?,
            start: self.start,
            end: self.end,
        })
    }
}

impl ParsedPrincipal {
    fn parse(not: bool, raw: Raw<'_>) -> Result<Self, MalformedPolicy> {
        let map = match read(raw)? {
            Value::String(text) if text == "*" => None,
            Value::Object(members) => Some(members),
            _ => return Err(SYNTAX),
        };
        let entry = |(name, value): (String, Raw<'_>)| {
            Ok((PrincipalType::parse(&name).ok_or(SYNTAX)?, strings(value)?))
        };
        let map = map.map(|map| map.into_iter().map(entry).collect::<Result<_, _>>()).transpose()?;
        Ok(Self { not, map })
    }

    fn compile(self) -> Result<PrincipalElement, MalformedPolicy> {
        let named = |(of, names): (PrincipalType, Vec<String>)| {
            let names =
                names.iter().map(|name| Name::parse(of, name).ok_or(SYNTAX)).collect::<Result<_, _>>()?;
            Ok((of, names))
        };
        let named = match self.map {
            None => Named::Everyone,
            Some(map) => Named::Map(map.into_iter().map(named).collect::<Result<_, _>>()?),
        };
        Ok(PrincipalElement { not: self.not, named })
    }
}

/// Fills what may stand only once: an element or its negation.
fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), MalformedPolicy> {
    if slot.replace(value).is_some() { Err(SYNTAX) } else { Ok(()) }
}

/// The conditions, one for each key of each operator. As with IAM, an operator without keys may have any name.
fn parse_conditions(raw: Raw<'_>) -> Result<Vec<(Operator, String, Vec<String>)>, MalformedPolicy> {
    let mut conditions = Vec::new();
    for (operator, keys) in object(raw)? {
        for (key, values) in object(keys)? {
            let operator = Operator::parse(&operator).ok_or(SYNTAX)?;
            let values = match read(values)? {
                Value::List(list) => list.into_iter().map(scalar).collect::<Result<_, _>>()?,
                _ => vec![scalar(values)?],
            };
            conditions.push((operator, key, values));
        }
    }
    Ok(conditions)
}

fn read(raw: Raw<'_>) -> Result<Value<'_>, MalformedPolicy> {
    json::value(raw).ok_or(SYNTAX)
}

fn object(raw: Raw<'_>) -> Result<Vec<(String, Raw<'_>)>, MalformedPolicy> {
    match read(raw)? {
        Value::Object(members) => Ok(members),
        _ => Err(SYNTAX),
    }
}

fn string(raw: Raw<'_>) -> Result<String, MalformedPolicy> {
    match read(raw)? {
        Value::String(text) => Ok(text),
        _ => Err(SYNTAX),
    }
}

/// A text or a list of texts.
fn strings(raw: Raw<'_>) -> Result<Vec<String>, MalformedPolicy> {
    match read(raw)? {
        Value::String(text) => Ok(vec![text]),
        Value::List(list) => list.into_iter().map(string).collect(),
        _ => Err(SYNTAX),
    }
}

/// A text, number or Boolean.
fn scalar(raw: Raw<'_>) -> Result<String, MalformedPolicy> {
    match read(raw)? {
        Value::String(text) => Ok(text),
        Value::Scalar(text) => Ok(text.into()),
        _ => Err(SYNTAX),
    }
}

/// What the path of an IAM resource begins with.
const IAM_PATHS: [&str; 13] = [
    "user/",
    "federated-user/",
    "role/",
    "group/",
    "instance-profile/",
    "mfa/",
    "server-certificate/",
    "policy/",
    "sms-mfa/",
    "saml-provider/",
    "oidc-provider/",
    "report/",
    "access-report/",
];

fn check_resource(resource: &str) -> Result<(), MalformedPolicy> {
    if resource == "*" {
        return Ok(());
    }
    let not_arn = || malformed(format!(r#"Resource {resource} must be in ARN format or "*"."#));
    let Some((arn, rest)) = resource.split_once(':') else { return not_arn() };
    let mut parts = rest.splitn(5, ':');
    let mut next = || parts.next();
    let (partition, service) = (next().unwrap_or_default(), next());
    let (region, account, path) = (next().unwrap_or(""), next().unwrap_or("*"), next().unwrap_or("*"));
    if !is_partition_pattern(partition) {
        let region = if rest.matches(':').count() < 2 { "*" } else { region };
        let service = service.unwrap_or("*");
        return malformed(format!(
            r#"Partition "{partition}" is not valid for resource "arn:{partition}:{service}:{region}:{account}:{path}"."#
        ));
    }
    if arn != "arn" {
        return not_arn();
    }
    match service {
        None => malformed("Resource vendor must be fully qualified and cannot contain regexes."),
        Some(service) if service.contains(['*', '?']) => {
            malformed("Resource vendor must be fully qualified and cannot contain regexes.")
        }
        Some("iam") if !region.is_empty() => {
            malformed(format!("IAM resource {resource} cannot contain region information."))
        }
        Some("iam") if path != "*" && !IAM_PATHS.iter().any(|start| path.starts_with(start)) => malformed(
            format!(r#"IAM resource path must either be "*" or start with {}."#, IAM_PATHS.join(", ")),
        ),
        Some("s3") if !region.is_empty() && account.is_empty() => {
            malformed(format!("Resource {resource} can not contain region information."))
        }
        Some(_) => Ok(()),
    }
}

fn is_partition_pattern(text: &str) -> bool {
    let pattern = Pattern::action(text);
    let names = PARTITIONS.map(crate::pattern::LowerCase::new);
    is_partition(text) || text.contains(['*', '?']) && names.iter().any(|name| pattern.matches_action(name))
}

/// Counts lines and columns along a text.
struct Positions<'a> {
    text: &'a str,
    at: usize,
    position: Position,
}

impl Positions<'_> {
    /// The position of a place that is not before the last one.
    fn of(&mut self, at: usize) -> Position {
        for c in self.text[self.at..at].chars() {
            if c == '\n' {
                self.position = Position { line: self.position.line + 1, column: 1 };
            } else {
                self.position.column += 1;
            }
        }
        self.at = at;
        self.position
    }
}
