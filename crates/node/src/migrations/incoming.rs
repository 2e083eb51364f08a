//! The side that receives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use haar_core::reconcile::Action;
use haar_records::ec2::{
    Bundle, Instance, InstanceGoal, Migration, MigrationPhase, NetworkInterface, Volume, instance_type,
};
use haar_store::Tx;
use haar_vm::{RunState, Vm};
use time::OffsetDateTime;

use super::bundle::{self, Home};
use super::relay::{DISKS, MEMORY};
use super::server::Reception;
use super::wire::{Offer, OfferedDisk, OfferedImage, Outcome, Received, VERSION};
use super::{GIVEN_UP, Migrations, lock};
use crate::Error;

/// How long the daemon that sends may be silent until its guest is given up.
const SILENCE: Duration = Duration::from_secs(20);

/// How often is looked whether it is.
const LOOK: Duration = Duration::from_secs(2);

/// How long the rest of a guest may take that was sent whole.
const LAST_PART: Duration = Duration::from_secs(20);

/// How long a machine that receives may take to say why it cannot.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What is said when this daemon ends.
const STOPPING: &str = "the daemon that receives is being stopped";

/// A guest that is on its way here.
pub(super) struct Arrival {
    /// Held while it is decided whose the guest is.
    deciding: tokio::sync::Mutex<()>,
    heard: std::sync::Mutex<Instant>,
    vm: std::sync::Mutex<Option<Vm>>,
}

impl Arrival {
    fn new() -> Self {
        Self {
            deciding: tokio::sync::Mutex::default(),
            heard: std::sync::Mutex::new(Instant::now()),
            vm: std::sync::Mutex::default(),
        }
    }
}

