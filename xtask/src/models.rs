//! `cargo xtask models`: the API models, from botocore's package.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use haar_api_codegen::model::Model;

/// The services that haar answers or will answer, by their botocore name.
const SERVICES: [&str; 11] =
    ["ebs", "ec2", "ecr", "ecs", "eks", "iam", "lambda", "lightsail", "logs", "ssm", "sts"];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Writes `models/<service>.json` for every service.
pub fn regenerate(root: &Path, botocore: Option<PathBuf>) -> Result<()> {
    let botocore = match botocore {
        Some(folder) => folder,
        None => find_botocore()?,
    };
    for service in SERVICES {
        let source = newest_model(&botocore, service)?;
        let model: Model = serde_json::from_slice(&read(&source)?)
            .map_err(|error| format!("{}: {error}", source.display()))?;
        let target = root.join("models").join(format!("{service}.json"));
        fs::write(&target, render(&model)?)?;
        println!("{} ({}, {} shapes)", target.display(), model.metadata.api_version, model.shapes.len());
    }
    Ok(())
}

/// The folder of the botocore package that `python3` imports.
fn find_botocore() -> Result<PathBuf> {
    let output = Command::new("python3")
        .args(["-c", "import botocore, os; print(os.path.dirname(botocore.__file__))"])
        .output()?;
    if !output.status.success() {
        return Err(
            "python3 has no botocore: `pip install botocore`, or name its folder with --botocore".into()
        );
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// The file of the newest version of a service's model.
fn newest_model(botocore: &Path, service: &str) -> Result<PathBuf> {
    let folder = botocore.join("data").join(service);
    let mut versions: Vec<PathBuf> = fs::read_dir(&folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    versions.sort();
    versions
        .iter()
        .rev()
        .flat_map(|version| ["service-2.json.gz", "service-2.json"].map(|name| version.join(name)))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{}: no service-2.json", folder.display()).into())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let raw = fs::read(file)?;
    if file.extension().is_none_or(|extension| extension != "gz") {
        return Ok(raw);
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(raw.as_slice()).read_to_end(&mut plain)?;
    Ok(plain)
}

/// The model as JSON: one line for the metadata, one an operation, one a shape.
fn render(model: &Model) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "{{\n\"metadata\": {},", serde_json::to_string(&model.metadata)?)?;
    out.push_str("\"operations\": {\n");
    lines(&mut out, &model.operations)?;
    out.push_str("},\n\"shapes\": {\n");
    lines(&mut out, &model.shapes)?;
    out.push_str("}\n}\n");
    Ok(out)
}

fn lines<T: serde::Serialize>(
    out: &mut String,
    entries: &std::collections::BTreeMap<String, T>,
) -> Result<()> {
    let last = entries.len();
    for (index, (name, entry)) in entries.iter().enumerate() {
        let comma = if index + 1 == last { "" } else { "," };
        writeln!(out, "{}: {}{comma}", serde_json::to_string(name)?, serde_json::to_string(entry)?)?;
    }
    Ok(())
}
