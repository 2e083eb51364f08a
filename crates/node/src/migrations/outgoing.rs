//! The side that sends.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use haar_core::reconcile::Action;
use haar_records::ec2::{Bundle, Instance, Migration, MigrationPhase, instance_type};
use haar_vm::{RunState, Sending, Sync, Vm};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::course::Course;
use super::relay::{DISKS, MEMORY, Way};
use super::wire::{About, CONNECTIONS_LIMIT, Offer, OfferedDisk, OfferedImage, Outcome, Peer, VERSION};
use super::{ASK_AGAIN, GIVEN_UP, Migrations, PATIENCE, Progress, bundle};
use crate::Error;

/// How long the other daemon may take to make disks and start a machine.
const TAKE: Duration = Duration::from_secs(120);

/// How long it may take to decide, until it is asked again: the rest of the guest has to arrive.
const DECIDE: Duration = Duration::from_secs(30);

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
        let begun = Instant::now();
        let (vm, ways, paused) = match self.copy(migration, begun).await {
            Ok(copied) => copied,
            Err(error) => {
                self.stay(migration, &error.to_string(), false).await?;
                return Ok(Action::Done);
            }
        };
        tracing::info!(migration = migration.id, after = ?begun.elapsed(), "the guest stands still to be handed over");
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
    async fn copy(&self, migration: &Migration, begun: Instant) -> Result<(Vm, [Way; 2], Instant), Error> {
        let instance = &migration.bundle.instance;
        let vm = self.qemu.machine(&instance.id).await?;
        let vm = vm.ok_or_else(|| Error::Refused(format!("{} has no machine", instance.id)))?;
        let offer = self.offer(migration, &vm).await?;
        self.ask::<()>(migration, "offer", &offer, TAKE).await?;

        let ways = [self.way(migration, &vm, DISKS)?, self.way(migration, &vm, MEMORY)?];
        match self.go(migration, &vm, &offer, begun).await {
            Ok(paused) => Ok((vm, ways, paused)),
            Err(error) => Err(match ways.iter().find_map(Way::trouble) {
                Some(trouble) => Error::Refused(format!(
                    "the connection to the other daemon was lost: {trouble} ({error})"
                )),
                None => error,
            }),
        }
    }

    /// Has QEMU copy disks and memory, until the guest stands still; gives since when it does.
    async fn go(
        &self,
        migration: &Migration,
        vm: &Vm,
        offer: &Offer,
        begun: Instant,
    ) -> Result<Instant, Error> {
        for disk in &offer.disks {
            vm.mirror(&disk.id, &vm.socket(DISKS)?, disk.sync).await?;
        }
        let timeout = self.note(&migration.id, |known| known.timeout);
        let course = Course::new(begun, size(offer), timeout);
        let mut watch = Watch { told: Instant::now(), course };
        while !self.look(migration, vm, &mut watch).await?.0 {
            tokio::time::sleep(LOOK).await;
        }
        // From now on it may stand still any moment, and is not to be let run by anybody else.
        vm.hold();
        vm.send(&vm.socket(MEMORY)?).await?;
        loop {
            let (_, sending) = self.look(migration, vm, &mut watch).await?;
            match sending {
                Sending::Waiting => break,
                Sending::Failed(why) => return Err(Error::Refused(why)),
                _ => tokio::time::sleep(LOOK_CLOSELY).await,
            }
        }
        let paused = Instant::now();
        vm.end_mirrors().await?;
        Ok(paused)
    }

    fn way(&self, migration: &Migration, vm: &Vm, channel: &str) -> Result<Way, Error> {
        let to = migration.to.clone();
        let to = to.ok_or_else(|| Error::Inconsistent(format!("{} leads nowhere", migration.id)))?;
        let line = format!("{} {} {channel}\n", migration.id, migration.token);
        Way::open(&vm.socket(channel)?, to, line)
    }

    /// Asks the other daemon while the guest is being copied: it is not waited for any more when the guest is to stay.
    async fn ask<T: DeserializeOwned>(
        &self,
        migration: &Migration,
        what: &str,
        about: &impl Serialize,
        patience: Duration,
    ) -> Result<T, Error> {
        let cancelled = self.note(&migration.id, |known| known.cancelled.clone());
        let answer = tokio::select! {
            answer = Peer::of(migration)?.ask(what, about, patience) => Some(answer),
            () = cancelled.cancelled() => None,
            () = self.stopping.cancelled() => None,
        };
        match answer {
            Some(answer) => answer,
            None => Err(Error::Refused(self.is_to_stay(&migration.id).unwrap_or_default().into())),
        }
    }

    /// Why a guest that is being copied is to stay, if somebody has asked for it.
    fn is_to_stay(&self, id: &str) -> Option<&'static str> {
        if self.stopping.is_cancelled() {
            return Some("the daemon is being stopped");
        }
        let cancelled = self.note(id, |known| known.cancelled.is_cancelled());
        cancelled.then_some("it was cancelled")
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
        watch: &mut Watch,
    ) -> Result<(bool, Sending), Error> {
        match vm.state() {
            RunState::Running => {}
            // So it is when little is left to be sent.
            RunState::Paused if vm.is_held() => {}
            state => return Err(Error::Refused(format!("the guest does not run any more: {state:?}"))),
        }
        if let Some(why) = self.is_to_stay(&migration.id) {
            return Err(Error::Refused(why.into()));
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
            memory_rounds: transfer.rounds,
            throttled_percent: transfer.throttled_percent,
        };
        self.note(&migration.id, |known| known.progress = progress);
        let done = progress.disks_copied + progress.memory_sent;
        let left = progress.disks_total.saturating_sub(progress.disks_copied) + progress.memory_remaining;
        if transfer.sending != Sending::Waiting
            && let Some(why) = watch.course.end(Instant::now(), done, left)
        {
            return Err(Error::Refused(why));
        }
        if watch.told.elapsed() >= TELL && transfer.sending != Sending::Waiting {
            match self.ask(migration, "status", &About::of(migration), PATIENCE).await? {
                Outcome::Receiving => watch.told = Instant::now(),
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
        let mut connections = self.network.connections(&migration.bundle.interfaces).await;
        if connections.len() > CONNECTIONS_LIMIT {
            tracing::warn!(migration = migration.id, "the guest has too many connections for all to be kept");
            connections.clear();
        }
        let handed = self.enter(migration, |tx, migration| {
            if let Some(why) = self.is_to_stay(&migration.id) {
                return Err(Error::Refused(why.into()));
            }
            migration.bundle = self.collect_again(tx.snapshot(), &migration.bundle)?;
            migration.bundle.connections.clone_from(&connections);
            bundle::remove(tx, &migration.bundle);
            migration.phase = MigrationPhase::HandingOver;
            Ok(())
        });
        match handed.await {
            Ok(handed) => Ok(handed),
            Err(Error::Refused(why)) => {
                self.stay(migration, &why, false).await?;
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
        let stay = async |why: &str| {
            self.stay(migration, why, false).await?;
            Ok(Action::Done)
        };
        if let Err(why) = self.sent_whole(migration).await? {
            return stay(&why).await;
        }
        let about = About { id: migration.id.clone(), bundle: Some(migration.bundle.clone()) };
        let error = match Peer::of(migration)?.ask::<Outcome>("accept", &about, DECIDE).await {
            Ok(Outcome::Received(there)) => return self.give_away(migration, &there.borrowed, sent).await,
            Ok(Outcome::Refused(why)) | Err(Error::Refused(why)) => return stay(&why).await,
            Ok(Outcome::Receiving) => return Ok(Action::RequeueAfter(ASK_AGAIN)),
            Err(error) => error,
        };
        tracing::warn!(migration = migration.id, instance = migration.instance_id, %error,
            "the guest stands still until the daemon that receives says whether it has it");
        self.note(&migration.id, |known| known.trouble = Some(error.to_string()));
        Ok(Action::RequeueAfter(ASK_AGAIN))
    }

    /// Whether the other daemon can have the whole guest, or why not. What was not sent whole is broken off, so that it never will.
    async fn sent_whole(&self, migration: &Migration) -> Result<Result<(), String>, Error> {
        let Some(vm) = self.living(migration).await? else {
            // Nobody knows how far it was.
            return Ok(Ok(()));
        };
        vm.hold();
        let sending = match vm.transfer().await?.sending {
            Sending::Active | Sending::Waiting => vm.break_off().await?,
            sending => sending,
        };
        Ok(match sending {
            Sending::Completed => Ok(()),
            Sending::Failed(why) => Err(why),
            _ => Err("the guest was not sent whole".to_owned()),
        })
    }

    async fn living(&self, migration: &Migration) -> Result<Option<Vm>, Error> {
        let vm = self.qemu.machine(&migration.instance_id).await?;
        Ok(vm.filter(|vm| !matches!(vm.state(), RunState::Exited(_))))
    }

    /// Writes down that the guest is the other daemon's, which has these public addresses of this one's pool.
    async fn give_away(
        &self,
        migration: &Migration,
        lent: &[Ipv4Addr],
        sent: Option<(Instant, u64)>,
    ) -> Result<Action, Error> {
        let downtime = sent.map(|(paused, _)| paused.elapsed());
        let handed = self.enter(migration, |_, migration| {
            migration.phase = MigrationPhase::HandedOver;
            migration.lent = lent.to_vec();
            migration.settled = false;
            migration.bytes = sent.map_or(0, |(_, bytes)| bytes);
            migration.downtime_ms = downtime.and_then(|d| u64::try_from(d.as_millis()).ok());
            Ok(())
        });
        match handed.await? {
            Some(handed) => self.clear(&handed).await,
            None => Ok(Action::Done),
        }
    }

    /// Ends a migration whose guest stays here, unless it was decided otherwise meanwhile: says whether it stays.
    pub(super) async fn stay(&self, migration: &Migration, why: &str, in_doubt: bool) -> Result<bool, Error> {
        let vm = self.living(migration).await?;
        if let Some(vm) = &vm {
            tolerate_gone(vm.break_off().await.map(drop))?;
        }
        let mut why = why.to_owned();
        let copying = migration.phase == MigrationPhase::Copying;
        if copying {
            self.run_on(vm.as_ref()).await?;
            // It may know better what was wrong. If it does not hear this, it gives up by itself what it hears no more of.
            if let Ok(Outcome::Refused(there)) = self.tell_to_give_up(migration).await
                && there != GIVEN_UP
            {
                why = format!("{why} ({there})");
            }
        }
        let stayed = self.enter(migration, |tx, migration| {
            if migration.phase == MigrationPhase::HandingOver {
                bundle::put(tx, &migration.bundle);
            }
            migration.phase = MigrationPhase::Failed;
            migration.in_doubt = in_doubt;
            migration.message = Some(why.clone());
            migration.ended = Some(OffsetDateTime::now_utc());
            Ok(())
        });
        if stayed.await?.is_none() {
            return Ok(false);
        }
        tracing::warn!(migration = migration.id, instance = migration.instance_id, why, "the guest stays");
        if !copying {
            self.run_on(vm.as_ref()).await?;
            if in_doubt {
                // If the guest is there, so is the way to its addresses.
                let (account, region) = (&migration.account, &migration.region);
                self.network.take_over_again(account, region, &migration.vpc_id).await?;
            } else {
                let _ = self.tell_to_give_up(migration).await;
            }
        }
        Ok(true)
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

/// What is looked at while a guest is being copied.
struct Watch {
    /// When the other daemon was last told that this one is there.
    told: Instant,
    course: Course,
}

/// Bytes of memory and disks of a guest.
fn size(offer: &Offer) -> u64 {
    let hardware = instance_type(&offer.bundle.instance.spec.instance_type);
    let memory = hardware.map_or(0, |hardware| hardware.memory_mib << 20);
    offer.disks.iter().fold(memory, |sum, disk| sum.saturating_add(disk.bytes))
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
