//! `DescribeImages`.

use haar_api::Context;
use haar_api::timestamp::iso8601;
use haar_core::FilterTable;
use haar_records::ec2::{DeregistrationProtection, Image, ImageBoot, ImageDevice, ImageState, VolumeType};
use haar_store::{Entry, Snapshot};
use time::OffsetDateTime;

use super::{find, sees};
use crate::describe::{ids_or_pages, parse};
use crate::error::Result;
use crate::handlers::Handlers;
use crate::{Scope, ids, model, tags};

/// The devices of an image's instances. An image of the library has its root disk, which is no snapshot.
pub(crate) fn devices(image: &Image) -> Vec<ImageDevice> {
    if !image.devices.is_empty() {
        return image.devices.clone();
    }
    vec![ImageDevice {
        device_name: image.root_device_name.clone(),
        snapshot_id: None,
        size_gib: image.root_size_gib,
        volume_type: VolumeType::Gp2,
        iops: None,
        throughput: None,
        delete_on_termination: true,
        encrypted: false,
    }]
}

const FILTERS: FilterTable<Image> = FilterTable::<Image>::new(&[
    ("architecture", |image, (), probe| probe.value(&image.architecture)),
    ("block-device-mapping.delete-on-termination", |image, (), probe| {
        devices(image).iter().for_each(|device| probe.display(device.delete_on_termination));
    }),
    ("block-device-mapping.device-name", |image, (), probe| {
        devices(image).iter().for_each(|device| probe.value(&device.device_name));
    }),
    ("block-device-mapping.encrypted", |image, (), probe| {
        devices(image).iter().for_each(|device| probe.display(device.encrypted));
    }),
    ("block-device-mapping.snapshot-id", |image, (), probe| {
        probe.values(image.devices.iter().filter_map(|device| device.snapshot_id.as_deref()));
    }),
    ("block-device-mapping.volume-size", |image, (), probe| {
        devices(image).iter().for_each(|device| probe.display(device.size_gib));
    }),
    ("block-device-mapping.volume-type", |image, (), probe| {
        devices(image).iter().for_each(|device| probe.value(device.volume_type.as_str()));
    }),
    ("boot-mode", |image, (), probe| {
        probe.values(boot_mode(&image.boot).as_ref().map(|mode| mode.as_str()));
    }),
    ("creation-date", |image, (), probe| probe.value(&iso8601(image.creation_date, true))),
    ("description", |image, (), probe| probe.values(image.description.as_deref())),
    ("ena-support", |_, (), probe| probe.value("false")),
    ("free-tier-eligible", |_, (), probe| probe.value("false")),
    ("hypervisor", |_, (), probe| probe.value("xen")),
    ("image-allowed", |_, (), probe| probe.value("true")),
    ("image-id", |image, (), probe| probe.value(&image.id)),
    ("image-type", |_, (), probe| probe.value("machine")),
    ("image-watermark.source-image-creation-time", |_, (), _| ()),
    ("image-watermark.source-image-id", |_, (), _| ()),
    ("image-watermark.source-image-region", |_, (), _| ()),
    ("image-watermark.watermark-creation-time", |_, (), _| ()),
    ("image-watermark.watermark-key", |_, (), _| ()),
    ("instance-type-specification.supported-instance-type", |_, (), _| ()),
    ("instance-type-specification.unsupported-instance-type", |_, (), _| ()),
    ("is-public", |image, (), probe| probe.display(image.is_public())),
    ("kernel-id", |_, (), _| ()),
    ("manifest-location", |image, (), probe| probe.value(&location(image))),
    ("name", |image, (), probe| probe.value(&image.name)),
    ("owner-alias", |_, (), _| ()),
    ("owner-id", |image, (), probe| probe.value(&image.owner)),
    ("platform", |_, (), _| ()),
    ("product-code", |_, (), _| ()),
    ("product-code.type", |_, (), _| ()),
    ("public-ssm-parameter-name", |_, (), _| ()),
    ("ramdisk-id", |_, (), _| ()),
    ("root-device-name", |image, (), probe| probe.value(&image.root_device_name)),
    ("root-device-type", |_, (), probe| probe.value("ebs")),
    ("scan-result.critical-fix-available-since", |_, (), _| ()),
    ("scan-result.finding-scan-date", |_, (), _| ()),
    ("scan-result.high-fix-available-since", |_, (), _| ()),
    ("scan-result.highest-finding-severity-label", |_, (), _| ()),
    ("scan-result.informational-fix-available-since", |_, (), _| ()),
    ("scan-result.low-fix-available-since", |_, (), _| ()),
    ("scan-result.medium-fix-available-since", |_, (), _| ()),
    ("source-image-id", |image, (), probe| {
        probe.values(image.copied_from.as_ref().map(|(id, _)| id.as_str()));
    }),
    ("source-image-region", |image, (), probe| {
        probe.values(image.copied_from.as_ref().map(|(_, region)| region.as_str()));
    }),
    ("source-instance-id", |image, (), probe| probe.values(image.source_instance_id.as_deref())),
    ("state", |image, (), probe| probe.value(image.state.as_str())),
    ("state-reason-code", |image, (), probe| {
        probe.values(image.state_reason.as_ref().map(|reason| reason.code.as_str()));
    }),
    ("state-reason-message", |image, (), probe| {
        probe.values(image.state_reason.as_ref().map(|reason| reason.message.as_str()));
    }),
    ("sriov-net-support", |_, (), _| ()),
    ("virtualization-type", |_, (), probe| probe.value("hvm")),
])
.with_tags(|image| &image.tags);

