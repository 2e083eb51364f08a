//! Connections that a namespace has seen begin, taken from one namespace to another (Linux, `nfnetlink_conntrack.h`).
//!
//! A guest that moves keeps its connections, but the rules of the namespace that it moves to would take their next packet for the first of
//! a new one, which may go the way that no rule allows.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

use crate::Error;

/// The most connections that are taken along: those of a busy server, and few enough to be handed over at once.
const MOST: usize = 2000;

/// A connection that is tracked, of TCP or UDP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The protocol's number.
    protocol: u8,
    /// Sender and receiver of its first packet, as they were sent.
    original: (Endpoint, Endpoint),
    /// Sender and receiver of the answers, before they are translated back.
    reply: (Endpoint, Endpoint),
    /// The state of a TCP connection.
    tcp_state: Option<u8>,
    /// What is known of it.
    status: u32,
    /// Seconds until it is forgotten.
    timeout: u32,
}

/// An address and a port.
type Endpoint = (Ipv4Addr, u16);

const TCP: u8 = 6;
const UDP: u8 = 17;

/// `NFNL_SUBSYS_CTNETLINK`, with the messages `IPCTNL_MSG_CT_NEW`, `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const NESTED: u16 = 0x8000;

/// What may be said of a connection: it has seen answers, is assured, is in the table.
const STATUS: u32 = 1 << 1 | 1 << 2 | 1 << 3;

/// The kernel has not seen the sequence numbers, and is not to judge by them (`IP_CT_TCP_FLAG_BE_LIBERAL`).
const LIBERAL: [u8; 2] = [8, 8];

/// The connections of an address in the calling thread's namespace that pass its uplink: its address is another one there.
pub(crate) fn of(private: Ipv4Addr) -> Result<Vec<Connection>, Error> {
    let found = matching(MOST, |connection| connection.is_translated(private));
    found.map_err(Error::io(format!("list the connections of {private}")))
}

/// Has the calling thread's namespace forget the connections of these addresses: who has one of them now never had those.
pub(crate) fn forget(addresses: &[Ipv4Addr]) -> Result<(), Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    let failed = || Error::io(format!("forget the connections of {addresses:?}"));
    let found = matching(usize::MAX, |connection| connection.concerns(addresses)).map_err(failed())?;
    let socket = open().map_err(failed())?;
    for connection in found {
        let mut original = Vec::new();
        attribute(&mut original, 1 | NESTED, &connection.tuple(connection.original));
        // NLM_F_REQUEST, NLM_F_ACK. It may have ended meanwhile.
        acknowledged(&socket, DELETE, 0x5, &original, libc::ENOENT).map_err(failed())?;
    }
    Ok(())
}

/// At most so many connections of the calling thread's namespace, of those that are wanted.
fn matching(most: usize, is_wanted: impl Fn(&Connection) -> bool) -> io::Result<Vec<Connection>> {
    let socket = open()?;
    // NLM_F_REQUEST, NLM_F_DUMP
    send(&socket, GET, 0x301, &[])?;
    let mut found = Vec::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, body) in messages(&buffer[..length]) {
            match kind {
                DONE | ERROR => return Ok(found),
                NEW if body.len() >= 4 && found.len() < most => {
                    found.extend(read(&body[4..]).filter(&is_wanted));
                }
                _ => {}
            }
        }
    }
}

/// Sends a message and waits until it is carried out, which one error is as good as.
fn acknowledged(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8], as_good: i32) -> io::Result<()> {
    send(socket, kind, flags, body)?;
    let mut buffer = vec![0u8; 1 << 16];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    for (kind, body) in messages(&buffer[..length]) {
        let code = body.first_chunk().map_or(0, |code| -i32::from_ne_bytes(*code));
        if kind == ERROR && code != 0 && code != as_good {
            return Err(io::Error::from_raw_os_error(code));
        }
    }
    Ok(())
}

/// Has the calling thread's namespace know these connections. One that it knows already stays as it is.
pub(crate) fn track(connections: &[Connection]) -> Result<(), Error> {
    let failed = || Error::io("take over connections");
    let socket = open().map_err(failed())?;
    for connection in connections {
        // NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE
        acknowledged(&socket, NEW, 0x605, &connection.write(), libc::EEXIST).map_err(failed())?;
    }
    Ok(())
}

impl Connection {
    /// Whether it is one of this address that is another one beyond the uplink.
    fn is_translated(&self, private: Ipv4Addr) -> bool {
        let ((sender, _), (receiver, _)) = self.original;
        let ((answers, _), (answered, _)) = self.reply;
        sender == private && answered != private || answers == private && receiver != private
    }

    /// Whether one of its ends is one of these addresses.
    fn concerns(&self, addresses: &[Ipv4Addr]) -> bool {
        let ends = [self.original.0, self.original.1, self.reply.0, self.reply.1];
        ends.iter().any(|(address, _)| addresses.contains(address))
    }

    fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        attribute(&mut out, 1 | NESTED, &self.tuple(self.original));
        let (sender, receiver) = self.original;
        // As it would be without translation, which is said besides.
        attribute(&mut out, 2 | NESTED, &self.tuple((receiver, sender)));
        attribute(&mut out, 3, &((self.status & STATUS) | 1 << 3).to_be_bytes());
        attribute(&mut out, 7, &self.timeout.max(5).to_be_bytes());
        if let Some(state) = self.tcp_state {
            let mut tcp = Vec::new();
            attribute(&mut tcp, 1, &[state]);
            attribute(&mut tcp, 4, &LIBERAL);
            attribute(&mut tcp, 5, &LIBERAL);
            let mut info = Vec::new();
            attribute(&mut info, 1 | NESTED, &tcp);
            attribute(&mut out, 4 | NESTED, &info);
        }
        let (answers, answered) = self.reply;
        if answered != sender {
            attribute(&mut out, 6 | NESTED, &translation(answered));
        }
        if answers != receiver {
            attribute(&mut out, 13 | NESTED, &translation(answers));
        }
        out
    }

    fn tuple(&self, ((source, source_port), (target, target_port)): (Endpoint, Endpoint)) -> Vec<u8> {
        let (mut ip, mut protocol, mut out) = (Vec::new(), Vec::new(), Vec::new());
        attribute(&mut ip, 1, &source.octets());
        attribute(&mut ip, 2, &target.octets());
        attribute(&mut protocol, 1, &[self.protocol]);
        attribute(&mut protocol, 2, &source_port.to_be_bytes());
        attribute(&mut protocol, 3, &target_port.to_be_bytes());
        attribute(&mut out, 1 | NESTED, &ip);
        attribute(&mut out, 2 | NESTED, &protocol);
        out
    }
}

/// What an endpoint is translated to.
fn translation((address, port): Endpoint) -> Vec<u8> {
    let (mut ports, mut out) = (Vec::new(), Vec::new());
    attribute(&mut ports, 1, &port.to_be_bytes());
    attribute(&mut ports, 2, &port.to_be_bytes());
    attribute(&mut out, 1, &address.octets());
    attribute(&mut out, 2, &address.octets());
    attribute(&mut out, 3 | NESTED, &ports);
    out
}

/// Reads the attributes of a connection; none if it is of another protocol.
fn read(body: &[u8]) -> Option<Connection> {
    let (protocol, source, target) = read_tuple(find(body, 1)?)?;
    let (_, answers, answered) = read_tuple(find(body, 2)?)?;
    let number =
        |kind| find(body, kind).and_then(|value| value.first_chunk()).map(|v| u32::from_be_bytes(*v));
    let tcp_state =
        find(body, 4).and_then(|info| find(info, 1)).and_then(|tcp| find(tcp, 1)?.first().copied());
    (protocol == UDP || protocol == TCP && tcp_state.is_some()).then(|| Connection {
        protocol,
        original: (source, target),
        reply: (answers, answered),
        tcp_state: tcp_state.filter(|_| protocol == TCP),
        status: number(3).unwrap_or_default(),
        timeout: number(7).unwrap_or_default(),
    })
}

fn read_tuple(tuple: &[u8]) -> Option<(u8, Endpoint, Endpoint)> {
    let (ip, protocol) = (find(tuple, 1)?, find(tuple, 2)?);
    let address =
        |kind| find(ip, kind).and_then(|value| value.first_chunk::<4>()).map(|v| Ipv4Addr::from(*v));
    let port =
        |kind| find(protocol, kind).and_then(|value| value.first_chunk()).map(|v| u16::from_be_bytes(*v));
    Some((*find(protocol, 1)?.first()?, (address(1)?, port(2)?), (address(2)?, port(3)?)))
}

const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Kinds and bodies of the messages in a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The value of an attribute among others.
fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & !NESTED;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn open() -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    Ok(socket)
}

/// Sends a message about IPv4.
fn send(socket: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(16 + 4 + body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([u8::try_from(libc::AF_INET).unwrap_or_default(), 0, 0, 0]);
    message.extend(body);
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (guest, public, peer) =
            (Ipv4Addr::new(172, 31, 0, 9), Ipv4Addr::new(198, 18, 0, 9), Ipv4Addr::new(198, 18, 0, 1));
        let inbound = Connection {
            protocol: TCP,
            original: ((peer, 40_000), (public, 22)),
            reply: ((guest, 22), (peer, 40_000)),
            tcp_state: Some(3),
            status: 0x1ee,
            timeout: 431_999,
        };
        assert!(inbound.is_translated(guest) && !inbound.is_translated(peer));
        let read = read(&inbound.write()).unwrap();
        assert_eq!((read.protocol, read.original, read.tcp_state), (TCP, inbound.original, Some(3)));
        // The kernel itself translates, as it is told to.
        assert_eq!(read.reply, (inbound.original.1, inbound.original.0));
        assert_eq!(find(find(&inbound.write(), 13).unwrap(), 1), Some(&guest.octets()[..]));
        assert_eq!(find(&inbound.write(), 6), None);
        let outbound = Connection {
            original: ((guest, 40_000), (peer, 80)),
            reply: ((peer, 80), (public, 40_000)),
            ..inbound.clone()
        };
        assert!(outbound.is_translated(guest));
        assert_eq!(find(find(&outbound.write(), 6).unwrap(), 1), Some(&public.octets()[..]));
        let between = Connection { reply: ((public, 22), (peer, 40_000)), ..inbound };
        assert!(!between.is_translated(guest));
    }

    #[test]
    fn what_is_cut_off_is_passed_over() {
        assert_eq!(find(&[], 1), None);
        assert_eq!(find(&[8, 0, 1], 1), None);
        assert_eq!(find(&[0, 0, 2, 0, 0, 0, 0, 0], 1), None);
        assert_eq!(messages(&[0; 16]).count(), 0);
        assert!(read(&[1; 64]).is_none());
    }
}
