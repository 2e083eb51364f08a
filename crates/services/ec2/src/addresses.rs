//! The allocation of private and public addresses. An address is held by a [`Claim`], made in the transaction of its holder.

use std::net::Ipv4Addr;

use haar_api::Error;
use haar_core::store_error;
use haar_records::ec2::{Claim, ClaimScope, Subnet};
use haar_store::Tx;
use ipnet::Ipv4Net;

use crate::error::{Result, invalid_value};
use crate::scope::Scope;

/// Addresses at the start of a subnet that are not for interfaces: network, router, resolver, and one for the future (Amazon
/// VPC User Guide, "Subnet CIDR blocks").
const SUBNET_RESERVED: u32 = 4;

/// Addresses at the start of the public pool that are not for interfaces: network, and both ends of the way to the host.
const POOL_RESERVED: u32 = 3;

/// Addresses that can be given away: all of a block but some at its start and the broadcast address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Assignable {
    first: u32,
    count: u32,
}

impl Assignable {
    fn of(block: Ipv4Net, reserved: u32) -> Self {
        let first = u64::from(u32::from(block.network())) + u64::from(reserved);
        let count = u64::from(u32::from(block.broadcast())).saturating_sub(first);
        // Of an address space of 2^32, less than that is left, and both fit.
        let fit = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Self { first: fit(first), count: fit(count) }
    }

    fn contains(self, ip: Ipv4Addr) -> bool {
        u32::from(ip).checked_sub(self.first).is_some_and(|offset| offset < self.count)
    }

    /// All of them, from a random one on: transactions that allocate at the same time seldom meet.
    fn shuffled(self) -> impl Iterator<Item = Ipv4Addr> {
        let start = if self.count == 0 { 0 } else { rand::random_range(0..self.count) };
        (0..self.count).map(move |step| {
            let offset = (u64::from(start) + u64::from(step)) % u64::from(self.count);
            Ipv4Addr::from(self.first + u32::try_from(offset).unwrap_or(0))
        })
    }
}

/// How many interfaces fit into a subnet.
#[must_use]
pub fn assignable(subnet: Ipv4Net) -> u32 {
    Assignable::of(subnet, SUBNET_RESERVED).count
}

/// A subnet's block.
///
/// # Errors
/// `InternalError` when the record is damaged.
pub fn block(subnet: &Subnet) -> Result<Ipv4Net> {
    subnet.cidr_block.parse().map_err(|_| Error::internal(format!("{} has no CIDR block", subnet.id)))
}

/// Gives `holder` (`eni-…`) an address of a subnet: the one that it wants, or else a free one.
///
/// # Errors
/// `InvalidParameterValue` for an address outside or in the reserved part of the subnet, `InvalidIPAddress.InUse`,
/// `InsufficientFreeAddressesInSubnet`.
pub fn allocate_private_ip(
    tx: &mut Tx,
    subnet: &Subnet,
    wanted: Option<Ipv4Addr>,
    holder: &str,
) -> Result<Ipv4Addr> {
    let block = block(subnet)?;
    let assignable = Assignable::of(block, SUBNET_RESERVED);
    let scope = Scope { account: &subnet.account, region: &subnet.region };
    let claim = |ip| ClaimScope::PrivateIp { vpc_id: &subnet.vpc_id, ip };
    let Some(ip) = wanted else {
        let free = assignable.shuffled().find(|&ip| is_free(tx, scope, claim(ip)));
        let ip = free.ok_or_else(|| {
            let message = "The specified subnet does not have enough free addresses to satisfy the request.";
            Error::new("InsufficientFreeAddressesInSubnet", message)
        })?;
        hold(tx, scope, claim(ip), holder)?;
        return Ok(ip);
    };
    if !block.contains(&ip) {
        return Err(invalid_value(format!("Address {ip} does not fall within the subnet's address range")));
    }
    if !assignable.contains(ip) {
        return Err(invalid_value(format!("Address {ip} is in subnet's reserved address range")));
    }
    if !is_free(tx, scope, claim(ip)) {
        return Err(Error::new("InvalidIPAddress.InUse", format!("Address {ip} is in use.")));
    }
    hold(tx, scope, claim(ip), holder)?;
    Ok(ip)
}

/// Gives `holder` (`eni-…`) a free address of the public pool.
///
/// # Errors
/// `InsufficientAddressCapacity`.
pub fn allocate_public_ip(tx: &mut Tx, pool: Ipv4Net, scope: Scope<'_>, holder: &str) -> Result<Ipv4Addr> {
    let free = Assignable::of(pool, POOL_RESERVED).shuffled().find(|&ip| is_free(tx, scope, ClaimScope::PublicIp(ip)));
    let ip = free.ok_or_else(|| {
        let message = format!("The public addresses of this installation ({pool}) are all in use.");
        Error::new("InsufficientAddressCapacity", message)
    })?;
    hold(tx, scope, ClaimScope::PublicIp(ip), holder)?;
    Ok(ip)
}

/// Whether nobody holds what the claim is about. The transaction does not rely on it.
fn is_free(tx: &Tx, scope: Scope<'_>, claim: ClaimScope<'_>) -> bool {
    let (account, region, id) = Claim::key(scope.account, scope.region, claim);
    tx.snapshot().get::<Claim>(&account, &region, &id).is_none()
}

/// Makes a claim that is known to be free; the transaction relies on that.
fn hold(tx: &mut Tx, scope: Scope<'_>, claim: ClaimScope<'_>, holder: &str) -> Result<()> {
    tx.create(Claim::new(scope.account, scope.region, claim, holder)).map_err(|exists| store_error(&exists.into()))
}

/// Gives up a claim; nothing happens when there is none.
pub fn release(tx: &mut Tx, scope: Scope<'_>, claim: ClaimScope<'_>) {
    let (account, region, id) = Claim::key(scope.account, scope.region, claim);
    tx.delete::<Claim>(&account, &region, &id);
}
