//! VM Import/Export: disks and machines that are imported as snapshots and images.

use haar_api::{Context, Error, PrincipalKind};
use haar_core::{FilterTable, idempotent};
use haar_records::ec2::{
    BootMode, ImportContainer, ImportDisk, ImportFormat, ImportState, ImportTask, ImportedImage,
};
use haar_store::Tx;

use crate::describe::{Kind, Request};
use crate::encryption::Asked;
use crate::error::{Result, invalid_parameter, invalid_value, missing, shorten, unsupported};
use crate::handlers::Handlers;
use crate::{encryption, ids, model, tags};

/// Most containers of an image (VM Import/Export User Guide, "Limitations": volumes of a machine).
const MAX_CONTAINERS: usize = 21;

/// Most characters of a description.
const MAX_DESCRIPTION: usize = 255;

/// The longest URL.
const MAX_URL: usize = 2048;

/// Most tasks of an account that are under way at a time (VM Import/Export User Guide, "Quotas").
const MAX_ACTIVE: usize = 20;

const FILTERS: FilterTable<ImportTask> =
    FilterTable::<ImportTask>::new(&[("task-state", |task, (), probe| {
        probe.value(task.state.as_str());
    })])
    .with_tags(|task| &task.tags);

const IMAGE_TASKS: Kind<ImportTask, ()> = Kind { id: ids::IMPORT_IMAGE_TASK, filters: FILTERS, indexes: &[] };

const SNAPSHOT_TASKS: Kind<ImportTask, ()> =
    Kind { id: ids::IMPORT_SNAPSHOT_TASK, filters: FILTERS, indexes: &[] };

/// `ImportImage`.
pub async fn import_image(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ImportImageRequest,
) -> Result<model::ImportImageResult> {
    if input.disk_containers.is_empty() {
        return Err(missing("DiskContainer"));
    }
    if input.disk_containers.len() > MAX_CONTAINERS {
        return Err(invalid_value(format!("No more than {MAX_CONTAINERS} disk containers may be imported.")));
    }
    let mut containers: Vec<ImportContainer> = Vec::with_capacity(input.disk_containers.len());
    for given in input.disk_containers {
        let device_name = device_name(given.device_name)?;
        if device_name.is_some() && containers.iter().any(|known| known.device_name == device_name) {
            return Err(invalid_parameter(
                device_name.as_deref().unwrap_or_default(),
                "deviceName",
                "Two disk containers have it.",
            ));
        }
        containers.push(ImportContainer {
            description: description(given.description)?,
            format: format(given.format.as_deref(), true)?,
            url: source(given.url.as_deref(), given.user_bucket.is_some())?,
            device_name,
        });
    }
    let image = ImportedImage {
        architecture: only(input.architecture, "Architecture", &["x86_64"], &["i386", "arm64", "i386_efi"])?,
        platform: only(input.platform, "Platform", &["Linux"], &["Windows"])?,
        hypervisor: only(input.hypervisor, "Hypervisor", &["xen"], &[])?,
        license_type: only(input.license_type, "LicenseType", &["BYOL"], &["AWS"])?,
        usage_operation: usage_operation(input.usage_operation)?,
        boot_mode: boot_mode(input.boot_mode)?,
    };
    let asked = Asked::new(input.encrypted, input.kms_key_id.as_deref())?;
    let of = New {
        description: description(input.description)?,
        image: Some(image),
        containers,
        tags: tags::of_new_one(&input.tag_specifications, ids::IMPORT_IMAGE_TASK_TYPE)?,
    };
    let task = begin(handlers, ctx, &asked, of).await?;
    Ok(model::ImportImageResult {
        architecture: task.image.as_ref().and_then(|image| image.architecture.clone()),
        description: task.description.clone(),
        encrypted: Some(task.encryption.is_some()),
        hypervisor: task.image.as_ref().and_then(|image| image.hypervisor.clone()),
        image_id: None,
        import_task_id: Some(task.id.clone()),
        kms_key_id: task.encryption.as_ref().map(haar_records::ec2::Encryption::key_arn),
        license_type: task.image.as_ref().and_then(|image| image.license_type.clone()),
        platform: task.image.as_ref().and_then(|image| image.platform.clone()),
        progress: Some(task.progress.to_string()),
        snapshot_details: snapshot_details(&task),
        status: Some(task.state.to_string()),
        status_message: task.message.clone(),
        tags: tags::to_api(&task.tags),
        usage_operation: task.image.as_ref().and_then(|image| image.usage_operation.clone()),
    })
}

