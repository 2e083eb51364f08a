//! Snapshots of EBS volumes.

mod copy;
mod sharing;

use haar_api::timestamp::iso8601;
use haar_api::{Context, Error};
use haar_core::FilterTable;
use haar_records::Tags;
use haar_records::ec2::{EbsSnapshot, Encryption, Image, SnapshotState, Volume, VolumeState};
use haar_store::{Entry, Resource, Snapshot as Records, Tx};

pub use copy::copy_snapshot;
pub(crate) use copy::{of_library, of_snapshot};
pub use sharing::{describe_snapshot_attribute, modify_snapshot_attribute, reset_snapshot_attribute};

use crate::describe::{BY_TAG, Kind, Request, ids_or_pages};
use crate::error::{Result, combination, invalid_value, missing, shorten};
use crate::handlers::Handlers;
use crate::{Scope, ids, instances, model, tags, volumes};

/// The longest description ("CreateSnapshot" says none; AWS takes 255 characters).
const MAX_DESCRIPTION: usize = 255;

const SNAPSHOTS: Kind<EbsSnapshot, ()> = Kind {
    id: ids::SNAPSHOT,
    filters: FilterTable::<EbsSnapshot>::new(&[
        ("description", |snapshot, (), probe| probe.value(&snapshot.description)),
        ("encrypted", |snapshot, (), probe| probe.display(snapshot.encryption.is_some())),
        ("owner-alias", |_, (), _| ()),
        ("owner-id", |snapshot, (), probe| probe.value(&snapshot.account)),
        ("progress", |snapshot, (), probe| probe.value(progress(snapshot))),
        ("snapshot-id", |snapshot, (), probe| probe.value(&snapshot.id)),
        ("start-time", |snapshot, (), probe| {
            probe.value(&iso8601(snapshot.start_time, true));
        }),
        ("status", |snapshot, (), probe| probe.value(snapshot.state.as_str())),
        ("storage-tier", |_, (), probe| probe.value("standard")),
        ("transfer-type", |_, (), _| ()),
        ("volume-id", |snapshot, (), probe| probe.value(&snapshot.volume_id)),
        ("volume-size", |snapshot, (), probe| probe.display(snapshot.volume_size_gib)),
    ])
    .with_tags(|snapshot| &snapshot.tags),
    indexes: &[("volume-id", "volume"), BY_TAG],
};

/// The snapshot with this id, unless it is being removed.
pub(crate) fn by_id(ctx: &Context, tx: &mut Tx, id: &str) -> Result<EbsSnapshot> {
    ids::SNAPSHOT.check(id)?;
    let found = tx.get::<EbsSnapshot>(&ctx.account, &ctx.region, id).filter(|found| !found.deleted);
    Ok(EbsSnapshot::clone(&*found.ok_or_else(|| ids::SNAPSHOT.missing(id))?))
}

/// The snapshot with this id that an account may make volumes from: one of its own, or one that is shared with it.
pub(crate) fn restorable(tx: &mut Tx, account: &str, region: &str, id: &str) -> Result<Entry<EbsSnapshot>> {
    ids::SNAPSHOT.check(id)?;
    let shared = || shared_with(tx.snapshot(), account, region).find(|found| found.id == id);
    let owner = match tx.snapshot().get::<EbsSnapshot>(account, region, id) {
        Some(own) => Some(own.account.clone()),
        None => shared().map(|found| found.account.clone()),
    };
    let found = owner.and_then(|owner| tx.get::<EbsSnapshot>(&owner, region, id));
    Ok(found.filter(|found| !found.deleted).ok_or_else(|| ids::SNAPSHOT.missing(id))?)
}

/// The snapshots of other accounts in a region from which an account may make volumes.
fn shared_with<'a>(
    records: &'a Records,
    account: &'a str,
    region: &'a str,
) -> impl Iterator<Item = &'a Entry<EbsSnapshot>> {
    records.list_all::<EbsSnapshot>().filter(move |found| {
        found.account != account && found.region == region && found.is_restorable_by(account)
    })
}

/// The snapshot with this id, of which volumes can be made.
pub(crate) fn complete(scope: Scope<'_>, tx: &mut Tx, id: &str) -> Result<EbsSnapshot> {
    let found = restorable(tx, scope.account, scope.region, id)?;
    if found.state != SnapshotState::Completed {
        let message = format!("Snapshot '{id}' is not in the 'completed' state.");
        return Err(Error::new("IncorrectState", message));
    }
    Ok(EbsSnapshot::clone(&found))
}

