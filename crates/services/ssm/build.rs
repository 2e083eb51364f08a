//! Generates the API of SSM from its model and the table of implemented operations.

fn main() -> Result<(), haar_api_codegen::Error> {
    haar_api_codegen::generate("../../../models/ssm.json", "operations.toml", "ssm.rs")
}
