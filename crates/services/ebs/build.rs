//! Generates the API of EBS from its model and the table of implemented operations.

fn main() -> Result<(), haar_api_codegen::Error> {
    haar_api_codegen::generate("../../../models/ebs.json", "operations.toml", "ebs.rs")
}
