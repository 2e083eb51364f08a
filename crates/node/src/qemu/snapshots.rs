//! Snapshots: taken, uploaded, imported, and read.

use haar_records::ec2::EbsSnapshot;
use haar_vm::{Overlay, Vm};
use haar_volume::{Driver, Extent, Session};
use serde_json::Value;

use super::Qemu;
use crate::{Error, blocks};

impl Qemu {
    pub(super) fn volumes_for(&self, snapshot: &EbsSnapshot) -> Result<Driver, Error> {
        Ok(self.volumes.with_key(self.key(&snapshot.id, snapshot.encryption.as_ref())?))
    }

    /// Which parts of a snapshot are written, and in which layers.
    pub(crate) async fn map_snapshot(&self, snapshot: &EbsSnapshot) -> Result<Vec<Extent>, Error> {
        Ok(self.volumes_for(snapshot)?.map(&snapshot.id).await?)
    }

    pub(crate) fn depth_of(&self, first: &EbsSnapshot, second: &EbsSnapshot) -> Result<Option<u64>, Error> {
        blocks::depth_of(&self.volumes, first, second)
    }

    /// Makes the file of a snapshot that is uploaded.
    pub(crate) async fn make_upload(&self, snapshot: &EbsSnapshot) -> Result<(), Error> {
        if self.volumes.info(&snapshot.id)?.is_some() {
            return Ok(());
        }
        let (volumes, size) = (self.volumes_for(snapshot)?, u64::from(snapshot.volume_size_gib) << 30);
        let parent = snapshot.upload.as_ref().and_then(|upload| upload.parent.as_deref());
        match parent {
            Some(parent) => drop(volumes.create_from_snapshot(&snapshot.id, parent, size).await?),
            None => drop(volumes.create_empty(&snapshot.id, size).await?),
        }
        Ok(())
    }

    pub(crate) async fn read_snapshot(
        &self,
        snapshot: &EbsSnapshot,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, Error> {
        let volumes = self.volumes_for(snapshot)?;
        let read = async |session: &mut Session| session.read(offset, length).await;
        self.sessions.with(&volumes, &snapshot.id, false, read).await
    }

    pub(crate) async fn write_snapshot(
        &self,
        snapshot: &EbsSnapshot,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Error> {
        self.make_upload(snapshot).await?;
        let volumes = self.volumes_for(snapshot)?;
        let write = async |session: &mut Session| session.write(offset, data).await;
        self.sessions.with(&volumes, &snapshot.id, true, write).await
    }

    pub(crate) async fn finish_upload(&self, snapshot: &EbsSnapshot) -> Result<(), Error> {
        self.make_upload(snapshot).await?;
        let volumes = self.volumes_for(snapshot)?;
        let flush = async |session: &mut Session| session.flush().await;
        self.sessions.with(&volumes, &snapshot.id, true, flush).await?;
        // What is read from now on is opened for reading only.
        self.sessions.close(&snapshot.id).await;
        Ok(())
    }

    /// Makes the disk of a snapshot from one that others have made.
    pub(crate) async fn import_disk(
        &self,
        snapshot: &EbsSnapshot,
        node: &Value,
        progress: &(dyn Fn(u8) + Send + Sync),
    ) -> Result<(), Error> {
        let size = u64::from(snapshot.volume_size_gib) << 30;
        self.volumes_for(snapshot)?.create_imported(&snapshot.id, node, size, progress).await?;
        Ok(())
    }

    /// The beginning of a snapshot.
    pub(crate) async fn read_head(&self, snapshot: &EbsSnapshot, length: usize) -> Result<Vec<u8>, Error> {
        let head = self.read_snapshot(snapshot, 0, length).await;
        self.sessions.close(&snapshot.id).await;
        head
    }

    /// Removes what there is of an imported snapshot.
    pub(crate) async fn abandon_import(&self, snapshot_id: &str) -> Result<(), Error> {
        self.sessions.close(snapshot_id).await;
        Ok(self.volumes.abandon(snapshot_id)?)
    }

    /// Makes the layers for snapshots of one machine's volumes, or of one volume, and has the machine turn to them.
    pub(super) async fn take(&self, set: &[EbsSnapshot]) -> Result<(), Error> {
        let mut overlays = Vec::new();
        for asked in set {
            if let Some(path) = self.volumes_for(asked)?.prepare_snapshot(&asked.volume_id, &asked.id).await?
            {
                overlays.push(Overlay { disk: asked.volume_id.clone(), path });
            }
        }
        // A volume may have been given up, or attached to another instance, since the set was asked for.
        let mut machines: Vec<Vm> = Vec::new();
        for asked in set {
            if let Some(machine) = self.machine_of(&asked.account, &asked.region, &asked.volume_id).await?
                && machines.iter().all(|known| known.id() != machine.id())
            {
                machines.push(machine);
            }
        }
        for machine in machines {
            // What no machine has is a file that nobody writes.
            let disks = machine.disks().await?;
            let own = overlays.extract_if(.., |overlay| disks.contains(&overlay.disk));
            machine.overlay_disks(&own.collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// Takes back what was prepared for a snapshot, unless a machine may have turned to the new layer; says whether it did.
    pub(super) async fn abandon(&self, asked: &EbsSnapshot) -> Result<bool, Error> {
        let next = self.volumes.next(&asked.volume_id, &asked.id);
        if next.exists() {
            let machine = self.machine_of(&asked.account, &asked.region, &asked.volume_id).await?;
            let Some(machine) = machine else { return Ok(false) };
            match machine.disk_file(&asked.volume_id).await? {
                Some(file) if file != next => {}
                _ => return Ok(false),
            }
        }
        self.volumes.abandon_snapshot(&asked.volume_id, &asked.id)?;
        Ok(true)
    }
}
