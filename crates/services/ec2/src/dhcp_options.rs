//! DHCP option sets: the one that every VPC has, with what its DHCP server tells.

use haar_api::{Context, Error};
use haar_core::{FilterTable, Fingerprint, PageRequest};
use haar_records::Tags;
use haar_records::ec2::Vpc;

use crate::error::Result;
use crate::handlers::Handlers;
use crate::model::{
    AttributeValue, DescribeDhcpOptionsRequest, DescribeDhcpOptionsResult, DhcpConfiguration, DhcpOptions,
};
use crate::{describe, dns, ids};

/// A set, with the options that it has.
struct OptionSet {
    id: String,
    account: String,
    options: [(&'static str, String); 2],
    /// None: a set has no record that could be tagged.
    tags: Tags,
}

impl OptionSet {
    fn of(vpc: &Vpc) -> Self {
        let options = [
            ("domain-name", dns::private_domain(&vpc.region)),
            // The VPC's own resolver.
            ("domain-name-servers", "AmazonProvidedDNS".to_owned()),
        ];
        Self { id: vpc.dhcp_options_id.clone(), account: vpc.account.clone(), options, tags: Tags::new() }
    }
}

const FILTERS: FilterTable<OptionSet> = FilterTable::<OptionSet>::new(&[
    ("dhcp-options-id", |set, (), probe| probe.value(&set.id)),
    ("key", |set, (), probe| probe.values(set.options.iter().map(|(key, _)| *key))),
    ("owner-id", |set, (), probe| probe.value(&set.account)),
    ("value", |set, (), probe| probe.values(set.options.iter().map(|(_, value)| value.as_str()))),
])
.with_tags(|set| &set.tags);

/// `DescribeDhcpOptions`.
pub async fn describe_dhcp_options(
    handlers: &Handlers,
    ctx: &Context,
    input: DescribeDhcpOptionsRequest,
) -> Result<DescribeDhcpOptionsResult> {
    let filters = describe::parse(&FILTERS, &input.filters)?;
    let wanted = &input.dhcp_options_ids;
    let page = handlers.paginator.page(
        ctx,
        &PageRequest {
            parameters: &|| Fingerprint::of(&(wanted, filters.raw())),
            max_results: input.max_results,
            next_token: input.next_token.as_deref(),
            limits: describe::PAGE,
        },
    )?;
    let snapshot = handlers.snapshot_with_default_vpc(ctx).await?;
    let mut sets: Vec<_> =
        snapshot.list::<Vpc>(&ctx.account, &ctx.region).map(|vpc| OptionSet::of(vpc)).collect();
    sets.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    sets.dedup_by(|a, b| a.id == b.id);
    for id in wanted {
        ids::DHCP_OPTIONS.check(id)?;
        if !sets.iter().any(|set| set.id == *id) {
            return Err(Error::from(ids::DHCP_OPTIONS.missing(id)));
        }
    }
    sets.retain(|set| (wanted.is_empty() || wanted.contains(&set.id)) && filters.matches(set, &()));
    let (sets, next_token) = page.take(sets, |set| &set.id);
    let to_api = |set: OptionSet| DhcpOptions {
        owner_id: Some(set.account),
        tags: Vec::new(),
        dhcp_options_id: Some(set.id),
        dhcp_configurations: set.options.map(configuration).into(),
    };
    Ok(DescribeDhcpOptionsResult { next_token, dhcp_options: sets.into_iter().map(to_api).collect() })
}

fn configuration((key, value): (&'static str, String)) -> DhcpConfiguration {
    DhcpConfiguration { key: Some(key.to_owned()), values: vec![AttributeValue { value: Some(value) }] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DescribeVpcsRequest, Ec2};
    use crate::testing::{code, context, filter, handlers};

    #[tokio::test]
    async fn the_set_of_the_default_vpc_says_what_its_server_says() {
        let handlers = handlers().await;
        let input = DescribeDhcpOptionsRequest {
            filters: filter("value", "eu-central-1.compute.internal"),
            ..DescribeDhcpOptionsRequest::default()
        };
        let set = handlers.describe_dhcp_options(&context(), input).await.unwrap().dhcp_options.remove(0);
        let vpcs = handlers.describe_vpcs(&context(), DescribeVpcsRequest::default()).await.unwrap();
        assert_eq!(set.dhcp_options_id, vpcs.vpcs[0].dhcp_options_id);
        let unknown = DescribeDhcpOptionsRequest {
            dhcp_options_ids: vec!["dopt-00000000000000000".into()],
            ..DescribeDhcpOptionsRequest::default()
        };
        assert_eq!(
            code(handlers.describe_dhcp_options(&context(), unknown).await),
            "InvalidDhcpOptionID.NotFound"
        );
    }
}
