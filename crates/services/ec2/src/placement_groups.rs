//! Placement groups. What one machine can keep of their promises, it keeps ([`crate::capacity`]); what it cannot is no capacity.

use haar_api::{Context, Error};
use haar_core::FilterTable;
use haar_records::ec2::{Claim, ClaimScope, Instance, InstanceState, PlacementGroup, PlacementStrategy};
use haar_store::{Entry, Snapshot, Tx};

use crate::describe::parse;
use crate::error::{Result, combination, invalid_parameter, missing, shorten, unsupported};
use crate::handlers::Handlers;
use crate::model::{
    self, CreatePlacementGroupRequest, CreatePlacementGroupResult, DeletePlacementGroupRequest,
    DescribePlacementGroupsRequest, DescribePlacementGroupsResult,
};
use crate::{Scope, ids, tags};

/// Most partitions of a group in a zone ("Placement strategies", EC2 User Guide).
const MAX_PARTITIONS: i32 = 7;

/// Partitions of a group that does not say how many.
const DEFAULT_PARTITIONS: u32 = 2;

/// The group of this name.
///
/// # Errors
/// `InvalidPlacementGroup.Unknown`.
pub fn find_by_name(tx: &mut Tx, scope: Scope<'_>, name: &str) -> Result<Entry<PlacementGroup>> {
    let (account, region, claim) = Claim::key(scope.account, scope.region, ClaimScope::PlacementGroup(name));
    tx.get::<Claim>(&account, &region, &claim)
        .and_then(|claim| tx.get(scope.account, scope.region, &claim.holder))
        .ok_or_else(|| unknown(name))
}

/// The group of this id.
///
/// # Errors
/// `InvalidPlacementGroupId.Malformed`, `InvalidPlacementGroup.Unknown`.
pub fn find(tx: &mut Tx, scope: Scope<'_>, id: &str) -> Result<Entry<PlacementGroup>> {
    ids::PLACEMENT_GROUP.check(id)?;
    Ok(tx.get(scope.account, scope.region, id).ok_or_else(|| ids::PLACEMENT_GROUP.missing(id))?)
}

fn unknown(name: &str) -> Error {
    Error::new(
        "InvalidPlacementGroup.Unknown",
        format!("The Placement Group '{}' is unknown.", shorten(name)),
    )
}

/// `CreatePlacementGroup`.
pub async fn create_placement_group(
    handlers: &Handlers,
    ctx: &Context,
    input: CreatePlacementGroupRequest,
) -> Result<CreatePlacementGroupResult> {
    let name =
        input.group_name.as_deref().filter(|name| !name.is_empty()).ok_or_else(|| missing("groupName"))?;
    if name.len() > 255 || !name.is_ascii() {
        return Err(invalid_parameter(name, "groupName", "It must be at most 255 ASCII characters."));
    }
    let strategy = match input.strategy {
        Some(model::PlacementStrategy::Cluster) => PlacementStrategy::Cluster,
        Some(model::PlacementStrategy::Partition) => PlacementStrategy::Partition,
        Some(model::PlacementStrategy::Spread) => PlacementStrategy::Spread,
        None => return Err(missing("strategy")),
    };
    let partition_count = partitions(strategy, input.partition_count)?;
    match input.spread_level {
        Some(_) if strategy != PlacementStrategy::Spread => {
            return Err(combination("The parameter SpreadLevel can only be used with the strategy spread."));
        }
        Some(model::SpreadLevel::Host) => {
            return Err(unsupported(
                "The value 'host' of the parameter SpreadLevel is only supported on Outposts.",
            ));
        }
        Some(model::SpreadLevel::Rack) | None => {}
    }
    let tags = tags::of_new_one(&input.tag_specifications, "placement-group")?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        if find_by_name(tx, Scope::from(ctx), name).is_ok() {
            return Err(Error::new(
                "InvalidPlacementGroup.Duplicate",
                format!("The Placement Group '{name}' already exists."),
            ));
        }
        let group = PlacementGroup {
            account: ctx.account.clone(),
            region: ctx.region.clone(),
            id: ids::PLACEMENT_GROUP.generate(),
            name: name.to_owned(),
            strategy,
            partition_count,
            tags: tags.clone(),
        };
        tx.put(Claim::new(&ctx.account, &ctx.region, ClaimScope::PlacementGroup(name), &group.id));
        tx.put(group.clone());
        Ok(CreatePlacementGroupResult { placement_group: Some(to_api(&group)) })
    })
    .await
}

