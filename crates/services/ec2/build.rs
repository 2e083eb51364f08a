//! Generates the EC2 API from its model and the table of implemented operations.

fn main() -> Result<(), haar_api_codegen::Error> {
    haar_api_codegen::generate("../../../models/ec2.json", "operations.toml", "ec2.rs")
}
