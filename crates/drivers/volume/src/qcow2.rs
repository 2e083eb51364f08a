//! The head of a qcow2 file, as far as volumes need it (QEMU, docs/interop/qcow2.txt). Reading it takes microseconds
//! and works beside a running guest; `qemu-img info` takes milliseconds and asks for the image's lock.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The longest name of a backing file.
const MAX_BACKING_NAME: u32 = 1023;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The size of the disk in bytes.
    pub size: u64,
    /// The image that it overlays, as written.
    pub backing: Option<PathBuf>,
    /// QEMU found its structure to be damaged, and writes nothing to it until it is repaired.
    pub corrupt: bool,
    /// What is written to it is encrypted.
    pub encrypted: bool,
}

/// The method of encryption of a file that is not.
const PLAIN: u32 = 0;

/// The incompatible feature of a file that is damaged.
const CORRUPT: u64 = 1 << 1;

impl Header {
    /// Reads the head of a file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] if it is not qcow2, version 2 or 3.
    pub(crate) fn read(file: &File) -> io::Result<Header> {
        let invalid = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
        let mut head = [0; 36];
        file.read_exact_at(&mut head, 0).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => invalid("it is too short for qcow2"),
            _ => error,
        })?;
        let (words, _) = head.as_chunks::<4>();
        let word = |index: usize| u32::from_be_bytes(words[index]);
        let long = |index: usize| u64::from(word(index)) << 32 | u64::from(word(index + 1));
        if words[0] != MAGIC {
            return Err(invalid("it is not qcow2"));
        }
        if !matches!(word(1), 2 | 3) {
            return Err(invalid("its version of qcow2 is neither 2 nor 3"));
        }
        let (backing_offset, backing_length) = (long(2), word(4));
        let backing = if backing_offset == 0 {
            None
        } else if backing_length > MAX_BACKING_NAME {
            return Err(invalid("the name of its backing file is too long"));
        } else {
            let mut name = vec![0; backing_length as usize];
            file.read_exact_at(&mut name, backing_offset)
                .map_err(|_| invalid("the name of its backing file is missing"))?;
            Some(OsString::from_vec(name).into())
        };
        let mut features = [0; 8];
        if word(1) == 3 {
            file.read_exact_at(&mut features, 72).map_err(|_| invalid("its head is cut off"))?;
        }
        let corrupt = u64::from_be_bytes(features) & CORRUPT != 0;
        Ok(Header { size: long(6), backing, corrupt, encrypted: word(8) != PLAIN })
    }
}
