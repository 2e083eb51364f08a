//! The part of AWS Systems Manager by which users find machine images: the public parameters `/aws/service/…` that name the newest
//! image of a distribution, for those images that the host's library has.
//!
//! Nobody's own parameters are kept: every other operation is refused by the table.

/// The API: the types of its requests and answers, its table and the [`Ssm`](model::Ssm) trait, generated from the model.
pub mod model {
    haar_api::include_model!("ssm.rs");
}

use haar_api::{Context, Error};
use haar_core::{Fingerprint, PageRequest, Paginator};
use haar_records::ec2::public_parameters::{self, Found, Missing};
use haar_store::{Store, StoreError};
use model::{
    GetParameterRequest, GetParameterResult, GetParametersByPathRequest, GetParametersByPathResult,
    GetParametersRequest, GetParametersResult, Parameter, ParameterType,
};

/// How many parameters GetParametersByPath gives at once when the request does not say.
const DEFAULT_PAGE: i32 = 10;

/// The handlers of SSM.
pub struct Handlers {
    store: Store,
    paginator: Paginator,
}

impl Handlers {
    /// Handlers over a store that knows the record types of `haar_records::ec2::register` and `haar_core::register`.
    ///
    /// # Errors
    /// What the store gives.
    pub async fn new(store: Store) -> Result<Self, StoreError> {
        let paginator = Paginator::load(&store).await?;
        Ok(Self { store, paginator })
    }
}

impl model::Ssm for Handlers {
    /// `GetParameter`. What is public is not encrypted: `WithDecryption` is ignored, as AWS does.
    async fn get_parameter(
        &self,
        ctx: &Context,
        input: GetParameterRequest,
    ) -> Result<GetParameterResult, Error> {
        let found = public_parameters::find(&self.store.snapshot(), &input.name);
        let found = found.map_err(|missing| match missing {
            Missing::Parameter => Error::new("ParameterNotFound", ""),
            Missing::Version => {
                let message = format!("Systems Manager could not find version of {}.", input.name);
                Error::new("ParameterVersionNotFound", message)
            }
        })?;
        Ok(GetParameterResult { parameter: Some(to_api(ctx, &found)) })
    }

    /// `GetParameters`.
    async fn get_parameters(
        &self,
        ctx: &Context,
        input: GetParametersRequest,
    ) -> Result<GetParametersResult, Error> {
        let mut names = input.names;
        names.sort_unstable();
        names.dedup();
        let records = self.store.snapshot();
        let (mut parameters, mut invalid_parameters) = (Vec::new(), Vec::new());
        for name in names {
            match public_parameters::find(&records, &name) {
                Ok(found) => parameters.push(to_api(ctx, &found)),
                Err(_) => invalid_parameters.push(name),
            }
        }
        Ok(GetParametersResult { parameters, invalid_parameters })
    }

    /// `GetParametersByPath`.
    async fn get_parameters_by_path(
        &self,
        ctx: &Context,
        input: GetParametersByPathRequest,
    ) -> Result<GetParametersByPathResult, Error> {
        if !input.path.starts_with('/') {
            return Err(Error::new(
                "ValidationException",
                "The parameter doesn't meet the parameter name requirements. The parameter name must begin with a forward slash \"/\".",
            ));
        }
        let page = self.paginator.page(
            ctx,
            &PageRequest {
                parameters: &|| Fingerprint::of(&(&input.path, input.recursive)),
                max_results: input.max_results.or(Some(DEFAULT_PAGE)),
                next_token: input.next_token.as_deref(),
                limits: 1..=10,
            },
        );
        let page = page.map_err(|error| {
            if input.next_token.is_some() {
                Error::new("InvalidNextToken", "The specified token isn't valid.")
            } else {
                error.into()
            }
        })?;
        let path = format!("{}/", input.path.trim_end_matches('/'));
        let below = |name: &str| {
            let rest = name.strip_prefix(&path);
            rest.is_some_and(|rest| input.recursive == Some(true) || !rest.contains('/'))
        };
        let records = self.store.snapshot();
        let names = public_parameters::names().filter(|name| below(name));
        let found: Vec<Found> =
            names.filter_map(|name| public_parameters::find(&records, name).ok()).collect();
        let (found, next_token) = page.take(&found, |found| found.name);
        Ok(GetParametersByPathResult {
            parameters: found.into_iter().map(|found| to_api(ctx, found)).collect(),
            next_token,
        })
    }
}

fn to_api(ctx: &Context, found: &Found) -> Parameter {
    Parameter {
        arn: Some(format!("arn:aws:ssm:{}::parameter{}", ctx.region, found.name)),
        data_type: Some(found.data_type.to_owned()),
        last_modified_date: Some(found.image.creation_date),
        name: Some(found.name.to_owned()),
        selector: found.selector.clone(),
        source_result: None,
        r#type: Some(ParameterType::String),
        value: Some(found.image.id.clone()),
        version: Some(found.version),
    }
}
