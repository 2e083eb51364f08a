//! VPCs and what is in them.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::wire_enum;
use crate::{GLOBAL_ACCOUNT, GLOBAL_REGION, Tags, resource};

/// A VPC (`Vpc` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vpc {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `vpc-…`
    pub id: String,
    /// IPv4 CIDR block, as `172.31.0.0/16`.
    pub cidr_block: String,
    /// `vpc-cidr-assoc-…` of the block.
    pub cidr_association_id: String,
    /// `dopt-…`
    pub dhcp_options_id: String,
    /// The account's default VPC of the region.
    pub is_default: bool,
    /// Tags.
    pub tags: Tags,
}

resource!(Vpc, "ec2.vpc", "default" => |v| v.is_default.then(|| "true".to_owned()));

/// A subnet (`Subnet` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subnet {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `subnet-…`
    pub id: String,
    /// `vpc-…`
    pub vpc_id: String,
    /// IPv4 CIDR block, as `172.31.0.0/20`.
    pub cidr_block: String,
    /// Availability zone.
    pub availability_zone: String,
    /// The zone's default subnet.
    pub default_for_az: bool,
    /// Instances get a public address unless they say otherwise.
    pub map_public_ip_on_launch: bool,
    /// Tags.
    pub tags: Tags,
}

resource!(Subnet, "ec2.subnet", "vpc" => |s| [s.vpc_id.clone()]);

/// A route table (`RouteTable` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `rtb-…`
    pub id: String,
    /// `vpc-…`
    pub vpc_id: String,
    /// Routes, the local one first.
    pub routes: Vec<Route>,
    /// Associations; one of them is the main one in a VPC's main table.
    pub associations: Vec<RouteTableAssociation>,
    /// Tags.
    pub tags: Tags,
}

resource!(RouteTable, "ec2.route-table", "vpc" => |r| [r.vpc_id.clone()]);

/// `Route`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination CIDR block.
    pub destination: String,
    /// Target.
    pub target: RouteTarget,
    /// Made with its table (`CreateRouteTable`) rather than by CreateRoute.
    pub implicit: bool,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteTarget {
    /// Within the VPC (`GatewayId` is `local`).
    Local,
    /// To an internet gateway, `igw-…`.
    InternetGateway(String),
}

/// `RouteTableAssociation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTableAssociation {
    /// `rtbassoc-…`
    pub id: String,
    /// The subnet, or none for the main association.
    pub subnet_id: Option<String>,
}

/// An internet gateway (`InternetGateway` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InternetGateway {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `igw-…`
    pub id: String,
    /// The VPC that it is attached to.
    pub vpc_id: Option<String>,
    /// Tags.
    pub tags: Tags,
}

resource!(InternetGateway, "ec2.internet-gateway", "vpc" => |g| g.vpc_id.clone());

/// A network interface (`NetworkInterface` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `eni-…`
    pub id: String,
    /// `vpc-…`
    pub vpc_id: String,
    /// `subnet-…`
    pub subnet_id: String,
    /// Availability zone.
    pub availability_zone: String,
    /// MAC address, lower case with colons.
    pub mac_address: String,
    /// Primary private address.
    pub private_ip: Ipv4Addr,
    /// Public address, while it has one.
    pub public_address: Option<PublicAddress>,
    /// A public address is assigned at each start of the instance.
    pub associate_public_ip: bool,
    /// Security groups (`sg-…`).
    pub groups: Vec<String>,
    /// Description.
    pub description: String,
    /// Source and destination check.
    pub source_dest_check: bool,
    /// The interface was made by RunInstances for the instance.
    pub requester_managed: bool,
    /// Attachment.
    pub attachment: Option<Attachment>,
    /// Tags.
    pub tags: Tags,
}

resource!(NetworkInterface, "ec2.network-interface",
    "vpc" => |n| [n.vpc_id.clone()],
    "subnet" => |n| [n.subnet_id.clone()],
    "group" => |n| n.groups.clone(),
    "instance" => |n| n.attachment.as_ref().map(|a| a.instance_id.clone()),
);

/// A public address of an interface (`NetworkInterfaceAssociation`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicAddress {
    /// The address.
    pub ip: Ipv4Addr,
    /// `amazon` for an automatically assigned one, else the account.
    pub owner: String,
    /// The host's address that its connections to this one come from, where the address came with a guest from another daemon's pool.
    #[serde(default)]
    pub foreign_host: Option<Ipv4Addr>,
}

wire_enum! {
    /// `AttachmentStatus`, of interfaces and volumes.
    AttachmentStatus {
        /// Being attached.
        Attaching = "attaching",
        /// Attached.
        Attached = "attached",
        /// Being detached.
        Detaching = "detaching",
        /// Detached.
        Detached = "detached",
    }
}

/// `NetworkInterfaceAttachment`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// `eni-attach-…`
    pub id: String,
    /// `i-…`
    pub instance_id: String,
    /// Device index.
    pub device_index: u32,
    /// State.
    pub status: AttachmentStatus,
    /// Since when.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub attach_time: OffsetDateTime,
    /// The interface goes with the instance.
    pub delete_on_termination: bool,
}

/// A name or address that one resource holds: creating the claim in the transaction that creates the holder is what makes
/// it unique.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Account.
    pub account: String,
    /// Region.
    pub region: String,
    /// Scope and value.
    pub id: String,
    /// The resource that holds it.
    pub holder: String,
}

resource!(Claim, "ec2.claim");

/// What a claim is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimScope<'a> {
    /// A private address of a VPC.
    PrivateIp {
        /// `vpc-…`
        vpc_id: &'a str,
        /// The address.
        ip: Ipv4Addr,
    },
    /// An address of the host's public pool, over all accounts and regions.
    PublicIp(Ipv4Addr),
    /// A security group's name in a VPC.
    GroupName {
        /// `vpc-…`
        vpc_id: &'a str,
        /// Group name.
        name: &'a str,
    },
    /// A key pair's name.
    KeyName(&'a str),
    /// A launch template's name.
    LaunchTemplate(&'a str),
    /// A placement group's name.
    PlacementGroup(&'a str),
    /// The default VPC of an account and region.
    DefaultVpc,
}

impl Claim {
    /// The claim of `holder`, in `account` and `region` unless the scope spans them all.
    #[must_use]
    pub fn new(account: &str, region: &str, scope: ClaimScope<'_>, holder: &str) -> Self {
        let (account, region, id) = Self::key(account, region, scope);
        Self { account, region, id, holder: holder.to_owned() }
    }

    /// Account, region and id under which the claim is stored.
    #[must_use]
    pub fn key(account: &str, region: &str, scope: ClaimScope<'_>) -> (String, String, String) {
        let id = match scope {
            ClaimScope::PrivateIp { vpc_id, ip } => format!("private-ip/{vpc_id}/{ip}"),
            ClaimScope::PublicIp(ip) => format!("public-ip/{ip}"),
            ClaimScope::GroupName { vpc_id, name } => format!("group-name/{vpc_id}/{name}"),
            ClaimScope::KeyName(name) => format!("key-name/{name}"),
            ClaimScope::LaunchTemplate(name) => format!("launch-template/{name}"),
            ClaimScope::PlacementGroup(name) => format!("placement-group/{name}"),
            ClaimScope::DefaultVpc => "default-vpc".to_owned(),
        };
        match scope {
            ClaimScope::PublicIp(_) => (GLOBAL_ACCOUNT.to_owned(), GLOBAL_REGION.to_owned(), id),
            _ => (account.to_owned(), region.to_owned(), id),
        }
    }
}
