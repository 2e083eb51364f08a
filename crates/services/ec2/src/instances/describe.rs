//! DescribeInstances, DescribeInstanceStatus and what other operations answer with: records as the API shows them.

use haar_api::Context;
use haar_api::timestamp::iso8601;
use haar_core::FilterTable;
use haar_records::ec2::{
    Attachment, AttachmentStatus, BlockDevice, Image, ImageBoot, Instance, InstanceProfileAssociation,
    InstanceState, NetworkInterface, PlacementGroup, SecurityGroup, ShutdownBehavior, StatusCheck, Volume,
};
use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION};
use haar_store::{Entry, Snapshot};
use time::OffsetDateTime;

use super::{metadata_options, profiles};
use crate::describe::{BY_TAG, Kind, Request, ids_or_pages};
use crate::error::Result;
use crate::handlers::Handlers;
use crate::{dns, ids, images, model, network_interfaces, tags, zones};

/// `InstanceState`.
pub(super) fn state(state: InstanceState) -> model::InstanceState {
    let name = match state {
        InstanceState::Pending => model::InstanceStateName::Pending,
        InstanceState::Running => model::InstanceStateName::Running,
        InstanceState::ShuttingDown => model::InstanceStateName::ShuttingDown,
        InstanceState::Terminated => model::InstanceStateName::Terminated,
        InstanceState::Stopping => model::InstanceStateName::Stopping,
        InstanceState::Stopped => model::InstanceStateName::Stopped,
    };
    model::InstanceState { code: Some(state.code()), name: Some(name) }
}

/// The instances of a reservation, in the order of the launch.
pub(super) fn instances_of(ctx: &Context, snapshot: &Snapshot, reservation_id: &str) -> Vec<Entry<Instance>> {
    let found = snapshot.by_index(&ctx.account, &ctx.region, "reservation", reservation_id);
    let mut instances: Vec<Entry<Instance>> = found.cloned().collect();
    instances.sort_by_key(|instance| instance.ami_launch_index);
    instances
}

/// The reservation of this id with these of its instances.
pub(super) fn reservation_of<'a>(
    ctx: &Context,
    snapshot: &Snapshot,
    id: &str,
    instances: impl IntoIterator<Item = &'a Entry<Instance>>,
) -> model::Reservation {
    model::Reservation {
        reservation_id: Some(id.to_owned()),
        owner_id: Some(ctx.account.clone()),
        // Groups of EC2-Classic; instances of a VPC show theirs themselves.
        groups: Vec::new(),
        instances: instances.into_iter().map(|instance| to_api(snapshot, instance)).collect(),
    }
}

