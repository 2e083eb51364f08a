//! What a launch asks of the machine and of its place: processors, tenancy, placement group, reservations, recovery, names.

use haar_api::Error;
use haar_core::IdType;
use haar_records::ec2::{CpuOptions, Hypervisor, InstanceType, Placement, PlacementStrategy};
use haar_store::Tx;

use crate::capacity::Capacity;
use crate::error::{Result, combination, invalid_parameter, invalid_value, missing, shorten, unsupported};
use crate::{Scope, model, placement_groups, zones};

const CAPACITY_RESERVATION: IdType = IdType::new(
    "cr",
    "capacity reservation ID",
    "InvalidCapacityReservationId.Malformed",
    "InvalidCapacityReservationId.NotFound",
);

/// Refuses what options ask for that haar does not have; that they ask for nothing is fine.
///
/// # Errors
/// `UnsupportedOperation`, `UnsupportedHibernationConfiguration`.
pub(super) fn refuse(input: &model::RunInstancesRequest) -> Result<()> {
    if input.hibernation_options.as_ref().and_then(|options| options.configured) == Some(true) {
        return Err(Error::new(
            "UnsupportedHibernationConfiguration",
            "The parameter HibernationOptions.Configured is not supported: no instance type can hibernate.",
        ));
    }
    if input.enclave_options.as_ref().and_then(|options| options.enabled) == Some(true) {
        return Err(unsupported("The parameter EnclaveOptions.Enabled is not supported."));
    }
    // A machine that is lost is not started again by itself.
    let recovery = input.maintenance_options.as_ref().and_then(|options| options.auto_recovery);
    if recovery == Some(model::InstanceAutoRecoveryState::Default) {
        return Err(unsupported(
            "The value 'default' of the parameter MaintenanceOptions.AutoRecovery is not supported.",
        ));
    }
    if let Some(names) = &input.private_dns_name_options {
        if names.hostname_type == Some(model::HostnameType::ResourceName) {
            return Err(unsupported(
                "The value 'resource-name' of the parameter PrivateDnsNameOptions.HostnameType is not supported.",
            ));
        }
        for (name, wanted) in [
            ("EnableResourceNameDnsARecord", names.enable_resource_name_dns_a_record),
            ("EnableResourceNameDnsAAAARecord", names.enable_resource_name_dns_aaaa_record),
        ] {
            if wanted == Some(true) {
                return Err(unsupported(format!(
                    "The parameter PrivateDnsNameOptions.{name} is not supported."
                )));
            }
        }
    }
    Ok(())
}

/// The processors that a launch asks for, if it asks.
///
/// # Errors
/// `InvalidParameterCombination`, `InvalidParameterValue`, `UnsupportedOperation`.
pub(super) fn cpu(
    input: Option<&model::CpuOptionsRequest>,
    hardware: &InstanceType,
) -> Result<Option<CpuOptions>> {
    let Some(input) = input else { return Ok(None) };
    let (cores, threads) = match (input.core_count, input.threads_per_core) {
        (None, None) => return Ok(None),
        (Some(cores), Some(threads)) => (cores, threads),
        _ => {
            return Err(combination(
                "The parameters CpuOptions.CoreCount and CpuOptions.ThreadsPerCore must be specified together.",
            ));
        }
    };
    if hardware.hypervisor == Hypervisor::Xen {
        return Err(unsupported(format!(
            "The instance type {} does not support specifying CpuOptions.",
            hardware.name
        )));
    }
    let check = |value: i32, name: &str, valid: &[u32]| {
        let found = u32::try_from(value).ok().filter(|value| valid.contains(value));
        found.ok_or_else(|| {
            let valid: Vec<_> = valid.iter().map(ToString::to_string).collect();
            let why = format!("For {} it must be one of {}.", hardware.name, valid.join(", "));
            invalid_parameter(&value.to_string(), name, &why)
        })
    };
    Ok(Some(CpuOptions {
        core_count: check(cores, "CpuOptions.CoreCount", &hardware.valid_cores())?,
        threads_per_core: check(threads, "CpuOptions.ThreadsPerCore", &hardware.valid_threads_per_core())?,
    }))
}

/// The zone that a placement names, by name or by id. Terraform says every member of a placement, empty where it has none.
///
/// # Errors
/// `InvalidParameterCombination`, `InvalidParameterValue`.
pub(super) fn zone(scope: Scope<'_>, input: Option<&model::Placement>) -> Result<Option<String>> {
    let given = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
    let name = given(input.and_then(|placement| placement.availability_zone.as_ref()));
    let Some(id) = given(input.and_then(|placement| placement.availability_zone_id.as_ref())) else {
        return Ok(name);
    };
    let zone = zones::zone_name(scope.region, &id)
        .ok_or_else(|| invalid_value(format!("Invalid availability zone: [{}]", shorten(&id))))?;
    match name {
        Some(name) if name != zone => Err(combination(
            "The parameters Placement.AvailabilityZone and Placement.AvailabilityZoneId name different zones.",
        )),
        _ => Ok(Some(zone)),
    }
}

