//! Encrypted volumes: LUKS within qcow2 (QEMU, docs/interop/qcow2.txt, "Full disk encryption header").
//!
//! The key reaches `qemu-img` through its standard input, so that it is on no command line and in no file.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Driver, Error, Format, Layer, Volume, at};

/// The object that holds the key.
pub(crate) const SECRET: &str = "secret,id=key,format=raw,file=/dev/stdin";

/// What new files are made with. The key is random, so that deriving the cipher's from it need not take long.
pub(crate) const OPTIONS: &str = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";

/// The folder of empty files, one a key, of which the others are copies.
const TEMPLATES: &str = ".empty";

/// The size of the disk in them.
const TEMPLATE_SIZE: u64 = 1 << 20;

/// What a volume is encrypted with: text.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// A key.
    pub fn new(key: impl Into<String>) -> Key {
        Key(key.into())
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Driver {
    /// The driver as it works with encrypted volumes of this key: what it makes is encrypted; without one, what it makes is
    /// not.
    #[must_use]
    pub fn with_key(&self, key: Option<Key>) -> Driver {
        Driver { key, ..self.clone() }
    }

    /// Forgets the empty files of all keys: they are made anew when they are needed.
    pub(crate) fn forget_templates(&self) -> Result<(), Error> {
        let folder = self.dir.join(TEMPLATES);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(at("remove", &folder)(error)),
            _ => Ok(()),
        }
    }

    /// An empty file that is encrypted with the key. Making the first takes seconds, for LUKS measures how fast the processor is.
    async fn template(&self, key: &Key) -> Result<PathBuf, Error> {
        let folder = self.dir.join(TEMPLATES);
        fs::create_dir_all(&folder).map_err(at("make", &folder))?;
        let name: String = Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let template = folder.join(name);
        if template.exists() {
            return Ok(template);
        }
        let new = self.temporary("template");
        let mut command = self.command("create");
        command.args(["-q", "-f", "qcow2", "-o", OPTIONS]).arg(&new).arg(TEMPLATE_SIZE.to_string());
        let made = self.run(command).await.and_then(|()| self.publish(&new, &template));
        let _ = fs::remove_file(&new);
        made.map(|()| template)
    }

    /// Makes an encrypted file, over an image or empty, from the key's empty one: they differ in nothing but size and backing.
    pub(crate) async fn make_encrypted(
        &self,
        key: &Key,
        path: &Path,
        size: u64,
        image: Option<(&Path, Format)>,
    ) -> Result<(), Error> {
        let template = self.template(key).await?;
        tokio::fs::copy(&template, path).await.map_err(at("make", path))?;
        let layer = Layer { path: path.to_owned(), format: Format::Qcow2, encrypted: true };
        let mut node = self.node(&layer)?;
        if let Some((image, format)) = image {
            let mut command = self.command("rebase");
            // The image was looked at; QEMU need not.
            command.args(["-q", "-u", "-F", format.as_str(), "-b"]).arg(image).arg(format!("json:{node}"));
            self.run(command).await?;
            // What the image has beyond the present end is to be seen, not to be overwritten with zeros.
            node["backing"] = Value::Null;
        }
        let mut command = self.command("resize");
        command.arg("-q").arg(format!("json:{node}")).arg(size.to_string());
        self.run(command).await
    }

    /// Makes an encrypted snapshot of what another one holds, which is not encrypted.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such snapshot, [`Error::NoSpace`], and the others.
    pub async fn copy_snapshot_encrypted(&self, from: &str, to: &str) -> Result<(), Error> {
        let source = self.info(from)?.ok_or_else(|| Error::NotFound(from.to_owned()))?;
        let size = source.size;
        self.create_encrypted_copy(to, &source, size).await.map(drop)
    }

    /// Makes a volume with the bytes of another one, encrypted, on no other layer.
    pub(crate) async fn create_encrypted_copy(
        &self,
        id: &str,
        source: &Volume,
        size: u64,
    ) -> Result<Volume, Error> {
        if self.key.is_none() {
            return Err(Error::KeyMissing(id.to_owned()));
        }
        let path = self.path(id)?;
        if let Some(volume) = self.info(id)? {
            let same = volume.encrypted && volume.size == size && volume.backing.is_none();
            return if same { Ok(volume) } else { Err(Error::Conflict(id.to_owned())) };
        }
        let new = self.temporary(id);
        let mut command = self.command("convert");
        command.args(["-q", "-f", "qcow2", "-O", "qcow2", "-o", OPTIONS]).arg(&source.path).arg(&new);
        let mut made = self.run(command).await;
        if made.is_ok() && size > source.size {
            let grown = Volume { path: new.clone(), backing: None, encrypted: true, ..source.clone() };
            let mut command = self.command("resize");
            command.arg("-q").arg(self.alone(&grown)?).arg(size.to_string());
            made = self.run(command).await;
        }
        self.publish_made(id, new, path, made).await
    }

    /// How QEMU's tools name a volume's own file, without what is below.
    pub(crate) fn alone(&self, volume: &Volume) -> Result<OsString, Error> {
        let path = &volume.path;
        let layer = Layer { path: path.clone(), format: Format::Qcow2, encrypted: volume.encrypted };
        let mut node = self.node(&layer)?;
        if volume.backing.is_some() {
            node["backing"] = Value::Null;
        }
        Ok(format!("json:{node}").into())
    }

    /// How QEMU's tools name a volume or snapshot with all that is below.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such volume, [`Error::KeyMissing`], and the others.
    pub fn whole(&self, id: &str) -> Result<OsString, Error> {
        let mut node = Value::Null;
        for layer in self.layers(id)?.iter().rev() {
            let below = node;
            node = self.node(layer)?;
            if !below.is_null() {
                node["backing"] = below;
            }
        }
        Ok(format!("json:{node}").into())
    }

    /// The block node of a file.
    pub(crate) fn node(&self, layer: &Layer) -> Result<Value, Error> {
        let Layer { path, format, encrypted } = layer;
        let name = path.to_str().ok_or_else(|| Error::BadImage {
            path: path.clone(),
            reason: "its name is not UTF-8".to_owned(),
        })?;
        let mut node = json!({ "driver": format.as_str(), "file": { "driver": "file", "filename": name } });
        if *encrypted {
            if self.key.is_none() {
                return Err(Error::KeyMissing(name.to_owned()));
            }
            node["encrypt"] = json!({ "format": "luks", "key-secret": "key" });
        }
        Ok(node)
    }
}
