//! The service: what its handlers share, and which function answers which operation.

use std::pin::Pin;
use std::sync::Arc;

use haar_api::Context;
use haar_core::{Paginator, store_error};
use haar_store::{Store, StoreError};
use ipnet::Ipv4Net;
use time::OffsetDateTime;

use crate::capacity::Capacity;
use crate::error::Result;
use crate::model::*;
use crate::{
    Scope, defaults, dhcp_options, encryption, images, imports, instance_types, instances, internet_gateways,
    key_pairs, launch_templates, network_interfaces, placement_groups, regions, route_tables,
    security_groups, snapshots, subnets, tags, volumes, vpcs,
};

/// What the installation gives to EC2.
#[derive(Debug, Clone)]
pub struct Config {
    /// Public addresses of instances.
    pub public_pool: Ipv4Net,
    /// What there is for instances.
    pub capacity: Capacity,
    /// Seals the default keys of accounts.
    pub sealer: haar_core::Sealer,
    /// The account that owns the machine.
    pub owner: String,
}

/// What handlers read from the machine rather than from records.
pub trait Host: Send + Sync + 'static {
    /// The end of what an instance has written to its serial console.
    fn console_output(&self, instance_id: &str) -> Option<ConsoleOutput>;

    /// Whether a volume's disk is sound, as far as can be told at a glance.
    fn check_disk(&self, volume_id: &str) -> DiskCheck;

    /// What an instance's display shows; with `wake_up`, after a key was pressed.
    fn screen(
        self: Arc<Self>,
        instance_id: String,
        wake_up: bool,
    ) -> Pin<Box<dyn Future<Output = Screen> + Send>>;
}

/// What can be told of a disk at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskCheck {
    /// Nothing is wrong with it.
    Sound,
    /// It was found to be damaged, and is not used until it is repaired.
    Damaged,
    /// There is none, or it cannot be read.
    Unknown,
}

/// What a display shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Screen {
    /// This picture.
    Jpeg(Vec<u8>),
    /// There is no display.
    None,
    /// It could not be read; why is in the log.
    Failed,
}

/// Console output of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleOutput {
    /// At most the latest 64 KiB.
    pub bytes: Vec<u8>,
    /// When the latest of it was written.
    pub timestamp: OffsetDateTime,
}

/// The handlers of EC2.
pub struct Handlers {
    pub(crate) store: Store,
    pub(crate) config: Config,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) paginator: Paginator,
    pub(crate) listing: instances::Listing,
}

impl Handlers {
    /// Handlers over a store that knows the record types of `haar_records::ec2::register` and `haar_core::register`.
    ///
    /// # Errors
    /// What the store gives.
    pub async fn new(store: Store, config: Config, host: Arc<dyn Host>) -> Result<Self, StoreError> {
        let paginator = Paginator::load(&store).await?;
        Ok(Self { store, config, host, paginator, listing: instances::Listing::default() })
    }

    /// A snapshot in which the caller's default VPC exists.
    pub(crate) async fn snapshot_with_default_vpc(&self, ctx: &Context) -> Result<haar_store::Snapshot> {
        let scope = Scope::from(ctx);
        let snapshot = self.store.snapshot();
        if defaults::find(&snapshot, scope).is_some() {
            return Ok(snapshot);
        }
        // Not `haar_core::transact`: what a request reads is there even when it is a dry run.
        let made = self.store.transact(|tx| Ok::<_, StoreError>(defaults::make(tx, scope)?)).await;
        made.map_err(|e| store_error(&e))?;
        Ok(self.store.snapshot())
    }
}

/// Writes the trait's methods, each of which calls the function of its name in the module of its resource.
macro_rules! delegate {
    ($($module:ident { $($operation:ident($request:ty) -> $result:ty;)+ })+) => {
        impl Ec2 for Handlers {
            $($(
                async fn $operation(&self, ctx: &Context, input: $request) -> Result<$result> {
                    $module::$operation(self, ctx, input).await
                }
            )+)+
        }
    };
}

