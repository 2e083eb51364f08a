//! The records that services write and the node reconciles.
//!
//! A record says what was asked (`spec`, or the plain fields of a record that has no machine behind it) and, where a
//! machine is behind it, what is (`status`). Services write specs and the transitional state that an AWS client must
//! see at once (`pending`, `stopping`, …); the node writes the rest of the status. Records hold no logic beyond what
//! follows from their own fields, so that services and the node can share them without knowing each other.

pub mod ec2;
pub mod iam;

/// The account under which records live that belong to no account: address pools, machine images of the host.
pub const GLOBAL_ACCOUNT: &str = "-";

/// The region under which records live that belong to no region.
pub const GLOBAL_REGION: &str = "-";

/// Tags of a resource, by key.
pub type Tags = std::collections::BTreeMap<String, String>;

/// The index by which a kind's records are found by their tags, under each as [`tag`] writes it.
pub const TAG_INDEX: &str = "tag";

/// A tag in one text, with the length of its key, so that no other is written alike.
#[must_use]
pub fn tag(key: &str, value: &str) -> String {
    format!("{}:{key}={value}", key.len())
}

/// The tags of a record, for its index.
fn indexed(tags: &Tags) -> Vec<String> {
    tags.iter().map(|(key, value)| tag(key, value)).collect()
}

/// Implements [`haar_store::Resource`] for a record with `account`, `region` and `id` fields; after `@`, for one that has an `id` field,
/// and its account and region from functions.
macro_rules! resource {
    (@ $type:ty, $account:expr, $region:expr, $kind:literal $(, $index:expr => |$this:ident| $values:expr)* $(,)?) => {
        impl haar_store::Resource for $type {
            const KIND: &'static str = $kind;
            fn account(&self) -> &str {
                let account: fn(&Self) -> &str = $account;
                account(self)
            }
            fn region(&self) -> &str {
                let region: fn(&Self) -> &str = $region;
                region(self)
            }
            fn id(&self) -> &str {
                &self.id
            }
            fn indexes(&self) -> Vec<(&'static str, String)> {
                #[allow(unused_mut)]
                let mut out = Vec::new();
                $({
                    let $this = self;
                    out.extend($values.into_iter().map(|value| ($index, value)));
                })*
                out
            }
        }
    };
    ($type:ty, $($rest:tt)*) => {
        $crate::resource!(@ $type, |record| &record.account, |record| &record.region, $($rest)*);
    };
}
pub(crate) use resource;
