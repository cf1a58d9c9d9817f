//! Listening and calling without waiting.
#![expect(unsafe_code, reason = "two ioctls that nix does not have")]

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen as listen_on,
    setsockopt, socket, sockopt,
};

/// How many bytes were not sent yet (linux/sockios.h).
const SIOCOUTQNSD: libc::Ioctl = 0x894b;

/// Binds the first port that is free, on every address.
pub(crate) fn listen(ports: &[u16]) -> io::Result<TcpListener> {
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for &port in ports {
        // An IPv6 socket takes IPv4 callers too (unless net.ipv6.bindv6only is set); where IPv6 is off, IPv4.
        let bound = listen_at(Ipv6Addr::UNSPECIFIED.into(), port).or_else(|error| match error.kind() {
            ErrorKind::AddrInUse => Err(error),
            _ => listen_at(Ipv4Addr::UNSPECIFIED.into(), port),
        });
        match bound {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn listen_at(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    let listener = new_socket(address)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(address))?;
    // As many as the kernel allows (net.core.somaxconn): where strangers fill the queue, a neighbour's call is
    // dropped, and its kernel calls again only after a second.
    listen_on(&listener, Backlog::MAXALLOWABLE)?;
    Ok(listener.into())
}

fn new_socket(for_address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if for_address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

/// Begins to connect.
pub(crate) fn call(target: SocketAddr) -> io::Result<OwnedFd> {
    let socket = new_socket(target)?;
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// On loopback, calling a free port can connect a socket to itself, when the kernel gives it that very port.
pub(crate) fn is_connected_to_itself(socket: &impl AsFd) -> bool {
    let Ok(socket) = socket.as_fd().try_clone_to_owned() else { return false };
    let stream = TcpStream::from(socket);
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(ours), Ok(theirs)) if ours == theirs)
}

/// Whether the other end's program does not read: all that was sent is acknowledged, and there is more for which it has no
/// room. (tcp(7), SIOCOUTQ; SIOCOUTQNSD of linux/sockios.h.)
pub(crate) fn waits_for_room(socket: &impl AsFd) -> bool {
    let count = |what| {
        let mut count: libc::c_int = 0;
        // SAFETY: both requests write one int, to `count`, which lives until the call returns.
        let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), what, &raw mut count) };
        (result == 0).then_some(count)
    };
    let (unacknowledged, unsent) = (count(libc::TIOCOUTQ), count(SIOCOUTQNSD));
    unsent.is_some_and(|unsent| unsent > 0) && unacknowledged == unsent
}

/// What the kernel sent and got no acknowledgement for ends the connection after so long. It is the other *kernel*
/// that acknowledges, also while the process there is stopped; but where that process reads nothing and its buffer is full, the
/// time counts too, although the kernel there answers.
pub(crate) fn limit_silence(socket: &impl AsFd, limit: Duration) -> io::Result<()> {
    setsockopt(socket, sockopt::TcpUserTimeout, &u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}
