//! Who makes a request, and whom a policy names.

use std::fmt;

use crate::key::{Context, Key, Keys, Values};

/// Who makes a request (IAM User Guide, "IAM policy elements: Variables and tags", "Principal key values").
///
/// It provides the keys `aws:PrincipalArn`, `aws:PrincipalAccount`, `aws:PrincipalType`, `aws:PrincipalTag/…`,
/// `aws:PrincipalIsAWSService`, `aws:PrincipalServiceName`, `aws:PrincipalServiceNamesList`, `aws:userid`, `aws:username`
/// and what is in [`Principal::session`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// What it is.
    pub kind: PrincipalKind,
    /// Id of its account; empty for services, identities of a provider, and anonymous callers.
    pub account: String,
    /// Its ARN, which stands in messages: of the user, of the account's root, or of the session. For services, identities
    /// and anonymous callers, what their kind says is used instead.
    pub arn: String,
    /// Its unique id: `AIDA…` of a user, the account's id for the root user, `AROA…:session-name` of a role's session,
    /// `account:name` of a federated user.
    pub user_id: String,
    /// Its tags: the user's, or the role's and the session's together.
    pub tags: Vec<(String, String)>,
    /// Canonical user id of its account, for policies that name one.
    pub canonical_user: Option<String>,
    /// Further keys that belong to its credentials, as `aws:TokenIssueTime`, `aws:MultiFactorAuthPresent`,
    /// `aws:SourceIdentity`, `aws:FederatedProvider`.
    pub session: Context,
}

/// The kinds of [`Principal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrincipalKind {
    /// The root user of an account.
    Root,
    /// An IAM user, with its own access key or that of GetSessionToken.
    User {
        /// The user's name without path.
        name: String,
    },
    /// A session of a role.
    AssumedRole {
        /// ARN of the role in IAM, with its path.
        role_arn: String,
    },
    /// A session of GetFederationToken.
    FederatedUser {
        /// ARN of the IAM user, or of the account's root, that asked for it.
        user_arn: String,
    },
    /// An AWS service on its own behalf.
    Service {
        /// Its principals, the foremost first, as `ec2.amazonaws.com`.
        names: Vec<String>,
    },
    /// Someone whom an identity provider vouches for, on the way to a role.
    FederatedIdentity {
        /// ARN of the OIDC or SAML provider, or the host of a provider that AWS knows.
        provider: String,
    },
    /// A request without signature.
    Anonymous,
}

impl Principal {
    fn new(kind: PrincipalKind, account: &str, arn: String, user_id: &str) -> Self {
        Self {
            kind,
            account: account.into(),
            arn,
            user_id: user_id.into(),
            tags: Vec::new(),
            canonical_user: None,
            session: Context::new(),
        }
    }

    /// The root user of an account. `partition` is `aws` in most regions.
    #[must_use]
    pub fn root(partition: &str, account: &str) -> Self {
        Self::new(PrincipalKind::Root, account, format!("arn:{partition}:iam::{account}:root"), account)
    }

    /// An IAM user, from its ARN and unique id. The last part of the ARN is its name.
    #[must_use]
    pub fn user(arn: &str, user_id: &str) -> Self {
        let name = arn.rsplit('/').next().unwrap_or_default().into();
        Self::new(PrincipalKind::User { name }, account_of(arn), arn.into(), user_id)
    }

    /// A session of a role, from the role's ARN and id and the session's name.
    ///
    /// ```
    /// let principal = haar_policy::Principal::assumed_role(
    ///     "arn:aws:iam::123456789012:role/service/Writer", "AROAEXAMPLE", "i-01234567890abcdef");
    /// assert_eq!(principal.arn, "arn:aws:sts::123456789012:assumed-role/Writer/i-01234567890abcdef");
    /// assert_eq!(principal.user_id, "AROAEXAMPLE:i-01234567890abcdef");
    /// ```
    #[must_use]
    pub fn assumed_role(role_arn: &str, role_id: &str, session: &str) -> Self {
        let account = account_of(role_arn);
        let partition = role_arn.split(':').nth(1).unwrap_or("aws");
        let role = role_arn.rsplit('/').next().unwrap_or_default();
        let arn = format!("arn:{partition}:sts::{account}:assumed-role/{role}/{session}");
        let kind = PrincipalKind::AssumedRole { role_arn: role_arn.into() };
        Self::new(kind, account, arn, &format!("{role_id}:{session}"))
    }

