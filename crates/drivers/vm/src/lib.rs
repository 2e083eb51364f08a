//! Virtual machines: QEMU processes driven over QMP.
//!
//! A machine is a QEMU process of its own, in its own session and control group, that outlives the daemon. The
//! [`Driver`] starts it from a [`Spec`] and hands out a [`Vm`]; after a restart, [`Driver::list`] names what there is,
//! [`Driver::adopt`] takes a live machine up again, and [`Driver::remove`] leaves nothing of it. All of them may be
//! interrupted at any point, by SIGKILL too, and be called again.
//!
//! A machine whose guest powers off does not end: it stays, in [`RunState::GuestShutdown`], so that a daemon that was
//! not there learns how it went.

mod args;
mod cgroup;
pub mod console;
mod disks;
mod driver;
mod error;
mod migrate;
mod probe;
mod process;
mod qmp;
mod spawn;
mod spec;
mod vm;

pub use cgroup::Controller;
pub use disks::Overlay;
pub use driver::{Config, Driver};
pub use error::Error;
pub use migrate::{Arrival, Layout, Mirror, Place, Sending, Sync, Transfer};
pub use probe::{Accel, NoKvm, Probe, probe};
pub use process::Exit;
pub use spec::{Boot, Disk, DiskFormat, DiskKey, DiskLayer, DiskLimits, HOTPLUG_SLOTS, Nic, Spec};
pub use vm::{Event, RunState, Vm};
