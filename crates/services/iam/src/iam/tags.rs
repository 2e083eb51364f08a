//! Tags of what IAM has.

use std::collections::BTreeSet;

use haar_api::Context;
use haar_records::Tags;
use haar_records::iam::{InstanceProfile, ManagedPolicy, MfaDevice, OpenIdConnectProvider, Role, User};
use haar_store::{Resource, Tx};

use super::Handlers;
use super::common::*;
use super::model::Tag;

/// Most tags of a resource.
const MAX_TAGS: usize = 50;

/// A record that has tags.
pub(super) trait Tagged: Resource {
    fn tags(&mut self) -> &mut Tags;
}

macro_rules! tagged {
    ($($kind:ident),+) => {$(
        impl Tagged for $kind {
            fn tags(&mut self) -> &mut Tags {
                &mut self.tags
            }
        }
    )+};
}

tagged!(InstanceProfile, ManagedPolicy, MfaDevice, OpenIdConnectProvider, Role, User);

/// Adds tags to the record that `find` gives.
pub(super) async fn tag<T: Tagged>(
    handlers: &Handlers,
    ctx: &Context,
    find: impl Fn(&mut Tx) -> Result<T>,
    tags: &[Tag],
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = find(tx)?;
        add_tags(record.tags(), tags.to_vec())?;
        tx.put(record);
        Ok(())
    })
    .await
}

/// Removes tags by their keys from the record that `find` gives.
pub(super) async fn untag<T: Tagged>(
    handlers: &Handlers,
    ctx: &Context,
    find: impl Fn(&mut Tx) -> Result<T>,
    keys: &[String],
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = find(tx)?;
        remove_tags(record.tags(), keys);
        tx.put(record);
        Ok(())
    })
    .await
}

/// The tags of something new.
pub(super) fn new_tags(tags: Vec<Tag>) -> Result<Tags> {
    let mut made = Tags::new();
    add_tags(&mut made, tags)?;
    Ok(made)
}

/// Adds tags. Their keys are told apart without regard to case, but keep it.
fn add_tags(to: &mut Tags, tags: Vec<Tag>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for Tag { key, value } in tags {
        if key.to_lowercase().starts_with("aws:") {
            return Err(invalid_input("Tag keys that begin with aws: are reserved for system use."));
        }
        if !seen.insert(key.to_lowercase()) {
            return Err(invalid_input(
                "Duplicate tag keys found. Please note that Tag keys are case insensitive.",
            ));
        }
        to.retain(|own, _| own.to_lowercase() != key.to_lowercase());
        to.insert(key, value);
    }
    if to.len() > MAX_TAGS {
        return Err(limit_exceeded(format!("The number of tags has reached the maximum limit: {MAX_TAGS}")));
    }
    Ok(())
}

/// Removes tags by their keys.
fn remove_tags(from: &mut Tags, keys: &[String]) {
    from.retain(|own, _| !keys.iter().any(|key| key.to_lowercase() == own.to_lowercase()));
}

pub(super) fn tags(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag { key: key.clone(), value: value.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever tags are added and removed in whatever case: what is there is what a map without case has, with the last spelling.
        #[test]
        fn tags_are_a_map_without_case(
            steps in prop::collection::vec((any::<bool>(), "[a-cA-C]{1,2}", "[x-z]{0,2}"), 0..40),
        ) {
            let (mut tags, mut model) = (Tags::new(), BTreeMap::new());
            for (add, key, value) in steps {
                if add {
                    add_tags(&mut tags, vec![Tag { key: key.clone(), value: value.clone() }]).unwrap();
                    model.insert(key.to_lowercase(), (key, value));
                } else {
                    remove_tags(&mut tags, std::slice::from_ref(&key));
                    model.remove(&key.to_lowercase());
                }
            }
            let expected: Tags = model.into_values().collect();
            prop_assert_eq!(tags, expected);
        }
    }

    #[test]
    fn fifty_tags_are_the_most() {
        let tag = |n: usize| Tag { key: format!("k{n}"), value: String::new() };
        let mut tags = Tags::new();
        add_tags(&mut tags, (0..50).map(tag).collect()).unwrap();
        add_tags(&mut tags, vec![tag(7)]).unwrap();
        assert_eq!(add_tags(&mut tags, vec![tag(50)]).unwrap_err().code, "LimitExceeded");
        let twice = vec![
            Tag { key: "a".into(), value: String::new() },
            Tag { key: "A".into(), value: String::new() },
        ];
        assert_eq!(add_tags(&mut Tags::new(), twice).unwrap_err().code, "InvalidInput");
        let own = vec![Tag { key: "AWS:x".into(), value: String::new() }];
        assert_eq!(add_tags(&mut Tags::new(), own).unwrap_err().code, "InvalidInput");
    }
}
