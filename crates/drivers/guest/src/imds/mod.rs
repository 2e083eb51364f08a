//! The instance metadata service: HTTP/1.1 on 169.254.169.254 (EC2 User Guide, "Use instance metadata to manage your EC2
//! instance").

mod token;
mod tree;

use std::convert::Infallible;
use std::net::{Ipv4Addr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use socket2::{SockRef, Socket};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::token::MAX_TTL;
pub use self::token::TokenKey;
use self::tree::{Content, LATEST};
use crate::ServeError;
use crate::accept::Connections;
use crate::quota::Quota;
use crate::view::{Directory, Instance};

const TOKEN: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// Connections under way at once: of all guests, and of one.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_OF_ONE: usize = 32;

/// Time for a request's head to arrive, and for the whole exchange.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Largest head and largest body of a request, in octets; no request of this service needs a body.
const MAX_HEAD: usize = 16 * 1024;
const MAX_BODY: usize = 16 * 1024;

/// Serves instance metadata on `listener` until `shutdown` fires.
///
/// `listener` listens on 169.254.169.254:80 in the VPC's namespace. The instance is known by the address that the
/// request comes from. `key` seals the session tokens.
///
/// Every connection carries one request, as with AWS. That also bounds what leaves with a lowered time to live: the
/// answer to a token's `PUT` has the instance's hop limit, and nothing else travels on that connection.
///
/// # Errors
/// When the listener cannot be taken over. Nothing that a guest sends ends the server.
pub async fn serve_imds(
    listener: StdTcpListener,
    directory: Arc<dyn Directory>,
    key: TokenKey,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let quota = Quota::new(CONNECTIONS_OF_ONE);
    let arriving = Connections::new(listener, "the metadata service", CONNECTIONS, quota)?;
    let service = Arc::new(Imds { directory, key });
    let accept = async {
        let mut connections = JoinSet::new();
        loop {
            let (stream, peer, place) = arriving.next().await;
            while connections.try_join_next().is_some() {}
            let service = Arc::clone(&service);
            connections.spawn(async move {
                let _held = place;
                if timeout(EXCHANGE_TIMEOUT, service.serve(stream, *peer.ip())).await.is_err() {
                    tracing::debug!(%peer, "a metadata request took too long");
                }
            });
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = accept => Ok(()),
    }
}

struct Imds {
    directory: Arc<dyn Directory>,
    key: TokenKey,
}

impl Imds {
    /// One request and its answer.
    async fn serve(&self, stream: TcpStream, peer: Ipv4Addr) {
        // A second handle of the socket, since the connection keeps the first: the hop limit is known only once the
        // request is read.
        let socket = match SockRef::from(&stream).try_clone() {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%peer, %error, "no file descriptor for a metadata request"),
        };
        let socket = &socket;
        let answer = service_fn(|request: Request<Incoming>| async move {
            Ok::<_, Infallible>(self.answer(request, peer, socket).await)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), answer);
        if let Err(error) = connection.await {
            tracing::debug!(%peer, %error, "a metadata connection failed");
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Ipv4Addr,
        socket: &Socket,
    ) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        // Read to its end, or closing the connection would reset it before the answer is read.
        if Limited::new(body, MAX_BODY).collect().await.is_err() {
            return error(StatusCode::BAD_REQUEST);
        }
        let Some(instance) = self.directory.instance_at(peer) else {
            tracing::debug!(%peer, "metadata request from an unknown address");
            return error(StatusCode::SERVICE_UNAVAILABLE);
        };
        let mut instance = Instance::clone(&instance);
        instance.profile = self.directory.profile(&instance);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let response = respond(&head.method, head.uri.path(), &head.headers, &instance, &self.key, now);
        if head.method == Method::PUT {
            let hop_limit = instance.metadata_options.hop_limit.max(1);
            if let Err(error_) = socket.set_ttl_v4(hop_limit.into()) {
                tracing::warn!(instance = instance.id, error = %error_, "the hop limit could not be set");
                return error(StatusCode::SERVICE_UNAVAILABLE);
            }
        }
        response
    }
}

/// The answer to a request of `instance` at `now` (seconds since 1970).
fn respond(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    instance: &Instance,
    key: &TokenKey,
    now: u64,
) -> Response<Full<Bytes>> {
    if !instance.metadata_options.http_endpoint {
        return error(StatusCode::FORBIDDEN);
    }
    let segments: Result<Vec<_>, _> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| percent_decode_str(segment).decode_utf8())
        .collect();
    let Ok(segments) = segments else { return error(StatusCode::BAD_REQUEST) };
    let token_version = match &segments[..] {
        [version, api, token] if api == "api" && token == "token" => Some(version.as_ref()),
        _ => None,
    };
    match (method, token_version) {
        (&Method::PUT, Some(LATEST)) => give_token(headers, instance, key, now),
        (&Method::PUT, Some(_)) => error(StatusCode::FORBIDDEN),
        (&Method::GET | &Method::HEAD, None) => get(&segments, headers, instance, key, now),
        (_, token_version) => {
            let allow = if token_version.is_some() { "PUT" } else { "GET, HEAD" };
            let mut response = error(StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            response
        }
    }
}

/// A session token.
fn give_token(headers: &HeaderMap, instance: &Instance, key: &TokenKey, now: u64) -> Response<Full<Bytes>> {
    // A proxy must not hand tokens on.
    if headers.contains_key("x-forwarded-for") {
        return error(StatusCode::FORBIDDEN);
    }
    let ttl = headers.get(TOKEN_TTL).and_then(|ttl| ttl.to_str().ok()?.trim().parse().ok());
    let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TTL).contains(ttl)) else {
        return error(StatusCode::BAD_REQUEST);
    };
    let token = key.seal(&instance.id, ttl, now);
    let mut response = page(StatusCode::OK, "text/plain", token.into());
    response.headers_mut().insert(TOKEN_TTL, ttl.into());
    response
}

