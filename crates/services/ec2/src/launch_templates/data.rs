//! What a template says of instances: from requests to records, from records to answers and to launches.

use haar_records::ec2::launch_template as record;

use crate::model;

/// Writes the conversions of a structure that requests, answers and RunInstances have under names of their own, field by field:
/// values that are the same everywhere, then those of enumerations, then structures, then lists.
macro_rules! mirror {
    ($record:ident: $request:ident => $response:ident, $launch:ident {
        $($plain:ident),* ; $($word:ident),* ; $($inner:ident),* ; $($list:ident),*
    }) => {
        impl From<model::$request> for record::$record {
            fn from(it: model::$request) -> Self {
                Self {
                    $($plain: it.$plain.map(Into::into),)*
                    $($word: it.$word.map(|word| word.to_string()),)*
                    $($inner: it.$inner.map(Into::into),)*
                    $($list: it.$list.into_iter().map(Into::into).collect(),)*
                }
            }
        }
        mirror!(@from $record => $response { $($plain),*; $($word),*; $($inner),*; $($list),* });
        mirror!(@from $record => $launch { $($plain),*; $($word),*; $($inner),*; $($list),* });
    };
    (@from $record:ident => $to:ident {
        $($plain:ident),* ; $($word:ident),* ; $($inner:ident),* ; $($list:ident),*
    }) => {
        impl From<record::$record> for model::$to {
            #[allow(clippy::needless_update, clippy::useless_conversion)]
            fn from(it: record::$record) -> Self {
                Self {
                    $($plain: it.$plain.map(Into::into),)*
                    $($word: it.$word.and_then(|word| word.parse().ok()),)*
                    $($inner: it.$inner.map(Into::into),)*
                    $($list: it.$list.into_iter().map(Into::into).collect(),)*
                    ..Self::default()
                }
            }
        }
    };
}

mirror!(TemplateBlockDevice: LaunchTemplateBlockDeviceMappingRequest => LaunchTemplateBlockDeviceMapping, BlockDeviceMapping {
    device_name, no_device ; ; ebs ;
});
mirror!(TemplateEbs: LaunchTemplateEbsBlockDeviceRequest => LaunchTemplateEbsBlockDevice, EbsBlockDevice {
    encrypted, delete_on_termination, iops, kms_key_id, snapshot_id, volume_size, throughput ; volume_type ; ;
});
mirror!(TemplateInterface: LaunchTemplateInstanceNetworkInterfaceSpecificationRequest
    => LaunchTemplateInstanceNetworkInterfaceSpecification, InstanceNetworkInterfaceSpecification {
    associate_public_ip_address, delete_on_termination, description, device_index, interface_type, network_interface_id,
    private_ip_address, subnet_id, network_card_index ; ; ; groups
});
mirror!(TemplatePlacement: LaunchTemplatePlacementRequest => LaunchTemplatePlacement, Placement {
    availability_zone, availability_zone_id, group_name, partition_number, group_id ; tenancy ; ;
});
mirror!(TemplateCpuOptions: LaunchTemplateCpuOptionsRequest => LaunchTemplateCpuOptions, CpuOptionsRequest {
    core_count, threads_per_core ; ; ;
});
mirror!(TemplateCapacityReservation: LaunchTemplateCapacityReservationSpecificationRequest
    => LaunchTemplateCapacityReservationSpecificationResponse, CapacityReservationSpecification {
    ; capacity_reservation_preference ; capacity_reservation_target ;
});
mirror!(TemplateCapacityReservationTarget: CapacityReservationTarget
    => CapacityReservationTargetResponse, CapacityReservationTarget {
    capacity_reservation_id ; ; ;
});
mirror!(TemplateHibernation: LaunchTemplateHibernationOptionsRequest
    => LaunchTemplateHibernationOptions, HibernationOptionsRequest {
    configured ; ; ;
});
mirror!(TemplateMetadataOptions: LaunchTemplateInstanceMetadataOptionsRequest
    => LaunchTemplateInstanceMetadataOptions, InstanceMetadataOptionsRequest {
    http_put_response_hop_limit ; http_tokens, http_endpoint, http_protocol_ipv6, instance_metadata_tags ; ;
});
mirror!(TemplatePrivateDnsName: LaunchTemplatePrivateDnsNameOptionsRequest
    => LaunchTemplatePrivateDnsNameOptions, PrivateDnsNameOptionsRequest {
    enable_resource_name_dns_a_record, enable_resource_name_dns_aaaa_record ; hostname_type ; ;
});
mirror!(TemplateMaintenance: LaunchTemplateInstanceMaintenanceOptionsRequest
    => LaunchTemplateInstanceMaintenanceOptions, InstanceMaintenanceOptionsRequest {
    ; auto_recovery ; ;
});
mirror!(TemplateInstanceProfile: LaunchTemplateIamInstanceProfileSpecificationRequest
    => LaunchTemplateIamInstanceProfileSpecification, IamInstanceProfileSpecification {
    arn, name ; ; ;
});
mirror!(TemplateTags: LaunchTemplateTagSpecificationRequest => LaunchTemplateTagSpecification, TagSpecification {
    ; resource_type ; ; tags
});

