//! `RunInstances`.

use std::net::Ipv4Addr;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use haar_api::{Context, Error};
use haar_core::{Sealer, idempotent};
use haar_records::Tags;
use haar_records::ec2::{
    Attachment, AttachmentStatus, BlockDevice, CpuOptions, Image, Instance, InstanceGoal, InstanceSpec,
    InstanceStatus, InstanceType, MetadataOptions, NetworkInterface, Placement, ShutdownBehavior, Subnet,
    Volume, VolumeAttachment, VolumeState, instance_type,
};
use haar_store::Tx;
use ipnet::Ipv4Net;

use super::{credits, describe, metadata_options, options, profiles};
use crate::block_devices::{self, VolumePlan};
use crate::capacity::Wanted;
use crate::error::{Result, combination, invalid_parameter, invalid_value, missing, shorten, unsupported};
use crate::handlers::{Config, Handlers};
use crate::model;
use crate::network_interfaces::{self, LaunchInterface};
use crate::{
    Scope, addresses, encryption, ids, images, key_pairs, launch_templates, security_groups, subnets, tags,
};

/// User data is limited to 16 KB before it is encoded ("Run commands when you launch an EC2 instance", EC2 User Guide).
const MAX_USER_DATA: usize = 16 * 1024;

/// The type that RunInstances takes when the request names none.
const DEFAULT_INSTANCE_TYPE: &str = "m1.small";

/// Most instances of one request; AWS's own limit is a quota of the account.
const MAX_INSTANCES: i32 = 1_000;

/// Everything about a launch that is the same for each of its instances.
struct Plan {
    image: Image,
    instance_type: &'static InstanceType,
    volumes: Vec<VolumePlan>,
    interfaces: Vec<InterfacePlan>,
    key: Option<(String, String)>,
    metadata_options: MetadataOptions,
    cpu_options: Option<CpuOptions>,
    placement: Placement,
    capacity_reservation_preference: Option<String>,
    profile: Option<haar_records::iam::InstanceProfile>,
    instance_tags: Tags,
    volume_tags: Tags,
    interface_tags: Tags,
}

/// A network interface of each instance; the one with device index 0 is the primary one.
struct InterfacePlan {
    device_index: u32,
    subnet: Subnet,
    groups: Vec<String>,
    private_ip: Option<Ipv4Addr>,
    public: bool,
    description: String,
    delete_on_termination: bool,
    /// An interface that exists, instead of a new one.
    existing: Option<NetworkInterface>,
}

/// `RunInstances`.
pub async fn run_instances(
    handlers: &Handlers,
    ctx: &Context,
    input: model::RunInstancesRequest,
) -> Result<model::Reservation> {
    check_counts(&input)?;
    let config = &handlers.config;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let reservation_id = idempotent(tx, ctx, |tx| {
            let (input, template_tags) = launch_templates::resolve(Scope::from(ctx), tx, &input)?;
            check_user_data(input.user_data.as_deref())?;
            options::refuse(&input)?;
            let mut plan = plan(Scope::from(ctx), tx, &input)?;
            plan.instance_tags.extend(template_tags);
            create(ctx, tx, &input, &plan, config)
        })?;
        let snapshot = tx.snapshot();
        let instances = describe::instances_of(ctx, snapshot, &reservation_id);
        Ok(describe::reservation_of(ctx, snapshot, &reservation_id, &instances))
    })
    .await
}

