//! What protects the way between two daemons: TLS 1.3.
//!
//! The daemon that receives is known by its key, whose fingerprint is in its invitations; the one that sends by the secret of the invitation, which
//! it says only to the owner of that key. Requests and the bytes of machines come to the same port, and are told apart by TLS's name for
//! what is spoken (ALPN).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use socket2::{SockRef, TcpKeepalive};
use subtle::ConstantTimeEq;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a connection is tried that the other end breaks off before it is made.
const TRIES: u32 = 5;

/// How long after that it is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// After how long a connection counts as lost whose other end says nothing, not even that it has received.
pub(super) const LOST: Duration = Duration::from_secs(15);

/// The name that certificates carry. Nobody looks at it.
const NAME: &str = "haar";

/// What begins the private key of an Ed25519 key in PKCS#8 (RFC 8410); the 32 bytes of the key follow.
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What is spoken over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speech {
    /// HTTP/1.1: one request and its answer.
    Ask,
    /// A line that says whose bytes follow, and those bytes.
    Carry,
}

impl Speech {
    const ALL: [Self; 2] = [Self::Ask, Self::Carry];

    fn name(self) -> &'static [u8] {
        match self {
            Self::Ask => b"haar-ask",
            Self::Carry => b"haar-carry",
        }
    }
}

/// What other daemons know this one by.
#[derive(Clone)]
pub struct Identity {
    acceptor: TlsAcceptor,
    fingerprint: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.fingerprint).finish()
    }
}

impl Identity {
    /// The identity that stands on a secret of this installation: always the same.
    ///
    /// # Panics
    /// Never: every secret is a key.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        let key = PrivatePkcs8KeyDer::from([&PKCS8[..], secret].concat());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519);
        let certificate = pair.and_then(|pair| CertificateParams::new([NAME.to_owned()])?.self_signed(&pair));
        let certificate = certificate.expect("every secret is a key").der().clone();
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider knows TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .expect("the certificate is the key's");
        config.alpn_protocols = Speech::ALL.map(|speech| speech.name().to_vec()).into();
        let fingerprint = fingerprint(&certificate).expect("the certificate is well formed");
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), fingerprint }
    }

    /// SHA-256 of the public key, in hexadecimal.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Takes a connection of another daemon.
    ///
    /// # Errors
    /// What kept it from being made.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(Speech, server::TlsStream<TcpStream>)> {
        tune(&stream)?;
        let stream = timeout(PATIENCE, self.acceptor.accept(stream)).await??;
        let spoken = stream.get_ref().1.alpn_protocol();
        let speech = Speech::ALL.into_iter().find(|speech| Some(speech.name()) == spoken);
        let speech = speech.ok_or_else(|| io::Error::other("it does not say what it speaks"))?;
        Ok((speech, stream))
    }
}

/// Connects to the daemon with this fingerprint.
///
/// # Errors
/// What kept the connection from being made, or that another daemon answers.
pub(super) async fn connect(
    address: &str,
    fingerprint: &str,
    speech: Speech,
) -> io::Result<client::TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::new(client_config(fingerprint, speech)));
    let connect_once = async || {
        let stream = TcpStream::connect(address).await?;
        tune(&stream)?;
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        connector.connect(name, stream).await
    };
    let connected = async {
        for _ in 1..TRIES {
            match connect_once().await {
                // Shown out, perhaps, as many others came.
                Err(error) if is_broken_off(&error) => tokio::time::sleep(AGAIN).await,
                connected => return connected,
            }
        }
        connect_once().await
    };
    match timeout(PATIENCE, connected).await {
        Ok(Err(error)) if is_another(&error) => Err(io::Error::other("another daemon answers there")),
        Ok(connected) => connected,
        Err(_) => Err(io::Error::other(format!("no connection within {} s", PATIENCE.as_secs()))),
    }
}

fn client_config(fingerprint: &str, speech: Speech) -> ClientConfig {
    let provider = Arc::new(provider::default_provider());
    let pinned = Pinned { fingerprint: fingerprint.to_owned(), provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    config.alpn_protocols = vec![speech.name().to_vec()];
    config
}

/// Has the system find out when the other end is gone, even where it just falls silent.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let ask = TcpKeepalive::new().with_time(LOST / 3).with_interval(LOST / 6).with_retries(4);
    socket.set_tcp_keepalive(&ask)?;
    socket.set_tcp_user_timeout(Some(LOST))
}

fn fingerprint(certificate: &CertificateDer<'_>) -> Result<String, rustls::Error> {
    let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    let digest = digest::digest(&digest::SHA256, &key);
    Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Trusts one key.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

/// Whether the other end has ended a connection before it was made.
fn is_broken_off(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Whether a connection failed because of the other end's key.
fn is_another(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = fingerprint(end_entity)?;
        if bool::from(found.as_bytes().ct_eq(self.fingerprint.as_bytes())) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_the_daemon_of_an_invitation_is_spoken_to() {
        let identity = Identity::new(&[7; 32]);
        assert_eq!(identity.fingerprint(), Identity::new(&[7; 32]).fingerprint());
        assert_ne!(identity.fingerprint(), Identity::new(&[8; 32]).fingerprint());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let known = identity.fingerprint().to_owned();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok((speech, mut stream)) = identity.accept(stream).await {
                    stream.write_all(format!("{speech:?}").as_bytes()).await.unwrap();
                    stream.shutdown().await.unwrap();
                }
            }
        });
        for speech in Speech::ALL {
            let mut said = String::new();
            connect(&address, &known, speech).await.unwrap().read_to_string(&mut said).await.unwrap();
            assert_eq!(said, format!("{speech:?}"));
        }
        let other = Identity::new(&[8; 32]);
        let error = connect(&address, other.fingerprint(), Speech::Ask).await.unwrap_err();
        assert_eq!(error.to_string(), "another daemon answers there");
        // Who says nothing about what it speaks, or trusts anybody, is no daemon.
        let mut config = client_config(&known, Speech::Ask);
        config.alpn_protocols.clear();
        let stream = TcpStream::connect(&address).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let mut said = String::new();
        let read = async { stream.unwrap().read_to_string(&mut said).await };
        assert!(read.await.is_err() || said.is_empty());
    }
}
