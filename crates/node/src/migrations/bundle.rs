//! What moves with a guest: collected where it is, and fitted in where it arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use haar_records::Tags;
use haar_records::ec2::{
    AttachmentStatus, Bundle, Claim, ClaimScope, Encryption, Instance, InstanceGoal,
    InstanceProfileAssociation, InstanceState, KeyPair, Migration, NetworkInterface, PlacementGroup,
    PublicAddress, RuleTarget, SecurityGroup, SecurityGroupRule, Subnet, Volume, VolumeState, Vpc,
};
use haar_records::iam::{self, InstanceProfile};
use haar_store::{Snapshot, Tx};
use ipnet::Ipv4Net;

use crate::Error;
use crate::snapshots::is_awaited;

fn refuse<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Refused(why.into()))
}

/// Everything that moves with an instance that runs.
///
/// # Errors
/// [`Error::Refused`] if it cannot move as it is now, and why.
pub(super) fn collect(
    snapshot: &Snapshot,
    instance: &Instance,
    host_address: Ipv4Addr,
) -> Result<Bundle, Error> {
    let (account, region, id) = (&instance.account, &instance.region, &instance.id);
    let missing = |what: &str| Error::Inconsistent(format!("{id}: {what} has no record"));
    let status = &instance.status;
    if status.state != InstanceState::Running || instance.spec.goal != InstanceGoal::Running {
        return refuse(format!("{id} is {}: only a running instance can move", status.state));
    }
    if status.interrupted_until.is_some() {
        return refuse(format!("{id} is being shut down with its host"));
    }
    if instance.spec.reboots != status.reboots {
        return refuse(format!("{id} is being rebooted"));
    }
    let vpc = snapshot
        .get::<Vpc>(account, region, &instance.spec.vpc_id)
        .ok_or_else(|| missing(&instance.spec.vpc_id))?;
    if !vpc.is_default {
        return refuse(format!("{id} is in {}: only instances of the default VPC can move", vpc.id));
    }
    let mut volumes = Vec::new();
    for device in &instance.spec.block_devices {
        let volume = snapshot
            .get::<Volume>(account, region, &device.volume_id)
            .ok_or_else(|| missing(&device.volume_id))?;
        let attached = volume.attachments.iter().all(|a| a.status == AttachmentStatus::Attached);
        if device.detaching || volume.state != VolumeState::InUse || !attached {
            return refuse(format!("{} is being attached or detached", volume.id));
        }
        if volume.modification.as_ref().is_some_and(|m| m.state.is_under_way()) {
            return refuse(format!("{} is being modified", volume.id));
        }
        if is_awaited(snapshot, &volume) {
            return refuse(format!("a snapshot of {} is being taken", volume.id));
        }
        volumes.push(Volume::clone(&volume));
    }
    let (mut interfaces, mut subnets, mut wanted) = (Vec::new(), BTreeMap::new(), Vec::new());
    for interface in &instance.spec.network_interfaces {
        let interface =
            snapshot.get::<NetworkInterface>(account, region, interface).ok_or_else(|| missing(interface))?;
        let subnet = snapshot
            .get::<Subnet>(account, region, &interface.subnet_id)
            .ok_or_else(|| missing(&interface.subnet_id))?;
        subnets.insert(subnet.id.clone(), Subnet::clone(&subnet));
        wanted.extend(interface.groups.iter().cloned());
        interfaces.push(NetworkInterface::clone(&interface));
    }
    // With what their rules name, and so on.
    let mut groups = BTreeMap::new();
    while let Some(id) = wanted.pop() {
        if groups.contains_key(&id) {
            continue;
        }
        let group = snapshot.get::<SecurityGroup>(account, region, &id).ok_or_else(|| missing(&id))?;
        wanted.extend(group.references());
        groups.insert(id, SecurityGroup::clone(&group));
    }
    let key = instance.spec.key_name.as_ref().and_then(|name| {
        let key = snapshot.by_index::<KeyPair>(account, region, "name", name).next()?;
        // Another pair may have the name by now.
        (Some(&key.public_key) == instance.spec.public_key.as_ref()).then(|| KeyPair::clone(key))
    });
    let placement_group = match &instance.spec.placement.group_id {
        Some(group) => {
            let found = snapshot.get::<PlacementGroup>(account, region, group);
            let found = found.ok_or_else(|| missing(group))?;
            Some(PlacementGroup::clone(&found))
        }
        None => None,
    };
    Ok(Bundle {
        instance: instance.clone(),
        volumes,
        interfaces,
        subnets: subnets.into_values().collect(),
        vpc_cidr: vpc.cidr_block.clone(),
        groups: groups.into_values().collect(),
        key,
        placement_group,
        host_address,
        connections: String::new(),
    })
}

