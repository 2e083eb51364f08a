//! What every service shares.
//!
//! For services: [`IdType`] and [`Arn`]; [`tags`]; [`FilterTable`] for the filters and [`Paginator`] for the pages of
//! describe operations; [`idempotent`] for client tokens; [`transact`], which commits for a request. For the node:
//! [`reconcile`], the loop that makes reality match records. A store that services use needs the record types of
//! [`register`].

mod arn;
mod commit;
mod filter;
mod fingerprint;
mod id;
mod idempotency;
mod page;
mod pattern;
pub mod reconcile;
mod seal;
mod secret;
pub mod tags;

pub use arn::{Arn, NotAnArn};
pub use commit::{register, store_error, transact};
pub use filter::{Accessor, FilterError, FilterTable, Filters, Probe};
pub use fingerprint::Fingerprint;
pub use id::{IdError, IdType, is_id, new_id};
pub use idempotency::{ClientToken, TOKEN_LIFETIME, TokenError, forget_expired, idempotent, sweep};
pub use page::{Page, PageError, PageRequest, Paginator};
pub use pattern::Pattern;
pub use seal::{KEY_BYTES, Sealer};
pub use secret::Secret;
pub use tags::{TagError, Tags};
