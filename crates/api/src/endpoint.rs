//! The HTTP endpoint: from a request to a service's answer.
//!
//! One endpoint serves every service. A request is told by its signature's scope: the scope names the service, the service's model
//! the protocol, and the protocol where the operation stands. Before the scope is believed, the signature is verified.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::AsHeaderName;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::lobby::Lobby;
use crate::note::{self, Event, Noted, Recorder};
use crate::query::{Form, clip};
use crate::schema::{Kind, Operation, Part, Protocol, Route, ServiceModel, slots};
use crate::sigv4::{Rejection, Secret, Signature};
use crate::value::Value;
use crate::workers::Workers;
use crate::{
    Answer, Authorizer, Body, Context, Error, Principal, PrincipalKind, Reply, Rope, Service, json,
    request_id, rest, validate, xml,
};

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// How many connections may have sent nothing yet: what is more ends the oldest.
const SILENT: usize = 256;

/// How long a client may take to send a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// What begins a connection that speaks TLS: the type of a record with a handshake (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// How long requests that have begun may go on when the endpoint stops.
const GRACE: Duration = Duration::from_secs(10);

/// The parameters of a query string that make up its signature.
const SIGNATURE_PARAMETERS: &[&str] = &[
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
    "X-Amz-SignedHeaders",
];

/// Largest body of a route that belongs to no service, and of a request that is signed for none.
const MAX_ROUTE_BODY: usize = 1 << 20;

/// An access key and whom it stands for.
#[derive(Clone)]
pub struct AccessKey {
    /// The secret.
    pub secret: Arc<Secret>,
    /// Who signs with it.
    pub principal: Principal,
}

/// Why there is no key to check a signature with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    /// The key is not known or not active, or the session token is not the key's.
    Unknown,
    /// The temporary credentials have expired.
    Expired,
}

/// Knows access keys.
pub trait Credentials: Send + Sync + 'static {
    /// The key with this id, for a request with this session token.
    ///
    /// # Errors
    /// [`KeyError`].
    fn lookup(
        &self,
        access_key_id: &str,
        session_token: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<AccessKey, KeyError>;

    /// Takes note that a request was signed with a key, after its signature was found good.
    fn used(&self, _ctx: &Context) {}
}

/// The future of a route's answer.
pub type RouteReply = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// What answers the requests of a path that belongs to no service.
pub type RouteHandler = Arc<dyn Fn(Request<Bytes>) -> RouteReply + Send + Sync>;

/// Answers requests.
pub struct Endpoint {
    services: BTreeMap<&'static str, Arc<dyn Service>>,
    routes: Vec<(&'static str, RouteHandler)>,
    regions: Vec<&'static str>,
    credentials: Arc<dyn Credentials>,
    authorizer: Arc<dyn Authorizer>,
    recorder: Option<Arc<dyn Recorder>>,
    connections: Option<mpsc::Receiver<Connection>>,
    tls: Option<mpsc::Sender<TcpStream>>,
}

/// A connection that another listener took: its stream, its peer, and what is to be dropped with it.
pub type Connection = (TcpStream, SocketAddr, Box<dyn Send + Sync>);

impl Endpoint {
    /// An endpoint without services; requests may be signed for these regions.
    pub fn new(
        regions: impl IntoIterator<Item = &'static str>,
        credentials: Arc<dyn Credentials>,
        authorizer: Arc<dyn Authorizer>,
    ) -> Self {
        let regions = regions.into_iter().collect();
        Endpoint {
            services: BTreeMap::new(),
            routes: Vec::new(),
            regions,
            credentials,
            authorizer,
            recorder: None,
            connections: None,
            tls: None,
        }
    }

    /// Adds a service, under the name that signatures for it carry.
    #[must_use]
    pub fn service(mut self, service: impl Service) -> Self {
        self.services.insert(service.model().signing_name, Arc::new(service));
        self
    }

    /// Has every request noted down whose caller is known, before its answer is sent.
    #[must_use]
    pub fn recorder(mut self, recorder: impl Recorder) -> Self {
        self.recorder = Some(Arc::new(recorder));
        self
    }

