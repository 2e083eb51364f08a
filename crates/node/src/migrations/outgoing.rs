//! The side that sends.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use haar_core::reconcile::Action;
use haar_records::ec2::{Bundle, Instance, Migration, MigrationPhase};
use haar_vm::{RunState, Sending, Sync, Vm};
use time::OffsetDateTime;

use super::relay::{DISKS, MEMORY, Way};
use super::wire::{About, Offer, OfferedDisk, OfferedImage, Outcome, Peer, Taken, VERSION};
use super::{ASK_AGAIN, GIVEN_UP, Migrations, PATIENCE, Progress, bundle, lock};
use crate::Error;

/// How long the other daemon may take to make disks and start a machine.
const TAKE: Duration = Duration::from_secs(120);

/// How long it may take to decide: the rest of the guest has to arrive.
const DECIDE: Duration = Duration::from_secs(60);

/// How often is looked how far disks and memory are.
const LOOK: Duration = Duration::from_millis(20);

/// How often is looked when the guest may stand still any moment.
const LOOK_CLOSELY: Duration = Duration::from_millis(3);

/// How often the other daemon is told that this one is there.
const TELL: Duration = Duration::from_secs(3);

/// How much of the console's log moves.
const CONSOLE: u64 = 32 << 10;

impl Migrations {
    /// Copies a guest, has it handed over, and learns what became of it.
    pub(super) async fn send(&self, migration: &Migration) -> Result<Action, Error> {
        let begin = Instant::now();
        let (vm, ways, paused) = match self.copy(migration).await {
            Ok(copied) => copied,
            Err(error) => {
                self.stay(migration, &error.to_string()).await?;
                return Ok(Action::Done);
            }
        };
        tracing::info!(migration = migration.id, after = ?begin.elapsed(), "the guest stands still to be handed over");
        let Some(handing) = self.hand_over(migration).await? else { return Ok(Action::Done) };
        // What comes of it is found out below in any case.
        if let Err(error) = vm.switch_over().await {
            tracing::warn!(migration = migration.id, %error, "the guest was not sent whole");
        }
        let bytes = ways.iter().map(Way::sent).sum();
        let action = self.decide(&handing, Some((paused, bytes))).await;
        // Not before: what QEMU has sent may still be on its way.
        drop(ways);
        action
    }

    /// Copies disks and memory until the guest stands still and only the last of its memory is left. Gives the ways that this takes.
    async fn copy(&self, migration: &Migration) -> Result<(Vm, [Way; 2], Instant), Error> {
        let (instance, peer) = (&migration.bundle.instance, Peer::of(migration)?);
        let vm = self.qemu.machine(&instance.id).await?;
        let vm = vm.ok_or_else(|| Error::Refused(format!("{} has no machine", instance.id)))?;
        let offer = self.offer(migration, &vm).await?;
        let syncs: Vec<(String, Sync)> =
            offer.disks.iter().map(|disk| (disk.id.clone(), disk.sync)).collect();
        let taken: Taken = peer.ask("offer", &offer, TAKE).await?;

        let way = |channel: &str| {
            let line = format!("{} {} {channel}\n", migration.id, migration.token);
            Way::open(&vm.socket(channel)?, (peer.host().to_owned(), taken.port), line)
        };
        let ways = [way(DISKS)?, way(MEMORY)?];
        for (disk, sync) in &syncs {
            vm.mirror(disk, &vm.socket(DISKS)?, *sync).await?;
        }
        let mut told = Instant::now();
        while !self.look(migration, &vm, &mut told).await?.0 {
            tokio::time::sleep(LOOK).await;
        }
        // From now on it may stand still any moment, and is not to be let run by anybody else.
        vm.hold();
        vm.send(&vm.socket(MEMORY)?).await?;
        loop {
            let (_, sending) = self.look(migration, &vm, &mut told).await?;
            match sending {
                Sending::Waiting => break,
                Sending::Failed(why) => return Err(Error::Refused(why)),
                _ => tokio::time::sleep(LOOK_CLOSELY).await,
            }
        }
        let paused = Instant::now();
        vm.end_mirrors().await?;
        Ok((vm, ways, paused))
    }

