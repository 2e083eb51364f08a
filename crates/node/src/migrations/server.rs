//! What other daemons ask.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use haar_api::{Lobby, Place};
use haar_records::ec2::{Encryption, Instance, Migration};
use haar_store::Tx;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::channel::Speech;
use super::relay;
use super::wire::{About, Answer, LIMIT, Offer, Outcome, PATH, TOKEN_HEADER};
use super::{GIVEN_UP, Migrations};
use crate::Error;

/// How long a request's head may take to come.
const HEAD: Duration = Duration::from_secs(10);

/// How long its body may take.
const BODY: Duration = Duration::from_secs(30);

/// How many connections may be open of which it is not known whether they are of daemons that were invited: what is more ends the oldest.
const STRANGERS: usize = 512;

/// What is said to those that say no secret, or none that is good any more.
const UNINVITED: &str = "the invitation is not one of this daemon, too old, or used already";

/// What the services give a guest that comes from another daemon, in the transaction that takes it.
pub trait Reception: Send + Sync {
    /// Makes what every account finds in a region, such as the default VPC.
    ///
    /// # Errors
    /// Why there is no such region.
    fn prepare(&self, tx: &mut Tx, region: &str) -> Result<(), String>;

    /// Takes room for an instance, as its launch would.
    ///
    /// # Errors
    /// Why there is none.
    fn make_room(&self, tx: &mut Tx, instance: &Instance) -> Result<(), String>;

    /// A new key for a volume that comes encrypted with one of another installation.
    ///
    /// # Errors
    /// Why there is none.
    fn encryption(&self, tx: &mut Tx, region: &str) -> Result<Encryption, String>;
}

impl Migrations {
    /// Answers other daemons, and lets through what they send.
    pub(crate) async fn serve(
        self: Arc<Self>,
        mut connections: mpsc::Receiver<TcpStream>,
        reception: Arc<dyn Reception>,
    ) {
        let strangers = Lobby::new(STRANGERS);
        while let Some(stream) = connections.recv().await {
            let (migrations, reception) = (self.clone(), reception.clone());
            let (place, shown_out) = strangers.enter();
            tokio::spawn(async move {
                let heard = tokio::select! {
                    heard = migrations.hear(stream, place, reception) => heard,
                    () = shown_out => Err(io::Error::other("too many strangers came after it")),
                };
                if let Err(error) = heard {
                    tracing::debug!(%error, "a connection of another daemon ended");
                }
            });
        }
    }

    /// Serves a connection. Its place is left when it has said a secret that is known here.
    async fn hear(
        self: Arc<Self>,
        stream: TcpStream,
        place: Place,
        reception: Arc<dyn Reception>,
    ) -> io::Result<()> {
        let (speech, mut stream) = self.identity.accept(stream).await?;
        if speech == Speech::Carry {
            let socket = self.gate.entrance(&mut stream).await?;
            place.leave();
            return relay::let_through(stream, &socket).await;
        }
        let place = Arc::new(place);
        let answer = service_fn(move |request| {
            let (migrations, place, reception) = (self.clone(), place.clone(), reception.clone());
            async move { Ok::<_, Infallible>(migrations.reply(request, &place, reception).await) }
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false);
        server.serve_connection(TokioIo::new(stream), answer).await.map_err(io::Error::other)
    }

    async fn reply(
        self: Arc<Self>,
        request: Request<Incoming>,
        place: &Place,
        reception: Arc<dyn Reception>,
    ) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let token = parts.headers.get(TOKEN_HEADER).and_then(|token| token.to_str().ok());
        let token = token.unwrap_or_default().to_owned();
        let what = parts.uri.path().strip_prefix(PATH).unwrap_or_default().to_owned();
        // Who says no secret has nothing read.
        if !self.knows(&token) {
            return response(StatusCode::OK, &to_a_stranger(&what));
        }
        place.leave();
        let body = tokio::time::timeout(BODY, Limited::new(body, LIMIT).collect()).await;
        let Ok(Ok(body)) = body else {
            return response(StatusCode::BAD_REQUEST, &"the request cannot be read");
        };
        // It goes on to its end even if the other daemon goes away.
        let answer =
            tokio::spawn(async move { self.answer(&what, &token, &body.to_bytes(), reception).await });
        match answer.await {
            Ok(Ok(answer)) => response(StatusCode::OK, &answer),
            Ok(Err(refusal)) => response(refusal.0, &refusal.1),
            Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    /// An answer, or a status and a text where there is none: then nothing is decided, and it is to be asked again.
    async fn answer(
        &self,
        what: &str,
        token: &str,
        body: &[u8],
        reception: Arc<dyn Reception>,
    ) -> Result<Answer<Value>, (StatusCode, String)> {
        let unreadable = |error: serde_json::Error| (StatusCode::BAD_REQUEST, error.to_string());
        let done = match what {
            "offer" => {
                let offer: Offer = serde_json::from_slice(body).map_err(unreadable)?;
                self.offered(offer, token, &*reception).await.map(|()| Value::Null)
            }
            "status" | "accept" | "abandon" | "settled" => {
                let about: About = serde_json::from_slice(body).map_err(unreadable)?;
                let known = self.store.snapshot().list_all::<Migration>().find(|m| m.id == about.id).cloned();
                let outcome = match known {
                    Some(known) if !bool::from(known.token.as_bytes().ct_eq(token.as_bytes())) => {
                        return Err((StatusCode::FORBIDDEN, "the token is missing or wrong".into()));
                    }
                    Some(known) if known.to.is_none() => match what {
                        "status" => Ok(self.outcome(&known)),
                        "accept" => self.accept(&known, about.bundle, &*reception).await,
                        "settled" => self.settled(&known).await,
                        _ => self.abandon(&known, GIVEN_UP).await,
                    },
                    _ => Ok(Outcome::Refused(GIVEN_UP.into())),
                };
                outcome.map(|outcome| json!(outcome))
            }
            _ => return Err((StatusCode::NOT_FOUND, "there is nothing here".into())),
        };
        match done {
            Ok(value) => Ok(Ok(value)),
            Err(Error::Refused(why)) => Ok(Err(why)),
            Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }

    async fn offered(&self, offer: Offer, token: &str, reception: &dyn Reception) -> Result<(), Error> {
        if !self.use_invitation(token) {
            return Err(Error::Refused(UNINVITED.into()));
        }
        self.take(offer, token, reception).await
    }
}

/// What is answered where no guest is known by the secret that was said: one that was on its way here was given up.
fn to_a_stranger(what: &str) -> Answer<Value> {
    match what {
        "offer" => Err(UNINVITED.into()),
        _ => Ok(json!(Outcome::Refused(GIVEN_UP.into()))),
    }
}

fn response(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
