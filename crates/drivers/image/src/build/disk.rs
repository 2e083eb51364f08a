//! Making disk files.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};
use crate::tool::{self, Stream};

const SECTOR: u64 = 512;

/// Where the boot loader's partition begins, in sectors: behind the table.
const LOADER_START: u64 = 34;

/// Where the EFI system partition begins, in sectors.
const EFI_START: u64 = 2048;

/// Where the root partition begins, in sectors.
const ROOT_START: u64 = EFI_START + (16 << 20) / SECTOR;

/// The sectors behind the last partition, which hold the copy of the table.
const TABLE_COPY: u64 = 2048;

/// Makes an empty sparse file.
pub(crate) fn make_sparse(disk: &Path, size: u64) -> Result<()> {
    let file = File::create_new(disk).map_err(Error::io("create", disk))?;
    file.set_len(size).map_err(Error::io("enlarge", disk))
}

/// A place on a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub start: u64,
    pub length: u64,
}

/// Makes an ext4 file system with the content of a folder at a place of a raw disk, without mounting anything.
///
/// The inode tables are written now: otherwise the kernel of every guest would do it, into the guest's own copy.
pub(crate) fn make_ext4(disk: &Path, at: Extent, label: &str, content: &Path) -> Result<()> {
    let mut command = tool::command("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "1", "-L", label, "-E"]);
    command.arg(format!("offset={},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", at.start));
    command.arg("-d").arg(content).arg(disk).arg(format!("{}k", at.length / 1024));
    tool::run(&mut command, "e2fsprogs").map(drop)
}

/// The partitions of a disk that boots by BIOS and by UEFI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partitions {
    /// The EFI system partition.
    pub efi: Extent,
    /// The root file system.
    pub root: Extent,
}

/// Writes a GPT to a raw disk: partition 14 for the boot loader of a BIOS, 15 for EFI, and partition 1, which is the last on
/// the disk, for the root. The numbers are those of Debian's and Ubuntu's cloud images.
pub(crate) fn partition(disk: &Path, size: u64) -> Result<Partitions> {
    let efi = Extent { start: EFI_START * SECTOR, length: (ROOT_START - EFI_START) * SECTOR };
    let root = Extent { start: ROOT_START * SECTOR, length: size - (ROOT_START + TABLE_COPY) * SECTOR };
    let script = format!(
        "label: gpt\nfirst-lba: {LOADER_START}\n\
         {disk}14: start={LOADER_START}, size={}, type=21686148-6449-6E6F-744E-656564454649\n\
         {disk}15: start={EFI_START}, size={}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
         {disk}1: start={ROOT_START}, size={}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n",
        EFI_START - LOADER_START,
        efi.length / SECTOR,
        root.length / SECTOR,
        disk = disk.display(),
    );
    let mut command = tool::command("sfdisk");
    command.args(["--quiet", "--no-tell-kernel"]).arg(disk);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| tool::not_started(&command, "fdisk", e))?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // A program that ended early says why by its status.
    let _ = stdin.write_all(script.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(|e| tool::not_started(&command, "fdisk", e))?;
    if output.status.success() {
        Ok(Partitions { efi, root })
    } else {
        Err(tool::failed(&command, output.status, &output.stderr))
    }
}

/// Makes the EFI system partition with one program: the one that firmware starts when it knows of no other (UEFI
/// specification, section 3.5.1.1, "Removable media boot behavior").
pub(crate) fn make_efi(disk: &Path, at: Extent, program: &Path) -> Result<()> {
    let mut format = tool::command("mkfs.vfat");
    format.args(["-F", "16", "-n", "EFI", "--offset", &(at.start / SECTOR).to_string()]);
    tool::run(format.arg(disk).arg((at.length / 1024).to_string()), "dosfstools")?;
    let image = format!("{}@@{}", disk.display(), at.start);
    let mtools = |name: &str| {
        let mut command = tool::command(name);
        command.arg("-i").arg(&image);
        command
    };
    tool::run(mtools("mmd").args(["::/EFI", "::/EFI/BOOT"]), "mtools")?;
    tool::run(mtools("mcopy").arg(program).arg("::/EFI/BOOT/BOOTX64.EFI"), "mtools").map(drop)
}

