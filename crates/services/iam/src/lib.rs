//! AWS STS, and the principals that sign requests.

mod policy;
pub mod sts;

pub use policy::RootMayEverything;
