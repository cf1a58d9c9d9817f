//! Listening and calling without waiting.
#![expect(unsafe_code, reason = "a socket option that nix does not have")]

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen as listen_on,
    setsockopt, socket, sockopt,
};

/// Binds the first port that is free, on every address.
pub fn listen(ports: &[u16]) -> io::Result<TcpListener> {
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
    // Two that begin to listen at the same moment can both be refused: Linux marks each as a listener before it looks
    // for others. Then nobody has the port, and each tries again; one that is really taken is refused by `bind`.
    const MOST_TRIES: usize = 100;
    let address = SocketAddr::new(address, port);
    let mut last = io::Error::from(ErrorKind::AddrInUse);
    for _ in 0..MOST_TRIES {
        let listener = new_socket(address)?;
        setsockopt(&listener, sockopt::ReuseAddr, &true)?;
        bind(listener.as_raw_fd(), &SockaddrStorage::from(address))?;
        // As many as the kernel allows (net.core.somaxconn): where strangers fill the queue, a neighbour's call is
        // dropped, and its kernel calls again only after a second.
        match listen_on(&listener, Backlog::MAXALLOWABLE) {
            Ok(()) => return Ok(listener.into()),
            Err(Errno::EADDRINUSE) => last = Errno::EADDRINUSE.into(),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
}

fn new_socket(for_address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if for_address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

/// Begins to connect.
pub fn call(target: SocketAddr) -> io::Result<OwnedFd> {
    let socket = new_socket(target)?;
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// On loopback, calling a free port can connect a socket to itself, when the kernel gives it that very port.
pub fn is_connected_to_itself(socket: &impl AsFd) -> bool {
    let Ok(socket) = socket.as_fd().try_clone_to_owned() else { return false };
    let stream = TcpStream::from(socket);
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(ours), Ok(theirs)) if ours == theirs)
}

/// How long the other end's kernel has acknowledged nothing, where something that was sent waits for that. It is the
/// *kernel* that acknowledges, also while the process there is stopped or does not read (then nothing more is sent).
pub(crate) fn unacknowledged(socket: &impl AsFd) -> Option<Duration> {
    let info = information(socket).filter(|info| info.tcpi_unacked > 0)?;
    Some(Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// Has the other end's kernel everything that was sent before this end was shut?
pub fn is_delivered(socket: &impl AsFd) -> bool {
    // States of tcp(7)'s machine in which the end has been acknowledged, or never will be (include/net/tcp_states.h).
    const FIN_WAIT_2: u8 = 5;
    const TIME_WAIT: u8 = 6;
    const CLOSED: u8 = 7;
    information(socket).is_none_or(|info| matches!(info.tcpi_state, FIN_WAIT_2 | TIME_WAIT | CLOSED))
}

fn information(socket: &impl AsFd) -> Option<libc::tcp_info> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the kernel writes at most `length` bytes, to `info`, which is as long and lives until the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(info)
}

/// What is sent and not acknowledged ends the connection after so long, and so does a buffer that stays full there.
pub(crate) fn limit_silence(socket: &impl AsFd, limit: Duration) -> io::Result<()> {
    setsockopt(socket, sockopt::TcpUserTimeout, &u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Linux refuses both about once in 10,000 times where two listen within the same microsecond.
    #[test]
    fn of_two_that_listen_on_a_port_at_the_same_moment_one_gets_it() {
        const ROUNDS: usize = 60_000;
        let port = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        let (arrived, listening) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let both = Barrier::new(2);
        let rank = || {
            for round in 0..ROUNDS {
                // A barrier wakes one after the other; these two see the same store.
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 2 * (round + 1) {
                    std::hint::spin_loop();
                }
                let listener = listen(&[port]);
                listening.fetch_add(usize::from(listener.is_ok()), Ordering::SeqCst);
                both.wait();
                assert_eq!(listening.load(Ordering::SeqCst), round + 1, "in round {round}");
                drop(listener);
                both.wait();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(rank);
            rank();
        });
    }
}
