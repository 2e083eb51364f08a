//! Snapshots of EBS volumes.

use haar_api::{Context, Error};
use haar_core::FilterTable;
use haar_records::Tags;
use haar_records::ec2::{EbsSnapshot, SnapshotState, Volume, VolumeState};
use haar_store::Tx;

use crate::describe::{Kind, Request};
use crate::error::{Result, combination, invalid_value, missing, shorten};
use crate::handlers::Handlers;
use crate::{ids, instances, model, tags, volumes};

/// The longest description ("CreateSnapshot" says none; AWS takes 255 characters).
const MAX_DESCRIPTION: usize = 255;

const SNAPSHOTS: Kind<EbsSnapshot, ()> = Kind {
    id: ids::SNAPSHOT,
    filters: FilterTable::<EbsSnapshot>::new(&[
        ("description", |snapshot, (), probe| probe.value(&snapshot.description)),
        ("encrypted", |_, (), probe| probe.value("false")),
        ("owner-alias", |_, (), _| ()),
        ("owner-id", |snapshot, (), probe| probe.value(&snapshot.account)),
        ("progress", |snapshot, (), probe| probe.value(progress(snapshot))),
        ("snapshot-id", |snapshot, (), probe| probe.value(&snapshot.id)),
        ("start-time", |snapshot, (), probe| {
            probe.values(snapshot.start_time.format(volumes::TIME).ok().as_deref());
        }),
        ("status", |snapshot, (), probe| probe.value(snapshot.state.as_str())),
        ("storage-tier", |_, (), probe| probe.value("standard")),
        ("volume-id", |snapshot, (), probe| probe.value(&snapshot.volume_id)),
        ("volume-size", |snapshot, (), probe| probe.display(snapshot.volume_size_gib)),
    ])
    .with_tags(|snapshot| &snapshot.tags),
    indexes: &[("volume-id", "volume")],
};

/// The snapshot with this id, unless it is being removed.
pub(crate) fn by_id(ctx: &Context, tx: &mut Tx, id: &str) -> Result<EbsSnapshot> {
    ids::SNAPSHOT.check(id)?;
    let found = tx.get::<EbsSnapshot>(&ctx.account, &ctx.region, id).filter(|found| !found.deleted);
    Ok(EbsSnapshot::clone(&*found.ok_or_else(|| ids::SNAPSHOT.missing(id))?))
}

/// `CreateSnapshot`.
pub async fn create_snapshot(
    handlers: &Handlers,
    ctx: &Context,
    input: model::CreateSnapshotRequest,
) -> Result<model::Snapshot> {
    let description = check_description(input.description)?;
    let tags = tags::of_new_one(&input.tag_specifications, "snapshot")?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let volume = volumes::by_id(ctx, tx, &input.volume_id)?;
        let snapshot = of_volume(ctx, &volume, &description, tags.clone())?;
        tx.put(snapshot.clone());
        Ok(to_api(&snapshot))
    })
    .await
}

/// `CreateSnapshots`: of an instance's volumes, all at the same point in time.
pub async fn create_snapshots(
    handlers: &Handlers,
    ctx: &Context,
    input: model::CreateSnapshotsRequest,
) -> Result<model::CreateSnapshotsResult> {
    let description = check_description(input.description)?;
    let tags = tags::of_new_one(&input.tag_specifications, "snapshot")?;
    let of = &input.instance_specification;
    for id in &of.exclude_data_volume_ids {
        ids::VOLUME.check(id)?;
    }
    haar_core::transact(&handlers.store, ctx, |tx| {
        let instance = instances::by_id(ctx, tx, &of.instance_id)?;
        let root = &instance.spec.root_device_name;
        let is_root = |id: &str| {
            instance.spec.block_devices.iter().any(|d| d.volume_id == id && d.device_name == *root)
        };
        for id in &of.exclude_data_volume_ids {
            let attached = instance.spec.block_devices.iter().any(|device| device.volume_id == *id);
            if !attached || is_root(id) {
                return Err(invalid_value(format!(
                    "The volume '{id}' is not a data volume of the instance '{}'",
                    instance.id
                )));
            }
        }
        let excluded = |id: &String| {
            of.exclude_data_volume_ids.contains(id) || (of.exclude_boot_volume == Some(true) && is_root(id))
        };
        let mut snapshots = Vec::new();
        for device in instance.spec.block_devices.iter().filter(|device| !excluded(&device.volume_id)) {
            let volume = volumes::by_id(ctx, tx, &device.volume_id)?;
            let mut all = tags.clone();
            if input.copy_tags_from_source == Some(model::CopyTagsFromSource::Volume) {
                for (key, value) in &volume.tags {
                    all.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
            snapshots.push(of_volume(ctx, &volume, &description, all)?);
        }
        if snapshots.is_empty() {
            return Err(combination("The request excludes every volume of the instance"));
        }
        let set: Vec<String> = snapshots.iter().map(|snapshot| snapshot.id.clone()).collect();
        for snapshot in &mut snapshots {
            snapshot.set.clone_from(&set);
            tx.put(snapshot.clone());
        }
        Ok(model::CreateSnapshotsResult { snapshots: snapshots.iter().map(to_info).collect() })
    })
    .await
}

fn check_description(description: Option<String>) -> Result<String> {
    let description = description.unwrap_or_default();
    if description.chars().count() > MAX_DESCRIPTION {
        return Err(invalid_value(format!(
            "Value for parameter description is invalid. It has more than {MAX_DESCRIPTION} characters."
        )));
    }
    Ok(description)
}

fn of_volume(ctx: &Context, volume: &Volume, description: &str, tags: Tags) -> Result<EbsSnapshot> {
    if !matches!(volume.state, VolumeState::Available | VolumeState::InUse) {
        let message = format!("Volume '{}' is in the '{}' state.", volume.id, volume.state);
        return Err(Error::new("IncorrectState", message));
    }
    Ok(EbsSnapshot {
        account: ctx.account.clone(),
        region: ctx.region.clone(),
        id: ids::SNAPSHOT.generate(),
        volume_id: volume.id.clone(),
        volume_size_gib: volume.size_gib,
        state: SnapshotState::Pending,
        state_message: None,
        start_time: ctx.now,
        completion_time: None,
        description: description.to_owned(),
        set: Vec::new(),
        deleted: false,
        tags,
    })
}

/// `DeleteSnapshot`.
pub async fn delete_snapshot(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DeleteSnapshotRequest,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let snapshot = by_id(ctx, tx, &input.snapshot_id)?;
        tx.put(EbsSnapshot { deleted: true, ..snapshot });
        Ok(())
    })
    .await
}

