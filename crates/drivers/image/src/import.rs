//! Taking a disk image from a file.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::build::convert_to_qcow2;
use crate::error::{Error, Result};
use crate::library::{Draft, DraftBoot, Image, Library, ROOT_DISK, Staging};
use crate::manifest::{BootMode, Source};
use crate::progress::Progress;
use crate::tool;

/// The greatest disk that is taken, in bytes: the greatest gp3 volume.
pub const SIZE_LIMIT: u64 = 16 << 40;

/// How much of a disk's beginning is looked at for what it boots with, in bytes.
const HEAD: u64 = 1 << 20;

/// What to make of an imported file.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The image's name; by default the file's name without its extension.
    pub name: Option<String>,
    /// What the image is, in a sentence.
    pub description: String,
    /// The account that logs in by SSH; by default `root`.
    pub default_user: Option<String>,
    /// The firmware that it boots with; by default what its partition table says.
    pub boot_mode: Option<BootMode>,
    /// The name of the root device; by default `/dev/xvda`.
    pub root_device_name: Option<String>,
}

impl Library {
    /// Takes a disk image in qcow2, raw or VMDK format into the library. The format is found by looking at the content. The
    /// file is copied and left as it is.
    ///
    /// A file that refers to other files (a backing file, an external data file, extents) is refused, because by them it
    /// could reach any file of this machine; so is one that is encrypted, that has been marked corrupt, or that no firmware
    /// could boot.
    ///
    /// # Errors
    /// [`Error::Rejected`] for a file that is not taken; [`Error::InvalidName`] and [`Error::NameTaken`]; what a tool or the file system said.
    pub fn import(&self, file: &Path, options: &ImportOptions, progress: &mut dyn Progress) -> Result<Image> {
        let stem = || file.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        let name = options.name.clone().or_else(stem).unwrap_or_default();
        self.check_name(&name)?;
        let staging = self.stage()?;
        let virtual_size = take_disk(file, &staging, progress)?;
        let boot_mode = match options.boot_mode {
            Some(mode) => mode,
            None => {
                let head = read_head(&staging)?;
                let reason =
                    "nothing in it can be booted: it has neither boot code nor an EFI system partition";
                boot_mode_of(&head).ok_or_else(|| rejected(file, reason))?
            }
        };
        let draft = Draft {
            name,
            description: options.description.clone(),
            source: Source::Import {
                file: file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            },
            image_owner_alias: None,
            default_user: options.default_user.clone().unwrap_or_else(|| "root".into()),
            root_device_name: options.root_device_name.clone().unwrap_or_else(|| "/dev/xvda".into()),
            virtual_size,
            boot: DraftBoot::Firmware(boot_mode),
        };
        staging.publish(draft, progress)
    }
}

/// Copies the disk in a file into `root.qcow2` of an image that is being made, and returns the disk's size in bytes.
pub(crate) fn take_disk(file: &Path, staging: &Staging, progress: &mut dyn Progress) -> Result<u64> {
    let probed = probe(file)?;
    if probed.virtual_size == 0 || probed.virtual_size > SIZE_LIMIT {
        let reason = format!("its disk has {} bytes; possible are 1 to {SIZE_LIMIT}", probed.virtual_size);
        return Err(rejected(file, &reason));
    }
    let file = fs::canonicalize(file).map_err(Error::io("find", file))?;
    convert_to_qcow2(&file, probed.format, &staging.path(ROOT_DISK), progress).map_err(
        |error| match error {
            Error::Tool { output, .. } => rejected(&file, &format!("its content cannot be read: {output}")),
            other => other,
        },
    )?;
    Ok(probed.virtual_size)
}

/// The format of a disk file, by qemu-img's name, and the size of its disk.
#[derive(Debug, PartialEq, Eq)]
struct Probed {
    format: &'static str,
    virtual_size: u64,
}

fn rejected(file: &Path, reason: &str) -> Error {
    Error::Rejected { path: file.into(), reason: reason.into() }
}

