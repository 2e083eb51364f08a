//! The authorizer.

use std::collections::BTreeMap;

use haar_api::schema::{Operation, Otherwise, Part, Permission, Protocol, ServiceModel};
use haar_api::value::Value;
use haar_api::{Authorizer, Context, Error};
use haar_policy::{Attached, Denied, Environment, Key, Keys, Policies, Principal, Request, Values};

use crate::message;
use crate::resources::{Named, Query, Resource, Resources};

/// Who makes a request, with the policies that apply.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it is.
    pub principal: Principal,
    /// The policies of the user and its groups, or of the role.
    pub identity: Vec<Attached>,
    /// The permissions boundary.
    pub boundary: Option<Attached>,
    /// The session policies.
    pub session: Vec<Attached>,
}

/// The condition keys that every request has ("AWS global condition context keys", IAM User Guide).
pub fn environment(ctx: &Context) -> Environment<'_> {
    Environment {
        time: ctx.now,
        source_ip: Some(ctx.source_ip),
        secure_transport: false,
        user_agent: ctx.user_agent.as_deref(),
        referer: None,
        requested_region: Some(&ctx.region),
        via_aws_service: false,
    }
}

/// Knows callers.
pub trait Callers: Send + Sync + 'static {
    /// Who signed the request, with the policies that apply now.
    fn caller(&self, ctx: &Context) -> Caller;
}

/// Makes the encoded form of an authorization message for an account, which only `sts:DecodeAuthorizationMessage` reads.
pub type Seal = Box<dyn Fn(&str, &str) -> String + Send + Sync>;

/// Decides by the policies of callers.
pub struct Access {
    callers: Box<dyn Callers>,
    services: BTreeMap<&'static str, Box<dyn Resources>>,
    seal: Seal,
}

impl Access {
    /// Decides by what `callers` knows.
    pub fn new(callers: impl Callers, seal: Seal) -> Self {
        Self { callers: Box::new(callers), services: BTreeMap::new(), seal }
    }

    /// Adds a service, by its name in actions, with what finds its resources.
    #[must_use]
    pub fn service(mut self, name: &'static str, resources: impl Resources) -> Self {
        self.services.insert(name, Box::new(resources));
        self
    }

    /// What a permission is asked upon; nothing where the request does not need it.
    fn resources(
        &self,
        ctx: &Context,
        operation: &'static Operation,
        input: &Value,
        permission: &'static Permission,
    ) -> Vec<Resource> {
        let request = Part(operation.input, input);
        if permission.only_if.is_some_and(|path| request.values(path).is_empty()) {
            return Vec::new();
        }
        let Some(resource) = permission.resource else { return vec![any()] };
        let query = |named| Query { ctx, operation, input, action: permission.action, resource, named };
        let find = |named| match self.services.get(ctx.service) {
            Some(service) => service.find(&query(named)),
            None => ().find(&query(named)),
        };
        let named = permission.members.iter().flat_map(|path| request.texts(path));
        let mut ids: Vec<&str> = named.filter(|id| !id.is_empty()).collect();
        if !ids.is_empty() {
            ids.sort_unstable();
            ids.dedup();
            return ids.into_iter().flat_map(|id| find(Named::Id(id))).collect();
        }
        match permission.otherwise {
            Otherwise::Nothing => Vec::new(),
            Otherwise::New => find(Named::New),
            Otherwise::Default => find(Named::Default),
        }
    }

    fn refuse(
        &self,
        ctx: &Context,
        protocol: Protocol,
        denied: &Denied<'_>,
        resource: &Resource,
        keys: &RequestKeys<'_>,
    ) -> Error {
        match protocol {
            // EC2 has a code of its own (EC2 API Reference, "Error codes for the Amazon EC2 API").
            Protocol::Ec2 => {
                let encoded = (self.seal)(&ctx.account, &message::of(denied, resource, keys).to_string());
                let text = format!(
                    "You are not authorized to perform this operation. {denied}. Encoded authorization failure message: {encoded}"
                );
                Error::new("UnauthorizedOperation", text).with_status(403)
            }
            Protocol::Query => Error::new("AccessDenied", denied.to_string()).with_status(403),
            Protocol::RestJson => Error::new("AccessDeniedException", denied.to_string()).with_status(403),
            Protocol::Json(_) => Error::new("AccessDeniedException", denied.to_string()),
        }
    }
}

