//! Snapshots that are uploaded block by block.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use haar_api::{Context, Error};
use haar_core::{Tags, idempotent, tags};
use haar_ec2::encryption::{self, Asked};
use haar_records::ec2::{EbsSnapshot, Encryption, SnapshotState, SnapshotUpload};
use haar_store::Tx;
use sha2::{Digest as _, Sha256};
use time::Duration;

use crate::BLOCK_BYTES;
use crate::blocks::{blocks_of, failed, part};
use crate::handlers::{Handlers, Result, invalid, not_found, restorable};
use crate::model::{self, errors};

/// The largest volume in GiB.
const MAX_VOLUME_GIB: i64 = 64 << 10;

/// How long an upload may take in minutes when the request does not say it.
const DEFAULT_TIMEOUT: i32 = 60;

/// `StartSnapshot`.
pub(crate) async fn start_snapshot(
    handlers: &Handlers,
    ctx: &Context,
    input: model::StartSnapshotRequest,
) -> Result<model::StartSnapshotResponse> {
    if input.volume_size > MAX_VOLUME_GIB {
        return Err(invalid("INVALID_VOLUME_SIZE", format!("A volume has at most {MAX_VOLUME_GIB} GiB.")));
    }
    let size = u32::try_from(input.volume_size)
        .map_err(|_| invalid("INVALID_VOLUME_SIZE", "A volume has at least 1 GiB."))?;
    let wrong = |message: &str| invalid("INVALID_PARAMETER_VALUE", message);
    let named = tags_of(&input.tags)?;
    if input.kms_key_arn.is_some() && input.encrypted != Some(true) {
        return Err(wrong("KmsKeyArn needs Encrypted."));
    }
    if input.parent_snapshot_id.is_some() && input.encrypted.is_some() {
        return Err(wrong(
            "Encrypted cannot be given with ParentSnapshotId: the snapshot is encrypted as its parent.",
        ));
    }
    let asked = Asked { encrypted: input.encrypted, kms_key_id: input.kms_key_arn.clone() };
    let id = transact(handlers, ctx, |tx| {
        idempotent(tx, ctx, |tx| {
            let parent = match &input.parent_snapshot_id {
                None => None,
                Some(id) => Some(parent(ctx, tx, id, size)?),
            };
            let source = parent.as_ref().and_then(|parent| parent.encryption.as_ref());
            let encryption = encryption::of_new(&handlers.sealer, ctx, tx, &asked, source)
                .map_err(|error| invalid("INVALID_CUSTOMER_KEY", error.message))?;
            if parent.is_some() && encryption.is_some() != source.is_some() {
                return Err(wrong(
                    "Encryption is enabled by default, and the parent snapshot is not encrypted: copy it first.",
                ));
            }
            let id = haar_ec2::ids::SNAPSHOT.generate();
            let snapshot = EbsSnapshot {
                description: input.description.clone().unwrap_or_default(),
                upload: Some(SnapshotUpload {
                    parent: parent.as_ref().map(|parent| parent.id.clone()),
                    deadline: ctx.now + Duration::minutes(input.timeout.unwrap_or(DEFAULT_TIMEOUT).into()),
                    completing: false,
                }),
                encryption,
                tags: named.clone(),
                image_id: parent.as_ref().and_then(|parent| parent.image_id.clone()),
                ..EbsSnapshot::new(&ctx.account, &ctx.region, id.clone(), size, ctx.now)
            };
            tx.put(snapshot);
            Ok::<_, Error>(id)
        })
    })
    .await?;
    let found = handlers.store.snapshot().get::<EbsSnapshot>(&ctx.account, &ctx.region, &id);
    let snapshot = found.ok_or_else(|| not_found(&id))?;
    Ok(model::StartSnapshotResponse {
        description: Some(snapshot.description.clone()).filter(|description| !description.is_empty()),
        snapshot_id: Some(snapshot.id.clone()),
        owner_id: Some(snapshot.account.clone()),
        status: Some(status(snapshot.state)),
        start_time: Some(snapshot.start_time),
        volume_size: Some(i64::from(snapshot.volume_size_gib)),
        block_size: i32::try_from(BLOCK_BYTES).ok(),
        tags: input.tags,
        parent_snapshot_id: input.parent_snapshot_id,
        kms_key_arn: snapshot.encryption.as_ref().map(Encryption::key_arn),
        sse_type: Some(match snapshot.encryption {
            Some(_) => model::SSEType::SseKms,
            None => model::SSEType::None,
        }),
    })
}