/// What keeps a guest whose move has begun from being handed over: it is no more what was offered, but for names and descriptions.
pub(super) fn changed(offered: &Bundle, now: &Bundle) -> Option<String> {
    let id = &offered.instance.id;
    if offered.instance.spec != now.instance.spec {
        return Some(format!("{id} was changed meanwhile"));
    }
    let plain = |volume: &Volume| Volume { tags: Tags::new(), ..volume.clone() };
    for (before, after) in offered.volumes.iter().zip(&now.volumes) {
        if plain(before) != plain(after) {
            return Some(format!("{} was changed meanwhile", before.id));
        }
    }
    let place = |i: &NetworkInterface| (i.id.clone(), i.private_ip, i.public_address.clone());
    let places = |bundle: &Bundle| bundle.interfaces.iter().map(place).collect::<Vec<_>>();
    (places(offered) != places(now)).then(|| format!("the addresses of {id} were changed meanwhile"))
}

/// Where a guest arrives.
pub(super) struct Home<'a> {
    /// Account that it will belong to.
    pub account: &'a str,
    /// The pool of public addresses.
    pub public_pool: Ipv4Net,
    /// Whether it comes from this host: its addresses can then be taken over, whatever pool they are of.
    pub same_host: bool,
    /// Boot id of this host.
    pub host_boot_id: &'a str,
}

/// The bundle as it will be here. Security groups and the key pair are those that are not here yet. `encrypt` says how a volume that comes
/// encrypted will be so here.
///
/// # Errors
/// [`Error::Refused`] if it has no place here.
pub(super) fn fit_in(
    tx: &mut Tx,
    bundle: &Bundle,
    home: &Home<'_>,
    mut encrypt: impl FnMut(&mut Tx, &Volume) -> Result<Encryption, Error>,
) -> Result<Bundle, Error> {
    let mut bundle = bundle.clone();
    let (account, region) = (home.account, bundle.instance.region.clone());
    let (account, region) = (account, region.as_str());
    let id = bundle.instance.id.clone();
    let there = tx.get::<Instance>(account, region, &id);
    if there.is_some_and(|there| there.status.state != InstanceState::Terminated) {
        return refuse(format!("{id} is there already"));
    }
    let vpc = fit_vpc(tx, account, region, &bundle.vpc_cidr)?;
    let subnets = fit_subnets(tx, account, region, &vpc.id, &bundle.subnets)?;
    let groups = fit_groups(tx, account, region, &vpc.id, &mut bundle)?;
    for volume in &mut bundle.volumes {
        if tx.get::<Volume>(account, region, &volume.id).is_some() {
            return refuse(format!("{} is there already", volume.id));
        }
        volume.account = account.to_owned();
        if volume.encryption.is_some() {
            volume.encryption = Some(encrypt(tx, volume)?);
        }
    }
    fit_interfaces(tx, &mut bundle, home, &vpc.id, &subnets, &groups)?;
    if let Some(key) = bundle.key.take() {
        let (account_id, _, claim) = Claim::key(account, region, ClaimScope::KeyName(&key.name));
        let taken = tx.get::<Claim>(&account_id, region, &claim).is_some()
            || tx.by_index::<KeyPair>(account, region, "name", &key.name).next().is_some();
        bundle.key = (!taken).then(|| KeyPair { account: account.to_owned(), ..key });
    }
    if let Some(group) = &bundle.placement_group {
        bundle.instance.spec.placement.group_id = Some(fit_placement_group(tx, account, region, group)?);
    }
    let instance = &mut bundle.instance;
    if let Some(profile) = &mut instance.spec.instance_profile {
        fit_profile(tx, account, profile)?;
    }
    instance.account = account.to_owned();
    instance.spec.vpc_id.clone_from(&vpc.id);
    if let Some(subnet) = subnets.get(&instance.spec.subnet_id) {
        instance.spec.subnet_id.clone_from(subnet);
    }
    instance.status.host_boot_id = Some(home.host_boot_id.to_owned());
    instance.status.state_reason = None;
    Ok(bundle)
}