fn location(image: &Image) -> String {
    format!("{}/{}", image.owner, image.name)
}

/// `DescribeImages`.
pub async fn describe_images(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeImagesRequest,
) -> Result<model::DescribeImagesResult> {
    ids_or_pages("imagesSet", &input.image_ids, input.max_results)?;
    let snapshot = handlers.store.snapshot();
    let filters = parse(&FILTERS, &input.filters)?;
    let flags = (&input.executable_users, input.include_deprecated, input.include_disabled);
    let parameters = || haar_core::Fingerprint::of(&(&input.image_ids, &input.owners, filters.raw(), flags));
    let page = handlers.paginator.page(
        ctx,
        &haar_core::PageRequest {
            parameters: &parameters,
            max_results: input.max_results,
            next_token: input.next_token.as_deref(),
            limits: 1..=1000,
        },
    )?;
    let scope = Scope::from(ctx);
    let mut images = if input.image_ids.is_empty() {
        snapshot.list_all::<Image>().filter(|image| sees(scope, image)).cloned().collect()
    } else {
        by_ids(&snapshot, scope, &input.image_ids)?
    };
    images.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    images.dedup_by(|a, b| a.id == b.id);
    let wanted = |image: &&Entry<Image>| {
        let owned = |owner: &String| *owner == image.owner || (owner == "self" && image.owner == ctx.account);
        let disabled = image.state == ImageState::Disabled && input.include_disabled != Some(true);
        // Its owner sees a deprecated image nevertheless, and so does who knows its id.
        let deprecated = image.deprecate_at.is_some_and(|at| at <= ctx.now)
            && input.include_deprecated != Some(true)
            && image.owner != ctx.account
            && input.image_ids.is_empty();
        !disabled
            && !deprecated
            && (input.owners.is_empty() || input.owners.iter().any(owned))
            && (input.executable_users.is_empty()
                || input.executable_users.iter().any(|user| is_executable_by(ctx, image, user)))
            && filters.matches(image, &())
    };
    let (images, next_token) = page.take(images.iter().filter(wanted), |image| &image.id);
    Ok(model::DescribeImagesResult {
        images: images.into_iter().map(|image| to_api(ctx, image)).collect(),
        next_token,
    })
}

fn by_ids(snapshot: &Snapshot, scope: Scope<'_>, wanted: &[String]) -> Result<Vec<Entry<Image>>> {
    for id in wanted {
        ids::IMAGE.check(id)?;
    }
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    for id in wanted {
        match find(snapshot, scope, id) {
            Some(image) => found.push(image),
            None => unknown.push(id),
        }
    }
    if unknown.is_empty() { Ok(found) } else { Err(ids::IMAGE.missing_all(&unknown).into()) }
}

