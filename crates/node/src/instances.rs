//! The instance reconciler: from an instance's goal and state to its machine.
//!
//! ```text
//! pending ──start──► running ──guest off / machine lost──► stopping | shutting-down
//!    │ start fails                                              │ machine gone, links and disks released
//!    └──────────────► stopping | shutting-down ────────────────►stopped | terminated ──(1 h)──► record removed
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use haar_core::reconcile::{Action, Failure, Reconciler};
use haar_records::ec2::{
    AttachmentStatus, BlockDevice, Claim, ClaimScope, Instance, InstanceGoal, InstanceState,
    NetworkInterface, ShutdownBehavior, StateReason, StatusCheck, Volume, VolumeState,
};
use haar_store::{Entry, Key, Store, Tx};
use time::OffsetDateTime;

use crate::Error;
use crate::backend::{Backend, Observation};
use crate::host::Host;
use crate::migrations::{holds_machine, is_leaving};
use crate::snapshots::{LOOK_AGAIN, is_awaited, release as release_snapshots};

/// A terminated instance stays visible for about an hour ("TerminateInstances", EC2 API reference).
const VISIBLE_AFTER_TERMINATION: Duration = Duration::from_secs(3600);

/// How often a guest that does not react is asked again: one that is still booting does not hear the first time.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// How long a guest may take to shut down for a reboot ("a few minutes", RebootInstances).
const REBOOT_GRACE: Duration = Duration::from_secs(120);

/// How often a booting guest's reachability is checked.
const CHECK_BOOTING: Duration = Duration::from_secs(2);

/// How often a running guest's reachability is checked.
const CHECK_RUNNING: Duration = Duration::from_secs(20);

/// How often it is checked whether an impaired guest answers again.
const CHECK_IMPAIRED: Duration = Duration::from_secs(5);

/// From how many lost answers in a row a guest counts as impaired.
const LOST_ANSWERS: u32 = 2;

/// How long a guest may take until it answers on its link, before it counts as impaired.
const BOOT_GRACE: Duration = Duration::from_secs(300);

/// How often is looked whether the snapshots that are taken while a guest is down are taken.
const TAKES_SNAPSHOTS: Duration = Duration::from_millis(50);

/// How often is looked whether a guest that is moving to another daemon has gone.
const WHILE_LEAVING: Duration = Duration::from_secs(1);

/// How often a guest that stands still because the host's disk is full is tried again.
const RETRY_WRITE: Duration = Duration::from_secs(3);

pub(crate) struct Instances<B> {
    store: Store,
    backend: Arc<B>,
    /// Boot id of this host: a machine that was started under another one is gone without a fault of its own.
    host_boot_id: String,
    host: Host,
    /// How many answers guests have lost in a row, by instance.
    lost: Mutex<HashMap<String, u32>>,
}

impl<B: Backend> Instances<B> {
    pub(crate) fn new(store: Store, backend: Arc<B>, host: Host) -> Self {
        let host_boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let host_boot_id = host_boot_id.trim().to_owned();
        Self { store, backend, host_boot_id, host, lost: Mutex::default() }
    }

    /// Changes the instance's record, if it is still as the caller believes.
    async fn update(
        &self,
        seen: &Instance,
        mut change: impl FnMut(&mut Tx, &mut Instance) + Send,
    ) -> Result<(), Error> {
        self.store
            .transact(|tx| {
                let Some(entry) = tx.get::<Instance>(&seen.account, &seen.region, &seen.id) else {
                    return Ok(());
                };
                let unchanged =
                    entry.status.state == seen.status.state && entry.spec.boots == seen.spec.boots;
                if unchanged {
                    let mut instance = Instance::clone(&entry);
                    change(tx, &mut instance);
                    tx.put(instance);
                }
                Ok(())
            })
            .await
    }

    async fn boot(&self, instance: &Instance) -> Result<Action, Error> {
        // A host that went down has done what a reboot for an image would.
        release_snapshots(&self.store, instance).await?;
        match self.backend.start(instance).await {
            Ok(()) => {
                self.started(instance).await?;
                Ok(Action::RequeueAfter(CHECK_BOOTING))
            }
            // The record could not be read or written: the machine is not to blame.
            Err(error @ Error::Store(_)) => Err(error),
            Err(error) => {
                tracing::warn!(instance = instance.id, %error, "the instance does not start");
                let reason = StateReason::new("Server.InternalError", &error.to_string());
                // An instance that never ran has nothing to keep.
                let goal =
                    if instance.spec.boots == 1 { InstanceGoal::Terminated } else { InstanceGoal::Stopped };
                self.take_down(instance, goal, reason).await
            }
        }
    }

