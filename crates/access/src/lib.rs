//! Whether a caller may do what a request asks for.
//!
//! Between three that know nothing of each other: the tables of the services, which declare the permissions that each operation
//! asks for ([`haar_api::schema::Permission`]); the services' records, in which [`Resources`] finds what requests name; and
//! [`haar_policy`], which decides by the policies of a [`Caller`].
//!
//! A request of an account's root asks for nothing. Any other asks for every permission of its operation upon every resource
//! that it names, and is refused by the first that no policy gives, before its handler runs, as AWS does: who may not do something does
//! not learn whether the resource exists.

mod access;
mod message;
mod resources;

pub use access::{Access, Caller, Callers, Seal, environment};
pub use resources::{Complete, Named, Policy, Query, Resource, Resources, word};