    /// A session of GetFederationToken, from the caller's ARN and the name that the caller chose.
    #[must_use]
    pub fn federated_user(user_arn: &str, name: &str) -> Self {
        let account = account_of(user_arn);
        let partition = user_arn.split(':').nth(1).unwrap_or("aws");
        let arn = format!("arn:{partition}:sts::{account}:federated-user/{name}");
        let kind = PrincipalKind::FederatedUser { user_arn: user_arn.into() };
        Self::new(kind, account, arn, &format!("{account}:{name}"))
    }

    /// A service, as `ec2.amazonaws.com`.
    #[must_use]
    pub fn service(name: &str) -> Self {
        Self::new(PrincipalKind::Service { names: vec![name.into()] }, "", String::new(), "")
    }

    /// Someone whom an identity provider vouches for; `session` has the keys of the token, as
    /// `accounts.google.com:aud`.
    #[must_use]
    pub fn federated_identity(provider: &str, session: Context) -> Self {
        let kind = PrincipalKind::FederatedIdentity { provider: provider.into() };
        Self { session, ..Self::new(kind, "", String::new(), "") }
    }

    /// A request without signature.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(PrincipalKind::Anonymous, "", String::new(), "")
    }

    /// Whether it is the root user of an account.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.kind == PrincipalKind::Root
    }

    /// Whether it belongs to an account, and so has identity-based policies.
    pub(crate) fn in_account(&self) -> bool {
        use PrincipalKind::{AssumedRole, FederatedUser, Root, User};
        matches!(self.kind, Root | User { .. } | AssumedRole { .. } | FederatedUser { .. })
    }

    /// Whether no identity-based policy is needed: the root user, and whom it federated.
    pub(crate) fn has_root_permissions(&self) -> bool {
        match &self.kind {
            PrincipalKind::Root => true,
            PrincipalKind::FederatedUser { user_arn } => user_arn.ends_with(":root"),
            _ => false,
        }
    }

    pub(crate) fn is_federated_user(&self) -> bool {
        matches!(self.kind, PrincipalKind::FederatedUser { .. })
    }

    /// `aws:PrincipalArn`: for a session of a role, the role's.
    fn principal_arn(&self) -> Option<&str> {
        match &self.kind {
            PrincipalKind::AssumedRole { role_arn } => Some(role_arn),
            _ => self.in_account().then_some(&self.arn),
        }
    }

    fn service_names(&self) -> Option<&[String]> {
        match &self.kind {
            PrincipalKind::Service { names } => Some(names),
            _ => None,
        }
    }
}

fn account_of(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

/// As messages of denied requests name it.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            PrincipalKind::Service { names } => names.first().map_or("", String::as_str),
            PrincipalKind::FederatedIdentity { provider } => provider,
            PrincipalKind::Anonymous => "anonymous",
            _ => &self.arn,
        })
    }
}

impl Keys for Principal {
    fn get(&self, key: &Key) -> Option<Values<'_>> {
        match key.name() {
            "aws:principalarn" => self.principal_arn().map(Values::from),
            "aws:principalaccount" => self.in_account().then(|| Values::from(&self.account)),
            "aws:principaltype" => match &self.kind {
                PrincipalKind::Root => Some("Account".into()),
                PrincipalKind::User { .. } => Some("User".into()),
                PrincipalKind::AssumedRole { .. } => Some("AssumedRole".into()),
                PrincipalKind::FederatedUser { .. } => Some("FederatedUser".into()),
                PrincipalKind::Anonymous => Some("Anonymous".into()),
                PrincipalKind::Service { .. } | PrincipalKind::FederatedIdentity { .. } => None,
            },
            "aws:principaltag" => {
                key.tag_value(self.tags.iter().map(|(key, value)| (key.as_str(), value.as_str())))
            }
            "aws:principalisawsservice" => Some(self.service_names().is_some().into()),
            "aws:principalservicename" => self.service_names()?.first().map(Values::from),
            "aws:principalservicenameslist" => Some(self.service_names()?.iter().collect()),
            "aws:userid" => self.in_account().then(|| Values::from(&self.user_id)),
            "aws:username" => match &self.kind {
                PrincipalKind::User { name } => Some(name.into()),
                _ => None,
            },
            _ => self.session.get(key),
        }
    }
}

