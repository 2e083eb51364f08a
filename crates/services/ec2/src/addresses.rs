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
    let free = Assignable::of(pool, POOL_RESERVED)
        .shuffled()
        .find(|&ip| is_free(tx, scope, ClaimScope::PublicIp(ip)));
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
    tx.create(Claim::new(scope.account, scope.region, claim, holder))
        .map_err(|exists| store_error(&exists.into()))
}

/// Gives up a claim; nothing happens when there is none.
pub fn release(tx: &mut Tx, scope: Scope<'_>, claim: ClaimScope<'_>) {
    let (account, region, id) = Claim::key(scope.account, scope.region, claim);
    tx.delete::<Claim>(&account, &region, &id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SCOPE, store, write};
    use crate::{defaults, subnets};

    fn code<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().code.into_owned()
    }

    /// A subnet of 16 addresses, 11 of which are assignable.
    async fn small_subnet(store: &haar_store::Store) -> Subnet {
        write(store, |tx| {
            defaults::ensure(tx, SCOPE)?;
            let mut subnet = Subnet::clone(&*subnets::default_for(tx, SCOPE, None, 1)?);
            subnet.cidr_block = "172.31.0.0/28".into();
            tx.put(subnet.clone());
            Ok(subnet)
        })
        .await
        .unwrap()
    }

    #[test]
    fn reserved_addresses_are_left_out() {
        assert_eq!(assignable("172.31.0.0/20".parse().unwrap()), 4091);
        assert_eq!(assignable("10.0.0.0/28".parse().unwrap()), 11);
        assert_eq!(assignable("0.0.0.0/0".parse().unwrap()), u32::MAX - 4);
        let pool: Vec<_> =
            Assignable::of("198.18.0.0/29".parse().unwrap(), POOL_RESERVED).shuffled().collect();
        assert_eq!(pool.len(), 4);
        for last in 3..=6 {
            assert!(pool.contains(&Ipv4Addr::new(198, 18, 0, last)));
        }
        assert_eq!(Assignable::of("198.18.0.0/30".parse().unwrap(), POOL_RESERVED).shuffled().count(), 0);
        assert_eq!(
            Assignable::of("255.255.255.255/32".parse().unwrap(), POOL_RESERVED).shuffled().count(),
            0
        );
    }

    #[tokio::test]
    async fn a_subnet_gives_every_address_once() {
        let store = store().await;
        let subnet = small_subnet(&store).await;
        let mut given = Vec::new();
        for n in 0..11 {
            let holder = format!("eni-{n}");
            given.push(write(&store, |tx| allocate_private_ip(tx, &subnet, None, &holder)).await.unwrap());
        }
        given.sort_unstable();
        let expected: Vec<_> = (4..15).map(|last| Ipv4Addr::new(172, 31, 0, last)).collect();
        assert_eq!(given, expected);
        let full = write(&store, |tx| allocate_private_ip(tx, &subnet, None, "eni-x")).await;
        assert_eq!(code(full), "InsufficientFreeAddressesInSubnet");
        let claim = |ip| ClaimScope::PrivateIp { vpc_id: &subnet.vpc_id, ip };
        let given_up = write(&store, |tx| {
            release(tx, SCOPE, claim(given[3]));
            Ok(())
        });
        given_up.await.unwrap();
        let again = write(&store, |tx| allocate_private_ip(tx, &subnet, None, "eni-x")).await;
        assert_eq!(again, Ok(given[3]));
    }

    #[tokio::test]
    async fn a_wanted_address_is_given_or_refused() {
        let store = store().await;
        let subnet = small_subnet(&store).await;
        let take = |ip: [u8; 4]| {
            let (store, subnet) = (store.clone(), subnet.clone());
            async move { write(&store, |tx| allocate_private_ip(tx, &subnet, Some(ip.into()), "eni-1")).await }
        };
        assert_eq!(take([172, 31, 0, 9]).await, Ok(Ipv4Addr::new(172, 31, 0, 9)));
        assert_eq!(code(take([172, 31, 0, 9]).await), "InvalidIPAddress.InUse");
        for reserved in [0, 1, 2, 3, 15] {
            assert_eq!(code(take([172, 31, 0, reserved]).await), "InvalidParameterValue");
        }
        assert!(take([172, 31, 0, 16]).await.unwrap_err().message.contains("does not fall within"));
    }

    #[tokio::test]
    async fn a_public_address_is_held_by_one_over_all_accounts() {
        let store = store().await;
        let pool: Ipv4Net = "198.18.0.0/29".parse().unwrap();
        let elsewhere = Scope { account: "210987654321", region: "eu-west-1" };
        let mut given = Vec::new();
        for scope in [SCOPE, elsewhere, SCOPE, elsewhere] {
            given.push(write(&store, |tx| allocate_public_ip(tx, pool, scope, "eni-1")).await.unwrap());
        }
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), 4);
        let full = write(&store, |tx| allocate_public_ip(tx, pool, SCOPE, "eni-1")).await;
        assert_eq!(code(full), "InsufficientAddressCapacity");
    }
}
