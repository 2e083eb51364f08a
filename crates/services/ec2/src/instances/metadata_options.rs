//! How instances reach their metadata service.

use haar_api::Context;
use haar_records::ec2::{Image, Instance, InstanceState, MetadataOptions};

use crate::error::{Result, combination, invalid_parameter, missing, unsupported};
use crate::handlers::Handlers;
use crate::{model, tags};

/// The options of a launch, over the defaults of the image: with `ImdsSupport`, version 2 alone and one more hop, for containers.
pub(super) fn of_launch(
    image: &Image,
    input: Option<&model::InstanceMetadataOptionsRequest>,
) -> Result<MetadataOptions> {
    let mut options = MetadataOptions::default();
    if image.imds_v2 {
        (options.http_tokens_required, options.hop_limit) = (true, 2);
    }
    if let Some(input) = input {
        change(&mut options, input)?;
    }
    Ok(options)
}

/// Changes those options that a request names.
fn change(options: &mut MetadataOptions, input: &model::InstanceMetadataOptionsRequest) -> Result<()> {
    if input.http_protocol_ipv6 == Some(model::InstanceMetadataProtocolState::Enabled) {
        return Err(unsupported(
            "The value 'enabled' of the parameter HttpProtocolIpv6 is not supported: instances have no IPv6 addresses.",
        ));
    }
    if let Some(endpoint) = input.http_endpoint {
        options.http_endpoint = endpoint == model::InstanceMetadataEndpointState::Enabled;
    }
    if !options.http_endpoint && (input.http_tokens.is_some() || input.http_put_response_hop_limit.is_some())
    {
        return Err(combination(
            "The parameters HttpTokens and HttpPutResponseHopLimit cannot be used when HttpEndpoint is disabled.",
        ));
    }
    if let Some(tokens) = input.http_tokens {
        options.http_tokens_required = tokens == model::HttpTokensState::Required;
    }
    if let Some(limit) = input.http_put_response_hop_limit {
        options.hop_limit =
            u8::try_from(limit).ok().filter(|limit| (1..=64).contains(limit)).ok_or_else(|| {
                invalid_parameter(&limit.to_string(), "HttpPutResponseHopLimit", "It must be from 1 to 64.")
            })?;
    }
    if let Some(tags) = input.instance_metadata_tags {
        options.instance_tags = tags == model::InstanceMetadataTagsState::Enabled;
    }
    Ok(())
}

/// Whether the options are applied: once the instance runs.
pub(super) fn state(instance: &Instance) -> model::InstanceMetadataOptionsState {
    match instance.status.state {
        InstanceState::Pending => model::InstanceMetadataOptionsState::Pending,
        _ => model::InstanceMetadataOptionsState::Applied,
    }
}

/// The options as the API shows them.
pub(super) fn to_api(instance: &Instance) -> model::InstanceMetadataOptionsResponse {
    let options = &instance.spec.metadata_options;
    model::InstanceMetadataOptionsResponse {
        state: Some(state(instance)),
        http_tokens: Some(if options.http_tokens_required {
            model::HttpTokensState::Required
        } else {
            model::HttpTokensState::Optional
        }),
        http_put_response_hop_limit: Some(i32::from(options.hop_limit)),
        http_endpoint: Some(if options.http_endpoint {
            model::InstanceMetadataEndpointState::Enabled
        } else {
            model::InstanceMetadataEndpointState::Disabled
        }),
        http_protocol_ipv6: Some(model::InstanceMetadataProtocolState::Disabled),
        instance_metadata_tags: Some(if options.instance_tags {
            model::InstanceMetadataTagsState::Enabled
        } else {
            model::InstanceMetadataTagsState::Disabled
        }),
    }
}

/// `ModifyInstanceMetadataOptions`: effective with the guest's next request.
pub async fn modify_instance_metadata_options(
    handlers: &Handlers,
    ctx: &Context,
    input: model::ModifyInstanceMetadataOptionsRequest,
) -> Result<model::ModifyInstanceMetadataOptionsResult> {
    let options = model::InstanceMetadataOptionsRequest {
        http_tokens: input.http_tokens,
        http_put_response_hop_limit: input.http_put_response_hop_limit,
        http_endpoint: input.http_endpoint,
        http_protocol_ipv6: input.http_protocol_ipv6,
        instance_metadata_tags: input.instance_metadata_tags,
    };
    if options == model::InstanceMetadataOptionsRequest::default() {
        return Err(missing("HttpEndpoint"));
    }
    haar_core::transact(&handlers.store, ctx, |tx| {
        let mut instance = super::by_ids(ctx, tx, std::slice::from_ref(&input.instance_id))?.remove(0);
        if matches!(instance.status.state, InstanceState::ShuttingDown | InstanceState::Terminated) {
            return Err(super::wrong_state(&instance, "modified"));
        }
        change(&mut instance.spec.metadata_options, &options)?;
        if instance.spec.metadata_options.instance_tags {
            tags::check_for_metadata(instance.tags.keys().map(String::as_str))?;
        }
        let result = model::ModifyInstanceMetadataOptionsResult {
            instance_id: Some(instance.id.clone()),
            instance_metadata_options: Some(to_api(&instance)),
        };
        tx.put(instance);
        Ok(result)
    })
    .await
}
