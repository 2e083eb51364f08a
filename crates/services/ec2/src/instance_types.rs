//! Instance types.

use haar_api::{Context, Error};
use haar_core::{FilterTable, Fingerprint, PageRequest};
use haar_records::ec2::{EbsLimit, Hypervisor, InstanceType, instance_type, instance_types};

use crate::error::{Result, shorten};
use crate::handlers::Handlers;
use crate::model::{
    ArchitectureType, AttachmentLimitType, BootModeType, DescribeInstanceTypeOfferingsRequest,
    DescribeInstanceTypeOfferingsResult, DescribeInstanceTypesRequest, DescribeInstanceTypesResult,
    EbsEncryptionSupport, EbsInfo, EbsNvmeSupport, EbsOptimizedInfo, EbsOptimizedSupport, EnaSupport,
    FlexibleEnaQueuesSupport, InstanceTypeHypervisor, InstanceTypeInfo, InstanceTypeOffering, LocationType,
    MemoryInfo, NetworkCardInfo, NetworkInfo, NitroEnclavesSupport, NitroTpmSupport, PlacementGroupInfo,
    PlacementGroupStrategy, ProcessorInfo, RebootMigrationSupport, RootDeviceType, UsageClassType, VCpuInfo,
    VirtualizationType,
};
use crate::{describe, zones};

/// Most types that a request can name (API Reference, `DescribeInstanceTypes`).
const MAX_NAMED: usize = 100;

/// The refusal of types that do not exist.
#[must_use]
pub fn no_such_types(names: &[&str]) -> Error {
    let names: Vec<_> = names.iter().map(|name| shorten(name)).collect();
    let message = format!("The following supplied instance types do not exist: [{}]", names.join(", "));
    Error::new("InvalidInstanceType", message)
}

/// Mbit/s to MB/s.
fn throughput(mbps: u32) -> f64 {
    f64::from(mbps) / 8.0
}

/// What every type lacks here.
const FALSE: &str = "false";
const SUPPORTED: &str = "supported";
const UNSUPPORTED: &str = "unsupported";