/// `ImportSnapshot`.
pub async fn import_snapshot(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ImportSnapshotRequest,
) -> Result<model::ImportSnapshotResult> {
    let given = input.disk_container.ok_or_else(|| missing("DiskContainer"))?;
    let asked = Asked::new(input.encrypted, input.kms_key_id.as_deref())?;
    let container = ImportContainer {
        description: description(given.description)?,
        format: format(given.format.as_deref(), false)?,
        url: source(given.url.as_deref(), given.user_bucket.is_some())?,
        device_name: None,
    };
    let of = New {
        description: description(input.description)?,
        image: None,
        containers: vec![container],
        tags: tags::of_new_one(&input.tag_specifications, ids::IMPORT_SNAPSHOT_TASK_TYPE)?,
    };
    let task = begin(handlers, ctx, &asked, of).await?;
    Ok(model::ImportSnapshotResult {
        description: task.description.clone(),
        import_task_id: Some(task.id.clone()),
        snapshot_task_detail: Some(snapshot_task_detail(&task)),
        tags: tags::to_api(&task.tags),
    })
}

/// What a request asks for.
struct New {
    description: Option<String>,
    image: Option<ImportedImage>,
    containers: Vec<ImportContainer>,
    tags: haar_records::Tags,
}

async fn begin(handlers: &Handlers, ctx: &Context, asked: &Asked, of: New) -> Result<ImportTask> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let id = idempotent(tx, ctx, |tx| {
            let tasks = tx.list::<ImportTask>(&ctx.account, &ctx.region);
            if tasks.filter(|task| task.state == ImportState::Active).count() >= MAX_ACTIVE {
                let message =
                    format!("There are {MAX_ACTIVE} active import tasks; no more are possible at a time.");
                return Err(Error::new("ResourceCountExceeded", message));
            }
            let id = if of.image.is_some() { ids::IMPORT_IMAGE_TASK } else { ids::IMPORT_SNAPSHOT_TASK };
            let task = ImportTask {
                account: ctx.account.clone(),
                region: ctx.region.clone(),
                id: id.generate(),
                description: of.description.clone(),
                image: of.image.clone(),
                containers: of.containers.clone(),
                disks: Vec::new(),
                state: ImportState::Active,
                message: Some("pending".to_owned()),
                progress: 0,
                encryption: encryption::of_new(&handlers.config.sealer, ctx, tx, asked, None)?,
                trusted: ctx.principal.kind == PrincipalKind::Root && ctx.account == handlers.config.owner,
                created: ctx.now,
                ended: None,
                image_id: None,
                tags: of.tags.clone(),
            };
            let id = task.id.clone();
            tx.put(task);
            Ok::<_, Error>(id)
        })?;
        let task = tx.get::<ImportTask>(&ctx.account, &ctx.region, &id);
        // The same request of hours ago may have made one that is no longer shown.
        task.map(|task| ImportTask::clone(&task)).ok_or_else(|| kind(&id).missing(&id).into())
    })
    .await
}

/// The type of the ids that this one is of.
fn kind(id: &str) -> haar_core::IdType {
    if id.starts_with(ids::IMPORT_SNAPSHOT_TASK.prefix) {
        ids::IMPORT_SNAPSHOT_TASK
    } else {
        ids::IMPORT_IMAGE_TASK
    }
}

fn description(given: Option<String>) -> Result<Option<String>> {
    let given = given.filter(|text| !text.is_empty());
    match &given {
        Some(text) if text.chars().count() > MAX_DESCRIPTION => {
            Err(invalid_parameter(text, "description", "It has more than 255 characters."))
        }
        _ => Ok(given),
    }
}

fn device_name(given: Option<String>) -> Result<Option<String>> {
    let Some(name) = given else { return Ok(None) };
    let device = name.strip_prefix("/dev/").unwrap_or_default();
    let plain = device.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if device.is_empty() || device.len() > 12 || !plain {
        return Err(invalid_parameter(&name, "deviceName", "It is not the name of a device, as /dev/sda1."));
    }
    Ok(Some(name))
}

/// The format of a container; archives have several disks.
fn format(given: Option<&str>, archives: bool) -> Result<Option<ImportFormat>> {
    let Some(given) = given else { return Ok(None) };
    match given.to_ascii_uppercase().parse() {
        Ok(ImportFormat::Ova) if !archives => {
            Err(invalid_parameter(given, "format", "A snapshot is imported from RAW, VHD, VHDX or VMDK."))
        }
        Ok(format) => Ok(Some(format)),
        Err(()) => Err(invalid_parameter(
            given,
            "format",
            "The formats are RAW, VHD, VHDX, VMDK and, of images, OVA.",
        )),
    }
}

