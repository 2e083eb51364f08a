//! Instances.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{ImageBoot, instance_type, wire_enum};
use crate::{TAG_INDEX, Tags, indexed, resource};

/// An instance (`Instance` in the API reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Owning account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `i-…`
    pub id: String,
    /// `r-…`; instances of one RunInstances call share it.
    pub reservation_id: String,
    /// Position within the reservation, from 0.
    pub ami_launch_index: i32,
    /// The `ClientToken` of the launch, as DescribeInstances shows it.
    pub client_token: Option<String>,
    /// Time of the latest start.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub launch_time: OffsetDateTime,
    /// Tags.
    pub tags: Tags,
    /// What was asked.
    pub spec: InstanceSpec,
    /// What is.
    pub status: InstanceStatus,
}

resource!(Instance, "ec2.instance",
    "reservation" => |i| [i.reservation_id.clone()],
    "image" => |i| [i.spec.image_id.clone()],
    "vpc" => |i| [i.spec.vpc_id.clone()],
    "placement-group" => |i| i.spec.placement.group_id.clone(),
    TAG_INDEX => |i| indexed(&i.tags),
);

impl Instance {
    /// Cores and threads of its processors.
    #[must_use]
    pub fn cpu_options(&self) -> Option<CpuOptions> {
        let of_type = || {
            let hardware = instance_type(&self.spec.instance_type)?;
            Some(CpuOptions { core_count: hardware.cores, threads_per_core: hardware.threads_per_core })
        };
        self.spec.cpu_options.or_else(of_type)
    }

    /// Whether it takes room on a host, or is about to.
    #[must_use]
    pub const fn takes_room(&self) -> bool {
        !matches!(self.status.state, InstanceState::Stopped | InstanceState::Terminated)
    }
}

impl CpuOptions {
    /// Virtual processors.
    #[must_use]
    pub const fn vcpus(self) -> u32 {
        self.core_count * self.threads_per_core
    }
}

wire_enum! {
    /// What an instance is to become.
    InstanceGoal {
        /// Booted.
        Running = "running",
        /// Shut down, its disks kept.
        Stopped = "stopped",
        /// Gone.
        Terminated = "terminated",
    }
}

wire_enum! {
    /// `InstanceStateName` of the API reference.
    InstanceState {
        /// Being launched or started.
        Pending = "pending",
        /// The virtual machine runs.
        Running = "running",
        /// Being terminated.
        ShuttingDown = "shutting-down",
        /// Gone; the record stays visible for a while.
        Terminated = "terminated",
        /// Being stopped.
        Stopping = "stopping",
        /// Off, disks kept.
        Stopped = "stopped",
    }
}

impl InstanceState {
    /// The low byte of the state code that the API reference gives (`InstanceState.Code`).
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
            Self::Stopping => 64,
            Self::Stopped => 80,
        }
    }
}

wire_enum! {
    /// `InstanceInitiatedShutdownBehavior`.
    ShutdownBehavior {
        /// A shutdown from inside stops the instance.
        Stop = "stop",
        /// A shutdown from inside terminates the instance.
        Terminate = "terminate",
    }
}

/// `StateReason` of the API reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateReason {
    /// `Client.UserInitiatedShutdown`, `Server.InternalError`, …
    pub code: String,
    /// For a reader.
    pub message: String,
}

impl StateReason {
    /// A reason whose message starts with its code, as EC2 writes them.
    #[must_use]
    pub fn new(code: &str, message: &str) -> Self {
        Self { code: code.into(), message: format!("{code}: {message}") }
    }
}

/// What was asked of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// What it is to become.
    pub goal: InstanceGoal,
    /// Counts the starts that were asked for: 1 at launch, one more at each StartInstances.
    pub boots: u64,
    /// Counts the reboots that were asked for.
    pub reboots: u64,
    /// `ami-…`
    pub image_id: String,
    /// Instance type, as `t3.micro`.
    pub instance_type: String,
    /// Name of the key pair.
    pub key_name: Option<String>,
    /// The key pair's public key at launch, in OpenSSH's one-line form.
    pub public_key: Option<String>,
    /// User data, base64 as it came.
    pub user_data: Option<String>,
    /// Availability zone.
    pub availability_zone: String,
    /// `vpc-…`
    pub vpc_id: String,
    /// `subnet-…` of the primary interface.
    pub subnet_id: String,
    /// Interfaces by device index (`eni-…`); index 0 is the primary one.
    pub network_interfaces: Vec<String>,
    /// Device name of the root volume, as `/dev/xvda`.
    pub root_device_name: String,
    /// Volumes by device name.
    pub block_devices: Vec<BlockDevice>,
    /// Options of the metadata service.
    pub metadata_options: MetadataOptions,
    /// What a shutdown from inside does.
    pub shutdown_behavior: ShutdownBehavior,
    /// Detailed monitoring was asked for.
    pub monitoring: bool,
    /// `EbsOptimized`.
    pub ebs_optimized: bool,
    /// TerminateInstances is refused.
    pub disable_api_termination: bool,
    /// StopInstances is refused.
    pub disable_api_stop: bool,
    /// Cores and threads that were asked for; those of the type where none were.
    #[serde(default)]
    pub cpu_options: Option<CpuOptions>,
    /// Where it was asked to stand.
    #[serde(default)]
    pub placement: Placement,
    /// `CapacityReservationPreference`, as it was asked for.
    #[serde(default)]
    pub capacity_reservation_preference: Option<String>,
    /// How it boots, which outlives its image; none in records of old, whose image is of the library and says so.
    #[serde(default)]
    pub boot: Option<ImageBoot>,
    /// The image of the library that its image descends from.
    #[serde(default)]
    pub library_id: Option<String>,
    /// The user that has the key pair's key.
    #[serde(default)]
    pub default_user: Option<String>,
    /// The instance profile whose role the instance has.
    #[serde(default)]
    pub instance_profile: Option<InstanceProfileAssociation>,
}

