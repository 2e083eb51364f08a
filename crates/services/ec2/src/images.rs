//! Machine images.

use haar_api::Context;
use haar_core::FilterTable;
use haar_records::ec2::{Image, ImageBoot, ImageState};
use haar_records::{GLOBAL_ACCOUNT, GLOBAL_REGION};
use haar_store::{Entry, Tx};

use crate::describe::parse;
use crate::error::{Result, unsupported};
use crate::handlers::Handlers;
use crate::{ids, model, tags};

/// The image with this id, if instances can be launched from it.
///
/// # Errors
/// `InvalidAMIID.Malformed`, `InvalidAMIID.NotFound`, `InvalidAMIID.Unavailable`.
pub fn launchable(tx: &mut Tx, id: &str) -> Result<Image> {
    ids::IMAGE.check(id)?;
    let image = tx.get::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION, id).ok_or_else(|| ids::IMAGE.missing(id))?;
    match image.state {
        ImageState::Available => Ok(Image::clone(&image)),
        ImageState::Deregistered => Err(haar_api::Error::new(
            "InvalidAMIID.Unavailable",
            format!("The image ID '{id}' is no longer available"),
        )),
    }
}

/// How the size and the time of an image are written in filters and answers.
const CREATION_DATE: &[time::format_description::BorrowedFormatItem<'static>] =
    time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

fn creation_date(image: &Image) -> Option<String> {
    image.creation_date.format(CREATION_DATE).ok()
}

const FILTERS: FilterTable<Image> = FilterTable::<Image>::new(&[
    ("architecture", |image, (), probe| probe.value(&image.architecture)),
    ("block-device-mapping.delete-on-termination", |_, (), probe| probe.value("true")),
    ("block-device-mapping.device-name", |image, (), probe| probe.value(&image.root_device_name)),
    ("block-device-mapping.encrypted", |_, (), probe| probe.value("false")),
    ("block-device-mapping.snapshot-id", |_, (), _| ()),
    ("block-device-mapping.volume-size", |image, (), probe| probe.display(image.root_size_gib)),
    ("block-device-mapping.volume-type", |_, (), probe| probe.value("gp2")),
    ("boot-mode", |image, (), probe| {
        probe.values(boot_mode(&image.boot).as_ref().map(|mode| mode.as_str()));
    }),
    ("creation-date", |image, (), probe| probe.values(creation_date(image).as_deref())),
    ("description", |image, (), probe| probe.values(image.description.as_deref())),
    ("ena-support", |_, (), probe| probe.value("false")),
    ("free-tier-eligible", |_, (), probe| probe.value("false")),
    ("hypervisor", |_, (), probe| probe.value("xen")),
    ("image-id", |image, (), probe| probe.value(&image.id)),
    ("image-type", |_, (), probe| probe.value("machine")),
    ("is-public", |_, (), probe| probe.value("true")),
    ("kernel-id", |_, (), _| ()),
    ("manifest-location", |image, (), probe| probe.value(&location(image))),
    ("name", |image, (), probe| probe.value(&image.name)),
    ("owner-alias", |_, (), probe| probe.value("self")),
    ("owner-id", |image, (), probe| probe.value(&image.owner)),
    ("platform", |_, (), _| ()),
    ("product-code", |_, (), _| ()),
    ("product-code.type", |_, (), _| ()),
    ("ramdisk-id", |_, (), _| ()),
    ("root-device-name", |image, (), probe| probe.value(&image.root_device_name)),
    ("root-device-type", |_, (), probe| probe.value("ebs")),
    ("state", |image, (), probe| probe.value(image.state.as_str())),
    ("state-reason-code", |_, (), _| ()),
    ("state-reason-message", |_, (), _| ()),
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
    if input.executable_users.iter().any(|user| user != "all" && user != "self") {
        return Err(unsupported(
            "Of the values of the parameter ExecutableBy, only 'all' and 'self' are supported.",
        ));
    }
    let snapshot = handlers.store.snapshot();
    let filters = parse(&FILTERS, &input.filters)?;
    let parameters = haar_core::Fingerprint::of(&(&input.image_ids, &input.owners, filters.raw()));
    let page = handlers.paginator.page(
        ctx,
        &haar_core::PageRequest {
            parameters,
            max_results: input.max_results,
            next_token: input.next_token.as_deref(),
            limits: 1..=1000,
        },
    )?;
    for id in &input.image_ids {
        ids::IMAGE.check(id)?;
    }
    let unknown: Vec<_> = input
        .image_ids
        .iter()
        .filter(|id| snapshot.get::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION, id).is_none())
        .collect();
    if !unknown.is_empty() {
        return Err(ids::IMAGE.missing_all(&unknown).into());
    }
    let wanted = |image: &&Entry<Image>| {
        let owned = |owner: &String| *owner == image.owner || (owner == "self" && image.owner == ctx.account);
        (input.image_ids.is_empty() || input.image_ids.contains(&image.id))
            && (input.owners.is_empty() || input.owners.iter().any(owned))
            && filters.matches(image, &())
    };
    let matching = snapshot.list::<Image>(GLOBAL_ACCOUNT, GLOBAL_REGION).filter(wanted);
    let (images, next_token) = page.take(matching, |image| &image.id);
    Ok(model::DescribeImagesResult {
        images: images.into_iter().map(|image| to_api(image)).collect(),
        next_token,
    })
}

fn to_api(image: &Image) -> model::Image {
    model::Image {
        image_id: Some(image.id.clone()),
        image_location: Some(location(image)),
        image_type: Some(model::ImageTypeValues::Machine),
        name: Some(image.name.clone()),
        description: image.description.clone(),
        architecture: Some(model::ArchitectureValues::X86_64),
        creation_date: creation_date(image),
        owner_id: Some(image.owner.clone()),
        public: Some(true),
        state: Some(match image.state {
            ImageState::Available => model::ImageState::Available,
            ImageState::Deregistered => model::ImageState::Deregistered,
        }),
        hypervisor: Some(model::HypervisorType::Xen),
        virtualization_type: Some(model::VirtualizationType::Hvm),
        root_device_name: Some(image.root_device_name.clone()),
        root_device_type: Some(model::DeviceType::Ebs),
        ena_support: Some(false),
        platform_details: Some("Linux/UNIX".to_owned()),
        usage_operation: Some("RunInstances".to_owned()),
        boot_mode: boot_mode(&image.boot),
        block_device_mappings: vec![model::BlockDeviceMapping {
            device_name: Some(image.root_device_name.clone()),
            ebs: Some(model::EbsBlockDevice {
                delete_on_termination: Some(true),
                volume_size: i32::try_from(image.root_size_gib).ok(),
                volume_type: Some(model::VolumeType::Gp2),
                encrypted: Some(false),
                ..Default::default()
            }),
            ..Default::default()
        }],
        tags: tags::to_api(&image.tags),
    }
}

/// `BootMode` of an image that boots through firmware.
pub(crate) fn boot_mode(boot: &ImageBoot) -> Option<model::BootModeValues> {
    match boot {
        ImageBoot::Kernel => None,
        ImageBoot::Firmware(mode) => mode.as_str().parse().ok(),
    }
}
