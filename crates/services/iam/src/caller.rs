//! The policies that apply to who signed a request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use haar_api::{PrincipalKind, Session, SessionOrigin};
use haar_policy::{Attached, Context, Policies, Policy, PolicyKind, Principal, date_text};
use haar_records::Tags;
use haar_records::iam::{Group, ManagedPolicy, REGION, Role, User, name_id};
use haar_store::Snapshot;
use time::OffsetDateTime;

use crate::aws_managed;

/// How many documents are kept ready to be evaluated.
const MANY: usize = 4096;

/// Documents of policies, read once.
///
/// What was read is found by the document's text, so that it needs no care when policies change.
#[derive(Default)]
pub struct Documents(Mutex<Known>);

type Known = HashMap<PolicyKind, HashMap<Box<str>, Arc<Policy>>>;

impl Documents {
    /// The policy of a document that was found good when it was put into a record.
    ///
    /// A document that cannot be read nevertheless denies everything.
    pub fn read(&self, kind: PolicyKind, document: &str) -> Arc<Policy> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry(kind).or_default();
        if let Some(policy) = known.get(document) {
            return Arc::clone(policy);
        }
        let policy = Policy::parse(document, kind).unwrap_or_else(|error| {
            tracing::error!(%error, document, "a policy cannot be read and denies everything");
            deny_all()
        });
        if known.len() >= MANY {
            known.clear();
        }
        let policy = Arc::new(policy);
        known.insert(document.into(), Arc::clone(&policy));
        policy
    }
}

fn deny_all() -> Policy {
    let document = r#"{"Version":"2012-10-17","Statement":{"Effect":"Deny","Action":"*","Resource":"*"}}"#;
    Policy::parse(document, PolicyKind::Managed).expect("the document is a policy")
}

/// Who signed a request, as `haar_policy` sees it, with the policies that apply.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it is, with tags and the keys of its session.
    pub principal: Principal,
    identity: Vec<Attached>,
    boundary: Option<Attached>,
    session: Vec<Attached>,
}

impl Caller {
    /// Collects what applies to a principal, from the records as they are.
    #[must_use]
    pub fn of(principal: &haar_api::Principal, snapshot: &Snapshot, documents: &Documents) -> Self {
        let sources = Sources { account: &principal.account, snapshot, documents };
        let mut caller = match &principal.kind {
            PrincipalKind::Root => Self::new(Principal::root("aws", &principal.account)),
            PrincipalKind::User { name } => {
                let user = Principal::user(&principal.arn, &principal.user_id);
                sources.user(Self::new(user), name, &principal.user_id)
            }
            PrincipalKind::AssumedRole { role_name, role_id, role_arn, session_name } => {
                let session = Principal::assumed_role(role_arn, role_id, session_name);
                sources.role(Self::new(session), role_name, role_id)
            }
            PrincipalKind::FederatedUser { source_arn, source_id, name } => {
                let user = Self::new(Principal::federated_user(source_arn, name));
                let source_name = source_arn.rsplit('/').next().unwrap_or_default();
                sources.user(user, source_name, source_id)
            }
            PrincipalKind::Anonymous => Self::new(Principal::anonymous()),
        };
        if let Some(session) = &principal.session {
            sources.session(&mut caller, session);
        }
        caller
    }

    /// The policies, for a [`haar_policy::Request`].
    #[must_use]
    pub fn policies(&self) -> Policies<'_> {
        Policies { identity: &self.identity, boundary: self.boundary.as_ref(), session: &self.session }
    }

    /// The same, for the authorizer.
    #[must_use]
    pub fn into_access(self) -> haar_access::Caller {
        let Self { principal, identity, boundary, session } = self;
        haar_access::Caller { principal, identity, boundary, session }
    }

    fn new(principal: Principal) -> Self {
        Self { principal, identity: Vec::new(), boundary: None, session: Vec::new() }
    }

    /// A user as it would be if it signed a request now, for simulations.
    #[must_use]
    pub(crate) fn of_user(user: &User, snapshot: &Snapshot, documents: &Documents) -> Self {
        let sources = Sources { account: &user.account, snapshot, documents };
        sources.user(Self::new(Principal::user(&user.arn(), &user.user_id)), &user.name, &user.user_id)
    }

    /// A role as it would be if a session of it signed a request now, for simulations.
    #[must_use]
    pub(crate) fn of_role(role: &Role, snapshot: &Snapshot, documents: &Documents) -> Self {
        let sources = Sources { account: &role.account, snapshot, documents };
        let principal = Principal::assumed_role(&role.arn(), &role.role_id, "simulation");
        sources.role(Self::new(principal), &role.name, &role.role_id)
    }

    /// What a group allows, for simulations.
    #[must_use]
    pub(crate) fn of_group(group: &Group, snapshot: &Snapshot, documents: &Documents) -> Self {
        let sources = Sources { account: &group.account, snapshot, documents };
        let mut caller = Self::new(Principal::user(&group.arn(), &group.group_id));
        sources.attach(&mut caller.identity, &group.attached_policies, &group.inline_policies);
        caller
    }

    /// Somebody with these policies, for simulations.
    #[must_use]
    pub(crate) fn simulated(principal: Principal, identity: Vec<Attached>) -> Self {
        Self { identity, ..Self::new(principal) }
    }

    pub(crate) fn identity_mut(&mut self) -> &mut Vec<Attached> {
        &mut self.identity
    }

    pub(crate) fn set_boundary(&mut self, boundary: Attached) {
        self.boundary = Some(boundary);
    }
}

