//! Amazon EC2: instances, volumes, images and VPC networking.

pub mod addresses;
pub mod defaults;
pub mod dns;
pub mod error;
pub mod ids;
pub mod key_material;
pub mod network_interfaces;
pub mod rules;
mod scope;
pub mod security_groups;
pub mod subnets;
#[cfg(test)]
mod testing;
pub mod zones;

pub use scope::Scope;