/// An instance as DescribeInstances and RunInstances show it.
pub(super) fn to_api(snapshot: &Snapshot, instance: &Instance) -> model::Instance {
    let (account, region) = (&instance.account, &instance.region);
    let spec = &instance.spec;
    let there = instance.status.state != InstanceState::Terminated;
    let interfaces: Vec<_> = spec
        .network_interfaces
        .iter()
        .filter_map(|id| snapshot.get::<NetworkInterface>(account, region, id))
        .filter(|interface| interface.attachment.as_ref().is_some_and(|a| a.instance_id == instance.id))
        .collect();
    let primary = interfaces.first();
    let public_ip = primary.and_then(|i| i.public_address.as_ref()).map(|a| a.ip);
    let groups = primary.map_or_else(Vec::new, |i| network_interfaces::groups(i, snapshot));
    model::Instance {
        ami_launch_index: Some(instance.ami_launch_index),
        image_id: Some(spec.image_id.clone()),
        instance_id: Some(instance.id.clone()),
        instance_type: Some(spec.instance_type.clone()),
        key_name: spec.key_name.clone(),
        launch_time: Some(instance.launch_time),
        monitoring: Some(model::Monitoring {
            state: Some(if spec.monitoring {
                model::MonitoringState::Enabled
            } else {
                model::MonitoringState::Disabled
            }),
        }),
        placement: Some(model::Placement {
            availability_zone: Some(spec.availability_zone.clone()),
            availability_zone_id: zones::zone_id(region, &spec.availability_zone),
            group_name: Some(
                placement_group(snapshot, instance).map_or_else(String::new, |g| g.name.clone()),
            ),
            group_id: spec.placement.group_id.clone(),
            partition_number: spec.placement.partition.and_then(|number| i32::try_from(number).ok()),
            tenancy: Some(tenancy(instance)),
        }),
        private_dns_name: Some(
            primary.map_or_else(String::new, |i| dns::private_dns_name(region, i.private_ip)),
        ),
        private_ip_address: primary.map(|i| i.private_ip.to_string()),
        public_dns_name: Some(public_ip.map_or_else(String::new, |ip| dns::public_dns_name(region, ip))),
        public_ip_address: public_ip.map(|ip| ip.to_string()),
        state: Some(state(instance.status.state)),
        state_transition_reason: Some(instance.status.transition_reason.clone()),
        state_reason: instance.status.state_reason.as_ref().map(|reason| model::StateReason {
            code: Some(reason.code.clone()),
            message: Some(reason.message.clone()),
        }),
        subnet_id: there.then(|| spec.subnet_id.clone()),
        vpc_id: there.then(|| spec.vpc_id.clone()),
        architecture: Some(model::ArchitectureValues::X86_64),
        block_device_mappings: block_device_mappings(snapshot, instance),
        client_token: Some(instance.client_token.clone().unwrap_or_default()),
        ebs_optimized: Some(spec.ebs_optimized),
        ena_support: Some(false),
        hypervisor: Some(model::HypervisorType::Xen),
        iam_instance_profile: profile(instance).map(profiles::to_api),
        network_interfaces: interfaces.iter().map(|i| interface_to_api(snapshot, i)).collect(),
        root_device_name: Some(spec.root_device_name.clone()),
        root_device_type: Some(model::DeviceType::Ebs),
        security_groups: groups,
        source_dest_check: primary.map(|i| i.source_dest_check),
        tags: tags::to_api(&instance.tags),
        virtualization_type: Some(model::VirtualizationType::Hvm),
        cpu_options: instance.cpu_options().map(|options| model::CpuOptions {
            core_count: i32::try_from(options.core_count).ok(),
            threads_per_core: i32::try_from(options.threads_per_core).ok(),
        }),
        capacity_reservation_specification: Some(model::CapacityReservationSpecificationResponse {
            capacity_reservation_preference: spec
                .capacity_reservation_preference
                .as_deref()
                .map_or(Some(model::CapacityReservationPreference::Open), |preference| {
                    preference.parse().ok()
                }),
        }),
        maintenance_options: Some(model::InstanceMaintenanceOptions {
            auto_recovery: Some(model::InstanceAutoRecoveryState::Disabled),
        }),
        private_dns_name_options: there.then_some(model::PrivateDnsNameOptionsResponse {
            hostname_type: Some(model::HostnameType::IpName),
            enable_resource_name_dns_a_record: Some(false),
            enable_resource_name_dns_aaaa_record: Some(false),
        }),
        hibernation_options: Some(model::HibernationOptions { configured: Some(false) }),
        metadata_options: Some(metadata_options::to_api(instance)),
        enclave_options: Some(model::EnclaveOptions { enabled: Some(false) }),
        boot_mode: boot(snapshot, instance).as_ref().and_then(images::boot_mode),
        platform_details: Some("Linux/UNIX".to_owned()),
        usage_operation: Some("RunInstances".to_owned()),
        usage_operation_update_time: Some(instance.launch_time),
    }
}

/// How an instance boots. Records of old do not say it; their images are of the library.
fn boot(snapshot: &Snapshot, instance: &Instance) -> Option<ImageBoot> {
    let image = || snapshot.get::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION, &instance.spec.image_id);
    instance.spec.boot.clone().or_else(|| Some(image()?.boot.clone()))
}

/// The association with an instance profile, which ends with the instance.
fn profile(instance: &Instance) -> Option<&InstanceProfileAssociation> {
    let there = instance.status.state != InstanceState::Terminated;
    instance.spec.instance_profile.as_ref().filter(|_| there)
}

fn placement_group(snapshot: &Snapshot, instance: &Instance) -> Option<Entry<PlacementGroup>> {
    snapshot.get(&instance.account, &instance.region, instance.spec.placement.group_id.as_deref()?)
}

