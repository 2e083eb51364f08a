//! Tags of every kind of resource.

use std::collections::BTreeMap;

use haar_api::Context;
use haar_core::{FilterTable, Fingerprint, IdType, PageRequest, tags};
use haar_records::Tags;
use haar_records::ec2::{
    EbsSnapshot, Image, ImportTask, Instance, InternetGateway, KeyPair, LaunchTemplate, NetworkInterface,
    PlacementGroup, RouteTable, SecurityGroup, Subnet, Volume, Vpc,
};
use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION};
use haar_store::{Resource, Snapshot, Tx};

use crate::error::{Result, invalid_value, missing, shorten};
use crate::handlers::Handlers;
use crate::model::{
    CreateTagsRequest, DeleteTagsRequest, DescribeTagsRequest, DescribeTagsResult, Tag, TagDescription,
    TagSpecification,
};
use crate::scope::Scope;
use crate::{describe, ids, security_groups};

/// Most resources of one CreateTags or DeleteTags request (API Reference, `CreateTags`).
const MAX_RESOURCES: usize = 1000;

/// Changes the tags of a resource.
type Edit<'a> = &'a (dyn Fn(&mut Tags) -> Result<()> + Sync);

/// Takes ids and tags.
type Show<'a> = &'a mut dyn FnMut(&str, &Tags);

/// A kind of resource that has tags.
struct Kind {
    id: IdType,
    /// `ResourceType` of the API reference.
    resource_type: &'static str,
    /// Changes the tags of the resource with an id; false when there is none.
    edit: fn(&mut Tx, Scope<'_>, &str, Edit<'_>) -> Result<bool>,
    /// Shows ids and tags of all resources of the kind.
    each: fn(&Snapshot, Scope<'_>, Show<'_>),
}

/// The type of the resource that an id is of, by its prefix.
#[must_use]
pub fn type_of(id: &str) -> Option<&'static str> {
    kind_of(id).ok().map(|kind| kind.resource_type)
}

/// The tags of a resource; none where there is no such resource.
#[must_use]
pub fn of(snapshot: &Snapshot, scope: Scope<'_>, resource_type: &str, id: &str) -> Option<Tags> {
    let kind = KINDS.iter().find(|kind| kind.resource_type == resource_type)?;
    let mut found = None;
    (kind.each)(snapshot, scope, &mut |other, tags| {
        if other == id {
            found = Some(tags.clone());
        }
    });
    found
}

/// A record with tags.
pub(crate) trait Tagged: Resource {
    fn tags(&self) -> &Tags;
    fn tags_mut(&mut self) -> &mut Tags;

    /// Whether the tags may be as they are.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl Tagged for Instance {
    fn tags(&self) -> &Tags {
        &self.tags
    }

    fn tags_mut(&mut self) -> &mut Tags {
        &mut self.tags
    }

    fn check(&self) -> Result<()> {
        let in_metadata = self.spec.metadata_options.instance_tags;
        if in_metadata { check_for_metadata(self.tags.keys().map(String::as_str)) } else { Ok(()) }
    }
}

/// Checks the keys of tags that the instance metadata shows as paths (User Guide, "View tags for your EC2 instances using instance
/// metadata").
///
/// # Errors
/// `InvalidParameterValue` for a key that cannot be part of a path.
pub fn check_for_metadata<'a>(keys: impl Iterator<Item = &'a str>) -> Result<()> {
    let fits = |key: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-=._,:@".contains(&byte);
        key.bytes().all(allowed) && !matches!(key, "." | ".." | "_index")
    };
    for key in keys {
        if !fits(key) {
            return Err(invalid_value(format!(
                "'{key}' is not a valid tag key. Tag keys must match pattern ([0-9a-zA-Z\\-_+=,.@:]{{1,255}}), and must not be a \
                 reserved name ('.', '..', '_index')"
            )));
        }
    }
    Ok(())
}

macro_rules! tagged {
    ($($record:ty),+) => {
        $(impl Tagged for $record {
            fn tags(&self) -> &Tags {
                &self.tags
            }
            fn tags_mut(&mut self) -> &mut Tags {
                &mut self.tags
            }
        })+
    };
}

