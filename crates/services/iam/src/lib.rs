//! AWS STS, and the principals that sign requests.

mod policy;
mod root_key;
pub mod sts;

pub use policy::RootMayEverything;
pub use root_key::RootKey;
