//! Disks of instances, and what they are encrypted with.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use haar_core::Sealer;
use haar_records::ec2::{EbsDefaults, EbsKey, Encryption, Instance, Volume};
use haar_vm::{Disk, DiskFormat, DiskKey, DiskLayer};
use haar_volume::{Format, Key, Layer};

use super::Qemu;
use crate::backend::Backend as _;
use crate::{Error, limits};

impl Qemu {
    /// Makes the instance's disks that are not there yet.
    pub(super) async fn disks(&self, instance: &Instance) -> Result<Vec<Disk>, Error> {
        let snapshot = self.store.snapshot();
        let mut disks = Vec::with_capacity(instance.spec.block_devices.len());
        for device in instance.spec.block_devices.iter().filter(|device| !device.detaching) {
            let record = snapshot
                .get::<Volume>(&instance.account, &instance.region, &device.volume_id)
                .ok_or_else(|| Self::inconsistent(instance, format!("{} has no record", device.volume_id)))?;
            // A snapshot that was being taken when the machine was lost.
            self.volumes.finish_snapshot(&record.id)?;
            if self.volumes.info(&record.id)?.is_some() {
                self.make_usable(&record).await?;
            } else {
                match (&record.snapshot_id, &record.image_id) {
                    (None, Some(image_id)) => {
                        let backing = self.library_image(image_id).await?.root_disk();
                        let volumes = self.volumes_of(&record)?;
                        volumes.create_overlay(&record.id, &backing, Format::Qcow2, bytes(&record)).await?;
                    }
                    _ => self.make_disk(&record).await?,
                }
            }
            disks.push(self.disk(&record)?);
        }
        Ok(disks)
    }

    /// What opens and seals data keys: the default key of their account in their region.
    fn sealer_of(&self, encryption: &Encryption) -> Option<Sealer> {
        let Encryption { account, region, key_id, .. } = encryption;
        let defaults = self.store.snapshot().get::<EbsDefaults>(account, region, EbsDefaults::ID)?;
        let sealed = &defaults.key.as_ref().filter(|key| key.id == *key_id)?.sealed;
        let key = self.sealer.open(sealed, &EbsKey::purpose(key_id))?;
        Some(Sealer::new(key.as_slice().try_into().ok()?))
    }

    /// What a volume or snapshot is encrypted with, if it is.
    pub(crate) fn key(&self, id: &str, encryption: Option<&Encryption>) -> Result<Option<Key>, Error> {
        let Some(encryption) = encryption else { return Ok(None) };
        let open = || {
            let key = self.sealer_of(encryption)?.open(&encryption.data_key, Encryption::purpose())?;
            String::from_utf8(key).ok()
        };
        Ok(Some(Key::new(open().ok_or_else(|| Error::Sealed(id.to_owned()))?)))
    }

    /// A further data key, sealed as one that there is.
    pub(crate) fn another_key(&self, id: &str, of: &Encryption) -> Result<Encryption, Error> {
        let sealer = self.sealer_of(of).ok_or_else(|| Error::Sealed(id.to_owned()))?;
        let data_key = STANDARD.encode(Sealer::random_key());
        let data_key = sealer.seal(data_key.as_bytes(), Encryption::purpose());
        Ok(Encryption { data_key, ..of.clone() })
    }

    /// The driver that makes and reads what is encrypted as a volume is.
    pub(super) fn volumes_of(&self, volume: &Volume) -> Result<haar_volume::Driver, Error> {
        Ok(self.volumes.with_key(self.key(&volume.id, volume.encryption.as_ref())?))
    }

    /// A volume as a disk of a machine that does not have it yet.
    pub(super) fn disk(&self, volume: &Volume) -> Result<Disk, Error> {
        let path = self.volumes.open_name(&volume.id)?;
        let key = self.key(&volume.id, volume.encryption.as_ref())?;
        let below = if key.is_some() { self.below(&volume.id)? } else { Vec::new() };
        Ok(Disk {
            id: volume.id.clone(),
            path,
            format: DiskFormat::Qcow2,
            read_only: false,
            limits: limits::of(volume),
            key: key.map(|key| DiskKey::new(key.as_str())),
            below,
        })
    }

    /// What is below a volume's own file, the topmost first.
    pub(crate) fn below(&self, volume_id: &str) -> Result<Vec<DiskLayer>, Error> {
        let layer = |Layer { path, format, encrypted }| {
            let format = match format {
                Format::Qcow2 => DiskFormat::Qcow2,
                Format::Raw => DiskFormat::Raw,
            };
            DiskLayer { path, format, encrypted }
        };
        Ok(self.volumes.layers(volume_id)?.into_iter().skip(1).map(layer).collect())
    }

    /// Whether a volume's disk was found to be damaged; none when there is no disk.
    pub(crate) fn is_damaged(&self, volume_id: &str) -> Result<Option<bool>, Error> {
        Ok(self.volumes.info(volume_id)?.map(|found| found.corrupt))
    }

    /// Repairs a damaged disk if its volume says that this needs no request.
    pub(super) async fn make_usable(&self, volume: &Volume) -> Result<(), Error> {
        let damaged = self.volumes.info(&volume.id)?.is_some_and(|found| found.corrupt);
        if !damaged {
            return Ok(());
        }
        if !volume.auto_enable_io {
            return Err(Error::Damaged(volume.id.clone()));
        }
        tracing::warn!(volume = volume.id, "the disk is damaged and is repaired");
        Ok(self.volumes_of(volume)?.repair(&volume.id).await?)
    }
}

/// The size of a volume in bytes.
pub(super) fn bytes(volume: &Volume) -> u64 {
    u64::from(volume.size_gib) << 30
}
