//! Who may do what.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::condition::Scope;
use crate::document::{Effect, Patterns, Policy, Statement};
use crate::key::{Key, Keys, Values};
use crate::pattern::{LowerCase, Variables};
use crate::principal::{Grant, Principal};

/// A policy with what tells it apart from others of its type.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Name of the policy, or its number among the inputs of a simulation (IAM API Reference, "Statement",
    /// `SourcePolicyId`).
    pub id: String,
    /// Its ARN if it is a managed one; messages of explicitly denied requests name it.
    pub arn: Option<String>,
}

impl Attached {
    /// An inline policy.
    pub fn inline(policy: impl Into<Arc<Policy>>, name: impl Into<String>) -> Self {
        Self { policy: policy.into(), id: name.into(), arn: None }
    }

    /// A managed policy.
    pub fn managed(policy: impl Into<Arc<Policy>>, name: impl Into<String>, arn: impl Into<String>) -> Self {
        Self { policy: policy.into(), id: name.into(), arn: Some(arn.into()) }
    }
}

/// What role a policy plays for a request (IAM User Guide, "Policies and permissions in AWS Identity and Access
/// Management", "Policy types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyType {
    /// Of the user, the user's groups, or the role.
    IdentityBased,
    /// Of the resource.
    ResourceBased,
    /// Of the role that is to be assumed.
    RoleTrust,
    /// The permissions boundary of the user or role.
    PermissionsBoundary,
    /// Given when the session was made.
    Session,
}

impl fmt::Display for PolicyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IdentityBased => "identity-based policy",
            Self::ResourceBased => "resource-based policy",
            Self::RoleTrust => "role trust policy",
            Self::PermissionsBoundary => "permissions boundary",
            Self::Session => "session policy",
        })
    }
}

/// The policies that belong to the caller. Services, identities of a provider and anonymous callers have none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policies<'a> {
    /// Those of the user and the user's groups, or of the role.
    pub identity: &'a [Attached],
    /// The permissions boundary of the user or role.
    pub boundary: Option<&'a Attached>,
    /// The session policies, of which one has to allow. If there are none, a role's session is not limited, and a federated
    /// user may nothing.
    pub session: &'a [Attached],
}

/// What a request acts upon.
#[derive(Clone, Copy)]
pub struct Resource<'a> {
    /// The ARN; `*` for an action that has no resources. What is about to be made has an ARN with `*` for its id.
    pub arn: &'a str,
    /// The account that owns it (`aws:ResourceAccount`). If empty, the request stays inside the caller's account, and the key
    /// is absent.
    pub account: &'a str,
    /// Its keys, as `aws:ResourceTag/…` and `ec2:InstanceType`.
    pub keys: &'a dyn Keys,
    /// Its resource-based policy.
    pub policy: Option<ResourcePolicy<'a>>,
}

/// A resource-based policy.
#[derive(Debug, Clone, Copy)]
pub enum ResourcePolicy<'a> {
    /// One that may allow alone what an identity-based policy does not.
    ResourceBased(&'a Attached),
    /// A role's trust policy, which has to allow in any case.
    RoleTrust(&'a Attached),
}

impl<'a> ResourcePolicy<'a> {
    fn attached(self) -> &'a Attached {
        match self {
            Self::ResourceBased(attached) | Self::RoleTrust(attached) => attached,
        }
    }

    fn policy_type(self) -> PolicyType {
        match self {
            Self::ResourceBased(_) => PolicyType::ResourceBased,
            Self::RoleTrust(_) => PolicyType::RoleTrust,
        }
    }
}

impl<'a> Resource<'a> {
    /// For actions without resources: `*`, of the caller's account.
    pub const ANY: Resource<'static> = Resource { arn: "*", account: "", keys: &(), policy: None };

    /// A resource by its ARN, of the account that the ARN names.
    #[must_use]
    pub fn new(arn: &'a str) -> Self {
        Self { arn, account: arn.split(':').nth(4).unwrap_or_default(), keys: &(), policy: None }
    }

    /// The same with its keys.
    #[must_use]
    pub fn with_keys(self, keys: &'a dyn Keys) -> Self {
        Self { keys, ..self }
    }

    /// The same with a policy.
    #[must_use]
    pub fn with_policy(self, policy: ResourcePolicy<'a>) -> Self {
        Self { policy: Some(policy), ..self }
    }
}

impl fmt::Debug for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { arn, account, policy, .. } = self;
        f.debug_struct("Resource")
            .field("arn", arn)
            .field("account", account)
            .field("policy", policy)
            .finish()
    }
}

