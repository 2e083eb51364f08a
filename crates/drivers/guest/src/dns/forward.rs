//! Forwarding to the host's resolvers (RFC 1035, RFC 5625, RFC 5452).
//!
//! Queries and answers pass as they are, so that whatever a guest and a resolver know of DNS works between them. Only
//! the message id is another one, drawn for each attempt, and each attempt has a socket and so a port of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Header, MessageType, Query, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use resolv_conf::ScopedIp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Queries under way at once, of all guests of all VPCs.
const IN_FLIGHT: usize = 256;

/// How long one resolver has to answer one attempt.
const ATTEMPT: Duration = Duration::from_millis(1500);

/// How often the resolvers are asked in turn.
const ROUNDS: usize = 2;

/// How long a query is worked on; a guest's own resolver gives up or asks again after five seconds.
const PATIENCE: Duration = Duration::from_millis(4500);

/// How often to look whether the list of resolvers has changed.
const CHECK: Duration = Duration::from_secs(2);

const DNS_PORT: u16 = 53;
const MAX_MESSAGE: usize = 65_535;

/// How a query came, and so how it is passed on: an answer that was too long for UDP is asked for again by TCP, by the
/// guest and then here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("the host has no resolvers")]
    NoResolvers,
    #[error("too many queries are under way")]
    Busy,
    #[error("no resolver answered in time")]
    Timeout,
    #[error("no resolver could be asked: {0}")]
    Io(#[from] io::Error),
}

/// Passes queries on to the host's resolvers; one serves all VPCs.
///
/// Its sockets are made by the tasks that use it, in the network namespace of the runtime's threads: the host's.
#[derive(Debug)]
pub struct Forwarder {
    resolvers: Resolvers,
    in_flight: Semaphore,
}

impl Forwarder {
    /// Asks the name servers that a file like `/etc/resolv.conf` (resolv.conf(5)) lists, and follows its changes.
    #[must_use]
    pub fn from_resolv_conf(path: impl Into<PathBuf>) -> Self {
        Self::new(Resolvers::File { path: path.into(), read: Mutex::default() })
    }

    /// Asks these resolvers.
    #[must_use]
    pub fn fixed(resolvers: impl Into<Arc<[SocketAddr]>>) -> Self {
        Self::new(Resolvers::Fixed(resolvers.into()))
    }

    fn new(resolvers: Resolvers) -> Self {
        Self { resolvers, in_flight: Semaphore::new(IN_FLIGHT) }
    }

    /// The answer to the encoded `query` that asks `question`, under the query's own id.
    pub(super) async fn forward(
        &self,
        query: &[u8],
        question: &Query,
        transport: Transport,
    ) -> Result<Vec<u8>, ForwardError> {
        let _place = self.in_flight.try_acquire().map_err(|_| ForwardError::Busy)?;
        let resolvers = self.resolvers.get();
        if resolvers.is_empty() {
            return Err(ForwardError::NoResolvers);
        }
        timeout(PATIENCE, ask_all(&resolvers, query, question, transport))
            .await
            .unwrap_or(Err(ForwardError::Timeout))
    }
}

/// Asks one resolver after the other until one has an answer.
async fn ask_all(
    resolvers: &[SocketAddr],
    query: &[u8],
    question: &Query,
    transport: Transport,
) -> Result<Vec<u8>, ForwardError> {
    let mut outcome = Err(ForwardError::Timeout);
    for resolver in resolvers.iter().cycle().take(resolvers.len() * ROUNDS) {
        match timeout(ATTEMPT, ask(*resolver, query, question, transport)).await {
            Ok(Ok((answer, ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp))) => {
                // Another one may know better; if not, this is the answer.
                outcome = Ok(answer);
            }
            Ok(Ok((answer, _))) => return Ok(answer),
            Ok(Err(error)) => {
                tracing::debug!(%resolver, %error, "a resolver could not be asked");
                if outcome.is_err() {
                    outcome = Err(error.into());
                }
            }
            Err(_) => tracing::debug!(%resolver, "a resolver did not answer in time"),
        }
    }
    outcome
}

/// One attempt: the answer under the query's own id, and its response code.
async fn ask(
    resolver: SocketAddr,
    query: &[u8],
    question: &Query,
    transport: Transport,
) -> io::Result<(Vec<u8>, ResponseCode)> {
    let (own_id, id) = (&query[..2], rand::random::<[u8; 2]>());
    let mut asked = query.to_vec();
    asked[..2].copy_from_slice(&id);
    let (mut answer, code) = match transport {
        Transport::Udp => ask_udp(resolver, &asked, question).await?,
        Transport::Tcp => ask_tcp(resolver, &asked, question).await?,
    };
    answer[..2].copy_from_slice(own_id);
    Ok((answer, code))
}

async fn ask_udp(
    resolver: SocketAddr,
    query: &[u8],
    question: &Query,
) -> io::Result<(Vec<u8>, ResponseCode)> {
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    loop {
        let length = socket.recv(&mut answer).await?;
        if let Some(code) = code_of_answer(&answer[..length], query, question) {
            answer.truncate(length);
            return Ok((answer, code));
        }
        tracing::debug!(%resolver, "what came is no answer to the query");
    }
}

