//! How much of the installation instances may take: the host's memory, the account's vCPUs, the places of a placement group.
//!
//! Whoever takes capacity does so in the transaction that writes the instance, and draws a [`CapacityTicket`]: of two requests that
//! take at the same time, the second counts again.

use haar_api::Error;
use haar_records::ec2::{
    CapacityTicket, Instance, InstanceState, InstanceType, Migration, Placement, PlacementGroup,
    PlacementStrategy, instance_type,
};
use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION};
use haar_store::{Entry, Snapshot, Tx};

use crate::Scope;
use crate::error::Result;

/// Most running instances of a spread placement group in a zone ("Placement strategies", EC2 User Guide).
const SPREAD_IN_ZONE: usize = 7;

/// What there is for instances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Memory for instances in MiB; without a number, as much as is asked for.
    pub memory_mib: Option<u64>,
    /// Memory that an instance takes besides its own, in MiB.
    pub overhead_mib: u64,
    /// Virtual processors that the running instances of an account may have in a region.
    pub vcpus: Option<u32>,
    /// All instances stand on one host.
    pub one_host: bool,
}

/// Instances that are to be given room, all alike.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Their type.
    pub hardware: &'static InstanceType,
    /// Their zone.
    pub zone: &'a str,
    /// Where they are to stand.
    pub placement: &'a Placement,
}

impl Capacity {
    /// How many of `most` instances there is room for, at least `least`. What is given is given with the transaction.
    ///
    /// # Errors
    /// `VcpuLimitExceeded`, `InsufficientInstanceCapacity`, and the errors of a placement group that is missing or has other rules.
    pub fn give(
        self,
        tx: &mut Tx,
        scope: Scope<'_>,
        wanted: &Wanted<'_>,
        least: u32,
        most: u32,
    ) -> Result<u32> {
        let group = match wanted.placement.group_id.as_deref() {
            Some(id) => tx.get::<PlacementGroup>(scope.account, scope.region, id),
            None => None,
        };
        if self == Self::default() && group.is_none() {
            return Ok(most);
        }
        draw_ticket(tx);
        let snapshot = tx.snapshot();
        let within_quota = self.within_quota(snapshot, scope, wanted).min(most);
        if within_quota < least {
            return Err(over_quota(self.vcpus.unwrap_or_default()));
        }
        let mut fits = within_quota.min(self.within_memory(snapshot, wanted));
        if self.one_host && !self.may_share_host(snapshot, scope, wanted) {
            fits = 0;
        }
        if let Some(group) = group {
            fits = fits.min(self.within_group(snapshot, &group, wanted)?);
        }
        if fits < least { Err(insufficient(wanted)) } else { Ok(fits) }
    }

    /// How many more the account's quota allows.
    fn within_quota(self, snapshot: &Snapshot, scope: Scope<'_>, wanted: &Wanted<'_>) -> u32 {
        let Some(quota) = self.vcpus else { return u32::MAX };
        let counts =
            |i: &&Instance| matches!(i.status.state, InstanceState::Pending | InstanceState::Running);
        let there = snapshot.list::<Instance>(scope.account, scope.region).map(instance);
        let moving = moving(snapshot).filter(|i| (&*i.account, &*i.region) == (scope.account, scope.region));
        let used: u32 = there
            .chain(moving)
            .filter(counts)
            .filter_map(|i| instance_type(&i.spec.instance_type))
            .map(InstanceType::vcpus)
            .fold(0, u32::saturating_add);
        quota.saturating_sub(used) / wanted.hardware.vcpus()
    }

    /// How many more the host has memory for.
    fn within_memory(self, snapshot: &Snapshot, wanted: &Wanted<'_>) -> u32 {
        let Some(memory) = self.memory_mib else { return u32::MAX };
        let taken = |hardware: &InstanceType| hardware.memory_mib + self.overhead_mib;
        let used: u64 = all(snapshot).filter_map(|i| instance_type(&i.spec.instance_type)).map(taken).sum();
        u32::try_from(memory.saturating_sub(used) / taken(wanted.hardware)).unwrap_or(u32::MAX)
    }

    /// Whether nobody's wish to have the host to themselves is violated.
    fn may_share_host(self, snapshot: &Snapshot, scope: Scope<'_>, wanted: &Wanted<'_>) -> bool {
        let mut others = all(snapshot).filter(|instance| instance.account != scope.account);
        !others.any(|other| wanted.placement.dedicated || other.spec.placement.dedicated)
    }