fn plan(scope: Scope<'_>, tx: &mut Tx, input: &model::RunInstancesRequest) -> Result<Plan> {
    let image_id = input.image_id.as_deref().ok_or_else(|| missing("ImageId"))?;
    let type_name = input.instance_type.as_deref().unwrap_or(DEFAULT_INSTANCE_TYPE);
    let instance_type = known_type(type_name)?;
    credits::check_launch(input.credit_specification.as_ref(), instance_type)?;
    check_ebs_optimized(input.ebs_optimized == Some(true), instance_type)?;
    let cpu_options = options::cpu(input.cpu_options.as_ref(), instance_type)?;
    let placement = options::placement(scope, tx, input.placement.as_ref(), instance_type)?;
    let capacity_reservation_preference =
        options::capacity_reservation(input.capacity_reservation_specification.as_ref())?;
    let image_id = images::resolve(tx.snapshot(), image_id)?;
    let image = images::launchable(tx, scope, &image_id)?;
    let key = match input.key_name.as_deref() {
        Some(name) => {
            let key = key_pairs::find_by_name(tx, scope, name)?;
            Some((key.name.clone(), key.public_key.clone()))
        }
        None => None,
    };
    let interfaces = plan_interfaces(scope, tx, input, instance_type)?;
    let volumes = block_devices::plan(tx, scope, &image, &input.block_device_mappings)?;
    if !instance_type.takes(volumes.len(), interfaces.len()) {
        return Err(Error::new(
            "AttachmentLimitExceeded",
            format!("Volumes attached exceeds the limit on volume count for instance type {type_name}."),
        ));
    }
    let mut by_type = tags::of_new(&input.tag_specifications, &["instance", "volume", "network-interface"])?;
    let metadata_options = metadata_options::of_launch(&image, input.metadata_options.as_ref())?;
    if metadata_options.instance_tags {
        tags::check_for_metadata(by_type.get("instance").into_iter().flatten().map(|(key, _)| key.as_str()))?;
    }
    let profile = match &input.iam_instance_profile {
        Some(named) => profiles::named(tx.snapshot(), scope.account, named)?,
        None => None,
    };
    let mut tags_of = |resource_type| by_type.remove(resource_type).unwrap_or_default();
    Ok(Plan {
        image,
        instance_type,
        volumes,
        interfaces,
        key,
        metadata_options,
        cpu_options,
        placement,
        capacity_reservation_preference,
        profile,
        instance_tags: tags_of("instance"),
        volume_tags: tags_of("volume"),
        interface_tags: tags_of("network-interface"),
    })
}

/// Refuses EBS optimization of a type that does not have it.
///
/// # Errors
/// `Unsupported`.
pub(super) fn check_ebs_optimized(wanted: bool, hardware: &InstanceType) -> Result<()> {
    if wanted && hardware.ebs.is_none() {
        return Err(Error::new(
            "Unsupported",
            format!(
                "EBS-optimized instances (EbsOptimized) are not supported for the instance type {}. Please check the documentation for supported configurations.",
                hardware.name
            ),
        ));
    }
    Ok(())
}

/// The instance type of this name.
pub(super) fn known_type(name: &str) -> Result<&'static InstanceType> {
    instance_type(name)
        .ok_or_else(|| invalid_value(format!("Invalid value '{}' for InstanceType.", shorten(name))))
}

/// Writes the records of the instances and gives back the id of their reservation.
fn create(
    ctx: &Context,
    tx: &mut Tx,
    input: &model::RunInstancesRequest,
    plan: &Plan,
    config: &Config,
) -> Result<String> {
    let subnet = &plan.interfaces[0].subnet;
    let free = subnets::available_addresses(tx.snapshot(), subnet);
    let wanted = input.max_count.unsigned_abs();
    // As many as fit, when at least MinCount do.
    let count = if plan.interfaces[0].existing.is_some() { wanted } else { wanted.min(free) };
    if count < input.min_count.unsigned_abs() {
        return Err(Error::new(
            "InsufficientFreeAddressesInSubnet",
            format!(
                "There are not enough free addresses in subnet '{}' to satisfy the requested number of instances.",
                subnet.id
            ),
        ));
    }
    let wanted =
        Wanted { hardware: plan.instance_type, zone: &subnet.availability_zone, placement: &plan.placement };
    let least = input.min_count.unsigned_abs();
    let count = config.capacity.give(tx, Scope::from(ctx), &wanted, least, count)?;
    images::launched(ctx, tx, &plan.image);
    let reservation_id = haar_core::new_id("r");
    for launch_index in 0..count {
        create_one(ctx, tx, input, plan, config, &reservation_id, launch_index.cast_signed())?;
    }
    Ok(reservation_id)
}

