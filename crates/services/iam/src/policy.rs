//! What principals may do.

use haar_api::{Authorizer, Context, Error};

/// The root of an account may do everything in it; nobody else may do anything (IAM User Guide, "AWS account root user").
#[derive(Debug, Clone, Copy, Default)]
pub struct RootMayEverything;

impl Authorizer for RootMayEverything {
    fn authorize(&self, ctx: &Context, action: &str) -> Result<(), Error> {
        if ctx.principal.is_root() && ctx.principal.account == ctx.account {
            return Ok(());
        }
        let principal = &ctx.principal.arn;
        // EC2 has a code of its own (EC2 API Reference, "Error codes for the Amazon EC2 API").
        if ctx.service == "ec2" {
            let message = "You are not authorized to perform this operation.";
            return Err(Error::new("UnauthorizedOperation", message).with_status(403));
        }
        let message = format!(
            "User: {principal} is not authorized to perform: {action} because no identity-based policy allows the {action} action"
        );
        Err(Error::new("AccessDenied", message).with_status(403))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_may_everything_in_its_account_and_others_nothing() {
        let mut ctx = Context::new("123456789012", "eu-central-1");
        let authorize = |ctx: &Context| RootMayEverything.authorize(ctx, "ec2:RunInstances");
        assert_eq!(authorize(&ctx), Ok(()));
        ctx.account = "210987654321".into();
        assert_eq!(authorize(&ctx).unwrap_err().code, "AccessDenied");
        ctx.account = ctx.principal.account.clone();
        ctx.principal.kind = haar_api::PrincipalKind::User { name: "alice".into() };
        let refused = authorize(&ctx).unwrap_err();
        assert_eq!((&*refused.code, refused.status.as_u16()), ("AccessDenied", 403));
        ctx.service = "ec2";
        assert_eq!(authorize(&ctx).unwrap_err().code, "UnauthorizedOperation");
    }
}