/// What actions without resources are asked upon.
fn any() -> Resource {
    Resource { arn: "*".to_owned(), ..Resource::default() }
}

impl Authorizer for Access {
    fn authorize(
        &self,
        ctx: &Context,
        model: &'static ServiceModel,
        operation: &'static Operation,
        input: &Value,
    ) -> Result<Option<Value>, Error> {
        // "AWS account root user": no policy limits what it does in its own account.
        if ctx.principal.is_root() && ctx.principal.account == ctx.account || operation.permissions.is_empty()
        {
            return Ok(None);
        }
        let complete =
            self.services.get(ctx.service).and_then(|service| service.complete(ctx, operation, input));
        let (input, fixed) = match &complete {
            Some(complete) => (&complete.asked, complete.fixed.clone()),
            None => (input, None),
        };
        let caller = self.callers.caller(ctx);
        let policies = Policies {
            identity: &caller.identity,
            boundary: caller.boundary.as_ref(),
            session: &caller.session,
        };
        let check = |action: &'static str, resource: &Resource, tags: Tags<'_>| {
            let keys = RequestKeys::new(ctx, tags);
            let request = Request { principal: &caller.principal, policies, action, keys: &keys };
            request
                .authorize(&[resource.as_policy_resource()])
                .map_err(|denied| self.refuse(ctx, model.protocol, &denied, resource, &keys))
        };
        let mut asked = false;
        for permission in operation.permissions {
            for resource in self.resources(ctx, operation, input, permission) {
                let tags = Tags::of(operation, input, &resource.arn);
                asked |= is_own(ctx, operation, permission.action);
                check(permission.action, &resource, tags)?;
            }
        }
        // The operation's own action is asked for in any case.
        let mut actions = operation.permissions.iter().map(|permission| permission.action);
        if let Some(action) = actions.find(|action| !asked && is_own(ctx, operation, action)) {
            check(action, &any(), Tags::of(operation, input, "*"))?;
        }
        Ok(fixed)
    }
}

/// Whether an action is the operation's own.
fn is_own(ctx: &Context, operation: &Operation, action: &str) -> bool {
    action
        .split_once(':')
        .is_some_and(|(service, name)| service == ctx.service && name == operation.route.name)
}

/// The tags that a request gives to a resource, or takes from it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tags<'a> {
    pub(crate) given: Vec<(&'a str, &'a str)>,
    keys: Vec<&'a str>,
}

impl<'a> Tags<'a> {
    /// Those for the resource with this ARN: where a request has them by type of resource (EC2's `TagSpecifications`), those
    /// of its type; else those of the request (`Tags`), or the keys alone (`TagKeys`).
    fn of(operation: &'static Operation, input: &'a Value, arn: &str) -> Self {
        let request = Part(operation.input, input);
        let resource = arn.splitn(6, ':').nth(5).unwrap_or_default();
        let resource_type = resource.split('/').next().unwrap_or_default();
        let specifications = request.list("TagSpecifications").into_iter();
        let mut tags: Vec<_> = specifications
            .filter(|specification| specification.text(&["ResourceType"]) == Some(resource_type))
            .flat_map(|specification| specification.list("Tags"))
            .collect();
        tags.extend(request.list("Tags"));
        let given: Vec<_> = tags
            .iter()
            .map(|tag| (tag.text(&["Key"]).unwrap_or_default(), tag.text(&["Value"]).unwrap_or_default()))
            .collect();
        let keys = given.iter().map(|(key, _)| *key).chain(request.texts(&["TagKeys"])).collect();
        Self { given, keys }
    }
}

/// The keys that are the same for whatever a request acts upon, and those of the tags that it gives.
pub(crate) struct RequestKeys<'a> {
    pub(crate) environment: Environment<'a>,
    pub(crate) tags: Tags<'a>,
}

impl<'a> RequestKeys<'a> {
    fn new(ctx: &'a Context, tags: Tags<'a>) -> Self {
        Self { environment: environment(ctx), tags }
    }
}

impl Keys for RequestKeys<'_> {
    fn get(&self, key: &Key) -> Option<Values<'_>> {
        match key.name() {
            "aws:requesttag" => key.tag_value(self.tags.given.iter().copied()),
            "aws:tagkeys" if !self.tags.keys.is_empty() => Some(self.tags.keys.iter().copied().collect()),
            _ => self.environment.get(key),
        }
    }
}