/// The snapshot on which an upload stands.
fn parent(ctx: &Context, tx: &mut Tx, id: &str, size: u32) -> Result<EbsSnapshot> {
    let found = restorable(ctx, tx.snapshot(), id)?;
    let found = tx.get::<EbsSnapshot>(&found.account, &found.region, id).ok_or_else(|| not_found(id))?;
    if found.state != SnapshotState::Completed {
        return Err(invalid("INVALID_SNAPSHOT_ID", format!("The snapshot '{id}' is not completed.")));
    }
    if size < found.volume_size_gib {
        return Err(invalid(
            "INVALID_VOLUME_SIZE",
            "The volume is smaller than that of the parent snapshot.",
        ));
    }
    Ok(EbsSnapshot::clone(&found))
}

fn tags_of(given: &[model::Tag]) -> Result<Tags> {
    let pairs = given.iter().map(|tag| (tag.key.as_deref(), tag.value.as_deref()));
    tags::parse(pairs).map_err(|error| invalid("INVALID_TAG", error.to_string()))
}

fn status(state: SnapshotState) -> model::Status {
    match state {
        SnapshotState::Pending => model::Status::Pending,
        SnapshotState::Completed => model::Status::Completed,
        SnapshotState::Error => model::Status::Error,
    }
}

/// The caller's snapshot that is being uploaded.
fn uploading(handlers: &Handlers, ctx: &Context, id: &str) -> Result<EbsSnapshot> {
    let found = handlers.store.snapshot().get::<EbsSnapshot>(&ctx.account, &ctx.region, id);
    let snapshot = found.filter(|found| !found.deleted).ok_or_else(|| not_found(id))?;
    match &snapshot.upload {
        Some(upload) if snapshot.state == SnapshotState::Pending && upload.deadline > ctx.now => {
            Ok(EbsSnapshot::clone(&snapshot))
        }
        _ => Err(invalid("INVALID_SNAPSHOT_ID", format!("The snapshot '{id}' is not being uploaded."))),
    }
}

/// `PutSnapshotBlock`.
pub(crate) async fn put_snapshot_block(
    handlers: &Handlers,
    ctx: &Context,
    input: model::PutSnapshotBlockRequest,
) -> Result<model::PutSnapshotBlockResponse> {
    let data = input.block_data;
    if data.len() != BLOCK_BYTES || usize::try_from(input.data_length) != Ok(BLOCK_BYTES) {
        return Err(invalid("INVALID_BLOCK", format!("A block has {BLOCK_BYTES} bytes.")));
    }
    let checksum = STANDARD.encode(Sha256::digest(&data));
    if checksum != input.checksum {
        return Err(invalid("INVALID_BLOCK", "The checksum is not that of the block."));
    }
    let _open = handlers.uploads.read().await;
    let snapshot = uploading(handlers, ctx, &input.snapshot_id)?;
    if snapshot.upload.as_ref().is_some_and(|upload| upload.completing) {
        return Err(invalid("INVALID_SNAPSHOT_ID", "The snapshot is being completed."));
    }
    let part = part(input.block_index);
    if part.end > u64::from(snapshot.volume_size_gib) << 30 {
        return Err(invalid("INVALID_BLOCK", "The block is beyond the end of the volume."));
    }
    handlers.host.write(&snapshot, part.start, &data).await.map_err(failed)?;
    Ok(model::PutSnapshotBlockResponse {
        checksum: Some(checksum),
        checksum_algorithm: Some(input.checksum_algorithm),
    })
}