    async fn offer(&self, migration: &Migration, vm: &Vm) -> Result<Offer, Error> {
        let instance = &migration.bundle.instance;
        // Where it boots by firmware and its disks stand on nothing of the library, it needs no image.
        let id = instance.spec.library_id.as_deref().unwrap_or(&instance.spec.image_id);
        let image = self.qemu.library_image(id).await.ok();
        let mut disks = Vec::new();
        for volume in &migration.bundle.volumes {
            let info = self.qemu.volumes.info(&volume.id)?;
            let info = info.ok_or_else(|| Error::Inconsistent(format!("{} has no disk", volume.id)))?;
            let base = image.as_ref().map(haar_image::Image::root_disk);
            let on_image = base.is_some() && info.backing == base;
            let sync = if on_image { Sync::Top } else { Sync::Full };
            disks.push(OfferedDisk { id: volume.id.clone(), bytes: info.size, sync });
        }
        let needed =
            instance.spec.kernel_image().is_some() || disks.iter().any(|disk| disk.sync == Sync::Top);
        let files = |image: haar_image::Image| {
            let files = image.manifest.files().map(|file| file.sha256.clone()).collect();
            OfferedImage { id: id.to_owned(), files }
        };
        let console = self.qemu.console_dir.join(format!("{}.log", instance.id));
        let console = haar_vm::console::tail(&console, CONSOLE).unwrap_or_default();
        Ok(Offer {
            version: VERSION,
            id: migration.id.clone(),
            bundle: migration.bundle.clone(),
            accelerator: self.qemu.accelerator(),
            host_boot_id: self.host_boot_id.clone(),
            layout: vm.layout().await?,
            disks,
            image: image.filter(|_| needed).map(files),
            console: String::from_utf8_lossy(&console).into_owned(),
        })
    }

