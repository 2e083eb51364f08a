//! Access keys.

use haar_api::{Context, Error};
use haar_records::GLOBAL_ACCOUNT;
use haar_records::iam::{self, AccessKeyStatus, REGION, Usage, User};
use haar_store::{Entry, Snapshot, Tx};

use super::Handlers;
use super::common::*;
use super::model::*;
use crate::keyring::{new_key_id, new_secret};

/// Most keys of a user or of an account's root.
const MAX_KEYS: usize = 2;

/// Whose keys are meant.
struct Owner {
    user: Option<User>,
    index: String,
}

impl Owner {
    fn name(&self) -> Option<String> {
        self.user.as_ref().map(|user| user.name.clone())
    }
}

fn owner_of(user: Option<User>, ctx: &Context) -> Owner {
    let index = iam::AccessKey::owner(&ctx.account, user.as_ref().map(|user| user.user_id.as_str()));
    Owner { user, index }
}

fn owner(tx: &mut Tx, ctx: &Context, name: Option<&String>) -> Result<Owner> {
    let user = name.map(|name| need::<User>(tx, ctx, name)).transpose()?;
    Ok(owner_of(user, ctx))
}

fn missing(id: &str) -> Error {
    no_such(format!("The Access Key with id {id} cannot be found."))
}

fn status(record: &iam::AccessKey) -> StatusType {
    match record.status {
        AccessKeyStatus::Active => StatusType::Active,
        AccessKeyStatus::Inactive => StatusType::Inactive,
    }
}

/// `CreateAccessKey`. The secret is shown once: at rest it is sealed.
pub(super) async fn create_access_key(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateAccessKeyRequest,
) -> Result<CreateAccessKeyResponse> {
    let name = user_or_caller(ctx, input.user_name)?;
    let (id, secret) = (new_key_id("AKIA", &ctx.account), new_secret());
    let sealed = handlers.keyring.sealer().seal_secret(&id, &secret);
    let owner_name = haar_core::transact(&handlers.store, ctx, |tx| {
        let owner = owner(tx, ctx, name.as_ref())?;
        let keys = tx.by_index::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, "owner", &owner.index);
        if keys.count() >= MAX_KEYS {
            return Err(quota("AccessKeysPerUser", MAX_KEYS));
        }
        let record = iam::AccessKey {
            id: id.clone(),
            owner_account: ctx.account.clone(),
            user_id: owner.user.as_ref().map(|user| user.user_id.clone()),
            user_name: owner.user.as_ref().map(|user| user.id.clone()),
            secret: sealed.clone(),
            status: AccessKeyStatus::Active,
            create_time: ctx.now,
        };
        tx.create(record).map_err(|_| Error::internal("An access key could not be made; try again."))?;
        Ok(owner.name())
    })
    .await?;
    Ok(CreateAccessKeyResponse {
        access_key: Some(AccessKey {
            user_name: owner_name,
            access_key_id: Some(id),
            status: Some(StatusType::Active),
            secret_access_key: Some(secret),
            create_date: Some(ctx.now),
        }),
    })
}

/// The key with this id, if it is the owner's.
fn own_key(tx: &mut Tx, ctx: &Context, name: Option<&String>, id: &str) -> Result<Entry<iam::AccessKey>> {
    let owner = owner(tx, ctx, name)?;
    let key = tx.get::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, id);
    key.filter(|key| iam::AccessKey::owner(&key.owner_account, key.user_id.as_deref()) == owner.index)
        .ok_or_else(|| missing(id))
}

/// `UpdateAccessKey`.
pub(super) async fn update_access_key(
    handlers: &Handlers,
    ctx: &Context,
    input: UpdateAccessKeyRequest,
) -> Result<()> {
    let name = user_or_caller(ctx, input.user_name)?;
    let status = match input.status {
        StatusType::Active => AccessKeyStatus::Active,
        StatusType::Inactive => AccessKeyStatus::Inactive,
        StatusType::Expired => {
            return Err(validation("The status of an access key can be Active or Inactive."));
        }
    };
    haar_core::transact(&handlers.store, ctx, |tx| {
        let key = own_key(tx, ctx, name.as_ref(), &input.access_key_id)?;
        tx.put(iam::AccessKey { status, ..iam::AccessKey::clone(&key) });
        Ok(())
    })
    .await
}

/// `DeleteAccessKey`.
pub(super) async fn delete_access_key(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteAccessKeyRequest,
) -> Result<()> {
    let name = user_or_caller(ctx, input.user_name)?;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let key = own_key(tx, ctx, name.as_ref(), &input.access_key_id)?;
        tx.delete::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, &key.id);
        tx.delete::<Usage>(GLOBAL_ACCOUNT, REGION, &key.id);
        Ok(())
    })
    .await
}

/// `ListAccessKeys`.
pub(super) async fn list_access_keys(
    handlers: &Handlers,
    ctx: &Context,
    input: ListAccessKeysRequest,
) -> Result<ListAccessKeysResponse> {
    let snapshot = handlers.store.snapshot();
    let name = user_or_caller(ctx, input.user_name)?;
    let user = name.map(|name| read::<User>(&snapshot, ctx, &name)).transpose()?;
    let owner = owner_of(user.map(|user| User::clone(&user)), ctx);
    let keys = snapshot.by_index::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, "owner", &owner.index);
    let found =
        page(handlers, ctx, &owner.index, input.max_items, input.marker.as_deref(), keys, |key| &key.id)?;
    let metadata = |key: &Entry<iam::AccessKey>| AccessKeyMetadata {
        user_name: owner.name(),
        access_key_id: Some(key.id.clone()),
        status: Some(status(key)),
        create_date: Some(key.create_time),
    };
    Ok(ListAccessKeysResponse {
        access_key_metadata: found.items.into_iter().map(metadata).collect(),
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}

fn owner_name(snapshot: &Snapshot, key: &iam::AccessKey) -> Option<String> {
    let user = snapshot.get::<User>(&key.owner_account, REGION, key.user_name.as_deref()?)?;
    Some(user.name.clone())
}

/// `GetAccessKeyLastUsed`.
pub(super) async fn get_access_key_last_used(
    handlers: &Handlers,
    ctx: &Context,
    input: GetAccessKeyLastUsedRequest,
) -> Result<GetAccessKeyLastUsedResponse> {
    let snapshot = handlers.store.snapshot();
    let id = &input.access_key_id;
    let key = snapshot.get::<iam::AccessKey>(GLOBAL_ACCOUNT, REGION, id);
    let key = key.filter(|key| key.owner_account == ctx.account).ok_or_else(|| missing(id))?;
    let usage = handlers.keyring.usage(&snapshot, id);
    let of_usage =
        |text: fn(&Usage) -> &String| usage.as_ref().map_or("N/A".to_owned(), |usage| text(usage).clone());
    Ok(GetAccessKeyLastUsedResponse {
        user_name: owner_name(&snapshot, &key),
        access_key_last_used: Some(AccessKeyLastUsed {
            last_used_date: usage.as_ref().map(|usage| usage.at),
            service_name: Some(of_usage(|usage| &usage.service)),
            region: Some(of_usage(|usage| &usage.region)),
        }),
    })
}
