//! OpenID Connect providers.

use haar_api::Context;
use haar_records::iam::{OpenIdConnectProvider, REGION};
use haar_store::Tx;

use super::Handlers;
use super::common::*;
use super::model::*;
use super::tags::{new_tags, tag, tags, untag};
use crate::sts::{is_loopback, provider_id};

const MAX_PROVIDERS: usize = 100;
const MAX_CLIENT_IDS: usize = 100;
const MAX_THUMBPRINTS: usize = 5;

fn missing(arn: &str) -> haar_api::Error {
    no_such(format!("OpenIDConnect Provider not found for arn {arn}"))
}

/// The id of the record that an ARN names.
fn id<'a>(ctx: &Context, arn: &'a str) -> Result<&'a str> {
    let prefix = format!("arn:aws:iam::{}:oidc-provider/", ctx.account);
    arn.strip_prefix(&prefix).filter(|id| !id.is_empty()).ok_or_else(|| missing(arn))
}

fn need(tx: &mut Tx, ctx: &Context, arn: &str) -> Result<OpenIdConnectProvider> {
    let found = tx.get::<OpenIdConnectProvider>(&ctx.account, REGION, id(ctx, arn)?);
    found.map(|provider| OpenIdConnectProvider::clone(&provider)).ok_or_else(|| missing(arn))
}

fn check_thumbprints(thumbprints: &[String]) -> Result<()> {
    if thumbprints.len() > MAX_THUMBPRINTS {
        return Err(invalid_input("Thumbprint list must contain fewer than 5 entries."));
    }
    match thumbprints.iter().find(|one| one.len() != 40 || !one.bytes().all(|b| b.is_ascii_hexdigit())) {
        None => Ok(()),
        Some(one) => Err(invalid_input(format!(
            "The thumbprint {one} is not the SHA-1 of a certificate in hexadecimal."
        ))),
    }
}

/// `CreateOpenIDConnectProvider`. Besides `https` URLs, an `http` URL of this machine itself is taken.
pub(super) async fn create_open_id_connect_provider(
    handlers: &Handlers,
    ctx: &Context,
    input: CreateOpenIDConnectProviderRequest,
) -> Result<CreateOpenIDConnectProviderResponse> {
    let url = input.url.trim_end_matches('/');
    let plain = url.bytes().all(|b| (0x21..=0x7e).contains(&b)) && !url.contains(['?', '#', '@', '*']);
    if !plain || provider_id(url).is_empty() || !url.starts_with("https://") && !is_loopback(url) {
        return Err(validation("Invalid Open ID Connect Provider URL: it must begin with https://."));
    }
    check_thumbprints(&input.thumbprint_list)?;
    let mut client_ids = input.client_id_list;
    client_ids.sort();
    client_ids.dedup();
    if client_ids.len() > MAX_CLIENT_IDS {
        return Err(quota("ClientIdsPerOpenIdConnectProvider", MAX_CLIENT_IDS));
    }
    let record = OpenIdConnectProvider {
        account: ctx.account.clone(),
        id: provider_id(url).to_owned(),
        url: url.to_owned(),
        client_ids,
        thumbprints: input.thumbprint_list,
        create_time: ctx.now,
        tags: new_tags(input.tags)?,
    };
    haar_core::transact(&handlers.store, ctx, |tx| {
        check_quota::<OpenIdConnectProvider>(tx, ctx, "OpenIdConnectProvidersPerAccount", MAX_PROVIDERS)?;
        tx.create(record.clone())
            .map_err(|_| exists(format!("Provider with url {} already exists.", record.url)))
    })
    .await?;
    Ok(CreateOpenIDConnectProviderResponse {
        open_id_connect_provider_arn: Some(record.arn()),
        tags: tags(&record.tags),
    })
}

/// `GetOpenIDConnectProvider`.
pub(super) async fn get_open_id_connect_provider(
    handlers: &Handlers,
    ctx: &Context,
    input: GetOpenIDConnectProviderRequest,
) -> Result<GetOpenIDConnectProviderResponse> {
    let arn = &input.open_id_connect_provider_arn;
    let found = handlers.store.snapshot().get::<OpenIdConnectProvider>(&ctx.account, REGION, id(ctx, arn)?);
    let record = found.ok_or_else(|| missing(arn))?;
    Ok(GetOpenIDConnectProviderResponse {
        url: Some(record.id.clone()),
        client_id_list: record.client_ids.clone(),
        thumbprint_list: record.thumbprints.clone(),
        create_date: Some(record.create_time),
        tags: tags(&record.tags),
    })
}