/// The image that stands on a snapshot, if one does.
pub(crate) fn image_on(ctx: &Context, tx: &mut Tx, id: &str) -> Option<String> {
    tx.by_index::<Image>(&ctx.account, &ctx.region, "snapshot", id).next().map(|image| image.id.clone())
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

/// A snapshot that a request asks for.
fn new(ctx: &Context, volume_size_gib: u32) -> EbsSnapshot {
    EbsSnapshot::new(&ctx.account, &ctx.region, ids::SNAPSHOT.generate(), volume_size_gib, ctx.now)
}

/// A snapshot of a volume, to be taken.
pub(crate) fn of_volume(
    ctx: &Context,
    volume: &Volume,
    description: &str,
    tags: Tags,
) -> Result<EbsSnapshot> {
    if !matches!(volume.state, VolumeState::Available | VolumeState::InUse) {
        let message = format!("Volume '{}' is in the '{}' state.", volume.id, volume.state);
        return Err(Error::new("IncorrectState", message));
    }
    Ok(EbsSnapshot {
        volume_id: volume.id.clone(),
        description: description.to_owned(),
        encryption: volume.encryption.clone(),
        tags,
        image_id: volume.image_id.clone(),
        ..new(ctx, volume.size_gib)
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
        if let Some(image_id) = image_on(ctx, tx, &snapshot.id) {
            let message = format!("The snapshot {} is currently in use by {image_id}", snapshot.id);
            return Err(Error::new("InvalidSnapshot.InUse", message));
        }
        tx.put(EbsSnapshot { deleted: true, ..snapshot });
        Ok(())
    })
    .await
}

/// `DescribeSnapshots`: the caller's own, and those that it may make volumes from.
pub async fn describe_snapshots(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeSnapshotsRequest,
) -> Result<model::DescribeSnapshotsResult> {
    ids_or_pages("snapshotSet", &input.snapshot_ids, input.max_results)?;
    for user in input.owner_ids.iter().chain(&input.restorable_by_user_ids) {
        check_user(user)?;
    }
    let records = handlers.store.snapshot();
    let candidates = if input.snapshot_ids.is_empty() {
        listed(ctx, &records, &input)
    } else {
        named(ctx, &records, &input.snapshot_ids)?
    };
    let request =
        Request::new(&input.snapshot_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let wanted = |found: &EbsSnapshot| !found.deleted && is_asked_for(ctx, &input, found);
    let (found, next_token) =
        SNAPSHOTS.page_among(handlers, ctx, &records, &request, &(), candidates.as_deref(), wanted)?;
    Ok(model::DescribeSnapshotsResult {
        snapshots: found.iter().map(|found| to_api(found)).collect(),
        next_token,
    })
}

/// The snapshots among which those are that a request without ids lists, sorted by id; none if an index or the list of the
/// caller's own gives them.
fn listed(
    ctx: &Context,
    records: &Records,
    input: &model::DescribeSnapshotsRequest,
) -> Option<Vec<Entry<EbsSnapshot>>> {
    let own = |user: &String| *user == ctx.account || user == "self";
    if !input.owner_ids.is_empty() && input.owner_ids.iter().all(own) {
        return None;
    }
    let mut shared: Vec<_> = shared_with(records, &ctx.account, &ctx.region).cloned().collect();
    if shared.is_empty() {
        return None;
    }
    shared.extend(records.list::<EbsSnapshot>(&ctx.account, &ctx.region).cloned());
    shared.sort_unstable_by(|a, b| a.id().cmp(b.id()));
    Some(shared)
}

/// The snapshots with these ids.
fn named(ctx: &Context, records: &Records, named: &[String]) -> Result<Option<Vec<Entry<EbsSnapshot>>>> {
    let mut ids: Vec<&str> = named.iter().map(String::as_str).collect();
    for id in &ids {
        ids::SNAPSHOT.check(id)?;
    }
    ids.sort_unstable();
    ids.dedup();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for id in ids {
        let own = records.get::<EbsSnapshot>(&ctx.account, &ctx.region, id);
        let shared = || shared_with(records, &ctx.account, &ctx.region).find(|found| found.id == id).cloned();
        // One that is being removed is as good as gone.
        match own.or_else(shared).filter(|found| !found.deleted) {
            Some(record) => found.push(record),
            None => missing.push(id),
        }
    }
    if missing.is_empty() { Ok(Some(found)) } else { Err(ids::SNAPSHOT.missing_all(&missing).into()) }
}

/// Whether owner and restorability are as the request says. Nothing of Amazon's is here.
fn is_asked_for(ctx: &Context, input: &model::DescribeSnapshotsRequest, found: &EbsSnapshot) -> bool {
    let is_owner = |user: &String| *user == found.account || (user == "self" && found.account == ctx.account);
    let may_restore = |user: &String| match user.as_str() {
        "self" => found.is_restorable_by(&ctx.account),
        "all" => found.public,
        user => found.is_restorable_by(user),
    };
    (input.owner_ids.is_empty() || input.owner_ids.iter().any(is_owner))
        && (input.restorable_by_user_ids.is_empty() || input.restorable_by_user_ids.iter().any(may_restore))
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
        encrypted: Some(snapshot.encryption.is_some()),
        kms_key_id: snapshot.encryption.as_ref().map(Encryption::key_arn),
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
        encrypted: Some(snapshot.encryption.is_some()),
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