/// Finds the format of a disk file by its content and refuses what must not be opened.
fn probe(path: &Path) -> Result<Probed> {
    let found = fs::metadata(path).map_err(Error::io("open", path))?;
    if !found.is_file() {
        return Err(rejected(path, "it is not a regular file"));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut head = Vec::new();
    (&file).take(HEAD).read_to_end(&mut head).map_err(Error::io("read", path))?;
    let length = found.len();
    let probed = match &head[..] {
        [b'Q', b'F', b'I', 0xfb, ..] => probe_qcow2(&head),
        [b'K', b'D', b'M', b'V', ..] => probe_vmdk(&head),
        head => probe_raw(head, length, &file),
    };
    probed.map_err(|reason| rejected(path, &reason))
}

/// Reads the header of a qcow2 file (QEMU's `docs/interop/qcow2`).
fn probe_qcow2(head: &[u8]) -> std::result::Result<Probed, String> {
    let short = "its qcow2 header is cut off";
    let version = be32(head, 4).ok_or(short)?;
    let backing_file = be64(head, 8).ok_or(short)?;
    let virtual_size = be64(head, 24).ok_or(short)?;
    let encryption = be32(head, 32).ok_or(short)?;
    let incompatible = match version {
        2 => 0,
        3 => be64(head, 72).ok_or(short)?,
        _ => return Err(format!("its qcow2 version is {version}; known are 2 and 3")),
    };
    const CORRUPT: u64 = 1 << 1;
    const EXTERNAL_DATA: u64 = 1 << 2;
    if backing_file != 0 {
        return Err("it has a backing file; make a file that stands alone of it by `qemu-img convert`".into());
    }
    if incompatible & EXTERNAL_DATA != 0 {
        return Err("its data are in another file".into());
    }
    if incompatible & CORRUPT != 0 {
        return Err("it has been marked corrupt".into());
    }
    if encryption != 0 {
        return Err("it is encrypted".into());
    }
    Ok(Probed { format: "qcow2", virtual_size })
}

/// Reads the header and the descriptor of a sparse VMDK file.
fn probe_vmdk(head: &[u8]) -> std::result::Result<Probed, String> {
    let descriptor = head.get(512..).unwrap_or_default();
    let virtual_size = check_vmdk(head, &descriptor[..descriptor.len().min(20 * 512)])?;
    Ok(Probed { format: "vmdk", virtual_size })
}

/// Checks that a sparse VMDK file stands alone (VMware's "Virtual Disk Format 5.0") by its header and the 20 sectors that follow, and
/// gives the size of its disk in bytes.
///
/// QEMU looks for the name of a file below in those sectors, wherever the header says that the descriptor is, and takes it wherever it
/// stands in a line.
pub(crate) fn check_vmdk(head: &[u8], descriptor: &[u8]) -> std::result::Result<u64, String> {
    let short = "its VMDK header is cut off";
    let capacity = le64(head, 12).ok_or(short)?;
    let descriptor_offset = le64(head, 28).ok_or(short)?;
    let descriptor_size = le64(head, 36).ok_or(short)?;
    // Without a capacity of its own, the file is read as a list of other files.
    if capacity == 0 || descriptor_offset == 0 || descriptor_size == 0 {
        return Err("it is a VMDK file that does not stand alone".into());
    }
    if descriptor_offset != 1 {
        return Err("its VMDK descriptor is out of place".into());
    }
    let descriptor = String::from_utf8_lossy(descriptor).to_ascii_lowercase();
    let value = |key: &str| {
        descriptor.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| value.trim().trim_matches(['"', '\0']).to_owned())
        })
    };
    match value("createtype").as_deref() {
        Some("monolithicsparse" | "streamoptimized") => {}
        Some(other) => {
            return Err(format!("it is a VMDK file of the type {other}, which does not stand alone"));
        }
        None => return Err("its VMDK descriptor has no type".into()),
    }
    if value("parentcid").is_some_and(|parent| parent != "ffffffff")
        || descriptor.contains("parentfilenamehint")
    {
        return Err("it is a VMDK file that is based on another".into());
    }
    capacity.checked_mul(512).ok_or_else(|| "its VMDK capacity is too large".to_owned())
}

/// Takes a file without a known magic number for the disk itself, if it looks like one; names the formats that QEMU would
/// know and that are not taken.
fn probe_raw(head: &[u8], length: u64, file: &File) -> std::result::Result<Probed, String> {
    let known: &[(&[u8], usize, &str)] = &[
        (b"# Disk DescriptorFile", 0, "a VMDK file that does not stand alone"),
        (b"COWD", 0, "a VMDK file of VMware ESX"),
        (b"vhdxfile", 0, "a VHDX file"),
        (b"conectix", 0, "a VHD file"),
        (b"QED\0", 0, "a QED file"),
        (b"<<< ", 0, "a VDI file"),
        (b"LUKS\xba\xbe", 0, "encrypted"),
        (b"\xfd7zXZ\0", 0, "compressed by xz"),
        (b"\x1f\x8b", 0, "compressed by gzip"),
        (b"\x28\xb5\x2f\xfd", 0, "compressed by zstd"),
        (b"PK\x03\x04", 0, "a ZIP archive"),
        (b"ustar", 257, "a tar archive, perhaps an OVA"),
    ];
    for (magic, offset, what) in known {
        if head.get(*offset..).is_some_and(|rest| rest.starts_with(magic)) {
            return Err(format!("it is {what}; taken are qcow2, raw and sparse VMDK files as they are"));
        }
    }
    let mut footer = [0; 8];
    if length >= 512 && file.read_exact_at(&mut footer, length - 512).is_ok() && footer == *b"conectix" {
        return Err("it is a VHD file; taken are qcow2, raw and sparse VMDK files".into());
    }
    if head.get(510..512) != Some(&[0x55, 0xaa]) {
        return Err("it is not a disk image: it has neither a known format nor a boot sector".into());
    }
    if !length.is_multiple_of(512) {
        return Err(format!("its {length} bytes are not whole sectors of 512; it seems to be cut off"));
    }
    Ok(Probed { format: "raw", virtual_size: length })
}

