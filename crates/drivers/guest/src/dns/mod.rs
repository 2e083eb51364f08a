//! The resolver of a VPC (RFC 1035, RFC 7766).

mod forward;
mod zone;

use std::io;
use std::net::{Ipv4Addr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::BinDecodable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::forward::Forwarder;
use self::forward::Transport;
use self::zone::Found;
pub use self::zone::Zone;
use crate::ServeError;
use crate::accept::Connections;
use crate::quota::Quota;
use crate::udp::{LinkSocket, MAX_DATAGRAM};
use crate::view::Directory;

/// Forwarded queries under way at once, of one guest.
const QUERIES_OF_ONE: usize = 32;

/// TCP connections at once, to one listener: of all guests, and of one.
const CONNECTIONS: usize = 256;
const CONNECTIONS_OF_ONE: usize = 8;

/// How long a TCP connection may stay silent or unread.
const IDLE: Duration = Duration::from_secs(10);

/// Largest answer by UDP without and with EDNS, as this server advertises it (RFC 1035, RFC 6891).
const UDP_PAYLOAD: usize = 512;
const EDNS_PAYLOAD: u16 = 1232;

/// The resolver of one VPC.
#[derive(Debug)]
pub struct DnsServer {
    /// Sockets in the VPC's namespace, bound to port 53 of the VPC's base address plus two and of 169.254.169.253.
    pub udp: Vec<StdUdpSocket>,
    /// Listeners on the same addresses.
    pub tcp: Vec<StdTcpListener>,
    /// The names that belong to the VPC.
    pub zone: Zone,
    /// Where everything else is asked.
    pub forwarder: Arc<Forwarder>,
}

/// Serves DNS on the sockets of `server` until `shutdown` fires.
///
/// Only network interfaces that `directory` knows are answered. A name of the VPC is answered from `directory`; any
/// other one is forwarded. What cannot be resolved is a `SERVFAIL`, what is not served a `REFUSED`.
///
/// # Errors
/// When a socket cannot be taken over. Nothing that a guest sends ends the server.
pub async fn serve_dns(
    server: DnsServer,
    directory: Arc<dyn Directory>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let resolver = Arc::new(Resolver {
        zone: server.zone,
        directory,
        forwarder: server.forwarder,
        queries: Quota::new(QUERIES_OF_ONE),
        connections: Quota::new(CONNECTIONS_OF_ONE),
    });
    let mut loops = JoinSet::new();
    for socket in server.udp {
        let socket = LinkSocket::new(socket).map_err(ServeError::Socket)?;
        loops.spawn(Arc::clone(&resolver).serve_udp(Arc::new(socket)));
    }
    for listener in server.tcp {
        let quota = Arc::clone(&resolver.connections);
        let connections = Connections::new(listener, "the resolver", CONNECTIONS, quota)?;
        loops.spawn(Arc::clone(&resolver).serve_tcp(connections));
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        Some(Err(ended)) = loops.join_next() => {
            if let Ok(panic) = ended.try_into_panic() {
                std::panic::resume_unwind(panic);
            }
        }
    }
    Ok(())
}

/// What to do with a message.
#[derive(Debug)]
enum Step {
    /// It is no query.
    Ignore,
    /// Send this.
    Answer(Message),
    /// Ask the host's resolvers.
    Forward(Message),
}

struct Resolver {
    zone: Zone,
    directory: Arc<dyn Directory>,
    forwarder: Arc<Forwarder>,
    queries: Arc<Quota>,
    connections: Arc<Quota>,
}

impl Resolver {
    async fn serve_udp(self: Arc<Self>, socket: Arc<LinkSocket>) {
        let mut buffer = [0; MAX_DATAGRAM];
        let mut forwarded = JoinSet::new();
        loop {
            let (length, origin) = socket.receive(&mut buffer).await;
            while forwarded.try_join_next().is_some() {}
            let guest = *origin.source.ip();
            let answer = match self.step(&buffer[..length], guest) {
                Step::Ignore => continue,
                Step::Answer(answer) => encode(&answer),
                Step::Forward(query) => {
                    let Some(permit) = self.queries.acquire(guest) else {
                        tracing::debug!(%guest, "too many queries under way");
                        let refusal = encode(&reply(&query, ResponseCode::ServFail));
                        send(&socket, &refusal, origin).await;
                        continue;
                    };
                    let (this, socket, raw) =
                        (Arc::clone(&self), Arc::clone(&socket), buffer[..length].to_vec());
                    forwarded.spawn(async move {
                        let _held = permit;
                        let limit = query.edns.as_ref().map_or(0, Edns::max_payload);
                        let answer = this.forward(&raw, &query, Transport::Udp).await;
                        let answer = fit(answer, UDP_PAYLOAD.max(limit.into()), &query);
                        send(&socket, &answer, origin).await;
                    });
                    continue;
                }
            };
            send(&socket, &answer, origin).await;
        }
    }

    async fn serve_tcp(self: Arc<Self>, arriving: Connections) {
        let mut connections = JoinSet::new();
        loop {
            let (stream, peer, place) = arriving.next().await;
            while connections.try_join_next().is_some() {}
            let guest = *peer.ip();
            let this = Arc::clone(&self);
            connections.spawn(async move {
                let _held = place;
                if let Err(error) = this.serve_connection(stream, guest).await {
                    tracing::debug!(%guest, %error, "a connection to the resolver ended");
                }
            });
        }
    }

    /// One query after the other, until the guest closes, falls silent or sends what is no query.
    async fn serve_connection(&self, mut stream: TcpStream, guest: Ipv4Addr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let mut query = Vec::new();
            timeout(IDLE, async {
                let length = usize::from(stream.read_u16().await?);
                if length > MAX_DATAGRAM {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                query.resize(length, 0);
                stream.read_exact(&mut query).await
            })
            .await??;
            let answer = match self.step(&query, guest) {
                Step::Ignore => return Ok(()),
                Step::Answer(answer) => encode(&answer),
                Step::Forward(message) => self.forward(&query, &message, Transport::Tcp).await,
            };
            timeout(IDLE, stream.write_all(&frame(&answer))).await??;
        }
    }

    /// What to do with a message of `guest`.
    fn step(&self, datagram: &[u8], guest: Ipv4Addr) -> Step {
        let Ok(header) = Header::from_bytes(datagram) else { return Step::Ignore };
        if header.metadata.message_type == MessageType::Response {
            return Step::Ignore;
        }
        let query = match Message::from_vec(datagram) {
            Ok(query) => query,
            Err(error) => {
                tracing::debug!(%guest, %error, "malformed DNS query");
                let (id, code) = (header.metadata.id, header.metadata.op_code);
                return Step::Answer(Message::error_msg(id, code, ResponseCode::FormErr));
            }
        };
        let refuse = |code| Step::Answer(reply(&query, code));
        if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        if query.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [question] = &query.queries[..] else { return refuse(ResponseCode::FormErr) };
        let transfer = matches!(question.query_type, RecordType::AXFR | RecordType::IXFR);
        if self.directory.interface_at(guest).is_none() || question.query_class != DNSClass::IN || transfer {
            return refuse(ResponseCode::Refused);
        }
        let mut answer = reply(&query, ResponseCode::NoError);
        answer.metadata.authoritative = true;
        match self.zone.find(&question.name, question.query_type, &*self.directory) {
            Found::Elsewhere => return Step::Forward(query),
            Found::Records(records) => answer.answers = records,
            Found::NoData(soa) => answer.authorities = vec![soa],
            Found::NoName(soa) => {
                answer.authorities = vec![soa];
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
        }
        Step::Answer(answer)
    }

    /// The encoded answer to a query, of the host's resolvers or, if they have none, a `SERVFAIL`.
    async fn forward(&self, raw: &[u8], query: &Message, transport: Transport) -> Vec<u8> {
        let answer = match query.queries.first() {
            Some(question) => self.forwarder.forward(raw, question, transport).await,
            None => return encode(&reply(query, ResponseCode::FormErr)),
        };
        answer.unwrap_or_else(|error| {
            tracing::debug!(%error, "a query could not be forwarded");
            encode(&reply(query, ResponseCode::ServFail))
        })
    }
}

/// An answer to `query` without records.
fn reply(query: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::error_msg(query.metadata.id, query.metadata.op_code, code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.checking_disabled = query.metadata.checking_disabled;
    answer.queries.clone_from(&query.queries);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_PAYLOAD);
        edns.set_rcode_high(code.high());
        answer.set_edns(edns);
    }
    answer
}

fn encode(answer: &Message) -> Vec<u8> {
    answer.to_vec().unwrap_or_else(|error| {
        tracing::error!(%error, "a DNS answer could not be encoded");
        Message::error_msg(answer.metadata.id, answer.metadata.op_code, ResponseCode::ServFail)
            .to_vec()
            .unwrap_or_default()
    })
}

/// An answer that fits into `limit` octets; one that does not becomes one that asks to come again by TCP.
fn fit(answer: Vec<u8>, limit: usize, query: &Message) -> Vec<u8> {
    if answer.len() <= limit {
        return answer;
    }
    let mut truncated = reply(query, ResponseCode::NoError);
    truncated.metadata.truncation = true;
    encode(&truncated)
}

async fn send(socket: &LinkSocket, answer: &[u8], origin: crate::udp::Origin) {
    if let Err(error) = socket.send(answer, origin.source, origin.local, origin.ifindex).await {
        tracing::debug!(guest = %origin.source, %error, "a DNS answer could not be sent");
    }
}

/// A message with its length before it, as it travels by TCP (RFC 1035, 4.2.2). A longer message than that can say is
/// cut, and nobody takes it for whole.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], &message[..length.into()]].concat()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use hickory_proto::op::Query;
    use hickory_proto::rr::{Name, RData, Record};
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{FOREIGN_PUBLIC_IP, Guests, PRIVATE_IP, PUBLIC_IP, instance};

    fn resolver() -> Resolver {
        Resolver {
            zone: Zone { region: "us-east-1".into(), vpc_cidr: "172.31.0.0/16".parse().unwrap() },
            directory: Guests::of(instance()),
            forwarder: Arc::new(Forwarder::fixed(Vec::<SocketAddr>::new())),
            queries: Quota::new(QUERIES_OF_ONE),
            connections: Quota::new(CONNECTIONS_OF_ONE),
        }
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    /// The answer as a client reads it; none when the query is forwarded.
    fn ask(message: &Message) -> Option<Message> {
        match resolver().step(&message.to_vec().unwrap(), PRIVATE_IP) {
            Step::Answer(answer) => {
                let answer = Message::from_vec(&encode(&answer)).unwrap();
                assert_eq!(answer.metadata.id, message.metadata.id);
                assert_eq!(answer.metadata.message_type, MessageType::Response);
                assert!(answer.metadata.recursion_available);
                Some(answer)
            }
            Step::Forward(_) => None,
            Step::Ignore => panic!("ignored"),
        }
    }

    fn data(name: &str, kind: RecordType) -> Vec<String> {
        let answer = ask(&query(name, kind)).expect(name);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name}");
        answer.answers.iter().map(|record| record.data.to_string()).collect()
    }

    /// The response code of an answer without records, which must say how long to remember it unless it is a refusal.
    fn code(name: &str, kind: RecordType) -> ResponseCode {
        let answer = ask(&query(name, kind)).expect(name);
        assert!(answer.answers.is_empty(), "{name}");
        assert!(matches!(answer.authorities[..], [Record { data: RData::SOA(_), .. }]), "{name}");
        answer.metadata.response_code
    }

    #[test]
    fn names_of_the_vpc_are_known() {
        assert_eq!(data("ip-172-31-16-5.ec2.internal.", RecordType::A), ["172.31.16.5"]);
        assert_eq!(data("IP-172-31-16-5.EC2.Internal.", RecordType::A), ["172.31.16.5"]);
        assert_eq!(data("5.16.31.172.in-addr.arpa.", RecordType::PTR), ["ip-172-31-16-5.ec2.internal."]);
        assert_eq!(data("instance-data.ec2.internal.", RecordType::A), ["169.254.169.254"]);
    }

    #[test]
    fn a_public_name_leads_to_the_private_address_within_its_vpc() {
        assert_eq!(data("ec2-198-18-0-5.compute-1.amazonaws.com.", RecordType::A), [PRIVATE_IP.to_string()]);
        assert_eq!(
            data("ec2-198-18-0-9.compute-1.amazonaws.com.", RecordType::A),
            [FOREIGN_PUBLIC_IP.to_string()]
        );
        assert_eq!(
            data("5.0.18.198.in-addr.arpa.", RecordType::PTR),
            ["ec2-198-18-0-5.compute-1.amazonaws.com."],
            "{PUBLIC_IP}"
        );
    }

    #[test]
    fn what_the_vpc_has_not_is_denied() {
        for name in [
            "ip-172-31-16-6.ec2.internal.",
            "ip-10-0-0-1.ec2.internal.",
            "x.ip-172-31-16-5.ec2.internal.",
            "www.ec2.internal.",
        ] {
            assert_eq!(code(name, RecordType::A), ResponseCode::NXDomain, "{name}");
        }
        assert_eq!(code("6.16.31.172.in-addr.arpa.", RecordType::PTR), ResponseCode::NXDomain);
        assert_eq!(code("ip-172-31-16-5.ec2.internal.", RecordType::AAAA), ResponseCode::NoError);
        assert_eq!(code("ec2-198-18-0-5.compute-1.amazonaws.com.", RecordType::AAAA), ResponseCode::NoError);
        assert_eq!(code("5.16.31.172.in-addr.arpa.", RecordType::A), ResponseCode::NoError);
        assert_eq!(code("ec2.internal.", RecordType::A), ResponseCode::NoError);
    }

    #[test]
    fn other_names_are_forwarded() {
        for name in [
            ".",
            "example.com.",
            "ec2-203-0-113-5.compute-1.amazonaws.com.",
            "ec2-198-18-0-5.eu-west-1.compute.amazonaws.com.",
            "ip-172-31-16-5.eu-west-1.compute.internal.",
            "notec2.internal.",
            "1.0.168.192.in-addr.arpa.",
            "16.31.172.in-addr.arpa.",
        ] {
            assert!(ask(&query(name, RecordType::A)).is_none(), "{name}");
        }
    }

    #[test]
    fn what_is_not_served_is_refused() {
        let of = |message: &Message| ask(message).unwrap().metadata.response_code;
        assert_eq!(of(&query("example.com.", RecordType::AXFR)), ResponseCode::Refused);
        let mut chaos = query("version.bind.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(of(&chaos), ResponseCode::Refused);
        let mut update = query("ec2.internal.", RecordType::SOA);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(of(&update), ResponseCode::NotImp);
        let mut two = query("example.com.", RecordType::A);
        two.add_query(Query::query(Name::root(), RecordType::NS));
        assert_eq!(of(&two), ResponseCode::FormErr);
        let mut future = query("example.com.", RecordType::A);
        future.set_edns(Edns::new().set_version(1).clone());
        let answer = ask(&future).unwrap();
        assert_eq!(u16::from(answer.metadata.response_code), u16::from(ResponseCode::BADVERS));

        let stranger =
            resolver().step(&query("example.com.", RecordType::A).to_vec().unwrap(), [10, 0, 0, 1].into());
        assert!(
            matches!(&stranger, Step::Answer(answer) if answer.metadata.response_code == ResponseCode::Refused),
            "{stranger:?}"
        );
    }

    #[test]
    fn answers_speak_edns_when_asked() {
        let mut asked = query("ip-172-31-16-5.ec2.internal.", RecordType::A);
        assert!(ask(&asked).unwrap().edns.is_none());
        asked.set_edns(Edns::new());
        assert_eq!(ask(&asked).unwrap().edns.unwrap().max_payload(), EDNS_PAYLOAD);
    }

    #[test]
    fn responses_and_scraps_are_ignored() {
        let mut response = query("example.com.", RecordType::A);
        response.metadata.message_type = MessageType::Response;
        assert!(matches!(resolver().step(&response.to_vec().unwrap(), PRIVATE_IP), Step::Ignore));
        assert!(matches!(resolver().step(&[0; 11], PRIVATE_IP), Step::Ignore));
        // A header that promises a question, and none.
        let scrap = resolver().step(&[0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], PRIVATE_IP);
        assert!(
            matches!(&scrap, Step::Answer(a) if a.metadata.response_code == ResponseCode::FormErr && a.metadata.id == 0xabcd),
            "{scrap:?}"
        );
    }

    #[test]
    fn long_answers_by_udp_ask_to_come_again() {
        let asked = query("example.com.", RecordType::TXT);
        assert_eq!(fit(vec![1; 512], 512, &asked), vec![1; 512]);
        let answer = Message::from_vec(&fit(vec![1; 513], 512, &asked)).unwrap();
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        assert_eq!(answer.queries, asked.queries);
    }

    proptest! {
        #[test]
        fn any_octets_are_survived(datagram in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Step::Answer(answer) = resolver().step(&datagram, PRIVATE_IP) {
                encode(&answer);
            }
        }

        #[test]
        fn damaged_queries_are_survived(
            name in "([a-zA-Z0-9]{1,20}\\.){0,5}(ec2\\.internal|in-addr\\.arpa|compute-1\\.amazonaws\\.com)\\.",
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
            tail in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut datagram = query(&name, RecordType::ANY).to_vec().unwrap();
            datagram.extend(tail);
            for (at, with) in damage {
                let at = at.index(datagram.len());
                datagram[at] = with;
            }
            if let Step::Answer(answer) = resolver().step(&datagram, PRIVATE_IP) {
                prop_assert!(encode(&answer).len() <= UDP_PAYLOAD);
            }
        }
    }
}