/// Puts GRUB for BIOS on a disk that [`partition`] prepared: `boot.img` into the first sector, which loads the first
/// sector of `core.img`, which loads the rest. Each is told where the next lies; the fields are those that GRUB's
/// grub-bios-setup fills in (`GRUB_BOOT_MACHINE_KERNEL_SECTOR` and the block list at the end of `diskboot`).
pub(crate) fn install_grub(disk: &Path, boot: &Path, core: &Path) -> Result<()> {
    let mut boot_code = fs::read(boot).map_err(Error::io("read", boot))?;
    let mut core_code = fs::read(core).map_err(Error::io("read", core))?;
    let sectors = (core_code.len() as u64).div_ceil(SECTOR);
    if boot_code.len() as u64 != SECTOR || !(2..=EFI_START - LOADER_START).contains(&sectors) {
        return Err(Error::Packages("GRUB does not have the expected size".into()));
    }
    let file = File::options().read(true).write(true).open(disk).map_err(Error::io("open", disk))?;
    let mut first = [0; SECTOR as usize];
    file.read_exact_at(&mut first, 0).map_err(Error::io("read", disk))?;
    // The disk's signature and the table of the protective MBR stay.
    boot_code[0x1b8..].copy_from_slice(&first[0x1b8..]);
    boot_code[0x5c..0x64].copy_from_slice(&LOADER_START.to_le_bytes());
    core_code[0x1f4..0x1fc].copy_from_slice(&(LOADER_START + 1).to_le_bytes());
    core_code[0x1fc..0x1fe].copy_from_slice(&((sectors - 1) as u16).to_le_bytes());
    file.write_all_at(&boot_code, 0).map_err(Error::io("write", disk))?;
    file.write_all_at(&core_code, LOADER_START * SECTOR).map_err(Error::io("write", disk))
}

/// Copies a disk of the given format (`raw`, `qcow2`, `vmdk`) into a new qcow2 file; what is zero takes no space.
pub(crate) fn convert_to_qcow2(
    from: &Path,
    format: &str,
    to: &Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    progress.stage("convert", Unit::Percent, Some(100));
    let mut command = tool::command("qemu-img");
    command.args(["convert", "-p", "-f", format, "-O", "qcow2", "-o", "compat=1.1"]).arg(from).arg(to);
    tool::run_lines(&mut command, "qemu-utils", Stream::Output, |line| {
        // Lines of the kind `    (12.34/100%)`.
        let percent = line.trim().strip_prefix('(').and_then(|rest| rest.split('/').next());
        if let Some(percent) = percent.and_then(|p| p.parse::<f64>().ok()) {
            progress.advance(percent.clamp(0.0, 100.0) as u64);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_loader_finds_itself_and_leaves_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let [disk, boot, core] = ["disk", "boot.img", "core.img"].map(|name| dir.path().join(name));
        let mut table = vec![0; 4 << 20];
        table[0x1b8..0x200].fill(0x77);
        fs::write(&disk, &table).unwrap();
        fs::write(&boot, [0x11; 512]).unwrap();
        fs::write(&core, vec![0x22; 512 * 3 - 100]).unwrap();
        install_grub(&disk, &boot, &core).unwrap();
        let written = fs::read(&disk).unwrap();
        assert_eq!(written.len(), table.len());
        assert_eq!(written[0x5c..0x64], 34u64.to_le_bytes());
        assert!(written[0x1b8..0x200].iter().all(|&b| b == 0x77));
        assert!(written[0x64..0x1b8].iter().all(|&b| b == 0x11));
        let core = &written[34 * 512..][..512 * 3 - 100];
        assert_eq!(core[0x1f4..0x1fc], 35u64.to_le_bytes());
        assert_eq!(core[0x1fc..0x1fe], 2u16.to_le_bytes());
        assert!(core[0x200..].iter().all(|&b| b == 0x22));

        fs::write(&boot, [0x11; 511]).unwrap();
        assert!(install_grub(&disk, &boot, &disk).is_err());
    }
}