async fn ask_tcp(
    resolver: SocketAddr,
    query: &[u8],
    question: &Query,
) -> io::Result<(Vec<u8>, ResponseCode)> {
    let mut stream = TcpStream::connect(resolver).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&super::frame(query)).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    let code = code_of_answer(&answer, query, question)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what came is no answer to the query"))?;
    Ok((answer, code))
}

/// The response code of a message, if that is an answer to the query.
fn code_of_answer(answer: &[u8], query: &[u8], question: &Query) -> Option<ResponseCode> {
    let mut decoder = BinDecoder::new(answer);
    let header = Header::read(&mut decoder).ok()?;
    let answers = answer[..2] == query[..2] && header.metadata.message_type == MessageType::Response;
    // A server that could not read the query may leave the question out.
    let same = match header.counts.queries {
        0 => header.metadata.response_code != ResponseCode::NoError,
        1 => Query::read(&mut decoder).is_ok_and(|echoed| echoed == *question),
        _ => false,
    };
    (answers && same).then_some(header.metadata.response_code)
}

#[derive(Debug)]
enum Resolvers {
    Fixed(Arc<[SocketAddr]>),
    File { path: PathBuf, read: Mutex<Option<ReadFile>> },
}

/// What a file of resolvers said when it was read last.
#[derive(Debug, Clone)]
struct ReadFile {
    checked: Instant,
    modified: Option<SystemTime>,
    resolvers: Arc<[SocketAddr]>,
}

impl Resolvers {
    fn get(&self) -> Arc<[SocketAddr]> {
        let (path, read) = match self {
            Self::Fixed(resolvers) => return Arc::clone(resolvers),
            Self::File { path, read } => (path, read),
        };
        let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(read) = &*read
            && read.checked.elapsed() < CHECK
        {
            return Arc::clone(&read.resolvers);
        }
        let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let resolvers = match &*read {
            Some(read) if read.modified == modified => Arc::clone(&read.resolvers),
            _ => read_resolvers(path),
        };
        *read = Some(ReadFile { checked: Instant::now(), modified, resolvers: Arc::clone(&resolvers) });
        resolvers
    }
}

fn read_resolvers(path: &Path) -> Arc<[SocketAddr]> {
    let parsed = std::fs::read(path)
        .map_err(|error| error.to_string())
        .and_then(|text| resolv_conf::Config::parse(text).map_err(|error| error.to_string()));
    match parsed {
        Ok(config) => config.nameservers.iter().map(socket_address).collect(),
        Err(error) => {
            tracing::warn!(path = %path.display(), error, "the host's resolvers cannot be read");
            Arc::default()
        }
    }
}