fn tenancy(instance: &Instance) -> model::Tenancy {
    if instance.spec.placement.dedicated { model::Tenancy::Dedicated } else { model::Tenancy::Default }
}

/// The devices of an instance whose volumes are attached to it, with the time and state of the attachment.
fn attached_devices<'i>(
    snapshot: &Snapshot,
    instance: &'i Instance,
) -> impl Iterator<Item = (&'i BlockDevice, OffsetDateTime, AttachmentStatus)> {
    instance.spec.block_devices.iter().filter_map(|device| {
        let volume = snapshot.get::<Volume>(&instance.account, &instance.region, &device.volume_id)?;
        let attachment = volume.attachments.iter().find(|a| a.instance_id == instance.id)?;
        Some((device, attachment.attach_time, attachment.status))
    })
}

/// The volumes that are attached to an instance.
pub(super) fn block_device_mappings(
    snapshot: &Snapshot,
    instance: &Instance,
) -> Vec<model::InstanceBlockDeviceMapping> {
    attached_devices(snapshot, instance)
        .map(|(device, attach_time, status)| model::InstanceBlockDeviceMapping {
            device_name: Some(device.device_name.clone()),
            ebs: Some(model::EbsInstanceBlockDevice {
                attach_time: Some(attach_time),
                delete_on_termination: Some(device.delete_on_termination),
                status: status.as_str().parse().ok(),
                volume_id: Some(device.volume_id.clone()),
            }),
        })
        .collect()
}

fn interface_to_api(snapshot: &Snapshot, interface: &NetworkInterface) -> model::InstanceNetworkInterface {
    let region = &interface.region;
    let association =
        interface.public_address.as_ref().map(|address| model::InstanceNetworkInterfaceAssociation {
            ip_owner_id: Some(address.owner.clone()),
            public_dns_name: Some(dns::public_dns_name(region, address.ip)),
            public_ip: Some(address.ip.to_string()),
        });
    let private_dns_name = Some(dns::private_dns_name(region, interface.private_ip));
    model::InstanceNetworkInterface {
        association: association.clone(),
        attachment: interface.attachment.as_ref().map(|attachment| {
            model::InstanceNetworkInterfaceAttachment {
                attach_time: Some(attachment.attach_time),
                attachment_id: Some(attachment.id.clone()),
                delete_on_termination: Some(attachment.delete_on_termination),
                device_index: i32::try_from(attachment.device_index).ok(),
                status: attachment.status.as_str().parse().ok(),
                network_card_index: Some(0),
            }
        }),
        description: Some(interface.description.clone()),
        groups: network_interfaces::groups(interface, snapshot),
        mac_address: Some(interface.mac_address.clone()),
        network_interface_id: Some(interface.id.clone()),
        owner_id: Some(interface.account.clone()),
        private_dns_name: private_dns_name.clone(),
        private_ip_address: Some(interface.private_ip.to_string()),
        private_ip_addresses: vec![model::InstancePrivateIpAddress {
            association,
            primary: Some(true),
            private_dns_name,
            private_ip_address: Some(interface.private_ip.to_string()),
        }],
        source_dest_check: Some(interface.source_dest_check),
        status: Some(network_interfaces::status(interface)),
        subnet_id: Some(interface.subnet_id.clone()),
        vpc_id: Some(interface.vpc_id.clone()),
        interface_type: Some("interface".to_owned()),
    }
}

/// An instance as DescribeInstanceStatus shows it.
fn status_to_api(instance: &Instance) -> model::InstanceStatus {
    let summary = |check: StatusCheck, since: Option<time::OffsetDateTime>| {
        let (status, detail) = match check {
            StatusCheck::Ok => (model::SummaryStatus::Ok, Some(model::StatusType::Passed)),
            StatusCheck::Impaired => (model::SummaryStatus::Impaired, Some(model::StatusType::Failed)),
            StatusCheck::Initializing => {
                (model::SummaryStatus::Initializing, Some(model::StatusType::Initializing))
            }
            StatusCheck::NotApplicable => (model::SummaryStatus::NotApplicable, None),
        };
        model::InstanceStatusSummary {
            status: Some(status),
            details: detail
                .map(|status| model::InstanceStatusDetails {
                    impaired_since: since.filter(|_| check == StatusCheck::Impaired),
                    name: Some(model::StatusName::Reachability),
                    status: Some(status),
                })
                .into_iter()
                .collect(),
        }
    };
    model::InstanceStatus {
        availability_zone: Some(instance.spec.availability_zone.clone()),
        availability_zone_id: zones::zone_id(&instance.region, &instance.spec.availability_zone),
        instance_id: Some(instance.id.clone()),
        instance_state: Some(state(instance.status.state)),
        instance_status: Some(summary(
            instance.status.instance_check,
            instance.status.instance_impaired_since,
        )),
        system_status: Some(summary(instance.status.system_check, instance.status.system_impaired_since)),
    }
}