tagged!(
    EbsSnapshot,
    Image,
    ImportTask,
    InternetGateway,
    KeyPair,
    LaunchTemplate,
    NetworkInterface,
    PlacementGroup,
    RouteTable,
    SecurityGroup,
    Subnet,
    Volume,
    Vpc
);

/// Every kind of resource that has tags.
static KINDS: [Kind; 16] = [
    kind::<Instance>(ids::INSTANCE, "instance"),
    kind::<Volume>(ids::VOLUME, "volume"),
    kind::<EbsSnapshot>(ids::SNAPSHOT, "snapshot"),
    kind::<NetworkInterface>(ids::NETWORK_INTERFACE, "network-interface"),
    kind::<SecurityGroup>(ids::SECURITY_GROUP, "security-group"),
    kind::<KeyPair>(ids::KEY_PAIR, "key-pair"),
    kind::<LaunchTemplate>(ids::LAUNCH_TEMPLATE, "launch-template"),
    kind::<PlacementGroup>(ids::PLACEMENT_GROUP, "placement-group"),
    kind::<Vpc>(ids::VPC, "vpc"),
    kind::<Subnet>(ids::SUBNET, "subnet"),
    kind::<RouteTable>(ids::ROUTE_TABLE, "route-table"),
    kind::<InternetGateway>(ids::INTERNET_GATEWAY, "internet-gateway"),
    Kind { id: ids::IMAGE, resource_type: "image", edit: edit_image, each: each_image },
    Kind {
        id: ids::IMPORT_IMAGE_TASK,
        resource_type: ids::IMPORT_IMAGE_TASK_TYPE,
        edit: edit::<ImportTask>,
        each: |snapshot, scope, show| each_import(snapshot, scope, true, show),
    },
    Kind {
        id: ids::IMPORT_SNAPSHOT_TASK,
        resource_type: ids::IMPORT_SNAPSHOT_TASK_TYPE,
        edit: edit::<ImportTask>,
        each: |snapshot, scope, show| each_import(snapshot, scope, false, show),
    },
    Kind {
        id: ids::SECURITY_GROUP_RULE,
        resource_type: "security-group-rule",
        edit: security_groups::edit_rule_tags,
        each: security_groups::each_rule_tags,
    },
];

const fn kind<T: Tagged>(id: IdType, resource_type: &'static str) -> Kind {
    Kind { id, resource_type, edit: edit::<T>, each: each::<T> }
}

fn edit<T: Tagged>(tx: &mut Tx, scope: Scope<'_>, id: &str, change: Edit<'_>) -> Result<bool> {
    let Some(record) = tx.get::<T>(scope.account, scope.region, id) else { return Ok(false) };
    put_changed(tx, &*record, change).map(|()| true)
}

fn put_changed<T: Tagged>(tx: &mut Tx, record: &T, change: Edit<'_>) -> Result<()> {
    let mut record = record.clone();
    change(record.tags_mut())?;
    record.check()?;
    tx.put(record);
    Ok(())
}

fn each<T: Tagged>(snapshot: &Snapshot, scope: Scope<'_>, show: Show<'_>) {
    snapshot.list::<T>(scope.account, scope.region).for_each(|record| show(record.id(), record.tags()));
}

/// The tasks that import images, or those that import snapshots.
fn each_import(snapshot: &Snapshot, scope: Scope<'_>, images: bool, show: Show<'_>) {
    let tasks = snapshot.list::<ImportTask>(scope.account, scope.region);
    tasks.filter(|task| task.image.is_some() == images).for_each(|task| show(&task.id, &task.tags));
}

/// The images of the installation are everyone's; their tags are their owner's.
fn edit_image(tx: &mut Tx, scope: Scope<'_>, id: &str, change: Edit<'_>) -> Result<bool> {
    if edit::<Image>(tx, scope, id, change)? {
        return Ok(true);
    }
    match tx.get::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION, id) {
        Some(image) if image.owner == scope.account => put_changed(tx, &*image, change).map(|()| true),
        _ => Ok(false),
    }
}

