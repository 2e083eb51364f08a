//! Guests that move between daemons while they run.
//!
//! Each daemon keeps a [`Migration`] record. The guest belongs to one of them at every moment, as durable records say:
//!
//! | here | there | the guest |
//! |---|---|---|
//! | `copying` | `receiving` | is here: whatever breaks off, it runs on here |
//! | `handing-over` | `receiving` | stands still on both sides; nobody lets it run until *there* has decided |
//! | `handing-over` | `received` | is there |
//! | `handing-over` | `giving-up`, or none | is here: it is taken back |
//! | `handed-over` | `received` | is there; what is left of it here goes |
//!
//! The decision is one transaction of the daemon that receives, from `receiving` to `received` or `giving-up`. It decides only when
//! asked, which it is only after the guest was sent whole; so whoever does not know yet asks, or asks again.
//!
//! [`outgoing`] is the daemon that sends, [`course`] how long it may take, [`doubt`] what it does about a guest that was taken back by hand;
//! [`incoming`] is the one that receives; [`bundle`] says what moves; [`wire`] what they say to each other, [`server`] hears it, [`relay`]
//! carries the machines' bytes, [`channel`] protects both.

mod bundle;
mod channel;
mod course;
mod doubt;
mod incoming;
mod outgoing;
mod relay;
mod server;
mod wire;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use haar_core::reconcile::{Action, Failure, Reconciler};
use haar_records::ec2::{Claim, ClaimScope, Instance, Migration, MigrationPhase, NetworkInterface, Receiver};
use haar_store::{Entry, Key, Snapshot, Store};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::network::Network;
use crate::qemu::Qemu;
use crate::{Config, Error};
use incoming::Arrival;
use relay::Gate;
use wire::{About, Invitation, Outcome, Peer, Received};

pub use channel::Identity;
pub use server::Reception;

/// How long an invitation is good.
const INVITATION: Duration = Duration::from_secs(600);

/// How long a migration that has ended is told of.
const VISIBLE: Duration = Duration::from_secs(3600);

/// How often is asked whether a lent address comes back.
const ASK_FOR_LENT: Duration = Duration::from_secs(30);

/// How soon the other daemon is asked again that did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long the other daemon may take for a simple answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is said of a guest that is not taken over, when nothing more is known.
const GIVEN_UP: &str = "the daemon that receives has given it up";

/// Moves guests.
pub(crate) struct Migrations {
    store: Store,
    qemu: Arc<Qemu>,
    network: Arc<Network>,
    account: String,
    identity: Identity,
    host_boot_id: String,
    public_pool: ipnet::Ipv4Net,
    /// This process, for records.
    worker: String,
    gate: Gate,
    invitations: Mutex<HashMap<String, Instant>>,
    arrivals: Mutex<HashMap<String, Arc<Arrival>>>,
    underway: Mutex<HashMap<String, Underway>>,
    stopping: CancellationToken,
    /// Held while what was made for a guest is removed.
    clearing: tokio::sync::Mutex<()>,
}

/// What is known of a migration besides its record, as long as the process lives.
#[derive(Clone, Default)]
struct Underway {
    progress: Progress,
    /// Why it does not go on.
    trouble: Option<String>,
    cancelled: CancellationToken,
    /// How long it may take, if the user has said so.
    timeout: Option<Duration>,
}

/// How far a migration is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes of disks that are copied, holes included.
    pub disks_copied: u64,
    /// Bytes of disks that there are to copy.
    pub disks_total: u64,
    /// Bytes of memory that were sent.
    pub memory_sent: u64,
    /// Bytes of memory that are still to be sent.
    pub memory_remaining: u64,
    /// How often the guest's memory was gone through: what it wrote meanwhile is sent again.
    pub memory_rounds: u64,
    /// How much of the time the guest is kept from running, in percent, because it writes faster than can be sent.
    pub throttled_percent: u64,
}

/// What is told of a migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MigrationStatus {
    /// `mig-…`
    pub id: String,
    /// `i-…`
    pub instance_id: String,
    /// How far it is.
    pub phase: MigrationPhase,
    /// Host and port of the daemon that receives, at the one that sends.
    pub to: Option<String>,
    /// Why it failed, or does not go on.
    pub message: Option<String>,
    /// How much is copied.
    pub progress: Progress,
    /// Bytes that were sent in all, when it is over.
    pub bytes: u64,
    /// How long the guest stood still, in milliseconds.
    pub downtime_ms: Option<u64>,
    /// How long it took until now or its end, in milliseconds.
    pub duration_ms: u64,
}