impl Migrations {
    fn home(&self, same_host: bool) -> Home<'_> {
        Home {
            account: &self.account,
            public_pool: self.public_pool,
            same_host,
            host_boot_id: &self.host_boot_id,
        }
    }

    /// Says why an offer cannot be taken whatever records there are.
    fn check(&self, offer: &Offer) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::Refused(why));
        if offer.version != VERSION {
            return refuse(format!(
                "it speaks version {} of migrations, this daemon {VERSION}",
                offer.version
            ));
        }
        if offer.accelerator != self.qemu.accelerator() {
            let (there, here) = (&offer.accelerator, self.qemu.accelerator());
            return refuse(format!(
                "the guest runs under {there}, guests of the receiving daemon under {here}"
            ));
        }
        if !haar_core::is_id("mig", &offer.id) {
            return refuse("the migration's id is malformed".into());
        }
        let spec = &offer.bundle.instance.spec;
        if instance_type(&spec.instance_type).is_none() {
            return refuse(format!("the receiving daemon knows no {}", spec.instance_type));
        }
        self.qemu.vms.socket(&offer.bundle.instance.id, MEMORY)?;
        Ok(())
    }

    /// Takes an offer: makes disks, links and a machine that waits for the guest.
    pub(super) async fn take(
        &self,
        offer: Offer,
        token: &str,
        reception: &dyn Reception,
    ) -> Result<(), Error> {
        self.check(&offer)?;
        let image = match &offer.image {
            Some(image) => Some(self.image(image).await?),
            None => None,
        };
        let arrival = Arc::new(Arrival::new());
        let migration = self.make_records(&offer, token, reception, &arrival).await;
        let migration = migration.inspect_err(|_| self.forget_arrival(&offer.id))?;
        let made = {
            let _deciding = arrival.deciding.lock().await;
            let made = self.make_ready(&migration, &offer, image.as_ref(), &arrival).await;
            *lock(&arrival.heard) = Instant::now();
            made
        };
        if let Err(error) = made {
            self.abandon(&migration, &error.to_string()).await?;
            return Err(Error::Refused(error.to_string()));
        }
        Ok(())
    }

    /// Makes the record of a guest that is on its way here, and all claims of it.
    async fn make_records(
        &self,
        offer: &Offer,
        token: &str,
        reception: &dyn Reception,
        arrival: &Arc<Arrival>,
    ) -> Result<Migration, Error> {
        let same_host = offer.host_boot_id == self.host_boot_id;
        let region = &offer.bundle.instance.region;
        self.store
            .transact(|tx| {
                if self.stopping.is_cancelled() {
                    return Err(Error::Refused(STOPPING.into()));
                }
                reception.prepare(tx, region).map_err(Error::Refused)?;
                let fitted = bundle::fit_in(tx, &offer.bundle, &self.home(same_host), |tx, _| {
                    reception.encryption(tx, region).map_err(Error::Refused)
                })?;
                let instance = &fitted.instance;
                let account = &instance.account;
                let moving = tx
                    .by_index::<Migration>(account, region, "instance", &instance.id)
                    .any(|m| m.phase.holds_records());
                if moving || tx.get::<Migration>(account, region, &offer.id).is_some() {
                    return Err(Error::Refused(format!("{} is moving there already", instance.id)));
                }
                reception.make_room(tx, instance).map_err(Error::Refused)?;
                bundle::claim(tx, &fitted);
                let migration = Migration::new(&offer.id, None, token, &self.worker, fitted);
                tx.put(migration.clone());
                // Before the reconciler sees it.
                lock(&self.arrivals).insert(offer.id.clone(), arrival.clone());
                Ok(migration)
            })
            .await
    }

    async fn image(&self, wanted: &OfferedImage) -> Result<haar_image::Image, Error> {
        let id = &wanted.id;
        match self.qemu.library_image(id).await {
            Ok(image) if image.manifest.files().map(|file| &file.sha256).eq(&wanted.files) => Ok(image),
            Ok(_) => Err(Error::Refused(format!("the receiving daemon's image {id} has other content"))),
            Err(error) => Err(Error::Refused(format!(
                "the receiving daemon cannot use the image {id} ({error}); copy its folder from images/ in the state folder"
            ))),
        }
    }

    async fn make_ready(
        &self,
        migration: &Migration,
        offer: &Offer,
        image: Option<&haar_image::Image>,
        arrival: &Arrival,
    ) -> Result<(), Error> {
        let bundle = &migration.bundle;
        for volume in &bundle.volumes {
            let offered = offer.disks.iter().find(|disk| disk.id == volume.id);
            let OfferedDisk { bytes, sync, .. } =
                offered.ok_or_else(|| Error::Refused(format!("the disk of {} is not offered", volume.id)))?;
            self.qemu.make_arriving_disk(volume, *bytes, *sync, image).await?;
        }
        self.network.sync(&migration.account, &migration.region, &migration.vpc_id).await?;
        let vm = self.qemu.receive(bundle, &offer.layout, &offer.console).await?;
        let (disks, memory) = (vm.socket(DISKS)?, vm.socket(MEMORY)?);
        vm.export_disks(&disks).await?;
        vm.listen(&memory).await?;
        *lock(&arrival.vm) = Some(vm);
        self.gate.open(&migration.id, &migration.token, [(DISKS, disks), (MEMORY, memory)]);
        Ok(())
    }

    /// What is told of a migration that came here.
    pub(super) fn outcome(&self, migration: &Migration) -> Outcome {
        match migration.phase {
            MigrationPhase::Received => return Outcome::Received(self.received(migration)),
            MigrationPhase::GivingUp => {
                return Outcome::Refused(migration.message.clone().unwrap_or_else(|| GIVEN_UP.into()));
            }
            _ => {}
        }
        if let Some(arrival) = lock(&self.arrivals).get(&migration.id) {
            *lock(&arrival.heard) = Instant::now();
        }
        Outcome::Receiving
    }

    /// What has become of a guest that came here: also the public addresses of other pools that came with it and are still in use.
    fn received(&self, migration: &Migration) -> Received {
        let snapshot = self.store.snapshot();
        let instance =
            snapshot.get::<Instance>(&migration.account, &migration.region, &migration.instance_id);
        let terminated = instance.is_some_and(|instance| instance.spec.goal == InstanceGoal::Terminated);
        let public = |i: &NetworkInterface| i.public_address.clone();
        let addresses = migration.bundle.interfaces.iter().filter_map(public);
        let foreign = addresses.filter(|address| address.foreign_host.is_some()).map(|address| address.ip);
        let borrowed = foreign.filter(|ip| bundle::holds(&snapshot, migration, *ip)).collect();
        Received { borrowed, terminated }
    }

    /// Decides whose a guest is that was sent whole: it is this daemon's from the transaction on that says so.
    pub(super) async fn accept(
        &self,
        seen: &Migration,
        bundle: Option<Bundle>,
        reception: &dyn Reception,
    ) -> Result<Outcome, Error> {
        let arrival = lock(&self.arrivals).get(&seen.id).cloned();
        let Some(arrival) = arrival else { return Ok(self.outcome(seen)) };
        let _deciding = arrival.deciding.lock().await;
        let now = self.store.snapshot().get::<Migration>(&seen.account, &seen.region, &seen.id);
        let Some(now) = now else { return Ok(gone()) };
        if now.phase != MigrationPhase::Receiving {
            return Ok(self.outcome(&now));
        }
        let Some(bundle) = bundle else { return Ok(Outcome::Receiving) };
        let vm = match self.whole(&arrival).await? {
            Ok(vm) => vm,
            Err(why) => return self.give_up(&now, &why).await,
        };
        // Before the guest speaks: what it says is part of them.
        self.network.track(&now.vpc_id, &bundle.connections).await;
        let received = match self.receive(&now, &bundle, reception).await {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(gone()),
            Err(Error::Refused(why)) => return self.give_up(&now, &why).await,
            Err(error) => return Err(error),
        };
        // Whatever happens now happens to this daemon's own instance, and is mended as it is for every other.
        let (resumed, synced) = tokio::join!(
            vm.resume(),
            self.network.sync(&received.account, &received.region, &received.vpc_id)
        );
        for error in [resumed.err().map(Error::from), synced.err()].into_iter().flatten() {
            tracing::warn!(migration = received.id, %error, "the guest that was taken over does not run yet");
        }
        self.forget_arrival(&received.id);
        tracing::info!(migration = received.id, instance = received.instance_id, "the guest was taken over");
        Ok(self.outcome(&received))
    }

    /// The machine that has the whole guest, or what is missing.
    async fn whole(&self, arrival: &Arrival) -> Result<Result<Vm, String>, Error> {
        let vm = lock(&arrival.vm).clone();
        let Some(vm) = vm else { return Ok(Err("its machine is gone".into())) };
        // One that is gone says so next.
        vm.end_exports().await.ok();
        Ok(match vm.arrival(LAST_PART).await? {
            haar_vm::Arrival::Complete => Ok(vm),
            arrived => Err(format!("the guest did not arrive whole: {arrived:?}")),
        })
    }

    /// The decision: from here on the guest is this daemon's, if what it was promised when it was offered still holds.
    async fn receive(
        &self,
        now: &Migration,
        bundle: &Bundle,
        reception: &dyn Reception,
    ) -> Result<Option<Migration>, Error> {
        let same_host = self.came_from_here(now);
        self.enter(now, |tx, migration| {
            migration.bundle = fit_again(tx, migration, bundle, &self.home(same_host))?;
            migration.bundle.connections.clear();
            migration.phase = MigrationPhase::Received;
            migration.settled = false;
            migration.ended = Some(OffsetDateTime::now_utc());
            // The room that it has is counted neither as that of a guest on its way nor, yet, as an instance's.
            tx.put(migration.clone());
            reception.make_room(tx, &migration.bundle.instance).map_err(Error::Refused)?;
            bundle::put(tx, &migration.bundle);
            Ok(())
        })
        .await
    }

    /// Whether a guest's public address was taken over from this very host: then it may be so again.
    fn came_from_here(&self, migration: &Migration) -> bool {
        let interfaces = &migration.bundle.interfaces;
        interfaces
            .iter()
            .filter_map(|i| i.public_address.as_ref())
            .any(|public| public.foreign_host.is_some())
    }

    /// Gives up a guest that is on its way here; it can never be taken over from then on.
    pub(super) async fn abandon(&self, seen: &Migration, why: &str) -> Result<Outcome, Error> {
        let arrival = lock(&self.arrivals).get(&seen.id).cloned();
        let Some(arrival) = arrival else { return Ok(self.outcome(seen)) };
        let _deciding = arrival.deciding.lock().await;
        let vm = lock(&arrival.vm).clone();
        let ended = match vm {
            // It may be about to say why.
            Some(vm) => match vm.arrival(LAST_WORDS).await {
                Ok(haar_vm::Arrival::Failed(why)) => Some(format!("the receiving machine ended: {why}")),
                _ => None,
            },
            None => None,
        };
        self.give_up(seen, ended.as_deref().unwrap_or(why)).await
    }

    /// Gives up a guest that is on its way here, and removes what was made for it.
    async fn give_up(&self, seen: &Migration, why: &str) -> Result<Outcome, Error> {
        let given_up = self.enter(seen, |_, migration| {
            give_up(migration, why);
            Ok(())
        });
        let Some(given_up) = given_up.await? else {
            let now = self.store.snapshot().get::<Migration>(&seen.account, &seen.region, &seen.id);
            return Ok(now.map_or_else(gone, |now| self.outcome(&now)));
        };
        tracing::info!(migration = seen.id, instance = seen.instance_id, why, "the guest is not taken over");
        self.forget_arrival(&seen.id);
        if let Err(error) = self.clear_away(&given_up).await {
            tracing::warn!(migration = seen.id, %error, "cannot remove what was made for the guest; it is tried again");
        }
        Ok(self.outcome(&given_up))
    }

    /// Removes what was made for a guest that was given up, then its record: until then none of its name can come.
    pub(super) async fn clear_away(&self, migration: &Migration) -> Result<Action, Error> {
        // Who comes second finds nothing to do, and does not remove what came after.
        let _clearing = self.clearing.lock().await;
        let (account, region, id) = (&migration.account, &migration.region, &migration.id);
        if self.store.snapshot().get::<Migration>(account, region, id).is_none() {
            return Ok(Action::Done);
        }
        self.qemu.clear(&migration.bundle).await?;
        self.network.sync(account, region, &migration.vpc_id).await?;
        self.store
            .transact(|tx| {
                drop_record(tx, migration);
                Ok::<_, Error>(())
            })
            .await?;
        Ok(Action::Done)
    }

    /// Gives up all guests that are on their way here. What is being decided is waited for.
    pub(super) async fn give_up_all(&self) {
        let snapshot = self.store.snapshot();
        let receiving = snapshot.list_all::<Migration>().filter(|m| m.phase == MigrationPhase::Receiving);
        for migration in receiving {
            if let Err(error) = self.abandon(migration, STOPPING).await {
                tracing::warn!(migration = migration.id, %error, "cannot give up the guest that was arriving");
            }
        }
    }

    /// The daemon that sends knows that the guest is here. It may have had it as well until now, and its addresses.
    pub(super) async fn settled(&self, known: &Migration) -> Result<Outcome, Error> {
        if known.phase == MigrationPhase::Received && !known.settled {
            self.network.take_over_again(&known.account, &known.region, &known.vpc_id).await?;
            self.enter(known, |_, migration| {
                migration.settled = true;
                Ok(())
            })
            .await?;
        }
        Ok(self.outcome(known))
    }

    fn forget_arrival(&self, id: &str) {
        self.gate.close(id);
        lock(&self.arrivals).remove(id);
    }

    /// Gives up a guest whose daemon is silent, or whose machine has ended.
    pub(super) async fn watch_over(&self, migration: &Migration) -> Result<Action, Error> {
        let arrival = lock(&self.arrivals).get(&migration.id).cloned();
        let Some(arrival) = arrival else {
            // Of an earlier daemon: the way of its bytes ended with it.
            return Ok(Action::Done);
        };
        let silent = lock(&arrival.heard).elapsed() >= SILENCE;
        let ended = lock(&arrival.vm).as_ref().is_some_and(|vm| matches!(vm.state(), RunState::Exited(_)));
        // While it is being decided, nothing is watched.
        if (silent || ended) && arrival.deciding.try_lock().is_ok() {
            let why = if silent { "the daemon that sends is silent" } else { "the machine ended" };
            self.abandon(migration, why).await?;
            return Ok(Action::Done);
        }
        Ok(Action::RequeueAfter(LOOK))
    }

    /// Gives up what an earlier daemon was receiving: the way of its bytes ended with it.
    pub(crate) async fn give_up_stale(&self) -> Result<(), Error> {
        self.store
            .transact(|tx| {
                let all = tx.snapshot().list_all::<Migration>();
                let receiving =
                    all.filter(|m| m.phase == MigrationPhase::Receiving && m.worker != self.worker);
                for stale in receiving.cloned().collect::<Vec<_>>() {
                    tracing::info!(migration = stale.id, "the guest that was arriving is given up");
                    let mut migration = Migration::clone(&stale);
                    give_up(&mut migration, GIVEN_UP);
                    tx.put(migration);
                }
                Ok(())
            })
            .await
    }
}

