//! Guests that were taken back by hand, and may run at the other daemon as well.
//!
//! Whoever takes a guest back without a word of the other daemon vouches that it has not got it. If it has, there are two of it from then
//! on, and each may have written what the other has not. The one there is the guest, as the records of both daemons have it. The one
//! here is shut down as soon as the daemons hear each other again, and keeps its disks, so that its owner can look at them or let it
//! run after all.

use std::time::Duration;

use haar_core::reconcile::Action;
use haar_records::ec2::{
    ClaimScope, Instance, InstanceGoal, InstanceState, Migration, MigrationPhase, NetworkInterface,
    StateReason,
};
use haar_store::Tx;
use time::OffsetDateTime;

use super::wire::{About, Outcome, Peer, Received};
use super::{Migrations, PATIENCE, VISIBLE, bundle};
use crate::Error;

/// How often is asked what became of a guest that was taken back in doubt.
const ASK: Duration = Duration::from_secs(5);

/// How long a guest may take to shut down of which there are two, as after StopInstances.
const GRACE: Duration = Duration::from_secs(120);

/// Why a guest runs here of which it is known that there is one.
const BY_HAND: &str = "it was taken back by hand";

impl Migrations {
    /// Takes back a guest that stands still because the daemon that receives does not say whether it has it. If it cannot be asked now
    /// either, whoever asks for this vouches that it has not, and never will; gives that daemon then.
    pub(crate) async fn take_back(&self, id: &str) -> Result<Option<String>, Error> {
        let migration = self.find(id)?;
        let (instance, phase, there) = (&migration.instance_id, migration.phase, migration.destination());
        if phase != MigrationPhase::HandingOver {
            let why = "only a guest that is being handed over can be taken back";
            return Err(Error::Refused(format!("{id} is {phase}: {why}")));
        }
        let in_doubt = match self.tell_to_give_up(&migration).await {
            Ok(Outcome::Received(_)) => {
                return Err(Error::Refused(format!("{instance} runs at {there}: the daemon there says so")));
            }
            Ok(Outcome::Refused(_)) | Err(Error::Refused(_)) => false,
            Ok(Outcome::Receiving) | Err(_) => true,
        };
        let why = if in_doubt {
            format!("{BY_HAND}, without a word of the daemon at {there}")
        } else {
            BY_HAND.to_owned()
        };
        if self.stay(&migration, &why, in_doubt).await? {
            return Ok(in_doubt.then(|| there.to_owned()));
        }
        Err(Error::Refused(format!("{id} has ended meanwhile: haar migrate --list says how")))
    }

    /// Tells the other daemon that a guest stays here. It answers what has become of it there.
    pub(super) async fn tell_to_give_up(&self, migration: &Migration) -> Result<Outcome, Error> {
        Peer::of(migration)?.ask("abandon", &About::of(migration), PATIENCE).await
    }

    /// Asks about a guest that was taken back in doubt, until it is known that there is one of it, or two: then the one here is shut down.
    pub(super) async fn clear_doubt(&self, migration: &Migration) -> Result<Action, Error> {
        let there = match self.tell_to_give_up(migration).await {
            Ok(Outcome::Received(there)) => Some(there),
            Ok(Outcome::Refused(_)) | Err(Error::Refused(_)) => None,
            Ok(Outcome::Receiving) | Err(_) => return Ok(Action::RequeueAfter(ASK)),
        };
        let cleared = self.enter(migration, |tx, migration| {
            migration.in_doubt = false;
            // It is told of from now on.
            migration.ended = Some(OffsetDateTime::now_utc());
            migration.settled = there.is_none();
            migration.message = Some(match &there {
                Some(there) if !there.terminated => yield_to(tx, migration, there),
                Some(_) => format!(
                    "{BY_HAND}; the daemon at {} had it, and it was terminated there",
                    migration.destination()
                ),
                None => BY_HAND.to_owned(),
            });
            Ok(())
        });
        if let Some(cleared) = cleared.await? {
            let (instance, became) = (&cleared.instance_id, &cleared.message);
            tracing::warn!(migration = cleared.id, instance, became, "it is known what became of the guest");
        }
        // The change asks for the next run, if there is more to do.
        Ok(Action::RequeueAfter(VISIBLE))
    }

    /// Tells the daemon that has a guest that this is known here; says whether it has heard.
    pub(super) async fn tell_settled(&self, migration: &Migration) -> Result<bool, Error> {
        // First: if the guest was here as well, this daemon has routed its addresses, and has given them up, or is the only one to have them.
        self.network.take_over_again(&migration.account, &migration.region, &migration.vpc_id).await?;
        if Peer::of(migration)?.ask::<Outcome>("settled", &About::of(migration), PATIENCE).await.is_err() {
            return Ok(false);
        }
        self.enter(migration, |_, migration| {
            migration.settled = true;
            Ok(())
        })
        .await?;
        Ok(true)
    }
}

/// Has the instance here, of which there are two, give up its public addresses and shut down; gives what is told of it.
fn yield_to(tx: &mut Tx, migration: &mut Migration, there: &Received) -> String {
    let (account, region, id) = (&migration.account, &migration.region, &migration.instance_id);
    for interface in &migration.bundle.interfaces {
        let Some(here) = tx.get::<NetworkInterface>(account, region, &interface.id) else { continue };
        let (mut here, was) = (NetworkInterface::clone(&here), interface.public_address.as_ref());
        let Some(public) = here.public_address.take_if(|public| was.is_some_and(|was| was.ip == public.ip))
        else {
            continue;
        };
        if there.borrowed.contains(&public.ip) {
            migration.lent.push(public.ip);
        } else {
            bundle::release_claim(tx, account, region, ClaimScope::PublicIp(public.ip), &here.id);
        }
        tx.put(here);
    }
    let said = format!(
        "{BY_HAND}, but the daemon at {} had it: the one there is the guest. The one here is shut down; its volumes keep what it wrote since",
        migration.destination()
    );
    if let Some(found) = tx.get::<Instance>(account, region, id)
        && matches!(found.status.state, InstanceState::Pending | InstanceState::Running)
    {
        let mut instance = Instance::clone(&found);
        instance.spec.goal = InstanceGoal::Stopped;
        instance.status.state = InstanceState::Stopping;
        instance.status.stop_deadline = Some(OffsetDateTime::now_utc() + GRACE);
        instance.status.transition_reason.clone_from(&said);
        instance.status.state_reason = Some(StateReason::new("Server.InternalError", &said));
        tx.put(instance);
    }
    said
}
