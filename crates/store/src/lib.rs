//! Revisioned records, transactions and watches behind one trait, with an in-memory copy for reads.
//!
//! A record is a [`Resource`], found under `kind/account/region/id`. Reads take a [`Snapshot`]: a consistent, indexed
//! copy in memory, had for the price of a pointer. Writes go through [`Store::transact`], which commits only if
//! nothing that the transaction relied on has changed, and answers when the commit is durable. [`Store::watch`] gives every
//! change since a revision, in commit order. Below is a [`backend::Backend`]: a SQLite file here, written so that etcd
//! can take its place.
//!
//! ```
//! use haar_store::{Resource, Store, StoreError};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Clone, Serialize, Deserialize)]
//! struct Disk { account: String, region: String, id: String, gib: u32 }
//!
//! impl Resource for Disk {
//!     const KIND: &'static str = "example.disk";
//!     fn account(&self) -> &str { &self.account }
//!     fn region(&self) -> &str { &self.region }
//!     fn id(&self) -> &str { &self.id }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let store = Store::builder().register::<Disk>().in_memory().await?;
//! let (account, region) = ("123456789012", "eu-central-1");
//! store
//!     .transact(|tx| {
//!         tx.create(Disk { account: account.into(), region: region.into(), id: "d-1".into(), gib: 8 })?;
//!         Ok::<_, StoreError>(())
//!     })
//!     .await?;
//! let larger = store
//!     .transact(|tx| {
//!         let Some(disk) = tx.get::<Disk>(account, region, "d-1") else { return Ok(None) };
//!         tx.put(Disk { gib: disk.gib * 2, ..Disk::clone(&disk) });
//!         Ok::<_, StoreError>(Some(disk.gib * 2))
//!     })
//!     .await?;
//! assert_eq!(larger, Some(16));
//! assert_eq!(store.snapshot().get::<Disk>(account, region, "d-1").unwrap().gib, 16);
//! # Ok::<_, StoreError>(()) }).unwrap();
//! ```

pub mod backend;
mod error;
mod key;
mod snapshot;
mod store;
mod table;
mod tx;
mod watch;

pub use backend::LeaseId;
pub use error::{Exists, StoreError};
pub use key::{Key, MAX_KEY_BYTES, MAX_RECORD_BYTES, Resource, Revision};
pub use snapshot::Snapshot;
pub use store::{Builder, Store};
pub use table::Entry;
pub use tx::Tx;
pub use watch::{Change, Event, Watch, WatchAll};
