//! Generates the APIs of the five services from their models, as the real services do.

fn main() -> Result<(), haar_api_codegen::Error> {
    for (name, version, table) in [
        ("echo-ec2", "2026-01-01", "operations.toml"),
        ("echo-query", "2026-01-02", "operations.toml"),
        ("echo-json10", "2026-01-01", "operations.toml"),
        ("echo-json11", "2026-01-01", "operations.toml"),
        ("echo-rest", "2026-01-01", "rest.toml"),
    ] {
        let model = format!("models/{name}/{version}/service-2.json");
        haar_api_codegen::generate(model, table, &format!("{name}.rs"))?;
    }
    Ok(())
}
