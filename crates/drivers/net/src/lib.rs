//! VPC networking: namespaces, interfaces, routes and security groups in nftables.
//!
//! A VPC is a network namespace. Each network interface is a tap in it, and everything between interfaces is routed: the tap has a
//! /32 route to its guest, proxy ARP answers for every other address of the VPC, and so each packet passes the namespace's
//! forward hook, where security groups decide. The namespace's `uplink`, a veth pair to the host, is the internet gateway:
//!
//! ```text
//!  guest ── tap ─┐                                                  ┌─ wherever the host reaches
//!                │  namespace (VPC)                      host       │
//!  guest ── tap ─┼─ source check ─ egress ─ ingress ─ uplink ═ hv… ─┤ masquerade
//!                │                 1:1 NAT private ↔ public         │
//!  DHCP DNS IMDS ┘                                                  └─ the host itself, and other VPCs' public addresses
//! ```
//!
//! The driver is told the whole of a VPC at once ([`Driver::sync`]) and makes the machine match: it adds what is missing,
//! removes what is not asked for, and replaces the namespace's nftables table in one transaction when its text changes. Connections
//! that conntrack knows stay as they are over such a replacement, as EC2 has it for tracked flows. A call that is cut off at any point is
//! mended by the next one.
//!
//! # Addresses
//!
//! Of the public pool, the first address is the host's end of every uplink (guests see the host as it) and the second the
//! namespace's end; the rest is for guests. The host masquerades what the pool sends elsewhere. An address of the host
//! counts as part of the internet: guests with a public address reach it, the host's loopback addresses they do not.

mod arp;
mod command;
mod conntrack;
mod driver;
mod error;
mod names;
mod namespace;
mod ruleset;
mod spec;

pub use conntrack::Connection;
pub use driver::{Config, Driver};
pub use error::Error;
pub use names::{interface_name, uplink_name};
pub use spec::{GroupSpec, InterfaceSpec, Peer, Ports, Protocol, Rule, Transit, VpcSpec};
