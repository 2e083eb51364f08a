//! Launch templates. Enumerations are kept as the API writes them.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{Tags, resource};

/// A launch template (`LaunchTemplate` in the API reference); its versions are records of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchTemplate {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `lt-…`
    pub id: String,
    /// Name, unique in account and region.
    pub name: String,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// ARN of who made it.
    pub created_by: String,
    /// The version that is meant where none is said.
    pub default_version: u64,
    /// The version that was made last.
    pub latest_version: u64,
    /// The number of the next one; none is given twice.
    pub next_version: u64,
    /// Tags.
    pub tags: Tags,
}

resource!(LaunchTemplate, "ec2.launch-template", "name" => |t| [t.name.clone()]);

/// A version of a launch template (`LaunchTemplateVersion` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchTemplateVersion {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// See [`LaunchTemplateVersion::id_of`].
    pub id: String,
    /// `lt-…`
    pub template_id: String,
    /// From 1.
    pub number: u64,
    /// Description.
    pub description: Option<String>,
    /// Time of creation.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub create_time: OffsetDateTime,
    /// ARN of who made it.
    pub created_by: String,
    /// What it says of instances.
    pub data: LaunchTemplateData,
}

resource!(LaunchTemplateVersion, "ec2.launch-template-version", "template" => |v| [v.template_id.clone()]);

impl LaunchTemplateVersion {
    /// The id of a template's version of this number. The newest comes first, as in listings.
    #[must_use]
    pub fn id_of(template_id: &str, number: u64) -> String {
        format!("{template_id}/{:020}", u64::MAX - number)
    }
}

macro_rules! data {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),+ $(,)? })+) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
            #[serde(default)]
            pub struct $name {
                $($(#[$field_meta])* #[allow(missing_docs)] pub $field: $type),+
            }
        )+
    };
}

data! {
    /// `ResponseLaunchTemplateData`: what a launch is asked for, as far as the template says. Fields are named as there.
    LaunchTemplateData {
        ebs_optimized: Option<bool>,
        block_device_mappings: Vec<TemplateBlockDevice>,
        network_interfaces: Vec<TemplateInterface>,
        image_id: Option<String>,
        instance_type: Option<String>,
        key_name: Option<String>,
        monitoring: Option<TemplateSwitch>,
        placement: Option<TemplatePlacement>,
        disable_api_termination: Option<bool>,
        instance_initiated_shutdown_behavior: Option<String>,
        user_data: Option<String>,
        tag_specifications: Vec<TemplateTags>,
        security_group_ids: Vec<String>,
        security_groups: Vec<String>,
        credit_specification: Option<TemplateCredits>,
        cpu_options: Option<TemplateCpuOptions>,
        capacity_reservation_specification: Option<TemplateCapacityReservation>,
        hibernation_options: Option<TemplateHibernation>,
        metadata_options: Option<TemplateMetadataOptions>,
        enclave_options: Option<TemplateSwitch>,
        private_dns_name_options: Option<TemplatePrivateDnsName>,
        maintenance_options: Option<TemplateMaintenance>,
        disable_api_stop: Option<bool>,
        iam_instance_profile: Option<TemplateInstanceProfile>,
    }

    /// `LaunchTemplateIamInstanceProfileSpecification`.
    TemplateInstanceProfile {
        arn: Option<String>,
        name: Option<String>,
    }

    /// `LaunchTemplateBlockDeviceMapping`.
    TemplateBlockDevice {
        device_name: Option<String>,
        ebs: Option<TemplateEbs>,
        no_device: Option<String>,
    }

    /// `LaunchTemplateEbsBlockDevice`.
    TemplateEbs {
        encrypted: Option<bool>,
        delete_on_termination: Option<bool>,
        iops: Option<i32>,
        snapshot_id: Option<String>,
        volume_size: Option<i32>,
        volume_type: Option<String>,
        throughput: Option<i32>,
        kms_key_id: Option<String>,
    }

    /// `LaunchTemplateInstanceNetworkInterfaceSpecification`.
    TemplateInterface {
        associate_public_ip_address: Option<bool>,
        delete_on_termination: Option<bool>,
        description: Option<String>,
        device_index: Option<i32>,
        groups: Vec<String>,
        interface_type: Option<String>,
        network_interface_id: Option<String>,
        private_ip_address: Option<String>,
        subnet_id: Option<String>,
        network_card_index: Option<i32>,
    }

    /// `LaunchTemplatesMonitoring`, `LaunchTemplateEnclaveOptions`.
    TemplateSwitch {
        enabled: Option<bool>,
    }

    /// `LaunchTemplatePlacement`.
    TemplatePlacement {
        availability_zone: Option<String>,
        availability_zone_id: Option<String>,
        group_name: Option<String>,
        tenancy: Option<String>,
        partition_number: Option<i32>,
        group_id: Option<String>,
    }

    /// `LaunchTemplateTagSpecification`.
    TemplateTags {
        resource_type: Option<String>,
        tags: Vec<TemplateTag>,
    }

    /// `Tag`.
    TemplateTag {
        key: Option<String>,
        value: Option<String>,
    }

    /// `CreditSpecification`.
    TemplateCredits {
        cpu_credits: Option<String>,
    }

    /// `LaunchTemplateCpuOptions`.
    TemplateCpuOptions {
        core_count: Option<i32>,
        threads_per_core: Option<i32>,
    }

    /// `LaunchTemplateCapacityReservationSpecificationResponse`.
    TemplateCapacityReservation {
        capacity_reservation_preference: Option<String>,
        capacity_reservation_target: Option<TemplateCapacityReservationTarget>,
    }

    /// `CapacityReservationTargetResponse`.
    TemplateCapacityReservationTarget {
        capacity_reservation_id: Option<String>,
    }

    /// `LaunchTemplateHibernationOptions`.
    TemplateHibernation {
        configured: Option<bool>,
    }

    /// `LaunchTemplateInstanceMetadataOptions`.
    TemplateMetadataOptions {
        http_tokens: Option<String>,
        http_put_response_hop_limit: Option<i32>,
        http_endpoint: Option<String>,
        http_protocol_ipv6: Option<String>,
        instance_metadata_tags: Option<String>,
    }

    /// `LaunchTemplatePrivateDnsNameOptions`.
    TemplatePrivateDnsName {
        hostname_type: Option<String>,
        enable_resource_name_dns_a_record: Option<bool>,
        enable_resource_name_dns_aaaa_record: Option<bool>,
    }

    /// `LaunchTemplateInstanceMaintenanceOptions`.
    TemplateMaintenance {
        auto_recovery: Option<String>,
    }
}
