//! `createVolumePermission`: who may make volumes from a snapshot besides its owner.

use haar_api::{Context, Error};
use haar_records::ec2::EbsSnapshot;

use super::by_id;
use crate::error::{Result, combination, invalid_value, missing, shorten};
use crate::handlers::Handlers;
use crate::{ids, model};

/// Most accounts that a snapshot is shared with.
const MAX_SHARED: usize = 1_000;

/// Whom a permission is for.
enum Who {
    Everyone,
    Account(String),
}

/// `ModifySnapshotAttribute`.
pub async fn modify_snapshot_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ModifySnapshotAttributeRequest,
) -> Result<()> {
    if input.attribute == Some(model::SnapshotAttributeName::ProductCodes) {
        return Err(invalid_value(
            "Value (productCodes) for parameter attribute is invalid. It cannot be modified.",
        ));
    }
    let (add, remove) = changes(&input)?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut snapshot = by_id(ctx, tx, &input.snapshot_id)?;
        if !add.is_empty() && snapshot.encryption.is_some() {
            let message = "Encrypted snapshots with EBS default key cannot be shared";
            return Err(Error::new("OperationNotPermitted", message));
        }
        for who in &remove {
            match who {
                Who::Everyone => snapshot.public = false,
                Who::Account(account) => drop(snapshot.shared_with.remove(account)),
            }
        }
        for who in &add {
            match who {
                Who::Everyone => snapshot.public = true,
                Who::Account(account) => drop(snapshot.shared_with.insert(account.clone())),
            }
        }
        if snapshot.shared_with.len() > MAX_SHARED {
            let message = format!("A snapshot can be shared with at most {MAX_SHARED} accounts.");
            return Err(Error::new("ResourceLimitExceeded", message));
        }
        tx.put(snapshot);
        Ok(())
    })
    .await
}

/// Whom a request adds and whom it removes: by `CreateVolumePermission`, or by `OperationType` with users and groups.
fn changes(input: &model::ModifySnapshotAttributeRequest) -> Result<(Vec<Who>, Vec<Who>)> {
    let named = !input.user_ids.is_empty() || !input.group_names.is_empty();
    let (add, remove) = match (&input.create_volume_permission, input.operation_type) {
        (Some(_), Some(_)) => {
            return Err(combination(
                "The parameters createVolumePermission and operationType cannot be used together",
            ));
        }
        (Some(_), None) if named => {
            return Err(combination(
                "The parameter createVolumePermission cannot be used with users or groups",
            ));
        }
        (Some(permission), None) => (permissions(&permission.add)?, permissions(&permission.remove)?),
        (None, None) => return Err(missing(if named { "operationType" } else { "createVolumePermission" })),
        (None, Some(operation)) => {
            let mut who = Vec::new();
            for user in &input.user_ids {
                who.push(account(user)?);
            }
            for group in &input.group_names {
                if group != "all" {
                    return Err(invalid_value(format!("Invalid user group: \"{}\"", shorten(group))));
                }
                who.push(Who::Everyone);
            }
            match operation {
                model::OperationType::Add => (who, Vec::new()),
                model::OperationType::Remove => (Vec::new(), who),
            }
        }
    };
    if add.is_empty() && remove.is_empty() {
        return Err(missing("userId or userGroup"));
    }
    Ok((add, remove))
}

fn permissions(permissions: &[model::CreateVolumePermission]) -> Result<Vec<Who>> {
    let who = |permission: &model::CreateVolumePermission| match (&permission.user_id, permission.group) {
        (Some(user), None) => account(user),
        (None, Some(model::PermissionGroup::All)) => Ok(Who::Everyone),
        (Some(_), Some(_)) => Err(combination("A permission is for either a user or a group")),
        (None, None) => Err(missing("userId or group")),
    };
    permissions.iter().map(who).collect()
}

fn account(user: &str) -> Result<Who> {
    if user.len() == 12 && user.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(Who::Account(user.to_owned()));
    }
    Err(Error::new("InvalidUserID.Malformed", format!("Invalid user id: \"{}\"", shorten(user))))
}

/// `ResetSnapshotAttribute`: only its owner may make volumes from the snapshot.
pub async fn reset_snapshot_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ResetSnapshotAttributeRequest,
) -> Result<()> {
    if input.attribute != model::SnapshotAttributeName::CreateVolumePermission {
        return Err(invalid_value(
            "Value (productCodes) for parameter attribute is invalid. It cannot be reset.",
        ));
    }
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut snapshot = by_id(ctx, tx, &input.snapshot_id)?;
        snapshot.public = false;
        snapshot.shared_with.clear();
        tx.put(snapshot);
        Ok(())
    })
    .await
}

