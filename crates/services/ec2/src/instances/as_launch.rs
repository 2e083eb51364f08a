//! An instance as the launch that would make another like it.

use haar_records::ec2::launch_template::{
    LaunchTemplateData, TemplateBlockDevice, TemplateCapacityReservation, TemplateCpuOptions,
    TemplateCredits, TemplateEbs, TemplateHibernation, TemplateInstanceProfile, TemplateInterface,
    TemplateMetadataOptions, TemplatePlacement, TemplateSwitch, TemplateTag, TemplateTags,
};
use haar_records::ec2::{Instance, NetworkInterface, Volume, instance_type};
use haar_records::{Tags, ec2::PlacementGroup};
use haar_store::Snapshot;

/// What a template says that launches instances like this one. Addresses are left out: no two can have the same.
pub(crate) fn describe_as_launch(snapshot: &Snapshot, instance: &Instance) -> LaunchTemplateData {
    let spec = &instance.spec;
    let (account, region) = (&instance.account, &instance.region);
    let volume = |id: &str| snapshot.get::<Volume>(account, region, id);
    let devices = spec.block_devices.iter().filter(|device| !device.detaching);
    let block_device_mappings = devices.map(|device| TemplateBlockDevice {
        device_name: Some(device.device_name.clone()),
        ebs: volume(&device.volume_id).map(|volume| TemplateEbs {
            delete_on_termination: Some(device.delete_on_termination),
            // Where the type gives it by itself, a launch may not ask for it.
            iops: volume.iops.filter(|_| may_ask_for_iops(&volume)).and_then(|iops| i32::try_from(iops).ok()),
            volume_size: i32::try_from(volume.size_gib).ok(),
            volume_type: Some(volume.volume_type.to_string()),
            throughput: volume.throughput.and_then(|throughput| i32::try_from(throughput).ok()),
            ..TemplateEbs::default()
        }),
        no_device: None,
    });
    let interfaces = spec.network_interfaces.iter().filter_map(|id| {
        let eni = snapshot.get::<NetworkInterface>(account, region, id)?;
        let attachment = eni.attachment.as_ref()?;
        Some(TemplateInterface {
            associate_public_ip_address: (spec.network_interfaces.len() == 1)
                .then_some(eni.public_address.is_some()),
            delete_on_termination: Some(attachment.delete_on_termination),
            description: Some(eni.description.clone()),
            device_index: i32::try_from(attachment.device_index).ok(),
            groups: eni.groups.clone(),
            interface_type: Some("interface".to_owned()),
            subnet_id: Some(eni.subnet_id.clone()),
            network_card_index: Some(0),
            ..TemplateInterface::default()
        })
    });
    let group = spec.placement.group_id.as_deref();
    let group = group.and_then(|id| snapshot.get::<PlacementGroup>(account, region, id));
    let burstable = instance_type(&spec.instance_type).is_some_and(|hardware| hardware.burstable);
    let on = |value: bool| Some(if value { "enabled" } else { "disabled" }.to_owned());
    let metadata = &spec.metadata_options;
    LaunchTemplateData {
        ebs_optimized: Some(spec.ebs_optimized),
        block_device_mappings: block_device_mappings.collect(),
        network_interfaces: interfaces.collect(),
        image_id: Some(spec.image_id.clone()),
        instance_type: Some(spec.instance_type.clone()),
        key_name: spec.key_name.clone(),
        monitoring: Some(TemplateSwitch { enabled: Some(spec.monitoring) }),
        placement: Some(TemplatePlacement {
            availability_zone: Some(spec.availability_zone.clone()),
            group_name: Some(group.map_or_else(String::new, |group| group.name.clone())),
            tenancy: Some(if spec.placement.dedicated { "dedicated" } else { "default" }.to_owned()),
            ..TemplatePlacement::default()
        }),
        disable_api_termination: Some(spec.disable_api_termination),
        instance_initiated_shutdown_behavior: Some(spec.shutdown_behavior.to_string()),
        user_data: spec.user_data.clone(),
        tag_specifications: tags(instance),
        credit_specification: burstable
            .then(|| TemplateCredits { cpu_credits: Some("unlimited".to_owned()) }),
        cpu_options: spec.cpu_options.map(|options| TemplateCpuOptions {
            core_count: i32::try_from(options.core_count).ok(),
            threads_per_core: i32::try_from(options.threads_per_core).ok(),
        }),
        capacity_reservation_specification: Some(TemplateCapacityReservation {
            capacity_reservation_preference: Some(
                spec.capacity_reservation_preference.clone().unwrap_or_else(|| "open".to_owned()),
            ),
            capacity_reservation_target: None,
        }),
        hibernation_options: Some(TemplateHibernation { configured: Some(false) }),
        metadata_options: Some(TemplateMetadataOptions {
            // Of a service that is off, nothing else may be said.
            http_tokens: metadata
                .http_endpoint
                .then(|| if metadata.http_tokens_required { "required" } else { "optional" }.to_owned()),
            http_put_response_hop_limit: metadata.http_endpoint.then(|| i32::from(metadata.hop_limit)),
            http_endpoint: on(metadata.http_endpoint),
            http_protocol_ipv6: on(false),
            instance_metadata_tags: on(metadata.instance_tags),
        }),
        enclave_options: Some(TemplateSwitch { enabled: Some(false) }),
        disable_api_stop: Some(spec.disable_api_stop),
        iam_instance_profile: spec
            .instance_profile
            .as_ref()
            .map(|profile| TemplateInstanceProfile { arn: Some(profile.arn.clone()), name: None }),
        ..LaunchTemplateData::default()
    }
}

fn may_ask_for_iops(volume: &Volume) -> bool {
    use haar_records::ec2::VolumeType::{Gp3, Io1, Io2};
    matches!(volume.volume_type, Gp3 | Io1 | Io2)
}

/// The tags that a client gave.
fn tags(instance: &Instance) -> Vec<TemplateTags> {
    let own: Tags = instance.tags.clone().into_iter().filter(|(key, _)| !key.starts_with("aws:")).collect();
    if own.is_empty() {
        return Vec::new();
    }
    let tags = own.into_iter().map(|(key, value)| TemplateTag { key: Some(key), value: Some(value) });
    vec![TemplateTags { resource_type: Some("instance".to_owned()), tags: tags.collect() }]
}