    /// Also serves the connections that come here.
    #[must_use]
    pub fn connections(mut self, connections: mpsc::Receiver<Connection>) -> Self {
        self.connections = Some(connections);
        self
    }

    /// Sends the listener's connections on that begin TLS, which is not spoken here. Without it, they end.
    #[must_use]
    pub fn tls(mut self, connections: mpsc::Sender<TcpStream>) -> Self {
        self.tls = Some(connections);
        self
    }

    /// Adds a handler for the paths that begin with `prefix`. Their requests are not signed; the handler decides whom it answers.
    #[must_use]
    pub fn route(mut self, prefix: &'static str, handler: RouteHandler) -> Self {
        self.routes.push((prefix, handler));
        self
    }

    /// Serves HTTP/1.1 and HTTP/2 (without TLS) on a listener until `stop` completes and the requests that have begun are
    /// answered, or some seconds are over.
    ///
    /// # Errors
    /// What the system says where it gives no threads to serve with.
    pub async fn serve(mut self, listener: TcpListener, stop: impl Future<Output = ()>) -> io::Result<()> {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        server.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD_TIMEOUT);
        let graceful = GracefulShutdown::new();
        let mut others = self.connections.take();
        let endpoint = Arc::new(self);
        let (main, workers) = (Handle::current(), Workers::start()?);
        let silent = Lobby::new(SILENT);
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => {
                    accepted.map(|(stream, peer)| (stream, peer, None))
                }
                Some((stream, peer, held)) = next(&mut others) => Ok((stream, peer, Some(held))),
                () = &mut stop => break,
            };
            let (stream, peer, held) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: what is open has to end first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let Ok(stream) = stream.into_std() else { continue };
            let (endpoint, server, watcher) = (endpoint.clone(), server.clone(), graceful.watcher());
            let main = main.clone();
            let (place, shown_out) = silent.enter();
            workers.spawn(async move {
                let Ok(stream) = TcpStream::from_std(stream) else { return };
                let first = tokio::select! {
                    first = first_byte(&stream) => first,
                    () = shown_out => None,
                };
                drop(place);
                match (first, &held, &endpoint.tls) {
                    (None, ..) => {}
                    (Some(TLS_HANDSHAKE), None, Some(tls)) => send_on(stream, tls, &main).await,
                    _ => {
                        let begun = AtomicBool::new(false);
                        let answer = service_fn(|request| {
                            begun.store(true, Ordering::Relaxed);
                            let endpoint = endpoint.clone();
                            async move { Ok::<_, Infallible>(endpoint.answer(request, peer.ip()).await) }
                        });
                        let connection = server.serve_connection(TokioIo::new(stream), answer);
                        tokio::select! {
                            biased;
                            _ = watcher.watch(connection) => {}
                            () = nothing_comes(&begun) => {}
                        }
                    }
                }
                drop(held);
            });
        }
        let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
        Ok(())
    }

    /// Answers one request.
    async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Body> {
        let id = request_id();
        let (parts, body) = request.into_parts();
        let span = tracing::debug_span!("request", id, method = %parts.method, path = parts.uri.path());
        async {
            if let Some((_, handler)) =
                self.routes.iter().find(|(prefix, _)| parts.uri.path().starts_with(prefix))
            {
                return match read(&parts, body, MAX_ROUTE_BODY).await {
                    Ok(body) => handler(Request::from_parts(parts, body)).await,
                    Err(error) => refusal(&error, Protocol::RestJson, "", &id),
                };
            }
            let service = match self.identify(&parts) {
                Ok(found) => found,
                Err(unidentified) => {
                    let body = read(&parts, body, MAX_ROUTE_BODY).await.unwrap_or_default();
                    if let Unidentified::Unsigned(Rejection::Missing) = unidentified
                        && let Some(service) = self.unsigned(&parts, &body)
                    {
                        let answer = self.call_unsigned(service, &parts, body, peer, &id).await;
                        return finish(answer, service.model(), &id);
                    }
                    let (protocol, namespace) = self.guess(&parts, &body);
                    return refusal(&unidentified.error(protocol), protocol, namespace, &id);
                }
            };
            let model = service.0.model();
            finish(self.call(service, &parts, body, peer, &id).await, model, &id)
        }
        .instrument(span)
        .await
    }

    /// The service that a request is signed for, and its signature.
    fn identify<'p>(&self, parts: &'p Parts) -> Result<(&Arc<dyn Service>, Signature<'p>), Unidentified> {
        let signature = Signature::of(parts).map_err(Unidentified::Unsigned)?;
        let name = signature.scope().service;
        match self.services.get(name) {
            Some(service) => Ok((service, signature)),
            None => Err(Unidentified::NoService(name.to_owned())),
        }
    }

    /// The protocol of a request that is not signed for a service, and the namespace of its answers, for the form of an error.
    fn guess(&self, parts: &Parts, body: &[u8]) -> (Protocol, &'static str) {
        let content_type = text(&parts.headers, header::CONTENT_TYPE).unwrap_or_default();
        if content_type.starts_with("application/x-amz-json-1.0") {
            return (Protocol::Json("1.0"), "");
        }
        if content_type.starts_with("application/x-amz-json") {
            return (Protocol::Json("1.1"), "");
        }
        if parts.uri.path() != "/" {
            return (Protocol::RestJson, "");
        }
        // The services of the form protocols are told by the versions that their requests name.
        let form = form(parts, body).unwrap_or_default();
        let forms = self.services.values().map(|service| service.model());
        let mut forms = forms.filter(|model| matches!(model.protocol, Protocol::Ec2 | Protocol::Query));
        let found = forms.find(|model| form.get("Version") == Some(model.api_version));
        found.map_or((Protocol::Query, ""), |model| (model.protocol, model.xml_namespace))
    }

    /// The service of a request without signature that asks for an operation which needs none.
    fn unsigned(&self, parts: &Parts, body: &[u8]) -> Option<&Arc<dyn Service>> {
        let form = form(parts, body).ok()?;
        let (action, version) = (form.get("Action")?, form.get("Version"));
        self.services.values().find(|service| {
            let model = service.model();
            let found = model.operations.iter().find(|operation| operation.route.name == action);
            model.protocol == Protocol::Query
                && version.is_none_or(|version| version == model.api_version)
                && found.is_some_and(|operation| !operation.signed)
        })
    }

    /// Calls an operation that needs no signature.
    async fn call_unsigned(
        &self,
        service: &Arc<dyn Service>,
        parts: &Parts,
        body: Bytes,
        peer: IpAddr,
        id: &str,
    ) -> Result<Answer, Error> {
        let region = self.regions.first().copied().unwrap_or_default().to_owned();
        let caller = Caller { principal: Principal::anonymous(), region, now: OffsetDateTime::now_utc() };
        self.dispatch(service, caller, parts, body, peer, id).await
    }

    async fn call(
        &self,
        (service, signature): (&Arc<dyn Service>, Signature<'_>),
        parts: &Parts,
        body: Incoming,
        peer: IpAddr,
        id: &str,
    ) -> Result<Answer, Error> {
        let model = service.model();
        let now = OffsetDateTime::now_utc();
        let key = self.key(&signature, model.protocol, now)?;
        let body = read(parts, body, model.max_body).await?;
        let region = signature.scope().region;
        let verified = if self.regions.contains(&region) {
            signature.verify(&key.secret, parts, &body, now)
        } else {
            Err(Rejection::Mismatch("Credential should be scoped to a valid region.".to_owned()))
        };
        verified.map_err(|rejection| unauthorized(rejection, model.protocol))?;

        let caller = Caller { principal: key.principal, region: region.to_owned(), now };
        self.dispatch(service, caller, parts, body, peer, id).await
    }

    /// Decodes a request whose caller is known, asks whether it may be, and calls its handler.
    async fn dispatch(
        &self,
        service: &Arc<dyn Service>,
        caller: Caller,
        parts: &Parts,
        body: Bytes,
        peer: IpAddr,
        id: &str,
    ) -> Result<Answer, Error> {
        let model = service.model();
        let context = |operation: &'static Operation| Context {
            request_id: id.to_owned(),
            service: model.name,
            operation: operation.route.name,
            account: caller.principal.account.clone(),
            region: caller.region,
            principal: caller.principal,
            dry_run: false,
            now: caller.now,
            source_ip: peer,
            user_agent: text(&parts.headers, header::USER_AGENT).map(str::to_owned),
            client_token: None,
            fingerprint: [0; 32],
            noted: self.recorder.is_some()
                && note::is_recorded(model.name, operation)
                && note::is_answer_noted(operation),
        };
        let (index, input) = match decode(model, parts, body.clone()) {
            Ok(decoded) => decoded,
            Err(error) => {
                if let Some(operation) = asked_for(model, parts, &body) {
                    self.note_unread(&context(operation), model, operation, &error);
                }
                return Err(error);
            }
        };
        let operation = &model.operations[index];
        let mut ctx = context(operation);
        let recorder = self.recorder.as_deref().filter(|_| note::is_recorded(model.name, operation));
        let request = recorder.map(|_| note::request(model.protocol, Part(operation.input, &input)));
        // What needs no signature asks for no permission of the caller: its handler decides by what the request carries.
        let allowed = if operation.signed {
            let ask = || self.authorizer.authorize(&ctx, model, operation, &input);
            catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|_| Err(failed()))
        } else {
            Ok(None)
        };
        let input = apply_generic(model.protocol, operation, input, &mut ctx);
        // The context is that of the request as it was sent: a client's token stands for the same words, whatever they mean by now.
        let allowed = allowed.map(|instead| match instead {
            Some(instead) => apply_generic(model.protocol, operation, instead, &mut ctx.clone()),
            None => input,
        });
        if ctx.principal.kind != PrincipalKind::Anonymous {
            self.credentials.used(&ctx);
        }
        let mut note = Note { recorder, ctx: &ctx, model, operation, request };
        let answer = match allowed {
            Ok(input) => contained(service.call(index, &ctx, input)).await,
            Err(refused) => Err(refused),
        };
        let answer = answer.and_then(|answer| if ctx.dry_run { Err(Error::dry_run()) } else { Ok(answer) });
        match answer {
            Ok(mut answer) => {
                note.take(answer.noted.take(), None);
                Ok(answer)
            }
            Err(error) => {
                note.take(None, Some(&error));
                Err(error)
            }
        }
    }

    /// Notes down a request that cannot be decoded: that it was made, and why it is refused.
    fn note_unread(
        &self,
        ctx: &Context,
        model: &'static ServiceModel,
        operation: &'static Operation,
        error: &Error,
    ) {
        let recorder = self.recorder.as_deref().filter(|_| note::is_recorded(model.name, operation));
        let request = recorder.map(|_| Noted::nothing());
        if ctx.principal.kind != PrincipalKind::Anonymous {
            self.credentials.used(ctx);
        }
        Note { recorder, ctx, model, operation, request }.take(None, Some(error));
    }

    /// The key that a request is signed with.
    fn key(
        &self,
        signature: &Signature<'_>,
        protocol: Protocol,
        now: OffsetDateTime,
    ) -> Result<AccessKey, Error> {
        let found =
            self.credentials.lookup(signature.access_key_id(), signature.session_token.as_deref(), now);
        found.map_err(|error| match error {
            KeyError::Unknown => invalid_key(protocol),
            KeyError::Expired => expired_token(protocol),
        })
    }
}