/// Whether an instance is on its way from here, so that its machine is not to be touched.
pub(crate) fn is_leaving(snapshot: &Snapshot, account: &str, region: &str, instance_id: &str) -> bool {
    snapshot
        .by_index::<Migration>(account, region, "instance", instance_id)
        .any(|migration| migration.phase.is_leaving())
}

/// Whether an instance's machine is here although no instance's record says so.
pub(crate) fn holds_machine(snapshot: &Snapshot, account: &str, region: &str, instance_id: &str) -> bool {
    snapshot
        .by_index::<Migration>(account, region, "instance", instance_id)
        .any(|migration| migration.phase.holds_records())
}

/// The migrations whose guests' machines and disks are here without records of their own.
pub(crate) fn holding(snapshot: &Snapshot) -> impl Iterator<Item = &Entry<Migration>> {
    snapshot.list_all::<Migration>().filter(|migration| migration.phase.holds_records())
}

impl Migrations {
    pub(crate) fn new(config: &Config, store: Store, qemu: Arc<Qemu>, network: Arc<Network>) -> Arc<Self> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Arc::new(Self {
            store,
            qemu,
            network,
            account: config.account.clone(),
            identity: config.identity.clone(),
            host_boot_id: boot_id.trim().to_owned(),
            public_pool: config.public_pool,
            worker: random(),
            gate: Gate::default(),
            invitations: Mutex::default(),
            arrivals: Mutex::default(),
            underway: Mutex::default(),
            stopping: CancellationToken::new(),
            clearing: tokio::sync::Mutex::default(),
        })
    }

    /// Has guests that are being copied stay where they are, because the daemon stops.
    pub(crate) async fn stop(&self) {
        self.stopping.cancel();
        self.give_up_all().await;
    }

    /// Makes an invitation for one guest: what the daemon that sends has to know of this one, which answers at `address`.
    pub(crate) fn invite(&self, address: &str) -> String {
        let token = random();
        let mut invitations = lock(&self.invitations);
        invitations.retain(|_, made| made.elapsed() < INVITATION);
        invitations.insert(token.clone(), Instant::now());
        let fingerprint = self.identity.fingerprint().to_owned();
        Invitation { to: Receiver { address: address.to_owned(), fingerprint }, token }.to_string()
    }

    /// Uses up the invitation that a token is; says whether it was good.
    fn use_invitation(&self, token: &str) -> bool {
        let mut invitations = lock(&self.invitations);
        invitations.retain(|_, made| made.elapsed() < INVITATION);
        let mut known = invitations.keys();
        let found = known.find(|known| bool::from(known.as_bytes().ct_eq(token.as_bytes()))).cloned();
        found.is_some_and(|found| invitations.remove(&found).is_some())
    }

    /// Whether a token is that of an invitation that is good, or of a guest that came here.
    fn knows(&self, token: &str) -> bool {
        let same = |known: &str| bool::from(known.as_bytes().ct_eq(token.as_bytes()));
        let invited =
            lock(&self.invitations).iter().any(|(known, made)| same(known) && made.elapsed() < INVITATION);
        invited || self.store.snapshot().list_all::<Migration>().any(|m| m.to.is_none() && same(&m.token))
    }

    /// Begins to move an instance by an invitation of another daemon; gives the migration's id. If it is not over by `timeout`, it stays.
    pub(crate) async fn begin(
        &self,
        instance_id: &str,
        invitation: &str,
        timeout: Option<Duration>,
    ) -> Result<String, Error> {
        let Some(Invitation { to, token }) = Invitation::parse(invitation) else {
            return Err(Error::Refused(
                "the invitation cannot be read: it looks like haar://10.0.0.2:4566/#3f0c…, as haar receive prints it".into(),
            ));
        };
        if to.fingerprint == self.identity.fingerprint() {
            return Err(Error::Refused(format!("{instance_id} is at that daemon already")));
        }
        let id = haar_core::new_id("mig");
        let host_address = self.network.host_address();
        self.note(&id, |known| known.timeout = timeout);
        let begun = self
            .store
            .transact(|tx| {
                let found = tx.snapshot().list_all::<Instance>().find(|i| i.id == instance_id).cloned();
                let Some(found) = found else {
                    return Err(Error::Refused(format!("there is no instance {instance_id}")));
                };
                let (account, region) = (&found.account, &found.region);
                for other in tx.by_index::<Migration>(account, region, "instance", instance_id) {
                    if other.phase.is_leaving() {
                        return Err(Error::Refused(format!("{instance_id} is moving already")));
                    }
                    if other.in_doubt {
                        let there = other.destination();
                        return Err(Error::Refused(format!(
                            "{instance_id} may be at {there} as well: it was taken back without a word of the daemon there"
                        )));
                    }
                }
                // Relied on, so that no change goes by unseen.
                let instance = tx.get::<Instance>(account, region, instance_id);
                let Some(instance) = instance else { return Ok(()) };
                let bundle = bundle::collect(tx.snapshot(), &instance, host_address)?;
                tx.put(Migration::new(&id, Some(to.clone()), &token, &self.worker, bundle));
                Ok(())
            })
            .await;
        begun.inspect_err(|_| drop(lock(&self.underway).remove(&id)))?;
        Ok(id)
    }

    /// What is known of a migration, or of all.
    pub(crate) fn status(&self, id: Option<&str>) -> Vec<MigrationStatus> {
        let (snapshot, underway) = (self.store.snapshot(), lock(&self.underway).clone());
        let wanted = snapshot.list_all::<Migration>().filter(|m| id.is_none_or(|id| m.id == id));
        let tell = |m: &Entry<Migration>| MigrationStatus {
            id: m.id.clone(),
            instance_id: m.instance_id.clone(),
            phase: m.phase,
            to: m.to.as_ref().map(|to| to.address.clone()),
            message: match m.phase {
                MigrationPhase::HandingOver => underway.get(&m.id).and_then(|known| known.trouble.clone()),
                _ => m.message.clone(),
            },
            progress: underway.get(&m.id).map(|known| known.progress).unwrap_or_default(),
            bytes: m.bytes,
            downtime_ms: m.downtime_ms,
            duration_ms: u64::try_from(
                (m.ended.unwrap_or_else(OffsetDateTime::now_utc) - m.started).whole_milliseconds(),
            )
            .unwrap_or_default(),
        };
        wanted.map(tell).collect()
    }

    /// Changes what is known of a migration besides its record.
    fn note<T>(&self, id: &str, change: impl FnOnce(&mut Underway) -> T) -> T {
        change(lock(&self.underway).entry(id.to_owned()).or_default())
    }

    /// Has a guest stay that is being copied. It may have been handed over all the same, when it was about to be.
    pub(crate) fn cancel(&self, id: &str) -> Result<(), Error> {
        let migration = self.find(id)?;
        if migration.phase != MigrationPhase::Copying {
            return Err(Error::Refused(format!(
                "{id} is {}: only a guest that is being copied can be kept from moving",
                migration.phase
            )));
        }
        self.note(id, |known| known.cancelled.cancel());
        Ok(())
    }

    fn find(&self, id: &str) -> Result<Migration, Error> {
        let found = self.store.snapshot().list_all::<Migration>().find(|m| m.id == id).cloned();
        found
            .map(|found| Migration::clone(&found))
            .ok_or_else(|| Error::Refused(format!("there is no migration {id}")))
    }

    /// Writes down how a migration goes on, if it is in this phase still.
    async fn enter(
        &self,
        seen: &Migration,
        mut change: impl FnMut(&mut haar_store::Tx, &mut Migration) -> Result<(), Error> + Send,
    ) -> Result<Option<Migration>, Error> {
        let (account, region, id) = (&seen.account, &seen.region, &seen.id);
        self.store
            .transact(|tx| {
                let Some(found) = tx.get::<Migration>(account, region, id) else { return Ok(None) };
                if found.phase != seen.phase {
                    return Ok(None);
                }
                let mut migration = Migration::clone(&found);
                change(tx, &mut migration)?;
                tx.put(migration.clone());
                Ok(Some(migration))
            })
            .await
    }

    /// After its end, a migration is told of for a while; longer, where an address is lent.
    async fn forget(&self, migration: &Migration) -> Result<Action, Error> {
        if migration.in_doubt {
            return self.clear_doubt(migration).await;
        }
        let left = migration.ended.unwrap_or(migration.started) + VISIBLE - OffsetDateTime::now_utc();
        if !migration.settled
            && migration.to.is_some()
            && !self.tell_settled(migration).await?
            && left.is_positive()
        {
            return Ok(Action::RequeueAfter(ASK_FOR_LENT));
        }
        if !migration.lent.is_empty() {
            let held = match Peer::of(migration)?.ask("status", &About::of(migration), PATIENCE).await {
                Ok(Outcome::Received(Received { borrowed, .. })) => borrowed,
                Ok(Outcome::Refused(_)) => Vec::new(),
                Ok(Outcome::Receiving) | Err(_) => return Ok(Action::RequeueAfter(ASK_FOR_LENT)),
            };
            let back: Vec<Ipv4Addr> =
                migration.lent.iter().filter(|ip| !held.contains(ip)).copied().collect();
            if !back.is_empty() {
                self.enter(migration, |tx, migration| {
                    for ip in &back {
                        give_back(tx, migration, *ip);
                    }
                    migration.lent.retain(|ip| !back.contains(ip));
                    Ok(())
                })
                .await?;
            }
            if back.len() < migration.lent.len() {
                return Ok(Action::RequeueAfter(ASK_FOR_LENT));
            }
        }
        // As long as it may be asked for.
        let awaited = migration.phase == MigrationPhase::Received
            && (!migration.settled
                || matches!(self.outcome(migration), Outcome::Received(there) if !there.borrowed.is_empty()));
        if left.is_positive() || awaited {
            let soon = left.max(time::Duration::ZERO).unsigned_abs();
            return Ok(Action::RequeueAfter(soon.max(ASK_FOR_LENT)));
        }
        self.store
            .transact(|tx| {
                tx.delete::<Migration>(&migration.account, &migration.region, &migration.id);
                Ok::<_, Error>(())
            })
            .await?;
        lock(&self.underway).remove(&migration.id);
        Ok(Action::Done)
    }
}