/// The beginning of the disk in `root.qcow2`.
fn read_head(staging: &Staging) -> Result<Vec<u8>> {
    let head = staging.scratch("head")?.join("head");
    let mut command = tool::command("qemu-img");
    command.args(["dd", "-f", "qcow2", "-O", "raw", "bs=65536", &format!("count={}", HEAD / 65536)]);
    command.arg(format!("if={}", staging.path(ROOT_DISK).display())).arg(format!("of={}", head.display()));
    tool::run(&mut command, "qemu-utils")?;
    fs::read(&head).map_err(Error::io("read", &head))
}

/// The types of GPT partitions that belong to booting, as they are written (UEFI specification, section 5.3, and GRUB's
/// manual): C12A7328-F81F-11D2-BA4B-00A0C93EC93B and 21686148-6449-6E6F-744E-656564454649.
const EFI_SYSTEM: [u8; 16] = *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";

/// What a disk can be booted by, judged by its first sectors. None if it cannot be.
pub fn boot_mode_of(head: &[u8]) -> Option<BootMode> {
    let sector = head.get(..512)?;
    if sector[510..] != [0x55, 0xaa] {
        return None;
    }
    let partitions = sector[446..510].chunks_exact(16);
    let has_code = sector[..440].iter().any(|&b| b != 0);
    let gpt = partitions.clone().any(|p| p[4] == 0xee) && head.get(512..520) == Some(b"EFI PART");
    let (bios, uefi) = if gpt {
        let types: Vec<&[u8]> = gpt_types(head).collect();
        let has = |wanted: [u8; 16]| types.contains(&&wanted[..]);
        // Boot code in the first sector of a GPT disk is GRUB's with a partition of its own, or another loader's without.
        (has_code || has(BIOS_BOOT), has(EFI_SYSTEM))
    } else {
        (has_code, partitions.clone().any(|p| p[4] == 0xef))
    };
    match (bios, uefi) {
        (true, true) => Some(BootMode::UefiPreferred),
        (true, false) => Some(BootMode::LegacyBios),
        (false, true) => Some(BootMode::Uefi),
        (false, false) => None,
    }
}

/// The partition types of a GPT, as far as the table lies in `head`.
fn gpt_types(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let start = le64(head, 512 + 72).and_then(|lba| lba.checked_mul(512)).unwrap_or(u64::MAX);
    let count = le32(head, 512 + 80).unwrap_or(0).min(1024);
    let size = le32(head, 512 + 84).unwrap_or(0).max(128);
    let table = usize::try_from(start).ok().and_then(|start| head.get(start..)).unwrap_or_default();
    table.chunks(size as usize).take(count as usize).filter_map(|entry| entry.get(..16))
}

fn bytes<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..)?.first_chunk().copied()
}

pub(crate) fn be32(data: &[u8], at: usize) -> Option<u32> {
    bytes(data, at).map(u32::from_be_bytes)
}

pub(crate) fn be64(data: &[u8], at: usize) -> Option<u64> {
    bytes(data, at).map(u64::from_be_bytes)
}

pub(crate) fn le32(data: &[u8], at: usize) -> Option<u32> {
    bytes(data, at).map(u32::from_le_bytes)
}