/// The bundle as it was handed over, fitted in where the one that was offered has made room.
fn fit_again(tx: &mut Tx, migration: &Migration, bundle: &Bundle, home: &Home<'_>) -> Result<Bundle, Error> {
    let same_key = |_: &mut Tx, volume: &Volume| {
        let made = migration.bundle.volumes.iter().find(|made| made.id == volume.id);
        made.and_then(|made| made.encryption.clone())
            .ok_or_else(|| Error::Refused(format!("{} was not encrypted when it was offered", volume.id)))
    };
    let fitted = bundle::fit_in(tx, bundle, home, same_key)?;
    let ids = |bundle: &Bundle| {
        let volumes = bundle.volumes.iter().map(|volume| volume.id.clone());
        let interfaces = bundle.interfaces.iter().map(|i| format!("{} {}", i.id, i.private_ip));
        volumes.chain(interfaces).chain([bundle.instance.id.clone()]).collect::<Vec<_>>()
    };
    if ids(&fitted) == ids(&migration.bundle) {
        Ok(fitted)
    } else {
        Err(Error::Refused("another guest was handed over than was offered".into()))
    }
}

/// The other decision: the guest will never be this daemon's.
fn give_up(migration: &mut Migration, why: &str) {
    migration.phase = MigrationPhase::GivingUp;
    migration.message = Some(why.to_owned());
    migration.ended = Some(OffsetDateTime::now_utc());
}

fn drop_record(tx: &mut Tx, migration: &Migration) {
    // Of an address that this daemon has lent, the claim stays.
    let lent = tx.snapshot().list::<Migration>(&migration.account, &migration.region);
    let lent: Vec<_> = lent.flat_map(|m| m.lent.iter().copied()).collect();
    bundle::release(tx, &migration.bundle, &lent);
    tx.delete::<Migration>(&migration.account, &migration.region, &migration.id);
}

fn gone() -> Outcome {
    Outcome::Refused(GIVEN_UP.into())
}