// Those that are not as regular.

impl From<model::Tag> for record::TemplateTag {
    fn from(it: model::Tag) -> Self {
        Self { key: it.key, value: it.value }
    }
}

impl From<record::TemplateTag> for model::Tag {
    fn from(it: record::TemplateTag) -> Self {
        Self { key: it.key, value: it.value }
    }
}

impl From<model::LaunchTemplatesMonitoringRequest> for record::TemplateSwitch {
    fn from(it: model::LaunchTemplatesMonitoringRequest) -> Self {
        Self { enabled: it.enabled }
    }
}

impl From<model::LaunchTemplateEnclaveOptionsRequest> for record::TemplateSwitch {
    fn from(it: model::LaunchTemplateEnclaveOptionsRequest) -> Self {
        Self { enabled: it.enabled }
    }
}

impl From<model::CreditSpecificationRequest> for record::TemplateCredits {
    fn from(it: model::CreditSpecificationRequest) -> Self {
        Self { cpu_credits: Some(it.cpu_credits) }
    }
}

impl From<model::RequestLaunchTemplateData> for record::LaunchTemplateData {
    fn from(it: model::RequestLaunchTemplateData) -> Self {
        Self {
            ebs_optimized: it.ebs_optimized,
            block_device_mappings: all(it.block_device_mappings),
            network_interfaces: all(it.network_interfaces),
            image_id: it.image_id,
            instance_type: it.instance_type.map(|name| name.to_string()),
            key_name: it.key_name,
            monitoring: it.monitoring.map(Into::into),
            placement: it.placement.map(Into::into),
            disable_api_termination: it.disable_api_termination,
            instance_initiated_shutdown_behavior: it
                .instance_initiated_shutdown_behavior
                .map(|word| word.to_string()),
            user_data: it.user_data,
            tag_specifications: all(it.tag_specifications),
            security_group_ids: it.security_group_ids,
            security_groups: it.security_groups,
            credit_specification: it.credit_specification.map(Into::into),
            cpu_options: it.cpu_options.map(Into::into),
            capacity_reservation_specification: it.capacity_reservation_specification.map(Into::into),
            hibernation_options: it.hibernation_options.map(Into::into),
            metadata_options: it.metadata_options.map(Into::into),
            enclave_options: it.enclave_options.map(Into::into),
            private_dns_name_options: it.private_dns_name_options.map(Into::into),
            maintenance_options: it.maintenance_options.map(Into::into),
            disable_api_stop: it.disable_api_stop,
            iam_instance_profile: it.iam_instance_profile.map(Into::into),
        }
    }
}

