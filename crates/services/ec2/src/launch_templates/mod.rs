//! Launch templates and their versions.

mod data;
mod versions;

use haar_api::{Context, Error};
use haar_core::{FilterTable, Fingerprint, PageRequest, idempotent};
use haar_records::ec2::{Claim, ClaimScope, LaunchTemplate, LaunchTemplateData, LaunchTemplateVersion};
use haar_store::{Entry, Snapshot, Tx};

pub use versions::{
    create_launch_template_version, delete_launch_template_versions, describe_launch_template_versions,
    get_launch_template_data,
};

use crate::describe::parse;
use crate::error::{Result, combination, invalid_parameter, missing, shorten};
use crate::handlers::Handlers;
use crate::instances::check_user_data;
use crate::{Scope, ids, model, tags};

/// The tags that tell an instance's template; clients cannot set them.
const ID_TAG: &str = "aws:ec2launchtemplate:id";
const VERSION_TAG: &str = "aws:ec2launchtemplate:version";

/// Most results of a page of templates and of versions.
const PAGE: std::ops::RangeInclusive<i32> = 1..=200;

/// What resources a template can tag.
const TAGGED: [&str; 3] = ["instance", "volume", "network-interface"];

/// A launch as a request and the template that it names ask for it, with the tags that tell the template.
///
/// # Errors
/// Those of a template or version that is not there.
pub fn resolve(
    scope: Scope<'_>,
    tx: &mut Tx,
    input: &model::RunInstancesRequest,
) -> Result<(model::RunInstancesRequest, haar_records::Tags)> {
    let Some(wanted) = &input.launch_template else { return Ok((input.clone(), haar_records::Tags::new())) };
    let (id, name) = (wanted.launch_template_id.as_deref(), wanted.launch_template_name.as_deref());
    let template = find(tx, scope, id, name)?;
    let version = wanted.version.as_deref().filter(|version| !version.is_empty()).unwrap_or(DEFAULT);
    let version = versions::find(tx, &template, version)?;
    let tags = [(ID_TAG, template.id.clone()), (VERSION_TAG, version.number.to_string())];
    let tags = tags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Ok((data::merge(input, version.data.clone()), tags))
}

const DEFAULT: &str = "$Default";
const LATEST: &str = "$Latest";

/// The id of the template that a request names by id or name, and number and content of the version of it that the request names; none
/// where there is no such version.
#[must_use]
pub fn named(
    snapshot: &Snapshot,
    scope: Scope<'_>,
    id: Option<&str>,
    name: Option<&str>,
    version: Option<&str>,
) -> Option<(String, u64, LaunchTemplateData)> {
    let by_name = |name: &str| {
        let (account, region, claim) =
            Claim::key(scope.account, scope.region, ClaimScope::LaunchTemplate(name));
        snapshot.get::<Claim>(&account, &region, &claim).map(|claim| claim.holder.clone())
    };
    let id = id.map(str::to_owned).or_else(|| by_name(name?))?;
    let template = snapshot.get::<LaunchTemplate>(scope.account, scope.region, &id)?;
    let number = match version.filter(|version| !version.is_empty()).unwrap_or(DEFAULT) {
        DEFAULT => template.default_version,
        LATEST => template.latest_version,
        number => number.parse().ok()?,
    };
    let version = LaunchTemplateVersion::id_of(&id, number);
    let version = snapshot.get::<LaunchTemplateVersion>(scope.account, scope.region, &version)?;
    Some((id, number, version.data.clone()))
}

/// The template of an id or a name.
fn find(
    tx: &mut Tx,
    scope: Scope<'_>,
    id: Option<&str>,
    name: Option<&str>,
) -> Result<Entry<LaunchTemplate>> {
    match (id.filter(|id| !id.is_empty()), name.filter(|name| !name.is_empty())) {
        (Some(_), Some(_)) => Err(combination(
            "The parameter LaunchTemplateId cannot be used with the parameter LaunchTemplateName",
        )),
        (None, None) => Err(missing("LaunchTemplateId")),
        (Some(id), None) => {
            ids::LAUNCH_TEMPLATE.check(id)?;
            tx.get(scope.account, scope.region, id).ok_or_else(|| no_such_id(id))
        }
        (None, Some(name)) => {
            let claim = ClaimScope::LaunchTemplate(name);
            let (account, region, claim) = Claim::key(scope.account, scope.region, claim);
            tx.get::<Claim>(&account, &region, &claim)
                .and_then(|claim| tx.get(scope.account, scope.region, &claim.holder))
                .ok_or_else(|| no_such_name(name))
        }
    }
}

