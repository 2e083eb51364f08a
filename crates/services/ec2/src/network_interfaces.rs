//! Network interfaces.

use std::net::Ipv4Addr;

use haar_core::new_id;
use haar_records::Tags;
use haar_records::ec2::{
    Attachment, AttachmentStatus, ClaimScope, NetworkInterface, PublicAddress, Subnet,
};
use haar_store::Tx;
use ipnet::Ipv4Net;
use time::OffsetDateTime;

use crate::error::Result;
use crate::scope::Scope;
use crate::{addresses, dns, ids};

/// The interface that a launch makes for its instance.
#[derive(Debug, Clone)]
pub struct LaunchInterface<'a> {
    /// The subnet that it is in.
    pub subnet: &'a Subnet,
    /// The instance, `i-…`.
    pub instance_id: &'a str,
    /// Position among the instance's interfaces; 0 is the primary one.
    pub device_index: u32,
    /// Security groups, `sg-…`, known to exist in the subnet's VPC.
    pub groups: Vec<String>,
    /// The private address that was asked for.
    pub private_ip: Option<Ipv4Addr>,
    /// The interface gets a public address at each start of the instance.
    pub associate_public_ip: bool,
    /// Description.
    pub description: String,
    /// The interface goes with the instance.
    pub delete_on_termination: bool,
    /// Tags.
    pub tags: Tags,
}

/// Writes the record of an interface that is being attached to an instance that is being launched, and its claims.
///
/// # Errors
/// As [`addresses::allocate_private_ip`] and [`addresses::allocate_public_ip`].
pub fn launch(
    tx: &mut Tx,
    interface: LaunchInterface<'_>,
    pool: Ipv4Net,
    now: OffsetDateTime,
) -> Result<NetworkInterface> {
    let subnet = interface.subnet;
    let id = ids::NETWORK_INTERFACE.generate();
    let private_ip = addresses::allocate_private_ip(tx, subnet, interface.private_ip, &id)?;
    let mut record = NetworkInterface {
        account: subnet.account.clone(),
        region: subnet.region.clone(),
        vpc_id: subnet.vpc_id.clone(),
        subnet_id: subnet.id.clone(),
        availability_zone: subnet.availability_zone.clone(),
        mac_address: dns::mac_address(&id),
        private_ip,
        public_address: None,
        associate_public_ip: interface.associate_public_ip,
        groups: interface.groups,
        description: interface.description,
        source_dest_check: true,
        requester_managed: false,
        attachment: Some(Attachment {
            id: new_id("eni-attach"),
            instance_id: interface.instance_id.to_owned(),
            device_index: interface.device_index,
            status: AttachmentStatus::Attaching,
            attach_time: now,
            delete_on_termination: interface.delete_on_termination,
        }),
        tags: interface.tags,
        id,
    };
    assign_public_address(tx, &mut record, pool)?;
    tx.put(record.clone());
    Ok(record)
}

/// Gives the interface a public address, if it is to have one and has none. The caller writes the record.
///
/// # Errors
/// As [`addresses::allocate_public_ip`].
pub fn assign_public_address(tx: &mut Tx, interface: &mut NetworkInterface, pool: Ipv4Net) -> Result<()> {
    if interface.associate_public_ip && interface.public_address.is_none() {
        let scope = Scope { account: &interface.account, region: &interface.region };
        let ip = addresses::allocate_public_ip(tx, pool, scope, &interface.id)?;
        interface.public_address = Some(PublicAddress { ip, owner: "amazon".to_owned() });
    }
    Ok(())
}

/// Takes the interface's automatically assigned public address back. The caller writes the record.
pub fn release_public_address(tx: &mut Tx, interface: &mut NetworkInterface) {
    if let Some(address) = interface.public_address.take() {
        let scope = Scope { account: &interface.account, region: &interface.region };
        addresses::release(tx, scope, ClaimScope::PublicIp(address.ip));
    }
}

/// Deletes the interface with its claims.
pub fn delete(tx: &mut Tx, mut interface: NetworkInterface) {
    release_public_address(tx, &mut interface);
    let scope = Scope { account: &interface.account, region: &interface.region };
    addresses::release(
        tx,
        scope,
        ClaimScope::PrivateIp { vpc_id: &interface.vpc_id, ip: interface.private_ip },
    );
    tx.delete::<NetworkInterface>(&interface.account, &interface.region, &interface.id);
}
