//! Small services that answer what they are asked: one for every protocol, with every shape that the models of AWS have.
//!
//! Their models lie below `models/`, as botocore lays out its own, so that boto3 speaks to them with `AWS_DATA_PATH`. Their APIs
//! are generated as those of the real services are.

use std::sync::Arc;

use haar_api::schema::{self, Operation, ServiceModel};
use haar_api::sigv4::Secret;
use haar_api::value::Value;
use haar_api::{AccessKey, Authorizer, Context, Credentials, Endpoint, Error, KeyError, Principal};

/// The access key that the services know.
pub const ACCESS_KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
/// Its secret.
pub const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// An access key of temporary credentials, with the same secret.
pub const TEMPORARY_KEY_ID: &str = "ASIAIOSFODNN7EXAMPLE";
/// An access key of temporary credentials that have expired, with the same secret.
pub const EXPIRED_KEY_ID: &str = "ASIAEXPIREDN7EXAMPLE";
/// The token of the temporary credentials.
pub const SESSION_TOKEN: &str = "IQoJb3JpZ2luX2VjEXAMPLE/+==";
/// The only region.
pub const REGION: &str = "us-east-1";

/// Knows the keys above.
struct Keys;

impl Credentials for Keys {
    fn lookup(
        &self,
        access_key_id: &str,
        session_token: Option<&str>,
        _: haar_api::OffsetDateTime,
    ) -> Result<AccessKey, KeyError> {
        let temporary = match access_key_id {
            ACCESS_KEY_ID => false,
            TEMPORARY_KEY_ID | EXPIRED_KEY_ID => true,
            _ => return Err(KeyError::Unknown),
        };
        if session_token != temporary.then_some(SESSION_TOKEN) {
            return Err(KeyError::Unknown);
        }
        if access_key_id == EXPIRED_KEY_ID {
            return Err(KeyError::Expired);
        }
        let principal = Principal::root("123456789012", access_key_id);
        Ok(AccessKey { secret: Arc::new(Secret::new(SECRET_ACCESS_KEY)), principal })
    }
}

/// Allows everything, and takes one name for another.
struct Anyone;

impl Authorizer for Anyone {
    fn authorize(
        &self,
        _: &Context,
        _: &'static ServiceModel,
        operation: &'static Operation,
        input: &Value,
    ) -> Result<Option<Value>, Error> {
        let is_alias = schema::Part(operation.input, input).text(&["Name"]) == Some("alias");
        Ok(is_alias.then(|| {
            let mut meant = input.clone();
            schema::set(operation.input, &mut meant, &["Name"], Some(Value::String("meant".into())));
            meant
        }))
    }
}

/// An endpoint with the five services.
pub fn endpoint() -> Endpoint {
    Endpoint::new([REGION], std::sync::Arc::new(Keys), std::sync::Arc::new(Anyone))
        .service(ec2::EchoEc2Service(ec2::Echo))
        .service(query::EchoQueryService(query::Echo))
        .service(json10::EchoJson10Service(json10::Echo))
        .service(json11::EchoJson11Service(json11::Echo))
        .service(rest::EchoRestService(rest::Echo))
}