const FILTERS: FilterTable<InstanceType> = FilterTable::new(&[
    ("auto-recovery-supported", |_, (), probe| probe.value(FALSE)),
    ("bare-metal", |_, (), probe| probe.value(FALSE)),
    ("burstable-performance-supported", |t, (), probe| probe.display(t.burstable)),
    ("current-generation", |t, (), probe| probe.display(t.current_generation)),
    ("dedicated-hosts-supported", |_, (), probe| probe.value(FALSE)),
    ("ebs-info.attachment-limit-type", |t, (), probe| probe.value(t.ebs_limit.as_str())),
    ("ebs-info.ebs-optimized-info.baseline-bandwidth-in-mbps", |t, (), probe| {
        t.ebs.iter().for_each(|ebs| probe.display(ebs.baseline_mbps));
    }),
    ("ebs-info.ebs-optimized-info.baseline-iops", |t, (), probe| {
        t.ebs.iter().for_each(|ebs| probe.display(ebs.baseline_iops));
    }),
    ("ebs-info.ebs-optimized-info.baseline-throughput-in-mbps", |t, (), probe| {
        t.ebs.iter().for_each(|ebs| probe.display(throughput(ebs.baseline_mbps)));
    }),
    ("ebs-info.ebs-optimized-info.maximum-bandwidth-in-mbps", |t, (), probe| {
        t.ebs.iter().for_each(|ebs| probe.display(ebs.maximum_mbps));
    }),
    ("ebs-info.ebs-optimized-info.maximum-iops", |t, (), probe| {
        t.ebs.iter().for_each(|ebs| probe.display(ebs.maximum_iops));
    }),
    ("ebs-info.ebs-optimized-info.maximum-throughput-in-mbps", |t, (), probe| {
        t.ebs.iter().for_each(|ebs| probe.display(throughput(ebs.maximum_mbps)));
    }),
    ("ebs-info.ebs-optimized-support", |t, (), probe| probe.value(ebs_optimized_support(t).as_str())),
    ("ebs-info.encryption-support", |_, (), probe| probe.value(SUPPORTED)),
    ("ebs-info.maximum-ebs-attachments", |t, (), probe| probe.display(t.max_ebs_attachments)),
    ("ebs-info.nvme-support", |_, (), probe| probe.value(UNSUPPORTED)),
    ("free-tier-eligible", |t, (), probe| probe.display(t.free_tier)),
    ("hibernation-supported", |_, (), probe| probe.value(FALSE)),
    ("hypervisor", |t, (), probe| probe.value(t.hypervisor.as_str())),
    ("instance-storage-info.disk.count", |_, (), _| ()),
    ("instance-storage-info.disk.size-in-gb", |_, (), _| ()),
    ("instance-storage-info.disk.type", |_, (), _| ()),
    ("instance-storage-info.encryption-support", |_, (), _| ()),
    ("instance-storage-info.nvme-support", |_, (), _| ()),
    ("instance-storage-info.total-size-in-gb", |_, (), _| ()),
    ("instance-storage-supported", |_, (), probe| probe.value(FALSE)),
    ("instance-type", |t, (), probe| probe.value(t.name)),
    ("memory-info.size-in-mib", |t, (), probe| probe.display(t.memory_mib)),
    ("network-info.bandwidth-weightings", |_, (), _| ()),
    ("network-info.efa-info.maximum-efa-interfaces", |_, (), _| ()),
    ("network-info.efa-supported", |_, (), probe| probe.value(FALSE)),
    ("network-info.ena-support", |_, (), probe| probe.value(UNSUPPORTED)),
    ("network-info.encryption-in-transit-supported", |_, (), probe| probe.value(FALSE)),
    ("network-info.flexible-ena-queues-support", |_, (), probe| probe.value(UNSUPPORTED)),
    ("network-info.ipv4-addresses-per-interface", |t, (), probe| probe.display(t.ipv4_per_interface)),
    ("network-info.ipv6-addresses-per-interface", |_, (), probe| probe.value("0")),
    ("network-info.ipv6-supported", |_, (), probe| probe.value(FALSE)),
    ("network-info.maximum-network-cards", |_, (), probe| probe.value("1")),
    ("network-info.maximum-network-interfaces", |t, (), probe| probe.display(t.max_network_interfaces)),
    ("network-info.network-performance", |t, (), probe| probe.value(t.network_performance)),
    ("nitro-enclaves-support", |_, (), probe| probe.value(UNSUPPORTED)),
    ("nitro-tpm-info.supported-versions", |_, (), _| ()),
    ("nitro-tpm-support", |_, (), probe| probe.value(UNSUPPORTED)),
    ("processor-info.supported-architecture", |_, (), probe| probe.value("x86_64")),
    ("processor-info.supported-features", |_, (), _| ()),
    ("processor-info.sustained-clock-speed-in-ghz", |_, (), _| ()),
    ("reboot-migration-support", |_, (), probe| probe.value(UNSUPPORTED)),
    ("supported-boot-mode", |_, (), probe| probe.values(["legacy-bios", "uefi"])),
    ("supported-root-device-type", |_, (), probe| probe.value("ebs")),
    ("supported-usage-class", |_, (), probe| probe.value("on-demand")),
    ("supported-virtualization-type", |_, (), probe| probe.value("hvm")),
    ("vcpu-info.default-cores", |t, (), probe| probe.display(t.cores)),
    ("vcpu-info.default-threads-per-core", |t, (), probe| probe.display(t.threads_per_core)),
    ("vcpu-info.default-vcpus", |t, (), probe| probe.display(t.vcpus())),
    ("vcpu-info.valid-cores", |t, (), probe| t.valid_cores().iter().for_each(|n| probe.display(n))),
    ("vcpu-info.valid-threads-per-core", |t, (), probe| {
        t.valid_threads_per_core().iter().for_each(|n| probe.display(n));
    }),
]);

