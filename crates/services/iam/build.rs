//! Generates the APIs of IAM and STS from their models and the tables of implemented operations.

fn main() -> Result<(), haar_api_codegen::Error> {
    haar_api_codegen::generate("../../../models/iam.json", "iam.toml", "iam.rs")?;
    haar_api_codegen::generate("../../../models/sts.json", "sts.toml", "sts.rs")
}
