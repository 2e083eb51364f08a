//! The bytes of volumes and snapshots that no machine has, by QEMU's NBD server: it knows the layers and the encryption.
//!
//! A session is a `qemu-nbd` process with one connection (NetworkBlockDevice, doc/proto.md). It ends when its client does, so
//! that nothing stays behind a daemon that is killed.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::{Driver, Error, at, encryption};

/// A part of a disk that is alike throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// In which layer it is; 0 is the topmost.
    pub depth: u64,
    /// Whether it is in any layer at all.
    pub present: bool,
    /// Whether it reads as zeros.
    pub zero: bool,
}

/// How long the server may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest request.
const MAX_REQUEST: usize = 32 << 20;

const SERVER_MAGIC: [u64; 2] = [0x4e42_444d_4147_4943, 0x4948_4156_454f_5054];
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle without padding.
const CLIENT_FLAGS: u32 = 3;
const OPTION_EXPORT_NAME: u32 = 1;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

impl Driver {
    /// Which parts of a disk are written, and in which layers.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such volume or snapshot, [`Error::KeyMissing`], and the others.
    pub async fn map(&self, id: &str) -> Result<Vec<Extent>, Error> {
        let mut command = self.command("map");
        command.args(["-U", "--output=json"]).arg(self.whole(id)?);
        let output = self.output(command).await?;
        serde_json::from_slice(&output).map_err(|error| Error::Tool(format!("its map is no map: {error}")))
    }

    /// Opens a disk that no machine has, for reading, or for writing to its topmost layer.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such volume or snapshot, [`Error::KeyMissing`], and the others.
    pub async fn open_session(&self, id: &str, writable: bool) -> Result<Session, Error> {
        let node = self.whole(id)?;
        let socket = self.temporary(id);
        let session = self.start_session(&node, &socket, writable).await;
        // The connection does without its name.
        let _ = std::fs::remove_file(&socket);
        session
    }

    async fn start_session(&self, node: &OsString, socket: &Path, writable: bool) -> Result<Session, Error> {
        // Socket addresses have at most 107 bytes (unix(7)); state folders may be deeper than that.
        let dir = std::fs::File::open(&self.dir).map_err(at("open", &self.dir))?;
        let name = socket.file_name().unwrap_or_default();
        let near = Path::new("/proc/self/cwd").join(name);
        let from_here = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        let mut command = Command::new("qemu-nbd");
        if self.key.is_some() {
            command.args(["--object", encryption::SECRET]);
        }
        command.current_dir(&self.dir).arg("-k").arg(near).args(["--cache=writeback", "--discard=unmap"]);
        if !writable {
            command.arg("-r");
        }
        command.arg("--image-opts").arg(image_options(node)?);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let failed = |error| at("run", Path::new("qemu-nbd"))(error);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::ToolMissing,
            _ => failed(error),
        })?;
        if let Some(mut input) = child.stdin.take()
            && let Some(key) = &self.key
        {
            // If it has ended already, it says why itself.
            let _ = input.write_all(key.as_bytes()).await;
        }
        let connect = async {
            loop {
                match UnixStream::connect(&from_here).await {
                    Ok(stream) => return Ok(stream),
                    Err(_) if child.try_wait().map_err(failed)?.is_none() => {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    Err(_) => return Err(said(&mut child).await),
                }
            }
        };
        let timeout = || Error::Tool("qemu-nbd does not listen".to_owned());
        let stream = tokio::time::timeout(START_TIMEOUT, connect).await.map_err(|_| timeout())??;
        let mut session = Session { stream, server: child, handle: 0 };
        match tokio::time::timeout(START_TIMEOUT, session.greet()).await {
            Ok(Ok(())) => Ok(session),
            // It listens before it has opened the image.
            Ok(Err(_)) => Err(said(&mut session.server).await),
            Err(_) => Err(timeout()),
        }
    }
}

