//! Fetching the cloud images that distributions publish.

mod catalogue;
mod checksum;
mod download;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use liblzma::read::XzDecoder;
use sha2::{Digest, Sha256};

pub use catalogue::{Catalogue, Compression, Entry};
use checksum::Checksum;
pub(crate) use download::{Client, Part};

use crate::error::{Error, Result};
use crate::import::{self, SIZE_LIMIT};
use crate::library::{Draft, DraftBoot, Image, Library, Staging};
use crate::manifest::{OWNER_ALIAS, Source};
use crate::progress::{Progress, Unit};

/// How to fetch an image.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// The image's name; by default the entry's.
    pub name: Option<String>,
    /// The folder that keeps what was fetched of an image until it is whole; by default `/var/cache/haar/downloads`.
    pub downloads: PathBuf,
    /// How many attempts in a row may fail without a single new byte; by default 5.
    pub attempts: u32,
    /// The pause after the first failed attempt, which doubles with each further one; by default one second.
    pub pause: Duration,
}

impl Default for PullOptions {
    fn default() -> PullOptions {
        let downloads = "/var/cache/haar/downloads".into();
        PullOptions { name: None, downloads, attempts: 5, pause: Duration::from_secs(1) }
    }
}

impl Library {
    /// Fetches an image of a catalogue. An interrupted transfer is continued, also by a later call. The image appears only
    /// after the published checksum has been found on what was fetched; what has another is discarded.
    ///
    /// # Errors
    /// [`Error::UnknownEntry`]; [`Error::InvalidName`] and [`Error::NameTaken`]; what kept it from being fetched, verified or taken.
    pub fn pull(
        &self,
        catalogue: &Catalogue,
        name: &str,
        options: &PullOptions,
        progress: &mut dyn Progress,
    ) -> Result<Image> {
        let entry = catalogue.get(name)?;
        let name = options.name.as_deref().unwrap_or(&entry.name);
        self.check_name(name)?;
        let client = Client::new(options.attempts, options.pause);
        let (url, checksum) = locate(entry, &client, progress)?;
        // Another checksum is another file: what was fetched of the former is of no use.
        let key = hex::encode(&Sha256::digest(format!("{url} {checksum}"))[..16]);
        let part = Part::claim(&options.downloads, &key, progress)?;
        fetch(&client, &url, &checksum, &part, progress)?;

        let staging = self.stage()?;
        let unpacked = unpack(entry.compression, &part.path, &staging, progress)?;
        let virtual_size = import::take_disk(&unpacked, &staging, progress)?;
        let draft = Draft {
            name: name.into(),
            description: entry.description.clone(),
            source: Source::Pull { entry: entry.name.clone(), url, checksum: checksum.to_string() },
            image_owner_alias: Some(OWNER_ALIAS.into()),
            default_user: entry.default_user.clone(),
            root_device_name: entry.root_device_name.clone(),
            virtual_size,
            boot: DraftBoot::Firmware(entry.boot_mode),
        };
        let image = staging.publish(draft, progress)?;
        part.remove();
        Ok(image)
    }
}

/// The address and the checksum of an entry's file.
fn locate(entry: &Entry, client: &Client, progress: &mut dyn Progress) -> Result<(String, Checksum)> {
    if let Some(checksum) = entry.checksum.as_deref().and_then(Checksum::parse) {
        return Ok((entry.url.clone(), checksum));
    }
    let list_url = entry.checksum_url.as_deref().unwrap_or_default();
    progress.stage("checksums", Unit::Steps, Some(1));
    let list = checksum::parse_file(&client.text(list_url)?);
    progress.advance(1);
    let pattern = entry.file_name();
    let missing = || Error::NoChecksum { url: list_url.into(), file: pattern.into() };
    let (name, checksum) = checksum::find(&list, pattern).ok_or_else(missing)?;
    let url = if pattern.contains('*') {
        // A name out of a file from elsewhere must not lead to another place.
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+~".contains(&b)) {
            return Err(missing());
        }
        entry.url.replacen(pattern, name, 1)
    } else {
        entry.url.clone()
    };
    Ok((url, checksum.clone()))
}

/// Fetches a file until it has its checksum. One that was put together from several transfers gets a second chance.
fn fetch(
    client: &Client,
    url: &str,
    expected: &Checksum,
    part: &Part,
    progress: &mut dyn Progress,
) -> Result<()> {
    loop {
        let fresh = client.file(url, part, progress)?;
        let length = fs::metadata(&part.path).map_err(Error::io("examine", &part.path))?.len();
        progress.stage("checksum", Unit::Bytes, Some(length));
        let mut file = File::open(&part.path).map_err(Error::io("open", &part.path))?;
        let actual = Checksum::compute(expected.algorithm, &mut file, |done| progress.advance(done));
        let actual = actual.map_err(Error::io("read", &part.path))?;
        if actual == *expected {
            return Ok(());
        }
        part.remove();
        if fresh {
            let (expected, actual) = (expected.to_string(), actual.to_string());
            return Err(Error::Checksum { url: url.into(), expected, actual });
        }
        tracing::warn!(url, "what was fetched in parts does not fit together; it is fetched again");
    }
}

/// Unpacks a file, if it is packed, and returns where the disk is.
fn unpack(
    compression: Compression,
    file: &Path,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    if compression == Compression::None {
        return Ok(file.to_path_buf());
    }
    let to = staging.scratch("unpacked")?.join("disk");
    let packed = File::open(file).map_err(Error::io("open", file))?;
    let length = packed.metadata().map_err(Error::io("examine", file))?.len();
    progress.stage("unpack", Unit::Bytes, Some(length));
    let packed = BufReader::with_capacity(1 << 18, Counted { inner: packed, done: 0, progress });
    let rejected = |reason: String| Error::Rejected { path: file.into(), reason };
    let damaged = |e: io::Error| rejected(format!("it cannot be unpacked: {e}"));
    match compression {
        Compression::None => {}
        Compression::Gzip => write_sparse(&mut MultiGzDecoder::new(packed), &to, damaged)?,
        Compression::Xz => write_sparse(&mut XzDecoder::new_multi_decoder(packed), &to, damaged)?,
        Compression::TarXz => {
            let mut archive = tar::Archive::new(XzDecoder::new_multi_decoder(packed));
            let mut found = false;
            for member in archive.entries().map_err(damaged)? {
                let mut member = member.map_err(damaged)?;
                if member.header().entry_type().is_file() || member.header().entry_type().is_gnu_sparse() {
                    if found {
                        return Err(rejected("its archive has more than one file".into()));
                    }
                    found = true;
                    write_sparse(&mut member, &to, damaged)?;
                }
            }
            if !found {
                return Err(rejected("its archive has no file".into()));
            }
        }
    }
    Ok(to)
}

/// Reports how much was read.
struct Counted<'a> {
    inner: File,
    done: u64,
    progress: &'a mut dyn Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.done += n as u64;
        self.progress.advance(self.done);
        Ok(n)
    }
}

/// Writes what a reader gives; blocks of zeros become holes.
fn write_sparse(from: &mut dyn Read, to: &Path, damaged: impl Fn(io::Error) -> Error) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = File::create_new(to).map_err(Error::io("create", to))?;
    let mut block = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match from.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(damaged(e)),
            }
        }
        if filled == 0 {
            return file.set_len(at).map_err(Error::io("write", to));
        }
        if block[..filled].iter().any(|&b| b != 0) {
            file.write_all_at(&block[..filled], at).map_err(Error::io("write", to))?;
        }
        at += filled as u64;
        if at > SIZE_LIMIT {
            return Err(damaged(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large")));
        }
    }
}
