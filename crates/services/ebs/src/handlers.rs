//! The service: what its handlers share, and which function answers which operation.

use std::sync::Arc;

use haar_api::{Context, Error};
use haar_core::{Sealer, Secret};
use haar_records::ec2::EbsSnapshot;
use haar_store::{Entry, Snapshot, Store, StoreError};

use crate::blocks::Host;
use crate::model::*;
use crate::tokens::Tokens;
use crate::{blocks, upload};

/// What went wrong.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// The handlers of the EBS direct APIs.
pub struct Handlers {
    pub(crate) store: Store,
    pub(crate) sealer: Sealer,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) tokens: Tokens,
    /// Held for reading while a block is written, for writing when an upload is closed to further ones.
    pub(crate) uploads: tokio::sync::RwLock<()>,
}

impl Handlers {
    /// Handlers over the store of EC2's records.
    ///
    /// # Errors
    /// What the store gives.
    pub async fn new(store: Store, sealer: Sealer, host: Arc<dyn Host>) -> Result<Self, StoreError> {
        let tokens = Tokens::new(Secret::load(&store, "ebs blocks").await?);
        Ok(Self { store, sealer, host, tokens, uploads: tokio::sync::RwLock::default() })
    }
}

impl Ebs for Handlers {
    async fn complete_snapshot(
        &self,
        ctx: &Context,
        input: CompleteSnapshotRequest,
    ) -> Result<CompleteSnapshotResponse> {
        upload::complete_snapshot(self, ctx, input).await
    }

    async fn get_snapshot_block(
        &self,
        ctx: &Context,
        input: GetSnapshotBlockRequest,
    ) -> Result<GetSnapshotBlockResponse> {
        blocks::get_snapshot_block(self, ctx, input).await
    }

    async fn list_changed_blocks(
        &self,
        ctx: &Context,
        input: ListChangedBlocksRequest,
    ) -> Result<ListChangedBlocksResponse> {
        blocks::list_changed_blocks(self, ctx, input).await
    }

    async fn list_snapshot_blocks(
        &self,
        ctx: &Context,
        input: ListSnapshotBlocksRequest,
    ) -> Result<ListSnapshotBlocksResponse> {
        blocks::list_snapshot_blocks(self, ctx, input).await
    }

    async fn put_snapshot_block(
        &self,
        ctx: &Context,
        input: PutSnapshotBlockRequest,
    ) -> Result<PutSnapshotBlockResponse> {
        upload::put_snapshot_block(self, ctx, input).await
    }

    async fn start_snapshot(
        &self,
        ctx: &Context,
        input: StartSnapshotRequest,
    ) -> Result<StartSnapshotResponse> {
        upload::start_snapshot(self, ctx, input).await
    }
}

/// `ValidationException` with its reason.
pub(crate) fn invalid(reason: &'static str, message: impl Into<String>) -> Error {
    errors::validation_exception(message).with_member("Reason", reason)
}

/// `ResourceNotFoundException`.
pub(crate) fn not_found(id: &str) -> Error {
    errors::resource_not_found_exception(format!("The snapshot '{id}' does not exist."))
        .with_member("Reason", "SNAPSHOT_NOT_FOUND")
}

/// The snapshot with this id that the caller may make volumes from.
pub(crate) fn restorable(ctx: &Context, records: &Snapshot, id: &str) -> Result<Entry<EbsSnapshot>> {
    let own = records.get::<EbsSnapshot>(&ctx.account, &ctx.region, id);
    let shared = || {
        let mut all = records.list_all::<EbsSnapshot>();
        all.find(|found| found.id == id && found.region == ctx.region && found.is_restorable_by(&ctx.account))
            .cloned()
    };
    own.or_else(shared).filter(|found| !found.deleted).ok_or_else(|| not_found(id))
}
