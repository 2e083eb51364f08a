//! Asking a guest for its address (RFC 826), to see whether its end of the link lives.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use crate::Error;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Length of an ARP packet for Ethernet and IPv4.
const LENGTH: usize = 28;

/// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4, less the operation.
const HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];

const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// Whether `address` is answered for on a link of the calling thread's namespace.
pub(crate) fn answers(link: &str, address: Ipv4Addr) -> Result<bool, Error> {
    let fail = |what: &str| Error::io(format!("{what} {link}"));
    let Ok(index) = nix::net::if_::if_nametoindex(link) else { return Ok(false) };
    let socket = open().map_err(fail("open a packet socket for"))?;
    let own = bind(&socket, index).map_err(fail("bind a packet socket to"))?;
    match send(&socket, index, &request(own, address)) {
        // The other end of a tap is closed: nobody is there who could answer.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(false),
        sent => sent.map_err(fail("send an ARP request on"))?,
    }
    let deadline = Instant::now() + TIMEOUT;
    let mut packet = [0u8; 64];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        match receive(&socket, left, &mut packet) {
            Ok(length) if is_reply(&packet[..length], address) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(fail("receive from")(error)),
        }
    }
}

fn request(own: [u8; 6], address: Ipv4Addr) -> [u8; LENGTH] {
    let mut packet = [0u8; LENGTH];
    packet[..6].copy_from_slice(&HEADER);
    packet[6..8].copy_from_slice(&REQUEST);
    packet[8..14].copy_from_slice(&own);
    // The sender's address stays 0.0.0.0, a probe (RFC 5227): it enters nobody's cache.
    packet[24..28].copy_from_slice(&address.octets());
    packet
}

fn is_reply(packet: &[u8], address: Ipv4Addr) -> bool {
    packet.len() >= LENGTH
        && packet[..6] == HEADER
        && packet[6..8] == REPLY
        && packet[14..18] == address.octets()
}

fn check(result: impl TryInto<i64>) -> io::Result<i64> {
    match result.try_into() {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `ETH_P_ARP` in network order, as packet sockets take it.
fn arp() -> u16 {
    u16::try_from(libc::ETH_P_ARP).unwrap_or_default().to_be()
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: plain system call; the descriptor is owned from here on.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, i32::from(arp()));
        check(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn link_address(index: u32) -> libc::sockaddr_ll {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = arp();
    address.sll_ifindex = i32::try_from(index).unwrap_or_default();
    address
}

const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

/// Binds to a link and tells the link's hardware address.
fn bind(socket: &OwnedFd, index: u32) -> io::Result<[u8; 6]> {
    let mut address = link_address(index);
    let mut length = ADDRESS_LENGTH;
    // SAFETY: the address is a sockaddr_ll and its length is told.
    unsafe {
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length))?;
        check(libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length))?;
    }
    let mut own = [0; 6];
    own.copy_from_slice(&address.sll_addr[..6]);
    Ok(own)
}

fn send(socket: &OwnedFd, index: u32, packet: &[u8]) -> io::Result<()> {
    let mut to = link_address(index);
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&[0xff; 6]);
    // SAFETY: buffer and address are valid for the lengths told.
    unsafe {
        check(libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const to).cast(),
            ADDRESS_LENGTH,
        ) as i64)?;
    }
    Ok(())
}

fn receive(socket: &OwnedFd, timeout: Duration, buffer: &mut [u8]) -> io::Result<usize> {
    let timeout = libc::timeval {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(1),
        // Zero would mean to wait for ever.
        tv_usec: i64::from(timeout.subsec_micros()).max(1),
    };
    // SAFETY: option and buffer are valid for the lengths told.
    unsafe {
        check(libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const timeout).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        ))?;
        let length =
            check(libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) as i64)?;
        Ok(usize::try_from(length).unwrap_or_default())
    }
}
