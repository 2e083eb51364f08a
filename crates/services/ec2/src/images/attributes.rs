//! `DescribeImageAttribute`, `ModifyImageAttribute` and `ResetImageAttribute`.

use haar_api::timestamp::iso8601;
use haar_api::{Context, Error};
use haar_records::ec2::{Image, LaunchPermission};

use super::{check_owner, describe, own};
use crate::error::{Result, combination, invalid_parameter, invalid_value, missing, shorten, unsupported};
use crate::handlers::Handlers;
use crate::model::{self, ImageAttributeName as Name};
use crate::{Scope, ids};

/// The longest description (`ImageDescriptionRequest` of the model).
const MAX_DESCRIPTION: usize = 255;

/// `DescribeImageAttribute`.
pub async fn describe_image_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeImageAttributeRequest,
) -> Result<model::ImageAttribute> {
    ids::IMAGE.check(&input.image_id)?;
    let snapshot = handlers.store.snapshot();
    let image = super::find(&snapshot, Scope::from(ctx), &input.image_id)
        .ok_or_else(|| ids::IMAGE.missing(&input.image_id))?;
    check_owner(Scope::from(ctx), &image)?;
    let text = |value: Option<String>| Some(model::AttributeValue { value });
    let mut answer = model::ImageAttribute { image_id: Some(image.id.clone()), ..Default::default() };
    match input.attribute {
        Name::BlockDeviceMapping => answer.block_device_mappings = describe::block_devices(&image),
        Name::BootMode => {
            let mode = describe::boot_mode(&image.boot).map(|mode| mode.to_string());
            answer.boot_mode = text(mode);
        }
        Name::DeregistrationProtection => {
            answer.deregistration_protection = text(Some(describe::protection(&image, ctx.now).to_owned()));
        }
        Name::Description => answer.description = text(image.description.clone()),
        Name::ImdsSupport => answer.imds_support = text(image.imds_v2.then(|| "v2.0".to_owned())),
        Name::LastLaunchedTime => {
            answer.last_launched_time = text(image.last_launched.map(|at| iso8601(at, true)));
        }
        Name::LaunchPermission => answer.launch_permissions = launch_permissions(&image),
        // Attributes that no image has a value of.
        Name::Kernel => answer.kernel_id = text(None),
        Name::Ramdisk => answer.ramdisk_id = text(None),
        Name::SriovNetSupport => answer.sriov_net_support = text(None),
        Name::TpmSupport => answer.tpm_support = text(None),
        Name::UefiData => answer.uefi_data = text(None),
        Name::ProductCodes => {}
    }
    Ok(answer)
}

fn launch_permissions(image: &Image) -> Vec<model::LaunchPermission> {
    let all = image.is_public().then_some(model::LaunchPermission {
        group: Some(model::PermissionGroup::All),
        ..Default::default()
    });
    let accounts = image
        .launch_permission
        .accounts
        .iter()
        .map(|account| model::LaunchPermission { user_id: Some(account.clone()), ..Default::default() });
    all.into_iter().chain(accounts).collect()
}

/// `ModifyImageAttribute`: one attribute, given in its own parameter or by `Attribute` and its values.
pub async fn modify_image_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ModifyImageAttributeRequest,
) -> Result<()> {
    let change = Change::of(&input)?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut image = own(tx, Scope::from(ctx), &input.image_id)?;
        match &change {
            Change::Description(description) => {
                image.description = Some(description.clone()).filter(|description| !description.is_empty());
            }
            Change::ImdsV2 => image.imds_v2 = true,
            Change::Permission(changes) => {
                if changes.iter().any(|change| change.given)
                    && image.devices.iter().any(|device| device.encrypted)
                {
                    // Nobody else's volumes could be encrypted with it.
                    let message = "Encrypted snapshots with EBS default key cannot be shared";
                    return Err(Error::new("OperationNotPermitted", message));
                }
                for change in changes {
                    change.apply(&mut image.launch_permission);
                }
            }
        }
        tx.put(image);
        Ok(())
    })
    .await
}

/// A change of one attribute.
#[derive(Debug)]
enum Change {
    Description(String),
    /// What cannot be taken back ("Configure the AMI", EC2 User Guide).
    ImdsV2,
    Permission(Vec<Grant>),
}

/// A launch permission that is given or taken.
#[derive(Debug)]
struct Grant {
    given: bool,
    /// Nobody in particular: everyone.
    account: Option<String>,
}

impl Grant {
    fn apply(&self, permission: &mut LaunchPermission) {
        match (&self.account, self.given) {
            (None, given) => permission.all = given,
            (Some(account), true) => drop(permission.accounts.insert(account.clone())),
            (Some(account), false) => drop(permission.accounts.remove(account)),
        }
    }