impl InstanceSpec {
    /// The image of the library that has the kernel, where the instance boots by one.
    #[must_use]
    pub fn kernel_image(&self) -> Option<&str> {
        match self.boot {
            Some(ImageBoot::Firmware(_)) => None,
            Some(ImageBoot::Kernel) | None => Some(self.library_id.as_deref().unwrap_or(&self.image_id)),
        }
    }
}

/// `CpuOptions` of the API reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuOptions {
    /// Processor cores.
    pub core_count: u32,
    /// Threads of a core.
    pub threads_per_core: u32,
}

/// What `Placement` of the API reference says besides the zone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// `pg-…`
    #[serde(default)]
    pub group_id: Option<String>,
    /// The partition of a partition group, from 1.
    #[serde(default)]
    pub partition: Option<u32>,
    /// `Tenancy` is `dedicated`.
    #[serde(default)]
    pub dedicated: bool,
}

/// `IamInstanceProfileAssociation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceProfileAssociation {
    /// `iip-assoc-…`
    pub id: String,
    /// ARN of the instance profile.
    pub arn: String,
    /// Unique id of the instance profile: `AIPA…`
    pub profile_id: String,
    /// Since when.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub since: OffsetDateTime,
}

/// A volume of an instance (`InstanceBlockDeviceMapping`); its attachment is told by the volume's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// As `/dev/xvda`.
    pub device_name: String,
    /// `vol-…`
    pub volume_id: String,
    /// The volume goes with the instance.
    pub delete_on_termination: bool,
    /// The volume is to be given up.
    #[serde(default)]
    pub detaching: bool,
    /// The volume is taken from a guest that does not give it up.
    #[serde(default)]
    pub forced: bool,
}

/// `InstanceMetadataOptions` of the API reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

impl Default for MetadataOptions {
    fn default() -> Self {
        Self { http_endpoint: true, http_tokens_required: false, hop_limit: 1, instance_tags: false }
    }
}

wire_enum! {
    /// `StatusName` of an instance or system status check (`InstanceStatusSummary`).
    StatusCheck {
        /// The check passes.
        Ok = "ok",
        /// The check fails.
        Impaired = "impaired",
        /// Not known yet.
        Initializing = "initializing",
        /// The instance does not run.
        NotApplicable = "not-applicable",
    }
}

/// What an instance is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// State.
    pub state: InstanceState,
    /// Why it is in its state, when it is not simply running.
    pub state_reason: Option<StateReason>,
    /// `StateTransitionReason`, as `User initiated (2026-01-31 12:00:00 GMT)`; empty when there is none.
    pub transition_reason: String,
    /// The boot (see [`InstanceSpec::boots`]) that the node has carried out or given up.
    pub boots: u64,
    /// The reboot (see [`InstanceSpec::reboots`]) that the node has carried out.
    pub reboots: u64,
    /// When a guest that was asked to shut down is forced to; the time of the request itself for one that is not asked.
    #[serde(with = "time::serde::timestamp::nanoseconds::option")]
    pub stop_deadline: Option<OffsetDateTime>,
    /// When a guest that was asked to shut down for a reboot is reset all the same.
    #[serde(with = "time::serde::timestamp::nanoseconds::option")]
    pub reboot_deadline: Option<OffsetDateTime>,
    /// When the state became `running`.
    #[serde(with = "time::serde::timestamp::nanoseconds::option")]
    pub running_since: Option<OffsetDateTime>,
    /// When the state became `terminated`.
    #[serde(with = "time::serde::timestamp::nanoseconds::option")]
    pub terminated_at: Option<OffsetDateTime>,
    /// Instance status check: the guest answers on its link.
    pub instance_check: StatusCheck,
    /// System status check: the virtual machine's process runs and answers.
    pub system_check: StatusCheck,
    /// Since when the instance status check fails.
    #[serde(default, with = "time::serde::timestamp::nanoseconds::option")]
    pub instance_impaired_since: Option<OffsetDateTime>,
    /// Since when the system status check fails.
    #[serde(default, with = "time::serde::timestamp::nanoseconds::option")]
    pub system_impaired_since: Option<OffsetDateTime>,
    /// The host goes down, and the guest with it: until when it may take. What was shut down so is started again.
    #[serde(default, with = "time::serde::timestamp::nanoseconds::option")]
    pub interrupted_until: Option<OffsetDateTime>,
    /// Boot id of the host on which the virtual machine was started (`/proc/sys/kernel/random/boot_id`).
    pub host_boot_id: Option<String>,
}

impl InstanceStatus {
    /// The status of an instance that was just asked for.
    #[must_use]
    pub fn pending() -> Self {
        Self {
            state: InstanceState::Pending,
            state_reason: Some(StateReason { code: "pending".into(), message: "pending".into() }),
            transition_reason: String::new(),
            boots: 0,
            reboots: 0,
            stop_deadline: None,
            reboot_deadline: None,
            running_since: None,
            terminated_at: None,
            instance_check: StatusCheck::NotApplicable,
            system_check: StatusCheck::NotApplicable,
            instance_impaired_since: None,
            system_impaired_since: None,
            interrupted_until: None,
            host_boot_id: None,
        }
    }
}
