//! Encryption of EBS volumes and snapshots: the account's default key, what is encrypted by default, and new data keys.
//!
//! A volume's data is encrypted with a key of its own, which its snapshots, their copies and the volumes that are made from them
//! share. The record has it sealed with the account's default key in the region, which is sealed with the installation's key;
//! that is in no record.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use haar_api::{Context, Error};
use haar_core::Sealer;
use haar_records::ec2::{EbsDefaults, EbsKey, Encryption};
use haar_store::Tx;
use rand::Rng as _;

use crate::error::{Result, invalid_parameter, invalid_value};
use crate::handlers::Handlers;
use crate::model;

/// The alias of every account's default key.
const DEFAULT_ALIAS: &str = "alias/aws/ebs";

/// What a request says about encryption.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// `Encrypted`.
    pub encrypted: Option<bool>,
    /// `KmsKeyId`.
    pub kms_key_id: Option<String>,
}

impl Asked {
    /// What a request says, if it can be.
    ///
    /// # Errors
    /// `InvalidParameterDependency` for a key without encryption.
    pub fn new(encrypted: Option<bool>, kms_key_id: Option<&str>) -> Result<Self> {
        if kms_key_id.is_some() && encrypted != Some(true) {
            let message = "The parameter KmsKeyId requires the parameter Encrypted to be set.";
            return Err(Error::new("InvalidParameterDependency", message));
        }
        Ok(Self { encrypted, kms_key_id: kms_key_id.map(str::to_owned) })
    }
}

/// How a new volume, or the copy of a snapshot, is encrypted that is made from `source`, or from nothing.
///
/// # Errors
/// For a key that there is not, and for what would take away encryption.
pub fn of_new(
    sealer: &Sealer,
    ctx: &Context,
    tx: &mut Tx,
    asked: &Asked,
    source: Option<&Encryption>,
) -> Result<Option<Encryption>> {
    if asked.encrypted == Some(false) && source.is_some() {
        return Err(invalid_value(
            "Value (false) for parameter encrypted is invalid. What is made from an encrypted snapshot is encrypted.",
        ));
    }
    let by_default = tx
        .get::<EbsDefaults>(&ctx.account, &ctx.region, EbsDefaults::ID)
        .is_some_and(|defaults| defaults.encrypt_by_default);
    if source.is_none() && asked.encrypted != Some(true) && !by_default {
        return Ok(None);
    }
    let key = default_key(sealer, ctx, tx);
    if let Some(id) = &asked.kms_key_id {
        check_key(ctx, &key, id)?;
    }
    let data_key = match source {
        Some(source) if source.key_id == key.id => return Ok(Some(source.clone())),
        // Of another region or account: its data stays as it is, and its key is sealed anew.
        Some(source) => {
            let theirs = tx.get::<EbsDefaults>(&source.account, &source.region, EbsDefaults::ID);
            let theirs = theirs.and_then(|defaults| defaults.key.clone());
            let opened =
                theirs.and_then(|key| opener(sealer, &key)?.open(&source.data_key, Encryption::purpose()));
            opened.ok_or_else(|| Error::new("InternalError", "The key of the snapshot cannot be opened."))?
        }
        // QEMU takes text.
        None => STANDARD.encode(Sealer::random_key()).into_bytes(),
    };
    let opener = opener(sealer, &key)
        .ok_or_else(|| Error::new("InternalError", "The default key for EBS cannot be opened."))?;
    Ok(Some(Encryption {
        account: ctx.account.clone(),
        region: ctx.region.clone(),
        key_id: key.id,
        data_key: opener.seal(&data_key, Encryption::purpose()),
    }))
}

/// What opens and seals data keys.
fn opener(sealer: &Sealer, key: &EbsKey) -> Option<Sealer> {
    let key = sealer.open(&key.sealed, &EbsKey::purpose(&key.id))?;
    Some(Sealer::new(key.as_slice().try_into().ok()?))
}