fn create_one(
    ctx: &Context,
    tx: &mut Tx,
    input: &model::RunInstancesRequest,
    plan: &Plan,
    config: &Config,
    reservation_id: &str,
    launch_index: i32,
) -> Result<()> {
    let id = ids::INSTANCE.generate();
    let mut network_interfaces = Vec::with_capacity(plan.interfaces.len());
    for interface in &plan.interfaces {
        network_interfaces.push(create_interface(ctx, tx, plan, interface, config.public_pool, &id)?);
    }
    let primary = &plan.interfaces[0].subnet;
    let placement = options::of_one(tx, Scope::from(ctx), &plan.placement, config.capacity);
    let volumes = plan.volumes.iter();
    let block_devices = volumes
        .map(|volume| create_volume(ctx, tx, plan, volume, &id, primary, &config.sealer))
        .collect::<Result<_>>()?;
    tx.put(Instance {
        account: ctx.account.clone(),
        region: ctx.region.clone(),
        id,
        reservation_id: reservation_id.to_owned(),
        ami_launch_index: launch_index,
        client_token: input.client_token.clone(),
        launch_time: ctx.now,
        tags: plan.instance_tags.clone(),
        spec: InstanceSpec {
            goal: InstanceGoal::Running,
            boots: 1,
            reboots: 0,
            image_id: plan.image.id.clone(),
            instance_type: plan.instance_type.name.to_owned(),
            key_name: plan.key.as_ref().map(|(name, _)| name.clone()),
            public_key: plan.key.as_ref().map(|(_, public_key)| public_key.clone()),
            user_data: input.user_data.clone().filter(|data| !data.is_empty()),
            availability_zone: primary.availability_zone.clone(),
            vpc_id: primary.vpc_id.clone(),
            subnet_id: primary.id.clone(),
            network_interfaces,
            root_device_name: plan.image.root_device_name.clone(),
            block_devices,
            metadata_options: plan.metadata_options.clone(),
            shutdown_behavior: input
                .instance_initiated_shutdown_behavior
                .map_or(ShutdownBehavior::Stop, shutdown_behavior),
            monitoring: input.monitoring.as_ref().is_some_and(|monitoring| monitoring.enabled),
            ebs_optimized: input.ebs_optimized.unwrap_or(false),
            disable_api_termination: input.disable_api_termination.unwrap_or(false),
            disable_api_stop: input.disable_api_stop.unwrap_or(false),
            cpu_options: plan.cpu_options,
            placement,
            capacity_reservation_preference: plan.capacity_reservation_preference.clone(),
            boot: Some(plan.image.boot.clone()),
            library_id: if plan.image.is_of_library() {
                Some(plan.image.id.clone())
            } else {
                plan.image.library_id.clone()
            },
            default_user: Some(plan.image.default_user.clone()),
            instance_profile: plan.profile.as_ref().map(|profile| profiles::association(ctx, profile)),
        },
        status: InstanceStatus::pending(),
    });
    Ok(())
}

fn create_interface(
    ctx: &Context,
    tx: &mut Tx,
    plan: &Plan,
    interface: &InterfacePlan,
    pool: Ipv4Net,
    instance_id: &str,
) -> Result<String> {
    if let Some(existing) = &interface.existing {
        let attachment = Attachment {
            id: haar_core::new_id("eni-attach"),
            instance_id: instance_id.to_owned(),
            device_index: interface.device_index,
            status: AttachmentStatus::Attaching,
            attach_time: ctx.now,
            delete_on_termination: false,
        };
        // An interface that is there gets no public address by itself, at no start of the instance.
        let interface =
            NetworkInterface { attachment: Some(attachment), associate_public_ip: false, ..existing.clone() };
        tx.put(interface);
        return Ok(existing.id.clone());
    }
    let launch = LaunchInterface {
        subnet: &interface.subnet,
        instance_id,
        device_index: interface.device_index,
        groups: interface.groups.clone(),
        private_ip: interface.private_ip,
        associate_public_ip: interface.public,
        description: interface.description.clone(),
        delete_on_termination: interface.delete_on_termination,
        tags: plan.interface_tags.clone(),
    };
    Ok(network_interfaces::launch(tx, launch, pool, ctx.now)?.id)
}

