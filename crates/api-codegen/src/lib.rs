//! Generates Rust types, decoders, encoders and a dispatch trait from an API model, for build scripts.

pub mod model;