/// Metadata, dynamic data or user data.
fn get(
    segments: &[impl AsRef<str>],
    headers: &HeaderMap,
    instance: &Instance,
    key: &TokenKey,
    now: u64,
) -> Response<Full<Bytes>> {
    let left = match headers.get(TOKEN) {
        Some(token) => match key.open(token.as_bytes(), &instance.id, now) {
            Some(left) => Some(left),
            None => return error(StatusCode::UNAUTHORIZED),
        },
        None if instance.metadata_options.http_tokens_required => return error(StatusCode::UNAUTHORIZED),
        None => None,
    };
    let mut response = match tree::lookup(instance, segments) {
        Some(Content::Text(text)) => page(StatusCode::OK, "text/plain", text),
        Some(Content::Data(data)) => page(StatusCode::OK, "application/octet-stream", data),
        None => error(StatusCode::NOT_FOUND),
    };
    if let Some(left) = left {
        response.headers_mut().insert(TOKEN_TTL, left.into());
    }
    response
}

/// An error, as the page that AWS shows for it.
fn error(status: StatusCode) -> Response<Full<Bytes>> {
    let title = format!("{} - {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let body = format!(
        r#"<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
	"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{title}</title>
 </head>
 <body>
  <h1>{title}</h1>
 </body>
</html>
"#
    );
    page(status, "text/html", body.into())
}