/// Where a container's file is.
fn source(url: Option<&str>, bucket: bool) -> Result<String> {
    let no_s3 = || {
        let message = "Invalid S3 source location: there is no S3 here. Name an http, https or file URL, as 'haar upload' prints it.";
        Error::new("InvalidParameter", message)
    };
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        return Err(if bucket { no_s3() } else { missing("Url") });
    };
    if bucket {
        return Err(crate::error::combination("A disk container has either a Url or a UserBucket."));
    }
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let plain = url.len() <= MAX_URL && !url.contains(|c: char| c.is_control() || c == ' ');
    match scheme {
        "s3" => Err(no_s3()),
        "http" | "https" if plain && !rest.is_empty() && !rest.starts_with('/') => Ok(url.to_owned()),
        "file" if plain && (rest.starts_with('/') || rest.starts_with("localhost/")) => Ok(url.to_owned()),
        // It may have secrets in its query.
        _ => Err(invalid_parameter(
            &format!("{}…", shorten(url.split(['/', '?', '@']).next().unwrap_or_default())),
            "url",
            "It is not an http, https or file URL.",
        )),
    }
}

/// A value of which only some are honoured.
fn only(given: Option<String>, name: &str, honoured: &[&str], known: &[&str]) -> Result<Option<String>> {
    match given {
        Some(value) if known.contains(&value.as_str()) => {
            Err(unsupported(format!("The value '{value}' of the parameter {name} is not supported.")))
        }
        Some(value) if !honoured.contains(&value.as_str()) => {
            let values = honoured.iter().chain(known).copied().collect::<Vec<_>>().join(", ");
            Err(invalid_parameter(&value, name, &format!("Its values are {values}.")))
        }
        other => Ok(other),
    }
}

/// The usage operation is that of Linux; the others are for licences that only AWS gives.
fn usage_operation(given: Option<String>) -> Result<Option<String>> {
    match given {
        Some(value) if value != "RunInstances" => {
            let well_formed = value.strip_prefix("RunInstances:").is_some_and(|code| code.len() == 4);
            Err(if well_formed {
                unsupported(format!("The value '{value}' of the parameter UsageOperation is not supported."))
            } else {
                invalid_parameter(&value, "usageOperation", "It is not a usage operation.")
            })
        }
        other => Ok(other),
    }
}

fn boot_mode(given: Option<model::BootModeValues>) -> Result<Option<BootMode>> {
    let Some(given) = given else { return Ok(None) };
    match given.as_str().parse() {
        Ok(BootMode::UefiPreferred) => Err(invalid_parameter(
            given.as_str(),
            "bootMode",
            "The boot mode uefi-preferred is not supported for importing images.",
        )),
        Ok(mode) => Ok(Some(mode)),
        Err(()) => Err(invalid_parameter(given.as_str(), "bootMode", "There is no such boot mode.")),
    }
}

/// `CancelImportTask`.
pub async fn cancel_import_task(
    handlers: &Handlers,
    ctx: &Context,
    input: model::CancelImportTaskRequest,
) -> Result<model::CancelImportTaskResult> {
    let id = input.import_task_id.filter(|id| !id.is_empty()).ok_or_else(|| missing("ImportTaskId"))?;
    let reason = description(input.cancel_reason)?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let task = by_id(ctx, tx, &id)?;
        if task.state != ImportState::Active {
            let message = format!("The import task '{id}' cannot be canceled: it is '{}'.", task.state);
            return Err(Error::new("IncorrectState", message));
        }
        let message = reason.clone().unwrap_or_else(|| "User canceled".to_owned());
        tx.put(ImportTask { state: ImportState::Deleting, message: Some(message), ..task.clone() });
        Ok(model::CancelImportTaskResult {
            import_task_id: Some(task.id),
            previous_state: Some(task.state.to_string()),
            state: Some(ImportState::Deleting.to_string()),
        })
    })
    .await
}

fn by_id(ctx: &Context, tx: &mut Tx, id: &str) -> Result<ImportTask> {
    let kind = kind(id);
    kind.check(id)?;
    let found = tx.get::<ImportTask>(&ctx.account, &ctx.region, id).ok_or_else(|| kind.missing(id))?;
    Ok(ImportTask::clone(&found))
}

