//! Key pairs.

use haar_api::{Context, Error};
use haar_core::{FilterTable, store_error};
use haar_records::Tags;
use haar_records::ec2::{Claim, ClaimScope, KeyPair, KeyType};
use haar_store::{Entry, Tx};

use crate::error::{Result, combination, invalid_parameter, invalid_value, missing, shorten};
use crate::handlers::Handlers;
use crate::key_material::{self, KeyError, MAX_PUBLIC_KEY_MATERIAL, PrivateKeyFormat, PublicKey};
use crate::model;
use crate::model::{
    CreateKeyPairRequest, DeleteKeyPairRequest, DeleteKeyPairResult, DescribeKeyPairsRequest,
    DescribeKeyPairsResult, ImportKeyPairRequest, ImportKeyPairResult, KeyFormat, KeyPairInfo,
};
use crate::scope::Scope;
use crate::{describe, ids, tags};

/// The key pair with this name.
///
/// # Errors
/// `InvalidKeyPair.NotFound`.
pub fn find_by_name(tx: &mut Tx, scope: Scope<'_>, name: &str) -> Result<Entry<KeyPair>> {
    let (account, region, claim) = Claim::key(scope.account, scope.region, ClaimScope::KeyName(name));
    tx.get::<Claim>(&account, &region, &claim)
        .and_then(|claim| tx.get(scope.account, scope.region, &claim.holder))
        .ok_or_else(|| no_such_name(name))
}

fn no_such_name(name: &str) -> Error {
    Error::new("InvalidKeyPair.NotFound", format!("The key pair '{}' does not exist", shorten(name)))
}

fn duplicate(name: &str) -> Error {
    Error::new("InvalidKeyPair.Duplicate", format!("The keypair already exists: {name}"))
}

/// "A key name can include up to 255 ASCII characters. It can't include leading or trailing spaces." (EC2 User Guide)
fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        Err(missing("KeyName"))
    } else if name.len() > 255 {
        Err(invalid_parameter(name, "KeyName", "Length exceeds maximum of 255."))
    } else if !name.is_ascii() {
        Err(invalid_parameter(name, "KeyName", "Character sets beyond ASCII are not supported."))
    } else if name.trim() != name || name.contains(|c: char| c.is_ascii_control()) {
        Err(invalid_parameter(
            name,
            "KeyName",
            "Control characters and spaces at its ends are not supported.",
        ))
    } else {
        Ok(())
    }
}

/// Writes a new key pair, unless its name is taken.
async fn put_new(
    handlers: &Handlers,
    ctx: &Context,
    name: &str,
    key: PublicKey,
    tags: Tags,
) -> Result<KeyPair> {
    let record = KeyPair {
        account: ctx.account.clone(),
        region: ctx.region.clone(),
        id: ids::KEY_PAIR.generate(),
        name: name.to_owned(),
        key_type: key.key_type,
        fingerprint: key.fingerprint,
        public_key: key.openssh,
        create_time: ctx.now,
        tags,
    };
    haar_core::transact(&handlers.store, ctx, |tx| {
        if find_by_name(tx, Scope::from(ctx), name).is_ok() {
            return Err(duplicate(name));
        }
        let claim = Claim::new(&ctx.account, &ctx.region, ClaimScope::KeyName(name), &record.id);
        tx.create(claim).map_err(|exists| store_error(&exists.into()))?;
        tx.put(record.clone());
        Ok(record.clone())
    })
    .await
}

/// `CreateKeyPair`.
pub async fn create_key_pair(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateKeyPairRequest,
) -> Result<model::KeyPair> {
    check_name(&input.key_name)?;
    let tags = tags::of_new_one(&input.tag_specifications, "key-pair")?;
    let key_type = match input.key_type {
        None | Some(model::KeyType::Rsa) => KeyType::Rsa,
        Some(model::KeyType::Ed25519) => KeyType::Ed25519,
    };
    let format = match input.key_format {
        None | Some(KeyFormat::Pem) => PrivateKeyFormat::Pem,
        Some(KeyFormat::Ppk) => PrivateKeyFormat::Ppk,
    };
    // Looked at before the key is made, which takes a while; decided by the transaction.
    let (account, region, claim) =
        Claim::key(&ctx.account, &ctx.region, ClaimScope::KeyName(&input.key_name));
    if handlers.store.snapshot().get::<Claim>(&account, &region, &claim).is_some() {
        return Err(duplicate(&input.key_name));
    }
    let name = input.key_name.clone();
    let made = tokio::task::spawn_blocking(move || key_material::generate(key_type, format, &name)).await;
    let pair =
        made.map_err(|e| e.to_string()).and_then(|made| made.map_err(|e| e.to_string())).map_err(|e| {
            tracing::error!(error = e, "no key pair could be made");
            Error::internal("An internal error has occurred.")
        })?;
    let record = put_new(handlers, ctx, &input.key_name, pair.public, tags).await?;
    Ok(model::KeyPair {
        key_pair_id: Some(record.id),
        tags: tags::to_api(&record.tags),
        key_name: Some(record.name),
        key_fingerprint: Some(record.fingerprint),
        key_material: Some(pair.private),
    })
}