fn page(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
    headers.insert(header::SERVER, HeaderValue::from_static("EC2ws"));
    response
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::instance;

    const NOW: u64 = 1_800_000_000;

    fn key() -> TokenKey {
        TokenKey::new([7; 32])
    }

    fn ask(
        instance: &Instance,
        method: &Method,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Response<Full<Bytes>> {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        respond(method, path, &headers, instance, &key(), NOW)
    }

    fn body(response: Response<Full<Bytes>>) -> String {
        let whole = pin!(response.into_body().collect());
        match whole.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(whole)) => String::from_utf8(whole.to_bytes().to_vec()).unwrap(),
            Poll::Pending => panic!("the body is not whole"),
        }
    }

    fn token(instance: &Instance, ttl: &str) -> String {
        let response = ask(instance, &Method::PUT, "/latest/api/token", &[(TOKEN_TTL, ttl)]);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[TOKEN_TTL], ttl);
        body(response)
    }

    #[test]
    fn a_token_opens_the_metadata() {
        let mut instance = instance();
        instance.metadata_options.http_tokens_required = true;
        for ttl in ["1", "21600"] {
            let token = token(&instance, ttl);
            let response = ask(&instance, &Method::GET, "/latest/meta-data/instance-id", &[(TOKEN, &token)]);
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()[TOKEN_TTL], ttl);
            assert_eq!(response.headers()["content-type"], "text/plain");
            assert_eq!(response.headers()["server"], "EC2ws");
            assert_eq!(body(response), instance.id);
        }
    }

    #[test]
    fn token_requests_are_checked() {
        let instance = instance();
        let put = |path: &str, headers: &[(&'static str, &str)]| {
            ask(&instance, &Method::PUT, path, headers).status()
        };
        assert_eq!(put("/latest/api/token", &[]), 400);
        for ttl in ["", "0", "-1", "21601", "99999999999999999999", "ten", "1.5"] {
            assert_eq!(put("/latest/api/token", &[(TOKEN_TTL, ttl)]), 400, "{ttl:?}");
        }
        assert_eq!(put("/latest/api/token", &[(TOKEN_TTL, "60"), ("x-forwarded-for", "10.0.0.1")]), 403);
        assert_eq!(put("/2021-03-23/api/token", &[(TOKEN_TTL, "60")]), 403);
        assert_eq!(put("/latest/meta-data", &[(TOKEN_TTL, "60")]), 405);
        let get = ask(&instance, &Method::GET, "/latest/api/token", &[]);
        assert_eq!(get.status(), 405);
        assert_eq!(get.headers()["allow"], "PUT");
        assert_eq!(ask(&instance, &Method::POST, "/latest/meta-data", &[]).headers()["allow"], "GET, HEAD");
    }

    #[test]
    fn without_a_token_only_version_1_answers() {
        let mut instance = instance();
        assert_eq!(ask(&instance, &Method::GET, "/latest/meta-data", &[]).status(), 200);
        instance.metadata_options.http_tokens_required = true;
        for path in ["/", "/latest/meta-data", "/latest/user-data", "/latest/nothing"] {
            assert_eq!(ask(&instance, &Method::GET, path, &[]).status(), 401, "{path}");
        }
    }

    #[test]
    fn a_token_that_is_none_is_refused_even_where_none_is_needed() {
        let mut other = instance();
        other.id = "i-0other".into();
        let foreign = token(&other, "60");
        let expired = key().seal(&instance().id, 60, NOW - 60);
        for token in ["", "x", &foreign, &expired] {
            assert_eq!(
                ask(&instance(), &Method::GET, "/latest/meta-data", &[(TOKEN, token)]).status(),
                401,
                "{token}"
            );
        }
    }

    #[test]
    fn a_disabled_endpoint_answers_nothing() {
        let mut instance = instance();
        let token = token(&instance, "60");
        instance.metadata_options.http_endpoint = false;
        assert_eq!(ask(&instance, &Method::GET, "/latest/meta-data", &[(TOKEN, &token)]).status(), 403);
        assert_eq!(ask(&instance, &Method::PUT, "/latest/api/token", &[(TOKEN_TTL, "60")]).status(), 403);
    }

    #[test]
    fn a_role_comes_with_its_credentials() {
        let mut instance = instance();
        let get = |instance: &Instance, path: &str| {
            let response = ask(instance, &Method::GET, path, &[]);
            (response.status().as_u16(), body(response))
        };
        assert_eq!(get(&instance, "/latest/meta-data/iam/info").0, 404);
        let at = time::OffsetDateTime::from_unix_timestamp(NOW as i64).unwrap();
        let credentials = crate::view::Credentials {
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: "secret".into(),
            session_token: "token".into(),
            issued: at,
            expires: at + Duration::from_secs(3600),
        };
        let role = crate::view::Role { name: "web".into(), credentials: Some(credentials) };
        instance.profile = Some(crate::view::Profile {
            arn: "arn:aws:iam::123456789012:instance-profile/web".into(),
            id: "AIPAEXAMPLE".into(),
            updated: at,
            role: Some(role),
        });
        assert!(get(&instance, "/latest/meta-data/").1.contains("iam/"));
        assert_eq!(get(&instance, "/latest/meta-data/iam/").1, "info\nsecurity-credentials/");
        assert_eq!(get(&instance, "/latest/meta-data/iam/security-credentials/").1, "web");
        assert_eq!(
            get(&instance, "/latest/meta-data/iam/info").1,
            "{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"2027-01-15T08:00:00Z\",\n  \
             \"InstanceProfileArn\" : \"arn:aws:iam::123456789012:instance-profile/web\",\n  \
             \"InstanceProfileId\" : \"AIPAEXAMPLE\"\n}"
        );
        assert_eq!(
            get(&instance, "/latest/meta-data/iam/security-credentials/web").1,
            "{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"2027-01-15T08:00:00Z\",\n  \"Type\" : \"AWS-HMAC\",\n  \
             \"AccessKeyId\" : \"ASIAEXAMPLE\",\n  \"SecretAccessKey\" : \"secret\",\n  \"Token\" : \"token\",\n  \
             \"Expiration\" : \"2027-01-15T09:00:00Z\"\n}"
        );
        assert_eq!(get(&instance, "/latest/meta-data/iam/security-credentials/other").0, 404);
        assert_eq!(get(&instance, "/2011-01-01/meta-data/iam/info").0, 404, "a version from before roles");
        if let Some(role) = instance.profile.as_mut().and_then(|profile| profile.role.as_mut()) {
            role.credentials = None;
        }
        let refused = get(&instance, "/latest/meta-data/iam/security-credentials/web").1;
        assert!(refused.contains("\"Code\" : \"AssumeRoleUnauthorizedAccess\""), "{refused}");
    }

    #[test]
    fn errors_are_pages() {
        let response = ask(&instance(), &Method::GET, "/latest/nothing", &[]);
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()["content-type"], "text/html");
        let page = body(response);
        assert!(
            page.starts_with("<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<!DOCTYPE html PUBLIC"),
            "{page}"
        );
        assert!(page.contains("<h1>404 - Not Found</h1>"), "{page}");
    }

    #[test]
    fn paths_may_be_written_in_more_ways_than_one() {
        let get = |path: &str| ask(&instance(), &Method::GET, path, &[]);
        assert_eq!(body(get("//latest//meta-data/instance-id/")), "i-0123456789abcdef0");
        let mac = "/latest/meta-data/network/interfaces/macs/02%3A7a%3a00:10:20:3f/device-number";
        assert_eq!(body(get(mac)), "0");
        assert_eq!(get("/latest/%ff").status(), 400);
        assert_eq!(get("/latest/meta-data/../user-data").status(), 404);
        assert_eq!(get("/latest/user-data").headers()["content-type"], "application/octet-stream");
    }

    proptest! {
        #[test]
        fn any_path_has_an_answer(path in "/(latest|1.0|[a-z0-9./%=-]{0,20})(/(meta-data|dynamic|[ -~é]{0,20})){0,6}") {
            let status = ask(&instance(), &Method::GET, &path, &[]).status();
            prop_assert!([200, 400, 404, 405].contains(&status.as_u16()), "{status}");
        }
    }
}