fn socket_address(resolver: &ScopedIp) -> SocketAddr {
    match resolver {
        ScopedIp::V4(ip) => SocketAddr::from((*ip, DNS_PORT)),
        ScopedIp::V6(ip, scope) => {
            let index = scope
                .as_deref()
                .and_then(|name| name.parse().ok().or_else(|| nix::net::if_::if_nametoindex(name).ok()));
            SocketAddrV6::new(*ip, DNS_PORT, 0, index.unwrap_or(0)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use hickory_proto::op::Message;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use tokio::net::TcpListener;

    use super::*;

    const ID: [u8; 2] = [0x12, 0x34];

    fn query() -> (Vec<u8>, Query) {
        let question = Query::query(Name::from_ascii("example.com.").unwrap(), RecordType::A);
        let mut message = Message::query();
        message.metadata.id = u16::from_be_bytes(ID);
        message.add_query(question.clone());
        (message.to_vec().unwrap(), question)
    }

    /// An answer to an encoded query, which names `ip`.
    fn answer(query: &[u8], code: ResponseCode, ip: [u8; 4]) -> Message {
        let mut answer = Message::from_vec(query).unwrap().into_response();
        answer.metadata.response_code = code;
        let name = answer.queries[0].name.clone();
        answer.add_answer(Record::from_rdata(name, 1, RData::A(A(ip.into()))));
        answer
    }

    /// A resolver that sends what `behave` says for each query.
    async fn resolver(mut behave: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                for datagram in behave(&buffer[..length]) {
                    socket.send_to(&datagram, from).await.unwrap();
                }
            }
        });
        address
    }

    async fn ask_these(resolvers: &[SocketAddr], transport: Transport) -> Result<Message, ForwardError> {
        let (query, question) = query();
        let answer = Forwarder::fixed(resolvers).forward(&query, &question, transport).await?;
        assert_eq!(answer[..2], ID);
        Ok(Message::from_vec(&answer).unwrap())
    }

    fn ip(answer: &Message) -> String {
        answer.answers[0].data.to_string()
    }

    #[tokio::test]
    async fn the_resolver_sees_the_query_under_another_id() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let resolver = resolver(move |query| {
            log.lock().unwrap().push(query.to_vec());
            vec![answer(query, ResponseCode::NoError, [1, 2, 3, 4]).to_vec().unwrap()]
        })
        .await;
        for _ in 0..20 {
            assert_eq!(ip(&ask_these(&[resolver], Transport::Udp).await.unwrap()), "1.2.3.4");
        }
        let seen = seen.lock().unwrap();
        assert!(seen.iter().all(|asked| asked[2..] == query().0[2..]));
        let mut ids: Vec<_> = seen.iter().map(|asked| &asked[..2]).collect();
        ids.sort_unstable();
        ids.dedup();
        assert!(ids.len() > 10, "{ids:?}");
    }

    #[tokio::test]
    async fn only_an_answer_to_the_query_counts() {
        let resolver = resolver(|query| {
            let mut wrong_id = answer(query, ResponseCode::NoError, [6, 6, 6, 1]);
            wrong_id.metadata.id ^= 1;
            let mut wrong_name = answer(query, ResponseCode::NoError, [6, 6, 6, 2]);
            wrong_name.queries[0].set_name(Name::from_ascii("example.org.").unwrap());
            let mut no_question = answer(query, ResponseCode::NoError, [6, 6, 6, 3]);
            no_question.queries.clear();
            let right = answer(query, ResponseCode::NoError, [1, 2, 3, 4]);
            let mut datagrams = vec![vec![], vec![0; 12], query.to_vec()];
            datagrams
                .extend([wrong_id, wrong_name, no_question, right].map(|message| message.to_vec().unwrap()));
            datagrams
        })
        .await;
        assert_eq!(ip(&ask_these(&[resolver], Transport::Udp).await.unwrap()), "1.2.3.4");
    }

    #[tokio::test]
    async fn another_resolver_is_asked_when_one_cannot_answer() {
        let absent = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let silent = resolver(|_| vec![]).await;
        let failing =
            resolver(|query| vec![answer(query, ResponseCode::ServFail, [0; 4]).to_vec().unwrap()]).await;
        let working =
            resolver(|query| vec![answer(query, ResponseCode::NXDomain, [1, 2, 3, 4]).to_vec().unwrap()])
                .await;
        for broken in [absent, silent, failing] {
            let answer = ask_these(&[broken, working], Transport::Udp).await.unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        }
        // A refusal is an answer when nobody has a better one.
        let answer = ask_these(&[failing, absent], Transport::Udp).await.unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert!(matches!(ask_these(&[absent], Transport::Udp).await, Err(ForwardError::Io(_))));
        assert!(matches!(ask_these(&[silent], Transport::Udp).await, Err(ForwardError::Timeout)));
        assert!(matches!(ask_these(&[], Transport::Udp).await, Err(ForwardError::NoResolvers)));
    }

    #[tokio::test]
    async fn what_came_by_tcp_is_asked_by_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut query = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut query).await.unwrap();
            let mut long = answer(&query, ResponseCode::NoError, [1, 2, 3, 4]);
            for last in 0..=255 {
                let record = Record::from_rdata(query_name(), 1, RData::A(A([1, 2, 4, last].into())));
                long.add_answer(record);
            }
            stream.write_all(&super::super::frame(&long.to_vec().unwrap())).await.unwrap();
        });
        let answer = ask_these(&[address], Transport::Tcp).await.unwrap();
        assert_eq!(answer.answers.len(), 257);
    }

    fn query_name() -> Name {
        query().1.name
    }

    #[tokio::test]
    async fn queries_under_way_are_bounded() {
        let silent = resolver(|_| vec![]).await;
        let forwarder = Forwarder::fixed([silent]);
        let _held = forwarder.in_flight.acquire_many(u32::try_from(IN_FLIGHT).unwrap()).await.unwrap();
        let (query, question) = query();
        assert!(matches!(
            forwarder.forward(&query, &question, Transport::Udp).await,
            Err(ForwardError::Busy)
        ));
    }

    #[test]
    fn resolvers_follow_their_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(
            file,
            "# by hand\nsearch example.com\nnameserver 192.0.2.1\nnameserver fe80::1%lo\noptions ndots:2"
        )
        .unwrap();
        let Forwarder { resolvers, .. } = Forwarder::from_resolv_conf(file.path());
        let expected: [SocketAddr; 2] = ["192.0.2.1:53".parse().unwrap(), "[fe80::1%1]:53".parse().unwrap()];
        assert_eq!(*resolvers.get(), expected);
        writeln!(file, "nameserver 192.0.2.2").unwrap();
        file.as_file().set_modified(SystemTime::now() + Duration::from_secs(1)).unwrap();
        assert_eq!(resolvers.get().len(), 2, "the file is not looked at for every query");
        std::thread::sleep(CHECK);
        assert_eq!(resolvers.get().len(), 3);
        drop(file);
        std::thread::sleep(CHECK);
        assert_eq!(resolvers.get().len(), 0);
    }
}
