//! Generates the STS API from its model and the table of implemented operations.

fn main() -> Result<(), haar_api_codegen::Error> {
    haar_api_codegen::generate("../../../models/sts.json", "sts.toml", "sts.rs")
}
