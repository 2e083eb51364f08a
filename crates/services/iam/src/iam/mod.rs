//! AWS IAM.

mod access_keys;
mod account;
mod common;
mod credential_report;
mod identities;
mod mfa;
mod oidc_providers;
mod policies;
mod roles;
mod service_linked;
mod simulate;
mod tags;
mod users;

use std::sync::Arc;

use haar_api::{Context, Error, PrincipalKind, SessionOrigin};
use haar_core::Paginator;
use haar_store::{Store, StoreError};

use crate::caller::Documents;
use crate::keyring::Keyring;

/// The IAM API: the types of its requests and answers, its table and the [`Iam`] trait, generated from the model
/// for the operations of `iam.toml`.
pub mod model {
    haar_api::include_model!("iam.rs");
}

use common::Result;
use model::*;

/// The handlers of IAM.
pub struct Handlers {
    store: Store,
    keyring: Keyring,
    documents: Arc<Documents>,
    paginator: Paginator,
}

impl Handlers {
    /// Handlers over the records and keys of an installation.
    ///
    /// # Errors
    /// What the store gives.
    pub async fn new(
        store: Store,
        keyring: Keyring,
        documents: Arc<Documents>,
    ) -> std::result::Result<Self, StoreError> {
        let paginator = Paginator::load(&store).await?;
        Ok(Self { store, keyring, documents, paginator })
    }
}

/// Sessions of GetFederationToken, and those of GetSessionToken without a second factor, cannot call IAM (IAM User Guide, "Compare AWS
/// STS credentials").
fn check_session(ctx: &Context) -> Result<()> {
    let Some(session) = &ctx.principal.session else { return Ok(()) };
    let federated = matches!(ctx.principal.kind, PrincipalKind::FederatedUser { .. });
    if federated || session.origin == SessionOrigin::GetSessionToken && !session.mfa {
        let message = "The security token included in the request is invalid";
        return Err(Error::new("InvalidClientTokenId", message).with_status(403));
    }
    Ok(())
}

/// Writes the trait's methods, each of which calls the function of its name in the module of its resource.
macro_rules! delegate {
    ($($module:ident { $($operation:ident($request:ty) -> $result:ty;)+ })+) => {
        impl Iam for Handlers {
            $($(
                async fn $operation(&self, ctx: &Context, input: $request) -> Result<$result> {
                    check_session(ctx)?;
                    $module::$operation(self, ctx, input).await
                }
            )+)+

            async fn generate_credential_report(&self, ctx: &Context) -> Result<GenerateCredentialReportResponse> {
                check_session(ctx)?;
                credential_report::generate_credential_report(self, ctx).await
            }

            async fn get_account_summary(&self, ctx: &Context) -> Result<GetAccountSummaryResponse> {
                check_session(ctx)?;
                account::get_account_summary(self, ctx).await
            }

            async fn get_credential_report(&self, ctx: &Context) -> Result<GetCredentialReportResponse> {
                check_session(ctx)?;
                credential_report::get_credential_report(self, ctx).await
            }
        }
    };
}