/// `ImportKeyPair`.
pub async fn import_key_pair(
    handlers: &Handlers,
    ctx: &Context,
    input: ImportKeyPairRequest,
) -> Result<ImportKeyPairResult> {
    check_name(&input.key_name)?;
    let tags = tags::of_new_one(&input.tag_specifications, "key-pair")?;
    if input.public_key_material.len() > MAX_PUBLIC_KEY_MATERIAL {
        let message = format!(
            "Value for parameter PublicKeyMaterial is invalid. Length exceeds maximum of {MAX_PUBLIC_KEY_MATERIAL}."
        );
        return Err(invalid_value(message));
    }
    let key = key_material::import(&input.public_key_material, &input.key_name).map_err(|e| match e {
        KeyError::Format => Error::new("InvalidKey.Format", e.to_string()),
        KeyError::Generation(_) => Error::internal(e.to_string()),
    })?;
    let record = put_new(handlers, ctx, &input.key_name, key, tags).await?;
    Ok(ImportKeyPairResult {
        key_fingerprint: Some(record.fingerprint),
        key_name: Some(record.name),
        key_pair_id: Some(record.id),
        tags: tags::to_api(&record.tags),
    })
}

const FILTERS: FilterTable<KeyPair> = FilterTable::<KeyPair>::new(&[
    ("fingerprint", |key, (), probe| probe.value(&key.fingerprint)),
    ("key-name", |key, (), probe| probe.value(&key.name)),
    ("key-pair-id", |key, (), probe| probe.value(&key.id)),
])
.with_tags(|key| &key.tags);

/// `DescribeKeyPairs`.
pub async fn describe_key_pairs(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeKeyPairsRequest,
) -> Result<DescribeKeyPairsResult> {
    let filters = describe::parse(&FILTERS, &input.filters)?;
    for id in &input.key_pair_ids {
        ids::KEY_PAIR.check(id)?;
    }
    let snapshot = handlers.store.snapshot();
    let named = |key: &KeyPair| {
        (input.key_names.is_empty() && input.key_pair_ids.is_empty())
            || input.key_names.contains(&key.name)
            || input.key_pair_ids.contains(&key.id)
    };
    let keys: Vec<_> =
        snapshot.list::<KeyPair>(&ctx.account, &ctx.region).filter(|key| named(key)).cloned().collect();
    if let Some(name) = input.key_names.iter().find(|name| !keys.iter().any(|key| key.name == **name)) {
        return Err(no_such_name(name));
    }
    if let Some(id) = input.key_pair_ids.iter().find(|id| !keys.iter().any(|key| key.id == **id)) {
        return Err(ids::KEY_PAIR.missing(id).into());
    }
    let include_public_key = input.include_public_key.unwrap_or(false);
    let key_pairs = keys.iter().filter(|key| filters.matches(key, &())).map(|key| KeyPairInfo {
        key_pair_id: Some(key.id.clone()),
        key_type: Some(match key.key_type {
            KeyType::Rsa => model::KeyType::Rsa,
            KeyType::Ed25519 => model::KeyType::Ed25519,
        }),
        tags: tags::to_api(&key.tags),
        public_key: include_public_key.then(|| key.public_key.clone()),
        create_time: Some(key.create_time),
        key_name: Some(key.name.clone()),
        key_fingerprint: Some(key.fingerprint.clone()),
    });
    Ok(DescribeKeyPairsResult { key_pairs: key_pairs.collect() })
}