fn each_image(snapshot: &Snapshot, scope: Scope<'_>, show: Show<'_>) {
    each::<Image>(snapshot, scope, show);
    let global = snapshot.list::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION);
    global.filter(|image| image.owner == scope.account).for_each(|image| show(&image.id, &image.tags));
}

/// The kind of resource that an id is of, by its prefix.
fn kind_of(id: &str) -> Result<&'static Kind> {
    let kind = id.rsplit_once('-').and_then(|(prefix, _)| KINDS.iter().find(|kind| kind.id.prefix == prefix));
    let kind = kind
        .ok_or_else(|| haar_api::Error::new("InvalidID", format!("The ID '{}' is not valid", shorten(id))))?;
    kind.id.check(id)?;
    Ok(kind)
}

/// Changes the tags of all resources of a request, or of none.
async fn edit_all(handlers: &Handlers, ctx: &Context, resources: &[String], change: Edit<'_>) -> Result<()> {
    if resources.is_empty() {
        return Err(missing("resourceIdSet"));
    }
    if resources.len() > MAX_RESOURCES {
        return Err(invalid_value(format!("No more than {MAX_RESOURCES} resources may be tagged at once.")));
    }
    let scope = Scope::from(ctx);
    haar_core::transact(&handlers.store, ctx, |tx| {
        for id in resources {
            let kind = kind_of(id)?;
            if !(kind.edit)(tx, scope, id, change)? {
                return Err(kind.id.missing(id).into());
            }
        }
        Ok(())
    })
    .await
}

/// `CreateTags`.
pub async fn create_tags(handlers: &Handlers, ctx: &Context, input: CreateTagsRequest) -> Result<()> {
    if input.tags.is_empty() {
        return Err(missing("tagSet"));
    }
    let new = tags::parse(pairs(&input.tags))?;
    edit_all(handlers, ctx, &input.resources, &|tags| Ok(tags::apply(tags, &new)?)).await
}

/// `DeleteTags`.
pub async fn delete_tags(handlers: &Handlers, ctx: &Context, input: DeleteTagsRequest) -> Result<()> {
    let removal = tags::parse_removal(pairs(&input.tags))?;
    edit_all(handlers, ctx, &input.resources, &|tags| {
        tags::remove(tags, &removal);
        Ok(())
    })
    .await
}

/// A tag, as DescribeTags lists it.
struct Listed {
    /// `id/key`: no id contains a slash, so that these sort by id and then by key.
    order: String,
    resource_id: String,
    resource_type: &'static str,
    tags: Tags,
}

impl Listed {
    fn key_and_value(&self) -> (&str, &str) {
        self.tags.first_key_value().map_or(("", ""), |(key, value)| (key, value))
    }
}

const FILTERS: FilterTable<Listed> = FilterTable::<Listed>::new(&[
    ("key", |tag, (), probe| probe.value(tag.key_and_value().0)),
    ("resource-id", |tag, (), probe| probe.value(&tag.resource_id)),
    ("resource-type", |tag, (), probe| probe.value(tag.resource_type)),
    ("value", |tag, (), probe| probe.value(tag.key_and_value().1)),
])
.with_tags(|tag| &tag.tags);