fn create_volume(
    ctx: &Context,
    tx: &mut Tx,
    plan: &Plan,
    volume: &VolumePlan,
    instance_id: &str,
    subnet: &Subnet,
    sealer: &Sealer,
) -> Result<BlockDevice> {
    let id = ids::VOLUME.generate();
    let encryption = encryption::of_new(sealer, ctx, tx, &volume.encryption, volume.source.as_ref())?;
    tx.put(Volume {
        account: ctx.account.clone(),
        region: ctx.region.clone(),
        id: id.clone(),
        size_gib: volume.size_gib,
        volume_type: volume.volume_type,
        iops: volume.iops,
        throughput: volume.throughput,
        availability_zone: subnet.availability_zone.clone(),
        image_id: volume.image_id.clone(),
        snapshot_id: volume.snapshot.as_ref().map(|(id, _)| id.clone()),
        create_time: ctx.now,
        state: VolumeState::Creating,
        error: None,
        attachments: vec![VolumeAttachment {
            instance_id: instance_id.to_owned(),
            device: volume.device_name.clone(),
            status: AttachmentStatus::Attaching,
            attach_time: ctx.now,
            delete_on_termination: volume.delete_on_termination,
        }],
        modification: None,
        modified: Vec::new(),
        auto_enable_io: false,
        encryption,
        enable_io: false,
        tags: plan.volume_tags.clone(),
    });
    Ok(BlockDevice {
        device_name: volume.device_name.clone(),
        volume_id: id,
        delete_on_termination: volume.delete_on_termination,
        detaching: false,
        forced: false,
    })
}

/// The record's form of a shutdown behavior.
pub(super) fn shutdown_behavior(behavior: model::ShutdownBehavior) -> ShutdownBehavior {
    match behavior {
        model::ShutdownBehavior::Stop => ShutdownBehavior::Stop,
        model::ShutdownBehavior::Terminate => ShutdownBehavior::Terminate,
    }
}

fn check_counts(input: &model::RunInstancesRequest) -> Result<()> {
    let (least, most) = (input.min_count, input.max_count);
    if least < 1 {
        return Err(invalid_parameter(&least.to_string(), "minCount", "It must be at least 1."));
    }
    if most < least {
        return Err(invalid_parameter(&most.to_string(), "maxCount", "It must not be less than minCount."));
    }
    if most > MAX_INSTANCES {
        let message = format!(
            "You have requested more instances ({most}) than your current instance limit of {MAX_INSTANCES} allows for one request."
        );
        return Err(Error::new("InstanceLimitExceeded", message));
    }
    Ok(())
}

/// Checks user data: base64 of at most [`MAX_USER_DATA`] bytes.
pub(crate) fn check_user_data(data: Option<&str>) -> Result<()> {
    let Some(data) = data else { return Ok(()) };
    let too_long = || invalid_value(format!("User data is limited to {MAX_USER_DATA} bytes"));
    // Before anything large is decoded.
    if data.len() > MAX_USER_DATA * 2 {
        return Err(too_long());
    }
    match BASE64.decode(data) {
        Err(_) => Err(invalid_value("Invalid BASE64 encoding of user data")),
        Ok(decoded) if decoded.len() > MAX_USER_DATA => Err(too_long()),
        Ok(_) => Ok(()),
    }
}

