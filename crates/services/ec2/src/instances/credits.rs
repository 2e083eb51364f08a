//! CPU credits of burstable instances (User Guide, "Burstable performance instances"). Guests here get the vCPUs that the
//! machine has to give and no credits are counted, which is what AWS calls `unlimited`; `standard` would throttle and is refused.

use haar_api::{Context, Error};
use haar_core::FilterTable;
use haar_records::ec2::{Instance, InstanceState, InstanceType, instance_type};

use crate::describe::{Kind, Request, ids_or_pages};
use crate::error::{Result, combination, invalid_value, missing, shorten, unsupported};
use crate::handlers::Handlers;
use crate::{ids, model};

/// Checks what a launch asks for.
///
/// # Errors
/// `InvalidParameterCombination` for an instance type without credits; as [`check`].
pub(super) fn check_launch(
    input: Option<&model::CreditSpecificationRequest>,
    instance_type: &InstanceType,
) -> Result<()> {
    let Some(input) = input else { return Ok(()) };
    if !instance_type.burstable {
        return Err(combination(format!(
            "The parameter CreditSpecification is not supported for instance type {}.",
            instance_type.name
        )));
    }
    check("CreditSpecification.CpuCredits", &input.cpu_credits)
}

/// # Errors
/// `InvalidParameterValue`; `UnsupportedOperation` for `standard`.
fn check(parameter: &str, credits: &str) -> Result<()> {
    match credits {
        "unlimited" => Ok(()),
        "standard" => {
            Err(unsupported(format!("The value 'standard' of the parameter {parameter} is not supported.")))
        }
        other => Err(invalid_value(format!(
            "Invalid value '{}' for {parameter}. Allowed values are: standard, unlimited.",
            shorten(other)
        ))),
    }
}

fn has_credits(instance: &Instance) -> bool {
    instance_type(&instance.spec.instance_type).is_some_and(|t| t.burstable)
}

fn not_supported(instance: &Instance) -> Error {
    Error::new(
        "InstanceCreditSpecification.NotSupported",
        format!(
            "The instance '{}' of type '{}' does not use CPU credits.",
            instance.id, instance.spec.instance_type
        ),
    )
}

const KIND: Kind<Instance, ()> = Kind {
    id: ids::INSTANCE,
    filters: FilterTable::<Instance>::new(&[("instance-id", |i, (), probe| probe.value(&i.id))]),
    indexes: &[],
};

/// `DescribeInstanceCreditSpecifications`.
pub async fn describe_instance_credit_specifications(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeInstanceCreditSpecificationsRequest,
) -> Result<model::DescribeInstanceCreditSpecificationsResult> {
    ids_or_pages("instancesSet", &input.instance_ids, input.max_results)?;
    let snapshot = handlers.store.snapshot();
    let request =
        Request::new(&input.instance_ids, &input.filters, input.max_results, input.next_token.as_deref());
    let asked = |instance: &Instance| !input.instance_ids.is_empty() || has_credits(instance);
    let (instances, next_token) = KIND.page_where(handlers, ctx, &snapshot, &request, &(), asked)?;
    if let Some(other) = instances.iter().find(|instance| !has_credits(instance)) {
        return Err(not_supported(other));
    }
    let specification = |id: String| model::InstanceCreditSpecification {
        instance_id: Some(id),
        cpu_credits: Some("unlimited".to_owned()),
    };
    Ok(model::DescribeInstanceCreditSpecificationsResult {
        instance_credit_specifications: instances.into_iter().map(|i| specification(i.id.clone())).collect(),
        next_token,
    })
}

/// `ModifyInstanceCreditSpecification`: `unlimited` is what every instance with credits has.
pub async fn modify_instance_credit_specification(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ModifyInstanceCreditSpecificationRequest,
) -> Result<model::ModifyInstanceCreditSpecificationResult> {
    if input.instance_credit_specifications.is_empty() {
        return Err(missing("InstanceCreditSpecification"));
    }
    for asked in &input.instance_credit_specifications {
        let credits = asked.cpu_credits.as_deref();
        let credits = credits.ok_or_else(|| missing("InstanceCreditSpecification.CpuCredits"))?;
        check("InstanceCreditSpecification.CpuCredits", credits)?;
    }
    let snapshot = handlers.store.snapshot();
    let mut result = model::ModifyInstanceCreditSpecificationResult::default();
    for asked in input.instance_credit_specifications {
        let refused = match ids::INSTANCE.check(&asked.instance_id) {
            Err(error) => Some(error.into()),
            Ok(()) => match snapshot.get::<Instance>(&ctx.account, &ctx.region, &asked.instance_id) {
                None => Some(ids::INSTANCE.missing(&asked.instance_id).into()),
                Some(instance) if !has_credits(&instance) => Some(not_supported(&instance)),
                Some(instance) if instance.status.state == InstanceState::Terminated => {
                    Some(super::wrong_state(&instance, "modified"))
                }
                Some(_) => None,
            },
        };
        match refused {
            None => result.successful_instance_credit_specifications.push(
                model::SuccessfulInstanceCreditSpecificationItem { instance_id: Some(asked.instance_id) },
            ),
            Some(error) => result.unsuccessful_instance_credit_specifications.push(
                model::UnsuccessfulInstanceCreditSpecificationItem {
                    instance_id: Some(asked.instance_id),
                    error: Some(model::UnsuccessfulInstanceCreditSpecificationItemError {
                        code: error.code.parse().ok(),
                        message: Some(error.message),
                    }),
                },
            ),
        }
    }
    Ok(result)
}