/// `DescribeTags`.
pub async fn describe_tags(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeTagsRequest,
) -> Result<DescribeTagsResult> {
    let snapshot = handlers.store.snapshot();
    let filters = describe::parse(&FILTERS, &input.filters)?;
    let page = handlers.paginator.page(
        ctx,
        &PageRequest {
            parameters: &|| Fingerprint::of(&filters.raw()),
            max_results: input.max_results,
            next_token: input.next_token.as_deref(),
            limits: describe::PAGE,
        },
    )?;
    let mut listed = Vec::new();
    for kind in &KINDS {
        (kind.each)(&snapshot, Scope::from(ctx), &mut |id, tags| {
            listed.extend(tags.iter().map(|(key, value)| Listed {
                order: format!("{id}/{key}"),
                resource_id: id.to_owned(),
                resource_type: kind.resource_type,
                tags: Tags::from([(key.clone(), value.clone())]),
            }));
        });
    }
    listed.retain(|tag| filters.matches(tag, &()));
    listed.sort_unstable_by(|a, b| a.order.cmp(&b.order));
    let (listed, next_token) = page.take(listed, |tag| &tag.order);
    let describe = |tag: Listed| TagDescription {
        key: Some(tag.key_and_value().0.to_owned()),
        value: Some(tag.key_and_value().1.to_owned()),
        resource_type: Some(tag.resource_type.to_owned()),
        resource_id: Some(tag.resource_id),
    };
    Ok(DescribeTagsResult { tags: listed.into_iter().map(describe).collect(), next_token })
}

/// The tags that a request gives to new resources, by resource type; `types` are those that the operation makes.
///
/// # Errors
/// `InvalidParameterValue` for a type that the operation does not make or that comes twice, and for tags that no resource can
/// have.
pub fn of_new(
    specifications: &[TagSpecification],
    types: &[&'static str],
) -> Result<BTreeMap<&'static str, Tags>> {
    let mut by_type = BTreeMap::new();
    for specification in specifications {
        let given = specification.resource_type.as_deref().filter(|given| !given.is_empty());
        let given =
            given.ok_or_else(|| invalid_value("Tag specification resource type must have a value"))?;
        let resource_type = types.iter().find(|known| **known == given).ok_or_else(|| {
            let given = shorten(given);
            invalid_value(format!("'{given}' is not a valid taggable resource type for this operation."))
        })?;
        if specification.tags.is_empty() {
            return Err(invalid_value("Tag specification must have at least one tag"));
        }
        if by_type.insert(*resource_type, tags::parse(pairs(&specification.tags))?).is_some() {
            let message = "The same resource type may not be specified more than once in tag specifications.";
            return Err(invalid_value(message));
        }
    }
    Ok(by_type)
}

/// The tags that a request gives to the new resources of the only type that its operation makes.
///
/// # Errors
/// As [`of_new`].
pub fn of_new_one(specifications: &[TagSpecification], resource_type: &'static str) -> Result<Tags> {
    Ok(of_new(specifications, &[resource_type])?.remove(resource_type).unwrap_or_default())
}

fn pairs(tags: &[Tag]) -> impl Iterator<Item = (Option<&str>, Option<&str>)> {
    tags.iter().map(|tag| (tag.key.as_deref(), tag.value.as_deref()))
}