impl From<record::LaunchTemplateData> for model::ResponseLaunchTemplateData {
    fn from(it: record::LaunchTemplateData) -> Self {
        Self {
            ebs_optimized: it.ebs_optimized,
            block_device_mappings: all(it.block_device_mappings),
            network_interfaces: all(it.network_interfaces),
            image_id: it.image_id,
            instance_type: it.instance_type,
            key_name: it.key_name,
            monitoring: it
                .monitoring
                .map(|monitoring| model::LaunchTemplatesMonitoring { enabled: monitoring.enabled }),
            placement: it.placement.map(Into::into),
            disable_api_termination: it.disable_api_termination,
            instance_initiated_shutdown_behavior: it
                .instance_initiated_shutdown_behavior
                .and_then(|word| word.parse().ok()),
            user_data: it.user_data,
            tag_specifications: all(it.tag_specifications),
            security_group_ids: it.security_group_ids,
            security_groups: it.security_groups,
            credit_specification: it
                .credit_specification
                .map(|credits| model::CreditSpecification { cpu_credits: credits.cpu_credits }),
            cpu_options: it.cpu_options.map(Into::into),
            capacity_reservation_specification: it.capacity_reservation_specification.map(Into::into),
            hibernation_options: it.hibernation_options.map(Into::into),
            metadata_options: it.metadata_options.map(Into::into),
            enclave_options: it
                .enclave_options
                .map(|enclave| model::LaunchTemplateEnclaveOptions { enabled: enclave.enabled }),
            private_dns_name_options: it.private_dns_name_options.map(Into::into),
            maintenance_options: it.maintenance_options.map(Into::into),
            disable_api_stop: it.disable_api_stop,
            iam_instance_profile: it.iam_instance_profile.map(Into::into),
        }
    }
}

fn all<A, B: From<A>>(list: Vec<A>) -> Vec<B> {
    list.into_iter().map(Into::into).collect()
}

/// What a new version says that is made from a source: what the request says, and the rest as the source.
pub(super) fn overlay(
    source: record::LaunchTemplateData,
    over: record::LaunchTemplateData,
) -> record::LaunchTemplateData {
    fn list<T>(source: Vec<T>, over: Vec<T>) -> Vec<T> {
        if over.is_empty() { source } else { over }
    }
    // Groups by name and by id are one parameter.
    let groups = over.security_group_ids.is_empty() && over.security_groups.is_empty();
    let (security_group_ids, security_groups) = if groups {
        (source.security_group_ids, source.security_groups)
    } else {
        (over.security_group_ids, over.security_groups)
    };
    record::LaunchTemplateData {
        ebs_optimized: over.ebs_optimized.or(source.ebs_optimized),
        block_device_mappings: list(source.block_device_mappings, over.block_device_mappings),
        network_interfaces: list(source.network_interfaces, over.network_interfaces),
        image_id: over.image_id.or(source.image_id),
        instance_type: over.instance_type.or(source.instance_type),
        key_name: over.key_name.or(source.key_name),
        monitoring: over.monitoring.or(source.monitoring),
        placement: over.placement.or(source.placement),
        disable_api_termination: over.disable_api_termination.or(source.disable_api_termination),
        instance_initiated_shutdown_behavior: over
            .instance_initiated_shutdown_behavior
            .or(source.instance_initiated_shutdown_behavior),
        user_data: over.user_data.or(source.user_data),
        tag_specifications: list(source.tag_specifications, over.tag_specifications),
        security_group_ids,
        security_groups,
        credit_specification: over.credit_specification.or(source.credit_specification),
        cpu_options: over.cpu_options.or(source.cpu_options),
        capacity_reservation_specification: over
            .capacity_reservation_specification
            .or(source.capacity_reservation_specification),
        hibernation_options: over.hibernation_options.or(source.hibernation_options),
        metadata_options: over.metadata_options.or(source.metadata_options),
        enclave_options: over.enclave_options.or(source.enclave_options),
        private_dns_name_options: over.private_dns_name_options.or(source.private_dns_name_options),
        maintenance_options: over.maintenance_options.or(source.maintenance_options),
        disable_api_stop: over.disable_api_stop.or(source.disable_api_stop),
        iam_instance_profile: over.iam_instance_profile.or(source.iam_instance_profile),
    }
}