fn no_such_id(id: &str) -> Error {
    let message = format!("The specified launch template, with template ID {id}, does not exist.");
    Error::new("InvalidLaunchTemplateId.NotFound", message)
}

fn no_such_name(name: &str) -> Error {
    let name = shorten(name);
    let message = format!("The specified launch template, with template name {name}, does not exist.");
    Error::new("InvalidLaunchTemplateName.NotFoundException", message)
}

/// What a request says of instances, as far as it can be checked without launching one.
fn data_of(input: model::RequestLaunchTemplateData) -> Result<LaunchTemplateData> {
    let data = LaunchTemplateData::from(input);
    check_user_data(data.user_data.as_deref())?;
    let specifications: Vec<model::TagSpecification> =
        data.tag_specifications.iter().cloned().map(Into::into).collect();
    tags::of_new(&specifications, &TAGGED)?;
    Ok(data)
}

/// `CreateLaunchTemplate`.
pub async fn create_launch_template(
    handlers: &Handlers,
    ctx: &Context,
    input: model::CreateLaunchTemplateRequest,
) -> Result<model::CreateLaunchTemplateResult> {
    let data = data_of(input.launch_template_data)?;
    if data == LaunchTemplateData::default() {
        return Err(missing("LaunchTemplateData"));
    }
    let tags = tags::of_new_one(&input.tag_specifications, "launch-template")?;
    let name = input.launch_template_name;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let id = idempotent(tx, ctx, |tx| {
            if find(tx, Scope::from(ctx), None, Some(&name)).is_ok() {
                return Err(Error::new(
                    "InvalidLaunchTemplateName.AlreadyExistsException",
                    "Launch template name already in use.",
                ));
            }
            let template = LaunchTemplate {
                account: ctx.account.clone(),
                region: ctx.region.clone(),
                id: ids::LAUNCH_TEMPLATE.generate(),
                name: name.clone(),
                create_time: ctx.now,
                created_by: ctx.principal.arn.clone(),
                default_version: 1,
                latest_version: 1,
                next_version: 2,
                tags: tags.clone(),
            };
            let id = template.id.clone();
            tx.put(Claim::new(&ctx.account, &ctx.region, ClaimScope::LaunchTemplate(&name), &id));
            tx.put(versions::new(ctx, &template, 1, input.version_description.clone(), data.clone()));
            tx.put(template);
            Ok(id)
        })?;
        let template = find(tx, Scope::from(ctx), Some(&id), None)?;
        Ok(model::CreateLaunchTemplateResult { launch_template: Some(to_api(&template)) })
    })
    .await
}

/// `ModifyLaunchTemplate`: sets the default version.
pub async fn modify_launch_template(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ModifyLaunchTemplateRequest,
) -> Result<model::ModifyLaunchTemplateResult> {
    let version = input.default_version.as_deref().ok_or_else(|| missing("SetDefaultVersion"))?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let (id, name) = (input.launch_template_id.as_deref(), input.launch_template_name.as_deref());
        let template = find(tx, Scope::from(ctx), id, name)?;
        let default_version = versions::find(tx, &template, version)?.number;
        let template = LaunchTemplate { default_version, ..LaunchTemplate::clone(&template) };
        let launch_template = Some(to_api(&template));
        tx.put(template);
        Ok(model::ModifyLaunchTemplateResult { launch_template })
    })
    .await
}

/// `DeleteLaunchTemplate`, with all its versions. What was launched by it stays.
pub async fn delete_launch_template(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DeleteLaunchTemplateRequest,
) -> Result<model::DeleteLaunchTemplateResult> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let (id, name) = (input.launch_template_id.as_deref(), input.launch_template_name.as_deref());
        let template = find(tx, Scope::from(ctx), id, name)?;
        let versions =
            tx.by_index::<LaunchTemplateVersion>(&ctx.account, &ctx.region, "template", &template.id);
        let versions: Vec<_> = versions.map(|version| version.id.clone()).collect();
        for version in versions {
            tx.delete::<LaunchTemplateVersion>(&ctx.account, &ctx.region, &version);
        }
        let claim = ClaimScope::LaunchTemplate(&template.name);
        let (account, region, claim) = Claim::key(&ctx.account, &ctx.region, claim);
        tx.delete::<Claim>(&account, &region, &claim);
        tx.delete::<LaunchTemplate>(&ctx.account, &ctx.region, &template.id);
        Ok(model::DeleteLaunchTemplateResult { launch_template: Some(to_api(&template)) })
    })
    .await
}