/// Where policies come from.
struct Sources<'a> {
    account: &'a str,
    snapshot: &'a Snapshot,
    documents: &'a Documents,
}

impl Sources<'_> {
    /// The policies of a user and its groups. A user of the name with another id is another user.
    fn user(&self, mut caller: Caller, name: &str, user_id: &str) -> Caller {
        let found = self.snapshot.get::<User>(self.account, REGION, &name_id(name));
        let Some(user) = found.filter(|user| user.user_id == user_id) else { return caller };
        self.attach(&mut caller.identity, &user.attached_policies, &user.inline_policies);
        for group in &user.groups {
            if let Some(group) = self.snapshot.get::<Group>(self.account, REGION, group) {
                self.attach(&mut caller.identity, &group.attached_policies, &group.inline_policies);
            }
        }
        self.limit(&mut caller, user.permissions_boundary.as_deref(), &user.tags);
        caller
    }

    fn role(&self, mut caller: Caller, name: &str, role_id: &str) -> Caller {
        let found = self.snapshot.get::<Role>(self.account, REGION, &name_id(name));
        let Some(role) = found.filter(|role| role.role_id == role_id) else { return caller };
        self.attach(&mut caller.identity, &role.attached_policies, &role.inline_policies);
        self.limit(&mut caller, role.permissions_boundary.as_deref(), &role.tags);
        caller
    }

    fn limit(&self, caller: &mut Caller, boundary: Option<&str>, tags: &Tags) {
        caller.boundary = boundary.map(|arn| self.managed(arn));
        caller.principal.tags = tags.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    }

    fn attach<'d>(
        &self,
        to: &mut Vec<Attached>,
        managed: &[String],
        inline: impl IntoIterator<Item = (&'d String, &'d String)>,
    ) {
        for (name, document) in inline {
            to.push(Attached::inline(self.documents.read(PolicyKind::Inline, document), name));
        }
        to.extend(managed.iter().map(|arn| self.managed(arn)));
    }

    /// A managed policy in force. Policies in use cannot be deleted; one that is not there denies everything.
    fn managed(&self, arn: &str) -> Attached {
        let read = |document: &str| self.documents.read(PolicyKind::Managed, document);
        let policy = match aws_managed::find(arn) {
            Some(policy) => read(policy.document),
            None => match managed_policy(self.snapshot, arn) {
                Some(policy) => read(policy.document()),
                None => Arc::new(deny_all()),
            },
        };
        Attached::managed(policy, arn.rsplit('/').next().unwrap_or(arn), arn)
    }

    /// What the temporary credentials say (IAM User Guide, "AWS global condition context keys", "Properties of the role session").
    fn session(&self, caller: &mut Caller, session: &Session) {
        for (number, document) in session.policies.iter().enumerate() {
            let policy = self.documents.read(PolicyKind::Inline, document);
            caller.session.push(Attached::inline(policy, format!("SessionPolicy{}", number + 1)));
        }
        caller.session.extend(session.policy_arns.iter().map(|arn| self.managed(arn)));
        let tags = &mut caller.principal.tags;
        for (key, value) in &session.tags {
            // Session tags replace those of the role or user (IAM User Guide, "Pass session tags in AWS STS").
            tags.retain(|(own, _)| !own.eq_ignore_ascii_case(key));
            tags.push((key.clone(), value.clone()));
        }
        let mut keys = Context::new();
        for (key, values) in &session.keys {
            keys.insert(key, values.iter().cloned());
        }
        keys.insert("aws:TokenIssueTime", [date_text(session.issued)]);
        if session.origin != SessionOrigin::GetFederationToken {
            keys.insert("aws:MultiFactorAuthPresent", [if session.mfa { "true" } else { "false" }]);
        }
        if session.mfa {
            let age = OffsetDateTime::now_utc() - session.issued;
            keys.insert("aws:MultiFactorAuthAge", [age.whole_seconds().max(0).to_string()]);
        }
        if let Some(identity) = &session.source_identity {
            keys.insert("aws:SourceIdentity", [identity]);
        }
        if let Some(provider) = &session.federated_provider {
            keys.insert("aws:FederatedProvider", [provider]);
        }
        caller.principal.session = keys;
    }
}

/// The document in force of a managed policy, of AWS or of an account.
#[must_use]
pub fn managed_document(snapshot: &Snapshot, arn: &str) -> Option<String> {
    if let Some(policy) = aws_managed::find(arn) {
        return Some(policy.document.to_owned());
    }
    managed_policy(snapshot, arn).map(|policy| policy.document().to_owned())
}

/// The managed policy of an account with this ARN.
pub(crate) fn managed_policy(snapshot: &Snapshot, arn: &str) -> Option<haar_store::Entry<ManagedPolicy>> {
    let (account, name) = policy_arn(arn)?;
    snapshot.get::<ManagedPolicy>(account, REGION, &name_id(name)).filter(|policy| policy.arn() == arn)
}

/// Account and name in the ARN of a managed policy.
pub(crate) fn policy_arn(arn: &str) -> Option<(&str, &str)> {
    let rest = arn.strip_prefix("arn:aws:iam::")?;
    let (account, resource) = rest.split_once(':')?;
    let name = resource.strip_prefix("policy/")?.rsplit('/').next()?;
    (!name.is_empty() && !account.is_empty()).then_some((account, name))
}
