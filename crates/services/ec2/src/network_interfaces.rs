//! Network interfaces.

use std::net::Ipv4Addr;

use haar_api::Context;
use haar_api::timestamp::iso8601;
use haar_core::{FilterTable, new_id};
use haar_records::Tags;
use haar_records::ec2::{
    Attachment, AttachmentStatus, ClaimScope, NetworkInterface, PublicAddress, SecurityGroup, Subnet,
};
use haar_store::{Snapshot, Tx};
use ipnet::Ipv4Net;
use time::OffsetDateTime;

use crate::describe::{Kind, Request, ids_or_pages};
use crate::error::Result;
use crate::handlers::Handlers;
use crate::model;
use crate::model::{
    DescribeNetworkInterfacesRequest, DescribeNetworkInterfacesResult, GroupIdentifier,
    NetworkInterfaceAssociation, NetworkInterfaceAttachment, NetworkInterfacePrivateIpAddress,
    NetworkInterfaceStatus, NetworkInterfaceType, OperatorResponse,
};
use crate::scope::Scope;
use crate::{addresses, dns, ids, tags, zones};

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
        interface.public_address = Some(PublicAddress { ip, owner: "amazon".to_owned(), foreign_host: None });
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

const KIND: Kind<NetworkInterface, Snapshot> = Kind {
    id: ids::NETWORK_INTERFACE,
    filters: FilterTable::<NetworkInterface, Snapshot>::new(&[
        ("addresses.association.owner-id", |eni, _, probe| probe.values(public_owner(eni))),
        ("addresses.association.public-ip", |eni, _, probe| public_ip(eni).for_each(|ip| probe.display(ip))),
        ("addresses.primary", |_, _, probe| probe.value("true")),
        ("addresses.private-ip-address", |eni, _, probe| probe.display(eni.private_ip)),
        ("association.allocation-id", |_, _, _| ()),
        ("association.association-id", |_, _, _| ()),
        ("association.ip-owner-id", |eni, _, probe| probe.values(public_owner(eni))),
        ("association.public-dns-name", |eni, _, probe| {
            public_ip(eni).for_each(|ip| probe.value(&dns::public_dns_name(&eni.region, ip)));
        }),
        ("association.public-ip", |eni, _, probe| public_ip(eni).for_each(|ip| probe.display(ip))),
        ("attachment.attach-time", |eni, _, probe| {
            let times = eni.attachment.iter().map(|a| iso8601(a.attach_time, true));
            times.for_each(|time| probe.value(&time));
        }),
        ("attachment.attachment-id", |eni, _, probe| {
            probe.values(eni.attachment.iter().map(|a| a.id.as_str()));
        }),
        ("attachment.delete-on-termination", |eni, _, probe| {
            eni.attachment.iter().for_each(|a| probe.display(a.delete_on_termination));
        }),
        ("attachment.device-index", |eni, _, probe| {
            eni.attachment.iter().for_each(|a| probe.display(a.device_index));
        }),
        ("attachment.instance-id", |eni, _, probe| {
            probe.values(eni.attachment.iter().map(|a| a.instance_id.as_str()));
        }),
        ("attachment.instance-owner-id", |eni, _, probe| {
            probe.values(eni.attachment.iter().map(|_| eni.account.as_str()));
        }),
        ("attachment.status", |eni, _, probe| probe.values(eni.attachment.iter().map(|a| a.status.as_str()))),
        ("availability-zone", |eni, _, probe| probe.value(&eni.availability_zone)),
        ("availability-zone-id", |eni, _, probe| {
            probe.values(zones::zone_id(&eni.region, &eni.availability_zone).as_deref());
        }),
        ("description", |eni, _, probe| probe.value(&eni.description)),
        ("group-id", |eni, _, probe| probe.values(eni.groups.iter().map(String::as_str))),
        ("group-name", |eni, snapshot, probe| {
            groups(eni, snapshot).iter().for_each(|group| probe.values(group.group_name.as_deref()));
        }),
        ("interface-type", |_, _, probe| probe.value("interface")),
        ("ipv6-addresses.ipv6-address", |_, _, _| ()),
        ("mac-address", |eni, _, probe| probe.value(&eni.mac_address)),
        ("network-interface-id", |eni, _, probe| probe.value(&eni.id)),
        ("operator.managed", |_, _, probe| probe.value("false")),
        ("operator.principal", |_, _, _| ()),
        ("owner-id", |eni, _, probe| probe.value(&eni.account)),
        ("private-dns-name", |eni, _, probe| {
            probe.value(&dns::private_dns_name(&eni.region, eni.private_ip));
        }),
        ("private-ip-address", |eni, _, probe| probe.display(eni.private_ip)),
        ("requester-id", |eni, _, probe| probe.value(&eni.account)),
        ("requester-managed", |eni, _, probe| probe.display(eni.requester_managed)),
        ("source-dest-check", |eni, _, probe| probe.display(eni.source_dest_check)),
        ("status", |eni, _, probe| probe.value(status(eni).as_str())),
        ("subnet-id", |eni, _, probe| probe.value(&eni.subnet_id)),
        ("vpc-id", |eni, _, probe| probe.value(&eni.vpc_id)),
    ])
    .with_tags(|eni| &eni.tags),
    indexes: &[
        ("attachment.instance-id", "instance"),
        ("subnet-id", "subnet"),
        ("group-id", "group"),
        ("vpc-id", "vpc"),
    ],
};

