//! The checksums that publishers give.

use std::fmt;
use std::io::Read;

use sha2::{Digest as _, Sha256, Sha512};

/// A checksum algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The algorithm whose digests have this many hexadecimal digits.
    fn of_length(digits: usize) -> Option<Algorithm> {
        match digits {
            64 => Some(Algorithm::Sha256),
            128 => Some(Algorithm::Sha512),
            _ => None,
        }
    }
}

/// A checksum: `sha256:` or `sha512:` and a digest in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checksum {
    pub algorithm: Algorithm,
    /// Lower case.
    digest: String,
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.digest)
    }
}

impl Checksum {
    /// Reads `ALGORITHM:DIGEST`.
    pub fn parse(text: &str) -> Option<Checksum> {
        let (algorithm, digest) = text.split_once(':')?;
        let checksum = Checksum::from_digest(digest)?;
        algorithm.eq_ignore_ascii_case(checksum.algorithm.name()).then_some(checksum)
    }

    /// Reads a digest; its length tells the algorithm.
    fn from_digest(digest: &str) -> Option<Checksum> {
        let algorithm = Algorithm::of_length(digest.len())?;
        let hexadecimal = digest.bytes().all(|b| b.is_ascii_hexdigit());
        hexadecimal.then(|| Checksum { algorithm, digest: digest.to_ascii_lowercase() })
    }

    /// Computes the checksum of what a reader gives.
    pub fn compute(
        algorithm: Algorithm,
        from: &mut dyn Read,
        mut each: impl FnMut(u64),
    ) -> std::io::Result<Checksum> {
        let (mut sha256, mut sha512) = (Sha256::new(), Sha512::new());
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        loop {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            match algorithm {
                Algorithm::Sha256 => sha256.update(&buffer[..n]),
                Algorithm::Sha512 => sha512.update(&buffer[..n]),
            }
            done += n as u64;
            each(done);
        }
        let digest = match algorithm {
            Algorithm::Sha256 => hex::encode(sha256.finalize()),
            Algorithm::Sha512 => hex::encode(sha512.finalize()),
        };
        Ok(Checksum { algorithm, digest })
    }
}

/// The entries of a checksum file: names, without folders, and checksums. Three formats are known: that of coreutils
/// (`DIGEST  NAME`, with `*` before the name in binary mode), that of BSD (`SHA256 (NAME) = DIGEST`), and a digest alone,
/// which stands for whatever file it was published beside and has an empty name here. Lines of other kinds, such as those
/// of a signature around the list, are skipped.
pub(crate) fn parse_file(text: &str) -> Vec<(String, Checksum)> {
    text.lines().filter_map(|line| parse_line(line.trim())).collect()
}

fn parse_line(line: &str) -> Option<(String, Checksum)> {
    let (name, checksum) = if let Some((start, digest)) = line.rsplit_once(") = ") {
        let (algorithm, name) = start.split_once(" (")?;
        (name, Checksum::parse(&format!("{algorithm}:{digest}"))?)
    } else {
        match line.split_once([' ', '\t']) {
            Some((digest, name)) => {
                (name.trim_start().trim_start_matches('*'), Checksum::from_digest(digest)?)
            }
            None => ("", Checksum::from_digest(line)?),
        }
    };
    let name = name.rsplit('/').next().unwrap_or_default();
    Some((name.to_owned(), checksum))
}

/// Whether a file name fits a pattern in which `*` stands for any text.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    (0..=name.len()).any(|at| name.is_char_boundary(at) && matches(rest, &name[at..]))
}

/// The entry of a checksum file for the file of a URL, whose last part may be a pattern: the last by name of those that
/// fit, with versions in names compared as numbers.
pub(crate) fn find<'a>(entries: &'a [(String, Checksum)], pattern: &str) -> Option<&'a (String, Checksum)> {
    if let [only] = entries
        && only.0.is_empty()
    {
        return Some(only);
    }
    entries.iter().filter(|(name, _)| matches(pattern, name)).max_by_key(|(name, _)| version_key(name))
}

/// A name as a sequence that sorts `10` behind `9`.
fn version_key(name: &str) -> Vec<(u64, &str)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (text, after) = after.split_at(letters);
        key.push((number.parse().unwrap_or(u64::MAX * u64::from(digits > 0)), text));
        rest = after;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn sha256(text: &str) -> Checksum {
        Checksum::compute(Algorithm::Sha256, &mut text.as_bytes(), |_| {}).unwrap()
    }

    #[test]
    fn digests_of_the_standard() {
        assert_eq!(sha256("").to_string(), format!("sha256:{A}"));
        let abc = Checksum::compute(Algorithm::Sha512, &mut &b"abc"[..], |_| {}).unwrap();
        assert!(abc.to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
        assert_eq!(Checksum::parse(&abc.to_string()), Some(abc));
        assert_eq!(Checksum::parse(&format!("SHA256:{}", A.to_uppercase())), Some(sha256("")));
        for bad in [
            "",
            "sha256:",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &format!("sha512:{A}"),
            &format!("sha256:{A}0"),
        ] {
            assert_eq!(Checksum::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_format_of_checksum_files() {
        let b = sha256("b").to_string().replace("sha256:", "");
        let text = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{A}  one.qcow2\n{b} *./folder/two.img\r\n\
             SHA256 (three (x).raw) = {A}\nSHA512 (wrong) = {A}\n# comment\nnothing\n{A}\n"
        );
        let entries = parse_file(&text);
        let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["one.qcow2", "two.img", "three (x).raw", ""]);
        assert_eq!(find(&entries, "two.img").unwrap().1, sha256("b"));
        assert_eq!(find(&entries, "four.img"), None);
        // A digest alone counts only where it is alone.
        assert_eq!(find(&parse_file(A), "anything").unwrap().1, sha256(""));
    }

    #[test]
    fn a_pattern_takes_the_newest() {
        let lines = ["a-2023.9.1-x.qcow2", "a-2023.10.1-x.qcow2", "a-2023.10.1-y.qcow2"]
            .map(|n| format!("{A}  {n}\n"));
        let entries = parse_file(&lines.concat());
        assert_eq!(find(&entries, "a-*-x.qcow2").unwrap().0, "a-2023.10.1-x.qcow2");
        assert_eq!(find(&entries, "*").unwrap().0, "a-2023.10.1-y.qcow2");
        assert_eq!(find(&entries, "b-*"), None);
        assert!(matches("a*b*c", "a-é-b--c") && !matches("a*b*c", "a-b-"));
    }
}