/// Tags as answers have them.
#[must_use]
pub fn to_api(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag { key: Some(key.clone()), value: Some(value.clone()) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults;
    use crate::model::Ec2;
    use crate::testing::{SCOPE, code, context, filter, handlers, write};

    fn tag(key: &str, value: Option<&str>) -> Tag {
        Tag { key: Some(key.into()), value: value.map(str::to_owned) }
    }

    async fn vpc_and_rule(handlers: &Handlers) -> (String, String) {
        let vpc = write(&handlers.store, |tx| Ok(defaults::ensure(tx, SCOPE)?.id.clone())).await.unwrap();
        let snapshot = handlers.store.snapshot();
        let group = snapshot.list::<SecurityGroup>(SCOPE.account, SCOPE.region).next().unwrap();
        (vpc, group.rules[0].id.clone())
    }

    async fn described(
        handlers: &Handlers,
        filters: Vec<crate::model::Filter>,
    ) -> Vec<(String, String, String)> {
        let input = DescribeTagsRequest { filters, ..DescribeTagsRequest::default() };
        let tags = handlers.describe_tags(&context(), input).await.unwrap().tags;
        tags.into_iter().map(|t| (t.resource_type.unwrap(), t.key.unwrap(), t.value.unwrap())).collect()
    }

    #[tokio::test]
    async fn tags_of_different_kinds_are_made_listed_and_removed_together() {
        let handlers = handlers().await;
        let (vpc, rule) = vpc_and_rule(&handlers).await;
        let input = CreateTagsRequest {
            resources: vec![vpc.clone(), rule.clone()],
            tags: vec![tag("Name", Some("x")), tag("empty", None)],
        };
        handlers.create_tags(&context(), input).await.unwrap();
        assert_eq!(described(&handlers, Vec::new()).await.len(), 4);
        assert_eq!(
            described(&handlers, filter("resource-id", &rule)).await,
            [
                ("security-group-rule".into(), "Name".into(), "x".into()),
                ("security-group-rule".into(), "empty".into(), String::new())
            ]
        );
        assert_eq!(described(&handlers, filter("tag:Name", "x")).await.len(), 2);
        assert_eq!(described(&handlers, filter("resource-type", "vpc")).await.len(), 2);
        let wrong_value =
            DeleteTagsRequest { resources: vec![vpc.clone()], tags: vec![tag("Name", Some("other"))] };
        handlers.delete_tags(&context(), wrong_value).await.unwrap();
        assert_eq!(described(&handlers, filter("resource-id", &vpc)).await.len(), 2);
        let any_value = DeleteTagsRequest { resources: vec![vpc.clone()], tags: vec![tag("Name", None)] };
        handlers.delete_tags(&context(), any_value).await.unwrap();
        assert_eq!(described(&handlers, filter("resource-id", &vpc)).await.len(), 1);
        handlers
            .delete_tags(&context(), DeleteTagsRequest { resources: vec![rule], tags: vec![] })
            .await
            .unwrap();
        assert_eq!(described(&handlers, Vec::new()).await.len(), 1);
    }

    #[tokio::test]
    async fn one_wrong_resource_leaves_all_untagged() {
        let handlers = handlers().await;
        let (vpc, _) = vpc_and_rule(&handlers).await;
        for (wrong, expected) in [
            ("i-00000000000000000", "InvalidInstanceID.NotFound"),
            ("i-xyz", "InvalidInstanceID.Malformed"),
            ("vol-00000000000000000", "InvalidVolume.NotFound"),
            ("foo-00000000000000000", "InvalidID"),
            ("nonsense", "InvalidID"),
            ("", "InvalidID"),
            ("sgr-00000000000000000", "InvalidSecurityGroupRuleId.NotFound"),
        ] {
            let resources = vec![vpc.clone(), wrong.to_owned()];
            let input = CreateTagsRequest { resources, tags: vec![tag("k", Some("v"))] };
            assert_eq!(code(handlers.create_tags(&context(), input).await), expected);
        }
        let reserved = CreateTagsRequest { resources: vec![vpc.clone()], tags: vec![tag("aws:x", None)] };
        assert_eq!(code(handlers.create_tags(&context(), reserved).await), "InvalidParameterValue");
        let mut dry = context();
        dry.dry_run = true;
        let input = CreateTagsRequest { resources: vec![vpc], tags: vec![tag("k", Some("v"))] };
        assert_eq!(code(handlers.create_tags(&dry, input).await), "DryRunOperation");
        assert_eq!(described(&handlers, Vec::new()).await, []);
    }

    #[test]
    fn specifications_are_for_what_the_operation_makes() {
        let of = |resource_type: Option<&str>, tags| TagSpecification {
            resource_type: resource_type.map(str::to_owned),
            tags,
        };
        let name = || vec![tag("Name", Some("x"))];
        let types = ["instance", "volume"];
        let parsed = of_new(&[of(Some("volume"), name()), of(Some("instance"), name())], &types).unwrap();
        assert_eq!(parsed.keys().copied().collect::<Vec<_>>(), types);
        for wrong in [
            vec![of(Some("vpc"), name())],
            vec![of(None, name())],
            vec![of(Some("volume"), vec![])],
            vec![of(Some("volume"), name()), of(Some("volume"), name())],
            vec![of(Some("volume"), vec![tag("", None)])],
        ] {
            assert_eq!(code(of_new(&wrong, &types)), "InvalidParameterValue");
        }
        assert_eq!(of_new_one(&[], "volume"), Ok(Tags::new()));
    }
}