pub(crate) fn le64(data: &[u8], at: usize) -> Option<u64> {
    bytes(data, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A first sector with or without boot code, and the type of its first partition.
    fn mbr(code: bool, partition: u8) -> Vec<u8> {
        let mut sector = vec![0; HEAD as usize];
        sector[0] = u8::from(code);
        sector[450] = partition;
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    fn gpt(code: bool, types: &[[u8; 16]]) -> Vec<u8> {
        let mut disk = mbr(code, 0xee);
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[584] = 2;
        disk[592] = 128;
        disk[596] = 128;
        for (index, kind) in types.iter().enumerate() {
            disk[1024 + index * 128..][..16].copy_from_slice(kind);
        }
        disk
    }

    #[test]
    fn what_a_disk_boots_by() {
        let (linux, esp, bios) = ([7; 16], EFI_SYSTEM, BIOS_BOOT);
        assert_eq!(boot_mode_of(&mbr(true, 0x83)), Some(BootMode::LegacyBios));
        assert_eq!(boot_mode_of(&mbr(false, 0x83)), None);
        assert_eq!(boot_mode_of(&mbr(false, 0xef)), Some(BootMode::Uefi));
        assert_eq!(boot_mode_of(&mbr(true, 0xef)), Some(BootMode::UefiPreferred));
        assert_eq!(boot_mode_of(&gpt(true, &[bios, linux])), Some(BootMode::LegacyBios));
        assert_eq!(boot_mode_of(&gpt(true, &[linux, esp, bios])), Some(BootMode::UefiPreferred));
        assert_eq!(boot_mode_of(&gpt(false, &[esp, linux])), Some(BootMode::Uefi));
        assert_eq!(boot_mode_of(&gpt(false, &[linux])), None);
        assert_eq!(boot_mode_of(&[0; 512]), None);
        assert_eq!(boot_mode_of(b"short"), None);
    }

    #[test]
    fn a_table_of_lies_is_survived() {
        for (at, length) in [(584, 8), (592, 4), (596, 4)] {
            let mut disk = gpt(false, &[EFI_SYSTEM]);
            disk[at..at + length].fill(0xff);
            boot_mode_of(&disk);
            boot_mode_of(&disk[..1000]);
        }
    }

    fn qcow2(version: u8) -> Vec<u8> {
        let mut head = vec![0; 104];
        head[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version]);
        head[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        head
    }

    #[test]
    fn qcow2_files_that_reach_out_are_refused() {
        let fine = Ok(Probed { format: "qcow2", virtual_size: 1 << 30 });
        assert_eq!(probe_qcow2(&qcow2(3)), fine);
        assert_eq!(probe_qcow2(&qcow2(2)), fine);
        for (version, at, value, complaint) in [
            (2, 15, 1, "backing file"),
            (3, 8, 1, "backing file"),
            (3, 79, 4, "another file"),
            (3, 79, 2, "corrupt"),
            (3, 35, 1, "encrypted"),
            (3, 7, 1, "version"),
        ] {
            let mut head = qcow2(version);
            head[at] = value;
            let error = probe_qcow2(&head).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
        for length in 0..80 {
            assert!(probe_qcow2(&qcow2(3)[..length]).is_err());
        }
    }

    #[test]
    fn vmdk_files_that_reach_out_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.vmdk");
        let vmdk = |capacity: u64, descriptor: &str| {
            let mut head = vec![0; 512 * 4];
            head[..4].copy_from_slice(b"KDMV");
            head[12..20].copy_from_slice(&capacity.to_le_bytes());
            head[28] = 1;
            head[36] = 2;
            head[512..][..descriptor.len()].copy_from_slice(descriptor.as_bytes());
            fs::write(&path, head).unwrap();
            probe(&path)
        };
        let fine = "# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n";
        assert_eq!(vmdk(4, fine).unwrap(), Probed { format: "vmdk", virtual_size: 2048 });
        for (capacity, descriptor, complaint) in [
            (0, fine.to_owned(), "stand alone"),
            (4, fine.replace("monolithicSparse", "monolithicFlat"), "monolithicflat"),
            (4, fine.replace("createType", "x"), "no type"),
            (4, fine.replace("ffffffff", "12345678"), "based on another"),
            (4, format!("{fine}parentFileNameHint=\"/etc/shadow\"\n"), "based on another"),
            (4, format!("{fine}# parentFileNameHint=\"/etc/shadow\"\n"), "based on another"),
            (
                4,
                format!("{fine}{}parentFileNameHint=\"/etc/shadow\"\n", "\n".repeat(700)),
                "based on another",
            ),
            (u64::MAX, fine.to_owned(), "too large"),
        ] {
            let error = vmdk(capacity, &descriptor).unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
        fs::write(&path, fine).unwrap();
        assert!(probe(&path).unwrap_err().to_string().contains("stand alone"));
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for (content, complaint) in [
            (vec![], "not a disk image"),
            (b"hello".to_vec(), "not a disk image"),
            (vec![0; 4096], "not a disk image"),
            (b"\x1f\x8b\x08".to_vec(), "gzip"),
            ([&mbr(true, 0x83)[..], b"x"].concat(), "cut off"),
            ([&mbr(true, 0x83)[..], b"conectix", &[0; 504]].concat(), "VHD"),
        ] {
            fs::write(&path, content).unwrap();
            let error = probe(&path).unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
        assert!(probe(dir.path()).unwrap_err().to_string().contains("regular file"));
        assert!(matches!(probe(&dir.path().join("missing")), Err(Error::Io { .. })));
    }
}
