//! Amazon EC2: instances, volumes, images and VPC networking.
//!
//! One module a resource, one function an operation, named as the API reference names them. A handler validates its
//! request, commits one transaction ([`haar_core::transact`]) and answers; what follows on the machine is the node's.

pub mod addresses;
pub mod block_devices;
pub mod capacity;
pub mod defaults;
pub mod describe;
pub mod dhcp_options;
pub mod dns;
pub mod encryption;
pub mod error;
mod handlers;
pub mod ids;
pub mod images;
pub mod imports;
pub mod instance_types;
pub mod instances;
pub mod internet_gateways;
pub mod key_material;
pub mod key_pairs;
/// The EC2 API: the types of its requests and answers, its table and the [`Ec2`](model::Ec2) trait, generated from
/// the model for the operations of `operations.toml`.
pub mod model {
    haar_api::include_model!("ec2.rs");
}
pub mod launch_templates;
pub mod network_interfaces;
pub mod placement_groups;
pub mod regions;
mod resources;
pub mod route_tables;
mod scope;
pub mod security_groups;
pub mod snapshots;
pub mod subnets;
pub mod tags;
#[cfg(test)]
mod testing;
pub mod volumes;
pub mod vpcs;
pub mod zones;

pub use capacity::Capacity;
pub use handlers::{Config, ConsoleOutput, DiskCheck, Handlers, Host, Screen};
pub use resources::Resources;
pub use scope::Scope;