/// Interfaces of an instance, primary first.
fn interfaces<'a>(
    instance: &'a Instance,
    snapshot: &'a Snapshot,
) -> impl Iterator<Item = Entry<NetworkInterface>> + 'a {
    let ids = instance.spec.network_interfaces.iter();
    let found =
        ids.filter_map(|id| snapshot.get::<NetworkInterface>(&instance.account, &instance.region, id));
    found
        .filter(|eni| eni.attachment.as_ref().is_some_and(|attachment| attachment.instance_id == instance.id))
}

fn primary(instance: &Instance, snapshot: &Snapshot) -> Option<Entry<NetworkInterface>> {
    interfaces(instance, snapshot).next()
}

fn group_name(instance: &Instance, snapshot: &Snapshot, id: &str) -> Option<String> {
    snapshot.get::<SecurityGroup>(&instance.account, &instance.region, id).map(|group| group.name.clone())
}

const INSTANCES: Kind<Instance, Snapshot> = Kind {
    id: ids::INSTANCE,
    filters: FilterTable::<Instance, Snapshot>::new(&[
        ("affinity", |_, _, _| ()),
        ("architecture", |_, _, probe| probe.value("x86_64")),
        ("availability-zone", |i, _, probe| probe.value(&i.spec.availability_zone)),
        ("availability-zone-id", |i, _, probe| {
            probe.values(zones::zone_id(&i.region, &i.spec.availability_zone).as_deref());
        }),
        ("block-device-mapping.attach-time", |i, snapshot, probe| {
            let volumes = snapshot.by_index::<Volume>(&i.account, &i.region, "instance", &i.id);
            let attachments = volumes.filter_map(|volume| volume.attachments.first().cloned());
            attachments.for_each(|a| probe.value(&iso8601(a.attach_time, true)));
        }),
        ("block-device-mapping.delete-on-termination", |i, snapshot, probe| {
            attached_devices(snapshot, i).for_each(|(device, ..)| probe.display(device.delete_on_termination));
        }),
        ("block-device-mapping.device-name", |i, snapshot, probe| {
            attached_devices(snapshot, i).for_each(|(device, ..)| probe.value(&device.device_name));
        }),
        ("block-device-mapping.status", |i, snapshot, probe| {
            let volumes = snapshot.by_index::<Volume>(&i.account, &i.region, "instance", &i.id);
            volumes.for_each(|volume| probe.values(volume.attachments.iter().map(|a| a.status.as_str())));
        }),
        ("block-device-mapping.volume-id", |i, snapshot, probe| {
            attached_devices(snapshot, i).for_each(|(device, ..)| probe.value(&device.volume_id));
        }),
        ("boot-mode", |i, snapshot, probe| {
            let mode = boot(snapshot, i).as_ref().and_then(images::boot_mode);
            probe.values(mode.map(|mode| mode.to_string()).as_deref());
        }),
        ("capacity-reservation-id", |_, _, _| ()),
        ("capacity-reservation-specification.capacity-reservation-preference", |i, _, probe| {
            probe.value(i.spec.capacity_reservation_preference.as_deref().unwrap_or("open"));
        }),
        ("capacity-reservation-specification.capacity-reservation-target.capacity-reservation-id", |_, _, _| ()),
        ("capacity-reservation-specification.capacity-reservation-target.capacity-reservation-resource-group-arn", |_, _, _| ()),
        ("client-token", |i, _, probe| probe.values(i.client_token.as_deref())),
        ("current-instance-boot-mode", |_, _, _| ()),
        ("dns-name", |i, snapshot, probe| {
            let address =
                primary(i, snapshot).and_then(|eni| eni.public_address.as_ref().map(|address| address.ip));
            probe.values(address.map(|ip| dns::public_dns_name(&i.region, ip)).as_deref());
        }),
        ("ebs-optimized", |i, _, probe| probe.display(i.spec.ebs_optimized)),
        ("ena-support", |_, _, probe| probe.value("false")),
        ("enclave-options.enabled", |_, _, probe| probe.value("false")),
        ("hibernation-options.configured", |_, _, probe| probe.value("false")),
        ("host-id", |_, _, _| ()),
        ("hypervisor", |_, _, probe| probe.value("xen")),
        ("iam-instance-profile.arn", |i, _, probe| {
            probe.values(profile(i).map(|profile| profile.arn.as_str()));
        }),
        ("iam-instance-profile.id", |i, _, probe| {
            probe.values(profile(i).map(|profile| profile.profile_id.as_str()));
        }),
        ("iam-instance-profile.name", |i, _, probe| {
            probe.values(profile(i).and_then(|profile| profile.arn.rsplit('/').next()));
        }),
        ("image-id", |i, _, probe| probe.value(&i.spec.image_id)),
        ("instance-id", |i, _, probe| probe.value(&i.id)),
        ("instance-lifecycle", |_, _, _| ()),
        ("instance-state-code", |i, _, probe| probe.display(i.status.state.code())),
        ("instance-state-name", |i, _, probe| probe.value(i.status.state.as_str())),
        ("instance-type", |i, _, probe| probe.value(&i.spec.instance_type)),
        ("instance.group-id", |i, snapshot, probe| {
            primary(i, snapshot).iter().for_each(|eni| probe.values(eni.groups.iter().map(String::as_str)));
        }),
        ("instance.group-name", |i, snapshot, probe| {
            let groups = primary(i, snapshot).map(|eni| eni.groups.clone()).unwrap_or_default();
            groups.iter().for_each(|id| probe.values(group_name(i, snapshot, id).as_deref()));
        }),
        ("ip-address", |i, snapshot, probe| {
            let address =
                primary(i, snapshot).and_then(|eni| eni.public_address.as_ref().map(|address| address.ip));
            address.iter().for_each(|ip| probe.display(ip));
        }),
        ("ipv6-address", |_, _, _| ()),
        ("kernel-id", |_, _, _| ()),
        ("key-name", |i, _, probe| probe.values(i.spec.key_name.as_deref())),
        ("launch-index", |i, _, probe| probe.display(i.ami_launch_index)),
        ("launch-time", |i, _, probe| probe.value(&iso8601(i.launch_time, true))),
        ("maintenance-options.auto-recovery", |_, _, probe| probe.value("disabled")),
        ("metadata-options.http-endpoint", |i, _, probe| {
            probe.value(if i.spec.metadata_options.http_endpoint { "enabled" } else { "disabled" });
        }),
        ("metadata-options.http-protocol-ipv4", |_, _, probe| probe.value("enabled")),
        ("metadata-options.http-protocol-ipv6", |_, _, probe| probe.value("disabled")),
        ("metadata-options.http-put-response-hop-limit", |i, _, probe| {
            probe.display(i.spec.metadata_options.hop_limit);
        }),
        ("metadata-options.http-tokens", |i, _, probe| {
            probe.value(if i.spec.metadata_options.http_tokens_required { "required" } else { "optional" });
        }),
        ("metadata-options.instance-metadata-tags", |i, _, probe| {
            probe.value(if i.spec.metadata_options.instance_tags { "enabled" } else { "disabled" });
        }),
        ("metadata-options.state", |i, _, probe| probe.display(metadata_options::state(i))),
        ("monitoring-state", |i, _, probe| {
            probe.value(if i.spec.monitoring { "enabled" } else { "disabled" });
        }),
        ("network-interface.addresses.association.allocation-id", |_, _, _| ()),
        ("network-interface.addresses.association.association-id", |_, _, _| ()),
        ("network-interface.addresses.association.carrier-ip", |_, _, _| ()),
        ("network-interface.addresses.association.customer-owned-ip", |_, _, _| ()),
        ("network-interface.addresses.association.ip-owner-id", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.values(eni.public_address.as_ref().map(|a| a.owner.as_str())));
        }),
        ("network-interface.addresses.association.public-dns-name", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.values(public_dns_name(&eni).as_deref()));
        }),
        ("network-interface.addresses.association.public-ip", |i, snapshot, probe| {
            let found = interfaces(i, snapshot);
            found.for_each(|eni| eni.public_address.iter().for_each(|address| probe.display(address.ip)));
        }),
        ("network-interface.addresses.primary", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|_| probe.value("true"));
        }),
        ("network-interface.addresses.private-dns-name", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.value(&dns::private_dns_name(&i.region, eni.private_ip)));
        }),
        ("network-interface.addresses.private-ip-address", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.display(eni.private_ip));
        }),
        ("network-interface.association.allocation-id", |_, _, _| ()),
        ("network-interface.association.association-id", |_, _, _| ()),
        ("network-interface.association.carrier-ip", |_, _, _| ()),
        ("network-interface.association.customer-owned-ip", |_, _, _| ()),
        ("network-interface.association.ip-owner-id", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.values(eni.public_address.as_ref().map(|a| a.owner.as_str())));
        }),
        ("network-interface.association.public-dns-name", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.values(public_dns_name(&eni).as_deref()));
        }),
        ("network-interface.association.public-ip", |i, snapshot, probe| {
            let found = interfaces(i, snapshot);
            found.for_each(|eni| eni.public_address.iter().for_each(|address| probe.display(address.ip)));
        }),
        ("network-interface.attachment.attach-time", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| attachment(&eni, |a| probe.value(&iso8601(a.attach_time, true))));
        }),
        ("network-interface.attachment.attachment-id", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| attachment(&eni, |a| probe.value(&a.id)));
        }),
        ("network-interface.attachment.delete-on-termination", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| attachment(&eni, |a| probe.display(a.delete_on_termination)));
        }),
        ("network-interface.attachment.device-index", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| attachment(&eni, |a| probe.display(a.device_index)));
        }),
        ("network-interface.attachment.instance-id", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| attachment(&eni, |a| probe.value(&a.instance_id)));
        }),
        ("network-interface.attachment.instance-owner-id", |i, _, probe| probe.value(&i.account)),
        ("network-interface.attachment.network-card-index", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|_| probe.value("0"));
        }),
        ("network-interface.attachment.status", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| attachment(&eni, |a| probe.value(a.status.as_str())));
        }),
        ("network-interface.availability-zone", |i, _, probe| probe.value(&i.spec.availability_zone)),
        ("network-interface.deny-all-igw-traffic", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|_| probe.value("false"));
        }),
        ("network-interface.description", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.value(&eni.description));
        }),
        ("network-interface.group-id", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.values(eni.groups.iter().map(String::as_str)));
        }),
        ("network-interface.group-name", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| eni.groups.iter().for_each(|id| probe.values(group_name(i, snapshot, id).as_deref())));
        }),
        ("network-interface.ipv4-prefixes.ipv4-prefix", |_, _, _| ()),
        ("network-interface.ipv6-address", |_, _, _| ()),
        ("network-interface.ipv6-addresses.ipv6-address", |_, _, _| ()),
        ("network-interface.ipv6-addresses.is-primary-ipv6", |_, _, _| ()),
        ("network-interface.ipv6-native", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|_| probe.value("false"));
        }),
        ("network-interface.ipv6-prefixes.ipv6-prefix", |_, _, _| ()),
        ("network-interface.mac-address", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.value(&eni.mac_address));
        }),
        ("network-interface.network-interface-id", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.value(&eni.id));
        }),
        ("network-interface.operator.managed", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|_| probe.value("false"));
        }),
        ("network-interface.operator.principal", |_, _, _| ()),
        ("network-interface.outpost-arn", |_, _, _| ()),
        ("network-interface.owner-id", |i, _, probe| probe.value(&i.account)),
        ("network-interface.private-dns-name", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.value(&dns::private_dns_name(&i.region, eni.private_ip)));
        }),
        ("network-interface.private-ip-address", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.display(eni.private_ip));
        }),
        ("network-interface.public-dns-name", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.values(public_dns_name(&eni).as_deref()));
        }),
        ("network-interface.requester-id", |_, _, _| ()),
        ("network-interface.requester-managed", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.display(eni.requester_managed));
        }),
        ("network-interface.source-dest-check", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.display(eni.source_dest_check));
        }),
        ("network-interface.status", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.value(network_interfaces::status(&eni).as_str()));
        }),
        ("network-interface.subnet-id", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.value(&eni.subnet_id));
        }),
        ("network-interface.tag-key", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.values(eni.tags.keys().map(String::as_str)));
        }),
        ("network-interface.tag-value", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.values(eni.tags.values().map(String::as_str)));
        }),
        ("network-interface.vpc-id", |i, snapshot, probe| {
            interfaces(i, snapshot).for_each(|eni| probe.value(&eni.vpc_id));
        }),
        ("network-performance-options.bandwidth-weighting", |_, _, _| ()),
        ("operator.managed", |_, _, probe| probe.value("false")),
        ("operator.principal", |_, _, _| ()),
        ("outpost-arn", |_, _, _| ()),
        ("owner-id", |i, _, probe| probe.value(&i.account)),
        ("placement-group-name", |i, snapshot, probe| {
            probe.values(placement_group(snapshot, i).map(|group| group.name.clone()).as_deref());
        }),
        ("placement-partition-number", |i, _, probe| {
            i.spec.placement.partition.iter().for_each(|number| probe.display(number));
        }),
        ("platform", |_, _, _| ()),
        ("platform-details", |_, _, probe| probe.value("Linux/UNIX")),
        ("private-dns-name-options.enable-resource-name-dns-a-record", |_, _, probe| probe.value("false")),
        ("private-dns-name-options.enable-resource-name-dns-aaaa-record", |_, _, probe| probe.value("false")),
        ("private-dns-name-options.hostname-type", |_, _, probe| probe.value("ip-name")),
        ("private-dns-name", |i, snapshot, probe| {
            let name = primary(i, snapshot).map(|eni| dns::private_dns_name(&i.region, eni.private_ip));
            probe.values(name.as_deref());
        }),
        ("private-ip-address", |i, snapshot, probe| {
            primary(i, snapshot).iter().for_each(|eni| probe.display(eni.private_ip));
        }),
        ("product-code", |_, _, _| ()),
        ("product-code.type", |_, _, _| ()),
        ("ramdisk-id", |_, _, _| ()),
        ("reason", |i, _, probe| probe.value(&i.status.transition_reason)),
        ("requester-id", |_, _, _| ()),
        ("reservation-id", |i, _, probe| probe.value(&i.reservation_id)),
        ("root-device-name", |i, _, probe| probe.value(&i.spec.root_device_name)),
        ("root-device-type", |_, _, probe| probe.value("ebs")),
        ("source-dest-check", |i, snapshot, probe| {
            primary(i, snapshot).iter().for_each(|eni| probe.display(eni.source_dest_check));
        }),
        ("spot-instance-request-id", |_, _, _| ()),
        ("state-reason-code", |i, _, probe| {
            probe.values(i.status.state_reason.as_ref().map(|reason| reason.code.as_str()));
        }),
        ("state-reason-message", |i, _, probe| {
            probe.values(i.status.state_reason.as_ref().map(|reason| reason.message.as_str()));
        }),
        ("subnet-id", |i, _, probe| probe.values(there(i).then_some(i.spec.subnet_id.as_str()))),
        ("tenancy", |i, _, probe| probe.value(tenancy(i).as_str())),
        ("tpm-support", |_, _, _| ()),
        ("usage-operation", |_, _, probe| probe.value("RunInstances")),
        ("usage-operation-update-time", |i, _, probe| probe.value(&iso8601(i.launch_time, true))),
        ("virtualization-type", |_, _, probe| probe.value("hvm")),
        ("vpc-id", |i, _, probe| probe.values(there(i).then_some(i.spec.vpc_id.as_str()))),
    ])
    .with_tags(|i| &i.tags),
    indexes: &[("reservation-id", "reservation"), BY_TAG, ("image-id", "image"), ("vpc-id", "vpc")],
};