    async fn started(&self, instance: &Instance) -> Result<(), Error> {
        let now = OffsetDateTime::now_utc();
        self.update(instance, |tx, instance| {
            instance.status.state = InstanceState::Running;
            instance.status.state_reason = B::REASON.map(|(code, message)| StateReason::new(code, message));
            instance.status.boots = instance.spec.boots;
            // A reboot that was asked for before this boot is this boot.
            instance.status.reboots = instance.spec.reboots;
            instance.status.reboot_deadline = None;
            instance.status.running_since = Some(now);
            instance.status.instance_check = StatusCheck::Initializing;
            instance.status.system_check = StatusCheck::Ok;
            instance.status.instance_impaired_since = None;
            instance.status.system_impaired_since = None;
            instance.status.host_boot_id = Some(self.host_boot_id.clone());
            for device in instance.spec.block_devices.iter().filter(|device| !device.detaching) {
                if let Some(volume) = tx.get::<Volume>(&instance.account, &instance.region, &device.volume_id)
                {
                    let mut volume = Volume::clone(&volume);
                    volume.state = VolumeState::InUse;
                    for attachment in &mut volume.attachments {
                        attachment.status = AttachmentStatus::Attached;
                    }
                    tx.put(volume);
                }
            }
            for id in &instance.spec.network_interfaces {
                if let Some(interface) = tx.get::<NetworkInterface>(&instance.account, &instance.region, id) {
                    let mut interface = NetworkInterface::clone(&interface);
                    if let Some(attachment) = &mut interface.attachment {
                        attachment.status = AttachmentStatus::Attached;
                    }
                    tx.put(interface);
                }
            }
        })
        .await
    }

    /// Has a machine that is of no more use removed.
    async fn take_down(
        &self,
        instance: &Instance,
        goal: InstanceGoal,
        reason: StateReason,
    ) -> Result<Action, Error> {
        let now = OffsetDateTime::now_utc();
        self.update(instance, |_, instance| {
            instance.spec.goal = goal;
            instance.status.state = match goal {
                InstanceGoal::Terminated => InstanceState::ShuttingDown,
                InstanceGoal::Running | InstanceGoal::Stopped => InstanceState::Stopping,
            };
            instance.status.transition_reason = reason.message.clone();
            instance.status.state_reason = Some(reason.clone());
            instance.status.stop_deadline = Some(now);
        })
        .await?;
        // The change of state asks for the next run.
        Ok(Action::Done)
    }

    /// Shuts a guest down because the host goes down.
    async fn interrupt(&self, instance: &Instance, until: OffsetDateTime) -> Result<Action, Error> {
        if instance.status.interrupted_until != Some(until) {
            // The mark first: a guest that is seen shut down with it did not do so by itself.
            self.update(instance, |_, instance| instance.status.interrupted_until = Some(until)).await?;
        }
        let left = until - OffsetDateTime::now_utc();
        match self.backend.observe(&instance.id).await {
            Ok(Observation::Absent) => Ok(Action::Done),
            Ok(Observation::Running) if left.is_positive() => {
                self.backend.power_button(&instance.id).await?;
                Ok(Action::RequeueAfter(ASK_AGAIN.min(left.unsigned_abs())))
            }
            Err(error) if left.is_positive() => Err(error),
            // Also one that does not say how it is.
            _ => {
                self.backend.power_off(&instance.id).await?;
                Ok(Action::Done)
            }
        }
    }

    /// Starts a guest again that went down with the host.
    async fn come_back(&self, instance: &Instance, until: OffsetDateTime) -> Result<Action, Error> {
        let clear = match self.backend.observe(&instance.id).await? {
            Observation::Absent | Observation::ShutDown | Observation::Dead(_) => {
                self.update(instance, |_, instance| {
                    instance.status.interrupted_until = None;
                    instance.spec.boots += 1;
                    instance.status.state = InstanceState::Pending;
                })
                .await?;
                return Ok(Action::Done);
            }
            // It was asked to shut down, and may still do so.
            Observation::Running => OffsetDateTime::now_utc() >= until,
            Observation::OutOfSpace | Observation::Panicked => true,
        };
        if clear {
            self.update(instance, |_, instance| instance.status.interrupted_until = None).await?;
            return Ok(Action::RequeueAfter(Duration::ZERO));
        }
        Ok(Action::RequeueAfter(ASK_AGAIN))
    }

