//! What the servers know of a guest.
//!
//! The caller fills these from its records and hands them out through [`Directory`]; nothing here reads a record.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use ipnet::Ipv4Net;
use time::OffsetDateTime;

use crate::names;

/// Who is behind a link or an address, seen from one VPC.
///
/// Called once or twice for each packet or request, on the server's task: answer from memory. Every answer is taken as
/// it is at that moment, so that a change (a public address, a security group, a tag) shows at the guest's next
/// question.
pub trait Directory: Send + Sync + 'static {
    /// The network interface whose host side has this index in the VPC's namespace.
    fn interface_on_link(&self, ifindex: u32) -> Option<Arc<Interface>>;

    /// The network interface that has this private address in the VPC.
    fn interface_at(&self, private_ip: Ipv4Addr) -> Option<Arc<Interface>>;

    /// The instance, one of whose network interfaces has this private address in the VPC.
    fn instance_at(&self, private_ip: Ipv4Addr) -> Option<Arc<Instance>>;

    /// The instance profile of an instance, with credentials of its role that are good for a while. Asked for with every request for
    /// metadata.
    fn profile(&self, _instance: &Instance) -> Option<Profile> {
        None
    }

    /// Where a public address leads; `None` when it is none of this cloud's addresses in use.
    fn public_address(&self, public_ip: Ipv4Addr) -> Option<PublicAddress>;
}

/// Where a public address of this cloud leads, seen from one VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicAddress {
    /// To the interface of this VPC that has this private address.
    Here(Ipv4Addr),
    /// To another VPC.
    Elsewhere,
}

/// A 48-bit Ethernet address, written in lower case with colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six two-digit hexadecimal numbers separated by colons.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address: {0:?}")]
pub struct ParseMacAddrError(String);

impl FromStr for MacAddr {
    type Err = ParseMacAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseMacAddrError(text.chars().take(32).collect());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(error)?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(octets)) }
    }
}

/// A security group, as an interface carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    /// `sg-…`
    pub id: String,
    /// Group name.
    pub name: String,
}

/// A network interface of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// `eni-…`
    pub id: String,
    /// The account that owns it.
    pub owner_id: String,
    /// Region; it decides the DNS names.
    pub region: String,
    /// Device index of the attachment, from 0.
    pub device_index: u32,
    /// MAC address.
    pub mac: MacAddr,
    /// Primary private address.
    pub private_ip: Ipv4Addr,
    /// Public address, while it has one.
    pub public_ip: Option<Ipv4Addr>,
    /// `subnet-…`
    pub subnet_id: String,
    /// CIDR block of the subnet.
    pub subnet_cidr: Ipv4Net,
    /// `vpc-…`
    pub vpc_id: String,
    /// Primary CIDR block of the VPC.
    pub vpc_cidr: Ipv4Net,
    /// Security groups.
    pub security_groups: Vec<SecurityGroup>,
    /// Largest IP packet of the link, in octets.
    pub mtu: u16,
}

impl Interface {
    /// The subnet's router: its base address plus one (VPC User Guide, "Subnet sizing").
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        names::offset(self.subnet_cidr.network(), 1)
    }

    /// The resolver: the base address of the VPC's primary block plus two (VPC User Guide, "Amazon DNS server").
    #[must_use]
    pub fn dns_server(&self) -> Ipv4Addr {
        names::offset(self.vpc_cidr.network(), 2)
    }

    /// As `ip-172-31-0-5.ec2.internal`.
    #[must_use]
    pub fn private_dns_name(&self) -> String {
        names::private_dns_name(self.private_ip, &self.region)
    }

    /// As `ec2-198-18-0-5.compute-1.amazonaws.com`, while there is a public address.
    #[must_use]
    pub fn public_dns_name(&self) -> Option<String> {
        self.public_ip.map(|ip| names::public_dns_name(ip, &self.region))
    }
}

/// An instance profile, as the metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Its ARN.
    pub arn: String,
    /// Its unique id: `AIPA…`
    pub id: String,
    /// Since when it is as it is.
    pub updated: OffsetDateTime,
    /// The role in it.
    pub role: Option<Role>,
}

/// The role of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Credentials of the role; none when its trust policy does not let EC2 assume it.
    pub credentials: Option<Credentials>,
}

/// Temporary credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `ASIA…`
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: String,
    /// The token that requests must carry.
    pub session_token: String,
    /// When they were given.
    pub issued: OffsetDateTime,
    /// When they end.
    pub expires: OffsetDateTime,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// The public key that an instance was launched with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Name of the key pair.
    pub name: String,
    /// The key, one line in OpenSSH's form.
    pub openssh_key: String,
}

/// `InstanceMetadataOptions` of the API reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataOptions {
    /// `HttpEndpoint` is `enabled`.
    pub http_endpoint: bool,
    /// `HttpTokens` is `required`: only IMDSv2 answers.
    pub http_tokens_required: bool,
    /// `HttpPutResponseHopLimit`, 1 to 64.
    pub hop_limit: u8,
    /// `InstanceMetadataTags` is `enabled`.
    pub instance_tags: bool,
}

/// An instance, as its metadata shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// `i-…`
    pub id: String,
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// Availability zone, as `us-east-1a`.
    pub availability_zone: String,
    /// Id of the availability zone, as `use1-az1`.
    pub availability_zone_id: String,
    /// Partition, as `aws`.
    pub partition: String,
    /// Domain of the services, as `amazonaws.com`.
    pub services_domain: String,
    /// `ami-…`
    pub image_id: String,
    /// Position within the reservation, from 0.
    pub launch_index: u32,
    /// `r-…`
    pub reservation_id: String,
    /// Instance type, as `t3.micro`.
    pub instance_type: String,
    /// Architecture, as `x86_64`.
    pub architecture: String,
    /// `system`: the kind of hypervisor, as `nitro`.
    pub system: String,
    /// Time of the latest start.
    pub launch_time: OffsetDateTime,
    /// Detailed monitoring is on.
    pub monitoring: bool,
    /// Public key.
    pub public_key: Option<PublicKey>,
    /// User data, decoded.
    pub user_data: Option<Bytes>,
    /// Device name of the root volume, as `/dev/xvda`.
    pub root_device_name: String,
    /// Device names of the other volumes that were there at the latest start, in order.
    pub volumes: Vec<String>,
    /// Network interfaces, in the order of their device indexes.
    pub interfaces: Vec<Arc<Interface>>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Options of the metadata service.
    pub metadata_options: MetadataOptions,
    /// Its instance profile: what [`Directory::profile`] says when metadata is asked for.
    pub profile: Option<Profile>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_round_trip() {
        let mac: MacAddr = "02:AB:00:9f:10:0e".parse().unwrap();
        assert_eq!(mac, MacAddr([2, 0xab, 0, 0x9f, 0x10, 0x0e]));
        assert_eq!(mac.to_string(), "02:ab:00:9f:10:0e");
    }

    #[test]
    fn what_is_no_mac_address_is_refused() {
        for text in [
            "",
            "02:ab:00:9f:10",
            "02:ab:00:9f:10:0e:00",
            "2:ab:00:9f:10:0e",
            "+2:ab:00:9f:10:0e",
            "gg:ab:00:9f:10:0e",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }
}