/// `CompleteSnapshot`.
pub(crate) async fn complete_snapshot(
    handlers: &Handlers,
    ctx: &Context,
    input: model::CompleteSnapshotRequest,
) -> Result<model::CompleteSnapshotResponse> {
    let id = input.snapshot_id.as_str();
    if input.checksum.is_some()
        && (input.checksum_algorithm.is_none() || input.checksum_aggregation_method.is_none())
    {
        return Err(invalid(
            "INVALID_PARAMETER_VALUE",
            "A checksum needs its algorithm and aggregation method.",
        ));
    }
    {
        // What is being written is waited for, and nothing more is written.
        let _closed = handlers.uploads.write().await;
        uploading(handlers, ctx, id)?;
        change(handlers, ctx, id, |snapshot| {
            if let Some(upload) = &mut snapshot.upload {
                upload.completing = true;
            }
        })
        .await?;
    }
    let snapshot = uploading(handlers, ctx, id)?;
    if let Err(refused) = check(handlers, &snapshot, &input).await {
        change(handlers, ctx, id, |snapshot| {
            if let Some(upload) = &mut snapshot.upload {
                upload.completing = false;
            }
        })
        .await?;
        return Err(refused);
    }
    change(handlers, ctx, id, |snapshot| {
        snapshot.state = SnapshotState::Completed;
        snapshot.completion_time = Some(ctx.now);
    })
    .await?;
    Ok(model::CompleteSnapshotResponse { status: Some(model::Status::Completed) })
}

/// Whether what was written is on stable storage, and is what the caller says.
async fn check(
    handlers: &Handlers,
    snapshot: &EbsSnapshot,
    input: &model::CompleteSnapshotRequest,
) -> Result<()> {
    handlers.host.finish(snapshot).await.map_err(failed)?;
    let blocks = blocks_of(&handlers.host.uploaded(snapshot).await.map_err(failed)?);
    if usize::try_from(input.changed_blocks_count) != Ok(blocks.len()) {
        return Err(invalid(
            "INVALID_PARAMETER_VALUE",
            format!("{} blocks were written, not {}.", blocks.len(), input.changed_blocks_count),
        ));
    }
    let Some(checksum) = &input.checksum else { return Ok(()) };
    // The blocks' checksums in the order of the blocks, as bytes or as the texts that PutSnapshotBlock gave.
    let (mut of_bytes, mut of_texts) = (Sha256::new(), Sha256::new());
    for index in blocks {
        let data = handlers.host.read(snapshot, part(index)).await.map_err(failed)?;
        let digest = Sha256::digest(&data);
        of_bytes.update(digest);
        of_texts.update(STANDARD.encode(digest));
    }
    if [of_bytes, of_texts].into_iter().any(|sum| STANDARD.encode(sum.finalize()) == *checksum) {
        return Ok(());
    }
    Err(invalid("INVALID_PARAMETER_VALUE", "The checksum is not that of the blocks that were written."))
}

/// Changes an upload's record, if it is still one.
async fn change(
    handlers: &Handlers,
    ctx: &Context,
    id: &str,
    change: impl Fn(&mut EbsSnapshot) + Send + Sync,
) -> Result<()> {
    transact(handlers, ctx, |tx| {
        let found = tx.get::<EbsSnapshot>(&ctx.account, &ctx.region, id);
        let found = found.filter(|found| !found.deleted && found.state == SnapshotState::Pending);
        let mut snapshot = EbsSnapshot::clone(&*found.ok_or_else(|| not_found(id))?);
        change(&mut snapshot);
        tx.put(snapshot);
        Ok(())
    })
    .await
}

/// Commits for a request, with this service's error for a client token that came before with another request.
async fn transact<R>(
    handlers: &Handlers,
    ctx: &Context,
    body: impl FnMut(&mut Tx) -> Result<R>,
) -> Result<R> {
    haar_core::transact(&handlers.store, ctx, body).await.map_err(|error| {
        if error.code == "IdempotentParameterMismatch" {
            return errors::conflict_exception(error.message);
        }
        error
    })
}