    async fn look_after(&self, instance: &Instance) -> Result<Action, Error> {
        if let Some(until) = self.host.goes_down() {
            return self.interrupt(instance, until).await;
        }
        if let Some(until) = instance.status.interrupted_until {
            return self.come_back(instance, until).await;
        }
        if is_leaving(&self.store.snapshot(), &instance.account, &instance.region, &instance.id) {
            // Its machine is not to be touched until it is gone, or stays.
            return Ok(Action::RequeueAfter(WHILE_LEAVING));
        }
        match self.backend.observe(&instance.id).await? {
            Observation::Running => {
                let settled = self.attachments(instance).await?;
                let action = self.running(instance).await?;
                Ok(if settled { action } else { Action::RequeueAfter(ASK_AGAIN) })
            }
            Observation::OutOfSpace => {
                self.checks(instance, StatusCheck::Impaired, StatusCheck::Impaired).await?;
                Ok(Action::RequeueAfter(RETRY_WRITE))
            }
            Observation::ShutDown if instance.status.reboot_deadline.is_some() => self.reset(instance).await,
            Observation::Panicked if instance.spec.reboots > instance.status.reboots => {
                self.reset(instance).await
            }
            Observation::ShutDown => {
                let goal = match instance.spec.shutdown_behavior {
                    ShutdownBehavior::Stop => InstanceGoal::Stopped,
                    ShutdownBehavior::Terminate => InstanceGoal::Terminated,
                };
                let reason =
                    StateReason::new("Client.InstanceInitiatedShutdown", "Instance initiated shutdown");
                self.take_down(instance, goal, reason).await
            }
            Observation::Panicked => {
                // What it holds can still be taken from it.
                let settled = self.attachments(instance).await?;
                self.checks(instance, StatusCheck::Impaired, StatusCheck::Ok).await?;
                Ok(if settled { Action::Done } else { Action::RequeueAfter(ASK_AGAIN) })
            }
            Observation::Absent if instance.status.host_boot_id.as_ref() != Some(&self.host_boot_id) => {
                // The host went down with the machine on it: what ran, runs again.
                self.update(instance, |_, instance| {
                    instance.spec.boots += 1;
                    instance.status.state = InstanceState::Pending;
                })
                .await?;
                Ok(Action::Done)
            }
            Observation::Absent => self.lost(instance, "its process is gone").await,
            Observation::Dead(why) => self.lost(instance, &why).await,
        }
    }

    /// Attaches and detaches volumes as was asked; says whether nothing is left to do.
    async fn attachments(&self, instance: &Instance) -> Result<bool, Error> {
        let running = instance.status.state == InstanceState::Running;
        let mut settled = true;
        for device in &instance.spec.block_devices {
            let snapshot = self.store.snapshot();
            let Some(volume) = snapshot.get::<Volume>(&instance.account, &instance.region, &device.volume_id)
            else {
                continue;
            };
            match self.attachment(instance, device, &volume, running).await {
                Ok(done) => settled &= done,
                // One volume keeps neither the others nor the machine from what is to be done.
                Err(error) => {
                    tracing::warn!(instance = instance.id, volume = volume.id, %error, "a volume is not attached or detached");
                    settled = false;
                }
            }
        }
        Ok(settled)
    }

    /// Attaches or detaches a volume if that was asked; says whether nothing is left to do.
    async fn attachment(
        &self,
        instance: &Instance,
        device: &BlockDevice,
        volume: &Volume,
        running: bool,
    ) -> Result<bool, Error> {
        let attaching = volume.attachments.iter().any(|a| a.status == AttachmentStatus::Attaching);
        if device.detaching {
            if running && !self.backend.detach(&instance.id, &volume.id).await? {
                if !device.forced {
                    return Ok(false);
                }
                tracing::warn!(
                    instance = instance.id,
                    volume = volume.id,
                    "the volume is taken from the guest"
                );
                self.backend.take_away(&instance.id, &volume.id).await?;
            }
            self.update(instance, |tx, instance| give_up(tx, instance, &volume.id)).await?;
        } else if attaching {
            if running {
                self.backend.attach(&instance.id, volume).await?;
            }
            self.update(instance, |tx, instance| attached(tx, instance, &volume.id)).await?;
        }
        Ok(true)
    }