/// How a policy's statement names the principal, from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grant {
    /// Not at all.
    None,
    /// By its account, which delegates to the account's identity-based policies.
    Account,
    /// By the role or user that the session was made from.
    Source,
    /// Itself, or as everyone.
    Direct,
}

/// The `Principal` or `NotPrincipal` element (IAM User Guide, "AWS JSON policy elements: Principal" and "NotPrincipal").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PrincipalElement {
    pub(crate) not: bool,
    pub(crate) named: Named,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    /// `"*"`
    Everyone,
    /// The names by type, as they are written.
    Map(Vec<(PrincipalType, Vec<Name>)>),
}

/// The keys of the element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrincipalType {
    Aws,
    Service,
    Federated,
    CanonicalUser,
}

impl PrincipalType {
    const ALL: [Self; 4] = [Self::Aws, Self::Service, Self::Federated, Self::CanonicalUser];

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|own| own.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Aws => "AWS",
            Self::Service => "Service",
            Self::Federated => "Federated",
            Self::CanonicalUser => "CanonicalUser",
        }
    }
}

/// A principal by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) written: String,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `*` of AWS: everyone with or without an account.
    Everyone,
    /// An account's id.
    Account,
    /// ARN of an account's root, which stands for the account.
    Root,
    /// ARN of a user, role or session.
    Arn,
    /// Unique id of a user or role, which stands in policies for what was deleted.
    UniqueId,
    Service,
    Provider,
    CanonicalUser,
}

impl Name {
    /// Checks the form of a name; `None` if it is no principal.
    pub(crate) fn parse(of: PrincipalType, written: &str) -> Option<Self> {
        let all = |allowed: fn(u8) -> bool| !written.is_empty() && written.bytes().all(allowed);
        let form = match of {
            PrincipalType::Aws if written == "*" => Form::Everyone,
            PrincipalType::Aws if is_account(written) => Form::Account,
            PrincipalType::Aws if is_unique_id(written) => Form::UniqueId,
            PrincipalType::Aws => aws_arn(written)?,
            PrincipalType::Service => {
                let is_host = all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
                (is_host && written.contains('.')).then_some(Form::Service)?
            }
            PrincipalType::Federated => is_provider(written).then_some(Form::Provider)?,
            PrincipalType::CanonicalUser => {
                let is_id = written.len() == 64 && all(|b| b.is_ascii_hexdigit());
                is_id.then_some(Form::CanonicalUser)?
            }
        };
        Some(Self { written: written.into(), form })
    }

    fn grant(&self, principal: &Principal) -> Grant {
        let kind = &principal.kind;
        match self.form {
            Form::Everyone if principal.in_account() || *kind == PrincipalKind::Anonymous => Grant::Direct,
            Form::Account if principal.account == self.written => account_grant(principal),
            Form::Root if principal.account == account_of(&self.written) => account_grant(principal),
            Form::CanonicalUser if principal.canonical_user.as_ref() == Some(&self.written) => {
                account_grant(principal)
            }
            Form::Arn if principal.arn == self.written => Grant::Direct,
            Form::Arn => match kind {
                PrincipalKind::AssumedRole { role_arn: source }
                | PrincipalKind::FederatedUser { user_arn: source }
                    if *source == self.written =>
                {
                    Grant::Source
                }
                _ => Grant::None,
            },
            Form::UniqueId => match kind {
                PrincipalKind::User { .. } if principal.user_id == self.written => Grant::Direct,
                PrincipalKind::AssumedRole { .. }
                    if principal.user_id.split(':').next() == Some(&*self.written) =>
                {
                    Grant::Source
                }
                _ => Grant::None,
            },
            Form::Service => match kind {
                PrincipalKind::Service { names } if names.contains(&self.written) => Grant::Direct,
                _ => Grant::None,
            },
            Form::Provider => match kind {
                PrincipalKind::FederatedIdentity { provider } if *provider == self.written => Grant::Direct,
                _ => Grant::None,
            },
            Form::Everyone | Form::Account | Form::Root | Form::CanonicalUser => Grant::None,
        }
    }
}