/// `DescribeImportImageTasks`.
pub async fn describe_import_image_tasks(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeImportImageTasksRequest,
) -> Result<model::DescribeImportImageTasksResult> {
    let request =
        Request::new(&input.import_task_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let of_images = |task: &ImportTask| task.image.is_some();
    let snapshot = handlers.store.snapshot();
    let (tasks, next_token) = IMAGE_TASKS.page_where(handlers, ctx, &snapshot, &request, &(), of_images)?;
    let import_image_tasks = tasks.iter().map(|task| image_task(task)).collect();
    Ok(model::DescribeImportImageTasksResult { import_image_tasks, next_token })
}

/// `DescribeImportSnapshotTasks`.
pub async fn describe_import_snapshot_tasks(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeImportSnapshotTasksRequest,
) -> Result<model::DescribeImportSnapshotTasksResult> {
    let request =
        Request::new(&input.import_task_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let of_snapshots = |task: &ImportTask| task.image.is_none();
    let snapshot = handlers.store.snapshot();
    let (tasks, next_token) =
        SNAPSHOT_TASKS.page_where(handlers, ctx, &snapshot, &request, &(), of_snapshots)?;
    let describe = |task: &ImportTask| model::ImportSnapshotTask {
        description: task.description.clone(),
        import_task_id: Some(task.id.clone()),
        snapshot_task_detail: Some(snapshot_task_detail(task)),
        tags: tags::to_api(&task.tags),
    };
    let import_snapshot_tasks = tasks.iter().map(|task| describe(task)).collect();
    Ok(model::DescribeImportSnapshotTasksResult { import_snapshot_tasks, next_token })
}

/// How far a task is; it is told of those under way.
fn progress(task: &ImportTask) -> Option<String> {
    (task.state == ImportState::Active).then(|| task.progress.to_string())
}

/// Bytes in GiB.
#[allow(clippy::cast_precision_loss)] // a disk's size is far from 2^53
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn image_task(task: &ImportTask) -> model::ImportImageTask {
    let image = task.image.clone().unwrap_or_default();
    model::ImportImageTask {
        architecture: image.architecture,
        boot_mode: image.boot_mode.and_then(|mode| mode.as_str().parse().ok()),
        description: task.description.clone(),
        encrypted: Some(task.encryption.is_some()),
        hypervisor: image.hypervisor,
        image_id: task.image_id.clone(),
        import_task_id: Some(task.id.clone()),
        kms_key_id: task.encryption.as_ref().map(haar_records::ec2::Encryption::key_arn),
        license_type: image.license_type,
        platform: image.platform,
        progress: progress(task),
        snapshot_details: snapshot_details(task),
        status: Some(task.state.to_string()),
        status_message: task.message.clone(),
        tags: tags::to_api(&task.tags),
        usage_operation: image.usage_operation,
    }
}

/// The disks of a task that makes an image, or what they are to be found in.
fn snapshot_details(task: &ImportTask) -> Vec<model::SnapshotDetail> {
    let of_disk = |disk: &ImportDisk| {
        let container = task.containers.get(disk.container);
        let done = task.state == ImportState::Completed;
        model::SnapshotDetail {
            description: container.and_then(|container| container.description.clone()),
            device_name: disk.device_name.clone(),
            disk_image_size: Some(gib(disk.file_size)),
            format: Some(disk.format.to_string()),
            progress: (!done).then(|| disk.progress.to_string()),
            snapshot_id: done.then(|| disk.snapshot_id.clone()),
            status: Some(task.state.to_string()),
            status_message: (!done).then(|| {
                if disk.progress == 0 { "pending".to_owned() } else { "downloading/converting".to_owned() }
            }),
            url: container.map(|container| container.url.clone()),
            user_bucket: None,
        }
    };
    let of_container = |container: &ImportContainer| model::SnapshotDetail {
        description: container.description.clone(),
        device_name: container.device_name.clone(),
        disk_image_size: Some(0.0),
        format: container.format.map(|format| format.to_string()),
        url: Some(container.url.clone()),
        ..model::SnapshotDetail::default()
    };
    if task.disks.is_empty() {
        task.containers.iter().map(of_container).collect()
    } else {
        task.disks.iter().map(of_disk).collect()
    }
}

fn snapshot_task_detail(task: &ImportTask) -> model::SnapshotTaskDetail {
    let (container, disk) = (task.containers.first(), task.disks.first());
    let format = disk.map(|disk| disk.format).or_else(|| container?.format);
    model::SnapshotTaskDetail {
        description: container.and_then(|container| container.description.clone()),
        disk_image_size: Some(disk.map_or(0.0, |disk| gib(disk.file_size))),
        encrypted: Some(task.encryption.is_some()),
        format: format.map(|format| format.to_string()),
        kms_key_id: task.encryption.as_ref().map(haar_records::ec2::Encryption::key_arn),
        progress: progress(task),
        snapshot_id: disk
            .filter(|_| task.state == ImportState::Completed)
            .map(|disk| disk.snapshot_id.clone()),
        status: Some(task.state.to_string()),
        status_message: task.message.clone(),
        url: container.map(|container| container.url.clone()),
        user_bucket: None,
    }
}