/// The account's default key in the region, made if there is none.
fn default_key(sealer: &Sealer, ctx: &Context, tx: &mut Tx) -> EbsKey {
    let found = tx.get::<EbsDefaults>(&ctx.account, &ctx.region, EbsDefaults::ID);
    let defaults =
        found.map_or_else(|| EbsDefaults::new(&ctx.account, &ctx.region), |found| EbsDefaults::clone(&found));
    if let Some(key) = defaults.key {
        return key;
    }
    let id = uuid();
    let sealed = sealer.seal(&Sealer::random_key(), &EbsKey::purpose(&id));
    let key = EbsKey { id, sealed };
    tx.put(EbsDefaults { key: Some(key.clone()), ..defaults });
    key
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = 0x40 | bytes[6] & 0x0f;
    bytes[8] = 0x80 | bytes[8] & 0x3f;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Whether an id, alias or ARN names the default key: there are no others.
fn check_key(ctx: &Context, key: &EbsKey, id: &str) -> Result<()> {
    let prefix = format!("arn:aws:kms:{}:{}:", ctx.region, ctx.account);
    let named =
        id.strip_prefix(&prefix).map_or(id, |resource| resource.strip_prefix("key/").unwrap_or(resource));
    if named == key.id || named == DEFAULT_ALIAS {
        return Ok(());
    }
    Err(invalid_parameter(id, "kmsKeyId", "There is no such key."))
}

/// `EnableEbsEncryptionByDefault`.
pub async fn enable_ebs_encryption_by_default(
    handlers: &Handlers,
    ctx: &Context,
    _: model::EnableEbsEncryptionByDefaultRequest,
) -> Result<model::EnableEbsEncryptionByDefaultResult> {
    choose(handlers, ctx, true).await?;
    Ok(model::EnableEbsEncryptionByDefaultResult { ebs_encryption_by_default: Some(true) })
}

/// `DisableEbsEncryptionByDefault`.
pub async fn disable_ebs_encryption_by_default(
    handlers: &Handlers,
    ctx: &Context,
    _: model::DisableEbsEncryptionByDefaultRequest,
) -> Result<model::DisableEbsEncryptionByDefaultResult> {
    choose(handlers, ctx, false).await?;
    Ok(model::DisableEbsEncryptionByDefaultResult { ebs_encryption_by_default: Some(false) })
}

async fn choose(handlers: &Handlers, ctx: &Context, encrypt_by_default: bool) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let found = tx.get::<EbsDefaults>(&ctx.account, &ctx.region, EbsDefaults::ID);
        let defaults = found
            .map_or_else(|| EbsDefaults::new(&ctx.account, &ctx.region), |found| EbsDefaults::clone(&found));
        tx.put(EbsDefaults { encrypt_by_default, ..defaults });
        Ok(())
    })
    .await
}

/// `GetEbsEncryptionByDefault`.
pub async fn get_ebs_encryption_by_default(
    handlers: &Handlers,
    ctx: &Context,
    _: model::GetEbsEncryptionByDefaultRequest,
) -> Result<model::GetEbsEncryptionByDefaultResult> {
    let found = handlers.store.snapshot().get::<EbsDefaults>(&ctx.account, &ctx.region, EbsDefaults::ID);
    let enabled = found.is_some_and(|defaults| defaults.encrypt_by_default);
    Ok(model::GetEbsEncryptionByDefaultResult {
        ebs_encryption_by_default: Some(enabled),
        sse_type: Some(if enabled { model::SSEType::SseKms } else { model::SSEType::None }),
    })
}

/// `GetEbsDefaultKmsKeyId`.
pub async fn get_ebs_default_kms_key_id(
    _: &Handlers,
    _: &Context,
    _: model::GetEbsDefaultKmsKeyIdRequest,
) -> Result<model::GetEbsDefaultKmsKeyIdResult> {
    Ok(model::GetEbsDefaultKmsKeyIdResult { kms_key_id: Some(DEFAULT_ALIAS.to_owned()) })
}