fn account_grant(principal: &Principal) -> Grant {
    match principal.kind {
        PrincipalKind::Root => Grant::Direct,
        _ if principal.in_account() => Grant::Account,
        _ => Grant::None,
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// As `AIDAJQABLZS4A3QDU576Q` (IAM User Guide, "IAM identifiers", "Unique identifiers").
fn is_unique_id(text: &str) -> bool {
    (16..=128).contains(&text.len())
        && text.starts_with('A')
        && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

/// An ARN of an account's root, a user, a role, or a session; wildcards are in none of them.
fn aws_arn(text: &str) -> Option<Form> {
    let mut parts = text.splitn(6, ':');
    let mut next = || parts.next();
    let (arn, partition, service, region, account, resource) =
        (next()?, next()?, next()?, next()?, next()?, next()?);
    let is_arn = arn == "arn" && is_partition(partition) && region.is_empty() && is_account(account);
    if !is_arn || resource.contains(['*', '?']) {
        return None;
    }
    let (kind, name) = resource.split_once('/').unwrap_or((resource, ""));
    let names = name.split('/').collect::<Vec<_>>();
    match (service, kind) {
        ("iam", "root") if resource == "root" => Some(Form::Root),
        ("iam", "user" | "role") if !names.contains(&"") => Some(Form::Arn),
        ("sts", "assumed-role") if names.len() == 2 && !names.contains(&"") => Some(Form::Arn),
        ("sts", "federated-user") if names.len() == 1 && !names.contains(&"") => Some(Form::Arn),
        _ => None,
    }
}

/// A partition of AWS (AWS General Reference, "Amazon Resource Names (ARNs)"; `aws-iso…` and `aws-eusc` besides).
pub(crate) fn is_partition(text: &str) -> bool {
    PARTITIONS.contains(&text)
}

pub(crate) const PARTITIONS: [&str; 8] =
    ["aws", "aws-cn", "aws-us-gov", "aws-iso", "aws-iso-b", "aws-iso-e", "aws-iso-f", "aws-eusc"];

/// ARN of an OIDC or SAML provider, or a provider's host.
fn is_provider(text: &str) -> bool {
    if let Some(arn) = text.strip_prefix("arn:") {
        let mut parts = arn.splitn(5, ':');
        let mut next = || parts.next().unwrap_or_default();
        let (partition, service, region, account, resource) = (next(), next(), next(), next(), next());
        let named = ["oidc-provider/", "saml-provider/"]
            .iter()
            .any(|kind| resource.strip_prefix(kind).is_some_and(|name| !name.is_empty()));
        let in_iam = service == "iam" && region.is_empty() && is_account(account);
        return is_partition(partition) && in_iam && named && !resource.contains(['*', '?']);
    }
    text.contains('.') && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-./_".contains(&b))
}

impl PrincipalElement {
    /// How a statement that allows names the principal.
    ///
    /// With `NotPrincipal`, everyone is named except whom one of the names fits.
    pub(crate) fn allows(&self, principal: &Principal) -> Grant {
        match (self.not, self.grant(principal)) {
            (false, grant) => grant,
            (true, Grant::None) => Grant::Direct,
            (true, _) => Grant::None,
        }
    }

    /// Whether a statement that denies means the principal.
    ///
    /// With `NotPrincipal`, only those are spared whose account, role or user, and session are all named, as the
    /// documentation asks.
    pub(crate) fn denies(&self, principal: &Principal) -> bool {
        if !self.not {
            return self.grant(principal) != Grant::None;
        }
        match &self.named {
            Named::Everyone => false,
            Named::Map(map) => {
                let named = |wanted: Grant| {
                    map.iter().flat_map(|(_, names)| names).any(|name| {
                        let grant = name.grant(principal);
                        grant == wanted || grant == Grant::Direct && name.form == Form::Everyone
                    })
                };
                let spared = match principal.kind {
                    PrincipalKind::User { .. } => named(Grant::Account) && named(Grant::Direct),
                    PrincipalKind::AssumedRole { .. } | PrincipalKind::FederatedUser { .. } => {
                        named(Grant::Account) && named(Grant::Source) && named(Grant::Direct)
                    }
                    _ => named(Grant::Direct),
                };
                !spared
            }
        }
    }

    fn grant(&self, principal: &Principal) -> Grant {
        match &self.named {
            Named::Everyone => Grant::Direct,
            Named::Map(map) => {
                let grants = map.iter().flat_map(|(_, names)| names).map(|name| name.grant(principal));
                grants.max().unwrap_or(Grant::None)
            }
        }
    }
}
