//! A proven connection to one peer: packets out and in, without waiting.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, sendmsg, shutdown};

use super::packet::{self, HEAD, MOST};
use crate::transport::Header;

/// Bytes that may wait for a peer. One packet always fits.
pub(super) const ROOM: usize = 2 * MOST;
/// What is kept for a peer that nothing waits for.
const KEEP: usize = 16 * 1024;

/// What did not go out of the last packet.
#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    /// How many of them are gone.
    gone: usize,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.gone == self.bytes.len()
    }

    fn push(&mut self, head: &[u8], payload: &[u8]) {
        if self.gone >= ROOM {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(payload);
    }

    fn went(&mut self, count: usize) {
        self.gone += count;
        if self.is_empty() {
            self.gone = 0;
            self.bytes.clear();
            if self.bytes.capacity() > KEEP {
                self.bytes = Vec::new();
            }
        }
    }
}

pub(super) struct Connection {
    socket: OwnedFd,
    outbox: Outbox,
    /// The beginning of a packet, shorter than one.
    begun: Vec<u8>,
    /// Nothing more can be sent. What the peer sent before is still read; then this is why it broke.
    deaf: Option<Errno>,
    /// Is the kernel asked to say when more can be sent?
    pub(super) asks: bool,
}

/// What a read found.
pub(super) enum Found {
    Packets,
    Nothing,
    /// The connection is over, because of that.
    End(String),
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, outbox: Outbox::default(), begun: Vec::new(), deaf: None, asks: false }
    }

    /// Is there more to send?
    pub(super) fn is_waiting(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends a packet at once where nothing waits, and keeps what of it did not go out. Whether there was room.
    pub(super) fn send(&mut self, header: &Header, payload: &[u8]) -> bool {
        if self.deaf.is_some() || self.is_waiting() {
            return false;
        }
        let head = packet::head(header, payload.len());
        let gone = self.write(&[IoSlice::new(&head), IoSlice::new(payload)]);
        match gone.checked_sub(HEAD) {
            None => self.outbox.push(&head[gone..], payload),
            Some(gone) if gone < payload.len() => self.outbox.push(&[], &payload[gone..]),
            Some(_) => {}
        }
        true
    }

    /// Sends what waits and can be sent now.
    pub(super) fn flush(&mut self) {
        while self.is_waiting() {
            let gone = {
                let Self { outbox, .. } = &*self;
                let rest = [IoSlice::new(&outbox.bytes[outbox.gone..])];
                write(&self.socket, &rest)
            };
            match gone {
                Ok(0) => return,
                Ok(gone) => self.outbox.went(gone),
                Err(error) => return self.deafen(error),
            }
        }
    }

    fn write(&mut self, parts: &[IoSlice]) -> usize {
        write(&self.socket, parts).unwrap_or_else(|error| {
            self.deafen(error);
            0
        })
    }

    fn deafen(&mut self, error: Errno) {
        self.deaf = Some(error);
        self.outbox = Outbox::default();
    }

    /// Reads once and gives the packets that are whole. `room` is where they come to: longer than a packet.
    pub(super) fn read(&mut self, room: &mut [u8], mut deliver: impl FnMut(&Header, &[u8])) -> Found {
        let begun = self.begun.len();
        room[..begun].copy_from_slice(&self.begun);
        let count = match recv(self.socket.as_raw_fd(), &mut room[begun..], MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Found::End(self.end(None)),
            Ok(count) => begun + count,
            Err(Errno::EAGAIN | Errno::EINTR) => return Found::Nothing,
            Err(error) => return Found::End(self.end(Some(error))),
        };
        let came = &room[..count];
        match packet::take(came, &mut deliver) {
            Ok(taken) => {
                self.begun.clear();
                self.begun.extend_from_slice(&came[taken..]);
                if self.begun.is_empty() && self.begun.capacity() > KEEP {
                    self.begun = Vec::new();
                }
                Found::Packets
            }
            Err(length) => {
                let why = format!(
                    "it sent a packet of {length} bytes, and {MOST} is the most; do all ranks run the same build?"
                );
                Found::End(why)
            }
        }
    }

    fn end(&self, error: Option<Errno>) -> String {
        match error.or(self.deaf) {
            None if self.begun.is_empty() => {
                "it closed the connection: it has ended, or needs nobody any more".to_owned()
            }
            None => "it closed the connection in the middle of a packet".to_owned(),
            Some(error) => format!("the connection broke: {}", error.desc()),
        }
    }

    /// Nothing more will be sent.
    pub(super) fn shut(&self) {
        // A connection that is gone needs no end.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How much went out.
fn write(socket: &OwnedFd, parts: &[IoSlice]) -> Result<usize, Errno> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match sendmsg::<()>(socket.as_raw_fd(), parts, &[], flags, None) {
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        result => result,
    }
}
