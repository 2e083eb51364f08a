//! Policy documents.

mod parse;
mod write;

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::condition::Condition;
use crate::key::Key;
use crate::pattern::Pattern;
use crate::principal::PrincipalElement;

/// Why a document is no policy: the message of `MalformedPolicyDocument`, in IAM's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedPolicy(Cow<'static, str>);

impl MalformedPolicy {
    /// The message.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0
    }
}

/// What a document is for, which decides what it must and must not have (IAM User Guide, "Grammar of the IAM JSON policy
/// language", "Policy grammar notes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// A managed policy, also as permissions boundary: the version must be 2012-10-17, no principals.
    Managed,
    /// An inline policy of a user, group or role, or a session policy: no principals.
    Inline,
    /// A role's trust policy: with principals, without resources, only actions of STS.
    Trust,
    /// Any other resource-based policy: with principals; resources as the service wants it.
    Resource,
}

impl PolicyKind {
    fn is_identity_based(self) -> bool {
        matches!(self, Self::Managed | Self::Inline)
    }
}

/// The version of the policy language (IAM User Guide, "IAM JSON policy elements: Version").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 2008-10-17, also that of documents without version: there are no policy variables.
    V2008,
    /// 2012-10-17.
    V2012,
}

/// What a statement does (IAM User Guide, "IAM JSON policy elements: Effect").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It allows.
    Allow,
    /// It denies, whatever else allows.
    Deny,
}

/// A place in a document, counted from 1 (IAM API Reference, "Position").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Character of the line.
    pub column: usize,
}

/// A policy, ready to be evaluated.
///
/// Two policies are equal if they mean the same by the same words; white space, the order of elements, and whether a single
/// value stands in a list do not count. What it displays is such an equal document.
///
/// ```
/// use haar_policy::{Policy, PolicyKind};
///
/// let document = r#"{
///     "Version": "2012-10-17",
///     "Statement": {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::example_bucket"}
/// }"#;
/// let policy = Policy::parse(document, PolicyKind::Managed)?;
/// assert_eq!(policy.statements().len(), 1);
///
/// let error = Policy::parse("{}", PolicyKind::Managed).unwrap_err();
/// assert_eq!(error.message(), "Syntax errors in policy.");
/// # Ok::<_, haar_policy::MalformedPolicy>(())
/// ```
#[derive(Debug, Clone)]
pub struct Policy {
    version: Option<Version>,
    id: Option<String>,
    pub(crate) statements: Vec<Statement>,
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        (self.version, &self.id, &self.statements) == (other.version, &other.id, &other.statements)
    }
}

impl Eq for Policy {}

/// A statement of a policy (IAM User Guide, "IAM JSON policy elements: Statement").
#[derive(Debug, Clone)]
pub struct Statement {
    sid: Option<String>,
    effect: Effect,
    pub(crate) principal: Option<PrincipalElement>,
    pub(crate) action: Patterns,
    /// None in trust policies, and in policies whose service knows the resource.
    pub(crate) resource: Option<Patterns>,
    pub(crate) conditions: Vec<Condition>,
    start: Position,
    end: Position,
}

impl PartialEq for Statement {
    fn eq(&self, other: &Self) -> bool {
        (&self.sid, self.effect, &self.principal, &self.action, &self.resource, &self.conditions)
            == (&other.sid, other.effect, &other.principal, &other.action, &other.resource, &other.conditions)
    }
}

impl Eq for Statement {}

/// `Action` or `NotAction`, `Resource` or `NotResource`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patterns {
    pub(crate) not: bool,
    pub(crate) written: Vec<String>,
    pub(crate) patterns: Vec<Pattern>,
}

impl Policy {
    /// The version of the language.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version.unwrap_or(Version::V2008)
    }

    /// The `Id` element.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The statements, in their order.
    #[must_use]
    pub fn statements(&self) -> &[Statement] {
        &self.statements
    }

    /// The condition keys that the policy asks for, as they are written, each once (IAM API Reference,
    /// GetContextKeysForCustomPolicy).
    #[must_use]
    pub fn context_keys(&self) -> Vec<&str> {
        let mut known = BTreeSet::new();
        let keys = self.statements.iter().flat_map(Statement::keys);
        keys.filter(|key| known.insert(key.lower())).map(Key::as_str).collect()
    }
}

impl Statement {
    /// The `Sid` element.
    #[must_use]
    pub fn sid(&self) -> Option<&str> {
        self.sid.as_deref()
    }

    /// Whether it allows or denies.
    #[must_use]
    pub fn effect(&self) -> Effect {
        self.effect
    }

    /// Where it begins, as SimulatePrincipalPolicy tells it: behind what stands before it, which is the list's bracket, the
    /// previous statement, or the own brace of a statement that is not in a list.
    #[must_use]
    pub fn start(&self) -> Position {
        self.start
    }

    /// Where it ends: behind its brace.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// The keys of the conditions and of all variables.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        let resources = self.resource.iter().flat_map(|resource| &resource.patterns).flat_map(Pattern::keys);
        self.conditions.iter().flat_map(Condition::keys).chain(resources)
    }
}

/// The length of a document as IAM's quotas count it: without white space (IAM User Guide, "IAM and AWS STS quotas").
///
/// ```
/// assert_eq!(haar_policy::length_without_white_space("{\n  \"Id\": \"a b\"\n}"), 11);
/// ```
#[must_use]
pub fn length_without_white_space(document: &str) -> usize {
    document.chars().filter(|c| !c.is_whitespace()).count()
}
