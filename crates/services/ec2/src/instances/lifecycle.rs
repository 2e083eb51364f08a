//! `StartInstances`, `StopInstances`, `RebootInstances` and `TerminateInstances`.

use std::collections::BTreeSet;
use std::time::Duration;

use haar_api::{Context, Error};
use haar_records::ec2::{Instance, InstanceGoal, InstanceState, NetworkInterface, StateReason};
use haar_store::Tx;
use ipnet::Ipv4Net;
use time::macros::format_description;

use super::{by_ids, describe, run};
use crate::Scope;
use crate::capacity::Wanted;
use crate::error::Result;
use crate::handlers::Handlers;
use crate::{model, network_interfaces};

/// How long a guest that was asked to shut down may take.
const GRACE: Duration = Duration::from_secs(120);

/// How long it may take when the request says `Force`.
const FORCED_GRACE: Duration = Duration::from_secs(30);

/// How long a guest may take, from the parameters that StopInstances and TerminateInstances share.
fn grace(force: Option<bool>, skip_os_shutdown: Option<bool>) -> Duration {
    match (force, skip_os_shutdown) {
        (_, Some(true)) => Duration::ZERO,
        (Some(true), _) => FORCED_GRACE,
        _ => GRACE,
    }
}

/// `StartInstances`.
pub async fn start_instances(
    handlers: &Handlers,
    ctx: &Context,
    input: model::StartInstancesRequest,
) -> Result<model::StartInstancesResult> {
    let config = &handlers.config;
    let starting_instances =
        change(handlers, ctx, &input.instance_ids, |tx, instance| match instance.status.state {
            InstanceState::Pending | InstanceState::Running => Ok(None),
            InstanceState::Stopped => {
                let hardware = run::known_type(&instance.spec.instance_type)?;
                run::check_ebs_optimized(instance.spec.ebs_optimized, hardware)?;
                let (zone, placement) = (&instance.spec.availability_zone, &instance.spec.placement);
                let wanted = Wanted { hardware, zone, placement };
                config.capacity.give(tx, Scope::from(ctx), &wanted, 1, 1)?;
                assign_public_addresses(tx, instance, config.public_pool)?;
                let mut next = instance.clone();
                next.spec.goal = InstanceGoal::Running;
                next.spec.boots += 1;
                next.launch_time = ctx.now;
                next.status.state = InstanceState::Pending;
                next.status.state_reason =
                    Some(StateReason { code: "pending".into(), message: "pending".into() });
                next.status.transition_reason = String::new();
                Ok(Some(next))
            }
            _ => Err(super::wrong_state(instance, "started")),
        })
        .await?;
    Ok(model::StartInstancesResult { starting_instances })
}

/// `StopInstances`.
pub async fn stop_instances(
    handlers: &Handlers,
    ctx: &Context,
    input: model::StopInstancesRequest,
) -> Result<model::StopInstancesResult> {
    if input.hibernate == Some(true) {
        return Err(Error::new(
            "UnsupportedHibernationConfiguration",
            "The parameter Hibernate is not supported: no instance is enabled for hibernation.",
        ));
    }
    let grace = grace(input.force, input.skip_os_shutdown);
    let stopping_instances =
        change(handlers, ctx, &input.instance_ids, |_, instance| match instance.status.state {
            InstanceState::Stopped => Ok(None),
            InstanceState::Running | InstanceState::Stopping if instance.spec.disable_api_stop => {
                Err(protected(instance, "stopped", "disableApiStop"))
            }
            // A second request may shorten the grace of the first.
            InstanceState::Running | InstanceState::Stopping => {
                Ok(Some(shut_down(ctx, instance, InstanceGoal::Stopped, grace)))
            }
            InstanceState::Pending | InstanceState::ShuttingDown | InstanceState::Terminated => {
                Err(super::wrong_state(instance, "stopped"))
            }
        })
        .await?;
    Ok(model::StopInstancesResult { stopping_instances })
}

/// `RebootInstances`.
pub async fn reboot_instances(
    handlers: &Handlers,
    ctx: &Context,
    input: model::RebootInstancesRequest,
) -> Result<()> {
    change(handlers, ctx, &input.instance_ids, |_, instance| match instance.status.state {
        InstanceState::Running => {
            let mut next = instance.clone();
            next.spec.reboots += 1;
            Ok(Some(next))
        }
        // It boots anyway, or never will again ("Requests to reboot terminated instances are ignored").
        InstanceState::Pending | InstanceState::ShuttingDown | InstanceState::Terminated => Ok(None),
        InstanceState::Stopping | InstanceState::Stopped => Err(super::wrong_state(instance, "rebooted")),
    })
    .await?;
    Ok(())
}