/// A request that is to be noted down: with its answer, or without where the client does not wait for it.
struct Note<'a> {
    recorder: Option<&'a dyn Recorder>,
    ctx: &'a Context,
    model: &'static ServiceModel,
    operation: &'static Operation,
    request: Option<Noted>,
}

impl Note<'_> {
    fn take(&mut self, response: Option<Noted>, error: Option<&Error>) {
        // Who has not signed is known by what the request carries, once its handler has found it good.
        let is_known = self.ctx.principal.kind != PrincipalKind::Anonymous || response.is_some();
        if let (Some(recorder), Some(request)) = (self.recorder.filter(|_| is_known), self.request.take()) {
            let (ctx, protocol) = (self.ctx, self.model.protocol);
            let read_only = note::is_read_only(self.operation);
            recorder.record(Event { ctx, protocol, read_only, request, response, error });
        }
    }
}

impl Drop for Note<'_> {
    fn drop(&mut self) {
        self.take(None, None);
    }
}

/// Who asks, from where and when.
struct Caller {
    principal: Principal,
    region: String,
    now: OffsetDateTime,
}

/// A service's answer as a response.
fn finish(answer: Result<Answer, Error>, model: &ServiceModel, id: &str) -> Response<Body> {
    match answer {
        Ok(answer) => respond(answer.status, answer.headers, answer.content_type, answer.body, id),
        Err(error) => {
            tracing::debug!(code = %error.code, message = error.message, "refused");
            refusal(&error, model.protocol, model.xml_namespace, id)
        }
    }
}