    /// How many more the rules of a placement group allow.
    fn within_group(self, snapshot: &Snapshot, group: &PlacementGroup, wanted: &Wanted<'_>) -> Result<u32> {
        let mut running = members(snapshot, group);
        match group.strategy {
            PlacementStrategy::Cluster => {
                if let Some(other) = running.find(|other| other.spec.availability_zone != wanted.zone) {
                    return Err(Error::new(
                        "InvalidParameterCombination",
                        format!(
                            "The cluster placement group '{}' has instances in the Availability Zone {}, so that none can be in {}.",
                            group.name, other.spec.availability_zone, wanted.zone
                        ),
                    ));
                }
                Ok(u32::MAX)
            }
            PlacementStrategy::Spread => {
                let places = if self.one_host { 1 } else { SPREAD_IN_ZONE };
                let taken = running.filter(|i| self.one_host || i.spec.availability_zone == wanted.zone);
                Ok(u32::try_from(places.saturating_sub(taken.count())).unwrap_or_default())
            }
            PlacementStrategy::Partition => {
                let asked = wanted.placement.partition;
                let elsewhere = |i: &Instance| asked.is_some() && i.spec.placement.partition != asked;
                let room = !(self.one_host && running.any(elsewhere));
                Ok(if room { u32::MAX } else { 0 })
            }
        }
    }

    /// The partition of one more instance of a partition group that asks for none: the one with the fewest instances; on a single
    /// host, which can be in one partition only, that one.
    #[must_use]
    pub fn partition(self, snapshot: &Snapshot, group: &PlacementGroup) -> u32 {
        let mut counts = vec![0u32; group.partition_count.unwrap_or(1).max(1) as usize];
        for instance in members(snapshot, group) {
            let index = instance.spec.placement.partition.and_then(|p| p.checked_sub(1));
            if let Some(count) = index.and_then(|index| counts.get_mut(index as usize)) {
                *count += 1;
            }
        }
        let numbered = (1..).zip(counts);
        let chosen = if self.one_host {
            numbered.max_by_key(|(number, count)| (*count, std::cmp::Reverse(*number)))
        } else {
            numbered.min_by_key(|(number, count)| (*count, *number))
        };
        chosen.map_or(1, |(number, _)| number)
    }
}

fn instance(entry: &Entry<Instance>) -> &Instance {
    entry
}

/// The instances that arrive from another daemon, or leave, and have machines here all the same.
fn moving(snapshot: &Snapshot) -> impl Iterator<Item = &Instance> {
    let moving = snapshot.list_all::<Migration>().filter(|migration| migration.phase.holds_records());
    moving.map(|migration| &migration.bundle.instance)
}

/// All instances that take room.
fn all(snapshot: &Snapshot) -> impl Iterator<Item = &Instance> {
    let there = snapshot.list_all::<Instance>().map(instance).filter(|instance| instance.takes_room());
    there.chain(moving(snapshot))
}

/// The instances of a placement group that take room.
fn members<'a>(snapshot: &'a Snapshot, group: &PlacementGroup) -> impl Iterator<Item = &'a Instance> {
    let there = snapshot.by_index::<Instance>(&group.account, &group.region, "placement-group", &group.id);
    let there = there.map(instance).filter(|instance| instance.takes_room());
    let id = group.id.clone();
    let is_member = move |instance: &&Instance| instance.spec.placement.group_id.as_ref() == Some(&id);
    there.chain(moving(snapshot).filter(is_member))
}

fn draw_ticket(tx: &mut Tx) {
    let latest = tx.get::<CapacityTicket>(GLOBAL_ACCOUNT, GLOBAL_REGION, CapacityTicket::ID);
    tx.put(CapacityTicket::new(latest.map_or(1, |latest| latest.number + 1)));
}

fn over_quota(quota: u32) -> Error {
    Error::new(
        "VcpuLimitExceeded",
        format!(
            "You have requested more vCPU capacity than your current vCPU limit of {quota} allows for the instance bucket that the specified instance type belongs to."
        ),
    )
}

/// A server error of AWS's, so that clients may try again.
fn insufficient(wanted: &Wanted<'_>) -> Error {
    let message = format!(
        "We currently do not have sufficient {} capacity in the Availability Zone you requested ({}).",
        wanted.hardware.name, wanted.zone
    );
    Error::new("InsufficientInstanceCapacity", message).with_status(500)
}