/// `TerminateInstances`.
///
/// The instances of an Availability Zone are terminated together or, when one of them is protected, not at all; the request
/// then fails, and the other zones' instances are terminated all the same.
pub async fn terminate_instances(
    handlers: &Handlers,
    ctx: &Context,
    input: model::TerminateInstancesRequest,
) -> Result<model::TerminateInstancesResult> {
    let grace = grace(input.force, input.skip_os_shutdown);
    let (terminating_instances, refused) = haar_core::transact(&handlers.store, ctx, |tx| {
        let instances = by_ids(ctx, tx, &input.instance_ids)?;
        let refused: Vec<_> = instances
            .iter()
            .filter_map(|instance| Some((instance, protection_from_termination(instance)?)))
            .collect();
        let zones: BTreeSet<_> =
            refused.iter().map(|(instance, _)| &instance.spec.availability_zone).collect();
        let mut changes = Vec::new();
        for instance in &instances {
            if zones.contains(&instance.spec.availability_zone) {
                continue;
            }
            let next = match instance.status.state {
                InstanceState::Terminated => instance.clone(),
                _ => shut_down(ctx, instance, InstanceGoal::Terminated, grace),
            };
            changes.push(state_change(instance, &next));
            tx.put(next);
        }
        let refused =
            refused.first().map(|(instance, attribute)| protected(instance, "terminated", attribute));
        match refused {
            // A dry run says what the request would answer.
            Some(error) if ctx.dry_run => Err(error),
            refused => Ok((changes, refused)),
        }
    })
    .await?;
    match refused {
        Some(error) => Err(error),
        None => Ok(model::TerminateInstancesResult { terminating_instances }),
    }
}

/// Changes all of the instances, or none; gives back each one's states before and after.
async fn change(
    handlers: &Handlers,
    ctx: &Context,
    ids: &[String],
    mut change: impl FnMut(&mut Tx, &Instance) -> Result<Option<Instance>>,
) -> Result<Vec<model::InstanceStateChange>> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut changes = Vec::new();
        for instance in by_ids(ctx, tx, ids)? {
            let next = change(tx, &instance)?;
            changes.push(state_change(&instance, next.as_ref().unwrap_or(&instance)));
            if let Some(next) = next {
                tx.put(next);
            }
        }
        Ok(changes)
    })
    .await
}

/// Assigns a public address to each interface of an instance that is to have one while it runs.
fn assign_public_addresses(tx: &mut Tx, instance: &Instance, pool: Ipv4Net) -> Result<()> {
    for id in &instance.spec.network_interfaces {
        if let Some(interface) = tx.get::<NetworkInterface>(&instance.account, &instance.region, id) {
            let mut interface = NetworkInterface::clone(&interface);
            network_interfaces::assign_public_address(tx, &mut interface, pool)?;
            tx.put(interface);
        }
    }
    Ok(())
}

/// The attribute that keeps an instance from being terminated; protection from being stopped does so as well (EC2 User Guide,
/// "Enable stop protection for your EC2 instances").
fn protection_from_termination(instance: &Instance) -> Option<&'static str> {
    match (&instance.spec, instance.status.state) {
        (_, InstanceState::ShuttingDown | InstanceState::Terminated) => None,
        (spec, _) if spec.disable_api_termination => Some("disableApiTermination"),
        (spec, _) if spec.disable_api_stop => Some("disableApiStop"),
        _ => None,
    }
}

fn protected(instance: &Instance, what: &str, attribute: &str) -> Error {
    Error::new(
        "OperationNotPermitted",
        format!(
            "The instance '{}' may not be {what}. Modify its '{attribute}' instance attribute and try again.",
            instance.id
        ),
    )
}

/// The instance on its way to `goal` because a user asked; an earlier request's sooner deadline stands.
fn shut_down(ctx: &Context, instance: &Instance, goal: InstanceGoal, grace: Duration) -> Instance {
    let mut next = instance.clone();
    let deadline = ctx.now + grace;
    next.spec.goal = goal;
    next.status.stop_deadline =
        Some(next.status.stop_deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    next.status.state = match goal {
        InstanceGoal::Terminated => InstanceState::ShuttingDown,
        InstanceGoal::Running | InstanceGoal::Stopped => InstanceState::Stopping,
    };
    if next.status.state != instance.status.state {
        let second = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
        let when = ctx.now.format(second).unwrap_or_default();
        next.status.transition_reason = format!("User initiated ({when} GMT)");
        next.status.state_reason =
            Some(StateReason::new("Client.UserInitiatedShutdown", "User initiated shutdown"));
    }
    next
}

fn state_change(before: &Instance, after: &Instance) -> model::InstanceStateChange {
    model::InstanceStateChange {
        instance_id: Some(before.id.clone()),
        previous_state: Some(describe::state(before.status.state)),
        current_state: Some(describe::state(after.status.state)),
    }
}
