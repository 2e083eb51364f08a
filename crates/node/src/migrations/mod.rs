//! Guests that move between daemons while they run.
//!
//! Each daemon keeps a [`Migration`] record. The guest belongs to one of them at every moment, as durable records say:
//!
//! | here | there | the guest |
//! |---|---|---|
//! | `copying` | `receiving` | is here: whatever breaks off, it runs on here |
//! | `handing-over` | `receiving` | stands still on both sides; nobody lets it run until *there* has decided |
//! | `handing-over` | `received` | is there |
//! | `handing-over` | none | is here: it is taken back |
//! | `handed-over` | `received` | is there; what is left of it here goes |
//!
//! The decision is one transaction of the daemon that receives, from `receiving` to `received`, or to no record at all. It decides only when
//! asked, which it is only after the guest was sent whole; so whoever does not know yet asks, or asks again.

mod bundle;
mod incoming;
mod outgoing;
mod relay;
mod wire;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use haar_core::reconcile::{Action, Failure, Reconciler};
use haar_records::ec2::{Claim, ClaimScope, Instance, Migration, MigrationPhase, NetworkInterface, Receiver};
use haar_store::{Entry, Key, Snapshot, Store};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;

use crate::network::Network;
use crate::qemu::Qemu;
use crate::{Config, Error};
use incoming::Arrival;
use relay::Gate;
use wire::{Answer, Outcome, Peer};

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
    listen: IpAddr,
    host_boot_id: String,
    public_pool: ipnet::Ipv4Net,
    /// This process, for records.
    worker: String,
    gate: Gate,
    invitations: Mutex<HashMap<String, Instant>>,
    arrivals: Mutex<HashMap<String, Arc<Arrival>>>,
    progress: Mutex<HashMap<String, Progress>>,
    stopping: AtomicBool,
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
    /// Why it failed.
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
            listen: config.migrate_on,
            host_boot_id: boot_id.trim().to_owned(),
            public_pool: config.public_pool,
            worker: random(),
            gate: Gate::default(),
            invitations: Mutex::default(),
            arrivals: Mutex::default(),
            progress: Mutex::default(),
            stopping: AtomicBool::new(false),
        })
    }

    /// Has guests that are being copied stay, because the daemon stops.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Makes an invitation for one guest: what the daemon that sends has to know.
    pub(crate) fn invite(&self) -> String {
        let token = random();
        let mut invitations = lock(&self.invitations);
        invitations.retain(|_, made| made.elapsed() < INVITATION);
        invitations.insert(token.clone(), Instant::now());
        format!("{}.{token}", self.account)
    }

    /// The invitation that a token is, if it is good.
    pub(crate) fn invitation(&self, token: &str) -> Option<String> {
        let mut invitations = lock(&self.invitations);
        invitations.retain(|_, made| made.elapsed() < INVITATION);
        let mut known = invitations.keys();
        known.find(|known| bool::from(known.as_bytes().ct_eq(token.as_bytes()))).cloned()
    }

    /// Begins to move an instance to the daemon whose endpoint and invitation these are; gives the migration's id.
    pub(crate) async fn begin(
        &self,
        instance_id: &str,
        address: &str,
        invitation: &str,
    ) -> Result<String, Error> {
        let Some((account, token)) = invitation.split_once('.') else {
            return Err(Error::Refused("the invitation cannot be read".into()));
        };
        if account == self.account {
            return Err(Error::Refused(format!("{instance_id} is at that daemon already")));
        }
        let to = Receiver { address: address.to_owned(), account: account.to_owned() };
        let id = haar_core::new_id("mig");
        let host_address = self.network.host_address();
        self.store
            .transact(|tx| {
                let found = tx.snapshot().list_all::<Instance>().find(|i| i.id == instance_id).cloned();
                let Some(found) = found else {
                    return Err(Error::Refused(format!("there is no instance {instance_id}")));
                };
                let (account, region) = (&found.account, &found.region);
                let moving = tx
                    .by_index::<Migration>(account, region, "instance", instance_id)
                    .any(|m| m.phase.is_leaving());
                if moving {
                    return Err(Error::Refused(format!("{instance_id} is moving already")));
                }
                // Relied on, so that no change goes by unseen.
                let instance = tx.get::<Instance>(account, region, instance_id);
                let Some(instance) = instance else { return Ok(()) };
                let bundle = bundle::collect(tx.snapshot(), &instance, host_address)?;
                tx.put(Migration {
                    account: account.clone(),
                    region: region.clone(),
                    id: id.clone(),
                    instance_id: instance_id.to_owned(),
                    vpc_id: instance.spec.vpc_id.clone(),
                    phase: MigrationPhase::Copying,
                    to: Some(to.clone()),
                    token: token.to_owned(),
                    worker: self.worker.clone(),
                    bundle,
                    lent: Vec::new(),
                    message: None,
                    bytes: 0,
                    downtime_ms: None,
                    started: OffsetDateTime::now_utc(),
                    ended: None,
                });
                Ok(())
            })
            .await?;
        Ok(id)
    }

    /// What is known of a migration, or of all.
    pub(crate) fn status(&self, id: Option<&str>) -> Vec<MigrationStatus> {
        let (snapshot, progress) = (self.store.snapshot(), lock(&self.progress).clone());
        let wanted = snapshot.list_all::<Migration>().filter(|m| id.is_none_or(|id| m.id == id));
        let tell = |m: &Entry<Migration>| MigrationStatus {
            id: m.id.clone(),
            instance_id: m.instance_id.clone(),
            phase: m.phase,
            to: m.to.as_ref().map(|to| to.address.clone()),
            message: m.message.clone(),
            progress: progress.get(&m.id).copied().unwrap_or_default(),
            bytes: m.bytes,
            downtime_ms: m.downtime_ms,
            duration_ms: u64::try_from(
                (m.ended.unwrap_or_else(OffsetDateTime::now_utc) - m.started).whole_milliseconds(),
            )
            .unwrap_or_default(),
        };
        wanted.map(tell).collect()
    }

    /// Takes back a guest that stands still because the daemon that receives does not say whether it has it. Whoever asks for this
    /// vouches that it does not, and never will.
    pub(crate) async fn take_back(&self, id: &str) -> Result<(), Error> {
        let found = self.store.snapshot().list_all::<Migration>().find(|m| m.id == id).cloned();
        match found {
            Some(migration) if migration.phase == MigrationPhase::HandingOver => {
                self.stay(&migration, "it was taken back by hand").await
            }
            Some(migration) => Err(Error::Refused(format!(
                "{id} is {}: only a guest that is being handed over can be taken back",
                migration.phase
            ))),
            None => Err(Error::Refused(format!("there is no migration {id}"))),
        }
    }

    /// Answers another daemon: the status and text of the answer.
    pub(crate) async fn answer(&self, what: &str, token: &str, body: &[u8]) -> (u16, Value) {
        let wrong = |status: u16, message: &str| (status, json!({ "message": message }));
        let answer = |result: Result<Value, String>| {
            (200, json!(Answer::<Value> { account: self.account.clone(), result }))
        };
        let result = match what {
            "offer" => {
                let Ok(offer) = serde_json::from_slice::<wire::Offer>(body) else {
                    return wrong(400, "the offer cannot be read");
                };
                let invitation = self.invitation(token);
                if invitation.is_none_or(|known| lock(&self.invitations).remove(&known).is_none()) {
                    let message = "the invitation is not one of this daemon, too old, or used already";
                    return answer(Err(message.into()));
                }
                self.take(offer, token).await.map(|taken| json!(taken))
            }
            "status" | "accept" | "abandon" => {
                let Ok(about) = serde_json::from_slice::<wire::About>(body) else {
                    return wrong(400, "the request cannot be read");
                };
                let known = self.store.snapshot().list_all::<Migration>().find(|m| m.id == about.id).cloned();
                let outcome = match known {
                    Some(known) if !bool::from(known.token.as_bytes().ct_eq(token.as_bytes())) => {
                        return wrong(403, "the token is missing or wrong");
                    }
                    Some(known) if known.to.is_none() => match what {
                        "status" => Ok(self.outcome(&known)),
                        "accept" => self.accept(&known, about.bundle).await,
                        _ => self.abandon(&known, GIVEN_UP).await,
                    },
                    _ => Ok(Outcome::Refused(GIVEN_UP.into())),
                };
                outcome.map(|outcome| json!(outcome))
            }
            _ => return wrong(404, "there is nothing here"),
        };
        match result {
            Ok(value) => answer(Ok(value)),
            Err(Error::Refused(why)) => answer(Err(why)),
            // Not a decision: it is to be asked again.
            Err(error) => wrong(500, &error.to_string()),
        }
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
        if !migration.lent.is_empty() {
            let about = wire::About { id: migration.id.clone(), bundle: None };
            let held = match Peer::of(migration)?.ask::<Outcome>("status", &about, PATIENCE).await {
                Ok(Outcome::Received(held)) => held,
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
        let left = migration.ended.unwrap_or(migration.started) + VISIBLE - OffsetDateTime::now_utc();
        let held = migration.phase == MigrationPhase::Received
            && matches!(self.outcome(migration), Outcome::Received(held) if !held.is_empty());
        if left.is_positive() || held {
            return Ok(Action::RequeueAfter(left.unsigned_abs().max(ASK_FOR_LENT)));
        }
        self.store
            .transact(|tx| {
                tx.delete::<Migration>(&migration.account, &migration.region, &migration.id);
                Ok::<_, Error>(())
            })
            .await?;
        lock(&self.progress).remove(&migration.id);
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
        before.phase != after.phase
    }

    async fn reconcile(&self, _: &Key, entry: Option<Entry<Migration>>) -> Result<Action, Error> {
        let Some(migration) = entry else { return Ok(Action::Done) };
        let ours = migration.worker == self.0.worker;
        match migration.phase {
            MigrationPhase::Copying if ours => self.0.send(&migration).await,
            MigrationPhase::Copying => {
                self.0.stay(&migration, "the daemon ended meanwhile").await?;
                Ok(Action::Done)
            }
            MigrationPhase::HandingOver => self.0.settle(&migration).await,
            MigrationPhase::HandedOver => self.0.clear(&migration).await,
            MigrationPhase::Receiving => self.0.watch_over(&migration).await,
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