/// `DescribeSnapshotAttribute`, for the snapshot's owner.
pub async fn describe_snapshot_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeSnapshotAttributeRequest,
) -> Result<model::DescribeSnapshotAttributeResult> {
    ids::SNAPSHOT.check(&input.snapshot_id)?;
    let found = handlers.store.snapshot().get::<EbsSnapshot>(&ctx.account, &ctx.region, &input.snapshot_id);
    let snapshot =
        found.filter(|found| !found.deleted).ok_or_else(|| ids::SNAPSHOT.missing(&input.snapshot_id))?;
    let mut create_volume_permissions = Vec::new();
    if input.attribute == model::SnapshotAttributeName::CreateVolumePermission {
        if snapshot.public {
            create_volume_permissions.push(model::CreateVolumePermission {
                user_id: None,
                group: Some(model::PermissionGroup::All),
            });
        }
        create_volume_permissions.extend(
            snapshot
                .shared_with
                .iter()
                .map(|account| model::CreateVolumePermission { user_id: Some(account.clone()), group: None }),
        );
    }
    Ok(model::DescribeSnapshotAttributeResult {
        create_volume_permissions,
        // No snapshot here comes from AWS Marketplace.
        product_codes: Vec::new(),
        snapshot_id: Some(snapshot.id.clone()),
    })
}

#[cfg(test)]
mod tests {
    use haar_records::ec2::SnapshotState;
    use time::OffsetDateTime;

    use super::*;
    use crate::model::Ec2;
    use crate::testing::{SCOPE, code, context, handlers};

    const OTHER: &str = "222222222222";

    async fn one_snapshot(handlers: &Handlers) -> String {
        let id = ids::SNAPSHOT.generate();
        let snapshot = EbsSnapshot {
            volume_id: ids::VOLUME.generate(),
            state: SnapshotState::Completed,
            ..EbsSnapshot::new(SCOPE.account, SCOPE.region, id.clone(), 1, OffsetDateTime::UNIX_EPOCH)
        };
        crate::testing::write(&handlers.store, |tx| {
            tx.put(snapshot.clone());
            Ok(())
        })
        .await
        .unwrap();
        id
    }

    #[tokio::test]
    async fn another_account_may_use_what_is_shared_with_it_and_nothing_more() {
        let handlers = handlers().await;
        let id = one_snapshot(&handlers).await;
        let other = Context::new(OTHER, SCOPE.region);
        let describe = |named: bool| model::DescribeSnapshotsRequest {
            snapshot_ids: if named { vec![id.clone()] } else { Vec::new() },
            ..Default::default()
        };
        let create = || model::CreateVolumeRequest {
            availability_zone: Some("eu-central-1a".into()),
            snapshot_id: Some(id.clone()),
            ..Default::default()
        };
        let copy = || model::CopySnapshotRequest {
            source_region: SCOPE.region.into(),
            source_snapshot_id: id.clone(),
            ..Default::default()
        };
        let change = |operation| model::ModifySnapshotAttributeRequest {
            snapshot_id: id.clone(),
            operation_type: Some(operation),
            user_ids: vec![OTHER.into()],
            ..Default::default()
        };
        let none = "InvalidSnapshot.NotFound";
        assert_eq!(code(handlers.describe_snapshots(&other, describe(true)).await), none);
        assert!(handlers.describe_snapshots(&other, describe(false)).await.unwrap().snapshots.is_empty());
        assert_eq!(code(handlers.create_volume(&other, create()).await), none);
        assert_eq!(code(handlers.copy_snapshot(&other, copy()).await), none);

        handlers.modify_snapshot_attribute(&context(), change(model::OperationType::Add)).await.unwrap();
        for named in [true, false] {
            let found = handlers.describe_snapshots(&other, describe(named)).await.unwrap().snapshots;
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].owner_id.as_deref(), Some(SCOPE.account));
        }
        let own = model::DescribeSnapshotsRequest { owner_ids: vec!["self".into()], ..Default::default() };
        assert!(handlers.describe_snapshots(&other, own).await.unwrap().snapshots.is_empty());
        handlers.create_volume(&other, create()).await.unwrap();
        handlers.copy_snapshot(&other, copy()).await.unwrap();
        let delete = || model::DeleteSnapshotRequest { snapshot_id: id.clone() };
        assert_eq!(code(handlers.delete_snapshot(&other, delete()).await), none);
        let attribute = model::DescribeSnapshotAttributeRequest {
            snapshot_id: id.clone(),
            attribute: model::SnapshotAttributeName::CreateVolumePermission,
        };
        assert_eq!(code(handlers.describe_snapshot_attribute(&other, attribute).await), none);
        let mine = change(model::OperationType::Add);
        assert_eq!(code(handlers.modify_snapshot_attribute(&other, mine).await), none);

        handlers.modify_snapshot_attribute(&context(), change(model::OperationType::Remove)).await.unwrap();
        assert_eq!(code(handlers.create_volume(&other, create()).await), none);
    }
}
