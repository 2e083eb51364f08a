//! The DHCP server of a VPC (RFC 2131, RFC 2132).
//!
//! Every guest has one fixed address, which its link decides: there is no pool, nothing to remember between two
//! messages, and a restart forgets nothing.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Encodable, Encoder};
use socket2::SockRef;
use tokio_util::sync::CancellationToken;

use crate::udp::{LinkSocket, MAX_DATAGRAM};
use crate::view::{Directory, Interface, MacAddr};
use crate::{ServeError, names};

/// Duration of a lease, in seconds; the guest renews it after half of that time.
const LEASE_SECONDS: u32 = 3600;

/// The port on which clients listen.
const CLIENT_PORT: u16 = 68;

/// Shortest message that every client takes: a BOOTP message with its vendor area of 64 octets (RFC 951).
const MIN_MESSAGE: usize = 300;

/// First octets of a client's message: the operation and the hardware type; the options' "magic cookie".
const BOOTREQUEST: u8 = 1;
const ETHERNET: u8 = 1;
const MAGIC: [u8; 4] = [99, 130, 83, 99];

/// Answers the DHCP messages that arrive on `socket` until `shutdown` fires.
///
/// `socket` is bound to port 67 of all addresses (`0.0.0.0:67`) in the VPC's namespace. The guest is known by the
/// interface on which its message arrives; a message that comes from another hardware address than that interface's is
/// dropped. Answers leave by the interface of arrival, from the subnet's gateway address, which must be an address of
/// the namespace so that guests can renew by unicast.
///
/// # Errors
/// When the socket cannot be taken over. Nothing that a guest sends ends the server.
pub async fn serve_dhcp(
    socket: std::net::UdpSocket,
    directory: Arc<dyn Directory>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    SockRef::from(&socket).set_broadcast(true).map_err(ServeError::Socket)?;
    let socket = LinkSocket::new(socket).map_err(ServeError::Socket)?;
    let answers = async {
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            let (length, origin) = socket.receive(&mut buffer).await;
            let Some(interface) = directory.interface_on_link(origin.ifindex) else {
                tracing::debug!(ifindex = origin.ifindex, "DHCP message on an unknown link");
                continue;
            };
            let Some(reply) = answer(&buffer[..length], &interface) else { continue };
            let to = SocketAddrV4::new(reply.to, CLIENT_PORT);
            if let Err(error) = socket.send(&reply.payload, to, interface.gateway(), origin.ifindex).await {
                tracing::warn!(interface = interface.id, %to, %error, "a DHCP answer could not be sent");
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        never = answers => never,
    }
}

/// An encoded answer and the address that it goes to.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    payload: Vec<u8>,
    to: Ipv4Addr,
}

/// What a client's message says, as far as it matters here.
///
/// It is read by hand, unlike what answers are written with: this reads what a guest made up, takes the four options
/// that matter and steps over all others, whatever is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    kind: MessageType,
    xid: u32,
    broadcast: bool,
    ciaddr: Ipv4Addr,
    giaddr: Ipv4Addr,
    hardware: MacAddr,
    requested_ip: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<Vec<u8>>,
}

impl Request {
    /// Reads a `BOOTREQUEST` of an Ethernet client that has a DHCP message type (RFC 2131, figure 1; RFC 2132).
    fn parse(datagram: &[u8]) -> Option<Self> {
        let (&[op, htype, hlen, _hops], rest) = datagram.split_first_chunk()?;
        let (&xid, rest) = rest.split_first_chunk()?;
        let (&[_, _, flags, _], rest) = rest.split_first_chunk()?;
        let (ciaddr, rest) = rest.split_first_chunk::<4>()?;
        let (_yiaddr_siaddr, rest) = rest.split_first_chunk::<8>()?;
        let (giaddr, rest) = rest.split_first_chunk::<4>()?;
        let (hardware, rest) = rest.split_first_chunk::<6>()?;
        let (_padding_sname_file, rest) = rest.split_first_chunk::<{ 10 + 64 + 128 }>()?;
        let mut options = rest.strip_prefix(&MAGIC)?;
        if op != BOOTREQUEST || htype != ETHERNET || usize::from(hlen) != hardware.len() {
            return None;
        }
        let mut kind = None;
        let mut request = Self {
            kind: MessageType::Unknown(0),
            xid: u32::from_be_bytes(xid),
            broadcast: flags & 0x80 != 0,
            ciaddr: (*ciaddr).into(),
            giaddr: (*giaddr).into(),
            hardware: MacAddr(*hardware),
            requested_ip: None,
            server: None,
            client_id: None,
        };
        while let Some((&code, rest)) = options.split_first() {
            options = rest;
            match OptionCode::from(code) {
                OptionCode::Pad => continue,
                OptionCode::End => break,
                code => {
                    let (&length, rest) = options.split_first()?;
                    let (value, rest) = rest.split_at_checked(length.into())?;
                    options = rest;
                    match code {
                        OptionCode::MessageType => kind = value.first().map(|&kind| kind.into()),
                        OptionCode::RequestedIpAddress => request.requested_ip = address(value),
                        OptionCode::ServerIdentifier => request.server = address(value),
                        OptionCode::ClientIdentifier => request.client_id = Some(value.to_vec()),
                        _ => {}
                    }
                }
            }
        }
        request.kind = kind?;
        Some(request)
    }
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}

