//! Records of AWS IAM, named and shaped after the types of its API reference.
//!
//! IAM is global: its records live in the region [`REGION`]. Names are unique "not distinguished by case" (IAM API
//! Reference), so a record's id is its name in lower case ([`name_id`]), and a second record of the name cannot be.

mod access_key;
mod account;
mod identity;
mod mfa;
mod oidc;
mod policy;

pub use access_key::{AccessKey, AccessKeyStatus, Sealed, Usage};
pub use account::{Account, AccountAlias};
pub use identity::{Group, InstanceProfile, Role, User};
pub use mfa::{CredentialReport, MfaAssignment, MfaDevice};
pub use oidc::OpenIdConnectProvider;
pub use policy::{ManagedPolicy, PolicyVersion};

/// The region of IAM's records.
pub const REGION: &str = crate::GLOBAL_REGION;

/// Adds the record types of IAM to a store.
#[must_use]
pub fn register(builder: haar_store::Builder) -> haar_store::Builder {
    builder
        .register::<AccessKey>()
        .register::<Account>()
        .register::<AccountAlias>()
        .register::<CredentialReport>()
        .register::<Group>()
        .register::<InstanceProfile>()
        .register::<ManagedPolicy>()
        .register::<MfaDevice>()
        .register::<OpenIdConnectProvider>()
        .register::<Role>()
        .register::<Usage>()
        .register::<User>()
}

/// The id of the record of a user, group, role, instance profile or managed policy with this name.
#[must_use]
pub fn name_id(name: &str) -> String {
    name.to_lowercase()
}

/// Implements [`haar_store::Resource`] for a record of an account, with `account` and `id` fields.
macro_rules! named {
    ($type:ty, $($rest:tt)*) => {
        $crate::resource!(@ $type, |record| &record.account, |_| $crate::iam::REGION, $($rest)*);
    };
}
pub(crate) use named;

/// Implements [`haar_store::Resource`] for a record that is found without its account, with an `id` field.
macro_rules! accountless {
    ($type:ty, $($rest:tt)*) => {
        $crate::resource!(@ $type, |_| $crate::GLOBAL_ACCOUNT, |_| $crate::iam::REGION, $($rest)*);
    };
}
pub(crate) use accountless;