/// The partitions that a new group of this strategy has.
fn partitions(strategy: PlacementStrategy, wanted: Option<i32>) -> Result<Option<u32>> {
    match (strategy, wanted) {
        (PlacementStrategy::Partition, None) => Ok(Some(DEFAULT_PARTITIONS)),
        (PlacementStrategy::Partition, Some(count @ 1..=MAX_PARTITIONS)) => Ok(u32::try_from(count).ok()),
        (PlacementStrategy::Partition, Some(count)) => Err(invalid_parameter(
            &count.to_string(),
            "partitionCount",
            &format!("It must be from 1 to {MAX_PARTITIONS}."),
        )),
        (_, Some(_)) => {
            Err(combination("The parameter PartitionCount can only be used with the strategy partition."))
        }
        (_, None) => Ok(None),
    }
}

/// `DeletePlacementGroup`.
pub async fn delete_placement_group(
    handlers: &Handlers,
    ctx: &Context,
    input: DeletePlacementGroupRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let group = find_by_name(tx, Scope::from(ctx), &input.group_name)?;
        let mut members = tx.by_index::<Instance>(&ctx.account, &ctx.region, "placement-group", &group.id);
        if members.any(|instance| instance.status.state != InstanceState::Terminated) {
            return Err(Error::new(
                "InvalidPlacementGroup.InUse",
                format!("The placement group '{}' is in use and may not be deleted.", group.name),
            ));
        }
        drop(members);
        let scope = ClaimScope::PlacementGroup(&group.name);
        let (account, region, claim) = Claim::key(&ctx.account, &ctx.region, scope);
        tx.delete::<Claim>(&account, &region, &claim);
        tx.delete::<PlacementGroup>(&ctx.account, &ctx.region, &group.id);
        Ok(())
    })
    .await
}

const FILTERS: FilterTable<PlacementGroup> = FilterTable::<PlacementGroup>::new(&[
    ("group-arn", |group, (), probe| probe.value(&arn(group))),
    ("group-name", |group, (), probe| probe.value(&group.name)),
    ("spread-level", |group, (), probe| {
        probe.values((group.strategy == PlacementStrategy::Spread).then_some("rack"));
    }),
    ("state", |_, (), probe| probe.value("available")),
    ("strategy", |group, (), probe| probe.value(group.strategy.as_str())),
])
.with_tags(|group| &group.tags);

/// `DescribePlacementGroups`.
pub async fn describe_placement_groups(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribePlacementGroupsRequest,
) -> Result<DescribePlacementGroupsResult> {
    let snapshot = handlers.store.snapshot();
    let filters = parse(&FILTERS, &input.filters)?;
    for id in &input.group_ids {
        ids::PLACEMENT_GROUP.check(id)?;
        if snapshot.get::<PlacementGroup>(&ctx.account, &ctx.region, id).is_none() {
            return Err(ids::PLACEMENT_GROUP.missing(id).into());
        }
    }
    for name in &input.group_names {
        if by_name(ctx, &snapshot, name).is_none() {
            return Err(unknown(name));
        }
    }
    let wanted = |group: &&Entry<PlacementGroup>| {
        (input.group_ids.is_empty() || input.group_ids.contains(&group.id))
            && (input.group_names.is_empty() || input.group_names.contains(&group.name))
            && filters.matches(group, &())
    };
    let groups = snapshot.list::<PlacementGroup>(&ctx.account, &ctx.region).filter(wanted);
    Ok(DescribePlacementGroupsResult { placement_groups: groups.map(|group| to_api(group)).collect() })
}

fn by_name<'a>(ctx: &Context, snapshot: &'a Snapshot, name: &str) -> Option<&'a Entry<PlacementGroup>> {
    snapshot.by_index(&ctx.account, &ctx.region, "name", name).next()
}

fn arn(group: &PlacementGroup) -> String {
    Scope { account: &group.account, region: &group.region }.arn("placement-group", &group.name)
}

fn to_api(group: &PlacementGroup) -> model::PlacementGroup {
    model::PlacementGroup {
        group_name: Some(group.name.clone()),
        state: Some(model::PlacementGroupState::Available),
        strategy: group.strategy.as_str().parse().ok(),
        partition_count: group.partition_count.and_then(|count| i32::try_from(count).ok()),
        group_id: Some(group.id.clone()),
        tags: tags::to_api(&group.tags),
        group_arn: Some(arn(group)),
        spread_level: (group.strategy == PlacementStrategy::Spread).then_some(model::SpreadLevel::Rack),
    }
}