/// `ListOpenIDConnectProviders`.
pub(super) async fn list_open_id_connect_providers(
    handlers: &Handlers,
    ctx: &Context,
    _: ListOpenIDConnectProvidersRequest,
) -> Result<ListOpenIDConnectProvidersResponse> {
    let snapshot = handlers.store.snapshot();
    let providers = snapshot.list::<OpenIdConnectProvider>(&ctx.account, REGION);
    Ok(ListOpenIDConnectProvidersResponse {
        open_id_connect_provider_list: providers
            .map(|record| OpenIDConnectProviderListEntry { arn: Some(record.arn()) })
            .collect(),
    })
}

async fn change(
    handlers: &Handlers,
    ctx: &Context,
    arn: &str,
    mut body: impl FnMut(&mut OpenIdConnectProvider) -> Result<()>,
) -> Result<()> {
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut record = need(tx, ctx, arn)?;
        body(&mut record)?;
        tx.put(record);
        Ok(())
    })
    .await
}

/// `DeleteOpenIDConnectProvider`: of one that is not there as well.
pub(super) async fn delete_open_id_connect_provider(
    handlers: &Handlers,
    ctx: &Context,
    input: DeleteOpenIDConnectProviderRequest,
) -> Result<()> {
    let arn = &input.open_id_connect_provider_arn;
    haar_core::transact(&handlers.store, ctx, |tx| {
        let record = need(tx, ctx, arn)?;
        tx.delete::<OpenIdConnectProvider>(&ctx.account, REGION, &record.id);
        Ok(())
    })
    .await
}

/// `AddClientIDToOpenIDConnectProvider`: once, however often it is added.
pub(super) async fn add_client_id_to_open_id_connect_provider(
    handlers: &Handlers,
    ctx: &Context,
    input: AddClientIDToOpenIDConnectProviderRequest,
) -> Result<()> {
    change(handlers, ctx, &input.open_id_connect_provider_arn, |record| {
        if !record.client_ids.contains(&input.client_id) {
            record.client_ids.push(input.client_id.clone());
        }
        if record.client_ids.len() > MAX_CLIENT_IDS {
            return Err(quota("ClientIdsPerOpenIdConnectProvider", MAX_CLIENT_IDS));
        }
        Ok(())
    })
    .await
}

/// `RemoveClientIDFromOpenIDConnectProvider`: succeeds for one that is not there as well.
pub(super) async fn remove_client_id_from_open_id_connect_provider(
    handlers: &Handlers,
    ctx: &Context,
    input: RemoveClientIDFromOpenIDConnectProviderRequest,
) -> Result<()> {
    change(handlers, ctx, &input.open_id_connect_provider_arn, |record| {
        record.client_ids.retain(|own| *own != input.client_id);
        Ok(())
    })
    .await
}

/// `UpdateOpenIDConnectProviderThumbprint`.
pub(super) async fn update_open_id_connect_provider_thumbprint(
    handlers: &Handlers,
    ctx: &Context,
    input: UpdateOpenIDConnectProviderThumbprintRequest,
) -> Result<()> {
    check_thumbprints(&input.thumbprint_list)?;
    change(handlers, ctx, &input.open_id_connect_provider_arn, |record| {
        record.thumbprints.clone_from(&input.thumbprint_list);
        Ok(())
    })
    .await
}

/// `TagOpenIDConnectProvider`.
pub(super) async fn tag_open_id_connect_provider(
    handlers: &Handlers,
    ctx: &Context,
    input: TagOpenIDConnectProviderRequest,
) -> Result<()> {
    tag(handlers, ctx, |tx| need(tx, ctx, &input.open_id_connect_provider_arn), &input.tags).await
}

/// `UntagOpenIDConnectProvider`.
pub(super) async fn untag_open_id_connect_provider(
    handlers: &Handlers,
    ctx: &Context,
    input: UntagOpenIDConnectProviderRequest,
) -> Result<()> {
    untag(handlers, ctx, |tx| need(tx, ctx, &input.open_id_connect_provider_arn), &input.tag_keys).await
}

/// `ListOpenIDConnectProviderTags`.
pub(super) async fn list_open_id_connect_provider_tags(
    handlers: &Handlers,
    ctx: &Context,
    input: ListOpenIDConnectProviderTagsRequest,
) -> Result<ListOpenIDConnectProviderTagsResponse> {
    let arn = &input.open_id_connect_provider_arn;
    let found = handlers.store.snapshot().get::<OpenIdConnectProvider>(&ctx.account, REGION, id(ctx, arn)?);
    let all = tags(&found.ok_or_else(|| missing(arn))?.tags);
    let found = page(handlers, ctx, arn, input.max_items, input.marker.as_deref(), all, |tag| &tag.key)?;
    Ok(ListOpenIDConnectProviderTagsResponse {
        tags: found.items,
        is_truncated: found.is_truncated,
        marker: found.marker,
    })
}
