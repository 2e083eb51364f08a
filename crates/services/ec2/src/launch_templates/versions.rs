//! The versions of launch templates.

use haar_api::{Context, Error};
use haar_core::{FilterTable, Fingerprint, PageRequest, idempotent};
use haar_records::ec2::{
    Instance, LaunchTemplate, LaunchTemplateData, LaunchTemplateVersion, launch_template as record,
};
use haar_store::{Entry, Snapshot, Tx};

use super::{DEFAULT, LATEST, PAGE, data, data_of, number};
use crate::describe::parse;
use crate::error::{Result, combination, invalid_value, missing};
use crate::handlers::Handlers;
use crate::instances::describe_as_launch;
use crate::{Scope, ids, model};

/// Most versions of one DeleteLaunchTemplateVersions or DescribeLaunchTemplateVersions request.
const MAX_VERSIONS: usize = 200;

/// The version that a request names.
pub(super) fn find(
    tx: &mut Tx,
    template: &LaunchTemplate,
    version: &str,
) -> Result<Entry<LaunchTemplateVersion>> {
    let number = number(template, version)?;
    let id = LaunchTemplateVersion::id_of(&template.id, number);
    tx.get(&template.account, &template.region, &id).ok_or_else(|| no_such_version(template, number))
}

fn no_such_version(template: &LaunchTemplate, number: u64) -> Error {
    let message = format!("Could not find launch template version {number} of {}.", template.id);
    Error::new("InvalidLaunchTemplateId.VersionNotFound", message)
}

/// A new version.
pub(super) fn new(
    ctx: &Context,
    template: &LaunchTemplate,
    number: u64,
    description: Option<String>,
    data: LaunchTemplateData,
) -> LaunchTemplateVersion {
    LaunchTemplateVersion {
        account: template.account.clone(),
        region: template.region.clone(),
        id: LaunchTemplateVersion::id_of(&template.id, number),
        template_id: template.id.clone(),
        number,
        description,
        create_time: ctx.now,
        created_by: ctx.principal.arn.clone(),
        data,
    }
}

/// `CreateLaunchTemplateVersion`.
pub async fn create_launch_template_version(
    handlers: &Handlers,
    ctx: &Context,
    input: model::CreateLaunchTemplateVersionRequest,
) -> Result<model::CreateLaunchTemplateVersionResult> {
    let over = data_of(input.launch_template_data)?;
    if over == LaunchTemplateData::default() && input.source_version.is_none() {
        return Err(missing("LaunchTemplateData"));
    }
    haar_core::transact(&handlers.store, ctx, |tx| {
        let (id, name) = (input.launch_template_id.as_deref(), input.launch_template_name.as_deref());
        let template = super::find(tx, Scope::from(ctx), id, name)?;
        let number = idempotent(tx, ctx, |tx| {
            let data = match input.source_version.as_deref() {
                Some(source) => data::overlay(find(tx, &template, source)?.data.clone(), over.clone()),
                None => over.clone(),
            };
            let mut template = LaunchTemplate::clone(&template);
            let number = template.next_version;
            template.latest_version = number;
            template.next_version = number + 1;
            tx.put(new(ctx, &template, number, input.version_description.clone(), data));
            tx.put(template);
            Ok::<_, Error>(number)
        })?;
        let version = find(tx, &template, &number.to_string())?;
        let template = super::find(tx, Scope::from(ctx), Some(&version.template_id), None)?;
        Ok(model::CreateLaunchTemplateVersionResult {
            launch_template_version: Some(to_api(&template, &version)),
        })
    })
    .await
}

