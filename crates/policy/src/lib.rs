//! AWS IAM's policy language and its evaluation, without knowledge of HTTP, records or services.
//!
//! [`Policy::parse`] reads a document once, checks it as IAM does, and makes it ready to be evaluated. A [`Request`] says who
//! ([`Principal`]) asks for what (an action upon [`Resource`]s) with which [`Policies`]; the values of condition keys come from
//! what implements [`Keys`], when they are asked for. [`Request::authorize`] decides; its error displays AWS's message.
//! [`Request::simulate`] tells what SimulatePrincipalPolicy needs.
//!
//! Sources are pages of the IAM User Guide ("Policies and permissions", "Grammar of the IAM JSON policy language", "IAM JSON
//! policy element reference", "Policy evaluation logic") and, where they are silent, what IAM was seen to answer.
//!
//! There are no organizations here, hence no service control policies and no resource control policies.

mod condition;
mod date;
mod document;
mod evaluate;
mod json;
mod key;
mod pattern;
mod principal;

pub use document::{
    Effect, MalformedPolicy, Policy, PolicyKind, Position, Statement, Version, length_without_white_space,
};
pub use evaluate::{
    Attached, Decision, Denied, Match, Policies, PolicyType, Request, Resource, ResourcePolicy, Simulation,
    Verdict,
};
pub use key::{Context, Environment, Key, Keys, Values, date_text};
pub use principal::{Principal, PrincipalKind};
