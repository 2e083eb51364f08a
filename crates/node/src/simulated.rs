//! A backend without machines, for scale tests and for users who want only the API.

use haar_records::ec2::{EbsSnapshot, Instance, Volume, VolumeShape};

use crate::Error;
use crate::backend::{Backend, Observation};

/// Pretends that every instance that was started runs.
#[derive(Debug)]
pub(crate) struct Simulated;

impl Backend for Simulated {
    const REASON: Option<(&'static str, &'static str)> =
        Some(("Server.Simulated", "no machine runs: the daemon was started with simulated compute"));

    async fn start(&self, _: &Instance) -> Result<(), Error> {
        Ok(())
    }

    async fn observe(&self, _: &str) -> Result<Observation, Error> {
        Ok(Observation::Running)
    }

    async fn power_button(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn reset(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn power_off(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn answers(&self, _: &str) -> Result<bool, Error> {
        Ok(true)
    }

    async fn reachable(&self, _: &Instance) -> Result<bool, Error> {
        Ok(true)
    }

    async fn sync_network(&self, _: &Instance) -> Result<(), Error> {
        Ok(())
    }

    async fn attach(&self, _: &str, _: &Volume) -> Result<(), Error> {
        Ok(())
    }

    async fn detach(&self, _: &str, _: &str) -> Result<bool, Error> {
        Ok(true)
    }

    async fn take_away(&self, _: &str, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn make_disk(&self, _: &Volume) -> Result<(), Error> {
        Ok(())
    }

    async fn modify_disk(&self, _: &Volume, _: &VolumeShape) -> Result<(), Error> {
        Ok(())
    }

    async fn repair_disk(&self, _: &Volume) -> Result<(), Error> {
        Ok(())
    }

    async fn make_library_snapshot(&self, _: &EbsSnapshot) -> Result<(), Error> {
        Ok(())
    }

    async fn copy_snapshot(&self, _: &str, _: &EbsSnapshot) -> Result<(), Error> {
        Ok(())
    }

    fn snapshot_size(&self, _: &str) -> Result<Option<u32>, Error> {
        Ok(None)
    }

    async fn take_snapshots(&self, _: &[EbsSnapshot]) -> Result<(), Error> {
        Ok(())
    }

    async fn remove_snapshot(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn remove_disk(&self, _: &Volume) -> Result<(), Error> {
        Ok(())
    }

    async fn forget(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }
}
