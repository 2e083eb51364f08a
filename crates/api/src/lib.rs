//! The AWS wire: protocols, signatures, errors and dispatch, driven by the API models.
//!
//! A service crate generates its types, its trait and its tables with `haar-api-codegen` and includes them with
//! [`include_model!`]. The generated `…Service` wrapper implements [`Service`], which the endpoint calls with decoded
//! and checked input.

pub use bytes::Bytes;
#[doc(hidden)]
pub use serde_json;
pub use time::OffsetDateTime;

pub mod body;
mod context;
pub mod endpoint;
mod error;
pub mod json;
mod lobby;
pub mod note;
mod query;
pub mod rest;
pub mod schema;
pub mod service;
pub mod sigv4;
pub mod timestamp;
mod validate;
pub mod value;
mod workers;
pub mod xml;

pub use body::{Body, Rope};
pub use context::{Authorizer, Context, Principal, PrincipalKind, Session, SessionOrigin};
pub use endpoint::{AccessKey, Credentials, Endpoint, KeyError, code};
pub use error::Error;
pub use lobby::{Lobby, Place};
pub use service::{Answer, Reply, Service};
pub use value::UnknownValue;
pub use xml::{Encoded, EncodedItems};

/// A new request id: a random UUID (RFC 9562, version 4), as AWS answers carry it.
pub fn request_id() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = vec![b'-'; 36];
    for (octets, at) in [(0..4, 0), (4..6, 9), (6..8, 14), (8..10, 19), (10..16, 24)] {
        let digits = at..at + 2 * octets.len();
        hex::encode_to_slice(&bytes[octets], &mut text[digits]).expect("a byte has two digits");
    }
    String::from_utf8(text).expect("digits are ASCII")
}

/// Includes what a service's build script generated into `OUT_DIR`, as the items of the calling module.
///
/// ```ignore
/// pub mod model {
///     haar_api::include_model!("ec2.rs");
/// }
/// ```
#[macro_export]
macro_rules! include_model {
    ($file:literal) => {
        #[allow(missing_docs, non_camel_case_types, clippy::all, clippy::pedantic)]
        mod generated {
            include!(concat!(env!("OUT_DIR"), "/", $file));
        }
        pub use generated::*;
    };
}