/// Completes when the head of a connection's first request has not come in its time. hyper waits for what may become the preface of
/// HTTP/2 (RFC 9113, 3.4) without a limit.
async fn nothing_comes(begun: &AtomicBool) {
    tokio::time::sleep(HEAD_TIMEOUT).await;
    if begun.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Sends a connection on, as one of the `main` runtime: it is not this thread's any more.
async fn send_on(stream: TcpStream, to: &mpsc::Sender<TcpStream>, main: &Handle) {
    let moved = stream.into_std().and_then(|stream| {
        let _main = main.enter();
        TcpStream::from_std(stream)
    });
    if let Ok(stream) = moved {
        let _ = to.send(stream).await;
    }
}

/// The first byte of a connection, left in it; none if it never comes. HTTP begins with a letter.
async fn first_byte(stream: &TcpStream) -> Option<u8> {
    let mut first = [0];
    match tokio::time::timeout(HEAD_TIMEOUT, stream.peek(&mut first)).await {
        Ok(Ok(1)) => Some(first[0]),
        _ => None,
    }
}

/// The next connection that another listener took; never, where there is no other.
async fn next(others: &mut Option<mpsc::Receiver<Connection>>) -> Option<Connection> {
    match others {
        Some(others) => others.recv().await,
        None => std::future::pending().await,
    }
}

/// The answer of a handler; `InternalError` where it panics, so that the client gets an answer and its connection stays.
async fn contained(mut reply: Reply<'_>) -> Result<Answer, Error> {
    let poll = |cx: &mut std::task::Context<'_>| {
        // What a handler shares with others it changes in transactions only: nothing is left half done.
        let polled = catch_unwind(AssertUnwindSafe(|| reply.as_mut().poll(cx)));
        polled.unwrap_or_else(|_| Poll::Ready(Err(failed())))
    };
    std::future::poll_fn(poll).await
}