/// The answer to a client's message, when it gets one.
fn answer(datagram: &[u8], interface: &Interface) -> Option<Reply> {
    let request = Request::parse(datagram).filter(|request| {
        // Not another client's, and not by way of a relay.
        request.hardware == interface.mac && request.giaddr.is_unspecified()
    });
    let Some(request) = request else {
        tracing::debug!(interface = interface.id, "no DHCP message of this interface's client");
        return None;
    };
    let kind = match request.kind {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request => verdict(&request, interface)?,
        MessageType::Inform => MessageType::Ack,
        MessageType::Decline => {
            tracing::info!(interface = interface.id, ip = %interface.private_ip, "the guest declines its address");
            return None;
        }
        // After a DHCPRELEASE, too, the address stays the interface's.
        _ => return None,
    };
    let reply = compose(&request, kind, interface);
    let mut payload = Vec::with_capacity(512);
    if let Err(error) = reply.encode(&mut Encoder::new(&mut payload)) {
        tracing::error!(interface = interface.id, %error, "a DHCP answer could not be encoded");
        return None;
    }
    payload.resize(payload.len().max(MIN_MESSAGE), 0);
    Some(Reply { payload, to: destination(&request, kind, interface.private_ip) })
}

/// `DHCPACK` or `DHCPNAK` for a `DHCPREQUEST`; none when it speaks to another server (RFC 2131, 4.3.2).
fn verdict(request: &Request, interface: &Interface) -> Option<MessageType> {
    if request.server.is_some_and(|server| server != interface.gateway()) {
        return None;
    }
    // SELECTING and INIT-REBOOT name the address in an option, RENEWING and REBINDING in ciaddr.
    let asked = request.requested_ip.unwrap_or(request.ciaddr);
    Some(if asked == interface.private_ip { MessageType::Ack } else { MessageType::Nak })
}

/// The message itself (RFC 2131, table 3).
fn compose(request: &Request, kind: MessageType, interface: &Interface) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let inform = request.kind == MessageType::Inform;
    let ciaddr = if kind == MessageType::Ack { request.ciaddr } else { none };
    let yiaddr = if kind == MessageType::Nak || inform { none } else { interface.private_ip };
    let mut reply = Message::new_with_id(request.xid, ciaddr, yiaddr, none, none, &interface.mac.0);
    reply.set_opcode(Opcode::BootReply);
    if request.broadcast {
        reply.set_flags(Flags::default().set_broadcast());
    }

    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(interface.gateway()));
    if let Some(id) = &request.client_id {
        // RFC 6842.
        options.insert(DhcpOption::ClientIdentifier(id.clone()));
    }
    if kind == MessageType::Nak {
        let message = format!("this interface has the address {}", interface.private_ip);
        options.insert(DhcpOption::Message(message));
        return reply;
    }
    if !inform {
        options.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
        options.insert(DhcpOption::Renewal(LEASE_SECONDS / 2));
        options.insert(DhcpOption::Rebinding(LEASE_SECONDS / 8 * 7));
    }
    options.insert(DhcpOption::SubnetMask(interface.subnet_cidr.netmask()));
    options.insert(DhcpOption::BroadcastAddr(interface.subnet_cidr.broadcast()));
    options.insert(DhcpOption::Router(vec![interface.gateway()]));
    options.insert(DhcpOption::DomainNameServer(vec![interface.dns_server()]));
    options.insert(DhcpOption::Hostname(names::private_label(interface.private_ip)));
    options.insert(DhcpOption::DomainName(names::private_domain(&interface.region)));
    options.insert(DhcpOption::InterfaceMtu(interface.mtu));
    reply
}

