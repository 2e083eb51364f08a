//! Writing the archive that an initial RAM disk is: cpio's "newc" format, as the kernel documents it in
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Writes an archive. Everything in it belongs to root and is dated 1970, so that equal content gives equal bytes.
pub(crate) struct Archive<W: Write> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Archive<W> {
        Archive { out, inode: 0 }
    }

    /// Adds a directory; its parent must have been added before.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.member(name, DIRECTORY | 0o755, &[])
    }

    /// Adds a file; its directory must have been added before.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.member(name, REGULAR | permissions, content)
    }

    /// Adds a symbolic link; its directory must have been added before.
    pub fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.member(name, LINK | 0o777, target.as_bytes())
    }

    /// Ends the archive and returns what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.member("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn member(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let too_long = |_| io::Error::new(io::ErrorKind::FileTooLarge, "a cpio member has at most 4 GiB");
        let size = u32::try_from(content.len()).map_err(too_long)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
        let links = if mode >> 12 == DIRECTORY >> 12 { 2 } else { 1 };
        // magic, then inode, mode, owner, group, links, time, size, device and node numbers (2 each), name size, checksum
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(name.as_bytes())?;
        let header = 6 + 8 * fields.len() + name.len();
        self.out.write_all(&[0; 4][..1 + padding(header + 1)])?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; 4][..padding(content.len())])?;
        self.inode += 1;
        Ok(())
    }
}

/// How many bytes are missing to a multiple of four.
fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_aligned_and_described() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("d").unwrap();
        archive.file("d/five", 0o755, b"12345").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        // A directory's member: a header of 110 bytes, a name of 2, no padding.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000041ED");
        assert_eq!(&bytes[110..112], b"d\0");
        let file = &bytes[112..];
        assert_eq!(&file[14..22], b"000081ED");
        assert_eq!(&file[54..62], b"00000005");
        assert_eq!(&file[94..102], b"00000007");
        // 110 + 7 is padded to 120, 5 bytes of content to 8.
        assert_eq!(&file[110..128], b"d/five\0\0\0\x0012345\0\0\0");
        assert!(file[128..].starts_with(b"070701"));
        assert!(file[128..].windows(11).any(|w| w == b"TRAILER!!!\0"));
    }
}