/// Where the instances of a launch are to stand.
///
/// # Errors
/// `InvalidPlacementGroup.Unknown` and those of what cannot be together.
pub(super) fn placement(
    scope: Scope<'_>,
    tx: &mut Tx,
    input: Option<&model::Placement>,
    hardware: &InstanceType,
) -> Result<Placement> {
    let Some(input) = input else { return Ok(Placement::default()) };
    let dedicated = match input.tenancy {
        None | Some(model::Tenancy::Default) => false,
        Some(model::Tenancy::Dedicated) if hardware.name.starts_with("t2.") => {
            return Err(combination(format!(
                "The instance type {} does not support dedicated tenancy.",
                hardware.name
            )));
        }
        Some(model::Tenancy::Dedicated) => true,
        Some(model::Tenancy::Host) => {
            return Err(unsupported(
                "The value 'host' of the parameter Placement.Tenancy is not supported: there are no Dedicated Hosts.",
            ));
        }
    };
    let (name, id) = (input.group_name.as_deref(), input.group_id.as_deref());
    let (name, id) = (name.filter(|name| !name.is_empty()), id.filter(|id| !id.is_empty()));
    let group = match (name, id) {
        (None, None) => None,
        (Some(_), Some(_)) => {
            return Err(combination(
                "The parameter Placement.GroupId cannot be used with the parameter Placement.GroupName",
            ));
        }
        (Some(name), None) => Some(placement_groups::find_by_name(tx, scope, name)?),
        (None, Some(id)) => Some(placement_groups::find(tx, scope, id)?),
    };
    // 0 is what clients send that mean none.
    let partition = input.partition_number.filter(|number| *number != 0);
    let Some(group) = group else {
        return match partition {
            Some(_) => Err(missing("Placement.GroupName")),
            None => Ok(Placement { dedicated, ..Placement::default() }),
        };
    };
    if group.strategy == PlacementStrategy::Cluster && (hardware.burstable || !hardware.current_generation) {
        return Err(combination(format!(
            "Cluster placement groups are not supported by the '{}' instance type. Specify a supported instance type or change the placement group strategy, and try again.",
            hardware.name
        )));
    }
    let partition = match (partition, group.partition_count) {
        (None, _) => None,
        (Some(_), None) => {
            return Err(combination(format!(
                "The parameter Placement.PartitionNumber cannot be used with the {} placement group '{}'.",
                group.strategy, group.name
            )));
        }
        (Some(number), Some(count)) => {
            let known = u32::try_from(number).ok().filter(|number| (1..=count).contains(number));
            let why = format!("The placement group has {count} partitions.");
            Some(
                known.ok_or_else(|| {
                    invalid_parameter(&number.to_string(), "Placement.PartitionNumber", &why)
                })?,
            )
        }
    };
    Ok(Placement { group_id: Some(group.id.clone()), partition, dedicated })
}

/// The placement of one of the instances: in a partition group, with its partition.
pub(super) fn of_one(tx: &mut Tx, scope: Scope<'_>, placement: &Placement, capacity: Capacity) -> Placement {
    let mut placement = placement.clone();
    let Some(id) = placement.group_id.as_deref().filter(|_| placement.partition.is_none()) else {
        return placement;
    };
    if let Some(group) = tx.get::<haar_records::ec2::PlacementGroup>(scope.account, scope.region, id)
        && group.strategy == PlacementStrategy::Partition
    {
        placement.partition = Some(capacity.partition(tx.snapshot(), &group));
    }
    placement
}

/// The preference for capacity reservations, of which there are none: an instance that may run without one runs without one.
///
/// # Errors
/// `InvalidParameterCombination`, `InvalidCapacityReservationId.NotFound`, `ReservationCapacityExceeded`.
pub(super) fn capacity_reservation(
    input: Option<&model::CapacityReservationSpecification>,
) -> Result<Option<String>> {
    let Some(input) = input else { return Ok(None) };
    let target = input.capacity_reservation_target.as_ref();
    if let Some(id) = target.and_then(|target| target.capacity_reservation_id.as_deref()) {
        if input.capacity_reservation_preference.is_some() {
            return Err(combination(
                "The parameter CapacityReservationTarget cannot be used with the parameter CapacityReservationPreference",
            ));
        }
        CAPACITY_RESERVATION.check(id)?;
        return Err(CAPACITY_RESERVATION.missing(id).into());
    }
    match input.capacity_reservation_preference {
        Some(model::CapacityReservationPreference::CapacityReservationsOnly) => Err(Error::new(
            "ReservationCapacityExceeded",
            "The requested reservation does not have sufficient compatible and available capacity for this request.",
        )),
        preference => Ok(preference.map(|preference| preference.to_string())),
    }
}
