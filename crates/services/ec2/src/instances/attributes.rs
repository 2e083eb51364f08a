//! `DescribeInstanceAttribute` and `ModifyInstanceAttribute`.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use haar_api::{Context, Error};
use haar_records::ec2::{Instance, InstanceState, NetworkInterface, Volume};
use haar_store::Tx;

use super::{by_id, describe, run};
use crate::error::{Result, combination, invalid_parameter, invalid_value, missing, shorten, unsupported};
use crate::handlers::Handlers;
use crate::model::{self, InstanceAttributeName as Name};
use crate::{Scope, ids, network_interfaces, security_groups};

/// `DescribeInstanceAttribute`.
pub async fn describe_instance_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeInstanceAttributeRequest,
) -> Result<model::InstanceAttribute> {
    let snapshot = handlers.store.snapshot();
    ids::INSTANCE.check(&input.instance_id)?;
    let instance = snapshot
        .get::<Instance>(&ctx.account, &ctx.region, &input.instance_id)
        .ok_or_else(|| ids::INSTANCE.missing(&input.instance_id))?;
    let primary = || {
        let id = instance.spec.network_interfaces.first()?;
        snapshot.get::<NetworkInterface>(&ctx.account, &ctx.region, id)
    };
    let text = |value: String| Some(model::AttributeValue { value: Some(value) });
    let flag = |value: bool| Some(model::AttributeBooleanValue { value: Some(value) });
    let mut answer =
        model::InstanceAttribute { instance_id: Some(instance.id.clone()), ..Default::default() };
    match input.attribute {
        Name::BlockDeviceMapping => {
            answer.block_device_mappings = describe::block_device_mappings(&snapshot, &instance);
        }
        Name::DisableApiStop => answer.disable_api_stop = flag(instance.spec.disable_api_stop),
        Name::DisableApiTermination => {
            answer.disable_api_termination = flag(instance.spec.disable_api_termination);
        }
        Name::EbsOptimized => answer.ebs_optimized = flag(instance.spec.ebs_optimized),
        Name::EnaSupport => answer.ena_support = flag(false),
        Name::GroupSet => {
            answer.groups =
                primary().map(|eni| network_interfaces::groups(&eni, &snapshot)).unwrap_or_default();
        }
        Name::InstanceInitiatedShutdownBehavior => {
            answer.instance_initiated_shutdown_behavior =
                text(describe::shutdown_behavior(instance.spec.shutdown_behavior));
        }
        Name::InstanceType => answer.instance_type = text(instance.spec.instance_type.clone()),
        Name::RootDeviceName => answer.root_device_name = text(instance.spec.root_device_name.clone()),
        Name::SourceDestCheck => {
            answer.source_dest_check = flag(primary().is_none_or(|eni| eni.source_dest_check));
        }
        Name::UserData => {
            answer.user_data = Some(model::AttributeValue { value: instance.spec.user_data.clone() });
        }
        // Attributes that no instance has a value of.
        Name::EnclaveOptions => answer.enclave_options = Some(model::EnclaveOptions { enabled: Some(false) }),
        Name::Kernel | Name::ProductCodes | Name::Ramdisk | Name::SriovNetSupport => {}
    }
    Ok(answer)
}

/// `ModifyInstanceAttribute`: one attribute, given in its own parameter or by `Attribute` and `Value`.
pub async fn modify_instance_attribute(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ModifyInstanceAttributeRequest,
) -> Result<()> {
    let change = Change::of(&input)?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let instance = by_id(ctx, tx, &input.instance_id)?;
        if instance.status.state == InstanceState::Terminated {
            return Err(Error::new(
                "IncorrectInstanceState",
                format!("The instance '{}' is terminated.", instance.id),
            ));
        }
        change.apply(ctx, tx, instance)
    })
    .await
}

/// A change of one attribute.
enum Change {
    DisableApiStop(bool),
    DisableApiTermination(bool),
    EbsOptimized(bool),
    Groups(Vec<String>),
    InstanceType(String),
    ShutdownBehavior(model::ShutdownBehavior),
    SourceDestCheck(bool),
    UserData(Option<String>),
    DeleteOnTermination(Vec<(String, bool)>),
}

