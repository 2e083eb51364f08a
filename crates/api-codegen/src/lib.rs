//! Generates Rust types, decoders, encoders and a dispatch trait from an API model, for build scripts.
//!
//! A service crate has a table of the operations that it implements (see [`table::Table`]) and a `build.rs`:
//!
//! ```no_run
//! fn main() -> Result<(), haar_api_codegen::Error> {
//!     haar_api_codegen::generate("../../../models/sts.json", "operations.toml", "sts.rs")
//! }
//! ```
//!
//! What is generated, for these operations and the shapes that they reach:
//! - a struct or enum for every shape; request structs have the supported members only;
//! - static tables of `haar_api::schema`, which the runtime's decoders read;
//! - a trait with one method an operation, and its `…Service` wrapper, which implements `haar_api::Service`.

use std::path::{Path, PathBuf};

pub mod model;
pub mod names;
mod render;
pub mod resolve;
pub mod table;

/// Why nothing could be generated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The model is not what botocore publishes.
    #[error("{path}: {source}")]
    Model {
        /// The model's file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The table of operations cannot be read.
    #[error("{path}: {source}")]
    Table {
        /// The table's file.
        path: PathBuf,
        /// The cause.
        source: Box<toml::de::Error>,
    },
    /// The table asks for what the model has not, or the generator cannot.
    #[error("{0}")]
    Unsupported(String),
}

/// Reads a model from its file.
///
/// # Errors
/// [`Error::File`] and [`Error::Model`].
pub fn read_model(path: &Path) -> Result<model::Model, Error> {
    let text = std::fs::read(path).map_err(|source| Error::File { path: path.into(), source })?;
    serde_json::from_slice(&text).map_err(|source| Error::Model { path: path.into(), source })
}

/// Reads a table of operations from its file.
///
/// # Errors
/// [`Error::File`] and [`Error::Table`].
pub fn read_table(path: &Path) -> Result<table::Table, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })?;
    toml::from_str(&text).map_err(|source| Error::Table { path: path.into(), source: source.into() })
}

/// Generates a service's API into the file `out` of the build's `OUT_DIR`.
///
/// # Errors
/// Any [`Error`]; a build script returns it from `main`.
pub fn generate(model: impl AsRef<Path>, operations: impl AsRef<Path>, out: &str) -> Result<(), Error> {
    let (model, operations) = (model.as_ref(), operations.as_ref());
    println!("cargo::rerun-if-changed={}", model.display());
    println!("cargo::rerun-if-changed={}", operations.display());
    let (mut model, table) = (read_model(model)?, read_table(operations)?);
    open_enums(&mut model, &table)?;
    let code = generate_code(&model, &table)?;
    let folder = std::env::var_os("OUT_DIR")
        .ok_or_else(|| Error::Unsupported("OUT_DIR is not set: generate() is for build scripts".into()))?;
    let path = Path::new(&folder).join(out);
    std::fs::write(&path, code).map_err(|source| Error::File { path, source })
}

/// Makes plain strings of the enumerations that the table names as open.
fn open_enums(model: &mut model::Model, table: &table::Table) -> Result<(), Error> {
    for name in &table.open_enums {
        let shape = model.shapes.get_mut(name);
        let shape = shape.ok_or_else(|| Error::Unsupported(format!("open_enums: no shape {name}")))?;
        shape.values.clear();
    }
    Ok(())
}

/// The Rust source of a service's API.
///
/// # Errors
/// [`Error::Unsupported`].
pub fn generate_code(model: &model::Model, table: &table::Table) -> Result<String, Error> {
    resolve::Api::new(model, table).map(|api| render::render(&api))
}
