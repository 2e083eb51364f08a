//! The images that are built here, run for real: QEMU, a network, metadata, SSH.

mod debian;
mod lab;
mod tiny;