impl Change {
    /// What the request changes.
    fn of(input: &model::ModifyInstanceAttributeRequest) -> Result<Self> {
        let mut changes = Vec::new();
        let flag = |value: &Option<model::AttributeBooleanValue>| value.as_ref().and_then(|v| v.value);
        let text = |value: &Option<model::AttributeValue>| value.as_ref().and_then(|v| v.value.clone());
        changes.extend(flag(&input.disable_api_stop).map(Self::DisableApiStop));
        changes.extend(flag(&input.disable_api_termination).map(Self::DisableApiTermination));
        changes.extend(flag(&input.ebs_optimized).map(Self::EbsOptimized));
        changes.extend(flag(&input.source_dest_check).map(Self::SourceDestCheck));
        changes.extend(text(&input.instance_type).map(Self::InstanceType));
        if let Some(behavior) = text(&input.instance_initiated_shutdown_behavior) {
            changes.push(Self::ShutdownBehavior(parse_behavior(&behavior)?));
        }
        if let Some(data) = &input.user_data {
            let encoded =
                data.value.as_ref().filter(|bytes| !bytes.is_empty()).map(|bytes| BASE64.encode(bytes));
            changes.push(Self::UserData(encoded));
        }
        if !input.groups.is_empty() {
            changes.push(Self::Groups(input.groups.clone()));
        }
        if !input.block_device_mappings.is_empty() {
            changes.push(Self::DeleteOnTermination(device_flags(&input.block_device_mappings)?));
        }
        if let Some(attribute) = input.attribute
            && let Some(change) = Self::of_value(attribute, input.value.as_deref())?
        {
            changes.push(change);
        }
        match (changes.pop(), changes.is_empty()) {
            (Some(change), true) => Ok(change),
            (None, _) => Err(combination("No attributes specified.")),
            (Some(_), false) => Err(combination("Only one attribute can be modified at a time.")),
        }
    }

    /// The change that `Attribute` and `Value` ask for. Without a value, `Attribute` only names what another parameter gives.
    fn of_value(attribute: Name, value: Option<&str>) -> Result<Option<Self>> {
        let Some(value) = value else { return Ok(None) };
        let flag = || match value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(invalid_parameter(value, "value", "It must be true or false.")),
        };
        Ok(Some(match attribute {
            Name::DisableApiStop => Self::DisableApiStop(flag()?),
            Name::DisableApiTermination => Self::DisableApiTermination(flag()?),
            Name::EbsOptimized => Self::EbsOptimized(flag()?),
            Name::InstanceInitiatedShutdownBehavior => Self::ShutdownBehavior(parse_behavior(value)?),
            Name::InstanceType => Self::InstanceType(value.to_owned()),
            Name::SourceDestCheck => Self::SourceDestCheck(flag()?),
            Name::UserData => Self::UserData(Some(value.to_owned()).filter(|value| !value.is_empty())),
            other => return Err(unsupported(format!("The attribute '{other}' cannot be modified."))),
        }))
    }

    fn apply(&self, ctx: &Context, tx: &mut Tx, mut instance: Instance) -> Result<()> {
        match self {
            Self::DisableApiStop(value) => instance.spec.disable_api_stop = *value,
            Self::DisableApiTermination(value) => instance.spec.disable_api_termination = *value,
            Self::EbsOptimized(value) => {
                must_be_stopped(&instance, "ebsOptimized")?;
                instance.spec.ebs_optimized = *value;
            }
            Self::InstanceType(name) => {
                must_be_stopped(&instance, "instanceType")?;
                let hardware = run::known_type(name)
                    .map_err(|error| Error::new("InvalidInstanceAttributeValue", error.message))?;
                if *name != instance.spec.instance_type {
                    // Those of the new type ("CPU options for Amazon EC2 instances", EC2 User Guide).
                    instance.spec.cpu_options = None;
                }
                name.clone_into(&mut instance.spec.instance_type);
                if instance.spec.network_interfaces.len() > hardware.max_network_interfaces as usize {
                    return Err(Error::new(
                        "AttachmentLimitExceeded",
                        format!("The instance has more network interfaces than {name} can have."),
                    ));
                }
            }
            Self::ShutdownBehavior(behavior) => {
                instance.spec.shutdown_behavior = run::shutdown_behavior(*behavior);
            }
            Self::UserData(data) => {
                must_be_stopped(&instance, "userData")?;
                run::check_user_data(data.as_deref())?;
                instance.spec.user_data.clone_from(data);
            }
            Self::Groups(groups) => {
                let mut eni = primary(tx, &instance)?;
                eni.groups = security_groups::resolve(tx, Scope::from(ctx), &eni.vpc_id, groups, &[])?;
                tx.put(eni);
            }
            Self::SourceDestCheck(value) => {
                let mut eni = primary(tx, &instance)?;
                eni.source_dest_check = *value;
                tx.put(eni);
            }
            Self::DeleteOnTermination(flags) => delete_on_termination(tx, &mut instance, flags)?,
        }
        tx.put(instance);
        Ok(())
    }
}