    fn of(permission: &model::LaunchPermission, given: bool) -> Result<Self> {
        match (permission.group, permission.user_id.as_deref()) {
            (Some(_), None) => Ok(Self { given, account: None }),
            (None, Some(account)) => Ok(Self { given, account: Some(check_account(account)?) }),
            _ => Err(combination("A launch permission has either a Group or a UserId")),
        }
    }
}

fn check_account(account: &str) -> Result<String> {
    if account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(account.to_owned());
    }
    let message = format!("Invalid attribute item value \"{}\" for userId item type.", shorten(account));
    Err(Error::new("InvalidAMIAttributeItemValue", message))
}

impl Change {
    /// What the request changes.
    fn of(input: &model::ModifyImageAttributeRequest) -> Result<Self> {
        let text = |value: &Option<model::AttributeValue>| {
            value.as_ref().map(|v| v.value.clone().unwrap_or_default())
        };
        let mut changes = Vec::new();
        if let Some(description) = text(&input.description) {
            changes.push(Self::description(description)?);
        }
        if let Some(support) = text(&input.imds_support) {
            changes.push(Self::imds_support(&support)?);
        }
        if let Some(permission) = &input.launch_permission {
            let given = permission.add.iter().map(|add| Grant::of(add, true));
            let taken = permission.remove.iter().map(|remove| Grant::of(remove, false));
            changes.push(Self::Permission(given.chain(taken).collect::<Result<_>>()?));
        }
        match input.attribute.as_deref() {
            None | Some("") => {
                if input.value.is_some() || !input.user_ids.is_empty() || !input.user_groups.is_empty() {
                    return Err(missing("Attribute"));
                }
            }
            // Without values, `Attribute` only names what another parameter gives.
            Some(attribute) => changes.extend(Self::of_attribute(attribute, input)?),
        }
        match (changes.pop(), changes.is_empty()) {
            (Some(Self::Permission(changes)), true) if changes.is_empty() => {
                Err(combination("No launch permission is to be added or removed."))
            }
            (Some(change), true) => Ok(change),
            (None, _) => Err(combination("No attributes specified.")),
            (Some(_), false) => Err(combination("Only one attribute can be modified at a time.")),
        }
    }

    fn of_attribute(attribute: &str, input: &model::ModifyImageAttributeRequest) -> Result<Option<Self>> {
        match attribute {
            "description" => input.value.clone().map(Self::description).transpose(),
            "imdsSupport" => input.value.as_deref().map(Self::imds_support).transpose(),
            "launchPermission" => {
                if input.user_ids.is_empty() && input.user_groups.is_empty() {
                    return Ok(None);
                }
                let given = match input.operation_type {
                    Some(model::OperationType::Add) => true,
                    Some(model::OperationType::Remove) => false,
                    None => return Err(missing("OperationType")),
                };
                let mut changes = Vec::new();
                for group in &input.user_groups {
                    if group != "all" {
                        let message = format!(
                            "Invalid attribute item value \"{}\" for group item type.",
                            shorten(group)
                        );
                        return Err(Error::new("InvalidAMIAttributeItemValue", message));
                    }
                    changes.push(Grant { given, account: None });
                }
                for account in &input.user_ids {
                    changes.push(Grant { given, account: Some(check_account(account)?) });
                }
                Ok(Some(Self::Permission(changes)))
            }
            known if known.parse::<Name>().is_ok() => {
                Err(unsupported(format!("The attribute '{known}' cannot be modified.")))
            }
            other => Err(invalid_parameter(other, "attribute", "There is no such attribute.")),
        }
    }

    fn description(description: String) -> Result<Self> {
        if description.chars().count() > MAX_DESCRIPTION {
            return Err(invalid_value(format!(
                "The description has more than {MAX_DESCRIPTION} characters."
            )));
        }
        Ok(Self::Description(description))
    }

    fn imds_support(value: &str) -> Result<Self> {
        match value {
            "v2.0" => Ok(Self::ImdsV2),
            _ => Err(invalid_parameter(value, "imdsSupport", "It must be v2.0.")),
        }
    }
}

/// `ResetImageAttribute`: takes all launch permissions away.
pub async fn reset_image_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ResetImageAttributeRequest,
) -> Result<()> {
    let model::ResetImageAttributeName::LaunchPermission = input.attribute;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let image = own(tx, Scope::from(ctx), &input.image_id)?;
        tx.put(Image { launch_permission: LaunchPermission::default(), ..image });
        Ok(())
    })
    .await
}