    async fn lost(&self, instance: &Instance, why: &str) -> Result<Action, Error> {
        tracing::warn!(instance = instance.id, why, "the virtual machine was lost");
        let reason =
            StateReason::new("Server.InternalError", &format!("The virtual machine was lost: {why}"));
        self.take_down(instance, InstanceGoal::Stopped, reason).await
    }

    async fn running(&self, instance: &Instance) -> Result<Action, Error> {
        let now = OffsetDateTime::now_utc();
        if instance.spec.reboots > instance.status.reboots {
            let Some(deadline) = instance.status.reboot_deadline else {
                // The deadline first: a shutdown that is seen with one is part of the reboot.
                self.update(instance, |_, instance| {
                    instance.status.reboot_deadline = Some(now + REBOOT_GRACE);
                })
                .await?;
                self.backend.power_button(&instance.id).await?;
                return Ok(Action::RequeueAfter(ASK_AGAIN));
            };
            if now >= deadline || B::REASON.is_some() {
                return self.reset(instance).await;
            }
            self.backend.power_button(&instance.id).await?;
            return Ok(Action::RequeueAfter(ASK_AGAIN));
        }
        let answers = self.backend.answers(&instance.id).await?;
        let reachable = answers && self.backend.reachable(instance).await?;
        let lost = self.count_lost(&instance.id, reachable);
        let booting = instance.status.running_since.is_some_and(|since| now - since < BOOT_GRACE);
        let check = match instance.status.instance_check {
            _ if reachable => StatusCheck::Ok,
            StatusCheck::Initializing if booting => StatusCheck::Initializing,
            // One lost answer is not yet a fault.
            StatusCheck::Ok if lost < LOST_ANSWERS => StatusCheck::Ok,
            _ => StatusCheck::Impaired,
        };
        let system = if answers { StatusCheck::Ok } else { StatusCheck::Impaired };
        self.checks(instance, check, system).await?;
        Ok(Action::RequeueAfter(match check {
            StatusCheck::Ok if lost == 0 => CHECK_RUNNING,
            StatusCheck::Impaired => CHECK_IMPAIRED,
            _ => CHECK_BOOTING,
        }))
    }

    /// Counts the answers that a guest has lost in a row.
    fn count_lost(&self, id: &str, reachable: bool) -> u32 {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if reachable {
            lost.remove(id);
            return 0;
        }
        let count = lost.entry(id.to_owned()).or_default();
        *count += 1;
        *count
    }

    /// Boots the machine anew for the reboots that were asked for, after the snapshots that were to be taken while it is down.
    async fn reset(&self, instance: &Instance) -> Result<Action, Error> {
        let patience = instance.status.reboot_deadline.map(|deadline| deadline + REBOOT_GRACE);
        if !release_snapshots(&self.store, instance).await?
            && patience.is_none_or(|patience| OffsetDateTime::now_utc() < patience)
        {
            return Ok(Action::RequeueAfter(TAKES_SNAPSHOTS));
        }
        self.backend.reset(&instance.id).await?;
        let now = OffsetDateTime::now_utc();
        let reboots = instance.spec.reboots;
        self.update(instance, |_, instance| {
            instance.status.reboots = reboots;
            instance.status.reboot_deadline = None;
            instance.status.running_since = Some(now);
            instance.status.instance_check = StatusCheck::Initializing;
            instance.status.instance_impaired_since = None;
        })
        .await?;
        Ok(Action::RequeueAfter(CHECK_BOOTING))
    }

    async fn checks(&self, seen: &Instance, instance: StatusCheck, system: StatusCheck) -> Result<(), Error> {
        if (seen.status.instance_check, seen.status.system_check) == (instance, system) {
            return Ok(());
        }
        let now = OffsetDateTime::now_utc();
        let since = |check, before: Option<OffsetDateTime>| {
            (check == StatusCheck::Impaired).then(|| before.unwrap_or(now))
        };
        self.update(seen, |_, record| {
            let status = &mut record.status;
            status.instance_check = instance;
            status.system_check = system;
            status.instance_impaired_since = since(instance, status.instance_impaired_since);
            status.system_impaired_since = since(system, status.system_impaired_since);
        })
        .await
    }