/// `DescribeInstanceTypes`.
pub async fn describe_instance_types(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeInstanceTypesRequest,
) -> Result<DescribeInstanceTypesResult> {
    let filters = describe::parse(&FILTERS, &input.filters)?;
    let named = &input.instance_types;
    if named.len() > MAX_NAMED {
        let message = format!("No more than {MAX_NAMED} instance types may be given.");
        return Err(crate::error::invalid_value(message));
    }
    let unknown: Vec<&str> =
        named.iter().map(String::as_str).filter(|name| instance_type(name).is_none()).collect();
    if !unknown.is_empty() {
        return Err(no_such_types(&unknown));
    }
    describe::ids_or_pages("instanceTypes", named, input.max_results)?;
    let page = handlers.paginator.page(
        ctx,
        &PageRequest {
            parameters: &|| Fingerprint::of(&(named, filters.raw())),
            max_results: input.max_results,
            next_token: input.next_token.as_deref(),
            limits: 5..=100,
        },
    )?;
    let is_named = |t: &InstanceType| named.is_empty() || named.iter().any(|name| name == t.name);
    let types = sorted().into_iter().filter(|t| is_named(t) && filters.matches(t, &()));
    let (types, next_token) = page.take(types, |t| t.name);
    Ok(DescribeInstanceTypesResult { instance_types: types.into_iter().map(to_api).collect(), next_token })
}

/// All types by name, as pages need them.
fn sorted() -> Vec<&'static InstanceType> {
    let mut types: Vec<_> = instance_types().iter().collect();
    types.sort_unstable_by_key(|t| t.name);
    types
}

/// The placement strategies that a type can be in.
fn strategies(t: &InstanceType) -> Vec<PlacementGroupStrategy> {
    let cluster = (!t.burstable && t.current_generation).then_some(PlacementGroupStrategy::Cluster);
    cluster.into_iter().chain([PlacementGroupStrategy::Partition, PlacementGroupStrategy::Spread]).collect()
}

