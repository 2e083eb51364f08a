//! Snapshots of disks that others have made.

use std::fs;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::{Driver, Error, TEMPORARY, Volume, at, background, encryption};

/// How much memory `qemu-img` may take for what others have made, in bytes of address space.
const MOST_MEMORY: u64 = 4 << 30;

impl Driver {
    /// Makes a snapshot with the bytes of a foreign disk, of `size` bytes, on no other layer. `node` is how QEMU is to open the disk, and
    /// must name no other files. `progress` is told how many hundredths are done.
    ///
    /// It takes as long as it takes to read the disk; where it is given up, [`Self::abandon`] removes what there is.
    ///
    /// # Errors
    /// [`Error::Conflict`], [`Error::NoSpace`], [`Error::Tool`] if the disk cannot be read, and the others.
    pub async fn create_imported(
        &self,
        id: &str,
        node: &Value,
        size: u64,
        progress: &(dyn Fn(u8) + Send + Sync),
    ) -> Result<Volume, Error> {
        let path = self.path(id)?;
        if let Some(volume) = self.info(id)? {
            let same =
                volume.encrypted == self.key.is_some() && volume.size == size && volume.backing.is_none();
            return if same { Ok(volume) } else { Err(Error::Conflict(id.to_owned())) };
        }
        let new = self.temporary(id);
        let mut command = background(Some(MOST_MEMORY));
        command.args(["convert", "-p", "-O", "qcow2"]);
        if self.key.is_some() {
            command.args(["--object", encryption::SECRET, "-o", encryption::OPTIONS]);
        }
        command.arg(format!("json:{node}")).arg(&new);
        let mut made = self.convert(command, progress).await;
        if made.is_ok() {
            made = self.grow_new(&new, size).await;
        }
        self.publish_made(id, new, path, made).await
    }

    async fn grow_new(&self, new: &std::path::Path, size: u64) -> Result<(), Error> {
        let volume = Volume {
            path: new.to_owned(),
            size,
            backing: None,
            allocated: 0,
            corrupt: false,
            encrypted: self.key.is_some(),
        };
        let mut command = self.command("resize");
        command.arg("-q").arg(self.alone(&volume)?).arg(size.to_string());
        self.run(command).await
    }

    /// Runs `qemu-img convert` and tells how far it is.
    async fn convert(
        &self,
        mut command: Command,
        progress: &(dyn Fn(u8) + Send + Sync),
    ) -> Result<(), Error> {
        command.env("LC_ALL", "C").kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if self.key.is_some() { Stdio::piped() } else { Stdio::null() });
        let failed = |error| at("run", std::path::Path::new("qemu-img"))(error);
        let mut child = command.spawn().map_err(failed)?;
        if let (Some(key), Some(mut input)) = (&self.key, child.stdin.take()) {
            // If it has ended already, it says why itself.
            let _ = input.write_all(key.as_bytes()).await;
        }
        let (mut output, mut errors) = (child.stdout.take(), child.stderr.take());
        let tell = async {
            let (mut buffer, mut line) = ([0; 512], String::new());
            while let Some(output) = &mut output
                && let Ok(count @ 1..) = output.read(&mut buffer).await
            {
                // Lines of the kind `    (12.34/100%)`, each over the one before.
                for byte in &buffer[..count] {
                    if matches!(byte, b'\r' | b'\n') {
                        let percent = line.trim().strip_prefix('(').and_then(|rest| rest.split('.').next());
                        if let Some(percent) = percent.and_then(|percent| percent.parse().ok()) {
                            progress(percent);
                        }
                        line.clear();
                    } else if line.len() < 80 {
                        line.push(char::from(*byte));
                    }
                }
            }
        };
        let complain = async {
            let (mut buffer, mut kept) = ([0; 512], Vec::new());
            while let Some(errors) = &mut errors
                && let Ok(count @ 1..) = errors.read(&mut buffer).await
            {
                if kept.len() < 4096 {
                    kept.extend_from_slice(&buffer[..count]);
                }
            }
            kept
        };
        let ((), complaint, status) = tokio::join!(tell, complain, child.wait());
        if status.map_err(failed)?.success() {
            return Ok(());
        }
        let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
        Err(self.told_space(Error::Tool(complaint)))
    }

    /// Removes a snapshot that was imported, and what an import of it that was given up has left.
    ///
    /// # Errors
    /// [`Error::InvalidId`], [`Error::Io`].
    pub fn abandon(&self, id: &str) -> Result<(), Error> {
        self.remove(id)?;
        let prefix = format!("{TEMPORARY}{id}-");
        for name in self.names()? {
            if name.to_string_lossy().starts_with(&prefix) {
                let path = self.dir.join(name);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(at("remove", &path)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
