//! How the resources of EC2 are named, and with which codes EC2 refuses their ids (EC2 API Reference, "Error codes for the
//! Amazon EC2 API"; the casing of the codes is AWS's).

use haar_core::IdType;

/// Instances.
pub const INSTANCE: IdType =
    IdType::new("i", "instance ID", "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound");
/// Volumes.
pub const VOLUME: IdType =
    IdType::new("vol", "volume", "InvalidVolumeID.Malformed", "InvalidVolume.NotFound");
/// Snapshots.
pub const SNAPSHOT: IdType =
    IdType::new("snap", "snapshot", "InvalidSnapshotID.Malformed", "InvalidSnapshot.NotFound");
/// Images.
pub const IMAGE: IdType = IdType::new("ami", "image id", "InvalidAMIID.Malformed", "InvalidAMIID.NotFound");
/// Tasks that import images. The codes are those of the older tasks of VM Import/Export.
pub const IMPORT_IMAGE_TASK: IdType = IdType::new(
    "import-ami",
    "import task ID",
    "InvalidConversionTaskId.Malformed",
    "InvalidConversionTaskId",
);
/// Their `ResourceType`.
pub const IMPORT_IMAGE_TASK_TYPE: &str = "import-image-task";
/// Tasks that import snapshots.
pub const IMPORT_SNAPSHOT_TASK: IdType = IdType::new(
    "import-snap",
    "import task ID",
    "InvalidConversionTaskId.Malformed",
    "InvalidConversionTaskId",
);
/// Their `ResourceType`.
pub const IMPORT_SNAPSHOT_TASK_TYPE: &str = "import-snapshot-task";
/// Key pairs.
pub const KEY_PAIR: IdType =
    IdType::new("key", "key pair ID", "InvalidKeyPairId.Malformed", "InvalidKeyPair.NotFound");
/// VPCs.
pub const VPC: IdType = IdType::new("vpc", "vpc ID", "InvalidVpcID.Malformed", "InvalidVpcID.NotFound");
/// Subnets.
pub const SUBNET: IdType =
    IdType::new("subnet", "subnet ID", "InvalidSubnetID.Malformed", "InvalidSubnetID.NotFound");
/// Route tables.
pub const ROUTE_TABLE: IdType =
    IdType::new("rtb", "routeTable ID", "InvalidRouteTableId.Malformed", "InvalidRouteTableID.NotFound");
/// Internet gateways.
pub const INTERNET_GATEWAY: IdType = IdType::new(
    "igw",
    "internetGateway ID",
    "InvalidInternetGatewayId.Malformed",
    "InvalidInternetGatewayID.NotFound",
);
/// Network interfaces.
pub const NETWORK_INTERFACE: IdType = IdType::new(
    "eni",
    "networkInterface ID",
    "InvalidNetworkInterfaceId.Malformed",
    "InvalidNetworkInterfaceID.NotFound",
);
/// Security groups.
pub const SECURITY_GROUP: IdType =
    IdType::new("sg", "security group", "InvalidGroupId.Malformed", "InvalidGroup.NotFound");
/// Rules of security groups.
pub const SECURITY_GROUP_RULE: IdType = IdType::new(
    "sgr",
    "security group rule ID",
    "InvalidSecurityGroupRuleId.Malformed",
    "InvalidSecurityGroupRuleId.NotFound",
);
/// DHCP option sets.
pub const DHCP_OPTIONS: IdType =
    IdType::new("dopt", "dhcpOption ID", "InvalidDhcpOptionsId.Malformed", "InvalidDhcpOptionID.NotFound");
/// Placement groups.
pub const PLACEMENT_GROUP: IdType = IdType::new(
    "pg",
    "placement group",
    "InvalidPlacementGroupId.Malformed",
    "InvalidPlacementGroup.Unknown",
);
/// Launch templates.
pub const LAUNCH_TEMPLATE: IdType = IdType::new(
    "lt",
    "launch template ID",
    "InvalidLaunchTemplateId.Malformed",
    "InvalidLaunchTemplateId.NotFound",
);
