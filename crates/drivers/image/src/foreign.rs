//! Disk files that others have made: what they are, and how they may be opened.
//!
//! A disk file can name other files (backing files, extents), by which who sends it could read any file of this machine. So the format is
//! never left to QEMU to guess, headers are looked at before QEMU sees them, what names other files is refused, and QEMU is told that
//! there is nothing below. QEMU's own programs run with little memory, with low priority, and end with this process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::Digest;

use crate::error::{Error, Result};
use crate::import::{SIZE_LIMIT, be32, check_vmdk};
use crate::tool;

/// The longest description of a machine, and the longest list of checksums, in bytes.
const TEXT_LIMIT: u64 = 1 << 20;

/// Most entries of an archive.
const ENTRIES: usize = 200;

/// Most disks of a machine (VM Import/Export User Guide, "Limitations").
const DISKS: usize = 21;

/// The formats that VM Import/Export takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignFormat {
    /// The disk, byte for byte.
    Raw,
    /// Of Virtual PC.
    Vhd,
    /// Of Hyper-V.
    Vhdx,
    /// Of VMware, as one file that stands alone.
    Vmdk,
    /// A tar archive of an OVF description and disks.
    Ova,
}

impl ForeignFormat {
    /// QEMU's name of it.
    fn driver(self) -> &'static str {
        match self {
            ForeignFormat::Raw | ForeignFormat::Ova => "raw",
            ForeignFormat::Vhd => "vpc",
            ForeignFormat::Vhdx => "vhdx",
            ForeignFormat::Vmdk => "vmdk",
        }
    }
}

/// A disk that may be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignDisk {
    /// Its format; never an archive.
    pub format: ForeignFormat,
    /// How many bytes its file has, or its part of the archive.
    pub file_size: u64,
    /// The size of the disk in bytes.
    pub virtual_size: u64,
    /// How QEMU is to open it.
    pub node: Value,
}

/// The disks of a file, in the order of the machine that they are of. Without a format, it is found by the file's content.
///
/// The file must not change meanwhile, nor while it is opened as this says.
///
/// # Errors
/// [`Error::Rejected`] for what is damaged, encrypted, or no such file, and for what names other files.
pub fn inspect(path: &Path, format: Option<ForeignFormat>) -> Result<Vec<ForeignDisk>> {
    let rejected = |reason: String| Error::Rejected { path: path.into(), reason };
    let path = &fs::canonicalize(path).map_err(Error::io("find", path))?;
    let file = File::open(path).map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("examine", path))?;
    if !metadata.is_file() {
        return Err(rejected("it is not a regular file".into()));
    }
    let all = Window { file: &file, start: 0, length: metadata.len() };
    let format = match format {
        Some(format) => format,
        None => all.format().map_err(rejected)?,
    };
    if format != ForeignFormat::Ova {
        all.check(format).map_err(rejected)?;
        return Ok(vec![open(path, None, &all, format)?]);
    }
    let mut disks = Vec::new();
    for (name, window) in archive(all).map_err(rejected)? {
        let of = |reason: String| rejected(format!("{name}: {reason}"));
        let format = window.format().map_err(of)?;
        if matches!(format, ForeignFormat::Raw | ForeignFormat::Ova) {
            return Err(of("it is not a VMDK file".into()));
        }
        window.check(format).map_err(of)?;
        disks.push(open(path, Some((window.start, window.length)), &window, format)?);
    }
    Ok(disks)
}

