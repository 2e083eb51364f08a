//! Writes `docs/coverage.md` from the services' tables of operations, so that coverage is never claimed by hand.

use std::fmt::Write as _;
use std::path::Path;

use haar_api_codegen::model::Model;
use haar_api_codegen::table::{Rule, Table};
use haar_api_codegen::{read_model, read_table};

/// Each service: its name, its model, its table.
const SERVICES: [(&str, &str, &str); 4] = [
    ("EBS direct APIs", "models/ebs.json", "crates/services/ebs/operations.toml"),
    ("EC2", "models/ec2.json", "crates/services/ec2/operations.toml"),
    ("SSM", "models/ssm.json", "crates/services/ssm/operations.toml"),
    ("STS", "models/sts.json", "crates/services/iam/sts.toml"),
];

const PAGE: &str = "docs/coverage.md";

/// The page's text.
fn page(root: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let mut out = String::from(
        "# Coverage\n\nMade by `cargo xtask coverage` from the tables that the APIs are generated from. A request member that is refused answers \
         with\n`UnsupportedOperation`, and so does every operation of AWS that is not listed; nothing is accepted and ignored.\n",
    );
    for (name, model, table) in SERVICES {
        let (model, table) = (read_model(&root.join(model))?, read_table(&root.join(table))?);
        let (here, all) = (table.operations.len(), model.operations.len());
        write!(
            out,
            "\n## {name}\n\n{here} of {all} operations.\n\n| operation | request members refused |\n|---|---|\n"
        )?;
        for operation in table.operations.keys() {
            writeln!(out, "| {operation} | {} |", refused(&model, &table, operation).join(", "))?;
        }
    }
    Ok(out)
}

/// Members of an operation's request that are refused or accepted with one value only.
fn refused(model: &Model, table: &Table, operation: &str) -> Vec<String> {
    let input = model.operations.get(operation).and_then(|operation| operation.input.as_ref());
    let Some(shape) = input.and_then(|input| model.shapes.get(&input.shape)) else { return Vec::new() };
    let support = &table.operations[operation];
    let member = |name: &str| match support.rule(name) {
        // Every operation of EC2 that has it answers it.
        _ if name == "DryRun" => None,
        Rule::Yes | Rule::Optional => None,
        Rule::Only(value) => Some(format!("{name} other than `{value}`")),
        Rule::No => Some(name.to_owned()),
    };
    shape.members.iter().filter_map(|(name, _)| member(name)).collect()
}

/// Writes the page, or with `check` fails when it is not what it would be.
pub fn write(root: &Path, check: bool) -> Result<(), Box<dyn std::error::Error>> {
    let (path, text) = (root.join(PAGE), page(root)?);
    if !check {
        return Ok(std::fs::write(path, text)?);
    }
    if std::fs::read_to_string(path)? == text {
        Ok(())
    } else {
        Err(format!("{PAGE} is not what the tables say: run `cargo xtask coverage`").into())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_is_what_the_tables_say() {
        super::write(&crate::root(), true).unwrap();
    }
}