fn public_ip(eni: &NetworkInterface) -> impl Iterator<Item = Ipv4Addr> {
    eni.public_address.iter().map(|address| address.ip)
}

fn public_owner(eni: &NetworkInterface) -> Option<&str> {
    eni.public_address.as_ref().map(|address| address.owner.as_str())
}

pub(crate) const fn status(eni: &NetworkInterface) -> NetworkInterfaceStatus {
    match &eni.attachment {
        None => NetworkInterfaceStatus::Available,
        Some(Attachment { status: AttachmentStatus::Attaching, .. }) => NetworkInterfaceStatus::Attaching,
        Some(Attachment { status: AttachmentStatus::Detaching, .. }) => NetworkInterfaceStatus::Detaching,
        Some(_) => NetworkInterfaceStatus::InUse,
    }
}

/// Ids and names of the interface's groups.
#[must_use]
pub fn groups(eni: &NetworkInterface, snapshot: &Snapshot) -> Vec<GroupIdentifier> {
    let group = |id: &String| GroupIdentifier {
        group_id: Some(id.clone()),
        group_name: snapshot
            .get::<SecurityGroup>(&eni.account, &eni.region, id)
            .map(|group| group.name.clone()),
    };
    eni.groups.iter().map(group).collect()
}

/// `DescribeNetworkInterfaces`.
pub async fn describe_network_interfaces(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeNetworkInterfacesRequest,
) -> Result<DescribeNetworkInterfacesResult> {
    ids_or_pages("networkInterfaceSet", &input.network_interface_ids, input.max_results)?;
    let snapshot = handlers.store.snapshot();
    let request = Request::new(
        &input.network_interface_ids,
        &input.filters,
        input.max_results,
        input.next_token.as_deref(),
    );
    let (interfaces, next_token) = KIND.page(handlers, ctx, &snapshot, &request, &snapshot)?;
    let network_interfaces = interfaces.iter().map(|eni| to_api(eni, &snapshot)).collect();
    Ok(DescribeNetworkInterfacesResult { network_interfaces, next_token })
}