    async fn shut_down(&self, instance: &Instance) -> Result<Action, Error> {
        let left =
            instance.status.stop_deadline.map_or(time::Duration::ZERO, |d| d - OffsetDateTime::now_utc());
        match self.backend.observe(&instance.id).await {
            Ok(Observation::Running) if left.is_positive() && B::REASON.is_none() => {
                self.backend.power_button(&instance.id).await?;
                return Ok(Action::RequeueAfter(ASK_AGAIN.min(left.unsigned_abs())));
            }
            Err(error) if left.is_positive() => return Err(error),
            // Also one that does not say how it is: its end needs no answer of it.
            _ => {}
        }
        self.backend.power_off(&instance.id).await?;
        release_snapshots(&self.store, instance).await?;
        let records = self.store.snapshot();
        let mut volumes = instance.spec.block_devices.iter().filter_map(|device| {
            records.get::<Volume>(&instance.account, &instance.region, &device.volume_id)
        });
        if instance.spec.goal == InstanceGoal::Terminated && volumes.any(|v| is_awaited(&records, &v)) {
            return Ok(Action::RequeueAfter(LOOK_AGAIN));
        }
        match instance.spec.goal {
            InstanceGoal::Terminated => self.terminated(instance).await?,
            InstanceGoal::Running | InstanceGoal::Stopped => self.stopped(instance).await?,
        }
        self.backend.sync_network(instance).await?;
        Ok(Action::Done)
    }

    async fn stopped(&self, instance: &Instance) -> Result<(), Error> {
        self.update(instance, |tx, instance| {
            off(instance, InstanceState::Stopped);
            for id in &instance.spec.network_interfaces {
                if let Some(interface) = tx.get::<NetworkInterface>(&instance.account, &instance.region, id) {
                    let mut interface = NetworkInterface::clone(&interface);
                    // An automatically assigned public address is released ("Amazon EC2 instance IP addressing").
                    release_public_address(tx, &mut interface);
                    tx.put(interface);
                }
            }
        })
        .await
    }

    async fn terminated(&self, instance: &Instance) -> Result<(), Error> {
        let snapshot = self.store.snapshot();
        let doomed =
            |device: &&haar_records::ec2::BlockDevice| device.delete_on_termination && !device.detaching;
        for device in instance.spec.block_devices.iter().filter(doomed) {
            if let Some(volume) =
                snapshot.get::<Volume>(&instance.account, &instance.region, &device.volume_id)
            {
                self.backend.remove_disk(&volume).await?;
            }
        }
        let now = OffsetDateTime::now_utc();
        self.update(instance, |tx, instance| {
            off(instance, InstanceState::Terminated);
            instance.status.terminated_at = Some(now);
            let (account, region) = (&instance.account, &instance.region);
            for device in &instance.spec.block_devices {
                if device.delete_on_termination && !device.detaching {
                    tx.delete::<Volume>(account, region, &device.volume_id);
                } else if let Some(volume) = tx.get::<Volume>(account, region, &device.volume_id) {
                    // A disk that was never made is no volume to keep.
                    if volume.state == VolumeState::Creating {
                        tx.delete::<Volume>(account, region, &device.volume_id);
                    } else {
                        let volume = Volume::clone(&volume);
                        tx.put(Volume { state: VolumeState::Available, attachments: Vec::new(), ..volume });
                    }
                }
            }
            for id in &instance.spec.network_interfaces {
                let Some(interface) = tx.get::<NetworkInterface>(account, region, id) else { continue };
                let mut interface = NetworkInterface::clone(&interface);
                release_public_address(tx, &mut interface);
                if interface.attachment.as_ref().is_some_and(|a| a.delete_on_termination) {
                    let scope = ClaimScope::PrivateIp { vpc_id: &interface.vpc_id, ip: interface.private_ip };
                    release(tx, account, region, scope);
                    tx.delete::<NetworkInterface>(account, region, id);
                } else {
                    interface.attachment = None;
                    tx.put(interface);
                }
            }
        })
        .await
    }