const FILTERS: FilterTable<LaunchTemplate> = FilterTable::<LaunchTemplate>::new(&[
    ("create-time", |template, (), probe| {
        probe.value(&haar_api::timestamp::iso8601(template.create_time, false));
    }),
    ("launch-template-name", |template, (), probe| probe.value(&template.name)),
])
.with_tags(|template| &template.tags);

/// `DescribeLaunchTemplates`.
pub async fn describe_launch_templates(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeLaunchTemplatesRequest,
) -> Result<model::DescribeLaunchTemplatesResult> {
    let snapshot = handlers.store.snapshot();
    let filters = parse(&FILTERS, &input.filters)?;
    let (ids, names) = (&input.launch_template_ids, &input.launch_template_names);
    let page = handlers.paginator.page(
        ctx,
        &PageRequest {
            parameters: &|| Fingerprint::of(&(ids, names, filters.raw())),
            max_results: input.max_results,
            next_token: input.next_token.as_deref(),
            limits: PAGE,
        },
    )?;
    for id in ids {
        ids::LAUNCH_TEMPLATE.check(id)?;
        if snapshot.get::<LaunchTemplate>(&ctx.account, &ctx.region, id).is_none() {
            return Err(no_such_id(id));
        }
    }
    if let Some(unknown) = names.iter().find(|name| !is_there(ctx, &snapshot, name)) {
        return Err(no_such_name(unknown));
    }
    let wanted = |template: &&Entry<LaunchTemplate>| {
        (ids.is_empty() || ids.contains(&template.id))
            && (names.is_empty() || names.contains(&template.name))
            && filters.matches(template, &())
    };
    let matching = snapshot.list::<LaunchTemplate>(&ctx.account, &ctx.region).filter(wanted);
    let (templates, next_token) = page.take(matching, |template| &template.id);
    Ok(model::DescribeLaunchTemplatesResult {
        launch_templates: templates.into_iter().map(|template| to_api(template)).collect(),
        next_token,
    })
}

/// As [`find`], for what only looks.
fn look_up(
    ctx: &Context,
    snapshot: &Snapshot,
    id: Option<&str>,
    name: Option<&str>,
) -> Result<Entry<LaunchTemplate>> {
    match (id, name) {
        (Some(_), Some(_)) => Err(combination(
            "The parameter LaunchTemplateId cannot be used with the parameter LaunchTemplateName",
        )),
        (Some(id), None) => {
            ids::LAUNCH_TEMPLATE.check(id)?;
            snapshot.get(&ctx.account, &ctx.region, id).ok_or_else(|| no_such_id(id))
        }
        (None, name) => {
            let name = name.ok_or_else(|| missing("LaunchTemplateId"))?;
            let mut named = snapshot.by_index(&ctx.account, &ctx.region, "name", name);
            named.next().cloned().ok_or_else(|| no_such_name(name))
        }
    }
}

fn is_there(ctx: &Context, snapshot: &Snapshot, name: &str) -> bool {
    snapshot.by_index::<LaunchTemplate>(&ctx.account, &ctx.region, "name", name).next().is_some()
}

fn to_api(template: &LaunchTemplate) -> model::LaunchTemplate {
    model::LaunchTemplate {
        launch_template_id: Some(template.id.clone()),
        launch_template_name: Some(template.name.clone()),
        create_time: Some(template.create_time),
        created_by: Some(template.created_by.clone()),
        default_version_number: i64::try_from(template.default_version).ok(),
        latest_version_number: i64::try_from(template.latest_version).ok(),
        tags: tags::to_api(&template.tags),
    }
}

/// A version's number, from what a request says.
fn number(template: &LaunchTemplate, version: &str) -> Result<u64> {
    match version {
        DEFAULT => Ok(template.default_version),
        LATEST => Ok(template.latest_version),
        number => number.parse().ok().filter(|number| *number > 0).ok_or_else(|| {
            invalid_parameter(version, "version", "It must be a number, $Latest or $Default.")
        }),
    }
}
