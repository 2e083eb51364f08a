//! The EBS direct APIs: what is in snapshots, block by block, without a volume or an instance.
//!
//! A block is 512 KiB. Which blocks a snapshot has follows from its layers, and which two snapshots differ in from the layers that
//! one has above the other. An upload is a snapshot whose file is written to while its state is `pending`.

mod blocks;
mod handlers;
/// The API: the types of its requests and answers, its table and the [`Ebs`](model::Ebs) trait, generated from the model.
pub mod model {
    haar_api::include_model!("ebs.rs");
}
mod tokens;
mod upload;

pub use blocks::{Failure, Host, HostFuture, Part};
pub use handlers::Handlers;

/// The size of a block in bytes.
pub const BLOCK_BYTES: usize = 512 << 10;
