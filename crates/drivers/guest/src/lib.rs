//! What a guest asks of its link: DHCP, DNS and the instance metadata service.
//!
//! Each VPC has one server of each kind: an async function that runs inside the daemon, on sockets that were made inside the
//! VPC's network namespace, until its token fires.
//!
//! ```text
//!            guest                       namespace of the VPC                     daemon
//!   ┌───────────────────────┐   tap   ┌──────────────────────────┐   sockets   ┌────────────┐
//!   │ DHCP client           ├─────────┤ 0.0.0.0:67               ├─────────────┤ serve_dhcp ├──┐
//!   │ resolver              │         │ base+2, 169.254.169.253  ├─────────────┤ serve_dns  ├──┼── Directory
//!   │ cloud-init, AWS SDKs  │         │ 169.254.169.254:80       ├─────────────┤ serve_imds ├──┘
//!   │ AWS SDKs, aws         │         │ 169.254.169.254:4566     ├─────────────┤ serve_api  ├───── who answers the API
//!   └───────────────────────┘         └──────────────────────────┘             └────────────┘
//! ```
//!
//! # Who asks
//! A guest never says who it is. DHCP knows it by the interface on which its message arrives, DNS and the metadata service by
//! the source address, which the network does not let a guest choose. Everything else comes from a [`Directory`], which the
//! caller fills from its records and keeps current; the servers hold no copy of it, so that a change of a public address, a
//! security group, a tag or a metadata option shows at the guest's next question.
//!
//! # State
//! There is none. The address of an interface is fixed, so DHCP has no leases to remember; session tokens of the metadata
//! service are sealed with a [`TokenKey`] and not listed; DNS answers are not cached here but by the host's resolvers.
//! A daemon that is killed and started again goes on where it was, and guests do not notice.
//!
//! # DHCP (RFC 2131, RFC 2132)
//! The one address that a link has is offered, acknowledged and, when another one is asked for, refused. A message whose
//! hardware address is not the interface's is dropped. Answers go by unicast where the client allows it, which takes a
//! permanent neighbour entry for the guest, and otherwise by broadcast on its own link only.
//!
//! # DNS (RFC 1035, RFC 2308, RFC 6891, RFC 7766)
//! Private and public names of interfaces, and their reverse, are answered from the directory; a public name leads to the
//! private address within its own VPC, as in EC2. All else is passed to the host's resolvers ([`Forwarder`]) as it came and
//! back as it was answered. A query that nobody answers in time is a `SERVFAIL`; what is not served (zone transfers,
//! classes other than `IN`, callers that are no interface of the VPC) is `REFUSED`.
//!
//! # Metadata (EC2 User Guide, "Use instance metadata to manage your EC2 instance")
//! IMDSv1 and IMDSv2 with the instance's options: tokens required, endpoint disabled, hop limit (the answer to a token's
//! `PUT` leaves with that IP time to live), tags. Every version shows what had been introduced by its date. What haar has
//! not, the tree has not: no `iam/` without an instance profile, no signatures of the identity document, which only AWS can make.
//!
//! # Guests that mean harm
//! What a guest sends is bounded in size, time and number, each guest having its own share ([`serve_imds`] and [`serve_dns`]
//! refuse what is beyond it), and is parsed without panics, which property tests drive. Nothing that a guest sends and no
//! failure of its link ends a server.

#[cfg(test)]
extern crate self as haar_guest;

mod accept;
mod api;
mod dhcp;
mod dns;
mod imds;
pub mod names;
mod quota;
mod udp;
mod view;

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod fixtures;

pub use api::{API_PORT, Caller, serve_api};
pub use dhcp::serve_dhcp;
pub use dns::{DnsServer, Forwarder, Zone, serve_dns};
pub use imds::{TokenKey, serve_imds};
pub use tokio_util::sync::CancellationToken;
pub use view::{
    Credentials, Directory, Instance, Interface, MacAddr, MetadataOptions, ParseMacAddrError, Profile,
    PublicAddress, PublicKey, Role, SecurityGroup,
};

/// A server could not start.
///
/// Once it has, nothing that a guest sends and no failure of a link ends a server: only its shutdown token does.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket cannot be taken over: it is no socket of the kind that was asked for, or the runtime has no room.
    #[error("the socket cannot be used: {0}")]
    Socket(#[source] std::io::Error),
}
