//! Machines in QEMU under TCG, whose guests are boot sectors of our own.

mod crash;
mod disks;
mod guest;
mod hardware;
mod machine;