fn delete_on_termination(tx: &mut Tx, instance: &mut Instance, flags: &[(String, bool)]) -> Result<()> {
    for (name, value) in flags {
        let device = instance.spec.block_devices.iter_mut().find(|device| device.device_name == *name);
        let device = device.ok_or_else(|| {
            Error::new(
                "InvalidInstanceAttributeValue",
                format!("No device is currently mapped at {}", shorten(name)),
            )
        })?;
        device.delete_on_termination = *value;
        if let Some(volume) = tx.get::<Volume>(&instance.account, &instance.region, &device.volume_id) {
            let mut volume = Volume::clone(&volume);
            for attachment in &mut volume.attachments {
                attachment.delete_on_termination = *value;
            }
            tx.put(volume);
        }
    }
    Ok(())
}

fn parse_behavior(value: &str) -> Result<model::ShutdownBehavior> {
    value.parse().map_err(|_| {
        invalid_parameter(value, "instanceInitiatedShutdownBehavior", "It must be stop or terminate.")
    })
}

/// Device names with their new `DeleteOnTermination`.
fn device_flags(mappings: &[model::InstanceBlockDeviceMappingSpecification]) -> Result<Vec<(String, bool)>> {
    let flag = |mapping: &model::InstanceBlockDeviceMappingSpecification| {
        let name = mapping.device_name.clone().ok_or_else(|| missing("BlockDeviceMapping.DeviceName"))?;
        let value = mapping.ebs.as_ref().and_then(|ebs| ebs.delete_on_termination);
        // "If no value is specified for DeleteOnTermination, the default is true".
        Ok((name, value.unwrap_or(true)))
    };
    mappings.iter().map(flag).collect()
}

fn must_be_stopped(instance: &Instance, attribute: &str) -> Result<()> {
    if instance.status.state == InstanceState::Stopped {
        return Ok(());
    }
    Err(Error::new(
        "IncorrectInstanceState",
        format!(
            "The instance '{}' is not in the 'stopped' state: its attribute '{attribute}' cannot be modified.",
            instance.id
        ),
    ))
}

/// The primary interface. An instance with several takes changes of groups and checks on the interfaces themselves.
fn primary(tx: &mut Tx, instance: &Instance) -> Result<NetworkInterface> {
    let [id] = instance.spec.network_interfaces.as_slice() else {
        return Err(Error::new(
            "InvalidInstanceID",
            format!(
                "There are multiple interfaces attached to instance '{}'. Please specify an interface ID for the operation instead.",
                instance.id
            ),
        ));
    };
    let eni = tx.get::<NetworkInterface>(&instance.account, &instance.region, id);
    let eni = eni
        .ok_or_else(|| invalid_value(format!("The instance '{}' has no network interface.", instance.id)))?;
    Ok(NetworkInterface::clone(&eni))
}