/// What a type is here, which is not all that AWS's is: instances have virtio disks and interfaces.
fn to_api(t: &InstanceType) -> InstanceTypeInfo {
    let count = |value: u32| i32::try_from(value).ok();
    // Rounded as AWS rounds: Mbit/s are whole.
    let gbps = |mbps: u64| u32::try_from(mbps).ok().map(|mbps| f64::from(mbps) / 1000.0);
    InstanceTypeInfo {
        instance_type: Some(t.name.to_owned()),
        current_generation: Some(t.current_generation),
        free_tier_eligible: Some(t.free_tier),
        supported_usage_classes: vec![UsageClassType::OnDemand],
        supported_root_device_types: vec![RootDeviceType::Ebs],
        supported_virtualization_types: vec![VirtualizationType::Hvm],
        bare_metal: Some(false),
        hypervisor: Some(match t.hypervisor {
            Hypervisor::Nitro => InstanceTypeHypervisor::Nitro,
            Hypervisor::Xen => InstanceTypeHypervisor::Xen,
        }),
        processor_info: Some(ProcessorInfo { supported_architectures: vec![ArchitectureType::X86_64] }),
        v_cpu_info: Some(VCpuInfo {
            default_v_cpus: count(t.vcpus()),
            default_cores: count(t.cores),
            default_threads_per_core: count(t.threads_per_core),
            valid_cores: t.valid_cores().into_iter().filter_map(count).collect(),
            valid_threads_per_core: t.valid_threads_per_core().into_iter().filter_map(count).collect(),
        }),
        memory_info: Some(MemoryInfo { size_in_mi_b: i64::try_from(t.memory_mib).ok() }),
        instance_storage_supported: Some(false),
        ebs_info: Some(EbsInfo {
            ebs_optimized_support: Some(ebs_optimized_support(t)),
            encryption_support: Some(EbsEncryptionSupport::Supported),
            ebs_optimized_info: t.ebs.map(|ebs| EbsOptimizedInfo {
                baseline_bandwidth_in_mbps: count(ebs.baseline_mbps),
                baseline_throughput_in_m_bps: Some(throughput(ebs.baseline_mbps)),
                baseline_iops: count(ebs.baseline_iops),
                maximum_bandwidth_in_mbps: count(ebs.maximum_mbps),
                maximum_throughput_in_m_bps: Some(throughput(ebs.maximum_mbps)),
                maximum_iops: count(ebs.maximum_iops),
            }),
            nvme_support: Some(EbsNvmeSupport::Unsupported),
            maximum_ebs_attachments: count(t.max_ebs_attachments),
            attachment_limit_type: Some(match t.ebs_limit {
                EbsLimit::Shared => AttachmentLimitType::Shared,
                EbsLimit::Dedicated => AttachmentLimitType::Dedicated,
            }),
        }),
        network_info: Some(NetworkInfo {
            network_performance: Some(t.network_performance.to_owned()),
            maximum_network_interfaces: count(t.max_network_interfaces),
            maximum_network_cards: Some(1),
            default_network_card_index: Some(0),
            network_cards: vec![NetworkCardInfo {
                network_card_index: Some(0),
                network_performance: Some(t.network_performance.to_owned()),
                maximum_network_interfaces: count(t.max_network_interfaces),
                baseline_bandwidth_in_gbps: gbps(t.network_baseline_mbps),
                peak_bandwidth_in_gbps: gbps(t.network_peak_mbps),
            }],
            ipv4_addresses_per_interface: count(t.ipv4_per_interface),
            ipv6_addresses_per_interface: Some(0),
            ipv6_supported: Some(false),
            ena_support: Some(EnaSupport::Unsupported),
            efa_supported: Some(false),
            encryption_in_transit_supported: Some(false),
            ena_srd_supported: Some(false),
            flexible_ena_queues_support: Some(FlexibleEnaQueuesSupport::Unsupported),
        }),
        placement_group_info: Some(PlacementGroupInfo { supported_strategies: strategies(t) }),
        hibernation_supported: Some(false),
        burstable_performance_supported: Some(t.burstable),
        dedicated_hosts_supported: Some(false),
        auto_recovery_supported: Some(false),
        supported_boot_modes: vec![BootModeType::LegacyBios, BootModeType::Uefi],
        nitro_enclaves_support: Some(NitroEnclavesSupport::Unsupported),
        nitro_tpm_support: Some(NitroTpmSupport::Unsupported),
        reboot_migration_support: Some(RebootMigrationSupport::Unsupported),
    }
}

const fn ebs_optimized_support(t: &InstanceType) -> EbsOptimizedSupport {
    if t.ebs.is_some() { EbsOptimizedSupport::Default } else { EbsOptimizedSupport::Unsupported }
}

/// A type at a place.
struct Offering {
    /// `type/location`: no name contains a slash.
    order: String,
    instance_type: &'static str,
    location: String,
}

const OFFERING_FILTERS: FilterTable<Offering> = FilterTable::new(&[
    ("instance-type", |offering, (), probe| probe.value(offering.instance_type)),
    ("location", |offering, (), probe| probe.value(&offering.location)),
]);