/// `DescribeSnapshots`.
///
/// There are no public snapshots here and none that are shared: a caller sees its own.
pub async fn describe_snapshots(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeSnapshotsRequest,
) -> Result<model::DescribeSnapshotsResult> {
    if input.max_results.is_some() && !input.snapshot_ids.is_empty() {
        return Err(combination("The parameter snapshotSet cannot be used with the parameter maxResults"));
    }
    for user in input.owner_ids.iter().chain(&input.restorable_by_user_ids) {
        check_user(user)?;
    }
    let named = |users: &[String], also: &str| {
        users.is_empty() || users.iter().any(|user| *user == ctx.account || user == "self" || user == also)
    };
    // Nothing of Amazon's is here, and nothing that everyone may restore.
    let mine = named(&input.owner_ids, "self") && named(&input.restorable_by_user_ids, "self");
    let snapshot = handlers.store.snapshot();
    let request = Request {
        ids: &input.snapshot_ids,
        filters: &input.filters,
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (found, next_token) =
        SNAPSHOTS.page_where(handlers, ctx, &snapshot, &request, &(), |found| mine && !found.deleted)?;
    // One that is being removed is as good as gone.
    if let Some(gone) = input.snapshot_ids.iter().find(|id| mine && found.iter().all(|f| f.id != **id))
        && input.filters.is_empty()
    {
        return Err(ids::SNAPSHOT.missing(gone).into());
    }
    Ok(model::DescribeSnapshotsResult {
        snapshots: found.iter().map(|found| to_api(found)).collect(),
        next_token,
    })
}

/// An account, `self`, `amazon`, `aws-marketplace` or `all`.
fn check_user(user: &str) -> Result<()> {
    let account = user.len() == 12 && user.bytes().all(|b| b.is_ascii_digit());
    if account || matches!(user, "self" | "amazon" | "aws-marketplace" | "all") {
        return Ok(());
    }
    if user.is_empty() {
        return Err(missing("Owner"));
    }
    Err(Error::new("InvalidUserID.Malformed", format!("Invalid user id: \"{}\"", shorten(user))))
}

fn progress(snapshot: &EbsSnapshot) -> &'static str {
    match snapshot.state {
        SnapshotState::Pending | SnapshotState::Error => "0%",
        SnapshotState::Completed => "100%",
    }
}

fn state(snapshot: &EbsSnapshot) -> model::SnapshotState {
    match snapshot.state {
        SnapshotState::Pending => model::SnapshotState::Pending,
        SnapshotState::Completed => model::SnapshotState::Completed,
        SnapshotState::Error => model::SnapshotState::Error,
    }
}

fn to_api(snapshot: &EbsSnapshot) -> model::Snapshot {
    model::Snapshot {
        completion_time: snapshot.completion_time,
        description: Some(snapshot.description.clone()),
        encrypted: Some(false),
        owner_id: Some(snapshot.account.clone()),
        progress: Some(progress(snapshot).to_owned()),
        snapshot_id: Some(snapshot.id.clone()),
        start_time: Some(snapshot.start_time),
        state: Some(state(snapshot)),
        state_message: snapshot.state_message.clone(),
        storage_tier: Some(model::StorageTier::Standard),
        tags: tags::to_api(&snapshot.tags),
        volume_id: Some(snapshot.volume_id.clone()),
        volume_size: i32::try_from(snapshot.volume_size_gib).ok(),
    }
}

fn to_info(snapshot: &EbsSnapshot) -> model::SnapshotInfo {
    model::SnapshotInfo {
        description: Some(snapshot.description.clone()),
        encrypted: Some(false),
        owner_id: Some(snapshot.account.clone()),
        progress: Some(progress(snapshot).to_owned()),
        snapshot_id: Some(snapshot.id.clone()),
        start_time: Some(snapshot.start_time),
        state: Some(state(snapshot)),
        tags: tags::to_api(&snapshot.tags),
        volume_id: Some(snapshot.volume_id.clone()),
        volume_size: i32::try_from(snapshot.volume_size_gib).ok(),
    }
}
