//! What a VPC is to be: the input of [`Driver::sync`](crate::Driver::sync).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// A VPC, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VpcSpec {
    /// `vpc-…`
    pub id: String,
    /// IPv4 CIDR block.
    pub cidr: Ipv4Net,
    /// CIDR blocks of the subnets.
    pub subnets: Vec<Ipv4Net>,
    /// Whether an internet gateway is attached.
    pub internet_gateway: bool,
    /// Interfaces that are to exist.
    pub interfaces: Vec<InterfaceSpec>,
    /// Security groups; those that no interface is in and no rule names need not be listed.
    pub groups: Vec<GroupSpec>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// `eni-…`
    pub id: String,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The guest's private address.
    pub private_ip: Ipv4Addr,
    /// The public address that stands for it beyond the internet gateway.
    pub public_ip: Option<Ipv4Addr>,
    /// The host's address that its connections to the public address come from, where that is not of this driver's pool: a guest that
    /// moved here has it.
    pub foreign_host: Option<Ipv4Addr>,
    /// Whether the guest is moving.
    pub transit: Transit,
    /// Security groups, `sg-…`.
    pub groups: Vec<String>,
    /// Whether packets whose source is not the interface's own are dropped.
    pub source_dest_check: bool,
    /// Limit to either direction in Mbit/s.
    pub bandwidth_mbps: Option<u64>,
}

/// Where a guest is that moves, as far as the way to its public address goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transit {
    /// It does not move: the way leads here.
    #[default]
    None,
    /// It is not here yet: no way leads here.
    Arriving,
    /// It may be gone already: the way is left as it is.
    Leaving,
}

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    /// `sg-…`
    pub id: String,
    /// What may come in.
    pub ingress: Vec<Rule>,
    /// What may go out.
    pub egress: Vec<Rule>,
}

/// A rule of a security group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Protocol.
    pub protocol: Protocol,
    /// Source of what comes in, destination of what goes out.
    pub peer: Peer,
}

/// Protocol of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Every protocol.
    All,
    /// TCP.
    Tcp(Ports),
    /// UDP.
    Udp(Ports),
    /// ICMP of a type and code; none means every one.
    Icmp {
        /// Type.
        kind: Option<u8>,
        /// Code.
        code: Option<u8>,
    },
    /// Another protocol by its IANA number.
    Number(u8),
}

/// An inclusive range of destination ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// First.
    pub first: u16,
    /// Last.
    pub last: u16,
}

impl Ports {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };
}

/// The other end of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The addresses of a CIDR block.
    Cidr(Ipv4Net),
    /// The private addresses of the interfaces in a security group of the VPC.
    Group(String),
}
