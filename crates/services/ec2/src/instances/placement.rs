//! `ModifyInstancePlacement`.

use haar_api::{Context, Error};
use haar_records::ec2::{Instance, InstanceState, Placement, PlacementGroup, PlacementStrategy};
use haar_store::Tx;

use super::{by_id, options, run};
use crate::capacity::Capacity;
use crate::error::{Result, combination, missing, unsupported};
use crate::handlers::Handlers;
use crate::{Scope, model};

/// `ModifyInstancePlacement`: where a stopped instance stands from its next start on. Whether there is room for it is seen then.
pub async fn modify_instance_placement(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ModifyInstancePlacementRequest,
) -> Result<model::ModifyInstancePlacementResult> {
    let moves = input.group_name.is_some() || input.group_id.is_some() || input.partition_number.is_some();
    if !moves && input.tenancy.is_none() && input.affinity.is_none() {
        return Err(missing("affinity, hostId, tenancy or groupName"));
    }
    if input.affinity == Some(model::Affinity::Host) {
        return Err(unsupported(
            "The value 'host' of the parameter Affinity is not supported: there are no Dedicated Hosts.",
        ));
    }
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut instance = by_id(ctx, tx, &input.instance_id)?;
        // Without Dedicated Hosts, every instance has the affinity `default` already.
        if !moves && input.tenancy.is_none() {
            return Ok(model::ModifyInstancePlacementResult { r#return: Some(true) });
        }
        let next = placement(ctx, tx, &instance, &input, handlers.config.capacity)?;
        if instance.status.state != InstanceState::Stopped {
            return Err(Error::new(
                "IncorrectInstanceState",
                format!("The instance '{}' is not in the 'stopped' state.", instance.id),
            ));
        }
        instance.spec.placement = next;
        tx.put(instance);
        Ok(model::ModifyInstancePlacementResult { r#return: Some(true) })
    })
    .await
}

/// What the request says, and the rest as it is.
fn placement(
    ctx: &Context,
    tx: &mut Tx,
    instance: &Instance,
    input: &model::ModifyInstancePlacementRequest,
    capacity: Capacity,
) -> Result<Placement> {
    let is = &instance.spec.placement;
    let was = if is.dedicated { model::Tenancy::Dedicated } else { model::Tenancy::Default };
    let tenancy = input.tenancy.map_or(was, |tenancy| match tenancy {
        model::HostTenancy::Default => model::Tenancy::Default,
        model::HostTenancy::Dedicated => model::Tenancy::Dedicated,
        model::HostTenancy::Host => model::Tenancy::Host,
    });
    // An empty name is no group.
    let named = input.group_name.is_some() || input.group_id.is_some();
    let asked = model::Placement {
        tenancy: Some(tenancy),
        group_name: input.group_name.clone(),
        group_id: if named { input.group_id.clone() } else { is.group_id.clone() },
        partition_number: input.partition_number,
        ..Default::default()
    };
    let scope = Scope::from(ctx);
    let hardware = run::known_type(&instance.spec.instance_type)?;
    let mut next = options::placement(scope, tx, Some(&asked), hardware)?;
    if next.group_id == is.group_id && next.partition.is_none() {
        next.partition = is.partition;
    }
    let group =
        next.group_id.as_deref().and_then(|id| tx.get::<PlacementGroup>(scope.account, scope.region, id));
    if next.dedicated && group.is_some_and(|group| group.strategy == PlacementStrategy::Spread) {
        return Err(combination(
            "Spread placement groups are for instances with the tenancy 'default' only.",
        ));
    }
    Ok(options::of_one(tx, scope, &next, capacity))
}