fn to_api(eni: &NetworkInterface, snapshot: &Snapshot) -> model::NetworkInterface {
    let private_dns_name = dns::private_dns_name(&eni.region, eni.private_ip);
    let association = eni.public_address.as_ref().map(|address| NetworkInterfaceAssociation {
        ip_owner_id: Some(address.owner.clone()),
        public_dns_name: Some(dns::public_dns_name(&eni.region, address.ip)),
        public_ip: Some(address.ip.to_string()),
    });
    let attachment = eni.attachment.as_ref().map(|attachment| NetworkInterfaceAttachment {
        attach_time: Some(attachment.attach_time),
        attachment_id: Some(attachment.id.clone()),
        delete_on_termination: Some(attachment.delete_on_termination),
        device_index: i32::try_from(attachment.device_index).ok(),
        network_card_index: Some(0),
        instance_id: Some(attachment.instance_id.clone()),
        instance_owner_id: Some(eni.account.clone()),
        status: Some(attachment.status.as_str().to_owned()),
    });
    model::NetworkInterface {
        attachment,
        availability_zone: Some(eni.availability_zone.clone()),
        description: Some(eni.description.clone()),
        groups: groups(eni, snapshot),
        interface_type: Some(NetworkInterfaceType::Interface),
        ipv6_addresses: Vec::new(),
        mac_address: Some(eni.mac_address.clone()),
        network_interface_id: Some(eni.id.clone()),
        owner_id: Some(eni.account.clone()),
        private_dns_name: Some(private_dns_name.clone()),
        private_ip_address: Some(eni.private_ip.to_string()),
        private_ip_addresses: vec![NetworkInterfacePrivateIpAddress {
            association: association.clone(),
            primary: Some(true),
            private_dns_name: Some(private_dns_name),
            private_ip_address: Some(eni.private_ip.to_string()),
        }],
        association,
        requester_id: Some(eni.account.clone()),
        requester_managed: Some(eni.requester_managed),
        source_dest_check: Some(eni.source_dest_check),
        status: Some(status(eni)),
        subnet_id: Some(eni.subnet_id.clone()),
        tag_set: tags::to_api(&eni.tags),
        vpc_id: Some(eni.vpc_id.clone()),
        operator: Some(OperatorResponse { managed: Some(false) }),
        availability_zone_id: zones::zone_id(&eni.region, &eni.availability_zone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Ec2;
    use crate::security_groups;
    use crate::testing::{SCOPE, context, filter, handlers, write};

    async fn launched(handlers: &Handlers, instance_id: &str, public: bool) -> NetworkInterface {
        write(&handlers.store, |tx| {
            let subnet = crate::subnets::default_for(tx, SCOPE, None, 1)?;
            let interface = LaunchInterface {
                subnet: &subnet,
                instance_id,
                device_index: 0,
                groups: security_groups::resolve(tx, SCOPE, &subnet.vpc_id, &[], &[])?,
                private_ip: None,
                associate_public_ip: public,
                description: "primary".into(),
                delete_on_termination: true,
                tags: Tags::new(),
            };
            launch(tx, interface, handlers.config.public_pool, context().now)
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn an_interface_is_found_by_its_addresses_and_attachment() {
        let handlers = handlers().await;
        let public = launched(&handlers, "i-00000000000000001", true).await;
        launched(&handlers, "i-00000000000000002", false).await;
        let public_ip = public.public_address.as_ref().unwrap().ip;
        let time = iso8601(public.attachment.as_ref().unwrap().attach_time, true);
        for (name, value, expected) in [
            ("attachment.instance-id", "i-00000000000000001", 1),
            ("attachment.status", "attaching", 2),
            ("attachment.attach-time", &*time, 1),
            ("private-ip-address", &public.private_ip.to_string(), 1),
            ("association.public-ip", &public_ip.to_string(), 1),
            ("association.public-dns-name", "ec2-198-18-0-*.eu-central-1.compute.amazonaws.com", 1),
            ("group-name", "default", 2),
            ("mac-address", &public.mac_address, 1),
            ("subnet-id", "subnet-00000000000000000", 0),
            ("ipv6-addresses.ipv6-address", "*", 0),
        ] {
            let input = DescribeNetworkInterfacesRequest {
                filters: filter(name, value),
                ..DescribeNetworkInterfacesRequest::default()
            };
            let found = handlers.describe_network_interfaces(&context(), input).await.unwrap();
            // Both attachments were made within the same second, perhaps the same millisecond.
            let count = found.network_interfaces.len();
            assert!(
                count == expected || name == "attachment.attach-time" && count > 0,
                "{name}={value}: {count}"
            );
        }
        let input = DescribeNetworkInterfacesRequest {
            network_interface_ids: vec![public.id.clone()],
            ..DescribeNetworkInterfacesRequest::default()
        };
        let shown = handlers.describe_network_interfaces(&context(), input).await.unwrap();
        let shown = &shown.network_interfaces[0];
        assert_eq!(shown.association, shown.private_ip_addresses[0].association);
        assert_eq!(shown.association.as_ref().unwrap().public_ip, Some(public_ip.to_string()));
        assert_eq!(shown.groups[0].group_name.as_deref(), Some("default"));
        assert_eq!(shown.availability_zone_id.as_deref(), Some("euc1-az1"));
    }

    #[tokio::test]
    async fn a_deleted_interface_gives_its_addresses_back() {
        let handlers = handlers().await;
        let interface = launched(&handlers, "i-00000000000000001", true).await;
        let before = handlers.store.snapshot().count::<haar_records::ec2::Claim>();
        let given_up = write(&handlers.store, |tx| {
            delete(tx, interface.clone());
            Ok(())
        });
        given_up.await.unwrap();
        let snapshot = handlers.store.snapshot();
        assert_eq!(snapshot.count::<haar_records::ec2::Claim>(), before - 2);
        assert_eq!(snapshot.count::<NetworkInterface>(), 0);
    }
}
