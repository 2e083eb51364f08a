//! The instance types: what a type's name promises of processors, memory, network and volumes.
//!
//! The table is data, `instance_types.tsv` beside this file; adding a type is adding a line.

use std::{collections::HashMap, sync::LazyLock};

use super::wire_enum;

/// An instance type (`InstanceTypeInfo` in the API reference).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceType {
    /// Name, as `t3.micro`.
    pub name: &'static str,
    /// Processor cores.
    pub cores: u32,
    /// Threads of a core; vCPUs are cores × threads.
    pub threads_per_core: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Hypervisor generation.
    pub hypervisor: Hypervisor,
    /// A T type: processor time comes in bursts.
    pub burstable: bool,
    /// AWS counts it among the current generation.
    pub current_generation: bool,
    /// AWS offers it in its free tier.
    pub free_tier: bool,
    /// Network performance in words, as `Up to 5 Gigabit`.
    pub network_performance: &'static str,
    /// Sustained network bandwidth in Mbit/s.
    pub network_baseline_mbps: u64,
    /// Peak network bandwidth in Mbit/s.
    pub network_peak_mbps: u64,
    /// Most network interfaces of an instance.
    pub max_network_interfaces: u32,
    /// Most private IPv4 addresses of an interface.
    pub ipv4_per_interface: u32,
    /// Dedicated volume bandwidth, where the type has it.
    pub ebs: Option<EbsPerformance>,
    /// Most volumes (or, where the limit is shared, volumes and interfaces) of an instance.
    pub max_ebs_attachments: u32,
    /// What the limit counts.
    pub ebs_limit: EbsLimit,
}

/// Bandwidth between an instance and its volumes (`EbsOptimizedInfo` in the API reference).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EbsPerformance {
    /// Sustained bandwidth in Mbit/s.
    pub baseline_mbps: u32,
    /// Peak bandwidth in Mbit/s.
    pub maximum_mbps: u32,
    /// Sustained operations per second.
    pub baseline_iops: u32,
    /// Peak operations per second.
    pub maximum_iops: u32,
}

wire_enum! {
    /// `InstanceTypeHypervisor`.
    Hypervisor {
        /// Nitro.
        Nitro = "nitro",
        /// Xen.
        Xen = "xen",
    }
}

wire_enum! {
    /// `AttachmentLimitType`.
    EbsLimit {
        /// Volumes and network interfaces share one limit.
        Shared = "shared",
        /// Volumes have a limit of their own.
        Dedicated = "dedicated",
    }
}

impl InstanceType {
    /// Whether an instance can have so many volumes and network interfaces, as far as volumes are limited.
    #[must_use]
    pub fn takes(&self, volumes: usize, interfaces: usize) -> bool {
        let used = match self.ebs_limit {
            EbsLimit::Dedicated => volumes,
            EbsLimit::Shared => volumes + interfaces,
        };
        used <= self.max_ebs_attachments as usize
    }

    /// Virtual processors.
    #[must_use]
    pub const fn vcpus(&self) -> u32 {
        self.cores * self.threads_per_core
    }

    /// The core counts that `CpuOptions` may ask for ("Supported CPU options for Amazon EC2 instance types", EC2 User Guide): the
    /// even ones, of the seventh generation all, of types under Xen none but their own.
    #[must_use]
    pub fn valid_cores(&self) -> Vec<u32> {
        let all = ["c7i.", "m7i.", "r7i."].iter().any(|family| self.name.starts_with(family));
        match self.hypervisor {
            Hypervisor::Xen => vec![self.cores],
            Hypervisor::Nitro if all => (1..=self.cores).collect(),
            Hypervisor::Nitro if self.cores % 2 == 1 => vec![self.cores],
            Hypervisor::Nitro => (2..=self.cores).step_by(2).collect(),
        }
    }

    /// The threads per core that `CpuOptions` may ask for.
    #[must_use]
    pub fn valid_threads_per_core(&self) -> Vec<u32> {
        (1..=self.threads_per_core).collect()
    }

    /// Memory in bytes.
    #[must_use]
    pub const fn memory_bytes(&self) -> u64 {
        self.memory_mib << 20
    }
}