/// A request whose caller is known.
///
/// ```
/// use haar_policy::{Attached, Policies, Policy, PolicyKind, Principal, Request, Resource};
///
/// let policy = Policy::parse(
///     r#"{
///         "Version": "2012-10-17",
///         "Statement": {"Effect": "Allow", "Action": "ec2:StartInstances",
///             "Resource": "arn:aws:ec2:*:123456789012:instance/*"}
///     }"#,
///     PolicyKind::Inline,
/// )?;
/// let alice = Principal::user("arn:aws:iam::123456789012:user/alice", "AIDAEXAMPLE");
/// let identity = [Attached::inline(policy, "start")];
/// let request = Request {
///     principal: &alice,
///     policies: Policies { identity: &identity, ..Policies::default() },
///     action: "ec2:StartInstances",
///     keys: &(),
/// };
/// let instance = Resource::new("arn:aws:ec2:eu-central-1:123456789012:instance/i-01234567890abcdef");
/// assert!(request.authorize(&[instance]).is_ok());
///
/// let image = Resource::new("arn:aws:ec2:eu-central-1::image/ami-01234567890abcdef");
/// assert_eq!(
///     request.authorize(&[instance, image]).unwrap_err().to_string(),
///     "User: arn:aws:iam::123456789012:user/alice is not authorized to perform: ec2:StartInstances \
///      on resource: arn:aws:ec2:eu-central-1::image/ami-01234567890abcdef \
///      because no identity-based policy allows the ec2:StartInstances action"
/// );
/// # Ok::<_, haar_policy::MalformedPolicy>(())
/// ```
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Who makes it.
    pub principal: &'a Principal,
    /// The caller's policies.
    pub policies: Policies<'a>,
    /// The action, as `ec2:RunInstances`.
    pub action: &'a str,
    /// Keys that are the same for all resources: an [`Environment`](crate::Environment), and those of the action's
    /// parameters, as `aws:RequestTag/…` and `aws:TagKeys`. The resource's keys are asked before them, the principal's after
    /// them.
    pub keys: &'a dyn Keys,
}

/// What became of a request for one resource.
#[derive(Debug, Clone, Copy)]
pub enum Decision<'a> {
    /// It may be done.
    Allowed,
    /// A statement denies it.
    ExplicitDeny(Match<'a>),
    /// No statement of this type of policy allows it.
    ImplicitDeny(PolicyType),
}

impl Decision<'_> {
    /// Whether it may be done.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed)
    }

    /// As simulations name it (IAM API Reference, "EvaluationResult", `EvalDecision`): `allowed`, `explicitDeny`,
    /// `implicitDeny`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::ExplicitDeny(_) => "explicitDeny",
            Self::ImplicitDeny(_) => "implicitDeny",
        }
    }
}

/// A statement that fits a request.
#[derive(Debug, Clone, Copy)]
pub struct Match<'a> {
    /// The type of its policy.
    pub policy_type: PolicyType,
    /// Its policy.
    pub policy: &'a Attached,
    /// The statement.
    pub statement: &'a Statement,
}

/// A request that is denied. What it displays is AWS's message (IAM User Guide, "Troubleshoot access denied error messages").
#[derive(Debug, Clone, Copy)]
pub struct Denied<'a> {
    /// Who made the request.
    pub principal: &'a Principal,
    /// The action.
    pub action: &'a str,
    /// ARN of the first resource for which it is denied.
    pub resource: &'a str,
    /// Why; never [`Decision::Allowed`].
    pub decision: Decision<'a>,
}

impl fmt::Display for Denied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { principal, action, resource, decision } = self;
        write!(f, "User: {principal} is not authorized to perform: {action}")?;
        let policy_type = match decision {
            Decision::Allowed => return Ok(()),
            Decision::ExplicitDeny(found) => found.policy_type,
            Decision::ImplicitDeny(policy_type) => *policy_type,
        };
        if policy_type != PolicyType::RoleTrust && *resource != "*" {
            write!(f, " on resource: {resource}")?;
        }
        let Decision::ExplicitDeny(found) = decision else {
            return write!(f, " because no {policy_type} allows the {action} action");
        };
        let article = match policy_type {
            PolicyType::IdentityBased => "an",
            PolicyType::RoleTrust => "the",
            _ => "a",
        };
        write!(f, " with an explicit deny in {article} {policy_type}")?;
        found.policy.arn.as_ref().map_or(Ok(()), |arn| write!(f, ": {arn}"))
    }
}

impl std::error::Error for Denied<'_> {}

