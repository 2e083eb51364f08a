//! UDP sockets that tell on which link and for which address a datagram came, and answer from there (`IP_PKTINFO`,
//! ip(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The largest datagram that a guest has reason to send.
pub(crate) const MAX_DATAGRAM: usize = 4096;

/// How long to leave a socket alone after it failed for a reason that may pass.
const RETRY: Duration = Duration::from_millis(100);

/// Where a datagram came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    /// Sender.
    pub source: SocketAddrV4,
    /// Index of the interface on which it arrived.
    pub ifindex: u32,
    /// The local address that it was sent to.
    pub local: Ipv4Addr,
}

/// A socket of which the kernel tells every datagram's [`Origin`].
#[derive(Debug)]
pub(crate) struct LinkSocket(UdpSocket);

impl LinkSocket {
    /// Takes a bound socket over.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        Ok(Self(UdpSocket::from_std(socket)?))
    }

    /// The next datagram; one that is longer than `buffer` is left out.
    ///
    /// Errors of the link or of earlier answers (`ENETDOWN`, `ECONNREFUSED`, …) are waited out: a socket in a namespace
    /// lives longer than any interface in it.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> (usize, Origin) {
        loop {
            let received = self.0.async_io(Interest::READABLE, || receive(&self.0, buffer)).await;
            match received {
                Ok(Some(datagram)) => return datagram,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "receiving failed");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Sends `payload` to `to`, from the address `from`, out of the interface `ifindex` (0: as the routes say).
    pub(crate) async fn send(
        &self,
        payload: &[u8],
        to: SocketAddrV4,
        from: Ipv4Addr,
        ifindex: u32,
    ) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, || send(&self.0, payload, to, from, ifindex)).await
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<(usize, Origin)>> {
    let mut control = nix::cmsg_space!(in_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Ok(None);
    }
    let info = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(info),
        _ => None,
    });
    Ok(message.address.zip(info).and_then(|(source, info)| {
        let origin = Origin {
            source: SocketAddrV4::new(source.ip(), source.port()),
            ifindex: u32::try_from(info.ipi_ifindex).ok()?,
            local: Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)),
        };
        Some((message.bytes, origin))
    }))
}

fn send(
    socket: &UdpSocket,
    payload: &[u8],
    to: SocketAddrV4,
    from: Ipv4Addr,
    ifindex: u32,
) -> io::Result<()> {
    let info = in_pktinfo {
        ipi_ifindex: ifindex.try_into().map_err(|_| io::ErrorKind::InvalidInput)?,
        ipi_spec_dst: in_addr { s_addr: u32::from(from).to_be() },
        ipi_addr: in_addr { s_addr: 0 },
    };
    let to = SockaddrIn::from(to);
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(payload)], &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}