/// The interfaces that a request asks for: those that it lists, or one from its subnet, address and groups.
fn plan_interfaces(
    scope: Scope<'_>,
    tx: &mut Tx,
    input: &model::RunInstancesRequest,
    instance_type: &InstanceType,
) -> Result<Vec<InterfacePlan>> {
    let zone = options::zone(scope, input.placement.as_ref())?;
    let zone = zone.as_deref();
    let mut plans = Vec::new();
    if input.network_interfaces.is_empty() {
        let subnet = subnet_of(scope, tx, input.subnet_id.as_deref(), zone, input.max_count.unsigned_abs())?;
        if input.subnet_id.is_some() && !input.security_groups.is_empty() {
            return Err(combination("The parameter groupName cannot be used with the parameter subnet"));
        }
        let groups = security_groups::resolve(
            tx,
            scope,
            &subnet.vpc_id,
            &input.security_group_ids,
            &input.security_groups,
        )?;
        plans.push(InterfacePlan {
            device_index: 0,
            public: subnet.map_public_ip_on_launch,
            private_ip: private_ip(input.private_ip_address.as_deref())?,
            subnet,
            groups,
            description: String::new(),
            delete_on_termination: true,
            existing: None,
        });
    } else {
        for (what, given) in [
            ("subnet ID", input.subnet_id.is_some()),
            ("security groups", !input.security_group_ids.is_empty() || !input.security_groups.is_empty()),
            ("private IP address", input.private_ip_address.is_some()),
        ] {
            if given {
                return Err(combination(format!(
                    "Network interfaces and an instance-level {what} may not be specified on the same request"
                )));
            }
        }
    }
    for interface in &input.network_interfaces {
        plans.push(plan_interface(scope, tx, interface, zone, input.network_interfaces.len())?);
    }
    check_interfaces(input, instance_type, &mut plans)?;
    Ok(plans)
}

fn plan_interface(
    scope: Scope<'_>,
    tx: &mut Tx,
    spec: &model::InstanceNetworkInterfaceSpecification,
    zone: Option<&str>,
    count: usize,
) -> Result<InterfacePlan> {
    let index = spec.device_index.ok_or_else(|| missing("NetworkInterface.DeviceIndex"))?;
    let device_index = u32::try_from(index)
        .map_err(|_| invalid_parameter(&index.to_string(), "DeviceIndex", "It must not be negative."))?;
    if let Some(card) = spec.network_card_index
        && card != 0
    {
        return Err(invalid_parameter(
            &card.to_string(),
            "NetworkCardIndex",
            "There is only network card 0.",
        ));
    }
    if let Some(kind) = spec.interface_type.as_deref()
        && kind != "interface"
    {
        let kind = shorten(kind);
        return Err(unsupported(format!(
            "The value '{kind}' of the parameter NetworkInterface.InterfaceType is not supported."
        )));
    }
    if let Some(id) = spec.network_interface_id.as_deref() {
        return plan_existing(scope, tx, spec, id, device_index, zone);
    }
    let subnet = subnet_of(scope, tx, spec.subnet_id.as_deref(), zone, 1)?;
    let public = match spec.associate_public_ip_address {
        Some(true) if count > 1 || device_index > 0 => {
            return Err(combination(
                "The associatePublicIPAddress parameter can only be specified for the network interface with a device index of 0, and only when it is the only one.",
            ));
        }
        Some(wanted) => wanted,
        None => count == 1 && subnet.map_public_ip_on_launch,
    };
    let groups = security_groups::resolve(tx, scope, &subnet.vpc_id, &spec.groups, &[])?;
    Ok(InterfacePlan {
        device_index,
        private_ip: private_ip(spec.private_ip_address.as_deref())?,
        subnet,
        groups,
        public,
        description: spec.description.clone().unwrap_or_default(),
        delete_on_termination: spec.delete_on_termination.unwrap_or(true),
        existing: None,
    })
}