/// A launch by a template: what the request says, and the rest as the template. Block devices are told apart by their names, tags by
/// resource type and key, options of the metadata service each by each; all else is taken whole from one or the other.
pub(super) fn merge(
    input: &model::RunInstancesRequest,
    data: record::LaunchTemplateData,
) -> model::RunInstancesRequest {
    let mut merged = input.clone();
    let named = |mapping: &model::BlockDeviceMapping| mapping.device_name.clone();
    let given: Vec<_> = input.block_device_mappings.iter().map(named).collect();
    let devices = all::<_, model::BlockDeviceMapping>(data.block_device_mappings);
    merged.block_device_mappings.extend(devices.into_iter().filter(|device| !given.contains(&named(device))));
    if input.network_interfaces.is_empty() && input.subnet_id.is_none() {
        merged.network_interfaces = all(data.network_interfaces);
    } else if input.network_interfaces.is_empty() {
        // An interface of the template that names no subnet is in the request's.
        merged.network_interfaces = all(data.network_interfaces);
        if let [only] = merged.network_interfaces.as_mut_slice()
            && only.subnet_id.is_none()
            && only.network_interface_id.is_none()
        {
            only.subnet_id = merged.subnet_id.take();
        }
    }
    if input.security_group_ids.is_empty() && input.security_groups.is_empty() {
        merged.security_group_ids = data.security_group_ids;
        merged.security_groups = data.security_groups;
    }
    for specification in all::<_, model::TagSpecification>(data.tag_specifications) {
        let same =
            merged.tag_specifications.iter_mut().find(|s| s.resource_type == specification.resource_type);
        match same {
            Some(same) => {
                let others: Vec<_> = specification
                    .tags
                    .into_iter()
                    .filter(|tag| !same.tags.iter().any(|given| given.key == tag.key))
                    .collect();
                same.tags.extend(others);
            }
            None => merged.tag_specifications.push(specification),
        }
    }
    macro_rules! fill {
        ($($field:ident),* ; $($word:ident),* ; $($inner:ident),*) => {
            $(merged.$field = merged.$field.or(data.$field);)*
            $(merged.$word = merged.$word.or_else(|| data.$word.and_then(|word| word.parse().ok()));)*
            $(merged.$inner = merged.$inner.or_else(|| data.$inner.map(Into::into));)*
        };
    }
    fill!(
        image_id, instance_type, key_name, user_data, disable_api_stop, disable_api_termination, ebs_optimized ;
        instance_initiated_shutdown_behavior ;
        placement, cpu_options, capacity_reservation_specification, hibernation_options, private_dns_name_options,
        maintenance_options, iam_instance_profile
    );
    merged.metadata_options = match (merged.metadata_options, data.metadata_options) {
        (Some(given), Some(template)) => {
            let template = model::InstanceMetadataOptionsRequest::from(template);
            Some(model::InstanceMetadataOptionsRequest {
                http_tokens: given.http_tokens.or(template.http_tokens),
                http_put_response_hop_limit: given
                    .http_put_response_hop_limit
                    .or(template.http_put_response_hop_limit),
                http_endpoint: given.http_endpoint.or(template.http_endpoint),
                http_protocol_ipv6: given.http_protocol_ipv6.or(template.http_protocol_ipv6),
                instance_metadata_tags: given.instance_metadata_tags.or(template.instance_metadata_tags),
            })
        }
        (given, template) => given.or(template.map(Into::into)),
    };
    merged.monitoring = merged.monitoring.or_else(|| {
        let enabled = data.monitoring?.enabled?;
        Some(model::RunInstancesMonitoringEnabled { enabled })
    });
    merged.enclave_options = merged
        .enclave_options
        .or_else(|| Some(model::EnclaveOptionsRequest { enabled: data.enclave_options?.enabled }));
    merged.credit_specification = merged.credit_specification.or_else(|| {
        Some(model::CreditSpecificationRequest { cpu_credits: data.credit_specification?.cpu_credits? })
    });
    merged
}
