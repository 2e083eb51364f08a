//! Instance profiles of instances: which role a guest gets credentials of from its metadata.
//!
//! An instance's record says which profile it has; which role that is, and whether EC2 may assume it, is found when the guest asks.

use haar_api::{Context, Error};
use haar_core::{Fingerprint, PageRequest, new_id};
use haar_records::ec2::{Instance, InstanceProfileAssociation, InstanceState};
use haar_records::iam::{InstanceProfile, REGION, name_id};
use haar_store::{Entry, Snapshot, Tx};

use super::by_id;
use crate::describe;
use crate::error::{Result, combination, invalid_parameter, invalid_value, missing, shorten};
use crate::handlers::Handlers;
use crate::model;

/// The instance profile of an account that a request names, by its ARN or its name.
#[must_use]
pub fn find(snapshot: &Snapshot, account: &str, named: &str) -> Option<Entry<InstanceProfile>> {
    let arn = named.strip_prefix("arn:").map(|_| named);
    let name = if arn.is_some() { named.rsplit('/').next().unwrap_or_default() } else { named };
    let found = snapshot.get::<InstanceProfile>(account, REGION, &name_id(name))?;
    let fits = arn.map_or(found.name == name, |arn| found.arn() == arn);
    fits.then_some(found)
}

/// The instance profile that a request names; none where it names none.
///
/// # Errors
/// `InvalidParameterCombination` for a name with an ARN, `InvalidParameterValue` for a profile that is not there or has no role.
pub fn named(
    snapshot: &Snapshot,
    account: &str,
    specification: &model::IamInstanceProfileSpecification,
) -> Result<Option<InstanceProfile>> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (parameter, what, named) = match (given(&specification.arn), given(&specification.name)) {
        (Some(_), Some(_)) => {
            return Err(combination(
                "The parameter 'iamInstanceProfile.name' may not be used in combination with 'iamInstanceProfile.arn'",
            ));
        }
        (Some(arn), None) => ("iamInstanceProfile.arn", "ARN", arn),
        (None, Some(name)) => ("iamInstanceProfile.name", "name", name),
        (None, None) => return Ok(None),
    };
    let invalid = || invalid_parameter(&named, parameter, &format!("Invalid IAM Instance Profile {what}"));
    let is_arn = named.starts_with("arn:");
    let found = find(snapshot, account, &named).filter(|_| is_arn == (what == "ARN")).ok_or_else(invalid)?;
    if found.role.is_none() {
        let named = shorten(&named);
        return Err(invalid_value(format!("IAM Instance Profile \"{named}\" has no associated IAM Roles")));
    }
    Ok(Some(InstanceProfile::clone(&found)))
}

/// A new association with a profile.
pub(super) fn association(ctx: &Context, profile: &InstanceProfile) -> InstanceProfileAssociation {
    InstanceProfileAssociation {
        id: new_id("iip-assoc"),
        arn: profile.arn(),
        profile_id: profile.profile_id.clone(),
        since: ctx.now,
    }
}

/// The profile as the API shows it.
pub(super) fn to_api(association: &InstanceProfileAssociation) -> model::IamInstanceProfile {
    model::IamInstanceProfile { arn: Some(association.arn.clone()), id: Some(association.profile_id.clone()) }
}

fn association_to_api(
    instance: &str,
    association: &InstanceProfileAssociation,
    state: model::IamInstanceProfileAssociationState,
) -> model::IamInstanceProfileAssociation {
    model::IamInstanceProfileAssociation {
        association_id: Some(association.id.clone()),
        instance_id: Some(instance.to_owned()),
        iam_instance_profile: Some(to_api(association)),
        state: Some(state),
        timestamp: Some(association.since),
    }
}

/// Whether an instance is there to have a profile.
fn lives(instance: &Instance) -> bool {
    !matches!(instance.status.state, InstanceState::ShuttingDown | InstanceState::Terminated)
}

/// The instance with this association.
#[must_use]
pub fn associated<'s>(
    snapshot: &'s Snapshot,
    account: &str,
    region: &str,
    association_id: &str,
) -> Option<&'s Entry<Instance>> {
    let mut instances = snapshot.list::<Instance>(account, region).filter(|instance| lives(instance));
    instances
        .find(|instance| instance.spec.instance_profile.as_ref().is_some_and(|own| own.id == association_id))
}

/// The instance and the association of this id.
fn by_association(ctx: &Context, tx: &mut Tx, id: &str) -> Result<(Instance, InstanceProfileAssociation)> {
    let found = associated(tx.snapshot(), &ctx.account, &ctx.region, id).map(|instance| instance.id.clone());
    let instance = found.map(|instance| by_id(ctx, tx, &instance)).transpose()?;
    let missing = || {
        let id = shorten(id);
        Error::new("InvalidAssociationID.NotFound", format!("An invalid association-id of '{id}' was given"))
    };
    let instance = instance.ok_or_else(missing)?;
    match instance.spec.instance_profile.clone() {
        Some(association) if association.id == id => Ok((instance, association)),
        _ => Err(missing()),
    }
}

fn required(
    snapshot: &Snapshot,
    account: &str,
    specification: &model::IamInstanceProfileSpecification,
) -> Result<InstanceProfile> {
    named(snapshot, account, specification)?.ok_or_else(|| missing("IamInstanceProfile.Name"))
}

