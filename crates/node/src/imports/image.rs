//! What a task's disks become: snapshots, and an image of them.

use std::collections::BTreeSet;

use haar_records::ec2::{
    BootMode, EbsSnapshot, Image, ImageBoot, ImageDevice, ImportDisk, ImportTask, ImportedImage,
    SnapshotState, VolumeType,
};

use super::outcome::{End, client};

/// The root device of an imported image whose task names none.
const ROOT: &str = "/dev/sda1";

/// The snapshot that a disk becomes.
pub(super) fn snapshot_of(task: &ImportTask, disk: &ImportDisk) -> EbsSnapshot {
    let gib = u32::try_from(disk.virtual_size.div_ceil(1 << 30)).unwrap_or(u32::MAX);
    EbsSnapshot {
        state: SnapshotState::Completed,
        description: format!("Created by AWS-VMImport service for {}", task.id),
        encryption: disk.encryption.clone(),
        ..EbsSnapshot::new(&task.account, &task.region, disk.snapshot_id.clone(), gib, task.created)
    }
}

/// Which of the disks is the root disk, by what each can be booted by, and how the image boots.
pub(super) fn boots_by(
    wanted: &ImportedImage,
    modes: &[Option<haar_image::BootMode>],
) -> Result<(usize, BootMode), End> {
    use haar_image::BootMode::{LegacyBios, Uefi, UefiPreferred};
    let found = modes.iter().enumerate().find_map(|(index, mode)| Some((index, (*mode)?)));
    let (root, can) = found.ok_or_else(|| {
        client("No bootable partition found: no disk has boot code or an EFI system partition")
    })?;
    let mode = match (wanted.boot_mode, can) {
        (Some(BootMode::LegacyBios), Uefi) => {
            return Err(client(
                "Boot mode legacy-bios is not supported by the root disk, which has no boot code",
            ));
        }
        (Some(BootMode::Uefi), LegacyBios) => {
            return Err(client(
                "Boot mode uefi is not supported by the root disk, which has no EFI system partition",
            ));
        }
        (Some(mode), _) => mode,
        (None, LegacyBios) => BootMode::LegacyBios,
        (None, Uefi) => BootMode::Uefi,
        (None, UefiPreferred) => BootMode::UefiPreferred,
    };
    Ok((root, mode))
}

/// Gives each disk the name of a device that it has none of.
pub(super) fn named(mut disks: Vec<ImportDisk>, root: usize) -> Vec<ImportDisk> {
    let mut taken: BTreeSet<String> = disks.iter().filter_map(|disk| disk.device_name.clone()).collect();
    let free = ('b'..='z').map(|letter| format!("/dev/sd{letter}"));
    let mut names = free.filter(|name| !taken.contains(name)).collect::<Vec<_>>().into_iter();
    if disks[root].device_name.is_none() {
        let name = if taken.insert(ROOT.to_owned()) { Some(ROOT.to_owned()) } else { names.next() };
        disks[root].device_name = name;
    }
    for disk in disks.iter_mut().filter(|disk| disk.device_name.is_none()) {
        disk.device_name = names.next();
    }
    disks
}

/// The image of a machine's disks.
pub(super) fn image_of(task: &ImportTask, disks: &[ImportDisk], root: usize, mode: BootMode) -> Image {
    let device = |disk: &ImportDisk| ImageDevice {
        device_name: disk.device_name.clone().unwrap_or_default(),
        snapshot_id: Some(disk.snapshot_id.clone()),
        size_gib: snapshot_of(task, disk).volume_size_gib,
        volume_type: VolumeType::Gp2,
        iops: None,
        throughput: None,
        delete_on_termination: true,
        encrypted: disk.encryption.is_some(),
    };
    let devices: Vec<_> = disks.iter().map(device).collect();
    let (id, boot) = (haar_core::new_id("ami"), ImageBoot::Firmware(mode));
    let root = (devices[root].device_name.as_str(), devices[root].size_gib);
    let image = Image::new(&task.account, &task.region, id, root, boot, task.created);
    let described = || format!("Created by AWS-VMImport service for {}", task.id);
    Image {
        name: task.id.clone(),
        description: task.description.clone().or_else(|| Some(described())),
        devices,
        ..image
    }
}

#[cfg(test)]
mod tests {
    use haar_records::ec2::ImportFormat;

    use super::*;

    #[test]
    fn the_root_disk_is_the_first_that_boots() {
        use haar_image::BootMode::{LegacyBios, Uefi};
        let wanted = |boot_mode| ImportedImage { boot_mode, ..ImportedImage::default() };
        let by = |boot_mode, modes: &[_]| boots_by(&wanted(boot_mode), modes).ok();
        assert_eq!(by(None, &[None, Some(Uefi)]), Some((1, BootMode::Uefi)));
        assert_eq!(by(Some(BootMode::LegacyBios), &[Some(LegacyBios)]), Some((0, BootMode::LegacyBios)));
        assert_eq!(by(Some(BootMode::Uefi), &[Some(LegacyBios)]), None);
        assert_eq!(by(None, &[None]), None);
    }

    #[test]
    fn disks_without_a_device_get_one() {
        let disk = |name: Option<&str>| ImportDisk {
            container: 0,
            format: ImportFormat::Vmdk,
            file_size: 1,
            virtual_size: 1,
            device_name: name.map(str::to_owned),
            snapshot_id: String::new(),
            encryption: None,
            progress: 0,
        };
        let names = |disks: Vec<ImportDisk>, root| {
            named(disks, root).into_iter().filter_map(|disk| disk.device_name).collect::<Vec<_>>()
        };
        assert_eq!(
            names(vec![disk(None), disk(None), disk(Some("/dev/sdb"))], 1),
            ["/dev/sdc", "/dev/sda1", "/dev/sdb"]
        );
        assert_eq!(names(vec![disk(Some("/dev/xvda")), disk(None)], 0), ["/dev/xvda", "/dev/sdb"]);
    }
}