/// What answers where haar has a bug.
fn failed() -> Error {
    Error::internal("The operation failed.")
}

/// Takes what every operation has in common from its input into the context: EC2's `DryRun`, and the idempotency token.
fn apply_generic(protocol: Protocol, operation: &Operation, input: Value, ctx: &mut Context) -> Value {
    let (Kind::Structure(members), Value::Structure(mut values)) = (&operation.input.kind, input) else {
        return Value::Structure(Vec::new());
    };
    let mut token = None;
    let mut dry_run = None;
    for (index, (member, _)) in slots(members).enumerate() {
        if member.idempotency_token {
            token = Some(index);
        }
        if protocol == Protocol::Ec2 && member.name == "DryRun" {
            dry_run = Some(index);
        }
    }
    // Taken from the back, so that the token's place stays.
    let given = dry_run.map(|index| std::mem::take(&mut values[index]));
    ctx.dry_run = given == Some(Some(Value::Boolean(true)));
    if let Some(index) = token
        && let Some(Value::String(text)) = &values[index]
    {
        ctx.client_token = Some(text.clone());
        let mut hash = Sha256::new();
        for (_, value) in values.iter().enumerate().filter(|(place, _)| *place != index) {
            Value::Structure(vec![value.clone()]).digest(&mut hash);
        }
        ctx.fingerprint = hash.finalize().into();
    }
    // Handlers find `DryRun` in the context: it is no field of their types.
    if let Some(index) = dry_run {
        values.remove(index);
    }
    Value::Structure(values)
}