/// Whether a user of the parameter `ExecutableUsers` may launch an image because it is shared: with everyone (`all`) or with an account.
fn is_executable_by(ctx: &Context, image: &Image, user: &str) -> bool {
    match user {
        "all" => image.is_public(),
        "self" => image.launch_permission.accounts.contains(&ctx.account),
        account => image.launch_permission.accounts.contains(account),
    }
}

fn to_api(ctx: &Context, image: &Image) -> model::Image {
    let own = image.owner == ctx.account;
    model::Image {
        image_id: Some(image.id.clone()),
        image_location: Some(location(image)),
        image_type: Some(model::ImageTypeValues::Machine),
        name: Some(image.name.clone()),
        description: image.description.clone(),
        architecture: Some(model::ArchitectureValues::X86_64),
        creation_date: Some(iso8601(image.creation_date, true)),
        owner_id: Some(image.owner.clone()),
        public: Some(image.is_public()),
        state: Some(match image.state {
            ImageState::Pending => model::ImageState::Pending,
            ImageState::Available => model::ImageState::Available,
            ImageState::Failed => model::ImageState::Failed,
            ImageState::Disabled => model::ImageState::Disabled,
            ImageState::Deregistered => model::ImageState::Deregistered,
        }),
        state_reason: image.state_reason.as_ref().map(|reason| model::StateReason {
            code: Some(reason.code.clone()),
            message: Some(reason.message.clone()),
        }),
        hypervisor: Some(model::HypervisorType::Xen),
        virtualization_type: Some(model::VirtualizationType::Hvm),
        root_device_name: Some(image.root_device_name.clone()),
        root_device_type: Some(model::DeviceType::Ebs),
        ena_support: Some(false),
        platform_details: Some("Linux/UNIX".to_owned()),
        usage_operation: Some("RunInstances".to_owned()),
        boot_mode: boot_mode(&image.boot),
        block_device_mappings: block_devices(image),
        source_instance_id: image.source_instance_id.clone().filter(|_| own),
        source_image_id: image.copied_from.as_ref().map(|(id, _)| id.clone()),
        source_image_region: image.copied_from.as_ref().map(|(_, region)| region.clone()),
        deprecation_time: image.deprecate_at.map(|at| iso8601(at, true)),
        imds_support: image.imds_v2.then_some(model::ImdsSupportValues::V2_0),
        last_launched_time: image.last_launched.filter(|_| own).map(|at| iso8601(at, true)),
        deregistration_protection: Some(protection(image, ctx.now).to_owned()).filter(|_| own),
        // Tags are their owner's.
        tags: if own { tags::to_api(&image.tags) } else { Vec::new() },
    }
}

/// The device mappings of an image as answers have them.
pub(super) fn block_devices(image: &Image) -> Vec<model::BlockDeviceMapping> {
    let number = |number: Option<u32>| number.and_then(|number| i32::try_from(number).ok());
    let mapping = |device: ImageDevice| model::BlockDeviceMapping {
        device_name: Some(device.device_name),
        ebs: Some(model::EbsBlockDevice {
            delete_on_termination: Some(device.delete_on_termination),
            volume_size: i32::try_from(device.size_gib).ok(),
            volume_type: device.volume_type.as_str().parse().ok(),
            iops: number(device.iops),
            throughput: number(device.throughput),
            snapshot_id: device.snapshot_id,
            encrypted: Some(device.encrypted),
            kms_key_id: None,
        }),
        ..Default::default()
    };
    devices(image).into_iter().map(mapping).collect()
}

/// `DeregistrationProtection` as the API writes it.
pub(super) fn protection(image: &Image, now: OffsetDateTime) -> &'static str {
    match image.protection {
        DeregistrationProtection::Enabled { cooldown: true } => "enabled-with-cooldown",
        DeregistrationProtection::Enabled { cooldown: false } => "enabled-without-cooldown",
        DeregistrationProtection::Until(end) if now < end => "enabled-with-cooldown",
        DeregistrationProtection::Until(_) | DeregistrationProtection::Disabled => "disabled",
    }
}

/// `BootMode` of what boots through firmware.
pub(crate) fn boot_mode(boot: &ImageBoot) -> Option<model::BootModeValues> {
    match boot {
        ImageBoot::Kernel => None,
        ImageBoot::Firmware(mode) => mode.as_str().parse().ok(),
    }
}
