//! VPC networking: namespaces, interfaces, routes and security groups in nftables.