/// The default VPC, which has the same blocks everywhere.
fn fit_vpc(tx: &mut Tx, account: &str, region: &str, block: &str) -> Result<Vpc, Error> {
    let (_, _, default) = Claim::key(account, region, ClaimScope::DefaultVpc);
    let vpc = tx.get::<Claim>(account, region, &default).map(|claim| claim.holder.clone());
    let vpc = vpc.and_then(|id| tx.get::<Vpc>(account, region, &id));
    let Some(vpc) = vpc else { return refuse(format!("there is no default VPC in {region}")) };
    if vpc.cidr_block != block {
        return refuse(format!("the default VPC has the block {}, not {block}", vpc.cidr_block));
    }
    Ok(Vpc::clone(&vpc))
}

/// What the subnets are called here.
fn fit_subnets(
    tx: &mut Tx,
    account: &str,
    region: &str,
    vpc_id: &str,
    subnets: &[Subnet],
) -> Result<BTreeMap<String, String>, Error> {
    let mut names = BTreeMap::new();
    for subnet in subnets {
        let here = tx.by_index::<Subnet>(account, region, "vpc", vpc_id).find(|here| {
            (&here.cidr_block, &here.availability_zone) == (&subnet.cidr_block, &subnet.availability_zone)
        });
        let Some(here) = here else {
            let (block, zone) = (&subnet.cidr_block, &subnet.availability_zone);
            return refuse(format!("there is no subnet {block} in {zone}"));
        };
        names.insert(subnet.id.clone(), here.id.clone());
    }
    Ok(names)
}

fn fit_interfaces(
    tx: &mut Tx,
    bundle: &mut Bundle,
    home: &Home<'_>,
    vpc_id: &str,
    subnets: &BTreeMap<String, String>,
    groups: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let (account, region) = (home.account, bundle.instance.region.as_str());
    for interface in &mut bundle.interfaces {
        if tx.get::<NetworkInterface>(account, region, &interface.id).is_some() {
            return refuse(format!("{} is there already", interface.id));
        }
        interface.account = account.to_owned();
        vpc_id.clone_into(&mut interface.vpc_id);
        let subnet = subnets.get(&interface.subnet_id);
        interface.subnet_id = subnet.cloned().ok_or_else(|| {
            Error::Refused(format!(
                "the subnet {} of {} did not come with it",
                interface.subnet_id, interface.id
            ))
        })?;
        for group in &mut interface.groups {
            if let Some(here) = groups.get(group) {
                group.clone_from(here);
            }
        }
        if let Some(public) = &mut interface.public_address {
            fit_public_address(public, bundle.host_address, home)?;
        }
    }
    for (scope, holder) in claims(&bundle.interfaces) {
        let (account, region, id) = Claim::key(account, region, scope);
        if tx.get::<Claim>(&account, &region, &id).is_some_and(|claim| claim.holder != holder) {
            let (ClaimScope::PrivateIp { ip, .. } | ClaimScope::PublicIp(ip)) = scope else { continue };
            return refuse(format!("the address {ip} is taken there"));
        }
    }
    Ok(())
}

/// The placement group of the same name, if it promises the same.
fn fit_placement_group(
    tx: &mut Tx,
    account: &str,
    region: &str,
    group: &PlacementGroup,
) -> Result<String, Error> {
    let name = &group.name;
    let here = tx.by_index::<PlacementGroup>(account, region, "name", name).next().cloned();
    let Some(here) = here else { return refuse(format!("there is no placement group '{name}' there")) };
    if (here.strategy, here.partition_count) != (group.strategy, group.partition_count) {
        return refuse(format!("the placement group '{name}' has another strategy there"));
    }
    Ok(here.id.clone())
}