/// Has QEMU open a disk whose header has been looked at.
fn open(
    path: &Path,
    part: Option<(u64, u64)>,
    window: &Window<'_>,
    format: ForeignFormat,
) -> Result<ForeignDisk> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Info {
        virtual_size: u64,
        #[serde(default)]
        backing_filename: Option<String>,
    }
    let rejected = |reason: String| Error::Rejected { path: path.into(), reason };
    let name = path.to_str().ok_or_else(|| rejected("its name is not UTF-8".into()))?;
    let mut file = json!({ "driver": "file", "filename": name, "read-only": true });
    if let Some((offset, size)) = part {
        file = json!({ "driver": "raw", "offset": offset, "size": size, "file": file });
    }
    let mut node = json!({ "driver": format.driver(), "read-only": true, "file": file });
    if format == ForeignFormat::Vmdk {
        node["backing"] = Value::Null;
    }
    let spoilt = |error| match error {
        Error::Tool { output, .. } => rejected(said(&output)),
        other => other,
    };
    let answer = tool::run(qemu_img("info").args(["--output=json", &format!("json:{node}")]), "qemu-utils");
    let info: Info =
        serde_json::from_slice(&answer.map_err(spoilt)?).map_err(|error| rejected(error.to_string()))?;
    if info.backing_filename.is_some() {
        return Err(rejected("it is based on another file".into()));
    }
    if info.virtual_size == 0 || info.virtual_size > SIZE_LIMIT {
        let reason = format!("its disk has {} bytes; possible are 1 to {SIZE_LIMIT}", info.virtual_size);
        return Err(rejected(reason));
    }
    // What is cut off shows as zeros.
    if format == ForeignFormat::Vmdk {
        tool::run(qemu_img("check").args(["-q", &format!("json:{node}")]), "qemu-utils").map_err(spoilt)?;
    }
    Ok(ForeignDisk { format, file_size: window.length, virtual_size: info.virtual_size, node })
}

/// `qemu-img` for files of others.
fn qemu_img(subcommand: &str) -> Command {
    let mut command = tool::command("nice");
    command.args(["-n", "10", "prlimit", "--as=4294967296", "--cpu=600"]);
    command.args(["setpriv", "--pdeathsig", "KILL", "qemu-img", subcommand]);
    command
}

/// The last of what `qemu-img` complains about, without the names of files.
fn said(output: &str) -> String {
    let line = output.lines().find(|line| !line.trim().is_empty()).unwrap_or("it cannot be read");
    let line = line.rsplit_once("}': ").map_or(line, |(_, rest)| rest);
    let line = line.strip_prefix("qemu-img: ").unwrap_or(line);
    let words = line.split(' ').map(|word| if word.contains('/') { "its file" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// A file, or a part of one.
#[derive(Clone, Copy)]
pub(crate) struct Window<'a> {
    file: &'a File,
    start: u64,
    length: u64,
}

impl<'a> Window<'a> {
    /// As many bytes from an offset on as there are, at most `most`.
    pub(crate) fn read(&self, offset: u64, most: u64) -> std::result::Result<Vec<u8>, String> {
        let most = most.min(self.length.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(most).map_err(|e| e.to_string())?];
        let read = self.file.read_exact_at(&mut bytes, self.start + offset);
        read.map_err(|error| format!("it cannot be read: {error}")).map(|()| bytes)
    }

    fn part(&self, offset: u64, length: u64) -> Option<Window<'a>> {
        let end = offset.checked_add(length)?;
        (end <= self.length).then_some(Window { file: self.file, start: self.start + offset, length })
    }

    fn starts_with(&self, offset: u64, magic: &[u8]) -> bool {
        self.read(offset, magic.len() as u64).is_ok_and(|found| found == magic)
    }

    fn has_vhd_footer(&self) -> bool {
        self.length >= 512 && self.starts_with(self.length - 512, b"conectix")
    }

    /// What it is, by its content.
    fn format(&self) -> std::result::Result<ForeignFormat, String> {
        use ForeignFormat::{Ova, Raw, Vhd, Vhdx, Vmdk};
        let known: &[(u64, &[u8], ForeignFormat)] = &[
            (0, b"KDMV", Vmdk),
            (0, b"COWD", Vmdk),
            (0, b"# Disk DescriptorFile", Vmdk),
            (0, b"vhdxfile", Vhdx),
            (0, b"conectix", Vhd),
            (257, b"ustar", Ova),
        ];
        if let Some((_, _, format)) = known.iter().find(|(at, magic, _)| self.starts_with(*at, magic)) {
            return Ok(*format);
        }
        let others: &[(&[u8], &str)] = &[
            (b"QFI\xfb", "qcow2"),
            (b"QED\0", "QED"),
            (b"<<< ", "VDI"),
            (b"LUKS\xba\xbe", "LUKS"),
            (b"\xfd7zXZ\0", "xz"),
            (b"\x1f\x8b", "gzip"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"PK\x03\x04", "ZIP"),
        ];
        if let Some((_, name)) = others.iter().find(|(magic, _)| self.starts_with(0, magic)) {
            return Err(format!("Unsupported file format {name}: taken are RAW, VHD, VHDX, VMDK and OVA"));
        }
        Ok(if self.has_vhd_footer() { Vhd } else { Raw })
    }

    /// Whether a file of this format is whole and stands alone, as far as its head and its end tell.
    fn check(&self, format: ForeignFormat) -> std::result::Result<(), String> {
        if self.length == 0 {
            return Err("it is empty".into());
        }
        match format {
            ForeignFormat::Raw | ForeignFormat::Ova => Ok(()),
            ForeignFormat::Vhdx if self.starts_with(0, b"vhdxfile") => Ok(()),
            ForeignFormat::Vhdx => Err("it is not a VHDX file".into()),
            ForeignFormat::Vmdk if self.starts_with(0, b"KDMV") => {
                check_vmdk(&self.read(0, 512)?, &self.read(512, 20 * 512)?).map(drop)
            }
            ForeignFormat::Vmdk if self.starts_with(0, b"COWD") || self.starts_with(0, b"#") => {
                Err("Unsupported VMDK File Format: it does not stand alone".into())
            }
            ForeignFormat::Vmdk => Err("it is not a VMDK file".into()),
            ForeignFormat::Vhd => self.check_vhd(),
        }
    }

    /// "Virtual Hard Disk Image Format Specification", 1.0: the footer is at the end, and before a dynamic disk as well.
    fn check_vhd(&self) -> std::result::Result<(), String> {
        if !self.has_vhd_footer() {
            return Err("its end is not that of a VHD file; it seems to be cut off".into());
        }
        let kind = |footer: &[u8]| be32(footer, 60);
        let expected = if self.starts_with(0, b"conectix") {
            if kind(&self.read(0, 512)?) != Some(3) {
                return Err("Unsupported VHD File Format: it does not stand alone".into());
            }
            3
        } else {
            2
        };
        if kind(&self.read(self.length - 512, 512)?) != Some(expected) {
            return Err("Unsupported VHD File Format: it does not stand alone".into());
        }
        Ok(())
    }
}

/// A file of an archive.
type Member<'a> = (String, Window<'a>);

