//! What calls and callers need of the endpoint.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, recv, sendmsg};
use roce_bootstrap::Secret;
use roce_bootstrap::handshake::{Call, Step};

use super::lookup::Lookup;

/// Where a rank listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// Its node's number.
    pub(crate) node: u32,
    pub(crate) port: u16,
}

pub(super) struct Shared {
    pub(super) rank: u32,
    /// Derived from the step's, for this transport alone.
    pub(super) secret: Secret,
    /// By rank.
    pub(super) places: Vec<Place>,
    /// Their names.
    pub(super) nodes: Vec<String>,
    pub(super) lookup: Lookup,
    pub(super) epoll: Epoll,
}

/// Whom an event concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ear {
    Listener,
    Peer(u32),
    /// Our call, and which of the attempts.
    Call(u32, u16),
    Stranger(u32),
}

impl Ear {
    pub(super) fn event(self, flags: EpollFlags) -> EpollEvent {
        let (kind, attempt, number) = match self {
            Self::Listener => (0u64, 0, 0),
            Self::Peer(peer) => (1, 0, peer),
            Self::Call(peer, attempt) => (2, attempt, peer),
            Self::Stranger(number) => (3, 0, number),
        };
        EpollEvent::new(flags, kind << 48 | u64::from(attempt) << 32 | u64::from(number))
    }

    pub(super) fn of(event: &EpollEvent) -> Self {
        let [_, kind, a, b, c, d, e, f] = event.data().to_be_bytes();
        let (attempt, number) = (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f]));
        match kind {
            1 => Self::Peer(number),
            2 => Self::Call(number, attempt),
            3 => Self::Stranger(number),
            _ => Self::Listener,
        }
    }
}

impl Shared {
    /// A call as both ends must see it. The secret is of one job and step, and so their numbers need not be told.
    pub(super) fn call(&self, caller: u32, listener: u32) -> Call {
        Call {
            step: self.step(),
            caller_node: self.node_of(caller),
            listener_node: self.node_of(listener),
            round: 0,
            caller_rank: caller,
        }
    }

    pub(super) fn step(&self) -> Step {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Step { job: 0, step: 0, size: number(self.places.len()), nodes: number(self.nodes.len()) }
    }

    /// A rank's node, `u32::MAX` for a rank that does not exist.
    pub(super) fn node_of(&self, rank: u32) -> u32 {
        self.places.get(rank as usize).map_or(u32::MAX, |place| place.node)
    }
}

/// Reads until `got` has `want` bytes, and not one more: what follows is for who comes next. Whether it has them.
///
/// # Errors
/// Why nothing more comes; `None` if the other end closed the connection.
pub(super) fn read(socket: &OwnedFd, got: &mut Vec<u8>, want: usize) -> Result<bool, Option<Errno>> {
    let mut room = [0; 128];
    while got.len() < want {
        let most = room.len().min(want - got.len());
        match recv(socket.as_raw_fd(), &mut room[..most], MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(None),
            Ok(count) => got.extend_from_slice(&room[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            Err(error) => return Err(Some(error)),
        }
    }
    Ok(true)
}

/// Sends a few bytes on a connection that nothing waits on, so that there is room for them.
pub(super) fn say(socket: &OwnedFd, bytes: &[u8]) -> Result<(), Option<Errno>> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &[], flags, None) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(None),
        Err(error) => Err(Some(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_whom_it_concerns() {
        for ear in [
            Ear::Listener,
            Ear::Peer(0),
            Ear::Peer(u32::MAX),
            Ear::Call(u32::MAX, u16::MAX),
            Ear::Call(7, 0),
            Ear::Stranger(u32::MAX),
        ] {
            assert_eq!(Ear::of(&ear.event(EpollFlags::EPOLLIN)), ear);
        }
    }
}
