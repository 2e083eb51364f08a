//! Checks what haar is made of against `deny.toml`: licences, and where sources come from.
//!
//! The file is cargo-deny's, and this is the part of `cargo deny check` that needs nothing from a network.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;
use spdx::{Expression, LicenseReq, Licensee, ParseMode};

type Error = Box<dyn std::error::Error>;

#[derive(Deserialize)]
struct Deny {
    graph: Graph,
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Clone, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None for the workspace's own.
    source: Option<String>,
}

/// What is wrong with a package, if something is; what it is used under is added to `used`.
fn fault(package: &Package, allowed: &[Licensee], used: &mut BTreeSet<usize>) -> Option<String> {
    if let Some(source) = package.source.as_deref().filter(|source| !source.starts_with("registry+")) {
        return Some(format!("comes from {source} and not from a registry"));
    }
    let Some(license) = &package.license else { return Some("names no licence".into()) };
    let expression = match Expression::parse_mode(license, ParseMode::LAX) {
        Ok(expression) => expression,
        Err(error) => {
            return Some(format!("has a licence that cannot be read, {license:?}: {}", error.reason));
        }
    };
    let allows = |requirement: &LicenseReq| {
        let found = allowed.iter().position(|licensee| licensee.satisfies(requirement));
        used.extend(found);
        found.is_some()
    };
    (!expression.evaluate(allows)).then(|| format!("is under {license}"))
}

/// Checks every package that haar is built from.
///
/// # Errors
/// Names each package that `deny.toml` does not allow, and each licence in it that nothing uses.
pub fn check(root: &Path) -> Result<(), Error> {
    let deny: Deny = toml::from_str(&std::fs::read_to_string(root.join("deny.toml"))?)?;
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--locked", "--format-version", "1"]).current_dir(root);
    for target in &deny.graph.targets {
        cargo.args(["--filter-platform", target]);
    }
    let output = cargo.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    let faults = faults(&metadata.packages, &deny.licenses.allow)?;
    if faults.is_empty() {
        println!("{} packages, as deny.toml allows", metadata.packages.len());
        return Ok(());
    }
    Err(faults.join("\n       ").into())
}

fn faults(packages: &[Package], allow: &[String]) -> Result<Vec<String>, Error> {
    let parsed: Result<Vec<Licensee>, _> = allow.iter().map(|name| Licensee::parse(name)).collect();
    let allowed = parsed?;
    let mut used = BTreeSet::new();
    let mut faults: Vec<String> = packages
        .iter()
        .filter_map(|package| {
            let fault = fault(package, &allowed, &mut used)?;
            Some(format!("{} {} {fault}", package.name, package.version))
        })
        .collect();
    let unused = (0..allow.len()).filter(|index| !used.contains(index));
    faults.extend(unused.map(|index| format!("nothing is under {}, which deny.toml allows", allow[index])));
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTRY: &str = "registry+https://registry.test/index";

    fn package(license: Option<&str>, source: Option<&str>) -> Package {
        Package {
            name: "p".into(),
            version: "1.0.0".into(),
            license: license.map(Into::into),
            source: source.map(Into::into),
        }
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        let allow = ["MIT".to_owned(), "Apache-2.0".to_owned()];
        let good = [
            package(Some("MIT/Apache-2.0"), Some(REGISTRY)),
            package(Some("Apache-2.0 AND MIT"), None),
            package(Some("Apache-2.0 OR GPL-3.0-only"), Some(REGISTRY)),
        ];
        assert_eq!(faults(&good, &allow).unwrap(), Vec::<String>::new());
        for (package, expected) in [
            (package(Some("GPL-3.0-only"), Some(REGISTRY)), "p 1.0.0 is under GPL-3.0-only"),
            (package(Some("MIT AND GPL-3.0-only"), Some(REGISTRY)), "p 1.0.0 is under MIT AND GPL-3.0-only"),
            (package(None, Some(REGISTRY)), "p 1.0.0 names no licence"),
            (
                package(Some("MIT"), Some("git+https://host.test/p")),
                "p 1.0.0 comes from git+https://host.test/p and not from a registry",
            ),
        ] {
            let packages: Vec<_> = good.iter().chain([&package]).cloned().collect();
            assert_eq!(faults(&packages, &allow).unwrap(), [expected]);
        }
        let more = [allow[0].clone(), allow[1].clone(), "Zlib".to_owned()];
        assert_eq!(faults(&good, &more).unwrap(), ["nothing is under Zlib, which deny.toml allows"]);
    }
}