/// What a server has said before it ended.
async fn said(server: &mut Child) -> Error {
    let mut said = String::new();
    if let Some(mut stderr) = server.stderr.take() {
        let _ = tokio::time::timeout(START_TIMEOUT, stderr.read_to_string(&mut said)).await;
    }
    Error::Tool(said.trim().to_owned())
}

/// An image as `qemu-nbd --image-opts` takes it: the JSON form of its options.
fn image_options(node: &OsString) -> Result<String, Error> {
    let text = node.to_str().and_then(|text| text.strip_prefix("json:"));
    let text = text.ok_or_else(|| Error::Tool("an image's name is not UTF-8".to_owned()))?;
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| Error::Tool(error.to_string()))?;
    let mut options = Vec::new();
    flatten(&value, "", &mut options);
    Ok(options.join(","))
}

/// `file.filename=…,file.driver=…`, commas doubled.
fn flatten(value: &serde_json::Value, prefix: &str, out: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(members) => {
            for (name, value) in members {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(value, &name, out);
            }
        }
        serde_json::Value::String(text) => out.push(format!("{prefix}={}", text.replace(',', ",,"))),
        other => out.push(format!("{prefix}={other}")),
    }
}

/// A disk that is open.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    server: Child,
    handle: u64,
}

impl Session {
    async fn greet(&mut self) -> io::Result<()> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let stream = &mut self.stream;
        let magic = [stream.read_u64().await?, stream.read_u64().await?];
        if magic != SERVER_MAGIC {
            return Err(invalid("it does not speak NBD"));
        }
        stream.read_u16().await?;
        stream.write_u32(CLIENT_FLAGS).await?;
        stream.write_u64(SERVER_MAGIC[1]).await?;
        stream.write_u32(OPTION_EXPORT_NAME).await?;
        stream.write_u32(0).await?;
        // Size and flags of the export.
        stream.read_u64().await?;
        stream.read_u16().await?;
        Ok(())
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        self.request(READ, offset, length, &[]).await
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// [`Error::Io`], with [`io::ErrorKind::StorageFull`] when the host is full.
    pub async fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.request(WRITE, offset, data.len(), data).await.map(drop)
    }

    /// Puts what was written on stable storage.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.request(FLUSH, 0, 0, &[]).await.map(drop)
    }

    async fn request(
        &mut self,
        kind: u16,
        offset: u64,
        length: usize,
        data: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Io { what: "cannot read or write a disk".to_owned(), source };
        if length > MAX_REQUEST {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        self.handle += 1;
        let handle = self.handle;
        let exchange = async {
            let mut request = Vec::with_capacity(28 + data.len());
            request.extend(REQUEST_MAGIC.to_be_bytes());
            request.extend(0_u16.to_be_bytes());
            request.extend(kind.to_be_bytes());
            request.extend(handle.to_be_bytes());
            request.extend(offset.to_be_bytes());
            request.extend((length as u32).to_be_bytes());
            request.extend(data);
            self.stream.write_all(&request).await?;
            let (magic, error, answered) =
                (self.stream.read_u32().await?, self.stream.read_u32().await?, self.stream.read_u64().await?);
            if magic != REPLY_MAGIC || answered != handle {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak NBD"));
            }
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error.cast_signed()));
            }
            let mut read = vec![0; if kind == READ { length } else { 0 }];
            self.stream.read_exact(&mut read).await?;
            Ok(read)
        };
        let answered = tokio::time::timeout(REQUEST_TIMEOUT, exchange).await;
        answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flat_and_commas_stay_in_them() {
        let node: OsString =
            r#"json:{"driver":"qcow2","backing":{"file":{"filename":"/a,b"}},"n":null}"#.into();
        let options = image_options(&node).unwrap();
        let mut options: Vec<&str> = options.split(',').collect();
        options.sort_unstable();
        assert_eq!(options, ["", "b", "backing.file.filename=/a", "driver=qcow2", "n=null"]);
    }
}
