//! Blocks of snapshots, listed, compared and read.

use std::future::Future;
use std::pin::Pin;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use haar_api::{Bytes, Context, Error};
use haar_records::ec2::{EbsSnapshot, SnapshotState};
use haar_store::Entry;
use sha2::{Digest as _, Sha256};

use crate::BLOCK_BYTES;
use crate::handlers::{Handlers, Result, invalid, not_found, restorable};
use crate::model;
use crate::tokens::Tokens;

/// What a request gets that asks for no number of blocks.
const DEFAULT_PAGE: i32 = 10_000;

/// Why the machine does not give or take blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The host is full.
    Full,
    /// Two snapshots do not stand on each other.
    Unrelated,
    /// What else.
    Other(String),
}

/// A part of a snapshot, in bytes from its begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it begins.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
}

/// The future of what the machine gives.
pub type HostFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

/// What handlers read and write on the machine.
pub trait Host: Send + Sync + 'static {
    /// The parts of a snapshot that hold data.
    fn written<'a>(&'a self, snapshot: &'a EbsSnapshot) -> HostFuture<'a, Vec<Part>>;

    /// The parts of a snapshot that were written since another one: in layers that it has above that one's.
    fn changed<'a>(&'a self, first: &'a EbsSnapshot, second: &'a EbsSnapshot) -> HostFuture<'a, Vec<Part>>;

    /// The parts of a snapshot that is being uploaded that were written.
    fn uploaded<'a>(&'a self, snapshot: &'a EbsSnapshot) -> HostFuture<'a, Vec<Part>>;

    /// The bytes of a part of a snapshot.
    fn read<'a>(&'a self, snapshot: &'a EbsSnapshot, part: Part) -> HostFuture<'a, Vec<u8>>;

    /// Writes to a snapshot that is being uploaded.
    fn write<'a>(&'a self, snapshot: &'a EbsSnapshot, start: u64, data: &'a [u8]) -> HostFuture<'a, ()>;

    /// Puts what was written to a snapshot on stable storage, and writes no more to it.
    fn finish<'a>(&'a self, snapshot: &'a EbsSnapshot) -> HostFuture<'a, ()>;
}

/// The answer to what the machine did not do.
pub(crate) fn failed(failure: Failure) -> Error {
    match failure {
        Failure::Full => model::errors::service_quota_exceeded_exception("The host's storage is full.")
            .with_member("Reason", "DEPENDENCY_SERVICE_QUOTA_EXCEEDED"),
        Failure::Unrelated => invalid(
            "UNRELATED_SNAPSHOTS",
            "The second snapshot was not taken after the first one in the line of the same volume.",
        ),
        Failure::Other(why) => {
            tracing::warn!(why, "cannot reach the blocks of a snapshot");
            model::errors::internal_server_exception("The blocks of the snapshot cannot be reached.")
        }
    }
}

/// The part of a disk that a block is.
pub(crate) fn part(index: i32) -> Part {
    let start = u64::from(index.unsigned_abs()) * BLOCK_BYTES as u64;
    Part { start, end: start + BLOCK_BYTES as u64 }
}