/// The type of this name.
///
/// ```
/// let t3_micro = haar_records::ec2::instance_type("t3.micro").unwrap();
/// assert_eq!((t3_micro.vcpus(), t3_micro.memory_mib), (2, 1024));
/// ```
#[must_use]
pub fn instance_type(name: &str) -> Option<&'static InstanceType> {
    TABLE.by_name.get(name).map(|&index| &TABLE.types[index])
}

/// All types, ordered by family and size as the table has them.
#[must_use]
pub fn instance_types() -> &'static [InstanceType] {
    &TABLE.types
}

struct Table {
    types: Vec<InstanceType>,
    by_name: HashMap<&'static str, usize>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let types: Vec<_> = include_str!("instance_types.tsv")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| parse(line).unwrap_or_else(|| panic!("instance_types.tsv: unreadable line: {line}")))
        .collect();
    let by_name = types.iter().enumerate().map(|(index, t)| (t.name, index)).collect();
    Table { types, by_name }
});

/// Reads one line of the table; none when it does not have exactly the columns that the file's head names.
fn parse(line: &'static str) -> Option<InstanceType> {
    let columns: [&'static str; 19] = line.split('\t').collect::<Vec<_>>().try_into().ok()?;
    let [
        name,
        cores,
        threads,
        memory,
        hypervisor,
        burstable,
        current,
        free,
        network,
        net_base,
        net_peak,
        rest @ ..,
    ] = columns;
    let [interfaces, ipv4, ebs_base, ebs_max, ebs_base_iops, ebs_max_iops, attachments, limit] = rest;
    let yes = |column: &str| match column {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    };
    let ebs = match ebs_base {
        "-" => None,
        baseline => Some(EbsPerformance {
            baseline_mbps: baseline.parse().ok()?,
            maximum_mbps: ebs_max.parse().ok()?,
            baseline_iops: ebs_base_iops.parse().ok()?,
            maximum_iops: ebs_max_iops.parse().ok()?,
        }),
    };
    Some(InstanceType {
        name,
        cores: cores.parse().ok()?,
        threads_per_core: threads.parse().ok()?,
        memory_mib: memory.parse().ok()?,
        hypervisor: hypervisor.parse().ok()?,
        burstable: yes(burstable)?,
        current_generation: yes(current)?,
        free_tier: yes(free)?,
        network_performance: network,
        network_baseline_mbps: net_base.parse().ok()?,
        network_peak_mbps: net_peak.parse().ok()?,
        max_network_interfaces: interfaces.parse().ok()?,
        ipv4_per_interface: ipv4.parse().ok()?,
        ebs,
        max_ebs_attachments: attachments.parse().ok()?,
        ebs_limit: limit.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_reads_and_names_are_unique() {
        assert_eq!(TABLE.types.len(), TABLE.by_name.len());
        for family in ["t2", "t3", "t3a", "m5", "m6i", "m7i", "c5", "c6i", "c7i", "r5", "r6i", "r7i"] {
            let prefix = format!("{family}.");
            let sizes: Vec<_> = instance_types().iter().filter(|t| t.name.starts_with(&prefix)).collect();
            assert!(sizes.len() >= 4, "{family}");
            assert!(sizes.is_sorted_by_key(|t| t.memory_mib), "{family}");
        }
    }

    #[test]
    fn values_are_those_of_the_type() {
        let large = instance_type("m7i.large").unwrap();
        assert_eq!((large.vcpus(), large.memory_bytes()), (2, 8 << 30));
        assert_eq!(large.network_peak_mbps, 12_500);
        assert_eq!(large.ebs.unwrap().maximum_iops, 40_000);
        assert_eq!(large.ebs_limit, EbsLimit::Dedicated);
        assert_eq!(instance_type("t2.medium").unwrap().ebs, None);
        assert_eq!(instance_type("t3.micro2"), None);
    }

    #[test]
    fn lines_with_missing_or_wrong_columns_are_refused() {
        assert_eq!(parse("t9.huge\t1\t2"), None);
        assert_eq!(
            parse("t9.huge\tone\t2\t1024\tnitro\tyes\tyes\tno\tHigh\t1\t1\t1\t1\t-\t-\t-\t-\t1\tshared"),
            None
        );
    }
}