/// Why a request cannot be given to a service.
enum Unidentified {
    /// It has no signature that can be read.
    Unsigned(Rejection),
    /// It is signed for a service of this name, which is not here.
    NoService(String),
}

impl Unidentified {
    fn error(self, protocol: Protocol) -> Error {
        match self {
            Unidentified::Unsigned(rejection) => unauthorized(rejection, protocol),
            Unidentified::NoService(name) => {
                let message = format!("The service '{}' is not supported.", clip(&name));
                let code =
                    if is_json(protocol) { "UnsupportedOperationException" } else { "UnsupportedOperation" };
                Error::new(code, message)
            }
        }
    }
}

/// The parameters of a request of the form protocols: those of the query string, without the signature's, and the body's.
fn form<'a>(parts: &'a Parts, body: &'a [u8]) -> Result<Form<'a>, Error> {
    let mut form = Form::parse(parts.uri.query().unwrap_or_default().as_bytes())?;
    form.remove(SIGNATURE_PARAMETERS);
    form.extend(body)?;
    form.check_once(&["Action", "Version"])?;
    Ok(form)
}

/// Finds the operation of a request, decodes its input and checks it against the model's constraints.
///
/// Gives the operation's place in `model.operations` and its input, whatever the bytes are: memory and time are bounded by the
/// body's length, which the endpoint limits to `model.max_body`.
///
/// # Errors
/// What the service's protocol answers to what cannot be read, is not known, or breaks a constraint.
pub fn decode(model: &'static ServiceModel, parts: &Parts, body: Bytes) -> Result<(usize, Value), Error> {
    let unsupported = model.unsupported_error;
    let may_be = match model.protocol {
        Protocol::Ec2 | Protocol::Query => [Method::GET, Method::POST].contains(&parts.method),
        Protocol::Json(_) => parts.method == Method::POST,
        Protocol::RestJson => true,
    };
    if !may_be {
        let message = "The specified method is not allowed against this resource.";
        return Err(Error::new("MethodNotAllowed", message).with_status(405));
    }
    let (index, input) = match model.protocol {
        Protocol::Ec2 | Protocol::Query => {
            let form = form(parts, &body)?;
            check_version(model, form.get("Version"))?;
            let action = form.get("Action").filter(|action| !action.is_empty());
            let action = action.ok_or_else(|| {
                Error::new("MissingAction", "The request must contain the parameter Action")
            })?;
            let index = operation(model, action).ok_or_else(|| {
                let message = format!("The action {} is not valid for this web service.", clip(action));
                Error::new("InvalidAction", message)
            })??;
            (index, form.into_value(model.operations[index].input, unsupported)?)
        }
        Protocol::Json(_) => {
            let name = target(model, parts);
            let index = name.and_then(|name| operation(model, name)).ok_or_else(unknown_operation)??;
            let body = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
            (index, json::decode(&body, model.operations[index].input, unsupported)?)
        }
        Protocol::RestJson => {
            let (method, path) = (parts.method.as_str(), parts.uri.path());
            let query = parts.uri.query().unwrap_or_default();
            let routes = model.operations.iter().map(|operation| &operation.route);
            let Some((index, labels)) = rest::find(routes, method, path, query) else {
                return Err(match rest::find(model.missing.iter(), method, path, query) {
                    Some((missing, _)) => not_offered(model, &model.missing[missing]),
                    None => unknown_operation().with_status(404),
                });
            };
            let request = rest::Parts { labels, query: parts.uri.query(), headers: &parts.headers, body };
            (index, rest::decode(&request, model.operations[index].input, unsupported)?)
        }
    };
    validate::check(&input, model.operations[index].input, model)?;
    Ok((index, input))
}

