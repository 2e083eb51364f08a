//! AWS STS.

use haar_api::{Context, Error};

/// The STS API: the types of its requests and answers, its table and the [`Sts`](model::Sts) trait, generated from the model
/// for the operations of `sts.toml`.
pub mod model {
    haar_api::include_model!("sts.rs");
}

use model::{GetCallerIdentityRequest, GetCallerIdentityResponse};

/// The handlers of STS.
#[derive(Debug, Clone, Copy, Default)]
pub struct Handlers;

impl model::Sts for Handlers {
    /// `GetCallerIdentity`.
    async fn get_caller_identity(
        &self,
        ctx: &Context,
        _: GetCallerIdentityRequest,
    ) -> Result<GetCallerIdentityResponse, Error> {
        Ok(GetCallerIdentityResponse {
            user_id: Some(ctx.principal.user_id.clone()),
            account: Some(ctx.principal.account.clone()),
            arn: Some(ctx.principal.arn.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::model::Sts;
    use super::*;

    #[tokio::test]
    async fn the_caller_is_who_signed() {
        let ctx = Context::new("123456789012", "eu-central-1");
        let identity = Handlers.get_caller_identity(&ctx, GetCallerIdentityRequest {}).await.unwrap();
        assert_eq!(identity.arn.as_deref(), Some("arn:aws:iam::123456789012:root"));
        assert_eq!(identity.user_id.as_deref(), Some("123456789012"));
        assert_eq!(identity.account.as_deref(), Some("123456789012"));
    }
}
