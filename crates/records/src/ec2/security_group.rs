//! Security groups.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Tags, resource};

/// A security group (`SecurityGroup` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `sg-…`
    pub id: String,
    /// Name, unique in the VPC.
    pub name: String,
    /// Description.
    pub description: String,
    /// `vpc-…`
    pub vpc_id: String,
    /// Rules of both directions, in the order of their making.
    pub rules: Vec<SecurityGroupRule>,
    /// Tags.
    pub tags: Tags,
}

resource!(SecurityGroup, "ec2.security-group",
    "vpc" => |g| [g.vpc_id.clone()],
    "rule" => |g| g.rules.iter().map(|rule| rule.id.clone()).collect::<Vec<_>>(),
    "reference" => |g| g.references(),
);

impl SecurityGroup {
    /// The groups that the rules name as sources or destinations, each once.
    #[must_use]
    pub fn references(&self) -> Vec<String> {
        let groups = self.rules.iter().filter_map(|rule| match &rule.target {
            RuleTarget::Group(id) => Some(id.clone()),
            RuleTarget::Cidr(_) => None,
        });
        groups.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// One rule (`SecurityGroupRule` in the API reference): one protocol and port range, one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupRule {
    /// `sgr-…`
    pub id: String,
    /// Outbound rather than inbound.
    pub egress: bool,
    /// `tcp`, `udp`, `icmp`, a protocol number, or `-1` for all.
    pub protocol: String,
    /// First port, or ICMP type; -1 for all.
    pub from_port: i32,
    /// Last port, or ICMP code; -1 for all.
    pub to_port: i32,
    /// Source or destination.
    pub target: RuleTarget,
    /// Description.
    pub description: Option<String>,
    /// Tags.
    pub tags: Tags,
}

/// Source of an inbound rule, destination of an outbound one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuleTarget {
    /// An IPv4 CIDR block in canonical form.
    Cidr(String),
    /// The interfaces of a security group, `sg-…`.
    Group(String),
}
