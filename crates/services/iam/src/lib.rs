//! AWS IAM and STS: who signs requests, and which policies apply to them.
//!
//! [`Keyring`] finds the principal behind a signature; [`Caller`] collects the policies that apply to a principal, in the form in
//! which `haar_policy` evaluates them.

mod access;
mod aws_managed;
mod caller;
pub mod iam;
mod instance_roles;
mod keyring;
mod seal;
pub mod sts;
mod totp;
mod trust;

pub use access::Directory;
pub use caller::{Caller, Documents, managed_document};
pub use instance_roles::{InstanceRoles, Profile};
pub use keyring::{Keyring, RoleCredentials, RootKey};
pub use seal::Sealer;
