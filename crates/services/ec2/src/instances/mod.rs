//! Instances: launch, description, life, attributes and console.

mod as_launch;
mod attributes;
mod console;
mod credits;
mod describe;
mod lifecycle;
mod listing;
mod metadata_options;
mod options;
mod placement;
pub(crate) mod profiles;
mod run;

use haar_api::{Context, Error};
use haar_records::ec2::Instance;
use haar_store::Tx;

pub(crate) use as_launch::describe_as_launch;
pub use attributes::{describe_instance_attribute, modify_instance_attribute};
pub use console::{get_console_output, get_console_screenshot};
pub use credits::{describe_instance_credit_specifications, modify_instance_credit_specification};
pub use describe::{describe_instance_status, describe_instances};
pub use lifecycle::{reboot_instances, start_instances, stop_instances, terminate_instances};
pub use listing::Listing;
pub use metadata_options::modify_instance_metadata_options;
pub use placement::modify_instance_placement;
pub use profiles::{
    associate_iam_instance_profile, describe_iam_instance_profile_associations,
    disassociate_iam_instance_profile, replace_iam_instance_profile_association,
};
pub(crate) use run::check_user_data;
pub use run::run_instances;

use crate::error::{Result, missing};
use crate::ids;

/// The instances with these ids, each once, in the order of the request.
///
/// # Errors
/// `MissingParameter`, `InvalidInstanceID.Malformed`, `InvalidInstanceID.NotFound`.
fn by_ids(ctx: &Context, tx: &mut Tx, ids: &[String]) -> Result<Vec<Instance>> {
    if ids.is_empty() {
        return Err(missing("InstanceId"));
    }
    let (mut found, mut gone): (Vec<Instance>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut seen = std::collections::HashSet::new();
    for id in ids.iter().filter(|id| seen.insert(id.as_str())) {
        ids::INSTANCE.check(id)?;
        match tx.get::<Instance>(&ctx.account, &ctx.region, id) {
            Some(instance) => found.push(Instance::clone(&instance)),
            None => gone.push(id),
        }
    }
    if gone.is_empty() { Ok(found) } else { Err(ids::INSTANCE.missing_all(&gone).into()) }
}

/// The instance with this id.
pub(crate) fn by_id(ctx: &Context, tx: &mut Tx, id: &str) -> Result<Instance> {
    ids::INSTANCE.check(id)?;
    let instance =
        tx.get::<Instance>(&ctx.account, &ctx.region, id).ok_or_else(|| ids::INSTANCE.missing(id))?;
    Ok(Instance::clone(&instance))
}

fn wrong_state(instance: &Instance, what: &str) -> Error {
    Error::new(
        "IncorrectInstanceState",
        format!("The instance '{}' is not in a state from which it can be {what}.", instance.id),
    )
}