/// A terminated instance has left its network.
fn there(instance: &Instance) -> bool {
    instance.status.state != InstanceState::Terminated
}

fn attachment(eni: &NetworkInterface, show: impl FnOnce(&Attachment)) {
    if let Some(attachment) = &eni.attachment {
        show(attachment);
    }
}

fn public_dns_name(eni: &NetworkInterface) -> Option<String> {
    eni.public_address.as_ref().map(|address| dns::public_dns_name(&eni.region, address.ip))
}

/// `DescribeInstances`.
pub async fn describe_instances(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeInstancesRequest,
) -> Result<model::DescribeInstancesResult> {
    ids_or_pages("instancesSet", &input.instance_ids, input.max_results)?;
    let request =
        Request::new(&input.instance_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let (store, listing) = (&handlers.store, &handlers.listing);
    let (reservations, next_token) = if request.is_for_all() {
        (listing.all(store, ctx), None)
    } else {
        listing.chosen(store, ctx, |snapshot| INSTANCES.page(handlers, ctx, snapshot, &request, snapshot))?
    };
    Ok(model::DescribeInstancesResult { reservations, next_token })
}

const STATUSES: Kind<Instance, Snapshot> = Kind {
    id: ids::INSTANCE,
    filters: FilterTable::<Instance, Snapshot>::new(&[
        ("application-status.status", |_, _, _| ()),
        ("attached-ebs-status.status", |_, _, _| ()),
        ("availability-zone", |i, _, probe| probe.value(&i.spec.availability_zone)),
        ("availability-zone-id", |i, _, probe| {
            probe.values(zones::zone_id(&i.region, &i.spec.availability_zone).as_deref());
        }),
        ("event.code", |_, _, _| ()),
        ("event.description", |_, _, _| ()),
        ("event.instance-event-id", |_, _, _| ()),
        ("event.not-after", |_, _, _| ()),
        ("event.not-before", |_, _, _| ()),
        ("event.not-before-deadline", |_, _, _| ()),
        ("instance-state-code", |i, _, probe| probe.display(i.status.state.code())),
        ("instance-state-name", |i, _, probe| probe.value(i.status.state.as_str())),
        ("instance-status.reachability", |i, _, probe| probe.values(reachability(i.status.instance_check))),
        ("instance-status.status", |i, _, probe| probe.value(i.status.instance_check.as_str())),
        ("operator.managed", |_, _, probe| probe.value("false")),
        ("operator.principal", |_, _, _| ()),
        ("system-status.reachability", |i, _, probe| probe.values(reachability(i.status.system_check))),
        ("system-status.status", |i, _, probe| probe.value(i.status.system_check.as_str())),
    ]),
    indexes: &[],
};

fn reachability(check: StatusCheck) -> Option<&'static str> {
    match check {
        StatusCheck::Ok => Some("passed"),
        StatusCheck::Impaired => Some("failed"),
        StatusCheck::Initializing => Some("initializing"),
        StatusCheck::NotApplicable => None,
    }
}

/// `DescribeInstanceStatus`.
pub async fn describe_instance_status(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeInstanceStatusRequest,
) -> Result<model::DescribeInstanceStatusResult> {
    let snapshot = handlers.store.snapshot();
    // Only those that run, unless all are asked for: one more filter of the request.
    let mut filters = input.filters;
    if !input.include_all_instances.unwrap_or(false) {
        filters.push(model::Filter {
            name: Some("instance-state-name".to_owned()),
            values: vec![InstanceState::Running.as_str().to_owned()],
        });
    }
    ids_or_pages("instancesSet", &input.instance_ids, input.max_results)?;
    let request = Request::new(&input.instance_ids, &filters, input.max_results, input.next_token.as_deref());
    let (instances, next_token) = STATUSES.page(handlers, ctx, &snapshot, &request, &snapshot)?;
    let instance_statuses = instances.iter().map(|instance| status_to_api(instance)).collect();
    Ok(model::DescribeInstanceStatusResult { instance_statuses, next_token })
}

/// The API's form of a shutdown behavior.
pub(super) fn shutdown_behavior(behavior: ShutdownBehavior) -> String {
    behavior.as_str().to_owned()
}
