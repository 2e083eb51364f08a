//! What the operations of IAM share: errors, names, pages, documents.

use haar_api::{Context, Error, PrincipalKind};
use haar_core::{Fingerprint, PageRequest};
use haar_policy::{Policy, PolicyKind, length_without_white_space};
use haar_records::iam::{Group, InstanceProfile, REGION, Role, User, name_id};
use haar_store::{Entry, Resource, Snapshot, Tx};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::Handlers;

/// What went wrong, in a handler or in its transaction.
pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// The length of a page that is not said.
const PAGE: i32 = 100;

/// What stays as it is in documents of answers (RFC 3986, section 2.3).
const DOCUMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) fn no_such(message: impl Into<String>) -> Error {
    Error::new("NoSuchEntity", message).with_status(404)
}

pub(super) fn exists(message: impl Into<String>) -> Error {
    Error::new("EntityAlreadyExists", message).with_status(409)
}

pub(super) fn conflict(message: impl Into<String>) -> Error {
    Error::new("DeleteConflict", message).with_status(409)
}

pub(super) fn quota(name: &str, limit: usize) -> Error {
    limit_exceeded(format!("Cannot exceed quota for {name}: {limit}"))
}

pub(super) fn limit_exceeded(message: impl Into<String>) -> Error {
    Error::new("LimitExceeded", message).with_status(409)
}

pub(super) fn invalid_input(message: impl Into<String>) -> Error {
    Error::new("InvalidInput", message)
}

pub(super) fn validation(message: impl Into<String>) -> Error {
    Error::new("ValidationError", message)
}

pub(super) fn unmodifiable(message: impl Into<String>) -> Error {
    Error::new("UnmodifiableEntity", message)
}

/// A record that requests name.
pub(super) trait Named: Resource {
    fn missing(name: &str) -> String;
}

impl Named for User {
    fn missing(name: &str) -> String {
        format!("The user with name {name} cannot be found.")
    }
}

impl Named for Group {
    fn missing(name: &str) -> String {
        format!("The group with name {name} cannot be found.")
    }
}

impl Named for Role {
    fn missing(name: &str) -> String {
        format!("The role with name {name} cannot be found.")
    }
}

impl Named for InstanceProfile {
    fn missing(name: &str) -> String {
        format!("Instance Profile {name} cannot be found.")
    }
}

/// The record of this name, which the transaction relies on.
pub(super) fn need<T: Named>(tx: &mut Tx, ctx: &Context, name: &str) -> Result<T> {
    let found = tx.get::<T>(&ctx.account, REGION, &name_id(name));
    found.map(|entry| T::clone(&entry)).ok_or_else(|| no_such(T::missing(name)))
}

/// The record of this name.
pub(super) fn read<T: Named>(snapshot: &Snapshot, ctx: &Context, name: &str) -> Result<Entry<T>> {
    snapshot.get::<T>(&ctx.account, REGION, &name_id(name)).ok_or_else(|| no_such(T::missing(name)))
}

/// Refuses one more record of a kind than an account may have.
pub(super) fn check_quota<T: Resource>(tx: &Tx, ctx: &Context, name: &str, limit: usize) -> Result<()> {
    let many = tx.snapshot().list::<T>(&ctx.account, REGION).nth(limit - 1).is_some();
    if many { Err(quota(name, limit)) } else { Ok(()) }
}

/// The user that a request means: the one that it names, or else the caller. None for an account's root.
pub(super) fn user_or_caller(ctx: &Context, name: Option<String>) -> Result<Option<String>> {
    match (name, &ctx.principal.kind) {
        (Some(name), _) => Ok(Some(name)),
        (None, PrincipalKind::User { name }) => Ok(Some(name.clone())),
        (None, PrincipalKind::Root) => Ok(None),
        (None, _) => Err(validation("Must specify userName when calling with non-User credentials")),
    }
}

/// A path: `/`, or begins and ends so.
pub(super) fn path(path: Option<String>) -> Result<String> {
    let path = path.unwrap_or_else(|| "/".into());
    let plain = path.bytes().all(|b| (0x21..=0x7e).contains(&b));
    if plain && path.starts_with('/') && path.ends_with('/') && !path.contains("//") {
        return Ok(path);
    }
    Err(validation(
        "The specified value for path is invalid. It must begin and end with / and contain only alphanumeric characters and/or / characters.",
    ))
}

/// A page of a list.
pub(super) struct Page<T> {
    pub items: Vec<T>,
    pub is_truncated: Option<bool>,
    pub marker: Option<String>,
}

/// Takes the page that a request asks for from all that it lists, sorted by what `id` gives.
pub(super) fn page<T>(
    handlers: &Handlers,
    ctx: &Context,
    parameters: &impl Serialize,
    max_items: Option<i32>,
    marker: Option<&str>,
    items: impl IntoIterator<Item = T>,
    id: impl Fn(&T) -> &str,
) -> Result<Page<T>> {
    let request = PageRequest {
        parameters: &|| Fingerprint::of(parameters),
        max_results: Some(max_items.unwrap_or(PAGE)),
        next_token: marker,
        limits: 1..=1000,
    };
    // IAM is one for all regions.
    let ctx = Context { region: REGION.into(), ..ctx.clone() };
    let page = handlers.paginator.page(&ctx, &request);
    let page =
        page.map_err(|_| validation("Invalid Marker: the value is not one that this request gave out."))?;
    let (items, marker) = page.take(items, id);
    Ok(Page { items, is_truncated: Some(marker.is_some()), marker })
}

/// A document as answers have it.
pub(super) fn encoded(document: &str) -> String {
    utf8_percent_encode(document, DOCUMENT).to_string()
}

/// Checks a document.
pub(super) fn check_document(document: &str, kind: PolicyKind) -> Result<Policy> {
    Policy::parse(document, kind).map_err(|error| Error::new("MalformedPolicyDocument", error.message()))
}

/// Refuses a document with more characters than allowed, white space not counted.
pub(super) fn check_size(length: usize, limit: usize, refusal: impl FnOnce() -> Error) -> Result<()> {
    if length > limit { Err(refusal()) } else { Ok(()) }
}

pub(super) fn length(document: &str) -> usize {
    length_without_white_space(document)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A path that is taken is made of whole names between slashes.
        #[test]
        fn paths_are_names_between_slashes(text in "[/a-z é]{0,8}") {
            if let Ok(path) = path(Some(text)) {
                let names: Vec<&str> = path.split('/').collect();
                prop_assert!(names.len() >= 2 && names[0].is_empty() && names[names.len() - 1].is_empty());
                let within = &names[1..names.len() - 1];
                prop_assert!(within.iter().all(|name| !name.is_empty() && name.is_ascii() && !name.contains(' ')));
            }
        }
    }
}