/// The blocks that parts touch, in ascending order, each once.
pub(crate) fn blocks_of(parts: &[Part]) -> Vec<i32> {
    let mut blocks = Vec::new();
    for Part { start, end } in parts.iter().filter(|part| part.start < part.end) {
        let (first, last) = (start / BLOCK_BYTES as u64, (end - 1) / BLOCK_BYTES as u64);
        blocks.extend((first..=last).filter_map(|block| i32::try_from(block).ok()));
    }
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

/// The snapshot with this id, whose blocks can be read.
fn completed(handlers: &Handlers, ctx: &Context, id: &str) -> Result<Entry<EbsSnapshot>> {
    let snapshot = restorable(ctx, &handlers.store.snapshot(), id)?;
    if snapshot.state == SnapshotState::Completed {
        return Ok(snapshot);
    }
    Err(invalid("INVALID_SNAPSHOT_ID", format!("The snapshot '{id}' is not completed.")))
}

/// Which blocks of a list a page has.
struct Page {
    start: i32,
    most: usize,
}

impl Page {
    fn new(
        handlers: &Handlers,
        about: &[&str],
        next_token: Option<String>,
        starting_block: Option<i32>,
        max_results: Option<i32>,
    ) -> Result<Self> {
        let start = match next_token {
            None => starting_block.unwrap_or_default(),
            Some(token) => handlers
                .tokens
                .page_start(&token, about)
                .ok_or_else(|| invalid("INVALID_PAGE_TOKEN", "The page token is not one of this list."))?,
        };
        let most = usize::try_from(max_results.unwrap_or(DEFAULT_PAGE)).unwrap_or_default();
        Ok(Self { start, most })
    }

    /// The blocks of the page, and the first one of the next.
    fn take(&self, blocks: &[i32]) -> (Vec<i32>, Option<i32>) {
        let from = blocks.partition_point(|block| *block < self.start);
        let page: Vec<i32> = blocks[from..].iter().copied().take(self.most).collect();
        let next = blocks.get(from + page.len()).copied();
        (page, next)
    }
}

/// `ListSnapshotBlocks`.
pub(crate) async fn list_snapshot_blocks(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ListSnapshotBlocksRequest,
) -> Result<model::ListSnapshotBlocksResponse> {
    let id = input.snapshot_id.as_str();
    let about = ["blocks", ctx.account.as_str(), id];
    let page = Page::new(handlers, &about, input.next_token, input.starting_block_index, input.max_results)?;
    let snapshot = completed(handlers, ctx, id)?;
    let written = handlers.host.written(&snapshot).await.map_err(failed)?;
    let (blocks, next) = page.take(&blocks_of(&written));
    let expiry = Tokens::expiry(ctx.now);
    let block = |index| model::Block {
        block_index: Some(index),
        block_token: Some(handlers.tokens.block(&ctx.account, id, index, expiry)),
    };
    Ok(model::ListSnapshotBlocksResponse {
        blocks: blocks.into_iter().map(block).collect(),
        expiry_time: Some(expiry),
        volume_size: Some(i64::from(snapshot.volume_size_gib)),
        block_size: i32::try_from(BLOCK_BYTES).ok(),
        next_token: next.map(|index| handlers.tokens.page(&about, index)),
    })
}

/// `ListChangedBlocks`.
pub(crate) async fn list_changed_blocks(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ListChangedBlocksRequest,
) -> Result<model::ListChangedBlocksResponse> {
    let second_id = input.second_snapshot_id.as_str();
    let first_id = input.first_snapshot_id.as_deref().unwrap_or_default();
    let about = ["changes", ctx.account.as_str(), first_id, second_id];
    let page = Page::new(handlers, &about, input.next_token, input.starting_block_index, input.max_results)?;
    let second = completed(handlers, ctx, second_id)?;
    let first = input.first_snapshot_id.as_deref().map(|id| completed(handlers, ctx, id)).transpose()?;
    let in_second = blocks_of(&handlers.host.written(&second).await.map_err(failed)?);
    // Without a first snapshot everything has changed.
    let (changed, in_first) = match first {
        None => (in_second.clone(), Vec::new()),
        Some(first) => {
            let changed = handlers.host.changed(&first, &second).await.map_err(failed)?;
            let written = handlers.host.written(&first).await.map_err(failed)?;
            (blocks_of(&changed), blocks_of(&written))
        }
    };
    let (blocks, next) = page.take(&changed);
    let expiry = Tokens::expiry(ctx.now);
    let token = |id: &str, blocks: &[i32], index: i32| {
        let there = blocks.binary_search(&index).is_ok();
        there.then(|| handlers.tokens.block(&ctx.account, id, index, expiry))
    };
    let block = |index| model::ChangedBlock {
        block_index: Some(index),
        first_block_token: token(first_id, &in_first, index),
        second_block_token: token(second_id, &in_second, index),
    };
    Ok(model::ListChangedBlocksResponse {
        changed_blocks: blocks.into_iter().map(block).collect(),
        expiry_time: Some(expiry),
        volume_size: Some(i64::from(second.volume_size_gib)),
        block_size: i32::try_from(BLOCK_BYTES).ok(),
        next_token: next.map(|index| handlers.tokens.page(&about, index)),
    })
}

/// `GetSnapshotBlock`.
pub(crate) async fn get_snapshot_block(
    handlers: &Handlers,
    ctx: &Context,
    input: model::GetSnapshotBlockRequest,
) -> Result<model::GetSnapshotBlockResponse> {
    let (id, index) = (input.snapshot_id.as_str(), input.block_index);
    let snapshot = completed(handlers, ctx, id)?;
    if !handlers.tokens.is_block(&input.block_token, &ctx.account, id, index, ctx.now) {
        return Err(invalid("INVALID_BLOCK_TOKEN", "The token is not the block's, or has expired."));
    }
    let part = part(index);
    if part.end > u64::from(snapshot.volume_size_gib) << 30 {
        return Err(not_found(id));
    }
    let data = handlers.host.read(&snapshot, part).await.map_err(failed)?;
    Ok(model::GetSnapshotBlockResponse {
        data_length: i32::try_from(data.len()).ok(),
        checksum: Some(STANDARD.encode(Sha256::digest(&data))),
        checksum_algorithm: Some(model::ChecksumAlgorithm::Sha256),
        block_data: Some(Bytes::from(data)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_touch_blocks() {
        let block = BLOCK_BYTES as u64;
        let parts = [(0, 1), (block - 1, block + 1), (4 * block, 6 * block), (9 * block, 9 * block)];
        let parts: Vec<Part> = parts.map(|(start, end)| Part { start, end }).into();
        assert_eq!(blocks_of(&parts), [0, 1, 4, 5]);
        let (page, next) = Page { start: 1, most: 2 }.take(&[0, 1, 4, 5]);
        assert_eq!((page, next), (vec![1, 4], Some(5)));
        assert_eq!(Page { start: 5, most: 2 }.take(&[0, 1, 4, 5]), (vec![5], None));
        assert_eq!(Page { start: 6, most: 2 }.take(&[0, 1, 4, 5]), (vec![], None));
    }
}