/// Where an answer goes when no relay is between (RFC 2131, 4.1): by unicast to a client that has its address or can
/// take it before it has, which the link's permanent neighbour entry allows.
fn destination(request: &Request, kind: MessageType, ip: Ipv4Addr) -> Ipv4Addr {
    let has_address = request.ciaddr == ip;
    let may_take_it = !request.broadcast && request.kind != MessageType::Inform;
    if kind != MessageType::Nak && (has_address || may_take_it) { ip } else { Ipv4Addr::BROADCAST }
}

#[cfg(test)]
mod tests {
    use dhcproto::v4::HType;
    use dhcproto::{Decodable, Decoder};
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{PRIVATE_IP, interface};

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 16, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    fn request(kind: MessageType, options: impl IntoIterator<Item = DhcpOption>) -> Message {
        let mut message = Message::default();
        message.set_xid(0xdead_beef).set_chaddr(&interface().mac.0);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option);
        }
        message
    }

    fn encoded(message: &Message) -> Vec<u8> {
        let mut datagram = Vec::new();
        message.encode(&mut Encoder::new(&mut datagram)).unwrap();
        datagram
    }

    /// The answer and where it goes.
    fn exchange(request: &Message) -> Option<(Message, Ipv4Addr)> {
        let reply = answer(&encoded(request), &interface())?;
        assert!(reply.payload.len() >= MIN_MESSAGE);
        let message = Message::decode(&mut Decoder::new(&reply.payload)).unwrap();
        assert_eq!(message.xid(), request.xid());
        assert_eq!(message.opcode(), Opcode::BootReply);
        assert_eq!(message.chaddr(), interface().mac.0);
        assert_eq!(
            message.opts().get(OptionCode::ServerIdentifier),
            Some(&DhcpOption::ServerIdentifier(GATEWAY))
        );
        Some((message, reply.to))
    }

    fn kind_of(request: &Message) -> Option<(MessageType, Ipv4Addr)> {
        exchange(request).map(|(message, to)| (message.opts().msg_type().unwrap(), to))
    }

    #[test]
    fn an_offer_has_all_that_a_guest_needs() {
        let id = DhcpOption::ClientIdentifier(vec![0xff, 1, 2, 3]);
        let (offer, to) = exchange(&request(MessageType::Discover, [id.clone()])).unwrap();
        assert_eq!(to, PRIVATE_IP);
        assert_eq!(offer.yiaddr(), PRIVATE_IP);
        for option in [
            DhcpOption::MessageType(MessageType::Offer),
            DhcpOption::SubnetMask([255, 255, 240, 0].into()),
            DhcpOption::BroadcastAddr([172, 31, 31, 255].into()),
            DhcpOption::Router(vec![GATEWAY]),
            DhcpOption::DomainNameServer(vec![[172, 31, 0, 2].into()]),
            DhcpOption::Hostname("ip-172-31-16-5".into()),
            DhcpOption::DomainName("ec2.internal".into()),
            DhcpOption::InterfaceMtu(9001),
            DhcpOption::AddressLeaseTime(3600),
            DhcpOption::Renewal(1800),
            DhcpOption::Rebinding(3150),
            id,
        ] {
            assert_eq!(offer.opts().get(OptionCode::from(&option)), Some(&option));
        }
    }

    #[test]
    fn a_client_that_asks_for_broadcast_gets_it() {
        let mut discover = request(MessageType::Discover, []);
        discover.set_flags(Flags::default().set_broadcast());
        let (offer, to) = exchange(&discover).unwrap();
        assert_eq!(to, Ipv4Addr::BROADCAST);
        assert!(offer.flags().broadcast());
    }

    #[test]
    fn requests_of_every_client_state() {
        use DhcpOption::{RequestedIpAddress, ServerIdentifier};
        let ack = Some((MessageType::Ack, PRIVATE_IP));
        let nak = Some((MessageType::Nak, Ipv4Addr::BROADCAST));
        let asks = |options: Vec<DhcpOption>| kind_of(&request(MessageType::Request, options));
        // SELECTING
        assert_eq!(asks(vec![ServerIdentifier(GATEWAY), RequestedIpAddress(PRIVATE_IP)]), ack);
        assert_eq!(asks(vec![ServerIdentifier(GATEWAY), RequestedIpAddress(OTHER)]), nak);
        assert_eq!(asks(vec![ServerIdentifier(OTHER), RequestedIpAddress(PRIVATE_IP)]), None);
        // INIT-REBOOT
        assert_eq!(asks(vec![RequestedIpAddress(PRIVATE_IP)]), ack);
        assert_eq!(asks(vec![RequestedIpAddress(OTHER)]), nak);
        assert_eq!(asks(vec![]), nak);
        // RENEWING and REBINDING
        let mut renew = request(MessageType::Request, []);
        renew.set_ciaddr(PRIVATE_IP);
        assert_eq!(kind_of(&renew), ack);
        renew.set_flags(Flags::default().set_broadcast());
        assert_eq!(kind_of(&renew), ack);
        renew.set_ciaddr(OTHER);
        assert_eq!(kind_of(&renew), nak);
    }

    #[test]
    fn a_refusal_says_nothing_but_why() {
        let (nak, _) =
            exchange(&request(MessageType::Request, [DhcpOption::RequestedIpAddress(OTHER)])).unwrap();
        assert!(nak.yiaddr().is_unspecified());
        assert_eq!(nak.opts().len(), 3);
        let why = DhcpOption::Message("this interface has the address 172.31.16.5".into());
        assert_eq!(nak.opts().get(OptionCode::Message), Some(&why));
    }

    #[test]
    fn inform_gets_options_and_no_lease() {
        let mut inform = request(MessageType::Inform, []);
        inform.set_ciaddr(PRIVATE_IP);
        let (ack, to) = exchange(&inform).unwrap();
        assert_eq!((ack.opts().msg_type(), to), (Some(MessageType::Ack), PRIVATE_IP));
        assert!(ack.yiaddr().is_unspecified());
        assert!(ack.opts().contains(OptionCode::DomainNameServer));
        assert!(!ack.opts().contains(OptionCode::AddressLeaseTime));
        // Nothing leaves to an address that the guest made up.
        inform.set_ciaddr(OTHER);
        assert_eq!(exchange(&inform).unwrap().1, Ipv4Addr::BROADCAST);
    }

    #[test]
    fn what_asks_for_nothing_gets_nothing() {
        for kind in
            [MessageType::Release, MessageType::Decline, MessageType::Offer, MessageType::Unknown(200)]
        {
            assert_eq!(kind_of(&request(kind, [])), None, "{kind:?}");
        }
        let mut bootp = request(MessageType::Discover, []);
        bootp.opts_mut().clear();
        assert_eq!(kind_of(&bootp), None);
    }

    #[test]
    fn only_the_interfaces_own_hardware_address_is_answered() {
        let discover = request(MessageType::Discover, []);
        let with = |change: fn(&mut Message)| {
            let mut message = discover.clone();
            change(&mut message);
            answer(&encoded(&message), &interface())
        };
        assert!(with(|_| {}).is_some());
        assert_eq!(with(|m| _ = m.set_chaddr(&[2, 0, 0, 0, 0, 1])), None);
        assert_eq!(with(|m| _ = m.set_chaddr(&[2; 16])), None);
        assert_eq!(with(|m| _ = m.set_opcode(Opcode::BootReply)), None);
        assert_eq!(with(|m| _ = m.set_htype(HType::Unknown(32))), None);
        assert_eq!(with(|m| _ = m.set_giaddr(OTHER)), None);
    }

    #[test]
    fn a_hardware_address_of_an_impossible_length_is_no_panic() {
        let mut datagram = encoded(&request(MessageType::Discover, []));
        datagram[2] = 255;
        assert_eq!(answer(&datagram, &interface()), None);
    }

    proptest! {
        #[test]
        fn any_octets_are_survived(datagram in proptest::collection::vec(any::<u8>(), 0..1500)) {
            answer(&datagram, &interface());
        }

        #[test]
        fn damaged_messages_are_survived(
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
            options in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut datagram = encoded(&request(MessageType::Request, [DhcpOption::RequestedIpAddress(PRIVATE_IP)]));
            datagram.pop();
            datagram.extend(options);
            for (at, with) in damage {
                let at = at.index(datagram.len());
                datagram[at] = with;
            }
            answer(&datagram, &interface());
        }
    }
}