/// `ModifyEbsDefaultKmsKeyId`: there is one key to choose, the account's own for EBS.
pub async fn modify_ebs_default_kms_key_id(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ModifyEbsDefaultKmsKeyIdRequest,
) -> Result<model::ModifyEbsDefaultKmsKeyIdResult> {
    let id = haar_core::transact(&handlers.store, ctx, |tx| {
        let key = default_key(&handlers.config.sealer, ctx, tx);
        check_key(ctx, &key, &input.kms_key_id)?;
        Ok(key.id)
    })
    .await?;
    Ok(model::ModifyEbsDefaultKmsKeyIdResult {
        kms_key_id: Some(EbsKey::arn(&ctx.account, &ctx.region, &id)),
    })
}

/// `ResetEbsDefaultKmsKeyId`.
pub async fn reset_ebs_default_kms_key_id(
    handlers: &Handlers,
    ctx: &Context,
    _: model::ResetEbsDefaultKmsKeyIdRequest,
) -> Result<model::ResetEbsDefaultKmsKeyIdResult> {
    let key =
        haar_core::transact(&handlers.store, ctx, |tx| Ok(default_key(&handlers.config.sealer, ctx, tx)));
    let id = key.await?.id;
    Ok(model::ResetEbsDefaultKmsKeyIdResult { kms_key_id: Some(EbsKey::arn(&ctx.account, &ctx.region, &id)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{code, context, store, write};

    #[tokio::test]
    async fn data_keys_are_shared_along_a_line_and_sealed_anew_in_another_region() {
        let (store, sealer) = (store().await, Sealer::new(&Sealer::random_key()));
        let asked = Asked::new(Some(true), None).unwrap();
        let made = |ctx: Context, source: Option<Encryption>| {
            let (store, sealer, asked) = (store.clone(), sealer.clone(), asked.clone());
            async move {
                write(&store, |tx| of_new(&sealer, &ctx, tx, &asked, source.as_ref())).await.unwrap().unwrap()
            }
        };
        let first = made(context(), None).await;
        assert_eq!(made(context(), Some(first.clone())).await, first);
        let second = made(context(), None).await;
        assert!(second.key_id == first.key_id && second.data_key != first.data_key);
        let there = Context::new(&first.account, "us-west-2");
        let copied = made(there, Some(first.clone())).await;
        assert_ne!(copied.key_id, first.key_id);
        let open = |encryption: &Encryption| {
            let found =
                store.snapshot().get::<EbsDefaults>(&encryption.account, &encryption.region, "default");
            let key = found.unwrap().key.clone().unwrap();
            opener(&sealer, &key).unwrap().open(&encryption.data_key, Encryption::purpose()).unwrap()
        };
        assert_eq!(open(&copied), open(&first));
        // 256 bits in base64.
        assert_eq!(open(&first).len(), 44);
    }

    #[tokio::test]
    async fn there_is_one_key() {
        let (store, sealer) = (store().await, Sealer::new(&Sealer::random_key()));
        let ask = |id: String| {
            let (store, sealer) = (store.clone(), sealer.clone());
            async move {
                let asked = Asked::new(Some(true), Some(&id)).unwrap();
                write(&store, |tx| of_new(&sealer, &context(), tx, &asked, None)).await
            }
        };
        let made = ask(DEFAULT_ALIAS.into()).await.unwrap().unwrap();
        ask(made.key_id.clone()).await.unwrap();
        ask(made.key_arn()).await.unwrap();
        for wrong in ["alias/mine", "arn:aws:kms:us-west-2:123456789012:alias/aws/ebs", ""] {
            assert_eq!(code(ask(wrong.into()).await), "InvalidParameterValue", "{wrong}");
        }
        assert_eq!(code(Asked::new(None, Some(DEFAULT_ALIAS))), "InvalidParameterDependency");
    }
}