delegate! {
    access_keys {
        create_access_key(CreateAccessKeyRequest) -> CreateAccessKeyResponse;
        delete_access_key(DeleteAccessKeyRequest) -> ();
        get_access_key_last_used(GetAccessKeyLastUsedRequest) -> GetAccessKeyLastUsedResponse;
        list_access_keys(ListAccessKeysRequest) -> ListAccessKeysResponse;
        update_access_key(UpdateAccessKeyRequest) -> ();
    }
    account {
        create_account_alias(CreateAccountAliasRequest) -> ();
        delete_account_alias(DeleteAccountAliasRequest) -> ();
        get_account_authorization_details(GetAccountAuthorizationDetailsRequest) -> GetAccountAuthorizationDetailsResponse;
        list_account_aliases(ListAccountAliasesRequest) -> ListAccountAliasesResponse;
    }
    identities {
        attach_group_policy(AttachGroupPolicyRequest) -> ();
        attach_role_policy(AttachRolePolicyRequest) -> ();
        attach_user_policy(AttachUserPolicyRequest) -> ();
        delete_group_policy(DeleteGroupPolicyRequest) -> ();
        delete_role_permissions_boundary(DeleteRolePermissionsBoundaryRequest) -> ();
        delete_role_policy(DeleteRolePolicyRequest) -> ();
        delete_user_permissions_boundary(DeleteUserPermissionsBoundaryRequest) -> ();
        delete_user_policy(DeleteUserPolicyRequest) -> ();
        detach_group_policy(DetachGroupPolicyRequest) -> ();
        detach_role_policy(DetachRolePolicyRequest) -> ();
        detach_user_policy(DetachUserPolicyRequest) -> ();
        get_group_policy(GetGroupPolicyRequest) -> GetGroupPolicyResponse;
        get_role_policy(GetRolePolicyRequest) -> GetRolePolicyResponse;
        get_user_policy(GetUserPolicyRequest) -> GetUserPolicyResponse;
        list_attached_group_policies(ListAttachedGroupPoliciesRequest) -> ListAttachedGroupPoliciesResponse;
        list_attached_role_policies(ListAttachedRolePoliciesRequest) -> ListAttachedRolePoliciesResponse;
        list_attached_user_policies(ListAttachedUserPoliciesRequest) -> ListAttachedUserPoliciesResponse;
        list_group_policies(ListGroupPoliciesRequest) -> ListGroupPoliciesResponse;
        list_role_policies(ListRolePoliciesRequest) -> ListRolePoliciesResponse;
        list_user_policies(ListUserPoliciesRequest) -> ListUserPoliciesResponse;
        put_group_policy(PutGroupPolicyRequest) -> ();
        put_role_permissions_boundary(PutRolePermissionsBoundaryRequest) -> ();
        put_role_policy(PutRolePolicyRequest) -> ();
        put_user_permissions_boundary(PutUserPermissionsBoundaryRequest) -> ();
        put_user_policy(PutUserPolicyRequest) -> ();
    }
    mfa {
        create_virtual_mfa_device(CreateVirtualMFADeviceRequest) -> CreateVirtualMFADeviceResponse;
        deactivate_mfa_device(DeactivateMFADeviceRequest) -> ();
        delete_virtual_mfa_device(DeleteVirtualMFADeviceRequest) -> ();
        enable_mfa_device(EnableMFADeviceRequest) -> ();
        get_mfa_device(GetMFADeviceRequest) -> GetMFADeviceResponse;
        list_mfa_device_tags(ListMFADeviceTagsRequest) -> ListMFADeviceTagsResponse;
        list_mfa_devices(ListMFADevicesRequest) -> ListMFADevicesResponse;
        list_virtual_mfa_devices(ListVirtualMFADevicesRequest) -> ListVirtualMFADevicesResponse;
        resync_mfa_device(ResyncMFADeviceRequest) -> ();
        tag_mfa_device(TagMFADeviceRequest) -> ();
        untag_mfa_device(UntagMFADeviceRequest) -> ();
    }
    oidc_providers {
        add_client_id_to_open_id_connect_provider(AddClientIDToOpenIDConnectProviderRequest) -> ();
        create_open_id_connect_provider(CreateOpenIDConnectProviderRequest) -> CreateOpenIDConnectProviderResponse;
        delete_open_id_connect_provider(DeleteOpenIDConnectProviderRequest) -> ();
        get_open_id_connect_provider(GetOpenIDConnectProviderRequest) -> GetOpenIDConnectProviderResponse;
        list_open_id_connect_provider_tags(ListOpenIDConnectProviderTagsRequest) -> ListOpenIDConnectProviderTagsResponse;
        list_open_id_connect_providers(ListOpenIDConnectProvidersRequest) -> ListOpenIDConnectProvidersResponse;
        remove_client_id_from_open_id_connect_provider(RemoveClientIDFromOpenIDConnectProviderRequest) -> ();
        tag_open_id_connect_provider(TagOpenIDConnectProviderRequest) -> ();
        untag_open_id_connect_provider(UntagOpenIDConnectProviderRequest) -> ();
        update_open_id_connect_provider_thumbprint(UpdateOpenIDConnectProviderThumbprintRequest) -> ();
    }
    policies {
        create_policy(CreatePolicyRequest) -> CreatePolicyResponse;
        create_policy_version(CreatePolicyVersionRequest) -> CreatePolicyVersionResponse;
        delete_policy(DeletePolicyRequest) -> ();
        delete_policy_version(DeletePolicyVersionRequest) -> ();
        get_policy(GetPolicyRequest) -> GetPolicyResponse;
        get_policy_version(GetPolicyVersionRequest) -> GetPolicyVersionResponse;
        list_entities_for_policy(ListEntitiesForPolicyRequest) -> ListEntitiesForPolicyResponse;
        list_policies(ListPoliciesRequest) -> ListPoliciesResponse;
        list_policy_tags(ListPolicyTagsRequest) -> ListPolicyTagsResponse;
        list_policy_versions(ListPolicyVersionsRequest) -> ListPolicyVersionsResponse;
        set_default_policy_version(SetDefaultPolicyVersionRequest) -> ();
        tag_policy(TagPolicyRequest) -> ();
        untag_policy(UntagPolicyRequest) -> ();
    }
    roles {
        add_role_to_instance_profile(AddRoleToInstanceProfileRequest) -> ();
        create_instance_profile(CreateInstanceProfileRequest) -> CreateInstanceProfileResponse;
        create_role(CreateRoleRequest) -> CreateRoleResponse;
        delete_instance_profile(DeleteInstanceProfileRequest) -> ();
        delete_role(DeleteRoleRequest) -> ();
        get_instance_profile(GetInstanceProfileRequest) -> GetInstanceProfileResponse;
        get_role(GetRoleRequest) -> GetRoleResponse;
        list_instance_profile_tags(ListInstanceProfileTagsRequest) -> ListInstanceProfileTagsResponse;
        list_instance_profiles(ListInstanceProfilesRequest) -> ListInstanceProfilesResponse;
        list_instance_profiles_for_role(ListInstanceProfilesForRoleRequest) -> ListInstanceProfilesForRoleResponse;
        list_role_tags(ListRoleTagsRequest) -> ListRoleTagsResponse;
        list_roles(ListRolesRequest) -> ListRolesResponse;
        remove_role_from_instance_profile(RemoveRoleFromInstanceProfileRequest) -> ();
        tag_instance_profile(TagInstanceProfileRequest) -> ();
        tag_role(TagRoleRequest) -> ();
        untag_instance_profile(UntagInstanceProfileRequest) -> ();
        untag_role(UntagRoleRequest) -> ();
        update_assume_role_policy(UpdateAssumeRolePolicyRequest) -> ();
        update_role(UpdateRoleRequest) -> UpdateRoleResponse;
        update_role_description(UpdateRoleDescriptionRequest) -> UpdateRoleDescriptionResponse;
    }
    service_linked {
        create_service_linked_role(CreateServiceLinkedRoleRequest) -> CreateServiceLinkedRoleResponse;
        delete_service_linked_role(DeleteServiceLinkedRoleRequest) -> DeleteServiceLinkedRoleResponse;
        get_service_linked_role_deletion_status(GetServiceLinkedRoleDeletionStatusRequest) -> GetServiceLinkedRoleDeletionStatusResponse;
    }
    simulate {
        get_context_keys_for_custom_policy(GetContextKeysForCustomPolicyRequest) -> GetContextKeysForPolicyResponse;
        get_context_keys_for_principal_policy(GetContextKeysForPrincipalPolicyRequest) -> GetContextKeysForPolicyResponse;
        simulate_custom_policy(SimulateCustomPolicyRequest) -> SimulatePolicyResponse;
        simulate_principal_policy(SimulatePrincipalPolicyRequest) -> SimulatePolicyResponse;
    }
    users {
        add_user_to_group(AddUserToGroupRequest) -> ();
        create_group(CreateGroupRequest) -> CreateGroupResponse;
        create_user(CreateUserRequest) -> CreateUserResponse;
        delete_group(DeleteGroupRequest) -> ();
        delete_user(DeleteUserRequest) -> ();
        get_group(GetGroupRequest) -> GetGroupResponse;
        get_user(GetUserRequest) -> GetUserResponse;
        list_groups(ListGroupsRequest) -> ListGroupsResponse;
        list_groups_for_user(ListGroupsForUserRequest) -> ListGroupsForUserResponse;
        list_user_tags(ListUserTagsRequest) -> ListUserTagsResponse;
        list_users(ListUsersRequest) -> ListUsersResponse;
        remove_user_from_group(RemoveUserFromGroupRequest) -> ();
        tag_user(TagUserRequest) -> ();
        untag_user(UntagUserRequest) -> ();
        update_group(UpdateGroupRequest) -> ();
        update_user(UpdateUserRequest) -> ();
    }
}
