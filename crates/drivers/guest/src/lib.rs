//! What a guest asks of its link: DHCP, DNS and the instance metadata service.

#[cfg(test)]
extern crate self as haar_guest;

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

pub use dhcp::serve_dhcp;
pub use dns::{DnsServer, Forwarder, Zone, serve_dns};
pub use imds::{TokenKey, serve_imds};
pub use tokio_util::sync::CancellationToken;
pub use view::{
    Directory, Instance, Interface, MacAddr, MetadataOptions, ParseMacAddrError, PublicAddress, PublicKey,
    SecurityGroup,
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
