//! The errors of EC2 that several operations share (EC2 API Reference, "Error codes for the Amazon EC2 API").

use haar_api::Error;

/// What went wrong, in a service handler or in its transaction.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// `InvalidParameterValue`.
pub fn invalid_value(message: impl Into<String>) -> Error {
    Error::new("InvalidParameterValue", message)
}

/// `InvalidParameterValue` in the form that names the parameter.
pub fn invalid_parameter(value: &str, parameter: &str, why: &str) -> Error {
    invalid_value(format!("Value ({}) for parameter {parameter} is invalid. {why}", shorten(value)))
}

/// `InvalidParameterCombination`.
pub fn combination(message: impl Into<String>) -> Error {
    Error::new("InvalidParameterCombination", message)
}

/// `MissingParameter`.
pub fn missing(parameter: &str) -> Error {
    Error::new("MissingParameter", format!("The request must contain the parameter {parameter}"))
}

/// `UnsupportedOperation`: something of EC2 that haar does not have.
pub fn unsupported(message: impl Into<String>) -> Error {
    Error::new("UnsupportedOperation", message)
}

/// `DependencyViolation`: the resource is in use by another.
pub fn in_use(id: &str) -> Error {
    Error::new("DependencyViolation", format!("resource {id} has a dependent object"))
}

/// At most 255 characters of what a client sent, for a message.
pub fn shorten(text: &str) -> &str {
    text.char_indices().nth(255).map_or(text, |(end, _)| &text[..end])
}