/// Gives a lent address back to the pool, unless the guest has come back with it.
fn give_back(tx: &mut haar_store::Tx, migration: &Migration, ip: Ipv4Addr) {
    let (account, region) = (&migration.account, &migration.region);
    for interface in &migration.bundle.interfaces {
        let here = tx.get::<NetworkInterface>(account, region, &interface.id);
        let has = here.is_some_and(|i| i.public_address.as_ref().is_some_and(|public| public.ip == ip));
        let (claim_account, claim_region, id) = Claim::key(account, region, ClaimScope::PublicIp(ip));
        let held = tx.get::<Claim>(&claim_account, &claim_region, &id);
        if !has && held.is_some_and(|claim| claim.holder == interface.id) {
            tx.delete::<Claim>(&claim_account, &claim_region, &id);
        }
    }
}

/// Reconciles migrations.
pub(crate) struct Reconcile(pub(crate) Arc<Migrations>);

impl Reconciler for Reconcile {
    type Resource = Migration;
    type Error = Error;

    fn triggers(&self, before: &Migration, after: &Migration) -> bool {
        (before.phase, before.settled) != (after.phase, after.settled)
    }

    async fn reconcile(&self, _: &Key, entry: Option<Entry<Migration>>) -> Result<Action, Error> {
        let Some(migration) = entry else { return Ok(Action::Done) };
        let ours = migration.worker == self.0.worker;
        match migration.phase {
            MigrationPhase::Copying if ours => self.0.send(&migration).await,
            MigrationPhase::Copying => {
                self.0.stay(&migration, "the daemon ended meanwhile", false).await?;
                Ok(Action::Done)
            }
            MigrationPhase::HandingOver => self.0.settle(&migration).await,
            MigrationPhase::HandedOver => self.0.clear(&migration).await,
            MigrationPhase::Receiving => self.0.watch_over(&migration).await,
            MigrationPhase::GivingUp => self.0.clear_away(&migration).await,
            MigrationPhase::Completed | MigrationPhase::Failed | MigrationPhase::Received => {
                self.0.forget(&migration).await
            }
        }
    }

    async fn failed(&self, key: &Key, failure: &Failure<Error>, attempt: u32) {
        tracing::warn!(migration = key.id(), attempt, %failure, "cannot go on with the migration");
    }
}

/// 128 bits from the operating system, in hexadecimal.
fn random() -> String {
    let mut bytes = [0u8; 16];
    OsRng.try_fill_bytes(&mut bytes).expect("the operating system gives random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
