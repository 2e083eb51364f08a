//! Making disk files.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};
use crate::progress::{Progress, Unit};
use crate::tool::{self, Stream};

/// Makes a sparse raw disk that is one ext4 file system with the content of a folder, without mounting anything.
///
/// The inode tables are written now: otherwise the kernel of every guest would do it, into the guest's own copy.
pub(crate) fn make_ext4(disk: &Path, size: u64, label: &str, content: &Path) -> Result<()> {
    let file = File::create_new(disk).map_err(Error::io("create", disk))?;
    file.set_len(size).map_err(Error::io("enlarge", disk))?;
    let mut command = tool::command("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "1", "-L", label]);
    command.args(["-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"]);
    command.arg("-d").arg(content).arg(disk);
    tool::run(&mut command, "e2fsprogs").map(drop)
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