/// The disks of an OVA, by the names of their files, in the order of the machine's devices.
fn archive(all: Window<'_>) -> std::result::Result<Vec<Member<'_>>, String> {
    let members = members(&all)?;
    let has = |name: &str, extension: &str| {
        Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
    };
    let text = |window: &Window<'_>| {
        if window.length > TEXT_LIMIT {
            return Err("OVF file parsing error: it is too long".to_owned());
        }
        String::from_utf8(window.read(0, TEXT_LIMIT)?)
            .map_err(|error| format!("OVF file parsing error: {error}"))
    };
    let (_, ovf) = members.iter().find(|(name, _)| has(name, "ovf")).ok_or("the archive has no OVF file")?;
    let names = disks_of(&text(ovf)?)?;
    if let Some((_, manifest)) = members.iter().find(|(name, _)| has(name, "mf")) {
        verify(&text(manifest)?, &members)?;
    }
    let find = |name: String| {
        let found = members.iter().find(|(member, _)| member.trim_start_matches("./") == name);
        found
            .map(|(_, window)| (name.clone(), *window))
            .ok_or_else(|| format!("the archive has no file {name}"))
    };
    names.into_iter().map(find).collect()
}

/// The regular files of a tar archive (POSIX.1, "ustar Interchange Format").
fn members<'a>(all: &Window<'a>) -> std::result::Result<Vec<Member<'a>>, String> {
    let mut found = Vec::new();
    let mut offset = 0;
    let mut entries = 0;
    while offset < all.length {
        let header = all.read(offset, 512)?;
        if header.len() < 512 {
            return Err("the archive is cut off".into());
        }
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum();
        if header[257..262] != *b"ustar" || octal(&header[148..156]) != Some(sum) {
            return Err("the archive is damaged".into());
        }
        entries += 1;
        if entries > ENTRIES {
            return Err(format!("the archive has more than {ENTRIES} entries"));
        }
        let length = octal(&header[124..136]).ok_or("the archive is damaged")?;
        let part = all.part(offset + 512, length).ok_or("the archive is cut off")?;
        let word = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        match header[156] {
            0 | b'0' => {
                let (prefix, name) = (word(&header[345..500]), word(&header[..100]));
                // In GNU's format other things are where the prefix would be.
                let plain = prefix.is_empty() || header[262] != 0;
                found.push((if plain { name } else { format!("{prefix}/{name}") }, part));
            }
            // Folders, and what says no more than times and owners.
            b'5' => {}
            b'x' | b'g' => {
                let text = String::from_utf8_lossy(&part.read(0, 64 << 10)?).into_owned();
                let says = |key: &str| {
                    text.lines().any(|line| line.split(' ').nth(1).is_some_and(|rest| rest.starts_with(key)))
                };
                if length > 64 << 10 || says("path=") || says("size=") || says("GNU.sparse") {
                    return Err("the archive is not in the format ustar".into());
                }
            }
            _ => return Err("the archive is not in the format ustar, or has other things than files".into()),
        }
        offset = length
            .div_ceil(512)
            .checked_mul(512)
            .and_then(|length| (offset + 512).checked_add(length))
            .ok_or("the archive is damaged")?;
    }
    Ok(found)
}