/// What a simulation tells of one resource (IAM API Reference, "EvaluationResult", "ResourceSpecificResult").
#[derive(Debug, Clone)]
pub struct Simulation<'a> {
    /// What became of it.
    pub decision: Decision<'a>,
    /// The statements that decided: those that deny; else, if it is allowed, those that allow.
    pub matched_statements: Vec<Match<'a>>,
    /// The keys, as the policies write them, that statements for this action and resource ask for and the request has not.
    pub missing_context_keys: Vec<&'a str>,
    /// Whether the permissions boundary allows it, if there is one.
    pub allowed_by_permissions_boundary: Option<bool>,
    /// What each type of policy that there is says by itself.
    pub details: BTreeMap<PolicyType, Verdict>,
}

/// What the policies of one type say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A statement allows, none denies.
    Allowed,
    /// A statement denies.
    ExplicitDeny,
    /// No statement fits.
    ImplicitDeny,
}

impl Verdict {
    /// As simulations name it: `allowed`, `explicitDeny`, `implicitDeny`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::ExplicitDeny => "explicitDeny",
            Self::ImplicitDeny => "implicitDeny",
        }
    }
}

impl<'a> Request<'a> {
    /// Decides for all resources: the request is allowed if it is for each of them. No resources are the same as
    /// [`Resource::ANY`].
    ///
    /// # Errors
    /// The first resource for which it is denied.
    pub fn authorize(&self, resources: &[Resource<'a>]) -> Result<(), Denied<'a>> {
        let resources = if resources.is_empty() { &[Resource::ANY] } else { resources };
        for resource in resources {
            let decision = self.evaluate(resource);
            if !decision.is_allowed() {
                let Self { principal, action, .. } = *self;
                return Err(Denied { principal, action, resource: resource.arn, decision });
            }
        }
        Ok(())
    }

    /// Decides for one resource (IAM User Guide, "Policy evaluation logic", "Policy evaluation for requests within a single
    /// account", "Cross-account policy evaluation logic").
    #[must_use]
    pub fn evaluate(&self, resource: &Resource<'a>) -> Decision<'a> {
        let context = EvaluationContext::new(self, resource);
        let Policies { identity, boundary, session } = context.policies();
        let identity = context.scan(PolicyType::IdentityBased, identity);
        let boundary = boundary.map(|one| context.scan(PolicyType::PermissionsBoundary, [one]));
        let session = (!session.is_empty()).then(|| context.scan(PolicyType::Session, session));
        let own = resource.policy.map(|policy| context.scan(policy.policy_type(), [policy.attached()]));
        // An explicit deny in any policy comes first.
        for outcome in
            [Some(&identity), own.as_ref(), boundary.as_ref(), session.as_ref()].into_iter().flatten()
        {
            if let Some(found) = outcome.denied {
                return Decision::ExplicitDeny(found);
            }
        }
        let granted = own.map_or(Grant::None, |outcome| outcome.granted);
        let own_type = resource.policy.map_or(PolicyType::ResourceBased, ResourcePolicy::policy_type);
        let same_account = resource.account.is_empty() || resource.account == self.principal.account;
        let resource_decides = !self.principal.in_account();
        let resource_must_allow = resource_decides || !same_account || own_type == PolicyType::RoleTrust;
        // Inside an account, what is granted to the caller itself is not limited by what others do not allow; what is granted
        // to the role of a session needs no identity-based policy, but is limited by boundary and session policies.
        let (identity_needed, limits_apply) = match granted {
            _ if resource_decides => (false, false),
            Grant::Direct if same_account => (false, false),
            Grant::Source if same_account => (false, true),
            _ => (true, true),
        };
        let allows = |outcome: &Option<Outcome<'_>>| {
            outcome.as_ref().is_none_or(|outcome| outcome.granted > Grant::None)
        };
        let denied_by =
            if identity_needed && identity.granted == Grant::None && !self.principal.has_root_permissions() {
                PolicyType::IdentityBased
            } else if limits_apply && !allows(&boundary) {
                PolicyType::PermissionsBoundary
            } else if limits_apply
                && (!allows(&session) || session.is_none() && self.principal.is_federated_user())
            {
                PolicyType::Session
            } else if resource_must_allow && granted == Grant::None {
                own_type
            } else {
                return Decision::Allowed;
            };
        Decision::ImplicitDeny(denied_by)
    }

    /// Decides for one resource, and tells why (IAM API Reference, SimulatePrincipalPolicy).
    #[must_use]
    pub fn simulate(&self, resource: &Resource<'a>) -> Simulation<'a> {
        let decision = self.evaluate(resource);
        let context = EvaluationContext::new(self, resource);
        let policies = context.policies();
        let identity = policies.identity.iter().map(|policy| (PolicyType::IdentityBased, policy));
        let boundary = policies.boundary.into_iter().map(|policy| (PolicyType::PermissionsBoundary, policy));
        let session = policies.session.iter().map(|policy| (PolicyType::Session, policy));
        let own = resource.policy.into_iter().map(|policy| (policy.policy_type(), policy.attached()));
        let (mut allowing, mut denying, mut missing) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut details = BTreeMap::new();
        for (policy_type, policy) in identity.chain(own).chain(boundary).chain(session) {
            let verdict = details.entry(policy_type).or_insert(Verdict::ImplicitDeny);
            for statement in &policy.policy.statements {
                if context.is_meant(statement) {
                    missing.extend(
                        statement.keys().filter(|key| context.values(key).is_none()).map(Key::as_str),
                    );
                }
                if context.grant(statement) == Grant::None {
                    continue;
                }
                let found = Match { policy_type, policy, statement };
                if statement.effect() == Effect::Deny {
                    denying.push(found);
                    *verdict = Verdict::ExplicitDeny;
                } else {
                    allowing.push(found);
                    if *verdict == Verdict::ImplicitDeny {
                        *verdict = Verdict::Allowed;
                    }
                }
            }
        }
        let boundary = details.get(&PolicyType::PermissionsBoundary);
        Simulation {
            decision,
            matched_statements: match decision {
                Decision::Allowed => allowing,
                Decision::ExplicitDeny(_) => denying,
                Decision::ImplicitDeny(_) => Vec::new(),
            },
            missing_context_keys: missing.into_iter().collect(),
            allowed_by_permissions_boundary: boundary.map(|verdict| *verdict == Verdict::Allowed),
            details,
        }
    }
}

/// What the policies of one type say.
struct Outcome<'a> {
    denied: Option<Match<'a>>,
    granted: Grant,
}

/// A request for one resource.
struct EvaluationContext<'r, 'a> {
    request: &'r Request<'a>,
    resource: &'r Resource<'a>,
    action: LowerCase<'a>,
}

impl<'r, 'a> EvaluationContext<'r, 'a> {
    fn new(request: &'r Request<'a>, resource: &'r Resource<'a>) -> Self {
        Self { request, resource, action: LowerCase::new(request.action) }
    }

    /// The caller's policies, as far as it can have any.
    fn policies(&self) -> Policies<'a> {
        if self.request.principal.in_account() { self.request.policies } else { Policies::default() }
    }

    fn scan(&self, policy_type: PolicyType, policies: impl IntoIterator<Item = &'a Attached>) -> Outcome<'a> {
        let mut granted = Grant::None;
        for policy in policies {
            for statement in &policy.policy.statements {
                // Once all is granted, only what denies is of interest.
                if statement.effect() == Effect::Allow && granted == Grant::Direct {
                    continue;
                }
                let grant = self.grant(statement);
                if statement.effect() == Effect::Allow {
                    granted = granted.max(grant);
                } else if grant != Grant::None {
                    return Outcome { denied: Some(Match { policy_type, policy, statement }), granted };
                }
            }
        }
        Outcome { denied: None, granted }
    }

    /// Whether and how a statement fits.
    fn grant(&self, statement: &Statement) -> Grant {
        if !self.is_meant(statement) {
            return Grant::None;
        }
        let principal = self.request.principal;
        let grant = match &statement.principal {
            None => Grant::Direct,
            Some(element) if statement.effect() == Effect::Allow => element.allows(principal),
            Some(element) if element.denies(principal) => Grant::Direct,
            Some(_) => Grant::None,
        };
        let holds = || statement.conditions.iter().all(|condition| condition.holds(self));
        if grant != Grant::None && holds() { grant } else { Grant::None }
    }

    /// Whether action and resource are those of a statement.
    fn is_meant(&self, statement: &Statement) -> bool {
        let Patterns { not, patterns, .. } = &statement.action;
        if patterns.iter().any(|pattern| pattern.matches_action(&self.action)) == *not {
            return false;
        }
        statement.resource.as_ref().is_none_or(|Patterns { not, patterns, .. }| {
            patterns.iter().any(|pattern| pattern.matches(self.resource.arn, self)) != *not
        })
    }
}

impl Scope for EvaluationContext<'_, '_> {
    fn values(&self, key: &Key) -> Option<Values<'_>> {
        let Request { keys, principal, .. } = self.request;
        if let Some(values) = self.resource.keys.get(key).or_else(|| keys.get(key)) {
            return Some(values);
        }
        if key.lower() == "aws:resourceaccount" && !self.resource.account.is_empty() {
            return Some(self.resource.account.into());
        }
        principal.get(key)
    }
}

/// "You can use any available single-valued context key as a policy variable, but you cannot use a multivalued context key"
/// (IAM User Guide, "Single-valued vs. multivalued context keys").
impl Variables for EvaluationContext<'_, '_> {
    fn variable(&self, key: &Key) -> Option<Cow<'_, str>> {
        match self.values(key)? {
            Values::One(value) if !value.is_empty() => Some(value),
            _ => None,
        }
    }
}
