//! Listening and calling without waiting.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};

/// Binds the first port that is free, on every address.
pub(crate) fn listen(ports: &[u16]) -> io::Result<TcpListener> {
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for &port in ports {
        // An IPv6 socket takes IPv4 callers too (unless net.ipv6.bindv6only is set); where IPv6 is off, IPv4.
        let bound = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|error| match error.kind() {
            ErrorKind::AddrInUse => Err(error),
            _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        });
        match bound {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok(listener);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Begins to connect.
pub(crate) fn call(target: SocketAddr) -> io::Result<OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
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

/// What the kernel sent and got no acknowledgement for ends the connection after so long. It is the other *kernel*
/// that acknowledges, also while the process there is stopped.
pub(crate) fn limit_silence(socket: &impl AsFd, limit: Duration) -> io::Result<()> {
    setsockopt(socket, sockopt::TcpUserTimeout, &u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}