fn plan_existing(
    scope: Scope<'_>,
    tx: &mut Tx,
    spec: &model::InstanceNetworkInterfaceSpecification,
    id: &str,
    device_index: u32,
    zone: Option<&str>,
) -> Result<InterfacePlan> {
    let others = spec.subnet_id.is_some()
        || !spec.groups.is_empty()
        || spec.private_ip_address.is_some()
        || spec.associate_public_ip_address.is_some()
        || spec.description.is_some();
    if others {
        return Err(combination(
            "A network interface may not specify both a network interface ID and a subnet, security groups, addresses or a description",
        ));
    }
    if spec.delete_on_termination == Some(true) {
        return Err(combination(
            "deleteOnTermination can only be true for a network interface that the launch creates",
        ));
    }
    ids::NETWORK_INTERFACE.check(id)?;
    let existing = tx
        .get::<NetworkInterface>(scope.account, scope.region, id)
        .ok_or_else(|| ids::NETWORK_INTERFACE.missing(id))?;
    if existing.attachment.is_some() {
        return Err(Error::new("InvalidNetworkInterface.InUse", format!("Interface: [{id}] in use.")));
    }
    Ok(InterfacePlan {
        device_index,
        subnet: subnet_of(scope, tx, Some(&existing.subnet_id), zone, 0)?,
        groups: existing.groups.clone(),
        private_ip: Some(existing.private_ip),
        public: false,
        description: existing.description.clone(),
        delete_on_termination: false,
        existing: Some(NetworkInterface::clone(&existing)),
    })
}

/// Checks what concerns all interfaces together, and sorts them by device index.
fn check_interfaces(
    input: &model::RunInstancesRequest,
    instance_type: &InstanceType,
    plans: &mut [InterfacePlan],
) -> Result<()> {
    plans.sort_by_key(|plan| plan.device_index);
    if plans.iter().zip(0..).any(|(plan, index)| plan.device_index != index) {
        return Err(invalid_value(
            "The device indexes of the network interfaces must start at 0 and follow one another without a gap",
        ));
    }
    let limit = instance_type.max_network_interfaces as usize;
    if plans.len() > limit {
        return Err(Error::new(
            "AttachmentLimitExceeded",
            format!("Interface count {} exceeds the limit for {}", plans.len(), instance_type.name),
        ));
    }
    let first = &plans[0].subnet;
    if plans.iter().any(|plan| {
        plan.subnet.availability_zone != first.availability_zone || plan.subnet.vpc_id != first.vpc_id
    }) {
        return Err(combination(
            "All network interfaces of an instance must be in the same VPC and Availability Zone",
        ));
    }
    if input.max_count > 1 && plans.iter().any(|plan| plan.private_ip.is_some()) {
        return Err(combination(
            "A private IP address or a network interface can be specified only when one instance is launched",
        ));
    }
    for plan in plans.iter().filter(|plan| plan.existing.is_none()) {
        if let Some(ip) = plan.private_ip
            && !addresses::block(&plan.subnet)?.contains(&ip)
        {
            return Err(invalid_value(format!(
                "Address {ip} does not fall within the subnet's address range"
            )));
        }
    }
    Ok(())
}

/// The subnet that a request names, or the default one of its zone or of any.
fn subnet_of(
    scope: Scope<'_>,
    tx: &mut Tx,
    id: Option<&str>,
    zone: Option<&str>,
    needed: u32,
) -> Result<Subnet> {
    let Some(id) = id else { return Ok(Subnet::clone(&*subnets::default_for(tx, scope, zone, needed)?)) };
    let subnet = subnets::find(tx, scope, id)?;
    match zone {
        Some(zone) if zone != subnet.availability_zone => Err(invalid_value(format!(
            "The availability zone '{}' is not that of the subnet '{id}', '{}'",
            shorten(zone),
            subnet.availability_zone
        ))),
        _ => Ok(Subnet::clone(&*subnet)),
    }
}

fn private_ip(address: Option<&str>) -> Result<Option<Ipv4Addr>> {
    let parse = |address: &str| {
        address.parse().map_err(|_| invalid_parameter(address, "privateIpAddress", "Invalid IPv4 address."))
    };
    address.map(parse).transpose()
}
