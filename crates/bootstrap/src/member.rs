//! A rank's connection to the leader of its node.
#![expect(unsafe_code, reason = "descriptors come as numbers")]

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::inbox::Inbox;
use crate::message::{OVERHEAD, ToMember};

pub(crate) struct Member {
    socket: OwnedFd,
    inbox: Inbox,
    descriptors: VecDeque<OwnedFd>,
}

impl Member {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, inbox: Inbox::default(), descriptors: VecDeque::new() }
    }

    /// Sends `first`, and then `message` and `bytes` in one frame, at the latest at `deadline`.
    pub(crate) fn send(
        &self,
        first: &[u8],
        message: &[u8],
        bytes: &[u8],
        deadline: Instant,
    ) -> io::Result<()> {
        let length = u32::try_from(message.len() + bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let header = length.to_be_bytes();
        let mut parts = [first, &header, message, bytes].map(IoSlice::new);
        let mut rest = &mut parts[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.socket.as_raw_fd(), rest, &[], flags, None) {
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(Errno::EAGAIN) => {
                    if !self.wait(PollFlags::POLLOUT, deadline)? {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next message with its table, if it comes until `deadline`.
    pub(crate) fn receive(&mut self, deadline: Instant) -> io::Result<Option<(ToMember, Option<OwnedFd>)>> {
        loop {
            if let Some(payload) = self.inbox.frame(OVERHEAD, 0).map_err(|_| io::ErrorKind::InvalidData)? {
                let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
                let message = ToMember::decode(&payload).map_err(bad)?;
                let descriptor = match message {
                    ToMember::Done { table: true, .. } => {
                        Some(self.descriptors.pop_front().ok_or_else(|| bad("the table is not with it"))?)
                    }
                    _ => None,
                };
                return Ok(Some((message, descriptor)));
            }
            if !self.wait(PollFlags::POLLIN, deadline)? {
                return Ok(None);
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 512];
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let mut place = [IoSliceMut::new(&mut buffer)];
        let count = match recvmsg::<()>(self.socket.as_raw_fd(), &mut place, Some(&mut control), flags) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(message) => {
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(descriptors) = control {
                        // SAFETY: the kernel has just made these descriptors for this process, so nobody else owns them.
                        let owned = descriptors.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) });
                        self.descriptors.extend(owned);
                    }
                }
                message.bytes
            }
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.inbox.add(&buffer[..count]);
        Ok(())
    }

    /// Whether it is ready before `deadline`.
    fn wait(&self, what: PollFlags, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the last wait is not a spin; 0 asks whether it is ready now.
            let left = if left.is_zero() { left } else { left + Duration::from_millis(1) };
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), what)], timeout) {
                Ok(0) if Instant::now() >= deadline => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