    async fn forget(&self, instance: &Instance) -> Result<Action, Error> {
        let since = instance.status.terminated_at.unwrap_or(instance.launch_time);
        let left = since + VISIBLE_AFTER_TERMINATION - OffsetDateTime::now_utc();
        if left.is_positive() {
            return Ok(Action::RequeueAfter(left.unsigned_abs()));
        }
        self.backend.forget(&instance.id).await?;
        self.store
            .transact(|tx| {
                tx.delete::<Instance>(&instance.account, &instance.region, &instance.id);
                Ok::<_, Error>(())
            })
            .await?;
        Ok(Action::Done)
    }
}

impl<B: Backend> Reconciler for Instances<B> {
    type Resource = Instance;
    type Error = Error;

    fn triggers(&self, before: &Instance, after: &Instance) -> bool {
        (&before.spec, before.status.state, before.status.stop_deadline)
            != (&after.spec, after.status.state, after.status.stop_deadline)
    }

    async fn reconcile(&self, key: &Key, entry: Option<Entry<Instance>>) -> Result<Action, Error> {
        let Some(instance) = entry else {
            if holds_machine(&self.store.snapshot(), key.account(), key.region(), key.id()) {
                return Ok(Action::Done);
            }
            self.backend.power_off(key.id()).await?;
            self.count_lost(key.id(), true);
            return Ok(Action::Done);
        };
        match instance.status.state {
            // It boots when the host does not go down any more, or is up again.
            InstanceState::Pending if self.host.goes_down().is_some() => Ok(Action::Done),
            InstanceState::Pending => self.boot(&instance).await,
            InstanceState::Running => self.look_after(&instance).await,
            InstanceState::Stopping | InstanceState::ShuttingDown => self.shut_down(&instance).await,
            InstanceState::Stopped => {
                self.attachments(&instance).await?;
                Ok(Action::Done)
            }
            InstanceState::Terminated => self.forget(&instance).await,
        }
    }

    async fn failed(&self, key: &Key, failure: &Failure<Error>, attempt: u32) {
        tracing::warn!(instance = key.id(), attempt, %failure, "cannot reconcile the instance");
        let reason = StateReason::new("Server.InternalError", &failure.to_string());
        let Some(instance) = self.store.snapshot().get_key::<Instance>(key) else { return };
        if instance.status.state_reason.as_ref() == Some(&reason) {
            return;
        }
        let written =
            self.update(&instance, |_, instance| instance.status.state_reason = Some(reason.clone())).await;
        if let Err(error) = written {
            tracing::warn!(instance = key.id(), %error, "cannot write down why");
        }
    }
}

/// Writes down that an instance has a volume, unless it is to give it up meanwhile.
fn attached(tx: &mut Tx, instance: &Instance, volume_id: &str) {
    let Some(volume) = tx.get::<Volume>(&instance.account, &instance.region, volume_id) else { return };
    let mut volume = Volume::clone(&volume);
    for attachment in &mut volume.attachments {
        if attachment.status == AttachmentStatus::Attaching {
            attachment.status = AttachmentStatus::Attached;
        }
    }
    tx.put(volume);
}

/// Writes down that an instance is without a volume.
fn give_up(tx: &mut Tx, instance: &mut Instance, volume_id: &str) {
    instance.spec.block_devices.retain(|device| device.volume_id != volume_id);
    if let Some(volume) = tx.get::<Volume>(&instance.account, &instance.region, volume_id) {
        let volume = Volume::clone(&volume);
        tx.put(Volume { state: VolumeState::Available, attachments: Vec::new(), ..volume });
    }
}

fn off(instance: &mut Instance, state: InstanceState) {
    instance.status.state = state;
    instance.status.stop_deadline = None;
    instance.status.reboot_deadline = None;
    instance.status.boots = instance.spec.boots;
    instance.status.reboots = instance.spec.reboots;
    instance.status.running_since = None;
    instance.status.instance_check = StatusCheck::NotApplicable;
    instance.status.system_check = StatusCheck::NotApplicable;
    instance.status.instance_impaired_since = None;
    instance.status.system_impaired_since = None;
    instance.status.interrupted_until = None;
}

fn release_public_address(tx: &mut Tx, interface: &mut NetworkInterface) {
    if let Some(address) = interface.public_address.take() {
        release(tx, &interface.account, &interface.region, ClaimScope::PublicIp(address.ip));
    }
}

fn release(tx: &mut Tx, account: &str, region: &str, scope: ClaimScope<'_>) {
    let (account, region, id) = Claim::key(account, region, scope);
    tx.delete::<Claim>(&account, &region, &id);
}