/// `AssociateIamInstanceProfile`: effective with the guest's next request for its metadata.
pub async fn associate_iam_instance_profile(
    handlers: &Handlers,
    ctx: &Context,
    input: model::AssociateIamInstanceProfileRequest,
) -> Result<model::AssociateIamInstanceProfileResult> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut instance = by_id(ctx, tx, &input.instance_id)?;
        let profile = required(tx.snapshot(), &ctx.account, &input.iam_instance_profile)?;
        if !lives(&instance) {
            return Err(super::wrong_state(&instance, "associated"));
        }
        if instance.spec.instance_profile.is_some() {
            let message = format!("There is an existing association for instance {}", instance.id);
            return Err(Error::new("IncorrectState", message));
        }
        let association = association(ctx, &profile);
        instance.spec.instance_profile = Some(association.clone());
        let state = model::IamInstanceProfileAssociationState::Associating;
        let shown = association_to_api(&instance.id, &association, state);
        tx.put(instance);
        Ok(model::AssociateIamInstanceProfileResult { iam_instance_profile_association: Some(shown) })
    })
    .await
}

/// `ReplaceIamInstanceProfileAssociation`: the association gets another id, as with EC2.
pub async fn replace_iam_instance_profile_association(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ReplaceIamInstanceProfileAssociationRequest,
) -> Result<model::ReplaceIamInstanceProfileAssociationResult> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let (mut instance, _) = by_association(ctx, tx, &input.association_id)?;
        let profile = required(tx.snapshot(), &ctx.account, &input.iam_instance_profile)?;
        let association = association(ctx, &profile);
        instance.spec.instance_profile = Some(association.clone());
        let state = model::IamInstanceProfileAssociationState::Associating;
        let shown = association_to_api(&instance.id, &association, state);
        tx.put(instance);
        Ok(model::ReplaceIamInstanceProfileAssociationResult {
            iam_instance_profile_association: Some(shown),
        })
    })
    .await
}

/// `DisassociateIamInstanceProfile`.
pub async fn disassociate_iam_instance_profile(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DisassociateIamInstanceProfileRequest,
) -> Result<model::DisassociateIamInstanceProfileResult> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let (mut instance, association) = by_association(ctx, tx, &input.association_id)?;
        instance.spec.instance_profile = None;
        let state = model::IamInstanceProfileAssociationState::Disassociating;
        let shown = association_to_api(&instance.id, &association, state);
        tx.put(instance);
        Ok(model::DisassociateIamInstanceProfileResult { iam_instance_profile_association: Some(shown) })
    })
    .await
}

/// An association, as it is listed.
struct Listed {
    instance_id: String,
    association: InstanceProfileAssociation,
    tags: haar_records::Tags,
}

const FILTERS: haar_core::FilterTable<Listed> = haar_core::FilterTable::<Listed>::new(&[
    ("instance-id", |listed, (), probe| probe.value(&listed.instance_id)),
    ("state", |_, (), probe| probe.value("associated")),
])
.with_tags(|listed| &listed.tags);

/// `DescribeIamInstanceProfileAssociations`.
pub async fn describe_iam_instance_profile_associations(
    handlers: &Handlers,
    ctx: &Context,
    input: model::DescribeIamInstanceProfileAssociationsRequest,
) -> Result<model::DescribeIamInstanceProfileAssociationsResult> {
    let filters = describe::parse(&FILTERS, &input.filters)?;
    let page = handlers.paginator.page(
        ctx,
        &PageRequest {
            parameters: &|| Fingerprint::of(&(filters.raw(), &input.association_ids)),
            max_results: input.max_results,
            next_token: input.next_token.as_deref(),
            limits: describe::PAGE,
        },
    )?;
    let snapshot = handlers.store.snapshot();
    let mut listed: Vec<Listed> = Vec::new();
    for instance in snapshot.list::<Instance>(&ctx.account, &ctx.region).filter(|instance| lives(instance)) {
        if let Some(association) = &instance.spec.instance_profile {
            let tags = haar_records::Tags::new();
            listed.push(Listed { instance_id: instance.id.clone(), association: association.clone(), tags });
        }
    }
    if let Some(id) =
        input.association_ids.iter().find(|id| !listed.iter().any(|listed| listed.association.id == **id))
    {
        let id = shorten(id);
        let message = format!("An invalid association-id of '{id}' was given");
        return Err(Error::new("InvalidAssociationID.NotFound", message));
    }
    listed.retain(|listed| {
        let wanted =
            input.association_ids.is_empty() || input.association_ids.contains(&listed.association.id);
        wanted && filters.matches(listed, &())
    });
    listed.sort_unstable_by(|a, b| a.association.id.cmp(&b.association.id));
    let (listed, next_token) = page.take(listed, |listed| &listed.association.id);
    let state = model::IamInstanceProfileAssociationState::Associated;
    let shown =
        listed.iter().map(|listed| association_to_api(&listed.instance_id, &listed.association, state));
    Ok(model::DescribeIamInstanceProfileAssociationsResult {
        iam_instance_profile_associations: shown.collect(),
        next_token,
    })
}
