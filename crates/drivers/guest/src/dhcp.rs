//! The DHCP server of a VPC (RFC 2131, RFC 2132).
//!
//! Every guest has one fixed address, which its link decides: there is no pool, nothing to remember between two
//! messages, and a restart forgets nothing.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use dhcproto::v4::{DhcpOption, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use socket2::SockRef;
use tokio_util::sync::CancellationToken;

use crate::udp::{LinkSocket, MAX_DATAGRAM};
use crate::view::{Directory, Interface};
use crate::{ServeError, names};

/// Duration of a lease, in seconds; the guest renews it after half of that time.
const LEASE_SECONDS: u32 = 3600;

/// The port on which clients listen.
const CLIENT_PORT: u16 = 68;

/// Shortest message that every client takes: a BOOTP message with its vendor area of 64 octets (RFC 951).
const MIN_MESSAGE: usize = 300;

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

/// The answer to a client's message, when it gets one.
fn answer(datagram: &[u8], interface: &Interface) -> Option<Reply> {
    let request = match Message::decode(&mut Decoder::new(datagram)) {
        Ok(message) => message,
        Err(error) => {
            tracing::debug!(interface = interface.id, %error, "malformed DHCP message");
            return None;
        }
    };
    let from_this_link = request.opcode() == Opcode::BootRequest
        && request.htype() == HType::Eth
        && usize::from(request.hlen()) == interface.mac.0.len()
        && request.chaddr() == interface.mac.0
        && request.giaddr().is_unspecified();
    if !from_this_link {
        tracing::debug!(interface = interface.id, "DHCP message of another client or relay");
        return None;
    }
    let kind = match request.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request => verdict(&request, interface)?,
        MessageType::Inform => MessageType::Ack,
        MessageType::Decline => {
            tracing::info!(interface = interface.id, ip = %interface.private_ip, "the guest declines its address");
            return None;
        }
        // The address stays the interface's.
        _ => return None,
    };
    let reply = compose(&request, kind, interface);
    let mut payload = Vec::with_capacity(512);
    if let Err(error) = reply.encode(&mut Encoder::new(&mut payload)) {
        tracing::error!(interface = interface.id, %error, "a DHCP answer could not be encoded");
        return None;
    }
    payload.resize(payload.len().max(MIN_MESSAGE), 0);
    Some(Reply { payload, to: destination(&request, &reply, kind, interface.private_ip) })
}

/// `DHCPACK` or `DHCPNAK` for a `DHCPREQUEST`; none when it speaks to another server (RFC 2131, 4.3.2).
fn verdict(request: &Message, interface: &Interface) -> Option<MessageType> {
    if let Some(DhcpOption::ServerIdentifier(server)) = request.opts().get(OptionCode::ServerIdentifier)
        && *server != interface.gateway()
    {
        return None;
    }
    let asked = match request.opts().get(OptionCode::RequestedIpAddress) {
        // SELECTING and INIT-REBOOT name the address here, RENEWING and REBINDING in ciaddr.
        Some(DhcpOption::RequestedIpAddress(ip)) => *ip,
        _ => request.ciaddr(),
    };
    Some(if asked == interface.private_ip { MessageType::Ack } else { MessageType::Nak })
}

/// The message itself (RFC 2131, table 3).
fn compose(request: &Message, kind: MessageType, interface: &Interface) -> Message {
    let inform = request.opts().has_msg_type(MessageType::Inform);
    let ciaddr = if kind == MessageType::Ack { request.ciaddr() } else { Ipv4Addr::UNSPECIFIED };
    let yiaddr =
        if kind == MessageType::Nak || inform { Ipv4Addr::UNSPECIFIED } else { interface.private_ip };
    let mut reply = Message::new_with_id(
        request.xid(),
        ciaddr,
        yiaddr,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &interface.mac.0,
    );
    reply.set_opcode(Opcode::BootReply).set_flags(request.flags());

    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(interface.gateway()));
    if let Some(DhcpOption::ClientIdentifier(id)) = request.opts().get(OptionCode::ClientIdentifier) {
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

/// Where an answer goes when no relay is between (RFC 2131, 4.1).
fn destination(request: &Message, reply: &Message, kind: MessageType, ip: Ipv4Addr) -> Ipv4Addr {
    if kind != MessageType::Nak && request.ciaddr() == ip {
        ip
    } else if request.flags().broadcast() || reply.yiaddr().is_unspecified() {
        Ipv4Addr::BROADCAST
    } else {
        ip
    }
}
