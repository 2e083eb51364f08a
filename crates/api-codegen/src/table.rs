//! The table of a service's implemented operations: `operations.toml`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What a service crate implements of its model.
///
/// ```toml
/// omit_empty = ["TagList"]
/// encoded = ["Reservation"]
///
/// [operations]
/// DescribeKeyPairs = "*"
/// RunInstances = ["ImageId", "MinCount", "MaxCount", "EbsOptimized=false"]
///
/// [authorization]
/// DescribeKeyPairs = ["*"]
/// RunInstances = ["image: ImageId", "instance: *", "subnet: SubnetId, @default"]
///
/// [resources]
/// image = "arn:aws:ec2:{region}::image/{}"
/// instance = "arn:aws:ec2:{region}:{account}:instance/{}"
/// subnet = "arn:aws:ec2:{region}:{account}:subnet/{}"
///
/// [shapes]
/// EbsBlockDevice = ["VolumeSize", "VolumeType"]
/// ```
///
/// A list of members names those that are honoured; any other member of the model is refused when a request has it.
/// `Member=value` accepts that one value, because it is what haar does anyway, and refuses all others. `Member?` makes
/// a list or map optional in Rust, where an absent one and an empty one mean different things.
///
/// `[authorization]` says which permissions each operation asks for (see [`Permission`]), as the Service Authorization
/// Reference does; an operation without an entry does not build. `[resources]` gives the ARNs of the resource types.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Implemented operations, each with the members of its request that are honoured.
    pub operations: BTreeMap<String, Support>,
    /// The permissions that each operation asks for.
    #[serde(default)]
    pub authorization: BTreeMap<String, Vec<Permission>>,
    /// The ARN of each type of resource: `{region}` and `{account}` are the request's, `{}` is what tells the resource apart.
    #[serde(default)]
    pub resources: BTreeMap<String, String>,
    /// Structures below the requests, each with the members that are honoured; all of them where not named here.
    #[serde(default)]
    pub shapes: BTreeMap<String, Support>,
    /// List shapes that are left out of an answer when they are empty.
    #[serde(default)]
    pub omit_empty: Vec<String>,
    /// Structures that answers list as `haar_api::xml::Encoded`.
    #[serde(default)]
    pub encoded: Vec<String>,
    /// Enumerations that AWS has more values of than its model: any string in Rust.
    #[serde(default)]
    pub open_enums: Vec<String>,
    /// The code of the error for a violated constraint, where it is not the protocol's.
    pub validation_error: Option<String>,
    /// The code of the error for what haar has not, where it is not the protocol's.
    pub unsupported_error: Option<String>,
    /// The greatest request body in bytes, where it is not the protocol's.
    pub max_body: Option<usize>,
}

/// A permission that an operation asks for, written `[ACTION ]RESOURCE-TYPE: SOURCE, …[ if MEMBER]`.
///
/// - `*`: the operation's own action, upon no resource in particular.
/// - `instance: InstanceIds`: upon every instance that the member names. A path leads through structures and lists:
///   `NetworkInterfaces.SubnetId`. Several members may name resources; one that is absent names none.
/// - `instance: *`: upon one that is about to be made. After members, for what is made when none of them is given.
/// - `subnet: SubnetId, @default`: where none of the members is given, the service tells which resources it takes.
/// - `ec2:CreateTags tagged: TagSpecifications.ResourceType`: another action than the operation's own.
/// - `iam:TagRole role: RoleName if Tags`: only for requests that have the member.
///
/// An operation that asks for no permission has an empty list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Permission {
    /// The action, where it is not the operation's own.
    pub action: Option<String>,
    /// The resource's type; none for `*`.
    pub resource: Option<String>,
    /// The paths of the members that name resources.
    pub members: Vec<String>,
    /// What is meant when no member is given.
    pub otherwise: Otherwise,
    /// The path of the member without which the permission is not asked for.
    pub only_if: Option<String>,
}

/// Which resource is meant when no member of the request names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// None.
    Nothing,
    /// One that is about to be made.
    New,
    /// Those that the service takes.
    Default,
}

impl TryFrom<String> for Permission {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |why: &str| format!("the permission {text:?}: {why}");
        let (rest, only_if) = match text.split_once(" if ") {
            Some((rest, member)) => (rest, Some(member.trim().to_owned())),
            None => (text.as_str(), None),
        };
        let (head, sources) = match rest.split_once(": ") {
            Some((head, sources)) => (head.trim(), Some(sources)),
            None => (rest.trim(), None),
        };
        let (action, resource) = match head.split_once(' ') {
            Some((action, resource)) if action.contains(':') => (Some(action.to_owned()), resource),
            Some(_) => return Err(wrong("an action looks like iam:PassRole")),
            None => (None, head),
        };
        if resource == "*" {
            return match sources {
                None => Ok(Self {
                    action,
                    resource: None,
                    members: Vec::new(),
                    otherwise: Otherwise::Nothing,
                    only_if,
                }),
                Some(_) => Err(wrong("* is no resource's type")),
            };
        }
        let mut members = Vec::new();
        let mut otherwise = Otherwise::Nothing;
        for source in sources.ok_or_else(|| wrong("where the resources are named is missing"))?.split(',') {
            if otherwise != Otherwise::Nothing {
                return Err(wrong("* and @default stand last"));
            }
            match source.trim() {
                "*" => otherwise = Otherwise::New,
                "@default" => otherwise = Otherwise::Default,
                "" => return Err(wrong("an empty source")),
                member => members.push(member.to_owned()),
            }
        }
        Ok(Self { action, resource: Some(resource.to_owned()), members, otherwise, only_if })
    }
}

/// Which members of a structure are honoured.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Support {
    /// `"*"`: all of them.
    All(All),
    /// These.
    Members(Vec<String>),
}

/// The text `*`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub enum All {
    /// The only value.
    #[serde(rename = "*")]
    All,
}

/// What the table says of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule<'a> {
    /// Honoured.
    Yes,
    /// Honoured, and an absent list differs from an empty one.
    Optional,
    /// Accepted with one value.
    Only(&'a str),
    /// Refused.
    No,
}

impl Support {
    /// What is said of a member.
    pub fn rule(&self, member: &str) -> Rule<'_> {
        let Support::Members(entries) = self else { return Rule::Yes };
        entries
            .iter()
            .map(|entry| parse(entry))
            .find(|(name, _)| *name == member)
            .map_or(Rule::No, |(_, rule)| rule)
    }

    /// The members that are named.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        let entries = match self {
            Support::All(_) => &[][..],
            Support::Members(entries) => entries,
        };
        entries.iter().map(|entry| parse(entry).0)
    }
}

fn parse(entry: &str) -> (&str, Rule<'_>) {
    if let Some((name, value)) = entry.split_once('=') {
        (name, Rule::Only(value))
    } else if let Some(name) = entry.strip_suffix('?') {
        (name, Rule::Optional)
    } else {
        (entry, Rule::Yes)
    }
}