/// A number of a tar header: octal digits, or, of large files, binary after a byte of 0x80.
fn octal(field: &[u8]) -> Option<u64> {
    if field.first() == Some(&0x80) {
        let (head, last) = field.split_at(field.len().checked_sub(8)?);
        return head[1..]
            .iter()
            .all(|byte| *byte == 0)
            .then(|| u64::from_be_bytes(last.try_into().unwrap_or_default()));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// The names of the files of a machine's disks (DMTF DSP0243, "Open Virtualization Format"), in the order of its devices.
fn disks_of(ovf: &str) -> std::result::Result<Vec<String>, String> {
    let wrong = |why: &str| format!("OVF file parsing error: {why}");
    let document = roxmltree::Document::parse(ovf).map_err(|error| wrong(&error.to_string()))?;
    let named =
        |name: &'static str| document.descendants().filter(move |node| node.tag_name().name() == name);
    fn attribute<'a>(node: &roxmltree::Node<'a, '_>, name: &str) -> Option<&'a str> {
        node.attributes().find(|attribute| attribute.name() == name).map(|attribute| attribute.value())
    }
    if named("VirtualSystem").count() > 1 {
        return Err(wrong("it describes several machines"));
    }
    let files =
        named("File").filter(|node| node.parent().is_some_and(|of| of.tag_name().name() == "References"));
    let files: Vec<_> = files.collect();
    let mut disks = Vec::new();
    for disk in
        named("Disk").filter(|node| node.parent().is_some_and(|of| of.tag_name().name() == "DiskSection"))
    {
        let id = attribute(&disk, "diskId").ok_or_else(|| wrong("a disk has no id"))?;
        if attribute(&disk, "parentRef").is_some() {
            return Err(wrong("a disk is based on another"));
        }
        let reference = attribute(&disk, "fileRef").ok_or_else(|| wrong("a disk has no file"))?;
        let file = files.iter().find(|file| attribute(file, "id") == Some(reference));
        let file = file.ok_or_else(|| wrong("a disk's file is not among the references"))?;
        if attribute(file, "compression").is_some_and(|how| how != "identity")
            || attribute(file, "chunkSize").is_some()
        {
            return Err(wrong("a disk's file is compressed or in pieces"));
        }
        disks.push((id, attribute(file, "href").ok_or_else(|| wrong("a file has no name"))?.to_owned()));
    }
    // Devices of the type 17 are disks; a disk that no device has is none of the machine's.
    let mut devices = Vec::new();
    for item in named("Item").chain(named("StorageItem")) {
        let child = |name: &str| {
            item.children()
                .find(|node| node.tag_name().name() == name)
                .and_then(|node| node.text())
                .map(str::trim)
        };
        if child("ResourceType") != Some("17") {
            continue;
        }
        let host = child("HostResource").ok_or_else(|| wrong("a disk device has no disk"))?;
        let (_, id) = host.rsplit_once("disk/").ok_or_else(|| wrong("a disk device has no disk"))?;
        let (_, file) = disks
            .iter()
            .find(|(known, _)| *known == id)
            .ok_or_else(|| wrong("a device's disk is not described"))?;
        let number = |name: &str| child(name).and_then(|text| text.parse::<u32>().ok()).unwrap_or_default();
        devices.push(((number("Parent"), number("AddressOnParent")), file.clone()));
    }
    devices.sort_by_key(|(place, _)| *place);
    let names: Vec<String> = if devices.is_empty() {
        disks.into_iter().map(|(_, name)| name).collect()
    } else {
        devices.into_iter().map(|(_, name)| name).collect()
    };
    match names.len() {
        0 => Err(wrong("it describes no disk")),
        count if count > DISKS => Err(wrong(&format!("it describes {count} disks; possible are {DISKS}"))),
        _ => Ok(names),
    }
}

/// Checks the files of an archive by the checksums that it carries, lines of the kind `SHA256(name)= digest`.
fn verify(manifest: &str, members: &[Member<'_>]) -> std::result::Result<(), String> {
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let parsed = line.split_once('=').and_then(|(what, digest)| {
            let (algorithm, name) = what.trim().strip_suffix(')')?.split_once('(')?;
            Some((algorithm.trim(), name.trim(), digest.trim()))
        });
        let (algorithm, name, expected) = parsed.ok_or("the archive's manifest cannot be read")?;
        let found = members.iter().find(|(member, _)| member.trim_start_matches("./") == name);
        let (_, window) = found.ok_or_else(|| format!("the archive has no file {name}"))?;
        let actual = match algorithm.to_ascii_uppercase().replace('-', "").as_str() {
            "SHA1" => digest::<sha1::Sha1>(window)?,
            "SHA256" => digest::<sha2::Sha256>(window)?,
            "SHA512" => digest::<sha2::Sha512>(window)?,
            _ => return Err(format!("the archive's manifest has checksums of an unknown kind, {algorithm}")),
        };
        if !actual.eq_ignore_ascii_case(expected) {
            return Err(format!("{name} does not have the checksum of the archive's manifest"));
        }
    }
    Ok(())
}

fn digest<D: Digest + io::Write>(window: &Window<'_>) -> std::result::Result<String, String> {
    let mut digest = D::new();
    let mut offset = 0;
    while offset < window.length {
        let bytes = window.read(offset, 1 << 20)?;
        offset += bytes.len() as u64;
        Digest::update(&mut digest, &bytes);
    }
    Ok(hex::encode(digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tar archive of these files.
    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = ::tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn in_window<R>(content: &[u8], look: impl FnOnce(Window<'_>) -> R) -> R {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, content).unwrap();
        look(Window { file: &file, start: 0, length: content.len() as u64 })
    }

    fn ovf(devices: &str) -> String {
        format!(
            r#"<Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="r">
            <References><File ovf:id="f1" ovf:href="a.vmdk"/><File ovf:id="f2" ovf:href="b.vmdk"/></References>
            <DiskSection><Disk ovf:diskId="d1" ovf:fileRef="f1"/><Disk ovf:diskId="d2" ovf:fileRef="f2"/></DiskSection>
            <VirtualSystem><VirtualHardwareSection>{devices}</VirtualHardwareSection></VirtualSystem></Envelope>"#
        )
    }

    fn device(disk: &str, place: u32) -> String {
        format!(
            "<Item><rasd:ResourceType>17</rasd:ResourceType><rasd:HostResource>ovf:/disk/{disk}</rasd:HostResource>\
             <rasd:AddressOnParent>{place}</rasd:AddressOnParent></Item>"
        )
    }

    #[test]
    fn a_machine_has_its_disks_in_the_order_of_its_devices() {
        assert_eq!(disks_of(&ovf("")).unwrap(), ["a.vmdk", "b.vmdk"]);
        assert_eq!(disks_of(&ovf(&(device("d1", 1) + &device("d2", 0)))).unwrap(), ["b.vmdk", "a.vmdk"]);
        assert_eq!(disks_of(&ovf(&device("d2", 0))).unwrap(), ["b.vmdk"]);
        for (from, to) in [
            ("ovf:fileRef=\"f1\"", ""),
            ("ovf:fileRef=\"f1\"", "ovf:fileRef=\"f3\""),
            ("ovf:href=\"a.vmdk\"", "ovf:href=\"a.vmdk\" ovf:compression=\"gzip\""),
            ("</Envelope>", ""),
            ("<Envelope", "<!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><Envelope"),
        ] {
            let text = ovf("").replacen(from, to, 1);
            assert!(disks_of(&text).unwrap_err().starts_with("OVF file parsing error"), "{to}");
        }
        assert!(disks_of(&ovf(&device("d3", 0))).is_err());
    }

    #[test]
    fn an_archive_is_read_or_refused() {
        use sha2::Sha256;
        let (a, b) = (vec![1; 700], vec![2; 512]);
        let text = ovf("");
        let sum = |name: &str, content: &[u8]| {
            format!("SHA256({name})= {}\n", hex::encode(Sha256::digest(content)))
        };
        let manifest = sum("a.vmdk", &a) + &sum("b.vmdk", &b);
        let files: [(&str, &[u8]); 4] =
            [("m.ovf", text.as_bytes()), ("m.mf", manifest.as_bytes()), ("a.vmdk", &a), ("b.vmdk", &b)];
        let whole = tar(&files);
        let names = |content: &[u8]| {
            in_window(content, |all| {
                let found = archive(all)?;
                found
                    .into_iter()
                    .map(|(name, window)| Ok((name, window.read(0, 1 << 20)?)))
                    .collect::<std::result::Result<Vec<_>, String>>()
            })
        };
        assert_eq!(
            names(&whole).unwrap(),
            [("a.vmdk".to_owned(), a.clone()), ("b.vmdk".to_owned(), b.clone())]
        );
        assert!(names(&tar(&files[..3])).unwrap_err().contains("b.vmdk"));
        assert!(names(&tar(&files[1..])).unwrap_err().contains("no OVF"));
        assert!(names(&whole[..whole.len() - 1300]).unwrap_err().contains("cut off"));
        let mut spoilt = whole.clone();
        let at = whole.windows(700).position(|part| part == a).unwrap();
        spoilt[at] = 9;
        assert!(names(&spoilt).unwrap_err().contains("checksum"));
        spoilt = whole;
        spoilt[124] = b'9';
        assert!(names(&spoilt).unwrap_err().contains("damaged"));
    }

    #[test]
    fn differencing_vhd_files_are_refused() {
        let footer = |kind: u8| {
            let mut footer = vec![0; 512];
            footer[..8].copy_from_slice(b"conectix");
            footer[63] = kind;
            footer
        };
        let check =
            |content: Vec<u8>| in_window(&content, |all| (all.format(), all.check(ForeignFormat::Vhd)));
        let fixed = [vec![0; 1024], footer(2)].concat();
        assert_eq!(check(fixed.clone()), (Ok(ForeignFormat::Vhd), Ok(())));
        assert!(check(fixed[..1100].to_vec()).1.unwrap_err().contains("cut off"));
        assert_eq!(check([footer(3), vec![0; 1024], footer(3)].concat()).1, Ok(()));
        for (first, last) in [(4, 4), (3, 4), (3, 2)] {
            assert!(check([footer(first), vec![0; 1024], footer(last)].concat()).1.is_err());
        }
    }

    #[test]
    fn complaints_name_no_files() {
        let text = r#"qemu-img: Could not open 'json:{"driver": "vmdk", "file": {"filename": "/a/b"}}': Invalid footer"#;
        assert_eq!(said(text), "Invalid footer");
        assert_eq!(said("qemu-img: Could not open '/var/x': no"), "Could not open its file no");
    }
}