/// `DeleteLaunchTemplateVersions`: those that can be; the default one cannot.
pub async fn delete_launch_template_versions(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DeleteLaunchTemplateVersionsRequest,
) -> Result<model::DeleteLaunchTemplateVersionsResult> {
    check_count(&input.versions)?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let (id, name) = (input.launch_template_id.as_deref(), input.launch_template_name.as_deref());
        let mut template = LaunchTemplate::clone(&*super::find(tx, Scope::from(ctx), id, name)?);
        let mut result = model::DeleteLaunchTemplateVersionsResult::default();
        let mut seen = Vec::new();
        for version in &input.versions {
            let number = number(&template, version)?;
            if seen.contains(&number) {
                continue;
            }
            seen.push(number);
            let id = LaunchTemplateVersion::id_of(&template.id, number);
            let version_number = i64::try_from(number).ok();
            let refused = if number == template.default_version {
                Some((
                    model::LaunchTemplateErrorCode::UnexpectedError,
                    format!("Version {number} is the default version, which cannot be deleted."),
                ))
            } else if tx.delete::<LaunchTemplateVersion>(&ctx.account, &ctx.region, &id).is_none() {
                let message = no_such_version(&template, number).message;
                Some((model::LaunchTemplateErrorCode::LaunchTemplateVersionDoesNotExist, message))
            } else {
                None
            };
            let (launch_template_id, launch_template_name) =
                (Some(template.id.clone()), Some(template.name.clone()));
            match refused {
                Some((code, message)) => result.unsuccessfully_deleted_launch_template_versions.push(
                    model::DeleteLaunchTemplateVersionsResponseErrorItem {
                        launch_template_id,
                        launch_template_name,
                        version_number,
                        response_error: Some(model::ResponseError {
                            code: Some(code),
                            message: Some(message),
                        }),
                    },
                ),
                None => result.successfully_deleted_launch_template_versions.push(
                    model::DeleteLaunchTemplateVersionsResponseSuccessItem {
                        launch_template_id,
                        launch_template_name,
                        version_number,
                    },
                ),
            }
        }
        // The latest version is the latest that is left.
        let left = tx.by_index::<LaunchTemplateVersion>(&ctx.account, &ctx.region, "template", &template.id);
        template.latest_version = left.map(|version| version.number).max().unwrap_or(template.latest_version);
        tx.put(template);
        Ok(result)
    })
    .await
}

fn check_count(versions: &[String]) -> Result<()> {
    if versions.len() > MAX_VERSIONS {
        return Err(invalid_value(format!("No more than {MAX_VERSIONS} versions may be specified.")));
    }
    Ok(())
}

/// A version with its template.
struct Listed {
    template: Entry<LaunchTemplate>,
    version: Entry<LaunchTemplateVersion>,
}

const FILTERS: FilterTable<Listed> = FilterTable::<Listed>::new(&[
    ("create-time", |it, (), probe| {
        probe.value(&haar_api::timestamp::iso8601(it.version.create_time, false));
    }),
    ("ebs-optimized", |it, (), probe| {
        it.version.data.ebs_optimized.iter().for_each(|value| probe.display(value));
    }),
    ("host-resource-group-arn", |_, (), _| ()),
    ("http-endpoint", |it, (), probe| {
        probe.values(metadata(it).and_then(|options| options.http_endpoint.as_deref()));
    }),
    ("http-protocol-ipv4", |_, (), _| ()),
    ("http-tokens", |it, (), probe| {
        probe.values(metadata(it).and_then(|options| options.http_tokens.as_deref()));
    }),
    ("iam-instance-profile", |_, (), _| ()),
    ("image-id", |it, (), probe| probe.values(it.version.data.image_id.as_deref())),
    ("instance-type", |it, (), probe| probe.values(it.version.data.instance_type.as_deref())),
    ("is-default-version", |it, (), probe| {
        probe.display(it.template.default_version == it.version.number);
    }),
    ("kernel-id", |_, (), _| ()),
    ("license-configuration-arn", |_, (), _| ()),
    ("network-card-index", |it, (), probe| {
        let interfaces = it.version.data.network_interfaces.iter();
        interfaces
            .filter_map(|interface| interface.network_card_index)
            .for_each(|index| probe.display(index));
    }),
    ("ram-disk-id", |_, (), _| ()),
]);

fn metadata(it: &Listed) -> Option<&record::TemplateMetadataOptions> {
    it.version.data.metadata_options.as_ref()
}

