//! Service-linked roles (IAM User Guide, "Create a service-linked role").

use std::collections::BTreeMap;

use haar_api::Context;
use haar_records::GLOBAL_ACCOUNT;
use haar_records::iam::{self, REGION, Usage, name_id};

use super::Handlers;
use super::common::*;
use super::model::*;
use super::roles::{create, role};
use crate::keyring::new_unique_id;

/// The services whose resources exist here, the names of their roles, and the roles' policies.
const SERVICES: &[(&str, &str, &str)] = &[
    ("autoscaling.amazonaws.com", "AWSServiceRoleForAutoScaling", "AutoScalingServiceRolePolicy"),
    ("ecs.amazonaws.com", "AWSServiceRoleForECS", "AmazonECSServiceRolePolicy"),
    ("eks.amazonaws.com", "AWSServiceRoleForAmazonEKS", "AmazonEKSServiceRolePolicy"),
    (
        "eks-nodegroup.amazonaws.com",
        "AWSServiceRoleForAmazonEKSNodegroup",
        "AWSServiceRoleForAmazonEKSNodegroup",
    ),
    (
        "elasticloadbalancing.amazonaws.com",
        "AWSServiceRoleForElasticLoadBalancing",
        "AWSElasticLoadBalancingServiceRolePolicy",
    ),
    ("spot.amazonaws.com", "AWSServiceRoleForEC2Spot", "AWSEC2SpotServiceRolePolicy"),
];

/// `CreateServiceLinkedRole`.
pub(super) async fn create_service_linked_role(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateServiceLinkedRoleRequest,
) -> Result<CreateServiceLinkedRoleResponse> {
    let service = &input.aws_service_name;
    let found = SERVICES.iter().find(|(name, ..)| name == service);
    let (service, name, policy) = found.ok_or_else(|| {
        invalid_input(format!("{service} is not a service that has service-linked roles here."))
    })?;
    if input.custom_suffix.is_some() && *service != "autoscaling.amazonaws.com" {
        return Err(invalid_input(format!("Custom suffix is not allowed for {service}")));
    }
    let suffix = input.custom_suffix.map(|suffix| format!("_{suffix}")).unwrap_or_default();
    let name = format!("{name}{suffix}");
    let record = iam::Role {
        account: ctx.account.clone(),
        id: name_id(&name),
        name: name.clone(),
        role_id: new_unique_id("AROA"),
        path: format!("/aws-service-role/{service}/"),
        description: input.description,
        assume_role_policy_document: format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"Service":"{service}"}},"Action":"sts:AssumeRole"}}]}}"#
        ),
        trusted_ids: BTreeMap::new(),
        max_session_duration: 3600,
        create_time: ctx.now,
        permissions_boundary: None,
        attached_policies: vec![format!("arn:aws:iam::aws:policy/aws-service-role/{policy}")],
        inline_policies: BTreeMap::new(),
        linked_service: Some((*service).to_owned()),
        tags: BTreeMap::new(),
    };
    create(handlers, ctx, &record).await.map_err(|error| match &*error.code {
        "EntityAlreadyExists" => invalid_input(format!(
            "Service role name {name} has been taken in this account, please try a different suffix."
        )),
        _ => error,
    })?;
    let snapshot = handlers.store.snapshot();
    let made = Role { role_last_used: None, ..role(handlers, &snapshot, &record) };
    Ok(CreateServiceLinkedRoleResponse { role: Some(made) })
}

/// `DeleteServiceLinkedRole`. No service holds on to its role yet, so the deletion is done when it is answered.
pub(super) async fn delete_service_linked_role(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteServiceLinkedRoleRequest,
) -> Result<DeleteServiceLinkedRoleResponse> {
    let task = haar_core::transact(&handlers.store, ctx, |tx| {
        let record = need::<iam::Role>(tx, ctx, &input.role_name)?;
        let Some(service) = &record.linked_service else {
            return Err(no_such(format!("The role {} is not a service-linked role.", record.name)));
        };
        tx.delete::<iam::Role>(&ctx.account, REGION, &record.id);
        tx.delete::<Usage>(GLOBAL_ACCOUNT, REGION, &record.role_id);
        let task = format!("task/aws-service-role/{service}/{}", record.name);
        let id = handlers.keyring.sealer().task_id(&ctx.account, &task);
        Ok(format!("{task}/{id}"))
    })
    .await?;
    Ok(DeleteServiceLinkedRoleResponse { deletion_task_id: Some(task) })
}

/// `GetServiceLinkedRoleDeletionStatus`: a task that was given out has succeeded.
pub(super) async fn get_service_linked_role_deletion_status(
    handlers: &Handlers,
    ctx: &Context,
    input: GetServiceLinkedRoleDeletionStatusRequest,
) -> Result<GetServiceLinkedRoleDeletionStatusResponse> {
    let given = &input.deletion_task_id;
    let is_task = given
        .rsplit_once('/')
        .is_some_and(|(task, id)| handlers.keyring.sealer().is_task_id(&ctx.account, task, id));
    if !is_task {
        return Err(no_such(format!("The deletion task {given} cannot be found.")));
    }
    Ok(GetServiceLinkedRoleDeletionStatusResponse {
        status: Some(DeletionTaskStatusType::Succeeded),
        reason: None,
    })
}
