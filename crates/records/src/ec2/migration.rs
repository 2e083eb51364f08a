//! Guests that move between daemons.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Instance, KeyPair, NetworkInterface, PlacementGroup, SecurityGroup, Subnet, Volume, wire_enum};
use crate::resource;

/// The move of a running instance from one daemon to another. Both keep one, under the same id.
///
/// It says whose the guest is while no other record does: from [`MigrationPhase::HandingOver`] on the instance, its volumes and its
/// interfaces are kept here, and nowhere else, until the other daemon has them or they are taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Migration {
    /// Account of the instance at this daemon.
    pub account: String,
    /// Region.
    pub region: String,
    /// `mig-…`
    pub id: String,
    /// `i-…`
    pub instance_id: String,
    /// `vpc-…` of this daemon.
    pub vpc_id: String,
    /// How far it is.
    pub phase: MigrationPhase,
    /// The daemon that receives, where this one sends.
    pub to: Option<Receiver>,
    /// What the daemons know each other by.
    pub token: String,
    /// The process that works on it: what another one had begun is broken off.
    pub worker: String,
    /// What moves, as this daemon knows it.
    pub bundle: Bundle,
    /// Public addresses of this daemon's pool that moved with the guest, until it gives them up.
    pub lent: Vec<Ipv4Addr>,
    /// Why it failed.
    pub message: Option<String>,
    /// The guest was taken back before the other daemon said whether it has it, and it has not said so yet.
    #[serde(default)]
    pub in_doubt: bool,
    /// Whether the daemon that sends knows whose the guest is, and the one that receives that it does: until then that one remembers.
    #[serde(default = "known")]
    pub settled: bool,
    /// Bytes of disks and memory that were sent.
    pub bytes: u64,
    /// How long the guest stood still, in milliseconds.
    pub downtime_ms: Option<u64>,
    /// When it was asked for.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub started: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::timestamp::nanoseconds::option")]
    pub ended: Option<OffsetDateTime>,
}

resource!(Migration, "ec2.migration",
    "instance" => |m| [m.instance_id.clone()],
    "vpc" => |m| [m.vpc_id.clone()],
);

impl Migration {
    /// One that begins now, to a daemon or, where there is none, from one.
    #[must_use]
    pub fn new(id: &str, to: Option<Receiver>, token: &str, worker: &str, bundle: Bundle) -> Self {
        let instance = &bundle.instance;
        let phase = if to.is_some() { MigrationPhase::Copying } else { MigrationPhase::Receiving };
        Self {
            account: instance.account.clone(),
            region: instance.region.clone(),
            id: id.to_owned(),
            instance_id: instance.id.clone(),
            vpc_id: instance.spec.vpc_id.clone(),
            phase,
            to,
            token: token.to_owned(),
            worker: worker.to_owned(),
            bundle,
            lent: Vec::new(),
            message: None,
            in_doubt: false,
            settled: true,
            bytes: 0,
            downtime_ms: None,
            started: OffsetDateTime::now_utc(),
            ended: None,
        }
    }

    /// Host and port of the daemon that receives, where this one sends.
    #[must_use]
    pub fn destination(&self) -> &str {
        self.to.as_ref().map_or("", |to| &to.address)
    }
}

/// Of records that do not say it.
fn known() -> bool {
    true
}

/// A daemon that receives a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    /// Host and port of its endpoint.
    pub address: String,
    /// SHA-256 of its public key, by which it is told from everybody else who may answer there.
    #[serde(default)]
    pub fingerprint: String,
}

wire_enum! {
    /// How far a migration is.
    MigrationPhase {
        /// Here: the guest runs, its disks and memory are being copied.
        Copying = "copying",
        /// Here: the guest stands still, and only the other daemon knows whose it is.
        HandingOver = "handing-over",
        /// Here: the guest is the other daemon's; what is left of it goes.
        HandedOver = "handed-over",
        /// Here: it is over, and the guest was handed over.
        Completed = "completed",
        /// Here: it is over, and the guest stayed.
        Failed = "failed",
        /// There: the guest is not this daemon's yet.
        Receiving = "receiving",
        /// There: the guest is this daemon's.
        Received = "received",
        /// There: the guest will never be this daemon's by this migration; what was made for it goes.
        GivingUp = "giving-up",
    }
}

impl MigrationPhase {
    /// Whether the instance's records are kept in the migration alone.
    #[must_use]
    pub fn holds_records(self) -> bool {
        matches!(self, Self::HandingOver | Self::HandedOver | Self::Receiving | Self::GivingUp)
    }

    /// Whether a guest is on its way from here.
    #[must_use]
    pub fn is_leaving(self) -> bool {
        matches!(self, Self::Copying | Self::HandingOver | Self::HandedOver)
    }
}

/// What moves with a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bundle {
    /// The instance.
    pub instance: Instance,
    /// Its volumes.
    pub volumes: Vec<Volume>,
    /// Its interfaces.
    pub interfaces: Vec<NetworkInterface>,
    /// The subnets of the interfaces.
    pub subnets: Vec<Subnet>,
    /// The CIDR block of the VPC.
    pub vpc_cidr: String,
    /// The security groups of the interfaces, and those that their rules name.
    pub groups: Vec<SecurityGroup>,
    /// The key pair.
    pub key: Option<KeyPair>,
    /// The placement group.
    #[serde(default)]
    pub placement_group: Option<PlacementGroup>,
    /// The address that the host's connections to the public addresses come from.
    pub host_address: Ipv4Addr,
    /// The connections that are open when the guest stands still, as the network driver writes them in JSON.
    #[serde(default)]
    pub connections: String,
}