/// The operation that a request asks for, whatever else it says; none that haar does not have.
fn asked_for(model: &'static ServiceModel, parts: &Parts, body: &[u8]) -> Option<&'static Operation> {
    let index = match model.protocol {
        Protocol::Ec2 | Protocol::Query => operation(model, form(parts, body).ok()?.get("Action")?)?.ok()?,
        Protocol::Json(_) => operation(model, target(model, parts)?)?.ok()?,
        Protocol::RestJson => {
            let routes = model.operations.iter().map(|operation| &operation.route);
            let query = parts.uri.query().unwrap_or_default();
            rest::find(routes, parts.method.as_str(), parts.uri.path(), query)?.0
        }
    };
    Some(&model.operations[index])
}

/// The name of the operation in `X-Amz-Target`.
fn target<'a>(model: &ServiceModel, parts: &'a Parts) -> Option<&'a str> {
    text(&parts.headers, "x-amz-target")?.strip_prefix(model.target_prefix)?.strip_prefix('.')
}

/// Refuses a version of the API that there never was; earlier ones have the same operations.
fn check_version(model: &ServiceModel, version: Option<&str>) -> Result<(), Error> {
    let Some(version) = version else { return Ok(()) };
    let is_date = version.len() == 10
        && version
            .bytes()
            .zip(*b"0000-00-00")
            .all(|(c, shape)| if shape == b'-' { c == b'-' } else { c.is_ascii_digit() });
    if is_date && version <= model.api_version {
        return Ok(());
    }
    let message =
        format!("The requested version ({}) of service {} does not exist", clip(version), model.name);
    Err(Error::new("NoSuchVersion", message))
}

/// The operation of this name; none when AWS does not know it, an error when only haar does not.
fn operation(model: &'static ServiceModel, name: &str) -> Option<Result<usize, Error>> {
    if let Ok(index) = model.operations.binary_search_by(|operation| operation.route.name.cmp(name)) {
        return Some(Ok(index));
    }
    let missing = model.missing.binary_search_by(|route| route.name.cmp(name)).ok()?;
    Some(Err(not_offered(model, &model.missing[missing])))
}

fn not_offered(model: &ServiceModel, route: &Route) -> Error {
    Error::new(model.unsupported_error, format!("The operation {} is not supported.", route.name))
}

fn unknown_operation() -> Error {
    Error::new("UnknownOperationException", "The requested operation is not known.")
}

/// Reads a body of at most `most` bytes.
async fn read(parts: &Parts, body: Incoming, most: usize) -> Result<Bytes, Error> {
    let too_large = || {
        Error::new("RequestEntityTooLarge", format!("The request's body is longer than {most} bytes."))
            .with_status(413)
    };
    let told = text(&parts.headers, header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if told.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, most).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            Err(Error::new("IncompleteBody", format!("The request's body could not be read: {error}")))
        }
        Err(_) => {
            Err(Error::new("RequestTimeout", "The request's body did not come in time.").with_status(408))
        }
    }
}

fn text(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn is_json(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Json(_) | Protocol::RestJson)
}

fn invalid_key(protocol: Protocol) -> Error {
    let message = "The security token included in the request is invalid.";
    match protocol {
        Protocol::Ec2 => auth_failure(),
        Protocol::Query => Error::new("InvalidClientTokenId", message).with_status(403),
        Protocol::Json(_) => Error::new("UnrecognizedClientException", message),
        Protocol::RestJson => Error::new("UnrecognizedClientException", message).with_status(403),
    }
}

fn expired_token(protocol: Protocol) -> Error {
    let message = "The security token included in the request is expired";
    match protocol {
        Protocol::Ec2 => Error::new("RequestExpired", "Request has expired."),
        Protocol::Query => Error::new("ExpiredToken", message).with_status(403),
        Protocol::Json(_) => Error::new("ExpiredTokenException", message),
        Protocol::RestJson => Error::new("ExpiredTokenException", message).with_status(403),
    }
}

fn auth_failure() -> Error {
    Error::new("AuthFailure", "AWS was not able to validate the provided access credentials").with_status(401)
}