/// `DescribeLaunchTemplateVersions`: of one template, or the latest or default ones of all.
pub async fn describe_launch_template_versions(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeLaunchTemplateVersionsRequest,
) -> Result<model::DescribeLaunchTemplateVersionsResult> {
    check_count(&input.versions)?;
    let snapshot = handlers.store.snapshot();
    let filters = parse(&FILTERS, &input.filters)?;
    let range = (input.min_version.as_deref(), input.max_version.as_deref());
    let page = handlers.paginator.page(
        ctx,
        &PageRequest {
            parameters: &|| {
                Fingerprint::of(&(
                    (&input.launch_template_id, &input.launch_template_name),
                    (&input.versions, range),
                    filters.raw(),
                ))
            },
            max_results: input.max_results,
            next_token: input.next_token.as_deref(),
            limits: PAGE,
        },
    )?;
    if !input.versions.is_empty() && range != (None, None) {
        return Err(combination(
            "The parameter LaunchTemplateVersion cannot be used with the parameters MinVersion and MaxVersion",
        ));
    }
    let mut listed = Vec::new();
    if input.launch_template_id.is_none() && input.launch_template_name.is_none() {
        let known = |version: &String| version == DEFAULT || version == LATEST;
        if input.versions.is_empty() || !input.versions.iter().all(known) || range != (None, None) {
            return Err(missing("LaunchTemplateId"));
        }
        for template in snapshot.list::<LaunchTemplate>(&ctx.account, &ctx.region) {
            listed.extend(chosen(&snapshot, template, &input.versions, range)?);
        }
    } else {
        let (id, name) = (input.launch_template_id.as_deref(), input.launch_template_name.as_deref());
        let template = super::look_up(ctx, &snapshot, id, name)?;
        listed.extend(chosen(&snapshot, &template, &input.versions, range)?);
    }
    listed.retain(|it| filters.matches(it, &()));
    listed.sort_by(|a, b| a.version.id.cmp(&b.version.id));
    let (listed, next_token) = page.take(listed, |it| &it.version.id);
    Ok(model::DescribeLaunchTemplateVersionsResult {
        launch_template_versions: listed.iter().map(|it| to_api(&it.template, &it.version)).collect(),
        next_token,
    })
}

/// Those versions of a template that a request names, or that are within its range.
fn chosen(
    snapshot: &Snapshot,
    template: &Entry<LaunchTemplate>,
    versions: &[String],
    (least, most): (Option<&str>, Option<&str>),
) -> Result<Vec<Listed>> {
    let (account, region) = (&template.account, &template.region);
    let listed = |version: Entry<LaunchTemplateVersion>| Listed { template: template.clone(), version };
    if versions.is_empty() {
        let least = least.map_or(Ok(0), |version| number(template, version))?;
        let most = most.map_or(Ok(u64::MAX), |version| number(template, version))?;
        let all = snapshot.by_index::<LaunchTemplateVersion>(account, region, "template", &template.id);
        return Ok(all.filter(|v| (least..=most).contains(&v.number)).cloned().map(listed).collect());
    }
    let mut numbers = Vec::new();
    for version in versions {
        numbers.push(number(template, version)?);
    }
    numbers.sort_unstable();
    numbers.dedup();
    let find = |number| {
        let id = LaunchTemplateVersion::id_of(&template.id, number);
        snapshot.get(account, region, &id).map(listed).ok_or_else(|| no_such_version(template, number))
    };
    numbers.into_iter().map(find).collect()
}

fn to_api(template: &LaunchTemplate, version: &LaunchTemplateVersion) -> model::LaunchTemplateVersion {
    model::LaunchTemplateVersion {
        launch_template_id: Some(template.id.clone()),
        launch_template_name: Some(template.name.clone()),
        version_number: i64::try_from(version.number).ok(),
        version_description: version.description.clone(),
        create_time: Some(version.create_time),
        created_by: Some(version.created_by.clone()),
        default_version: Some(template.default_version == version.number),
        launch_template_data: Some(version.data.clone().into()),
    }
}

/// `GetLaunchTemplateData`: a template that launches what an instance is.
pub async fn get_launch_template_data(
    handlers: &Handlers,
    ctx: &Context,
    input: model::GetLaunchTemplateDataRequest,
) -> Result<model::GetLaunchTemplateDataResult> {
    ids::INSTANCE.check(&input.instance_id)?;
    let snapshot = handlers.store.snapshot();
    let instance = snapshot
        .get::<Instance>(&ctx.account, &ctx.region, &input.instance_id)
        .ok_or_else(|| ids::INSTANCE.missing(&input.instance_id))?;
    let data = describe_as_launch(&snapshot, &instance);
    Ok(model::GetLaunchTemplateDataResult { launch_template_data: Some(data.into()) })
}
