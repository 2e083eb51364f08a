//! What describe operations share: ids, filters and pages.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use haar_api::xml::Content;
use haar_api::{Context, Encoded, EncodedItems};
use haar_core::{FilterTable, Filters, Fingerprint, IdType, PageRequest};
use haar_store::{Entry, Resource, Snapshot};

use crate::error::{Result, combination};
use crate::handlers::Handlers;
use crate::model;

/// What `MaxResults` of most describe operations may be.
pub const PAGE: RangeInclusive<i32> = 5..=1000;

/// How the records of a kind are described.
pub struct Kind<T: 'static, C: 'static> {
    /// The kind's ids.
    pub id: IdType,
    /// The operation's filters.
    pub filters: FilterTable<T, C>,
    /// Filters whose values are an index of the records, each with that index, and [`BY_TAG`]. The first one that a request has is used.
    pub indexes: &'static [(&'static str, &'static str)],
}

/// What [`Kind::indexes`] calls the filters by a tag, `tag:KEY`.
const TAG_FILTERS: &str = "tag:";

/// The index of [`Kind::indexes`] by tags.
pub const BY_TAG: (&str, &str) = (TAG_FILTERS, haar_records::TAG_INDEX);

/// What a request says.
pub struct Request<'a> {
    /// Ids of the records; all when there are none.
    ids: &'a [String],
    /// Filters.
    filters: &'a [model::Filter],
    /// `MaxResults`.
    max_results: Option<i32>,
    /// `NextToken`.
    next_token: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// Of the members of an operation's input.
    pub fn new(
        ids: &'a [String],
        filters: &'a [model::Filter],
        max_results: Option<i32>,
        next_token: Option<&'a str>,
    ) -> Self {
        Self { ids, filters, max_results, next_token }
    }

    /// Whether it asks for every record at once.
    pub fn is_for_all(&self) -> bool {
        let Request { ids, filters, max_results, next_token } = self;
        ids.is_empty() && filters.is_empty() && max_results.is_none() && next_token.is_none()
    }
}

impl<T: Resource, C> Kind<T, C> {
    /// The page of records that a request asks for, sorted by id, and the token of the next one.
    ///
    /// # Errors
    /// For ids that are malformed or name nothing, for filters that the operation does not have, and for a page that cannot be.
    pub fn page(
        &self,
        handlers: &Handlers,
        ctx: &Context,
        snapshot: &Snapshot,
        request: &Request<'_>,
        context: &C,
    ) -> Result<(Vec<Entry<T>>, Option<String>)> {
        self.page_where(handlers, ctx, snapshot, request, context, |_| true)
    }

    /// As [`Self::page`], of those records only for which `only` holds.
    ///
    /// # Errors
    /// As [`Self::page`].
    pub fn page_where(
        &self,
        handlers: &Handlers,
        ctx: &Context,
        snapshot: &Snapshot,
        request: &Request<'_>,
        context: &C,
        only: impl Fn(&T) -> bool,
    ) -> Result<(Vec<Entry<T>>, Option<String>)> {
        let found =
            if request.ids.is_empty() { None } else { Some(self.by_ids(ctx, snapshot, request.ids)?) };
        self.page_among(handlers, ctx, snapshot, request, context, found.as_deref(), only)
    }

    /// As [`Self::page_where`], of the records `found`, which are sorted by id; without them, of all that the account has in
    /// the region.
    ///
    /// # Errors
    /// As [`Self::page`].
    #[allow(clippy::too_many_arguments)]
    pub fn page_among(
        &self,
        handlers: &Handlers,
        ctx: &Context,
        snapshot: &Snapshot,
        request: &Request<'_>,
        context: &C,
        found: Option<&[Entry<T>]>,
        only: impl Fn(&T) -> bool,
    ) -> Result<(Vec<Entry<T>>, Option<String>)> {
        let mut filters = parse(&self.filters, request.filters)?;
        let page = handlers.paginator.page(
            ctx,
            &PageRequest {
                parameters: &|| Fingerprint::of(&(request.ids, filters.raw())),
                max_results: request.max_results,
                next_token: request.next_token,
                limits: PAGE,
            },
        )?;
        let records: Box<dyn Iterator<Item = &Entry<T>>> = match found {
            Some(found) => Box::new(found.iter()),
            None => self.candidates(ctx, snapshot, &mut filters).unwrap_or_else(|| {
                let after = page.after().unwrap_or_default();
                Box::new(snapshot.list_after(&ctx.account, &ctx.region, after))
            }),
        };
        let matching = |record: &&Entry<T>| only(record) && filters.matches(record, context);
        Ok(page.take(records.filter(matching).cloned(), |record| record.id()))
    }

    fn by_ids(&self, ctx: &Context, snapshot: &Snapshot, ids: &[String]) -> Result<Vec<Entry<T>>> {
        let mut ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        for id in &ids {
            self.id.check(id)?;
        }
        ids.sort_unstable();
        ids.dedup();
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for id in ids {
            match snapshot.get(&ctx.account, &ctx.region, id) {
                Some(record) => found.push(record),
                None => missing.push(id),
            }
        }
        if missing.is_empty() { Ok(found) } else { Err(self.id.missing_all(&missing).into()) }
    }