/// `DeleteKeyPair`: succeeds when there is no such key pair.
pub async fn delete_key_pair(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteKeyPairRequest,
) -> Result<DeleteKeyPairResult> {
    let scope = Scope::from(ctx);
    let deleted = haar_core::transact(&handlers.store, ctx, |tx| {
        let found = match (&input.key_name, &input.key_pair_id) {
            (Some(_), Some(_)) => {
                return Err(combination("The parameter KeyName cannot be used with the parameter KeyPairId"));
            }
            (None, None) => return Err(missing("KeyName")),
            (Some(name), None) => find_by_name(tx, scope, name).ok(),
            (None, Some(id)) => {
                ids::KEY_PAIR.check(id)?;
                tx.get::<KeyPair>(scope.account, scope.region, id)
            }
        };
        let Some(key) = found else { return Ok(None) };
        let (account, region, claim) =
            Claim::key(scope.account, scope.region, ClaimScope::KeyName(&key.name));
        tx.delete::<Claim>(&account, &region, &claim);
        tx.delete::<KeyPair>(scope.account, scope.region, &key.id);
        Ok(Some(key.id.clone()))
    })
    .await?;
    Ok(DeleteKeyPairResult { r#return: Some(true), key_pair_id: deleted })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ec2, Filter, TagSpecification};
    use crate::testing::{code, context, filter, handlers};

    const RSA: &str = include_str!("../testdata/rsa.pub");

    async fn create(handlers: &Handlers, name: &str) -> Result<model::KeyPair> {
        let input = CreateKeyPairRequest {
            key_name: name.into(),
            key_type: Some(model::KeyType::Ed25519),
            ..CreateKeyPairRequest::default()
        };
        handlers.create_key_pair(&context(), input).await
    }

    async fn import(handlers: &Handlers, name: &str, material: &[u8]) -> Result<ImportKeyPairResult> {
        let input = ImportKeyPairRequest {
            key_name: name.into(),
            public_key_material: haar_api::Bytes::copy_from_slice(material),
            tag_specifications: vec![TagSpecification {
                resource_type: Some("key-pair".into()),
                tags: vec![model::Tag { key: Some("team".into()), value: Some("a".into()) }],
            }],
        };
        handlers.import_key_pair(&context(), input).await
    }

    async fn names(handlers: &Handlers, filters: Vec<Filter>) -> Vec<String> {
        let input = DescribeKeyPairsRequest { filters, ..DescribeKeyPairsRequest::default() };
        let found = handlers.describe_key_pairs(&context(), input).await.unwrap().key_pairs;
        let mut names: Vec<_> = found.into_iter().filter_map(|key| key.key_name).collect();
        names.sort_unstable();
        names
    }

    #[tokio::test]
    async fn a_pair_is_made_once_shown_and_deleted() {
        let handlers = handlers().await;
        let made = create(&handlers, "one").await.unwrap();
        let material = made.key_material.unwrap();
        assert!(material.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
        assert_eq!(code(create(&handlers, "one").await), "InvalidKeyPair.Duplicate");
        assert_eq!(code(import(&handlers, "one", RSA.as_bytes()).await), "InvalidKeyPair.Duplicate");
        import(&handlers, "two", RSA.as_bytes()).await.unwrap();
        assert_eq!(names(&handlers, vec![]).await, ["one", "two"]);
        assert_eq!(names(&handlers, filter("tag:team", "a")).await, ["two"]);
        assert_eq!(names(&handlers, filter("fingerprint", &made.key_fingerprint.unwrap())).await, ["one"]);
        let private = ssh_key::PrivateKey::from_openssh(&material).unwrap();
        let input = DescribeKeyPairsRequest {
            key_names: vec!["one".into()],
            include_public_key: Some(true),
            ..DescribeKeyPairsRequest::default()
        };
        let shown = handlers.describe_key_pairs(&context(), input).await.unwrap().key_pairs.remove(0);
        let public = ssh_key::PublicKey::from_openssh(&shown.public_key.unwrap()).unwrap();
        assert_eq!(public.key_data(), private.public_key().key_data());
        for expected in [made.key_pair_id, None] {
            let input = DeleteKeyPairRequest { key_name: Some("one".into()), key_pair_id: None };
            let deleted = handlers.delete_key_pair(&context(), input).await.unwrap();
            assert_eq!((deleted.r#return, deleted.key_pair_id), (Some(true), expected));
        }
        create(&handlers, "one").await.unwrap();
    }

    #[tokio::test]
    async fn names_and_material_are_checked() {
        let handlers = handlers().await;
        for name in [" padded", "ünïcode", "new\nline", &"n".repeat(256)] {
            assert_eq!(code(create(&handlers, name).await), "InvalidParameterValue");
        }
        assert_eq!(code(create(&handlers, "").await), "MissingParameter");
        create(&handlers, "any / of: these (are) <fine>").await.unwrap();
        assert_eq!(code(import(&handlers, "k", b"nonsense").await), "InvalidKey.Format");
        assert_eq!(code(import(&handlers, "k", &[b'A'; 2049]).await), "InvalidParameterValue");
        let unknown =
            DescribeKeyPairsRequest { key_names: vec!["k".into()], ..DescribeKeyPairsRequest::default() };
        assert_eq!(code(handlers.describe_key_pairs(&context(), unknown).await), "InvalidKeyPair.NotFound");
        let neither = DeleteKeyPairRequest::default();
        assert_eq!(code(handlers.delete_key_pair(&context(), neither).await), "MissingParameter");
    }
}
