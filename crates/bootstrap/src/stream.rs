//! A leader's end of a connection: reads and writes that never wait.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, recv, sendmsg, shutdown};

use crate::inbox::Inbox;

/// What to send: bytes, and a descriptor with the first of them.
type Parcel = (Rc<[u8]>, Option<Rc<OwnedFd>>);

pub(crate) struct Stream {
    socket: OwnedFd,
    inbox: Inbox,
    outbox: VecDeque<Parcel>,
    /// How much of the first is gone.
    sent: usize,
    /// What comes is not kept.
    deaf: bool,
}

/// What a read found.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Found {
    Bytes(usize),
    Nothing,
    End(String),
}

impl Stream {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, inbox: Inbox::default(), outbox: VecDeque::new(), sent: 0, deaf: false }
    }

    /// Takes what is there, at most as much as fits into `buffer`.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Found {
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(1..) if self.deaf => Found::Nothing,
            Ok(0) => Found::End("its process ended without leaving".to_owned()),
            Ok(count) => {
                self.inbox.add(&buffer[..count]);
                Found::Bytes(count)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Found::Nothing,
            Err(error) => Found::End(format!("the connection broke: {}", error.desc())),
        }
    }

    /// Nothing that comes is of use any more: where a frame ends is not known. Only its end will be noticed.
    pub(crate) fn deafen(&mut self) {
        self.deaf = true;
        self.inbox = Inbox::default();
    }

    /// What was read and not taken.
    pub(crate) fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    pub(crate) fn queue(&mut self, bytes: Rc<[u8]>, descriptor: Option<Rc<OwnedFd>>) {
        self.outbox.push_back((bytes, descriptor));
    }

    /// Sends what can be sent now.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some((bytes, descriptor)) = self.outbox.front() {
            let raw = descriptor.as_ref().map(|descriptor| [descriptor.as_raw_fd()]);
            let rights = raw.as_ref().filter(|_| self.sent == 0).map(|raw| ControlMessage::ScmRights(raw));
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let (length, rest) = (bytes.len(), [IoSlice::new(&bytes[self.sent..])]);
            match sendmsg::<()>(self.socket.as_raw_fd(), &rest, rights.as_slice(), flags, None) {
                Ok(count) => self.sent += count,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if self.sent == length {
                self.outbox.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }

    /// Nothing more will be sent.
    pub(crate) fn shut(&self) {
        // A connection that is gone needs no end.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
    }

    /// Is there more to send?
    pub(crate) fn is_waiting(&self) -> bool {
        !self.outbox.is_empty()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