    /// Fewer records than all among which the matching ones are, sorted by id, if an index tells. A filter that it answers is
    /// taken out.
    fn candidates<'s>(
        &self,
        ctx: &Context,
        snapshot: &'s Snapshot,
        filters: &mut Filters<'_, T, C>,
    ) -> Option<Box<dyn Iterator<Item = &'s Entry<T>> + 's>> {
        let mut values = |filter| match filter {
            TAG_FILTERS => {
                let (key, values) = filters.take_tag()?;
                Some(values.iter().map(|value| haar_records::tag(key, value).into()).collect())
            }
            _ => filters.literals(filter).map(<[_]>::to_vec),
        };
        let (values, index): (Vec<Cow<'_, str>>, _) =
            self.indexes.iter().find_map(|(filter, index)| Some((values(filter)?, index)))?;
        let with = |value: &Cow<'_, str>| snapshot.by_index(&ctx.account, &ctx.region, index, value);
        if let [value] = &*values {
            return Some(Box::new(with(value)));
        }
        let mut found: Vec<&Entry<T>> = values.iter().flat_map(with).collect();
        found.sort_unstable_by(|a, b| a.id().cmp(b.id()));
        found.dedup_by(|a, b| a.id() == b.id());
        Some(Box::new(found.into_iter()))
    }
}

/// Records as items of an answer, encoded some at a time, so that thousands are not all values at once.
pub fn encoded<T, I: Content>(records: &[Entry<T>], to_api: impl Fn(&T) -> I) -> Vec<Encoded<I>> {
    const AT_A_TIME: usize = 32;
    let encode = |some: &[Entry<T>]| {
        let items = EncodedItems::new("item", some.iter().map(|record| to_api(record)));
        items.run(0..some.len())
    };
    records.chunks(AT_A_TIME).map(encode).collect()
}

/// Refuses `MaxResults` of a request that names what it asks for, for the operations that take one of both.
///
/// # Errors
/// `InvalidParameterCombination`, which calls the ids `parameter`.
pub fn ids_or_pages(parameter: &str, ids: &[String], max_results: Option<i32>) -> Result<()> {
    if max_results.is_none() || ids.is_empty() {
        return Ok(());
    }
    Err(combination(format!("The parameter {parameter} cannot be used with the parameter maxResults")))
}

/// A request's filters, checked against an operation's.
///
/// # Errors
/// For filters that the operation does not have.
pub fn parse<'r, T, C>(table: &FilterTable<T, C>, filters: &'r [model::Filter]) -> Result<Filters<'r, T, C>> {
    let pairs = filters.iter().map(|f| (f.name.as_deref(), f.values.iter().map(String::as_str)));
    Ok(table.parse(pairs)?)
}

#[cfg(test)]
mod tests {
    use crate::model::{DescribeSubnetsRequest, DescribeVpcsRequest, Ec2};
    use crate::testing::{code, context, filter, handlers};

    #[tokio::test]
    async fn ids_are_all_found_or_the_missing_ones_are_named() {
        let handlers = handlers().await;
        let all = handlers.describe_subnets(&context(), DescribeSubnetsRequest::default()).await.unwrap();
        let mut ids: Vec<_> = all.subnets.into_iter().filter_map(|subnet| subnet.subnet_id).collect();
        assert!(ids.len() == 3 && ids.is_sorted());
        let by_ids = |ids: &[String]| DescribeSubnetsRequest {
            subnet_ids: ids.to_vec(),
            ..DescribeSubnetsRequest::default()
        };
        // Twice is once, and the order is that of the ids.
        ids.reverse();
        ids.push(ids[0].clone());
        let found = handlers.describe_subnets(&context(), by_ids(&ids)).await.unwrap();
        assert_eq!(found.subnets.len(), 3);
        ids.push("subnet-00000000000000000".into());
        let refused = handlers.describe_subnets(&context(), by_ids(&ids)).await.unwrap_err();
        assert_eq!(refused.code, "InvalidSubnetID.NotFound");
        assert_eq!(refused.message, "The subnet ID 'subnet-00000000000000000' does not exist");
        ids.push("vpc-00000000000000000".into());
        assert_eq!(
            code(handlers.describe_subnets(&context(), by_ids(&ids)).await),
            "InvalidSubnetID.Malformed"
        );
    }

    #[tokio::test]
    async fn an_index_finds_what_a_scan_finds() {
        let handlers = handlers().await;
        let vpcs = handlers.describe_vpcs(&context(), DescribeVpcsRequest::default()).await.unwrap();
        let vpc_id = vpcs.vpcs[0].vpc_id.clone().unwrap();
        for (value, expected) in [(vpc_id.as_str(), 3), ("vpc-*", 3), ("vpc-00000000000000000", 0)] {
            let mut filters = filter("vpc-id", value);
            // A value that comes twice lists nothing twice.
            filters[0].values.push(value.into());
            let input = DescribeSubnetsRequest { filters, ..DescribeSubnetsRequest::default() };
            let found = handlers.describe_subnets(&context(), input).await.unwrap().subnets;
            assert_eq!(found.len(), expected, "{value}");
        }
        let other = DescribeSubnetsRequest {
            filters: [filter("vpc-id", &vpc_id), filter("availability-zone", "*b")].concat(),
            ..DescribeSubnetsRequest::default()
        };
        assert_eq!(handlers.describe_subnets(&context(), other).await.unwrap().subnets.len(), 1);
    }
}
