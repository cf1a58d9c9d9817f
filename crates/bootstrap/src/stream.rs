//! A leader's end of a connection: reads and writes that never wait.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, recv, sendmsg, shutdown};

use crate::frame::{HEADER, payload_length};

/// What was kept of a long message is given back when less than this is needed.
const KEEP: usize = 64 * 1024;

/// What to send: bytes, and a descriptor with the first of them.
type Parcel = (Rc<[u8]>, Option<Rc<OwnedFd>>);

pub(crate) struct Stream {
    socket: OwnedFd,
    inbox: Vec<u8>,
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
        Self { socket, inbox: Vec::new(), outbox: VecDeque::new(), sent: 0, deaf: false }
    }

    /// Takes what is there, at most as much as fits into `buffer`.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Found {
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(1..) if self.deaf => Found::Nothing,
            Ok(0) => Found::End("its process ended without leaving".to_owned()),
            Ok(count) => {
                self.inbox.extend_from_slice(&buffer[..count]);
                Found::Bytes(count)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Found::Nothing,
            Err(error) => Found::End(format!("the connection broke: {}", error.desc())),
        }
    }

    /// Nothing that comes is of use any more: where a frame ends is not known. Only its end will be noticed.
    pub(crate) fn deafen(&mut self) {
        self.deaf = true;
        self.inbox = Vec::new();
    }

    /// How many bytes were read and not taken.
    pub(crate) fn unread(&self) -> usize {
        self.inbox.len()
    }

    /// The next so many bytes, if they are here.
    pub(crate) fn take<const COUNT: usize>(&mut self) -> Option<[u8; COUNT]> {
        let bytes = *self.inbox.first_chunk()?;
        self.inbox.drain(..COUNT);
        Some(bytes)
    }

    /// The next frame's payload and what follows it, if they are here; its length if that is over `most`.
    pub(crate) fn frame(&mut self, most: usize, tail: usize) -> Result<Option<Vec<u8>>, usize> {
        let Some(&header) = self.inbox.first_chunk::<HEADER>() else { return Ok(None) };
        let end = HEADER + payload_length(header, most)? + tail;
        if self.inbox.len() < end {
            return Ok(None);
        }
        let rest = self.inbox.split_off(end);
        let mut frame = std::mem::replace(&mut self.inbox, rest);
        frame.drain(..HEADER);
        if self.inbox.is_empty() && self.inbox.capacity() > KEEP {
            self.inbox = Vec::new();
        }
        Ok(Some(frame))
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
