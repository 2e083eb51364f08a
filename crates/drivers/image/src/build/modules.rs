//! Choosing kernel modules for an initial RAM disk.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A kernel module: its name and its file's content.
pub(crate) struct Module {
    pub name: String,
    pub content: Vec<u8>,
}

/// Reads the modules of these names and everything that they depend on from the tree `/lib/modules/VERSION`, each after
/// what it depends on. A name that is not there is built into the kernel, or the kernel does not have it.
pub(crate) fn collect(tree: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    find(tree, &mut files)?;
    let mut collected = Vec::new();
    for name in names {
        add(&canonical(name), &files, &mut collected)?;
    }
    Ok(collected)
}

fn add(name: &str, files: &HashMap<String, PathBuf>, collected: &mut Vec<Module>) -> Result<()> {
    let Some(path) = files.get(name) else { return Ok(()) };
    if collected.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let content = fs::read(path).map_err(Error::io("read", path))?;
    // A module cannot depend on itself by any path: the kernel's build refuses that.
    for dependency in dependencies(&content) {
        add(&dependency, files, collected)?;
    }
    collected.push(Module { name: name.to_owned(), content });
    Ok(())
}

/// The names in a module's information, an ELF section of strings `key=value` that each end with a zero byte.
fn dependencies(content: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = content.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = content[at + KEY.len()..].split(|&b| b == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

fn find(dir: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let path = entry.path();
        if entry.file_type().map_err(Error::io("examine", &path))?.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_suffix(".ko")) {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

/// The kernel takes `-` and `_` in the name of a module for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_what_it_depends_on() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("kernel/drivers");
        fs::create_dir_all(&tree).unwrap();
        for (name, depends) in
            [("top", "left-hand,right"), ("left-hand", "base"), ("right", "base"), ("base", "")]
        {
            let info = format!("license=GPL\0depends={depends}\0name={name}\0");
            fs::write(tree.join(format!("{name}.ko")), [b"\x7fELF\0", info.as_bytes()].concat()).unwrap();
        }
        let names = |wanted: &[&str]| -> Vec<String> {
            collect(dir.path(), wanted).unwrap().into_iter().map(|module| module.name).collect()
        };
        assert_eq!(names(&["top"]), ["base", "left_hand", "right", "top"]);
        assert_eq!(names(&["right", "left_hand", "builtin"]), ["base", "right", "left_hand"]);
    }
}