/// The instance profile of the same name, with whatever role it has here.
fn fit_profile(tx: &mut Tx, account: &str, profile: &mut InstanceProfileAssociation) -> Result<(), Error> {
    let name = profile.arn.rsplit('/').next().unwrap_or_default();
    let here = tx.get::<InstanceProfile>(account, iam::REGION, &iam::name_id(name));
    let Some(here) = here else { return refuse(format!("there is no instance profile '{name}' there")) };
    if here.role.is_none() {
        return refuse(format!("the instance profile '{name}' has no role there"));
    }
    profile.arn = here.arn();
    profile.profile_id.clone_from(&here.profile_id);
    Ok(())
}

fn fit_public_address(
    public: &mut PublicAddress,
    host_address: Ipv4Addr,
    home: &Home<'_>,
) -> Result<(), Error> {
    public.foreign_host = if home.public_pool.contains(&public.ip) {
        None
    } else if home.same_host {
        Some(public.foreign_host.unwrap_or(host_address))
    } else {
        let (ip, pool) = (public.ip, home.public_pool);
        return refuse(format!(
            "its public address {ip} cannot be reached there: public addresses are of {pool}"
        ));
    };
    Ok(())
}

/// Finds the groups that are here, or leaves them in the bundle to be made. Gives what each is called here.
fn fit_groups(
    tx: &mut Tx,
    account: &str,
    region: &str,
    vpc_id: &str,
    bundle: &mut Bundle,
) -> Result<BTreeMap<String, String>, Error> {
    let (mut names, mut here) = (BTreeMap::new(), BTreeMap::new());
    for group in &bundle.groups {
        let scope = ClaimScope::GroupName { vpc_id, name: &group.name };
        let (_, _, claim) = Claim::key(account, region, scope);
        let holder = tx.get::<Claim>(account, region, &claim).map(|claim| claim.holder.clone());
        let same = holder.as_ref().and_then(|id| tx.get::<SecurityGroup>(account, region, id));
        if let Some(same) = same {
            names.insert(group.id.clone(), same.id.clone());
            here.insert(group.id.clone(), same);
        } else if tx.get::<SecurityGroup>(account, region, &group.id).is_some() {
            return refuse(format!("the security group {} has another name there", group.id));
        } else {
            names.insert(group.id.clone(), group.id.clone());
        }
    }
    for group in &mut bundle.groups {
        group.account = account.to_owned();
        vpc_id.clone_into(&mut group.vpc_id);
        for rule in &mut group.rules {
            if let RuleTarget::Group(id) = &mut rule.target
                && let Some(name) = names.get(id)
            {
                id.clone_from(name);
            }
        }
        let other = here.get(&group.id).is_some_and(|here| effect(&here.rules) != effect(&group.rules));
        if other {
            return refuse(format!("the security group '{}' has other rules there", group.name));
        }
    }
    bundle.groups.retain(|group| !here.contains_key(&group.id));
    Ok(names)
}

/// What rules do, whatever they are called.
fn effect(rules: &[SecurityGroupRule]) -> BTreeSet<(bool, &str, i32, i32, String)> {
    let target = |target: &RuleTarget| match target {
        RuleTarget::Cidr(name) | RuleTarget::Group(name) => name.clone(),
    };
    rules.iter().map(|r| (r.egress, r.protocol.as_str(), r.from_port, r.to_port, target(&r.target))).collect()
}

/// What interfaces hold, and who of them.
pub(super) fn claims(interfaces: &[NetworkInterface]) -> Vec<(ClaimScope<'_>, &str)> {
    let mut claims = Vec::new();
    for interface in interfaces {
        let scope = ClaimScope::PrivateIp { vpc_id: &interface.vpc_id, ip: interface.private_ip };
        claims.push((scope, interface.id.as_str()));
        if let Some(public) = &interface.public_address {
            claims.push((ClaimScope::PublicIp(public.ip), interface.id.as_str()));
        }
    }
    claims
}