/// How a service says that it does not accept a signature ("Common Errors" of each API reference).
fn unauthorized(rejection: Rejection, protocol: Protocol) -> Error {
    match rejection {
        Rejection::Missing => {
            let (code, message, status) = match protocol {
                Protocol::Ec2 | Protocol::Query => {
                    ("MissingAuthenticationToken", "Request is missing Authentication Token", 403)
                }
                Protocol::Json(_) => {
                    ("MissingAuthenticationTokenException", "Missing Authentication Token", 400)
                }
                Protocol::RestJson => {
                    ("MissingAuthenticationTokenException", "Missing Authentication Token", 403)
                }
            };
            Error::new(code, message).with_status(status)
        }
        Rejection::Incomplete(reason) => match protocol {
            Protocol::Ec2 | Protocol::Query => Error::new("IncompleteSignature", reason),
            Protocol::Json(_) => Error::new("IncompleteSignatureException", reason),
            Protocol::RestJson => Error::new("IncompleteSignatureException", reason).with_status(403),
        },
        Rejection::Expired(_) if protocol == Protocol::Ec2 => {
            Error::new("RequestExpired", "Request has expired.")
        }
        Rejection::Mismatch(_) if protocol == Protocol::Ec2 => auth_failure(),
        Rejection::Expired(reason) | Rejection::Mismatch(reason) => match protocol {
            Protocol::Ec2 | Protocol::Query => Error::new("SignatureDoesNotMatch", reason).with_status(403),
            Protocol::Json(_) => Error::new("InvalidSignatureException", reason),
            Protocol::RestJson => Error::new("InvalidSignatureException", reason).with_status(403),
        },
    }
}

fn respond(
    status: StatusCode,
    headers: HeaderMap,
    content_type: HeaderValue,
    body: impl Into<Body>,
    id: &str,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(HeaderName::from_static("x-amzn-requestid"), id);
    }
    response
}

/// An error in the form of a protocol.
fn refusal(error: &Error, protocol: Protocol, namespace: &str, id: &str) -> Response<Body> {
    let mut headers = HeaderMap::new();
    let (content_type, body) = match protocol {
        Protocol::Ec2 | Protocol::Query => (xml::CONTENT_TYPE, xml_error(error, protocol, namespace, id)),
        Protocol::Json(_) | Protocol::RestJson => {
            if let Ok(code) = HeaderValue::from_str(code(error, protocol)) {
                headers.insert("x-amzn-errortype", code);
            }
            (json::content_type(protocol), json_error(error, protocol))
        }
    };
    respond(error.status, headers, content_type, body, id)
}

/// The code of an error; haar's own failures are called otherwise outside of EC2 ("Common Errors" of the API references).
pub fn code(error: &Error, protocol: Protocol) -> &str {
    match (&*error.code, protocol) {
        ("InternalError", Protocol::Query) => "InternalFailure",
        ("InternalError", Protocol::Json(_) | Protocol::RestJson) => "InternalServerError",
        (code, _) => code,
    }
}

fn xml_error(error: &Error, protocol: Protocol, namespace: &str, id: &str) -> Rope {
    let mut w = xml::Writer::new(protocol);
    w.raw("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    if protocol == Protocol::Ec2 {
        w.raw("<Response><Errors><Error>");
        w.member("Code", code(error, protocol));
        w.member("Message", &error.message);
        w.raw("</Error></Errors>");
        w.member("RequestID", id);
        w.raw("</Response>");
    } else {
        w.raw("<ErrorResponse xmlns=\"");
        w.text(namespace);
        w.raw("\"><Error>");
        let fault = if error.status.is_server_error() { "Receiver" } else { "Sender" };
        w.member("Type", fault);
        w.member("Code", code(error, protocol));
        w.member("Message", &error.message);
        w.raw("</Error>");
        w.member("RequestId", id);
        w.raw("</ErrorResponse>");
    }
    w.finish()
}

fn json_error(error: &Error, protocol: Protocol) -> Rope {
    let mut body = serde_json::Map::new();
    body.insert("__type".into(), code(error, protocol).into());
    body.insert("message".into(), error.message.clone().into());
    body.extend(error.members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    Bytes::from(serde_json::Value::Object(body).to_string()).into()
}