delegate! {
    encryption {
        disable_ebs_encryption_by_default(DisableEbsEncryptionByDefaultRequest)
            -> DisableEbsEncryptionByDefaultResult;
        enable_ebs_encryption_by_default(EnableEbsEncryptionByDefaultRequest)
            -> EnableEbsEncryptionByDefaultResult;
        get_ebs_default_kms_key_id(GetEbsDefaultKmsKeyIdRequest) -> GetEbsDefaultKmsKeyIdResult;
        get_ebs_encryption_by_default(GetEbsEncryptionByDefaultRequest) -> GetEbsEncryptionByDefaultResult;
        modify_ebs_default_kms_key_id(ModifyEbsDefaultKmsKeyIdRequest) -> ModifyEbsDefaultKmsKeyIdResult;
        reset_ebs_default_kms_key_id(ResetEbsDefaultKmsKeyIdRequest) -> ResetEbsDefaultKmsKeyIdResult;
    }
    dhcp_options {
        describe_dhcp_options(DescribeDhcpOptionsRequest) -> DescribeDhcpOptionsResult;
    }
    images {
        copy_image(CopyImageRequest) -> CopyImageResult;
        create_image(CreateImageRequest) -> CreateImageResult;
        deregister_image(DeregisterImageRequest) -> DeregisterImageResult;
        describe_image_attribute(DescribeImageAttributeRequest) -> ImageAttribute;
        describe_images(DescribeImagesRequest) -> DescribeImagesResult;
        disable_image(DisableImageRequest) -> DisableImageResult;
        disable_image_deprecation(DisableImageDeprecationRequest) -> DisableImageDeprecationResult;
        disable_image_deregistration_protection(DisableImageDeregistrationProtectionRequest)
            -> DisableImageDeregistrationProtectionResult;
        enable_image(EnableImageRequest) -> EnableImageResult;
        enable_image_deprecation(EnableImageDeprecationRequest) -> EnableImageDeprecationResult;
        enable_image_deregistration_protection(EnableImageDeregistrationProtectionRequest)
            -> EnableImageDeregistrationProtectionResult;
        modify_image_attribute(ModifyImageAttributeRequest) -> ();
        register_image(RegisterImageRequest) -> RegisterImageResult;
        reset_image_attribute(ResetImageAttributeRequest) -> ();
    }
    imports {
        cancel_import_task(CancelImportTaskRequest) -> CancelImportTaskResult;
        describe_import_image_tasks(DescribeImportImageTasksRequest) -> DescribeImportImageTasksResult;
        describe_import_snapshot_tasks(DescribeImportSnapshotTasksRequest) -> DescribeImportSnapshotTasksResult;
        import_image(ImportImageRequest) -> ImportImageResult;
        import_snapshot(ImportSnapshotRequest) -> ImportSnapshotResult;
    }
    instance_types {
        describe_instance_type_offerings(DescribeInstanceTypeOfferingsRequest) -> DescribeInstanceTypeOfferingsResult;
        describe_instance_types(DescribeInstanceTypesRequest) -> DescribeInstanceTypesResult;
    }
    instances {
        associate_iam_instance_profile(AssociateIamInstanceProfileRequest) -> AssociateIamInstanceProfileResult;
        describe_iam_instance_profile_associations(DescribeIamInstanceProfileAssociationsRequest)
            -> DescribeIamInstanceProfileAssociationsResult;
        describe_instance_attribute(DescribeInstanceAttributeRequest) -> InstanceAttribute;
        describe_instance_credit_specifications(DescribeInstanceCreditSpecificationsRequest)
            -> DescribeInstanceCreditSpecificationsResult;
        describe_instance_status(DescribeInstanceStatusRequest) -> DescribeInstanceStatusResult;
        describe_instances(DescribeInstancesRequest) -> DescribeInstancesResult;
        disassociate_iam_instance_profile(DisassociateIamInstanceProfileRequest) -> DisassociateIamInstanceProfileResult;
        get_console_output(GetConsoleOutputRequest) -> GetConsoleOutputResult;
        get_console_screenshot(GetConsoleScreenshotRequest) -> GetConsoleScreenshotResult;
        modify_instance_attribute(ModifyInstanceAttributeRequest) -> ();
        modify_instance_credit_specification(ModifyInstanceCreditSpecificationRequest)
            -> ModifyInstanceCreditSpecificationResult;
        modify_instance_metadata_options(ModifyInstanceMetadataOptionsRequest) -> ModifyInstanceMetadataOptionsResult;
        modify_instance_placement(ModifyInstancePlacementRequest) -> ModifyInstancePlacementResult;
        reboot_instances(RebootInstancesRequest) -> ();
        replace_iam_instance_profile_association(ReplaceIamInstanceProfileAssociationRequest)
            -> ReplaceIamInstanceProfileAssociationResult;
        run_instances(RunInstancesRequest) -> Reservation;
        start_instances(StartInstancesRequest) -> StartInstancesResult;
        stop_instances(StopInstancesRequest) -> StopInstancesResult;
        terminate_instances(TerminateInstancesRequest) -> TerminateInstancesResult;
    }
    internet_gateways {
        describe_internet_gateways(DescribeInternetGatewaysRequest) -> DescribeInternetGatewaysResult;
    }
    key_pairs {
        create_key_pair(CreateKeyPairRequest) -> KeyPair;
        delete_key_pair(DeleteKeyPairRequest) -> DeleteKeyPairResult;
        describe_key_pairs(DescribeKeyPairsRequest) -> DescribeKeyPairsResult;
        import_key_pair(ImportKeyPairRequest) -> ImportKeyPairResult;
    }
    launch_templates {
        create_launch_template(CreateLaunchTemplateRequest) -> CreateLaunchTemplateResult;
        create_launch_template_version(CreateLaunchTemplateVersionRequest) -> CreateLaunchTemplateVersionResult;
        delete_launch_template(DeleteLaunchTemplateRequest) -> DeleteLaunchTemplateResult;
        delete_launch_template_versions(DeleteLaunchTemplateVersionsRequest) -> DeleteLaunchTemplateVersionsResult;
        describe_launch_template_versions(DescribeLaunchTemplateVersionsRequest)
            -> DescribeLaunchTemplateVersionsResult;
        describe_launch_templates(DescribeLaunchTemplatesRequest) -> DescribeLaunchTemplatesResult;
        get_launch_template_data(GetLaunchTemplateDataRequest) -> GetLaunchTemplateDataResult;
        modify_launch_template(ModifyLaunchTemplateRequest) -> ModifyLaunchTemplateResult;
    }
    network_interfaces {
        describe_network_interfaces(DescribeNetworkInterfacesRequest) -> DescribeNetworkInterfacesResult;
    }
    placement_groups {
        create_placement_group(CreatePlacementGroupRequest) -> CreatePlacementGroupResult;
        delete_placement_group(DeletePlacementGroupRequest) -> ();
        describe_placement_groups(DescribePlacementGroupsRequest) -> DescribePlacementGroupsResult;
    }
    regions {
        describe_account_attributes(DescribeAccountAttributesRequest) -> DescribeAccountAttributesResult;
        describe_availability_zones(DescribeAvailabilityZonesRequest) -> DescribeAvailabilityZonesResult;
        describe_regions(DescribeRegionsRequest) -> DescribeRegionsResult;
    }
    route_tables {
        describe_route_tables(DescribeRouteTablesRequest) -> DescribeRouteTablesResult;
    }
    security_groups {
        authorize_security_group_egress(AuthorizeSecurityGroupEgressRequest) -> AuthorizeSecurityGroupEgressResult;
        authorize_security_group_ingress(AuthorizeSecurityGroupIngressRequest) -> AuthorizeSecurityGroupIngressResult;
        create_security_group(CreateSecurityGroupRequest) -> CreateSecurityGroupResult;
        delete_security_group(DeleteSecurityGroupRequest) -> DeleteSecurityGroupResult;
        describe_security_group_rules(DescribeSecurityGroupRulesRequest) -> DescribeSecurityGroupRulesResult;
        describe_security_groups(DescribeSecurityGroupsRequest) -> DescribeSecurityGroupsResult;
        modify_security_group_rules(ModifySecurityGroupRulesRequest) -> ModifySecurityGroupRulesResult;
        revoke_security_group_egress(RevokeSecurityGroupEgressRequest) -> RevokeSecurityGroupEgressResult;
        revoke_security_group_ingress(RevokeSecurityGroupIngressRequest) -> RevokeSecurityGroupIngressResult;
        update_security_group_rule_descriptions_egress(UpdateSecurityGroupRuleDescriptionsEgressRequest)
            -> UpdateSecurityGroupRuleDescriptionsEgressResult;
        update_security_group_rule_descriptions_ingress(UpdateSecurityGroupRuleDescriptionsIngressRequest)
            -> UpdateSecurityGroupRuleDescriptionsIngressResult;
    }
    snapshots {
        copy_snapshot(CopySnapshotRequest) -> CopySnapshotResult;
        create_snapshot(CreateSnapshotRequest) -> Snapshot;
        create_snapshots(CreateSnapshotsRequest) -> CreateSnapshotsResult;
        delete_snapshot(DeleteSnapshotRequest) -> ();
        describe_snapshot_attribute(DescribeSnapshotAttributeRequest) -> DescribeSnapshotAttributeResult;
        describe_snapshots(DescribeSnapshotsRequest) -> DescribeSnapshotsResult;
        modify_snapshot_attribute(ModifySnapshotAttributeRequest) -> ();
        reset_snapshot_attribute(ResetSnapshotAttributeRequest) -> ();
    }
    subnets {
        describe_subnets(DescribeSubnetsRequest) -> DescribeSubnetsResult;
    }
    tags {
        create_tags(CreateTagsRequest) -> ();
        delete_tags(DeleteTagsRequest) -> ();
        describe_tags(DescribeTagsRequest) -> DescribeTagsResult;
    }
    volumes {
        attach_volume(AttachVolumeRequest) -> VolumeAttachment;
        create_volume(CreateVolumeRequest) -> Volume;
        delete_volume(DeleteVolumeRequest) -> ();
        describe_volume_attribute(DescribeVolumeAttributeRequest) -> DescribeVolumeAttributeResult;
        describe_volume_status(DescribeVolumeStatusRequest) -> DescribeVolumeStatusResult;
        describe_volumes(DescribeVolumesRequest) -> DescribeVolumesResult;
        describe_volumes_modifications(DescribeVolumesModificationsRequest) -> DescribeVolumesModificationsResult;
        detach_volume(DetachVolumeRequest) -> VolumeAttachment;
        enable_volume_io(EnableVolumeIORequest) -> ();
        modify_volume(ModifyVolumeRequest) -> ModifyVolumeResult;
        modify_volume_attribute(ModifyVolumeAttributeRequest) -> ();
    }
    vpcs {
        describe_vpc_attribute(DescribeVpcAttributeRequest) -> DescribeVpcAttributeResult;
        describe_vpcs(DescribeVpcsRequest) -> DescribeVpcsResult;
    }
}