/// The handlers that all services have, and further ones.
macro_rules! echo {
    ($(#[$about:meta])* $module:ident, $file:literal, $trait:ident, $errors:path, { $($more:tt)* }) => {
        $(#[$about])*
        pub mod $module {
            haar_api::include_model!($file);

            /// The handlers.
            pub struct Echo;

            impl $trait for Echo {
                async fn echo(&self, _: &haar_api::Context, input: Everything) -> Result<Everything, haar_api::Error> {
                    Ok(input)
                }

                async fn check(&self, _: &haar_api::Context, input: CheckRequest) -> Result<CheckResult, haar_api::Error> {
                    Ok(CheckResult { name: Some(input.name) })
                }

                async fn fail(&self, _: &haar_api::Context, input: FailRequest) -> Result<(), haar_api::Error> {
                    use $errors as failure;
                    Err(failure(&input.kind, input.message.unwrap_or_default()))
                }

                async fn nothing(&self, _: &haar_api::Context) -> Result<(), haar_api::Error> {
                    Ok(())
                }

                async fn once(&self, ctx: &haar_api::Context, input: OnceRequest) -> Result<OnceResult, haar_api::Error> {
                    Ok(OnceResult { token: ctx.client_token.clone(), value: input.value })
                }

                $($more)*
            }
        }
    };
}

/// The error of a kind, of a service whose model has no errors. `Panic` is a handler with a bug.
fn undocumented(kind: &str, message: String) -> Error {
    assert_ne!(kind, "Panic", "as asked");
    let status = if kind == "Broken" || kind == "InternalError" { 500 } else { 400 };
    Error::new(kind.to_owned(), message).with_status(status)
}

/// The error of a kind, from the constructors that are generated from a model's errors.
macro_rules! documented {
    ($function:ident, $module:ident) => {
        fn $function(kind: &str, message: String) -> Error {
            match kind {
                "ThingNotFound" => {
                    $module::errors::thing_not_found_exception(message).with_member("Resource", "thing/1")
                }
                "Broken" => $module::errors::broken_exception(message),
                _ => undocumented(kind, message),
            }
        }
    };
}

documented!(of_query, query);
documented!(of_json10, json10);
documented!(of_json11, json11);
documented!(of_rest, rest);

echo!(
    /// Over `ec2`.
    ec2, "echo-ec2.rs", EchoEc2, crate::undocumented, {}
);
echo!(
    /// Over `query`.
    query, "echo-query.rs", EchoQuery, crate::of_query, {}
);
echo!(
    /// Over `json` 1.0.
    json10, "echo-json10.rs", EchoJson10, crate::of_json10, {}
);
echo!(
    /// Over `json` 1.1.
    json11, "echo-json11.rs", EchoJson11, crate::of_json11, {}
);
echo!(
    /// Over `rest-json`.
    rest, "echo-rest.rs", EchoRest, crate::of_rest, {
        async fn list_all(&self, _: &haar_api::Context) -> Result<OnceResult, haar_api::Error> {
            Ok(OnceResult { token: None, value: Some("all".into()) })
        }

        async fn list_some(&self, _: &haar_api::Context) -> Result<OnceResult, haar_api::Error> {
            Ok(OnceResult { token: None, value: Some("some".into()) })
        }

        async fn places(&self, _: &haar_api::Context, input: PlacesRequest) -> Result<PlacesResult, haar_api::Error> {
            Ok(PlacesResult {
                label: Some(input.label),
                rest: Some(input.rest),
                text: input.text,
                number: input.number,
                flag: input.flag,
                when: input.when,
                texts: input.texts,
                parameters: input.parameters,
                header_text: input.header_text,
                header_number: input.header_number,
                header_flag: input.header_flag,
                header_when: input.header_when,
                header_iso: input.header_when,
                header_texts: input.header_texts,
                meta: input.meta,
                body: input.body,
                status: Some(203),
            })
        }

        async fn plain_text(&self, _: &haar_api::Context, input: TextRequest) -> Result<TextResult, haar_api::Error> {
            Ok(TextResult { text: input.text })
        }

        async fn stream(&self, _: &haar_api::Context, input: StreamRequest) -> Result<StreamResult, haar_api::Error> {
            let size = input.data.as_ref().map_or(0, haar_api::Bytes::len);
            Ok(StreamResult { r#type: input.r#type, size: i64::try_from(size).ok(), status: input.status, data: input.data })
        }

        async fn wrapped(&self, _: &haar_api::Context, input: WrappedRequest) -> Result<WrappedResult, haar_api::Error> {
            Ok(WrappedResult { name: Some(input.name), dry_run: input.dry_run, inner: input.inner })
        }
    }
);