/// Makes the claims of a guest that arrives.
pub(super) fn claim(tx: &mut Tx, bundle: &Bundle) {
    let (account, region) = (&bundle.instance.account, &bundle.instance.region);
    for (scope, holder) in claims(&bundle.interfaces) {
        tx.put(Claim::new(account, region, scope, holder));
    }
}

/// Gives up the claims of a guest that is not here, but for public addresses that are lent.
pub(super) fn release(tx: &mut Tx, bundle: &Bundle, lent: &[Ipv4Addr]) {
    let (account, region) = (&bundle.instance.account, &bundle.instance.region);
    for (scope, holder) in claims(&bundle.interfaces) {
        if matches!(scope, ClaimScope::PublicIp(ip) if lent.contains(&ip)) {
            continue;
        }
        release_claim(tx, account, region, scope, holder);
    }
}

/// Gives up a claim, if this holder has it.
pub(super) fn release_claim(tx: &mut Tx, account: &str, region: &str, scope: ClaimScope<'_>, holder: &str) {
    let (account, region, id) = Claim::key(account, region, scope);
    if tx.get::<Claim>(&account, &region, &id).is_some_and(|claim| claim.holder == holder) {
        tx.delete::<Claim>(&account, &region, &id);
    }
}

/// Makes the records of a guest that has arrived, or that is taken back.
pub(super) fn put(tx: &mut Tx, bundle: &Bundle) {
    let (account, region) = (&bundle.instance.account, &bundle.instance.region);
    for group in &bundle.groups {
        let scope = ClaimScope::GroupName { vpc_id: &group.vpc_id, name: &group.name };
        let claim = Claim::new(account, region, scope, &group.id);
        // Where it is taken back, the groups are there, unless somebody has removed one meanwhile.
        if tx.get::<SecurityGroup>(account, region, &group.id).is_none() && tx.create(claim).is_ok() {
            tx.put(group.clone());
        }
    }
    if let Some(key) = &bundle.key
        && tx.by_index::<KeyPair>(account, region, "name", &key.name).next().is_none()
    {
        tx.put(Claim::new(account, region, ClaimScope::KeyName(&key.name), &key.id));
        tx.put(key.clone());
    }
    for volume in &bundle.volumes {
        tx.put(volume.clone());
    }
    for interface in &bundle.interfaces {
        tx.put(interface.clone());
    }
    tx.put(bundle.instance.clone());
}

/// Removes the records of a guest that is handed over: from then on the migration alone has them.
pub(super) fn remove(tx: &mut Tx, bundle: &Bundle) {
    let (account, region) = (&bundle.instance.account, &bundle.instance.region);
    tx.delete::<Instance>(account, region, &bundle.instance.id);
    for volume in &bundle.volumes {
        tx.delete::<Volume>(account, region, &volume.id);
    }
    for interface in &bundle.interfaces {
        tx.delete::<NetworkInterface>(account, region, &interface.id);
    }
}

/// Whether a public address that came with a migration is still held here, or was lent on.
pub(super) fn holds(snapshot: &Snapshot, migration: &Migration, ip: Ipv4Addr) -> bool {
    let (account, region) = (&migration.account, &migration.region);
    let ours = |id: &String| {
        let interface = snapshot.get::<NetworkInterface>(account, region, id);
        interface.and_then(|i| i.public_address.as_ref().map(|public| public.ip)) == Some(ip)
    };
    let interfaces = &migration.bundle.interfaces;
    let of = |bundle: &Bundle| {
        bundle.interfaces.iter().filter_map(|i| i.public_address.as_ref()).any(|public| public.ip == ip)
    };
    let on_its_way = |other: &Migration| {
        other.lent.contains(&ip) || other.phase.holds_records() && other.to.is_some() && of(&other.bundle)
    };
    interfaces.iter().any(|interface| ours(&interface.id))
        || snapshot.list::<Migration>(account, region).any(|other| on_its_way(other))
}