/// `DescribeInstanceTypeOfferings`: every type is offered everywhere.
pub async fn describe_instance_type_offerings(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeInstanceTypeOfferingsRequest,
) -> Result<DescribeInstanceTypeOfferingsResult> {
    let location_type = input.location_type.unwrap_or(LocationType::Region);
    let locations: Vec<String> = match location_type {
        LocationType::Region => vec![ctx.region.clone()],
        LocationType::AvailabilityZone => {
            zones::zones(&ctx.region).into_iter().map(|zone| zone.name).collect()
        }
        LocationType::AvailabilityZoneId => {
            zones::zones(&ctx.region).into_iter().map(|zone| zone.id).collect()
        }
        LocationType::Outpost => Vec::new(),
    };
    let filters = describe::parse(&OFFERING_FILTERS, &input.filters)?;
    let page = handlers.paginator.page(
        ctx,
        &PageRequest {
            parameters: &|| Fingerprint::of(&(location_type.as_str(), filters.raw())),
            max_results: input.max_results,
            next_token: input.next_token.as_deref(),
            limits: describe::PAGE,
        },
    )?;
    let mut offerings: Vec<_> = instance_types()
        .iter()
        .flat_map(|t| locations.iter().map(|location| (t.name, location.clone())))
        .map(|(instance_type, location)| Offering {
            order: format!("{instance_type}/{location}"),
            instance_type,
            location,
        })
        .filter(|offering| filters.matches(offering, &()))
        .collect();
    offerings.sort_unstable_by(|a, b| a.order.cmp(&b.order));
    let (offerings, next_token) = page.take(offerings, |offering| &offering.order);
    let to_api = |offering: Offering| InstanceTypeOffering {
        instance_type: Some(offering.instance_type.to_owned()),
        location_type: Some(location_type),
        location: Some(offering.location),
    };
    Ok(DescribeInstanceTypeOfferingsResult {
        instance_type_offerings: offerings.into_iter().map(to_api).collect(),
        next_token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Ec2;
    use crate::testing::{code, context, filter, handlers};

    async fn names(handlers: &Handlers, filters: Vec<crate::model::Filter>) -> Vec<String> {
        let input = DescribeInstanceTypesRequest { filters, ..DescribeInstanceTypesRequest::default() };
        let types = handlers.describe_instance_types(&context(), input).await.unwrap().instance_types;
        types.into_iter().filter_map(|t| t.instance_type).collect()
    }

    #[tokio::test]
    async fn types_are_found_by_what_they_are() {
        let handlers = handlers().await;
        assert_eq!(names(&handlers, filter("instance-type", "t3.mi*")).await, ["t3.micro"]);
        assert_eq!(
            names(&handlers, filter("memory-info.size-in-mib", "512")).await,
            ["t2.nano", "t3.nano", "t3a.nano"]
        );
        let throughput = filter("ebs-info.ebs-optimized-info.baseline-throughput-in-mbps", "10.875");
        assert_eq!(names(&handlers, throughput).await, ["t3.micro"]);
        assert_eq!(names(&handlers, filter("bare-metal", "true")).await, [""; 0]);
        assert_eq!(names(&handlers, filter("instance-storage-info.disk.type", "*")).await, [""; 0]);
        let input = DescribeInstanceTypesRequest {
            instance_types: vec!["t3.micro".into(), "t3.giant".into()],
            ..DescribeInstanceTypesRequest::default()
        };
        let refused = handlers.describe_instance_types(&context(), input).await.unwrap_err();
        assert_eq!(refused.code, "InvalidInstanceType");
        assert_eq!(refused.message, "The following supplied instance types do not exist: [t3.giant]");
    }

    #[tokio::test]
    async fn pages_give_every_type_once() {
        let handlers = handlers().await;
        let mut request =
            DescribeInstanceTypesRequest { max_results: Some(10), ..DescribeInstanceTypesRequest::default() };
        let mut seen = Vec::new();
        loop {
            let page = handlers.describe_instance_types(&context(), request.clone()).await.unwrap();
            seen.extend(page.instance_types.into_iter().filter_map(|t| t.instance_type));
            request.next_token = page.next_token;
            if request.next_token.is_none() {
                break;
            }
        }
        assert_eq!(seen, names(&handlers, Vec::new()).await);
        assert_eq!(seen.len(), instance_types().len());
        request.max_results = Some(101);
        assert_eq!(
            code(handlers.describe_instance_types(&context(), request).await),
            "InvalidParameterValue"
        );
    }

    #[tokio::test]
    async fn every_type_is_offered_in_every_zone() {
        let handlers = handlers().await;
        let input = DescribeInstanceTypeOfferingsRequest {
            location_type: Some(LocationType::AvailabilityZone),
            filters: filter("instance-type", "t3.micro"),
            ..DescribeInstanceTypeOfferingsRequest::default()
        };
        let offered = handlers.describe_instance_type_offerings(&context(), input).await.unwrap();
        let places: Vec<_> = offered.instance_type_offerings.into_iter().filter_map(|o| o.location).collect();
        assert_eq!(places, ["eu-central-1a", "eu-central-1b", "eu-central-1c"]);
    }
}
