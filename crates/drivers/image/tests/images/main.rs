//! The library of images: what appears in it, what never does, and how images come into it from files and servers.

mod build;
mod import;
mod library;
mod pull;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use haar_image::{Library, Progress, Unit};

/// A raw disk that a BIOS could boot, of so many MiB, with recognizable content.
fn bootable_disk(path: &Path, mebibytes: usize) -> Vec<u8> {
    let mut disk = vec![0; mebibytes << 20];
    for (index, sector) in disk.chunks_exact_mut(512).enumerate() {
        // Half of it empty, the rest not compressible into nothing.
        if index % 2 == 0 {
            let mut state = index as u64 + 1;
            for byte in sector {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *byte = (state >> 56) as u8;
            }
        }
    }
    disk[446..510].fill(0);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(path, &disk).unwrap();
    disk
}

fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The disk of an image, as a guest sees it.
fn content(image: &haar_image::Image) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", path_str(&image.root_disk()), path_str(&raw)]);
    fs::read(raw).unwrap()
}

fn path_str(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Everything in a folder, except the library's lock.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != ".lock");
    names.sort();
    names
}

/// Nothing is left of what failed.
fn assert_empty(library: &Library) {
    assert_eq!(names(library.dir()), Vec::<String>::new());
}

/// A small file system, for filling up; gone when dropped. None without root.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(kibibytes: u64) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={kibibytes}k");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk(dir));
        }
        eprintln!("not tested: a small file system cannot be mounted without root");
        None
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Keeps what was reported.
#[derive(Default)]
struct Report {
    stages: Vec<(String, Unit, Option<u64>)>,
    done: Vec<u64>,
}

impl Progress for Report {
    fn stage(&mut self, name: &str, unit: Unit, total: Option<u64>) {
        self.stages.push((name.to_owned(), unit, total));
        self.done.push(0);
    }

    fn advance(&mut self, done: u64) {
        *self.done.last_mut().expect("a stage comes first") = done;
    }
}