    /// Looks how far it is, and whether it may go on. Says whether the disks are copied, and what goes on with the memory.
    async fn look(
        &self,
        migration: &Migration,
        vm: &Vm,
        told: &mut Instant,
    ) -> Result<(bool, Sending), Error> {
        match vm.state() {
            RunState::Running => {}
            // So it is when little is left to be sent.
            RunState::Paused if vm.is_held() => {}
            state => return Err(Error::Refused(format!("the guest does not run any more: {state:?}"))),
        }
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Error::Refused("the daemon is being stopped".into()));
        }
        self.collect_again(&self.store.snapshot(), &migration.bundle)?;
        let (mirrors, transfer) = (vm.mirrors().await?, vm.transfer().await?);
        if let Some((disk, error)) = mirrors.iter().find_map(|m| Some((&m.disk, m.error.as_ref()?))) {
            return Err(Error::Refused(format!("{disk} could not be copied: {error}")));
        }
        let progress = Progress {
            disks_copied: mirrors.iter().map(|m| m.copied).sum(),
            disks_total: mirrors.iter().map(|m| m.total).sum(),
            memory_sent: transfer.sent,
            memory_remaining: transfer.remaining,
        };
        lock(&self.progress).insert(migration.id.clone(), progress);
        if told.elapsed() >= TELL && transfer.sending != Sending::Waiting {
            let about = About { id: migration.id.clone(), bundle: None };
            match Peer::of(migration)?.ask::<Outcome>("status", &about, PATIENCE).await? {
                Outcome::Receiving => *told = Instant::now(),
                Outcome::Received(_) => {
                    return Err(Error::Inconsistent("it was received before it was sent".into()));
                }
                Outcome::Refused(why) => return Err(Error::Refused(why)),
            }
        }
        Ok((mirrors.iter().all(|mirror| mirror.ready), transfer.sending))
    }

    /// What would be handed over now, unless it is no more what was offered.
    fn collect_again(&self, snapshot: &haar_store::Snapshot, offered: &Bundle) -> Result<Bundle, Error> {
        let was = &offered.instance;
        let now = snapshot.get::<Instance>(&was.account, &was.region, &was.id);
        let now = now.ok_or_else(|| Error::Refused(format!("{} is no more", was.id)))?;
        let now = bundle::collect(snapshot, &now, self.network.host_address())?;
        match bundle::changed(offered, &now) {
            Some(why) => Err(Error::Refused(why)),
            None => Ok(now),
        }
    }

    /// Moves the records of a guest that stands still into the migration: from here on it is not to run here until the other daemon
    /// has refused it. None if it stays, for it has been changed meanwhile.
    async fn hand_over(&self, migration: &Migration) -> Result<Option<Migration>, Error> {
        let connections = self.network.connections(&migration.bundle.interfaces).await;
        let handed = self.enter(migration, |tx, migration| {
            migration.bundle = self.collect_again(tx.snapshot(), &migration.bundle)?;
            migration.bundle.connections.clone_from(&connections);
            bundle::remove(tx, &migration.bundle);
            migration.phase = MigrationPhase::HandingOver;
            Ok(())
        });
        match handed.await {
            Ok(handed) => Ok(handed),
            Err(Error::Refused(why)) => {
                self.stay(migration, &why).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Finds out whose a guest is that was being handed over when this was cut off.
    pub(super) async fn settle(&self, migration: &Migration) -> Result<Action, Error> {
        self.decide(migration, None).await
    }

    async fn decide(&self, migration: &Migration, sent: Option<(Instant, u64)>) -> Result<Action, Error> {
        let vm = self.qemu.machine(&migration.instance_id).await?;
        if let Some(vm) = vm.filter(|vm| !matches!(vm.state(), RunState::Exited(_))) {
            vm.hold();
            // Only what was sent whole can have been taken over. What was not is broken off, so that it never will be.
            let sending = match vm.transfer().await?.sending {
                Sending::Active | Sending::Waiting => vm.break_off().await?,
                sending => sending,
            };
            if sending != Sending::Completed {
                let why = match sending {
                    Sending::Failed(why) => why,
                    _ => "the guest was not sent whole".to_owned(),
                };
                self.stay(migration, &why).await?;
                return Ok(Action::Done);
            }
        }
        let about = About { id: migration.id.clone(), bundle: Some(migration.bundle.clone()) };
        match Peer::of(migration)?.ask::<Outcome>("accept", &about, DECIDE).await {
            Ok(Outcome::Received(lent)) => {
                let downtime = sent.map(|(paused, _)| paused.elapsed());
                let handed = self.enter(migration, |_, migration| {
                    migration.phase = MigrationPhase::HandedOver;
                    migration.lent.clone_from(&lent);
                    migration.bytes = sent.map_or(0, |(_, bytes)| bytes);
                    migration.downtime_ms = downtime.and_then(|d| u64::try_from(d.as_millis()).ok());
                    Ok(())
                });
                match handed.await? {
                    Some(handed) => self.clear(&handed).await,
                    None => Ok(Action::Done),
                }
            }
            Ok(Outcome::Refused(why)) | Err(Error::Refused(why)) => {
                self.stay(migration, &why).await?;
                Ok(Action::Done)
            }
            Ok(Outcome::Receiving) => Ok(Action::RequeueAfter(ASK_AGAIN)),
            Err(error) => {
                tracing::warn!(migration = migration.id, instance = migration.instance_id, %error,
                    "the guest stands still until the daemon that receives says whether it has it");
                Ok(Action::RequeueAfter(ASK_AGAIN))
            }
        }
    }

    /// Ends a migration whose guest stays here.
    pub(super) async fn stay(&self, migration: &Migration, why: &str) -> Result<(), Error> {
        let vm = self.qemu.machine(&migration.instance_id).await?;
        let vm = vm.filter(|vm| !matches!(vm.state(), RunState::Exited(_)));
        if let Some(vm) = &vm {
            tolerate_gone(vm.break_off().await.map(drop))?;
        }
        let mut why = why.to_owned();
        let copying = migration.phase == MigrationPhase::Copying;
        if copying {
            self.run_on(vm.as_ref()).await?;
            // It may know better what was wrong. If it does not hear this, it gives up by itself what it hears no more of.
            let about = About { id: migration.id.clone(), bundle: None };
            let told = Peer::of(migration)?.ask::<Outcome>("abandon", &about, PATIENCE).await;
            if let Ok(Outcome::Refused(there)) = told
                && there != GIVEN_UP
            {
                why = format!("{why} ({there})");
            }
        }
        tracing::warn!(migration = migration.id, instance = migration.instance_id, why, "the guest stays");
        self.enter(migration, |tx, migration| {
            if migration.phase == MigrationPhase::HandingOver {
                bundle::put(tx, &migration.bundle);
            }
            migration.phase = MigrationPhase::Failed;
            migration.message = Some(why.clone());
            migration.ended = Some(OffsetDateTime::now_utc());
            Ok(())
        })
        .await?;
        if !copying {
            self.run_on(vm.as_ref()).await?;
            let about = About { id: migration.id.clone(), bundle: None };
            let _ = Peer::of(migration)?.ask::<Outcome>("abandon", &about, PATIENCE).await;
        }
        Ok(())
    }

    /// Lets a guest run on that stays here.
    async fn run_on(&self, vm: Option<&Vm>) -> Result<(), Error> {
        let Some(vm) = vm else { return Ok(()) };
        vm.release();
        if vm.state() == RunState::Paused {
            tolerate_gone(vm.resume().await)?;
        }
        for channel in [DISKS, MEMORY] {
            remove(&vm.socket(channel)?);
        }
        Ok(())
    }

    /// Removes what is left of a guest that was handed over.
    pub(super) async fn clear(&self, migration: &Migration) -> Result<Action, Error> {
        self.qemu.clear(&migration.bundle).await?;
        self.enter(migration, |tx, migration| {
            bundle::release(tx, &migration.bundle, &migration.lent);
            migration.phase = MigrationPhase::Completed;
            migration.ended = Some(OffsetDateTime::now_utc());
            Ok(())
        })
        .await?;
        self.network.sync(&migration.account, &migration.region, &migration.vpc_id).await?;
        tracing::info!(
            migration = migration.id,
            instance = migration.instance_id,
            "the guest was handed over"
        );
        Ok(Action::Done)
    }
}

fn tolerate_gone(result: Result<(), haar_vm::Error>) -> Result<(), Error> {
    match result {
        Err(haar_vm::Error::Gone) => Ok(()),
        other => Ok(other?),
    }
}

/// What is left of a socket goes with the machine's folder at the latest.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}
